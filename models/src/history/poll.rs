//! A poll request, its submitter, and those who wake it.

use std::sync::Mutex;

use uaio_core::{
    Errno,
    request::{Arm, Cancel, Generation, Phase, Recheck, Snapshot, Wake, Word},
    sync::{
        atomic::{AtomicBool, AtomicU32, Ordering},
        thread::Parker,
    },
};

use crate::{
    Model, Scenario, Theorem,
    harness::{Control, Handed, Shows, lock},
    reached,
};

const LIFE: Generation = Generation::MAX;
const IN: u16 = 0x0001;
const OUT: u16 = 0x8000;

/// A request, the source that it polls, and who waits for its completion.
struct World<R> {
    request: R,
    source: AtomicU32,
    /// The events that the completion has to carry.
    owed: Mutex<u16>,
    completions: Mutex<Vec<Result<u16, Errno>>>,
    waiting: Parker,
}

impl<R> World<R> {
    fn of(request: R) -> Self {
        Self {
            request,
            source: AtomicU32::new(0),
            owed: Mutex::default(),
            completions: Mutex::default(),
            waiting: Parker::new(),
        }
    }

    fn owes(&self, events: u16) {
        *lock(&self.owed) |= events;
    }

    /// The source becomes ready.
    fn fire(&self) {
        self.owes(IN);
        // Ordering: Relaxed. The request's transitions must order it.
        self.source.store(IN.into(), Ordering::Relaxed);
    }

    /// What the source has now.
    fn look(&self) -> Option<u16> {
        let events = self.source.load(Ordering::Relaxed) as u16;
        (events != 0).then_some(events)
    }

    fn complete(&self, result: Result<u16, Errno>) {
        lock(&self.completions).push(result);
        self.waiting.unpark();
    }

    fn wait(&self) {
        while lock(&self.completions).is_empty() {
            self.waiting.park();
        }
    }

    fn settle(&self) {
        let (completions, owed) = (lock(&self.completions), *lock(&self.owed));
        assert_eq!(completions.len(), 1, "completions");
        match completions[0] {
            Ok(events) => assert_eq!(events, owed, "events were lost"),
            Err(_) => assert_eq!(owed, 0, "an event became an error"),
        }
    }
}

/// What a party does.
type Act<R> = fn(&World<R>);

/// The source becomes ready while its request is being armed.
fn ready_while_arming<R>(request: R, submit: Act<R>, wake: Act<R>) -> Scenario<World<R>>
where
    R: Send + Sync + 'static,
{
    Scenario::of(World::of(request))
        .role("submitter", move |w| {
            submit(w);
            w.wait();
        })
        .role("waker", move |w| {
            w.fire();
            wake(w);
        })
        .finally(World::settle)
}

/// The source becomes ready while somebody looks at it.
fn ready_while_looking<R>(request: R, look: Act<R>, wake: Act<R>) -> Scenario<World<R>>
where
    R: Send + Sync + 'static,
{
    Scenario::of(World::of(request))
        .role("who looks", move |w| {
            look(w);
            w.wait();
        })
        .role("waker", move |w| {
            w.fire();
            wake(w);
        })
        .finally(World::settle)
}

/// A wake for nothing, and a cancel.
fn woken_for_nothing<R>(request: R, wake: Act<R>, cancel: Act<R>) -> Scenario<World<R>>
where
    R: Send + Sync + 'static,
{
    Scenario::of(World::of(request))
        .role("spurious waker", wake)
        .role("canceller", move |w| {
            cancel(w);
            w.wait();
        })
        .finally(World::settle)
}

/// Two heads fire, each with its own event.
fn two_heads<R>(request: R, first: Act<R>, second: Act<R>) -> Scenario<World<R>>
where
    R: Send + Sync + 'static,
{
    Scenario::of(World::of(request))
        .role("first head", first)
        .role("second head", second)
        .finally(World::settle)
}

/// What our word makes of it.
impl World<Word> {
    fn won(&self, snapshot: Snapshot) {
        self.complete(Ok(snapshot.events()));
    }

    fn submit(&self) {
        self.look_and_arm("seen");
    }

    /// Its owner looks at the source, and arms it.
    fn look_and_arm(&self, seen: &'static str) {
        loop {
            if let Some(events) = self.look() {
                let claim = self.request.claim_owned();
                reached(seen);
                return self.complete(Ok(events | claim.events()));
            }
            match self.request.arm(LIFE) {
                Arm::Armed => return reached("armed"),
                Arm::Ready(snapshot) => {
                    reached("told");
                    return self.won(snapshot);
                }
                Arm::Cancelled(_) => return self.complete(Err(Errno::ECANCELED)),
                Arm::LookAgain => reached("told"),
            }
        }
    }

    fn wake(&self, events: u16) {
        match self.request.wake(LIFE, events) {
            Wake::Won(snapshot) => {
                self.owes(events);
                self.won(snapshot);
            }
            Wake::Recorded => self.owes(events),
            Wake::Missed(_) => {}
        }
    }

    fn wake_keyless(&self) {
        if self.request.look_again(LIFE) == Recheck::Look {
            self.look_and_arm("looked");
        }
    }

    fn cancel(&self) {
        if let Cancel::Won(_) = self.request.cancel(LIFE) {
            reached("cancelled");
            self.complete(Err(Errno::ECANCELED));
        }
    }
}

fn word(phase: Phase) -> Word {
    let word = Word::new(LIFE);
    word.publish(LIFE, phase);
    word
}

#[test]
fn a_wake_while_arming_is_delivered() {
    Model::of(
        &[Theorem::NoLostWakeup, Theorem::Truth],
        &["seen", "armed", "told"],
    )
    .check(|| ready_while_arming(word(Phase::Early), World::submit, |w| w.wake(IN)));
}

#[test]
fn a_keyless_wake_while_arming_is_looked_at() {
    Model::of(
        &[Theorem::NoLostWakeup],
        &["seen", "armed", "told", "looked"],
    )
    .check(|| ready_while_arming(word(Phase::Early), World::submit, World::wake_keyless));
}

#[test]
fn a_wake_while_somebody_looks_is_looked_at() {
    Model::of(&[Theorem::NoLostWakeup], &["looked", "armed", "told"]).check(|| {
        let request = word(Phase::Armed);
        // The one who looks was told to by a wake before.
        assert_eq!(request.look_again(LIFE), Recheck::Look);
        ready_while_looking(request, |w| w.look_and_arm("looked"), World::wake_keyless)
    });
}

#[test]
fn who_was_woken_for_nothing_can_be_cancelled() {
    let reached = &["cancelled", "armed"];
    Model::of(&[Theorem::ExactlyOnce, Theorem::Progress], reached)
        .check(|| woken_for_nothing(word(Phase::Armed), World::wake_keyless, World::cancel));
}

#[test]
fn the_winner_completes_with_all_events() {
    Model::of(&[Theorem::Truth], &["armed", "told"]).check(|| {
        Scenario::of(World::of(word(Phase::Early)))
            .role("submitter", World::submit)
            .role("first head", |w| w.wake(IN))
            .role("second head", |w| w.wake(OUT))
            .finally(World::settle)
    });
}

#[test]
fn the_worker_completes_with_what_was_recorded() {
    Model::of(&[Theorem::Truth], &["recorded"]).check(|| {
        two_heads(
            word(Phase::Running),
            |w| w.wake(IN),
            |w| {
                let claim = w.request.claim_owned();
                if claim.events() != 0 {
                    reached("recorded");
                }
                w.won(claim);
            },
        )
    });
}

/// A phase by itself, as in the faulty protocols.
struct Bare(AtomicU32);

const EARLY: u32 = 0;
const ARMED: u32 = 1;
const CLAIMED: u32 = 2;

impl Bare {
    fn new(phase: u32) -> Self {
        Self(AtomicU32::new(phase))
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    fn step(&self, from: u32, to: u32) -> bool {
        let step = (self.0).compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        step.is_ok()
    }
}

/// Looks and arms; `claimed` says what to do if the request is not Early any more.
fn submit(w: &World<Bare>, claimed: Act<Bare>) {
    match w.look() {
        Some(events) if w.request.step(EARLY, CLAIMED) => w.complete(Ok(events)),
        None if w.request.step(EARLY, ARMED) => {}
        _ => claimed(w),
    }
}

fn complete_with_what_is_there(w: &World<Bare>) {
    w.complete(w.look().ok_or(Errno::EIO));
}

/// Seed 002: the waker reads Early; the submitter, who has found nothing, arms;
/// the waker's compare-and-swap fails, and it walks away.
#[test]
fn early_arm_lost_wake() {
    Control::shows(Shows::Hang)
        .held_by("history::poll::a_wake_while_arming_is_delivered")
        .refuted(|| {
            ready_while_arming(
                Bare::new(EARLY),
                |w| submit(w, complete_with_what_is_there),
                |w| {
                    let seen = w.request.get();
                    if w.request.step(seen, CLAIMED) && seen == ARMED {
                        w.complete(Ok(IN));
                    }
                },
            )
        });
}

/// Seed 002: a wake claims what is Early; the submitter cannot arm it, and
/// completes with EINTR.
#[test]
fn early_wake_becomes_eintr() {
    Control::shows(Shows::Assertion("an event became an error"))
        .held_by("history::poll::a_wake_while_arming_is_delivered")
        .refuted(|| {
            ready_while_arming(
                Bare::new(EARLY),
                |w| submit(w, |w| w.complete(Err(Errno::EINTR))),
                |w| {
                    if !w.request.step(EARLY, CLAIMED) && w.request.step(ARMED, CLAIMED) {
                        w.complete(Ok(IN));
                    }
                },
            )
        });
}

/// A keyless wake between the look and the arming is ignored: it is not Armed.
#[test]
fn recheck_dropped_while_early() {
    Control::shows(Shows::Hang)
        .held_by("history::poll::a_keyless_wake_while_arming_is_looked_at")
        .refuted(|| {
            ready_while_arming(
                Bare::new(EARLY),
                |w| submit(w, complete_with_what_is_there),
                |w| {
                    if w.request.step(ARMED, CLAIMED) {
                        complete_with_what_is_there(w);
                    }
                },
            )
        });
}

/// Seed 002: a wake without events claims the request, looks, finds nothing, and
/// returns: nobody can complete it any more, nor cancel it.
#[test]
fn keyless_spurious_wake_hangs() {
    Control::shows(Shows::Hang)
        .held_by("history::poll::who_was_woken_for_nothing_can_be_cancelled")
        .refuted(|| {
            woken_for_nothing(
                Bare::new(ARMED),
                |w| {
                    if w.request.step(ARMED, CLAIMED) && w.look().is_some() {
                        complete_with_what_is_there(w);
                    }
                },
                |w| {
                    if w.request.step(ARMED, CLAIMED) {
                        w.complete(Err(Errno::ECANCELED));
                    }
                },
            )
        });
}

/// aio 363bee27e258: a wake has taken the waiter off the queue; it looks, finds
/// nothing, and goes back; the wake that comes between finds no waiter.
#[test]
fn requeue_gap_lost_wake() {
    Control::shows(Shows::Hang)
        .held_by("history::poll::a_wake_while_somebody_looks_is_looked_at")
        .refuted(|| {
            ready_while_looking(
                // Whether it is queued.
                AtomicBool::new(false),
                |w| match w.look() {
                    Some(events) => w.complete(Ok(events)),
                    None => w.request.store(true, Ordering::Release),
                },
                |w| {
                    if w.request.swap(false, Ordering::AcqRel) {
                        w.complete(Ok(IN));
                    }
                },
            )
        });
}

/// Events, and whether somebody completes with them: two words.
struct Split {
    phase: Bare,
    events: AtomicU32,
}

impl Split {
    fn armed() -> Self {
        Self {
            phase: Bare::new(ARMED),
            events: AtomicU32::new(0),
        }
    }
}

/// Seed 002, io_uring 539bcb5: the winner completes with its own mask; what the
/// other head's waker has added before is lost.
#[test]
fn result_drops_other_head_events() {
    fn wake(w: &World<Split>, events: u16) {
        let Split { phase, events: all } = &w.request;
        all.fetch_or(events.into(), Ordering::AcqRel);
        if phase.get() == ARMED {
            // Before the claim, so the claim has to bring it.
            w.owes(events);
            if phase.step(ARMED, CLAIMED) {
                w.complete(Ok(events));
            }
        }
    }
    Control::shows(Shows::Assertion("events were lost"))
        .held_by("history::poll::the_winner_completes_with_all_events")
        .refuted(|| two_heads(Split::armed(), |w| wake(w, IN), |w| wake(w, OUT)));
}

/// Our own: the claim is in one word and the events are in another; what arrives
/// between the winner's look and the waker's is recorded, and never read.
#[test]
fn claim_and_events_in_two_words() {
    Control::shows(Shows::Assertion("events were lost"))
        .held_by("history::poll::the_worker_completes_with_what_was_recorded")
        .refuted(|| {
            two_heads(
                Split::armed(),
                |w| {
                    if w.request.phase.get() == ARMED {
                        w.owes(IN);
                        (w.request.events).fetch_or(IN.into(), Ordering::AcqRel);
                    }
                },
                |w| {
                    assert!(w.request.phase.step(ARMED, CLAIMED), "nobody else claims");
                    w.complete(Ok(w.request.events.load(Ordering::Acquire) as u16));
                },
            )
        });
}

/// CVE-2021-47505: the queue's owner wakes who waits and frees the head; a waiter
/// that leaves of itself, and has found itself queued, then takes the head's lock.
#[test]
fn waiter_outlives_queue() {
    struct Owned {
        queued: AtomicBool,
        head: Handed<u32>,
    }
    Control::shows(Shows::UnorderedAccess)
        .held_by("wait::a_closed_queue_is_not_touched")
        .refuted(|| {
            Scenario::of(Owned {
                queued: AtomicBool::new(true),
                head: Handed::new(1),
            })
            .role("owner", |o| {
                o.queued.store(false, Ordering::Release);
                o.head.set(0);
            })
            .role("waiter", |o| {
                if o.queued.load(Ordering::Acquire) {
                    o.head.get();
                }
            })
        });
}

/// CVE-2019-10125: a wake completes the request as soon as it is linked, and drops its
/// file; the submitter is still inside that file's own poll.
#[test]
fn wake_drops_file_during_poll() {
    struct Linked {
        claimed: AtomicBool,
        file: Handed<u32>,
    }
    Control::shows(Shows::UnorderedAccess)
        .held_by("poll::a_wake_while_it_is_submitted_is_not_lost")
        .refuted(|| {
            Scenario::of(Linked {
                claimed: AtomicBool::new(false),
                file: Handed::new(1),
            })
            .role("submitter", |r| {
                r.file.get();
                if !r.claimed.swap(true, Ordering::AcqRel) {
                    r.file.set(0);
                }
            })
            .role("waker", |r| {
                if !r.claimed.swap(true, Ordering::AcqRel) {
                    r.file.set(0);
                }
            })
        });
}
