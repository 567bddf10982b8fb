//! Poll requests: complete when something is ready.
//!
//! A source says two things about itself, and neither blocks: whom to wait on, its
//! [heads](Source::heads), which are [wait queues](crate::wait); and what is ready
//! [now](Source::mask). A poll request waits on all heads at once. It is one-shot:
//! its completion carries the events, in the same ring as all others.
//!
//! A request may also wait for what it can do itself, say read: its look is the
//! [attempt](Source::attempt), a wake for its events makes the waker try, and the
//! completion carries the result. All else is the same.
//!
//! ```text
//!          Context::poll                       arm
//!  fill ------------------> Early, linked ------------> Armed, linked
//!    | too many heads,        |   ^  look at the mask     |   |
//!    | or none and not ready  |   +-----------------------+   | a wake with one of
//!    v                        |     a wake that does not say  | the events; cancel,
//!  refused                    v     what: the waker looks     v expiry, the end
//!                          Claimed, linked <------------------+
//!                             | the completion is delivered, then reaped
//!                             v
//!                          unlinked, free
//! ```
//!
//! # Who does what
//!
//! | who | does | with which locks |
//! |---|---|---|
//! | submitter | links into each head, then looks, then arms | one head's at a time |
//! | waker | under its head's lock: claims, or takes the request back to Early | its head's, held for one compare-and-swap |
//! | the same, after the lock | delivers; or looks (tries), and arms | none |
//! | canceller, clock | claims, delivers | none |
//! | reaper | unlinks from all heads, then gives the slot back | one head's at a time |
//!
//! So a waker, which comes from any context, waits for no lock, and who delivers
//! holds none: two requests that complete into each other's sources do not
//! deadlock. A claimed request that is still linked to another head costs that head
//! one failed compare-and-swap. It is linked until it is reaped.
//!
//! # Losing nothing
//!
//! *Between the look and the arming* a wake is recorded in the request's word, which
//! is Early, and [`arm`](crate::request::Word::arm) finds it. The same holds while a
//! waker looks: it took the request back to Early. So there is one look, one
//! arming, and a request that waits never leaves its heads: no gap in which a wake
//! finds nobody.
//!
//! *Before the link* a wake found nobody to tell; then the look, which comes after
//! the link and a fence, sees what there was to see. (The wait queue's argument.)
//!
//! *Between two heads* each wake with events is one compare-and-swap that adds them
//! to the word: the claim carries all that came before it.
//!
//! # The life of a head
//!
//! The source is the request's payload, which stays in the slot until the request is
//! unlinked. So a head that the payload keeps alive, say by an `Arc`, is there while
//! it is needed, and nothing has to be reclaimed later: no epochs. A source that goes
//! away under its pollers [closes](WaitQueue::close) its heads instead, which tells
//! each request ERR and HUP and unlinks it, and frees them once they are
//! [closed](WaitQueue::is_closed). A reaper that was leaving at that moment is waited
//! for: the head is closed by whoever is last.

use core::{
    fmt,
    marker::PhantomPinned,
    mem,
    pin::Pin,
    ptr::{self, NonNull},
};

use crate::{
    context::{Armed, Claim, Context, Early, Handle, Request},
    error::Errno,
    request::{Phase, Recheck, Wake},
    ring::RingMemory,
    slots::{Slot, SlotMemory},
    sync::{cell::UnsafeCell, const_fn, contain},
    wait::{Answer, Asked, Call, Hook, Owner, WaitQueue, Waiter},
};

/// Events, with the numbers of Linux's `poll`.
pub mod event {
    /// There is something to read.
    pub const IN: u16 = 0x001;
    /// Something urgent or exceptional.
    pub const PRI: u16 = 0x002;
    /// Writing will not block.
    pub const OUT: u16 = 0x004;
    /// An error. Always waited for.
    pub const ERR: u16 = 0x008;
    /// The other side, or the source itself, is gone. Always waited for.
    pub const HUP: u16 = 0x010;
    /// As [`IN`], of ordinary data.
    pub const RDNORM: u16 = 0x040;
    /// As [`IN`], of data that has precedence.
    pub const RDBAND: u16 = 0x080;
    /// As [`OUT`], of ordinary data.
    pub const WRNORM: u16 = 0x100;
    /// As [`OUT`], of data that has precedence.
    pub const WRBAND: u16 = 0x200;
    /// The other side will write no more.
    pub const RDHUP: u16 = 0x2000;
}

/// What every poll request waits for.
const ALWAYS: u16 = event::ERR | event::HUP;

/// Something that can be polled.
///
/// ```
/// # uaio_core::sync::thread::model(|| {
/// use std::sync::Arc;
/// use uaio_core::{
///     Context,
///     poll::{Heads, Source, event},
///     ring,
///     slots::{self, Iocb},
///     sync::atomic::{AtomicU32, Ordering},
///     wait::WaitQueue,
/// };
///
/// /// Readable while its count is not zero.
/// #[derive(Debug)]
/// struct Counter(AtomicU32, WaitQueue);
///
/// impl Counter {
///     fn add(&self, n: u32) {
///         // Ordering: Relaxed. The queue orders it.
///         self.0.fetch_add(n, Ordering::Relaxed);
///         self.1.wake(event::IN);
///     }
/// }
///
/// // SAFETY: the queue is in the counter.
/// unsafe impl Source for Counter {
///     fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
///         visit(&self.1);
///     }
///     fn mask(&self) -> u16 {
///         // Ordering: Relaxed. The queue orders it.
///         if self.0.load(Ordering::Relaxed) > 0 { event::IN } else { 0 }
///     }
/// }
///
/// let counter = Arc::new(Counter(AtomicU32::new(0), WaitQueue::new()));
/// let slots = slots::Boxed::<_, Heads<1>>::new(4).unwrap();
/// let context = Context::new(ring::Boxed::native(4).unwrap(), slots).unwrap();
/// let context = Box::pin(context);
///
/// let request = context.reserve_one().unwrap().fill(Iocb::default(), Arc::clone(&counter));
/// context.as_ref().poll(request, event::IN).unwrap();
/// let mut out = [None];
/// assert_eq!(context.reap(&mut out), Ok(0));
///
/// counter.add(1);
/// assert_eq!(context.reap(&mut out), Ok(1));
/// assert_eq!(out[0].take().unwrap().event.res, i64::from(event::IN));
/// # });
/// ```
///
/// # Safety
///
/// Each head is there until the source is dropped, or until the head
/// [is closed](WaitQueue::is_closed) and no [`Context::poll`] of the source runs or
/// will; it does not move meanwhile. `heads` visits the same ones on each call, and
/// `attempt` leaves them as they are, and has none in its own value. What closes a head
/// keeps the memory until its wakers are done, too.
pub unsafe trait Source {
    /// Calls `visit` with each queue that is woken when the mask changes.
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue));

    /// What is ready now, of [`event`]. Does not block, and wakes nobody: it is called
    /// in whatever context a head is woken, with no lock held.
    fn mask(&self) -> u16;

    /// Of a request that is [tried](Context::attempt): does what it is for if that can
    /// be done now, and gives the completion's `res`; `None` if it would block. Does not
    /// block, and wakes nobody it could not wake from where its heads are woken, with
    /// no lock held.
    ///
    /// Unless it is implemented, the request completes with EOPNOTSUPP.
    fn attempt(&mut self) -> Option<i64> {
        Some(Errno::EOPNOTSUPP.as_result())
    }
}

macro_rules! forward {
    ($owner:ty, $($bounds:tt)*) => {
        // SAFETY: the same heads; they stay while the owner has the source.
        unsafe impl<$($bounds)*> Source for $owner {
            fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
                (**self).heads(visit);
            }
            fn mask(&self) -> u16 {
                (**self).mask()
            }
        }
    };
}
forward!(&T, T: Source + ?Sized);
forward!(Pin<&T>, T: Source + ?Sized);
#[cfg(feature = "alloc")]
forward!(alloc::sync::Arc<T>, T: Source + ?Sized);
#[cfg(feature = "alloc")]
forward!(Pin<alloc::sync::Arc<T>>, T: Source + ?Sized);
#[cfg(feature = "alloc")]
forward!(Pin<alloc::boxed::Box<T>>, T: Source + ?Sized);

#[cfg(feature = "alloc")]
// SAFETY: as above.
unsafe impl<T: Source + ?Sized> Source for alloc::boxed::Box<T> {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        (**self).heads(visit);
    }
    fn mask(&self) -> u16 {
        (**self).mask()
    }
    fn attempt(&mut self) -> Option<i64> {
        (**self).attempt()
    }
}

/// A context is readable when it has events, and gone when it is destroyed.
// SAFETY: the queue is in the context.
unsafe impl<R: RingMemory, S: SlotMemory> Source for Context<R, S> {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(self.reapers());
    }

    fn mask(&self) -> u16 {
        let readable = if self.visible() { event::IN } else { 0 };
        let gone = if self.is_destroyed() { event::HUP } else { 0 };
        readable | gone
    }
}

/// A request that was refused, and given back.
#[derive(Debug)]
pub struct Refused<T> {
    /// Why.
    pub error: Errno,
    /// As it was.
    pub request: T,
}

/// What a slot with payload `T` needs for polling: `()` for nothing, or [`Heads`].
pub trait Polling<T>: private::Polling<T> {}

impl<T> Polling<T> for () {}
impl<T: Source, const N: usize> Polling<T> for Heads<N> {}

mod private {
    use super::{Owner, RingMemory, SlotMemory};

    pub trait Polling<T>: Send + Sync + Sized {
        #[cfg(not(loom))]
        const NEW: Self;
        #[cfg(loom)]
        fn new() -> Self;
        /// How a context calls the hooks of its requests, if they can poll.
        fn owner<R, S>() -> Option<Owner>
        where
            R: RingMemory,
            S: SlotMemory<Payload = T, Polling = Self>;
        /// Unlinks the slot's request from where it waits. Waits for locks.
        fn leave(&self);
        /// Whether its payload keeps what it is linked into. For its owner.
        fn is_linked(&self) -> bool;
    }
}
pub(crate) use private::Polling as Part;

impl<T> Part<T> for () {
    #[cfg(not(loom))]
    const NEW: Self = ();
    #[cfg(loom)]
    fn new() -> Self {}
    fn owner<R, S>() -> Option<Owner>
    where
        R: RingMemory,
        S: SlotMemory<Payload = T, Polling = Self>,
    {
        None
    }
    fn leave(&self) {}
    fn is_linked(&self) -> bool {
        false
    }
}

/// Where a slot's request waits: on up to `N` heads.
#[repr(C)]
pub struct Heads<const N: usize = 2> {
    /// Written by the submitter before it links the first waiter, and left alone
    /// while one is linked. Null behind the last one.
    heads: UnsafeCell<[*const WaitQueue; N]>,
    hook: Hook,
    waiters: [Waiter; N],
    /// Waiters in a list must stay where they are.
    _pinned: PhantomPinned,
}

// SAFETY: what the pointers lead to is Sync, and used by the rules of this module.
unsafe impl<const N: usize> Send for Heads<N> {}
// SAFETY: as for Send.
unsafe impl<const N: usize> Sync for Heads<N> {}

impl<const N: usize> fmt::Debug for Heads<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heads").finish_non_exhaustive()
    }
}

impl<const N: usize> Heads<N> {
    const_fn! {
        const fn start(waiters: [Waiter; N]) -> Self {
            Self {
                hook: Hook::new(),
                heads: UnsafeCell::new([ptr::null(); N]),
                waiters,
                _pinned: PhantomPinned,
            }
        }
    }
}

impl<T: Source, const N: usize> Part<T> for Heads<N> {
    #[cfg(not(loom))]
    const NEW: Self = Self::start([const { Waiter::new() }; N]);
    #[cfg(loom)]
    fn new() -> Self {
        Self::start(core::array::from_fn(|_| Waiter::new()))
    }

    fn owner<R, S>() -> Option<Owner>
    where
        R: RingMemory,
        S: SlotMemory<Payload = T, Polling = Self>,
    {
        Some(Owner(called::<R, S, N>))
    }

    fn is_linked(&self) -> bool {
        self.heads.with(|heads| {
            // SAFETY: its owner's, who alone writes them.
            unsafe { (*heads).first() }.is_some_and(|head| !head.is_null())
        })
    }

    fn leave(&self) {
        if !Part::<T>::is_linked(self) {
            return;
        }
        let heads = self.heads.with_mut(|heads| {
            // SAFETY: claimed and delivered: its reaper's alone.
            unsafe { mem::replace(&mut *heads, [ptr::null(); N]) }
        });
        for (head, waiter) in heads.iter().zip(&self.waiters) {
            if head.is_null() {
                break;
            }
            // SAFETY: slots do not move once a request polled.
            let waiter = unsafe { Pin::new_unchecked(waiter) };
            // SAFETY: it was linked into this head or into none, and the head is there
            // or closed.
            let _ = unsafe { WaitQueue::leave_from(*head, waiter) };
        }
    }
}

/// What a request waits for.
#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    /// Any of these events.
    Events(u16),
    /// An attempt that does not block. These events are a reason to try.
    Attempt(u16),
}

/// Which of `events` are there, as a result.
fn ready(source: &impl Source, events: u16) -> Option<i64> {
    match source.mask() & events {
        0 => None,
        ready => Some(ready.into()),
    }
}

impl Wanted {
    /// With what a look has found, if one has; and with the events that fired.
    fn complete<R: RingMemory, S: SlotMemory>(self, claim: Claim<'_, R, S>, found: Option<i64>) {
        let res = match self {
            Self::Events(_) => found.unwrap_or(0) | i64::from(claim.events()),
            // Only closing fires events that it does not look at.
            Self::Attempt(_) => found.unwrap_or(Errno::EBADF.as_result()),
        };
        claim.complete(res, 0);
    }
}

/// A request that waits answers for itself, by its word.
impl<T, const N: usize, D> Asked for Slot<T, Heads<N>, D> {
    unsafe fn asked(&self, mask: Option<u16>) -> Answer {
        // SAFETY: linked, and so set before.
        let Call { wanted, .. } = unsafe { self.polling.hook.call() };
        // The request's: it is not freed while it is linked.
        let generation = self.word.peek().generation();
        let (events, look) = match (mask, wanted) {
            (None, _) => (ALWAYS, false),
            (Some(0), Wanted::Events(_)) => (0, true),
            (Some(mask), Wanted::Events(events)) => (mask & events, false),
            (Some(mask), Wanted::Attempt(events)) => (0, mask == 0 || mask & events != 0),
        };
        if look {
            return match self.word.look_again(generation) {
                Recheck::Look => Answer::Look,
                Recheck::Recorded => Answer::Stay,
                Recheck::Missed(_) => Answer::Gone,
            };
        }
        if events == 0 {
            return Answer::Stay;
        }
        match self.word.wake(generation, events) {
            Wake::Won(_) => Answer::Woken,
            Wake::Recorded => Answer::Stay,
            Wake::Missed(_) => Answer::Gone,
        }
    }

    fn hook(&self) -> Option<NonNull<Hook>> {
        Some(NonNull::from(&self.polling.hook))
    }
}

impl<R, S, const N: usize> Context<R, S>
where
    // A context that is forgotten is still called.
    R: RingMemory + 'static,
    S: SlotMemory<Polling = Heads<N>> + 'static,
    // By whoever wakes.
    Self: Sync,
    S::Payload: Source + Send,
{
    /// Accepts a poll request: it completes with those of `events` that its payload
    /// is ready for, once one is; or with ERR or HUP, for which every request waits.
    ///
    /// The result is the events, as [`event`] has them. Waits for the locks of the
    /// payload's heads, one after the other: for ordinary callers. The completion may
    /// be there when this returns.
    ///
    /// The context does not move any more. When it is dropped, it ends what was not
    /// reaped, and waits by spinning for who is completing a request, and for tokens
    /// that were forgotten. So it is not to be dropped by a waker, a source, a
    /// [notification](crate::notify), or in an interrupt: there, [destroy](Self::destroy) and reap it before.
    ///
    /// # Errors
    ///
    /// EOVERFLOW: the source has more than `N` heads. EINVAL: it has none, and is not
    /// ready, so that nothing would ever complete the request; or the request is
    /// another context's. The request is given back.
    ///
    /// # Panics
    ///
    /// If the source does. Then the request was accepted, and completes with EIO.
    pub fn poll<'c>(
        self: Pin<&'c Self>,
        request: Request<'c, R, S>,
        events: u16,
    ) -> Result<Handle, Refused<Request<'c, R, S>>> {
        self.submit(request, Wanted::Events(events | ALWAYS))
    }

    /// Accepts a request that its payload can [carry out](Source::attempt), now or
    /// when one of `events`, ERR or HUP comes: it completes with what the attempt that
    /// did not block gave. Else as [`poll`](Self::poll); who still waits when a head is
    /// closed gets EBADF.
    ///
    /// Attempts are made by the submitter and by whoever wakes a head, one at a time.
    ///
    /// # Errors
    ///
    /// As [`poll`](Self::poll), where *ready* means that an attempt did not block.
    ///
    /// # Panics
    ///
    /// As [`poll`](Self::poll).
    pub fn attempt<'c>(
        self: Pin<&'c Self>,
        request: Request<'c, R, S>,
        events: u16,
    ) -> Result<Handle, Refused<Request<'c, R, S>>> {
        self.submit(request, Wanted::Attempt(events | ALWAYS))
    }

    /// As [`poll`](Self::poll), of a request that was accepted before, and that is the
    /// caller's: what would be an error is its result.
    pub fn poll_early(self: Pin<&Self>, early: Early<'_, R, S>, events: u16) {
        self.go_on(early, Wanted::Events(events | ALWAYS));
    }

    /// As [`attempt`](Self::attempt), of a request that was accepted before, and that is
    /// the caller's: what would be an error is its result.
    pub fn attempt_early(self: Pin<&Self>, early: Early<'_, R, S>, events: u16) {
        self.go_on(early, Wanted::Attempt(events | ALWAYS));
    }

    fn go_on(self: Pin<&Self>, mut early: Early<'_, R, S>, wanted: Wanted) {
        // If its source panics it is dropped, and ends with EIO.
        let asked = early.change_payload(|source| Asking::of(source, wanted));
        match asked {
            Some(asked) if asked.n > N => early.claim().complete(Errno::EOVERFLOW.as_result(), 0),
            Some(asked) if asked.n > 0 && early.is_of(&self) => {
                self.wait_for(early, &asked, wanted);
            }
            Some(asked) if asked.found.is_some() => wanted.complete(early.claim(), asked.found),
            _ => early.claim().complete(Errno::EINVAL.as_result(), 0),
        }
    }

    fn submit<'c>(
        self: Pin<&'c Self>,
        request: Request<'c, R, S>,
        wanted: Wanted,
    ) -> Result<Handle, Refused<Request<'c, R, S>>> {
        /// Ended with EIO if its source panics, as it is once it is accepted.
        struct Looked<'c, R: RingMemory, S: SlotMemory>(Option<Request<'c, R, S>>);
        impl<R: RingMemory, S: SlotMemory> Drop for Looked<'_, R, S> {
            fn drop(&mut self) {
                drop(self.0.take().map(Request::claim));
            }
        }

        let refuse = |error, request| Err(Refused { error, request });
        if !request.belongs_to(&self) {
            return refuse(Errno::EINVAL, request);
        }
        let mut looked = Looked(Some(request));
        let asked = looked
            .0
            .as_mut()
            .and_then(|request| request.with_payload(|source| Asking::of(source, wanted)));
        let (Some(request), Some(asked)) = (looked.0.take(), asked) else {
            unreachable!("put there above, with what it carries");
        };
        if asked.n > N {
            return refuse(Errno::EOVERFLOW, request);
        }
        let handle = request.handle();
        if asked.n > 0 {
            self.wait_for(request.early(), &asked, wanted);
            return Ok(handle);
        }
        match asked.found {
            None => refuse(Errno::EINVAL, request),
            found => {
                wanted.complete(request.claim(), found);
                Ok(handle)
            }
        }
    }

    /// Links a request into the heads of what it carries, at least one, and arms it.
    fn wait_for(self: Pin<&Self>, early: Early<'_, R, S>, asked: &Asking<N>, wanted: Wanted) {
        let index = early.handle().index() as u32;
        let slot = self.get_ref().slot(index);
        slot.polling.heads.with_mut(|place| {
            // SAFETY: Early, the caller's, and not linked.
            unsafe { *place = asked.heads };
        });
        let call = Call {
            owner: self.get_ref().owner(),
            index,
            wanted,
        };
        // SAFETY: as above.
        unsafe { slot.polling.hook.set(call) };
        let mut closed = false;
        for (head, waiter) in asked.heads[..asked.n].iter().zip(&slot.polling.waiters) {
            // SAFETY: the payload is in its slot, which keeps the head.
            let head = unsafe { &**head };
            // SAFETY: the context is pinned, and so are its slots.
            let waiter = unsafe { Pin::new_unchecked(waiter) };
            // SAFETY: it leaves when the request is reaped, or the context is gone;
            // both in the slot.
            closed |= unsafe { head.enqueue_hook(waiter, slot) }.is_err();
        }
        if closed {
            let found = match wanted {
                Wanted::Events(_) => Some(ALWAYS.into()),
                Wanted::Attempt(_) => None,
            };
            wanted.complete(early.claim(), found);
        } else {
            look(early, wanted);
        }
    }
}

/// What a source has said.
struct Asking<const N: usize> {
    heads: [*const WaitQueue; N],
    /// How many heads it has, also if that is more.
    n: usize,
    /// What it is ready for, if it has none.
    found: Option<i64>,
}

impl<const N: usize> Asking<N> {
    fn of(source: &mut impl Source, wanted: Wanted) -> Self {
        let mut heads = [ptr::null(); N];
        let mut n = 0;
        source.heads(&mut |head| {
            if let Some(place) = heads.get_mut(n) {
                *place = ptr::from_ref(head);
            }
            n += 1;
        });
        let found = match wanted {
            _ if n > 0 => None,
            Wanted::Events(events) => ready(source, events),
            Wanted::Attempt(_) => source.attempt(),
        };
        Self { heads, n, found }
    }
}

/// Looks at the source of a request that is the caller's, and arms it.
fn look<R, S>(mut early: Early<'_, R, S>, wanted: Wanted)
where
    R: RingMemory,
    S: SlotMemory,
    S::Payload: Source,
{
    loop {
        let found = match wanted {
            Wanted::Events(events) => early.with_payload(|source| ready(source, events)),
            // SAFETY: it leaves the heads as they are, by the contract of `Source`.
            Wanted::Attempt(_) => unsafe { early.with_payload_mut(Source::attempt) },
        };
        let claim = match found.flatten() {
            Some(found) => return wanted.complete(early.claim(), Some(found)),
            None => match early.arm() {
                Armed::Armed(_) => return,
                Armed::LookAgain(again) => {
                    early = again;
                    continue;
                }
                Armed::Ready(claim) => claim,
                Armed::Cancelled(claim) => return claim.cancel(),
            },
        };
        return wanted.complete(claim, None);
    }
}

/// What a waker does for a request once the lock is let go.
///
/// # Safety
///
/// `owner` is a `Context<R, S>`'s, and request `index` was claimed or taken back to
/// Early by the caller.
unsafe fn called<R, S, const N: usize>(
    Call {
        owner,
        index,
        wanted,
    }: Call,
) where
    R: RingMemory,
    S: SlotMemory<Polling = Heads<N>>,
    S::Payload: Source,
{
    contain(|| {
        // SAFETY: by the contract; it waits for its requests.
        let context = unsafe { Context::<R, S>::of_owner(owner) };
        let snapshot = context.slot(index).word.peek();
        let handle = Handle::from_parts(index, snapshot.generation());
        if snapshot.phase() == Phase::Claimed {
            // SAFETY: the caller's claim.
            let claim = unsafe { context.claim_of(handle, snapshot) };
            wanted.complete(claim, None);
        } else {
            // SAFETY: the caller's.
            look(unsafe { context.early(handle) }, wanted);
        }
    });
}
