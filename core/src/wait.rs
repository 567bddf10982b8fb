//! Wait queues: who sleeps until what, and who wakes them.
//!
//! An intrusive list of [`Waiter`]s under a one-bit lock that **a waker never
//! waits for**. Whoever wakes leaves its mask in the queue's word; if the lock
//! was free it now holds it and serves the list, and if not, the holder serves
//! that mask before letting go. Those who enqueue and leave do wait for the
//! lock, which is held for a few loads and stores and never across a waker:
//! they are ordinary callers.
//!
//! ```text
//!  31          16        3         2         1        0
//! +--------------+------+---------+---------+---------+
//! | mask, unserved|     | closing | waiting | locked  |   0: nobody, nothing
//! +--------------+------+---------+---------+---------+   CLOSED: the end
//! ```
//!
//! # States × operations
//!
//! | word | [`wake`](WaitQueue::wake) | [`enqueue`](WaitQueue::enqueue), [`leave`](WaitQueue::leave) | [`close`](WaitQueue::close) |
//! |---|---|---|---|
//! | 0 | returns (nobody waits) | locks | locks, becomes CLOSED |
//! | waiting | locks, serves, unlocks | locks | locks, wakes all, becomes CLOSED |
//! | locked | leaves its mask | waits | leaves `closing` |
//! | CLOSED | returns | `Closed` | returns |
//!
//! # Waiter states
//!
//! *Idle → linked → woken*, always changed with the lock held. A woken waiter
//! is unlinked and its waker moved out **under the lock**; nobody touches it
//! afterwards, so its owner may free it as soon as it has learned of it, which
//! it does by taking the lock. The waker itself is called with no lock held.
//!
//! # Losing no wake-up
//!
//! The waker publishes what it has to say, then fences, then looks at the word;
//! the one who enqueues locks, then fences, then looks at what is published
//! (`ready`), and only then links itself. Of two fences one is first: either
//! the waker sees the lock (and leaves its mask), or the other sees what was
//! published.
//!
//! # Closing
//!
//! Closing wakes everybody, and its last touch of the queue is the store of
//! CLOSED: who sees CLOSED may free the queue. New waiters are refused then.

use core::{cell::Cell, fmt, marker::PhantomPinned, pin::Pin, ptr, task::Waker};

use crate::sync::{
    atomic::{AtomicU32, Ordering, fence},
    cell::UnsafeCell,
    const_fn, contain, hint,
};

const LOCKED: u32 = 1;
const WAITING: u32 = 1 << 1;
const CLOSING: u32 = 1 << 2;
const CLOSED: u32 = 1 << 3;
const MASK_SHIFT: u32 = 16;
const MASK: u32 = 0xffff << MASK_SHIFT;

/// How many wakers are moved out under one hold of the lock.
const BATCH: usize = 8;

/// The queue is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// What enqueueing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Enqueued {
    /// In the list; its waker will be called.
    Waiting,
    /// There is nothing to wait for, or the wake has come. Not in the list.
    Ready,
}

/// What leaving came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Left {
    /// It had not been woken, and will not be.
    Unwoken,
    /// The wake came first.
    Woken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Linked,
    Woken,
}

/// The part of a waiter that its queue's lock protects.
#[derive(Debug)]
struct Node {
    next: *const Waiter,
    previous: *const Waiter,
    state: State,
    key: usize,
    waker: Option<Waker>,
}

/// A place in a [`WaitQueue`]; belongs to who waits, and to one queue only.
///
/// Must have [left](WaitQueue::leave) its queue before it is dropped.
#[derive(Debug)]
pub struct Waiter {
    node: UnsafeCell<Node>,
    /// A waiter in a list must stay where it is.
    _pinned: PhantomPinned,
}

// SAFETY: the node is only accessed under the queue's lock; the waker in it is
// Send, and the pointers lead to waiters of the same kind.
unsafe impl Send for Waiter {}
// SAFETY: as for Send.
unsafe impl Sync for Waiter {}

impl Waiter {
    const_fn! {
        /// A waiter in no queue.
        pub const fn new() -> Self {
            Self {
                node: UnsafeCell::new(Node {
                    next: ptr::null(),
                    previous: ptr::null(),
                    state: State::Idle,
                    key: 0,
                    waker: None,
                }),
                _pinned: PhantomPinned,
            }
        }
    }

    /// Calls `f` on the node.
    ///
    /// # Safety
    ///
    /// The caller holds the lock of the queue that the waiter belongs to, and
    /// `f` reaches no other access to the same node.
    unsafe fn with<R>(&self, f: impl FnOnce(&mut Node) -> R) -> R {
        self.node.with_mut(|node| {
            // SAFETY: the lock makes the access exclusive, by the contract.
            f(unsafe { &mut *node })
        })
    }
}

impl Default for Waiter {
    fn default() -> Self {
        Self::new()
    }
}

/// First and last of the list.
#[derive(Debug)]
struct List {
    first: *const Waiter,
    last: *const Waiter,
}

impl List {
    /// # Safety
    ///
    /// Under the lock; `waiter` is not in the list and stays where it is until
    /// it is unlinked.
    unsafe fn push(&mut self, waiter: &Waiter) {
        let last = self.last;
        // SAFETY: under the lock, by the contract.
        unsafe {
            waiter.with(|node| {
                node.next = ptr::null();
                node.previous = last;
                node.state = State::Linked;
            });
        }
        // SAFETY: what is linked is alive: its owner unlinks it first.
        match unsafe { last.as_ref() } {
            None => self.first = waiter,
            // SAFETY: under the lock; another node than the one above.
            Some(last) => unsafe { last.with(|node| node.next = waiter) },
        }
        self.last = waiter;
    }

    /// # Safety
    ///
    /// Under the lock; `waiter` is in the list.
    unsafe fn unlink(&mut self, waiter: &Waiter, state: State) -> Option<Waker> {
        // SAFETY: under the lock, by the contract.
        let (next, previous, waker) = unsafe {
            waiter.with(|node| {
                node.state = state;
                (node.next, node.previous, node.waker.take())
            })
        };
        // SAFETY: what is linked is alive.
        match unsafe { previous.as_ref() } {
            None => self.first = next,
            // SAFETY: under the lock; a waiter is not its own neighbour.
            Some(previous) => unsafe { previous.with(|node| node.next = next) },
        }
        // SAFETY: what is linked is alive.
        match unsafe { next.as_ref() } {
            None => self.last = previous,
            // SAFETY: under the lock; a waiter is not its own neighbour.
            Some(next) => unsafe { next.with(|node| node.previous = previous) },
        }
        waker
    }
}

/// Wakers on their way out of the lock.
#[derive(Default)]
struct Batch {
    wakers: [Cell<Option<Waker>>; BATCH],
    len: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.len == BATCH
    }

    fn push(&mut self, waker: Option<Waker>) {
        self.wakers[self.len].set(waker);
        self.len += 1;
    }

    fn wake(&mut self) {
        for waker in &self.wakers[..self.len] {
            if let Some(waker) = waker.take() {
                // A waker's panic is its own: there are others to wake.
                contain(|| waker.wake());
            }
        }
        self.len = 0;
    }
}

/// A queue of waiters. See the [module](self).
///
/// ```
/// # uaio_core::sync::thread::model(|| {
/// use std::{pin::pin, task::Waker};
/// use uaio_core::wait::{Enqueued, Left, WaitQueue, Waiter};
///
/// let queue = WaitQueue::new();
/// let waiter = pin!(Waiter::new());
/// let waiter = waiter.as_ref();
///
/// // SAFETY: one queue, and the waiter leaves it below.
/// let enqueued = unsafe { queue.enqueue(waiter, 3, Waker::noop(), |_, _| false) };
/// assert_eq!(enqueued, Ok(Enqueued::Waiting));
/// queue.wake(1, |key, _| key <= 3);
/// // SAFETY: the same queue.
/// assert_eq!(unsafe { queue.leave(waiter, |_, _| false) }, Left::Woken);
/// # });
/// ```
pub struct WaitQueue {
    word: AtomicU32,
    list: UnsafeCell<List>,
}

// SAFETY: the list is only accessed under the lock, and holds pointers to
// waiters, which are Send and Sync.
unsafe impl Send for WaitQueue {}
// SAFETY: as for Send.
unsafe impl Sync for WaitQueue {}

impl fmt::Debug for WaitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitQueue").finish_non_exhaustive()
    }
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    const_fn! {
        /// An open queue without waiters.
        pub const fn new() -> Self {
            Self {
                word: AtomicU32::new(0),
                list: UnsafeCell::new(List { first: ptr::null(), last: ptr::null() }),
            }
        }
    }

    /// Whether the queue is closed: then nobody touches it any more.
    pub fn is_closed(&self) -> bool {
        // Ordering: Acquire pairs with the Release that stores CLOSED: all that
        // was done before closing is done.
        self.word.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Wakes the waiters for which `ready(key, mask)` holds, if there are any.
    ///
    /// What there is to see must be published before the call. Lock-free, never
    /// waits for a lock, callable from any context; wakers are called with no
    /// lock held. `ready` is called under the lock, perhaps by another thread
    /// with *its* closure and both masks: it must be the same test, and must not
    /// panic. A mask of zero says that anything may have happened: all bits.
    #[inline]
    pub fn wake(&self, mask: u16, ready: impl Fn(usize, u16) -> bool) {
        // Ordering: SeqCst, against the fence in `enqueue`: what was published
        // before this call is seen there, or the word there is seen here.
        fence(Ordering::SeqCst);
        // Ordering: Relaxed. The fence does it.
        if self.word.load(Ordering::Relaxed) & !CLOSED == 0 {
            return;
        }
        self.wake_now(mask, ready);
    }

    /// The rest of [`wake`](Self::wake), when somebody waits or holds the lock.
    #[cold]
    fn wake_now(&self, mask: u16, ready: impl Fn(usize, u16) -> bool) {
        let mask = if mask == 0 { u16::MAX } else { mask };
        let bits = LOCKED | u32::from(mask) << MASK_SHIFT;
        // Ordering: Relaxed. What this caller published the fence in `wake` releases,
        // for a holder; the list `serve_and_unlock` acquires.
        let before = self.word.fetch_or(bits, Ordering::Relaxed);
        // Closed meanwhile: what was left in the word changes nothing there.
        if before & (LOCKED | CLOSED) == 0 {
            self.serve_and_unlock(&ready);
        }
    }

    /// Wakes everybody, for good. Callable from any context; the last touch of
    /// the queue is the store that makes [`is_closed`](Self::is_closed) true.
    ///
    /// Nothing else may be called by who learned that it is closed. A
    /// [`wake`](Self::wake) may run meanwhile, but it still touches the queue: who
    /// frees it waits for its wakers by other means.
    pub fn close(&self) {
        // Ordering: Release: if it is locked, what came before closing, for the
        // holder. The list `serve_and_unlock` acquires.
        let before = self.word.fetch_or(LOCKED | CLOSING, Ordering::Release);
        if before & (LOCKED | CLOSED) == 0 {
            self.serve_and_unlock(&|_, _| true);
        }
    }

    /// With the lock held: serves what was left in the word, then lets go.
    fn serve_and_unlock(&self, ready: &impl Fn(usize, u16) -> bool) {
        let mut batch = Batch::default();
        loop {
            // Ordering: Acquire pairs with the Release of the last holder, for the
            // list, and of whoever left a mask: what it published is seen by
            // `ready`. Whichever RMW took the lock, this one comes after it.
            let word = self.word.fetch_and(!MASK, Ordering::Acquire);
            let mask = (word >> MASK_SHIFT) as u16;
            let closing = word & CLOSING != 0;
            let empty = self.list.with_mut(|list| {
                // SAFETY: the lock is held.
                let list = unsafe { &mut *list };
                if mask != 0 || closing {
                    // SAFETY: the lock is held.
                    unsafe { Self::extract(list, &mut batch, |key| closing || ready(key, mask)) };
                }
                list.first.is_null()
            });
            if batch.is_full() {
                // There may be more: let go with the mask put back, so that
                // who locks next, at the latest this thread, goes on with it.
                // Closing stays with this thread alone: did it stay in the
                // word, another holder could finish it, and the lock that is
                // taken below would be a touch after the last.
                let rest = WAITING | u32::from(mask) << MASK_SHIFT;
                // Ordering: Relaxed. The Release below publishes it.
                self.word.fetch_or(rest, Ordering::Relaxed);
                // Ordering: Release: the list, for the next holder.
                let now = self.word.fetch_and(!(LOCKED | CLOSING), Ordering::Release);
                batch.wake();
                // Ordering: Relaxed. The list is acquired above. A closing that was
                // left meanwhile is passed on; what came before it is its caller's
                // to release, in the word that only RMWs change.
                let before = self
                    .word
                    .fetch_or(LOCKED | now & CLOSING, Ordering::Relaxed);
                // Re-check: another holder serves what is left.
                if before & (LOCKED | CLOSED) != 0 {
                    return;
                }
                continue;
            }
            let next = match (closing, empty) {
                (true, _) => CLOSED,
                (false, true) => 0,
                (false, false) => WAITING,
            };
            // Ordering: Release: the list, for the next holder; and all that
            // was done before closing, for who sees CLOSED. Failure Relaxed:
            // the `fetch_and` above reads it again.
            let unlocked = self.word.compare_exchange(
                word & !MASK,
                next,
                Ordering::Release,
                Ordering::Relaxed,
            );
            if unlocked.is_ok() {
                // From here on the queue may be gone.
                batch.wake();
                return;
            }
        }
    }

    /// Moves out the wakers of those who are to be woken.
    ///
    /// # Safety
    ///
    /// With the lock held.
    unsafe fn extract(list: &mut List, batch: &mut Batch, woken: impl Fn(usize) -> bool) {
        let mut next = list.first;
        // SAFETY: what is linked is alive.
        while let Some(waiter) = unsafe { next.as_ref() } {
            if batch.is_full() {
                return;
            }
            // SAFETY: the lock is held, by the contract.
            let key = unsafe {
                waiter.with(|node| {
                    next = node.next;
                    node.key
                })
            };
            if woken(key) {
                // SAFETY: the lock is held, and it is in the list.
                batch.push(unsafe { list.unlink(waiter, State::Woken) });
            }
        }
    }

    fn lock(&self) -> Result<(), Closed> {
        loop {
            // Ordering: Acquire: the list; through a waker's RMW what it
            // published before it found nobody to wake; and as in `is_closed`.
            let before = self.word.fetch_or(LOCKED, Ordering::Acquire);
            // Re-check: closed for good; there the bit means nothing.
            if before & CLOSED != 0 {
                return Err(Closed);
            }
            if before & LOCKED == 0 {
                return Ok(());
            }
            hint::spin_loop();
        }
    }

    /// Waits with `waker` until a wake for which `ready(key, mask)` holds,
    /// unless `ready(key, !0)` holds now or the wake came since the last call.
    ///
    /// Call it again to wait with another waker. After `Ready` the waiter can
    /// be used anew. Waits for the lock: for ordinary callers.
    ///
    /// # Errors
    ///
    /// [`Closed`] when the queue is.
    ///
    /// # Safety
    ///
    /// The waiter is used with this queue only, and [leaves](Self::leave) it
    /// before it is dropped.
    pub unsafe fn enqueue(
        &self,
        waiter: Pin<&Waiter>,
        key: usize,
        waker: &Waker,
        ready: impl Fn(usize, u16) -> bool,
    ) -> Result<Enqueued, Closed> {
        let waiter = waiter.get_ref();
        // Cloned, and the old one dropped, outside the lock: both may be the
        // caller's code.
        let mut waker = Some(waker.clone());
        self.lock()?;
        // Ordering: SeqCst, against the fence in `wake`.
        fence(Ordering::SeqCst);
        // SAFETY: the lock is held.
        let before = unsafe { waiter.with(|node| node.state) };
        let ready_now = before == State::Woken || ready(key, !0);
        let mut stale = None;
        self.list.with_mut(|list| {
            // SAFETY: the lock is held.
            let list = unsafe { &mut *list };
            // Re-check: what came before it was linked woke nobody.
            if ready_now {
                if before == State::Linked {
                    // SAFETY: the lock is held, and it is in the list.
                    stale = unsafe { list.unlink(waiter, State::Idle) };
                } else {
                    // SAFETY: the lock is held.
                    unsafe { waiter.with(|node| node.state = State::Idle) };
                }
                return;
            }
            // SAFETY: the lock is held.
            unsafe {
                waiter.with(|node| {
                    node.key = key;
                    core::mem::swap(&mut node.waker, &mut waker);
                });
            }
            if before != State::Linked {
                // SAFETY: the lock is held; not linked; pinned, and it leaves
                // before it is dropped, by the contract.
                unsafe { list.push(waiter) };
            }
        });
        self.serve_and_unlock(&ready);
        drop((waker, stale));
        Ok(if ready_now {
            Enqueued::Ready
        } else {
            Enqueued::Waiting
        })
    }

    /// Takes the waiter out, if it is in. Afterwards nobody else knows it.
    ///
    /// `ready` as for [`wake`](Self::wake): a wake may have to be served on
    /// the way. Waits for the lock: for ordinary callers.
    ///
    /// # Safety
    ///
    /// The waiter is used with this queue only.
    pub unsafe fn leave(&self, waiter: Pin<&Waiter>, ready: impl Fn(usize, u16) -> bool) -> Left {
        let waiter = waiter.get_ref();
        if self.lock().is_err() {
            return Left::Woken;
        }
        // SAFETY: the lock is held.
        let before = unsafe { waiter.with(|node| node.state) };
        let mut stale = None;
        if before == State::Linked {
            self.list.with_mut(|list| {
                // SAFETY: the lock is held, and the list is ours to change.
                let list = unsafe { &mut *list };
                // SAFETY: the lock is held, and it is in the list.
                stale = unsafe { list.unlink(waiter, State::Idle) };
            });
        } else {
            // SAFETY: the lock is held.
            unsafe { waiter.with(|node| node.state = State::Idle) };
        }
        self.serve_and_unlock(&ready);
        drop(stale);
        match before {
            State::Woken => Left::Woken,
            State::Idle | State::Linked => Left::Unwoken,
        }
    }
}
