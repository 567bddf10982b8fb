//! Who publishes, and who waits for it.

use std::{future::poll_fn, pin::pin, task::Poll};

use uaio_core::{
    sync::{
        atomic::{AtomicBool, Ordering, fence},
        thread::Parker,
    },
    wait::{Enqueued, WaitQueue, Waiter},
};

use crate::{
    Model, Scenario, Theorem, block_on,
    harness::{Control, Shows},
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
