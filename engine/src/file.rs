//! Files: a descriptor, and what is known of it.

use std::{
    error::Error,
    fmt, io, mem,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use libc::iovec;
use rustix::fs::{CWD, FileType, OFlags};
use uaio_core::{Errno, latch::Latch};

use crate::{
    epoll::{Epoll, Watch},
    sys::{self, Direction, Trial, lock},
};

const RAMFS_MAGIC: u32 = 0x8584_58f6;
const TMPFS_MAGIC: u32 = 0x0102_1994;
const PROC_SUPER_MAGIC: u32 = 0x9fa0;

/// An open descriptor that requests can be made for: a file, a socket, a pipe, an
/// eventfd, a terminal; anything.
///
/// Clones share the descriptor, as does each request under way; it is closed
/// with the last of them. Whether the file is opened with O_DIRECT, O_SYNC or
/// O_NONBLOCK is looked at once, here: changing it later by `fcntl` may make a
/// submission block. None of them is changed.
///
/// ```
/// use uaio::File;
///
/// let file = File::new(tempfile::tempfile()?)?;
/// let (reader, writer) = std::io::pipe()?;
/// let (reader, writer) = (File::new(reader)?, File::new(writer)?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct File(Arc<Open>);

#[derive(Debug)]
struct Open {
    /// For each context that has waited for it. Given back before it is closed.
    watches: Mutex<Vec<Arc<Watch>>>,
    fd: Descriptor,
    /// Another opening, by which it is tried where the descriptor itself cannot be.
    /// Empty if there is none to be had.
    other: OnceLock<Option<OwnedFd>>,
    /// Held by who tries it, unless it is a socket.
    turn: Mutex<()>,
    access: Access,
}

impl Open {
    /// Takes the descriptor out, of which nothing is used after that.
    fn take(&mut self) -> Option<OwnedFd> {
        if matches!(self.fd, Descriptor::Raw(_)) {
            return None;
        }
        self.give_back_watches();
        // No descriptor, and not closed.
        match mem::replace(&mut self.fd, Descriptor::Raw(CWD)) {
            Descriptor::Owned(fd) => Some(fd),
            Descriptor::Raw(_) => None,
        }
    }

    fn give_back_watches(&mut self) {
        let watches = self
            .watches
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for watch in watches.drain(..) {
            watch.release(self.fd.as_fd());
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.give_back_watches();
    }
}

#[derive(Debug)]
enum Descriptor {
    Owned(OwnedFd),
    /// Open until the completion, by the contract of raw submission.
    Raw(BorrowedFd<'static>),
}

impl File {
    /// Takes a descriptor, which may be a [`std::fs::File`].
    ///
    /// # Errors
    ///
    /// What `fstat`, `fstatfs` or `fcntl` said. The descriptor is in the error.
    pub fn new(fd: impl Into<OwnedFd>) -> Result<Self, Unfit> {
        let fd = fd.into();
        match Access::of(fd.as_fd()) {
            Ok(access) => Ok(Self::open(Descriptor::Owned(fd), access)),
            Err(errno) => Err(Unfit { errno, fd }),
        }
    }

    /// Of what has been opened for a request: that has happened, and cannot fail any
    /// more. If the system does not tell what it is, workers carry out its requests.
    pub(crate) fn opened(fd: OwnedFd) -> Self {
        let access =
            Access::of(fd.as_fd()).unwrap_or_else(|_| Access::by(Way::Worker, OFlags::empty()));
        Self::open(Descriptor::Owned(fd), access)
    }

    /// The descriptor, if this is its last share.
    ///
    /// # Errors
    ///
    /// The file: there are others, clones or those of requests, which have theirs until
    /// they are dropped.
    ///
    /// ```
    /// use uaio::{File, Op};
    ///
    /// let file = File::new(tempfile::tempfile()?)?;
    /// let read = Op::pread(&file, vec![0; 16], 0);
    /// let file = file.into_fd().expect_err("the request has a share");
    /// drop(read);
    /// let file = std::fs::File::from(file.into_fd().expect("the last one"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_fd(mut self) -> Result<OwnedFd, Self> {
        match Arc::get_mut(&mut self.0).and_then(Open::take) {
            Some(fd) => Ok(fd),
            None => Err(self),
        }
    }

    /// For a raw request: does not keep the descriptor open.
    pub(crate) fn raw(fd: BorrowedFd<'static>) -> Result<Self, Errno> {
        Access::of(fd).map(|access| Self::open(Descriptor::Raw(fd), access))
    }

    fn open(fd: Descriptor, access: Access) -> Self {
        Self(Arc::new(Open {
            watches: Mutex::default(),
            fd,
            other: OnceLock::new(),
            turn: Mutex::default(),
            access,
        }))
    }

    /// Reads from or writes to a stream as much as can be without blocking; EAGAIN if
    /// that is nothing.
    ///
    /// # Safety
    ///
    /// As of [`sys::transfer`].
    pub(crate) unsafe fn attempt(
        &self,
        direction: Direction,
        vectors: &mut [iovec],
        trial: Trial,
    ) -> Result<usize, Errno> {
        let plain = |fd: BorrowedFd<'_>, vectors: &mut [iovec], nowait| {
            // SAFETY: the same promise.
            unsafe { sys::transfer(fd, direction, vectors, None, nowait) }
        };
        // That never blocks. But a socket's write of nothing may be a message.
        let nothing = vectors.iter().all(|v| v.iov_len == 0);
        match trial {
            Trial::Socket if direction == Direction::Write || !nothing => {
                // SAFETY: the same promise.
                return unsafe { sys::message(self.as_fd(), direction, vectors) };
            }
            Trial::Nowait if !nothing => {}
            _ => {
                let _turn = lock(&self.0.turn);
                return plain(self.as_fd(), vectors, false);
            }
        }
        // A terminal that is being read by one has nothing for another one, who is not
        // told when it has.
        let _turn = lock(&self.0.turn);
        if let Some(Some(other)) = self.0.other.get() {
            return plain(other.as_fd(), vectors, false);
        }
        match plain(self.as_fd(), vectors, true) {
            // The kernel cannot; the last is a policy's answer.
            Err(errno) if matches!(errno.raw(), libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM) => {}
            tried => return tried,
        }
        let reopen = || sys::reopen(self.as_fd(), self.0.access.flags);
        if let Some(other) = self.0.other.get_or_init(reopen) {
            return plain(other.as_fd(), vectors, false);
        }
        // SAFETY: the same promise.
        unsafe { sys::when_ready(self.as_fd(), direction, vectors) }
    }

    /// Its watch in a context's epoll. `None`: it is always ready.
    ///
    /// # Errors
    ///
    /// As [`Epoll::watch`].
    pub(crate) fn watch(&self, epoll: &Arc<Epoll>) -> Result<Option<Arc<Watch>>, Errno> {
        let known = |watches: &[Arc<Watch>]| {
            let watch = watches.iter().find(|watch| watch.is_of(epoll));
            watch.map(Arc::clone)
        };
        let watch = known(&lock(&self.0.watches));
        if watch.is_some() || self.0.access.always_ready.get().is_some() {
            return Ok(watch);
        }
        let watch = epoll.watch(self.as_fd())?;
        match &watch {
            Some(watch) => {
                let mut watches = lock(&self.0.watches);
                watches.retain(|watch| !watch.is_of_none());
                // Perhaps twice: each is given back once.
                watches.push(Arc::clone(watch));
            }
            None => _ = self.0.access.always_ready.set(()),
        }
        Ok(watch)
    }

    pub(crate) fn is_raw(&self) -> bool {
        matches!(self.0.fd, Descriptor::Raw(_))
    }

    pub(crate) fn access(&self) -> &Access {
        &self.0.access
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Owned(fd) => fd.as_fd(),
            Self::Raw(fd) => *fd,
        }
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

/// Why a descriptor is not a [`File`], and the descriptor.
#[derive(Debug)]
pub struct Unfit {
    errno: Errno,
    fd: OwnedFd,
}

impl Unfit {
    /// Why.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The descriptor, unchanged.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from(self.errno).fmt(f)
    }
}

impl Error for Unfit {}

/// Loses the descriptor, which is closed.
impl From<Unfit> for io::Error {
    fn from(unfit: Unfit) -> Self {
        unfit.errno.into()
    }
}

/// How requests on a descriptor are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the submitter: it does not wait for a device.
    Inline,
    /// By the submitter as far as it goes without blocking, then by a worker.
    Nowait,
    /// By a worker.
    Worker,
    /// Tried so until it does not block, if it has readiness; else by a worker.
    Stream(Trial),
}

/// What is known of an open file.
#[derive(Debug)]
pub(crate) struct Access {
    way: Way,
    flags: OFlags,
    /// Set when epoll does not take it.
    always_ready: OnceLock<()>,
    /// Whether asking not to wait is worth its while.
    reads: Latch,
    writes: Latch,
    /// Set when `RWF_NOWAIT` is found not to work, or not to be enough.
    blocking_reads: OnceLock<()>,
    blocking_writes: OnceLock<()>,
}

impl Access {
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(fd).map_err(sys::errno)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let flags = rustix::fs::fcntl_getfl(fd).map_err(sys::errno)?;
        let stream = match kind {
            FileType::RegularFile | FileType::BlockDevice | FileType::Directory => None,
            FileType::Socket => Some(Trial::Socket),
            _ if flags.contains(OFlags::NONBLOCK) => Some(Trial::Plain),
            _ => Some(Trial::Nowait),
        };
        if let Some(trial) = stream {
            return Ok(Self::by(Way::Stream(trial), flags));
        }
        let way = match rustix::fs::fstatfs(fd).map_err(sys::errno)?.f_type as u32 {
            // A block device lives in a tmpfs, but is none.
            TMPFS_MAGIC | RAMFS_MAGIC if kind.is_file() => Way::Inline,
            PROC_SUPER_MAGIC => Way::Worker,
            _ if flags.contains(OFlags::DIRECT) => Way::Worker,
            _ => Way::Nowait,
        };
        let access = Self::by(way, flags);
        if flags.contains(OFlags::DSYNC) {
            // RWF_NOWAIT does not keep the write from waiting for the device
            // once the page cache has it. O_SYNC includes O_DSYNC.
            access.give_up_nowait(Direction::Write);
        }
        if flags.contains(OFlags::APPEND) {
            // One call, or others' records come to stand within this one: where
            // a part went to the end, the rest goes to another end.
            access.give_up_nowait(Direction::Write);
        }
        Ok(access)
    }

    fn by(way: Way, flags: OFlags) -> Self {
        Self {
            way,
            flags,
            always_ready: OnceLock::new(),
            reads: Latch::new(),
            writes: Latch::new(),
            blocking_reads: OnceLock::new(),
            blocking_writes: OnceLock::new(),
        }
    }

    /// Whether it was opened for that.
    pub(crate) fn allows(&self, direction: Direction) -> bool {
        let only = match direction {
            Direction::Read => OFlags::WRONLY,
            Direction::Write => OFlags::RDONLY,
        };
        self.flags & OFlags::ACCMODE != only
    }

    pub(crate) fn way(&self, direction: Direction) -> Way {
        match self.way {
            Way::Nowait if self.blocking(direction).get().is_some() => Way::Worker,
            way => way,
        }
    }

    /// Whether all is done by the submitter.
    pub(crate) fn is_inline(&self) -> bool {
        self.way == Way::Inline
    }

    pub(crate) fn give_up_nowait(&self, direction: Direction) {
        let _ = self.blocking(direction).set(());
    }

    /// How attempts went that do not wait.
    pub(crate) fn attempts(&self, direction: Direction) -> &Latch {
        match direction {
            Direction::Read => &self.reads,
            Direction::Write => &self.writes,
        }
    }

    fn blocking(&self, direction: Direction) -> &OnceLock<()> {
        match direction {
            Direction::Read => &self.blocking_reads,
            Direction::Write => &self.blocking_writes,
        }
    }
}
