//! Requests: what to do, to which file, with which memory.

use std::{mem, ops::Deref, os::fd::AsFd};

use libc::{c_void, iovec};
use rustix::fs::FileType;
use uaio_core::{Errno, context::Handle};

use crate::{
    file::{File, Way},
    sys::{self, Direction, IOV_MAX},
};

/// A request: to be submitted, and given back with its completion.
///
/// It owns its buffers and a share of its file, so whatever becomes of the
/// caller's own, they are there until the request is done.
///
/// # Results
///
/// As those of the system call of the same name. Reading asks for as many bytes
/// as the buffers are long (their length, not their capacity) and may bring
/// fewer: at the end of the file, or zero beyond it. Writing may be short too,
/// say when the disk becomes full on the way: then the rest was not written,
/// and writing it again tells why. An error means that nothing was transferred.
#[derive(Debug)]
pub struct Op {
    pub(crate) data: u64,
    offload: bool,
    progress: Progress,
    work: Work,
}

/// How far an accepted request is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Bytes transferred.
    pub(crate) done: usize,
    /// Whether it was handed to a worker.
    pub(crate) handed_off: bool,
}

#[derive(Debug)]
enum Work {
    Nop,
    Sync {
        file: File,
        data_only: bool,
    },
    Transfer(Transfer),
    /// What is left in the caller's hands of one that was accepted.
    Accepted(Handle),
    #[cfg(test)]
    Panic,
}

#[derive(Debug)]
struct Transfer {
    file: File,
    direction: Direction,
    memory: Memory,
    offset: u64,
}

#[derive(Debug)]
enum Memory {
    One(Vec<u8>),
    Many(Vec<Vec<u8>>),
    Raw(RawMemory),
}

/// Memory by address; valid until the completion, by the contract of raw
/// submission.
#[derive(Debug)]
struct RawMemory(Vec<iovec>);

// SAFETY: the contract of raw submission leaves the memory to the request,
// whichever thread carries it out.
unsafe impl Send for RawMemory {}

/// Vectors for one system call. One of them needs no heap.
enum Vectors {
    One([iovec; 1]),
    Many(Vec<iovec>),
}

impl Deref for Vectors {
    type Target = [iovec];
    fn deref(&self) -> &[iovec] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

fn vector(buf: &mut [u8]) -> iovec {
    iovec {
        iov_base: buf.as_mut_ptr().cast::<c_void>(),
        iov_len: buf.len(),
    }
}

impl Memory {
    fn len(&self) -> usize {
        match self {
            Self::One(buf) => buf.len(),
            Self::Many(bufs) => bufs.iter().map(Vec::len).sum(),
            Self::Raw(raw) => raw.0.iter().map(|v| v.iov_len).sum(),
        }
    }

    /// What remains after the first `skip` bytes.
    fn rest(&mut self, skip: usize) -> Vectors {
        match self {
            Self::One(buf) => Vectors::One([vector(&mut buf[skip..])]),
            Self::Many(bufs) => after(bufs.iter_mut().map(|buf| vector(buf)), skip),
            Self::Raw(raw) => after(raw.0.iter().copied(), skip),
        }
    }
}

/// The vectors without their first `skip` bytes.
fn after(vectors: impl Iterator<Item = iovec>, mut skip: usize) -> Vectors {
    Vectors::Many(
        vectors
            .filter_map(|v| {
                let skipped = skip.min(v.iov_len);
                skip -= skipped;
                // Empty ones stay as long as nothing was skipped: the system
                // call is the one that was asked for.
                (skipped == 0 || skipped < v.iov_len).then(|| iovec {
                    iov_base: v.iov_base.wrapping_byte_add(skipped),
                    iov_len: v.iov_len - skipped,
                })
            })
            .collect(),
    )
}

impl Op {
    fn new(work: Work) -> Self {
        Self {
            data: 0,
            offload: false,
            progress: Progress::default(),
            work,
        }
    }

    fn transfer(file: &File, direction: Direction, memory: Memory, offset: u64) -> Self {
        Self::new(Work::Transfer(Transfer {
            file: file.clone(),
            direction,
            memory,
            offset,
        }))
    }

    /// Does nothing, and completes with 0.
    pub fn nop() -> Self {
        Self::new(Work::Nop)
    }

    /// Reads `buf.len()` bytes at `offset`.
    pub fn pread(file: &File, buf: Vec<u8>, offset: u64) -> Self {
        Self::transfer(file, Direction::Read, Memory::One(buf), offset)
    }

    /// Writes the bytes of `buf` at `offset`; at the end if the file was opened
    /// with O_APPEND.
    pub fn pwrite(file: &File, buf: Vec<u8>, offset: u64) -> Self {
        Self::transfer(file, Direction::Write, Memory::One(buf), offset)
    }

    /// Reads into several buffers, one after the other; at most 1,024.
    pub fn preadv(file: &File, bufs: Vec<Vec<u8>>, offset: u64) -> Self {
        Self::transfer(file, Direction::Read, Memory::Many(bufs), offset)
    }

    /// Writes several buffers, one after the other; at most 1,024.
    pub fn pwritev(file: &File, bufs: Vec<Vec<u8>>, offset: u64) -> Self {
        Self::transfer(file, Direction::Write, Memory::Many(bufs), offset)
    }

    /// Makes durable what was written before, and completes with 0.
    ///
    /// Requests are carried out in any order: *before* means that their
    /// completions were reaped.
    pub fn fsync(file: &File) -> Self {
        Self::new(Work::Sync {
            file: file.clone(),
            data_only: false,
        })
    }

    /// As [`fsync`](Self::fsync), without what is not needed to read the data
    /// again.
    pub fn fdatasync(file: &File) -> Self {
        Self::new(Work::Sync {
            file: file.clone(),
            data_only: true,
        })
    }

    /// The caller's own value, for its [`Completion`](crate::Completion).
    pub fn data(mut self, data: u64) -> Self {
        self.data = data;
        self
    }

    #[cfg(test)]
    pub(crate) fn panic() -> Self {
        Self::new(Work::Panic)
    }

    /// Has a worker do it, without trying first whether it can be done at once.
    ///
    /// For a submitter that has no time for copying from the page cache either.
    pub fn offload(mut self) -> Self {
        self.offload = true;
        self
    }

    /// What [`submit`](crate::Context::submit) left here of a request that it
    /// accepted: its name. `None` if it was not submitted, or refused.
    pub fn handle(&self) -> Option<Handle> {
        match self.work {
            Work::Accepted(handle) => Some(handle),
            _ => None,
        }
    }

    /// The buffer of a `pread` or `pwrite`; of others an empty one.
    pub fn into_buf(self) -> Vec<u8> {
        match self.work {
            Work::Transfer(Transfer {
                memory: Memory::One(buf),
                ..
            }) => buf,
            _ => Vec::new(),
        }
    }

    /// The buffers of a `preadv` or `pwritev`; of others none.
    pub fn into_bufs(self) -> Vec<Vec<u8>> {
        match self.work {
            Work::Transfer(Transfer {
                memory: Memory::Many(bufs),
                ..
            }) => bufs,
            _ => Vec::new(),
        }
    }
}

/// Raw requests. Carrying one out is sound by the contract of
/// [`submit_raw`](crate::Context::submit_raw).
impl Op {
    pub(crate) fn raw_transfer(
        file: &File,
        direction: Direction,
        vectors: Vec<iovec>,
        offset: u64,
    ) -> Self {
        Self::transfer(file, direction, Memory::Raw(RawMemory(vectors)), offset)
    }

    /// What the caller gets back: of a raw request its name, lest safe code
    /// submit it again.
    pub(crate) fn give_back(self, handle: Handle) -> Self {
        match &self.work {
            Work::Sync { file, .. } | Work::Transfer(Transfer { file, .. }) if file.is_raw() => {
                Self::accepted(handle)
            }
            _ => self,
        }
    }
}

/// What the context does with a request.
impl Op {
    /// # Errors
    ///
    /// EINVAL when the request makes no sense.
    pub(crate) fn check(&self) -> Result<(), Errno> {
        let sensible = match &self.work {
            Work::Nop | Work::Sync { .. } => true,
            Work::Transfer(Transfer { offset, memory, .. }) => {
                let few = !matches!(memory, Memory::Many(bufs) if bufs.len() > IOV_MAX);
                few && i64::try_from(*offset).is_ok()
            }
            Work::Accepted(_) => false,
            #[cfg(test)]
            Work::Panic => true,
        };
        if sensible { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Takes the request out of the caller's hands.
    pub(crate) fn take(&mut self) -> Self {
        let mut op = mem::replace(self, Self::nop());
        op.progress = Progress::default();
        op
    }

    /// What is left there instead: its name.
    pub(crate) fn accepted(handle: Handle) -> Self {
        Self::new(Work::Accepted(handle))
    }

    pub(crate) fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// Does at once what can be done without waiting. `None`: the rest is for a
    /// worker.
    pub(crate) fn attempt(&mut self) -> Option<Result<usize, Errno>> {
        if self.offload {
            return None;
        }
        match &mut self.work {
            Work::Sync { file, .. } if !file.access().is_inline() => None,
            Work::Transfer(transfer) => match transfer.file.access().way(transfer.direction) {
                Way::Inline => Some(self.run()),
                Way::Nowait => transfer.attempt(&mut self.progress.done),
                Way::Worker => None,
            },
            _ => Some(self.run()),
        }
    }

    /// Does the rest, waiting as long as it takes.
    pub(crate) fn run(&mut self) -> Result<usize, Errno> {
        match &mut self.work {
            Work::Nop | Work::Accepted(_) => Ok(0),
            #[cfg(test)]
            Work::Panic => panic!("on purpose"),
            Work::Sync { file, data_only } => {
                let sync = if *data_only {
                    rustix::fs::fdatasync
                } else {
                    rustix::fs::fsync
                };
                rustix::io::retry_on_intr(|| sync(file.as_fd()))
                    .map(|()| 0)
                    .map_err(sys::errno)
            }
            Work::Transfer(transfer) => {
                let done = self.progress.done;
                match transfer.go_on(done, false) {
                    Ok(n) => Ok(done + n),
                    // What was transferred counts; the next request there
                    // meets the error again.
                    Err(_) if done > 0 => Ok(done),
                    Err(errno) => Err(errno),
                }
            }
        }
    }
}

impl Transfer {
    /// One system call for what remains after `done` bytes.
    fn go_on(&mut self, done: usize, nowait: bool) -> Result<usize, Errno> {
        let rest = self.memory.rest(done);
        // Only what was transferred is added, so this stays in range.
        let offset = self.offset as i64 + done as i64;
        // SAFETY: the vectors are of buffers that the request owns, borrowed
        // exclusively here; or promised to it by the contract of raw submission.
        unsafe { sys::transfer(self.file.as_fd(), self.direction, &rest, offset, nowait) }
    }

    /// Goes on without blocking as long as that brings anything.
    ///
    /// Reports no error: whatever it is, a plain call by a worker tells the
    /// truth.
    fn attempt(&mut self, done: &mut usize) -> Option<Result<usize, Errno>> {
        let len = self.memory.len();
        loop {
            match self.go_on(*done, true) {
                Ok(0) if *done < len && !self.is_end(*done) => return None,
                Ok(n) => {
                    *done += n;
                    if n == 0 || *done == len {
                        return Some(Ok(*done));
                    }
                }
                Err(errno) => {
                    if matches!(errno.raw(), libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM) {
                        self.file.access().give_up_nowait(self.direction);
                    }
                    return None;
                }
            }
        }
    }

    /// Whether nothing transferred means the end of the file. Linux 5.9 and 5.10
    /// also mean by it that the call would block; and of a block device the size
    /// is not told here.
    fn is_end(&self, done: usize) -> bool {
        rustix::fs::fstat(self.file.as_fd()).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode).is_file()
                && stat.st_size as u64 <= self.offset + done as u64
        })
    }
}
