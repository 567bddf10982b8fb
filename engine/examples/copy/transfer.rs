//! The copy itself: each block is read and then written, many blocks at once.

use std::{
    cmp::{max, min},
    io,
};

use rustix::fs::SeekFrom;
use uaio::{Completion, Context, Errno, File, Op};

/// About how many bytes are started between two looks at what is done.
const AT_ONCE: usize = 16 << 20;

/// What failed, and how.
pub(crate) enum Failure {
    Source(io::Error),
    Target(io::Error),
    Context(Errno),
}

impl Failure {
    fn shrank() -> Self {
        Self::Source(io::Error::other("became shorter while it was copied"))
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    /// Bytes of the file.
    pub(crate) size: u64,
    /// Of these, not in holes.
    pub(crate) moved: u64,
    /// Requests that the submitter carried out itself.
    pub(crate) inline: u64,
    /// Requests that were handed to a worker.
    pub(crate) handed_off: u64,
}

/// What one request after the other is for, each named by the block's index.
struct Block {
    offset: u64,
    /// How much is still to be copied from there; for the last block, which
    /// takes what is behind the known end, as much as there is.
    left: u64,
    last: bool,
    writing: bool,
}

pub(crate) struct Transfer<'a> {
    context: &'a Context,
    source: &'a File,
    target: &'a File,
    block: usize,
    extents: Extents<'a>,
    blocks: Vec<Block>,
    /// Blocks that are done, and their buffers.
    free: Vec<(usize, Vec<u8>)>,
    /// What is to be submitted.
    ops: Vec<Op>,
    in_flight: usize,
    last_started: bool,
    report: Report,
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(
        context: &'a Context,
        source: &'a File,
        target: &'a File,
        block: usize,
    ) -> Self {
        let extents = Extents::of(source);
        let report = Report {
            size: extents.size,
            ..Report::default()
        };
        Self {
            context,
            source,
            target,
            block,
            extents,
            blocks: Vec::new(),
            free: Vec::new(),
            ops: Vec::new(),
            in_flight: 0,
            last_started: false,
            report,
        }
    }

    /// Copies all there is; `progress` is told how far it got.
    pub(crate) fn run(mut self, progress: impl Fn(u64)) -> Result<Report, Failure> {
        let mut events = Vec::new();
        loop {
            let more = self.start()?;
            self.submit()?;
            if self.in_flight == 0 {
                break;
            }
            let depth = self.context.capacity();
            (self
                .context
                .getevents(usize::from(!more), depth, None, &mut events))
            .map_err(Failure::Context)?;
            for done in events.drain(..) {
                self.in_flight -= 1;
                if done.inline {
                    self.report.inline += 1;
                } else {
                    self.report.handed_off += 1;
                }
                self.go_on(done)?;
            }
            progress(self.report.moved + self.extents.skipped);
        }
        // Holes are not read, so nothing else tells that they are gone.
        if self.extents.end() < self.extents.size {
            return Err(Failure::shrank());
        }
        // For the hole at the end, if there is one.
        rustix::fs::ftruncate(self.target, self.report.size)
            .map_err(|error| Failure::Target(error.into()))?;
        Ok(self.report)
    }

    /// Starts blocks, as many as there is room for, but not too much at once: in
    /// between, an interruption is noticed. Tells whether there is more to start.
    fn start(&mut self) -> Result<bool, Failure> {
        let mut bytes = 0;
        while self.in_flight + self.ops.len() < self.context.capacity() && !self.last_started {
            let block = match self.extents.next(self.block) {
                Some((offset, length)) => Block {
                    offset,
                    left: length,
                    last: false,
                    writing: false,
                },
                None => {
                    self.last_started = true;
                    Block {
                        offset: self.report.size,
                        left: u64::MAX,
                        last: true,
                        writing: false,
                    }
                }
            };
            let (index, buf) = self.free.pop().unwrap_or((self.blocks.len(), Vec::new()));
            if index == self.blocks.len() {
                self.blocks.push(block);
            } else {
                self.blocks[index] = block;
            }
            self.read(index, buf)?;
            bytes += self.block;
            if bytes >= AT_ONCE {
                return Ok(!self.last_started);
            }
        }
        Ok(false)
    }

    fn read(&mut self, index: usize, mut buf: Vec<u8>) -> Result<(), Failure> {
        let block = &mut self.blocks[index];
        block.writing = false;
        let length = min(self.block as u64, block.left) as usize;
        buf.try_reserve_exact(length.saturating_sub(buf.len()))
            .map_err(|_| Failure::Source(io::ErrorKind::OutOfMemory.into()))?;
        buf.resize(length, 0);
        let op = Op::pread(self.source, buf, block.offset);
        self.ops.push(op.data(index as u64));
        Ok(())
    }

    fn write(&mut self, index: usize, buf: Vec<u8>) {
        let block = &mut self.blocks[index];
        block.writing = true;
        let op = Op::pwrite(self.target, buf, block.offset);
        self.ops.push(op.data(index as u64));
    }

    fn submit(&mut self) -> Result<(), Failure> {
        // There is room: no more blocks than the context's capacity are under
        // way, and each has one request.
        let n = (self.context.submit(&mut self.ops)).map_err(Failure::Context)?;
        self.ops.drain(..n);
        self.in_flight += n;
        Ok(())
    }

    /// The next step of the block whose request is done.
    fn go_on(&mut self, done: Completion) -> Result<(), Failure> {
        let index = done.data as usize;
        let block = &mut self.blocks[index];
        let mut buf = done.op.into_buf();
        if !block.writing {
            match done.result.map_err(|errno| Failure::Source(errno.into()))? {
                0 if block.last => self.free.push((index, buf)),
                0 => return Err(Failure::shrank()),
                n => {
                    buf.truncate(n);
                    self.write(index, buf);
                }
            }
            return Ok(());
        }
        let n = match done.result.map_err(|errno| Failure::Target(errno.into()))? {
            0 => return Err(Failure::Target(io::ErrorKind::WriteZero.into())),
            n => n as u64,
        };
        block.offset += n;
        block.left -= n;
        self.report.moved += n;
        self.report.size = max(self.report.size, block.offset);
        if n < buf.len() as u64 {
            buf.drain(..n as usize);
            self.write(index, buf);
        } else if block.left > 0 {
            self.read(index, buf)?;
        } else {
            self.free.push((index, buf));
        }
        Ok(())
    }
}

const SYSFS_MAGIC: u32 = 0x6265_6572;

/// The parts of a file that are not holes, in order.
struct Extents<'a> {
    file: &'a File,
    /// As it was at the start; 0 where the system does not say, as in procfs and sysfs.
    size: u64,
    next: u64,
    /// Up to here from `next` there is data.
    data_end: u64,
    /// Bytes of the holes that were passed.
    skipped: u64,
}

impl<'a> Extents<'a> {
    fn of(file: &'a File) -> Self {
        let mut extents = Self {
            file,
            size: 0,
            next: 0,
            data_end: 0,
            skipped: 0,
        };
        // In sysfs all say that they are a page long.
        let pretends =
            rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type as u32 == SYSFS_MAGIC);
        if !pretends {
            extents.size = extents.end();
        }
        extents
    }

    /// Where the file ends now.
    fn end(&self) -> u64 {
        rustix::fs::seek(self.file, SeekFrom::End(0)).unwrap_or(0)
    }

    /// Offset and length, at most `block`, of the next piece.
    fn next(&mut self, block: usize) -> Option<(u64, u64)> {
        if self.next == self.data_end && self.next < self.size {
            let data = match rustix::fs::seek(self.file, SeekFrom::Data(self.next)) {
                Ok(data) => min(data, self.size),
                Err(rustix::io::Errno::NXIO) => self.size,
                // Unknown here: then all of it is data.
                Err(_) => self.next,
            };
            self.skipped += data - self.next;
            self.next = data;
            self.data_end = rustix::fs::seek(self.file, SeekFrom::Hole(data))
                .map_or(self.size, |hole| min(max(hole, data + 1), self.size));
        }
        let piece = (
            self.next,
            min(block as u64, self.data_end.saturating_sub(self.next)),
        );
        self.next += piece.1;
        (piece.1 > 0).then_some(piece)
    }
}
