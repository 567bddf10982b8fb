//! Wait queues: who waits for what, and who wakes whom.
//!
//! An intrusive list of [`Waiter`]s under a one-bit lock that **a waker never
//! waits for**. Whoever wakes leaves its mask in the queue's word; if the lock
//! was free it now holds it and serves the list, and if not, the holder serves
//! that mask before letting go. Those who enqueue and leave do wait for the
//! lock, which is held for a few loads and stores and never across a waker:
//! they are ordinary callers.
//!
//! ```text
//!  63    32 31         16       6     5     4     3        2         1         0
//! +--------+--------------+-----+-----+-----+-----+--------+---------+---------+--------+
//! | away   | mask, unserved|    | any | all | one | closed | closing | waiting | locked |
//! +--------+--------------+-----+-----+-----+-----+--------+---------+---------+--------+
//! ```
//!
//! # States × operations
//!
//! | word | [`wake`](WaitQueue::wake), [`wake_one`](WaitQueue::wake_one) | [`enqueue`](WaitQueue::enqueue), [`leave`](WaitQueue::leave) | [`close`](WaitQueue::close) |
//! |---|---|---|---|
//! | 0 | returns (nobody waits) | locks | locks, becomes CLOSED |
//! | waiting | locks, serves, unlocks | locks | locks, wakes all, becomes CLOSED |
//! | locked | leaves its mask | waits | leaves `closing` |
//! | CLOSED | returns | `Closed` | returns |
//!
//! # Waiters
//!
//! What a waiter waits for it says itself, by its [`Awaited`], so that whoever holds
//! the lock can judge it. Then its waker is called. A poll request is a waiter that
//! answers for itself: a wake claims it, or makes the waker look at its source (see
//! [`poll`](crate::poll)).
//!
//! ```text
//!           enqueue              a wake that is for it
//!    Idle ---------> Linked --------------------------> Going --> Woken
//!     ^                 | leave                                     |
//!     |                 v                                           |
//!     +------------- Leaving          (leave, enqueue) <------------+
//! ```
//!
//! Its owner takes it out, or a waker does: one of them changes Linked. Who wakes
//! it moves the waker out **under the lock** and stores Woken as its last touch;
//! so its owner may free it once it sees that, without a look at the queue. The
//! waker itself is called with no lock held.
//!
//! A wake judges all who are in the list at that moment in one go, and nobody who
//! comes later: an event is not news to who asks after it. More than can be moved out
//! at once keep a mark that their wake is on its way; who holds the lock next, or the
//! same one when it comes again, goes on with them.
//!
//! *Exclusive* waiters share one wake: [`wake_one`](WaitQueue::wake_one) wakes
//! one of them, and everybody who is not exclusive. One that is woken and leaves
//! all the same passes the wake on. When two wakes meet in the word, what is left
//! there is a wake of all: too many may wake, never too few.
//!
//! # Losing no wake-up
//!
//! The waker publishes what it has to say, then fences, then looks at the word;
//! the one who enqueues locks, then fences, then looks at what is published,
//! and only then links itself. Of two fences one is first: either the waker sees
//! the lock (and leaves its mask), or the other sees what was published.
//!
//! # Closing
//!
//! A holder that has more to wake than it can move out at once lets go to call them,
//! and comes again: it is *away*, and counted in the word.
//!
//! Closing wakes everybody, and its last touch of the queue is the store of
//! CLOSED: who sees CLOSED may free the queue, with no regard to those who were
//! in it: they are out, and do not touch it again. One that was Leaving at that
//! moment, or a holder that is away, still comes for the lock, so closing stays in the
//! word until it does: who comes last closes in place of the closer. New waiters are
//! refused then; while closing waits they are let in, and taken out at the end.

use core::{
    fmt,
    marker::PhantomPinned,
    pin::Pin,
    ptr::{self, NonNull},
    task::Waker,
};

use crate::poll::Wanted;
use crate::sync::{
    atomic::{AtomicU32, AtomicU64, Ordering, fence},
    cell::UnsafeCell,
    const_fn, contain, hint,
};

const LOCKED: u64 = 1;
const WAITING: u64 = 1 << 1;
const CLOSING: u64 = 1 << 2;
const CLOSED: u64 = 1 << 3;
/// A wake was left that is for one exclusive waiter.
const ONE: u64 = 1 << 4;
/// A wake was left that is for all.
const ALL: u64 = 1 << 5;
/// A wake was left that does not say what happened.
const ANY: u64 = 1 << 6;
const MASK_SHIFT: u32 = 16;
const MASK: u64 = 0xffff << MASK_SHIFT;
/// What wakers leave in the word.
const LEFT: u64 = ONE | ALL | ANY | MASK;
/// One who has let go of the lock to call wakers, and comes again.
const AWAY: u64 = 1 << 32;
const AWAYS: u64 = !(AWAY - 1);

/// For how many the lock is held at a time.
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

/// What a waiter waits for.
pub trait Awaited {
    /// Whether it need not wait any longer, when a wake with `mask` comes. Zero says
    /// that anything may have happened, or nothing: look.
    ///
    /// Called under the queue's lock, by whoever holds that: short, without locks,
    /// and it must not panic: the queue would stay locked, and wake nobody any more.
    fn holds(&self, mask: u16) -> bool;
}

impl<F: Fn(u16) -> bool> Awaited for F {
    fn holds(&self, mask: u16) -> bool {
        self(mask)
    }
}

/// Nothing but the closing of the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Never;

impl Awaited for Never {
    fn holds(&self, _: u16) -> bool {
        false
    }
}

/// Whom a waiter stands for: a task that waits for what is [`Awaited`], or what
/// answers for itself.
pub(crate) trait Asked {
    /// What a wake with this mask means: zero for one that does not say, none for
    /// closing, which takes it out whatever it answers.
    ///
    /// # Safety
    ///
    /// Under the queue's lock, of one that is linked.
    unsafe fn asked(&self, mask: Option<u16>) -> Answer;

    /// Whom to call, if it is no task.
    fn hook(&self) -> Option<NonNull<Hook>>;
}

impl<A: Awaited> Asked for A {
    unsafe fn asked(&self, mask: Option<u16>) -> Answer {
        match mask.is_some_and(|mask| self.holds(mask)) {
            true => Answer::Woken,
            false => Answer::Stay,
        }
    }

    fn hook(&self) -> Option<NonNull<Hook>> {
        None
    }
}

/// What a wake means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing.
    Stay,
    /// Its hook is called, and it stays in the list.
    Look,
    /// Its waker or its hook is called, and it is out of the list.
    Woken,
    /// It does not wait any more: out of the list.
    Gone,
}

/// How to call what is no task, with no lock held, once for each [`Answer::Look`] or
/// [`Answer::Woken`]. Until then it does not go away.
pub(crate) struct Hook {
    /// The next to be called. Of who was answered so.
    next: UnsafeCell<*const Hook>,
    call: UnsafeCell<Call>,
}

/// Whom a [`Hook`] calls, and about what.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) owner: *const Owner,
    pub(crate) index: u32,
    pub(crate) wanted: Wanted,
}

impl Call {
    const NOBODY: Self = Self {
        owner: ptr::null(),
        index: 0,
        wanted: Wanted::Events(0),
    };
}

/// The part of a hook's owner that says how it is called.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Owner(pub(crate) unsafe fn(Call));

impl Hook {
    const_fn! {
        pub(crate) const fn new() -> Self {
            Self { next: UnsafeCell::new(ptr::null()), call: UnsafeCell::new(Call::NOBODY) }
        }
    }

    /// # Safety
    ///
    /// Nobody else knows it: it is not linked.
    pub(crate) unsafe fn set(&self, call: Call) {
        self.call.with_mut(|place| {
            // SAFETY: the caller's alone, by the contract.
            unsafe { *place = call }
        });
    }

    /// # Safety
    ///
    /// It is not [set](Self::set) meanwhile.
    pub(crate) unsafe fn call(&self) -> Call {
        self.call.with(|call| {
            // SAFETY: nobody writes it, by the contract.
            unsafe { *call }
        })
    }
}

/// Hooks on their way out of the lock, in the order of the list.
struct Calls {
    first: *const Hook,
    last: *const Hook,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            first: ptr::null(),
            last: ptr::null(),
        }
    }
}

impl Calls {
    /// # Safety
    ///
    /// It is to be called, and was not yet.
    unsafe fn push(&mut self, hook: *const Hook) {
        // SAFETY: it does not go away before it was called.
        unsafe { &*hook }.next.with_mut(|next| {
            // SAFETY: it is in no other hands.
            unsafe { *next = ptr::null() }
        });
        // SAFETY: as above; not called yet.
        match unsafe { self.last.as_ref() } {
            None => self.first = hook,
            // SAFETY: in our hands alone.
            Some(last) => last.next.with_mut(|next| unsafe { *next = hook }),
        }
        self.last = hook;
    }

    fn run(&mut self) {
        let mut hook = core::mem::take(self).first;
        // SAFETY: it does not go away before it was called.
        while let Some(called) = unsafe { hook.as_ref() } {
            // SAFETY: in our hands alone.
            hook = called.next.with(|next| unsafe { *next });
            // SAFETY: set before it was linked.
            let call = unsafe { called.call() };
            // SAFETY: the owner is there while who is called has not gone away.
            let Owner(how) = unsafe { *call.owner };
            // SAFETY: answered Look or Woken, and no lock is held.
            unsafe { how(call) };
        }
    }
}

const IDLE: u32 = 0;
const LINKED: u32 = 1;
const GOING: u32 = 2;
const WOKEN: u32 = 3;
const LEAVING: u32 = 4;

/// The part of a waiter that its queue's lock protects while it is linked.
struct Node {
    next: *const Waiter,
    previous: *const Waiter,
    /// Whom it stands for; and, of a task, whom to wake.
    whom: Option<Whom>,
    waker: Option<Waker>,
}

type Whom = NonNull<dyn Asked>;

/// Whether a waiter is one of those who share a wake; whether one is on its way to it,
/// and which, to be passed on. Protected as the node is.
#[derive(Clone, Copy)]
struct Share {
    /// Of the three below. A byte, for many wait.
    flags: u8,
    mask: u16,
}

const EXCLUSIVE: u8 = 1;
const MARKED: u8 = 1 << 1;
/// The wake does not say what happened.
const ANYTHING: u8 = 1 << 2;

impl Share {
    const fn is(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A place in a [`WaitQueue`]; belongs to who waits, and to one queue only.
///
/// Must have [left](WaitQueue::leave) its queue before it is dropped.
pub struct Waiter {
    state: AtomicU32,
    share: UnsafeCell<Share>,
    node: UnsafeCell<Node>,
    /// A waiter in a list must stay where it is.
    _pinned: PhantomPinned,
}

// SAFETY: the node is only accessed under the queue's lock or by its owner once it
// is out; the waker in it is Send, and the pointers lead to waiters of the same kind
// and to what is Sync.
unsafe impl Send for Waiter {}
// SAFETY: as for Send.
unsafe impl Sync for Waiter {}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter").finish_non_exhaustive()
    }
}

impl Waiter {
    const_fn! {
        /// A waiter in no queue, woken whoever else is.
        pub const fn new() -> Self {
            Self::of(false)
        }
    }

    const_fn! {
        /// A waiter in no queue, one of those of which one wake wakes one.
        pub const fn exclusive() -> Self {
            Self::of(true)
        }
    }

    const_fn! {
        const fn of(exclusive: bool) -> Self {
            Self {
                state: AtomicU32::new(IDLE),
                share: UnsafeCell::new(Share { flags: if exclusive { EXCLUSIVE } else { 0 }, mask: 0 }),
                node: UnsafeCell::new(Node {
                    next: ptr::null(),
                    previous: ptr::null(),
                    whom: None,
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
    /// The caller holds the lock of the queue that the waiter is linked into, or
    /// owns it and it is not; and `f` reaches no other access to the same node.
    unsafe fn with<R>(&self, f: impl FnOnce(&mut Node) -> R) -> R {
        self.node.with_mut(|node| {
            // SAFETY: the access is exclusive, by the contract.
            f(unsafe { &mut *node })
        })
    }

    /// # Safety
    ///
    /// As of [`with`](Self::with).
    unsafe fn share(&self) -> Share {
        self.share.with(|share| {
            // SAFETY: nobody writes it, by the contract.
            unsafe { *share }
        })
    }

    /// A wake is on its way to it, or none any more.
    ///
    /// # Safety
    ///
    /// As of [`with`](Self::with).
    unsafe fn mark(&self, wake: Option<Served>) {
        self.share.with_mut(|share| {
            // SAFETY: the access is exclusive, by the contract.
            let share = unsafe { &mut *share };
            let marked = if wake.is_some() { MARKED } else { 0 };
            // Closing is nothing to be passed on.
            let wake = wake.filter(|wake| !wake.closing);
            let anything = if wake.is_some_and(|wake| wake.any) {
                ANYTHING
            } else {
                0
            };
            share.flags = share.flags & EXCLUSIVE | marked | anything;
            share.mask = wake.map_or(0, |wake| wake.mask);
        });
    }

    /// Under the lock: it is to be taken out by the caller, and not by its owner.
    fn goes(&self) -> bool {
        // Ordering: Relaxed. The lock orders what is in the node.
        let went =
            (self.state).compare_exchange(LINKED, GOING, Ordering::Relaxed, Ordering::Relaxed);
        went.is_ok()
    }
}

impl Default for Waiter {
    fn default() -> Self {
        Self::new()
    }
}

/// First and last of the list, and how many in it are marked as woken.
#[derive(Debug)]
struct List {
    first: *const Waiter,
    last: *const Waiter,
    marked: usize,
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
            });
        }
        // SAFETY: what is linked is alive: it is unlinked first.
        match unsafe { last.as_ref() } {
            None => self.first = waiter,
            // SAFETY: under the lock; another node than the one above.
            Some(last) => unsafe { last.with(|node| node.next = waiter) },
        }
        self.last = waiter;
    }

    /// # Safety
    ///
    /// Under the lock.
    unsafe fn has_leaving(&self) -> bool {
        let mut next = self.first;
        // SAFETY: what is linked is alive.
        while let Some(waiter) = unsafe { next.as_ref() } {
            // Ordering: Relaxed. Later is early enough: `goes` decides.
            if waiter.state.load(Ordering::Relaxed) == LEAVING {
                return true;
            }
            // SAFETY: under the lock, by the contract.
            next = unsafe { waiter.with(|node| node.next) };
        }
        false
    }

    /// # Safety
    ///
    /// Under the lock; `waiter` is in the list.
    unsafe fn unlink(&mut self, waiter: &Waiter) -> Option<Waker> {
        // SAFETY: under the lock, by the contract.
        self.marked -= usize::from(unsafe { waiter.share() }.is(MARKED));
        // SAFETY: under the lock, by the contract.
        let (next, previous, waker) =
            unsafe { waiter.with(|node| (node.next, node.previous, node.waker.take())) };
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

    /// Asks all who wait what a wake means to them; marks who is woken, and notes who
    /// is to be called for it.
    ///
    /// # Safety
    ///
    /// Under the lock.
    unsafe fn judge(&mut self, hooks: &mut Calls, served: Served) {
        let mut one_went = false;
        let mut next = self.first;
        // SAFETY: what is linked is alive.
        while let Some(waiter) = unsafe { next.as_ref() } {
            // SAFETY: under the lock, by the contract.
            let whom = unsafe {
                waiter.with(|node| {
                    next = node.next;
                    node.whom
                })
            };
            // SAFETY: under the lock, by the contract.
            let share = unsafe { waiter.share() };
            let shares = served.one && share.is(EXCLUSIVE);
            let passed_over = share.is(MARKED) || one_went && shares && !served.closing;
            let Some(whom) = whom.filter(|_| !passed_over) else {
                continue;
            };
            // SAFETY: under the lock, and it is linked.
            let answer = unsafe { served.ask(whom) };
            if matches!(answer, Answer::Look | Answer::Woken) {
                // SAFETY: what is linked is there.
                if let Some(hook) = unsafe { whom.as_ref() }.hook() {
                    // SAFETY: it answered so.
                    unsafe { hooks.push(hook.as_ptr()) };
                }
            }
            if matches!(answer, Answer::Woken | Answer::Gone) || served.closing {
                // SAFETY: under the lock.
                unsafe { waiter.mark(Some(served)) };
                self.marked += 1;
                one_went |= shares && answer == Answer::Woken;
            }
        }
    }

    /// Takes out who is marked, as many as the batch holds.
    ///
    /// # Safety
    ///
    /// Under the lock.
    unsafe fn take_marked(&mut self, batch: &mut Batch) {
        let mut next = self.first;
        while self.marked > 0 && !batch.is_full() {
            // SAFETY: what is linked is alive.
            let Some(waiter) = (unsafe { next.as_ref() }) else {
                return;
            };
            // SAFETY: under the lock, by the contract.
            next = unsafe { waiter.with(|node| node.next) };
            // SAFETY: under the lock, by the contract.
            let marked = unsafe { waiter.share() }.is(MARKED);
            // Who is leaving takes itself out.
            if marked && waiter.goes() {
                // SAFETY: under the lock, it is in the list, and it goes.
                let waker = unsafe { self.woken(waiter) };
                // The waiter may be gone.
                if let Some(waker) = waker {
                    batch.push(waker);
                }
            }
        }
    }

    /// Takes out a waiter that [`goes`](Waiter::goes). Its owner may free it from
    /// now on.
    ///
    /// # Safety
    ///
    /// As [`unlink`](Self::unlink).
    unsafe fn woken(&mut self, waiter: &Waiter) -> Option<Waker> {
        // SAFETY: the same contract.
        let waker = unsafe { self.unlink(waiter) };
        // Ordering: Release pairs with the Acquire in `leave` and `enqueue`: this
        // is the last touch.
        waiter.state.store(WOKEN, Ordering::Release);
        waker
    }
}

/// Who is to be called once the lock is let go.
#[derive(Default)]
struct Batch {
    wakers: [Option<Waker>; BATCH],
    len: usize,
    hooks: Calls,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.len == BATCH
    }

    fn push(&mut self, waker: Waker) {
        self.wakers[self.len] = Some(waker);
        self.len += 1;
    }

    fn run(&mut self) {
        for waker in &mut self.wakers[..core::mem::take(&mut self.len)] {
            if let Some(waker) = waker.take() {
                // A waker's panic is its own: there are others to wake.
                contain(|| waker.wake());
            }
        }
        self.hooks.run();
    }
}

/// What the holder of the lock found left in the word.
#[derive(Clone, Copy)]
struct Served {
    mask: u16,
    any: bool,
    /// For one of the exclusive waiters.
    one: bool,
    closing: bool,
}

impl Served {
    const fn of(word: u64) -> Self {
        Self {
            mask: (word >> MASK_SHIFT) as u16,
            any: word & ANY != 0,
            one: word & (ONE | ALL) == ONE,
            closing: word & CLOSING != 0,
        }
    }

    /// # Safety
    ///
    /// Under the lock; `whom` is linked.
    unsafe fn ask(self, whom: Whom) -> Answer {
        // SAFETY: by the contract of `enqueue`, what is linked is there.
        let whom = unsafe { whom.as_ref() };
        // What fired before it was closed comes first.
        let masks = [
            (self.mask != 0, Some(self.mask)),
            (self.any, Some(0)),
            (self.closing, None),
        ];
        let mut first = Answer::Stay;
        for (left, mask) in masks {
            // Closing is told in any case: who looks is not linked any more.
            if left && (first == Answer::Stay || mask.is_none()) {
                // SAFETY: the lock is held.
                let answer = unsafe { whom.asked(mask) };
                if first == Answer::Stay {
                    first = answer;
                }
            }
        }
        first
    }
}

/// A queue of waiters. See the [module](self).
///
/// ```
/// # uaio_core::sync::thread::model(|| {
/// use std::{pin::pin, task::Waker};
/// use uaio_core::wait::{Awaited, Enqueued, Left, WaitQueue, Waiter};
///
/// /// Any of some events, none of which has fired before.
/// struct AnyOf(u16);
///
/// impl Awaited for AnyOf {
///     fn holds(&self, mask: u16) -> bool {
///         self.0 & mask != 0
///     }
/// }
///
/// let queue = WaitQueue::new();
/// let waiter = pin!(Waiter::new());
/// let waiter = waiter.as_ref();
///
/// // SAFETY: one queue, and the waiter leaves it below.
/// let enqueued = unsafe { queue.enqueue(waiter, Waker::noop(), &AnyOf(3)) };
/// assert_eq!(enqueued, Ok(Enqueued::Waiting));
/// queue.wake(1);
/// // SAFETY: the same queue.
/// assert_eq!(unsafe { queue.leave(waiter) }, Left::Woken);
/// # });
/// ```
pub struct WaitQueue {
    word: AtomicU64,
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
                word: AtomicU64::new(0),
                list: UnsafeCell::new(List { first: ptr::null(), last: ptr::null(), marked: 0 }),
            }
        }
    }

    /// Whether the queue is closed: then nobody touches it any more.
    pub fn is_closed(&self) -> bool {
        // Ordering: Acquire pairs with the Release that stores CLOSED: all that
        // was done before closing is done.
        self.word.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Wakes the waiters that wait for `mask`, if there are any.
    ///
    /// What there is to see must be published before the call. Lock-free, never
    /// waits for a lock, callable from any context; wakers are called with no
    /// lock held. A mask of zero says that anything may have happened, or nothing:
    /// the waiters, or on behalf of requests the caller, look for themselves.
    #[inline]
    pub fn wake(&self, mask: u16) {
        // Ordering: SeqCst, against the fence in `enqueue`: what was published
        // before this call is seen there, or the word there is seen here.
        fence(Ordering::SeqCst);
        // Ordering: Relaxed. The fence does it.
        if self.word.load(Ordering::Relaxed) & !CLOSED == 0 {
            return;
        }
        self.wake_now(mask);
    }

    /// As [`wake`](Self::wake), but of the exclusive waiters at most one, the one
    /// that waits for the longest.
    pub fn wake_one(&self, mask: u16) {
        // Ordering: SeqCst, as in `wake`.
        fence(Ordering::SeqCst);
        // Ordering: Relaxed. The fence does it.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & !CLOSED == 0 {
                return;
            }
            let mut next = word | LOCKED | ONE | left(mask);
            // Re-check: two wakes that meet are one of all.
            if word & LEFT != 0 {
                next |= ALL;
            }
            // Ordering: Relaxed, as in `wake_now`.
            match self
                .word
                .compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        if word & (LOCKED | CLOSED) == 0 {
            self.serve_and_unlock();
        }
    }

    /// The rest of [`wake`](Self::wake), when somebody waits or holds the lock.
    #[cold]
    fn wake_now(&self, mask: u16) {
        let bits = LOCKED | ALL | left(mask);
        // Ordering: Relaxed. What this caller published the fence in `wake` releases,
        // for a holder; the list `serve_and_unlock` acquires.
        let before = self.word.fetch_or(bits, Ordering::Relaxed);
        // Closed meanwhile: what was left in the word changes nothing there.
        if before & (LOCKED | CLOSED) == 0 {
            self.serve_and_unlock();
        }
    }

    /// Wakes everybody, for good. Callable from any context; the last touch of
    /// the queue is the store that makes [`is_closed`](Self::is_closed) true, by
    /// the caller or by who was leaving meanwhile.
    ///
    /// Tasks are woken; polls complete with ERR and HUP, attempts with EBADF. Once it is closed
    /// no waiter touches it any more, and who learned of that may call nothing
    /// else. A [`wake`](Self::wake) or [`enqueue`](Self::enqueue) that begins may run
    /// meanwhile, but it still touches the queue: who frees it waits for its wakers,
    /// and for who may still come to wait, by other means.
    pub fn close(&self) {
        // Ordering: Release: if it is locked, what came before closing, for the
        // holder. The list `serve_and_unlock` acquires.
        let before = self.word.fetch_or(LOCKED | CLOSING, Ordering::Release);
        if before & (LOCKED | CLOSED) == 0 {
            self.serve_and_unlock();
        }
    }

    /// Opens it again.
    ///
    /// # Safety
    ///
    /// It is closed, and nobody else uses it.
    pub(crate) unsafe fn reopen(&self) {
        debug_assert!(self.is_closed());
        // Ordering: Relaxed. The caller publishes it.
        self.word.store(0, Ordering::Relaxed);
    }

    /// With the lock held: serves what was left in the word, then lets go.
    fn serve_and_unlock(&self) {
        let mut batch = Batch::default();
        loop {
            // Ordering: Acquire pairs with the Release of the last holder, for the
            // list, and of whoever left a mask: what it published is seen by the
            // waiters' tests. Whichever RMW took the lock, this one comes after it.
            let word = self.word.fetch_and(!LEFT, Ordering::Acquire);
            let empty = self.list.with_mut(|list| {
                // SAFETY: the lock is held.
                let list = unsafe { &mut *list };
                if word & (LEFT | CLOSING) != 0 {
                    let mut served = Served::of(word);
                    // SAFETY: the lock is held.
                    let leaving = served.closing && unsafe { list.has_leaving() };
                    // Re-check: who comes for the lock again closes.
                    if leaving || word & AWAYS != 0 {
                        served.closing = false;
                    }
                    // SAFETY: the lock is held.
                    unsafe { list.judge(&mut batch.hooks, served) };
                }
                // SAFETY: the lock is held.
                unsafe { list.take_marked(&mut batch) };
                list.first.is_null()
            });
            let full = batch.is_full();
            let held = word & !LEFT;
            let next = match (word & CLOSING != 0, empty) {
                // There may be more: let go, and come again. Nobody closes while we
                // are away; and who wakes meanwhile sees that, and locks.
                _ if full => held + AWAY - LOCKED,
                (true, true) if word & AWAYS == 0 => CLOSED,
                // Who is leaving or away comes for the lock, and closes.
                (true, _) => CLOSING | WAITING | word & AWAYS,
                (false, true) => word & AWAYS,
                (false, false) => WAITING | word & AWAYS,
            };
            // Ordering: Release: the list, for the next holder; and all that
            // was done before closing, for who sees CLOSED. Failure Relaxed:
            // the `fetch_and` above reads it again.
            let unlocked =
                (self.word).compare_exchange(held, next, Ordering::Release, Ordering::Relaxed);
            if unlocked.is_ok() {
                // From here on the queue may be gone, unless we are away.
                batch.run();
                if !full || !self.come_back() {
                    return;
                }
            }
        }
    }

    /// Locks again after having been away, unless somebody else holds the lock, who
    /// then serves what is left, and closes if that was to wait for us.
    fn come_back(&self) -> bool {
        // Ordering: Relaxed. The compare-and-swap decides.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let locked = word & LOCKED != 0;
            // Ordering: Release: if it is the last touch, for who closes. The list
            // `serve_and_unlock` acquires.
            match self.word.compare_exchange_weak(
                word,
                (word - AWAY) | LOCKED,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return !locked,
                Err(now) => word = now,
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

    /// Waits with `waker` until a wake for which `awaited` holds, unless it holds
    /// now or the wake came since the last call.
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
    /// before it is dropped, and before `awaited` is, which is Sync if the queue is
    /// used by more than one thread.
    pub unsafe fn enqueue<A: Awaited>(
        &self,
        waiter: Pin<&Waiter>,
        waker: &Waker,
        awaited: &A,
    ) -> Result<Enqueued, Closed> {
        // Cloned, and the old one dropped, outside the lock: both may be the
        // caller's code.
        let waker = Some(waker.clone());
        // SAFETY: the same contract.
        unsafe { self.link(waiter.get_ref(), awaited, waker, || awaited.holds(0)) }
    }

    /// As [`enqueue`](Self::enqueue), for who is woken by any wake, and looks itself
    /// whether it was for it: it is asked here, and by nobody else.
    ///
    /// # Safety
    ///
    /// As there, of the waiter.
    pub(crate) unsafe fn enqueue_for_any(
        &self,
        waiter: Pin<&Waiter>,
        waker: &Waker,
        ready: impl Fn() -> bool,
    ) -> Result<Enqueued, Closed> {
        struct Any;
        impl Awaited for Any {
            fn holds(&self, _: u16) -> bool {
                true
            }
        }
        let waker = Some(waker.clone());
        // SAFETY: the same contract.
        unsafe { self.link(waiter.get_ref(), &Any, waker, ready) }
    }

    /// As [`enqueue`](Self::enqueue), for who answers for itself, and looks whether
    /// it has to wait after this, not before.
    ///
    /// # Safety
    ///
    /// As there, of `asked`.
    pub(crate) unsafe fn enqueue_hook(
        &self,
        waiter: Pin<&Waiter>,
        asked: &dyn Asked,
    ) -> Result<(), Closed> {
        // SAFETY: the same contract.
        unsafe { self.link(waiter.get_ref(), asked, None, || false) }.map(|_| ())
    }

    /// # Safety
    ///
    /// As [`enqueue`](Self::enqueue).
    unsafe fn link(
        &self,
        waiter: &Waiter,
        whom: &(dyn Asked + '_),
        mut waker: Option<Waker>,
        ready: impl Fn() -> bool,
    ) -> Result<Enqueued, Closed> {
        // SAFETY: another lifetime only; the waiter leaves within the real one, by
        // the contract.
        let whom = unsafe { core::mem::transmute::<NonNull<dyn Asked + '_>, Whom>(whom.into()) };
        self.lock()?;
        // Ordering: SeqCst, against the fence in `wake`.
        fence(Ordering::SeqCst);
        // Ordering: Relaxed. Changed by its owner, or under the lock.
        let before = waiter.state.load(Ordering::Relaxed);
        let ready = before == WOKEN || ready();
        let ready = self.list.with_mut(|list| {
            // SAFETY: the lock is held.
            let list = unsafe { &mut *list };
            // SAFETY: the lock is held.
            let marked = before == LINKED && unsafe { waiter.share() }.is(MARKED);
            // Re-check: what came before it was linked woke nobody.
            if ready || marked {
                if before == LINKED {
                    // SAFETY: the lock is held, and it is in the list.
                    waker = unsafe { list.unlink(waiter) };
                }
                // Ordering: Relaxed. Its owner's.
                waiter.state.store(IDLE, Ordering::Relaxed);
                return true;
            }
            // SAFETY: the lock is held.
            unsafe {
                waiter.with(|node| {
                    node.whom = Some(whom);
                    core::mem::swap(&mut node.waker, &mut waker);
                });
            }
            if before != LINKED {
                // SAFETY: the lock is held.
                unsafe { waiter.mark(None) };
                // SAFETY: the lock is held; not linked; pinned, and it leaves
                // before it is dropped, by the contract.
                unsafe { list.push(waiter) };
                // Ordering: Relaxed. Others look at it under the lock.
                waiter.state.store(LINKED, Ordering::Relaxed);
            }
            false
        });
        self.serve_and_unlock();
        drop(waker);
        Ok(if ready {
            Enqueued::Ready
        } else {
            Enqueued::Waiting
        })
    }

    /// Takes the waiter out, if it is in. Afterwards nobody else knows it. An
    /// exclusive one that was woken passes the wake on.
    ///
    /// Waits for the lock, unless it was woken: for ordinary callers. One that closing
    /// took out need not leave.
    ///
    /// # Safety
    ///
    /// The waiter is used with this queue only.
    pub unsafe fn leave(&self, waiter: Pin<&Waiter>) -> Left {
        // SAFETY: the same contract, and the queue is there.
        let left = unsafe { Self::leave_from(self, waiter) };
        if left == Left::Woken {
            // SAFETY: out of the list, and its owner's.
            let share = unsafe { waiter.share() };
            if share.is(EXCLUSIVE) && share.mask != 0 {
                self.wake_one(share.mask);
            }
            if share.is(EXCLUSIVE) && share.is(ANYTHING) {
                self.wake_one(0);
            }
        }
        left
    }

    /// As [`leave`](Self::leave), also when the queue may be gone: it is only touched
    /// by who is still in it. Passes no wake on.
    ///
    /// # Safety
    ///
    /// The waiter is used with this queue only, which is there unless it is closed.
    pub unsafe fn leave_from(queue: *const Self, waiter: Pin<&Waiter>) -> Left {
        let waiter = waiter.get_ref();
        loop {
            // Ordering: Relaxed. The lock orders it. Failure Acquire pairs with the
            // Release in `List::woken`: nobody touches it any more.
            let leaves = waiter.state.compare_exchange(
                LINKED,
                LEAVING,
                Ordering::Relaxed,
                Ordering::Acquire,
            );
            match leaves {
                Ok(_) => break,
                // Woken right now: under the lock, so soon over.
                Err(GOING) => hint::spin_loop(),
                Err(before) => {
                    // Ordering: Relaxed. Its owner's.
                    waiter.state.store(IDLE, Ordering::Relaxed);
                    return match before {
                        WOKEN => Left::Woken,
                        _ => Left::Unwoken,
                    };
                }
            }
        }
        // SAFETY: closing waits for who is leaving: the queue is there.
        let queue = unsafe { &*queue };
        let locked = queue.lock();
        debug_assert_eq!(locked, Ok(()), "closed with somebody in it");
        let (waker, marked) = queue.list.with_mut(|list| {
            // SAFETY: the lock is held.
            let list = unsafe { &mut *list };
            // SAFETY: the lock is held.
            let marked = unsafe { waiter.share() }.is(MARKED);
            // SAFETY: the lock is held, and it is in the list.
            (unsafe { list.unlink(waiter) }, marked)
        });
        // Ordering: Relaxed. Its owner's.
        waiter.state.store(IDLE, Ordering::Relaxed);
        queue.serve_and_unlock();
        if !marked {
            drop(waker);
            return Left::Unwoken;
        }
        // Whose wake has come is called, whoever takes it out.
        if let Some(waker) = waker {
            contain(|| waker.wake());
        }
        Left::Woken
    }
}

/// What a wake leaves in the word.
const fn left(mask: u16) -> u64 {
    if mask == 0 {
        ANY
    } else {
        (mask as u64) << MASK_SHIFT
    }
}
