//! Wait queues.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Poll, Wake, Waker},
};

use uaio_core::{
    sync::{
        Track,
        atomic::{AtomicU32, Ordering},
        hint,
    },
    wait::{Awaited, Closed, Enqueued, Left, Never, WaitQueue, Waiter},
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, NoLostWakeup, Order, Progress, Reclamation, Truth},
    block_on,
    harness::{Count, Handed, Memory, Sleeper, pause},
    reached,
    scenarios::{self, Sleep, Source},
};

const IN: u16 = 1;
const OUT: u16 = 2;

/// A queue and what its waiters wait for: an event per bit.
struct World {
    queue: WaitQueue,
    fired: AtomicU32,
}

impl World {
    fn new() -> Self {
        Self {
            queue: WaitQueue::new(),
            fired: AtomicU32::new(0),
        }
    }

    fn wait(&self, key: u16) {
        scenarios::wait(&<Arc<Sleeper> as Sleep>::new(), self, key);
    }
}

impl Source for World {
    fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    fn ready(&self, key: u16, mask: u16) -> bool {
        // Ordering: Relaxed. The queue must order it.
        let fired = self.fired.load(Ordering::Relaxed) as u16;
        (mask == 0 || key & mask != 0) && fired & key == key
    }

    fn fire(&self, events: u16) {
        self.fired.fetch_or(events.into(), Ordering::Relaxed);
        self.queue.wake(events);
    }
}

#[test]
fn a_wake_is_not_lost() {
    Model::of(&[NoLostWakeup, Order], &["slept", "ready at once"])
        .check(|| scenarios::a_wake_is_not_lost::<Arc<Sleeper>, _>(World::new()));
}

#[test]
fn the_next_wake_is_not_lost() {
    Model::of(&[NoLostWakeup, Order], &["slept", "ready at once"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| scenarios::the_next_wake_is_not_lost::<Arc<Sleeper>, _>(World::new()));
}

#[test]
fn two_wakers_wake_who_waits_for_both() {
    Model::of(&[NoLostWakeup], &["slept", "ready at once"])
        .bounded_always(
            3,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::new())
                .role("waker", |w| w.fire(IN))
                .role("waker", |w| w.fire(OUT))
                .role("waiter", |w| w.wait(IN | OUT))
        });
}

#[test]
fn a_mask_is_left_to_who_holds_the_lock() {
    Model::of(&[NoLostWakeup, Progress], &["slept", "ready at once"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::new())
                .role("waker", |w| w.fire(IN))
                .role("other waker", |w| w.fire(OUT))
                .role("waiter", |w| w.wait(OUT))
        });
}

#[test]
fn one_wake_wakes_two_waiters() {
    Model::of(&[NoLostWakeup], &["slept", "ready at once"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::new())
                .role("waker", |w| w.fire(IN))
                .role("waiter", |w| w.wait(IN))
                .role("waiter", |w| w.wait(IN))
        });
}

/// Waits until the time is up, which it is at once.
fn wait_no_longer(w: &World) {
    let sleeper = Arc::new(Sleeper::new());
    let waker = Waker::from(sleeper);
    let awaited = |mask| w.ready(IN, mask);
    let mut waiter = pin!(Waiter::new());
    // SAFETY: it is used with this queue only, and leaves it below.
    let enqueued = unsafe { (w.queue).enqueue(waiter.as_ref(), &waker, &awaited) };
    if enqueued == Ok(Enqueued::Ready) {
        reached("ready at once");
        return;
    }
    pause();
    // SAFETY: as above.
    let left = unsafe { w.queue.leave(waiter.as_ref()) };
    waiter.set(Waiter::new());
    match left {
        Left::Woken => {
            assert!(w.ready(IN, IN), "woken for nothing");
            reached("woken");
        }
        Left::Unwoken => reached("timed out"),
    }
}

#[test]
fn a_waiter_that_left_is_not_touched() {
    Model::of(&[Reclamation], &["ready at once", "woken", "timed out"]).check(|| {
        Scenario::of(World::new())
            .role("waker", |w| w.fire(IN))
            .role("waiter", wait_no_longer)
    });
}

#[test]
fn who_leaves_takes_nobody_elses_wake() {
    Model::of(
        &[NoLostWakeup, Reclamation],
        &["ready at once", "slept", "woken", "timed out"],
    )
    .bounded_always(
        2,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        Scenario::of(World::new())
            .role("waker", |w| w.fire(IN))
            .role("waiter", |w| w.wait(IN))
            .role("who leaves", wait_no_longer)
    });
}

/// A queue that is given back once it is closed.
struct Closing {
    queue: Memory<WaitQueue>,
    /// What the closer did before.
    before: Handed<u64>,
}

impl Closing {
    fn new() -> Self {
        Self {
            queue: Memory::new(WaitQueue::new()),
            before: Handed::new(0),
        }
    }

    fn close(&self) {
        self.before.set(1);
        // SAFETY: not closed yet, so it is there.
        unsafe { self.queue.get() }.close();
    }

    /// Waits until it is closed, and gives the memory back.
    fn wait(&self) {
        // SAFETY: this waiter is unaware, so it is there.
        let queue = unsafe { self.queue.get() };
        let mut waiter = pin!(Waiter::new());
        let mut slept = false;
        block_on(poll_fn(|task| {
            loop {
                // SAFETY: it is used with this queue only, and never dropped
                // while linked: closing unlinks it.
                match unsafe { queue.enqueue(waiter.as_ref(), task.waker(), &Never) } {
                    Err(Closed) => return Poll::Ready(()),
                    Ok(Enqueued::Ready) => {}
                    Ok(Enqueued::Waiting) => {
                        slept = true;
                        return Poll::Pending;
                    }
                }
            }
        }));
        reached(if slept { "slept" } else { "closed before" });
        waiter.set(Waiter::new());
        // SAFETY: closed, and the only one who used it knows.
        unsafe { self.queue.renew(WaitQueue::new()) };
    }
}

#[test]
fn a_closed_queue_is_not_touched() {
    Model::of(&[Reclamation, NoLostWakeup], &["slept", "closed before"]).check(|| {
        Scenario::of(Closing::new())
            .role("closer", Closing::close)
            .role("waiter", Closing::wait)
    });
}

#[test]
fn who_sees_a_queue_closed_may_free_it() {
    Model::of(&[Reclamation], &["closed", "open"]).check(|| {
        Scenario::of(Closing::new())
            .role("closer", Closing::close)
            .role("observer", |w| {
                // SAFETY: this observer gives it back, and nobody else.
                if unsafe { w.queue.get() }.is_closed() {
                    reached("closed");
                    assert_eq!(w.before.get(), 1, "closed before it was done");
                    // SAFETY: closed, and the only other one who used it knows.
                    unsafe { w.queue.renew(WaitQueue::new()) };
                } else {
                    reached("open");
                }
            })
    });
}

/// One more than are moved out of the lock at once.
const CROWD: usize = 9;

/// A waker that counts. loom fails a model that forgets a clone.
struct Counting(Track<Count>);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.get_ref().add(1);
    }
}

/// Waits for [`IN`], which has not fired when it begins.
struct Fired;

impl Awaited for Fired {
    fn holds(&self, mask: u16) -> bool {
        mask & IN != 0
    }
}

struct Crowd {
    world: World,
    waiters: Pin<Box<[Waiter; CROWD]>>,
    woken: Arc<Counting>,
    left: Count,
}

impl Crowd {
    fn waiting() -> Self {
        let woken = Arc::new(Counting(Track::new(Count::default())));
        let crowd = Self {
            world: World::new(),
            waiters: Box::pin(std::array::from_fn(|_| Waiter::new())),
            woken,
            left: Count::default(),
        };
        let waker = Waker::from(Arc::clone(&crowd.woken));
        for i in 0..CROWD {
            // SAFETY: used with this queue only, and left in `settle`.
            let enqueued = unsafe { (crowd.world.queue).enqueue(crowd.waiter(i), &waker, &Fired) };
            assert_eq!(enqueued, Ok(Enqueued::Waiting));
        }
        crowd
    }

    fn waiter(&self, i: usize) -> Pin<&Waiter> {
        // SAFETY: structural: the array is pinned, so its elements are.
        unsafe { self.waiters.as_ref().map_unchecked(|waiters| &waiters[i]) }
    }

    /// The one that another thread takes out, while the rest is woken.
    fn leave(&self, i: usize) {
        // SAFETY: used with this queue only.
        match unsafe { self.world.queue.leave(self.waiter(i)) } {
            Left::Unwoken => {
                self.left.add(1);
                reached("left");
            }
            Left::Woken => reached("woken"),
        }
    }

    fn settle_closed(&self) {
        assert!(self.world.queue.is_closed());
        self.settle();
    }

    fn settle(&self) {
        let wakes = self.woken.0.get_ref().get() + self.left.get();
        assert_eq!(wakes, CROWD as u64, "wakers called, and waiters that left");
        for i in 0..CROWD {
            // SAFETY: used with this queue only.
            let _ = unsafe { self.world.queue.leave(self.waiter(i)) };
        }
    }
}

#[test]
fn a_crowd_is_woken_whoever_holds_the_lock() {
    Model::of(&[NoLostWakeup, Progress], &["left", "woken"])
        .bounded(3, "nine waiters")
        .check(|| {
            Scenario::of(Crowd::waiting())
                .role("waker", |c| c.world.fire(IN))
                .role("who leaves", |c| c.leave(CROWD - 1))
                .finally(Crowd::settle)
        });
}

#[test]
fn a_crowd_is_woken_by_two_wakers_together() {
    Model::of(&[NoLostWakeup, ExactlyOnce], &["settled"])
        .bounded(3, "nine waiters")
        .check(|| {
            Scenario::of(Crowd::waiting())
                .role("waker", |c| c.world.fire(IN))
                .role("waker", |c| c.world.fire(IN))
                .finally(|c| {
                    c.settle();
                    reached("settled");
                })
        });
}

#[test]
fn a_crowd_is_woken_by_closing() {
    Model::of(&[NoLostWakeup, Reclamation], &["left", "woken"])
        .bounded(3, "nine waiters")
        .check(|| {
            Scenario::of(Crowd::waiting())
                .role("closer", |c| c.world.queue.close())
                .role("who leaves", |c| c.leave(CROWD - 1))
                .finally(Crowd::settle_closed)
        });
}

#[test]
fn closing_is_not_lost_behind_a_crowd() {
    Model::of(&[NoLostWakeup, Progress], &["closed"])
        .bounded(3, "nine waiters")
        .check(|| {
            Scenario::of(Crowd::waiting())
                .role("closer", |c| c.world.queue.close())
                .role("waker", |c| c.world.fire(IN))
                .finally(|c| {
                    c.settle_closed();
                    reached("closed");
                })
        });
}

/// A waker that tells that it was called.
struct Telling(AtomicU32);

impl Wake for Telling {
    fn wake(self: Arc<Self>) {
        self.0.store(1, Ordering::Release);
    }
}

#[test]
fn who_comes_after_a_wake_is_not_woken_by_it() {
    Model::of(&[Truth, NoLostWakeup], &["before", "after"])
        .bounded(3, "nine waiters")
        .check(|| {
            let told = Arc::new(Telling(AtomicU32::new(0)));
            let waker = Waker::from(Arc::clone(&told));
            let crowd = Linked::<CROWD>::new(Waiter::new, |_| waker.clone());
            Scenario::of((crowd, Box::pin(Waiter::new())))
                .role("waker", |(c, _)| c.queue().wake(IN))
                .role("who comes", move |(c, late)| {
                    let after = told.0.load(Ordering::Acquire) == 1;
                    reached(if after { "after" } else { "before" });
                    let late = late.as_ref();
                    // SAFETY: used with this queue only, and left below.
                    let enqueued = unsafe { c.queue().enqueue(late, Waker::noop(), &Fired) };
                    assert_eq!(enqueued, Ok(Enqueued::Waiting));
                    pause();
                    // SAFETY: as above.
                    let left = unsafe { c.queue().leave(late) };
                    assert!(!after || left == Left::Unwoken, "woken by what was before");
                })
                .finally(|(c, _)| {
                    for i in 0..CROWD {
                        assert_eq!(c.leave(i), Left::Woken);
                    }
                })
        });
}

/// Waiters for [`IN`] in a queue that its owner gives back once it is closed.
struct Linked<const N: usize> {
    queue: Memory<WaitQueue>,
    waiters: Pin<Box<[Waiter; N]>>,
}

impl<const N: usize> Linked<N> {
    fn new(new: fn() -> Waiter, waker: impl Fn(usize) -> Waker) -> Self {
        let linked = Self {
            queue: Memory::new(WaitQueue::new()),
            waiters: Box::pin(std::array::from_fn(|_| new())),
        };
        for i in 0..N {
            let waiter = linked.waiter(i);
            // SAFETY: used with this queue only, and out of it at the end of the model.
            let enqueued = unsafe { linked.queue().enqueue(waiter, &waker(i), &Fired) };
            assert_eq!(enqueued, Ok(Enqueued::Waiting));
        }
        linked
    }

    fn waiter(&self, i: usize) -> Pin<&Waiter> {
        // SAFETY: structural: the array is pinned, so its elements are.
        unsafe { self.waiters.as_ref().map_unchecked(|waiters| &waiters[i]) }
    }

    fn queue(&self) -> &WaitQueue {
        // SAFETY: used while it is there, says the scenario.
        unsafe { self.queue.get() }
    }

    /// Takes a waiter out, also when closing did, and passes no wake on.
    fn leave(&self, i: usize) -> Left {
        // SAFETY: used with this queue only, which is there unless it is closed.
        unsafe { WaitQueue::leave_from(self.queue(), self.waiter(i)) }
    }

    fn wait_until_closed(&self) {
        while !self.queue().is_closed() {
            hint::spin_loop();
        }
    }

    fn give_back(&self) {
        // SAFETY: closed, and nobody uses it any more: that is the claim.
        unsafe { self.queue.renew(WaitQueue::new()) };
        reached("given back");
    }
}

fn reached_by_leaving(left: Left) {
    reached(match left {
        Left::Unwoken => "left",
        Left::Woken => "woken",
    });
}

#[test]
fn who_is_away_is_waited_for_by_closing() {
    Model::of(&[Reclamation, Progress], &["left", "woken", "given back"])
        .bounded_always(
            3,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(Linked::<CROWD>::new(Waiter::new, |_| Waker::noop().clone()))
                .role("waker and owner", |c| {
                    c.queue().wake(IN);
                    c.queue().close();
                    c.wait_until_closed();
                    c.give_back();
                })
                .role("who leaves", |c| reached_by_leaving(c.leave(CROWD - 1)))
        });
}

/// A waker that leaves a trace, which nothing but the protocol orders.
struct Tracing(Handed<u64>);

impl Wake for Tracing {
    fn wake(self: Arc<Self>) {
        self.0.set(1);
    }
}

#[test]
fn who_comes_back_is_done_before_it_is_closed() {
    Model::of(&[Reclamation, Order], &["left", "woken", "given back"])
        .bounded(3, "nine waiters")
        .check(|| {
            let first = Arc::new(Tracing(Handed::new(0)));
            let trace = Arc::clone(&first);
            let crowd = Linked::<CROWD>::new(Waiter::new, |i| match i {
                0 => Waker::from(Arc::clone(&first)),
                _ => Waker::noop().clone(),
            });
            Scenario::of(crowd)
                .role("closer", |c| c.queue().close())
                .role("who leaves, and owner", move |c| {
                    reached_by_leaving(c.leave(CROWD - 1));
                    c.wait_until_closed();
                    // Of those that were called before it came back.
                    assert_eq!(trace.0.get(), 1, "closed before it was done");
                    c.give_back();
                })
        });
}

/// Closed by two, and given back by the second, if it is closed by then.
struct ClosedByTwo {
    linked: Linked<1>,
    woken: Arc<Counting>,
    left: Count,
    closed: AtomicU32,
}

impl ClosedByTwo {
    fn new() -> Self {
        let woken = Arc::new(Counting(Track::new(Count::default())));
        Self {
            linked: Linked::new(Waiter::new, |_| Waker::from(Arc::clone(&woken))),
            woken,
            left: Count::default(),
            closed: AtomicU32::new(0),
        }
    }

    fn close(&self) {
        self.linked.queue().close();
        // Ordering: AcqRel: both are out of it.
        let second = self.closed.fetch_add(1, Ordering::AcqRel) == 1;
        if second && self.linked.queue().is_closed() {
            self.linked.give_back();
        }
    }
}

#[test]
fn a_queue_is_closed_for_both_of_its_closers() {
    Model::of(
        &[Progress, Reclamation, NoLostWakeup],
        &["left", "woken", "given back"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        Scenario::of(ClosedByTwo::new())
            .role("closer", ClosedByTwo::close)
            .role("closer", ClosedByTwo::close)
            .role("who leaves", |w| {
                let left = w.linked.leave(0);
                w.left.add((left == Left::Unwoken).into());
                reached_by_leaving(left);
            })
            .finally(|w| {
                let woken = w.woken.0.get_ref().get();
                assert_eq!(woken + w.left.get(), 1, "woken, or left");
            })
    });
}

/// Exclusive waiters, and how often each was woken.
struct Shared {
    linked: Linked<2>,
    woken: [Arc<Counting>; 2],
}

impl Shared {
    fn new() -> Self {
        let woken = [(); 2].map(|()| Arc::new(Counting(Track::new(Count::default()))));
        let waker = |i: usize| Waker::from(Arc::clone(&woken[i]));
        Self {
            linked: Linked::new(Waiter::exclusive, waker),
            woken,
        }
    }

    fn settle(&self, woken: [u64; 2]) {
        let calls = [0, 1].map(|i: usize| self.woken[i].0.get_ref().get());
        assert_eq!(calls, woken, "wakers called");
        for i in 0..2 {
            let _ = self.linked.leave(i);
        }
    }
}

#[test]
fn two_wakes_of_one_wake_two() {
    Model::of(&[NoLostWakeup], &["both"]).check(|| {
        Scenario::of(Shared::new())
            .role("waker", |w| w.linked.queue().wake_one(IN))
            .role("waker", |w| w.linked.queue().wake_one(IN))
            .finally(|w| {
                w.settle([1, 1]);
                reached("both");
            })
    });
}

#[test]
fn a_wake_of_one_wakes_the_first_whoever_holds_the_lock() {
    Model::of(&[NoLostWakeup, Progress], &["left"]).check(|| {
        let shared = Shared::new();
        let other = Box::pin(Waiter::new());
        // SAFETY: used with this queue only, and leaves it below.
        let enqueued =
            unsafe { (shared.linked.queue()).enqueue(other.as_ref(), Waker::noop(), &Never) };
        assert_eq!(enqueued, Ok(Enqueued::Waiting));
        Scenario::of(shared)
            .role("waker", |w| w.linked.queue().wake_one(IN))
            .role("who leaves", move |w| {
                // SAFETY: as above.
                let left = unsafe { w.linked.queue().leave(other.as_ref()) };
                assert_eq!(left, Left::Unwoken);
                reached("left");
            })
            .finally(|w| w.settle([1, 0]))
    });
}

#[test]
fn a_wake_of_one_that_leaves_goes_to_the_other() {
    Model::of(&[NoLostWakeup], &["left", "woken"]).check(|| {
        Scenario::of(Shared::new())
            .role("waker", |w| w.linked.queue().wake_one(IN))
            .role("who leaves", |w| {
                // SAFETY: used with this queue only.
                let left = unsafe { w.linked.queue().leave(w.linked.waiter(0)) };
                reached_by_leaving(left);
            })
            .finally(|w| {
                let first = w.woken[0].0.get_ref().get();
                w.settle([first, 1]);
            })
    });
}

#[test]
fn a_wake_does_not_open_a_closed_queue() {
    Model::of(&[Reclamation], &["closed"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::new())
                .role("closer", |w| w.queue.close())
                .role("waiter", |w| {
                    let waker = Waker::noop();
                    let waiter = pin!(Waiter::new());
                    let awaited = |mask| w.ready(IN, mask);
                    // SAFETY: used with this queue only, and leaves it below.
                    let _ = unsafe { w.queue.enqueue(waiter.as_ref(), waker, &awaited) };
                    // SAFETY: as above.
                    let _ = unsafe { w.queue.leave(waiter.as_ref()) };
                })
                .role("waker", |w| w.fire(IN))
                .finally(|w| {
                    assert!(w.queue.is_closed());
                    reached("closed");
                })
        });
}
