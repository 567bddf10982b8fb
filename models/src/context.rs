//! The context: all the protocols together.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context as Task, Poll, Wake, Waker},
};

use uaio_core::{
    Context, Errno,
    context::{Armed, Cancelled, Claim, Completion, Early, Expired, Handle, Request, Running},
    request::{Generation, Phase},
    ring,
    slots::{self, Iocb},
    sync::{
        Track,
        atomic::{AtomicU32, Ordering},
        hint,
    },
};

use crate::{
    Model, Scenario,
    Theorem::{
        ExactlyOnce, HostileMemory, NoLoss, NoLostWakeup, Order, Progress, Reclamation, Truth, Wrap,
    },
    block_on,
    harness::{Count, Handed, Memory, Sleeper, pause},
    reached,
};

/// loom fails a model that drops no payload, or one twice.
type Payload = Track<u64>;
type Ring = ring::Inline<2>;
type Slots<const N: usize> = slots::Inline<Payload, N>;

/// A context for `N` requests, next to the wrap of positions and generations,
/// in memory that is given back by who destroyed it.
pub(crate) struct World<const N: usize> {
    context: Memory<Context<Ring, Slots<N>>>,
    accepted: Count,
    /// The data and the result of what was reaped.
    reaped: Mutex<Vec<(u64, i64)>>,
    /// What a completer does before it completes.
    guarded: Handed<u64>,
    /// Destroyers that may still look at the context.
    unaware: AtomicU32,
}

const DONE: i64 = 512;
const CANCELED: i64 = Errno::ECANCELED.as_result();
const EIO: i64 = Errno::EIO.as_result();

fn context<const N: usize>() -> Context<Ring, Slots<N>> {
    let slots = slots::Inline::new(Generation::MAX);
    Context::new_at(ring::Inline::new(), u64::MAX, slots).expect("the slots fit the ring")
}

impl<const N: usize> World<N> {
    pub(crate) fn new() -> Self {
        Self {
            context: Memory::new(context()),
            accepted: Count::default(),
            reaped: Mutex::default(),
            guarded: Handed::new(0),
            unaware: AtomicU32::new(2),
        }
    }

    /// The context, for who has a request in it, or destroys it.
    pub(crate) fn context(&self) -> &'static Context<Ring, Slots<N>> {
        // SAFETY: used by roles and final checks, and given back by them.
        unsafe { self.context.get() }
    }

    pub(crate) fn submit(&self, data: u64) -> Result<Request<'static, Ring, Slots<N>>, Errno> {
        let reservation = self.context().reserve_one()?;
        let iocb = Iocb { data, obj: !data };
        self.accepted.add(1);
        Ok(reservation.fill(iocb, Track::new(data)))
    }

    /// Submits and arms, if the context accepts it.
    fn arm_if_accepted(&self, data: u64) {
        match self.submit(data) {
            Ok(request) => {
                pause();
                let _ = request.arm();
                reached("accepted");
            }
            Err(error) => {
                assert_eq!(error, Errno::EINVAL);
                reached("refused");
            }
        }
    }

    fn armed(&self, data: u64) -> Handle {
        self.submit(data).expect("there is room").arm()
    }

    fn running(&self, data: u64) -> Running<'static, Ring, Slots<N>> {
        self.submit(data).expect("there is room").run()
    }

    fn early(&self, data: u64) -> Early<'static, Ring, Slots<N>> {
        self.submit(data).expect("there is room").early()
    }

    fn claim(&self, data: u64) -> Claim<'static, Ring, Slots<N>> {
        self.submit(data).expect("there is room").claim()
    }

    /// Reaps at most two, whole and with their payload.
    pub(crate) fn reap(&self, max: usize) -> usize {
        let mut out: [Option<Completion<Payload>>; 2] = [None, None];
        let n = self.context().reap(&mut out[..max]).expect("a Native ring");
        for done in out.into_iter().flatten() {
            let data = done.event.data;
            assert_eq!(done.event.obj, !data, "torn");
            assert_eq!(*done.payload.get_ref(), data, "another's payload");
            self.reaped.lock().unwrap().push((data, done.event.res));
        }
        n
    }

    fn wait(&self, min_nr: usize) -> Result<(), Errno> {
        block_on(Pin::static_ref(self.context()).wait(min_nr)?)
    }

    /// Waits for `n`, and they are there.
    fn wait_and_reap(&self, n: usize) {
        self.wait(n).expect("nobody destroys it");
        assert_eq!(self.reap(n), n, "woken too early");
    }

    fn complete(&self, handle: Handle) {
        match self.context().claim(handle) {
            Ok(claim) => claim.complete(DONE, 0),
            Err(_) => reached("completed late"),
        }
    }

    fn destroy(&self) {
        let interrupt = |_| reached("interrupt");
        block_on(self.context().destroy(interrupt));
    }

    /// The last destroyer gives the memory back.
    fn leave(&self) {
        // Ordering: AcqRel. They agree who is the last.
        if self.unaware.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: nobody uses it, and every destroyer knows.
            unsafe { self.context.renew(context()) };
        }
    }

    /// Each accepted request has been completed once, as one of `results`.
    fn settle(&self, results: &[(u64, i64)]) {
        while self.reap(2) > 0 {}
        let mut reaped = std::mem::take(&mut *self.reaped.lock().unwrap());
        reaped.sort_unstable();
        assert_eq!(reaped.len() as u64, self.accepted.get(), "{reaped:?}");
        for (i, completion) in reaped.iter().enumerate() {
            assert!(results.contains(completion), "{completion:?}");
            assert!(
                i == 0 || reaped[i - 1].0 != completion.0,
                "twice: {reaped:?}"
            );
        }
    }
}

#[test]
fn submission_and_end_leave_nothing_in_flight() {
    Model::of(&[ExactlyOnce, Reclamation], &["accepted", "refused"]).check(|| {
        Scenario::of(World::<1>::new())
            .role("submitter", |w| w.arm_if_accepted(1))
            .role("destroyer", World::destroy)
            .finally(|w| w.settle(&[(1, CANCELED)]))
    });
}

/// The destroyer may read an old generation, of which there is nothing to cancel.
#[test]
fn the_end_finds_a_request_in_a_used_place() {
    Model::of(&[ExactlyOnce, Reclamation], &["accepted", "refused"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::<1>::new())
                .role("submitter", |w| {
                    if let Ok(first) = w.submit(1) {
                        first.claim().complete(DONE, 0);
                        assert_eq!(w.reap(1), 1, "the only event is not visible");
                    }
                    w.arm_if_accepted(2);
                })
                .role("destroyer", World::destroy)
                .finally(|w| w.settle(&[(1, DONE), (2, CANCELED)]))
        });
}

#[test]
fn submission_and_two_ends_leave_nothing_in_flight() {
    Model::of(&[ExactlyOnce, Reclamation], &["accepted", "refused"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::<1>::new())
                .role("submitter", |w| w.arm_if_accepted(1))
                .role("destroyer", World::destroy)
                .role("destroyer", World::destroy)
                .finally(|w| w.settle(&[(1, CANCELED)]))
        });
}

/// Who runs a request, and would block in it.
struct Blocking {
    world: World<1>,
    blocked: Mutex<Option<Running<'static, Ring, Slots<1>>>>,
    interrupted: Count,
}

#[test]
fn who_runs_at_once_sees_the_end_or_is_interrupted() {
    Model::of(&[Progress, Truth], &["refused", "saw the end", "interrupt"]).check(|| {
        Scenario::of(Blocking {
            world: World::new(),
            blocked: Mutex::default(),
            interrupted: Count::default(),
        })
        .role("submitter", |b| match b.world.submit(1) {
            Ok(request) => {
                let running = request.run();
                if running.cancel_requested() {
                    reached("saw the end");
                    running.complete(DONE, 0);
                } else {
                    *b.blocked.lock().unwrap() = Some(running);
                }
            }
            Err(_) => reached("refused"),
        })
        .role("destroyer", |b| {
            drop(b.world.context().destroy(|_| {
                b.interrupted.add(1);
                reached("interrupt");
            }));
        })
        .finally(|b| {
            if let Some(running) = b.blocked.lock().unwrap().take() {
                assert_eq!(b.interrupted.get(), 1, "nobody asks it to end");
                running.complete(DONE, 0);
            }
            b.world.settle(&[(1, DONE)]);
        })
    });
}

#[test]
fn room_that_a_foreign_reaper_makes_is_made_once() {
    Model::of(&[NoLoss, HostileMemory, Wrap], &["followed", "full"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            type Foreign = Context<ring::Boxed, Slots<1>>;
            let memory = ring::Boxed::abi(7, 1).expect("a small ring");
            let slots = slots::Inline::new(Generation::MAX);
            // The last lap before the wrap.
            let context = Foreign::new_at(memory, u64::MAX - 1, slots).expect("it fits");
            let submit = |context: &Foreign, data| {
                let reservation = context.reserve_one()?;
                let request = reservation.fill(Iocb { data, obj: 0 }, Track::new(data));
                request.claim().complete(DONE, 0);
                Ok::<(), Errno>(())
            };
            submit(&context, 1).expect("there is room");
            let submitter = move |context: &Foreign| match submit(context, 2) {
                Ok(()) => reached("followed"),
                Err(error) => {
                    assert_eq!(error, Errno::EAGAIN);
                    reached("full");
                }
            };
            Scenario::of(context)
                .role("foreign reaper", |context| {
                    let header = context.header().expect("Abi mode");
                    assert_eq!(header.tail().load(Ordering::Acquire), 1);
                    header.head().store(1, Ordering::Release);
                })
                .role("submitter", submitter)
                .role("submitter", submitter)
                .finally(|context| {
                    // One place, so one more event at the most.
                    let mut out = [None, None];
                    let n = context.reap(&mut out).expect("an honest head");
                    assert!(n <= 1, "a place was given twice");
                })
        });
}

#[test]
fn reaping_completion_and_end_lose_no_event() {
    Model::of(
        &[ExactlyOnce, NoLoss],
        &["reaped meanwhile", "reaped after", "interrupt", "was over"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        let scenario = Scenario::of(World::<1>::new());
        let running = scenario.shared().running(1);
        scenario
            .role("worker", move |_| {
                if running.cancel_requested() {
                    reached("was over");
                }
                running.complete(DONE, 0);
            })
            .role("reaper", |w| {
                if w.reap(1) == 1 {
                    reached("reaped meanwhile");
                } else {
                    reached("reaped after");
                }
            })
            .role("destroyer", World::destroy)
            .finally(|w| w.settle(&[(1, DONE)]))
    });
}

#[test]
fn destroying_returns_after_the_last_touch() {
    Model::of(&[Reclamation], &["interrupt"]).check(|| {
        let scenario = Scenario::of(World::<1>::new());
        let running = scenario.shared().running(1);
        scenario
            .role("destroyer", |w| {
                w.destroy();
                assert_eq!(w.guarded.get(), 1, "the worker was not done");
                // Alone, so it is the last.
                w.leave();
                w.leave();
            })
            .role("worker", move |w| {
                w.guarded.set(1);
                running.complete(DONE, 0);
            })
    });
}

#[test]
fn every_destroyer_returns_after_the_last_touch() {
    Model::of(&[Reclamation], &["interrupt"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            fn destroyed(w: &World<1>) {
                assert_eq!(w.guarded.get(), 1, "the worker was not done");
                w.leave();
            }
            let scenario = Scenario::of(World::<1>::new());
            let running = scenario.shared().running(1);
            scenario
                .role("destroyer", |w| {
                    w.destroy();
                    destroyed(w);
                })
                .role("worker, then destroyer", move |w| {
                    let idle = w.context().destroy(|_| ());
                    w.guarded.set(1);
                    running.complete(DONE, 0);
                    block_on(idle);
                    destroyed(w);
                })
        });
}

#[test]
fn completion_and_cancel_yield_one_event_for_a_waiter() {
    Model::of(
        &[ExactlyOnce, Truth, NoLostWakeup],
        &["cancelled", "cancelled late", "completed late"],
    )
    .bounded(2, "more than 100,000 executions at bound 3")
    .check(|| {
        let scenario = Scenario::of(World::<1>::new());
        let handle = scenario.shared().armed(1);
        scenario
            .role("completer", move |w| w.complete(handle))
            .role("canceller", move |w| match w.context().cancel(handle) {
                Ok(Cancelled::Done) => reached("cancelled"),
                Ok(Cancelled::Asked) => panic!("it was Armed"),
                // Reaped already, or not.
                Err(Errno::ENOENT | Errno::EALREADY) => reached("cancelled late"),
                Err(error) => panic!("{error}"),
            })
            .role("waiter", |w| w.wait_and_reap(1))
            .finally(|w| w.settle(&[(1, DONE), (1, CANCELED)]))
    });
}

#[test]
fn who_waits_finds_the_event() {
    Model::of(&[NoLostWakeup, Order], &["completed"]).check(|| {
        let scenario = Scenario::of(World::<1>::new());
        let claim = scenario.shared().claim(1);
        scenario
            .role("completer", move |_| {
                claim.complete(DONE, 0);
                reached("completed");
            })
            .role("waiter", |w| w.wait_and_reap(1))
            .finally(|w| w.settle(&[(1, DONE)]))
    });
}

/// A waker that reaps: what it was called for is there by then.
struct ReapingWaker {
    context: &'static Context<Ring, Slots<2>>,
    wanted: usize,
    reaped: Arc<Track<Count>>,
}

impl ReapingWaker {
    fn reap(&self) {
        let mut out = [None, None];
        let n = self.context.reap(&mut out[..self.wanted]);
        assert_eq!(n, Ok(self.wanted), "woken too early");
        self.reaped.get_ref().add(self.wanted as u64);
    }
}

impl Wake for ReapingWaker {
    fn wake(self: Arc<Self>) {
        self.reap();
    }
}

/// Two completers, each of which may finish while the other's event, which is
/// before its own, is not there yet; and who waits for `wanted` of the two. One
/// sleep, and no second one: a wake that comes too early fails in the waker.
fn two_completers_and_a_waiter(wanted: usize) -> Scenario<World<2>> {
    let mut scenario = Scenario::of(World::<2>::new());
    for data in [1, 2] {
        let claim = scenario.shared().claim(data);
        scenario = scenario.role("completer", move |_| claim.complete(DONE, 0));
    }
    let context = scenario.shared().context();
    let reaped = Arc::new(Track::new(Count::default()));
    let reaper = Arc::new(ReapingWaker {
        context,
        wanted,
        reaped: Arc::clone(&reaped),
    });
    let wait = Arc::new(Mutex::new(Box::pin(
        Pin::static_ref(context).wait(wanted).expect("as many fit"),
    )));
    let waiting = Arc::clone(&wait);
    scenario
        .role("waiter", move |_| {
            let waker = Waker::from(Arc::clone(&reaper));
            let mut task = Task::from_waker(&waker);
            match waiting.lock().unwrap().as_mut().poll(&mut task) {
                Poll::Ready(result) => {
                    assert_eq!(result, Ok(()));
                    reaper.reap();
                    reached("at once");
                }
                Poll::Pending => reached("slept"),
            }
        })
        .finally(move |_| {
            drop(wait);
            assert_eq!(reaped.get_ref().get(), wanted as u64, "never woken");
        })
}

#[test]
fn who_waits_for_two_finds_both() {
    Model::of(&[NoLostWakeup, Order], &["at once", "slept"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| two_completers_and_a_waiter(2));
}

#[test]
fn who_waits_for_one_is_not_woken_for_a_hidden_one() {
    Model::of(&[NoLostWakeup, Order], &["at once", "slept"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| two_completers_and_a_waiter(1));
}

#[test]
fn a_batch_wakes_who_waits_for_all_of_it() {
    Model::of(&[NoLostWakeup, Order], &["completed"]).check(|| {
        let scenario = Scenario::of(World::<2>::new());
        let claims = [1, 2].map(|data| scenario.shared().claim(data));
        scenario
            .role("completer", move |w| {
                let mut batch = w.context().batch();
                for claim in claims {
                    batch.push(claim, DONE, 0);
                }
                drop(batch);
                reached("completed");
            })
            .role("waiter", |w| w.wait_and_reap(2))
            .finally(|w| w.settle(&[(1, DONE), (2, DONE)]))
    });
}

#[test]
fn a_time_limit_loses_no_event() {
    Model::of(&[NoLostWakeup, NoLoss], &["at once", "woken", "timed out"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            let scenario = Scenario::of(World::<1>::new());
            let claim = scenario.shared().claim(1);
            scenario
                .role("completer", move |_| claim.complete(DONE, 0))
                .role("waiter", |w| {
                    let waker = Waker::from(Arc::new(Sleeper::new()));
                    let mut task = Task::from_waker(&waker);
                    let mut wait = pin!(
                        Pin::static_ref(w.context())
                            .wait(1)
                            .expect("nobody destroys it")
                    );
                    let certain = match wait.as_mut().poll(&mut task) {
                        Poll::Ready(result) => {
                            assert_eq!(result, Ok(()));
                            reached("at once");
                            true
                        }
                        Poll::Pending => {
                            pause();
                            match wait.as_mut().expire() {
                                Expired::Woken => {
                                    reached("woken");
                                    true
                                }
                                Expired::TimedOut => {
                                    reached("timed out");
                                    false
                                }
                            }
                        }
                    };
                    assert!(w.reap(1) == 1 || !certain, "woken, and nothing is there");
                })
                .finally(|w| w.settle(&[(1, DONE)]))
        });
}

#[test]
fn the_end_wakes_who_waits() {
    Model::of(&[NoLostWakeup, Progress], &["refused", "woken"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::<1>::new())
                .role("waiter", |w| match Pin::static_ref(w.context()).wait(1) {
                    Ok(wait) => {
                        assert_eq!(block_on(wait), Err(Errno::EINVAL));
                        reached("woken");
                    }
                    Err(error) => {
                        assert_eq!(error, Errno::EINVAL);
                        reached("refused");
                    }
                })
                .role("destroyer", World::destroy)
        });
}

#[test]
fn who_waits_at_the_end_finds_the_event_or_the_end() {
    Model::of(&[NoLostWakeup, NoLoss, Progress], &["found", "ended"])
        .bounded_always(
            3,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            let scenario = Scenario::of(World::<1>::new());
            let claim = scenario.shared().claim(1);
            scenario
                .role("waiter", |w| match w.wait(1) {
                    Ok(()) => {
                        assert_eq!(w.reap(1), 1, "woken too early");
                        reached("found");
                    }
                    Err(error) => {
                        assert_eq!(error, Errno::EINVAL);
                        reached("ended");
                    }
                })
                .role("destroyer with the last claim", move |w| {
                    let idle = w.context().destroy(|_| ());
                    pause();
                    claim.complete(DONE, 0);
                    block_on(idle);
                })
                .finally(|w| w.settle(&[(1, DONE)]))
        });
}

#[test]
fn arming_cancel_and_end_yield_one_event() {
    Model::of(
        &[ExactlyOnce, Truth],
        &[
            "armed",
            "cancelled while arming",
            "asked",
            "cancelled",
            "interrupt",
        ],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        let scenario = Scenario::of(World::<1>::new());
        let early = scenario.shared().early(1);
        let handle = early.handle();
        scenario
            .role("submitter", move |_| match early.arm() {
                Armed::Armed(_) => reached("armed"),
                Armed::Cancelled(claim) => {
                    claim.cancel();
                    reached("cancelled while arming");
                }
                other => panic!("{other:?}"),
            })
            .role("canceller", move |w| match w.context().cancel(handle) {
                Ok(Cancelled::Done) => reached("cancelled"),
                Ok(Cancelled::Asked) => reached("asked"),
                Err(error) => assert_eq!(error, Errno::EALREADY),
            })
            .role("destroyer", World::destroy)
            .finally(|w| w.settle(&[(1, CANCELED)]))
    });
}

#[test]
fn who_arms_later_sees_the_end_or_is_cancelled() {
    Model::of(
        &[ExactlyOnce, Progress],
        &["armed", "cancelled while arming", "refused", "interrupt"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        Scenario::of(World::<1>::new())
            .role("submitter", |w| match w.submit(1) {
                Ok(request) => match request.early().arm() {
                    Armed::Armed(_) => reached("armed"),
                    Armed::Cancelled(claim) => {
                        claim.cancel();
                        reached("cancelled while arming");
                    }
                    other => panic!("{other:?}"),
                },
                Err(error) => {
                    assert_eq!(error, Errno::EINVAL);
                    reached("refused");
                }
            })
            .role("destroyer", World::destroy)
            .finally(|w| w.settle(&[(1, CANCELED)]))
    });
}

#[test]
fn a_running_request_tells_what_really_happened() {
    Model::of(&[Truth], &["asked", "too late", "interrupted", "interrupt"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            let scenario = Scenario::of(World::<1>::new());
            let running = scenario.shared().running(1);
            let handle = running.handle();
            scenario
                .role("worker", move |_| {
                    if running.cancel_requested() {
                        reached("interrupted");
                    }
                    running.complete(DONE, 0);
                })
                .role("canceller", move |w| match w.context().cancel(handle) {
                    Ok(Cancelled::Asked) => reached("asked"),
                    Ok(Cancelled::Done) => panic!("it runs"),
                    Err(error) => {
                        assert_eq!(error, Errno::EALREADY);
                        reached("too late");
                    }
                })
                .role("destroyer", World::destroy)
                .finally(|w| w.settle(&[(1, DONE)]))
        });
}

#[test]
fn what_is_dropped_is_completed_with_eio() {
    Model::of(&[ExactlyOnce, Truth], &["dropped"]).check(|| {
        let scenario = Scenario::of(World::<1>::new());
        let running = scenario.shared().running(1);
        scenario
            .role("worker", move |_| {
                drop(running);
                reached("dropped");
            })
            .role("waiter", |w| w.wait_and_reap(1))
            .finally(|w| w.settle(&[(1, EIO)]))
    });
}

/// A system call without readiness: it ends when what it waits for comes, or when a
/// signal meets the thread in it. A signal that comes before is lost.
#[derive(Default)]
struct Call(Mutex<InCall>);

#[derive(Default)]
struct InCall {
    waker: Option<Waker>,
    came: bool,
    interrupted: bool,
}

impl Call {
    /// Whether what it waits for came.
    fn enter(&self) -> bool {
        block_on(poll_fn(|task| {
            let mut call = self.0.lock().unwrap();
            if call.came || call.interrupted {
                return Poll::Ready(call.came);
            }
            call.waker = Some(task.waker().clone());
            Poll::Pending
        }))
    }

    fn end(&self, how: impl FnOnce(&mut InCall)) {
        let waker = {
            let mut call = self.0.lock().unwrap();
            how(&mut call);
            call.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn signal(&self) {
        self.end(|call| call.interrupted = call.waker.is_some());
    }
}

/// Cancelled, started and ended by itself at once. Who cancels a Running one signals until
/// it is not any more, for one signal can come before the call.
#[test]
fn a_call_that_is_cancelled_is_interrupted_until_it_ends() {
    Model::of(
        &[ExactlyOnce, Truth, Progress],
        &[
            "not started",
            "not called",
            "came",
            "interrupted",
            "signalled",
        ],
    )
    .bounded_always(3, "a signal may be repeated any number of times")
    .check(|| {
        let scenario = Scenario::of((World::<1>::new(), Call::default()));
        let handle = scenario.shared().0.armed(1);
        scenario
            .role("worker", move |(w, call)| {
                let Ok(running) = w.context().start(handle) else {
                    return reached("not started");
                };
                if running.cancel_requested() {
                    reached("not called");
                    return running.claim().cancel();
                }
                if call.enter() {
                    reached("came");
                    running.complete(DONE, 0);
                } else {
                    reached("interrupted");
                    running.claim().cancel();
                }
            })
            .role("canceller", move |(w, call)| {
                if w.context().cancel(handle) == Ok(Cancelled::Asked) {
                    while w.context().phase(handle) == Some(Phase::Running) {
                        reached("signalled");
                        call.signal();
                        hint::spin_loop();
                    }
                }
            })
            .role("other end", |(_, call)| call.end(|call| call.came = true))
            .finally(|(w, _)| w.settle(&[(1, DONE), (1, CANCELED)]))
    });
}

#[test]
fn a_stale_cancel_never_hits_the_next_request() {
    Model::of(&[ExactlyOnce, Truth, Wrap], &["in time", "late", "gone"]).check(|| {
        let scenario = Scenario::of(World::<1>::new());
        let stale = scenario.shared().armed(1);
        scenario
            .role("owner", move |w| {
                if let Ok(claim) = w.context().claim(stale) {
                    pause();
                    claim.complete(DONE, 0);
                }
                pause();
                w.reap(1);
                if let Ok(request) = w.submit(2) {
                    let _ = request.arm();
                }
            })
            .role("canceller", move |w| match w.context().cancel(stale) {
                Ok(done) => {
                    assert_eq!(done, Cancelled::Done);
                    reached("in time");
                }
                Err(Errno::EALREADY) => reached("late"),
                Err(error) => {
                    assert_eq!(error, Errno::ENOENT);
                    reached("gone");
                }
            })
            .finally(|w| {
                if w.accepted.get() == 2 {
                    // In the slot's next life, which only its owner ended.
                    let second = Handle::from_parts(0, Generation::MIN);
                    let claim = w.context().claim(second);
                    claim.expect("nobody ended it").complete(DONE, 0);
                }
                w.settle(&[(1, DONE), (1, CANCELED), (2, DONE)]);
            })
    });
}
