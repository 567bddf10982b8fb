//! Who is told of a completion, besides who reaps it.

use std::sync::{Arc, Mutex};

use uaio_core::{
    Context, Errno,
    context::{Completion, Request},
    notify::{Notification, Notify},
    request::Generation,
    ring,
    slots::{self, Iocb},
    sync::Track,
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, NoLoss, Order, Progress, Reclamation, Wrap},
    block_on,
    harness::{Count, Memory, pause},
    reached,
};

type Slots<const N: usize> = slots::Inline<Track<u64>, N, 1, (), Notify<Tell<N>>>;
type Notifies<const N: usize> = Context<ring::Inline<4>, Slots<N>>;

const DONE: i64 = 512;

/// What became of all.
#[derive(Debug, Default)]
struct Log {
    told: Mutex<Vec<u64>>,
    reaped: Mutex<Vec<u64>>,
    dropped: Count,
    /// How often somebody began to take events out, and has said which.
    begun: Count,
    ended: Count,
    /// How often it cannot be done now.
    refusals: Mutex<u64>,
    /// Who is told does not look.
    blind: Mutex<bool>,
}

impl Log {
    /// Whether somebody takes events out, and may be about to say which. To be asked
    /// before looking at what was said: who has ended since has said it.
    fn taken(&self) -> bool {
        let ended = self.ended.get();
        self.begun.get() > ended
    }
}

/// Looks for the event that it is about. loom fails a model that never drops it.
struct Tell<const N: usize> {
    data: u64,
    context: &'static Notifies<N>,
    log: Arc<Log>,
    done: bool,
    _track: Track<()>,
}

impl<const N: usize> Drop for Tell<N> {
    fn drop(&mut self) {
        if !self.done {
            self.log.dropped.add(1);
        }
    }
}

impl<const N: usize> Notification for Tell<N> {
    fn notify(mut self) -> Result<(), Self> {
        let mut refusals = self.log.refusals.lock().unwrap();
        if *refusals > 0 {
            *refusals -= 1;
            drop(refusals);
            reached("not now");
            return Err(self);
        }
        drop(refusals);
        if !*self.log.blind.lock().unwrap() {
            reap(self.context, &self.log);
            let taken = self.log.taken();
            let found = self.log.reaped.lock().unwrap().contains(&self.data);
            assert!(found || taken, "told of what is not visible");
        }
        self.log.told.lock().unwrap().push(self.data);
        self.done = true;
        Ok(())
    }
}

fn reap<const N: usize>(context: &Notifies<N>, log: &Log) -> usize {
    let mut out = [const { None::<Completion<Track<u64>>> }; 4];
    log.begun.add(1);
    let n = context.reap(&mut out).expect("a Native ring");
    for done in out.into_iter().flatten() {
        assert_eq!(
            *done.payload.get_ref(),
            done.event.data,
            "another's payload"
        );
        log.reaped.lock().unwrap().push(done.event.data);
    }
    log.ended.add(1);
    n
}

/// A context next to the wrap of positions and generations, in memory that is given back
/// by who destroyed it.
struct World<const N: usize> {
    context: Memory<Notifies<N>>,
    log: Arc<Log>,
}

fn context<const N: usize>() -> Notifies<N> {
    let slots = Slots::new(Generation::MAX);
    Context::new_at(ring::Inline::new(), u64::MAX, slots).expect("the slots fit the ring")
}

impl<const N: usize> World<N> {
    fn new() -> Self {
        Self {
            context: Memory::new(context()),
            log: Arc::default(),
        }
    }

    /// The first so many cannot be told at once.
    fn refusing(self, refusals: u64) -> Self {
        *self.log.refusals.lock().unwrap() = refusals;
        self
    }

    fn context(&self) -> &'static Notifies<N> {
        // SAFETY: used by roles and final checks, and given back by them.
        unsafe { self.context.get() }
    }

    fn submit(&self, data: u64) -> Result<Request<'static, ring::Inline<4>, Slots<N>>, Errno> {
        let context = self.context();
        let reserved = context.reserve_one()?;
        let request = reserved.fill(Iocb { data, obj: 0 }, Track::new(data));
        let tell = Tell {
            data,
            context,
            log: Arc::clone(&self.log),
            done: false,
            _track: Track::new(()),
        };
        let noted = context.notify_by(request, tell);
        Ok(noted.map_err(|refused| refused.error).expect("its own"))
    }

    fn complete(&self, data: u64) {
        let request = self.submit(data).expect("there is room");
        request.claim().complete(DONE, 0);
    }

    /// Each was told once, or given up; and there is room for all again.
    fn settle(&self, all: &[u64], given_up: u64) {
        while self.context().notify_again() > 0 {}
        while reap(self.context(), &self.log) > 0 {}
        let mut told = self.log.told.lock().unwrap().clone();
        told.sort_unstable();
        assert_eq!(told, all, "not told once");
        assert_eq!(self.log.dropped.get(), given_up, "given up");
        let room = self.context().reserve(N as u32).map(|all| all.len());
        assert_eq!(room, Ok(N), "there is no room");
    }
}

/// Who is told finds the event, also if another one that came first is published later.
#[test]
fn who_is_told_finds_the_event() {
    Model::of(
        &[ExactlyOnce, NoLoss, Order, Wrap],
        &["in order", "by the other"],
    )
    .bounded_always(
        3,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        Scenario::of(World::<2>::new())
            .role("completer", |w| w.complete(1))
            .role("completer", |w| w.complete(2))
            .finally(|w| {
                // Without anybody's help.
                let told = w.log.told.lock().unwrap().clone();
                assert_eq!(told.len(), 2, "not told");
                let first = told[0];
                reached(if first == 1 {
                    "in order"
                } else {
                    "by the other"
                });
                w.settle(&[1, 2], 0);
            })
    });
}

/// Of two that lie behind a gap, one may have the other off the stack when it is filled.
#[test]
fn who_was_taken_off_the_stack_is_told() {
    Model::of(&[ExactlyOnce, NoLoss, Order], &["all"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            let world = World::<3>::new();
            *world.log.blind.lock().unwrap() = true;
            let claims = [1, 2, 3].map(|data| world.submit(data).expect("there is room").claim());
            let [first, second, third] = claims;
            Scenario::of(world)
                .role("completer", move |_| first.complete(DONE, 0))
                .role("completer", move |_| second.complete(DONE, 0))
                .role("completer", move |_| third.complete(DONE, 0))
                .finally(|w| {
                    // Without anybody's help.
                    assert_eq!(w.log.told.lock().unwrap().len(), 3, "not told");
                    reached("all");
                    w.settle(&[1, 2, 3], 0);
                })
        });
}

/// The slot is used again once the event was reaped and somebody told of it.
#[test]
fn room_is_free_when_it_was_reaped_and_told() {
    Model::of(
        &[ExactlyOnce, Reclamation, Progress, Wrap],
        &["used again", "no room yet"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        fn again(w: &World<1>) {
            match w.submit(2) {
                Ok(request) => {
                    assert!(!w.log.told.lock().unwrap().is_empty(), "too early");
                    let taken = w.log.taken();
                    let reaped = !w.log.reaped.lock().unwrap().is_empty();
                    assert!(taken || reaped, "too early");
                    reached("used again");
                    drop(request);
                }
                Err(error) => {
                    assert_eq!(error, Errno::EAGAIN);
                    reached("no room yet");
                }
            }
        }
        let world = World::<1>::new();
        let claim = world.submit(1).expect("there is room").claim();
        Scenario::of(world)
            .role("completer", move |w| {
                claim.complete(DONE, 0);
                again(w);
            })
            .role("reaper", |w| {
                reap(w.context(), &w.log);
                again(w);
            })
            .finally(|w| {
                let given_up = w.log.dropped.get();
                w.settle(&[1], given_up);
            })
    });
}

/// Whoever comes first, completion or cancel, tells.
#[test]
fn completion_and_cancel_tell_once() {
    Model::of(&[ExactlyOnce, NoLoss], &["completed", "cancelled", "late"]).check(|| {
        let world = World::<1>::new();
        let handle = world.submit(1).expect("there is room").arm();
        Scenario::of(world)
            .role("completer", move |w| match w.context().claim(handle) {
                Ok(claim) => {
                    reached("completed");
                    claim.complete(DONE, 0);
                }
                Err(_) => reached("late"),
            })
            .role("canceller", move |w| match w.context().cancel(handle) {
                Ok(_) => reached("cancelled"),
                Err(_) => reached("late"),
            })
            .finally(|w| w.settle(&[1], 0))
    });
}

/// What cannot be told now keeps its room, and is told later, once.
#[test]
fn what_cannot_be_told_now_is_told_later() {
    Model::of(
        &[ExactlyOnce, NoLoss, Progress],
        &["not now", "again", "reaped"],
    )
    .check(|| {
        Scenario::of(World::<1>::new().refusing(1))
            .role("completer", |w| w.complete(1))
            .role("driver", |w| {
                w.context().notify_again();
                reached("again");
            })
            .role("reaper", |w| {
                if reap(w.context(), &w.log) > 0 {
                    reached("reaped");
                }
                pause();
            })
            .finally(|w| w.settle(&[1], 0))
    });
}

/// Two drivers tell what waits once.
#[test]
fn two_drivers_tell_once() {
    Model::of(&[ExactlyOnce, NoLoss], &["not now", "again"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            let world = World::<2>::new().refusing(3);
            world.complete(1);
            world.complete(2);
            fn again(w: &World<2>) {
                w.context().notify_again();
                reached("again");
            }
            Scenario::of(world)
                .role("driver", again)
                .role("driver", again)
                .finally(|w| w.settle(&[1, 2], 0))
        });
}

/// A batch tells each of its own.
#[test]
fn a_batch_tells_of_each() {
    Model::of(&[ExactlyOnce, NoLoss, Order], &["reaped", "empty"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::<2>::new())
                .role("completer", |w| {
                    let claims = [1, 2].map(|data| w.submit(data).expect("there is room").claim());
                    let mut batch = w.context().batch();
                    for claim in claims {
                        batch.push(claim, DONE, 0);
                    }
                })
                .role("reaper", |w| match reap(w.context(), &w.log) {
                    0 => reached("empty"),
                    _ => reached("reaped"),
                })
                .finally(|w| w.settle(&[1, 2], 0))
        });
}

/// A request that is refused takes its notification with it.
#[test]
fn a_refused_request_tells_nobody() {
    Model::of(&[ExactlyOnce, NoLoss, Reclamation], &["refused", "no room"]).check(|| {
        Scenario::of(World::<1>::new())
            .role("completer", |w| match w.submit(1) {
                Ok(request) => request.claim().complete(DONE, 0),
                Err(_) => reached("no room"),
            })
            .role("who gives up", |w| match w.submit(2) {
                Ok(request) => {
                    drop(request);
                    let given_up = w.log.dropped.get();
                    assert_eq!(given_up, 1, "not released");
                    reached("refused");
                }
                Err(_) => reached("no room"),
            })
            .finally(|w| {
                let told = w.log.told.lock().unwrap().clone();
                let given_up = w.log.dropped.get();
                assert!(given_up <= 1 && !told.contains(&2), "{told:?}");
                w.settle(&told, given_up);
            })
    });
}

/// The end waits for who tells, and what waits to be told again is released with the
/// context: told or dropped, once.
#[test]
fn the_end_waits_for_who_tells() {
    Model::of(
        &[ExactlyOnce, Reclamation],
        &["told", "dropped", "again", "not now"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        let world = World::<1>::new().refusing(1);
        let claim = world.submit(1).expect("there is room").claim();
        let user = world.context().enter().expect("it is there");
        Scenario::of(world)
            .role("completer", move |_| claim.complete(DONE, 0))
            .role("driver", move |w| {
                w.context().notify_again();
                drop(user);
                reached("again");
            })
            .role("destroyer", |w| {
                block_on(w.context().destroy(|_| ()));
                // SAFETY: it is over.
                unsafe { w.context.renew(context()) };
            })
            .finally(|w| {
                let told = w.log.told.lock().unwrap().len();
                let dropped = w.log.dropped.get();
                assert_eq!(told + dropped as usize, 1, "once");
                reached(if told > 0 { "told" } else { "dropped" });
            })
    });
}
