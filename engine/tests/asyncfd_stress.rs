//! Four producers, and rings that are always too small or just being replaced: nothing
//! is lost, doubled, torn or out of order.
//!
//! UAIO_STRESS_RESULTS says how many results; a tenth of that as whole requests. What the
//! tests exist for is counted, printed, and has to have occurred often enough.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    env,
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context as Task, Poll, Wake},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use common::{OnPanic, Rng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uaio::{Context, Drained, Errno, Op};
use uaio_core::asyncfd::{Asyncfd, AsyncfdResult, LapCell, ResultCell, Uring, UringMemory};

const PRODUCERS: usize = 4;
/// How often each of the outcomes has to occur.
const LEAST: u64 = 100;
/// The largest ring.
const LARGEST: usize = 64;
/// How long a consumer waits for the context to be full.
const PAUSE: Duration = Duration::from_millis(1);
/// How long nothing may happen.
const STUCK: Duration = Duration::from_secs(30);

fn results() -> u64 {
    let results = match env::var("UAIO_STRESS_RESULTS") {
        Ok(results) => results.parse().expect("UAIO_STRESS_RESULTS is a number"),
        Err(_) => 1_000_000,
    };
    assert!(results >= 100_000, "too few to see anything");
    results
}

/// How often something occurred.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Prints how often each occurred, and fails if one was rare.
fn account(rows: &[(&str, u64)]) {
    for (name, n) in rows {
        println!("{n:>10}  {name}");
    }
    for (name, n) in rows {
        assert!(*n >= LEAST, "{name}: {n} times");
    }
}

#[derive(Debug)]
struct Ring {
    uring: Uring,
    results: Box<[ResultCell]>,
    laps: Box<[LapCell]>,
}

impl Ring {
    fn of(size: usize) -> Arc<Self> {
        Arc::new(Self {
            uring: Uring::new(0, size as u32, 0),
            results: (0..size).map(|_| ResultCell::new()).collect(),
            laps: (0..size).map(|_| LapCell::new()).collect(),
        })
    }

    /// What only producers write.
    fn written(&self) -> Vec<u64> {
        let words = self.results.iter().flat_map(|cell| {
            let cell: *const AtomicU64 = (&raw const *cell).cast();
            // The cookie is the consumer's to reset.
            (1..4).map(move |n| {
                // SAFETY: a cell is four words.
                let word = unsafe { cell.add(n) };
                // SAFETY: in a cell, which is there.
                unsafe { &*word }.load(Ordering::Relaxed)
            })
        });
        words.collect()
    }
}

/// A share of a ring, of which an asyncfd has one at most.
struct Share(Arc<Ring>);

// SAFETY: boxed slices of equal length, new, in one asyncfd only.
unsafe impl UringMemory for Share {
    fn uring(&self) -> &Uring {
        &self.0.uring
    }
    fn results(&self) -> &[ResultCell] {
        &self.0.results
    }
    fn laps(&self) -> &[LapCell] {
        &self.0.laps
    }
}

fn mix(n: u64) -> u64 {
    let n = (n ^ n >> 31).wrapping_mul(0x7fb5_d329_728e_a185);
    (n ^ n >> 27).wrapping_mul(0x81da_def4_bc2d_d44d)
}

/// The `n`th of a producer, which is all over it.
fn result(producer: usize, n: u64) -> AsyncfdResult {
    let cookie = (producer as u64) << 48 | (n + 1);
    AsyncfdResult {
        cookie,
        obj: mix(cookie),
        res: mix(cookie + 1).cast_signed(),
        res2: mix(cookie + 2).cast_signed(),
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on(future: impl Future<Output = ()>) {
    let mut future = pin!(future);
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut task = Task::from_waker(&waker);
    let begun = Instant::now();
    while future.as_mut().poll(&mut task) == Poll::Pending {
        assert!(begun.elapsed() < STUCK, "a wake-up was lost");
        thread::park_timeout(STUCK);
    }
}

#[derive(Default)]
struct Tally {
    full: Count,
    replaced: Count,
    refused: Count,
    slept: Count,
}

fn produce(asyncfd: &Asyncfd<Share>, producer: usize, all: u64, rng: &mut Rng, tally: &Tally) {
    let mut n = 0;
    while n < all {
        let batch: Vec<_> = (n..all.min(n + 1 + rng.below(16) as u64))
            .map(|n| result(producer, n))
            .collect();
        let mut left = &batch[..];
        while !left.is_empty() {
            let added = asyncfd.add_results(left).unwrap();
            left = &left[added..];
            if !left.is_empty() {
                tally.full.add(1);
                thread::yield_now();
            }
        }
        n += batch.len() as u64;
    }
}

fn replace(asyncfd: &Asyncfd<Share>, first: Arc<Ring>, rng: &mut Rng, tally: &Tally) {
    let mut present = first;
    loop {
        let next = Ring::of(1 + rng.below(LARGEST));
        match asyncfd.replace(Share(Arc::clone(&next))) {
            Ok(out) => block_on(out),
            Err(refused) if refused.error == Errno::EBUSY => {
                tally.refused.add(1);
                thread::yield_now();
                continue;
            }
            Err(refused) => {
                assert_eq!(refused.error, Errno::EBADFD);
                return;
            }
        }
        tally.replaced.add(1);
        let written = present.written();
        for _ in 0..rng.below(4) {
            thread::yield_now();
        }
        assert!(present.written() == written, "the old one was written");
        present = next;
    }
}

/// The next of each producer.
type Expected = Mutex<[u64; PRODUCERS]>;

fn consume(asyncfd: &Asyncfd<Share>, all: u64, expected: &Expected, rng: &mut Rng, tally: &Tally) {
    let mut out = [AsyncfdResult::default(); 2 * LARGEST];
    let _others = OnPanic(|| drop(asyncfd.close()));
    while !asyncfd.is_closed() {
        let mut next = expected.lock().unwrap();
        let most = 1 + rng.below(out.len());
        let popped = match asyncfd.pop(&mut out[..most]) {
            Ok(popped) => popped,
            // Who replaces moves in what is kept back.
            Err(errno) => {
                assert_eq!(errno, Errno::EBUSY);
                continue;
            }
        };
        for found in &out[..popped] {
            let producer = (found.cookie >> 48) as usize;
            assert_eq!(*found, result(producer, next[producer]));
            next[producer] += 1;
        }
        if next.iter().sum::<u64>() == all {
            return;
        }
        drop(next);
        if popped == 0 && asyncfd.drain() == Ok(Drained::Empty) {
            tally.slept.add(1);
            block_on(asyncfd.readable());
        }
    }
}

#[test]
fn results_of_four_producers_through_full_rings_and_replacements() {
    let all = results() / PRODUCERS as u64 * PRODUCERS as u64;
    let mut rng = Rng::seeded();
    let first = Ring::of(8);
    let asyncfd = Asyncfd::new(Share(Arc::clone(&first))).unwrap();
    let (expected, tally) = (Expected::default(), Tally::default());
    thread::scope(|scope| {
        let (asyncfd, expected, tally) = (&asyncfd, &expected, &tally);
        for producer in 0..PRODUCERS {
            let mut rng = rng.fork();
            scope.spawn(move || {
                produce(asyncfd, producer, all / PRODUCERS as u64, &mut rng, tally);
            });
        }
        let mut sizes = rng.fork();
        scope.spawn(move || replace(asyncfd, first, &mut sizes, tally));
        for _ in 0..2 {
            let mut rng = rng.fork();
            scope.spawn(move || {
                consume(asyncfd, all, expected, &mut rng, tally);
                // And the others see that it is over.
                block_on(asyncfd.close());
            });
        }
    });
    let nothing = asyncfd.pop(&mut [AsyncfdResult::default(); 4]);
    assert_eq!(nothing, Ok(0), "more than once");
    println!("{all:>10}  results");
    println!("{:>10}  replacements too soon", tally.refused.get());
    account(&[
        ("full", tally.full.get()),
        ("replaced", tally.replaced.get()),
        ("drained to the end", tally.slept.get()),
    ]);
}

#[test]
fn requests_of_four_submitters_through_full_rings_and_replacements() {
    let each = results() / 10 / PRODUCERS as u64;
    let all = each * PRODUCERS as u64;
    let mut rng = Rng::seeded();
    let context = Context::builder(256).workers(2..=2).build().unwrap();
    let asyncfd = context.asyncfd(8).unwrap();
    let (replaced, done) = (Count::default(), AtomicBool::new(false));
    let blocked = Count::default();
    let (mut slept, mut full) = (0_u64, 0_u64);
    thread::scope(|scope| {
        let (context, asyncfd, replaced) = (&context, &asyncfd, &replaced);
        let (blocked, done) = (&blocked, &done);
        for producer in 0..PRODUCERS {
            let mut rng = rng.fork();
            scope.spawn(move || {
                let op = |n| Op::nop().data(result(producer, n).cookie).to(asyncfd);
                submit_all(context, each, &mut rng, op, blocked);
            });
        }
        let mut sizes = rng.fork();
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) && !asyncfd.is_closed() {
                match asyncfd.replace(1 + sizes.below(LARGEST / 4)) {
                    Ok(()) => replaced.add(1),
                    Err(errno) => assert_eq!(errno, Errno::EBUSY),
                }
                thread::yield_now();
            }
        });
        let _others = OnPanic(|| asyncfd.close());
        let mut seen = vec![false; all as usize];
        // Of those that were done at once: they are in order.
        let mut last = [0; PRODUCERS];
        let mut left = all;
        let mut popped = Vec::new();
        let begun = Instant::now();
        while left > 0 {
            if rng.below(16) == 0 {
                // Until the context is full, and so the rings, which hold less.
                let begun = Instant::now();
                while blocked.get() < PRODUCERS as u64 && begun.elapsed() < PAUSE {
                    thread::yield_now();
                }
                full += u64::from(blocked.get() == PRODUCERS as u64);
            }
            asyncfd
                .pop(1 + rng.below(2 * LARGEST), &mut popped)
                .unwrap();
            left -= popped.len() as u64;
            for done in popped.drain(..) {
                assert_eq!(done.result, Ok(0));
                let (producer, n) = (done.data >> 48, done.data & 0xffff_ffff);
                let seen = &mut seen[(producer * each + n - 1) as usize];
                assert!(!std::mem::replace(seen, true), "{:#x} twice", done.data);
                if done.inline {
                    let before = std::mem::replace(&mut last[producer as usize], n);
                    assert!(before < n, "{n} of {producer} behind {before}");
                }
            }
            match asyncfd.drain() {
                Ok(Drained::Empty) => {
                    slept += 1;
                    wait(asyncfd).unwrap();
                }
                Ok(Drained::Unread) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
        println!("{:>10.1?}  for {all} requests", begun.elapsed());
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(asyncfd.pop(1, &mut Vec::new()), Ok(0), "more than once");
    let wakeups = asyncfd.wakeups();
    // Asleep once more before it has begun.
    assert!(wakeups <= slept + 1, "{wakeups} for {slept} times asleep");
    account(&[
        ("full, with many kept back", full),
        ("replaced", replaced.get()),
        ("drained to the end", slept),
        ("woken", wakeups),
    ]);
}

/// Each result comes just when the consumer goes to sleep, a little sooner or later.
#[test]
fn who_falls_asleep_is_woken() {
    let all = results() / 10;
    let mut rng = Rng::seeded();
    let context = Context::new(4).unwrap();
    let asyncfd = context.asyncfd(2).unwrap();
    let (popped, mut narrow) = (Count::default(), 0);
    let mut slept = 0;
    thread::scope(|scope| {
        let (context, asyncfd, popped) = (&context, &asyncfd, &popped);
        let mut delays = rng.fork();
        scope.spawn(move || {
            for n in 0..all {
                let mut turns = 0_u32;
                while popped.get() < n {
                    std::hint::spin_loop();
                    turns += 1;
                    if turns.is_multiple_of(1 << 10) {
                        thread::yield_now();
                    }
                }
                for _ in 0..delays.below(20) {
                    std::hint::spin_loop();
                }
                let op = Op::nop().data(n + 1).to(asyncfd);
                assert_eq!(context.submit(&mut [op]), Ok(1));
            }
        });
        let mut out = Vec::new();
        let _other = OnPanic(|| popped.add(all as usize));
        while popped.get() < all {
            asyncfd.pop(4, &mut out).unwrap();
            popped.add(out.len());
            out.clear();
            for _ in 0..rng.below(30) {
                std::hint::spin_loop();
            }
            match asyncfd.drain().unwrap() {
                Drained::Empty if popped.get() == all => {}
                Drained::Empty => {
                    slept += 1;
                    wait(asyncfd).unwrap();
                }
                // So it is to be readable as well.
                Drained::Unread => {
                    narrow += 1;
                    wait(asyncfd).unwrap();
                }
            }
        }
    });
    assert!(asyncfd.wakeups() <= slept + 1);
    println!("{narrow:>10}  came while it fell asleep");
    account(&[("asleep", slept), ("woken", asyncfd.wakeups())]);
}

/// Some of them at once, others by a worker.
fn submit_all(
    context: &Context,
    each: u64,
    rng: &mut Rng,
    op: impl Fn(u64) -> Op,
    blocked: &Count,
) {
    let mut n = 0;
    while n < each {
        let end = each.min(n + 1 + rng.below(16) as u64);
        let mut ops: Vec<_> = (n..end)
            .map(|n| match rng.below(8) {
                0 => op(n).offload(),
                _ => op(n),
            })
            .collect();
        n = end;
        let mut left = &mut ops[..];
        while !left.is_empty() {
            match context.submit(left) {
                Ok(accepted) => left = &mut left[accepted..],
                Err(errno) => {
                    assert_eq!(errno, Errno::EAGAIN);
                    blocked.add(1);
                    thread::yield_now();
                    blocked.0.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }
}

fn wait(asyncfd: &uaio::AsyncFd) -> io::Result<()> {
    let limit = Timespec {
        tv_sec: STUCK.as_secs() as i64,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(asyncfd, PollFlags::IN)], Some(&limit))?;
    assert_eq!(ready, 1, "a wake-up was lost");
    Ok(())
}
