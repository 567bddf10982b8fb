//! The exhaustive checker: what is its own.

pub(super) use loom::{alloc::Track, model};

/// The cell that private payload is handed over in.
pub mod cell {
    use core::{mem::ManuallyDrop, ptr};

    use crate::sync::timeline::{Identity, Turn, What};

    /// loom's cell, with a timeline. That its memory goes is an access, for writing: who
    /// used it last must have come before.
    ///
    /// An access is recorded before it begins: loom lets nobody run in between,
    /// and it may be the last thing that its thread does.
    #[derive(Debug)]
    pub struct UnsafeCell<T: ?Sized> {
        identity: Identity,
        checked: loom::cell::UnsafeCell<T>,
    }

    impl<T> UnsafeCell<T> {
        /// A cell that holds `value`.
        #[track_caller]
        pub fn new(value: T) -> Self {
            Self {
                identity: Identity::new(),
                checked: loom::cell::UnsafeCell::new(value),
            }
        }

        /// The value, when nobody shares the cell any more.
        pub fn into_inner(self) -> T {
            let this = ManuallyDrop::new(self);
            // SAFETY: moved out once; `this` is neither used nor dropped.
            let checked = unsafe { ptr::read(&raw const this.checked) };
            checked.into_inner()
        }
    }

    impl<T: ?Sized> Drop for UnsafeCell<T> {
        fn drop(&mut self) {
            // Of an execution that failed it would say nothing.
            if !std::thread::panicking() {
                self.checked.with_mut(|_| ());
            }
        }
    }

    impl<T: ?Sized> UnsafeCell<T> {
        #[track_caller]
        fn did(&self, access: &'static str) {
            Turn::begin().did(What::Use(access, self.identity.object("UnsafeCell")));
        }

        /// Calls `f` with a pointer for reading. No write may overlap.
        #[track_caller]
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            self.did("read");
            self.checked.with(f)
        }

        /// Calls `f` with a pointer for writing. No other access may overlap.
        #[track_caller]
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            self.did("write");
            self.checked.with_mut(f)
        }
    }

    impl<T: Default> Default for UnsafeCell<T> {
        #[track_caller]
        fn default() -> Self {
            Self::new(T::default())
        }
    }
}
