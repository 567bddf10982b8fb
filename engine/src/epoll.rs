//! One epoll instance per context, and the descriptors that it watches.
//!
//! A descriptor is registered once, edge-triggered and for everything, when a request
//! waits for it first; a [`Watch`] stands for that. It has the wait queue that the
//! requests are linked into, and a report of epoll is a wake of that queue. Each
//! request looks for itself after it is linked, so an edge that came before is not
//! missed.
//!
//! # A descriptor is a number
//!
//! Epoll tells apart what is open, not the number. If it takes a number that it has
//! already, then what had that number was closed, against the contract of raw
//! submission: its watch is stale, and its queue is closed, which ends the requests
//! that wait there. A stale watch deregisters nothing when it is dropped.

use std::{
    collections::HashMap,
    fmt,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, Weak},
};

use rustix::{
    event::{
        EventfdFlags, Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
        eventfd,
    },
    io::Errno as Number,
};
use uaio_core::{Errno, wait::WaitQueue};

use crate::sys::{self, lock};

/// How many reports are taken at once.
const BATCH: usize = 64;
/// Of the descriptor that interrupts a wait.
const BELL: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Epoll {
    fd: OwnedFd,
    /// An eventfd. Registered edge-triggered, so nobody has to read it.
    bell: OwnedFd,
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    by_number: HashMap<RawFd, (u32, Weak<Watch>)>,
    /// Tells a watch from an earlier one of the same number.
    serial: u32,
}

/// A registered descriptor.
pub(crate) struct Watch {
    number: RawFd,
    serial: u32,
    /// Gone with its context.
    epoll: Weak<Epoll>,
    /// Who waits for it.
    pub(crate) head: WaitQueue,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Epoll {
    /// # Errors
    ///
    /// What the system said: EMFILE, ENFILE, ENOMEM.
    pub(crate) fn new() -> Result<Arc<Self>, Errno> {
        let fd = epoll::create(CreateFlags::CLOEXEC).map_err(sys::errno)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bell = bell.map_err(sys::errno)?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&fd, &bell, EventData::new_u64(BELL), flags).map_err(sys::errno)?;
        Ok(Arc::new(Self {
            fd,
            bell,
            watched: Mutex::default(),
        }))
    }

    /// The watch of a descriptor. `None`: it has no readiness, it is always ready.
    ///
    /// # Errors
    ///
    /// What `epoll_ctl` said, say ENOSPC.
    pub(crate) fn watch(self: &Arc<Self>, fd: BorrowedFd<'_>) -> Result<Option<Arc<Watch>>, Errno> {
        let number = fd.as_raw_fd();
        let mut watched = lock(&self.watched);
        watched.serial = watched.serial.wrapping_add(1);
        let serial = watched.serial;
        // A number is never negative.
        let data = |serial| EventData::new_u64(u64::from(serial) << 32 | number as u64);
        let flags =
            EventFlags::IN | EventFlags::OUT | EventFlags::PRI | EventFlags::RDHUP | EventFlags::ET;
        match epoll::add(&self.fd, fd, data(serial), flags) {
            Ok(()) => {}
            Err(Number::PERM) => return Ok(None),
            Err(Number::EXIST) => {
                let known = watched.by_number.get(&number);
                let known = known.and_then(|(_, watch)| watch.upgrade());
                // One that is being dropped right now will find that it is not its own.
                // The other may be of what had the number in between.
                let serial = known.as_ref().map_or(serial, |watch| watch.serial);
                epoll::modify(&self.fd, fd, data(serial), flags).map_err(sys::errno)?;
                if known.is_some() {
                    return Ok(known);
                }
            }
            Err(error) => return Err(sys::errno(error)),
        }
        let watch = Arc::new(Watch {
            number,
            serial,
            epoll: Arc::downgrade(self),
            head: WaitQueue::new(),
        });
        let entry = (serial, Arc::downgrade(&watch));
        let stale = watched.by_number.insert(number, entry);
        drop(watched);
        if let Some(stale) = stale.and_then(|(_, watch)| watch.upgrade()) {
            stale.head.close();
        }
        Ok(Some(watch))
    }

    /// Whether there is anything to watch.
    pub(crate) fn is_watching(&self) -> bool {
        !lock(&self.watched).by_number.is_empty()
    }

    /// Ends a [`wait`](Self::wait), this one or the next.
    pub(crate) fn ring(&self) {
        // It cannot fail but by being rung 2^64 times.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Waits for reports until `timeout`, or a signal, or the [bell](Self::ring); and
    /// wakes those who wait for what is reported.
    pub(crate) fn wait(&self, timeout: Option<&Timespec>) {
        let mut buffer = [const { MaybeUninit::uninit() }; BATCH];
        let Ok((reports, _)) = epoll::wait(&self.fd, &mut buffer, timeout) else {
            return;
        };
        let mut woken = [const { None }; BATCH];
        {
            let watched = lock(&self.watched);
            for (report, woken) in reports.iter().zip(&mut woken) {
                let data = report.data.u64();
                let (number, serial) = (data as u32 as RawFd, (data >> 32) as u32);
                // The bell's is no number that is watched.
                *woken = (watched.by_number.get(&number))
                    .filter(|(current, _)| *current == serial)
                    .and_then(|(_, watch)| watch.upgrade());
            }
        }
        for (report, watch) in reports.iter().zip(&woken) {
            let flags = report.flags;
            if let Some(watch) = watch {
                // The numbers are those of `poll`; what is above 16 bits is input.
                watch.head.wake(flags.bits() as u16);
            }
        }
    }
}

impl Watch {
    pub(crate) fn is_of(&self, epoll: &Arc<Epoll>) -> bool {
        self.epoll.as_ptr() == Arc::as_ptr(epoll)
    }

    pub(crate) fn is_of_none(&self) -> bool {
        self.epoll.strong_count() == 0
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(epoll) = self.epoll.upgrade() else {
            return;
        };
        let mut watched = lock(&epoll.watched);
        let own = |(serial, _): &(u32, Weak<Self>)| *serial == self.serial;
        if watched.by_number.get(&self.number).is_some_and(own) {
            watched.by_number.remove(&self.number);
            // SAFETY: not -1; it is open, or was closed against the contract of raw
            // submission, and then this fails.
            let fd = unsafe { BorrowedFd::borrow_raw(self.number) };
            let _ = epoll::delete(&epoll.fd, fd);
        }
        drop(watched);
    }
}
