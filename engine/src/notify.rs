//! Who is told of completions, besides who takes them out: by a signal, or an eventfd.
//!
//! A signal is sent to a process or a thread by a descriptor for it, which is opened once:
//! a number may be another's by the time of the completion, a descriptor is not. Linux
//! queues a signal for each completion if it is a real-time signal; of others it keeps one
//! and drops the rest, with their values. It queues only so many for each user
//! (RLIMIT_SIGPENDING): what it does not take then is tried again, by whoever drives,
//! until it does or the target is gone.

use std::{
    fmt, fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process,
    sync::{Arc, Mutex, Weak},
};

use uaio_core::{
    Errno,
    notify::Notification,
    sigevent::{self, Sigevent},
};

use crate::{
    capabilities::capabilities,
    chain::Followed,
    pool::Pool,
    sys::{self, lock},
};

/// Whom a request tells of its completion, once that is in the context's ring.
///
/// Cheap to clone; shared by as many requests as tell the same.
///
/// ```
/// use std::os::fd::OwnedFd;
/// use rustix::event::{EventfdFlags, eventfd};
/// use uaio::{Context, Notify, Op};
///
/// let told: OwnedFd = eventfd(0, EventfdFlags::empty())?;
/// let notify = Notify::eventfd(told.try_clone()?)?;
/// let context = Context::new(2)?;
/// context.submit(&mut [Op::nop().notify(&notify), Op::nop().notify(&notify)])?;
///
/// let mut count = [0; 8];
/// rustix::io::read(&told, &mut count)?;
/// assert_eq!(u64::from_ne_bytes(count), 2);
/// let mut events = Vec::new();
/// assert_eq!(context.getevents(0, 2, None, &mut events)?, 2);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Notify(Kind);

#[derive(Clone)]
enum Kind {
    Signal {
        target: Arc<Target>,
        signo: i32,
        value: u64,
    },
    Eventfd {
        /// Locked by who adds to it: between looking whether that can be done, and doing it.
        fd: Arc<Mutex<OwnedFd>>,
        merging: bool,
    },
}

/// Who gets the signal.
struct Target {
    pidfd: OwnedFd,
    /// This process: there as long as it submits.
    own: bool,
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Signal { signo, value, .. } => f
                .debug_struct("Signal")
                .field("signo", signo)
                .field("value", value)
                .finish_non_exhaustive(),
            Kind::Eventfd { fd, merging } => f
                .debug_struct("Eventfd")
                .field("fd", &lock(fd).as_raw_fd())
                .field("merging", merging)
                .finish(),
        }
    }
}

impl Notify {
    /// Sends this process the real-time signal `signo` with `value`, as `SI_ASYNCIO`: one
    /// for each completion.
    ///
    /// # Errors
    ///
    /// EINVAL: it is no signal from SIGRTMIN to SIGRTMAX. EMFILE, ENFILE, ENOMEM: the
    /// system has no descriptor left. ENOSYS: it cannot do it (Linux 5.3 can).
    pub fn signal(signo: i32, value: u64) -> Result<Self, Errno> {
        if signo < libc::SIGRTMIN() {
            return Err(Errno::EINVAL);
        }
        Self::merging_signal(signo, value)
    }

    /// As [`signal`](Self::signal), of any signal. Of those below SIGRTMIN there is one
    /// pending at a time: the others, and their values, are dropped by the system.
    ///
    /// # Errors
    ///
    /// EINVAL: there is no such signal, or the C library uses it. Others as of `signal`.
    pub fn merging_signal(signo: i32, value: u64) -> Result<Self, Errno> {
        let reserved = 32..libc::SIGRTMIN();
        if !(1..=libc::SIGRTMAX()).contains(&signo) || reserved.contains(&signo) {
            return Err(Errno::EINVAL);
        }
        let target = Target {
            pidfd: sys::pidfd_open(process::id().cast_signed(), false)?,
            own: true,
        };
        Ok(Self(Kind::Signal {
            target: Arc::new(target),
            signo,
            value,
        }))
    }

    /// The same with another value, for another request. Of an eventfd it is ignored.
    pub fn value(&self, value: u64) -> Self {
        let mut other = self.clone();
        if let Kind::Signal { value: place, .. } = &mut other.0 {
            *place = value;
        }
        other
    }

    /// Sends the signal to the thread with this number (as of gettid) instead.
    ///
    /// # Errors
    ///
    /// EINVAL: there is no such thread in this process; or it is no signal that is told by.
    /// ENOSYS: the kernel [cannot](crate::Capabilities::thread_signals).
    pub fn to_thread(self, tid: i32) -> Result<Self, Errno> {
        let Kind::Signal { signo, value, .. } = self.0 else {
            return Err(Errno::EINVAL);
        };
        if !capabilities().thread_signals {
            return Err(Errno::ENOSYS);
        }
        if tid <= 0 {
            return Err(Errno::EINVAL);
        }
        let pidfd = sys::pidfd_open(tid, true).map_err(|errno| match errno {
            Errno::ESRCH => Errno::EINVAL,
            errno => errno,
        })?;
        // Only of this process, as Linux demands of a sigevent. If it is there after that
        // was asked, the number was its own when it was.
        sys::own_thread_exists(tid)
            .and_then(|()| sys::pidfd_exists(pidfd.as_fd()))
            .map_err(|_| Errno::EINVAL)?;
        let target = Target { pidfd, own: false };
        Ok(Self(Kind::Signal {
            target: Arc::new(target),
            signo,
            value,
        }))
    }

    /// As the structure says that timers and message queues take. `None`: it says that
    /// nobody is told.
    ///
    /// # Errors
    ///
    /// EINVAL: it is of a kind other than SIGEV_NONE, SIGEV_SIGNAL and SIGEV_SIGNAL with
    /// SIGEV_THREAD_ID. Others as of [`signal`](Self::signal) and
    /// [`to_thread`](Self::to_thread).
    pub fn sigevent(event: &Sigevent) -> Result<Option<Self>, Errno> {
        match event.told()? {
            sigevent::Told::Nobody => Ok(None),
            sigevent::Told::Process(signal) => Self::signal(signal.signo, signal.value).map(Some),
            sigevent::Told::Thread(signal, tid) => Self::signal(signal.signo, signal.value)?
                .to_thread(tid)
                .map(Some),
        }
    }

    /// Adds one to the counter of an eventfd, for each completion.
    ///
    /// If the counter is as high as it can be it is tried again, until somebody reads it.
    /// (One that blocks, and has other writers besides, may block whoever completes then.)
    ///
    /// # Errors
    ///
    /// EINVAL: the descriptor is no eventfd, by what `/proc` says.
    pub fn eventfd(fd: impl Into<OwnedFd>) -> Result<Self, Errno> {
        Self::of_eventfd(fd.into(), false)
    }

    /// As [`eventfd`](Self::eventfd), but nothing is added while it is readable: who reads
    /// it after that finds all events that were there, and the number says nothing. So a
    /// burst wakes its reader once.
    ///
    /// # Errors
    ///
    /// EINVAL: the descriptor is no eventfd, by what `/proc` says.
    pub fn merging_eventfd(fd: impl Into<OwnedFd>) -> Result<Self, Errno> {
        Self::of_eventfd(fd.into(), true)
    }

    fn of_eventfd(fd: OwnedFd, merging: bool) -> Result<Self, Errno> {
        let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        if !link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]") {
            return Err(Errno::EINVAL);
        }
        let fd = Arc::new(Mutex::new(fd));
        Ok(Self(Kind::Eventfd { fd, merging }))
    }

    /// # Errors
    ///
    /// EINVAL: who would be told is gone.
    pub(crate) fn check(&self) -> Result<(), Errno> {
        match &self.0 {
            Kind::Signal { target, .. } if !target.own => {
                sys::pidfd_exists(target.pidfd.as_fd()).map_err(|_| Errno::EINVAL)
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    ///
    /// EAGAIN: not now.
    fn tell(&self) -> Result<(), Errno> {
        match &self.0 {
            Kind::Signal {
                target,
                signo,
                value,
            } => sys::pidfd_send_signal(target.pidfd.as_fd(), *signo, *value),
            Kind::Eventfd { fd, merging } => sys::add_one(lock(fd).as_fd(), *merging),
        }
    }
}

/// Who is to be told of one completion, and what follows it.
pub(crate) struct Told {
    notify: Option<Notify>,
    followed: Option<Followed>,
    pool: Weak<Pool>,
    /// It could not be done, and is counted as such.
    untold: bool,
}

impl Told {
    pub(crate) fn new(
        notify: Option<Notify>,
        followed: Option<Followed>,
        pool: &Arc<Pool>,
    ) -> Self {
        Self {
            notify,
            followed,
            pool: Arc::downgrade(pool),
            untold: false,
        }
    }
}

impl Notification for Told {
    fn completed(&mut self, res: i64) {
        if let Some(followed) = &mut self.followed {
            followed.completed(res);
        }
    }

    fn notify(mut self) -> Result<(), Self> {
        // In a forked process it is the other one's.
        if self.pool.upgrade().is_some_and(|pool| pool.is_copy()) {
            return Ok(());
        }
        let told = self.notify.as_ref().map(Notify::tell);
        // What follows is told of after that, and does not wait for who cannot be told.
        if let Some(followed) = self.followed.take() {
            followed.end();
        }
        // Anything but EAGAIN: there is nobody to be told any more.
        if told != Some(Err(Errno::EAGAIN)) {
            return Ok(());
        }
        // Never the last lead to it: whoever has that waits for completers, and for those
        // whose completions are kept back, before it goes.
        if !self.untold
            && let Some(pool) = self.pool.upgrade()
        {
            self.untold = true;
            pool.drive.untold();
            pool.attend();
        }
        Err(self)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if self.untold
            && let Some(pool) = self.pool.upgrade()
        {
            pool.drive.told();
        }
    }
}
