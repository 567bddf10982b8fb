//! Files and their names: what transfers no data.
//!
//! A call looks up names, waits for a journal, a server or the other end of a FIFO, and
//! the kernel cannot be asked not to. So a worker makes it, except of a file in a tmpfs,
//! where there is nothing to wait for.

use std::{
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, Statx, StatxFlags};
use uaio_core::Errno;

use crate::{file::File, op::Op, sys};

/// Flags and modes of the calls that [`Op`] has the names of, with Linux's numbers. Those
/// that are missing here can be passed as well.
pub mod flag {
    pub use libc::{
        AT_EMPTY_PATH, AT_NO_AUTOMOUNT, AT_REMOVEDIR, AT_STATX_DONT_SYNC, AT_STATX_FORCE_SYNC,
        AT_STATX_SYNC_AS_STAT, AT_SYMLINK_NOFOLLOW, FALLOC_FL_COLLAPSE_RANGE,
        FALLOC_FL_INSERT_RANGE, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_UNSHARE_RANGE,
        FALLOC_FL_ZERO_RANGE, O_APPEND, O_CREAT, O_DIRECT, O_DIRECTORY, O_DSYNC, O_EXCL, O_NOATIME,
        O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, O_PATH, O_RDONLY, O_RDWR, O_SYNC, O_TMPFILE, O_TRUNC,
        O_WRONLY, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, STATX_ATIME,
        STATX_BASIC_STATS, STATX_BLOCKS, STATX_BTIME, STATX_CTIME, STATX_GID, STATX_INO,
        STATX_MODE, STATX_MTIME, STATX_NLINK, STATX_SIZE, STATX_TYPE, STATX_UID,
        SYNC_FILE_RANGE_WAIT_AFTER, SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE,
    };
}

/// A system call, and what it has brought.
#[derive(Debug)]
pub(crate) enum Call {
    Fsync(File),
    Fdatasync(File),
    SyncFileRange {
        file: File,
        offset: u64,
        len: u64,
        flags: u32,
    },
    Fallocate {
        file: File,
        mode: i32,
        offset: u64,
        len: u64,
    },
    Openat {
        at: At,
        flags: i32,
        mode: u32,
        opened: Option<File>,
    },
    /// `None`: it is closed.
    Close(Option<File>),
    Statx {
        at: At,
        flags: i32,
        mask: u32,
        found: Option<Box<Statx>>,
    },
    Unlinkat {
        at: At,
        flags: i32,
    },
    Renameat {
        old: At,
        new: At,
        flags: u32,
    },
}

/// A name, and the directory where it is looked up if it is relative.
#[derive(Debug)]
pub(crate) struct At {
    /// `None`: the working directory.
    dir: Option<File>,
    path: Box<Path>,
}

impl At {
    fn new(dir: Option<&File>, path: impl AsRef<Path>) -> Self {
        Self {
            dir: dir.cloned(),
            path: path.as_ref().into(),
        }
    }

    fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_ref().map_or(CWD, File::as_fd)
    }

    /// Whether it can be passed to the system.
    fn is_name(&self) -> bool {
        !self.path.as_os_str().as_bytes().contains(&0)
    }
}

/// Files, and their names.
impl Op {
    /// Makes durable what was written before, and completes with 0.
    ///
    /// Requests are carried out in any order: *before* means that their
    /// completions were reaped.
    pub fn fsync(file: &File) -> Self {
        Self::call(Call::Fsync(file.clone()))
    }

    /// As [`fsync`](Self::fsync), without what is not needed to read the data
    /// again.
    pub fn fdatasync(file: &File) -> Self {
        Self::call(Call::Fdatasync(file.clone()))
    }

    /// Begins to write `len` bytes from `offset` on to the device, or waits for that, or
    /// both; all to the end of the file if `len` is zero. Completes with 0.
    ///
    /// | of [`flag`] | |
    /// |---|---|
    /// | `SYNC_FILE_RANGE_WAIT_BEFORE` | waits for what is being written already |
    /// | `SYNC_FILE_RANGE_WRITE` | begins to write what is dirty |
    /// | `SYNC_FILE_RANGE_WAIT_AFTER` | waits for that |
    ///
    /// It makes nothing durable: what is needed to find the data again is not written,
    /// nor is the device told to. It is for writing early what an
    /// [`fdatasync`](Self::fdatasync) will wait for.
    ///
    /// Errors are EINVAL: other flags, or a range that ends above 2^63 - 1; ESPIPE: it is
    /// no file, block device or directory; and what writing has met, as EIO and ENOSPC.
    pub fn sync_file_range(file: &File, offset: u64, len: u64, flags: u32) -> Self {
        Self::call(Call::SyncFileRange {
            file: file.clone(),
            offset,
            len,
            flags,
        })
    }

    /// Allocates `len` bytes from `offset` on, or does with them what `mode` says: zero,
    /// or of [`flag`] those with `FALLOC_FL_`. Completes with 0.
    ///
    /// Errors are those of `fallocate`: say EOPNOTSUPP, the file system has no such mode;
    /// EINVAL, `len` is zero; EBADF, the file is not open for writing; EFBIG, ENOSPC.
    pub fn fallocate(file: &File, mode: i32, offset: u64, len: u64) -> Self {
        Self::call(Call::Fallocate {
            file: file.clone(),
            mode,
            offset,
            len,
        })
    }

    /// Opens a file, with the flags of [`flag`] that begin with `O_`, and `mode` for one
    /// that it creates. Completes with the number of the descriptor, which belongs to the
    /// request: [`into_file`](Self::into_file) takes it out, and it is closed with the
    /// request otherwise.
    ///
    /// It is always opened with O_CLOEXEC. Opening one end of a FIFO waits for the other,
    /// unless O_NONBLOCK is among the flags, and keeps a worker waiting.
    ///
    /// Errors are those of `openat`: say ENOENT, EEXIST, EACCES, EISDIR, EMFILE; ENOTDIR,
    /// `dir` is none.
    ///
    /// ```
    /// use uaio::{Context, Op, flag};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("file");
    /// let context = Context::new(1)?;
    /// let flags = flag::O_RDWR | flag::O_CREAT | flag::O_EXCL;
    /// context.submit(&mut [Op::openat(None, path, flags, 0o600)])?;
    ///
    /// let mut events = Vec::new();
    /// context.getevents(1, 1, None, &mut events)?;
    /// let done = events.remove(0);
    /// done.result?;
    /// let file = done.op.into_file().expect("it was opened");
    /// context.submit(&mut [Op::pwrite(&file, b"new".to_vec(), 0)])?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn openat(dir: Option<&File>, path: impl AsRef<Path>, flags: i32, mode: u32) -> Self {
        Self::call(Call::Openat {
            at: At::new(dir, path),
            flags,
            mode,
            opened: None,
        })
    }

    /// Closes a file, of which this is the last share, and completes with 0.
    ///
    /// It tells what dropping the file would not: that writing has failed, say with EIO,
    /// ENOSPC or EDQUOT, where a file system writes at the end. Whatever it tells, EINTR
    /// included, the file is closed.
    ///
    /// With two exceptions: EBUSY, there is another share when it is carried out, a clone
    /// or that of a request; and ECANCELED or ETIME. Then nothing has happened, and
    /// [`into_file`](Self::into_file) gives the file back. Closed again it is EBADF.
    pub fn close(file: File) -> Self {
        Self::call(Call::Close(Some(file)))
    }

    /// Looks up what is known of a file, of which `mask` says what is asked for: of
    /// [`flag`] those with `STATX_`. Completes with 0, and
    /// [`into_statx`](Self::into_statx) tells.
    ///
    /// Of the open file `dir` itself if the path is empty and AT_EMPTY_PATH is among the
    /// flags; of a symbolic link itself with AT_SYMLINK_NOFOLLOW.
    ///
    /// Errors are those of `statx`: say ENOENT, EACCES, ENOTDIR.
    ///
    /// ```
    /// use uaio::{Context, File, Op, flag};
    ///
    /// let file = File::new(tempfile::tempfile()?)?;
    /// let context = Context::new(1)?;
    /// let statx = Op::statx(Some(&file), "", flag::AT_EMPTY_PATH, flag::STATX_SIZE);
    /// context.submit(&mut [statx])?;
    ///
    /// let mut events = Vec::new();
    /// context.getevents(1, 1, None, &mut events)?;
    /// let found = events.remove(0).op.into_statx().expect("it was found");
    /// assert_eq!(found.stx_size, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn statx(dir: Option<&File>, path: impl AsRef<Path>, flags: i32, mask: u32) -> Self {
        Self::call(Call::Statx {
            at: At::new(dir, path),
            flags,
            mask,
            found: None,
        })
    }

    /// Removes a name, of an empty directory with AT_REMOVEDIR of [`flag`], else of
    /// anything but a directory. Completes with 0.
    ///
    /// Errors are those of `unlinkat`: say ENOENT, EISDIR, ENOTDIR, ENOTEMPTY, EACCES.
    pub fn unlinkat(dir: Option<&File>, path: impl AsRef<Path>, flags: i32) -> Self {
        Self::call(Call::Unlinkat {
            at: At::new(dir, path),
            flags,
        })
    }

    /// Gives a file another name, in place of what has that name. Completes with 0.
    ///
    /// With flags it is `renameat2`: with RENAME_NOREPLACE of [`flag`] it fails with
    /// EEXIST if there is something; with RENAME_EXCHANGE the two change their names.
    ///
    /// Errors are those of the system call: say ENOENT, EXDEV, ENOTEMPTY, EACCES;
    /// EINVAL, the file system does not know a flag.
    pub fn renameat(
        old_dir: Option<&File>,
        old: impl AsRef<Path>,
        new_dir: Option<&File>,
        new: impl AsRef<Path>,
        flags: u32,
    ) -> Self {
        Self::call(Call::Renameat {
            old: At::new(old_dir, old),
            new: At::new(new_dir, new),
            flags,
        })
    }

    /// The file that an [`openat`](Self::openat) has opened, or that a
    /// [`close`](Self::close) has not closed.
    pub fn into_file(self) -> Option<File> {
        match self.into_call()? {
            Call::Openat { opened, .. } => opened,
            Call::Close(file) => file,
            _ => None,
        }
    }

    /// What a [`statx`](Self::statx) has found.
    pub fn into_statx(self) -> Option<Statx> {
        match self.into_call()? {
            Call::Statx { found, .. } => found.map(|found| *found),
            _ => None,
        }
    }
}

impl Call {
    /// The file that it is about, if that is open.
    fn file(&self) -> Option<&File> {
        match self {
            Self::Fsync(file)
            | Self::Fdatasync(file)
            | Self::SyncFileRange { file, .. }
            | Self::Fallocate { file, .. } => Some(file),
            Self::Close(file) => file.as_ref(),
            Self::Statx { at, flags, .. } if flags & libc::AT_EMPTY_PATH != 0 => {
                let itself = at.path.as_os_str().is_empty();
                at.dir.as_ref().filter(|_| itself)
            }
            _ => None,
        }
    }

    /// Whether it is of a file by a raw request.
    pub(crate) fn is_raw(&self) -> bool {
        self.file().is_some_and(File::is_raw)
    }

    /// Whether there is nothing that it could wait for.
    pub(crate) fn is_inline(&self) -> bool {
        // Allocating takes the longer the more it is.
        !matches!(self, Self::Fallocate { .. })
            && self.file().is_some_and(|file| file.access().is_inline())
    }

    /// Whether it can be passed to the system.
    pub(crate) fn is_sensible(&self) -> bool {
        let is_offset = |n: &u64| i64::try_from(*n).is_ok();
        match self {
            Self::SyncFileRange { offset, len, .. } | Self::Fallocate { offset, len, .. } => {
                is_offset(offset) && is_offset(len)
            }
            Self::Openat { at, .. } | Self::Statx { at, .. } | Self::Unlinkat { at, .. } => {
                at.is_name()
            }
            Self::Renameat { old, new, .. } => old.is_name() && new.is_name(),
            Self::Fsync(_) | Self::Fdatasync(_) | Self::Close(_) => true,
        }
    }

    /// Gives up what it has brought before.
    pub(crate) fn renew(&mut self) {
        match self {
            Self::Openat { opened, .. } => *opened = None,
            Self::Statx { found, .. } => *found = None,
            _ => {}
        }
    }

    /// Whether it may wait for somebody else, and is EINTR when a signal ends that.
    pub(crate) fn is_interruptible(&self) -> bool {
        matches!(self, Self::Openat { .. })
    }

    /// Makes the call.
    pub(crate) fn run(&mut self) -> Result<usize, Errno> {
        match self {
            Self::Fsync(file) => uninterrupted(|| rustix::fs::fsync(&*file))?,
            Self::Fdatasync(file) => uninterrupted(|| rustix::fs::fdatasync(&*file))?,
            Self::SyncFileRange {
                file,
                offset,
                len,
                flags,
            } => uninterrupted(|| sys::sync_file_range(file.as_fd(), *offset, *len, *flags))?,
            Self::Fallocate {
                file,
                mode,
                offset,
                len,
            } => {
                let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
                uninterrupted(|| rustix::fs::fallocate(&*file, mode, *offset, *len))?;
            }
            Self::Openat {
                at,
                flags,
                mode,
                opened,
            } => {
                let flags = OFlags::from_bits_retain(flags.cast_unsigned()) | OFlags::CLOEXEC;
                let mode = Mode::from_bits_retain(*mode);
                let open = || rustix::fs::openat(at.dir(), &*at.path, flags, mode);
                // EINTR is for who carries it out: that may be to end.
                let file = opened.insert(File::opened(open().map_err(sys::errno)?));
                // A number of a descriptor is never negative.
                return Ok(file.as_fd().as_raw_fd() as usize);
            }
            Self::Close(place) => return close(place),
            Self::Statx {
                at,
                flags,
                mask,
                found,
            } => {
                let flags = AtFlags::from_bits_retain(flags.cast_unsigned());
                let mask = StatxFlags::from_bits_retain(*mask);
                let statx = || rustix::fs::statx(at.dir(), &*at.path, flags, mask);
                *found = Some(Box::new(uninterrupted(statx)?));
            }
            Self::Unlinkat { at, flags } => {
                let flags = AtFlags::from_bits_retain(flags.cast_unsigned());
                uninterrupted(|| rustix::fs::unlinkat(at.dir(), &*at.path, flags))?;
            }
            Self::Renameat { old, new, flags } => {
                let flags = RenameFlags::from_bits_retain(*flags);
                uninterrupted(|| {
                    let (old_dir, old, new_dir, new) =
                        (old.dir(), &*old.path, new.dir(), &*new.path);
                    // What forbids the other may still let this pass.
                    match flags.is_empty() {
                        true => rustix::fs::renameat(old_dir, old, new_dir, new),
                        false => rustix::fs::renameat_with(old_dir, old, new_dir, new, flags),
                    }
                })?;
            }
        }
        Ok(0)
    }
}

/// Makes the call until no signal interrupts it.
fn uninterrupted<T>(call: impl FnMut() -> rustix::io::Result<T>) -> Result<T, Errno> {
    rustix::io::retry_on_intr(call).map_err(sys::errno)
}

/// Closes the file, or leaves it there.
fn close(place: &mut Option<File>) -> Result<usize, Errno> {
    let file = place.take().ok_or(Errno::EBADF)?;
    let fd = file.into_fd().map_err(|file| {
        *place = Some(file);
        Errno::EBUSY
    })?;
    // Not again after EINTR: its number may be another's by then.
    // SAFETY: it is open, and given up by who owned it.
    let closed = unsafe { rustix::io::try_close(fd.into_raw_fd()) };
    closed.map(|()| 0).map_err(sys::errno)
}
