//! Files: a descriptor, and what is known of it.

use std::{
    error::Error,
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, OnceLock},
};

use rustix::fs::{FileType, OFlags};
use uaio_core::Errno;

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
    /// One for each context that has waited for it. Dropped before the descriptor.
    watches: Mutex<Vec<Arc<Watch>>>,
    fd: Descriptor,
    /// A terminal's other opening, by which it is tried.
    other: Option<OwnedFd>,
    access: Access,
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

    /// For a raw request: does not keep the descriptor open.
    pub(crate) fn raw(fd: BorrowedFd<'static>) -> Result<Self, Errno> {
        Access::of(fd).map(|access| Self::open(Descriptor::Raw(fd), access))
    }

    fn open(fd: Descriptor, mut access: Access) -> Self {
        let other = match access.way {
            Way::Stream(Trial::Nowait) => sys::reopen_terminal(fd.as_fd(), access.flags),
            _ => None,
        };
        if other.is_some() {
            access.way = Way::Stream(Trial::Plain);
        }
        Self(Arc::new(Open {
            watches: Mutex::default(),
            fd,
            other,
            access,
        }))
    }

    /// What a stream is tried by.
    pub(crate) fn trial(&self) -> BorrowedFd<'_> {
        match &self.0.other {
            Some(other) => other.as_fd(),
            None => self.as_fd(),
        }
    }

    /// Its watch in a context's epoll. `None`: it is always ready.
    ///
    /// # Errors
    ///
    /// As [`Epoll::watch`].
    pub(crate) fn watch(&self, epoll: &Arc<Epoll>) -> Result<Option<Arc<Watch>>, Errno> {
        let mut watches = lock(&self.0.watches);
        if let Some(watch) = watches.iter().find(|watch| watch.is_of(epoll)) {
            return Ok(Some(Arc::clone(watch)));
        }
        if self.0.access.always_ready.get().is_some() {
            return Ok(None);
        }
        let watch = epoll.watch(self.as_fd())?;
        match &watch {
            Some(watch) => {
                watches.retain(|watch| !watch.is_of_none());
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
            Way::Nowait if self.latch(direction).get().is_some() => Way::Worker,
            way => way,
        }
    }

    /// Whether all is done by the submitter.
    pub(crate) fn is_inline(&self) -> bool {
        self.way == Way::Inline
    }

    pub(crate) fn give_up_nowait(&self, direction: Direction) {
        let _ = self.latch(direction).set(());
    }

    fn latch(&self, direction: Direction) -> &OnceLock<()> {
        match direction {
            Direction::Read => &self.blocking_reads,
            Direction::Write => &self.blocking_writes,
        }
    }
}
