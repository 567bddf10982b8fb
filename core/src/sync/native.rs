//! The backend that ships: the target's own atomics, unchecked cells.

/// Atomic types, orderings and fences.
pub mod atomic {
    pub use core::sync::atomic::Ordering;
    #[cfg(not(feature = "portable-atomic"))]
    pub use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};
    #[cfg(feature = "portable-atomic")]
    pub use portable_atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};

    /// The target's fence; a function of the facade's own, so that a lint can
    /// tell it from `core`'s.
    #[inline(always)]
    pub fn fence(order: Ordering) {
        core::sync::atomic::fence(order);
    }
}

/// The cell that private payload is handed over in.
pub mod cell {
    /// [`core::cell::UnsafeCell`] behind closures, so that a checker can see
    /// where each access begins and ends.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct UnsafeCell<T: ?Sized>(core::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        /// A cell that holds `value`.
        pub const fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        /// The value, when nobody shares the cell any more.
        pub fn into_inner(self) -> T {
            self.0.into_inner()
        }
    }

    impl<T: ?Sized> UnsafeCell<T> {
        /// Calls `f` with a pointer for reading. No write may overlap.
        #[inline(always)]
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// Calls `f` with a pointer for writing. No other access may overlap.
        #[inline(always)]
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

/// Hints for loops that wait.
pub mod hint {
    pub use core::hint::spin_loop;
}

/// A value whose drop the checker may demand; here it only carries the value.
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

/// Calls the user's code, whose panic ends nothing but itself; the panic hook has
/// reported it. `true`: it panicked.
#[cfg(feature = "std")]
pub(crate) fn contain(call: impl FnOnce()) -> bool {
    let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    let panicked = called.is_err();
    // To drop what it panicked with may panic again.
    std::mem::forget(called);
    panicked
}

/// Calls the user's code, which must not unwind.
#[cfg(not(feature = "std"))]
pub(crate) fn contain(call: impl FnOnce()) -> bool {
    call();
    false
}

/// Threads, for models and for embedders with `std`.
#[cfg(feature = "std")]
pub mod thread {
    pub use std::thread::{JoinHandle, spawn, yield_now};

    /// Runs `body`: once here, as a model under a checker. Examples use it, so
    /// that they are models too.
    pub fn model(body: impl Fn() + Send + Sync + 'static) {
        body();
    }

    /// Lets one thread sleep until another one says otherwise.
    ///
    /// A token, not a counter: [`unpark`](Self::unpark) before
    /// [`park`](Self::park) makes that call return at once. May return early.
    #[derive(Debug)]
    pub struct Parker(std::thread::Thread);

    impl Parker {
        /// A parker for the calling thread.
        pub fn new() -> Self {
            Self(std::thread::current())
        }

        /// Sleeps until [`unpark`](Self::unpark). Only for the thread that made it.
        pub fn park(&self) {
            std::thread::park();
        }

        /// Sleeps until [`unpark`](Self::unpark), or for `limit`.
        pub fn park_timeout(&self, limit: core::time::Duration) {
            std::thread::park_timeout(limit);
        }

        /// Ends the present or the next sleep.
        pub fn unpark(&self) {
            self.0.unpark();
        }
    }

    impl Default for Parker {
        fn default() -> Self {
            Self::new()
        }
    }
}
