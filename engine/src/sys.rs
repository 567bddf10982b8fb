//! System calls on memory that is given by address.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use libc::iovec;
use uaio_core::Errno;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// The most vectors that one request may have; Linux's IOV_MAX.
pub(crate) const IOV_MAX: usize = 1024;

pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error()).unwrap_or(Errno::EIO)
}

fn last_errno() -> Errno {
    let number = io::Error::last_os_error().raw_os_error();
    number.and_then(Errno::from_raw).unwrap_or(Errno::EIO)
}

/// One `preadv` or `pwritev`, repeated only while a signal interrupts it; with
/// `nowait` their sisters that answer EAGAIN rather than wait.
///
/// The plain calls are not those with flags zero: a policy that forbids the
/// latter still lets these pass. And all are made by number, since not every C
/// library has the latter.
///
/// # Safety
///
/// Each vector's memory is valid, and nobody else's, for the time of the call:
/// for writes when reading, for reads when writing.
pub(crate) unsafe fn transfer(
    fd: BorrowedFd<'_>,
    direction: Direction,
    vectors: &[iovec],
    offset: i64,
    nowait: bool,
) -> Result<usize, Errno> {
    let call = match (direction, nowait) {
        (Direction::Read, false) => libc::SYS_preadv,
        (Direction::Read, true) => libc::SYS_preadv2,
        (Direction::Write, false) => libc::SYS_pwritev,
        (Direction::Write, true) => libc::SYS_pwritev2,
    };
    let fd = libc::c_long::from(fd.as_raw_fd());
    let (iov, n) = (vectors.as_ptr(), vectors.len());
    // The offset's upper half, where a register holds only half of it.
    const UPPER: libc::c_long = 0;
    let flags = libc::c_long::from(libc::RWF_NOWAIT);
    loop {
        // SAFETY: `n` vectors are at `iov`, and their memory is the caller's
        // promise. Bad values of any other kind are errors. The plain calls do
        // not look at `flags`.
        let moved = unsafe { libc::syscall(call, fd, iov, n, offset, UPPER, flags) };
        if moved >= 0 {
            return Ok(moved as usize);
        }
        match last_errno() {
            Errno::EINTR => {}
            errno => return Err(errno),
        }
    }
}

/// Blocks all signals of the calling thread until it is dropped: a thread that
/// is spawned meanwhile starts that way, and stays so.
pub(crate) struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        let mut all = std::mem::MaybeUninit::uninit();
        let mut before = std::mem::MaybeUninit::uninit();
        // SAFETY: it is given a set to write.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: a valid set, and one to write. The call fails for a bad
        // first argument only.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: written by the call above.
        Self(unsafe { before.assume_init() })
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: a set that was this thread's mask.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}
