//! One epoll set for results, time and signals.

use std::{
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsFd, FromRawFd, OwnedFd},
    ptr,
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags},
};

const TICK: Duration = Duration::from_millis(100);

/// What there is to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct News {
    pub(crate) results: bool,
    pub(crate) tick: bool,
    pub(crate) signal: Option<u8>,
}

pub(crate) struct Watch {
    set: OwnedFd,
    timer: OwnedFd,
    signals: OwnedFd,
}

const RESULTS: u64 = 0;
const TIMER: u64 = 1;
const SIGNALS: u64 = 2;

impl Watch {
    /// Before there is any other thread: it blocks the signals for all that follow.
    pub(crate) fn new() -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: TICK.subsec_nanos().into(),
        };
        let every = Itimerspec {
            it_interval: tick,
            it_value: tick,
        };
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
        let signals = signalfd()?;
        let watch = Self {
            set,
            timer,
            signals,
        };
        watch.add(&watch.timer, TIMER)?;
        watch.add(&watch.signals, SIGNALS)?;
        Ok(watch)
    }

    pub(crate) fn add_results(&self, fd: impl AsFd) -> io::Result<()> {
        self.add(fd, RESULTS)
    }

    fn add(&self, fd: impl AsFd, name: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(name);
        Ok(epoll::add(&self.set, fd, data, epoll::EventFlags::IN)?)
    }

    /// Waits for anything.
    pub(crate) fn wait(&self) -> io::Result<News> {
        self.wait_for(None)
    }

    /// What there is now.
    pub(crate) fn look(&self) -> io::Result<News> {
        const NOW: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        self.wait_for(Some(&NOW))
    }

    fn wait_for(&self, time: Option<&Timespec>) -> io::Result<News> {
        let mut events = Vec::with_capacity(3);
        rustix::io::retry_on_intr(|| epoll::wait(&self.set, spare_capacity(&mut events), time))?;
        let mut news = News::default();
        for event in events {
            match event.data.u64() {
                RESULTS => news.results = true,
                TIMER => {
                    news.tick = true;
                    // How often; once is enough.
                    rustix::io::read(&self.timer, &mut [0; 8])?;
                }
                _ => news.signal = Some(self.signal()?),
            }
        }
        Ok(news)
    }

    fn signal(&self) -> io::Result<u8> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        rustix::io::read(&self.signals, &mut info)?;
        // Its number comes first, and is small.
        Ok(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]) as u8)
    }
}

/// SIGINT and SIGTERM, unless the caller has them ignored, as `nohup` does.
fn signalfd() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: it is given a set to write.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: written by the call above.
    let mut set = unsafe { set.assume_init() };
    for signal in [libc::SIGINT, libc::SIGTERM] {
        if !is_ignored(signal) {
            // SAFETY: a valid set, and a valid signal.
            unsafe { libc::sigaddset(&mut set, signal) };
        }
    }
    // SAFETY: a valid set.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) };
    // SAFETY: a valid set.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
