//! The asyncfd: a ring of results that its user owns.

use std::{array, future::poll_fn, pin::pin, sync::Mutex, task::Poll};

use uaio_core::{
    Errno,
    asyncfd::{Asyncfd, AsyncfdResult, Drained, Inline},
    sync::{
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        hint,
    },
    wait::{Enqueued, WaitQueue, Waiter},
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, NoLoss, NoLostWakeup, Order, Reclamation},
    block_on,
    harness::{Control, Handed, Shows, lock},
    reached,
};

/// A result of two words: the cookie, and one that follows from it.
type Words = [u64; 2];

/// A ring that is never empty and full at once.
trait Results: Send + Sync + 'static {
    fn new() -> Self;
    /// Stores what has this cookie, if there is room.
    fn add(&self, cookie: u64) -> bool;
    fn take(&self) -> Option<Words>;
}

/// One whose consumer can sleep.
trait Polled: Results {
    /// Until there is something to take.
    fn wait(&self);
}

impl<const N: usize> Results for Asyncfd<Inline<N>> {
    fn new() -> Self {
        Self::new(Inline::new()).expect("a ring")
    }

    fn add(&self, cookie: u64) -> bool {
        let result = AsyncfdResult {
            cookie,
            obj: !cookie,
            ..AsyncfdResult::default()
        };
        self.add_results(&[result]) == Ok(1)
    }

    fn take(&self) -> Option<Words> {
        let mut out = [AsyncfdResult::default()];
        let n = self.pop(&mut out).expect("nobody else pops");
        (n == 1).then_some([out[0].cookie, out[0].obj])
    }
}

impl<const N: usize> Polled for Asyncfd<Inline<N>> {
    fn wait(&self) {
        loop {
            match self.drain() {
                Ok(Drained::Unread) => break,
                Ok(Drained::Empty) => block_on(self.readable()),
                // Who replaces it may be moving something in.
                Err(error) => {
                    assert_eq!(error, Errno::EBUSY);
                    hint::spin_loop();
                }
            }
        }
    }
}

/// A place in a faulty ring.
#[derive(Debug)]
struct Place([AtomicU64; 2]);

impl Place {
    fn new() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }

    fn is_free(&self) -> bool {
        self.0[0].load(Ordering::Acquire) == 0
    }

    fn store(&self, cookie: u64) {
        self.0[1].store(!cookie, Ordering::Relaxed);
        self.0[0].store(cookie, Ordering::Release);
    }

    fn take(&self) -> Option<Words> {
        let cookie = self.0[0].load(Ordering::Acquire);
        if cookie == 0 {
            return None;
        }
        let words = [cookie, self.0[1].load(Ordering::Relaxed)];
        self.0[0].store(0, Ordering::Release);
        Some(words)
    }
}

/// Sleeps in `queue` until `ready`.
fn sleep(queue: &WaitQueue, ready: impl Fn() -> bool) {
    let awaited = |_| ready();
    let mut waiter = pin!(Waiter::new());
    block_on(poll_fn(|task| {
        // SAFETY: used with this queue only; after `Ready` it is not in it.
        let enqueued = unsafe { queue.enqueue(waiter.as_ref(), task.waker(), &awaited) };
        match enqueued.expect("nobody closes it") {
            Enqueued::Waiting => Poll::Pending,
            Enqueued::Ready => Poll::Ready(()),
        }
    }));
    waiter.set(Waiter::new());
}

struct World<R> {
    ring: R,
    stored: Mutex<Vec<u64>>,
    taken: Mutex<Vec<u64>>,
}

impl<R: Results> World<R> {
    fn new() -> Self {
        Self {
            ring: R::new(),
            stored: Mutex::default(),
            taken: Mutex::default(),
        }
    }

    fn holding(self, cookie: u64) -> Self {
        self.add(cookie);
        self
    }

    fn add(&self, cookie: u64) {
        let stored = self.ring.add(cookie);
        reached(if stored { "stored" } else { "full" });
        if stored {
            lock(&self.stored).push(cookie);
        }
    }

    fn take(&self) -> bool {
        let Some([cookie, check]) = self.ring.take() else {
            return false;
        };
        assert_eq!(check, !cookie, "not what was stored");
        lock(&self.taken).push(cookie);
        reached("taken");
        true
    }

    /// What was stored was taken, once.
    fn settle(&self) {
        while self.take() {}
        let (mut stored, mut taken) = (lock(&self.stored), lock(&self.taken));
        stored.sort_unstable();
        taken.sort_unstable();
        assert_eq!(*stored, *taken, "not what was stored");
    }
}

const OUTCOMES: &[&str] = &["stored", "full", "taken"];

fn one_stores_one_takes<R: Results>() -> Scenario<World<R>> {
    Scenario::of(World::<R>::new().holding(1))
        .role("producer", |w| w.add(2))
        .role("consumer", |w| {
            w.take();
            w.take();
        })
        .finally(World::settle)
}

fn two_store_where_one_fits<R: Results>() -> Scenario<World<R>> {
    Scenario::of(World::<R>::new())
        .role("producer", |w| w.add(1))
        .role("producer", |w| w.add(2))
        .finally(World::settle)
}

fn one_fills_it_one_sleeps<R: Polled>() -> Scenario<World<R>> {
    Scenario::of(World::<R>::new())
        .role("producer", |w| {
            w.add(1);
            w.add(2);
        })
        .role("consumer", |w| {
            for _ in 0..2 {
                w.ring.wait();
                assert!(w.take(), "woken for nothing");
            }
        })
        .finally(World::settle)
}

#[test]
fn what_is_stored_is_taken_whole() {
    Model::of(&[ExactlyOnce, Order, NoLoss], OUTCOMES)
        .check(|| one_stores_one_takes::<Asyncfd<Inline<1>>>());
}

#[test]
fn a_place_is_one_producers() {
    Model::of(&[ExactlyOnce, NoLoss], OUTCOMES)
        .check(|| two_store_where_one_fits::<Asyncfd<Inline<1>>>());
}

#[test]
fn a_ring_that_is_full_wakes_its_consumer() {
    Model::of(&[NoLostWakeup, NoLoss], &["stored", "taken"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| one_fills_it_one_sleeps::<Asyncfd<Inline<2>>>());
}

/// Seed 001: readable is judged by the indices, which are equal in a full ring.
struct ByIndices {
    places: [Place; 2],
    iuser: AtomicU32,
    ikernel: AtomicU32,
    queue: WaitQueue,
}

impl Results for ByIndices {
    fn new() -> Self {
        Self {
            places: array::from_fn(|_| Place::new()),
            iuser: AtomicU32::new(0),
            ikernel: AtomicU32::new(0),
            queue: WaitQueue::new(),
        }
    }

    fn add(&self, cookie: u64) -> bool {
        let at = self.ikernel.load(Ordering::Relaxed);
        let place = &self.places[at as usize];
        if !place.is_free() {
            return false;
        }
        place.store(cookie);
        self.ikernel.store((at + 1) % 2, Ordering::Release);
        self.queue.wake(1);
        true
    }

    fn take(&self) -> Option<Words> {
        let at = self.iuser.load(Ordering::Relaxed);
        let taken = self.places[at as usize].take();
        if taken.is_some() {
            self.iuser.store((at + 1) % 2, Ordering::Relaxed);
        }
        taken
    }
}

impl Polled for ByIndices {
    fn wait(&self) {
        let iuser = self.iuser.load(Ordering::Relaxed);
        sleep(&self.queue, || {
            self.ikernel.load(Ordering::Relaxed) != iuser
        });
    }
}

#[test]
fn asyncfd_full_ring_reads_empty() {
    Control::shows(Shows::Hang)
        .held_by("history::asyncfd::a_ring_that_is_full_wakes_its_consumer")
        .reaching(OUTCOMES)
        .refuted(|| one_fills_it_one_sleeps::<ByIndices>());
}

/// Seed 001: the cookie says that there is a result, which is not written yet.
struct CookieFirst(Place);

impl Results for CookieFirst {
    fn new() -> Self {
        Self(Place::new())
    }

    fn add(&self, cookie: u64) -> bool {
        let Place([first, second]) = &self.0;
        let stored = first.compare_exchange(0, cookie, Ordering::AcqRel, Ordering::Relaxed);
        if stored.is_ok() {
            second.store(!cookie, Ordering::Release);
        }
        stored.is_ok()
    }

    fn take(&self) -> Option<Words> {
        self.0.take()
    }
}

#[test]
fn asyncfd_cookie_before_payload() {
    Control::shows(Shows::Assertion("not what was stored"))
        .held_by("history::asyncfd::what_is_stored_is_taken_whole")
        .reaching(OUTCOMES)
        .refuted(|| one_stores_one_takes::<CookieFirst>());
}

/// A place is free if its cookie is zero. It also is while who reserved it writes.
struct FreeByCookie {
    place: Place,
    tail: AtomicU64,
}

impl Results for FreeByCookie {
    fn new() -> Self {
        Self {
            place: Place::new(),
            tail: AtomicU64::new(0),
        }
    }

    fn add(&self, cookie: u64) -> bool {
        let mut tail = self.tail.load(Ordering::Relaxed);
        loop {
            if !self.place.is_free() {
                return false;
            }
            let next = tail + 1;
            match (self.tail).compare_exchange(tail, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => tail = now,
            }
        }
        self.place.store(cookie);
        true
    }

    fn take(&self) -> Option<Words> {
        self.place.take()
    }
}

#[test]
fn asyncfd_reserved_slot_reads_free() {
    Control::shows(Shows::Assertion("not what was stored"))
        .held_by("history::asyncfd::a_place_is_one_producers")
        .reaching(OUTCOMES)
        .refuted(|| two_store_where_one_fits::<FreeByCookie>());
}

/// Where one leaves while another one wakes, each under a lock.
struct Locked {
    lock: AtomicBool,
    /// Seed 001's second one.
    other: AtomicBool,
    linked: AtomicBool,
    waiter: Handed<u32>,
}

impl Locked {
    fn under(lock: &AtomicBool, f: impl FnOnce()) {
        let take = || lock.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        while take().is_err() {
            hint::spin_loop();
        }
        f();
        lock.store(false, Ordering::Release);
    }

    fn one_wakes_one_leaves(walked_under: fn(&Self) -> &AtomicBool) -> Scenario<Self> {
        Scenario::of(Self {
            lock: AtomicBool::new(false),
            other: AtomicBool::new(false),
            linked: AtomicBool::new(true),
            waiter: Handed::new(1),
        })
        .role("producer", move |l| {
            Self::under(walked_under(l), || {
                if l.linked.load(Ordering::Relaxed) {
                    reached("walked");
                    l.waiter.get();
                }
            });
        })
        .role("waiter", |l| {
            Self::under(&l.lock, || l.linked.store(false, Ordering::Relaxed));
            // Its memory is its own again.
            l.waiter.set(0);
            reached("left");
        })
    }
}

#[test]
fn who_is_walked_by_has_not_left() {
    Model::of(&[Reclamation], &["walked", "left"])
        .check(|| Locked::one_wakes_one_leaves(|l| &l.lock));
}

/// Seed 001: the waiters are walked under the lock of the results, and leave under
/// that of their list.
#[test]
fn asyncfd_wake_without_queue_lock() {
    Control::shows(Shows::UnorderedAccess)
        .held_by("history::asyncfd::who_is_walked_by_has_not_left")
        .reaching(&["walked", "left"])
        .refuted(|| Locked::one_wakes_one_leaves(|l| &l.other));
}

/// What can be closed.
trait Closed: Send + Sync + 'static {
    fn new() -> Self;
    /// Writes a result, unless it is closed.
    fn write(&self) -> bool;
    fn close(&self);
}

impl Closed for Asyncfd<Inline<2>> {
    fn new() -> Self {
        Results::new()
    }

    fn write(&self) -> bool {
        self.add(1)
    }

    fn close(&self) {
        block_on(self.close());
    }
}

fn two_write_one_closes<C: Closed>() -> Scenario<(C, AtomicBool)> {
    fn write<C: Closed>((written, closed): &(C, AtomicBool)) {
        let was_closed = closed.load(Ordering::Acquire);
        if written.write() {
            reached("written");
            assert!(!was_closed, "written after it was closed");
        } else {
            reached("refused");
        }
    }
    Scenario::of((C::new(), AtomicBool::new(false)))
        .role("producer", write)
        .role("producer", write)
        .role("closer", |(written, closed)| {
            written.close();
            closed.store(true, Ordering::Release);
        })
}

#[test]
fn nobody_writes_what_is_closed() {
    Model::of(&[Reclamation], &["written", "refused"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| two_write_one_closes::<Asyncfd<Inline<2>>>());
}

/// Seed 001: each producer holds a reference, and takes it for closed if there is no
/// other one. Two producers have two.
struct Counted(AtomicU32);

impl Closed for Counted {
    fn new() -> Self {
        Self(AtomicU32::new(1))
    }

    fn write(&self) -> bool {
        let open = self.0.fetch_add(1, Ordering::AcqRel) + 1 >= 2;
        self.0.fetch_sub(1, Ordering::AcqRel);
        open
    }

    fn close(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[test]
fn asyncfd_close_judged_by_refcount_below_two() {
    Control::shows(Shows::Assertion("written after it was closed"))
        .held_by("history::asyncfd::nobody_writes_what_is_closed")
        .reaching(&["written", "refused"])
        .refuted(|| two_write_one_closes::<Counted>());
}

/// What can be replaced, with a result in it.
trait Replaced: Polled {
    fn replace(&self);
}

impl Replaced for Asyncfd<Inline<1>> {
    fn replace(&self) {
        let replaced = self.replace(Inline::new());
        block_on(replaced.expect("nobody else replaces it"));
    }
}

fn one_replaces_one_reads<R: Replaced>() -> Scenario<World<R>> {
    Scenario::of(World::<R>::new().holding(1))
        .role("owner", |w| w.ring.replace())
        .role("consumer", |w| {
            w.ring.wait();
            assert!(w.take(), "woken for nothing");
        })
}

#[test]
fn what_is_unread_in_a_replaced_ring_is_readable() {
    Model::of(&[NoLostWakeup, NoLoss], &["stored", "taken"])
        .check(|| one_replaces_one_reads::<Asyncfd<Inline<1>>>());
}

/// Seed 001: poll looks at the present ring only.
struct LooksAtTheNewOne {
    places: [Place; 2],
    present: AtomicU32,
    queue: WaitQueue,
}

impl Results for LooksAtTheNewOne {
    fn new() -> Self {
        Self {
            places: array::from_fn(|_| Place::new()),
            present: AtomicU32::new(0),
            queue: WaitQueue::new(),
        }
    }

    fn add(&self, cookie: u64) -> bool {
        let present = self.present.load(Ordering::Acquire);
        self.places[present as usize].store(cookie);
        self.queue.wake(1);
        true
    }

    fn take(&self) -> Option<Words> {
        self.places.iter().find_map(Place::take)
    }
}

impl Polled for LooksAtTheNewOne {
    fn wait(&self) {
        sleep(&self.queue, || {
            let present = self.present.load(Ordering::Acquire);
            !self.places[present as usize].is_free()
        });
    }
}

impl Replaced for LooksAtTheNewOne {
    fn replace(&self) {
        self.present.store(1, Ordering::Release);
        self.queue.wake(1);
    }
}

#[test]
fn asyncfd_swap_hides_unread_results() {
    Control::shows(Shows::Hang)
        .held_by("history::asyncfd::what_is_unread_in_a_replaced_ring_is_readable")
        .reaching(OUTCOMES)
        .refuted(|| one_replaces_one_reads::<LooksAtTheNewOne>());
}

/// Who replaces the ring has the old one to himself at once, though somebody may have
/// found it to be the present one, and write it now.
#[test]
fn asyncfd_ring_freed_under_producer() {
    struct Swapped {
        rings: [Handed<u64>; 2],
        present: AtomicU32,
    }
    Control::shows(Shows::UnorderedAccess)
        .held_by("asyncfd::nobody_writes_a_ring_that_was_replaced")
        .refuted(|| {
            Scenario::of(Swapped {
                rings: [Handed::new(0), Handed::new(0)],
                present: AtomicU32::new(0),
            })
            .role("producer", |s| {
                let present = s.present.load(Ordering::Acquire);
                s.rings[present as usize].set(1);
            })
            .role("owner", |s| {
                s.present.store(1, Ordering::Release);
                s.rings[0].set(0);
            })
        });
}
