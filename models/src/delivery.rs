//! One slot, whose lives are each delivered as was said last.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context as Task, Poll, Waker},
};

use uaio_core::{
    Context, Errno,
    asyncfd::{Asyncfd, AsyncfdResult},
    context::{Completion, Request},
    delivery::All,
    notify::Notification,
    operation::Operation,
    request::Generation,
    ring,
    slots::{self, Iocb},
    sync::{Track, hint},
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, NoLoss, Order, Reclamation, Wrap},
    block_on,
    harness::{
        Count, Memory,
        lent::{Lent, Page},
    },
    reached,
};

type Target = Asyncfd<Lent<1>>;
type Delivers = Context<ring::Inline<2>, Slots>;
type Ring = ring::Inline<2>;
type SlotsOf<const N: usize> = slots::Inline<Track<u64>, N, 1, (), All<Arc<Target>, Tell>>;
type Slots = SlotsOf<1>;
type Awaited = Pin<Box<Operation<Pin<&'static Delivers>>>>;

const DONE: i64 = 512;

/// How a completion is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Ring,
    Target,
    Notification,
    Future,
}
use By::{Future as ByFuture, Notification as ByNotification, Ring as ByRing, Target as ByTarget};

/// loom fails a model that never drops it.
struct Tell {
    told: Arc<Count>,
    _track: Track<()>,
}

impl Notification for Tell {
    fn notify(self) -> Result<(), Self> {
        self.told.add(1);
        Ok(())
    }
}

/// A context next to the wrap of generations, whose first request is on its way.
struct World {
    first: By,
    target: Arc<Target>,
    context: Memory<Delivers>,
    told: Arc<Count>,
    /// Of a request that is one.
    operation: Mutex<Option<Awaited>>,
    /// Whether the first one's completion came.
    came: Mutex<bool>,
}

impl World {
    fn new(first: By) -> Self {
        let target = Asyncfd::new_at(Lent::new(&Page::new()), (1 << 40) - 1, (1 << 61) - 1);
        let slots = Slots::new(Generation::MAX);
        let context = Context::new_at(ring::Inline::new(), u64::MAX, slots);
        Self {
            first,
            target: Arc::new(target.expect("a ring")),
            context: Memory::new(context.expect("they fit")),
            told: Arc::default(),
            operation: Mutex::default(),
            came: Mutex::default(),
        }
    }

    fn context(&self) -> Pin<&'static Delivers> {
        // SAFETY: used by roles and final checks, and given back by them.
        Pin::static_ref(unsafe { self.context.get() })
    }

    fn tell(&self) -> Tell {
        Tell {
            told: Arc::clone(&self.told),
            _track: Track::new(()),
        }
    }

    /// A request of which other things were said before.
    fn request(&self, value: u64, by: By) -> Result<Request<'static, Ring, Slots>, Errno> {
        let context = self.context();
        let reserved = context.get_ref().reserve_one()?;
        let iocb = Iocb {
            data: value,
            obj: 0,
        };
        let mut request = reserved.fill(iocb, Track::new(value));
        let to_target = |request| {
            let named = context.deliver_to(request, Arc::clone(&self.target));
            named.map_err(|refused| refused.error)
        };
        let to_tell = |request| {
            let noted = context.get_ref().notify_by(request, self.tell());
            noted.map_err(|refused| refused.error)
        };
        if by == ByTarget || by == ByFuture {
            request = to_tell(request)?;
        }
        if by != ByRing {
            request = to_target(request)?;
        }
        if by == ByNotification {
            request = to_tell(request)?;
        }
        if by == ByFuture {
            let awaited = Operation::of(context, request).map_err(|refused| refused.error);
            let (same, operation) = awaited.expect("its own");
            // Nothing else can be said of it then.
            let Err(refused) = context.get_ref().notify_by(same, self.tell()) else {
                panic!("another delivery was taken");
            };
            assert_eq!(refused.error, Errno::EINVAL);
            request = refused.request;
            *self.operation.lock().unwrap() = Some(Box::pin(operation));
        }
        Ok(request)
    }

    /// Takes the completion out, if it is there; nothing of it is anywhere else.
    fn take(&self, value: u64, by: By) -> bool {
        let mut events: [Option<Completion<Track<u64>>>; 2] = [None, None];
        let reaped = self.context().reap(&mut events).expect("a Native ring");
        let event = events[0].take();
        assert!(reaped <= 1, "two events");
        if by == ByTarget || by == ByFuture {
            assert_eq!(reaped, 0, "an event");
        }
        let mut results = [AsyncfdResult::default()];
        let popped = loop {
            match self.target.pop(&mut results) {
                Err(Errno::EBUSY) => hint::spin_loop(),
                popped => break popped.expect("an honest index"),
            }
        };
        if by != ByTarget {
            assert_eq!(popped, 0, "a result");
        }
        let payload = match by {
            ByRing | ByNotification => {
                let Some(done) = event else {
                    return false;
                };
                assert_eq!((done.event.data, done.event.res), (value, DONE));
                done.payload
            }
            ByTarget => {
                if popped == 0 {
                    return false;
                }
                assert_eq!((results[0].cookie, results[0].res), (value, DONE));
                let collected = self.context().collect(&self.target, results[0].obj);
                collected.expect("it is to be collected").0
            }
            ByFuture => {
                let mut place = self.operation.lock().unwrap();
                let operation = place.as_mut().expect("it is one");
                let mut task = Task::from_waker(Waker::noop());
                let Poll::Ready(done) = operation.as_mut().poll(&mut task) else {
                    return false;
                };
                *place = None;
                let done = done.expect("it was submitted");
                assert_eq!(done.event.res, DONE);
                done.payload
            }
        };
        assert_eq!(*payload.get_ref(), value, "another's payload");
        true
    }

    /// The first one's completion, if it came.
    fn take_first(&self) -> bool {
        let mut came = self.came.lock().unwrap();
        *came = *came || self.take(1, self.first);
        *came
    }

    /// The room is used for one that is refused, and for one that comes otherwise.
    fn again(&self, value: u64, by: By) -> bool {
        match self.request(value, ByFuture) {
            Err(error) => {
                assert_eq!(error, Errno::EAGAIN);
                return false;
            }
            Ok(request) => drop(request),
        }
        let mut task = Task::from_waker(Waker::noop());
        let mut refused = self.operation.lock().unwrap().take().expect("it is one");
        let nothing = matches!(refused.as_mut().poll(&mut task), Poll::Ready(None));
        assert!(nothing, "it was not submitted");
        let told = self.told.get();
        let request = self.request(value, by).expect("it was just free");
        request.claim().complete(DONE, 0);
        let noted = u64::from(by == ByNotification);
        assert_eq!(self.told.get(), told + noted, "{by:?}");
        assert!(self.take(value, by), "lost: {by:?}");
        true
    }

    fn settle(&self) {
        assert!(self.take_first(), "lost");
        for (value, by) in (10..).zip([ByRing, ByTarget, ByNotification, ByFuture]) {
            assert!(self.again(value, by), "there is no room");
        }
        let told = 1 + u64::from(self.first == ByNotification);
        assert!(self.told.get() >= told, "not told");
        assert_eq!(self.context().reserve(1).map(|all| all.len()), Ok(1));
    }
}

/// One is completed and taken out, and its slot is used again for all the others.
fn a_slot_is_used_again(first: By) -> Scenario<World> {
    let world = World::new(first);
    let request = world.request(1, first).expect("there is room");
    let handle = request.arm();
    Scenario::of(world)
        .role("completer", move |w| {
            let claim = w.context().get_ref().claim(handle);
            claim.expect("nobody else claims it").complete(DONE, 0);
        })
        .role("owner", |w| {
            if !w.take_first() {
                return reached("not yet");
            }
            let others = [ByRing, ByTarget, ByNotification, ByFuture].into_iter();
            for (value, by) in (2..).zip(others.filter(|by| *by != w.first)) {
                if !w.again(value, by) {
                    return reached("no room yet");
                }
                reached("used again");
            }
        })
        .finally(World::settle)
}

#[test]
fn a_slot_of_the_ring_is_used_again() {
    Model::of(
        &[ExactlyOnce, NoLoss, Reclamation, Wrap],
        &["not yet", "used again"],
    )
    .check(|| a_slot_is_used_again(ByRing));
}

#[test]
fn a_slot_of_a_target_is_used_again() {
    Model::of(
        &[ExactlyOnce, NoLoss, Reclamation, Wrap],
        &["not yet", "used again"],
    )
    .check(|| a_slot_is_used_again(ByTarget));
}

#[test]
fn a_slot_of_a_notification_is_used_again() {
    Model::of(
        &[ExactlyOnce, NoLoss, Reclamation, Wrap],
        &["not yet", "used again", "no room yet"],
    )
    .check(|| a_slot_is_used_again(ByNotification));
}

#[test]
fn a_slot_of_a_future_is_used_again() {
    Model::of(
        &[ExactlyOnce, NoLoss, Reclamation, Wrap],
        &["not yet", "used again", "no room yet"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| a_slot_is_used_again(ByFuture));
}

/// A completion that is for a closed target, and so comes into the ring, tells those whom
/// it uncovers.
#[test]
fn who_is_refused_by_its_target_tells_whom_it_uncovers() {
    struct Two {
        context: Memory<Context<Ring, SlotsOf<2>>>,
        told: Arc<Count>,
    }
    Model::of(&[NoLoss, Order, ExactlyOnce], &["told"]).check(|| {
        let target = Asyncfd::new_at(Lent::new(&Page::new()), 0, 0).expect("a ring");
        let target: Arc<Target> = Arc::new(target);
        let context = Context::new(ring::Inline::new(), SlotsOf::<2>::new(Generation::MIN));
        let world = Two {
            context: Memory::new(context.expect("they fit")),
            told: Arc::default(),
        };
        // SAFETY: used by roles and final checks, and given back by them.
        let context = Pin::static_ref(unsafe { world.context.get() });
        let request = |value| {
            let reserved = context.get_ref().reserve_one().expect("there is room");
            let iocb = Iocb {
                data: value,
                obj: 0,
            };
            reserved.fill(iocb, Track::new(value))
        };
        let refused = context.deliver_to(request(1), Arc::clone(&target));
        let refused = refused.map_err(|refused| refused.error).expect("its own");
        let tell = Tell {
            told: Arc::clone(&world.told),
            _track: Track::new(()),
        };
        let noted = context.get_ref().notify_by(request(2), tell);
        let noted = noted.map_err(|refused| refused.error).expect("its own");
        block_on(target.close());
        let (refused, noted) = (refused.claim(), noted.claim());
        Scenario::of(world)
            .role("for a closed target", move |_| refused.complete(DONE, 0))
            .role("to be told of", move |_| noted.complete(DONE, 0))
            .finally(|w| {
                assert_eq!(w.told.get(), 1, "not told");
                reached("told");
            })
    });
}
