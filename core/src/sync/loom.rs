//! The exhaustive backend.

/// Atomic types, orderings and fences.
pub mod atomic {
    pub use loom::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

/// The cell that private payload is handed over in.
pub mod cell {
    pub use loom::cell::UnsafeCell;
}

/// Hints for loops that wait.
pub mod hint {
    pub use loom::hint::spin_loop;
}

pub use loom::alloc::Track;

/// Calls the user's code, whose panic fails the model.
pub(crate) fn contain(call: impl FnOnce()) {
    call();
}

/// Threads, for models.
pub mod thread {
    pub use loom::thread::{JoinHandle, spawn, yield_now};

    use loom::sync::{Condvar, Mutex};

    /// Runs `body` as a model.
    pub fn model(body: impl Fn() + Send + Sync + 'static) {
        loom::model(body);
    }

    /// Lets one thread sleep until another one says otherwise.
    ///
    /// Not loom's own `park`: that forgets its token when the thread yields, and
    /// with a token beside it still reports deadlocks that are none.
    #[derive(Debug)]
    pub struct Parker {
        token: Mutex<bool>,
        changed: Condvar,
    }

    impl Parker {
        /// A parker for the calling thread.
        pub fn new() -> Self {
            Self {
                token: Mutex::new(false),
                changed: Condvar::new(),
            }
        }

        /// Sleeps until [`unpark`](Self::unpark).
        pub fn park(&self) {
            let mut token = self.token.lock().unwrap();
            while !*token {
                token = self.changed.wait(token).unwrap();
            }
            *token = false;
        }

        /// Ends the present or the next sleep.
        pub fn unpark(&self) {
            *self.token.lock().unwrap() = true;
            self.changed.notify_one();
        }
    }

    impl Default for Parker {
        fn default() -> Self {
            Self::new()
        }
    }
}
