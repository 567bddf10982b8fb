//! Work that is left for workers.

use uaio_core::sync::{
    atomic::{AtomicBool, AtomicU64, Ordering},
    thread::Parker,
};

use crate::{
    Scenario,
    harness::{Control, Shows},
};

/// tokio's blocking pool (#8406): the last worker leaves, for another one is being
/// started; which fails, and nobody looks.
#[test]
fn orphaned_task_when_spawn_fails() {
    struct Queue {
        task: AtomicBool,
        workers: AtomicU64,
        work: Parker,
        done: Parker,
    }
    impl Queue {
        fn take(&self) -> bool {
            self.task.swap(false, Ordering::AcqRel) && {
                self.done.unpark();
                true
            }
        }
    }
    Control::shows(Shows::Hang)
        .held_by("dispatch::the_last_worker_never_leaves")
        .refuted(|| {
            Scenario::of(Queue {
                task: AtomicBool::new(false),
                workers: AtomicU64::new(1),
                work: Parker::new(),
                done: Parker::new(),
            })
            .role("submitter", |w| {
                w.task.store(true, Ordering::Release);
                // Another one is coming. But it cannot be started: who is there will do.
                w.workers.fetch_add(1, Ordering::AcqRel);
                w.workers.fetch_sub(1, Ordering::AcqRel);
                w.work.unpark();
                while w.task.load(Ordering::Acquire) {
                    w.done.park();
                }
            })
            .role("worker", |w| {
                while !w.take() {
                    if w.workers.load(Ordering::Acquire) > 1 {
                        // It is not the last one.
                        w.workers.fetch_sub(1, Ordering::AcqRel);
                        return;
                    }
                    w.work.park();
                }
            })
        });
}

/// tokio's sharded blocking queue (#8056): a worker has looked into each shard, and is
/// about to park, when a task is pushed into the first one; who pushes finds nobody idle.
#[test]
fn idle_worker_misses_push() {
    struct Shards {
        shards: [AtomicBool; 2],
        idle: AtomicBool,
        work: Parker,
    }
    Control::shows(Shows::Hang)
        .held_by("dispatch::a_worker_that_parks_misses_no_push")
        .refuted(|| {
            Scenario::of(Shards {
                shards: [AtomicBool::new(false), AtomicBool::new(false)],
                idle: AtomicBool::new(false),
                work: Parker::new(),
            })
            .role("submitter", |w| {
                w.shards[0].store(true, Ordering::Release);
                if w.idle.load(Ordering::Acquire) {
                    w.work.unpark();
                }
            })
            .role("worker", |w| {
                let take = |shard: &AtomicBool| shard.swap(false, Ordering::AcqRel);
                while !w.shards.iter().any(take) {
                    w.idle.store(true, Ordering::Release);
                    w.work.park();
                }
            })
        });
}

/// Who cancels signals the worker after that has looked whether it is to end, and before
/// it is in the system call: which then waits for ever.
#[test]
fn interrupt_lost_between_flag_and_syscall() {
    struct Worker {
        cancelled: AtomicBool,
        in_the_call: AtomicBool,
        call: Parker,
    }
    Control::shows(Shows::Hang)
        .held_by("context::a_call_that_is_cancelled_is_interrupted_until_it_ends")
        .refuted(|| {
            Scenario::of(Worker {
                cancelled: AtomicBool::new(false),
                in_the_call: AtomicBool::new(false),
                call: Parker::new(),
            })
            .role("canceller", |w| {
                w.cancelled.store(true, Ordering::Release);
                // A signal ends the call that it meets.
                if w.in_the_call.load(Ordering::Acquire) {
                    w.call.unpark();
                }
            })
            .role("worker", |w| {
                if w.cancelled.load(Ordering::Acquire) {
                    return;
                }
                w.in_the_call.store(true, Ordering::Release);
                w.call.park();
            })
        });
}
