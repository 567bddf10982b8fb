//! Requests with a callback: each is called once, one at a time.

use std::sync::{Arc, Mutex};

use uaio_core::{
    callback::{Accepted, Callbacks, Done, Request},
    sync::Track,
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, NoLoss, Progress, Reclamation},
    harness::{Handed, Memory, pause},
    reached,
};

const DONE: i64 = 512;

/// Whom the callbacks tell.
struct Log {
    called: Mutex<Vec<u64>>,
    /// Written by each callback while it is called: two at a time show.
    calling: Handed<bool>,
}

impl Log {
    fn call(&self, done: &Done<Track<u64>>, then: impl FnOnce()) {
        assert!(!self.calling.get(), "within another");
        self.calling.set(true);
        pause();
        then();
        self.calling.set(false);
        assert_eq!((done.res, done.res2), (DONE, 0));
        self.called.lock().unwrap().push(*done.payload.get_ref());
    }
}

struct World {
    callbacks: Memory<Callbacks>,
    log: Arc<Log>,
}

impl World {
    fn new() -> Self {
        Self {
            callbacks: Memory::new(Callbacks::new()),
            log: Arc::new(Log {
                called: Mutex::default(),
                calling: Handed::new(false),
            }),
        }
    }

    fn callbacks(&self) -> &'static Callbacks {
        // SAFETY: used by roles and final checks, which come before its end.
        unsafe { self.callbacks.get() }
    }

    /// A request whose callback does `then`.
    fn accept(
        &self,
        value: u64,
        then: impl FnOnce() + Send + 'static,
    ) -> Accepted<'static, Track<u64>> {
        let log = Arc::clone(&self.log);
        let request = Request::new(Track::new(value), move |done| log.call(&done, then));
        self.callbacks().accept(request)
    }

    fn complete(&self, value: u64) {
        self.accept(value, || ()).complete(DONE, 0);
    }

    /// Each was called once.
    fn settle(&self, all: &[u64]) {
        self.callbacks().call();
        let mut called = self.log.called.lock().unwrap().clone();
        reached(if called.is_sorted() {
            "in order"
        } else {
            "reversed"
        });
        called.sort_unstable();
        assert_eq!(called, all, "not called once");
    }
}

#[test]
fn each_callback_is_called_once_and_alone() {
    Model::of(
        &[ExactlyOnce, NoLoss, Reclamation],
        &["in order", "reversed", "all called"],
    )
    .check(|| {
        Scenario::of(World::new())
            .role("completer", |w| w.complete(1))
            .role("completer", |w| w.complete(2))
            .finally(|w| {
                // Without anybody's help.
                assert_eq!(w.log.called.lock().unwrap().len(), 2, "left behind");
                reached("all called");
                w.settle(&[1, 2]);
            })
    });
}

/// A callback that completes another does not call it from within.
#[test]
fn a_callback_is_not_called_within_another() {
    Model::of(
        &[ExactlyOnce, NoLoss, Progress],
        &["in order", "reversed", "all called"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        Scenario::of(World::new())
            .role("submitter", |w| {
                let next = w.accept(2, || ());
                w.accept(1, move || next.complete(DONE, 0))
                    .complete(DONE, 0);
            })
            .role("completer", |w| w.complete(3))
            .finally(|w| {
                assert_eq!(w.log.called.lock().unwrap().len(), 3, "left behind");
                reached("all called");
                w.settle(&[1, 2, 3]);
            })
    });
}

/// What an interrupt leaves is called by the next who completes, or calls.
#[test]
fn who_leaves_one_has_it_called() {
    Model::of(
        &[ExactlyOnce, NoLoss, Progress],
        &["in order", "reversed", "called", "left"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        Scenario::of(World::new())
            .role("interrupt", |w| w.accept(1, || ()).leave(DONE, 0))
            .role("completer", |w| w.complete(2))
            .role("caller", |w| w.callbacks().call())
            .finally(|w| {
                reached(match w.log.called.lock().unwrap().len() {
                    2 => "called",
                    _ => "left",
                });
                w.settle(&[1, 2]);
            })
    });
}
