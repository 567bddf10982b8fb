//! Who publishes, and who waits for it.

use std::{future::poll_fn, mem, pin::pin, sync::Mutex, task::Poll};

use uaio_core::{
    sync::{
        Track,
        atomic::{AtomicBool, Ordering, fence},
        thread::Parker,
    },
    wait::{Enqueued, WaitQueue, Waiter},
};

use crate::{
    Model, Scenario, Theorem, block_on,
    harness::{Control, Handed, Memory, Shows},
    reached,
};

/// Where one waits and another one wakes it.
pub(super) trait Queue: Send + Sync + 'static {
    fn new() -> Self;
    /// Wakes who waits, if anybody does.
    fn wake(&self);
    /// Waits until `ready`.
    fn wait(&self, ready: impl Fn() -> bool);
}

pub(super) struct World<Q> {
    queue: Q,
    published: AtomicBool,
}

impl<Q> World<Q> {
    fn ready(&self) -> bool {
        // Ordering: Relaxed. The queue must order it.
        self.published.load(Ordering::Relaxed)
    }
}

/// One publishes and wakes, one waits for it.
pub(super) fn one_wakes_one_waits<Q: Queue>() -> Scenario<World<Q>> {
    Scenario::of(World {
        queue: Q::new(),
        published: AtomicBool::new(false),
    })
    .role("producer", |w| {
        w.published.store(true, Ordering::Relaxed);
        w.queue.wake();
    })
    .role("waiter", |w| w.queue.wait(|| w.ready()))
}

impl Queue for WaitQueue {
    fn new() -> Self {
        Self::new()
    }

    fn wake(&self) {
        self.wake(1);
    }

    fn wait(&self, ready: impl Fn() -> bool) {
        let awaited = |_| ready();
        let mut waiter = pin!(Waiter::new());
        block_on(poll_fn(|task| {
            // SAFETY: used with this queue only; after `Ready` it is not in it.
            let enqueued = unsafe { self.enqueue(waiter.as_ref(), task.waker(), &awaited) };
            match enqueued.expect("nobody closes it") {
                Enqueued::Waiting => {
                    reached("slept");
                    Poll::Pending
                }
                Enqueued::Ready => {
                    reached("ready");
                    Poll::Ready(())
                }
            }
        }));
        waiter.set(Waiter::new());
    }
}

#[test]
fn who_waits_is_woken() {
    Model::of(&[Theorem::NoLostWakeup], &["slept", "ready"])
        .check(|| one_wakes_one_waits::<WaitQueue>());
}

/// event-listener 5.3 (#139): `notify` returns early if a hint says that the
/// listeners have been notified, and nothing orders its look.
struct RelaxedHint {
    notified: AtomicBool,
    parker: Parker,
}

impl Queue for RelaxedHint {
    fn new() -> Self {
        Self {
            // The listener before this one was.
            notified: AtomicBool::new(true),
            parker: Parker::new(),
        }
    }

    fn wake(&self) {
        if !self.notified.load(Ordering::Relaxed) {
            self.parker.unpark();
        }
    }

    fn wait(&self, ready: impl Fn() -> bool) {
        self.notified.store(false, Ordering::Release);
        fence(Ordering::SeqCst);
        while !ready() {
            self.parker.park();
        }
    }
}

#[test]
fn early_out_on_relaxed_hint() {
    Control::shows(Shows::Hang)
        .held_by("history::notify::who_waits_is_woken")
        .only_loom()
        .refuted(|| one_wakes_one_waits::<RelaxedHint>());
}

/// A ring of one event, and an eventfd that tells of it.
struct Told {
    eventfd: Parker,
    posted: AtomicBool,
}

/// One completes, one reaps whenever it is told.
fn told_by_an_eventfd(complete: fn(&Told)) -> Scenario<Told> {
    Scenario::of(Told {
        eventfd: Parker::new(),
        posted: AtomicBool::new(false),
    })
    .role("completer", complete)
    .role("reaper", |w| {
        while !w.posted.load(Ordering::Relaxed) {
            reached("told");
            w.eventfd.park();
        }
        reached("reaped");
    })
}

#[test]
fn who_is_told_by_an_eventfd_finds_the_event() {
    Model::of(
        &[Theorem::NoLostWakeup, Theorem::Order],
        &["told", "reaped"],
    )
    .check(|| {
        told_by_an_eventfd(|w| {
            w.posted.store(true, Ordering::Relaxed);
            w.eventfd.unpark();
        })
    });
}

/// Linux aio, once: the eventfd is signalled, and then the event is posted.
#[test]
fn eventfd_before_ring_post() {
    Control::shows(Shows::Hang)
        .held_by("history::notify::who_is_told_by_an_eventfd_finds_the_event")
        .reaching(&["told", "reaped"])
        .refuted(|| {
            told_by_an_eventfd(|w| {
                w.eventfd.unpark();
                w.posted.store(true, Ordering::Relaxed);
            })
        });
}

/// The patch of 2006: the target of a signal ends while its notification is pending,
/// which holds no reference to it.
#[test]
fn signal_target_without_reference() {
    Control::shows(Shows::UnorderedAccess)
        .held_by("notify::the_end_waits_for_who_tells")
        .only_loom()
        .refuted(|| {
            Scenario::of(Memory::new(Handed::new(0)))
                // SAFETY: none: that is the error.
                .role("completer", |w| unsafe { w.get() }.set(1))
                // SAFETY: as above.
                .role("exit", |w| unsafe { w.renew(Handed::new(0)) })
        });
}

/// `SIGEV_NONE`.
const NONE: i32 = 1;

/// The patch of 2006: how to notify is an int, of which 16 bits are kept. What is none
/// of the kinds has a notification reserved, and is taken for none when that is due.
#[test]
fn notify_kind_truncated_leaks_reservation() {
    struct World {
        kind: Mutex<u16>,
        reserved: Mutex<Option<Track<()>>>,
    }
    Control::shows(Shows::Leak)
        .held_by("notify::a_refused_request_tells_nobody")
        .only_loom()
        .refuted(|| {
            Scenario::of(World {
                kind: Mutex::default(),
                reserved: Mutex::default(),
            })
            .role("submitter", |w| {
                let asked = 1 << 16 | NONE;
                if asked != NONE {
                    *w.reserved.lock().unwrap() = Some(Track::new(()));
                }
                *w.kind.lock().unwrap() = asked as u16;
            })
            .role("completer", |_| ())
            .finally(|w| {
                let reserved = w.reserved.lock().unwrap().take();
                if *w.kind.lock().unwrap() == NONE as u16 {
                    // It has none, and nobody knows of it.
                    mem::forget(reserved);
                }
            })
        });
}

/// The patch of 2006: where submitting fails, a reference to the target is put that was
/// not taken yet.
#[test]
fn failed_submit_puts_what_it_never_got() {
    fn put(references: &Mutex<u64>) {
        let before = {
            let mut references = references.lock().unwrap();
            let before = *references;
            *references = before.saturating_sub(1);
            before
        };
        assert!(before > 0, "put what was never taken");
    }
    Control::shows(Shows::Assertion("put what was never taken"))
        .held_by("notify::a_refused_request_tells_nobody")
        .refuted(|| {
            // The target's own.
            Scenario::of(Mutex::new(1))
                .role("submitter", put)
                .role("exit", put)
        });
}
