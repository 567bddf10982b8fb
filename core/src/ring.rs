//! The completion ring: many producers, many reapers, batches, two RMW a batch.
//!
//! # Layout
//!
//! In memory that a user may see, the ring is Linux's AIO ring: a [`Header`] of
//! 32 bytes and then `nr` events of 32 bytes each. Beside it, in private
//! memory, stands one *mark* per event:
//!
//! ```text
//!  63        40 39      24 23       0
//! +------------+----------+----------+
//! | lap (24)   | run (16) | tag (24) |   published in this lap: `run` events
//! +------------+----------+----------+   from here on, this one's slot is `tag`
//! ```
//!
//! Positions are 64-bit counts that never wrap in practice and wrap correctly
//! in theory; the low bits index the ring, the rest is the lap.
//!
//! # Publishing a run
//!
//! A producer takes `n` positions with one RMW on `tail`, writes the events,
//! the marks of all but the first, and last, with one Release store, the mark
//! of the first: *from here on `n` events are there*. No producer waits for
//! another one; a run behind an unfinished one is not visible until that one is
//! finished. What is **visible** is the published prefix: from `head`, run
//! after run, as far as the marks are of the present lap.
//!
//! # Reaping: read, then claim
//!
//! A reaper copies events from `head` on and then advances `head` by
//! compare-and-swap. Had it claimed first and copied then, a faster reaper
//! behind it could give back room, and a producer overwrite what is still being
//! copied. This way `head` passes an event only when it has been copied; a
//! copy whose compare-and-swap fails is thrown away. The events are therefore
//! atomics that are read and written word by word (Relaxed): a copy may be torn,
//! but then it is never used.
//!
//! # Room
//!
//! [`Ring::push`] checks against `head`. `Ring::publish` does not: its caller
//! has reserved the room before, as the [context](crate::context) does with its
//! slots. The reservation is what makes completing infallible.
//!
//! # Modes
//!
//! *Native*: as above, `head` and `tail` private, any number of reapers.
//! *Abi*: memory with a header. One reaper at a time, foreign or ours: foreign
//! code reads `tail`, copies, stores `head`. Producers cannot store `tail`
//! themselves, since runs finish in any order and `tail` has no lap; so
//! whoever raises `pending` from zero is the publisher until it is zero again,
//! and the others leave their finished runs to it. It extends the 64-bit prefix
//! and stores its projection. `head` is somebody else's word: it is checked on
//! each reading, and anything but progress within the published prefix is
//! EFAULT. One of the `nr` events stays unused, since equal indices mean empty.
//!
//! # Progress
//!
//! `publish` is wait-free in Native mode and lock-free in Abi mode (the
//! publisher goes on while others finish). `push` and `reap` are lock-free.
//! Nobody waits for a peer that is not running; but a producer that is stopped
//! between taking its positions and publishing them keeps what lies behind them
//! from being visible until it goes on.

use crate::{
    error::Errno,
    role::Role,
    sync::{
        Padded, Shadow,
        atomic::{AtomicU32, AtomicU64, Ordering},
        const_fn,
    },
};

/// A completion, as the user sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// The submitter's own value.
    pub data: u64,
    /// What was submitted; in Linux's AIO the address of the iocb.
    pub obj: u64,
    /// The result, or a negative [error number](Errno::as_result).
    pub res: i64,
    /// A second result; zero unless the operation says otherwise.
    pub res2: i64,
}

/// An [`Event`] in memory that others may read, or scribble on, meanwhile.
#[derive(Debug)]
#[repr(C)]
pub struct EventCell {
    words: [AtomicU64; 4],
    /// Of who writes it, and of who reads it while nobody may write.
    access: Shadow,
}

impl EventCell {
    const_fn! {
        /// An event of zeroes.
        pub const fn new() -> Self {
            Self {
                words: [
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                    AtomicU64::new(0),
                ],
                access: Shadow::new(),
            }
        }
    }

    // Ordering of these: Relaxed. The mark, or in Abi mode the public tail,
    // publishes the words; a reader that is overtaken discards what it read.
    #[inline]
    fn store(&self, event: Event) {
        self.access.write();
        let [data, obj, res, res2] = &self.words;
        data.store(event.data, Ordering::Relaxed);
        obj.store(event.obj, Ordering::Relaxed);
        res.store(event.res as u64, Ordering::Relaxed);
        res2.store(event.res2 as u64, Ordering::Relaxed);
    }

    /// The event, for its reaper, before whose move of the head nobody writes it.
    /// A checker refutes who is not. Read word by word, whatever is there.
    #[inline]
    pub fn load(&self) -> Event {
        self.access.read();
        self.peek()
    }

    /// The event, read word by word: whole only if nobody writes it meanwhile.
    #[inline]
    pub fn peek(&self) -> Event {
        let [data, obj, res, res2] = &self.words;
        Event {
            data: data.load(Ordering::Relaxed),
            obj: obj.load(Ordering::Relaxed),
            res: res.load(Ordering::Relaxed) as i64,
            res2: res2.load(Ordering::Relaxed) as i64,
        }
    }
}

impl Default for EventCell {
    fn default() -> Self {
        Self::new()
    }
}

/// A private word beside an event: what is published, from there on. Only a
/// ring writes it.
#[derive(Debug)]
pub struct MarkCell(AtomicU64);

impl MarkCell {
    const_fn! {
        /// The mark of an event that was never published.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }
}

impl Default for MarkCell {
    fn default() -> Self {
        Self::new()
    }
}

/// The head of a ring in Linux's layout.
#[derive(Debug)]
#[repr(C)]
pub struct Header {
    id: AtomicU32,
    nr: AtomicU32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: AtomicU32,
    compat_features: AtomicU32,
    incompat_features: AtomicU32,
    header_length: AtomicU32,
}

impl Header {
    /// What `magic` holds.
    pub const MAGIC: u32 = 0xa10a_10a1;

    const_fn! {
        /// The header of an empty ring of `nr` events.
        pub const fn new(id: u32, nr: u32) -> Self {
            Self {
                id: AtomicU32::new(id),
                nr: AtomicU32::new(nr),
                head: AtomicU32::new(0),
                tail: AtomicU32::new(0),
                magic: AtomicU32::new(Self::MAGIC),
                compat_features: AtomicU32::new(1),
                incompat_features: AtomicU32::new(0),
                header_length: AtomicU32::new(32),
            }
        }
    }

    /// Where a foreign reaper stands: its word, unchecked.
    pub fn head(&self) -> &AtomicU32 {
        &self.head
    }

    /// Up to where events are published, as foreign code sees it.
    pub fn tail(&self) -> &AtomicU32 {
        &self.tail
    }
}

#[cfg(not(any(loom, shuttle)))]
mod layout {
    use super::{Event, EventCell, Header};
    use core::mem::{align_of, offset_of, size_of};
    use static_assertions::const_assert_eq;

    const_assert_eq!(size_of::<Header>(), 32);
    const_assert_eq!(align_of::<Header>(), 4);
    const_assert_eq!(offset_of!(Header, id), 0);
    const_assert_eq!(offset_of!(Header, nr), 4);
    const_assert_eq!(offset_of!(Header, head), 8);
    const_assert_eq!(offset_of!(Header, tail), 12);
    const_assert_eq!(offset_of!(Header, magic), 16);
    const_assert_eq!(offset_of!(Header, compat_features), 20);
    const_assert_eq!(offset_of!(Header, incompat_features), 24);
    const_assert_eq!(offset_of!(Header, header_length), 28);
    const_assert_eq!(size_of::<EventCell>(), 32);
    const_assert_eq!(size_of::<Event>(), 32);
    const_assert_eq!(offset_of!(Event, data), 0);
    const_assert_eq!(offset_of!(Event, obj), 8);
    const_assert_eq!(offset_of!(Event, res), 16);
    const_assert_eq!(offset_of!(Event, res2), 24);
}

/// The memory that a ring lives in.
///
/// # Safety
///
/// Each method returns the same memory on every call, valid as long as `self`,
/// and new when the ring is made; no other ring is made in it meanwhile. `marks`
/// is as long as `events`, and that length is a power of two, at least 2 and at
/// most [`MAX_EVENTS`]. A header's words and the events may be written by others
/// at any time, but only as whole words; the marks by nobody.
pub unsafe trait RingMemory {
    /// The events.
    fn events(&self) -> &[EventCell];
    /// One mark per event.
    fn marks(&self) -> &[MarkCell];
    /// The public header; its presence selects Abi mode.
    fn header(&self) -> Option<&Header> {
        None
    }
}

/// The largest ring: 2^24 events, since a tag has 24 bits.
pub const MAX_EVENTS: usize = 1 << 24;

const TAG_BITS: u32 = 24;
const RUN_BITS: u32 = 16;
const MAX_RUN: usize = (1 << RUN_BITS) - 1;
const LAP_MASK: u64 = 0xff_ffff;

/// A mark; see the [module](self).
#[derive(Clone, Copy)]
struct Mark(u64);

impl Mark {
    const fn new(lap: u64, run: usize, tag: u32) -> Self {
        Self((lap & LAP_MASK) << (RUN_BITS + TAG_BITS) | (run as u64) << TAG_BITS | tag as u64)
    }

    const fn tag(self) -> u32 {
        self.0 as u32 & ((1 << TAG_BITS) - 1)
    }

    /// How many events are there from this position on, in this lap.
    const fn run(self, lap: u64) -> Option<usize> {
        let run = (self.0 >> TAG_BITS) as usize & MAX_RUN;
        let same = (self.0 >> (RUN_BITS + TAG_BITS)) == lap & LAP_MASK;
        if same && run != 0 { Some(run) } else { None }
    }
}

/// Events and marks, by position.
#[derive(Clone, Copy)]
struct Cells<'m> {
    events: &'m [EventCell],
    marks: &'m [MarkCell],
}

impl<'m> Cells<'m> {
    #[inline]
    fn index(self, position: u64) -> usize {
        position as usize & (self.events.len() - 1)
    }

    #[inline]
    fn lap(self, position: u64) -> u64 {
        position >> self.events.len().trailing_zeros()
    }

    #[inline]
    fn event(self, position: u64) -> &'m EventCell {
        &self.events[self.index(position)]
    }

    #[inline]
    fn mark(self, position: u64) -> &'m AtomicU64 {
        &self.marks[self.index(position)].0
    }

    #[inline]
    fn published(self, position: u64) -> Option<usize> {
        // Ordering: Acquire pairs with the Release that ends `write`: whoever
        // sees the run sees its events and its other marks.
        Mark(self.mark(position).load(Ordering::Acquire)).run(self.lap(position))
    }

    /// How far the public head is ahead of ours, modulo the ring; `None` if it
    /// is no index at all.
    fn foreign_step(self, head: u64, public: usize) -> Option<u64> {
        let len = self.events.len();
        (public < len).then(|| (public.wrapping_sub(self.index(head)) & (len - 1)) as u64)
    }

    /// The tag of a position that is known to be published.
    #[inline]
    fn tag(self, position: u64) -> u32 {
        // Ordering: Relaxed. The Acquire that found the run, or the `head` that
        // was moved into it, came before.
        Mark(self.mark(position).load(Ordering::Relaxed)).tag()
    }
}

/// What only producers write, on a cache line of their own.
#[derive(Debug)]
struct Producers {
    /// The next position to be taken.
    tail: AtomicU64,
    /// A `head` that some producer has seen. Room that it leaves is room.
    seen_head: AtomicU64,
}

/// What only Abi mode uses.
#[derive(Debug)]
struct Projection {
    /// Finished runs that the publisher has not looked for yet.
    pending: AtomicU64,
    /// End of the published prefix; the publisher's.
    published: AtomicU64,
    /// Held by who moves `head`: one reaper at a time.
    reaping: Role,
}

/// A completion ring. See the [module](self).
///
/// ```
/// # uaio_core::sync::thread::model(|| {
/// use uaio_core::ring::{Event, Inline, Ring};
///
/// let ring = Ring::new(Inline::<4>::new());
/// let event = Event { data: 7, res: 4096, ..Event::default() };
/// assert_eq!(ring.push(&[event, event]), 2);
///
/// let mut out = [Event::default(); 8];
/// assert_eq!(ring.reap(&mut out), Ok(2));
/// assert_eq!(out[1], event);
/// # });
/// ```
#[derive(Debug)]
pub struct Ring<M> {
    producers: Padded<Producers>,
    head: Padded<AtomicU64>,
    projection: Padded<Projection>,
    memory: M,
}

impl<M: RingMemory> Ring<M> {
    const_fn! {
        /// An empty ring in `memory`.
        pub const fn new(memory: M) -> Self {
            Self::new_at(memory, 0)
        }
    }

    const_fn! {
        /// An empty ring whose count starts at `position`: for tests next to
        /// the wrap. With a header, `position` must be a multiple of the ring.
        pub const fn new_at(memory: M, position: u64) -> Self {
            Self {
                producers: Padded(Producers {
                    tail: AtomicU64::new(position),
                    seen_head: AtomicU64::new(position),
                }),
                head: Padded(AtomicU64::new(position)),
                projection: Padded(Projection {
                    pending: AtomicU64::new(0),
                    published: AtomicU64::new(position),
                    reaping: Role::new(),
                }),
                memory,
            }
        }
    }

    /// How many events fit.
    #[inline]
    pub fn capacity(&self) -> usize {
        let unused = usize::from(self.memory.header().is_some());
        self.memory.events().len() - unused
    }

    /// The public header, in Abi mode.
    pub fn header(&self) -> Option<&Header> {
        self.memory.header()
    }

    /// The memory, looked up once for an operation: after an atomic, what `self`
    /// holds would be read anew.
    #[inline]
    fn cells(&self) -> Cells<'_> {
        let events = self.memory.events();
        Cells {
            events,
            marks: &self.memory.marks()[..events.len()],
        }
    }

    /// Writes `n` events at `at` and publishes them as one run.
    #[inline(always)]
    fn write(&self, at: u64, n: usize, events: impl IntoIterator<Item = (Event, u32)>) {
        let cells = self.cells();
        let mut first = None;
        for (i, (event, tag)) in events.into_iter().take(n).enumerate() {
            let position = at.wrapping_add(i as u64);
            cells.event(position).store(event);
            let mark = Mark::new(cells.lap(position), n - i, tag);
            if i == 0 {
                first = Some(mark);
            } else {
                // Ordering: Relaxed. Read after the first mark, or after a
                // `head` that was moved past it.
                cells.mark(position).store(mark.0, Ordering::Relaxed);
            }
        }
        if let Some(mark) = first {
            // Ordering: Release pairs with the Acquire in `published`: payload
            // before publication.
            cells.mark(at).store(mark.0, Ordering::Release);
        }
    }

    /// Abi mode: a run is finished; the public tail follows the prefix.
    #[cold]
    #[inline(never)]
    fn project(&self, header: &Header) {
        let cells = self.cells();
        let own = &*self.projection;
        // Ordering: AcqRel. Release hands our run's mark to the publisher;
        // Acquire makes us see the last publisher's `published`.
        if own.pending.fetch_add(1, Ordering::AcqRel) != 0 {
            return;
        }
        let mut seen = 1;
        loop {
            // Ordering: Relaxed. The publisher's own word, handed on by `pending`.
            let mut end = own.published.load(Ordering::Relaxed);
            while let Some(run) = cells.published(end) {
                end = end.wrapping_add(run as u64);
            }
            // Ordering: Release pairs with the Acquire of whoever counts the
            // prefix.
            own.published.store(end, Ordering::Release);
            // Ordering: Release pairs with a foreign reaper's Acquire: the
            // events before the tail that names them.
            header
                .tail
                .store(cells.index(end) as u32, Ordering::Release);
            // Ordering: AcqRel. Release hands `published` on; Acquire makes the
            // marks of those who came meanwhile visible to the next round.
            let now = own.pending.fetch_sub(seen, Ordering::AcqRel);
            // Re-check: who came meanwhile left the projection to us.
            if now == seen {
                return;
            }
            seen = now - seen;
        }
    }

    /// Publishes `n` events whose room was reserved, each with its tag, and tells where
    /// the last of them ends.
    ///
    /// The caller makes sure that never more than [`capacity`](Self::capacity)
    /// events are on their way, in the ring or being copied out of it, and that
    /// giving room back and taking it synchronise. Too many overwrite others.
    #[inline]
    pub(crate) fn publish(&self, n: usize, events: impl IntoIterator<Item = (Event, u32)>) -> u64 {
        let mut events = events.into_iter();
        let mut left = n;
        let mut end = 0;
        while left > 0 {
            let run = left.min(MAX_RUN);
            // Ordering: AcqRel. The chain of these RMWs carries every earlier
            // reservation to this producer: of the events since the position's
            // last lap two had the same slot, so its reaper, and with it this
            // position's, happens before our write. (See `docs/ring.md`; a
            // checker without load buffering cannot see it missing.)
            let at = self.producers.tail.fetch_add(run as u64, Ordering::AcqRel);
            self.write(at, run, events.by_ref());
            if let Some(header) = self.memory.header() {
                self.project(header);
            }
            left -= run;
            end = at.wrapping_add(run as u64);
        }
        end
    }

    /// How far the visible prefix goes, if it goes to `from` at least.
    pub(crate) fn prefix(&self, from: u64) -> u64 {
        if self.memory.header().is_some() {
            return self.prefix_end();
        }
        let cells = self.cells();
        let mut end = from;
        loop {
            while let Some(run) = cells.published(end) {
                end = end.wrapping_add(run as u64);
            }
            // Ordering: Relaxed. What lies behind it was reaped, whoever knows that by
            // now; and what lies before it is found by its marks.
            let head = self.head.load(Ordering::Relaxed);
            // Re-check: it was reaped, and its place is a later lap's.
            if head.wrapping_sub(end) as i64 <= 0 {
                return end;
            }
            end = head;
        }
    }

    /// Stores as many of `events` as there is room for, in order, and tells how
    /// many that were.
    ///
    /// Lock-free; callable from any context. The stored ones are visible once
    /// all positions before them are.
    #[inline(always)]
    pub fn push(&self, events: &[Event]) -> usize {
        match self.memory.header() {
            None => self.push_native(events),
            Some(header) => self.push_abi(header, events),
        }
    }

    #[inline(always)]
    fn push_native(&self, events: &[Event]) -> usize {
        let capacity = self.capacity() as u64;
        let wanted = events.len().min(MAX_RUN);
        // Ordering: Relaxed. The compare-and-swap below decides.
        let mut tail = self.producers.tail.load(Ordering::Relaxed);
        loop {
            let room = |head: u64| {
                // Our `tail` may be older than `head`: then try, and learn.
                let used = tail.wrapping_sub(head) as i64;
                capacity.saturating_sub(used.max(0) as u64) as usize
            };
            let mut n = wanted;
            // `head` itself is on a line that every reaper writes: look there
            // only when what was seen before is not enough.
            //
            // Ordering: Acquire pairs with the Release below, whose producer
            // acquired it from `head`.
            //
            // Re-check: room.
            if room(self.producers.seen_head.load(Ordering::Acquire)) < wanted {
                core::hint::cold_path();
                // Ordering: Acquire pairs with the Release that moves `head`:
                // what lies behind it has been copied.
                let head = self.head.load(Ordering::Acquire);
                // Ordering: Release, as said above. It may go back, when another
                // producer has seen more: a smaller bound is one as well.
                self.producers.seen_head.store(head, Ordering::Release);
                n = wanted.min(room(head));
            }
            if n == 0 {
                return 0;
            }
            // Ordering: Relaxed. Positions are only counted here; room came
            // with `head`, and the mark publishes.
            match self.producers.tail.compare_exchange_weak(
                tail,
                tail.wrapping_add(n as u64),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    self.write(tail, n, events.iter().map(|e| (*e, 0)));
                    return n;
                }
                Err(now) => tail = now,
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn push_abi(&self, header: &Header, events: &[Event]) -> usize {
        loop {
            let n = self.push_native(events);
            if n > 0 {
                self.project(header);
                return n;
            }
            if events.is_empty() || !self.follow_foreign_head(|_| ()) {
                return 0;
            }
        }
    }

    /// Moves up to `out.len()` events out, in order, and tells how many.
    ///
    /// # Errors
    ///
    /// Only in Abi mode: EFAULT when the public head is not within the
    /// published events, EBUSY when another thread is reaping.
    #[inline(always)]
    pub fn reap(&self, out: &mut [Event]) -> Result<usize, Errno> {
        self.take(out.len(), |i, event, _| out[i] = event, |_| ())
    }

    /// Copies up to `max` events to `put(i, event, tag)`, which may be called
    /// again for the same `i` until the copy holds; then claims them.
    /// `skipped(tag)` is called for what a foreign reaper took.
    #[inline(always)]
    pub(crate) fn take(
        &self,
        max: usize,
        put: impl FnMut(usize, Event, u32),
        skipped: impl FnMut(u32),
    ) -> Result<usize, Errno> {
        match self.memory.header() {
            None => Ok(self.take_native(max, put)),
            Some(header) => self.take_abi(header, max, put, skipped),
        }
    }

    #[inline(always)]
    fn take_native(&self, max: usize, mut put: impl FnMut(usize, Event, u32)) -> usize {
        let cells = self.cells();
        // Ordering: Acquire pairs with the Release of the compare-and-swap
        // below: it may have moved `head` into a run, whose marks and events
        // this reaper then sees as the one did who moved it.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let mut n = 0;
            while n < max {
                let at = head.wrapping_add(n as u64);
                let Some(run) = cells.published(at) else {
                    break;
                };
                for _ in 0..run.min(max - n) {
                    let at = head.wrapping_add(n as u64);
                    // If it is overtaken, it is not the reaper of what it read.
                    put(n, cells.event(at).peek(), cells.tag(at));
                    n += 1;
                }
            }
            if n == 0 {
                // Nothing, or the position is a later lap's by now and `head`
                // old; then the mark that was read makes a later one visible.
                // Ordering: Acquire, as above.
                let now = self.head.load(Ordering::Acquire);
                // Re-check: an old `head` makes a full ring look empty.
                if now != head {
                    head = now;
                    continue;
                }
                return 0;
            }
            // Ordering: AcqRel. Release: our copies are done before anyone who
            // sees the new `head` writes there again. Acquire, also on failure:
            // as for the load above.
            match self.head.compare_exchange(
                head,
                head.wrapping_add(n as u64),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return n,
                Err(now) => head = now,
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn take_abi(
        &self,
        header: &Header,
        max: usize,
        mut put: impl FnMut(usize, Event, u32),
        mut skipped: impl FnMut(u32),
    ) -> Result<usize, Errno> {
        let (reaping, head) = loop {
            let reaping = self.projection.reaping.take().ok_or(Errno::EBUSY)?;
            let taken = self.follow(header)?;
            if taken.is_empty() {
                // Ordering: Relaxed. Ours while we hold `reaping`.
                break (reaping, self.head.load(Ordering::Relaxed));
            }
            drop(reaping);
            taken.into_iter().for_each(&mut skipped);
        };
        let n = max.min(self.prefix_end().wrapping_sub(head) as usize);
        let cells = self.cells();
        for i in 0..n {
            let at = head.wrapping_add(i as u64);
            put(i, cells.event(at).load(), cells.tag(at));
        }
        let end = head.wrapping_add(n as u64);
        // Ordering: Release, as in `take_native`.
        self.head.store(end, Ordering::Release);
        // Ordering: Relaxed. Foreign code that takes the role over learns where to
        // go on, and writes no events; who lets `head` follow it holds `reaping`
        // after us.
        header
            .head
            .store(cells.index(end) as u32, Ordering::Relaxed);
        drop(reaping);
        Ok(n)
    }

    /// Abi mode: lets `head` follow what a foreign reaper took, calls `taken`
    /// for each, and tells whether there was any.
    ///
    /// A head out of range is left alone: that user's ring stays full.
    pub(crate) fn follow_foreign_head(&self, mut taken: impl FnMut(u32)) -> bool {
        let Some(header) = self.memory.header() else {
            return false;
        };
        let mut any = false;
        loop {
            let Some(reaping) = self.projection.reaping.take() else {
                return any;
            };
            let tags = self.follow(header).unwrap_or_default();
            drop(reaping);
            if tags.is_empty() {
                return any;
            }
            any = true;
            tags.into_iter().for_each(&mut taken);
        }
    }

    /// With `reaping` held: moves `head` after some of what foreign code took.
    /// Their tags, to be used when the role is given up; none when it has
    /// caught up.
    fn follow(&self, header: &Header) -> Result<Tags, Errno> {
        let cells = self.cells();
        // Ordering: Relaxed. Ours while we hold `reaping`.
        let head = self.head.load(Ordering::Relaxed);
        // Ordering: Acquire pairs with the foreign reaper's Release: it has
        // copied what lies behind.
        let public = header.head.load(Ordering::Acquire) as usize;
        let step = cells.foreign_step(head, public).ok_or(Errno::EFAULT)?;
        // Re-check: what a user may have written there.
        if step > self.prefix_end().wrapping_sub(head) {
            return Err(Errno::EFAULT);
        }
        let mut tags = Tags::default();
        for i in 0..step.min(tags.tags.len() as u64) {
            tags.tags[i as usize] = cells.tag(head.wrapping_add(i));
            tags.len += 1;
        }
        if tags.len > 0 {
            let head = head.wrapping_add(tags.len as u64);
            // Ordering: Release pairs with the Acquire in `push`.
            self.head.store(head, Ordering::Release);
        }
        Ok(tags)
    }

    /// Abi mode: the end of the published prefix.
    fn prefix_end(&self) -> u64 {
        // Ordering: Acquire pairs with the publisher's Release: the events and
        // marks before the end.
        self.projection.published.load(Ordering::Acquire)
    }

    /// How many events are visible, counted up to `limit`.
    ///
    /// Reapers may take them meanwhile, so it can be too many; it is too few
    /// only with regard to what was published during the call.
    pub fn visible(&self, limit: usize) -> usize {
        match self.memory.header() {
            None => self.visible_native(limit),
            Some(header) => self.visible_abi(header, limit),
        }
    }

    fn visible_native(&self, limit: usize) -> usize {
        let cells = self.cells();
        // Ordering: Acquire, as in `take_native`.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let mut n = 0;
            while n < limit {
                let Some(run) = cells.published(head.wrapping_add(n as u64)) else {
                    break;
                };
                n += run;
            }
            if n >= limit {
                return limit;
            }
            // Ordering: Acquire, as in `take_native`.
            let now = self.head.load(Ordering::Acquire);
            // Re-check: as in `take_native`.
            if now != head {
                head = now;
                continue;
            }
            return n;
        }
    }

    /// Foreign code may have moved its head since ours last followed. While our
    /// own reaper moves the two, one after the other, it looks as if foreign code
    /// had gone round, and further than there are events: then ours counts.
    fn visible_abi(&self, header: &Header, limit: usize) -> usize {
        // Ordering: Acquire, as in `sync_head`, though nothing is read.
        let head = self.head.load(Ordering::Acquire);
        let published = self.prefix_end().wrapping_sub(head);
        let cells = self.cells();
        // Ordering: Relaxed. What the word says is not relied on.
        let public = header.head.load(Ordering::Relaxed) as usize;
        let left = match cells.foreign_step(head, public) {
            Some(step) if step <= published => published - step,
            _ => published,
        };
        limit.min(left as usize)
    }
}

/// Some of what a foreign reaper took.
#[derive(Default)]
struct Tags {
    tags: [u32; 16],
    len: usize,
}

impl Tags {
    fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl IntoIterator for Tags {
    type Item = u32;
    type IntoIter = core::iter::Take<core::array::IntoIter<u32, 16>>;
    fn into_iter(self) -> Self::IntoIter {
        self.tags.into_iter().take(self.len)
    }
}

/// Memory for a Native ring of `N` events, inside the value itself.
#[derive(Debug)]
pub struct Inline<const N: usize> {
    events: [EventCell; N],
    marks: [MarkCell; N],
}

impl<const N: usize> Inline<N> {
    const SIZE: () = assert!(
        N.is_power_of_two() && N >= 2 && N <= MAX_EVENTS,
        "a ring's length is a power of two, at least 2"
    );

    #[cfg(not(loom))]
    /// Zeroed memory. `N` is a power of two, at least 2.
    pub const fn new() -> Self {
        let () = Self::SIZE;
        Self {
            events: [const { EventCell::new() }; N],
            marks: [const { MarkCell::new() }; N],
        }
    }

    #[cfg(loom)]
    /// Zeroed memory. `N` is a power of two, at least 2.
    pub fn new() -> Self {
        let () = Self::SIZE;
        Self {
            events: core::array::from_fn(|_| EventCell::new()),
            marks: core::array::from_fn(|_| MarkCell::new()),
        }
    }
}

impl<const N: usize> Default for Inline<N> {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: arrays of equal length, checked to be a power of two, made zero and
// private to the value.
unsafe impl<const N: usize> RingMemory for Inline<N> {
    fn events(&self) -> &[EventCell] {
        &self.events
    }
    fn marks(&self) -> &[MarkCell] {
        &self.marks
    }
}

/// Memory on the heap, in either mode.
#[cfg(feature = "alloc")]
#[derive(Debug)]
pub struct Boxed {
    header: Option<alloc::boxed::Box<Header>>,
    events: alloc::boxed::Box<[EventCell]>,
    marks: alloc::boxed::Box<[MarkCell]>,
}

#[cfg(feature = "alloc")]
impl Boxed {
    /// Memory for a Native ring of at least `capacity` events.
    ///
    /// # Errors
    ///
    /// EINVAL for zero and for more than [`MAX_EVENTS`].
    pub fn native(capacity: usize) -> Result<Self, Errno> {
        Self::with(None, capacity)
    }

    /// Memory for an Abi ring of at least `capacity` events, with header `id`.
    ///
    /// The header is on the heap by itself; foreign reapers need both in one
    /// mapping, which is what [`Mapped`] is for.
    ///
    /// # Errors
    ///
    /// EINVAL for zero and for more than [`MAX_EVENTS`] - 1.
    pub fn abi(id: u32, capacity: usize) -> Result<Self, Errno> {
        if capacity == 0 || capacity >= MAX_EVENTS {
            return Err(Errno::EINVAL);
        }
        let nr = (capacity + 1).next_power_of_two();
        Self::with(Some(Header::new(id, nr as u32)), nr)
    }

    fn with(header: Option<Header>, capacity: usize) -> Result<Self, Errno> {
        if capacity == 0 || capacity > MAX_EVENTS {
            return Err(Errno::EINVAL);
        }
        let len = capacity.next_power_of_two().max(2);
        Ok(Self {
            header: header.map(alloc::boxed::Box::new),
            events: (0..len).map(|_| EventCell::new()).collect(),
            marks: (0..len).map(|_| MarkCell::new()).collect(),
        })
    }
}

// SAFETY: boxed slices of one length, checked or rounded to a power of two,
// never moved or resized; the marks are zero and private.
#[cfg(feature = "alloc")]
unsafe impl RingMemory for Boxed {
    fn events(&self) -> &[EventCell] {
        &self.events
    }
    fn marks(&self) -> &[MarkCell] {
        &self.marks
    }
    fn header(&self) -> Option<&Header> {
        self.header.as_deref()
    }
}

/// An Abi ring in memory that the embedder maps, say for a user to see: header
/// and events contiguous, exactly as Linux lays them out.
#[cfg(all(feature = "alloc", not(any(loom, shuttle))))]
#[derive(Debug)]
pub struct Mapped {
    header: core::ptr::NonNull<Header>,
    nr: usize,
    marks: alloc::boxed::Box<[MarkCell]>,
}

#[cfg(all(feature = "alloc", not(any(loom, shuttle))))]
impl Mapped {
    /// Bytes that a ring of `nr` events takes.
    pub const fn bytes(nr: usize) -> usize {
        size_of::<Header>() + nr * size_of::<EventCell>()
    }

    /// Lays out an empty ring of `nr` events (a power of two, of which one
    /// stays unused) in `memory`.
    ///
    /// # Errors
    ///
    /// EINVAL when `nr` is not a power of two from 2 to [`MAX_EVENTS`] or the
    /// address is not aligned to 8.
    ///
    /// # Safety
    ///
    /// `memory` is valid for reads and writes of [`bytes`](Self::bytes)`(nr)`
    /// as long as the value lives. Nobody else accesses it during the call, which
    /// overwrites it, and no other ring is made in it; later, whatever else
    /// accesses it does so atomically, word by word.
    pub unsafe fn new(memory: core::ptr::NonNull<u8>, nr: usize, id: u32) -> Result<Self, Errno> {
        if !nr.is_power_of_two() || !(2..=MAX_EVENTS).contains(&nr) {
            return Err(Errno::EINVAL);
        }
        if !memory.cast::<EventCell>().is_aligned() {
            return Err(Errno::EINVAL);
        }
        let header = memory.cast::<Header>();
        // SAFETY: aligned, and valid for writes by the caller's promise.
        unsafe { header.write(Header::new(id, nr as u32)) };
        let events = Self::events_of(header);
        for i in 0..nr {
            // SAFETY: within `bytes(nr)`, which the caller promises.
            let cell = unsafe { events.add(i) };
            // SAFETY: as above, and aligned: the header's size is a multiple.
            unsafe { cell.write(EventCell::new()) };
        }
        Ok(Self {
            header,
            nr,
            marks: (0..nr).map(|_| MarkCell::new()).collect(),
        })
    }

    fn events_of(header: core::ptr::NonNull<Header>) -> core::ptr::NonNull<EventCell> {
        // SAFETY: one header in, still within the memory that `new` was given.
        unsafe { header.add(1) }.cast()
    }
}

// SAFETY: the pointer is to words that are only accessed atomically, from any
// thread, and the memory is not tied to one.
#[cfg(all(feature = "alloc", not(any(loom, shuttle))))]
unsafe impl Send for Mapped {}
// SAFETY: as for Send: all access is by atomics.
#[cfg(all(feature = "alloc", not(any(loom, shuttle))))]
unsafe impl Sync for Mapped {}

// SAFETY: `new` checked the length and made the marks, which nobody else knows;
// its caller promised the memory for the value's life.
#[cfg(all(feature = "alloc", not(any(loom, shuttle))))]
unsafe impl RingMemory for Mapped {
    fn events(&self) -> &[EventCell] {
        let events = Self::events_of(self.header).as_ptr();
        // SAFETY: `nr` cells were written there by `new`; they are atomics, so
        // shared references to them stay valid whoever writes.
        unsafe { core::slice::from_raw_parts(events, self.nr) }
    }
    fn marks(&self) -> &[MarkCell] {
        &self.marks
    }
    fn header(&self) -> Option<&Header> {
        // SAFETY: written by `new`, valid for the value's life, all atomics.
        Some(unsafe { self.header.as_ref() })
    }
}
