//! Whose turn it is: the next one is run once, if the one before it succeeded, and what
//! is held meanwhile is put once.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex},
    task::{Poll, Waker},
};

use uaio_core::{
    Context, Errno,
    baton::{End, Pass, Passed, baton},
    context::{Armed, Cancelled, Handle, Request},
    notify::{Notification, Notify},
    request::Generation,
    ring,
    slots::{self, Iocb},
    sync::{
        Track,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, NoLoss, Order, Reclamation, Truth},
    block_on,
    harness::{Count, Handed, Memory},
    reached,
};

/// A reference to a context, say: it is put where it is dropped. loom fails a model that
/// never drops it.
struct Held {
    put: Arc<Count>,
    _track: Track<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.put.add(1);
    }
}

/// One of a chain, with what ends it if another one may follow.
struct Link {
    id: u64,
    /// What its submitter wrote.
    payload: Handed<u64>,
    end: Option<End<Self, Held>>,
}

#[derive(Default)]
struct UnderWay {
    end: Option<End<Link, Held>>,
    waker: Option<Waker>,
}

/// What became of a chain.
struct Chain {
    put: Arc<Count>,
    ran: Mutex<Vec<u64>>,
    cancelled: Mutex<Vec<u64>>,
    /// Where who runs one leaves it, for another one to complete, who waits for it.
    under_way: Mutex<UnderWay>,
    begun: AtomicBool,
}

impl Chain {
    fn new() -> Self {
        Self {
            put: Arc::default(),
            ran: Mutex::default(),
            cancelled: Mutex::default(),
            under_way: Mutex::default(),
            begun: AtomicBool::new(false),
        }
    }

    fn held(&self) -> Held {
        Held {
            put: Arc::clone(&self.put),
            _track: Track::new(()),
        }
    }

    /// One that another may follow.
    fn link(&self, id: u64) -> (Pass<Link, Held>, Link) {
        let (pass, end) = baton(self.held());
        (pass, Self::last(id, Some(end)))
    }

    fn last(id: u64, end: Option<End<Link, Held>>) -> Link {
        Link {
            id,
            payload: Handed::new(id),
            end,
        }
    }

    /// Runs it, or ends it as one that had no effect.
    fn go_on(&self, link: Link, succeeded: bool) {
        assert_eq!(link.payload.get(), link.id, "not what was passed on");
        if succeeded {
            self.ran.lock().unwrap().push(link.id);
            self.under_way.lock().unwrap().end = link.end;
            // Ordering: Release pairs with the Acquire of who completes it. An RMW, as there,
            // for one of them to see what the other left before.
            self.begun.swap(true, Ordering::AcqRel);
            let waker = self.under_way.lock().unwrap().waker.take();
            if let Some(waker) = waker {
                waker.wake();
            }
        } else {
            self.cancelled.lock().unwrap().push(link.id);
            assert!(link.end.is_none(), "the last one");
        }
    }

    fn pass(&self, pass: Pass<Link, Held>, next: Link) {
        match pass.pass(next) {
            Passed::Later => reached("left for who ends it"),
            Passed::Now {
                next, succeeded, ..
            } => {
                reached("the submitter goes on");
                self.go_on(next, succeeded);
            }
        }
    }

    fn end(&self, end: End<Link, Held>, succeeded: bool) {
        if let Some((next, _held)) = end.end(succeeded) {
            reached("who ends it goes on");
            self.go_on(next, succeeded);
        }
    }
}

/// The submitter brings two more; a worker ends the first, which succeeds; the second is
/// completed elsewhere, and fails.
#[test]
fn the_next_one_is_run_once_if_the_last_one_succeeded() {
    Model::of(
        &[ExactlyOnce, Truth, NoLoss, Reclamation],
        &[
            "left for who ends it",
            "the submitter goes on",
            "who ends it goes on",
        ],
    )
    .check(|| {
        let chain = Chain::new();
        let (pass, first) = chain.link(0);
        Scenario::of(chain)
            .role("submitter", move |w| {
                let (next, second) = w.link(1);
                w.pass(pass, second);
                w.pass(next, Chain::last(2, None));
            })
            .role("worker", move |w| {
                w.end(first.end.expect("of the first"), true);
            })
            .role("completer", |w| {
                let end = block_on(poll_fn(|task| {
                    w.under_way.lock().unwrap().waker = Some(task.waker().clone());
                    // Ordering: Acquire pairs with the Release in `go_on`.
                    if !w.begun.fetch_or(false, Ordering::AcqRel) {
                        return Poll::Pending;
                    }
                    let mut under_way = w.under_way.lock().unwrap();
                    under_way.waker = None;
                    Poll::Ready(under_way.end.take().expect("it was begun"))
                }));
                w.end(end, false);
            })
            .finally(|w| {
                assert_eq!(*w.ran.lock().unwrap(), [1]);
                assert_eq!(*w.cancelled.lock().unwrap(), [2]);
                assert_eq!(w.put.get(), 2, "put once each");
            })
    });
}

/// Either may leave without a word, say by a panic.
#[test]
fn what_is_held_is_put_once_if_nothing_follows() {
    Model::of(&[ExactlyOnce, Reclamation], &["over"]).check(|| {
        let chain = Chain::new();
        let (pass, first) = chain.link(0);
        Scenario::of(chain)
            .role("submitter", move |_| drop(pass))
            .role("worker", move |_| {
                assert!(first.end.expect("of the first").end(true).is_none());
                reached("over");
            })
            .finally(|w| assert_eq!(w.put.get(), 1))
    });
}

/// One that nobody ends drops what follows, which then says so itself.
#[test]
fn what_follows_one_that_is_lost_is_dropped_once() {
    Model::of(
        &[ExactlyOnce, Reclamation],
        &["left for who ends it", "the submitter goes on"],
    )
    .check(|| {
        let chain = Chain::new();
        let (pass, first) = chain.link(0);
        Scenario::of(chain)
            .role("submitter", move |w| {
                let (none, second) = w.link(1);
                drop(none);
                match pass.pass(second) {
                    Passed::Later => reached("left for who ends it"),
                    Passed::Now { succeeded, .. } => {
                        assert!(!succeeded);
                        reached("the submitter goes on");
                    }
                }
            })
            .role("worker", move |_| drop(first))
            .finally(|w| assert_eq!(w.put.get(), 2, "put once each"))
    });
}

type Slots = slots::Inline<(), 2, 1, (), Notify<Follow>>;
type Linked = Context<ring::Inline<2>, Slots>;

/// Goes on with the next request once its own is complete.
struct Follow {
    end: Option<End<Handle, Lead>>,
    succeeded: bool,
}

impl Notification for Follow {
    fn completed(&mut self, res: i64) {
        self.succeeded = res >= 0;
    }

    fn notify(self) -> Result<(), Self> {
        if let Some((next, lead)) = self.end.and_then(|end| end.end(self.succeeded)) {
            reached("who ends it goes on");
            lead.go_on(next, self.succeeded);
        }
        Ok(())
    }
}

/// What leads to the context of two requests, of which the second follows the first.
#[derive(Clone)]
struct Lead {
    context: &'static Linked,
    /// How often the second was run.
    ran: Arc<Count>,
    _track: Arc<Track<()>>,
}

impl Lead {
    fn request(&self, data: u64) -> Request<'static, ring::Inline<2>, Slots> {
        let reserved = self.context.reserve_one().expect("there is room");
        reserved.fill(Iocb { data, obj: 0 }, ())
    }

    /// As a worker does that comes to a request whose turn it is.
    fn go_on(&self, next: Handle, succeeded: bool) {
        // SAFETY: left by its submitter, and passed on to one.
        let early = unsafe { self.context.early(next) };
        if !succeeded {
            reached("not run");
            return early.claim().cancel();
        }
        match early.arm() {
            Armed::Armed(handle) => match self.context.start(handle) {
                Ok(running) => {
                    self.ran.add(1);
                    reached("run");
                    running.complete(SECOND, 0);
                }
                Err(_) => reached("cancelled in its turn"),
            },
            Armed::Cancelled(claim) => {
                reached("cancelled in its turn");
                claim.cancel();
            }
            other => panic!("nothing fired: {other:?}"),
        }
    }
}

const FIRST: i64 = 512;
const SECOND: i64 = 1024;

struct World {
    _context: Memory<Linked>,
    lead: Mutex<Option<Lead>>,
    ran: Arc<Count>,
}

fn context() -> Linked {
    let slots = Slots::new(Generation::MAX);
    Context::new_at(ring::Inline::new(), u64::MAX, slots).expect("the slots fit the ring")
}

impl World {
    /// With the first of two, which is Armed.
    fn new() -> (Self, Handle, Pass<Handle, Lead>) {
        let memory = Memory::new(context());
        let ran = Arc::<Count>::default();
        let lead = Lead {
            // SAFETY: used by roles and final checks, and given back by them.
            context: unsafe { memory.get() },
            ran: Arc::clone(&ran),
            _track: Arc::new(Track::new(())),
        };
        let (pass, end) = baton(lead.clone());
        let follow = Follow {
            end: Some(end),
            succeeded: false,
        };
        let noted = lead.context.notify_by(lead.request(1), follow);
        let first = noted
            .map_err(|refused| refused.error)
            .expect("its own")
            .arm();
        let world = Self {
            _context: memory,
            lead: Mutex::new(Some(lead)),
            ran,
        };
        (world, first, pass)
    }

    fn lead(&self) -> Lead {
        self.lead.lock().unwrap().clone().expect("it is not over")
    }

    /// The second, if the context is there still.
    fn submit_second(&self, pass: Pass<Handle, Lead>) {
        let lead = self.lead();
        let Ok(reserved) = lead.context.reserve_one() else {
            return reached("too late");
        };
        let second = reserved.fill(Iocb { data: 2, obj: 0 }, ()).early().leave();
        match pass.pass(second) {
            Passed::Later => reached("left for who ends it"),
            Passed::Now {
                next,
                succeeded,
                held,
            } => {
                reached("the submitter goes on");
                held.go_on(next, succeeded);
            }
        }
    }

    /// As a worker does with what is queued.
    fn work(&self, first: Handle) {
        match self.lead().context.start(first) {
            Ok(running) => running.complete(FIRST, 0),
            Err(_) => reached("ended before"),
        }
    }

    /// Each completed once, with the truth.
    fn settle(&self, may_fail: bool) {
        let lead = self.lead.lock().unwrap().take().expect("once");
        let mut out = [const { None }; 2];
        let n = lead.context.reap(&mut out).expect("a Native ring");
        let mut all: Vec<_> = out[..n]
            .iter()
            .flatten()
            .map(|done| (done.event.data, done.event.res))
            .collect();
        let (first, res) = all.remove(0);
        assert_eq!(first, 1, "the first comes first");
        let ran = self.ran.get() == 1;
        assert!(!ran || res == FIRST, "run after one that failed");
        for (data, res) in all {
            let expected = if ran {
                SECOND
            } else {
                Errno::ECANCELED.as_result()
            };
            assert_eq!((data, res), (2, expected));
            assert!(ran || may_fail, "for no reason");
        }
        assert_eq!(lead.context.reap(&mut out), Ok(0), "completed twice");
    }
}

/// Who submits the second, while a worker ends the first.
#[test]
fn a_request_follows_one_that_completes() {
    Model::of(
        &[ExactlyOnce, Truth, NoLoss, Order],
        &[
            "left for who ends it",
            "the submitter goes on",
            "who ends it goes on",
            "run",
        ],
    )
    .check(|| {
        let (world, first, pass) = World::new();
        Scenario::of(world)
            .role("submitter", move |w| w.submit_second(pass))
            .role("worker", move |w| w.work(first))
            .finally(|w| w.settle(false))
    });
}

/// Someone cancels the first: the second has no effect.
#[test]
fn nothing_follows_one_that_is_cancelled() {
    Model::of(
        &[ExactlyOnce, Truth, NoLoss],
        &[
            "left for who ends it",
            "the submitter goes on",
            "who ends it goes on",
            "run",
            "not run",
            "cancelled",
            "ended before",
        ],
    )
    .check(|| {
        let (world, first, pass) = World::new();
        Scenario::of(world)
            .role("submitter", move |w| w.submit_second(pass))
            .role("worker", move |w| w.work(first))
            .role("canceller", move |w| {
                if w.lead().context.cancel(first) == Ok(Cancelled::Done) {
                    reached("cancelled");
                }
            })
            .finally(|w| w.settle(true))
    });
}

/// The end, meanwhile: it waits for both.
#[test]
fn the_end_waits_for_what_follows() {
    Model::of(
        &[ExactlyOnce, Truth, NoLoss, Reclamation],
        &[
            "left for who ends it",
            "the submitter goes on",
            "who ends it goes on",
            "run",
            "not run",
            "cancelled in its turn",
            "ended before",
            "too late",
        ],
    )
    .bounded_always(
        2,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        let (world, first, pass) = World::new();
        Scenario::of(world)
            .role("submitter", move |w| w.submit_second(pass))
            .role("worker", move |w| w.work(first))
            .role("destroyer", |w| block_on(w.lead().context.destroy(|_| ())))
            .finally(|w| w.settle(true))
    });
}
