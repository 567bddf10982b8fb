//! The checker for random schedules at scale: what is its own.

/// The cell that private payload is handed over in.
pub mod cell {
    use crate::sync::timeline::{Identity, Turn, What};
    use shuttle::sync::atomic::{AtomicIsize, Ordering};

    /// A cell that panics when two accesses overlap of which one writes.
    ///
    /// shuttle has none of its own. The counter is shuttle's, so that others may
    /// run before an access begins and before it ends. (A yield in its middle
    /// would do that too, but PCT takes priority away from who yields.)
    #[derive(Debug)]
    pub struct UnsafeCell<T: ?Sized> {
        identity: Identity,
        /// Readers inside, or -1 for a writer.
        borrows: AtomicIsize,
        value: core::cell::UnsafeCell<T>,
    }

    struct Leave<'a>(&'a AtomicIsize, isize);

    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            let turn = Turn::begin();
            self.0.fetch_sub(self.1, Ordering::Relaxed);
            turn.resume();
        }
    }

    impl<T> UnsafeCell<T> {
        /// A cell that holds `value`.
        #[track_caller]
        pub const fn new(value: T) -> Self {
            Self {
                identity: Identity::new(),
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
        #[track_caller]
        fn did(&self, turn: Turn, access: &'static str) {
            turn.did(What::Use(access, self.identity.object("UnsafeCell")));
        }

        /// Calls `f` with a pointer for reading. No write may overlap.
        #[track_caller]
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            let turn = Turn::begin();
            let before = self.borrows.fetch_add(1, Ordering::Relaxed);
            self.did(turn, "read");
            let _leave = Leave(&self.borrows, 1);
            assert!(before >= 0, "cell read while it is written");
            f(self.value.get())
        }

        /// Calls `f` with a pointer for writing. No other access may overlap.
        #[track_caller]
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            let turn = Turn::begin();
            let before = self
                .borrows
                .compare_exchange(0, -1, Ordering::Relaxed, Ordering::Relaxed);
            self.did(turn, "write");
            assert!(before.is_ok(), "cell written while it is accessed");
            let _leave = Leave(&self.borrows, -1);
            f(self.value.get())
        }
    }

    impl<T: Default> Default for UnsafeCell<T> {
        #[track_caller]
        fn default() -> Self {
            Self::new(T::default())
        }
    }
}

/// A value whose drop the checker may demand; shuttle does not.
#[derive(Debug)]
pub(super) struct Track<T>(T);

impl<T> Track<T> {
    /// Tracks `value`.
    pub(super) const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself.
    pub(super) fn get_ref(&self) -> &T {
        &self.0
    }

    /// The value, no longer tracked.
    pub(super) fn into_inner(self) -> T {
        self.0
    }
}

/// Runs `body` as a model.
pub(super) fn model(body: impl Fn() + Send + Sync + 'static) {
    shuttle::check_random(body, 100);
}
