//! Sets of signals.

use std::{fmt, mem, ptr};

use uaio_core::Errno;

/// A set of signals: those that a thread blocks, say.
///
/// ```
/// use uaio::SignalSet;
///
/// let mut set = SignalSet::full();
/// set.remove(libc::SIGUSR1)?;
/// assert!(!set.contains(libc::SIGUSR1) && set.contains(libc::SIGUSR2));
/// # Ok::<(), uaio::Errno>(())
/// ```
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = 1..=libc::SIGRTMAX();
        (f.debug_set())
            .entries(all.filter(|&signo| self.contains(signo)))
            .finish()
    }
}

impl SignalSet {
    /// None.
    pub fn empty() -> Self {
        // SAFETY: any bytes are a set, and the call below makes it an empty one.
        let mut set = Self(unsafe { mem::zeroed() });
        // SAFETY: a set to write.
        unsafe { libc::sigemptyset(&raw mut set.0) };
        set
    }

    /// All.
    pub fn full() -> Self {
        let mut set = Self::empty();
        // SAFETY: a set to write.
        unsafe { libc::sigfillset(&raw mut set.0) };
        set
    }

    /// Those that the calling thread blocks.
    pub fn blocked() -> Self {
        let mut set = Self::empty();
        // SAFETY: nothing to set, and a set to write.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut set.0) };
        set
    }

    /// # Errors
    ///
    /// EINVAL: there is no such signal.
    pub fn insert(&mut self, signo: i32) -> Result<(), Errno> {
        // SAFETY: a set; the number is checked there.
        done(unsafe { libc::sigaddset(&raw mut self.0, signo) })
    }

    /// # Errors
    ///
    /// EINVAL: there is no such signal.
    pub fn remove(&mut self, signo: i32) -> Result<(), Errno> {
        // SAFETY: a set; the number is checked there.
        done(unsafe { libc::sigdelset(&raw mut self.0, signo) })
    }

    /// Whether it is among them.
    pub fn contains(&self, signo: i32) -> bool {
        // SAFETY: a set; the number is checked there.
        unsafe { libc::sigismember(&raw const self.0, signo) == 1 }
    }

    pub(crate) fn as_raw(&self) -> &libc::sigset_t {
        &self.0
    }
}

impl From<libc::sigset_t> for SignalSet {
    fn from(set: libc::sigset_t) -> Self {
        Self(set)
    }
}

fn done(returned: i32) -> Result<(), Errno> {
    match returned {
        0 => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}
