//! The backend for random schedules at scale.

/// Atomic types, orderings and fences.
pub mod atomic {
    pub use shuttle::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

/// The cell that private payload is handed over in.
pub mod cell {
    use shuttle::sync::atomic::{AtomicIsize, Ordering};

    /// A cell that panics when two accesses overlap of which one writes.
    ///
    /// shuttle has none of its own. The counter is shuttle's, so that others may
    /// run before an access begins and before it ends. (A yield in its middle
    /// would do that too, but PCT takes priority away from who yields.)
    #[derive(Debug, Default)]
    pub struct UnsafeCell<T: ?Sized> {
        /// Readers inside, or -1 for a writer.
        borrows: AtomicIsize,
        value: core::cell::UnsafeCell<T>,
    }

    struct Leave<'a>(&'a AtomicIsize, isize);

    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(self.1, Ordering::Relaxed);
        }
    }

    impl<T> UnsafeCell<T> {
        /// A cell that holds `value`.
        pub const fn new(value: T) -> Self {
            Self {
                borrows: AtomicIsize::new(0),
                value: core::cell::UnsafeCell::new(value),
            }
        }

        /// The value, when nobody shares the cell any more.
        pub fn into_inner(self) -> T {
            self.value.into_inner()
        }
    }

    impl<T: ?Sized> UnsafeCell<T> {
        /// Calls `f` with a pointer for reading. No write may overlap.
        #[track_caller]
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            let before = self.borrows.fetch_add(1, Ordering::Relaxed);
            let _leave = Leave(&self.borrows, 1);
            assert!(before >= 0, "cell read while it is written");
            f(self.value.get())
        }

        /// Calls `f` with a pointer for writing. No other access may overlap.
        #[track_caller]
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            let before = self
                .borrows
                .compare_exchange(0, -1, Ordering::Relaxed, Ordering::Relaxed);
            assert!(before.is_ok(), "cell written while it is accessed");
            let _leave = Leave(&self.borrows, -1);
            f(self.value.get())
        }
    }
}

/// Hints for loops that wait.
pub mod hint {
    pub use shuttle::hint::spin_loop;
}

/// A value whose drop the checker may demand; shuttle does not.
#[derive(Debug, Default)]
pub struct Track<T>(T);

impl<T> Track<T> {
    /// Tracks `value`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself.
    pub fn get_ref(&self) -> &T {
        &self.0
    }

    /// The value, no longer tracked.
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// Calls the user's code, whose panic fails the model.
pub(crate) fn contain(call: impl FnOnce()) {
    call();
}

/// Threads, for models.
pub mod thread {
    pub use shuttle::thread::{JoinHandle, spawn, yield_now};

    use shuttle::sync::{Condvar, Mutex};

    /// Runs `body` as a model.
    pub fn model(body: impl Fn() + Send + Sync + 'static) {
        shuttle::check_random(body, 100);
    }

    /// Lets one thread sleep until another one says otherwise.
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
