//! Requests as futures: completion, drop, and a waker that changes.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context as Task, Poll, Waker},
};

use uaio_core::{
    Context, Errno,
    context::{Cancelled, Completion, Handle, Request},
    operation::{Await, Operation},
    request::{Generation, Phase},
    ring,
    slots::{self, Iocb},
    sync::Track,
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, NoLostWakeup, Order, Reclamation, Truth, Wrap},
    block_on,
    harness::{Count, Handed, Memory, pause},
    reached,
};

type Slots = slots::Inline<Buffer, 1, 1, (), Await>;
type Awaits = Context<ring::Inline<2>, Slots>;
type Lead = Pin<&'static Awaits>;

const DONE: i64 = 512;
const AGAIN: i64 = 1024;

/// What is lent to whoever runs the request: nobody uses it any more when it is dropped.
struct Buffer {
    bytes: Handed<u64>,
    home: Arc<Count>,
    _track: Track<()>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.bytes.set(0);
            self.home.add(1);
        }
    }
}

/// A context next to the wrap of generations, in memory that is given back by who
/// destroyed it.
struct World {
    context: Memory<Awaits>,
    /// How many buffers there were, and how many of them came home.
    out: Count,
    home: Arc<Count>,
    operation: Mutex<Option<Pin<Box<Operation<Lead>>>>>,
}

fn context() -> Awaits {
    let slots = Slots::new(Generation::MAX);
    Context::new_at(ring::Inline::new(), u64::MAX, slots).expect("the slots fit the ring")
}

impl World {
    fn new() -> Self {
        Self {
            context: Memory::new(context()),
            out: Count::new(),
            home: Arc::default(),
            operation: Mutex::default(),
        }
    }

    fn context(&self) -> &'static Awaits {
        // SAFETY: used by roles and final checks, and given back by them.
        unsafe { self.context.get() }
    }

    /// A request, whose operation some role takes.
    fn request(&self) -> Request<'static, ring::Inline<2>, Slots> {
        self.try_request().expect("there is room")
    }

    fn try_request(&self) -> Result<Request<'static, ring::Inline<2>, Slots>, Errno> {
        let reserved = self.context().reserve_one()?;
        self.out.add(1);
        let buffer = Buffer {
            bytes: Handed::new(1),
            home: Arc::clone(&self.home),
            _track: Track::new(()),
        };
        let request = reserved.fill(Iocb { data: 1, obj: 0 }, buffer);
        let awaited = Operation::of(Pin::static_ref(self.context()), request);
        let (request, operation) = awaited.map_err(|refused| refused.error).expect("its own");
        *self.operation.lock().unwrap() = Some(Box::pin(operation));
        Ok(request)
    }

    /// Uses the room for another one, if it is free: with nothing of the last life in it.
    fn again(&self) {
        match self.try_request() {
            Ok(request) => {
                reached("used again");
                let mut operation = self.operation();
                assert!(poll(operation.as_mut()).is_pending(), "not submitted yet");
                request.claim().complete(AGAIN, 0);
                let Poll::Ready(Some(done)) = poll(operation.as_mut()) else {
                    panic!("it is over");
                };
                assert_eq!(done.event.res, AGAIN, "another's completion");
            }
            Err(error) => {
                assert_eq!(error, Errno::EAGAIN);
                reached("no room yet");
            }
        }
    }

    fn operation(&self) -> Pin<Box<Operation<Lead>>> {
        let operation = self.operation.lock().unwrap().take();
        operation.expect("one role takes it")
    }

    /// Takes the completion if it is there; else the operation is dropped.
    fn look_and_go(&self) {
        let mut operation = self.operation();
        match poll(operation.as_mut()) {
            Poll::Ready(done) => take(done),
            Poll::Pending => reached("dropped"),
        }
    }

    fn complete(&self, handle: Handle) {
        match self.context().claim(handle) {
            Ok(claim) => {
                reached("completed");
                claim.complete(DONE, 0);
            }
            Err(_) => reached("late"),
        }
    }

    /// The buffer came home, nothing came into the ring, and there is room again.
    fn settle(&self) {
        drop(self.operation.lock().unwrap().take());
        let out = self.out.get();
        assert_eq!(self.home.get(), out, "the buffers");
        let mut out: [Option<Completion<Buffer>>; 1] = [None];
        assert_eq!(self.context().reap(&mut out), Ok(0), "an event");
        let room = self.context().reserve(1).map(|all| all.len());
        assert_eq!(room, Ok(1), "there is no room");
    }
}

fn take(done: Option<Completion<Buffer>>) {
    let done = done.expect("it was submitted");
    assert_eq!(done.payload.bytes.get(), 1, "written by who was to read it");
    reached(match done.event.res {
        DONE => "done",
        res => {
            assert_eq!(res, Errno::ECANCELED.as_result());
            "cancelled"
        }
    });
}

fn poll(operation: Pin<&mut Operation<Lead>>) -> Poll<Option<Completion<Buffer>>> {
    operation.poll(&mut Task::from_waker(Waker::noop()))
}

/// Who waits is called, whichever waker it came with last.
#[test]
fn who_waits_with_another_waker_is_called() {
    Model::of(
        &[ExactlyOnce, NoLostWakeup, Order, Wrap],
        &["done", "completed"],
    )
    .check(|| {
        let world = World::new();
        let handle = world.request().arm();
        Scenario::of(world)
            .role("completer", move |w| w.complete(handle))
            .role("task", |w| {
                let mut operation = w.operation();
                match poll(operation.as_mut()) {
                    Poll::Ready(done) => take(done),
                    Poll::Pending => take(block_on(operation)),
                }
            })
            .finally(World::settle)
    });
}

/// Dropped, and completed: its buffer comes home once, and its room is free.
#[test]
fn who_drops_it_loses_no_buffer() {
    Model::of(
        &[ExactlyOnce, Reclamation, Wrap],
        &["completed", "late", "dropped", "used again", "no room yet"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        let world = World::new();
        let handle = world.request().arm();
        Scenario::of(world)
            .role("completer", move |w| w.complete(handle))
            .role("task", move |w| {
                let mut operation = w.operation();
                if poll(operation.as_mut()).is_pending() {
                    reached("dropped");
                }
                drop(operation);
                let phase = w.context().phase(handle);
                assert_ne!(phase, Some(Phase::Armed), "not cancelled");
                w.again();
            })
            .finally(World::settle)
    });
}

/// Who runs it uses its buffer, whoever has dropped it.
#[test]
fn who_runs_it_has_its_buffer() {
    Model::of(
        &[ExactlyOnce, Reclamation, Truth],
        &["ran", "late", "dropped", "done"],
    )
    .check(|| {
        let world = World::new();
        let handle = world.request().arm();
        Scenario::of(world)
            .role("worker", move |w| match w.context().start(handle) {
                Ok(mut running) => {
                    running.with_payload(|buffer| {
                        pause();
                        assert_eq!(buffer.bytes.get(), 1, "gone");
                    });
                    reached("ran");
                    running.complete(DONE, 0);
                }
                Err(_) => reached("late"),
            })
            .role("task", World::look_and_go)
            .finally(World::settle)
    });
}

/// Cancelled by a third: one completion, and it says what happened.
#[test]
fn completion_and_cancel_and_drop_end_it_once() {
    Model::of(
        &[ExactlyOnce, Truth, Reclamation],
        &["completed", "late", "asked", "cancelled", "done", "dropped"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        let world = World::new();
        let handle = world.request().arm();
        Scenario::of(world)
            .role("completer", move |w| w.complete(handle))
            .role("canceller", move |w| match w.context().cancel(handle) {
                Ok(Cancelled::Done | Cancelled::Asked) => reached("asked"),
                Err(_) => reached("late"),
            })
            .role("task", World::look_and_go)
            .finally(World::settle)
    });
}

/// What is never submitted resolves with nothing, and its room is free when both are
/// done with it.
#[test]
fn what_is_never_submitted_resolves_with_nothing() {
    Model::of(
        &[ExactlyOnce, NoLostWakeup, Reclamation],
        &["nothing", "refused"],
    )
    .check(|| {
        let world = World::new();
        let request = world.request();
        Scenario::of(world)
            .role("submitter", move |_| {
                drop(request.refuse());
                reached("refused");
            })
            .role("task", |w| {
                assert!(block_on(w.operation()).is_none(), "it was not submitted");
                reached("nothing");
            })
            .finally(World::settle)
    });
}

/// What is dropped and never submitted leaves its room to the last of both, as it was.
#[test]
fn what_is_dropped_and_never_submitted_leaves_its_room() {
    Model::of(
        &[ExactlyOnce, Reclamation, Wrap],
        &["refused", "used again", "no room yet"],
    )
    .check(|| {
        let world = World::new();
        let request = world.request();
        Scenario::of(world)
            .role("submitter", move |_| {
                drop(request.refuse());
                reached("refused");
            })
            .role("task", |w| {
                drop(w.operation());
                w.again();
            })
            .finally(World::settle)
    });
}

/// What is submitted while it is dropped, or after, ends all the same.
#[test]
fn what_is_submitted_while_it_is_dropped_comes_home() {
    Model::of(
        &[ExactlyOnce, Reclamation, Wrap],
        &["completed", "late", "used again", "no room yet"],
    )
    .check(|| {
        let world = World::new();
        let request = world.request();
        Scenario::of(world)
            .role("submitter", move |w| {
                let handle = request.arm();
                w.complete(handle);
            })
            .role("task", |w| {
                drop(w.operation());
                w.again();
            })
            .finally(World::settle)
    });
}

/// The slot is used again, when who completes and who waits are done with it.
#[test]
fn its_room_is_free_when_both_are_done() {
    Model::of(
        &[Reclamation, ExactlyOnce, Wrap],
        &["done", "completed", "used again", "no room yet"],
    )
    .check(|| {
        let world = World::new();
        let handle = world.request().arm();
        Scenario::of(world)
            .role("completer", move |w| w.complete(handle))
            .role("task", |w| {
                take(block_on(w.operation()));
                w.again();
            })
            .finally(World::settle)
    });
}

/// The end waits for who completes; who waits then leads to nothing that is gone.
#[test]
fn the_end_waits_for_who_completes() {
    Model::of(&[Reclamation, ExactlyOnce], &["completed", "over"]).check(|| {
        let world = World::new();
        let claim = world.request().claim();
        Scenario::of(world)
            .role("completer", move |_| {
                claim.complete(DONE, 0);
                reached("completed");
            })
            .role("destroyer", |w| {
                drop(w.operation());
                block_on(w.context().destroy(|_| ()));
                // SAFETY: it is over, and nobody leads to it.
                unsafe { w.context.renew(context()) };
                reached("over");
            })
            .finally(World::settle)
    });
}

/// What a request is to call.
mod called {
    use super::*;

    /// What it carries: written by its submitter, and read by who is called.
    pub(super) struct Carried {
        pub(super) ready: Handed<u64>,
        pub(super) log: Arc<Log>,
        pub(super) _track: Track<()>,
    }

    /// Who is called.
    pub(super) struct Log {
        pub(super) called: Count,
        pub(super) room: Count,
        pub(super) context: Lead,
    }

    pub(super) type Slots = slots::Inline<Carried, 1, 1, (), Await>;
    pub(super) type Calls = Context<ring::Inline<2>, Slots>;
    pub(super) type Lead = &'static Calls;

    pub(super) fn context() -> Calls {
        let slots = Slots::new(Generation::MAX);
        Context::new_at(ring::Inline::new(), u64::MAX, slots).expect("the slots fit the ring")
    }

    pub(super) fn call(carried: Carried, event: uaio_core::ring::Event) {
        assert_eq!(carried.ready.get(), 7, "set too late");
        let log = &carried.log;
        log.called.add(1);
        // Its room is free, unless somebody else has it.
        if log.context.reserve_one().is_ok() {
            log.room.add(1);
        }
        reached(match event.res {
            DONE => "done",
            _ => "cancelled",
        });
    }
}

struct CalledWorld {
    context: Memory<called::Calls>,
    log: Arc<called::Log>,
    handle: Mutex<Option<Handle>>,
}

impl CalledWorld {
    fn new() -> Self {
        let context = Memory::new(called::context());
        // SAFETY: used by roles and final checks, and given back by them.
        let lead = unsafe { context.get() };
        let log = called::Log {
            called: Count::new(),
            room: Count::new(),
            context: lead,
        };
        Self {
            context,
            log: Arc::new(log),
            handle: Mutex::default(),
        }
    }

    fn submit(&self) {
        // SAFETY: as above.
        let context: called::Lead = unsafe { self.context.get() };
        let carried = called::Carried {
            ready: Handed::new(0),
            log: Arc::clone(&self.log),
            _track: Track::new(()),
        };
        carried.ready.set(7);
        let reserved = context.reserve_one().expect("there is room");
        let request = reserved.fill(Iocb { data: 1, obj: 0 }, carried);
        let request = context.call_by(request, called::call);
        let request = request.map_err(|refused| refused.error).expect("its own");
        *self.handle.lock().unwrap() = Some(request.arm());
    }

    fn handle(&self) -> Option<Handle> {
        *self.handle.lock().unwrap()
    }
}

/// Completed or cancelled, it is called once, with what it carried, and with its room
/// free.
#[test]
fn who_is_called_has_all_that_it_carried() {
    Model::of(
        &[ExactlyOnce, Order, Reclamation],
        &["done", "cancelled", "late", "not yet"],
    )
    .check(|| {
        Scenario::of(CalledWorld::new())
            .role("submitter", CalledWorld::submit)
            .role("worker", |w| {
                let Some(handle) = w.handle() else {
                    return reached("not yet");
                };
                match w.log.context.start(handle) {
                    Ok(running) => running.complete(DONE, 0),
                    Err(_) => reached("late"),
                }
            })
            .role("canceller", |w| match w.handle() {
                Some(handle) => {
                    let _ = w.log.context.cancel(handle);
                }
                None => reached("not yet"),
            })
            .finally(|w| {
                let handle = w.handle().expect("it was submitted");
                // Cancelled while it ran: then it has ended since.
                let _ = w.log.context.cancel(handle);
                assert_eq!(w.log.called.get(), 1, "not called once");
                assert_eq!(w.log.room.get(), 1, "its room is taken");
                assert_eq!(w.log.context.reserve(1).map(|all| all.len()), Ok(1));
            })
    });
}
