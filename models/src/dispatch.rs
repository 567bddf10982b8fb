//! Work that is handed to workers: nothing is left lying, and nothing done twice.

use std::{
    future::Future,
    mem,
    pin::pin,
    sync::Mutex,
    task::{self, Waker},
};

use uaio_core::{
    dispatch::{Called, Dispatch, Next, Starting, Task, Worker},
    ring,
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, NoLoss, NoLostWakeup, Progress},
    block_on,
    harness::Memory,
    reached,
};

type Memory4 = ring::Inline<4>;
type Queue = Dispatch<Memory4>;

const MANY: &str = "more than 500,000 executions unbounded, without repetitions";

fn task(number: u64) -> Task {
    [number, !number]
}

/// A queue, and what became of the work.
struct World {
    dispatch: Memory<Queue>,
    done: Mutex<Vec<u64>>,
}

impl World {
    fn new(least: u32, most: u32) -> Self {
        let dispatch = Dispatch::new(Memory4::new(), least..=most);
        Self {
            dispatch: Memory::new(dispatch.expect("a ring")),
            done: Mutex::default(),
        }
    }

    fn dispatch(&self) -> &'static Queue {
        // SAFETY: used by roles and final checks, and given back by them.
        unsafe { self.dispatch.get() }
    }

    fn do_it(&self, [task, check]: Task) {
        assert_eq!(task, !check, "torn");
        self.done.lock().unwrap().push(task);
    }

    /// Does it, and ends all when it was the last one: nobody waits for more.
    fn do_last(&self, task: Task) {
        self.do_it(task);
        self.dispatch().close();
    }

    /// Queues, and calls; what is nobody's any more is taken here.
    fn push(&self, tasks: &[u64]) {
        let tasks: Vec<_> = tasks.iter().copied().map(task).collect();
        if self.dispatch().push(&tasks) == Ok(tasks.len()) {
            reached("pushed");
        } else {
            reached("too late");
            return;
        }
        self.call();
    }

    fn call(&self) {
        match self.dispatch().call() {
            Called::Done => {}
            Called::Start(starting) => self.fail(starting),
            Called::Take => self.take_rest(),
        }
    }

    /// No worker can be started here.
    fn fail(&self, starting: Starting<'static, Memory4>) {
        reached("failed to start");
        if let Called::Take = starting.fail() {
            self.take_rest();
        }
    }

    fn take_rest(&self) {
        while let Some(task) = self.dispatch().take() {
            reached("taken at the end");
            self.do_it(task);
        }
    }

    fn worker(&self) -> Worker<'static, Memory4> {
        let starting = self.dispatch().start();
        starting.expect("one of the least").begin()
    }

    /// A worker's life, until so much was done, by whoever.
    fn work(&self, mut worker: Worker<'static, Memory4>, all: usize) {
        while self.done.lock().unwrap().len() < all {
            match worker.look() {
                Next::Task(task, more) => {
                    if let Some(more) = more {
                        self.fail(more);
                    }
                    self.do_it(task);
                }
                Next::Idle => {
                    reached("waited");
                    block_on(worker.wait());
                }
                Next::Over => return reached("over"),
            }
        }
        mem::forget(worker);
    }

    /// A worker's life; what it does is the last there is.
    fn work_to_the_end(&self, mut worker: Worker<'static, Memory4>) {
        loop {
            match worker.look() {
                Next::Task(task, more) => {
                    if let Some(more) = more {
                        self.fail(more);
                    }
                    self.do_last(task);
                }
                Next::Idle => {
                    reached("waited");
                    block_on(worker.wait());
                }
                Next::Over => return reached("over"),
            }
        }
    }

    /// Does one, and is busy with it for ever.
    fn work_once(&self, mut worker: Worker<'static, Memory4>) {
        loop {
            match worker.look() {
                Next::Task(task, more) => {
                    assert!(more.is_none(), "there are as many as there may be");
                    self.do_it(task);
                    return mem::forget(worker);
                }
                Next::Idle => {
                    reached("waited");
                    block_on(worker.wait());
                }
                Next::Over => panic!("it is not over"),
            }
        }
    }

    /// Two workers, of whom the second had something to do.
    fn with_two_workers(&self) -> [Worker<'static, Memory4>; 2] {
        let first = self.worker();
        self.dispatch().push(&[task(0)]).expect("there is room");
        let Called::Start(starting) = self.dispatch().call() else {
            panic!("none is idle, and there may be two");
        };
        let mut second = starting.begin();
        assert!(matches!(second.look(), Next::Task([0, _], None)));
        [first, second]
    }

    /// When the one worker is busy: another one is to be started, whatever failed before.
    fn push_in_vain(&self, n: u64) {
        self.dispatch().push(&[task(n)]).expect("there is room");
        let again = self.dispatch().call();
        assert!(matches!(again, Called::Start(_)), "still to be started");
        drop(again);
        self.dispatch().take().expect("nobody else is there");
    }

    fn settle(&self, all: &[u64]) {
        let mut done = self.done.lock().unwrap().clone();
        done.sort_unstable();
        assert_eq!(done, all, "not done once");
        assert!(self.dispatch().take().is_none(), "left lying");
    }
}

/// Who is about to park is called, or finds it.
#[test]
fn a_worker_that_parks_misses_no_push() {
    Model::of(&[NoLostWakeup, NoLoss, ExactlyOnce], &["pushed", "waited"]).check(|| {
        let world = World::new(1, 1);
        let worker = world.worker();
        Scenario::of(world)
            .role("pusher", |w| w.push(&[1]))
            .role("worker", move |w| w.work(worker, 1))
            .finally(|w| w.settle(&[1]))
    });
}

/// Who was called looks after that: a second push may rely on the first one's call.
#[test]
fn who_finds_it_called_can_rely_on_that() {
    Model::of(&[NoLostWakeup, NoLoss, ExactlyOnce], &["pushed", "waited"])
        .bounded_always(2, MANY)
        .check(|| {
            let world = World::new(1, 1);
            let worker = world.worker();
            Scenario::of(world)
                .role("pusher", |w| {
                    w.push(&[1]);
                    w.push(&[2]);
                })
                .role("worker", move |w| w.work(worker, 2))
                .finally(|w| w.settle(&[1, 2]))
        });
}

/// Who is stopped while it pushes hides what was pushed behind it, and calls later.
#[test]
fn what_was_hidden_when_it_was_pushed_is_not_stranded() {
    Model::of(&[NoLostWakeup, NoLoss, ExactlyOnce], &["pushed", "waited"])
        .bounded_always(1, MANY)
        .check(|| {
            let world = World::new(1, 1);
            let worker = world.worker();
            Scenario::of(world)
                .role("pusher", |w| w.push(&[1]))
                .role("pusher", |w| w.push(&[2]))
                .role("worker", move |w| w.work(worker, 2))
                .finally(|w| w.settle(&[1, 2]))
        });
}

/// A start that fails strands nothing: who is there comes to it.
#[test]
fn a_start_that_fails_strands_nothing() {
    Model::of(
        &[NoLostWakeup, NoLoss, Progress],
        &["pushed", "waited", "failed to start"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        let world = World::new(1, 2);
        let worker = world.worker();
        Scenario::of(world)
            .role("pusher", |w| w.push(&[1]))
            .role("worker", move |w| w.work(worker, 1))
            .finally(|w| {
                assert_eq!(w.dispatch().workers().0, 1, "still counted");
                w.settle(&[1]);
                w.push_in_vain(2);
            })
    });
}

/// A worker that has done something, and is to start another one ahead of need.
fn with_one_to_start() -> (World, Worker<'static, Memory4>, Starting<'static, Memory4>) {
    let world = World::new(1, 2);
    let mut worker = world.worker();
    world.dispatch().push(&[task(0)]).expect("there is room");
    let Next::Task(task, Some(starting)) = worker.look() else {
        panic!("nobody is idle, and there may be two");
    };
    world.do_it(task);
    (world, worker, starting)
}

/// Who is being started looks: who pushes meanwhile starts nobody, and relies on that.
#[test]
fn who_is_started_ahead_comes_to_what_is_pushed() {
    Model::of(
        &[NoLostWakeup, NoLoss, ExactlyOnce],
        &["had begun", "was not there", "waited"],
    )
    .check(|| {
        let (world, busy, starting) = with_one_to_start();
        mem::forget(busy);
        Scenario::of(world)
            .role("pusher", |w| {
                w.dispatch().push(&[task(1)]).expect("there is room");
                let begun = w.dispatch().workers().0 > 1;
                assert!(matches!(w.dispatch().call(), Called::Done), "one comes");
                reached(if begun { "had begun" } else { "was not there" });
            })
            .role("started", move |w| w.work(starting.begin(), 2))
            .finally(|w| w.settle(&[0, 1]))
    });
}

/// The start fails, and there is another worker: that comes to it.
#[test]
fn a_start_ahead_that_fails_strands_nothing() {
    Model::of(
        &[NoLostWakeup, NoLoss, Progress],
        &["pushed", "waited", "failed to start"],
    )
    .bounded_always(3, MANY)
    .check(|| {
        let (world, worker, starting) = with_one_to_start();
        Scenario::of(world)
            .role("pusher", |w| w.push(&[1]))
            .role("worker", move |w| {
                w.fail(starting);
                w.work(worker, 2);
            })
            .finally(|w| {
                w.settle(&[0, 1]);
                w.push_in_vain(2);
            })
    });
}

/// One that leaves, while somebody relies on its being there: the other one is busy.
#[test]
fn a_worker_that_leaves_strands_nothing() {
    Model::of(
        &[NoLostWakeup, NoLoss, Progress],
        &["left", "stayed", "started", "over"],
    )
    .check(|| {
        let world = World::new(1, 2);
        let [busy, leaver] = world.with_two_workers();
        mem::forget(busy);
        Scenario::of(world)
            .role("pusher", |w| {
                w.dispatch().push(&[task(1)]).expect("there is room");
                match w.dispatch().call() {
                    Called::Start(starting) => {
                        reached("started");
                        w.work_to_the_end(starting.begin());
                    }
                    Called::Done => {}
                    // The leaver has done it, and ended all.
                    Called::Take => assert!(w.dispatch().is_closed(), "there is a worker"),
                }
            })
            .role("leaver", move |w| match leaver.leave() {
                Ok(()) => reached("left"),
                Err(needed) => {
                    reached("stayed");
                    w.work_to_the_end(needed);
                }
            })
            .finally(|w| w.settle(&[1]))
    });
}

/// Waits in vain, or is called, perhaps just when it gives up.
fn give_up(worker: &mut Worker<'static, Memory4>) {
    let mut wait = pin!(worker.wait());
    let mut waits = || {
        let mut task = task::Context::from_waker(Waker::noop());
        wait.as_mut().poll(&mut task).is_pending()
    };
    reached(if waits() && waits() {
        "gave up"
    } else {
        "called"
    });
}

/// One that gives up waiting, just when it is called.
#[test]
fn who_gives_up_waiting_keeps_no_call() {
    Model::of(
        &[NoLostWakeup, NoLoss, Progress],
        &[
            "pushed",
            "gave up",
            "called",
            "left",
            "stayed",
            "waited",
            "failed to start",
            "over",
        ],
    )
    .bounded_always(1, MANY)
    .check(|| {
        let world = World::new(1, 2);
        let [first, mut impatient] = world.with_two_workers();
        Scenario::of(world)
            .role("pusher", |w| w.push(&[1]))
            .role("impatient", move |w| {
                give_up(&mut impatient);
                match impatient.leave() {
                    Ok(()) => reached("left"),
                    Err(needed) => {
                        reached("stayed");
                        w.work_to_the_end(needed);
                    }
                }
            })
            .role("worker", move |w| w.work_to_the_end(first))
            .finally(|w| w.settle(&[1]))
    });
}

/// One that is lost, say by a panic, perhaps when it was just called.
#[test]
fn a_worker_that_is_lost_strands_nothing() {
    Model::of(
        &[NoLostWakeup, NoLoss, Progress],
        &[
            "pushed",
            "gave up",
            "called",
            "waited",
            "over",
            "failed to start",
        ],
    )
    .bounded_always(1, MANY)
    .check(|| {
        let world = World::new(1, 2);
        let [first, mut lost] = world.with_two_workers();
        Scenario::of(world)
            .role("pusher", |w| w.push(&[1]))
            .role("lost", move |_| {
                give_up(&mut lost);
                drop(lost);
            })
            .role("worker", move |w| w.work_to_the_end(first))
            .finally(|w| w.settle(&[1]))
    });
}

/// A batch for two workers: one is called, and calls the other.
#[test]
fn a_batch_is_shared_by_two() {
    Model::of(&[NoLostWakeup, NoLoss, ExactlyOnce], &["pushed", "waited"])
        .bounded_always(1, MANY)
        .check(|| {
            let world = World::new(2, 2);
            let (first, second) = (world.worker(), world.worker());
            Scenario::of(world)
                .role("pusher", |w| w.push(&[1, 2]))
                .role("worker", move |w| w.work_once(first))
                .role("worker", move |w| w.work_once(second))
                .finally(|w| w.settle(&[1, 2]))
        });
}

/// Who was called takes one, and is busy: what was pushed when it was called already is
/// called for by it.
#[test]
fn what_was_pushed_behind_a_call_is_called_for() {
    Model::of(&[NoLostWakeup, NoLoss, ExactlyOnce], &["pushed", "waited"])
        .bounded_always(1, MANY)
        .check(|| {
            let world = World::new(2, 2);
            let (first, second) = (world.worker(), world.worker());
            Scenario::of(world)
                .role("pusher", |w| {
                    w.push(&[1]);
                    w.push(&[2]);
                })
                .role("worker", move |w| w.work_once(first))
                .role("worker", move |w| w.work_once(second))
                .finally(|w| w.settle(&[1, 2]))
        });
}

/// Whoever takes from the same queue, a worker or another one, gets what nobody else has.
#[test]
fn what_two_take_is_taken_once() {
    Model::of(
        &[ExactlyOnce, NoLoss],
        &["taken by the worker", "taken by another"],
    )
    .check(|| {
        let world = World::new(1, 1);
        let mut worker = world.worker();
        world
            .dispatch()
            .push(&[task(1), task(2)])
            .expect("there is room");
        Scenario::of(world)
            .role("worker", move |w| {
                while let Next::Task(task, _) = worker.look() {
                    reached("taken by the worker");
                    w.do_it(task);
                }
                mem::forget(worker);
            })
            .role("another", |w| {
                while let Some(task) = w.dispatch().take() {
                    reached("taken by another");
                    w.do_it(task);
                }
            })
            .finally(|w| w.settle(&[1, 2]))
    });
}

/// The end, a push, and a worker: whatever was queued is done once.
#[test]
fn what_is_pushed_at_the_end_is_taken_once() {
    Model::of(
        &[NoLoss, ExactlyOnce, Progress],
        &["pushed", "too late", "taken at the end", "waited", "over"],
    )
    .bounded_always(2, MANY)
    .check(|| {
        let world = World::new(1, 1);
        let worker = world.worker();
        Scenario::of(world)
            .role("pusher", |w| w.push(&[1]))
            .role("worker", move |w| w.work(worker, usize::MAX))
            .role("closer", |w| {
                w.dispatch().close();
                w.take_rest();
            })
            .finally(|w| {
                let all = w.done.lock().unwrap().clone();
                assert!(all.len() <= 1, "done twice");
                w.settle(&all);
                assert_eq!(w.dispatch().workers(), (0, 0));
            })
    });
}

/// One that is being started is none yet: the last worker does not leave because of it.
#[test]
fn the_last_worker_never_leaves() {
    Model::of(
        &[NoLoss, Progress],
        &["pushed", "failed to start", "stayed", "over"],
    )
    .bounded_always(2, MANY)
    .check(|| {
        let world = World::new(1, 2);
        let mut worker = world.worker();
        Scenario::of(world)
            .role("pusher", |w| {
                w.push(&[1]);
                w.push(&[2]);
            })
            .role("worker", move |w| {
                loop {
                    match worker.look() {
                        Next::Task(task, more) => {
                            if let Some(more) = more {
                                w.fail(more);
                            }
                            match task[0] {
                                1 => w.do_it(task),
                                _ => w.do_last(task),
                            }
                        }
                        Next::Idle => {
                            let Err(needed) = worker.leave() else {
                                panic!("it was the last one");
                            };
                            worker = needed;
                            reached("stayed");
                            block_on(worker.wait());
                        }
                        Next::Over => return reached("over"),
                    }
                }
            })
            .finally(|w| w.settle(&[1, 2]))
    });
}
