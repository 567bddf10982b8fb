//! How long a thing is used, and waiting until its last user is done.
//!
//! One word counts users; its top bit says that the end has been called. From
//! then on nobody gets in ([`Life::try_get`] refuses), and whoever takes the
//! count to zero closes the wait queue of those who wait for that. Closing ends
//! with one store, and that store is the users' last touch of the memory. A
//! destroyer that sees it, the first or any other, knows that no user touches it
//! any more; the memory can go when the destroyers have returned as well.
//!
//! ```text
//!  63    62                    0
//! +-----+----------------------+
//! | end | users                |
//! +-----+----------------------+
//! ```
//!
//! | word | `try_get` | `put` | `end` |
//! |---|---|---|---|
//! | users, no end | counts | uncounts | sets the bit, **counts the caller**: the first |
//! | users, end | refused | uncounts; the last closes `idle` | not the first |
//! | 0, end | refused | – | not the first |
//!
//! Who is refused is never counted, not even for a moment: else it could be the
//! last to uncount, and close while the real last one, between uncounting and
//! closing, still has its last touch to come. Hence a compare-and-swap that adds
//! only what may be added.
//!
//! The first destroyer is counted, so that what it does on the way (cancelling
//! what can be cancelled) is over too before any destroyer returns.

use core::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context as Task, Poll},
};

use crate::{
    error::Errno,
    sync::{
        Padded,
        atomic::{AtomicU64, Ordering},
        const_fn,
    },
    wait::{Enqueued, Never, WaitQueue, Waiter},
};

const END: u64 = 1 << 63;

/// Users and the end. See the [module](self).
///
/// ```
/// # uaio_core::sync::thread::model(|| {
/// use std::{future::Future, pin::pin, task::{Context, Poll, Waker}};
/// use uaio_core::{Errno, life::Life};
///
/// let life = Life::new();
/// life.try_get(1).unwrap();
///
/// assert!(life.end());
/// assert_eq!(life.try_get(1), Err(Errno::EINVAL));
/// let mut idle = pin!(life.idle());
/// let mut task = Context::from_waker(Waker::noop());
/// life.put(1); // the destroyer's own part is done, but a user is left
/// assert_eq!(idle.as_mut().poll(&mut task), Poll::Pending);
/// life.put(1);
/// assert_eq!(idle.as_mut().poll(&mut task), Poll::Ready(()));
/// # });
/// ```
pub struct Life {
    word: Padded<AtomicU64>,
    idle: WaitQueue,
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life").finish_non_exhaustive()
    }
}

impl Default for Life {
    fn default() -> Self {
        Self::new()
    }
}

impl Life {
    const_fn! {
        /// Alive, without users.
        pub const fn new() -> Self {
            Self { word: Padded(AtomicU64::new(0)), idle: WaitQueue::new() }
        }
    }

    /// Counts `n` users, unless the end was called. Lock-free, any context.
    ///
    /// # Errors
    ///
    /// EINVAL after the end.
    #[inline]
    pub fn try_get(&self, n: u64) -> Result<(), Errno> {
        // Ordering: Relaxed. The compare-and-swap decides.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            // Re-check: the last user may be gone already.
            if word & END != 0 {
                return Err(Errno::EINVAL);
            }
            // Ordering: Relaxed. Counting orders nothing: the caller got the
            // reference to `self` from somewhere, and `put` is what is waited
            // for.
            match self.word.compare_exchange_weak(
                word,
                word + n,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Uncounts `n` users, each counted before. Lock-free, any context. The
    /// caller touches nothing of what is guarded any more.
    #[inline]
    pub fn put(&self, n: u64) {
        // Ordering: AcqRel. Release: this user's touches, for the last one.
        // Acquire: the last one hands on everybody's, by closing `idle`.
        let before = self.word.fetch_sub(n, Ordering::AcqRel);
        debug_assert!(before & !END >= n, "put without get");
        // Re-check: only the last closes, and only after the end.
        if before == END | n {
            self.idle.close();
        }
    }

    /// Whether the end was called.
    ///
    /// Needs a fence before it to be ordered after what the caller published, as
    /// the context's `ended_meanwhile` has.
    #[inline]
    pub fn has_ended(&self) -> bool {
        // Ordering: Relaxed. Callers fence, or only want a hint.
        self.word.load(Ordering::Relaxed) & END != 0
    }

    /// Calls the end. `true` for the first, who is counted as a user and calls
    /// [`put`](Self::put) when it has done its part.
    #[must_use = "the first is counted, and has to `put`"]
    pub fn end(&self) -> bool {
        // Ordering: Relaxed. The compare-and-swap decides.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            // Re-check: there is one first destroyer.
            if word & END != 0 {
                return false;
            }
            // Ordering: Relaxed. What the destroyer looks at next it looks at
            // behind a fence.
            match self.word.compare_exchange_weak(
                word,
                (word + 1) | END,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// Whether the last user is done, and nobody touches it any more.
    pub fn is_over(&self) -> bool {
        self.idle.is_closed()
    }

    /// Waits until the last user is done. Only after the end was called.
    pub fn idle(&self) -> Idle<'_> {
        Idle {
            life: self,
            waiter: Waiter::new(),
        }
    }
}

/// Resolves when nobody uses it any more, nor ever will. See [`Life::idle`].
#[must_use = "a future does nothing unless it is polled"]
#[derive(Debug)]
pub struct Idle<'a> {
    life: &'a Life,
    waiter: Waiter,
}

impl Idle<'_> {
    fn waiter(self: Pin<&Self>) -> Pin<&Waiter> {
        // SAFETY: structural: the waiter is never moved out of the future.
        unsafe { self.map_unchecked(|idle| &idle.waiter) }
    }
}

impl Future for Idle<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<()> {
        let this = self.as_ref();
        loop {
            // SAFETY: the waiter is used with this queue only, and `drop`
            // leaves it.
            let enqueued = unsafe { (this.life.idle).enqueue(this.waiter(), task.waker(), &Never) };
            match enqueued {
                Ok(Enqueued::Waiting) => return Poll::Pending,
                // Woken by a closing that goes on: wait for its end.
                Ok(Enqueued::Ready) => {}
                Err(_closed) => return Poll::Ready(()),
            }
        }
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        // SAFETY: the value is not moved until it is gone.
        let this = unsafe { Pin::new_unchecked(&*self) };
        // SAFETY: the waiter is used with this queue only.
        let _ = unsafe { (this.life.idle).leave(this.waiter()) };
    }
}
