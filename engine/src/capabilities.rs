//! What not every kernel offers, nor every policy allows.

use std::sync::OnceLock;

use uaio_core::Errno;

use crate::sys::{self, Origin};

/// What this process can have of the system, and what uaio does without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Signals can be sent to one thread: Linux 6.9. Else
    /// [`Notify::to_thread`](crate::Notify::to_thread) is ENOSYS.
    pub thread_signals: bool,
    /// A read can be made that does not wait (`preadv2` with `RWF_NOWAIT`): Linux 4.14, and
    /// no policy forbids it. Else files that may wait go to the workers. (Which file
    /// systems can is found out file by file.)
    pub nowait: bool,
    /// A [forked](crate::Context#fork) process is noticed: Linux 4.14. Else nothing tells
    /// it that the contexts that it has are of no use.
    pub forks_noticed: bool,
}

/// What there is. Found out once: by three system calls, which open nothing.
pub fn capabilities() -> Capabilities {
    static FOUND: OnceLock<Capabilities> = OnceLock::new();
    *FOUND.get_or_init(|| Capabilities {
        // Of a thread that there cannot be: no descriptor is needed to learn it.
        thread_signals: sys::pidfd_open(i32::MAX, true).err() == Some(Errno::ESRCH),
        nowait: sys::can_ask_not_to_wait(),
        forks_noticed: Origin::new().is_ok_and(|origin| origin.is_wiped()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::Direction;

    /// As calls find it that are made.
    #[test]
    fn what_is_said_is_so() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        // SAFETY: no memory is passed.
        let read = unsafe { sys::transfer(file.as_fd(), Direction::Read, &mut [], Some(0), true) };
        let forbidden =
            matches!(read, Err(errno) if [libc::ENOSYS, libc::EPERM].contains(&errno.raw()));
        assert_eq!(capabilities().nowait, !forbidden, "{read:?}");
        let own = sys::pidfd_open(rustix::thread::gettid().as_raw_nonzero().get(), true);
        assert_eq!(capabilities().thread_signals, own.is_ok(), "{own:?}");
    }
}
