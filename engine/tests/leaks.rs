//! Contexts leave nothing behind. Alone in its process, which it counts.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs, io,
    sync::atomic::{AtomicIsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use common::Rng;
use uaio::{Context, File, Op, event};

/// Counts what is allocated.
struct Counting;

static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

// SAFETY: the system's, of which it returns the results as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size().cast_signed(), Relaxed);
        // SAFETY: the same contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size().cast_signed(), Relaxed);
        // SAFETY: the same contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(directory: &str) -> usize {
    fs::read_dir(directory).unwrap().count()
}

/// Descriptors, threads, and bytes allocated.
fn left() -> (usize, usize, isize) {
    let (fds, threads) = (count("/proc/self/fd"), count("/proc/self/task"));
    (fds, threads, ALLOCATED.load(Relaxed))
}

/// In memory, as the system counts it.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes << 10
}

#[test]
fn a_thousand_contexts_leave_nothing_behind() {
    let mut rng = Rng::seeded();
    // What is made once.
    for n in 0..100 {
        round(&mut rng, n);
    }
    let (before, resident_before) = (left(), resident());
    for n in 0..1_000 {
        round(&mut rng, n);
    }
    // A thread that was joined is gone for the process, but its directory may
    // be a moment longer in sight; and one that had left before was not waited for.
    let settled = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(10));
        left() == before
    });
    assert!(settled, "{before:?} before, {:?} after", left());
    // A page for each would be twice as much.
    let grown = resident().saturating_sub(resident_before);
    assert!(grown < 2 << 20, "{grown} bytes more in memory");
}

/// Makes a context, loads it, and ends it one way or another.
fn round(rng: &mut Rng, round: usize) {
    let context = Context::builder(64).workers(1..=4).build().unwrap();
    let asyncfd = context.asyncfd(1 + rng.below(8)).unwrap();
    let file = File::new(tempfile::tempfile().unwrap()).unwrap();
    let (reader, _writer) = io::pipe().unwrap();
    let reader = File::new(reader).unwrap();
    let limit = Duration::from_millis(rng.below(30) as u64);
    let mut armed = [
        Op::read(&reader, vec![0; 8]),
        Op::poll(&reader, event::IN).with_timeout(limit),
    ];
    assert_eq!(context.submit(&mut armed), Ok(2));
    if round.is_multiple_of(50) {
        // The context's own thread takes over.
        thread::sleep(Duration::from_millis(15));
    }
    // Waited for, done and kept back; some are popped, the rest is left.
    let mut ops: Vec<_> = (1..=16)
        .map(|n| {
            match rng.below(4) {
                0 => Op::read(&reader, vec![0; 8]).with_timeout(limit),
                1 => Op::nop().offload(),
                _ => Op::nop(),
            }
            .data(n)
            .to(&asyncfd)
        })
        .collect();
    assert_eq!(context.submit(&mut ops), Ok(16));
    let mut popped = Vec::new();
    if rng.below(2) == 0 {
        asyncfd.pop(rng.below(16), &mut popped).unwrap();
        let _ = asyncfd.drain();
    }
    if rng.below(4) == 0 {
        asyncfd.replace(1 + rng.below(8)).unwrap();
    }
    let mut ops: Vec<_> = (0..32)
        .map(|n| {
            let op = Op::pwrite(&file, vec![1; 512], n * 512);
            if rng.below(2) == 0 { op } else { op.offload() }
        })
        .collect();
    assert_eq!(context.submit(&mut ops), Ok(32));
    // Queued, being carried out, done, or waited for.
    for op in ops.iter().chain(&armed) {
        if rng.below(4) == 0 {
            let _ = context.cancel(op.handle().unwrap());
        }
    }
    let mut events = Vec::new();
    let moment = Some(Duration::from_micros(10));
    context
        .getevents(rng.below(32), 32, moment, &mut events)
        .unwrap();
    // Before the context, or after it.
    let mut asyncfd = Some(asyncfd);
    if rng.below(2) == 0 {
        asyncfd = None;
    }
    match round % 3 {
        0 => context.destroy(),
        1 => thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| context.destroy());
            }
        }),
        // Dropped.
        _ => drop(context),
    }
    if let Some(asyncfd) = asyncfd {
        asyncfd.pop(rng.below(16), &mut popped).unwrap();
    }
}
