//! The request word.

use uaio_core::{
    request::{Arm, Cancel, Generation, Miss, Phase, Recheck, Snapshot, Wake, Word},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, NoLostWakeup, Order, Progress, Truth, Wrap},
    harness::{Count, Handed, pause},
    reached,
};

/// Next to the wrap.
const LIFE: Generation = Generation::MAX;
const IN: u16 = 0x0001;
const OUT: u16 = 0x8000;
const PAYLOAD: u64 = 42;

/// A request, and what became of it.
struct Request {
    word: Word,
    payload: Handed<u64>,
    /// What a keyless wake is about.
    source_ready: AtomicBool,
    claims: Count,
    /// The events that claims came with, and those that wakes were taken with.
    delivered: Count,
    woken: Count,
    /// Cancellations that were recorded, and that claims came with.
    asked: Count,
    heard: Count,
}

impl Request {
    fn free() -> Self {
        Self {
            word: Word::new(LIFE),
            payload: Handed::new(0),
            source_ready: AtomicBool::new(false),
            claims: Count::default(),
            delivered: Count::default(),
            woken: Count::default(),
            asked: Count::default(),
            heard: Count::default(),
        }
    }

    /// A request that was published before the parties begin.
    fn published(phase: Phase) -> Self {
        let request = Self::free();
        request.publish(phase);
        request
    }

    fn publish(&self, phase: Phase) {
        self.payload.set(PAYLOAD);
        self.word.publish(LIFE, phase);
    }

    /// A claim: the payload is there, and nobody else's.
    fn claimed(&self, snapshot: Snapshot) {
        assert_eq!(self.payload.get(), PAYLOAD, "claimed before it was filled");
        self.payload.set(PAYLOAD);
        self.claims.add(1);
        self.delivered.add(snapshot.events().into());
        self.heard.add(snapshot.cancel_requested().into());
    }

    fn complete(&self) {
        match self.word.claim(LIFE) {
            Ok(snapshot) => {
                self.claimed(snapshot);
                reached("completed");
            }
            Err(Miss::Late) => reached("completed late"),
            Err(miss) => assert!(matches!(miss, Miss::Gone | Miss::Busy)),
        }
    }

    fn cancel(&self) {
        match self.word.cancel(LIFE) {
            Cancel::Won(snapshot) => {
                self.asked.add(1);
                self.claimed(snapshot);
                reached("cancelled");
            }
            Cancel::Recorded => {
                self.asked.add(1);
                reached("asked to end");
            }
            Cancel::Missed(Miss::Late) => reached("cancelled late"),
            Cancel::Missed(Miss::Gone) => {}
            other => panic!("{other:?}, and this was the first cancel"),
        }
    }

    fn wake(&self, events: u16) {
        match self.word.wake(LIFE, events) {
            Wake::Won(snapshot) => {
                self.woken.add(events.into());
                self.claimed(snapshot);
                reached("woken");
            }
            Wake::Recorded => {
                self.woken.add(events.into());
                reached("wake recorded");
            }
            Wake::Missed(Miss::Late) => reached("woken late"),
            Wake::Missed(miss) => assert_eq!(miss, Miss::Gone),
        }
    }

    /// Looks at the source, as a poll does.
    fn look(&self) -> bool {
        // Ordering: Relaxed. The word's transitions must order it.
        self.source_ready.load(Ordering::Relaxed)
    }

    fn becomes_ready(&self) {
        self.source_ready.store(true, Ordering::Relaxed);
    }

    /// A wake that does not say how the source changed.
    fn wake_keyless(&self) {
        if self.word.look_again(LIFE) == Recheck::Look {
            self.look_and_arm("seen by the waker");
        }
    }

    /// The submitter of a poll whose wakers know it.
    fn poll(&self) {
        self.look_and_arm("seen by the submitter");
    }

    fn look_and_arm(&self, seen: &'static str) {
        loop {
            pause();
            if self.look() {
                reached(seen);
                return self.claimed(self.word.claim_owned());
            }
            pause();
            match self.word.arm(LIFE) {
                Arm::LookAgain => reached("told to look again"),
                Arm::Armed => return,
                Arm::Ready(snapshot) => return self.claimed(snapshot),
                Arm::Cancelled(snapshot) => {
                    reached("cancelled while arming");
                    return self.claimed(snapshot);
                }
            }
        }
    }

    fn publish_and_arm(&self) {
        self.publish(Phase::Early);
        pause();
        self.arm();
    }

    fn arm(&self) {
        match self.word.arm(LIFE) {
            Arm::Armed => reached("armed"),
            Arm::Ready(snapshot) => {
                assert_ne!(snapshot.events(), 0);
                self.claimed(snapshot);
                reached("ready while arming");
            }
            Arm::Cancelled(snapshot) => {
                assert_eq!(snapshot.events(), 0, "an event became an error");
                self.claimed(snapshot);
                reached("cancelled while arming");
            }
            Arm::LookAgain => panic!("nobody asked for that"),
        }
    }

    /// The worker that runs it.
    fn run(&self) {
        self.claimed(self.word.claim_owned());
    }

    /// All are done: completes it if nobody did. Then it was claimed once, with
    /// every event and every cancellation that was taken.
    fn settle(&self) {
        if self.claims.get() == 0 {
            let last = self.word.claim(LIFE).expect("it is Armed, and nobody's");
            self.claimed(last);
        }
        assert_eq!(self.claims.get(), 1, "claims");
        assert_eq!(self.delivered.get(), self.woken.get(), "events");
        assert_eq!(self.heard.get(), self.asked.get(), "cancellations");
        assert_eq!(self.word.peek().phase(), Phase::Claimed);
    }
}

#[test]
fn completion_and_cancel_yield_one_claim() {
    Model::of(
        &[ExactlyOnce, Truth],
        &["completed", "cancelled", "completed late", "cancelled late"],
    )
    .check(|| {
        Scenario::of(Request::published(Phase::Armed))
            .role("completer", Request::complete)
            .role("canceller", Request::cancel)
            .finally(Request::settle)
    });
}

#[test]
fn completion_and_wake_yield_one_claim() {
    Model::of(
        &[ExactlyOnce, Truth],
        &["completed", "woken", "completed late", "woken late"],
    )
    .check(|| {
        Scenario::of(Request::published(Phase::Armed))
            .role("completer", Request::complete)
            .role("waker", |r| r.wake(IN))
            .finally(Request::settle)
    });
}

#[test]
fn cancel_and_wake_yield_one_claim() {
    Model::of(
        &[ExactlyOnce, Truth],
        &["cancelled", "woken", "cancelled late", "woken late"],
    )
    .check(|| {
        Scenario::of(Request::published(Phase::Armed))
            .role("canceller", Request::cancel)
            .role("waker", |r| r.wake(IN))
            .finally(Request::settle)
    });
}

#[test]
fn completion_cancel_and_wake_yield_one_claim() {
    Model::of(
        &[ExactlyOnce, Truth],
        &[
            "completed",
            "cancelled",
            "woken",
            "completed late",
            "cancelled late",
            "woken late",
        ],
    )
    .check(|| {
        Scenario::of(Request::published(Phase::Armed))
            .role("completer", Request::complete)
            .role("canceller", Request::cancel)
            .role("waker", |r| r.wake(IN))
            .finally(Request::settle)
    });
}

#[test]
fn two_wakes_of_an_armed_request_yield_one_claim() {
    Model::of(&[ExactlyOnce, Truth], &["woken", "woken late"]).check(|| {
        Scenario::of(Request::published(Phase::Armed))
            .role("waker", |r| r.wake(IN))
            .role("waker", |r| r.wake(OUT))
            .finally(Request::settle)
    });
}

#[test]
fn the_winner_reads_what_the_submitter_wrote() {
    Model::of(
        &[Order, ExactlyOnce],
        &["completed", "cancelled", "cancelled late"],
    )
    .check(|| {
        Scenario::of(Request::free())
            .role("submitter", |r| r.publish(Phase::Armed))
            .role("completer", |r| {
                if r.word
                    .claim(LIFE)
                    .map(|snapshot| r.claimed(snapshot))
                    .is_ok()
                {
                    reached("completed");
                }
            })
            .role("canceller", Request::cancel)
            .finally(Request::settle)
    });
}

#[test]
fn a_wake_before_arming_is_delivered() {
    Model::of(
        &[NoLostWakeup, ExactlyOnce],
        &["armed", "ready while arming", "wake recorded", "woken"],
    )
    .check(|| {
        Scenario::of(Request::free())
            .role("submitter", Request::publish_and_arm)
            .role("waker", |r| r.wake(IN))
            .finally(Request::settle)
    });
}

#[test]
fn wakes_before_arming_are_delivered_together() {
    Model::of(
        &[NoLostWakeup, ExactlyOnce, Truth],
        &[
            "armed",
            "ready while arming",
            "wake recorded",
            "woken",
            "woken late",
        ],
    )
    .check(|| {
        Scenario::of(Request::free())
            .role("submitter", Request::publish_and_arm)
            .role("waker", |r| r.wake(IN))
            .role("waker", |r| r.wake(OUT))
            .finally(Request::settle)
    });
}

#[test]
fn a_cancel_before_arming_is_honoured() {
    Model::of(
        &[ExactlyOnce, Truth],
        &[
            "armed",
            "asked to end",
            "cancelled while arming",
            "cancelled",
        ],
    )
    .check(|| {
        Scenario::of(Request::free())
            .role("submitter", Request::publish_and_arm)
            .role("canceller", Request::cancel)
            .finally(Request::settle)
    });
}

#[test]
fn an_event_before_arming_wins_over_a_cancel() {
    Model::of(
        &[Truth, ExactlyOnce],
        &[
            "armed",
            "asked to end",
            "wake recorded",
            "ready while arming",
            "cancelled while arming",
            "cancelled",
            "cancelled late",
            "woken",
            "woken late",
        ],
    )
    .check(|| {
        Scenario::of(Request::published(Phase::Early))
            .role("submitter", Request::arm)
            .role("canceller", Request::cancel)
            .role("waker", |r| r.wake(IN))
            .finally(Request::settle)
    });
}

#[test]
fn a_running_request_is_ended_by_its_worker_alone() {
    Model::of(
        &[ExactlyOnce, Truth],
        &[
            "asked to end",
            "cancelled late",
            "wake recorded",
            "woken late",
        ],
    )
    .check(|| {
        Scenario::of(Request::published(Phase::Running))
            .role("worker", Request::run)
            .role("canceller", Request::cancel)
            .role("waker", |r| r.wake(IN))
            .finally(Request::settle)
    });
}

#[test]
fn the_worker_reads_what_came_before_a_recorded_wake() {
    const BROUGHT: u64 = 7;
    Model::of(&[Order], &["wake recorded", "woken late"]).check(|| {
        Scenario::of((Request::published(Phase::Running), Handed::new(0)))
            .role("waker", |(r, brought)| {
                brought.set(BROUGHT);
                r.wake(IN);
            })
            .role("worker", |(r, brought)| {
                let snapshot = r.word.claim_owned();
                if snapshot.events() != 0 {
                    assert_eq!(brought.get(), BROUGHT, "woken by nothing");
                }
                r.claimed(snapshot);
            })
            .finally(|(r, _)| r.settle())
    });
}

#[test]
fn a_completion_cannot_take_a_running_request() {
    Model::of(&[ExactlyOnce], &["busy", "late"]).check(|| {
        Scenario::of(Request::published(Phase::Running))
            .role("worker", Request::run)
            .role("completer", |r| match r.word.claim(LIFE) {
                Err(Miss::Busy) => reached("busy"),
                Err(Miss::Late) => reached("late"),
                other => panic!("{other:?}"),
            })
            .finally(Request::settle)
    });
}

#[test]
fn starting_and_cancelling_leave_one_owner() {
    Model::of(
        &[ExactlyOnce, Truth],
        &["started", "cancelled", "asked to end", "cancelled late"],
    )
    .check(|| {
        Scenario::of(Request::published(Phase::Armed))
            .role("worker", |r| {
                if r.word.start(LIFE).is_ok() {
                    reached("started");
                    pause();
                    r.run();
                }
            })
            .role("canceller", Request::cancel)
            .finally(Request::settle)
    });
}

#[test]
fn two_workers_and_a_cancel_leave_one_owner() {
    Model::of(
        &[ExactlyOnce, Truth],
        &["started", "cancelled", "busy", "late"],
    )
    .check(|| {
        fn work(r: &Request) {
            match r.word.start(LIFE) {
                Ok(_) => {
                    reached("started");
                    pause();
                    r.run();
                }
                Err(Miss::Busy) => reached("busy"),
                Err(Miss::Late) => reached("late"),
                Err(Miss::Gone) => panic!("it is there"),
            }
        }
        Scenario::of(Request::published(Phase::Armed))
            .role("worker", work)
            .role("worker", work)
            .role("canceller", |r| match r.word.cancel(LIFE) {
                Cancel::Won(snapshot) => {
                    reached("cancelled");
                    r.asked.add(1);
                    r.claimed(snapshot);
                }
                Cancel::Recorded => r.asked.add(1),
                Cancel::Again | Cancel::Missed(_) => {}
            })
            .finally(Request::settle)
    });
}

#[test]
fn a_second_cancel_is_told_so() {
    Model::of(&[Truth], &["asked", "again", "late"]).check(|| {
        fn cancel(r: &Request) {
            match r.word.cancel(LIFE) {
                Cancel::Recorded => {
                    r.asked.add(1);
                    reached("asked");
                }
                Cancel::Again => reached("again"),
                Cancel::Missed(Miss::Late) => reached("late"),
                other => panic!("{other:?}"),
            }
        }
        Scenario::of(Request::published(Phase::Running))
            .role("worker", Request::run)
            .role("canceller", cancel)
            .role("canceller", cancel)
            .finally(Request::settle)
    });
}

/// After all are done: a source that is ready was seen.
fn seen(r: &Request) {
    assert_eq!(r.claims.get(), 1, "ready, and nobody saw it");
    assert_eq!(r.word.peek().phase(), Phase::Claimed);
}

#[test]
fn a_keyless_wake_before_arming_is_looked_at() {
    Model::of(
        &[NoLostWakeup, ExactlyOnce],
        &[
            "seen by the submitter",
            "told to look again",
            "seen by the waker",
        ],
    )
    .check(|| {
        Scenario::of(Request::published(Phase::Early))
            .role("submitter", Request::poll)
            .role("waker", |r| {
                r.becomes_ready();
                r.wake_keyless();
            })
            .finally(seen)
    });
}

#[test]
fn who_is_told_to_look_again_still_owns_the_request() {
    Model::of(
        &[ExactlyOnce, Truth],
        &[
            "told to look again",
            "asked to end",
            "cancelled",
            "cancelled while arming",
        ],
    )
    .check(|| {
        Scenario::of(Request::published(Phase::Early))
            .role("submitter", Request::poll)
            .role("spurious waker", Request::wake_keyless)
            .role("canceller", Request::cancel)
            .finally(Request::settle)
    });
}

#[test]
fn a_keyless_wake_during_a_look_is_looked_at() {
    Model::of(
        &[NoLostWakeup, ExactlyOnce],
        &["seen by the waker", "told to look again"],
    )
    .check(|| {
        Scenario::of(Request::published(Phase::Armed))
            // Spurious: it may look before the source is ready.
            .role("spurious waker", Request::wake_keyless)
            .role("waker", |r| {
                r.becomes_ready();
                r.wake_keyless();
            })
            .finally(seen)
    });
}

#[test]
fn keyless_wakes_and_a_cancel_yield_one_claim() {
    Model::of(
        &[ExactlyOnce, NoLostWakeup, Truth],
        &[
            "seen by the waker",
            "told to look again",
            "asked to end",
            "cancelled while arming",
            "cancelled",
            "cancelled late",
        ],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        Scenario::of(Request::published(Phase::Armed))
            .role("spurious waker", Request::wake_keyless)
            .role("waker", |r| {
                r.becomes_ready();
                r.wake_keyless();
            })
            .role("canceller", Request::cancel)
            .finally(seen)
    });
}

#[test]
fn a_spurious_keyless_wake_leaves_the_request_cancellable() {
    Model::of(
        &[ExactlyOnce, Progress],
        &["cancelled", "asked to end", "cancelled while arming"],
    )
    .check(|| {
        Scenario::of(Request::published(Phase::Armed))
            .role("spurious waker", |r| {
                r.wake_keyless();
            })
            .role("canceller", Request::cancel)
            .finally(Request::settle)
    });
}

/// A request whose slot lives on, next to the wrap.
struct Lives {
    request: Request,
    first: Count,
}

impl Lives {
    fn new() -> Self {
        Self {
            request: Request::published(Phase::Armed),
            first: Count::default(),
        }
    }

    /// Completes the first life, unless it has ended, and begins the second.
    fn go_on(&self) {
        let r = &self.request;
        if r.word.claim(LIFE).is_err() {
            // Ended, or being looked at.
            return;
        }
        self.first.add(1);
        r.payload.set(0);
        r.word.free(LIFE);
        // As the next to reserve the slot does: the word says which life.
        let next = r.word.peek().generation();
        assert_eq!(next, Generation::MIN, "after the last comes the first");
        r.payload.set(PAYLOAD);
        r.word.publish(next, Phase::Armed);
    }

    /// The first life was claimed once; the second, if it began, is untouched.
    fn settle(&self) {
        let word = &self.request.word;
        if word.claim(LIFE).is_ok() {
            self.first.add(1);
        }
        assert_eq!(self.first.get(), 1, "claims of the first life");
        if word.peek().generation() == Generation::MIN {
            let second = word.claim(Generation::MIN);
            let second = second.expect("nobody else knows of it");
            assert_eq!(second.events(), 0);
            assert!(!second.cancel_requested());
        }
    }
}

#[test]
fn a_stale_handle_never_hits_the_next_life() {
    Model::of(&[ExactlyOnce, Truth, Wrap], &["in time", "late", "gone"]).check(|| {
        Scenario::of(Lives::new())
            .role("owner", Lives::go_on)
            .role("canceller", |lives| match lives.request.word.cancel(LIFE) {
                Cancel::Won(_) => {
                    lives.first.add(1);
                    reached("in time");
                }
                Cancel::Missed(Miss::Late) => reached("late"),
                Cancel::Missed(Miss::Gone) => reached("gone"),
                other => panic!("{other:?}"),
            })
            .role("waker", |lives| match lives.request.word.wake(LIFE, IN) {
                Wake::Won(_) => lives.first.add(1),
                Wake::Recorded => panic!("it was Armed"),
                Wake::Missed(_) => {}
            })
            .finally(Lives::settle)
    });
}

#[test]
fn a_stale_keyless_wake_never_hits_the_next_life() {
    Model::of(&[NoLostWakeup, Wrap], &["in time", "gone"]).check(|| {
        Scenario::of(Lives::new())
            .role("owner", Lives::go_on)
            .role("waker", |lives| {
                let word = &lives.request.word;
                match word.look_again(LIFE) {
                    Recheck::Look => {
                        reached("in time");
                        assert_eq!(word.peek().generation(), LIFE, "another life");
                        assert_eq!(word.arm(LIFE), Arm::Armed);
                    }
                    Recheck::Missed(Miss::Gone) => reached("gone"),
                    Recheck::Missed(_) => {}
                    Recheck::Recorded => panic!("nobody looks"),
                }
            })
            .finally(Lives::settle)
    });
}
