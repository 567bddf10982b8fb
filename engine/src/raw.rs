//! Requests by address, as in Linux's `struct iocb`.

use std::{
    os::fd::{BorrowedFd, RawFd},
    ptr, slice,
};

use libc::iovec;
use uaio_core::{Errno, context::Handle};

use crate::{
    file::File,
    op::Op,
    sys::{Direction, IOV_MAX},
};

/// A request whose memory and descriptor are somebody else's. See
/// [`submit_raw`](crate::Context::submit_raw).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Iocb {
    /// The caller's own value, for the completion.
    pub data: u64,
    /// What to do: one of the constants below.
    pub opcode: u16,
    /// With which file. [`NOOP`](Self::NOOP) does not look at it.
    pub fd: RawFd,
    /// The memory; for [`PREADV`](Self::PREADV) and [`PWRITEV`](Self::PWRITEV) an
    /// array of `struct iovec`, which is needed during submission only.
    pub buf: *mut u8,
    /// How many bytes; how many vectors.
    pub nbytes: usize,
    /// Where in the file, in bytes.
    pub offset: i64,
    /// Written by submission: the name of the accepted request.
    pub handle: Option<Handle>,
}

/// The numbers are Linux's.
impl Iocb {
    /// Read.
    pub const PREAD: u16 = 0;
    /// Write.
    pub const PWRITE: u16 = 1;
    /// Make data and metadata durable.
    pub const FSYNC: u16 = 2;
    /// Make data durable.
    pub const FDSYNC: u16 = 3;
    /// Wait for readiness: `buf` is the events, of [`event`](crate::event), and the
    /// rest zero.
    pub const POLL: u16 = 5;
    /// Do nothing.
    pub const NOOP: u16 = 6;
    /// Read into several pieces of memory.
    pub const PREADV: u16 = 7;
    /// Write several pieces of memory.
    pub const PWRITEV: u16 = 8;

    /// A request with `data` zero.
    pub const fn new(opcode: u16, fd: RawFd, buf: *mut u8, nbytes: usize, offset: i64) -> Self {
        Self {
            data: 0,
            opcode,
            fd,
            buf,
            nbytes,
            offset,
            handle: None,
        }
    }

    /// As a request of the safe kind. `last` is the file of the one before, since
    /// the next is often the same.
    ///
    /// # Errors
    ///
    /// EBADF, EINVAL, EFAULT: see `submit_raw`.
    ///
    /// # Safety
    ///
    /// As for `submit_raw`, until the request is done or dropped.
    pub(crate) unsafe fn to_op(self, last: &mut Option<(RawFd, File)>) -> Result<Op, Errno> {
        let op = match self.opcode {
            Self::NOOP => Op::nop(),
            Self::FSYNC => Op::fsync(self.file(last)?),
            Self::FDSYNC => Op::fdatasync(self.file(last)?),
            Self::POLL => {
                if self.nbytes != 0 || self.offset != 0 {
                    return Err(Errno::EINVAL);
                }
                let events = u16::try_from(self.buf.addr()).map_err(|_| Errno::EINVAL)?;
                Op::poll(self.file(last)?, events)
            }
            Self::PREAD | Self::PWRITE | Self::PREADV | Self::PWRITEV => {
                let file = self.file(last)?;
                let offset = u64::try_from(self.offset).map_err(|_| Errno::EINVAL)?;
                // SAFETY: the caller's promise.
                let vectors = unsafe { self.vectors()? };
                let direction = match self.opcode {
                    Self::PREAD | Self::PREADV => Direction::Read,
                    _ => Direction::Write,
                };
                Op::raw_transfer(file, direction, vectors, offset)
            }
            _ => return Err(Errno::EINVAL),
        };
        Ok(op.data(self.data))
    }

    fn file(self, last: &mut Option<(RawFd, File)>) -> Result<&File, Errno> {
        if !matches!(last, Some((fd, _)) if *fd == self.fd) {
            if self.fd < 0 {
                return Err(Errno::EBADF);
            }
            // SAFETY: not -1. That it stays open is the contract of
            // `submit_raw`; if it is not even open now, the next line says so.
            let fd = unsafe { BorrowedFd::borrow_raw(self.fd) };
            *last = Some((self.fd, File::raw(fd)?));
        }
        last.as_ref().map(|(_, file)| file).ok_or(Errno::EBADF)
    }

    /// # Safety
    ///
    /// As for `submit_raw`.
    unsafe fn vectors(self) -> Result<Vec<iovec>, Errno> {
        let vectors = match self.opcode {
            Self::PREADV | Self::PWRITEV => {
                let array = self.buf.cast::<iovec>();
                match self.nbytes {
                    0 => Vec::new(),
                    n if n > IOV_MAX => return Err(Errno::EINVAL),
                    _ if array.is_null() || !array.is_aligned() => return Err(Errno::EFAULT),
                    // SAFETY: aligned, and valid by the caller's promise.
                    n => unsafe { slice::from_raw_parts(array, n) }.to_vec(),
                }
            }
            _ => vec![iovec {
                iov_base: self.buf.cast(),
                iov_len: self.nbytes,
            }],
        };
        let total = vectors
            .iter()
            .try_fold(0_usize, |sum, v| sum.checked_add(v.iov_len));
        match total {
            Some(total) if isize::try_from(total).is_ok() => Ok(vectors),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl Default for Iocb {
    /// A [`NOOP`](Self::NOOP).
    fn default() -> Self {
        Self::new(Self::NOOP, -1, ptr::null_mut(), 0, 0)
    }
}
