//! Scenarios for an embedder's own parts: what the core's theorems ask of them.
//!
//! Each is generic over the part, and our own models run the same function.
//! `models/embedder/` is a crate that runs them on a waker and a source of its
//! own.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use uaio_core::wait::{Enqueued, WaitQueue, Waiter};

use crate::{
    Scenario,
    harness::{Sleeper, lock},
    reached,
};

/// A thread's sleep, and the wakers that end it.
pub trait Sleep: Send + 'static {
    /// For the calling thread.
    fn new() -> Self;

    /// A waker that ends the present or the next sleep.
    fn waker(&self) -> Waker;

    /// How many of its wakers are alive, clones included.
    fn wakers(&self) -> usize;

    /// Sleeps until a waker is called, unless one was since the last sleep. May
    /// return early.
    fn sleep(&self);

    /// Polls `future` and sleeps until it is done.
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        let waker = self.waker();
        let mut task = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut task) {
                Poll::Ready(output) => return output,
                Poll::Pending => self.sleep(),
            }
        }
    }
}

impl Sleep for Arc<Sleeper> {
    fn new() -> Self {
        Self::new(Sleeper::new())
    }

    fn waker(&self) -> Waker {
        Waker::from(Self::clone(self))
    }

    fn wakers(&self) -> usize {
        Self::strong_count(self) - 1
    }

    fn sleep(&self) {
        self.park();
    }
}

/// What is waited for: events, one per bit, that fire and stay.
pub trait Source: Send + Sync + 'static {
    /// Whom it wakes.
    fn queue(&self) -> &WaitQueue;

    /// Whether all of `key`'s events fired. `mask` says which may be new; zero, that
    /// any may.
    fn ready(&self, key: u16, mask: u16) -> bool;

    /// Lets `events` fire, and wakes who waits for them.
    fn fire(&self, events: u16);
}

/// Sleeps until all of `key` fired. Reaches `slept` or `ready at once`.
pub fn wait(sleep: &impl Sleep, source: &impl Source, key: u16) {
    let awaited = |mask| source.ready(key, mask);
    let mut waiter = pin!(Waiter::new());
    let mut slept = false;
    sleep.block_on(poll_fn(|task| {
        // SAFETY: it is used with this queue only, and has left it once it is
        // told Ready.
        let enqueued = unsafe { (source.queue()).enqueue(waiter.as_ref(), task.waker(), &awaited) };
        match enqueued.expect("nobody closes it") {
            Enqueued::Waiting => {
                slept = true;
                Poll::Pending
            }
            Enqueued::Ready => Poll::Ready(()),
        }
    }));
    reached(if slept { "slept" } else { "ready at once" });
    // It knows: its memory is its own again.
    waiter.set(Waiter::new());
    assert!(source.ready(key, key), "woken for nothing");
}

/// A source, and the sleep of who waited for it.
#[derive(Debug)]
pub struct Waited<P, S> {
    source: S,
    sleep: Mutex<Option<P>>,
}

impl<P: Sleep, S: Source> Waited<P, S> {
    fn wait(&self, keys: &[u16]) {
        let sleep = P::new();
        for key in keys {
            wait(&sleep, &self.source, *key);
        }
        *lock(&self.sleep) = Some(sleep);
    }

    fn scenario(source: S, events: &'static [u16]) -> Scenario<Self> {
        let sleep = Mutex::new(None);
        Scenario::of(Self { source, sleep })
            .role("waker", move |w| {
                for event in events {
                    w.source.fire(*event);
                }
            })
            .role("waiter", move |w| w.wait(events))
            .finally(|w| {
                // Not before: who wakes has the waker longer than who sleeps.
                let sleep = lock(&w.sleep).take().expect("it waited");
                assert_eq!(sleep.wakers(), 0, "wakers left over");
            })
    }
}

/// A wake before, while or after the sleep is not lost, and every clone of the
/// waker is dropped. Reaches `slept` and `ready at once`.
pub fn a_wake_is_not_lost<P: Sleep, S: Source>(source: S) -> Scenario<Waited<P, S>> {
    Waited::scenario(source, &[1])
}

/// What is left over from one sleep neither ends the next one for nothing nor
/// hides its wake. Reaches `slept` and `ready at once`.
pub fn the_next_wake_is_not_lost<P: Sleep, S: Source>(source: S) -> Scenario<Waited<P, S>> {
    Waited::scenario(source, &[1, 2])
}
