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
//! [`Ring::push`] checks against `head`. [`Ring::publish`] does not: its caller
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
//! Nobody waits for a peer that is not running.

use crate::{
    error::Errno,
    sync::{
        Padded,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
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
pub struct EventCell([AtomicU64; 4]);

impl EventCell {
    const_fn! {
        /// An event of zeroes.
        pub const fn new() -> Self {
            Self([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)])
        }
    }

    // Ordering of both: Relaxed. The mark, or in Abi mode the public tail,
    // publishes the words; a reader that is overtaken discards what it read.
    #[inline]
    fn store(&self, event: Event) {
        let [data, obj, res, res2] = &self.0;
        data.store(event.data, Ordering::Relaxed);
        obj.store(event.obj, Ordering::Relaxed);
        res.store(event.res as u64, Ordering::Relaxed);
        res2.store(event.res2 as u64, Ordering::Relaxed);
    }

    /// The event, read word by word: whole only if nobody writes it meanwhile.
    #[inline]
    pub fn load(&self) -> Event {
        let [data, obj, res, res2] = &self.0;
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
/// Each method returns the same memory on every call, valid as long as `self`;
/// `marks` is private to the ring and starts all zero; it is as long as
/// `events`, and that length is a power of two, at least 2 and at most
/// [`MAX_EVENTS`]. A header's words and the events may be written by others at
/// any time, but only as whole words.
pub unsafe trait RingMemory {
    /// The events.
    fn events(&self) -> &[EventCell];
    /// One private word per event.
    fn marks(&self) -> &[AtomicU64];
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

/// What a mark says of a position.
enum Published {
    /// This many events from here on.
    Run(usize),
    /// None of this lap yet.
    NotYet,
    /// The position belongs to a later lap: the reader's `head` is old.
    Overtaken,
}

impl Mark {
    const fn new(lap: u64, run: usize, tag: u32) -> Self {
        Self((lap & LAP_MASK) << (RUN_BITS + TAG_BITS) | (run as u64) << TAG_BITS | tag as u64)
    }

    const fn tag(self) -> u32 {
        self.0 as u32 & ((1 << TAG_BITS) - 1)
    }

    fn published(self, lap: u64) -> Published {
        let run = (self.0 >> TAG_BITS) as usize & MAX_RUN;
        let ahead = (self.0 >> (RUN_BITS + TAG_BITS)).wrapping_sub(lap) & LAP_MASK;
        match (run, ahead) {
            (0, _) => Published::NotYet,
            (run, 0) => Published::Run(run),
            (_, ahead) if ahead <= LAP_MASK / 2 => Published::Overtaken,
            _ => Published::NotYet,
        }
    }
}

/// What only Abi mode uses.
#[derive(Debug)]
struct Projection {
    /// Finished runs that the publisher has not looked for yet.
    pending: AtomicU64,
    /// End of the published prefix; the publisher's.
    published: AtomicU64,
    /// Held by who moves `head`: one reaper at a time.
    reaping: AtomicBool,
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
    tail: Padded<AtomicU64>,
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
                tail: Padded(AtomicU64::new(position)),
                head: Padded(AtomicU64::new(position)),
                projection: Padded(Projection {
                    pending: AtomicU64::new(0),
                    published: AtomicU64::new(position),
                    reaping: AtomicBool::new(false),
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

    #[inline]
    fn index(&self, position: u64) -> usize {
        position as usize & (self.memory.events().len() - 1)
    }

    #[inline]
    fn lap(&self, position: u64) -> u64 {
        position >> self.memory.events().len().trailing_zeros()
    }

    #[inline]
    fn mark(&self, position: u64) -> &AtomicU64 {
        &self.memory.marks()[self.index(position)]
    }

    #[inline]
    fn published(&self, position: u64) -> Published {
        // Ordering: Acquire pairs with the Release that ends `write`: whoever
        // sees the run sees its events and its other marks.
        Mark(self.mark(position).load(Ordering::Acquire)).published(self.lap(position))
    }

    /// The tag of a position that is known to be published.
    #[inline]
    fn tag(&self, position: u64) -> u32 {
        // Ordering: Relaxed. The Acquire that found the run, or the `head` that
        // was moved into it, came before.
        Mark(self.mark(position).load(Ordering::Relaxed)).tag()
    }

    /// Writes `n` events at `at` and publishes them as one run.
    #[inline]
    fn write(&self, at: u64, n: usize, events: impl IntoIterator<Item = (Event, u32)>) {
        let mut first = None;
        for (i, (event, tag)) in events.into_iter().take(n).enumerate() {
            let position = at.wrapping_add(i as u64);
            self.memory.events()[self.index(position)].store(event);
            let mark = Mark::new(self.lap(position), n - i, tag);
            if i == 0 {
                first = Some(mark);
            } else {
                // Ordering: Relaxed. Read after the first mark, or after a
                // `head` that was moved past it.
                self.mark(position).store(mark.0, Ordering::Relaxed);
            }
        }
        if let Some(mark) = first {
            // Ordering: Release pairs with the Acquire in `published`: payload
            // before publication.
            self.mark(at).store(mark.0, Ordering::Release);
        }
        if let Some(header) = self.memory.header() {
            self.project(header);
        }
    }

    /// Abi mode: a run is finished; the public tail follows the prefix.
    fn project(&self, header: &Header) {
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
            while let Published::Run(run) = self.published(end) {
                end = end.wrapping_add(run as u64);
            }
            // Ordering: Release pairs with the Acquire of whoever counts the
            // prefix.
            own.published.store(end, Ordering::Release);
            // Ordering: Release pairs with a foreign reaper's Acquire: the
            // events before the tail that names them.
            header.tail.store(self.index(end) as u32, Ordering::Release);
            // Ordering: AcqRel. Release hands `published` on; Acquire makes the
            // marks of those who came meanwhile visible to the next round.
            let now = own.pending.fetch_sub(seen, Ordering::AcqRel);
            if now == seen {
                return;
            }
            seen = now - seen;
        }
    }

    /// Publishes `n` events whose room was reserved, each with its tag.
    ///
    /// The caller makes sure that never more than [`capacity`](Self::capacity)
    /// events are on their way, in the ring or being copied out of it, and that
    /// giving room back and taking it synchronise. Too many overwrite others.
    #[inline]
    pub(crate) fn publish(&self, n: usize, events: impl IntoIterator<Item = (Event, u32)>) {
        let mut events = events.into_iter();
        let mut left = n;
        while left > 0 {
            let run = left.min(MAX_RUN);
            // Ordering: AcqRel. The chain of these RMWs carries every earlier
            // reservation to this producer: of the events since the position's
            // last lap two had the same slot, so its reaper, and with it this
            // position's, happens before our write. (See `docs/ring.md`; a
            // checker without load buffering cannot see it missing.)
            let at = self.tail.fetch_add(run as u64, Ordering::AcqRel);
            self.write(at, run, events.by_ref());
            left -= run;
        }
    }

    /// Stores as many of `events` as there is room for, in order, and tells how
    /// many that were.
    ///
    /// Lock-free; callable from any context. The stored ones are visible once
    /// all positions before them are.
    pub fn push(&self, events: &[Event]) -> usize {
        let capacity = self.capacity() as u64;
        // Ordering: Relaxed. The compare-and-swap below decides.
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            // Ordering: Acquire pairs with the Release that moves `head`: what
            // lies behind it has been copied.
            let head = self.head.load(Ordering::Acquire);
            // Our `tail` may be older than `head`: then try for one and learn.
            let used = tail.wrapping_sub(head) as i64;
            let room = capacity.saturating_sub(used.max(0) as u64) as usize;
            let n = room.min(events.len()).min(MAX_RUN);
            if n == 0 {
                if events.is_empty() || !self.follow_foreign_head(|_| ()) {
                    return 0;
                }
                continue;
            }
            // Ordering: Relaxed. Positions are only counted here; room came
            // with `head`, and the mark publishes.
            match self.tail.compare_exchange_weak(
                tail,
                tail.wrapping_add(n as u64),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(at) => {
                    self.write(at, n, events.iter().map(|e| (*e, 0)));
                    return n;
                }
                Err(now) => tail = now,
            }
        }
    }

    /// Moves up to `out.len()` events out, in order, and tells how many.
    ///
    /// # Errors
    ///
    /// Only in Abi mode: EFAULT when the public head is not within the
    /// published events, EBUSY when another thread is reaping.
    pub fn reap(&self, out: &mut [Event]) -> Result<usize, Errno> {
        self.take(out.len(), |i, event, _| out[i] = event, |_| ())
    }

    /// Copies up to `max` events to `put(i, event, tag)`, which may be called
    /// again for the same `i` until the copy holds; then claims them.
    /// `skipped(tag)` is called for what a foreign reaper took.
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

    #[inline]
    fn take_native(&self, max: usize, mut put: impl FnMut(usize, Event, u32)) -> usize {
        // Ordering: Acquire pairs with the Release of the compare-and-swap
        // below: it may have moved `head` into a run, whose marks and events
        // this reaper then sees as the one did who moved it.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let mut n = 0;
            while n < max {
                let at = head.wrapping_add(n as u64);
                let run = match self.published(at) {
                    Published::Run(run) => run,
                    Published::NotYet => break,
                    Published::Overtaken => {
                        // Ordering: Acquire, as above; the mark's Acquire makes
                        // a later head visible.
                        head = self.head.load(Ordering::Acquire);
                        n = 0;
                        continue;
                    }
                };
                for _ in 0..run.min(max - n) {
                    let at = head.wrapping_add(n as u64);
                    put(n, self.memory.events()[self.index(at)].load(), self.tag(at));
                    n += 1;
                }
            }
            if n == 0 {
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

    fn take_abi(
        &self,
        header: &Header,
        max: usize,
        mut put: impl FnMut(usize, Event, u32),
        skipped: impl FnMut(u32),
    ) -> Result<usize, Errno> {
        let reaping = self.lock_reaping().ok_or(Errno::EBUSY)?;
        let head = self.sync_head(header, skipped)?;
        let n = max.min(self.prefix_end().wrapping_sub(head) as usize);
        for i in 0..n {
            let at = head.wrapping_add(i as u64);
            put(i, self.memory.events()[self.index(at)].load(), self.tag(at));
        }
        let end = head.wrapping_add(n as u64);
        // Ordering: Release, as in `take_native`.
        self.head.store(end, Ordering::Release);
        // Ordering: Release: our copies are done before foreign code that sees
        // the new head takes the role over.
        header.head.store(self.index(end) as u32, Ordering::Release);
        drop(reaping);
        Ok(n)
    }

    /// Abi mode: lets `head` follow what a foreign reaper took, calls `taken`
    /// for each, and tells whether there was any.
    ///
    /// A head out of range is left alone: that user's ring stays full.
    pub(crate) fn follow_foreign_head(&self, taken: impl FnMut(u32)) -> bool {
        let Some(header) = self.memory.header() else {
            return false;
        };
        let Some(_reaping) = self.lock_reaping() else {
            return false;
        };
        // Ordering: Relaxed. Ours while we hold `reaping`.
        let before = self.head.load(Ordering::Relaxed);
        match self.sync_head(header, taken) {
            Ok(head) => head != before,
            Err(_) => false,
        }
    }

    /// With `reaping` held: `head` after what foreign code took.
    fn sync_head(&self, header: &Header, mut taken: impl FnMut(u32)) -> Result<u64, Errno> {
        // Ordering: Relaxed. Ours while we hold `reaping`.
        let mut head = self.head.load(Ordering::Relaxed);
        // Ordering: Acquire pairs with the foreign reaper's Release: it has
        // copied what lies behind.
        let public = header.head.load(Ordering::Acquire) as usize;
        let len = self.memory.events().len();
        if public >= len {
            return Err(Errno::EFAULT);
        }
        let step = (public.wrapping_sub(self.index(head)) & (len - 1)) as u64;
        if step > self.prefix_end().wrapping_sub(head) {
            return Err(Errno::EFAULT);
        }
        for _ in 0..step {
            let tag = self.tag(head);
            head = head.wrapping_add(1);
            // Ordering: Release pairs with the Acquire in `push`. One by one,
            // and before the call: `taken` may panic.
            self.head.store(head, Ordering::Release);
            taken(tag);
        }
        Ok(head)
    }

    /// Abi mode: the end of the published prefix.
    fn prefix_end(&self) -> u64 {
        // Ordering: Acquire pairs with the publisher's Release: the events and
        // marks before the end.
        self.projection.published.load(Ordering::Acquire)
    }

    fn lock_reaping(&self) -> Option<Reaping<'_>> {
        // Ordering: Acquire pairs with the Release in `Reaping::drop`: the last
        // reaper's `head`.
        let busy = self.projection.reaping.swap(true, Ordering::Acquire);
        (!busy).then_some(Reaping(&self.projection.reaping))
    }

    /// How many events are visible, counted up to `limit`.
    ///
    /// Reapers may take them meanwhile, so it can be too many; it is too few
    /// only with regard to what was published during the call.
    pub fn visible(&self, limit: usize) -> usize {
        'old_head: loop {
            // Ordering: Acquire, as in `take_native`; and after `Overtaken` the
            // mark's Acquire makes a later head visible.
            let head = self.head.load(Ordering::Acquire);
            if self.memory.header().is_some() {
                return limit.min(self.prefix_end().wrapping_sub(head) as usize);
            }
            let mut n = 0;
            while n < limit {
                match self.published(head.wrapping_add(n as u64)) {
                    Published::Run(run) => n += run,
                    Published::NotYet => break,
                    Published::Overtaken => continue 'old_head,
                }
            }
            return n.min(limit);
        }
    }
}

/// The role of the one reaper in Abi mode.
struct Reaping<'a>(&'a AtomicBool);

impl Drop for Reaping<'_> {
    fn drop(&mut self) {
        // Ordering: Release pairs with the Acquire in `lock_reaping`.
        self.0.store(false, Ordering::Release);
    }
}

/// Memory for a Native ring of `N` events, inside the value itself.
#[derive(Debug)]
pub struct Inline<const N: usize> {
    events: [EventCell; N],
    marks: [AtomicU64; N],
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
            marks: [const { AtomicU64::new(0) }; N],
        }
    }

    #[cfg(loom)]
    /// Zeroed memory. `N` is a power of two, at least 2.
    pub fn new() -> Self {
        let () = Self::SIZE;
        Self {
            events: core::array::from_fn(|_| EventCell::new()),
            marks: core::array::from_fn(|_| AtomicU64::new(0)),
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
    fn marks(&self) -> &[AtomicU64] {
        &self.marks
    }
}

/// Memory on the heap, in either mode.
#[cfg(feature = "alloc")]
#[derive(Debug)]
pub struct Boxed {
    header: Option<alloc::boxed::Box<Header>>,
    events: alloc::boxed::Box<[EventCell]>,
    marks: alloc::boxed::Box<[AtomicU64]>,
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
        let nr = capacity.saturating_add(1).max(2).next_power_of_two();
        if capacity == 0 || nr > MAX_EVENTS {
            return Err(Errno::EINVAL);
        }
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
            marks: (0..len).map(|_| AtomicU64::new(0)).collect(),
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
    fn marks(&self) -> &[AtomicU64] {
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
    marks: alloc::boxed::Box<[AtomicU64]>,
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
    /// as long as the value lives, and whatever else accesses it does so
    /// atomically, word by word. Its contents are overwritten.
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
            marks: (0..nr).map(|_| AtomicU64::new(0)).collect(),
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
    fn marks(&self) -> &[AtomicU64] {
        &self.marks
    }
    fn header(&self) -> Option<&Header> {
        // SAFETY: written by `new`, valid for the value's life, all atomics.
        Some(unsafe { self.header.as_ref() })
    }
}
