//! Whose turn it is: what comes after something that is under way.
//!
//! Requests that are to be done one after the other are submitted one after the other,
//! too. While the submitter still brings the next one, the one before it may end,
//! wherever that is. Then one of the two goes on with the next, and has what both held,
//! say a reference to their context; whichever it is, and only one.
//!
//! # One word
//!
//! Who submits *passes* the next one on, or says that there is none; who completes
//! *ends* the one before it. Each does it once, with one read-modify-write of one word,
//! and the second to come finds what the first one left:
//!
//! | | is first | is second |
//! |---|---|---|
//! | the submitter passes the next on | leaves it, and goes its way | goes on with it, and knows how the one before it ended |
//! | it has no next one | leaves that | drops what both held |
//! | who completes ends it | leaves how it ended | goes on with the next, if there is one; else drops what both held |
//!
//! So the next is run once, by the submitter or by who completed the one before it, and
//! what both held travels with it, and is put once; and the submitter counts the next as
//! submitted, whoever runs it. What is shared is freed by the second.
//!
//! # Progress
//!
//! Wait-free; runs in any context but for the freeing.

use alloc::boxed::Box;
use core::{fmt, mem::ManuallyDrop, ptr::NonNull};

use crate::sync::{
    atomic::{AtomicU32, Ordering},
    cell::UnsafeCell,
};

/// The submitter has come;
const PASSED: u32 = 1;
/// who completes has; and it was a success.
const ENDED: u32 = 1 << 1;
const SUCCESS: u32 = 1 << 2;

struct Shared<T, R> {
    word: AtomicU32,
    /// The submitter's until it has come, then the second's.
    next: UnsafeCell<Option<T>>,
    /// The second's.
    held: UnsafeCell<Option<R>>,
}

/// Both, for one that is under way; they hold `held`.
///
/// ```
/// # uaio_core::sync::thread::model(|| {
/// use uaio_core::baton::{Passed, baton};
///
/// // The submitter has the next one before the first has ended ...
/// let (pass, end) = baton("the context's reference");
/// assert!(matches!(pass.pass("next"), Passed::Later));
/// assert_eq!(end.end(true), Some(("next", "the context's reference")));
///
/// // ... or after that.
/// let (pass, end) = baton("the context's reference");
/// assert_eq!(end.end(false), None);
/// let Passed::Now { next, succeeded, .. } = pass.pass("next") else { panic!() };
/// assert_eq!((next, succeeded), ("next", false));
/// # });
/// ```
pub fn baton<T, R>(held: R) -> (Pass<T, R>, End<T, R>) {
    let shared = NonNull::from(Box::leak(Box::new(Shared {
        word: AtomicU32::new(0),
        next: UnsafeCell::new(None),
        held: UnsafeCell::new(Some(held)),
    })));
    (Pass(shared), End(shared))
}

/// The submitter's. Dropping it says that there is no next one.
#[must_use = "dropping it says that nothing follows"]
pub struct Pass<T, R>(NonNull<Shared<T, R>>);

/// Of who completes the one that is under way. Dropping it says that it failed, and
/// drops what comes next.
#[must_use = "dropping it drops what comes next"]
pub struct End<T, R>(NonNull<Shared<T, R>>);

// SAFETY: what is shared is one's at a time, and goes to the other by the word.
unsafe impl<T: Send, R: Send> Send for Pass<T, R> {}
// SAFETY: nothing can be done with a reference.
unsafe impl<T: Send, R: Send> Sync for Pass<T, R> {}
// SAFETY: as of `Pass`.
unsafe impl<T: Send, R: Send> Send for End<T, R> {}
// SAFETY: as of `Pass`.
unsafe impl<T: Send, R: Send> Sync for End<T, R> {}

impl<T, R> fmt::Debug for Pass<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pass")
    }
}

impl<T, R> fmt::Debug for End<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("End")
    }
}

/// What became of the next one.
#[must_use = "the caller may have to go on with it"]
#[derive(Debug)]
pub enum Passed<T, R> {
    /// Who ends the one before it goes on with it.
    Later,
    /// That has ended: the caller does.
    Now {
        /// The next one.
        next: T,
        /// Whether the one before it succeeded.
        succeeded: bool,
        /// What both held.
        held: R,
    },
}

impl<T, R> Pass<T, R> {
    /// Passes `next` on.
    pub fn pass(self, next: T) -> Passed<T, R> {
        let shared = ManuallyDrop::new(self).0;
        // SAFETY: freed by the second to come, who is at the earliest this one.
        let next_place = unsafe { &shared.as_ref().next };
        next_place.with_mut(|place| {
            // SAFETY: the submitter's until it has come.
            unsafe { *place = Some(next) }
        });
        // SAFETY: both have come once this has; and this one once.
        match unsafe { come(shared, PASSED) } {
            Some((before, Some(next), Some(held))) => Passed::Now {
                next,
                succeeded: before & SUCCESS != 0,
                held,
            },
            _ => Passed::Later,
        }
    }
}

impl<T, R> End<T, R> {
    /// Ends the one that was under way. What comes next, if anything does yet, is the
    /// caller's to go on with.
    pub fn end(self, succeeded: bool) -> Option<(T, R)> {
        let shared = ManuallyDrop::new(self).0;
        let how = if succeeded { ENDED | SUCCESS } else { ENDED };
        // SAFETY: once.
        let (_, next, held) = unsafe { come(shared, how) }?;
        next.zip(held)
    }
}

impl<T, R> Drop for Pass<T, R> {
    fn drop(&mut self) {
        // SAFETY: once, for it was not passed on.
        drop(unsafe { come(self.0, PASSED) });
    }
}

impl<T, R> Drop for End<T, R> {
    fn drop(&mut self) {
        // SAFETY: once, for it was not ended.
        drop(unsafe { come(self.0, ENDED) });
    }
}

/// Says that one has come, and what it brings: the second gets all there is.
///
/// # Safety
///
/// Each of the two comes once.
unsafe fn come<T, R>(
    shared: NonNull<Shared<T, R>>,
    what: u32,
) -> Option<(u32, Option<T>, Option<R>)> {
    // SAFETY: freed by the second to come, who is at the earliest this one.
    let word = unsafe { &shared.as_ref().word };
    // Ordering: AcqRel. Release pairs with the Acquire of the other one's: what is left
    // for it, and our last touch before it frees; Acquire pairs with its Release.
    let before = word.fetch_or(what, Ordering::AcqRel);
    // Re-check: whether the other one has come.
    if before == 0 {
        return None;
    }
    // SAFETY: from a box; the other one has come, and touches it no more.
    let mut shared = unsafe { Box::from_raw(shared.as_ptr()) };
    let next = take(&mut shared.next);
    let held = take(&mut shared.held);
    Some((before, next, held))
}

/// Of the second's.
fn take<V>(place: &mut UnsafeCell<Option<V>>) -> Option<V> {
    place.with_mut(|place| {
        // SAFETY: borrowed exclusively.
        unsafe { (*place).take() }
    })
}
