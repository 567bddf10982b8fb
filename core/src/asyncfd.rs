//! The asyncfd: results in a ring that its user owns, polls and replaces live.
//!
//! The user supplies the memory: a header, [`Uring`], and an array of
//! [`AsyncfdResult`]s, laid out as the Linux patch of 2007 had them. Producers store
//! results; the consumer, our [`pop`](Asyncfd::pop) or the user's own code, takes them
//! in order and frees their places. A place whose *cookie* is zero is free, any other
//! cookie says that there is a result. So a result with cookie zero is refused.
//!
//! # One place
//!
//! ```text
//!            reserve            payload, cookie           lap + 1
//!   free ---------------> ours ------------------> read -----------> published
//!    ^  (one CAS on tail)                     (by the consumer)         |
//!    +------------------------- cookie = 0 -----------------------------+
//! ```
//!
//! A place that a producer has reserved and not yet filled has a zero cookie as well.
//! That it is free is therefore said by two words: its *lap*, in private memory, which
//! counts who published there, and its cookie. The payload comes before the cookie,
//! and the lap last. Positions are private: a lap of 40 bits and an index of 24; the
//! indices in the header are only projections of them. `iuser` is the consumer's word,
//! and checked on each reading; `ikernel` is written for foreign eyes, and may lag
//! while producers are at work. A full ring has equal indices, so what there is to
//! read is told by the cookie at `iuser`, never by the indices.
//!
//! # Entering and leaving; replacing
//!
//! ```text
//!  63                          3   2      1..0
//! +-----------------------------+--------+-------+
//! | entries into this ring      | closed | which |   the gate
//! +-----------------------------+--------+-------+
//! ```
//!
//! One `fetch_add` on the gate enters a ring and says which one it is. Leaving
//! subtracts from what that ring is *owed*. Who replaces the ring swings the gate to
//! the next one, learns how many had entered the old one, and adds that to what it is
//! owed: whoever brings it to zero, the last to leave or the replacer, tells those who
//! wait. From then on nobody writes the old ring. No reservation of memory, no
//! deferral: `docs/asyncfd.md` compares it with epochs and locks.
//!
//! Up to four rings are there at a time, in the order of their succession. The consumer
//! goes on to the next when nobody writes the present one any more *and* it has read
//! all of it, in this order; so what a producer stored first is read first.
//!
//! # Readable
//!
//! One word says whether the consumer has something to do. Producers set it and wake
//! those who wait, if it was not set; [`drain`](Asyncfd::drain) resets it before it
//! looks for the last time. An awake consumer thus costs a producer a fence and a load,
//! and one that sleeps one wake-up, however many results come.
//!
//! | | publish, then | drain |
//! |---|---|---|
//! | readable | nothing | something is there: it stays; else resets it, and looks again |
//! | not readable | sets it and wakes, if the result is visible | looks again |
//!
//! Each side publishes, fences, and then looks: either the producer sees that it was
//! reset, or the drain sees the result. A producer whose result is behind an unfinished
//! one, or in a ring behind one that is still written, tells nobody: who fills the gap,
//! or leaves that ring as the last, does; or whoever pops what was in between.
//!
//! # What does not fit
//!
//! [`add_results`](Asyncfd::add_results) tells how many it stored. The completion of a
//! request is never refused: it is *kept back*, and what is kept is the request itself,
//! linked into a list by its slot. The next drain, or replacement, moves it in. While
//! any is kept back, later completions queue behind it.
//!
//! # Progress
//!
//! Adding is lock-free and callable from any context: it never waits. Popping and
//! draining never wait either, one at a time. Replacing and closing are futures that
//! wait for those who are just writing.

use core::{
    fmt,
    future::Future,
    mem::ManuallyDrop,
    pin::Pin,
    ptr,
    task::{Context as Task, Poll},
};

use crate::{
    context::Expired,
    error::Errno,
    kept::{Back, Delivered, Kept, MOVING, Over, What},
    poll::{Refused, Source, event},
    role::{Held, Role},
    sync::{
        Padded, Shadow,
        atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence},
        cell::UnsafeCell,
        const_fn, hint,
    },
    wait::{Enqueued, Left, WaitQueue, Waiter},
};

/// A result, as the user sees it: the patch's `struct asyncfd_result`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AsyncfdResult {
    /// The submitter's own value; never zero, which means a free place.
    pub cookie: u64,
    /// What was submitted.
    pub obj: u64,
    /// The result, or a negative [error number](Errno::as_result).
    pub res: i64,
    /// A second result.
    pub res2: i64,
}

/// The head of a user's ring: the patch's `struct asyncfd_uring`.
#[derive(Debug)]
#[repr(C)]
pub struct Uring {
    ptr: AtomicU64,
    iuser: AtomicU32,
    size: AtomicU32,
    ikernel: AtomicU32,
    /// Nobody's, but in memory that its user can write.
    _unused: AtomicU32,
}

impl Uring {
    const_fn! {
        /// For `size` results at address `ptr`, both indices at `start`.
        pub const fn new(ptr: u64, size: u32, start: u32) -> Self {
            Self {
                ptr: AtomicU64::new(ptr),
                iuser: AtomicU32::new(start),
                size: AtomicU32::new(size),
                ikernel: AtomicU32::new(start),
                _unused: AtomicU32::new(0),
            }
        }
    }

    /// Which result the consumer reads next. The consumer's word.
    pub fn iuser(&self) -> &AtomicU32 {
        &self.iuser
    }

    /// Behind the last result that was stored, or near it: exact when the ring was read
    /// out, and, of the last one, when closing has come to its end.
    pub fn ikernel(&self) -> &AtomicU32 {
        &self.ikernel
    }
}

/// A place in a user's ring, in memory that others may read, or scribble on.
#[derive(Debug)]
#[repr(C)]
pub struct ResultCell {
    cookie: AtomicU64,
    rest: [AtomicU64; 3],
    /// Of who writes it, and of who reads it while nobody may write.
    access: Shadow,
}

impl ResultCell {
    const_fn! {
        /// A free place.
        pub const fn new() -> Self {
            Self {
                cookie: AtomicU64::new(0),
                rest: [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)],
                access: Shadow::new(),
            }
        }
    }

    /// The word that says whether there is a result.
    pub fn cookie(&self) -> &AtomicU64 {
        &self.cookie
    }

    #[inline]
    fn store(&self, result: AsyncfdResult) {
        self.access.write();
        let [obj, res, res2] = &self.rest;
        // Ordering: Relaxed. The cookie publishes them.
        obj.store(result.obj, Ordering::Relaxed);
        res.store(result.res as u64, Ordering::Relaxed);
        res2.store(result.res2 as u64, Ordering::Relaxed);
        // Ordering: Release pairs with the Acquire in `take`: payload before cookie.
        self.cookie.store(result.cookie, Ordering::Release);
    }

    /// Takes the result out, if there is one: what a consumer does, foreign or ours.
    /// It goes on to the next place then, and stores its index in `iuser`.
    #[inline]
    pub fn take(&self) -> Option<AsyncfdResult> {
        // Ordering: Acquire pairs with the Release in `store`.
        let cookie = self.cookie.load(Ordering::Acquire);
        if cookie == 0 {
            return None;
        }
        self.access.read();
        let [obj, res, res2] = &self.rest;
        // Ordering: Relaxed. The cookie came before.
        let result = AsyncfdResult {
            cookie,
            obj: obj.load(Ordering::Relaxed),
            res: res.load(Ordering::Relaxed) as i64,
            res2: res2.load(Ordering::Relaxed) as i64,
        };
        // Ordering: Release pairs with the Acquire in `is_free`: it was copied before
        // it is written again.
        self.cookie.store(0, Ordering::Release);
        Some(result)
    }

    /// Whether the cookie is zero. (Its lap has to agree.)
    #[inline]
    fn is_free(&self) -> bool {
        // Ordering: Acquire pairs with the Release in `take`.
        self.cookie.load(Ordering::Acquire) == 0
    }
}

impl Default for ResultCell {
    fn default() -> Self {
        Self::new()
    }
}

/// The private word beside a place: who may use it next. Only an asyncfd writes it.
#[derive(Debug)]
pub struct LapCell(AtomicU64);

impl LapCell {
    const_fn! {
        /// The word of a place that was never used.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }
}

impl Default for LapCell {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(not(any(loom, shuttle)))]
mod layout {
    use super::{AsyncfdResult, ResultCell, Uring};
    use core::mem::{align_of, offset_of, size_of};
    use static_assertions::const_assert_eq;

    const_assert_eq!(size_of::<Uring>(), 24);
    const_assert_eq!(align_of::<Uring>(), 8);
    const_assert_eq!(offset_of!(Uring, ptr), 0);
    const_assert_eq!(offset_of!(Uring, iuser), 8);
    const_assert_eq!(offset_of!(Uring, size), 12);
    const_assert_eq!(offset_of!(Uring, ikernel), 16);
    const_assert_eq!(size_of::<ResultCell>(), 32);
    const_assert_eq!(align_of::<ResultCell>(), 8);
    const_assert_eq!(offset_of!(ResultCell, cookie), 0);
    const_assert_eq!(offset_of!(ResultCell, rest), 8);
    const_assert_eq!(size_of::<AsyncfdResult>(), 32);
    const_assert_eq!(offset_of!(AsyncfdResult, cookie), 0);
    const_assert_eq!(offset_of!(AsyncfdResult, obj), 8);
    const_assert_eq!(offset_of!(AsyncfdResult, res), 16);
    const_assert_eq!(offset_of!(AsyncfdResult, res2), 24);
}

/// The memory of one user's ring.
///
/// # Safety
///
/// Each method returns the same memory on every call, valid as long as `self`, none of
/// it within another, and no other ring of an asyncfd uses it meanwhile. `laps` is as long as `results`, private, and new.
/// The header's words and the results may be written by others at any time, but only
/// as whole words.
pub unsafe trait UringMemory {
    /// The head.
    fn uring(&self) -> &Uring;
    /// The places.
    fn results(&self) -> &[ResultCell];
    /// One private word per place.
    fn laps(&self) -> &[LapCell];
}

/// The largest ring: 2^24 results.
pub const MAX_RESULTS: usize = 1 << 24;

/// How many rings there can be: the present one, and those that are not read out.
pub const RINGS: usize = 4;

/// How many results are stored at once.
const CHUNK: usize = 32;

const INDEX_BITS: u32 = 24;
const LAP: u64 = u64::MAX >> INDEX_BITS;

/// Of the gate; see the [module](self).
const ENTRY: u64 = 1 << 3;
const CLOSED: u64 = 1 << 2;
const WHICH: u64 = 0b11;
/// Of what a ring is owed: it was replaced, or closed. Alone: and nobody is in it.
const OUT: u64 = 1;

/// A place's position: which lap, which index.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Position(u64);

impl Position {
    const fn new(lap: u64, index: u32) -> Self {
        Self(lap << INDEX_BITS | index as u64)
    }

    const fn lap(self) -> u64 {
        self.0 >> INDEX_BITS
    }

    const fn index(self) -> usize {
        self.0 as usize & ((1 << INDEX_BITS) - 1)
    }

    const fn next(self, size: usize) -> Self {
        match self.index() + 1 {
            index if index < size => Self(self.0 + 1),
            _ => Self::new((self.lap() + 1) & LAP, 0),
        }
    }
}

/// One ring of several.
struct Place<M> {
    /// How many times more it was entered than left, once it is replaced; until then,
    /// how many times it was left, negated. In units of `ENTRY`, and `OUT`.
    owed: Padded<AtomicU64>,
    /// Where the next result goes: a [`Position`].
    tail: Padded<AtomicU64>,
    /// Written while no ring is here: by who replaces, and by the consumer.
    ring: UnsafeCell<Option<M>>,
}

impl<M> Place<M> {
    const_fn! {
        const fn new() -> Self {
            Self {
                owed: Padded(AtomicU64::new(0)),
                tail: Padded(AtomicU64::new(0)),
                ring: UnsafeCell::new(None),
            }
        }
    }

    /// Calls `f` on its ring.
    ///
    /// # Safety
    ///
    /// There is one, and it stays: the caller has entered it, or is the consumer and it
    /// is the first.
    unsafe fn with<O>(&self, f: impl FnOnce(&M) -> O) -> Option<O> {
        self.ring.with(|ring| {
            // SAFETY: nobody writes it, by the contract.
            unsafe { (*ring).as_ref() }.map(f)
        })
    }

    /// Whether it was replaced or closed and nobody is in it.
    fn is_out(&self) -> bool {
        // Ordering: Acquire pairs with the Release in `Entry::leave`: what they wrote;
        // and with the one in `retire`: the next ring.
        self.owed.load(Ordering::Acquire) == OUT
    }
}

/// Why a ring is refused.
fn check<M: UringMemory>(memory: &M) -> Result<(), Errno> {
    let size = memory.results().len();
    if size == 0 || size > MAX_RESULTS || memory.laps().len() != size {
        return Err(Errno::EINVAL);
    }
    // Ordering: Relaxed, of both. Its user may write them at any time.
    let uring = memory.uring();
    let iuser = uring.iuser.load(Ordering::Relaxed);
    let ikernel = uring.ikernel.load(Ordering::Relaxed);
    match iuser.max(ikernel) as usize >= size {
        true => Err(Errno::EFAULT),
        false => Ok(()),
    }
}

/// What a consumer is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "who sleeps although there are results is not woken for them"]
pub enum Drained {
    /// Pop: there are results.
    Unread,
    /// Sleep: who stores the next one calls.
    Empty,
}

/// A pollable collection of results in the user's own ring. See the [module](self).
///
/// ```
/// # uaio_core::sync::thread::model(|| (|| {
/// use std::{future::Future, pin::pin, sync::Arc, task::{Context, Poll, Waker}};
/// use uaio_core::asyncfd::{AsyncfdResult, Asyncfd, Drained, Inline, UringMemory};
///
/// let small: Box<dyn UringMemory> = Box::new(Inline::<2>::new());
/// let asyncfd = Asyncfd::new(small).map(Arc::new)?;
/// assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
///
/// let result = AsyncfdResult { cookie: 7, res: 4096, ..Default::default() };
/// assert_eq!(asyncfd.add_results(&[result; 3]), Ok(2));
/// assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
///
/// // A larger one. Nobody writes the old one any more once this resolves; what is in
/// // it is read first.
/// let larger = Box::new(Inline::<4>::new());
/// let mut replaced = pin!(asyncfd.replace(larger).map_err(|refused| refused.error)?);
/// let mut task = Context::from_waker(Waker::noop());
/// assert_eq!(replaced.as_mut().poll(&mut task), Poll::Ready(()));
/// assert_eq!(asyncfd.add_results(&[result]), Ok(1));
///
/// let mut out = [AsyncfdResult::default(); 4];
/// assert_eq!(asyncfd.pop(&mut out), Ok(3));
/// assert_eq!(out[2], result);
/// # Ok::<(), uaio_core::Errno>(())
/// # })().unwrap());
/// ```
pub struct Asyncfd<M: UringMemory> {
    gate: Padded<AtomicU64>,
    /// Whether the consumer has something to do.
    readable: Padded<AtomicU32>,
    /// The consumer's ring, counted from the first that there was.
    first: AtomicU64,
    consuming: Role,
    replacing: Role,
    /// What did not fit: a stack, the last on top; or `MOVING`; or both.
    kept: AtomicPtr<Kept>,
    /// The consumer's: what of that it has taken over, the first in front.
    moving: UnsafeCell<*const Kept>,
    readers: WaitQueue,
    places: [Place<M>; RINGS],
}

// SAFETY: rings are shared by reference while they are entered, and move between
// threads; the list's nodes lead to what is Sync.
unsafe impl<M: UringMemory + Send + Sync> Sync for Asyncfd<M> {}
// SAFETY: as for Sync.
unsafe impl<M: UringMemory + Send> Send for Asyncfd<M> {}

impl<M: UringMemory> fmt::Debug for Asyncfd<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asyncfd")
            .field("closed", &self.is_closed())
            .field("readable", &self.is_readable())
            .finish_non_exhaustive()
    }
}

impl<M: UringMemory> Asyncfd<M> {
    /// One whose results go to `ring`, behind what is in it.
    ///
    /// # Errors
    ///
    /// EINVAL: there is no place in it, or more than [`MAX_RESULTS`]. EFAULT: an index
    /// is out of range.
    pub fn new(ring: M) -> Result<Self, Errno> {
        Self::new_at(ring, 0, 0)
    }

    /// One whose counts start there: for tests next to the wrap.
    ///
    /// # Errors
    ///
    /// As of [`new`](Self::new).
    pub fn new_at(ring: M, lap: u64, entries: u64) -> Result<Self, Errno> {
        check(&ring)?;
        let this = Self {
            gate: Padded(AtomicU64::new(entries.wrapping_mul(ENTRY))),
            readable: Padded(AtomicU32::new(1)),
            first: AtomicU64::new(0),
            consuming: Role::new(),
            replacing: Role::new(),
            kept: AtomicPtr::new(ptr::null_mut()),
            moving: UnsafeCell::new(ptr::null()),
            readers: WaitQueue::new(),
            #[cfg(not(loom))]
            places: [const { Place::new() }; RINGS],
            #[cfg(loom)]
            places: core::array::from_fn(|_| Place::new()),
        };
        let left = entries.wrapping_mul(ENTRY).wrapping_neg();
        // SAFETY: nobody else knows it.
        unsafe { this.places[0].begin(ring, lap & LAP, left) };
        Ok(this)
    }

    /// Stores results in order, as many as there is room for, and tells how many.
    ///
    /// Lock-free, from any context; nobody is waited for. While results are kept back
    /// there is no room for others.
    ///
    /// # Errors
    ///
    /// EINVAL: one has cookie zero; none is stored. EBADFD: it is closed.
    pub fn add_results(&self, results: &[AsyncfdResult]) -> Result<usize, Errno> {
        if results.iter().any(|result| result.cookie == 0) {
            return Err(Errno::EINVAL);
        }
        // Ordering: Acquire pairs with the Release in `move_in`; before it enters, as in
        // `deliver`.
        let full = !self.kept.load(Ordering::Acquire).is_null();
        let entry = self.enter()?;
        // Re-check: what was kept back comes first.
        if full {
            return Ok(0);
        }
        let n = entry.add(results.len(), results.iter().copied());
        let news = n > 0 && self.is_news(|| entry.is_visible());
        entry.tell(news);
        Ok(n)
    }

    fn enter(&self) -> Result<Entry<'_, M>, Errno> {
        // Ordering: Acquire pairs with the Release in `replace`: what is in the place.
        let gate = self.gate.fetch_add(ENTRY, Ordering::Acquire);
        // Re-check: who is refused is counted by nobody.
        if gate & CLOSED != 0 {
            return Err(Errno::EBADFD);
        }
        let which = gate & WHICH;
        Ok(Entry {
            asyncfd: self,
            which,
            place: &self.places[which as usize],
        })
    }

    /// Takes results out, in order, and tells how many. Never waits.
    ///
    /// # Errors
    ///
    /// EFAULT: the ring's `iuser` is out of range. EBUSY: somebody else consumes.
    pub fn pop(&self, out: &mut [AsyncfdResult]) -> Result<usize, Errno> {
        let mut n = 0;
        let popped = self.pop_into(out, &mut n);
        self.uncover();
        match popped {
            Err(error) if n == 0 => Err(error),
            _ => Ok(n),
        }
    }

    /// Tells of what the consumer finds in front, if nobody has since it drained last:
    /// who stored that may have seen it behind what was popped meanwhile.
    fn uncover(&self) {
        // Ordering: Relaxed. Only a drain resets it, which had the role before.
        // Re-check: it will drain.
        if self.readable.load(Ordering::Relaxed) != 0 {
            return;
        }
        let done = self.consume().and_then(|consumer| {
            // Ordering: SeqCst, against the fence in `is_news`: who stored sees what was
            // popped, or we see what it stored. With the role: so what was popped by
            // those who find us at it lies before, too.
            fence(Ordering::SeqCst);
            consumer.is_done()
        });
        // Re-check: nobody else consumes, and would see to it.
        if done != Ok(true) && done != Err(Errno::EBUSY) {
            self.tell(event::IN);
        }
    }

    fn pop_into(&self, out: &mut [AsyncfdResult], n: &mut usize) -> Result<(), Errno> {
        while *n < out.len() {
            let consumer = self.consume()?;
            *n += consumer.take(&mut out[*n..])?;
            if *n < out.len() {
                match consumer.front()? {
                    Front::Unread => {}
                    Front::Empty => break,
                    Front::Read(old) => {
                        drop(consumer);
                        drop(old);
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves in what was kept back, and tells whether there is something to pop. If
    /// not, it is not readable any more, and the next result makes it so: the last
    /// thing that a consumer calls before it sleeps.
    ///
    /// # Errors
    ///
    /// As of [`pop`](Self::pop); it stays readable then.
    pub fn drain(&self) -> Result<Drained, Errno> {
        let mut owes = Owes::default();
        let drained = self.drain_to(&mut owes);
        // Ordering: Relaxed. Only a drain resets it, which had the role before.
        let told = self.readable.load(Ordering::Relaxed) != 0;
        // Re-check: nobody may have told of what is there, seeing it behind what was
        // popped meanwhile. With the role given up.
        if owes.others || !told && drained != Ok(Drained::Empty) {
            self.tell(event::IN);
        }
        drained
    }

    fn drain_to(&self, owes: &mut Owes) -> Result<Drained, Errno> {
        let mut consumer = self.consume()?;
        loop {
            owes.others |= consumer.move_in();
            match consumer.front()? {
                Front::Unread => return Ok(Drained::Unread),
                Front::Empty => {
                    // Re-check: what came before it was reset.
                    if owes.reset {
                        return Ok(Drained::Empty);
                    }
                    owes.reset = true;
                    // Ordering: Relaxed. The fence below.
                    self.readable.swap(0, Ordering::Relaxed);
                    // Ordering: SeqCst, against the fence in `is_news`: who published
                    // sees that it is not readable, or we see what was published.
                    fence(Ordering::SeqCst);
                }
                Front::Read(old) => {
                    drop(consumer);
                    drop(old);
                    consumer = self.consume()?;
                }
            }
        }
    }

    /// Replaces the ring by another. What is in the old one is read first; the next
    /// drain moves what was kept back into the new one.
    ///
    /// The future resolves when nobody stores results in the old ring any more, nor in one
    /// before it, and what they stored there is seen then. It may have to wait for who is
    /// just replacing the ring again. The consumer still does: it frees places, and leaves the indices as they
    /// belong; so the memory is used until it is dropped, which is when the consumer has
    /// read it out, or with the asyncfd. It is replaced also if the future is dropped.
    ///
    /// # Errors
    ///
    /// As of [`new`](Self::new); and EBUSY: as many rings as there can be are not read
    /// out yet, or somebody else is replacing it right now. EBADFD: it is closed. The
    /// memory is given back.
    pub fn replace(&self, ring: M) -> Result<Out<'_, M>, Refused<M>> {
        let refuse = |error, request| Err(Refused { error, request });
        if let Err(error) = check(&ring) {
            return refuse(error, ring);
        }
        let Some(replacing) = self.replacing.take() else {
            return refuse(Errno::EBUSY, ring);
        };
        // Ordering: Relaxed. Only who has the role turns it, and the compare-and-swap
        // below decides.
        let mut gate = self.gate.load(Ordering::Relaxed);
        // Ordering: Acquire pairs with the Release in `front`: the ring that was in the
        // place has left it.
        let first = self.first.load(Ordering::Acquire);
        let epoch = present(gate, first);
        // Re-check: nobody enters a closed one.
        if gate & CLOSED != 0 {
            return refuse(Errno::EBADFD, ring);
        }
        // Re-check: a place is used again once its ring was read.
        if epoch.wrapping_sub(first) as usize >= RINGS - 1 {
            return refuse(Errno::EBUSY, ring);
        }
        let next = epoch.wrapping_add(1) & WHICH;
        let place = &self.places[next as usize];
        // SAFETY: nothing is in it, nobody can enter it, and nobody else replaces.
        unsafe { place.begin(ring, 0, 0) };
        loop {
            // Re-check: nobody enters a closed one.
            if gate & CLOSED != 0 {
                // SAFETY: as above.
                let ended = unsafe { place.end() };
                // As `begin` demands.
                self.tell(event::IN);
                match ended {
                    Some(ring) => return refuse(Errno::EBADFD, ring),
                    None => unreachable!("the ring was put there above"),
                }
            }
            // Ordering: Release pairs with the Acquire in `enter`: the ring that is in
            // its place.
            match self
                .gate
                .compare_exchange_weak(gate, next, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(now) => gate = now,
            }
        }
        drop(replacing);
        self.retire(gate);
        // All may have left the old one; what is kept back can move into the new one. And
        // as `begin` demands.
        self.tell(event::IN);
        Ok(Out::of(self, epoch, false))
    }

    /// Nobody enters the ring any more that this gate led to. The caller tells.
    fn retire(&self, gate: u64) {
        let owed = &self.places[(gate & WHICH) as usize].owed;
        // Ordering: Release pairs with the Acquire in `is_out`: who finds it out finds
        // the gate turned.
        owed.fetch_add(gate & !(ENTRY - 1) | OUT, Ordering::Release);
    }

    /// Closes it: results are refused from now on. What is in the rings can still be
    /// popped.
    ///
    /// The future resolves when nobody stores results any more, for each who closes it.
    /// What was kept back comes out of its context instead, where what completes meanwhile
    /// may have come first: when all who close it have resolved, it has. For ordinary
    /// callers: it may have to spin for who is just popping.
    pub fn close(&self) -> Out<'_, M> {
        // Ordering: Acquire pairs with the Release in `replace`: what the ring is owed
        // was set before, and `first` is not far behind.
        let gate = self.gate.fetch_or(CLOSED, Ordering::Acquire);
        // Re-check: it is closed once.
        if gate & CLOSED == 0 {
            self.retire(gate);
            self.tell(event::IN | event::HUP);
        }
        // Ordering: Relaxed, as said.
        Out::of(
            self,
            present(gate, self.first.load(Ordering::Relaxed)),
            true,
        )
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        // Ordering: Relaxed. A hint.
        self.gate.load(Ordering::Relaxed) & CLOSED != 0
    }

    /// Whether the consumer has something to do, or had, and has not drained since.
    pub fn is_readable(&self) -> bool {
        // Ordering: Acquire pairs with the Release in `tell`: who finds it readable finds
        // what there is to read.
        self.readable.load(Ordering::Acquire) != 0
    }

    /// Waits until it is [readable](Self::is_readable), or closed. The consumer drains
    /// before.
    pub fn readable(&self) -> Readable<&Self> {
        Readable::new(self)
    }

    /// Makes it readable, and calls those who wait.
    fn tell(&self, events: u16) {
        // Ordering: Release pairs with the fence in `drain_to` and with the Acquire in
        // `is_readable`: what there is to tell. A drain whose swap comes later sees it, and
        // so does who looks behind a fence that comes after the drain's: what happens before
        // a fence is seen behind later ones. One whose swap comes before leaves the word
        // set. Hence not a store, which would hide what others told before.
        self.readable.swap(1, Ordering::Release);
        self.readers.wake(events);
    }

    /// Whether what was just published is to be told: nobody has told the consumer
    /// since it drained last, and it finds something to do.
    fn is_news(&self, visible: impl FnOnce() -> bool) -> bool {
        // Ordering: SeqCst, against the fence in `drain`: it sees what was published, or
        // we see that it is not readable.
        fence(Ordering::SeqCst);
        // Ordering: Relaxed, of both, behind the fence.
        // Re-check: who was told before has not drained since.
        if self.readable.load(Ordering::Relaxed) != 0 {
            return false;
        }
        // What was kept back can move to where the consumer has been, now that we have
        // said that we are done there.
        visible() || !self.kept.load(Ordering::Relaxed).is_null()
    }

    fn consume(&self) -> Result<Consumer<'_, M>, Errno> {
        let held = self.consuming.take().ok_or(Errno::EBUSY)?;
        Ok(Consumer {
            asyncfd: self,
            _held: held,
        })
    }

    /// Whether nobody writes a ring up to `epoch` any more, nor will.
    fn is_out(&self, epoch: u64) -> bool {
        // Ordering: Acquire pairs with the Release in `front`: those before it were out,
        // and what was done there is over. It is at most three behind.
        let first = self.first.load(Ordering::Acquire);
        let mut old = epoch.wrapping_sub(first) as i64;
        while old >= 0 {
            let which = epoch.wrapping_sub(old as u64) & WHICH;
            // Or its place is another ring's already: then its replacer has yet to tell.
            if !self.places[which as usize].is_out() {
                return false;
            }
            old -= 1;
        }
        true
    }
}

/// The number of the ring that this gate leads to; `first` is at most three behind.
const fn present(gate: u64, first: u64) -> u64 {
    first.wrapping_add((gate & WHICH).wrapping_sub(first) & WHICH)
}

impl<M: UringMemory> Place<M> {
    /// Puts a ring here. The caller tells: see `owed`.
    ///
    /// # Safety
    ///
    /// None is here, and nobody enters it meanwhile.
    unsafe fn begin(&self, ring: M, lap: u64, owed: u64) {
        // Ordering: Relaxed. Who takes this for the ring that was here before looks again
        // when the replacer tells, which has acquired that the consumer had left that: what
        // happens before the fence of its wake is seen behind the one of who waits, or who
        // waits is woken.
        self.owed.store(owed, Ordering::Relaxed);
        // Ordering: Relaxed, of all. The gate publishes them.
        let start = ring.uring().ikernel.load(Ordering::Relaxed);
        // Whatever was written there since it was checked.
        let start = start % ring.laps().len() as u32;
        for (index, cell) in ring.laps().iter().enumerate() {
            let first = lap + u64::from(index < start as usize);
            cell.0.store(first & LAP, Ordering::Relaxed);
        }
        self.tail
            .store(Position::new(lap, start).0, Ordering::Relaxed);
        self.ring.with_mut(|place| {
            // SAFETY: by the contract.
            unsafe { *place = Some(ring) }
        });
    }

    /// Takes the ring away, if one is here.
    ///
    /// # Safety
    ///
    /// Nobody is in it, nor enters it, and nobody consumes it.
    unsafe fn end(&self) -> Option<M> {
        let ring = self.ring.with_mut(|ring| {
            // SAFETY: by the contract.
            unsafe { (*ring).take() }
        });
        ring.inspect(|ring| self.project(ring))
    }

    /// Writes where the next result would go, for who gets the memory. Nobody stores
    /// any.
    fn project(&self, ring: &M) {
        // Ordering: Relaxed, of both. Whoever gets the memory is told that by others.
        let tail = Position(self.tail.load(Ordering::Relaxed));
        let ikernel = &ring.uring().ikernel;
        ikernel.store(tail.index() as u32, Ordering::Relaxed);
    }
}

/// A ring that somebody has entered. It stays until it is left, by dropping this.
struct Entry<'a, M: UringMemory> {
    asyncfd: &'a Asyncfd<M>,
    which: u64,
    place: &'a Place<M>,
}

impl<M: UringMemory> Entry<'_, M> {
    /// Stores as many of the `max` results as there is room for, and tells how many.
    fn add(&self, max: usize, results: impl IntoIterator<Item = AsyncfdResult>) -> usize {
        // SAFETY: entered.
        let added = unsafe { self.place.with(|ring| self.add_to(ring, max, results)) };
        added.unwrap_or(0)
    }

    fn add_to(
        &self,
        ring: &M,
        max: usize,
        results: impl IntoIterator<Item = AsyncfdResult>,
    ) -> usize {
        let cells = ring.results();
        let laps = &ring.laps()[..cells.len()];
        let Some((start, n)) = self.reserve(cells, laps, max) else {
            return 0;
        };
        let mut at = start;
        for result in results.into_iter().take(n) {
            cells[at.index()].store(result);
            // Ordering: Release pairs with the Acquire in `reserve`: the cookie, for
            // who looks whether it is zero again.
            laps[at.index()]
                .0
                .store((at.lap() + 1) & LAP, Ordering::Release);
            at = at.next(cells.len());
        }
        // Ordering: Relaxed. A projection: the cookies say what there is to read.
        let ikernel = &ring.uring().ikernel;
        ikernel.store(at.index() as u32, Ordering::Relaxed);
        n
    }

    /// Reserves at least one place and at most `max`, the caller's to fill.
    fn reserve(
        &self,
        cells: &[ResultCell],
        laps: &[LapCell],
        max: usize,
    ) -> Option<(Position, usize)> {
        let tail = &self.place.tail;
        // Ordering: Relaxed. The compare-and-swap decides.
        let mut start = Position(tail.load(Ordering::Relaxed));
        loop {
            let mut n = 0;
            let mut end = start;
            while n < max.min(cells.len()) {
                // Ordering: Acquire pairs with the Release in `add_to`.
                let lap = laps[end.index()].0.load(Ordering::Acquire);
                // Re-check: a place that was reserved before and is not filled yet
                // has a cookie of zero too.
                if lap != end.lap() {
                    break;
                }
                // Re-check: its result has been read.
                if !cells[end.index()].is_free() {
                    break;
                }
                end = end.next(cells.len());
                n += 1;
            }
            if n == 0 {
                // Ordering: Relaxed. It is later than what the lap told of.
                let now = Position(tail.load(Ordering::Relaxed));
                // Re-check: what looks taken may lie behind.
                if now != start {
                    start = now;
                    continue;
                }
                return None;
            }
            // Ordering: Relaxed. The places were looked at with Acquire, and nobody
            // else has them while the tail is where it was.
            match tail.compare_exchange_weak(start.0, end.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some((start, n)),
                Err(now) => start = Position(now),
            }
        }
    }

    /// Whether the consumer finds something to do, as far as this ring and the one it
    /// is at tell.
    fn is_visible(&self) -> bool {
        // Ordering: Relaxed. Behind the fence in `is_news`: what the consumer did before it
        // drained last is seen; and if it was not before, it sees what we published.
        let first = self.asyncfd.first.load(Ordering::Relaxed) & WHICH;
        // Re-check: behind a ring that is still written it sees nothing.
        if first != self.which {
            return self.asyncfd.places[first as usize].is_out();
        }
        // SAFETY: entered.
        let unread = unsafe { self.place.with(is_unread) };
        // An index that is out of range is for the consumer to learn.
        unread.is_none_or(|unread| unread.unwrap_or(true))
    }

    /// Leaves it, and says whether that was the last to leave, who has to tell.
    fn leave(self) -> bool {
        let this = ManuallyDrop::new(self);
        // Ordering: Release pairs with the Acquire in `is_out`: our last access.
        let before = this.place.owed.fetch_sub(ENTRY, Ordering::Release);
        // The last one, of a ring that was replaced or closed.
        before == ENTRY | OUT
    }

    /// Leaves it, and tells the consumer if there are news, or if that is news. Then: who
    /// is called may wait until nobody is in the ring.
    fn tell(self, news: bool) {
        let asyncfd = self.asyncfd;
        // Also the last to leave, whatever else it has to tell.
        if self.leave() | news {
            asyncfd.tell(event::IN);
        }
    }
}

impl<M: UringMemory> Drop for Entry<'_, M> {
    fn drop(&mut self) {
        let Self {
            asyncfd,
            which,
            place,
        } = *self;
        let this = Entry {
            asyncfd,
            which,
            place,
        };
        this.tell(false);
    }
}

/// Whether there is a result where the consumer reads next.
///
/// # Errors
///
/// EFAULT: its index is out of range.
fn is_unread<M: UringMemory>(ring: &M) -> Result<bool, Errno> {
    // Ordering: Relaxed, of both. They decide what to look at, between fences.
    let iuser = ring.uring().iuser.load(Ordering::Relaxed) as usize;
    let cell = ring.results().get(iuser).ok_or(Errno::EFAULT)?;
    Ok(cell.cookie.load(Ordering::Relaxed) != 0)
}

/// The one who consumes.
struct Consumer<'a, M: UringMemory> {
    asyncfd: &'a Asyncfd<M>,
    _held: Held<'a>,
}

/// What is in front of the consumer.
enum Front<M> {
    /// A result.
    Unread,
    /// Nothing.
    Empty,
    /// Nothing, and it went on to the next ring. The old one is nobody's any more.
    Read(M),
}

impl<M: UringMemory> Consumer<'_, M> {
    fn first(&self) -> (u64, &Place<M>) {
        // Ordering: Relaxed. The consumer's own.
        let first = self.asyncfd.first.load(Ordering::Relaxed);
        (first, &self.asyncfd.places[(first & WHICH) as usize])
    }

    /// Takes results out of the first ring.
    fn take(&self, out: &mut [AsyncfdResult]) -> Result<usize, Errno> {
        let (_, place) = self.first();
        let take = |ring: &M| {
            let (uring, cells) = (ring.uring(), ring.results());
            // Ordering: Relaxed. The consumer's own, though others may write it.
            let mut index = uring.iuser.load(Ordering::Relaxed) as usize;
            let mut n = 0;
            while n < out.len() {
                let cell = cells.get(index).ok_or(Errno::EFAULT)?;
                let Some(result) = cell.take() else {
                    break;
                };
                out[n] = result;
                n += 1;
                index = if index + 1 < cells.len() {
                    index + 1
                } else {
                    0
                };
            }
            if n > 0 {
                // Ordering: Relaxed. Who goes on from there looks at the cookies.
                uring.iuser.store(index as u32, Ordering::Relaxed);
            }
            Ok(n)
        };
        // SAFETY: the consumer's first.
        unsafe { place.with(take) }.unwrap_or(Ok(0))
    }

    /// Whether there is nothing to do for it.
    fn is_done(&self) -> Result<bool, Errno> {
        let (first, place) = self.first();
        let out = place.is_out();
        // SAFETY: the consumer's first.
        if unsafe { place.with(is_unread) }.unwrap_or(Ok(false))? {
            return Ok(false);
        }
        // Ordering: Relaxed, of both. Turned before it was out; and behind the fence in
        // `uncover`.
        let gate = self.asyncfd.gate.load(Ordering::Relaxed);
        let kept = self.asyncfd.kept.load(Ordering::Relaxed);
        // There is no other ring, nor anything to be moved in.
        Ok((!out || gate & WHICH == first & WHICH) && kept.is_null())
    }

    /// What is in front; goes on to the next ring if this one is read.
    fn front(&self) -> Result<Front<M>, Errno> {
        let (first, place) = self.first();
        // Before it is looked at: what is found then is all.
        let out = place.is_out();
        // SAFETY: the consumer's first.
        if unsafe { place.with(is_unread) }.unwrap_or(Ok(false))? {
            return Ok(Front::Unread);
        }
        // Re-check: somebody may still write it.
        if !out {
            return Ok(Front::Empty);
        }
        // Ordering: Relaxed. Turned before it was out.
        let gate = self.asyncfd.gate.load(Ordering::Relaxed);
        // Re-check: there is no next one if it is out because it was closed.
        if gate & WHICH == first & WHICH {
            return Ok(Front::Empty);
        }
        // SAFETY: nobody is in it, nobody can enter it, and the consumer is here.
        let old = unsafe { place.end() };
        // Ordering: Release pairs with the Acquire in `replace`: the place is empty.
        self.asyncfd
            .first
            .store(first.wrapping_add(1), Ordering::Release);
        Ok(old.map_or(Front::Empty, Front::Read))
    }

    /// Moves in what was kept back, as much as there is room for. `true`: the caller
    /// tells those who wait, with the role given up.
    #[must_use]
    fn move_in(&self) -> bool {
        let kept = &self.asyncfd.kept;
        let mut owes = false;
        loop {
            let mut first = self.moving();
            if first.is_null() {
                // Ordering: Relaxed. What it leads to is read behind the swap.
                let top = kept.load(Ordering::Relaxed);
                if top.is_null() {
                    return owes;
                }
                if top == MOVING {
                    // Ordering: Release pairs with the Acquire in `deliver`: what
                    // was moved in has its place before what comes now.
                    let none = kept.compare_exchange(
                        top,
                        ptr::null_mut(),
                        Ordering::Release,
                        Ordering::Relaxed,
                    );
                    // Re-check: more was kept back meanwhile.
                    if none.is_ok() {
                        return owes;
                    }
                    continue;
                }
                // Ordering: Acquire pairs with the Release in `deliver`: the nodes.
                first = Kept::in_order(kept.swap(MOVING, Ordering::Acquire));
            }
            let Ok(entry) = self.asyncfd.enter() else {
                self.set_moving(first);
                return owes;
            };
            // SAFETY: the list is the consumer's.
            let n = unsafe { Kept::count(first, CHUNK) };
            let results = core::iter::from_fn(|| {
                // SAFETY: the list is the consumer's, and the node is not used any more.
                let (kept, next) = unsafe { Kept::take(first) };
                first = next;
                // SAFETY: it was not over before.
                unsafe { kept.back.over(kept.result, Over::Moved) };
                Some(kept.result)
            });
            let added = entry.add(n, results);
            owes |= entry.leave();
            self.set_moving(first);
            if added == 0 {
                return owes;
            }
        }
    }

    fn moving(&self) -> *const Kept {
        self.asyncfd.moving.with(|moving| {
            // SAFETY: the consumer's.
            unsafe { *moving }
        })
    }

    fn set_moving(&self, first: *const Kept) {
        self.asyncfd.moving.with_mut(|moving| {
            // SAFETY: the consumer's.
            unsafe { *moving = first }
        });
    }
}

/// Whom a drain has to tell, when it has given up its role.
#[derive(Default)]
struct Owes {
    /// It was reset, so those who have come to wait since.
    reset: bool,
    /// As the last to leave a ring.
    others: bool,
}

/// What leads to an asyncfd as long as it lives: a reference or an `Arc`, pinned or not.
pub trait Lead: private::Lead {}
pub(crate) use private::Lead as Leads;

mod private {
    use core::pin::Pin;

    use super::{Asyncfd, UringMemory};

    pub trait Lead {
        type Memory: UringMemory;
        fn asyncfd(&self) -> &Asyncfd<Self::Memory>;
    }

    macro_rules! leads {
        ($pointer:ty, $($lifetime:lifetime)?) => {
            impl<$($lifetime,)? M: UringMemory> Lead for $pointer {
                type Memory = M;
                fn asyncfd(&self) -> &Asyncfd<M> {
                    self
                }
            }
            impl<$($lifetime,)? M: UringMemory> super::Lead for $pointer {}
        };
    }
    leads!(&'a Asyncfd<M>, 'a);
    leads!(Pin<&'a Asyncfd<M>>, 'a);
    #[cfg(feature = "alloc")]
    leads!(alloc::sync::Arc<Asyncfd<M>>,);
    #[cfg(feature = "alloc")]
    leads!(Pin<alloc::sync::Arc<Asyncfd<M>>>,);
}

impl<M: UringMemory> Asyncfd<M> {
    /// Stores the result, or keeps it back, unless it is closed.
    ///
    /// # Safety
    ///
    /// `kept` is the request's, in no list, and stays until `back` is told.
    pub(crate) unsafe fn deliver(
        &self,
        result: AsyncfdResult,
        kept: &Kept,
        back: Back,
    ) -> Delivered {
        // Before it enters: so no ring is entered that is before the one to which was
        // moved what this producer delivered last.
        //
        // Ordering: Acquire pairs with the Release in `move_in`.
        let mut top = self.kept.load(Ordering::Acquire);
        let Ok(entry) = self.enter() else {
            return Delivered::Refused;
        };
        // Re-check: what the same producer delivered before comes first.
        if top.is_null() {
            let stored = entry.add(
                1,
                core::iter::once_with(|| {
                    // SAFETY: as above.
                    unsafe { back.over(result, Over::Stored) };
                    result
                }),
            );
            if stored > 0 {
                let news = self.is_news(|| entry.is_visible());
                entry.tell(news);
                return Delivered::Stored;
            }
        }
        kept.what.with_mut(|what| {
            // SAFETY: the caller's, in no list.
            unsafe { *what = What { result, back } }
        });
        loop {
            // SAFETY: the caller's, in no list yet.
            unsafe { Kept::set_next(kept, top) };
            // Ordering: Release pairs with the Acquire in `move_in`.
            match self.kept.compare_exchange_weak(
                top,
                ptr::from_ref(kept).cast_mut(),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => top = now,
            }
        }
        let news = self.is_news(|| true);
        entry.tell(news);
        Delivered::Kept
    }
}

impl<M: UringMemory> Asyncfd<M> {
    /// Gives up what was kept back. Nobody is in a ring any more, nor will be.
    fn give_up(&self, consumer: Consumer<'_, M>) {
        let moving = consumer.moving();
        consumer.set_moving(ptr::null());
        // Ordering: Relaxed. Who kept them back has left the rings since, which the caller
        // has seen.
        let rest = Kept::in_order(self.kept.swap(ptr::null_mut(), Ordering::Relaxed));
        // Those who wait for their completions are called with no lock held.
        drop(consumer);
        for list in [moving, rest] {
            // SAFETY: taken off.
            unsafe { Kept::give_up(list) };
        }
    }

    /// Once it is closed and nobody is in a ring: gives up what was kept back, and
    /// leaves the index of the ring as it belongs.
    fn settle(&self) {
        let consumer = loop {
            match self.consume() {
                Ok(consumer) => break consumer,
                Err(_) => hint::spin_loop(),
            }
        };
        // Ordering: Relaxed. It is closed, and does not turn any more.
        let which = self.gate.load(Ordering::Relaxed) & WHICH;
        let place = &self.places[which as usize];
        // SAFETY: who could take it away is the consumer.
        let _ = unsafe { place.with(|ring| place.project(ring)) };
        self.give_up(consumer);
    }
}

impl<M: UringMemory> Drop for Asyncfd<M> {
    fn drop(&mut self) {
        if let Ok(consumer) = self.consume() {
            self.give_up(consumer);
        }
    }
}

/// Resolves when nobody writes a ring any more that was replaced or closed. See
/// [`Asyncfd::replace`] and [`Asyncfd::close`].
#[must_use = "a future does nothing unless it is polled"]
pub struct Out<'a, M: UringMemory> {
    asyncfd: &'a Asyncfd<M>,
    epoch: u64,
    closing: bool,
    waiter: Waiter,
}

/// Resolves when it is [readable](Asyncfd::readable).
#[must_use = "a future does nothing unless it is polled"]
pub struct Readable<L: Lead> {
    asyncfd: L,
    waiter: Waiter,
}

impl<'a, M: UringMemory> Out<'a, M> {
    fn of(asyncfd: &'a Asyncfd<M>, epoch: u64, closing: bool) -> Self {
        Self {
            asyncfd,
            epoch,
            closing,
            waiter: Waiter::new(),
        }
    }
}

impl<M: UringMemory> Out<'_, M> {
    /// Whether it need not wait any longer, as far as one sees who may not wait.
    fn holds(&self) -> bool {
        self.asyncfd.is_out(self.epoch)
    }

    fn is_over(&self) -> bool {
        let out = self.holds();
        if out && self.closing {
            self.asyncfd.settle();
        }
        out
    }
}

impl<L: Lead> Readable<L> {
    const_fn! {
        /// Waits until that is [readable](Asyncfd::is_readable), or closed.
        pub const fn new(asyncfd: L) -> Self {
            Self { asyncfd, waiter: Waiter::new() }
        }
    }

    fn holds(&self) -> bool {
        let asyncfd = self.asyncfd.asyncfd();
        asyncfd.is_readable() || asyncfd.is_closed()
    }

    fn is_over(&self) -> bool {
        self.holds()
    }

    /// Waits no longer, say because its time is up.
    ///
    /// Either its waker was called, once, or is just about to be; or it is not called
    /// at all. Polling again waits again.
    pub fn expire(self: Pin<&mut Self>) -> Expired {
        let this = self.as_ref();
        // SAFETY: the waiter is used with this queue only.
        let left = unsafe { this.asyncfd.asyncfd().readers.leave(this.waiter()) };
        match left {
            Left::Woken => Expired::Woken,
            Left::Unwoken => Expired::TimedOut,
        }
    }
}

macro_rules! waits {
    ($name:literal, $future:ty, $($generics:tt)*) => {
        impl<$($generics)*> fmt::Debug for $future {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($name).finish_non_exhaustive()
            }
        }

        impl<$($generics)*> $future {
            fn waiter(self: Pin<&Self>) -> Pin<&Waiter> {
                // SAFETY: structural: the waiter is never moved out of the future.
                unsafe { self.map_unchecked(|this| &this.waiter) }
            }
        }

        impl<$($generics)*> Future for $future {
            type Output = ();

            fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<()> {
                let this = self.as_ref();
                let queue = &this.asyncfd.asyncfd().readers;
                loop {
                    let (waiter, waker) = (this.waiter(), task.waker());
                    // Nobody else asks: the asyncfd may have moved, if this is forgotten.
                    let ready = || this.holds();
                    // SAFETY: the waiter is used with this queue only; `drop` leaves it.
                    let enqueued = unsafe { queue.enqueue_for_any(waiter, waker, ready) };
                    if enqueued == Ok(Enqueued::Waiting) {
                        return Poll::Pending;
                    }
                    // Re-check: whoever is told anything is woken.
                    if this.is_over() {
                        return Poll::Ready(());
                    }
                    if enqueued.is_err() {
                        // Somebody has closed the queue that the source shows, and nobody
                        // is woken any more.
                        task.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
            }
        }

        impl<$($generics)*> Drop for $future {
            fn drop(&mut self) {
                // SAFETY: the value is not moved until it is gone.
                let this = unsafe { Pin::new_unchecked(&*self) };
                // SAFETY: the waiter is used with this queue only.
                let _ = unsafe { this.asyncfd.asyncfd().readers.leave(this.waiter()) };
            }
        }
    };
}
waits!("Out", Out<'_, M>, M: UringMemory);
waits!("Readable", Readable<L>, L: Lead);

/// An asyncfd is readable when its consumer has something to do, and gone when it is
/// closed.
// SAFETY: the queue is in the asyncfd.
unsafe impl<M: UringMemory> Source for Asyncfd<M> {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.readers);
    }

    fn mask(&self) -> u16 {
        let readable = if self.is_readable() { event::IN } else { 0 };
        let gone = if self.is_closed() { event::HUP } else { 0 };
        readable | gone
    }
}

/// A ring of `N` results, inside the value itself.
#[derive(Debug)]
pub struct Inline<const N: usize> {
    uring: Uring,
    results: [ResultCell; N],
    laps: [LapCell; N],
}

impl<const N: usize> Inline<N> {
    const SIZE: () = assert!(N >= 1 && N <= MAX_RESULTS, "from 1 to 2^24 results");

    /// An empty ring.
    pub fn new() -> Self {
        let () = Self::SIZE;
        Self {
            uring: Uring::new(0, N as u32, 0),
            results: core::array::from_fn(|_| ResultCell::new()),
            laps: core::array::from_fn(|_| LapCell::new()),
        }
    }
}

impl<const N: usize> Default for Inline<N> {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: arrays of equal length, private to the value.
unsafe impl<const N: usize> UringMemory for Inline<N> {
    fn uring(&self) -> &Uring {
        &self.uring
    }
    fn results(&self) -> &[ResultCell] {
        &self.results
    }
    fn laps(&self) -> &[LapCell] {
        &self.laps
    }
}

// SAFETY: it has one, for as long as it lives, which keeps the contract.
#[cfg(feature = "alloc")]
unsafe impl<M: UringMemory + ?Sized> UringMemory for alloc::boxed::Box<M> {
    fn uring(&self) -> &Uring {
        (**self).uring()
    }
    fn results(&self) -> &[ResultCell] {
        (**self).results()
    }
    fn laps(&self) -> &[LapCell] {
        (**self).laps()
    }
}

/// A user's ring, by its address: header and results where the user has them.
#[cfg(all(feature = "alloc", not(any(loom, shuttle))))]
#[derive(Debug)]
pub struct Mapped {
    uring: ptr::NonNull<Uring>,
    results: ptr::NonNull<ResultCell>,
    laps: alloc::boxed::Box<[LapCell]>,
}

#[cfg(all(feature = "alloc", not(any(loom, shuttle))))]
impl Mapped {
    /// The ring that the header at `uring` describes: `size` results at `ptr`. Both
    /// are read once; what is written there later is ignored.
    ///
    /// # Errors
    ///
    /// EINVAL: an address is not aligned to 8; the size is zero or above
    /// [`MAX_RESULTS`]. EFAULT: `ptr` is null, or the results would reach beyond the
    /// end of the address space.
    ///
    /// # Safety
    ///
    /// If `uring` is aligned it is valid for reads and writes of a [`Uring`], and if
    /// no error is returned the results it describes are as well, as long as the value
    /// lives. The header is not among the results, and no other ring of an asyncfd uses
    /// any of it meanwhile. Whatever else accesses them does so
    /// atomically, word by word.
    pub unsafe fn new(uring: ptr::NonNull<Uring>) -> Result<Self, Errno> {
        if !uring.is_aligned() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: aligned, and valid by the caller's promise; all atomics.
        let header = unsafe { uring.as_ref() };
        // Ordering: Relaxed, of both. Read once, and checked.
        let address = header.ptr.load(Ordering::Relaxed);
        let size = header.size.load(Ordering::Relaxed) as usize;
        if size == 0 || size > MAX_RESULTS {
            return Err(Errno::EINVAL);
        }
        let address = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
        let results = ptr::with_exposed_provenance_mut::<ResultCell>(address);
        let results = ptr::NonNull::new(results).ok_or(Errno::EFAULT)?;
        if !results.is_aligned() {
            return Err(Errno::EINVAL);
        }
        if address
            .checked_add(size * size_of::<ResultCell>())
            .is_none()
        {
            return Err(Errno::EFAULT);
        }
        Ok(Self {
            uring,
            results,
            laps: (0..size).map(|_| LapCell::new()).collect(),
        })
    }
}

// SAFETY: the pointers are to words that are only accessed atomically, from any
// thread, and the memory is not tied to one.
#[cfg(all(feature = "alloc", not(any(loom, shuttle))))]
unsafe impl Send for Mapped {}
// SAFETY: as for Send: all access is by atomics.
#[cfg(all(feature = "alloc", not(any(loom, shuttle))))]
unsafe impl Sync for Mapped {}

// SAFETY: `new` made as many laps as there are results, which its caller promised, and
// which are atomics.
#[cfg(all(feature = "alloc", not(any(loom, shuttle))))]
unsafe impl UringMemory for Mapped {
    fn uring(&self) -> &Uring {
        // SAFETY: valid for the value's life, all atomics.
        unsafe { self.uring.as_ref() }
    }
    fn results(&self) -> &[ResultCell] {
        // SAFETY: as many as `new` was promised; atomics, so shared references to them
        // stay valid whoever writes.
        unsafe { core::slice::from_raw_parts(self.results.as_ptr(), self.laps.len()) }
    }
    fn laps(&self) -> &[LapCell] {
        &self.laps
    }
}
