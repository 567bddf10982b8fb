//! Requests that are delivered to an asyncfd.

use std::{
    mem::ManuallyDrop,
    ops::Deref,
    pin::Pin,
    sync::{Arc, Mutex},
};

use uaio_core::{
    Context, Errno,
    asyncfd::{Asyncfd, AsyncfdResult, Drained},
    context::Handle,
    poll::{Heads, Source, event::IN},
    request::Generation,
    ring,
    slots::{self, Iocb},
    sync::{Track, hint},
    target::To,
    wait::WaitQueue,
};

use crate::{
    Model, Scenario,
    Theorem::{
        ExactlyOnce, HostileMemory, NoLoss, NoLostWakeup, Order, Progress, Reclamation, Wrap,
    },
    block_on,
    harness::{
        Memory,
        lent::{Lent, Page, result},
        pause,
    },
    reached,
};

const DONE: i64 = 512;
/// What is in the target before anything is delivered there.
const BEFORE: u64 = 39;

type Target = Asyncfd<Lent<1>>;
/// loom fails a model that drops no payload, or one twice.
type Slots<const N: usize> = slots::Inline<Track<u64>, N, 1, (), To<Arc<Target>>>;
type Delivers<const N: usize> = Context<ring::Inline<4>, Slots<N>>;

/// A context that is left alone after a failure: it would wait for what is kept back.
struct Spared<T>(ManuallyDrop<Pin<Box<T>>>);

impl<T> Spared<T> {
    fn new(value: T) -> Self {
        Self(ManuallyDrop::new(Box::pin(value)))
    }
}

impl<T> Deref for Spared<T> {
    type Target = Pin<Box<T>>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T> Drop for Spared<T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: dropped once, and not used any more.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

fn target() -> Arc<Target> {
    let target = Asyncfd::new_at(Lent::new(&Page::new()), (1 << 40) - 1, (1 << 61) - 1);
    Arc::new(target.expect("a ring"))
}

fn context<const N: usize>() -> Delivers<N> {
    let slots = Slots::new(Generation::MAX);
    Context::new_at(ring::Inline::new(), u64::MAX, slots).expect("they fit")
}

fn drain(target: &Target) -> Drained {
    loop {
        match target.drain() {
            Err(Errno::EBUSY) => hint::spin_loop(),
            drained => break drained.expect("an honest index"),
        }
    }
}

/// A target of one place, and a context with one request for each value.
struct World<const N: usize> {
    /// Dropped first: what it keeps back, the context waits for.
    target: Arc<Target>,
    context: Spared<Delivers<N>>,
    requests: Vec<(u64, Handle)>,
    /// What came out of the target, in order, and what out of the context.
    delivered: Mutex<Vec<u64>>,
    reaped: Mutex<Vec<u64>>,
    /// Stored by who adds them, for no request.
    added: Mutex<Vec<u64>>,
}

impl<const N: usize> World<N> {
    fn new(values: [u64; N]) -> Self {
        let mut world = Self {
            target: target(),
            context: Spared::new(context()),
            requests: Vec::new(),
            delivered: Mutex::default(),
            reaped: Mutex::default(),
            added: Mutex::default(),
        };
        world.requests = values.map(|value| (value, world.arm(value))).into();
        world
    }

    /// With no room in the target.
    fn full(self) -> Self {
        assert_eq!(self.target.add_results(&[result(BEFORE)]), Ok(1));
        self
    }

    /// Whose consumer has seen all.
    fn drained(self) -> Self {
        assert_eq!(self.target.drain(), Ok(Drained::Empty));
        self
    }

    fn arm(&self, value: u64) -> Handle {
        let reserved = self.context.reserve_one().expect("there is room");
        let iocb = Iocb {
            data: value,
            obj: !value,
        };
        let request = reserved.fill(iocb, Track::new(value));
        let named = (self.context.as_ref()).deliver_to(request, Arc::clone(&self.target));
        named.expect("its data is not zero").arm()
    }

    fn handle(&self, value: u64) -> Handle {
        let request = self.requests.iter().find(|(of, _)| *of == value);
        request.expect("there is one").1
    }

    fn complete(&self, values: &[u64]) {
        for value in values {
            let claim = self.context.claim(self.handle(*value));
            claim.expect("nobody else claims it").complete(DONE, 0);
            pause();
        }
    }

    /// Adds a result, for no request.
    fn add(&self, value: u64) {
        let added = self.target.add_results(&[result(value)]);
        reached(match added.expect("it is not closed") {
            0 => "refused",
            _ => "added",
        });
        if added == Ok(1) {
            self.added.lock().unwrap().push(value);
        }
    }

    /// What a result's number stands for.
    fn collect(&self, whole: &AsyncfdResult) {
        if whole.cookie == BEFORE {
            return;
        }
        if self
            .requests
            .iter()
            .all(|(value, _)| *value != whole.cookie)
        {
            assert_eq!(*whole, result(whole.cookie), "torn");
            self.delivered.lock().unwrap().push(whole.cookie);
            return;
        }
        assert_eq!((whole.res, whole.res2), (DONE, 0), "torn");
        let collected = self.context.collect(&self.target, whole.obj);
        let (payload, _) = collected.expect("it is to be collected");
        assert_eq!(*payload.get_ref(), whole.cookie, "another's payload");
        assert!(
            self.context.collect(&self.target, whole.obj).is_none(),
            "collected twice"
        );
        self.delivered.lock().unwrap().push(whole.cookie);
    }

    fn pop(&self) -> usize {
        let mut out = [AsyncfdResult::default()];
        let n = loop {
            match self.target.pop(&mut out) {
                Err(Errno::EBUSY) => hint::spin_loop(),
                popped => break popped.expect("an honest index"),
            }
        };
        out[..n].iter().for_each(|whole| self.collect(whole));
        n
    }

    fn drain(&self) {
        reached(match drain(&self.target) {
            Drained::Unread => "unread",
            Drained::Empty => "empty",
        });
    }

    /// Takes `n`, and sleeps whenever there is none.
    fn take(&self, n: usize) {
        let mut left = n;
        while left > 0 {
            if drain(&self.target) == Drained::Empty {
                reached("slept");
                block_on(self.target.readable());
            }
            left -= self.pop();
        }
    }

    fn reap(&self) {
        let mut out = [const { None }; 4];
        self.context.reap(&mut out).expect("a Native ring");
        for done in out.into_iter().flatten() {
            let value = done.event.data;
            assert_eq!(done.event.obj, !value, "torn");
            assert_eq!(done.event.res, DONE, "torn");
            assert_eq!(*done.payload.get_ref(), value, "another's payload");
            self.reaped.lock().unwrap().push(value);
        }
    }

    /// Each has been delivered once, and of each completer in its order.
    fn settle(&self) {
        while drain(&self.target) == Drained::Unread {
            assert_eq!(self.pop(), 1, "nothing to read");
        }
        self.reap();
        let delivered = self.delivered.lock().unwrap();
        let mut last = [0; 4];
        for value in &*delivered {
            let last = &mut last[*value as usize / 10];
            assert!(*last < *value, "{value} after {last}");
            *last = *value;
        }
        let mut all = [&delivered[..], &self.reaped.lock().unwrap()].concat();
        all.sort_unstable();
        let mut values: Vec<_> = self.requests.iter().map(|(value, _)| *value).collect();
        values.extend(&*self.added.lock().unwrap());
        values.sort_unstable();
        assert_eq!(all, values, "lost or doubled");
        // All room is free again.
        assert_eq!(self.context.reserve(N as u32).map(|all| all.len()), Ok(N));
    }
}

#[test]
fn what_does_not_fit_is_moved_in() {
    Model::of(&[ExactlyOnce, NoLoss, Order, Wrap], &["unread", "empty"]).check(|| {
        Scenario::of(World::new([1]).full())
            .role("completer", |w| w.complete(&[1]))
            .role("consumer", |w| {
                assert_eq!(w.pop(), 1, "it was full");
                w.drain();
                w.pop();
            })
            .finally(World::settle)
    });
}

#[test]
fn who_delivers_comes_behind_what_was_kept_back() {
    Model::of(&[ExactlyOnce, NoLoss, Order], &["unread", "empty"])
        .bounded_always(
            3,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::new([1, 2]).full())
                .role("completer", |w| w.complete(&[1, 2]))
                .role("consumer", |w| {
                    w.pop();
                    w.drain();
                })
                .finally(World::settle)
        });
}

#[test]
fn who_adds_comes_behind_what_was_kept_back() {
    Model::of(&[ExactlyOnce, NoLoss, Order], &["added", "refused"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::new([1]).full())
                .role("completer", |w| {
                    w.complete(&[1]);
                    w.add(2);
                })
                .role("consumer", |w| {
                    w.pop();
                    let _ = drain(&w.target);
                    w.pop();
                })
                .finally(World::settle)
        });
}

#[test]
fn two_who_keep_back_lose_nothing() {
    Model::of(&[ExactlyOnce, NoLoss, Order], &["unread", "empty"])
        .bounded_always(
            1,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::new([1, 11]).full())
                .role("completer", |w| w.complete(&[1]))
                .role("completer", |w| w.complete(&[11]))
                .role("consumer", |w| {
                    w.pop();
                    w.drain();
                })
                .finally(World::settle)
        });
}

#[test]
fn who_sleeps_is_woken_for_what_was_kept_back() {
    Model::of(&[NoLostWakeup, NoLoss], &["slept"])
        .bounded_always(
            3,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::new([1]).full())
                .role("completer", |w| w.complete(&[1]))
                .role("consumer", |w| w.take(2))
                .finally(World::settle)
        });
}

/// The result can be popped before its producer has said that the place is done with:
/// who does that lets in what was kept back meanwhile.
#[test]
fn who_sleeps_is_woken_when_what_was_kept_back_fits() {
    Model::of(&[NoLostWakeup, NoLoss], &["slept"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::new([1]).drained())
                .role("producer", |w| {
                    let before = [result(BEFORE)];
                    assert_eq!(
                        w.target.add_results(&before),
                        Ok(1),
                        "nothing was before it"
                    );
                })
                .role("consumer and completer", |w| {
                    w.take(1);
                    w.complete(&[1]);
                    w.take(1);
                })
                .finally(World::settle)
        });
}

#[test]
fn who_was_kept_back_is_not_overtaken_in_the_old_ring() {
    Model::of(
        &[Order, ExactlyOnce, NoLoss],
        &["unread", "empty", "replaced"],
    )
    .bounded_always(
        2,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        Scenario::of(World::new([1, 2]).full())
            .role("completer", |w| w.complete(&[1, 2]))
            .role("owner and consumer", |w| {
                let replaced = w.target.replace(Lent::new(&Page::new()));
                drop(replaced.expect("nobody else replaces it"));
                reached("replaced");
                w.drain();
                w.pop();
                w.drain();
            })
            .finally(World::settle)
    });
}

#[test]
fn what_was_kept_back_fits_into_the_next_ring() {
    Model::of(
        &[ExactlyOnce, NoLoss, NoLostWakeup, Order],
        &["slept", "replaced"],
    )
    .bounded_always(
        1,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        Scenario::of(World::new([1]).full())
            .role("completer", |w| w.complete(&[1]))
            .role("owner", |w| {
                let replaced = w.target.replace(Lent::new(&Page::new()));
                block_on(replaced.expect("nobody else replaces it"));
                reached("replaced");
            })
            .role("consumer", |w| w.take(2))
            .finally(World::settle)
    });
}

#[test]
fn what_a_closed_target_keeps_back_comes_out_of_the_context() {
    Model::of(
        &[ExactlyOnce, NoLoss, Reclamation, Progress],
        &["delivered", "reaped"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        Scenario::of(World::new([1, 2]))
            .role("completer", |w| w.complete(&[1, 2]))
            .role("closer", |w| block_on(w.target.close()))
            .finally(|w| {
                w.settle();
                let n = w.delivered.lock().unwrap().len();
                assert!(n < 2, "two in one place");
                reached(["reaped", "delivered"][n]);
            })
    });
}

#[test]
fn who_closes_and_who_drains_give_up_once() {
    Model::of(
        &[ExactlyOnce, NoLoss, Reclamation],
        &["unread", "empty", "delivered", "reaped"],
    )
    .bounded_always(
        3,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        let world = World::new([1]).full();
        world.complete(&[1]);
        Scenario::of(world)
            .role("closer", |w| block_on(w.target.close()))
            .role("consumer", |w| {
                w.pop();
                w.drain();
            })
            .finally(|w| {
                w.settle();
                let n = w.delivered.lock().unwrap().len();
                reached(["reaped", "delivered"][n]);
            })
    });
}

#[test]
fn a_context_that_is_dropped_waits_for_what_is_kept_back() {
    Model::of(&[Reclamation, Progress], &["dropped", "moved in"]).check(|| {
        let (memory, target) = (Memory::new(context::<1>()), target());
        assert_eq!(target.add_results(&[result(BEFORE)]), Ok(1));
        // SAFETY: it does not move, and is used until the owner gives it back.
        let pinned = Pin::static_ref(unsafe { memory.get() });
        let reserved = pinned.reserve_one().expect("there is room");
        let request = reserved.fill(Iocb { data: 1, obj: 0 }, Track::new(1));
        let named = pinned.deliver_to(request, Arc::clone(&target));
        let claim = named.expect("its data is not zero").claim();
        claim.complete(DONE, 0);
        let number = Handle::from_parts(0, Generation::MAX).number();
        Scenario::of((memory, target))
            .role("consumer", |(_, target)| {
                let mut out = [AsyncfdResult::default()];
                assert_eq!(target.pop(&mut out), Ok(1));
                assert_eq!(drain(target), Drained::Unread, "what was kept back is gone");
                reached("moved in");
            })
            .role("owner", |(memory, target)| {
                // An access that shows the checker that it could begin with this.
                assert!(!target.is_closed());
                // SAFETY: dropping it waits: it is the claim.
                unsafe { memory.renew(context()) };
                reached("dropped");
            })
            .finally(move |(memory, target)| {
                // SAFETY: used before it is dropped.
                let next = unsafe { memory.get() };
                let collected = next.collect(target, number);
                assert!(collected.is_none(), "the next context was touched");
            })
    });
}

#[test]
fn a_number_collects_once() {
    Model::of(&[ExactlyOnce, HostileMemory], &["collected", "nothing"]).check(|| {
        fn collect(w: &World<1>) {
            match w.context.collect(&w.target, w.handle(1).number()) {
                Some((payload, handle)) => {
                    assert_eq!((*payload.get_ref(), handle), (1, w.handle(1)));
                    w.delivered.lock().unwrap().push(1);
                    reached("collected");
                }
                None => reached("nothing"),
            }
        }
        let world = World::new([1]);
        world.complete(&[1]);
        Scenario::of(world)
            .role("collector", collect)
            .role("collector", collect)
            .finally(|w| {
                let mut out = [AsyncfdResult::default()];
                assert_eq!(w.target.pop(&mut out), Ok(1));
                w.settle();
            })
    });
}

/// Who guesses it may collect before the result is stored; but only that.
#[test]
fn a_number_from_nowhere_collects_nothing_else() {
    Model::of(
        &[HostileMemory, ExactlyOnce, Wrap],
        &["collected", "nothing", "the next one"],
    )
    .check(|| {
        Scenario::of(World::new([1]))
            .role("completer", |w| w.complete(&[1]))
            .role("scribbler", |w| {
                let number = w.handle(1).number();
                let other = w.context.collect(&target(), number);
                assert!(other.is_none(), "another target's");
                for wrong in [0, u64::MAX, number ^ 1, number ^ 1 << 24] {
                    assert!(w.context.collect(&w.target, wrong).is_none(), "{wrong:#x}");
                }
                let Some((payload, _)) = w.context.collect(&w.target, number) else {
                    reached("nothing");
                    return;
                };
                assert_eq!(*payload.get_ref(), 1);
                w.delivered.lock().unwrap().push(1);
                reached("collected");
                // The slot is the next one's.
                let next = w.arm(2);
                assert!(
                    w.context.collect(&w.target, number).is_none(),
                    "of the last life"
                );
                assert!(
                    w.context.collect(&w.target, next.number()).is_none(),
                    "not completed"
                );
                w.context.claim(next).expect("armed").complete(DONE, 0);
            })
            .finally(|w| {
                let mut next = false;
                while drain(&w.target) == Drained::Unread {
                    let mut out = [AsyncfdResult::default()];
                    assert_eq!(w.target.pop(&mut out), Ok(1));
                    match w.context.collect(&w.target, out[0].obj) {
                        Some((payload, _)) => {
                            assert_eq!(*payload.get_ref(), out[0].cookie);
                            next |= out[0].cookie == 2;
                        }
                        None => assert_eq!(w.delivered.lock().unwrap()[..], [out[0].cookie]),
                    }
                }
                if next {
                    reached("the next one");
                }
                assert_eq!(w.context.reserve(1).map(|all| all.len()), Ok(1));
            })
    });
}

/// A request that polls the asyncfd where it is delivered.
struct Polls(Track<Arc<Target>>);

// SAFETY: the asyncfd is there as long as this.
unsafe impl Source for Polls {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        self.0.get_ref().heads(visit);
    }
    fn mask(&self) -> u16 {
        self.0.get_ref().mask()
    }
}

type PollSlots = slots::Inline<Polls, 1, 1, Heads<1>, To<Arc<Target>>>;

#[test]
fn who_completes_into_what_it_polls_does_not_deadlock() {
    Model::of(
        &[Progress, ExactlyOnce, NoLostWakeup],
        &["stored", "full", "collected"],
    )
    .bounded_always(
        2,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        type Pair = (Arc<Target>, Spared<Context<ring::Inline<2>, PollSlots>>);
        let context = Context::new_at(
            ring::Inline::new(),
            u64::MAX,
            PollSlots::new(Generation::MAX),
        );
        let pair: Pair = (target(), Spared::new(context.expect("they fit")));
        {
            let (target, context) = &pair;
            assert_eq!(target.drain(), Ok(Drained::Empty));
            let reserved = context.reserve_one().expect("there is room");
            let payload = Polls(Track::new(Arc::clone(target)));
            let request = reserved.fill(Iocb { data: 1, obj: 0 }, payload);
            let named = (context.as_ref()).deliver_to(request, Arc::clone(target));
            let request = named.ok().expect("its data is not zero");
            assert!(context.as_ref().poll(request, IN).is_ok());
        }
        fn produce((target, _): &Pair) {
            match target.add_results(&[result(BEFORE)]) {
                Ok(1) => reached("stored"),
                _ => reached("full"),
            }
        }
        Scenario::of(pair)
            .role("producer", produce)
            .role("producer", produce)
            .finally(|(target, context)| {
                let mut polled = 0;
                while drain(target) == Drained::Unread {
                    let mut out = [AsyncfdResult::default()];
                    assert_eq!(target.pop(&mut out), Ok(1));
                    if out[0].cookie == 1 {
                        assert_eq!(out[0].res, IN.into());
                        assert!(context.collect(target, out[0].obj).is_some());
                        reached("collected");
                        polled += 1;
                    }
                }
                assert_eq!(polled, 1, "completions");
            })
    });
}

/// A place whose lap comes late lets in what was kept back, and a drain finds it there
/// before anybody told of it.
#[test]
fn who_drains_twice_leaves_it_readable() {
    Model::of(&[NoLostWakeup], &["unread", "empty"])
        .bounded_always(
            3,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::new([1, 11]).drained())
                .role("completer", |w| w.complete(&[1]))
                .role("completer and consumer", |w| {
                    w.complete(&[11]);
                    w.pop();
                    w.drain();
                    w.drain();
                })
                .finally(|w| {
                    let readable = w.target.is_readable();
                    let unread = w.target.drain() == Ok(Drained::Unread);
                    assert!(readable || !unread, "unread, and nobody was told");
                    w.settle();
                })
        });
}
