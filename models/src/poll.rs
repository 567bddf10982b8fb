//! Poll requests: a source, its heads, and those who end the wait for it.

use std::{
    mem::ManuallyDrop,
    ops::Deref,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
};

use uaio_core::{
    Context, Errno,
    context::{Cancelled, Handle},
    poll::{
        Heads, Source,
        event::{ERR, HUP, IN, OUT},
    },
    request::Generation,
    ring,
    slots::{self, Iocb, SlotMemory},
    sync::{
        Track,
        atomic::{AtomicU32, Ordering},
        hint,
    },
    wait::{Enqueued, Left, WaitQueue, Waiter},
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, NoLoss, NoLostWakeup, Progress, Reclamation, Truth},
    harness::{Count, Handed, Memory, Sleeper, pause},
    reached,
    scenarios::Sleep,
};

/// Next to the wrap, and the first of its slot: known before it is submitted.
const FIRST: Handle = Handle::from_parts(0, Generation::MAX);
const CANCELED: i64 = Errno::ECANCELED.as_result();
const TIME: i64 = Errno::ETIME.as_result();
const DONE: i64 = 512;

/// Ready for events once they fired, and woken by two heads.
#[derive(Debug)]
struct Device {
    fired: AtomicU32,
    heads: [Memory<WaitQueue>; 2],
    /// Which of them it visits.
    visited: &'static [usize],
    /// A look at it reads this, from beginning to end.
    inside: Handed<u64>,
    looks: Count,
}

impl Device {
    fn with(visited: &'static [usize]) -> Arc<Self> {
        Arc::new(Self {
            fired: AtomicU32::new(0),
            heads: [Memory::new(WaitQueue::new()), Memory::new(WaitQueue::new())],
            visited,
            inside: Handed::new(1),
            looks: Count::new(),
        })
    }

    fn head(&self, i: usize) -> &'static WaitQueue {
        // SAFETY: used while it is there, says the scenario.
        unsafe { self.heads[i].get() }
    }

    /// `events` fire, and the head is told which.
    fn fire(&self, head: usize, events: u16) {
        // Ordering: Relaxed. The queue must order it.
        self.fired.fetch_or(events.into(), Ordering::Relaxed);
        self.head(head).wake(events);
    }

    /// `events` fire, and the head is told that something did.
    fn fire_keyless(&self, head: usize, events: u16) {
        self.fired.fetch_or(events.into(), Ordering::Relaxed);
        self.head(head).wake(0);
    }

    fn close_and_give_back(&self, head: usize) {
        let queue = self.head(head);
        queue.close();
        while !queue.is_closed() {
            hint::spin_loop();
        }
        // SAFETY: closed: nobody touches it any more.
        unsafe { self.heads[head].renew(WaitQueue::new()) };
    }

    fn fired(&self) -> u16 {
        self.fired.load(Ordering::Relaxed) as u16
    }
}

/// The payload: what it polls goes away with it.
#[derive(Debug)]
struct Polled(Track<Arc<Device>>);

impl Drop for Polled {
    fn drop(&mut self) {
        self.0.get_ref().inside.set(0);
    }
}

// SAFETY: the heads are the device's, which is there as long as this; or one is
// closed before it is given back.
unsafe impl Source for Polled {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        let device = self.0.get_ref();
        for i in device.visited {
            visit(device.head(*i));
        }
    }

    fn mask(&self) -> u16 {
        let device = self.0.get_ref();
        let mask = device.fired();
        device.looks.add(1);
        // Still inside: nobody drops it.
        assert_eq!(device.inside.get(), 1, "gone while it is looked at");
        mask
    }
}

type Ring = ring::Inline<2>;
type Slots = slots::Inline<Polled, 1, 1, Heads<2>>;

/// A context that is left alone after a failure: it would wait for requests that do
/// not end.
struct Kept<S: SlotMemory>(ManuallyDrop<Pin<Box<Context<Ring, S>>>>);

impl<S: SlotMemory> Kept<S> {
    fn new(slots: S) -> Self {
        let context = Context::new_at(ring::Inline::new(), u64::MAX, slots);
        Self(ManuallyDrop::new(Box::pin(context.expect("they fit"))))
    }
}

impl<S: SlotMemory> Deref for Kept<S> {
    type Target = Pin<Box<Context<Ring, S>>>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<S: SlotMemory> Drop for Kept<S> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: dropped once, and not used any more.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

/// One request, and what it polls.
struct World {
    context: Kept<Slots>,
    device: Arc<Device>,
    results: Mutex<Vec<i64>>,
    /// Who asked it to end, and was told that it would.
    ended: Count,
}

impl World {
    fn new(heads: &'static [usize]) -> Self {
        Self {
            context: Kept::new(Slots::new(Generation::MAX)),
            device: Device::with(heads),
            results: Mutex::default(),
            ended: Count::default(),
        }
    }

    /// With a request that is armed.
    fn armed(heads: &'static [usize], events: u16) -> Self {
        let world = Self::new(heads);
        assert_eq!(world.poll(events), FIRST);
        world
    }

    fn poll(&self, events: u16) -> Handle {
        let payload = Polled(Track::new(Arc::clone(&self.device)));
        let iocb = Iocb { data: 1, obj: 2 };
        let reserved = self.context.reserve_one().expect("there is room");
        let handle = self
            .context
            .as_ref()
            .poll(reserved.fill(iocb, payload), events);
        handle.expect("two heads at most")
    }

    fn submit(&self) {
        assert_eq!(self.poll(IN), FIRST);
        reached(if self.reap() {
            "ready at once"
        } else {
            "armed"
        });
    }

    /// Reaps the completion, if it is there.
    fn reap(&self) -> bool {
        let mut out = [None];
        let n = self.context.reap(&mut out).expect("a Native ring");
        let [done] = out;
        let Some(done) = done else { return false };
        assert_eq!((done.event.data, done.event.obj, n), (1, 2, 1), "torn");
        self.results.lock().unwrap().push(done.event.res);
        true
    }

    fn tell(&self, ended: Result<Cancelled, Errno>) {
        match ended {
            Ok(Cancelled::Done) => {
                self.ended.add(1);
                reached("ended");
            }
            Ok(Cancelled::Asked) => {
                self.ended.add(1);
                reached("asked to end");
            }
            Err(Errno::EALREADY) => reached("late"),
            Err(error) => {
                assert_eq!(error, Errno::ENOENT);
                reached("gone");
            }
        }
    }

    fn cancel(&self) {
        self.tell(self.context.cancel(FIRST));
    }

    fn expire(&self) {
        self.tell(self.context.expire(FIRST));
    }

    /// It has completed once, with what fired, or as it was asked to.
    fn settle(&self) {
        let _ = self.reap();
        let results = self.results.lock().unwrap();
        assert_eq!(results.len(), 1, "completions: {results:?}");
        match results[0] {
            events @ 1.. => {
                let spurious = events & !i64::from(self.device.fired());
                assert_eq!(spurious, 0, "events that did not fire");
            }
            error => {
                assert!([CANCELED, TIME].contains(&error), "{error}");
                assert_ne!(self.ended.get(), 0, "nobody asked for {error}");
            }
        }
    }

    /// By which head its first life was completed, if it was.
    fn reached_by_head(&self) {
        match self.results.lock().unwrap()[0] {
            event if event == IN.into() => reached("the first"),
            event if event == OUT.into() => reached("the second"),
            error => assert_eq!(error, CANCELED),
        }
    }

    /// It was told that its head closed, whether or not a waker looked meanwhile.
    fn settle_closed(&self) {
        let _ = self.reap();
        let results = self.results.lock().unwrap();
        assert_eq!(results[..], [i64::from(ERR | HUP)]);
        // The submitter looked once.
        reached(match self.device.looks.get() {
            1 => "closed before",
            _ => "looked at",
        });
    }

    /// As [`settle`](Self::settle), and with all of `events`.
    fn settle_with(&self, events: u16) {
        self.settle();
        assert_eq!(
            self.results.lock().unwrap()[..],
            [events.into()],
            "lost events"
        );
    }
}

#[test]
fn a_wake_while_it_is_submitted_is_not_lost() {
    Model::of(
        &[NoLostWakeup, ExactlyOnce, Reclamation],
        &["ready at once", "armed"],
    )
    .check(|| {
        Scenario::of(World::new(&[0]))
            .role("submitter", World::submit)
            .role("waker", |w| w.device.fire(0, IN))
            .finally(|w| w.settle_with(IN))
    });
}

#[test]
fn a_keyless_wake_while_it_is_submitted_is_not_lost() {
    Model::of(
        &[NoLostWakeup, ExactlyOnce, Reclamation],
        &["ready at once", "armed"],
    )
    .check(|| {
        Scenario::of(World::new(&[0]))
            .role("submitter", World::submit)
            .role("waker", |w| w.device.fire_keyless(0, IN))
            .finally(|w| w.settle_with(IN))
    });
}

#[test]
fn a_cancel_while_it_is_submitted_is_honoured() {
    Model::of(
        &[ExactlyOnce, Truth],
        &["ready at once", "armed", "ended", "asked to end", "gone"],
    )
    .check(|| {
        Scenario::of(World::new(&[0]))
            .role("submitter", World::submit)
            .role("canceller", |w| {
                w.cancel();
                if w.ended.get() == 0 {
                    // It was not there yet.
                    w.device.fire(0, IN);
                }
            })
            .finally(World::settle)
    });
}

#[test]
fn wake_and_cancel_while_it_is_submitted_complete_it_once() {
    Model::of(
        &[ExactlyOnce, NoLostWakeup, Truth],
        &[
            "ready at once",
            "armed",
            "ended",
            "asked to end",
            "late",
            "gone",
        ],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        Scenario::of(World::new(&[0]))
            .role("submitter", World::submit)
            .role("waker", |w| w.device.fire(0, IN))
            .role("canceller", World::cancel)
            .finally(World::settle)
    });
}

#[test]
fn two_heads_and_a_cancel_complete_it_once() {
    Model::of(
        &[ExactlyOnce, Truth],
        &["ended", "late", "the first", "the second"],
    )
    .check(|| {
        Scenario::of(World::armed(&[0, 1], IN | OUT))
            .role("first head", |w| w.device.fire(0, IN))
            .role("second head", |w| w.device.fire(1, OUT))
            .role("canceller", World::cancel)
            .finally(|w| {
                w.settle();
                w.reached_by_head();
            })
    });
}

#[test]
fn a_wake_between_two_heads_is_not_lost() {
    Model::of(&[NoLostWakeup, ExactlyOnce], &["ready at once", "armed"]).check(|| {
        Scenario::of(World::new(&[0, 1]))
            .role("submitter", World::submit)
            .role("second head", |w| w.device.fire(1, IN))
            .finally(|w| w.settle_with(IN))
    });
}

#[test]
fn a_keyless_wake_that_finds_nothing_leaves_no_gap() {
    Model::of(&[NoLostWakeup, ExactlyOnce, Truth], &["settled"]).check(|| {
        Scenario::of(World::armed(&[0], IN))
            .role("spurious waker", |w| w.device.head(0).wake(0))
            .role("waker", |w| w.device.fire(0, IN))
            .finally(|w| {
                w.settle_with(IN);
                reached("settled");
            })
    });
}

#[test]
fn two_keyless_wakes_leave_no_gap() {
    Model::of(&[NoLostWakeup, ExactlyOnce, Truth], &["settled"]).check(|| {
        Scenario::of(World::armed(&[0, 1], IN))
            .role("spurious waker", |w| w.device.head(0).wake(0))
            .role("waker", |w| w.device.fire_keyless(1, IN))
            .finally(|w| {
                w.settle_with(IN);
                reached("settled");
            })
    });
}

#[test]
fn the_same_head_twice_completes_it_once() {
    Model::of(&[ExactlyOnce, NoLostWakeup], &["ready at once", "armed"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::new(&[0, 0]))
                .role("submitter", World::submit)
                .role("waker", |w| w.device.fire_keyless(0, IN))
                .finally(|w| w.settle_with(IN))
        });
}

#[test]
fn a_request_that_is_looked_at_can_be_ended() {
    Model::of(&[ExactlyOnce, Progress], &["ended", "asked to end"]).check(|| {
        Scenario::of(World::armed(&[0], IN))
            .role("spurious waker", |w| w.device.head(0).wake(0))
            .role("canceller", World::cancel)
            .finally(World::settle)
    });
}

#[test]
fn expiry_cancel_and_completion_yield_one_result() {
    Model::of(&[ExactlyOnce, Truth], &["ended", "late", "completed"]).check(|| {
        Scenario::of(World::armed(&[0], IN))
            .role("clock", World::expire)
            .role("canceller", World::cancel)
            .role("completer", |w| {
                if let Ok(claim) = w.context.claim(FIRST) {
                    claim.complete(DONE, 0);
                    reached("completed");
                }
            })
            .finally(|w| {
                let _ = w.reap();
                let results = w.results.lock().unwrap();
                assert!(
                    matches!(results[..], [DONE | TIME | CANCELED]),
                    "{results:?}"
                );
                let ends = u64::from(results[0] != DONE);
                assert_eq!(w.ended.get(), ends, "told that it would end");
            })
    });
}

#[test]
fn who_reaps_does_not_touch_a_head_that_is_gone() {
    Model::of(&[Reclamation, ExactlyOnce], &["told", "ended", "late"]).check(|| {
        Scenario::of(World::armed(&[0], IN))
            .role("owner of the head", |w| w.device.close_and_give_back(0))
            .role("canceller and reaper", |w| {
                w.cancel();
                let _ = w.reap();
            })
            .finally(|w| {
                let _ = w.reap();
                match w.results.lock().unwrap()[..] {
                    [CANCELED] => {}
                    [events] if events == i64::from(ERR | HUP) => reached("told"),
                    ref results => panic!("{results:?}"),
                }
            })
    });
}

#[test]
fn a_head_that_closes_under_the_submitter_tells_it() {
    Model::of(&[Reclamation, NoLostWakeup], &["ready at once", "armed"]).check(|| {
        Scenario::of(World::new(&[0]))
            .role("owner of the head", |w| w.device.head(0).close())
            .role("submitter", World::submit)
            .finally(|w| {
                let _ = w.reap();
                let results = w.results.lock().unwrap();
                assert_eq!(results[..], [i64::from(ERR | HUP)]);
            })
    });
}

#[test]
fn a_head_that_closes_under_who_looks_tells_the_request() {
    Model::of(
        &[NoLostWakeup, ExactlyOnce],
        &["looked at", "closed before"],
    )
    .check(|| {
        Scenario::of(World::armed(&[0], IN))
            .role("owner of the head", |w| w.device.head(0).close())
            .role("spurious waker", |w| w.device.head(0).wake(0))
            .finally(World::settle_closed)
    });
}

#[test]
fn who_looks_for_one_head_does_not_touch_the_other_that_is_gone() {
    Model::of(
        &[Reclamation, ExactlyOnce],
        &["looked at", "closed before", "reaped meanwhile"],
    )
    .check(|| {
        Scenario::of(World::armed(&[0, 1], IN))
            .role("owner of a head", |w| w.device.close_and_give_back(0))
            .role("spurious waker of the other, and reaper", |w| {
                w.device.head(1).wake(0);
                if w.reap() {
                    reached("reaped meanwhile");
                }
            })
            .finally(World::settle_closed)
    });
}

#[test]
fn a_request_that_is_looked_at_can_expire() {
    Model::of(&[ExactlyOnce, Progress, Truth], &["ended", "asked to end"]).check(|| {
        Scenario::of(World::armed(&[0], IN))
            .role("spurious waker", |w| w.device.head(0).wake(0))
            .role("clock", World::expire)
            .finally(|w| {
                w.settle();
                assert_eq!(w.results.lock().unwrap()[..], [TIME]);
            })
    });
}

#[test]
fn a_late_waker_never_hits_the_next_life() {
    Model::of(
        &[ExactlyOnce, NoLostWakeup, Reclamation],
        &["cancelled first", "completed first"],
    )
    .check(|| {
        Scenario::of(World::armed(&[0, 1], IN))
            .role("waker", |w| w.device.fire_keyless(1, IN))
            .role("owner", |w| {
                let first = w.context.cancel(FIRST);
                if !w.reap() {
                    // Somebody completes it.
                    return;
                }
                reached(match first {
                    Ok(_) => "cancelled first",
                    Err(_) => "completed first",
                });
                w.results.lock().unwrap().clear();
                w.device.inside.set(1);
                let next = w.poll(IN);
                assert_eq!(next.generation(), Generation::MIN);
            })
            .finally(|w| {
                let _ = w.reap();
                let results = w.results.lock().unwrap();
                // Only the first life was to be cancelled.
                assert!(matches!(results[..], [1 | CANCELED]), "{results:?}");
                w.ended.add(1);
            })
    });
}

#[test]
fn who_reaps_waits_for_the_waker_of_the_other_head() {
    Model::of(
        &[ExactlyOnce, Reclamation],
        &["the first", "the second", "reaped meanwhile"],
    )
    .check(|| {
        Scenario::of(World::armed(&[0, 1], IN | OUT))
            .role("second head", |w| w.device.fire(1, OUT))
            .role("first head, and reaper", |w| {
                w.device.fire(0, IN);
                if w.reap() {
                    reached("reaped meanwhile");
                    // The slot is the next one's, whom neither wakes.
                    w.device.inside.set(1);
                    let next = w.poll(0);
                    assert_eq!(w.context.cancel(next), Ok(Cancelled::Done));
                    w.ended.add(1);
                }
            })
            .finally(|w| {
                let _ = w.reap();
                w.reached_by_head();
                let results = w.results.lock().unwrap();
                let next = vec![CANCELED; w.ended.get() as usize];
                assert_eq!(results[1..], next, "the next life");
            })
    });
}

/// Two contexts, each with a request that polls the other.
struct Pair {
    contexts: [Kept<OtherSlots>; 2],
}

type OtherSlots = slots::Inline<Other, 2, 1, Heads<1>>;
type PollsOther = Context<Ring, OtherSlots>;

/// The other context, or none.
struct Other(Mutex<Option<*const PollsOther>>);

// SAFETY: a context is Sync, and outlives the requests that poll it.
unsafe impl Send for Other {}

// SAFETY: the context is there as long as the pair, whose requests these are.
unsafe impl Source for Other {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        if let Some(other) = *self.0.lock().unwrap() {
            // SAFETY: as above.
            unsafe { &*other }.heads(visit);
        }
    }
    fn mask(&self) -> u16 {
        // SAFETY: as above.
        let other = self.0.lock().unwrap().map(|other| unsafe { &*other });
        other.map_or(0, Source::mask)
    }
}

impl Pair {
    fn new() -> Self {
        let new = || Kept::new(slots::Inline::new(Generation::MAX));
        let pair = Self {
            contexts: [new(), new()],
        };
        pair.poll_from(0);
        pair.poll_from(1);
        pair
    }

    /// The second one polls the first one.
    fn one_way() -> Self {
        let new = || Kept::new(slots::Inline::new(Generation::MAX));
        let pair = Self {
            contexts: [new(), new()],
        };
        pair.poll_from(1);
        pair
    }

    fn poll_from(&self, i: usize) {
        let other = ptr(&self.contexts[1 - i]);
        let reserved = self.contexts[i].reserve_one().expect("there is room");
        let request = reserved.fill(Iocb::default(), Other(Mutex::new(Some(other))));
        let polled = self.contexts[i].as_ref().poll(request, IN);
        assert!(polled.is_ok());
    }

    /// Completes a request in one of them, which the other polls.
    fn complete(&self, i: usize) {
        let reserved = self.contexts[i].reserve_one().expect("there is room");
        let request = reserved.fill(Iocb { data: 7, obj: 0 }, Other(Mutex::new(None)));
        request.claim().complete(DONE, 0);
    }
}

fn ptr(context: &Kept<OtherSlots>) -> *const PollsOther {
    &raw const ***context
}

#[test]
fn requests_that_complete_into_each_others_source_do_not_deadlock() {
    Model::of(&[Progress, ExactlyOnce, NoLostWakeup], &["both"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(Pair::new())
                .role("completer", |p| p.complete(0))
                .role("completer", |p| p.complete(1))
                .finally(|p| {
                    for context in &p.contexts {
                        let mut out = [None, None];
                        assert_eq!(context.reap(&mut out), Ok(2), "completions");
                        for done in out.into_iter().flatten() {
                            let expected = if done.event.data == 7 {
                                DONE
                            } else {
                                IN.into()
                            };
                            assert_eq!(done.event.res, expected);
                        }
                    }
                    reached("both");
                })
        });
}

/// Nobody reaps what is polled, so who is told that it is readable can read it.
#[test]
fn who_polls_a_context_is_told_of_what_is_visible() {
    Model::of(&[NoLostWakeup, Truth], &["told"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            fn complete(p: &Pair) {
                p.complete(0);
                let mut out = [None];
                if p.contexts[1].reap(&mut out) == Ok(1) {
                    reached("told");
                    assert_ne!(p.contexts[0].reap(&mut out), Ok(0), "nothing to read");
                }
            }
            Scenario::of(Pair::one_way())
                .role("completer", complete)
                .role("completer", complete)
        });
}

#[test]
fn who_has_reaped_all_drops_the_context() {
    fn new() -> Context<Ring, Slots> {
        let slots = Slots::new(Generation::MAX);
        Context::new_at(ring::Inline::new(), u64::MAX, slots).expect("they fit")
    }
    Model::of(&[Reclamation], &["reaped", "armed"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            let (context, device) = (Memory::new(new()), Device::with(&[0]));
            // SAFETY: it does not move, and is used until the owner gives it back.
            let pinned = Pin::static_ref(unsafe { context.get() });
            let payload = Polled(Track::new(Arc::clone(&device)));
            let reserved = pinned.reserve_one().expect("there is room");
            let polled = pinned.poll(reserved.fill(Iocb::default(), payload), IN);
            assert_eq!(polled.expect("one head"), FIRST);
            Scenario::of((context, device))
                .role("waker", |(_, device)| device.fire(0, IN))
                .role("owner", move |(context, _)| {
                    let n = pinned.reap(&mut [None]).expect("a Native ring");
                    reached(if n == 1 { "reaped" } else { "armed" });
                    // The waker may still be about to tell who waits.
                    //
                    // SAFETY: dropping it waits for that: it is the claim.
                    unsafe { context.renew(new()) };
                })
        });
}

#[test]
fn a_context_that_is_dropped_waits_for_who_looks() {
    Model::of(&[Reclamation, NoLoss], &["dropped"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            let World {
                context, device, ..
            } = World::armed(&[0], IN);
            Scenario::of((Mutex::new(Some(context)), device))
                .role("waker", |(_, device)| device.fire_keyless(0, IN))
                .role("owner", |(context, _)| {
                    drop(context.lock().unwrap().take());
                    reached("dropped");
                })
        });
}

#[test]
fn a_context_that_is_dropped_does_not_touch_a_head_that_is_gone() {
    Model::of(&[Reclamation, Progress], &["dropped"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            let World {
                context, device, ..
            } = World::armed(&[0], IN);
            Scenario::of((Mutex::new(Some(context)), device))
                .role("owner of the head", |(_, device)| {
                    device.close_and_give_back(0)
                })
                .role("owner", |(context, _)| {
                    drop(context.lock().unwrap().take());
                    reached("dropped");
                })
        });
}

/// Of two exclusive waiters one wake wakes one; and if that one leaves, the other.
struct Exclusive {
    queue: WaitQueue,
    fired: AtomicU32,
}

impl Exclusive {
    fn new() -> Self {
        Self {
            queue: WaitQueue::new(),
            fired: AtomicU32::new(0),
        }
    }

    fn fire(&self) {
        self.fired.store(1, Ordering::Relaxed);
        self.queue.wake_one(IN);
    }

    /// Takes what fired, if nobody has.
    fn take(&self) -> bool {
        self.fired.swap(0, Ordering::AcqRel) == 1
    }

    fn wait(&self) {
        let sleep = <Arc<Sleeper> as Sleep>::new();
        let awaited = |_| self.fired.load(Ordering::Relaxed) == 1;
        let mut waiter = pin!(Waiter::exclusive());
        sleep.block_on(std::future::poll_fn(|task| {
            // SAFETY: used with this queue only, and out of it when it is Ready.
            let enqueued = unsafe { (self.queue).enqueue(waiter.as_ref(), task.waker(), &awaited) };
            match enqueued.expect("nobody closes it") {
                Enqueued::Waiting => std::task::Poll::Pending,
                Enqueued::Ready => std::task::Poll::Ready(()),
            }
        }));
        waiter.set(Waiter::exclusive());
        assert!(self.take(), "woken for nothing");
    }

    /// Waits, and leaves at once, and takes nothing.
    fn give_up(&self) {
        let waker = std::task::Waker::noop();
        let awaited = |mask| mask != 0;
        let waiter = pin!(Waiter::exclusive());
        // SAFETY: used with this queue only, and leaves it below.
        let enqueued = unsafe { self.queue.enqueue(waiter.as_ref(), waker, &awaited) };
        assert_eq!(enqueued, Ok(Enqueued::Waiting));
        pause();
        // SAFETY: as above.
        match unsafe { self.queue.leave(waiter.as_ref()) } {
            Left::Woken => reached("passed on"),
            Left::Unwoken => reached("left"),
        }
    }
}

#[test]
fn an_exclusive_waiter_that_leaves_passes_its_wake_on() {
    Model::of(&[NoLostWakeup], &["passed on", "left"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(Exclusive::new())
                .role("waker", Exclusive::fire)
                .role("who leaves", Exclusive::give_up)
                .role("waiter", Exclusive::wait)
        });
}
