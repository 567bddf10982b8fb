//! Requests as futures, dropped whenever.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    future::Future,
    io::Write,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, Waker},
    time::{Duration, Instant},
};

use common::Rng;
use uaio::{Context, Errno, File, Op, Operation, Source, event};
use uaio_core::wait::WaitQueue;

const ROOM: usize = 64;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;

/// Set by ci/asan.sh.
fn futures() -> usize {
    let futures = std::env::var("UAIO_FUTURES");
    futures.map_or(100_000, |n| n.parse().expect("UAIO_FUTURES is a number"))
}

#[derive(Debug, Default)]
struct Counts {
    /// Dropped before they were polled, and while they waited.
    unpolled: usize,
    waiting: usize,
    /// Came to their end, of which so many had been cancelled.
    done: usize,
    /// Dropped with their completion there.
    unseen: usize,
    no_room: usize,
}

/// At random moments: before the first poll, while it waits or runs, or when it is over.
/// A buffer that is freed too early is written by a worker then: for AddressSanitizer.
#[test]
fn futures_are_dropped_at_any_time() {
    let mut rng = Rng::seeded();
    let mut file = tempfile::tempfile().unwrap();
    for block in 0..BLOCKS {
        file.write_all(&[block as u8; BLOCK]).unwrap();
    }
    let file = File::new(file).unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let stream = File::new(reader).unwrap();
    let nonblock = rustix::fs::OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(&writer, nonblock).unwrap();
    let context = Context::new(ROOM).unwrap();
    let mut counts = Counts::default();
    let mut under_way: Vec<(Pin<Box<Operation>>, Option<u64>)> = Vec::new();
    let mut begun = 0;
    let total = futures();
    let mut task = Task::from_waker(Waker::noop());
    while begun < total || !under_way.is_empty() {
        let full = under_way.len() >= ROOM || begun >= total;
        if !full && rng.below(3) > 0 {
            let block = rng.next() % BLOCKS;
            let read = Op::pread(&file, vec![!0; BLOCK], block * BLOCK as u64);
            let (op, block) = match rng.below(5) {
                0 => (Op::nop().offload(), None),
                1 => (Op::read(&stream, vec![0; 16]), None),
                2 => (read, Some(block)),
                _ => (read.offload(), Some(block)),
            };
            match context.operation(op) {
                Ok(operation) => {
                    begun += 1;
                    under_way.push((Box::pin(operation), block));
                }
                // Those that were dropped are not over yet.
                Err(refused) => {
                    assert_eq!(refused.errno, Errno::EAGAIN);
                    counts.no_room += 1;
                }
            }
            continue;
        }
        if under_way.is_empty() {
            continue;
        }
        let which = rng.below(under_way.len());
        let (mut operation, block) = under_way.swap_remove(which);
        match rng.below(4) {
            0 => {
                counts.unpolled += 1;
                drop(operation);
                continue;
            }
            1 => {
                // It may be full: then there is enough to read.
                let _ = writer.write(&[7; 16]);
            }
            _ => {}
        }
        match operation.as_mut().poll(&mut task) {
            Poll::Ready(done) => {
                counts.done += 1;
                if let (Some(block), Ok(n)) = (block, done.result) {
                    assert_eq!(n, BLOCK);
                    let right = done.op.into_buf().iter().all(|&byte| byte == block as u8);
                    assert!(right, "block {block}");
                }
            }
            Poll::Pending if rng.below(2) == 0 => {
                counts.waiting += 1;
                drop(operation);
            }
            Poll::Pending => under_way.push((operation, block)),
        }
        // Now and then nobody looks for a while.
        if rng.below(1000) == 0 {
            std::thread::sleep(Duration::from_micros(200));
            counts.unseen += under_way.len().min(1);
            under_way.pop();
        }
    }
    println!("{counts:?}");
    let common = [counts.unpolled, counts.waiting, counts.done];
    assert!(common.iter().all(|&n| n >= total / 1000), "{counts:?}");
    // All room comes home.
    let begun = Instant::now();
    let mut all: Vec<_> = (0..ROOM).map(|_| Op::nop()).collect();
    let mut free = 0;
    while free < ROOM {
        free += context.submit(&mut all[free..]).unwrap_or(0);
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{free} of {ROOM}"
        );
        std::thread::yield_now();
    }
    context.destroy();
}

/// A source with more heads than a request has room for.
struct Wide;

// SAFETY: the queue is there for ever, and stays where it is.
unsafe impl Source for Wide {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        static QUEUES: [WaitQueue; 3] = [const { WaitQueue::new() }; 3];
        QUEUES.iter().for_each(visit);
    }
    fn mask(&self) -> u16 {
        0
    }
}

#[test]
fn what_is_refused_is_given_back() {
    let context = Context::new(1).unwrap();
    let file = File::new(tempfile::tempfile().unwrap()).unwrap();
    let asyncfd = context.asyncfd(1).unwrap();
    for op in [
        Op::pwrite(&file, vec![7; 3], u64::MAX),
        Op::pwrite(&file, vec![7; 3], 0).data(1).to(&asyncfd),
    ] {
        let refused = context.operation(op).unwrap_err();
        assert_eq!(refused.errno, Errno::EINVAL);
        assert_eq!(refused.op.into_buf(), [7; 3]);
    }
    // Found out when it is about to wait: its operation goes with it.
    for _ in 0..3 {
        let refused = context.operation(Op::poll_source(Arc::new(Wide), event::IN));
        assert_eq!(refused.unwrap_err().errno, Errno::EOVERFLOW);
    }
    let first = context.operation(Op::nop()).unwrap();
    let refused = context.operation(Op::nop()).unwrap_err();
    assert_eq!(refused.errno, Errno::EAGAIN);
    drop(first);
    assert!(context.operation(Op::nop()).is_ok());
}

/// It resolves, and does not keep the context from ending.
#[test]
fn the_end_of_the_context_ends_it() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let file = File::new(reader).unwrap();
    let context = Context::new(2).unwrap();
    let two = [0, 1].map(|_| context.operation(Op::read(&file, vec![0; 1])).unwrap());
    drop(context);
    let mut task = Task::from_waker(Waker::noop());
    for operation in two {
        let mut operation = Box::pin(operation);
        let Poll::Ready(done) = operation.as_mut().poll(&mut task) else {
            panic!("it is over");
        };
        assert_eq!(done.result, Err(Errno::ECANCELED));
    }
}
