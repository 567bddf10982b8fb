//! What a caller sees of the context, one thread at a time.
#![cfg(not(any(loom, shuttle)))]

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context as Task, Poll, Wake, Waker},
};

use uaio_core::{
    Context, Errno,
    context::{
        Armed, BoxedContext, Cancelled, Completion, Expired, Handle, InlineContext, Looked, Woken,
    },
    request::{Generation, Miss},
    ring::Event,
    slots::Iocb,
};

fn iocb(data: u64) -> Iocb {
    Iocb { data, obj: !data }
}

fn reap<T>(context: &BoxedContext<T>, max: usize) -> Vec<Completion<T>> {
    let mut out: Vec<_> = (0..max).map(|_| None).collect();
    let n = context.reap(&mut out).unwrap();
    assert!(out[n..].iter().all(Option::is_none));
    out.into_iter().flatten().collect()
}

#[test]
fn a_request_comes_back_whole() {
    let context = Context::boxed(4).unwrap();
    let request = context.reserve_one().unwrap().fill(iocb(7), vec![1, 2]);
    let handle = request.arm();
    assert!(reap(&context, 4).is_empty());

    let mut claim = context.claim(handle).unwrap();
    claim.with_payload(|bytes| bytes.push(3)).unwrap();
    claim.complete(-5, 9);

    let done = reap(&context, 4).pop().unwrap();
    let event = Event {
        data: 7,
        obj: !7,
        res: -5,
        res2: 9,
    };
    assert_eq!((done.event, done.payload), (event, vec![1, 2, 3]));
    assert_eq!(done.handle, handle);
}

#[test]
fn completions_are_given_one_by_one_and_a_panic_keeps_no_room() {
    let shared = Arc::new(());
    let context = Context::boxed(40).unwrap();
    let fill = || {
        for (data, reservation) in context.reserve(40).unwrap().enumerate() {
            let handle = reservation.handle();
            let request = reservation.fill(iocb(data as u64), Arc::clone(&shared));
            assert_eq!(request.arm(), handle);
            context.claim(handle).unwrap().complete(data as i64, 0);
        }
    };
    fill();
    let mut given = Vec::new();
    let each = |done: Completion<Arc<()>>| given.push((done.event.data, done.event.res));
    assert_eq!(context.reap_each(35, each), Ok(35));
    assert_eq!(given, (0..35).map(|n| (n, n as i64)).collect::<Vec<_>>());
    assert_eq!(context.reap_each(35, |_| ()), Ok(5));

    fill();
    let mut left = 3;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = context.reap_each(40, |_| {
            left -= 1;
            assert!(left > 0, "on purpose");
        });
    }));
    assert!(panicked.is_err());
    // Of the batch in which it panicked the rest was dropped, and its room is free.
    assert_eq!(context.reserve(40).unwrap().len(), 32);
    assert_eq!(Arc::strong_count(&shared), 1 + 8);
    assert_eq!(reap(&context, 40).len(), 8);
    assert_eq!(Arc::strong_count(&shared), 1);
    assert_eq!(context.reserve(40).unwrap().len(), 40);
}

#[test]
fn a_static_context_needs_no_heap() {
    static CONTEXT: InlineContext<u32, 4, 3> = InlineContext::inline();
    assert_eq!(CONTEXT.capacity(), 3);
    let claim = CONTEXT.reserve_one().unwrap().fill(iocb(1), 5).claim();
    claim.complete(0, 0);
    let mut out = [None];
    assert_eq!(CONTEXT.reap(&mut out), Ok(1));
    assert_eq!(out[0].unwrap().payload, 5);
}

#[test]
fn a_full_context_says_eagain_until_it_is_reaped() {
    // 70 slots: more than one word of the bitmap, and not all of the second.
    let context: BoxedContext<u64> = Context::boxed(70).unwrap();
    let mut handles = Vec::new();
    while handles.len() < 70 {
        for reservation in context.reserve(100).unwrap() {
            let n = handles.len() as u64;
            handles.push(reservation.fill(iocb(n), n).arm());
        }
    }
    assert_eq!(context.reserve(1).unwrap_err(), Errno::EAGAIN);
    let mut batch = context.batch();
    for &handle in &handles {
        batch.push(context.claim(handle).unwrap(), 0, 0);
    }
    drop(batch);
    // Completed is not enough: the room is the event's until it is reaped.
    assert_eq!(context.reserve(1).unwrap_err(), Errno::EAGAIN);
    let done = reap(&context, 100);
    let order: Vec<_> = done.iter().map(|done| done.payload).collect();
    assert_eq!(order, (0..70).collect::<Vec<_>>());
    assert_eq!(context.reserve(64).unwrap().len(), 64);
}

/// However many are completed together, for however many.
#[test]
fn a_batch_wakes_each_waiter_once() {
    const MANY: u64 = 200;
    let context = Box::pin(Context::boxed(MANY as usize).unwrap());
    let context = context.as_ref();
    let mut waits = [1, 2, MANY as usize].map(|n| {
        let count = Arc::new(Count::default());
        (Box::pin(context.wait(n).unwrap()), count)
    });
    for (wait, count) in &mut waits {
        let waker = Waker::from(Arc::clone(count));
        let mut task = Task::from_waker(&waker);
        assert!(wait.as_mut().poll(&mut task).is_pending());
    }
    let handles: Vec<_> = (0..MANY)
        .map(|n| context.reserve_one().unwrap().fill(iocb(n), n).arm())
        .collect();
    let mut batch = context.batch();
    for handle in handles {
        batch.push(context.claim(handle).unwrap(), 0, 0);
    }
    drop(batch);
    for (wait, count) in &mut waits {
        assert_eq!(*count.0.lock().unwrap(), 1, "wake-ups");
        let mut task = Task::from_waker(Waker::noop());
        assert!(wait.as_mut().poll(&mut task).is_ready());
    }
}

#[test]
fn what_is_refused_leaves_no_trace() {
    let context = Context::boxed(1).unwrap();
    drop(context.reserve(1).unwrap());
    drop(context.reserve_one().unwrap());
    drop(context.reserve_one().unwrap().fill(iocb(1), "dropped"));
    let request = context.reserve_one().unwrap().fill(iocb(2), "given back");
    assert_eq!(request.refuse(), Some("given back"));
    assert!(reap(&context, 1).is_empty());
    assert_eq!(context.reserve(0).unwrap_err(), Errno::EINVAL);
    assert!(context.reserve_one().is_ok());
}

#[test]
fn cancel_by_phase() {
    let context = Context::boxed(4).unwrap();
    let reserve = || context.reserve_one().unwrap().fill(iocb(1), ());

    let armed = reserve().arm();
    assert_eq!(context.cancel(armed), Ok(Cancelled::Done));
    assert_eq!(context.cancel(armed), Err(Errno::EALREADY));
    assert_eq!(reap(&context, 1)[0].event.res, -125);
    assert_eq!(context.cancel(armed), Err(Errno::ENOENT));

    let queued = reserve().arm();
    let running = context.start(queued).unwrap();
    assert!(!running.cancel_requested());
    assert_eq!(context.cancel(queued), Ok(Cancelled::Asked));
    assert_eq!(context.cancel(queued), Err(Errno::EALREADY));
    assert!(running.cancel_requested());
    running.complete(4096, 0);
    assert_eq!(reap(&context, 1)[0].event.res, 4096);

    let early = reserve().early();
    assert_eq!(context.cancel(early.handle()), Ok(Cancelled::Asked));
    let Armed::Cancelled(claim) = early.arm() else {
        panic!("the cancel was forgotten")
    };
    claim.cancel();
    assert_eq!(reap(&context, 1)[0].event.res, -125);
}

#[test]
fn wakes_in_every_phase() {
    let context = Context::boxed(4).unwrap();
    let reserve = || context.reserve_one().unwrap().fill(iocb(1), ());

    let early = reserve().early();
    assert!(matches!(context.wake(early.handle(), 4), Woken::Recorded));
    assert!(matches!(context.wake(early.handle(), 8), Woken::Recorded));
    let looked = context.look_again(early.handle());
    assert!(matches!(looked, Looked::Recorded));
    let Armed::LookAgain(early) = early.arm() else {
        panic!("the keyless wake was forgotten")
    };
    let Armed::Ready(claim) = early.arm() else {
        panic!("the events were forgotten")
    };
    assert_eq!(claim.events(), 12);
    assert!(matches!(
        context.wake(claim.handle(), 1),
        Woken::Missed(Miss::Late)
    ));
    claim.complete(12, 0);

    let early = reserve().early();
    let looked = context.look_again(early.handle());
    assert!(matches!(looked, Looked::Recorded));
    let Armed::LookAgain(early) = early.arm() else {
        panic!("the keyless wake was forgotten")
    };
    let Armed::Armed(handle) = early.arm() else {
        panic!("nothing else came")
    };
    let Looked::Look(early) = context.look_again(handle) else {
        panic!("nobody looks")
    };
    assert!(matches!(context.look_again(handle), Looked::Recorded));
    assert_eq!(context.claim(handle).unwrap_err(), Miss::Busy);
    let Armed::LookAgain(early) = early.arm() else {
        panic!("the keyless wake was forgotten")
    };
    let Armed::Armed(handle) = early.arm() else {
        panic!("nothing else came")
    };
    let Woken::Won(claim) = context.wake(handle, 2) else {
        panic!("armed")
    };
    assert_eq!(claim.events(), 2);
    claim.complete(2, 0);
    assert_eq!(reap(&context, 4).len(), 2);
}

#[test]
fn handles_from_nowhere_are_gone() {
    let context: BoxedContext<()> = Context::boxed(2).unwrap();
    for index in [0, 1, 2, u32::MAX] {
        for generation in [Generation::MIN, Generation::new(1), Generation::MAX] {
            let handle = Handle::from_parts(index, generation);
            assert_eq!(context.cancel(handle), Err(Errno::ENOENT));
            assert_eq!(context.claim(handle).unwrap_err(), Miss::Gone);
            assert_eq!(context.start(handle).unwrap_err(), Miss::Gone);
            let looked = context.look_again(handle);
            assert!(matches!(looked, Looked::Missed(Miss::Gone)));
            let woken = context.wake(handle, 1);
            assert!(matches!(woken, Woken::Missed(Miss::Gone)));
        }
    }
}

#[test]
fn a_dropped_right_completes_with_eio() {
    let context = Context::boxed(4).unwrap();
    let reserve = |n| context.reserve_one().unwrap().fill(iocb(n), ());
    drop(reserve(0).claim());
    drop(reserve(1).run());
    drop(reserve(2).early());
    let handle = reserve(3).arm();
    drop(context.claim(handle).unwrap());
    let done = reap(&context, 4);
    assert_eq!(done.len(), 4);
    assert!(done.iter().all(|done| done.event.res == -5));
}

#[derive(Default)]
struct Count(std::sync::Mutex<usize>);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() += 1;
    }
}

#[test]
fn a_waiter_is_woken_once_and_by_enough() {
    let context = Box::pin(Context::boxed(4).unwrap());
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut task = Task::from_waker(&waker);
    let woken = || *count.0.lock().unwrap();
    let complete = |n| {
        let request = context.reserve_one().unwrap().fill(iocb(n), ());
        request.claim().complete(0, 0);
    };

    let mut wait = pin!(context.as_ref().wait(2).unwrap());
    assert_eq!(wait.as_mut().poll(&mut task), Poll::Pending);
    complete(0);
    assert_eq!((woken(), wait.as_mut().poll(&mut task)), (0, Poll::Pending));
    complete(1);
    assert_eq!(woken(), 1);
    complete(2);
    assert_eq!(woken(), 1);
    assert_eq!(wait.as_mut().poll(&mut task), Poll::Ready(Ok(())));

    let mut late = pin!(context.as_ref().wait(4).unwrap());
    assert_eq!(late.as_mut().poll(&mut task), Poll::Pending);
    assert_eq!(late.as_mut().expire(), Expired::TimedOut);
    complete(3);
    assert_eq!(woken(), 1);
    assert_eq!(late.as_mut().poll(&mut task), Poll::Ready(Ok(())));

    assert_eq!(context.as_ref().wait(5).unwrap_err(), Errno::EINVAL);
}

#[test]
fn destroying_cancels_refuses_and_lets_reap() {
    let context = Box::pin(Context::boxed(4).unwrap());
    let mut task = Task::from_waker(Waker::noop());
    let armed = context.reserve_one().unwrap().fill(iocb(1), "armed").arm();
    let queued = context.reserve_one().unwrap().fill(iocb(2), "run").arm();
    let running = context.start(queued).unwrap();
    let mut wait = pin!(Some(context.as_ref().wait(3).unwrap()));
    let mut poll = wait.as_mut().as_pin_mut().unwrap();
    assert_eq!(poll.as_mut().poll(&mut task), Poll::Pending);

    let mut asked = Vec::new();
    let mut first = pin!(context.destroy(|handle| asked.push(handle)));
    let mut second = pin!(context.destroy(|_| panic!("asked twice")));
    assert_eq!(asked, [queued]);
    assert_eq!(context.cancel(armed), Err(Errno::EALREADY));
    assert_eq!(context.reserve(1).unwrap_err(), Errno::EINVAL);
    assert_eq!(context.as_ref().wait(0).unwrap_err(), Errno::EINVAL);
    assert_eq!(
        poll.as_mut().poll(&mut task),
        Poll::Ready(Err(Errno::EINVAL))
    );
    wait.set(None);

    assert_eq!(first.as_mut().poll(&mut task), Poll::Pending);
    assert!(running.cancel_requested());
    running.complete(1, 0);
    assert_eq!(first.as_mut().poll(&mut task), Poll::Ready(()));
    assert_eq!(second.as_mut().poll(&mut task), Poll::Ready(()));

    let done = reap(&context, 4);
    let results: Vec<_> = done.iter().map(|d| (d.payload, d.event.res)).collect();
    assert_eq!(results, [("armed", -125), ("run", 1)]);
}

#[test]
fn more_destroyers_than_a_batch_of_wakers() {
    let context: BoxedContext<()> = Context::boxed(1).unwrap();
    let running = context.reserve_one().unwrap().fill(iocb(1), ()).run();
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut task = Task::from_waker(&waker);
    let mut all: Vec<_> = (0..30).map(|_| Box::pin(context.destroy(|_| ()))).collect();
    for idle in &mut all {
        assert_eq!(idle.as_mut().poll(&mut task), Poll::Pending);
    }
    running.complete(0, 0);
    assert_eq!(*count.0.lock().unwrap(), 30);
    for idle in &mut all {
        assert_eq!(idle.as_mut().poll(&mut task), Poll::Ready(()));
    }
}

#[cfg(feature = "std")]
#[test]
fn a_panicking_waker_loses_nobody() {
    struct Bad;
    impl Wake for Bad {
        fn wake(self: Arc<Self>) {
            panic!("as planned")
        }
    }
    let context = Box::pin(Context::boxed(2).unwrap());
    let count = Arc::new(Count::default());
    let (bad, good) = (Waker::from(Arc::new(Bad)), Waker::from(Arc::clone(&count)));
    let mut first = Box::pin(context.as_ref().wait(1).unwrap());
    let mut second = Box::pin(context.as_ref().wait(1).unwrap());
    assert!(
        first
            .as_mut()
            .poll(&mut Task::from_waker(&bad))
            .is_pending()
    );
    assert!(
        second
            .as_mut()
            .poll(&mut Task::from_waker(&good))
            .is_pending()
    );
    let claim = context.reserve_one().unwrap().fill(iocb(1), ()).claim();
    claim.complete(1, 0);
    assert_eq!(*count.0.lock().unwrap(), 1);
    drop((first, second));
    assert_eq!(reap(&context, 2).len(), 1);
    // The completer was counted out: the end comes.
    let mut idle = pin!(context.destroy(|_| ()));
    let mut task = Task::from_waker(Waker::noop());
    assert_eq!(idle.as_mut().poll(&mut task), Poll::Ready(()));
}

#[test]
fn a_panic_on_the_way_to_the_end_does_not_stop_it() {
    let context = Context::boxed(4).unwrap();
    let running = context.reserve_one().unwrap().fill(iocb(1), ()).run();
    let armed = context.reserve_one().unwrap().fill(iocb(2), ()).arm();
    let destroy = || drop(context.destroy(|_| panic!("as planned")));
    let destroy = std::panic::AssertUnwindSafe(destroy);
    assert!(std::panic::catch_unwind(destroy).is_err());
    assert_eq!(context.cancel(armed), Err(Errno::EALREADY));
    running.complete(0, 0);
    let mut idle = pin!(context.destroy(|_| ()));
    let mut task = Task::from_waker(Waker::noop());
    assert_eq!(idle.as_mut().poll(&mut task), Poll::Ready(()));
    assert_eq!(reap(&context, 4).len(), 2);
}

#[test]
fn who_has_entered_is_waited_for() {
    let context: BoxedContext<()> = Context::boxed(1).unwrap();
    let user = context.enter().unwrap();
    let mut idle = pin!(context.destroy(|_| ()));
    let mut task = Task::from_waker(Waker::noop());
    assert_eq!(idle.as_mut().poll(&mut task), Poll::Pending);
    assert_eq!(context.enter().unwrap_err(), Errno::EINVAL);
    drop(user);
    assert_eq!(idle.as_mut().poll(&mut task), Poll::Ready(()));
}

mod abi {
    use super::*;
    use std::sync::Mutex;
    use uaio_core::{
        ring::{self, Mapped, Ring},
        slots,
        sync::atomic::Ordering,
    };

    fn context(capacity: usize) -> BoxedContext<Arc<()>> {
        let ring = ring::Boxed::abi(1, capacity).unwrap();
        Context::new(ring, slots::Boxed::new(capacity).unwrap()).unwrap()
    }

    fn complete(context: &BoxedContext<Arc<()>>, n: u64, payload: &Arc<()>) -> Result<(), Errno> {
        let request = context.reserve_one()?.fill(iocb(n), Arc::clone(payload));
        request.claim().complete(n as i64, 0);
        Ok(())
    }

    #[test]
    fn a_foreign_reaper_makes_room_by_moving_the_head() {
        let context = context(3);
        let header = context.header().unwrap();
        let payload = Arc::new(());
        for round in 0..20 {
            for n in 0..3 {
                complete(&context, n, &payload).unwrap();
            }
            let full = complete(&context, 9, &payload);
            assert_eq!(full, Err(Errno::EAGAIN), "round {round}");
            let tail = header.tail().load(Ordering::Acquire);
            assert_eq!(u64::from(tail), (round + 1) * 3 % 4);
            header.head().store(tail, Ordering::Release);
        }
        complete(&context, 0, &payload).unwrap();
        // What a foreign reaper took was dropped when its room was reused.
        assert_eq!(Arc::strong_count(&payload), 2);
    }

    #[test]
    fn what_a_foreign_reaper_took_is_not_waited_for() {
        let context = Box::pin(context(3));
        let payload = Arc::new(());
        complete(&context, 1, &payload).unwrap();
        let header = context.header().unwrap();
        header.head().store(1, Ordering::Release);
        let mut task = Task::from_waker(Waker::noop());
        let mut wait = pin!(context.as_ref().wait(1).unwrap());
        assert_eq!(wait.as_mut().poll(&mut task), Poll::Pending);
        complete(&context, 2, &payload).unwrap();
        assert_eq!(wait.as_mut().poll(&mut task), Poll::Ready(Ok(())));
    }

    #[test]
    fn a_position_within_a_lap_is_refused() {
        let ring = ring::Boxed::abi(1, 3).unwrap();
        let slots = slots::Boxed::<()>::new(3).unwrap();
        assert_eq!(Context::new_at(ring, 6, slots).unwrap_err(), Errno::EINVAL);
        for capacity in [0, ring::MAX_EVENTS, usize::MAX] {
            assert_eq!(ring::Boxed::abi(1, capacity).unwrap_err(), Errno::EINVAL);
        }
        assert_eq!(ring::Boxed::native(0).unwrap_err(), Errno::EINVAL);
        assert_eq!(ring::Boxed::native(usize::MAX).unwrap_err(), Errno::EINVAL);
        assert_eq!(slots::Boxed::<()>::new(0).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn our_reaper_moves_the_public_head() {
        let context = context(3);
        let payload = Arc::new(());
        for n in 0..10 {
            complete(&context, n, &payload).unwrap();
            complete(&context, n + 100, &payload).unwrap();
            let done = reap(&context, 8);
            let data: Vec<_> = done.iter().map(|done| done.event.data).collect();
            assert_eq!(data, [n, n + 100]);
            let header = context.header().unwrap();
            let head = header.head().load(Ordering::Relaxed);
            assert_eq!(head, header.tail().load(Ordering::Relaxed));
        }
    }

    #[test]
    fn a_head_out_of_range_is_efault_and_harms_nobody() {
        let context = context(3);
        let header = context.header().unwrap();
        let payload = Arc::new(());
        complete(&context, 1, &payload).unwrap();
        let mut out = [const { None }; 4];
        for hostile in [4, 5, 1 << 31, u32::MAX, 2, 3] {
            header.head().store(hostile, Ordering::Release);
            assert_eq!(context.reap(&mut out), Err(Errno::EFAULT), "{hostile}");
            // Room that is left can be used, and no room is invented.
            let used = complete(&context, 2, &payload);
            assert!(matches!(used, Ok(()) | Err(Errno::EAGAIN)));
            header.head().store(0, Ordering::Release);
            while context.reap(&mut out).unwrap() > 0 {}
            let head = header.head().load(Ordering::Relaxed);
            for _ in 0..(4 - head) % 4 {
                complete(&context, 3, &payload).unwrap();
            }
            while context.reap(&mut out).unwrap() > 0 {}
            assert_eq!(header.head().load(Ordering::Relaxed), 0);
            complete(&context, 1, &payload).unwrap();
        }
    }

    #[test]
    fn no_scribbling_does_more_than_confuse_its_author() {
        // A seeded walk over hostile heads and tails among honest use.
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % n
        };
        let context = context(7);
        let header = context.header().unwrap();
        let payload = Arc::new(());
        let mut faults = 0;
        for _ in 0..20_000 {
            match random(6) {
                0 => header.head().store(random(12) as u32, Ordering::Release),
                1 => header
                    .tail()
                    .store(random(u64::MAX) as u32, Ordering::Release),
                2 => {
                    let mut out = [const { None }; 3];
                    match context.reap(&mut out) {
                        Ok(n) => assert!(out[..n].iter().all(Option::is_some)),
                        Err(error) => {
                            assert_eq!(error, Errno::EFAULT);
                            faults += 1;
                        }
                    }
                }
                _ => match complete(&context, 1, &payload) {
                    Ok(()) | Err(Errno::EAGAIN) => {}
                    Err(error) => panic!("{error}"),
                },
            }
            assert!(Arc::strong_count(&payload) <= 1 + 7);
        }
        assert!(faults > 100, "{faults}");
        drop(context);
        assert_eq!(Arc::strong_count(&payload), 1);
    }

    #[test]
    fn mapped_memory_has_linux_layout() {
        let memory = Box::leak(vec![0_u64; Mapped::bytes(4) / 8].into_boxed_slice());
        let start = std::ptr::NonNull::new(memory.as_mut_ptr()).unwrap();
        // SAFETY: leaked, large enough, and only read below through the ring's
        // atomics or while nobody writes.
        let mapped = unsafe { Mapped::new(start.cast(), 4, 77) }.unwrap();
        let ring = Ring::new(mapped);
        assert_eq!(ring.capacity(), 3);
        let event = Event {
            data: 1,
            obj: 2,
            res: -3,
            res2: 4,
        };
        assert_eq!(ring.push(&[event; 5]), 3);
        let words: Vec<u64> = (0..Mapped::bytes(4) / 8)
            .map(|i| {
                // SAFETY: within the memory.
                let word = unsafe { start.add(i) };
                // SAFETY: aligned, written, and nobody writes now.
                unsafe { word.read() }
            })
            .collect();
        let two = |low: u64, high: u64| high << 32 | low;
        assert_eq!(words[0], two(77, 4));
        assert_eq!(words[1], two(0, 3));
        assert_eq!(words[2], two(0xa10a_10a1, 1));
        assert_eq!(words[3], two(0, 32));
        assert_eq!(words[4..8], [1, 2, -3_i64 as u64, 4]);
        assert_eq!(ring.push(&[event]), 0);

        // SAFETY: refused before anything is written.
        let refused = unsafe { Mapped::new(start.cast(), 3, 0) };
        assert_eq!(refused.unwrap_err(), Errno::EINVAL);
        // SAFETY: as above; the address is odd.
        let odd = unsafe { Mapped::new(start.cast::<u8>().map_addr(|a| a | 4), 2, 0) };
        assert_eq!(odd.unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn a_discarded_payload_may_use_the_context() {
        // A payload's drop runs with no role held and no slot half given back.
        struct Payload(Arc<Mutex<Vec<Result<usize, Errno>>>>, &'static Shared);
        type Shared = std::sync::OnceLock<BoxedContext<Payload>>;
        impl Drop for Payload {
            fn drop(&mut self) {
                let mut out = [None];
                let reaped = self.1.get().unwrap().reap(&mut out);
                self.0.lock().unwrap().push(reaped);
            }
        }
        static CONTEXT: Shared = Shared::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let context = CONTEXT.get_or_init(|| {
            let ring = ring::Boxed::abi(1, 1).unwrap();
            Context::new(ring, slots::Boxed::new(1).unwrap()).unwrap()
        });
        let request = || context.reserve_one();
        let payload = || Payload(Arc::clone(&seen), &CONTEXT);
        request()
            .unwrap()
            .fill(iocb(0), payload())
            .claim()
            .complete(0, 0);
        context.header().unwrap().head().store(1, Ordering::Release);
        drop(request().unwrap());
        assert_eq!(*seen.lock().unwrap(), [Ok(0)]);
    }
}
