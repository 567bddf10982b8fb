//! What a caller sees of an asyncfd, one thread at a time.
#![cfg(all(feature = "std", not(any(loom, shuttle))))]

mod memory;

use std::{
    future::Future,
    pin::{Pin, pin},
    ptr::NonNull,
    sync::{Arc, Mutex},
    task::{Context as Task, Poll, Wake, Waker},
};

use memory::{Area, Shared};
use uaio_core::{
    Context, Errno,
    asyncfd::{Asyncfd, AsyncfdResult, Drained, Inline, MAX_RESULTS, Mapped, RINGS, Uring},
    poll::{Heads, Source, event},
    ring::{self, Event},
    slots::{self, Iocb},
    sync::atomic::{AtomicUsize, Ordering},
    target::To,
};

fn result(cookie: u64) -> AsyncfdResult {
    AsyncfdResult {
        cookie,
        obj: !cookie,
        res: cookie as i64 * 3,
        res2: -(cookie as i64),
    }
}

fn results(cookies: impl IntoIterator<Item = u64>) -> Vec<AsyncfdResult> {
    cookies.into_iter().map(result).collect()
}

fn pop<M: uaio_core::asyncfd::UringMemory>(asyncfd: &Asyncfd<M>) -> Vec<u64> {
    let mut out = vec![AsyncfdResult::default(); 100];
    let n = asyncfd.pop(&mut out).unwrap();
    out.truncate(n);
    out.into_iter()
        .map(|whole| {
            // What is delivered has its own number there.
            assert_eq!(
                (whole.res, whole.res2),
                (result(whole.cookie).res, result(whole.cookie).res2)
            );
            whole.cookie
        })
        .collect()
}

fn now<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Task::from_waker(Waker::noop()))
}

#[test]
fn impossible_rings_are_refused() {
    let refused = |ptr, size, start| {
        let uring = Uring::new(ptr, size, start);
        // SAFETY: the header is valid; results are only touched if there is no error.
        unsafe { Mapped::new(NonNull::from(&uring)) }
            .map(|_| ())
            .unwrap_err()
    };
    assert_eq!(refused(4096, 0, 0), Errno::EINVAL);
    assert_eq!(refused(4096, MAX_RESULTS as u32 + 1, 0), Errno::EINVAL);
    assert_eq!(refused(4096, u32::MAX, 0), Errno::EINVAL);
    assert_eq!(refused(4097, 1, 0), Errno::EINVAL);
    assert_eq!(refused(4100, 1, 0), Errno::EINVAL);
    assert_eq!(refused(0, 1, 0), Errno::EFAULT);
    assert_eq!(refused(u64::MAX - 31, 1, 0), Errno::EFAULT);
    assert_eq!(refused(u64::MAX - 63, 2, 0), Errno::EFAULT);

    let header = Uring::new(4096, 1, 0);
    // SAFETY: one byte on, within the header.
    let askew = unsafe { NonNull::from(&header).cast::<u8>().add(1) };
    // SAFETY: not aligned, so it is not looked at.
    let refused = unsafe { Mapped::new(askew.cast()) };
    assert_eq!(refused.map(|_| ()), Err(Errno::EINVAL));

    for (size, start) in [(1, 1), (4, 4), (4, u32::MAX)] {
        let area = Area::new(size, start);
        let made = Asyncfd::new(Shared::of(&area).unwrap());
        assert_eq!(made.map(|_| ()).unwrap_err(), Errno::EFAULT);
    }
    let one = Asyncfd::new(Shared::of(&Area::new(1, 0)).unwrap()).unwrap();
    let bad = Area::new(4, 0);
    bad.uring.ikernel().store(4, Ordering::Relaxed);
    let refused = one
        .replace(Shared::of(&bad).unwrap())
        .map(|_| ())
        .unwrap_err();
    assert_eq!(refused.error, Errno::EFAULT);
    // Given back, and nothing is changed.
    drop(refused.request);
    assert_eq!(Arc::strong_count(&bad), 1);
    assert_eq!(one.add_results(&results([1])), Ok(1));
    assert_eq!(pop(&one), [1]);
}

#[test]
fn a_cookie_of_zero_is_refused_with_all_that_came_with_it() {
    let asyncfd = Asyncfd::new(Inline::<4>::new()).unwrap();
    assert_eq!(asyncfd.add_results(&results([1, 0])), Err(Errno::EINVAL));
    assert!(pop(&asyncfd).is_empty());
    assert_eq!(asyncfd.add_results(&[]), Ok(0));
}

#[test]
fn what_does_not_fit_is_left() {
    for size in [1, 2, 3, 5, 8] {
        for start in 0..size {
            let area = Area::new(size, start);
            let asyncfd = Asyncfd::new(Shared::of(&area).unwrap()).unwrap();
            let n = size as usize;
            let mut next = 1;
            for lap in 0..5 {
                let some = results(next..next + 7);
                assert_eq!(
                    asyncfd.add_results(&some),
                    Ok(n.min(7)),
                    "{size} {start} {lap}"
                );
                assert_eq!(asyncfd.add_results(&some[..1]), Ok(usize::from(n > 7)));
                // Equal indices, and readable all the same.
                let (iuser, ikernel) = area.indices();
                assert_eq!(iuser, ikernel);
                assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
                let popped = pop(&asyncfd);
                assert_eq!(popped.len(), n);
                assert_eq!(
                    popped[..n.min(7)],
                    (next..).take(n.min(7)).collect::<Vec<_>>()
                );
                next += 7;
                assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
            }
        }
    }
}

#[test]
fn foreign_code_reads_the_ring_itself() {
    let area = Area::new(3, 0);
    let asyncfd = Asyncfd::new(Shared::of(&area).unwrap()).unwrap();
    let mut expected = 1;
    for cookie in 1..20 {
        assert_eq!(asyncfd.add_results(&results([cookie])), Ok(1));
        if cookie % 3 != 0 {
            continue;
        }
        // By the words alone, as the documentation says.
        loop {
            let iuser = area.uring.iuser().load(Ordering::Relaxed) as usize;
            let [cookie, obj, res, res2] = area.result(iuser);
            let taken = AsyncfdResult {
                cookie: cookie.load(Ordering::Acquire),
                obj: obj.load(Ordering::Relaxed),
                res: res.load(Ordering::Relaxed) as i64,
                res2: res2.load(Ordering::Relaxed) as i64,
            };
            if taken.cookie == 0 {
                break;
            }
            cookie.store(0, Ordering::Release);
            area.uring
                .iuser()
                .store((iuser as u32 + 1) % 3, Ordering::Release);
            assert_eq!(taken, result(expected));
            expected += 1;
        }
        assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    }
    assert_eq!(expected, 19);
}

#[test]
fn a_sleeper_is_called_for_the_next_result() {
    let asyncfd = Asyncfd::new(Inline::<4>::new()).unwrap();
    // New: to be drained once.
    assert!(asyncfd.is_readable());
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    assert!(!asyncfd.is_readable());
    let mut readable = pin!(asyncfd.readable());
    assert_eq!(now(readable.as_mut()), Poll::Pending);
    assert_eq!(asyncfd.add_results(&results([1, 2])), Ok(2));
    assert_eq!(now(readable.as_mut()), Poll::Ready(()));
    let mut out = [AsyncfdResult::default()];
    assert_eq!(asyncfd.pop(&mut out), Ok(1));
    assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
    assert!(asyncfd.is_readable());
    assert_eq!(pop(&asyncfd), [2]);
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
}

#[test]
fn rings_are_replaced_and_read_in_their_order() {
    let areas: Vec<_> = (1..=6).map(|size| Area::new(size, size - 1)).collect();
    let memory = |n: usize| Shared::of(&areas[n]).unwrap();
    let asyncfd = Asyncfd::new(memory(0)).unwrap();
    for n in 1..RINGS {
        assert_eq!(asyncfd.add_results(&results([n as u64; 9])), Ok(n));
        let replaced = asyncfd.replace(memory(n)).unwrap();
        assert_eq!(now(pin!(replaced)), Poll::Ready(()));
    }
    assert_eq!(asyncfd.add_results(&results([4])), Ok(1));
    // As many as there can be.
    let refused = asyncfd.replace(memory(4)).map(|_| ()).unwrap_err();
    assert_eq!(refused.error, Errno::EBUSY);
    assert_eq!(Arc::strong_count(&areas[0]), 2);

    assert_eq!(pop(&asyncfd), [1, 2, 2, 3, 3, 3, 4]);
    // Those that were read are given back, with their indices where they belong.
    for (area, n) in areas.iter().zip([1, 1, 1, 2, 2, 1]) {
        assert_eq!(Arc::strong_count(area), n);
    }
    assert_eq!(areas[1].indices(), (1, 1));
    drop(asyncfd.replace(refused.request).unwrap());
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    assert_eq!(asyncfd.add_results(&results([5])), Ok(1));
    drop(asyncfd);
    assert!(areas.iter().all(|area| Arc::strong_count(area) == 1));

    // What was not read is still there for the next.
    let next = Asyncfd::new(memory(4)).unwrap();
    assert_eq!(pop(&next), [5]);
}

#[test]
fn what_is_closed_takes_nothing_more() {
    let asyncfd = Asyncfd::new(Inline::<4>::new()).unwrap();
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    assert_eq!(asyncfd.add_results(&results([1])), Ok(1));
    for _ in 0..2 {
        assert_eq!(now(pin!(asyncfd.close())), Poll::Ready(()));
    }
    assert!(asyncfd.is_closed());
    assert_eq!(asyncfd.add_results(&results([2])), Err(Errno::EBADFD));
    let refused = asyncfd.replace(Inline::new()).map(|_| ()).unwrap_err();
    assert_eq!(refused.error, Errno::EBADFD);
    assert_eq!(pop(&asyncfd), [1]);
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
}

#[test]
fn an_index_out_of_range_is_told_and_can_be_mended() {
    let area = Area::new(2, 0);
    let asyncfd = Asyncfd::new(Shared::of(&area).unwrap()).unwrap();
    assert_eq!(asyncfd.add_results(&results([1])), Ok(1));
    for bad in [2, 3, u32::MAX] {
        area.uring.iuser().store(bad, Ordering::Relaxed);
        let mut out = [AsyncfdResult::default()];
        assert_eq!(asyncfd.pop(&mut out), Err(Errno::EFAULT));
        assert_eq!(asyncfd.drain(), Err(Errno::EFAULT));
        assert!(asyncfd.is_readable());
    }
    // The address and the size were read once.
    for word in [0, 1, 3] {
        area.word(word).store(u32::MAX, Ordering::Relaxed);
    }
    assert_eq!(asyncfd.add_results(&results([2])), Ok(1));
    area.uring.iuser().store(0, Ordering::Relaxed);
    assert_eq!(pop(&asyncfd), [1, 2]);
}

#[test]
fn it_can_be_polled() {
    type Polled = Context<ring::Boxed, slots::Boxed<Arc<Asyncfd<Inline<2>>>, Heads>>;
    let asyncfd = Arc::new(Asyncfd::new(Inline::new()).unwrap());
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    let polled = Polled::new(
        ring::Boxed::native(4).unwrap(),
        slots::Boxed::new(4).unwrap(),
    );
    let context = Box::pin(polled.unwrap());
    let poll = |events| {
        let request = context
            .reserve_one()
            .unwrap()
            .fill(Iocb::default(), Arc::clone(&asyncfd));
        context.as_ref().poll(request, events).map(|_| ()).unwrap();
    };
    let reaped = || {
        let mut out = [None];
        let n = context.reap(&mut out).unwrap();
        (n > 0).then(|| out[0].take().unwrap().event.res as u16)
    };
    poll(event::IN);
    assert_eq!(reaped(), None);
    assert_eq!(asyncfd.add_results(&results([1])), Ok(1));
    assert_eq!(reaped(), Some(event::IN));
    poll(event::PRI);
    drop(asyncfd.close());
    assert_eq!(reaped(), Some(event::HUP));
}

type Delivering = Context<ring::Boxed, slots::Boxed<String, (), To<Arc<Asyncfd<Inline<1>>>>>>;

fn delivering() -> Pin<Box<Delivering>> {
    let context = Context::new(
        ring::Boxed::native(4).unwrap(),
        slots::Boxed::new(4).unwrap(),
    );
    Box::pin(context.unwrap())
}

fn submit(context: &Pin<Box<Delivering>>, asyncfd: &Arc<Asyncfd<Inline<1>>>, data: u64) {
    let iocb = Iocb { data, obj: 5 };
    let request = context.reserve_one().unwrap().fill(iocb, data.to_string());
    let request = context
        .as_ref()
        .deliver_to(request, Arc::clone(asyncfd))
        .unwrap();
    let whole = result(data);
    request.claim().complete(whole.res, whole.res2);
}

#[test]
fn what_is_kept_back_comes_when_there_is_room() {
    let asyncfd = Arc::new(Asyncfd::new(Inline::new()).unwrap());
    let other = Arc::new(Asyncfd::new(Inline::new()).unwrap());
    let context = delivering();
    for data in 1..=4 {
        submit(&context, &asyncfd, data);
    }
    // It holds its slots.
    assert_eq!(
        context.reserve_one().map(|_| ()).unwrap_err(),
        Errno::EAGAIN
    );
    let mut out = [AsyncfdResult::default(); 4];
    for data in 1..=4 {
        assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
        assert_eq!(asyncfd.pop(&mut out), Ok(1));
        assert_eq!((out[0].cookie, out[0].res), (data, result(data).res));
        // A number from nowhere collects nothing.
        for wrong in [out[0].obj ^ 1 << 24, u64::MAX, out[0].obj | 0xff_ffff] {
            assert!(context.collect(&asyncfd, wrong).is_none());
        }
        // And one of another's nothing there.
        assert!(context.collect(&other, out[0].obj).is_none());
        let (payload, handle) = context.collect(&asyncfd, out[0].obj).unwrap();
        assert_eq!((payload, handle.number()), (data.to_string(), out[0].obj));
        assert!(context.collect(&asyncfd, out[0].obj).is_none());
    }
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    assert_eq!(context.reserve(4).unwrap().count(), 4);
    assert_eq!(Arc::strong_count(&asyncfd), 1);

    // The context's own ring takes those that name nothing else.
    let request = context
        .reserve_one()
        .unwrap()
        .fill(Iocb::default(), String::new());
    request.claim().complete(5, 0);
    assert_eq!(context.reap(&mut [None]), Ok(1));
}

#[test]
fn what_is_kept_back_goes_to_the_next_ring() {
    let asyncfd = Arc::new(Asyncfd::new(Inline::new()).unwrap());
    let context = delivering();
    for data in 1..=3 {
        submit(&context, &asyncfd, data);
    }
    assert_eq!(
        now(pin!(asyncfd.replace(Inline::new()).unwrap())),
        Poll::Ready(())
    );
    assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
    assert_eq!(pop(&asyncfd), [1, 2]);
    assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
    assert_eq!(pop(&asyncfd), [3]);
}

#[test]
fn what_a_closed_target_kept_back_comes_out_of_the_context() {
    for close in [true, false] {
        let asyncfd = Arc::new(Asyncfd::new(Inline::new()).unwrap());
        let context = delivering();
        for data in 1..=3 {
            submit(&context, &asyncfd, data);
        }
        let mut expected = vec![2, 3];
        if close {
            assert_eq!(now(pin!(asyncfd.close())), Poll::Ready(()));
            submit(&context, &asyncfd, 4);
            expected.push(4);
        }
        drop(asyncfd);
        let mut out = [const { None }; 5];
        assert_eq!(context.reap(&mut out), Ok(expected.len()));
        for (done, data) in out.into_iter().flatten().zip(expected) {
            let whole = result(data);
            let event = Event {
                data,
                obj: 5,
                res: whole.res,
                res2: whole.res2,
            };
            assert_eq!((done.event, done.payload), (event, data.to_string()));
        }
        // The first is in the ring that is gone, and holds its slot.
        assert_eq!(context.reserve(4).unwrap().count(), 3);
    }
}

#[test]
fn a_context_that_is_dropped_takes_what_is_only_in_its_slots_along() {
    let asyncfd = Arc::new(Asyncfd::new(Inline::new()).unwrap());
    let context = delivering();
    for data in 1..=2 {
        submit(&context, &asyncfd, data);
    }
    // Armed: its slot has the only share that will be left.
    let request = context
        .reserve_one()
        .unwrap()
        .fill(Iocb { data: 3, obj: 0 }, String::new());
    let request = context
        .as_ref()
        .deliver_to(request, Arc::clone(&asyncfd))
        .unwrap();
    request.arm();
    drop(asyncfd);
    drop(context);
}

#[test]
fn impossible_targets_are_refused() {
    let asyncfd = Arc::new(Asyncfd::new(Inline::new()).unwrap());
    let (context, other) = (delivering(), delivering());
    let fill = |context: &Pin<Box<Delivering>>, data| {
        let iocb = Iocb { data, obj: 0 };
        let request = context
            .reserve_one()
            .unwrap()
            .fill(iocb, "kept".to_string());
        let refused = other.as_ref().deliver_to(request, Arc::clone(&asyncfd));
        refused
            .map(|_| ())
            .map_err(|refused| (refused.error, refused.request.refuse()))
    };
    let kept = Some("kept".to_string());
    assert_eq!(fill(&context, 1), Err((Errno::EINVAL, kept.clone())));
    assert_eq!(fill(&other, 0), Err((Errno::EINVAL, kept)));
    assert_eq!(Arc::strong_count(&asyncfd), 1);
    // Refused before it was submitted: its target is forgotten.
    let request = context
        .reserve_one()
        .unwrap()
        .fill(Iocb { data: 1, obj: 0 }, String::new());
    let request = context
        .as_ref()
        .deliver_to(request, Arc::clone(&asyncfd))
        .unwrap();
    assert_eq!(Arc::strong_count(&asyncfd), 2);
    drop(request);
    assert_eq!(Arc::strong_count(&asyncfd), 1);
}

/// Who waits and is forgotten borrows nothing any more: it is not asked.
#[test]
fn a_forgotten_waiter_is_not_asked() {
    // Or it would be a leak.
    static FORGOTTEN: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let mut task = Task::from_waker(Waker::noop());
    let asyncfd = Box::new(Asyncfd::new(Inline::<2>::new()).unwrap());
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    let mut readable = Box::pin(asyncfd.readable());
    assert_eq!(readable.as_mut().poll(&mut task), Poll::Pending);
    // SAFETY: it is not moved, nor ever dropped.
    let readable = Box::into_raw(unsafe { Pin::into_inner_unchecked(readable) });
    FORGOTTEN.lock().unwrap().push(readable.addr());
    let moved = Box::new(*asyncfd);
    moved.heads(&mut |queue| {
        queue.wake(0);
    });
    assert!(!moved.is_readable());
}

/// A queue that somebody has closed wakes nobody; who waits there goes on looking.
#[test]
fn who_waits_at_a_closed_queue_looks_again() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&count));
    let mut task = Task::from_waker(&waker);
    let asyncfd = Asyncfd::new(Inline::<2>::new()).unwrap();
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    asyncfd.heads(&mut |queue| queue.close());
    let mut readable = pin!(asyncfd.readable());
    assert_eq!(readable.as_mut().poll(&mut task), Poll::Pending);
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert_eq!(asyncfd.add_results(&[result(1)]), Ok(1));
    assert_eq!(readable.as_mut().poll(&mut task), Poll::Ready(()));
}
