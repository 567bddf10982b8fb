//! Several who would complete a request.

use uaio_core::{
    request::{Cancel, Generation, Phase, Wake, Word},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    Model, Scenario, Theorem,
    harness::{Control, Count, Shows},
    reached,
};

const LIFE: Generation = Generation::MAX;

struct World<R> {
    request: R,
    completions: Count,
}

/// A party: what it is, and what it does; `true` if it delivers a completion.
type Party<R> = (&'static str, fn(&R) -> bool);

/// Whatever the parties do, one completion is delivered.
fn one_completes<R, const N: usize>(request: R, parties: [Party<R>; N]) -> Scenario<World<R>>
where
    R: Send + Sync + 'static,
{
    let mut scenario = Scenario::of(World {
        request,
        completions: Count::default(),
    });
    for (name, acts) in parties {
        scenario = scenario.role(name, move |w| w.completions.add(acts(&w.request).into()));
    }
    scenario.finally(|w| {
        assert!(w.completions.get() > 0, "no completion");
        assert!(w.completions.get() < 2, "completed twice");
    })
}

fn published(phase: Phase) -> Word {
    let word = Word::new(LIFE);
    word.publish(LIFE, phase);
    word
}

fn run(word: &Word) -> bool {
    let snapshot = word.claim_owned();
    if snapshot.cancel_requested() {
        reached("asked to end");
    }
    true
}

fn expire(word: &Word) -> bool {
    word.claim(LIFE).is_ok() && {
        reached("expired");
        true
    }
}

fn cancel(word: &Word) -> bool {
    matches!(word.cancel(LIFE), Cancel::Won(_)) && {
        reached("cancelled");
        true
    }
}

fn wake(word: &Word) -> bool {
    matches!(word.wake(LIFE, 1), Wake::Won(_)) && {
        reached("woken");
        true
    }
}

#[test]
fn a_cancel_in_vain_takes_no_completion_away() {
    Model::of(&[Theorem::ExactlyOnce, Theorem::Truth], &["asked to end"]).check(|| {
        one_completes(
            published(Phase::Running),
            [
                ("worker", run),
                // Its cancel is in vain, so it reaches nothing.
                ("canceller", |word| {
                    matches!(word.cancel(LIFE), Cancel::Won(_))
                }),
            ],
        )
    });
}

/// Kernel AIO of old: the request is marked as cancelled, its driver then cannot
/// cancel it (EAGAIN), and its completion sees the mark and delivers nothing.
#[test]
fn cancel_flag_set_before_cancel_succeeds() {
    Control::shows(Shows::Assertion("no completion"))
        .held_by("history::cancel::a_cancel_in_vain_takes_no_completion_away")
        .refuted(|| {
            let worker: Party<AtomicBool> =
                ("worker", |cancelled| !cancelled.load(Ordering::Acquire));
            let canceller: Party<AtomicBool> = ("canceller", |cancelled| {
                cancelled.store(true, Ordering::Release);
                false
            });
            one_completes(AtomicBool::new(false), [worker, canceller])
        });
}

#[test]
fn expiry_and_removal_complete_once() {
    Model::of(&[Theorem::ExactlyOnce], &["expired", "cancelled"]).check(|| {
        one_completes(
            published(Phase::Armed),
            [("expiry", expire), ("removal", cancel)],
        )
    });
}

/// io_uring e677edbcabee: a time limit that expires is taken by its timer, one
/// that is flushed by the list; each looks at the other's word, and then acts.
#[test]
fn timer_flush_vs_removal_double_complete() {
    struct Limit {
        listed: AtomicBool,
        ticking: AtomicBool,
    }
    Control::shows(Shows::Assertion("completed twice"))
        .held_by("history::cancel::expiry_and_removal_complete_once")
        .refuted(|| {
            let limit = Limit {
                listed: AtomicBool::new(true),
                ticking: AtomicBool::new(true),
            };
            let expiry: Party<Limit> = ("expiry", |limit| {
                limit.listed.load(Ordering::Acquire) && limit.ticking.swap(false, Ordering::AcqRel)
            });
            let flush: Party<Limit> = ("flush", |limit| {
                limit.ticking.load(Ordering::Acquire) && limit.listed.swap(false, Ordering::AcqRel)
            });
            one_completes(limit, [expiry, flush])
        });
}

#[test]
fn two_wakes_and_a_cancel_complete_once() {
    Model::of(&[Theorem::ExactlyOnce], &["woken", "cancelled"]).check(|| {
        one_completes(
            published(Phase::Armed),
            [("waker", wake), ("waker", wake), ("canceller", cancel)],
        )
    });
}

/// Two heads wake, and a cancel arrives: each looks whether the request is done,
/// and none claims it.
#[test]
fn second_waker_after_cancel_completes_again() {
    Control::shows(Shows::Assertion("completed twice"))
        .held_by("history::cancel::two_wakes_and_a_cancel_complete_once")
        .refuted(|| {
            fn end(done: &AtomicBool) -> bool {
                let first = !done.load(Ordering::Acquire);
                done.store(true, Ordering::Release);
                first
            }
            one_completes(
                AtomicBool::new(false),
                [("waker", end), ("waker", end), ("canceller", end)],
            )
        });
}
