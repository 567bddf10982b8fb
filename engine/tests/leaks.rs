//! Contexts leave nothing behind. Alone in its process, which it counts.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{fs, io, thread, time::Duration};

use common::Rng;
use uaio::{Context, File, Op, event};

fn count(directory: &str) -> usize {
    fs::read_dir(directory).unwrap().count()
}

fn fds_and_threads() -> (usize, usize) {
    (count("/proc/self/fd"), count("/proc/self/task"))
}

#[test]
fn a_thousand_contexts_leave_nothing_behind() {
    let mut rng = Rng::seeded();
    let before = fds_and_threads();
    for round in 0..1_000 {
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
        if round % 50 == 0 {
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
    // A thread that was joined is gone for the process, but its directory may
    // be a moment longer in sight.
    for _ in 0..100 {
        if fds_and_threads() == before {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(fds_and_threads(), before);
}
