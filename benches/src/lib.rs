//! Queues of events behind one trait, and readers of files behind another one; the work
//! that the benches give them; and how they are compared.
#![cfg(not(any(loom, shuttle)))]

pub mod gate;
pub mod reads;
pub mod slow;

use std::{
    hint::black_box,
    sync::mpsc,
    time::{Duration, Instant},
};

use crossbeam_queue::ArrayQueue;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use uaio_core::{
    context::BoxedContext,
    ring::{Event, Ring, RingMemory},
    slots::Iocb,
    sync::hint::spin_loop,
};

/// The README's example. Tested here because this crate is not published: the
/// README is outside every package.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// How many events fit in every queue that is measured.
pub const CAPACITY: usize = 1024;

/// The largest batch.
pub const BATCH: usize = 32;

/// A bounded queue of events, for any number of threads on both sides.
///
/// Implementations are always inlined, so that what is measured is the queue
/// as its user would call it, and not this trait.
pub trait Queue: Sync {
    /// Stores as many as fit, in order, and tells how many.
    fn push(&self, events: &[Event]) -> usize;

    /// Moves up to `out.len()` events out and tells how many.
    fn pop(&self, out: &mut [Event]) -> usize;
}

impl<M: RingMemory + Sync> Queue for Ring<M> {
    #[inline(always)]
    fn push(&self, events: &[Event]) -> usize {
        Ring::push(self, events)
    }

    #[inline(always)]
    fn pop(&self, out: &mut [Event]) -> usize {
        self.reap(out).expect("a Native ring")
    }
}

/// The rival. It has no batches, so a batch is a loop.
impl Queue for ArrayQueue<Event> {
    #[inline(always)]
    fn push(&self, events: &[Event]) -> usize {
        let full = events.iter().position(|event| self.push(*event).is_err());
        full.unwrap_or(events.len())
    }

    #[inline(always)]
    fn pop(&self, out: &mut [Event]) -> usize {
        for (n, event) in out.iter_mut().enumerate() {
            match self.pop() {
                Some(popped) => *event = popped,
                None => return n,
            }
        }
        out.len()
    }
}

/// The whole way of a request: reserved, published, delivered, reaped, freed.
impl Queue for BoxedContext<()> {
    #[inline(always)]
    fn push(&self, events: &[Event]) -> usize {
        let Ok(room) = self.reserve(events.len() as u32) else {
            return 0;
        };
        let n = room.len();
        let mut batch = self.batch();
        for (reservation, event) in room.zip(events) {
            let iocb = Iocb {
                data: event.data,
                obj: event.obj,
            };
            let handle = reservation.fill(iocb, ()).arm();
            let claim = self.claim(handle).expect("nobody else has the handle");
            batch.push(claim, event.res, event.res2);
        }
        n
    }

    #[inline(always)]
    fn pop(&self, out: &mut [Event]) -> usize {
        let mut done = [None; BATCH];
        let wanted = out.len().min(BATCH);
        let n = self.reap(&mut done[..wanted]).expect("a Native ring");
        for (event, done) in out.iter_mut().zip(done.iter().flatten()) {
            *event = done.event;
        }
        n
    }
}

/// Moves about `n` events through `queue` by one thread, `BATCH` at a time, and
/// tells how long that took.
pub fn one_thread<const BATCH: usize>(queue: &impl Queue, n: u64) -> Duration {
    let events = [Event::default(); BATCH];
    let mut out = [Event::default(); BATCH];
    let start = Instant::now();
    for _ in 0..n.div_ceil(BATCH as u64) {
        // Opaque are the events, not how many they are.
        let (events, out) = (black_box(&events), black_box(&mut out));
        assert_eq!(queue.push(events), BATCH);
        assert_eq!(queue.pop(out), BATCH);
    }
    start.elapsed()
}

/// Calls `body` with a function that moves so many events from a second thread
/// to this one, `BATCH` at a time, and tells how long that took.
///
/// The second thread lives as long as `body` runs, on a core of its own. Both
/// spin.
pub fn two_threads<const BATCH: usize, R>(
    queue: &impl Queue,
    body: impl FnOnce(&mut dyn FnMut(u64) -> Duration) -> R,
) -> R {
    std::thread::scope(|scope| {
        let (goals, jobs) = mpsc::channel::<u64>();
        let allowed = sched_getaffinity(None).expect("one's own affinity");
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
        let (mine, its) = (cores.next(), cores.next());
        scope.spawn(move || {
            pin(its);
            for n in jobs {
                produce::<BATCH>(queue, n);
            }
        });
        pin(mine);
        let result = body(&mut |n| {
            // One batch ahead of the clock: waking the thread is not the
            // queue's doing.
            goals.send(n + BATCH as u64).expect("the thread runs");
            consume::<BATCH>(queue, BATCH as u64);
            let start = Instant::now();
            consume::<BATCH>(queue, n);
            start.elapsed()
        });
        sched_setaffinity(None, &allowed).expect("what it was");
        result
    })
}

/// Left to the scheduler, both threads share a core now and then, and then
/// nothing is handed over between cores.
fn pin(core: Option<usize>) {
    let Some(core) = core else {
        return;
    };
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).expect("a core that is allowed");
}

fn produce<const BATCH: usize>(queue: &impl Queue, n: u64) {
    let events = [Event::default(); BATCH];
    let mut left = n;
    while left > 0 {
        let wanted = left.min(BATCH as u64) as usize;
        match queue.push(black_box(&events[..wanted])) {
            0 => spin_loop(),
            pushed => left -= pushed as u64,
        }
    }
}

fn consume<const BATCH: usize>(queue: &impl Queue, n: u64) {
    let mut out = [Event::default(); BATCH];
    let mut left = n;
    while left > 0 {
        let wanted = left.min(BATCH as u64) as usize;
        match queue.pop(black_box(&mut out[..wanted])) {
            0 => spin_loop(),
            popped => left -= popped as u64,
        }
    }
}
