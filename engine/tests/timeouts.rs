//! Requests that wait for their time, and for nothing else.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    future::Future,
    pin::pin,
    sync::mpsc,
    task::{Context as Task, Waker},
    thread,
    time::{Duration, Instant},
};

use common::{Rng, collect, complete};
use uaio::{Callback, Completion, Context, Errno, Handle, Op};

/// So long that it is not over before the test is.
const LONG: Duration = Duration::from_secs(10_000);
const SHORT: Duration = Duration::from_millis(2);

fn submit(context: &Context, op: Op) -> Handle {
    let mut ops = [op];
    assert_eq!(context.submit(&mut ops), Ok(1));
    ops[0].handle().unwrap()
}

#[track_caller]
fn is_over(done: &Completion, expected: Errno) {
    assert_eq!(done.result, Err(expected));
    assert!(!done.inline);
}

#[test]
fn a_timeout_ends_not_before_its_time() {
    let context = Context::new(1).unwrap();
    for duration in [Duration::ZERO, Duration::from_nanos(1), SHORT] {
        // It goes to no worker in any case.
        for op in [Op::timeout(duration), Op::timeout(duration).offload()] {
            let before = Instant::now();
            let done = complete(&context, op.data(5));
            assert!(before.elapsed() >= duration);
            assert_eq!(done.data, 5);
            is_over(&done, Errno::ETIME);
            // Again, as any other.
            is_over(&complete(&context, done.op), Errno::ETIME);
        }
    }
}

#[test]
fn the_last_limit_counts() {
    let context = Context::new(1).unwrap();
    let op = Op::timeout(LONG).with_timeout(SHORT);
    is_over(&complete(&context, op), Errno::ETIME);
}

/// In any order of their submission.
#[test]
fn timeouts_end_in_the_order_of_their_times() {
    let mut rng = Rng::seeded();
    let context = Context::new(64).unwrap();
    let start = Instant::now();
    let mut ops: Vec<_> = (0..64)
        .map(|_| rng.below(40_000) as u64)
        .map(|micros| Op::timeout(Duration::from_micros(micros)).data(micros))
        .collect();
    assert_eq!(context.submit(&mut ops), Ok(64));
    let submitted = start.elapsed();
    let mut latest = Duration::ZERO;
    for _ in 0..64 {
        let done = collect(&context, 1).remove(0);
        is_over(&done, Errno::ETIME);
        let duration = Duration::from_micros(done.data);
        assert!(start.elapsed() >= duration);
        // Each counts from its own submission.
        assert!(
            duration + submitted >= latest,
            "{duration:?} after {latest:?}"
        );
        latest = latest.max(duration);
    }
}

#[test]
fn a_timeout_is_cancelled() {
    let context = Context::new(4).unwrap();
    // The clock has no time for the last one.
    for duration in [LONG, Duration::MAX] {
        let handle = submit(&context, Op::timeout(duration));
        let zero = Some(Duration::ZERO);
        assert_eq!(context.getevents(0, 1, zero, &mut Vec::new()), Ok(0));
        assert_eq!(context.cancel(handle), Ok(()));
        assert_eq!(context.cancel(handle), Err(Errno::EALREADY));
        is_over(&collect(&context, 1)[0], Errno::ECANCELED);
        assert_eq!(context.cancel(handle), Err(Errno::ENOENT));
    }
}

/// Either of them ends it, and the other one is told so.
#[test]
fn a_timeout_that_is_cancelled_at_its_end_ends_once() {
    let mut rng = Rng::seeded();
    let context = Context::new(1).unwrap();
    let (mut cancelled, mut over) = (0, 0);
    while cancelled < 100 || over < 100 {
        let duration = Duration::from_micros(rng.below(100) as u64);
        let handle = submit(&context, Op::timeout(duration));
        let done = thread::scope(|scope| {
            let canceller = scope.spawn(|| {
                for _ in 0..rng.below(20) {
                    thread::yield_now();
                }
                context.cancel(handle)
            });
            let done = collect(&context, 1).remove(0);
            match canceller.join().unwrap() {
                Ok(()) => {
                    cancelled += 1;
                    is_over(&done, Errno::ECANCELED);
                }
                Err(Errno::EALREADY | Errno::ENOENT) => {
                    over += 1;
                    is_over(&done, Errno::ETIME);
                }
                Err(errno) => panic!("{errno:?}"),
            }
            done
        });
        assert_eq!(done.handle, handle);
        let zero = Some(Duration::ZERO);
        assert_eq!(context.getevents(0, 1, zero, &mut Vec::new()), Ok(0));
    }
}

#[test]
fn a_sooner_one_wakes_who_waits_for_a_later_one() {
    let context = Context::new(4).unwrap();
    let later = submit(&context, Op::timeout(LONG));
    thread::scope(|scope| {
        let reaper = scope.spawn(|| collect(&context, 1).remove(0));
        let sooner = submit(&context, Op::timeout(SHORT));
        let done = reaper.join().unwrap();
        is_over(&done, Errno::ETIME);
        assert_eq!(done.handle, sooner);
    });
    assert_eq!(context.cancel(later), Ok(()));
}

#[test]
fn a_timeout_as_a_future() {
    let context = Context::new(4).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().unwrap();
    let over = context.operation(Op::timeout(SHORT)).unwrap();
    is_over(&runtime.block_on(over), Errno::ETIME);

    let mut ended = pin!(context.operation(Op::timeout(LONG)).unwrap());
    let mut task = Task::from_waker(Waker::noop());
    assert!(ended.as_mut().poll(&mut task).is_pending());
    // Dropped ones leave their room.
    for _ in 0..100 {
        drop(context.operation(Op::timeout(LONG)).unwrap());
    }
    context.destroy();
    is_over(&runtime.block_on(ended), Errno::ECANCELED);
}

#[test]
fn a_timeout_with_a_callback() {
    let (sender, receiver) = mpsc::channel();
    let before = Instant::now();
    let callback = Callback::new(Op::timeout(SHORT), move |called| {
        sender.send(called.result).unwrap();
    });
    callback.submit().unwrap();
    assert_eq!(receiver.recv(), Ok(Err(Errno::ETIME)));
    assert!(before.elapsed() >= SHORT);
}

/// Without anybody who reaps.
#[test]
fn a_timeout_for_an_asyncfd() {
    let context = Context::new(4).unwrap();
    let asyncfd = context.asyncfd(4).unwrap();
    submit(&context, Op::timeout(SHORT).data(1).to(&asyncfd));
    let long = submit(&context, Op::timeout(LONG).data(2).to(&asyncfd));
    let mut done = Vec::new();
    while done.is_empty() {
        asyncfd.pop(1, &mut done).unwrap();
        thread::yield_now();
    }
    assert_eq!(done[0].data, 1);
    is_over(&done[0], Errno::ETIME);
    assert_eq!(context.cancel(long), Ok(()));
    asyncfd.pop(1, &mut done).unwrap();
    is_over(&done[1], Errno::ECANCELED);
}

#[test]
fn a_context_ends_with_its_timeouts() {
    let context = Context::new(8).unwrap();
    let mut ops = [(); 8].map(|()| Op::timeout(LONG));
    assert_eq!(context.submit(&mut ops), Ok(8));
    // Each has its room until then.
    assert_eq!(context.submit(&mut [Op::nop()]), Err(Errno::EAGAIN));
    context.destroy();
    for done in collect(&context, 8) {
        is_over(&done, Errno::ECANCELED);
    }
}

/// Submitted while the context is being destroyed: refused, or ended.
#[test]
fn no_timeout_outlives_its_context() {
    let mut rng = Rng::seeded();
    let mut cut_short = 0;
    for _ in 0..500 {
        let context = Context::new(64).unwrap();
        submit(&context, Op::timeout(LONG));
        let accepted = thread::scope(|scope| {
            let submitter = scope.spawn(|| {
                let accepted = || context.submit(&mut [Op::timeout(LONG)]).is_ok();
                1 + (1..64).take_while(|_| accepted()).count()
            });
            for _ in 0..rng.below(30) {
                thread::yield_now();
            }
            context.destroy();
            submitter.join().unwrap()
        });
        for done in collect(&context, accepted) {
            is_over(&done, Errno::ECANCELED);
        }
        cut_short += usize::from(1 < accepted && accepted < 64);
    }
    println!("{cut_short} cut short");
    assert!(cut_short > 0);
}
