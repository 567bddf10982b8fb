//! The descriptor in the hands of tokio, async-io and mio, whose polls all are
//! edge-triggered, or only for once.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    io::{self, Write},
    os::fd::AsRawFd,
    sync::mpsc,
    thread,
    time::Duration,
};

use common::OnPanic;
use uaio::{AsyncFd, Completion, Context, Drained, File, Op};

const ROUNDS: u64 = 200;
const BURST: u64 = 30;

/// Bursts that do not fit, each after the one before was taken; by workers, at once and
/// by whoever drives.
fn produce(context: &Context, asyncfd: &AsyncFd, taken: &mpsc::Receiver<()>) {
    let (reader, mut writer) = io::pipe().unwrap();
    let reader = File::new(reader).unwrap();
    let _consumer = OnPanic(|| asyncfd.close());
    let mut data = 0;
    for _ in 0..ROUNDS {
        let mut ops: Vec<_> = (1..=BURST)
            .map(|n| {
                let op = match n % 3 {
                    0 => Op::read(&reader, vec![0; 1]),
                    1 => Op::nop(),
                    _ => Op::nop().offload(),
                };
                op.data(data + n).to(asyncfd)
            })
            .collect();
        assert_eq!(context.submit(&mut ops), Ok(BURST as usize));
        writer.write_all(&[0; BURST as usize / 3]).unwrap();
        data += BURST;
        taken.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}

/// What a consumer has taken, and whom it tells after each burst.
struct Consumer {
    seen: Vec<bool>,
    popped: Vec<Completion>,
    left: u64,
    taken: mpsc::Sender<()>,
}

impl Consumer {
    fn new(taken: mpsc::Sender<()>) -> Self {
        Self {
            seen: vec![false; (ROUNDS * BURST) as usize],
            popped: Vec::new(),
            left: ROUNDS * BURST,
            taken,
        }
    }

    /// What a loop does when the descriptor is readable. `true`: it is not any more.
    fn consume(&mut self, asyncfd: &AsyncFd) -> bool {
        asyncfd.pop(4, &mut self.popped).unwrap();
        for done in self.popped.drain(..) {
            assert!(done.result.is_ok());
            let seen = &mut self.seen[done.data as usize - 1];
            assert!(!std::mem::replace(seen, true));
            self.left -= 1;
            if self.left.is_multiple_of(BURST) {
                self.taken.send(()).unwrap();
            }
        }
        asyncfd.drain().unwrap() == Drained::Empty
    }

    fn is_over(&self) -> bool {
        self.left == 0
    }
}

#[test]
fn tokio_waits_for_it() {
    use tokio::io::{Interest, unix};

    let context = Context::new(64).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let asyncfd = context.asyncfd(8).unwrap();
    let _guard = runtime.enter();
    // SAFETY: its descriptor is open, and the same, as long as it lives.
    let asyncfd = unsafe { unix::AsyncFd::register_with_interest(asyncfd, Interest::READABLE) };
    let asyncfd = asyncfd.unwrap();
    thread::scope(|scope| {
        let (tell, taken) = mpsc::channel();
        scope.spawn(|| produce(&context, asyncfd.get_ref(), &{ taken }));
        runtime.block_on(async {
            let mut consumer = Consumer::new(tell);
            while !consumer.is_over() {
                let mut ready = asyncfd.readable().await.unwrap();
                if consumer.consume(asyncfd.get_ref()) {
                    ready.clear_ready();
                }
            }
        });
    });
}

#[test]
fn async_io_waits_for_it() {
    let context = Context::new(64).unwrap();
    let asyncfd = async_io::Async::new(context.asyncfd(8).unwrap()).unwrap();
    thread::scope(|scope| {
        let (tell, taken) = mpsc::channel();
        scope.spawn(|| produce(&context, asyncfd.get_ref(), &{ taken }));
        async_io::block_on(async {
            let mut consumer = Consumer::new(tell);
            while !consumer.is_over() {
                asyncfd.readable().await.unwrap();
                while !consumer.consume(asyncfd.get_ref()) {}
            }
        });
    });
}

#[test]
fn mio_waits_for_it() {
    use mio::{Events, Interest, Poll, Token, unix::SourceFd};

    const RESULTS: Token = Token(3);
    let context = Context::new(64).unwrap();
    let asyncfd = context.asyncfd(8).unwrap();
    let mut poll = Poll::new().unwrap();
    let fd = asyncfd.as_raw_fd();
    (poll.registry())
        .register(&mut SourceFd(&fd), RESULTS, Interest::READABLE)
        .unwrap();
    thread::scope(|scope| {
        let (tell, taken) = mpsc::channel();
        scope.spawn(|| produce(&context, &asyncfd, &{ taken }));
        let mut consumer = Consumer::new(tell);
        let mut events = Events::with_capacity(4);
        while !consumer.is_over() {
            let limit = Some(Duration::from_secs(30));
            poll.poll(&mut events, limit).unwrap();
            assert!(!events.is_empty(), "a wake-up was lost");
            for event in &events {
                assert!(event.token() == RESULTS && event.is_readable());
                while !consumer.consume(&asyncfd) {}
            }
        }
    });
}
