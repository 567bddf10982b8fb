//! The embedder's own models. `cargo test` runs them with plain threads; with
//! `RUSTFLAGS="--cfg loom"` or `"--cfg shuttle"` the same ones run under a checker.

use std::{
    sync::{Arc, Mutex},
    task::{Wake, Waker},
};

use embedder::{Disk, Doorbell, Status, Write};
use uaio_core::{
    Errno,
    context::Cancelled,
    sync::thread::{model, spawn},
    wait::WaitQueue,
};
use uaio_models::{
    Model, Scenario,
    harness::Theorem,
    reached,
    scenarios::{self, Sleep, Source},
};

const WRITE: Write = Write {
    block: 1,
    content: *b"content!",
};

/// Needs nothing but uaio-core: its threads, and its `model`.
#[test]
fn a_write_is_there_once_it_is_completed() {
    model(|| {
        let disk = Arc::new(Disk::new(2, 1).expect("a small one"));
        let request = disk.submit(7, WRITE).expect("there is room");
        let device = {
            let disk = Arc::clone(&disk);
            spawn(move || disk.execute(request))
        };
        let done = disk.next().expect("the disk is there");
        assert_eq!((done.event.data, done.event.res), (7, 8));
        assert_eq!((done.handle, done.payload), (request, WRITE));
        assert_eq!(disk.content(1), Some(WRITE.content));
        device.join().expect("the device did not panic");
    });
}

/// The same with `Model`, which demands that both outcomes occur.
#[test]
fn a_cancelled_write_has_no_effect() {
    Model::of(&[Theorem::Truth], &["cancelled", "written"]).check(|| {
        let disk = Disk::new(2, 1).expect("a small one");
        let request = disk.submit(7, WRITE).expect("there is room");
        let cancelled = Arc::new(Mutex::new(false));
        let told = Arc::clone(&cancelled);
        Scenario::of(disk)
            .role("device", move |disk| disk.execute(request))
            .role("driver", move |disk| {
                let done = disk.cancel(request) == Ok(Cancelled::Done);
                *told.lock().unwrap() = done;
            })
            .finally(move |disk| {
                let (res, content) = if *cancelled.lock().unwrap() {
                    reached("cancelled");
                    (Errno::ECANCELED.as_result(), [0; 8])
                } else {
                    reached("written");
                    (8, WRITE.content)
                };
                assert_eq!(disk.next().expect("the disk is there").event.res, res);
                assert_eq!(disk.content(1), Some(content));
            })
    });
}

/// A waker and the sleep that it ends.
trait Bell: Wake + Send + Sync + 'static {
    fn new() -> Self;
    fn sleep(&self);
}

/// The same, as uaio's scenarios want to see it.
struct Shared<B>(Arc<B>);

impl<B: Bell> Sleep for Shared<B> {
    fn new() -> Self {
        Self(Arc::new(B::new()))
    }
    fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.0))
    }
    fn wakers(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
    fn sleep(&self) {
        self.0.sleep();
    }
}

impl Bell for Doorbell {
    fn new() -> Self {
        Doorbell::new()
    }
    fn sleep(&self) {
        self.sleep();
    }
}

/// The disk's status register, likewise.
struct Register(Status);

impl Register {
    fn new() -> Self {
        Self(Status::new())
    }
}

impl Source for Register {
    fn queue(&self) -> &WaitQueue {
        self.0.queue()
    }
    fn ready(&self, key: u16, _: u16) -> bool {
        self.0.has(key)
    }
    fn fire(&self, events: u16) {
        self.0.set(events);
    }
}

#[test]
fn a_wake_is_not_lost() {
    Model::of(&[Theorem::NoLostWakeup], &["slept", "ready at once"])
        .check(|| scenarios::a_wake_is_not_lost::<Shared<Doorbell>, _>(Register::new()));
}

#[test]
fn the_next_wake_is_not_lost() {
    Model::of(&[Theorem::NoLostWakeup], &["slept", "ready at once"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| scenarios::the_next_wake_is_not_lost::<Shared<Doorbell>, _>(Register::new()));
}

/// Forgets to drop itself.
struct Leaky(Doorbell);

impl Wake for Leaky {
    fn wake(self: Arc<Self>) {
        self.0.ring();
        std::mem::forget(self);
    }
}

impl Bell for Leaky {
    fn new() -> Self {
        Self(Doorbell::new())
    }
    fn sleep(&self) {
        self.0.sleep();
    }
}

#[test]
#[should_panic(expected = "wakers left over")]
fn a_waker_that_leaks_is_found() {
    Model::of(&[Theorem::NoLostWakeup], &["slept", "ready at once"])
        .check(|| scenarios::a_wake_is_not_lost::<Shared<Leaky>, _>(Register::new()));
}

/// Parts that lose a wake. The checkers see the deadlock; plain threads would just
/// hang.
#[cfg(any(loom, shuttle))]
mod hangs {
    use std::process::Command;

    use uaio_core::sync::{
        atomic::{AtomicBool, Ordering},
        thread::Parker,
    };

    use super::*;

    /// Runs an ignored test in a process of its own, which a deadlock may abort.
    fn deadlocks(test: &str) {
        let child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env("RUST_BACKTRACE", "0")
            .output()
            .expect("a process");
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(
            !child.status.success() && said.contains("deadlock"),
            "{test} was to find a deadlock: {}, {said}",
            child.status
        );
    }

    /// Resets its flag when a sleep begins: a wake just before is forgotten.
    struct Forgetful {
        rung: AtomicBool,
        sleeper: Parker,
    }

    impl Wake for Forgetful {
        fn wake(self: Arc<Self>) {
            self.rung.store(true, Ordering::Release);
            self.sleeper.unpark();
        }
    }

    impl Bell for Forgetful {
        fn new() -> Self {
            Self {
                rung: AtomicBool::new(false),
                sleeper: Parker::new(),
            }
        }
        fn sleep(&self) {
            self.rung.store(false, Ordering::Relaxed);
            while !self.rung.load(Ordering::Acquire) {
                self.sleeper.park();
            }
        }
    }

    #[test]
    #[ignore = "deadlocks"]
    fn a_forgotten_wake() {
        Model::of(&[Theorem::NoLostWakeup], &["slept", "ready at once"])
            .check(|| scenarios::a_wake_is_not_lost::<Shared<Forgetful>, _>(Register::new()));
    }

    #[test]
    fn a_forgotten_wake_is_found() {
        deadlocks("hangs::a_forgotten_wake");
    }

    /// Wakes who waits for its second register, and only then sets it.
    struct Hasty(Status, Status);

    impl Source for Hasty {
        fn queue(&self) -> &WaitQueue {
            self.0.queue()
        }
        fn ready(&self, key: u16, _: u16) -> bool {
            self.1.has(key)
        }
        fn fire(&self, events: u16) {
            self.queue().wake(events);
            self.1.set(events);
        }
    }

    #[test]
    #[ignore = "deadlocks"]
    fn a_wake_before_its_event() {
        Model::of(&[Theorem::NoLostWakeup], &["slept", "ready at once"]).check(|| {
            let source = Hasty(Status::new(), Status::new());
            scenarios::a_wake_is_not_lost::<Shared<Doorbell>, _>(source)
        });
    }

    #[test]
    fn a_wake_before_its_event_is_found() {
        deadlocks("hangs::a_wake_before_its_event");
    }
}
