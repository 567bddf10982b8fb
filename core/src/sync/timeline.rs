//! What the threads of a model did, in order: every operation of the facade.
//!
//! A checker runs the threads of a model as coroutines of one thread, so one
//! list per thread of the system holds all of it, in the order in which it took
//! effect. Recording starts with [`begin`], which whoever runs a model calls
//! first in each execution, and ends with [`take`].

use core::{
    panic::Location,
    sync::atomic::{AtomicU64, Ordering},
};
use std::{cell::Cell, cell::RefCell, thread_local, vec::Vec};

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Who: 0 is the model itself, then in the order in which they were spawned.
    pub thread: usize,
    /// Where the facade was called.
    pub at: &'static Location<'static>,
    /// What was done.
    pub what: What,
}

/// The operation of a [`Step`].
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// An access to an atomic.
    Atomic {
        /// Which atomic.
        object: Object,
        /// The name of the method.
        method: &'static str,
        /// What it did to the value.
        change: Change,
        /// The ordering that took effect.
        order: Ordering,
    },
    /// A fence.
    Fence(Ordering),
    /// Anything else that concerns one object: the access to a cell, a park.
    Use(&'static str, Object),
    /// Something that one thread does to another one: spawn, join.
    Other(&'static str, usize),
    /// A hint to let others run.
    Hint(&'static str),
}

/// What an access did to an atomic's value, as bits.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// It was read.
    Read(u64),
    /// It was overwritten, unseen.
    Written(u64),
    /// It was read and replaced.
    Replaced(u64, u64),
    /// A compare-and-swap found the first, and expected the second.
    Kept(u64, u64),
}

/// An object of the facade.
#[derive(Clone, Copy, Debug)]
pub struct Object {
    /// Its own in this process.
    pub number: u64,
    /// Its type.
    pub kind: &'static str,
    /// Where it was made.
    pub made: &'static Location<'static>,
}

/// The part of an object that names it. It moves with it, as an address does not.
#[derive(Debug)]
pub(super) struct Identity {
    /// Zero until it is asked for: a `const` constructor cannot count.
    number: AtomicU64,
    made: &'static Location<'static>,
}

impl Identity {
    #[track_caller]
    pub(super) const fn new() -> Self {
        Self {
            number: AtomicU64::new(0),
            made: Location::caller(),
        }
    }

    pub(super) fn object(&self, kind: &'static str) -> Object {
        static LAST: AtomicU64 = AtomicU64::new(0);
        // Ordering: Relaxed throughout. The threads of a model are coroutines.
        let mut number = self.number.load(Ordering::Relaxed);
        if number == 0 {
            number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            self.number.store(number, Ordering::Relaxed);
        }
        Object {
            number,
            kind,
            made: self.made,
        }
    }
}

struct Recorder {
    on: Cell<bool>,
    /// Who runs: right outside of the facade's operations, in which the checker
    /// may let others run.
    running: Cell<usize>,
    threads: Cell<usize>,
    steps: RefCell<Vec<Step>>,
}

thread_local! {
    static RECORDER: Recorder = const {
        Recorder {
            on: Cell::new(false),
            running: Cell::new(0),
            threads: Cell::new(1),
            steps: RefCell::new(Vec::new()),
        }
    };
}

/// Forgets what was recorded, and records from now on, with the caller as the
/// thread 0.
pub fn begin() {
    RECORDER.with(|recorder| {
        recorder.on.set(true);
        recorder.running.set(0);
        recorder.threads.set(1);
        recorder.steps.borrow_mut().clear();
    });
}

/// Ends recording. What was recorded since [`begin`], and who ran last.
pub fn take() -> (Vec<Step>, usize) {
    RECORDER.with(|recorder| {
        recorder.on.set(false);
        (recorder.steps.take(), recorder.running.get())
    })
}

/// The operation that a thread is in: begun before the checker may let others
/// run, ended after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn(usize);

impl Turn {
    pub(super) fn begin() -> Self {
        // Destructors of thread-locals may run after the recorder's.
        Self(
            RECORDER
                .try_with(|recorder| recorder.running.get())
                .unwrap_or(0),
        )
    }

    /// This thread runs again.
    pub(super) fn resume(self) {
        let _ = RECORDER.try_with(|recorder| recorder.running.set(self.0));
    }

    /// This thread runs again, and did that.
    #[track_caller]
    pub(super) fn did(self, what: What) {
        let at = Location::caller();
        let _ = RECORDER.try_with(|recorder| {
            recorder.running.set(self.0);
            if recorder.on.get() {
                recorder.steps.borrow_mut().push(Step {
                    thread: self.0,
                    at,
                    what,
                });
            }
        });
    }

    /// A thread that is about to be spawned.
    pub(super) fn of_new_thread() -> Self {
        RECORDER.with(|recorder| Self(recorder.threads.replace(recorder.threads.get() + 1)))
    }

    /// The thread's number.
    pub(super) fn thread(self) -> usize {
        self.0
    }
}
