//! The context: requests from their reservation to their reaping.
//!
//! A context puts the parts together: a [slot](crate::slots) per request, whose
//! [word](crate::request) says who ends it; a [ring](crate::ring) for the
//! completions; a [wait queue](crate::wait) for those who wait for them; a
//! [life](crate::life) for the end.
//!
//! ```text
//!  reserve        fill           arm            claim          complete       reap
//!  -------> slot ------> request ----> Armed ----------> Claim ---------> event ---> slot
//!  EAGAIN           |                    | start           ^                         free
//!                   | run                v                 |
//!                   +-----------------> Running -----------+
//!                   | publish            arm               |
//!                   +-----------> Early -----> Armed ------+  wake, cancel
//! ```
//!
//! # What holds
//!
//! * *Exactly once*: an event is published by consuming a [`Claim`], and a claim
//!   is made only by winning the request's word. Dropping a claim delivers EIO,
//!   so that a panic in the embedder's code loses nothing.
//! * *No loss*: the slot is the reservation, in the slots and in the ring, until
//!   the event is reaped. Completing cannot fail.
//! * *Order*: payload, then event, then the reapers' wake-up. The wake-up is for
//!   the *visible* prefix: a completer whose event is behind an unfinished one
//!   finds too few visible and wakes nobody, and who fills the gap finds all.
//! * *End*: [`Context::destroy`] lets nobody in any more, cancels what is Armed,
//!   asks Early and Running ones to end, wakes the reapers with EINVAL, and
//!   waits for the last completer's last touch. Every destroyer waits for the
//!   same. Events that are in the ring can still be reaped.
//!
//! Against *submit × destroy*: a submitter publishes its word, fences, and then
//! looks whether the end was called; a destroyer calls the end, fences, and then
//! looks at the words. One of them sees the other.
//!
//! # Progress
//!
//! `reserve`, `arm`, `claim`, `cancel`, `wake`, completing and `reap` are
//! lock-free, do not allocate and run from any context; a completer never waits.
//! (With requests that [poll](crate::poll), `reap` and `reserve` take the locks of
//! what they polled: for ordinary callers.)
//! [`Wait`] takes the wait queue's lock: for ordinary callers. Payloads leave
//! with [`Context::reap`]: a completer drops none. (It drops what led to a
//! [target](crate::target), a [notification](crate::notify) that was delivered, and what a dropped
//! [operation](crate::operation) carried.)

use core::{
    fmt,
    future::Future,
    marker::PhantomPinned,
    mem::{self, ManuallyDrop, MaybeUninit},
    pin::Pin,
    ptr,
    task::{Context as Task, Poll},
};

use crate::{
    delivery,
    error::Errno,
    life::{Idle, Life},
    poll::{Part, event},
    request::{self, Arm, Generation, Miss, Phase, Recheck, Snapshot},
    ring::{Event, Header, Ring, RingMemory},
    slots::{Iocb, Slot, SlotMemory, Slots, Taken},
    sync::{
        atomic::{AtomicU64, Ordering, fence},
        const_fn, hint,
    },
    wait::{Awaited, Enqueued, Left, Owner, WaitQueue, Waiter},
};

/// A slot of this memory.
pub(crate) type SlotOf<S> =
    Slot<<S as SlotMemory>::Payload, <S as SlotMemory>::Polling, <S as SlotMemory>::Delivery>;

/// What such slots have together.
type PendingOf<S> = <<S as SlotMemory>::Delivery as delivery::Part>::Pending;
/// Whom to tell of completions.
type ChainOf<S> = <<S as SlotMemory>::Delivery as delivery::Part>::Chain;

/// How many events are moved at once between the ring and the caller.
const CHUNK: usize = 32;

/// Names one request: a slot and which of its lives.
///
/// A plain value. Naming a request that is gone is an error, never another
/// request's misfortune.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    index: u32,
    generation: Generation,
}

impl Handle {
    /// Which slot, counted from zero.
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// Which life of that slot.
    pub const fn generation(self) -> Generation {
        self.generation
    }

    /// The handle of slot `index` in its life `generation`, whether or not there is
    /// such a request.
    pub const fn from_parts(index: u32, generation: Generation) -> Self {
        Self { index, generation }
    }
}

/// A reaped completion.
///
/// In Abi mode the event was in memory that its user can write: rely on the
/// handle and the payload, not on `data` and `obj`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion<T> {
    /// The event.
    pub event: Event,
    /// What the request carried.
    pub payload: T,
    /// The request that it was.
    pub handle: Handle,
}

/// What a cancellation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Cancelled {
    /// The request had no effect; its completion, ECANCELED, is in the ring.
    Done,
    /// Whoever has the request was asked; its completion says what happened.
    Asked,
}

/// A completion context. See the [module](self).
///
/// ```
/// # uaio_core::sync::thread::model(|| (|| {
/// use uaio_core::{Context, slots::Iocb};
///
/// let context = Context::boxed(8)?;
///
/// // A request that somebody else will end ...
/// let iocb = Iocb { data: 42, obj: 0 };
/// let handle = context.reserve_one()?.fill(iocb, "payload").arm();
/// // ... which is whoever claims it first.
/// context.claim(handle)?.complete(4096, 0);
/// assert!(context.claim(handle).is_err());
///
/// let mut out = [None];
/// assert_eq!(context.reap(&mut out)?, 1);
/// let done = out[0].take().unwrap();
/// assert_eq!((done.event.data, done.event.res), (42, 4096));
/// assert_eq!(done.payload, "payload");
/// # Ok::<(), uaio_core::Errno>(())
/// # })().unwrap());
/// ```
pub struct Context<R: RingMemory, S: SlotMemory> {
    ring: Ring<R>,
    slots: Slots<S>,
    life: Life,
    reapers: WaitQueue,
    /// How the hooks of its requests are called, if they can poll.
    owner: Option<Owner>,
    /// How many completions are kept back elsewhere.
    kept: AtomicU64,
    /// Who is yet to be told of a completion.
    pending: PendingOf<S>,
    /// Its requests may be linked into what they poll.
    _pinned: PhantomPinned,
}

impl<R: RingMemory, S: SlotMemory> Drop for Context<R, S> {
    fn drop(&mut self) {
        // Without hooks, who uses it borrows it.
        if self.owner.is_some() {
            // A waker may be at one of its requests, also if that was reaped.
            drop(self.destroy(|_| ()));
            while !self.life.is_over() {
                hint::spin_loop();
            }
        }
        for slot in self.slots.0.slots() {
            // SAFETY: whose target it still has, that was not completed and never will be.
            unsafe { delivery::Part::forget_target(&slot.delivery) };
        }
        // Ordering: Acquire pairs with the Release in `moved_in`.
        while self.kept.load(Ordering::Acquire) != 0 {
            hint::spin_loop();
        }
        // Only now: who gives up what was kept back publishes it, and tells whom that
        // uncovers; and whoever reaped it would have left.
        for slot in self.slots.0.slots() {
            // SAFETY: whoever was to be told of it is not told any more.
            let _ = unsafe { delivery::Part::clear(&slot.delivery) };
            slot.polling.leave();
        }
    }
}

impl<R: RingMemory, S: SlotMemory> fmt::Debug for Context<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("capacity", &self.slots.len())
            .field("ended", &self.life.has_ended())
            .finish_non_exhaustive()
    }
}

/// A context on the heap.
#[cfg(feature = "alloc")]
pub type BoxedContext<T> = Context<crate::ring::Boxed, crate::slots::Boxed<T>>;

#[cfg(feature = "alloc")]
impl<T> BoxedContext<T> {
    /// A context for `capacity` requests, with memory from the heap.
    ///
    /// # Errors
    ///
    /// EINVAL when `capacity` is zero or above 2^24.
    pub fn boxed(capacity: usize) -> Result<Self, Errno> {
        Self::new(
            crate::ring::Boxed::native(capacity)?,
            crate::slots::Boxed::new(capacity)?,
        )
    }
}

/// A context inside a value of its own, for a `static`.
pub type InlineContext<T, const N: usize, const SLOTS: usize, const W: usize = 1> =
    Context<crate::ring::Inline<N>, crate::slots::Inline<T, SLOTS, W>>;

impl<T, const N: usize, const SLOTS: usize, const W: usize> InlineContext<T, N, SLOTS, W> {
    const FITS: () = assert!(SLOTS <= N, "no more slots than the ring has room");

    const_fn! {
        /// A context for `SLOTS` requests in a ring of `N`.
        pub const fn inline() -> Self {
            let () = Self::FITS;
            Self {
                ring: Ring::new(crate::ring::Inline::new()),
                slots: Slots(crate::slots::Inline::new(Generation::MIN)),
                life: Life::new(),
                reapers: WaitQueue::new(),
                owner: None,
                kept: AtomicU64::new(0),
                pending: (),
                _pinned: PhantomPinned,
            }
        }
    }
}

impl<R: RingMemory, S: SlotMemory> Context<R, S> {
    /// A context in the embedder's memory.
    ///
    /// # Errors
    ///
    /// EINVAL when there are more slots than the ring has room.
    pub fn new(ring: R, slots: S) -> Result<Self, Errno> {
        Self::new_at(ring, 0, slots)
    }

    /// A context whose ring's count starts at `position`: for tests next to the
    /// wrap.
    ///
    /// # Errors
    ///
    /// EINVAL when there are more slots than the ring has room, or when there is
    /// a header and `position` is not a multiple of the ring's length.
    pub fn new_at(ring: R, position: u64, slots: S) -> Result<Self, Errno> {
        let lap = ring.events().len() as u64;
        if ring.header().is_some() && !position.is_multiple_of(lap) {
            return Err(Errno::EINVAL);
        }
        let ring = Ring::new_at(ring, position);
        let slots = Slots(slots);
        if slots.len() > ring.capacity() || slots.len() == 0 {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            ring,
            slots,
            life: Life::new(),
            reapers: WaitQueue::new(),
            owner: <S::Polling as Part<S::Payload>>::owner::<R, S>(),
            kept: AtomicU64::new(0),
            pending: <S::Delivery as delivery::Part>::pending(position),
            _pinned: PhantomPinned,
        })
    }

    /// How many requests there can be, from reservation to reaping.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// The public header, in Abi mode.
    pub fn header(&self) -> Option<&Header> {
        self.ring.header()
    }

    /// Whether it is being destroyed, or is.
    pub fn is_destroyed(&self) -> bool {
        self.life.has_ended()
    }

    /// Counts the caller as a user: destroying waits until it is dropped.
    ///
    /// # Errors
    ///
    /// EINVAL when the context is destroyed.
    pub fn enter(&self) -> Result<User<'_>, Errno> {
        self.life.try_get(1)?;
        Ok(User(Users(&self.life, 1)))
    }

    /// Reserves room for at least one and at most `max` requests.
    ///
    /// # Errors
    ///
    /// EAGAIN when there is none: reap first. EINVAL when `max` is zero or the
    /// context is destroyed.
    pub fn reserve(&self, max: u32) -> Result<Reservations<'_, R, S>, Errno> {
        if max == 0 || self.life.has_ended() {
            return Err(Errno::EINVAL);
        }
        let taken = match self.slots.take(max) {
            Some(taken) => taken,
            None => {
                // A foreign reaper may have made room.
                self.ring.follow_foreign_head(|tag| self.discard(tag));
                self.slots.take(max).ok_or(Errno::EAGAIN)?
            }
        };
        // Reserved requests are users, each until it is completed or refused.
        if let Err(ended) = self.life.try_get(u64::from(taken.len())) {
            self.slots.give_back(taken);
            return Err(ended);
        }
        Ok(Reservations {
            context: self,
            taken,
        })
    }

    /// Reserves room for one request.
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve).
    pub fn reserve_one(&self) -> Result<Reservation<'_, R, S>, Errno> {
        self.reserve(1)?.next().ok_or(Errno::EAGAIN)
    }

    pub(crate) fn slot(&self, index: u32) -> &SlotOf<S> {
        &self.slots.0.slots()[index as usize]
    }

    /// What the hooks of its requests are called by.
    pub(crate) fn owner(&self) -> *const Owner {
        // From the whole, for `of_owner` to go back.
        let this: *const u8 = ptr::from_ref(self).cast();
        this.wrapping_add(mem::offset_of!(Self, owner)).cast()
    }

    /// # Safety
    ///
    /// `owner` is from [`owner`](Self::owner), of a context that outlives `'c`.
    pub(crate) unsafe fn of_owner<'c>(owner: *const Owner) -> &'c Self {
        let this = owner
            .cast::<u8>()
            .wrapping_sub(mem::offset_of!(Self, owner));
        // SAFETY: by the contract.
        unsafe { &*this.cast() }
    }

    /// Who is woken for a new event, and for the end.
    pub(crate) fn reapers(&self) -> &WaitQueue {
        &self.reapers
    }

    /// Whether there is an event to reap.
    pub(crate) fn visible(&self) -> bool {
        self.ring.visible(1) > 0
    }

    /// # Safety
    ///
    /// The claim was won by the caller, by this snapshot.
    pub(crate) unsafe fn claim_of(&self, handle: Handle, snapshot: Snapshot) -> Claim<'_, R, S> {
        self.won(handle, snapshot)
    }

    /// The request that was [left](Early::leave) under that name.
    ///
    /// # Safety
    ///
    /// It is the caller's: left by somebody, of this context, and come back to once.
    pub unsafe fn early(&self, handle: Handle) -> Early<'_, R, S> {
        Early {
            context: self,
            handle,
        }
    }

    /// The slot that a handle, from wherever, names.
    fn lookup(&self, handle: Handle) -> Result<&SlotOf<S>, Miss> {
        self.slots.get(handle.index).ok_or(Miss::Gone)
    }

    /// How far a request is; `None` if it is gone. A hint: it may be further by
    /// the time the caller looks at it.
    pub fn phase(&self, handle: Handle) -> Option<Phase> {
        let snapshot = self.lookup(handle).ok()?.word.peek();
        let same = snapshot.generation() == handle.generation;
        (same && snapshot.phase() != Phase::Free).then(|| snapshot.phase())
    }

    /// A claim that was won, by this snapshot.
    fn won(&self, handle: Handle, snapshot: Snapshot) -> Claim<'_, R, S> {
        Claim {
            context: self,
            handle,
            snapshot,
        }
    }

    /// Takes an Armed request over, to run it.
    ///
    /// # Errors
    ///
    /// Why it is not the caller's: cancelled or completed, or not there yet.
    pub fn start(&self, handle: Handle) -> Result<Running<'_, R, S>, Miss> {
        let snapshot = self.lookup(handle)?.word.start(handle.generation)?;
        debug_assert!(!snapshot.cancel_requested());
        Ok(Running(self.won(handle, snapshot)))
    }

    /// Claims an Armed request, to complete it.
    ///
    /// # Errors
    ///
    /// Why it is not the caller's: cancelled or completed, or not there yet.
    pub fn claim(&self, handle: Handle) -> Result<Claim<'_, R, S>, Miss> {
        let snapshot = self.lookup(handle)?.word.claim(handle.generation)?;
        Ok(self.won(handle, snapshot))
    }

    /// Reports that `events` fired, which the request waits for.
    pub fn wake(&self, handle: Handle, events: u16) -> Woken<'_, R, S> {
        if events == 0 {
            return Woken::Recorded;
        }
        let woken = match self.lookup(handle) {
            Ok(slot) => slot.word.wake(handle.generation, events),
            Err(miss) => request::Wake::Missed(miss),
        };
        match woken {
            request::Wake::Won(snapshot) => Woken::Won(self.won(handle, snapshot)),
            request::Wake::Recorded => Woken::Recorded,
            request::Wake::Missed(miss) => Woken::Missed(miss),
        }
    }

    /// Reports that the source changed, without saying how.
    pub fn look_again(&self, handle: Handle) -> Looked<'_, R, S> {
        let looked = match self.lookup(handle) {
            Ok(slot) => slot.word.look_again(handle.generation),
            Err(miss) => Recheck::Missed(miss),
        };
        match looked {
            Recheck::Look => Looked::Look(Early {
                context: self,
                handle,
            }),
            Recheck::Recorded => Looked::Recorded,
            Recheck::Missed(miss) => Looked::Missed(miss),
        }
    }

    /// Cancels a request. Needs no slot and no memory.
    ///
    /// # Errors
    ///
    /// ENOENT: the request is gone, or never was. EALREADY: it is completing,
    /// or its cancellation was asked for before.
    pub fn cancel(&self, handle: Handle) -> Result<Cancelled, Errno> {
        self.end(handle, request::Word::cancel)
    }

    /// Its time is up, says the embedder's clock: cancels a request, which then ends
    /// with ETIME unless it was cancelled as well.
    ///
    /// # Errors
    ///
    /// As [`cancel`](Self::cancel).
    pub fn expire(&self, handle: Handle) -> Result<Cancelled, Errno> {
        self.end(handle, request::Word::expire)
    }

    fn end(
        &self,
        handle: Handle,
        end: impl Fn(&request::Word, Generation) -> request::Cancel,
    ) -> Result<Cancelled, Errno> {
        let slot = self.lookup(handle).map_err(|_| Errno::ENOENT)?;
        match end(&slot.word, handle.generation) {
            request::Cancel::Won(snapshot) => {
                self.won(handle, snapshot).cancel();
                Ok(Cancelled::Done)
            }
            request::Cancel::Recorded => Ok(Cancelled::Asked),
            request::Cancel::Again | request::Cancel::Missed(Miss::Late | Miss::Busy) => {
                Err(Errno::EALREADY)
            }
            request::Cancel::Missed(Miss::Gone) => Err(Errno::ENOENT),
        }
    }

    /// Whether the end was called, for who has just published a request.
    fn ended_meanwhile(&self) -> bool {
        // Ordering: SeqCst, against the fence in `destroy`: the destroyer sees
        // the request's word, or we see the end.
        fence(Ordering::SeqCst);
        self.life.has_ended()
    }

    /// Cancels whatever request slot `index` holds, after the end.
    fn cancel_slot(&self, index: u32) -> Option<Handle> {
        let generation = self.slot(index).word.peek().generation();
        let handle = Handle { index, generation };
        match self.cancel(handle) {
            Ok(Cancelled::Asked) => Some(handle),
            // Done; or free, completing, or asked before.
            Ok(Cancelled::Done) | Err(_) => None,
        }
    }

    /// Publishes claimed requests' events and tells the reapers.
    fn deliver(&self, n: usize, events: impl IntoIterator<Item = (Event, u32)>, chain: ChainOf<S>) {
        // Users until the last touch, also when a waker panics.
        let _users = Users(&self.life, n as u64);
        self.publish(n, events, chain);
    }

    /// As [`deliver`](Self::deliver), of those who are counted otherwise.
    pub(crate) fn publish(
        &self,
        n: usize,
        events: impl IntoIterator<Item = (Event, u32)>,
        chain: ChainOf<S>,
    ) {
        let end = self.ring.publish(n, events);
        // What is visible is for those who wait to see: it may be behind a gap. Its fence
        // comes between publishing and looking whom it uncovers, too.
        self.reapers.wake(0);
        // Also of none of its own: it may uncover others.
        <S::Delivery as delivery::Part>::announce(self, chain, end);
    }

    pub(crate) fn pending(&self) -> &PendingOf<S> {
        &self.pending
    }

    /// How far the visible prefix goes, if it goes to `from` at least.
    pub(crate) fn prefix(&self, from: u64) -> u64 {
        self.ring.prefix(from)
    }

    /// Gives a slot back whose request was reaped.
    pub(crate) fn give_back(&self, index: u32) {
        self.slots.give_back([index]);
    }

    /// The submitter's object of a claimed request of the caller's.
    ///
    /// # Safety
    ///
    /// It is claimed, and not delivered.
    pub(crate) unsafe fn obj_of(&self, index: u32) -> u64 {
        self.slot(index).private.with(|private| {
            // SAFETY: the caller's alone, by the contract.
            unsafe { (*private).iocb.obj }
        })
    }

    /// Delivers a claimed request's completion to its target, if it has one.
    ///
    /// # Safety
    ///
    /// The request was claimed by the caller, who uses its slot no more.
    #[inline(always)]
    unsafe fn deliver_elsewhere(&self, handle: Handle, event: Event) -> bool {
        // SAFETY: by the contract.
        unsafe { <S::Delivery as delivery::Part>::deliver(self, handle, event) }
    }

    /// Notes who is to be told of a completion.
    ///
    /// # Safety
    ///
    /// The request was claimed by the caller, who delivers it with `chain`.
    #[inline(always)]
    unsafe fn note(&self, index: u32, res: i64, chain: &mut ChainOf<S>) {
        // SAFETY: by the contract.
        unsafe { delivery::Part::note(&self.slot(index).delivery, index, res, chain) };
    }

    /// Takes what a request carried out of its slot, and frees that.
    pub(crate) fn free(&self, index: u32) -> Option<(S::Payload, Handle)> {
        let released = self.release(index);
        if delivery::Part::reaped(&self.slot(index).delivery) {
            self.give_back(index);
        }
        released
    }

    /// The slot with this number, from wherever.
    pub(crate) fn slot_of(&self, index: u32) -> Option<&SlotOf<S>> {
        self.slots.get(index)
    }

    /// Counts a completion that its target keeps back.
    pub(crate) fn kept_back(&self) {
        // Ordering: Relaxed. Counted as a user yet.
        self.kept.fetch_add(1, Ordering::Relaxed);
    }

    /// Uncounts it: the last touch.
    ///
    /// # Safety
    ///
    /// It was counted, or is being counted.
    pub(crate) unsafe fn moved_in(this: *const Self) {
        // SAFETY: it waits for this. No reference to the whole: it goes right after.
        let kept = unsafe { &(*this).kept };
        // Ordering: Release pairs with the Acquire in `drop`: our touches of the slot.
        kept.fetch_sub(1, Ordering::Release);
    }

    /// Counts who delivers one completion, until it is done.
    pub(crate) fn delivering(&self) -> impl Drop + '_ {
        Users(&self.life, 1)
    }

    /// Whether who waits for `want` events need not wait any longer.
    fn satisfies(&self, want: usize) -> bool {
        self.life.has_ended() || self.ring.visible(want) >= want
    }

    /// An empty batch of completions.
    pub fn batch(&self) -> Batch<'_, R, S> {
        Batch {
            context: self,
            events: [MaybeUninit::uninit(); CHUNK],
            len: 0,
            chain: ChainOf::<S>::default(),
        }
    }

    /// Moves up to `out.len()` completions to the front of `out`, in the order
    /// in which they were published, and tells how many. Never blocks.
    ///
    /// What `out` held is dropped first.
    ///
    /// # Errors
    ///
    /// Only with a public header: EFAULT when the public head is not within the
    /// published events, EBUSY when another thread is reaping.
    pub fn reap(&self, out: &mut [Option<Completion<S::Payload>>]) -> Result<usize, Errno> {
        out.fill_with(|| None);
        let mut places = out.iter_mut();
        self.reap_up_to(places.len(), |done| {
            if let Some(place) = places.next() {
                *place = done;
            }
        })
    }

    /// As [`reap`](Self::reap), of up to `max`, each given to `each` as it is taken out:
    /// so it is moved once. If that panics, what it has not been given is dropped.
    ///
    /// # Errors
    ///
    /// As [`reap`](Self::reap).
    #[inline]
    pub fn reap_each(
        &self,
        max: usize,
        mut each: impl FnMut(Completion<S::Payload>),
    ) -> Result<usize, Errno> {
        self.reap_up_to(max, |done| {
            if let Some(done) = done {
                each(done);
            }
        })
    }

    #[inline]
    fn reap_up_to(
        &self,
        max: usize,
        mut each: impl FnMut(Option<Completion<S::Payload>>),
    ) -> Result<usize, Errno> {
        let mut total = 0;
        while total < max {
            let wanted = (max - total).min(CHUNK);
            match self.reap_chunk(wanted, &mut each) {
                Ok(n) => {
                    total += n;
                    if n < wanted {
                        break;
                    }
                }
                Err(error) if total == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(total)
    }

    #[inline]
    fn reap_chunk(
        &self,
        max: usize,
        mut each: impl FnMut(Option<Completion<S::Payload>>),
    ) -> Result<usize, Errno> {
        let mut chunk = [MaybeUninit::<(Event, u32)>::uninit(); CHUNK];
        let n = self.ring.take(
            max,
            |i, event, tag| {
                chunk[i].write((event, tag));
            },
            |tag| self.discard(tag),
        )?;
        let mut reaped = Reaped {
            context: self,
            // SAFETY: `take` wrote the first `n`.
            events: unsafe { chunk[..n].assume_init_ref() },
            released: 0,
        };
        while let Some(done) = reaped.release() {
            each(done);
        }
        Ok(n)
    }

    /// Takes the payload out of a reaped request's slot and ends its life. The
    /// slot still has to be given back.
    pub(crate) fn release(&self, index: u32) -> Option<(S::Payload, Handle)> {
        let slot = self.slot(index);
        slot.polling.leave();
        let payload = slot.private.with_mut(|private| {
            // SAFETY: the event was published, so its completer is done with
            // the slot, and claimed by this reaper alone.
            unsafe { (*private).payload.take() }
        });
        let generation = slot.word.peek().generation();
        slot.word.free(generation);
        payload.map(|payload| (payload, Handle { index, generation }))
    }

    /// Frees the slot of an event that a foreign reaper took.
    fn discard(&self, index: u32) {
        drop(self.free(index));
    }

    /// Waits until `min_nr` events are visible. The caller then reaps.
    ///
    /// The core has no clock: for a time limit call [`Wait::expire`].
    ///
    /// The context does not move any more, since a future that is forgotten still
    /// waits. (Pin one on the heap with `Box::pin`, a static one with
    /// [`Pin::static_ref`].)
    ///
    /// # Errors
    ///
    /// EINVAL when `min_nr` is more than there can be, or the context is
    /// destroyed.
    pub fn wait(self: Pin<&Self>, min_nr: usize) -> Result<Wait<'_, R, S>, Errno> {
        if min_nr > self.capacity() {
            return Err(Errno::EINVAL);
        }
        // The waiter is linked into the context: a user like any other.
        self.life.try_get(1)?;
        Ok(Wait {
            context: self.get_ref(),
            min_nr,
            waiter: Waiter::new(),
        })
    }

    /// Ends the context: refuses what is new, cancels what is Armed, asks the
    /// rest to end (`interrupt` is called for each such handle), wakes those who
    /// wait, and returns a future that waits for the last touch.
    ///
    /// May be called any number of times, by several at once; each future
    /// resolves when it is over. Events in the ring can still be reaped.
    ///
    /// The end waits for every token of the context ([`Reservation`],
    /// [`Request`], [`Early`], [`Running`], [`Claim`], [`Batch`], [`Wait`],
    /// [`User`]) and for every Armed or Running request: to await it where one of
    /// them is held, or from a waker that it has to come through, is to wait for
    /// oneself. It says nothing of mere references: the memory outlives every
    /// `&Context` that is in use, as its type demands.
    pub fn destroy(&self, mut interrupt: impl FnMut(Handle)) -> Idle<'_> {
        if self.life.end() {
            let mut sweep = Sweep {
                context: self,
                left: 0..self.slots.len() as u32,
            };
            // Ordering: SeqCst, against the fence in `ended_meanwhile`.
            fence(Ordering::SeqCst);
            for index in sweep.left.by_ref() {
                if let Some(handle) = self.cancel_slot(index) {
                    interrupt(handle);
                }
            }
        }
        self.life.idle()
    }
}

/// Events that a reaper has taken. Their requests' lives end, and their slots are given
/// back, also when who is told of them panics.
struct Reaped<'c, R: RingMemory, S: SlotMemory> {
    context: &'c Context<R, S>,
    events: &'c [(Event, u32)],
    released: usize,
}

impl<R: RingMemory, S: SlotMemory> Reaped<'_, R, S> {
    /// The next completion; `None` in it if what its request carried was taken out.
    #[inline]
    fn release(&mut self) -> Option<Option<Completion<S::Payload>>> {
        let (event, index) = *self.events.get(self.released)?;
        self.released += 1;
        let released = self.context.release(index);
        Some(released.map(|(payload, handle)| Completion {
            event,
            payload,
            handle,
        }))
    }
}

impl<R: RingMemory, S: SlotMemory> Drop for Reaped<'_, R, S> {
    #[inline]
    fn drop(&mut self) {
        while let Some(done) = self.release() {
            drop(done);
        }
        let context = self.context;
        let indices = self.events.iter().map(|(_, index)| *index);
        let free = indices.filter(|index| delivery::Part::reaped(&context.slot(*index).delivery));
        context.slots.give_back(free);
    }
}

/// What the first destroyer does, also when `interrupt` panics: it is a user
/// until all requests are cancelled or asked, and the reapers told.
struct Sweep<'c, R: RingMemory, S: SlotMemory> {
    context: &'c Context<R, S>,
    left: core::ops::Range<u32>,
}

impl<R: RingMemory, S: SlotMemory> Drop for Sweep<'_, R, S> {
    fn drop(&mut self) {
        let context = self.context;
        let _first = Users(&context.life, 1);
        for index in self.left.by_ref() {
            context.cancel_slot(index);
        }
        (context.reapers).wake(event::HUP);
    }
}

/// Counted users, who are done when this is dropped.
struct Users<'a>(&'a Life, u64);

impl Drop for Users<'_> {
    fn drop(&mut self) {
        self.0.put(self.1);
    }
}

/// Somebody who uses the context. See [`Context::enter`].
#[must_use = "who is dropped is no user any more"]
pub struct User<'c>(#[expect(dead_code, reason = "held for its drop")] Users<'c>);

impl fmt::Debug for User<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("User")
    }
}

/// Room for some requests: an iterator over [`Reservation`]s.
///
/// What is not taken out of it is given back.
#[derive(Debug)]
pub struct Reservations<'c, R: RingMemory, S: SlotMemory> {
    context: &'c Context<R, S>,
    taken: Taken,
}

impl<R: RingMemory, S: SlotMemory> Reservations<'_, R, S> {
    /// How many are left.
    pub fn len(&self) -> usize {
        self.taken.len() as usize
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'c, R: RingMemory, S: SlotMemory> Iterator for Reservations<'c, R, S> {
    type Item = Reservation<'c, R, S>;
    fn next(&mut self) -> Option<Self::Item> {
        self.taken.next().map(|index| Reservation {
            context: self.context,
            index,
        })
    }
}

impl<R: RingMemory, S: SlotMemory> Drop for Reservations<'_, R, S> {
    fn drop(&mut self) {
        let n = self.taken.len();
        if n > 0 {
            self.context.slots.give_back(self.taken);
            self.context.life.put(u64::from(n));
        }
    }
}

/// Room for one request. Dropping it gives the room back.
#[derive(Debug)]
pub struct Reservation<'c, R: RingMemory, S: SlotMemory> {
    context: &'c Context<R, S>,
    index: u32,
}

impl<'c, R: RingMemory, S: SlotMemory> Reservation<'c, R, S> {
    /// What its request will be named by, once it is accepted.
    pub fn handle(&self) -> Handle {
        Handle {
            index: self.index,
            generation: self.context.slot(self.index).word.peek().generation(),
        }
    }

    /// Puts the request into its place.
    pub fn fill(self, iocb: Iocb, payload: S::Payload) -> Request<'c, R, S> {
        let slot = self.context.slot(self.index);
        slot.private.with_mut(|private| {
            // SAFETY: the slot is reserved and its request is not published:
            // it is this owner's alone.
            let private = unsafe { &mut *private };
            private.iocb = iocb;
            private.payload = Some(payload);
        });
        let generation = slot.word.peek().generation();
        let this = ManuallyDrop::new(self);
        Request {
            context: this.context,
            handle: Handle {
                index: this.index,
                generation,
            },
        }
    }
}

impl<R: RingMemory, S: SlotMemory> Drop for Reservation<'_, R, S> {
    fn drop(&mut self) {
        self.context.slots.give_back([self.index]);
        self.context.life.put(1);
    }
}

/// A request that nobody knows of yet. Dropping it refuses it: no completion.
#[derive(Debug)]
#[must_use = "a request that is dropped is refused"]
pub struct Request<'c, R: RingMemory, S: SlotMemory> {
    context: &'c Context<R, S>,
    handle: Handle,
}

impl<'c, R: RingMemory, S: SlotMemory> Request<'c, R, S> {
    /// Publishes the request in `phase`; from now on it ends by its word.
    fn publish(self, phase: Phase) -> (&'c Context<R, S>, Handle) {
        let this = ManuallyDrop::new(self);
        let slot = this.context.slot(this.handle.index);
        slot.word.publish(this.handle.generation, phase);
        (this.context, this.handle)
    }

    /// Accepts it: whoever comes first, completion or cancel, ends it.
    pub fn arm(self) -> Handle {
        let (context, handle) = self.publish(Phase::Armed);
        // Re-check: a destroyer that came before looked for it in vain.
        if context.ended_meanwhile() {
            // It may have ended before: then this names nothing any more.
            let _ = context.cancel(handle);
        }
        handle
    }

    /// Accepts it, and the caller runs it.
    pub fn run(self) -> Running<'c, R, S> {
        let (context, handle) = self.publish(Phase::Running);
        let snapshot = context.slot(handle.index).word.peek();
        Running(context.won(handle, snapshot))
    }

    /// Accepts it, and the caller has yet to arm it: what comes meanwhile is
    /// recorded.
    pub fn early(self) -> Early<'c, R, S> {
        let (context, handle) = self.publish(Phase::Early);
        // Re-check: a destroyer that came before looked for it in vain.
        if context.ended_meanwhile() {
            // Recorded in the word, for `Early::arm` to find.
            let _ = context.cancel(handle);
        }
        Early { context, handle }
    }

    /// Accepts it, already finished: the caller completes it at once.
    pub fn claim(self) -> Claim<'c, R, S> {
        let (context, handle) = self.publish(Phase::Claimed);
        let snapshot = context.slot(handle.index).word.peek();
        context.won(handle, snapshot)
    }

    /// Calls `f` on what the request carries.
    pub fn with_payload<O>(&mut self, f: impl FnOnce(&mut S::Payload) -> O) -> Option<O> {
        // SAFETY: not published: this owner's alone.
        unsafe { with_payload(self.context.slot(self.handle.index), f) }
    }

    /// Gives it back, room and payload; there will be no completion.
    pub fn refuse(self) -> Option<S::Payload> {
        // `drop` does the rest.
        self.take_payload()
    }

    pub(crate) fn belongs_to(&self, context: &Context<R, S>) -> bool {
        core::ptr::eq(self.context, context)
    }

    /// What says how it is delivered.
    pub(crate) fn part(&self) -> &S::Delivery {
        &self.context.slot(self.handle.index).delivery
    }

    /// The submitter's own value.
    pub(crate) fn data(&self) -> u64 {
        let slot = self.context.slot(self.handle.index);
        slot.private.with(|private| {
            // SAFETY: not published: this owner's alone.
            unsafe { (*private).iocb.data }
        })
    }

    /// What it will be named by once it is accepted.
    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    fn take_payload(&self) -> Option<S::Payload> {
        let slot = self.context.slot(self.handle.index);
        slot.private.with_mut(|private| {
            // SAFETY: not published: this owner's alone.
            unsafe { (*private).payload.take() }
        })
    }
}

impl<R: RingMemory, S: SlotMemory> Drop for Request<'_, R, S> {
    fn drop(&mut self) {
        let payload = self.take_payload();
        // SAFETY: not published: this owner's alone.
        if unsafe { delivery::Part::clear(self.part()) } {
            // The handle was nobody's, so its generation can live again.
            self.context.give_back(self.handle.index);
        }
        self.context.life.put(1);
        drop(payload);
    }
}

/// Calls `f` on the payload, if there is one.
///
/// # Safety
///
/// The slot's private part is the caller's alone for the time of the call.
unsafe fn with_payload<T, P, D, O>(slot: &Slot<T, P, D>, f: impl FnOnce(&mut T) -> O) -> Option<O> {
    slot.private.with_mut(|private| {
        // SAFETY: the caller's alone, by the contract.
        unsafe { (*private).payload.as_mut() }.map(f)
    })
}

/// A published request that its submitter has yet to arm.
///
/// Dropping it ends it with EIO.
#[derive(Debug)]
#[must_use = "an Early request that is dropped ends with EIO"]
pub struct Early<'c, R: RingMemory, S: SlotMemory> {
    context: &'c Context<R, S>,
    handle: Handle,
}

/// What arming came to.
#[derive(Debug)]
#[must_use]
pub enum Armed<'c, R: RingMemory, S: SlotMemory> {
    /// Armed. It may have ended already.
    Armed(Handle),
    /// Events had fired: to be completed with [`Claim::events`].
    Ready(Claim<'c, R, S>),
    /// Cancelled, and nothing had fired: to be ended by [`Claim::cancel`].
    Cancelled(Claim<'c, R, S>),
    /// The source changed: look at it, then arm again.
    LookAgain(Early<'c, R, S>),
}

impl<'c, R: RingMemory, S: SlotMemory> Early<'c, R, S> {
    /// Its name, to be left where wakers and cancellers find it.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    pub(crate) fn is_of(&self, context: &Context<R, S>) -> bool {
        ptr::eq(self.context, context)
    }

    /// Leaves it as it is, for who comes [back](Context::early) to it. Until then it does
    /// not end, and a cancel is recorded.
    pub fn leave(self) -> Handle {
        ManuallyDrop::new(self).handle
    }

    /// Whether it was asked to end, or its time is up: then [arming](Self::arm) it ends it,
    /// unless something has fired.
    pub fn cancel_requested(&self) -> bool {
        let word = self.context.slot(self.handle.index).word.peek();
        word.cancel_requested() || word.expired()
    }

    /// Calls `f` on what the request carries.
    pub fn with_payload<O>(&mut self, f: impl FnOnce(&S::Payload) -> O) -> Option<O> {
        let slot = self.context.slot(self.handle.index);
        slot.private.with(|private| {
            // SAFETY: Early: this owner's alone.
            unsafe { (*private).payload.as_ref() }.map(f)
        })
    }

    /// As [`with_payload`](Self::with_payload), to change it. `None` for a
    /// [poll](Context::poll), whose payload keeps what it is linked into.
    pub fn change_payload<O>(&mut self, f: impl FnOnce(&mut S::Payload) -> O) -> Option<O> {
        if self.context.slot(self.handle.index).polling.is_linked() {
            return None;
        }
        // SAFETY: not linked.
        unsafe { self.with_payload_mut(f) }
    }

    /// As [`with_payload`](Self::with_payload), to change it.
    ///
    /// # Safety
    ///
    /// If it is linked, `f` leaves what it is linked into as it is.
    pub(crate) unsafe fn with_payload_mut<O>(
        &mut self,
        f: impl FnOnce(&mut S::Payload) -> O,
    ) -> Option<O> {
        // SAFETY: Early: this owner's alone.
        unsafe { with_payload(self.context.slot(self.handle.index), f) }
    }

    /// Arms it, unless something came meanwhile.
    pub fn arm(self) -> Armed<'c, R, S> {
        let this = ManuallyDrop::new(self);
        let (context, handle) = (this.context, this.handle);
        let word = &context.slot(handle.index).word;
        match word.arm(handle.generation) {
            Arm::Armed => Armed::Armed(handle),
            Arm::Ready(snapshot) => Armed::Ready(context.won(handle, snapshot)),
            Arm::Cancelled(snapshot) => Armed::Cancelled(context.won(handle, snapshot)),
            Arm::LookAgain => Armed::LookAgain(ManuallyDrop::into_inner(this)),
        }
    }

    /// Ends it without arming, say because the source was ready at once. The
    /// claim has the events of wakes that came meanwhile.
    pub fn claim(self) -> Claim<'c, R, S> {
        let this = ManuallyDrop::new(self);
        let snapshot = this.context.slot(this.handle.index).word.claim_owned();
        this.context.won(this.handle, snapshot)
    }
}

impl<R: RingMemory, S: SlotMemory> Drop for Early<'_, R, S> {
    fn drop(&mut self) {
        let snapshot = self.context.slot(self.handle.index).word.claim_owned();
        drop(self.context.won(self.handle, snapshot));
    }
}

/// A request that the caller runs. Nobody else can end it.
///
/// Dropping it ends it with EIO.
#[derive(Debug)]
#[must_use = "a Running request that is dropped ends with EIO"]
// Pinned by its phase, so the claim in it is as good as won; but the word is
// only moved to Claimed at the end, and until then records cancels.
pub struct Running<'c, R: RingMemory, S: SlotMemory>(Claim<'c, R, S>);

impl<'c, R: RingMemory, S: SlotMemory> Running<'c, R, S> {
    /// Its name.
    pub fn handle(&self) -> Handle {
        self.0.handle
    }

    /// Whether it was asked to end early. Its real result counts all the same.
    ///
    /// To be looked at before blocking: who asks afterwards meets a Running
    /// request, and [`destroy`](Context::destroy) interrupts it by its handle.
    pub fn cancel_requested(&self) -> bool {
        let Claim {
            context, handle, ..
        } = self.0;
        // A request that ran at once was published without a look at the end.
        context.ended_meanwhile() || context.slot(handle.index).word.peek().cancel_requested()
    }

    /// Calls `f` on what the request carries. `None` if that was taken out.
    pub fn with_payload<O>(&mut self, f: impl FnOnce(&mut S::Payload) -> O) -> Option<O> {
        self.0.with_payload(f)
    }

    /// Claims it: no cancel is taken any more.
    pub fn claim(self) -> Claim<'c, R, S> {
        let this = ManuallyDrop::new(self);
        let (context, handle) = (this.0.context, this.0.handle);
        let snapshot = context.slot(handle.index).word.claim_owned();
        context.won(handle, snapshot)
    }

    /// Completes it with `res` and `res2`.
    pub fn complete(self, res: i64, res2: i64) {
        self.claim().complete(res, res2);
    }
}

impl<R: RingMemory, S: SlotMemory> Drop for Running<'_, R, S> {
    fn drop(&mut self) {
        // The claim that is dropped next completes it; first it must be one.
        let handle = self.0.handle;
        self.0.snapshot = self.0.context.slot(handle.index).word.claim_owned();
    }
}

/// What a wake that does not say how the source changed came to.
#[derive(Debug)]
#[must_use]
pub enum Looked<'c, R: RingMemory, S: SlotMemory> {
    /// The caller is to look at the source, then to arm or claim the request.
    Look(Early<'c, R, S>),
    /// Whoever has the request will look again.
    Recorded,
    /// Not needed, or not any more.
    Missed(Miss),
}

/// What a wake came to.
#[derive(Debug)]
#[must_use]
pub enum Woken<'c, R: RingMemory, S: SlotMemory> {
    /// The request is the waker's to complete with [`Claim::events`].
    Won(Claim<'c, R, S>),
    /// Noted by who has the request.
    Recorded,
    /// Not needed any more.
    Missed(Miss),
}

/// The right, and the duty, to deliver one request's completion.
///
/// Dropping it delivers EIO.
#[must_use = "a claim that is dropped completes with EIO"]
pub struct Claim<'c, R: RingMemory, S: SlotMemory> {
    context: &'c Context<R, S>,
    handle: Handle,
    snapshot: Snapshot,
}

impl<R: RingMemory, S: SlotMemory> fmt::Debug for Claim<'_, R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("handle", &self.handle)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

impl<R: RingMemory, S: SlotMemory> Claim<'_, R, S> {
    /// Which request it is.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// All events that had fired when it was claimed.
    pub fn events(&self) -> u16 {
        self.snapshot.events()
    }

    /// Whether cancellation had been asked for when it was claimed.
    pub fn cancel_requested(&self) -> bool {
        self.snapshot.cancel_requested()
    }

    /// Calls `f` on what the request carries. `None` if that was taken out, and for a
    /// [poll](Context::poll), whose payload keeps what it is linked into.
    pub fn with_payload<O>(&mut self, f: impl FnOnce(&mut S::Payload) -> O) -> Option<O> {
        let slot = self.context.slot(self.handle.index);
        if slot.polling.is_linked() {
            return None;
        }
        // SAFETY: claimed, and not delivered: this owner's alone.
        unsafe { with_payload(slot, f) }
    }

    /// Delivers the completion. Cannot fail, waits for nobody.
    pub fn complete(self, res: i64, res2: i64) {
        ManuallyDrop::new(self).deliver(res, res2);
    }

    /// Whether its time limit had passed when it was claimed.
    pub fn expired(&self) -> bool {
        self.snapshot.expired()
    }

    /// Delivers ECANCELED: the request had no effect. ETIME if it was not cancelled,
    /// but [expired](Context::expire).
    pub fn cancel(self) {
        let why = match self.expired() && !self.cancel_requested() {
            true => Errno::ETIME,
            false => Errno::ECANCELED,
        };
        self.complete(why.as_result(), 0);
    }

    fn event(&self, res: i64, res2: i64) -> (Event, u32) {
        let slot = self.context.slot(self.handle.index);
        let Iocb { data, obj } = slot.private.with(|private| {
            // SAFETY: claimed, and not delivered: this owner's alone.
            unsafe { (*private).iocb }
        });
        let event = Event {
            data,
            obj,
            res,
            res2,
        };
        (event, self.handle.index)
    }

    fn deliver(&mut self, res: i64, res2: i64) {
        let (event, index) = self.event(res, res2);
        // SAFETY: claimed, and this is the end of it.
        if !unsafe { self.context.deliver_elsewhere(self.handle, event) } {
            let mut chain = ChainOf::<S>::default();
            // SAFETY: as above; not delivered yet.
            unsafe { self.context.note(index, res, &mut chain) };
            self.context.deliver(1, [(event, index)], chain);
        }
    }
}

impl<R: RingMemory, S: SlotMemory> Drop for Claim<'_, R, S> {
    fn drop(&mut self) {
        self.deliver(Errno::EIO.as_result(), 0);
    }
}

/// Completions to be delivered together: one run in the ring, one wake-up.
///
/// Delivers by itself when it is full and when it is dropped.
pub struct Batch<'c, R: RingMemory, S: SlotMemory> {
    context: &'c Context<R, S>,
    events: [MaybeUninit<(Event, u32)>; CHUNK],
    len: usize,
    chain: ChainOf<S>,
}

impl<R: RingMemory, S: SlotMemory> fmt::Debug for Batch<'_, R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl<'c, R: RingMemory, S: SlotMemory> Batch<'c, R, S> {
    /// Adds a completion. A claim of another context is delivered at once.
    #[inline]
    pub fn push(&mut self, claim: Claim<'c, R, S>, res: i64, res2: i64) {
        if !core::ptr::eq(claim.context, self.context) {
            return claim.complete(res, res2);
        }
        let claim = ManuallyDrop::new(claim);
        let (event, index) = claim.event(res, res2);
        // SAFETY: claimed, and this is the end of it.
        if unsafe { self.context.deliver_elsewhere(claim.handle, event) } {
            return;
        }
        // SAFETY: as above; not delivered yet.
        unsafe { self.context.note(index, res, &mut self.chain) };
        self.events[self.len].write((event, index));
        self.len += 1;
        if self.len == CHUNK {
            self.deliver();
        }
    }

    /// Delivers what was added.
    pub fn deliver(&mut self) {
        let n = core::mem::take(&mut self.len);
        if n > 0 {
            let events = self.events[..n].iter().map(|event| {
                // SAFETY: `push` wrote the first `len`.
                unsafe { event.assume_init() }
            });
            let chain = core::mem::take(&mut self.chain);
            self.context.deliver(n, events, chain);
        }
    }
}

impl<R: RingMemory, S: SlotMemory> Drop for Batch<'_, R, S> {
    fn drop(&mut self) {
        self.deliver();
    }
}

/// What the time limit of a [`Wait`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Expired {
    /// The wake-up had come before.
    Woken,
    /// It had not, and will not come any more.
    TimedOut,
}

/// Waits for events. See [`Context::wait`].
///
/// Resolves to `Ok` when enough are visible (another reaper may take them
/// before the caller does), and to EINVAL when the context is destroyed.
#[must_use = "a future does nothing unless it is polled"]
#[derive(Debug)]
pub struct Wait<'c, R: RingMemory, S: SlotMemory> {
    context: &'c Context<R, S>,
    min_nr: usize,
    waiter: Waiter,
}

impl<R: RingMemory, S: SlotMemory> Wait<'_, R, S> {
    fn waiter(self: Pin<&Self>) -> Pin<&Waiter> {
        // SAFETY: structural: the waiter is never moved out of the future.
        unsafe { self.map_unchecked(|wait| &wait.waiter) }
    }

    /// The time is up, says the embedder's clock.
    ///
    /// Either the wake-up came first or it does not come at all. Polling again
    /// waits again.
    pub fn expire(self: Pin<&mut Self>) -> Expired {
        let this = self.as_ref();
        let context = this.context;
        // SAFETY: the waiter is used with this queue only.
        let left = unsafe { (context.reapers).leave(this.waiter()) };
        match left {
            Left::Woken => Expired::Woken,
            Left::Unwoken => Expired::TimedOut,
        }
    }
}

impl<R: RingMemory, S: SlotMemory> Awaited for Wait<'_, R, S> {
    fn holds(&self, _: u16) -> bool {
        self.context.satisfies(self.min_nr)
    }
}

impl<R: RingMemory, S: SlotMemory> Future for Wait<'_, R, S> {
    type Output = Result<(), Errno>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let this = self.as_ref();
        let context = this.context;
        // SAFETY: the waiter is used with this queue only, and `drop` leaves it.
        let enqueued =
            unsafe { (context.reapers).enqueue(this.waiter(), task.waker(), this.get_ref()) };
        match enqueued {
            Ok(Enqueued::Waiting) => Poll::Pending,
            Ok(Enqueued::Ready) | Err(_) if context.life.has_ended() => {
                let enough = context.ring.visible(this.min_nr) >= this.min_nr;
                Poll::Ready(if enough { Ok(()) } else { Err(Errno::EINVAL) })
            }
            Ok(Enqueued::Ready) | Err(_) => Poll::Ready(Ok(())),
        }
    }
}

impl<R: RingMemory, S: SlotMemory> Drop for Wait<'_, R, S> {
    fn drop(&mut self) {
        // SAFETY: the value is not moved until it is gone.
        let this = unsafe { Pin::new_unchecked(&*self) };
        let context = this.context;
        let _user = Users(&context.life, 1);
        // SAFETY: the waiter is used with this queue only.
        let _ = unsafe { (context.reapers).leave(this.waiter()) };
    }
}
