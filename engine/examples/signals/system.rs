//! Signals, as the system has them.

use std::{
    fs::File,
    io, mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    ptr,
    sync::OnceLock,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{MemfdFlags, OFlags},
};

/// `SI_ASYNCIO`.
const ASYNCIO: i32 = -4;

/// A set of one signal.
fn set(signo: i32) -> libc::sigset_t {
    let mut set = mem::MaybeUninit::uninit();
    // SAFETY: it is given a set to write.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: written by the call above.
    let mut set = unsafe { set.assume_init() };
    // SAFETY: a set, and the number of a signal.
    unsafe { libc::sigaddset(&mut set, signo) };
    set
}

/// Blocks a signal in this thread and those that it starts, or lets it in again.
pub(crate) fn block(signo: i32, blocked: bool) {
    let how = if blocked {
        libc::SIG_BLOCK
    } else {
        libc::SIG_UNBLOCK
    };
    // SAFETY: a set, and nothing to write.
    unsafe { libc::pthread_sigmask(how, &set(signo), ptr::null_mut()) };
}

/// How many may be pending.
pub(crate) fn limit_pending(most: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: a limit to read.
    match unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The calling thread's number.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: it always succeeds.
    unsafe { libc::gettid() }
}

/// What a handler has seen: the value and the code of each signal, in a file in memory,
/// since a handler may write one, and little else.
static SEEN: OnceLock<File> = OnceLock::new();
const RECORD: u64 = 16;

extern "C" fn handle(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let Some(seen) = SEEN.get() else { return };
    // SAFETY: the system passes it.
    let info = unsafe { &*info };
    // SAFETY: it has a value, as it was sent with one.
    let value = unsafe { info.si_value() }.sival_ptr.addr() as u64;
    let record = [value, i64::from(info.si_code).cast_unsigned()];
    // SAFETY: it always succeeds.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the thread's own.
    let before = unsafe { *errno };
    // SAFETY: so much memory to read. It is appended, whole.
    unsafe { libc::write(seen.as_raw_fd(), record.as_ptr().cast(), RECORD as usize) };
    // SAFETY: as above. The code that was interrupted finds it as it was.
    unsafe { *errno = before };
}

/// How many signals the handler has seen.
pub(crate) fn caught() -> io::Result<u64> {
    let seen = SEEN.get().ok_or(io::ErrorKind::NotFound)?;
    Ok(seen.metadata()?.len() / RECORD)
}

/// Whether they were sent for completions, one with each value below `all`.
pub(crate) fn caught_each(all: u64) -> io::Result<bool> {
    let seen = SEEN.get().ok_or(io::ErrorKind::NotFound)?;
    let mut values = Vec::new();
    for n in 0..caught()? {
        let mut record = [0; RECORD as usize];
        seen.read_exact_at(&mut record, n * RECORD)?;
        let [value, code] = [0, 8].map(|at| {
            let word = record[at..].first_chunk();
            i64::from_ne_bytes(*word.expect("eight bytes"))
        });
        if code != ASYNCIO.into() {
            return Ok(false);
        }
        values.push(value.cast_unsigned());
    }
    values.sort_unstable();
    Ok(values.into_iter().eq(0..all))
}

/// Has a handler called for this signal, which [records](caught) it.
pub(crate) fn catch(signo: i32) -> io::Result<()> {
    let seen = rustix::fs::memfd_create(c"signals", MemfdFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&seen, OFlags::APPEND)?;
    if SEEN.set(seen.into()).is_err() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: zeroes are an empty mask, and no flags.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handle as extern "C" fn(_, _, _) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handler does only what one may do.
    match unsafe { libc::sigaction(signo, &action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor to read a signal from, which is blocked.
pub(crate) struct Signalfd(OwnedFd);

impl Signalfd {
    pub(crate) fn new(signo: i32) -> io::Result<Self> {
        let flags = libc::SFD_NONBLOCK | libc::SFD_CLOEXEC;
        // SAFETY: a set to read.
        let fd = unsafe { libc::signalfd(-1, &set(signo), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The values of the signals that are pending; waits a while for the first one.
    pub(crate) fn read(&self, limit: Duration) -> io::Result<Vec<u64>> {
        let time = Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: limit.subsec_nanos().into(),
        };
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&time)))?;
        let mut values = Vec::new();
        loop {
            let mut info = mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
            let size = size_of_val(&info);
            // SAFETY: so much memory to write.
            let n = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
            if n != size as isize {
                return Ok(values);
            }
            // SAFETY: written by the call above.
            let info = unsafe { info.assume_init() };
            if info.ssi_code != ASYNCIO {
                return Err(io::Error::other("a signal with another code"));
            }
            values.push(info.ssi_ptr);
        }
    }
}
