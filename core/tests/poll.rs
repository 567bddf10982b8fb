//! What a caller sees of poll requests, and what they cost.
#![cfg(all(feature = "alloc", not(any(loom, shuttle))))]

use std::{
    mem::size_of,
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Wake, Waker},
};

use uaio_core::{
    Context, Errno,
    context::{Cancelled, Handle},
    poll::{
        Heads, Refused, Source,
        event::{ERR, HUP, IN, OUT, RDHUP},
    },
    ring::{self, Event},
    slots::{self, Iocb, Slot},
    sync::atomic::{AtomicU32, Ordering},
    wait::{Enqueued, Left, WaitQueue, Waiter},
};

/// Two queues, of which the first `heads` tell of changes; above two, the last one
/// again and again.
#[derive(Debug, Default)]
struct Device {
    mask: AtomicU32,
    queues: [WaitQueue; 2],
    heads: usize,
    looks: AtomicU32,
}

impl Device {
    fn new(heads: usize) -> Arc<Self> {
        Arc::new(Self {
            heads,
            ..Self::default()
        })
    }

    fn fire(&self, events: u16) {
        self.mask.fetch_or(events.into(), Ordering::Relaxed);
        self.queues[0].wake(events);
    }
}

// SAFETY: the queues are in the device.
unsafe impl Source for Device {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        for i in 0..self.heads {
            visit(&self.queues[i.min(1)]);
        }
    }
    fn mask(&self) -> u16 {
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.mask.load(Ordering::Relaxed) as u16
    }
}

type Polls = Context<ring::Boxed, slots::Boxed<Arc<Device>, Heads>>;

fn context(capacity: usize) -> Pin<Box<Polls>> {
    let ring = ring::Boxed::native(capacity).expect("memory");
    let slots = slots::Boxed::new(capacity).expect("memory");
    Box::pin(Context::new(ring, slots).expect("they fit"))
}

fn poll(
    context: &Pin<impl Deref<Target = Polls>>,
    device: &Arc<Device>,
    events: u16,
) -> Result<Handle, Errno> {
    let reserved = context.reserve_one()?;
    let request = reserved.fill(Iocb { data: 7, obj: 0 }, Arc::clone(device));
    context
        .as_ref()
        .poll(request, events)
        .map_err(|Refused { error, request }| {
            let payload = request.refuse();
            assert!(payload.is_some_and(|payload| Arc::ptr_eq(&payload, device)));
            error
        })
}

fn reap(context: &Polls) -> Vec<Event> {
    let mut out: Vec<_> = (0..context.capacity()).map(|_| None).collect();
    let n = context.reap(&mut out).expect("a Native ring");
    out.into_iter()
        .take(n)
        .flatten()
        .map(|done| done.event)
        .collect()
}

fn results(context: &Polls) -> Vec<i64> {
    reap(context).into_iter().map(|event| event.res).collect()
}

#[test]
fn it_completes_with_what_it_waits_for() {
    let (context, device) = (context(4), Device::new(1));
    poll(&context, &device, IN).expect("accepted");
    device.fire(OUT);
    assert_eq!(results(&context), []);
    device.fire(IN | RDHUP);
    assert_eq!(results(&context), [IN.into()]);
    // It is still readable.
    poll(&context, &device, IN | OUT).expect("accepted");
    assert_eq!(results(&context), [(IN | OUT).into()]);
    assert_eq!(Arc::strong_count(&device), 1, "payloads left over");
}

#[test]
fn errors_and_hang_ups_are_always_reported() {
    for event in [ERR, HUP] {
        let (context, device) = (context(2), Device::new(1));
        poll(&context, &device, 0).expect("accepted");
        device.fire(IN);
        assert_eq!(results(&context), []);
        device.fire(event);
        assert_eq!(results(&context), [event.into()]);
    }
}

#[test]
fn a_wake_that_does_not_say_is_looked_at() {
    let (context, device) = (context(2), Device::new(1));
    poll(&context, &device, IN).expect("accepted");
    device.queues[0].wake(0);
    device.queues[0].wake(0);
    assert_eq!(device.looks.load(Ordering::Relaxed), 3);
    assert_eq!(results(&context), []);
    device.mask.store((IN | OUT).into(), Ordering::Relaxed);
    device.queues[0].wake(0);
    assert_eq!(results(&context), [IN.into()]);
}

#[test]
fn what_cannot_wait_is_refused_with_nothing_armed() {
    let (context, none, three) = (context(2), Device::new(0), Device::new(3));
    assert_eq!(poll(&context, &none, IN), Err(Errno::EINVAL));
    assert_eq!(poll(&context, &three, IN), Err(Errno::EOVERFLOW));
    three.fire(IN);
    assert_eq!(results(&context), []);
    // Without a head, and ready.
    none.mask.store(IN.into(), Ordering::Relaxed);
    poll(&context, &none, IN).expect("accepted");
    assert_eq!(results(&context), [IN.into()]);
    // Two, and it may be the same one.
    let twice = Device::new(2);
    poll(&context, &twice, IN).expect("accepted");
    twice.queues[1].wake(IN);
    assert_eq!(results(&context), [IN.into()]);
    // Another context's.
    let other = self::context(2);
    let reserved = other.reserve_one().expect("room");
    let request = reserved.fill(Iocb::default(), twice);
    let refused = context.as_ref().poll(request, IN).expect_err("not its own");
    assert_eq!(refused.error, Errno::EINVAL);
}

#[test]
fn what_was_accepted_before_and_cannot_wait_says_so_in_its_completion() {
    let (context, other) = (context(2), context(2));
    let accept = |on: &Pin<Box<Polls>>, device: &Arc<Device>| {
        let reserved = on.reserve_one().expect("room");
        let left = reserved
            .fill(Iocb::default(), Arc::clone(device))
            .early()
            .leave();
        // SAFETY: left just now, and nobody else comes back to it.
        let early = unsafe { on.early(left) };
        context.as_ref().poll_early(early, IN);
        left
    };
    let result = |heads, mask: u16| {
        let device = Device::new(heads);
        device.mask.store(mask.into(), Ordering::Relaxed);
        accept(&context, &device);
        results(&context)
    };
    assert_eq!(result(3, 0), [Errno::EOVERFLOW.as_result()]);
    assert_eq!(result(0, 0), [Errno::EINVAL.as_result()]);
    assert_eq!(result(0, IN), [IN.into()]);
    assert_eq!(result(1, IN), [IN.into()]);
    assert_eq!(result(1, 0), []);
    accept(&other, &Device::new(1));
    assert_eq!(results(&other), [Errno::EINVAL.as_result()]);
    // Cancelled before somebody comes back to it.
    let device = Device::new(1);
    let reserved = other.reserve_one().expect("room");
    let early = reserved.fill(Iocb::default(), device).early();
    assert!(!early.cancel_requested());
    assert_eq!(other.cancel(early.handle()), Ok(Cancelled::Asked));
    assert!(early.cancel_requested());
    other.as_ref().poll_early(early, IN);
    assert_eq!(results(&other), [Errno::ECANCELED.as_result()]);
}

#[test]
fn cancel_and_expiry_end_it() {
    let (context, device) = (context(2), Device::new(1));
    let handle = poll(&context, &device, IN).expect("accepted");
    assert_eq!(context.cancel(handle), Ok(Cancelled::Done));
    assert_eq!(results(&context), [Errno::ECANCELED.as_result()]);
    let handle = poll(&context, &device, IN).expect("accepted");
    assert_eq!(context.expire(handle), Ok(Cancelled::Done));
    assert_eq!(context.cancel(handle), Err(Errno::EALREADY));
    assert_eq!(results(&context), [Errno::ETIME.as_result()]);
    assert_eq!(context.expire(handle), Err(Errno::ENOENT));
    device.fire(IN);
    assert_eq!(results(&context), []);
}

#[test]
fn closing_a_head_tells_who_polls() {
    let (context, device) = (context(4), Device::new(2));
    for _ in 0..3 {
        poll(&context, &device, IN).expect("accepted");
    }
    device.queues[1].close();
    assert!(device.queues[1].is_closed());
    assert_eq!(results(&context), [i64::from(ERR | HUP); 3]);
    poll(&context, &device, IN).expect("accepted");
    assert_eq!(results(&context), [i64::from(ERR | HUP)]);
}

#[test]
fn a_context_can_be_dropped_with_requests_armed() {
    let device = Device::new(2);
    let context = context(100);
    for _ in 0..100 {
        poll(&context, &device, IN).expect("accepted");
    }
    assert_eq!(poll(&context, &device, IN), Err(Errno::EAGAIN));
    drop(context);
    assert_eq!(Arc::strong_count(&device), 1, "payloads left over");
    device.fire(IN);
}

#[test]
fn a_context_is_a_source() {
    type Watches = Context<ring::Boxed, slots::Boxed<Pin<Arc<Polls>>, Heads<1>>>;
    let ring = || ring::Boxed::native(2).expect("memory");
    let inner = Context::new(ring(), slots::Boxed::new(2).expect("memory"));
    let (inner, device) = (Arc::pin(inner.expect("they fit")), Device::new(1));
    let outer = Watches::new(ring(), slots::Boxed::new(2).expect("memory"));
    let outer = Box::pin(outer.expect("they fit"));
    let reserved = outer.reserve_one().expect("room");
    let request = reserved.fill(Iocb::default(), Pin::clone(&inner));
    outer.as_ref().poll(request, IN).expect("accepted");
    poll(&inner, &device, IN).expect("accepted");
    let mut out = [None];
    assert_eq!(outer.reap(&mut out), Ok(0));
    device.fire(IN);
    assert_eq!(outer.reap(&mut out), Ok(1));
    assert_eq!(out[0].take().expect("reaped").event.res, i64::from(IN));
}

/// One of many wakes one, looks at no other, and each costs little.
#[test]
fn ten_thousand_armed_at_once() {
    const MANY: usize = 10_000;
    // The slots, and the ring's places and marks, of which there is a power of two.
    let places = MANY.next_power_of_two() * (size_of::<Event>() + size_of::<u64>());
    let cost = size_of::<Slot<Arc<Device>, Heads>>() + places.div_ceil(MANY);
    assert!(cost <= 256, "{cost} bytes each");
    let context = context(MANY);
    let devices: Vec<_> = (0..MANY).map(|_| Device::new(2)).collect();
    for device in &devices {
        poll(&context, device, IN).expect("accepted");
    }
    let looks = || -> u32 {
        let looks = devices
            .iter()
            .map(|device| device.looks.load(Ordering::Relaxed));
        looks.sum()
    };
    assert_eq!(looks(), MANY as u32);
    devices[MANY / 2].fire(IN);
    assert_eq!(results(&context), [IN.into()]);
    assert_eq!(looks(), MANY as u32, "others were looked at");
}

/// Takes one of what is in a bucket.
#[derive(Debug)]
struct Take(Arc<Device>);

// SAFETY: the queues are in the device.
unsafe impl Source for Take {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        self.0.heads(visit);
    }
    fn mask(&self) -> u16 {
        unreachable!("it is tried");
    }
    fn attempt(&mut self) -> Option<i64> {
        self.0.looks.fetch_add(1, Ordering::Relaxed);
        let mask = self.0.mask.fetch_and(!u32::from(IN), Ordering::Relaxed);
        (mask & u32::from(IN) != 0).then_some(1)
    }
}

/// In a box: a box passes the attempt on.
type Takes = Context<ring::Boxed, slots::Boxed<Box<Take>, Heads>>;

fn takes(capacity: usize) -> Pin<Box<Takes>> {
    let ring = ring::Boxed::native(capacity).expect("memory");
    let slots = slots::Boxed::new(capacity).expect("memory");
    Box::pin(Context::new(ring, slots).expect("they fit"))
}

fn take(context: &Pin<Box<Takes>>, device: &Arc<Device>) -> Result<Handle, Errno> {
    let reserved = context.reserve_one()?;
    let request = reserved.fill(Iocb::default(), Box::new(Take(Arc::clone(device))));
    let accepted = context.as_ref().attempt(request, IN);
    accepted.map_err(|Refused { error, .. }| error)
}

fn taken(context: &Takes) -> Vec<i64> {
    let mut out: Vec<_> = (0..context.capacity()).map(|_| None).collect();
    context.reap(&mut out).expect("a Native ring");
    out.into_iter()
        .flatten()
        .map(|done| done.event.res)
        .collect()
}

#[test]
fn an_attempt_is_made_until_it_does_not_block() {
    let (context, device) = (takes(2), Device::new(2));
    take(&context, &device).expect("accepted");
    assert_eq!(taken(&context), []);
    // No reason to try; and two that bring nothing.
    device.fire(OUT);
    device.queues[1].wake(IN);
    device.queues[0].wake(0);
    assert_eq!(taken(&context), []);
    assert_eq!(device.looks.load(Ordering::Relaxed), 3);
    device.fire(IN);
    assert_eq!(taken(&context), [1]);
    // At once.
    device.mask.fetch_or(IN.into(), Ordering::Relaxed);
    take(&context, &device).expect("accepted");
    assert_eq!(taken(&context), [1]);
}

#[test]
fn an_attempt_that_is_ended_has_taken_nothing() {
    let (context, device) = (takes(2), Device::new(1));
    let cancelled = take(&context, &device).expect("accepted");
    let expired = take(&context, &device).expect("accepted");
    assert_eq!(context.cancel(cancelled), Ok(Cancelled::Done));
    assert_eq!(context.expire(expired), Ok(Cancelled::Done));
    device.fire(IN);
    let ends = [Errno::ECANCELED.as_result(), Errno::ETIME.as_result()];
    assert_eq!(taken(&context), ends);
    assert_eq!(device.mask.load(Ordering::Relaxed), u32::from(IN));
}

#[test]
fn an_attempt_without_a_head_is_made_once() {
    let (context, device) = (takes(2), Device::new(0));
    assert_eq!(take(&context, &device), Err(Errno::EINVAL));
    device.mask.store(IN.into(), Ordering::Relaxed);
    take(&context, &device).expect("accepted");
    assert_eq!(taken(&context), [1]);
}

#[test]
fn an_attempt_whose_head_is_closed_ends() {
    let (context, device) = (takes(4), Device::new(1));
    take(&context, &device).expect("accepted");
    device.queues[0].close();
    take(&context, &device).expect("accepted");
    assert_eq!(taken(&context), [Errno::EBADF.as_result(); 2]);
}

#[test]
fn a_payload_that_cannot_be_tried_says_so() {
    let (context, device) = (context(1), Device::new(1));
    let reserved = context.reserve_one().expect("room");
    let request = reserved.fill(Iocb::default(), device);
    let accepted = context.as_ref().attempt(request, IN);
    accepted.expect("accepted");
    assert_eq!(results(&context), [Errno::EOPNOTSUPP.as_result()]);
}

/// Of the first of many who are woken, the waker takes the event, and waits for the
/// next.
#[test]
fn a_wake_is_not_for_who_comes_after_it() {
    for before in [1, 7, 8, 9, 100] {
        let (context, device) = (Arc::new(context(1)), Device::new(1));
        let queue = &device.queues[0];
        let next = Arc::new(Next {
            context: Arc::clone(&context),
            device: Arc::clone(&device),
        });
        let waker = Waker::from(Arc::clone(&next));
        let waiters: Vec<_> = (0..before).map(|_| Box::pin(Waiter::new())).collect();
        let fired = |mask: u16| mask & IN != 0;
        for waiter in &waiters {
            // SAFETY: used with this queue only, and left below.
            let enqueued = unsafe { queue.enqueue(waiter.as_ref(), &waker, &fired) };
            assert_eq!(enqueued, Ok(Enqueued::Waiting));
        }
        device.fire(IN);
        assert_eq!(results(&context), [], "{before} before");
        device.fire(IN);
        assert_eq!(results(&context), [i64::from(IN)], "{before} before");
        for waiter in &waiters {
            // SAFETY: as above.
            let left = unsafe { queue.leave(waiter.as_ref()) };
            assert_eq!(left, Left::Woken);
        }
    }
}

struct Next {
    context: Arc<Pin<Box<Polls>>>,
    device: Arc<Device>,
}

impl Wake for Next {
    fn wake(self: Arc<Self>) {
        if self.device.mask.swap(0, Ordering::Relaxed) != 0 {
            poll(&self.context, &self.device, IN).expect("room");
        }
    }
}
