//! Requests that are tried: their look does what they are for.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use uaio_core::{
    Context, Errno,
    context::{Cancelled, Handle, Request},
    poll::{
        Heads, Source,
        event::{IN, OUT},
    },
    request::Generation,
    ring,
    slots::{self, Iocb},
    sync::{
        Track,
        atomic::{AtomicU32, Ordering},
    },
    wait::WaitQueue,
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, NoLostWakeup, Reclamation, Truth},
    harness::{Count, Handed},
    reached,
};

const CANCELED: i64 = Errno::ECANCELED.as_result();
const CLOSED: i64 = Errno::EBADF.as_result();

/// Holds items, which readers take one by one.
#[derive(Debug)]
struct Pipe {
    items: AtomicU32,
    head: WaitQueue,
}

impl Pipe {
    fn put(&self) {
        // Ordering: Relaxed. The queue must order it.
        self.items.fetch_add(1, Ordering::Relaxed);
        self.head.wake(IN);
    }

    fn take(&self) -> bool {
        let taken = self
            .items
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        taken.is_ok()
    }
}

/// The payload: what an attempt has taken goes into it.
#[derive(Debug)]
struct Read {
    pipe: Track<Arc<Pipe>>,
    taken: Handed<u64>,
}

// SAFETY: the head is the pipe's, which is there as long as this.
unsafe impl Source for Read {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.pipe.get_ref().head);
    }

    fn mask(&self) -> u16 {
        unreachable!("it is tried");
    }

    fn attempt(&mut self) -> Option<i64> {
        // One at a time: the buffer is its own.
        let before = self.taken.get();
        self.pipe.get_ref().take().then(|| {
            self.taken.set(before + 1);
            1
        })
    }
}

type Slots = slots::Inline<Read, 2, 1, Heads<1>>;

/// Some requests for one item each.
struct World {
    context: Pin<Box<Context<ring::Inline<2>, Slots>>>,
    pipe: Arc<Pipe>,
    handles: Mutex<Vec<Handle>>,
    results: Mutex<Vec<i64>>,
    cancelled: Count,
}

impl World {
    /// With this many armed.
    fn new(armed: usize) -> Self {
        let slots = Slots::new(Generation::MAX);
        let context = Context::new_at(ring::Inline::new(), u64::MAX, slots).expect("they fit");
        let world = Self {
            context: Box::pin(context),
            pipe: Arc::new(Pipe {
                items: AtomicU32::new(0),
                head: WaitQueue::new(),
            }),
            handles: Mutex::default(),
            results: Mutex::default(),
            cancelled: Count::default(),
        };
        for _ in 0..armed {
            world.submit();
        }
        world
    }

    fn request(&self) -> Request<'_, ring::Inline<2>, Slots> {
        let read = Read {
            pipe: Track::new(Arc::clone(&self.pipe)),
            taken: Handed::new(0),
        };
        let reserved = self.context.reserve_one().expect("there is room");
        reserved.fill(Iocb::default(), read)
    }

    fn submit(&self) {
        let handle = self.context.as_ref().attempt(self.request(), IN);
        let mut handles = self.handles.lock().unwrap();
        handles.push(handle.expect("one head"));
    }

    /// Accepts one that somebody comes back to.
    fn submit_and_leave(&self) -> Handle {
        let handle = self.request().early().leave();
        self.handles.lock().unwrap().push(handle);
        handle
    }

    fn cancel(&self) {
        let handle = self.handles.lock().unwrap()[0];
        match self.context.cancel(handle) {
            Ok(Cancelled::Done) => {
                self.cancelled.add(1);
                reached("cancelled");
            }
            Ok(Cancelled::Asked) => reached("asked to end"),
            Err(error) => {
                assert_eq!(error, Errno::EALREADY);
                reached("late");
            }
        }
    }

    fn reap(&self) {
        let mut out = [None, None];
        let n = self.context.reap(&mut out).expect("a Native ring");
        for done in out.into_iter().take(n).flatten() {
            let taken = i64::try_from(done.payload.taken.get()).expect("few");
            assert_eq!(done.event.res.max(0), taken, "what was taken is told");
            self.results.lock().unwrap().push(done.event.res);
        }
    }

    /// As many completions as requests, and `results` are theirs; `left` are in the
    /// pipe.
    fn settle(&self, results: &[i64], left: u32) {
        self.reap();
        let mut got = self.results.lock().unwrap().clone();
        got.sort_unstable();
        assert_eq!(got, results);
        assert_eq!(self.pipe.items.load(Ordering::Relaxed), left);
    }
}

#[test]
fn an_attempt_that_would_block_is_made_again() {
    Model::of(
        &[NoLostWakeup, ExactlyOnce, Reclamation],
        &["at once", "later"],
    )
    .check(|| {
        Scenario::of(World::new(0))
            .role("submitter", |w| {
                w.submit();
                w.reap();
                let at_once = !w.results.lock().unwrap().is_empty();
                reached(if at_once { "at once" } else { "later" });
            })
            .role("writer", |w| w.pipe.put())
            .finally(|w| w.settle(&[1], 0))
    });
}

#[test]
fn an_attempt_that_is_cancelled_has_taken_nothing() {
    Model::of(
        &[Truth, ExactlyOnce],
        &["cancelled", "asked to end", "late"],
    )
    .check(|| {
        Scenario::of(World::new(1))
            .role("writer", |w| w.pipe.put())
            .role("canceller", World::cancel)
            .finally(|w| match w.cancelled.get() {
                0 => w.settle(&[1], 0),
                _ => w.settle(&[CANCELED], 1),
            })
    });
}

/// Accepted, and left to a worker that comes back to it and tries.
#[test]
fn one_that_is_tried_later_misses_nothing() {
    Model::of(&[NoLostWakeup, ExactlyOnce], &["tried"]).check(|| {
        let scenario = Scenario::of(World::new(0));
        let left = scenario.shared().submit_and_leave();
        scenario
            .role("worker", move |w| {
                // SAFETY: left above, and come back to once.
                let early = unsafe { w.context.early(left) };
                w.context.as_ref().attempt_early(early, IN);
                reached("tried");
            })
            .role("writer", |w| w.pipe.put())
            .finally(|w| w.settle(&[1], 0))
    });
}

#[test]
fn attempts_are_made_one_at_a_time() {
    Model::of(&[ExactlyOnce, NoLostWakeup], &["written"]).check(|| {
        Scenario::of(World::new(1))
            .role("writer", |w| w.pipe.put())
            .role("another", |w| {
                w.pipe.put();
                reached("written");
            })
            .finally(|w| w.settle(&[1], 1))
    });
}

#[test]
fn a_writer_for_each_of_two_readers_leaves_nothing() {
    Model::of(&[ExactlyOnce, NoLostWakeup], &["written"]).check(|| {
        Scenario::of(World::new(2))
            .role("writer", |w| w.pipe.put())
            .role("another", |w| {
                w.pipe.put();
                reached("written");
            })
            .finally(|w| w.settle(&[1, 1], 0))
    });
}

#[test]
fn a_wake_for_something_else_is_no_reason_to_try() {
    Model::of(&[Truth], &["woken"]).check(|| {
        Scenario::of(World::new(1))
            .role("waker", |w| {
                // Of what nobody has told yet.
                w.pipe.items.store(1, Ordering::Relaxed);
                w.pipe.head.wake(OUT);
                reached("woken");
            })
            .role("canceller", |w| {
                let handle = w.handles.lock().unwrap()[0];
                assert_eq!(w.context.cancel(handle), Ok(Cancelled::Done));
            })
            .finally(|w| w.settle(&[CANCELED], 1))
    });
}

#[test]
fn what_is_tried_is_told_when_its_source_closes() {
    Model::of(&[Truth, ExactlyOnce, Reclamation], &["read", "closed"]).check(|| {
        Scenario::of(World::new(1))
            .role("writer", |w| w.pipe.put())
            .role("owner", |w| w.pipe.head.close())
            .finally(|w| match w.pipe.items.load(Ordering::Relaxed) {
                0 => {
                    reached("read");
                    w.settle(&[1], 0);
                }
                _ => {
                    reached("closed");
                    w.settle(&[CLOSED], 1);
                }
            })
    });
}

#[test]
fn what_can_be_taken_before_its_source_closes_is_taken() {
    Model::of(&[Truth, ExactlyOnce, NoLostWakeup], &["taken"]).check(|| {
        Scenario::of(World::new(1))
            .role("who looks in vain", |w| w.pipe.head.wake(0))
            .role("writer and owner", |w| {
                w.pipe.put();
                w.pipe.head.close();
            })
            .finally(|w| {
                w.settle(&[1], 0);
                reached("taken");
            })
    });
}
