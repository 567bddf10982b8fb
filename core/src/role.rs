//! A role that one has at a time: taken by a try, never waited for.

use crate::sync::{
    atomic::{AtomicBool, Ordering},
    const_fn,
};

/// Who has it, if anybody.
#[derive(Debug)]
pub(crate) struct Role(AtomicBool);

impl Role {
    const_fn! {
        /// Nobody has it.
        pub(crate) const fn new() -> Self {
            Self(AtomicBool::new(false))
        }
    }

    /// Whether somebody has it: a hint, or behind a fence.
    #[cfg(feature = "alloc")]
    pub(crate) fn is_held(&self) -> bool {
        // Ordering: Relaxed, as said.
        self.0.load(Ordering::Relaxed)
    }

    /// Takes it, unless somebody has it.
    pub(crate) fn take(&self) -> Option<Held<'_>> {
        // Ordering: Acquire pairs with the Release in `Held::drop`: what the last one
        // did. Failure Relaxed: who is refused touches nothing.
        let taken = (self.0).compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        // Only now: a `Held` that is dropped lets go.
        taken.is_ok().then(|| Held(self))
    }
}

/// Lets go when it is dropped.
#[must_use = "the role is given up when this is dropped"]
pub(crate) struct Held<'a>(&'a Role);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Ordering: Release pairs with the Acquire in `Role::take`.
        self.0.0.store(false, Ordering::Release);
    }
}
