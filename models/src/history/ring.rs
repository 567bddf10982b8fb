//! The completion ring.

use std::{array, sync::Mutex};

use uaio_core::{
    ring::{Boxed, Event, Inline, Ring, RingMemory},
    sync::{
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
        thread::Parker,
    },
};

use super::notify::{Queue, one_wakes_one_waits};
use crate::{
    Model, Scenario, Theorem,
    harness::{Control, Count, Handed, Shows, lock},
    reached,
};

/// aio 6cb2a21049b8, CVE-2024-26671: the producer stores its tail and looks for
/// waiters, the reaper registers and looks at the tail; neither sees the other.
struct NoFence {
    waiting: AtomicBool,
    parker: Parker,
}

impl Queue for NoFence {
    fn new() -> Self {
        Self {
            waiting: AtomicBool::new(false),
            parker: Parker::new(),
        }
    }

    fn wake(&self) {
        if self.waiting.load(Ordering::Acquire) {
            self.parker.unpark();
        }
    }

    fn wait(&self, ready: impl Fn() -> bool) {
        self.waiting.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        while !ready() {
            self.parker.park();
        }
    }
}

#[test]
fn tail_store_vs_waiter_check_no_fence() {
    Control::shows(Shows::Hang)
        .held_by("history::notify::who_waits_is_woken")
        .only_loom()
        .refuted(|| one_wakes_one_waits::<NoFence>());
}

/// An event of two words, of which the second follows from the first.
type Words = [u64; 2];

/// A ring of two places.
trait Events: Send + Sync + 'static {
    fn new() -> Self;
    /// Stores `event`, if it is accepted.
    fn push(&self, event: Words) -> bool;
    fn reap(&self) -> Option<Words>;
}

/// A place in a faulty ring.
#[derive(Debug)]
struct Place([AtomicU64; 2]);

impl Place {
    fn new() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }

    fn store(&self, [first, second]: Words) {
        self.0[0].store(first, Ordering::Relaxed);
        self.0[1].store(second, Ordering::Relaxed);
    }

    fn load(&self) -> Words {
        [0, 1].map(|i: usize| self.0[i].load(Ordering::Relaxed))
    }
}

struct World<R> {
    ring: R,
    stored: Mutex<Vec<u64>>,
    reaped: Mutex<Vec<u64>>,
}

impl<R: Events> World<R> {
    fn holding(values: &[u64]) -> Self {
        let world = Self {
            ring: R::new(),
            stored: Mutex::default(),
            reaped: Mutex::default(),
        };
        values.iter().for_each(|value| world.push(*value));
        world
    }

    fn push(&self, value: u64) {
        if self.ring.push([value, !value]) {
            lock(&self.stored).push(value);
        }
    }

    fn take(&self) -> bool {
        let Some([value, check]) = self.ring.reap() else {
            return false;
        };
        assert_eq!(check, !value, "not what was stored");
        lock(&self.reaped).push(value);
        true
    }

    fn reap(&self) {
        self.take();
    }

    /// What was accepted came out, once.
    fn settle(&self) {
        while self.take() {}
        let (mut stored, mut reaped) = (lock(&self.stored), lock(&self.reaped));
        stored.sort_unstable();
        reaped.sort_unstable();
        assert_eq!(*stored, *reaped, "not what was stored");
    }
}

fn one_producer_one_reaper<R: Events>() -> Scenario<World<R>> {
    Scenario::of(World::<R>::holding(&[]))
        .role("producer", |w| {
            [1, 2, 3].iter().for_each(|value| w.push(*value))
        })
        .role("reaper", World::reap)
        .finally(World::settle)
}

fn one_producer_two_reapers<R: Events>() -> Scenario<World<R>> {
    Scenario::of(World::<R>::holding(&[1, 2]))
        .role("producer", |w| w.push(3))
        .role("reaper", World::reap)
        .role("reaper", World::reap)
        .finally(World::settle)
}

/// The producer reaps as well, and so comes round while the other is stopped.
fn two_reapers_one_of_whom_produces<R: Events>() -> Scenario<World<R>> {
    Scenario::of(World::<R>::holding(&[1]))
        .role("producer and reaper", |w| {
            for value in [2, 3] {
                w.reap();
                w.push(value);
            }
        })
        .role("reaper", World::reap)
        .finally(World::settle)
}

impl Events for Ring<Inline<2>> {
    fn new() -> Self {
        Self::new(Inline::new())
    }

    fn push(&self, event: Words) -> bool {
        push(self, event)
    }

    fn reap(&self) -> Option<Words> {
        reap(self)
    }
}

/// In Linux's layout one of the two places stays unused.
impl Events for Ring<Boxed> {
    fn new() -> Self {
        Self::new(Boxed::abi(7, 1).expect("a small ring"))
    }

    fn push(&self, event: Words) -> bool {
        push(self, event)
    }

    fn reap(&self) -> Option<Words> {
        reap(self)
    }
}

fn push<M: RingMemory>(ring: &Ring<M>, [data, obj]: Words) -> bool {
    let stored = ring.push(&[Event {
        data,
        obj,
        ..Event::default()
    }]);
    reached(["full", "stored"][stored]);
    stored == 1
}

fn reap<M: RingMemory>(ring: &Ring<M>) -> Option<Words> {
    let mut out = [Event::default()];
    // One reaper at a time in Linux's layout: the other one gets nothing.
    let reaped = ring.reap(&mut out).unwrap_or(0);
    reached(["empty", "reaped"][reaped]);
    (reaped == 1).then_some([out[0].data, out[0].obj])
}

const OUTCOMES: Model = Model::of(
    &[Theorem::NoLoss, Theorem::Order],
    &["stored", "full", "reaped", "empty"],
);

#[test]
fn what_is_accepted_comes_out_whole() {
    OUTCOMES.check(|| one_producer_one_reaper::<Ring<Inline<2>>>());
}

#[test]
fn a_place_is_used_again_once_it_was_copied() {
    OUTCOMES
        .bounded(2, "more than 100,000 executions at bound 3")
        .check(|| one_producer_two_reapers::<Ring<Inline<2>>>());
}

#[test]
fn the_public_tail_names_written_events_only() {
    OUTCOMES.check(|| two_reapers_one_of_whom_produces::<Ring<Boxed>>());
}

/// aio 679c40a86efa: the tail can be seen before the event.
struct RelaxedTail {
    places: [Place; 2],
    head: AtomicU64,
    tail: AtomicU64,
}

impl Events for RelaxedTail {
    fn new() -> Self {
        Self {
            places: array::from_fn(|_| Place::new()),
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
        }
    }

    fn push(&self, event: Words) -> bool {
        let tail = self.tail.load(Ordering::Relaxed);
        if tail - self.head.load(Ordering::Acquire) == 2 {
            return false;
        }
        self.places[tail as usize % 2].store(event);
        self.tail.store(tail + 1, Ordering::Relaxed);
        true
    }

    fn reap(&self) -> Option<Words> {
        let head = self.head.load(Ordering::Relaxed);
        if head == self.tail.load(Ordering::Acquire) {
            return None;
        }
        let event = self.places[head as usize % 2].load();
        self.head.store(head + 1, Ordering::Release);
        Some(event)
    }
}

#[test]
fn tail_published_without_release() {
    Control::shows(Shows::Assertion("not what was stored"))
        .held_by("history::ring::what_is_accepted_comes_out_whole")
        .only_loom()
        .refuted(|| one_producer_one_reaper::<RelaxedTail>());
}

/// Seed 003: nothing was reserved, so a completion overwrites what was not read
/// yet, and the tail comes round to where the head is: empty.
struct Unreserved {
    places: [Place; 2],
    head: AtomicU32,
    tail: AtomicU32,
}

impl Events for Unreserved {
    fn new() -> Self {
        Self {
            places: array::from_fn(|_| Place::new()),
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
        }
    }

    fn push(&self, event: Words) -> bool {
        let tail = self.tail.load(Ordering::Relaxed);
        self.places[tail as usize].store(event);
        self.tail.store((tail + 1) % 2, Ordering::Release);
        true
    }

    fn reap(&self) -> Option<Words> {
        let head = self.head.load(Ordering::Relaxed);
        if head == self.tail.load(Ordering::Acquire) {
            return None;
        }
        let event = self.places[head as usize].load();
        self.head.store((head + 1) % 2, Ordering::Release);
        Some(event)
    }
}

#[test]
fn ring_overflow_no_reservation() {
    Control::shows(Shows::Assertion("not what was stored"))
        .held_by("history::ring::what_is_accepted_comes_out_whole")
        .refuted(|| one_producer_one_reaper::<Unreserved>());
}

/// Who reaps first moves the head, then copies, then gives one place back:
/// not its own, but the first one, which a slower reaper still copies.
struct CountedCredit {
    places: [Place; 2],
    published: AtomicU64,
    head: AtomicU64,
    credit: AtomicU64,
}

impl Events for CountedCredit {
    fn new() -> Self {
        Self {
            places: array::from_fn(|_| Place::new()),
            published: AtomicU64::new(0),
            head: AtomicU64::new(0),
            credit: AtomicU64::new(2),
        }
    }

    fn push(&self, event: Words) -> bool {
        let take = |credit: u64| credit.checked_sub(1);
        let taken = (self.credit).fetch_update(Ordering::Acquire, Ordering::Relaxed, take);
        if taken.is_err() {
            return false;
        }
        let at = self.published.load(Ordering::Relaxed);
        self.places[at as usize % 2].store(event);
        self.published.store(at + 1, Ordering::Release);
        true
    }

    fn reap(&self) -> Option<Words> {
        let published = self.published.load(Ordering::Acquire);
        let next = |head| (head < published).then_some(head + 1);
        let head = (self.head).fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
        let event = self.places[head.ok()? as usize % 2].load();
        self.credit.fetch_add(1, Ordering::Release);
        Some(event)
    }
}

#[test]
fn credit_returned_before_slower_reaper_copied() {
    Control::shows(Shows::Assertion("not what was stored"))
        .held_by("history::ring::a_place_is_used_again_once_it_was_copied")
        .refuted(|| one_producer_two_reapers::<CountedCredit>());
}

/// The tail is an index without a lap, and whoever finds a finished event helps
/// it on: a lap late, the compare-and-swap succeeds, and names what was not
/// written yet: the last lap's event.
struct UnlappedTail {
    places: [Place; 2],
    /// One more than the position that was finished there last.
    finished: [AtomicU64; 2],
    head: AtomicU64,
    tail: AtomicU64,
}

impl UnlappedTail {
    fn help(&self, at: u64) {
        if self.finished[at as usize % 2].load(Ordering::Acquire) == at + 1 {
            let (from, to) = (at % 2, (at + 1) % 2);
            let _ = (self.tail).compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

impl Events for UnlappedTail {
    fn new() -> Self {
        Self {
            places: array::from_fn(|_| Place::new()),
            finished: array::from_fn(|_| AtomicU64::new(0)),
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
        }
    }

    fn push(&self, event: Words) -> bool {
        let at = self.head.load(Ordering::Acquire);
        self.help(at);
        if self.tail.load(Ordering::Acquire) != at % 2 {
            // The one place that is used still is.
            return false;
        }
        self.places[at as usize % 2].store(event);
        self.finished[at as usize % 2].store(at + 1, Ordering::Release);
        self.help(at);
        true
    }

    fn reap(&self) -> Option<Words> {
        self.help(self.head.load(Ordering::Acquire));
        let head = self.head.load(Ordering::Acquire);
        if head % 2 == self.tail.load(Ordering::Acquire) {
            return None;
        }
        let event = self.places[head as usize % 2].load();
        let moved =
            (self.head).compare_exchange(head, head + 1, Ordering::AcqRel, Ordering::Relaxed);
        moved.is_ok().then_some(event)
    }
}

#[test]
fn public_tail_cas_one_lap_late() {
    Control::shows(Shows::Assertion("not what was stored"))
        .held_by("history::ring::the_public_tail_names_written_events_only")
        .refuted(|| two_reapers_one_of_whom_produces::<UnlappedTail>());
}

/// CVE-2024-35874: the waker takes the waiter out of the list and then touches it,
/// on the stack of a reaper who has seen that it is out and returned.
#[test]
fn onstack_waiter_unlinked_before_wake() {
    struct OnStack {
        linked: AtomicBool,
        waiter: Handed<u32>,
    }
    Control::shows(Shows::UnorderedAccess)
        .held_by("wait::a_waiter_that_left_is_not_touched")
        .refuted(|| {
            Scenario::of(OnStack {
                linked: AtomicBool::new(true),
                waiter: Handed::new(1),
            })
            .role("waker", |w| {
                w.linked.store(false, Ordering::Release);
                w.waiter.get();
            })
            .role("reaper", |w| {
                if !w.linked.load(Ordering::Acquire) {
                    w.waiter.set(0);
                }
            })
        });
}

/// aio d856f32a86b2: a reaper gives back the room of what it took, and a submitter
/// gives it back again, for it sees that the head has moved.
#[test]
fn reservation_returned_twice_on_user_reap() {
    struct Accounts {
        head: AtomicU32,
        credited: AtomicU32,
        room: AtomicU32,
        accepted: Count,
    }
    impl Accounts {
        fn submit(&self) {
            let head = self.head.load(Ordering::Acquire);
            let credited = self.credited.swap(head, Ordering::AcqRel);
            self.room.fetch_add(head - credited, Ordering::AcqRel);
            let take = |room: u32| room.checked_sub(1);
            let taken = (self.room).fetch_update(Ordering::AcqRel, Ordering::Relaxed, take);
            self.accepted.add(taken.is_ok().into());
        }
    }
    Control::shows(Shows::Assertion("a place was given twice"))
        .held_by("context::room_that_a_foreign_reaper_makes_is_made_once")
        .refuted(|| {
            // One place, and an event in it.
            Scenario::of(Accounts {
                head: AtomicU32::new(0),
                credited: AtomicU32::new(0),
                room: AtomicU32::new(0),
                accepted: Count::default(),
            })
            .role("reaper", |a| {
                a.head.fetch_add(1, Ordering::AcqRel);
                a.room.fetch_add(1, Ordering::AcqRel);
            })
            .role("submitter", |a| (0..2).for_each(|_| a.submit()))
            .finally(|a| assert!(a.accepted.get() <= 1, "a place was given twice"))
        });
}

/// The second completer notifies although the first one's event, which hides its
/// own, is not there; the first one then sees that somebody was notified.
#[test]
fn notified_behind_hole() {
    struct Coalesced {
        published: [AtomicBool; 2],
        notified: AtomicBool,
        reaper: Parker,
    }
    impl Coalesced {
        fn complete(&self, at: usize) {
            self.published[at].store(true, Ordering::Release);
            if !self.notified.swap(true, Ordering::AcqRel) {
                self.reaper.unpark();
            }
        }
    }
    Control::shows(Shows::Hang)
        .held_by("context::who_waits_for_one_is_not_woken_for_a_hidden_one")
        .refuted(|| {
            Scenario::of(Coalesced {
                published: array::from_fn(|_| AtomicBool::new(false)),
                notified: AtomicBool::new(false),
                reaper: Parker::new(),
            })
            .role("first completer", |c| c.complete(0))
            .role("second completer", |c| c.complete(1))
            .role("reaper", |c| {
                while !c.published[0].load(Ordering::Acquire) {
                    c.reaper.park();
                }
                c.notified.store(false, Ordering::Release);
            })
        });
}
