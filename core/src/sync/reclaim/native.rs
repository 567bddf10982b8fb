//! Epochs, by `crossbeam-epoch`.

use alloc::boxed::Box;
use core::{fmt, marker::PhantomData};

use crossbeam_epoch::{self as epoch, Owned, Shared};

use crate::sync::atomic::Ordering;

/// Where participants meet.
#[derive(Debug, Default)]
pub struct Collector(epoch::Collector);

impl Collector {
    /// A collector without participants.
    pub fn new() -> Self {
        Self(epoch::Collector::new())
    }

    /// Joins it: one participant per thread. Allocates.
    pub fn join(&self) -> Participant {
        Participant(self.0.register())
    }
}

/// One thread's part in a [`Collector`].
#[derive(Debug)]
pub struct Participant(epoch::LocalHandle);

impl Participant {
    /// From now until the guard is dropped, what is read stays.
    pub fn pin(&self) -> Pinned<'_> {
        Pinned(self.0.pin(), PhantomData)
    }
}

/// The right to use what is read from a [`Cell`].
pub struct Pinned<'p>(epoch::Guard, PhantomData<&'p Participant>);

impl fmt::Debug for Pinned<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pinned")
    }
}

/// Room for one shared value.
pub struct Cell<T>(epoch::Atomic<T>);

impl<T> fmt::Debug for Cell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cell")
    }
}

impl<T: Send + Sync> Default for Cell<T> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<T: Send + Sync> Cell<T> {
    /// An empty cell.
    pub fn empty() -> Self {
        Self(epoch::Atomic::null())
    }

    /// Puts `value` into the cell, if it is empty.
    ///
    /// # Errors
    ///
    /// The value, if the cell is not empty.
    pub fn put(&self, value: Box<T>, pinned: &Pinned<'_>) -> Result<(), Box<T>> {
        // Ordering: Release pairs with the Acquire in `get`: the value before
        // its publication. Failure Relaxed: nothing is read.
        let put = self.0.compare_exchange(
            Shared::null(),
            Owned::from(value),
            Ordering::Release,
            Ordering::Relaxed,
            &pinned.0,
        );
        put.map(|_| ()).map_err(|refused| refused.new.into_box())
    }

    /// What is in the cell, for as long as the caller is pinned.
    ///
    /// # Safety
    ///
    /// All calls on one cell are with the same collector.
    pub unsafe fn get<'g>(&'g self, pinned: &'g Pinned<'_>) -> Option<&'g T> {
        // Ordering: Acquire pairs with the Release in `put`.
        let shared = self.0.load(Ordering::Acquire, &pinned.0);
        // SAFETY: null, or from `put` and dropped only by `retire_if`, which
        // waits for this guard: one collector, by the contract.
        unsafe { shared.as_ref() }
    }

    /// Takes the value out if it satisfies `which`, and drops it when nobody
    /// can be reading it any more. Until the caller unpins, it can be read.
    ///
    /// # Safety
    ///
    /// All calls on one cell are with the same collector.
    pub unsafe fn retire_if<'g>(
        &'g self,
        pinned: &'g Pinned<'_>,
        which: impl Fn(&T) -> bool,
    ) -> Option<&'g T>
    where
        T: 'static,
    {
        // Ordering: Acquire, as in `get`.
        let shared = self.0.load(Ordering::Acquire, &pinned.0);
        // SAFETY: as in `get`.
        let value = unsafe { shared.as_ref() }.filter(|value| which(value))?;
        // Ordering: Relaxed. Who finds the cell empty reads nothing; pinned, the
        // address cannot have been used anew; the collector orders the drop.
        self.0
            .compare_exchange(
                shared,
                Shared::null(),
                Ordering::Relaxed,
                Ordering::Relaxed,
                &pinned.0,
            )
            .ok()?;
        // SAFETY: unreachable for who pins from now on; taken out by this
        // caller alone; `T` is Send, so that any thread may drop it.
        unsafe { pinned.0.defer_destroy(shared) };
        // Not kept back with this participant until it has retired more.
        pinned.0.flush();
        Some(value)
    }
}

impl<T> Drop for Cell<T> {
    fn drop(&mut self) {
        let last = core::mem::replace(&mut self.0, epoch::Atomic::null());
        // SAFETY: nobody shares the cell any more.
        let last = unsafe { last.try_into_owned() };
        drop(last);
    }
}
