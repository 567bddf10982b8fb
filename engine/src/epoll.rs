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
//! Epoll tells apart what is open, not the number. A number is deregistered when the
//! last [`File`](crate::File) that has it is about to close it. If epoll takes one
//! that it has already, then what had it was closed against the contract of raw
//! submission: its watch is stale, and its queue is closed, which ends the requests
//! that wait there. Giving back a stale watch deregisters nothing.
//!
//! # Many who wait for one
//!
//! A report makes all try whom it may concern, though the first may take all there is.
//! Once one finds nothing left, the others of the same report are spared the system
//! call: what comes after that is another report.

use std::{
    cell::Cell,
    collections::HashMap,
    fmt,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    ptr,
    sync::{Arc, Mutex, Weak},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    io::Errno as Number,
};
use uaio_core::{Errno, wait::WaitQueue};

use crate::sys::{self, EVENTS, Origin, lock};

/// How many reports are taken at once.
const BATCH: usize = 64;
/// Of the descriptor that interrupts a wait.
const BELL: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Epoll {
    /// Where it was made: elsewhere nobody uses it.
    origin: Origin,
    fd: OwnedFd,
    /// An eventfd. Registered edge-triggered, so nobody has to read it.
    bell: OwnedFd,
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    by_number: HashMap<RawFd, Registered>,
    /// Tells a watch from an earlier one of the same number.
    serial: u32,
}

#[derive(Debug)]
struct Registered {
    watch: Arc<Watch>,
    /// Who has to give it back.
    holders: usize,
}

thread_local! {
    /// Whose report the thread carries out, and for which events nothing is left there.
    static REPORT: Cell<(*const Watch, u16)> = const { Cell::new((ptr::null(), 0)) };
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
        let bell = sys::bell()?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&fd, &bell, EventData::new_u64(BELL), flags).map_err(sys::errno)?;
        Ok(Arc::new(Self {
            origin: Origin::new()?,
            fd,
            bell,
            watched: Mutex::default(),
        }))
    }

    /// Whether this is a copy in a process that was forked since. Then what is open is the
    /// other process's too, and locks may be held by threads that are not there.
    pub(crate) fn is_copy(&self) -> bool {
        self.origin.is_other()
    }

    /// Closes the descriptors of a copy.
    ///
    /// # Safety
    ///
    /// It [is](Self::is_copy) one; and is never dropped, nor is this called again.
    pub(crate) unsafe fn close_copy(&self) {
        for fd in [&self.fd, &self.bell] {
            // SAFETY: by the contract; and a copy is used by nobody, who all ask before.
            unsafe { sys::close(fd) };
        }
    }

    /// The watch of a descriptor, to be [given back](Watch::release). `None`: it has no
    /// readiness, it is always ready.
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
        let flags = EventFlags::from_bits_retain(EVENTS.into()) | EventFlags::ET;
        match epoll::add(&self.fd, fd, data(serial), flags) {
            Ok(()) => {}
            Err(Number::PERM) => return Ok(None),
            Err(Number::EXIST) => {
                // What is known may be of what had the number in between.
                let known = watched.by_number.get_mut(&number);
                let serial = known.as_ref().map_or(serial, |known| known.watch.serial);
                epoll::modify(&self.fd, fd, data(serial), flags).map_err(sys::errno)?;
                if let Some(known) = known {
                    known.holders += 1;
                    return Ok(Some(Arc::clone(&known.watch)));
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
        let registered = Registered {
            watch: Arc::clone(&watch),
            holders: 1,
        };
        let stale = watched.by_number.insert(number, registered);
        drop(watched);
        if let Some(stale) = stale {
            stale.watch.head.close();
        }
        Ok(Some(watch))
    }

    /// Ends a [`wait`](Self::wait), this one or the next.
    pub(crate) fn ring(&self) {
        sys::ring(self.bell.as_fd());
    }

    /// Waits for reports until `timeout`, or a signal, or the [bell](Self::ring); and
    /// wakes those who wait for what is reported. In between it is `awake`.
    pub(crate) fn wait(&self, timeout: Option<&Timespec>, awake: impl FnOnce()) {
        let mut buffer = [const { MaybeUninit::uninit() }; BATCH];
        let reports = epoll::wait(&self.fd, &mut buffer, timeout);
        awake();
        let Ok((reports, _)) = reports else {
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
                    .filter(|known| known.watch.serial == serial)
                    .map(|known| Arc::clone(&known.watch));
            }
        }
        for (report, watch) in reports.iter().zip(&woken) {
            let flags = report.flags;
            if let Some(watch) = watch {
                REPORT.set((Arc::as_ptr(watch), 0));
                // The numbers are those of `poll`; what is above 16 bits is input.
                watch.head.wake(flags.bits() as u16);
            }
        }
        REPORT.set((ptr::null(), 0));
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Watch {
    pub(crate) fn is_of(&self, epoll: &Arc<Epoll>) -> bool {
        self.epoll.as_ptr() == Arc::as_ptr(epoll)
    }

    pub(crate) fn is_of_none(&self) -> bool {
        self.epoll.strong_count() == 0
    }

    /// For who tries: whether another one has found nothing left for `event` since the
    /// report that this thread carries out.
    pub(crate) fn is_exhausted(&self, event: u16) -> bool {
        let (watch, exhausted) = REPORT.get();
        ptr::eq(watch, self) && exhausted & event != 0
    }

    /// Nothing is left for `event`.
    pub(crate) fn exhausted(&self, event: u16) {
        let (watch, exhausted) = REPORT.get();
        if ptr::eq(watch, self) {
            REPORT.set((watch, exhausted | event));
        }
    }

    /// One who has got it from [`Epoll::watch`] needs it no longer. `fd` is still open.
    pub(crate) fn release(&self, fd: BorrowedFd<'_>) {
        // Of a copy's, it is the other process that waits for it still.
        let Some(epoll) = self.epoll.upgrade().filter(|epoll| !epoll.is_copy()) else {
            return;
        };
        let mut watched = lock(&epoll.watched);
        let own = |known: &&mut Registered| known.watch.serial == self.serial;
        let Some(known) = watched.by_number.get_mut(&self.number).filter(own) else {
            return;
        };
        known.holders -= 1;
        if known.holders == 0 {
            let _gone = watched.by_number.remove(&self.number);
            // It was closed, against the contract of raw submission, if this fails.
            let _ = epoll::delete(&epoll.fd, fd);
        }
    }
}
