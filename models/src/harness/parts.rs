//! What scenarios are made of.
//!
//! Witnesses are plain mutexes, which add neither a scheduling point nor an
//! ordering to a model.

use std::{
    ptr::NonNull,
    sync::{Arc, Mutex},
    task::Wake,
};

use uaio_core::sync::{Track, cell::UnsafeCell, thread::Parker};

use crate::scenarios::Sleep;

use super::lock;

/// Polls `future` and sleeps until it is done.
#[track_caller]
pub fn block_on<F: Future>(future: F) -> F::Output {
    <Arc<Sleeper> as Sleep>::new().block_on(future)
}

/// A thread's sleep as a waker. loom fails a model that forgets a clone.
#[derive(Debug)]
pub struct Sleeper(Track<Parker>);

impl Sleeper {
    /// For the calling thread.
    #[expect(clippy::new_without_default, reason = "it is about the calling thread")]
    #[track_caller]
    pub fn new() -> Self {
        Self(Track::new(Parker::new()))
    }

    /// Sleeps until the waker is called. May return early.
    #[track_caller]
    pub fn park(&self) {
        self.0.get_ref().park();
    }
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.0.get_ref().unpark();
    }
}

/// A witness: a number that parties add to and the final check reads.
#[derive(Debug, Default)]
pub struct Count(Mutex<u64>);

impl Count {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(Mutex::new(0))
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        *lock(&self.0) += n;
    }

    /// The sum.
    pub fn get(&self) -> u64 {
        *lock(&self.0)
    }
}

/// What a protocol hands over: accessed with no ordering of its own, so that a
/// checker sees when the protocol gives none.
#[derive(Debug)]
pub struct Handed<T>(UnsafeCell<T>);

// SAFETY: the claim under test is that accesses never overlap and are ordered;
// a checker sees when they are not, and the plain build has passed it.
unsafe impl<T: Send> Sync for Handed<T> {}

impl<T: Copy> Handed<T> {
    /// Holds `value`.
    #[track_caller]
    pub fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Reads it.
    #[track_caller]
    pub fn get(&self) -> T {
        self.0.with(|value| {
            // SAFETY: as for Sync.
            unsafe { *value }
        })
    }

    /// Overwrites it.
    #[track_caller]
    pub fn set(&self, new: T) {
        self.0.with_mut(|value| {
            // SAFETY: as for Sync.
            unsafe { *value = new }
        });
    }
}

/// Memory that is given back while others might still touch it.
///
/// [`renew`](Self::renew) ends the value and makes another in its place, as an
/// allocator would for the next owner: a checker then sees every touch of the
/// old one that is not ordered before, and nothing is ever unmapped.
#[derive(Debug)]
pub struct Memory<T>(NonNull<T>);

// SAFETY: owns a `T` like a box, and lends it like one.
unsafe impl<T: Send + Sync> Send for Memory<T> {}
// SAFETY: as for Send.
unsafe impl<T: Send + Sync> Sync for Memory<T> {}

impl<T> Memory<T> {
    /// Holds `value`.
    pub fn new(value: T) -> Self {
        Self(NonNull::from(Box::leak(Box::new(value))))
    }

    /// The value, for as long as the scenario says that it is there.
    ///
    /// # Safety
    ///
    /// Not used after this `Memory` is dropped, which is after all roles.
    pub unsafe fn get(&self) -> &'static T {
        // SAFETY: from a box, valid until `self` is dropped.
        unsafe { self.0.as_ref() }
    }

    /// Gives the memory back and takes it for a new value.
    ///
    /// # Safety
    ///
    /// Nobody uses the old value any more: that is the claim under test.
    pub unsafe fn renew(&self, value: T) {
        // SAFETY: valid, and unused by the contract. In its place: it may be pinned.
        unsafe { self.0.drop_in_place() };
        // SAFETY: the place of a value that is gone.
        unsafe { self.0.write(value) };
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: from a box, and dropped once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
