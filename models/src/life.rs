//! Users and the end.

use std::{
    pin::pin,
    task::{Context, Waker},
};

use uaio_core::{
    Errno,
    life::Life,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    Model, Scenario,
    Theorem::{Progress, Reclamation},
    block_on,
    harness::{Handed, Memory, pause},
    reached,
};

/// Something whose life ends: users read `guarded`, or write it if there is
/// only one, and who ends it does what it likes once nobody uses it.
struct World {
    life: Memory<Life>,
    guarded: Handed<u64>,
    /// Destroyers that may still look at `life`.
    unaware: AtomicU32,
}

impl World {
    fn used(users: u64, destroyers: u32) -> Self {
        let life = Life::new();
        life.try_get(users).expect("not ended");
        Self {
            life: Memory::new(life),
            guarded: Handed::new(1),
            unaware: AtomicU32::new(destroyers),
        }
    }

    fn life(&self) -> &Life {
        // SAFETY: called by users who are counted, and by destroyers who have
        // not given the memory back.
        unsafe { self.life.get() }
    }

    /// A user who was counted.
    fn use_it(&self) {
        assert_eq!(self.guarded.get(), 1);
        self.life().put(1);
    }

    /// The only one who was counted.
    fn write_it(&self) {
        self.guarded.set(2);
        self.life().put(1);
    }

    fn end(&self) {
        if self.life().end() {
            reached("first");
            self.life().put(1);
        } else {
            reached("not first");
        }
    }

    fn end_and_wait(&self) {
        self.end();
        block_on(self.life().idle());
    }

    /// The last destroyer gives the memory back.
    fn leave(&self) {
        // Ordering: AcqRel. They agree who is the last.
        if self.unaware.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: nobody uses it, and every destroyer knows.
            unsafe { self.life.renew(Life::new()) };
        }
    }
}

#[test]
fn nobody_gets_in_after_the_last_put() {
    Model::of(&[Reclamation], &["first", "got in", "refused"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::used(1, 1))
                .role("user", World::use_it)
                .role("looker-up", |w| match w.life().try_get(1) {
                    Ok(()) => {
                        reached("got in");
                        pause();
                        w.use_it();
                    }
                    Err(error) => {
                        assert_eq!(error, Errno::EINVAL);
                        reached("refused");
                    }
                })
                .role("destroyer", |w| {
                    w.end_and_wait();
                    w.guarded.set(0);
                })
                .finally(|w| assert_eq!(w.life().try_get(1), Err(Errno::EINVAL)))
        });
}

#[test]
fn the_end_waits_for_the_last_touch() {
    Model::of(&[Reclamation], &["first"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::used(2, 1))
                .role("user", World::use_it)
                .role("user", World::use_it)
                .role("destroyer", |w| {
                    w.end_and_wait();
                    w.guarded.set(0);
                    w.leave();
                })
        });
}

#[test]
fn every_destroyer_waits_for_the_last_touch() {
    Model::of(&[Reclamation], &["first", "not first"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            fn destroy(w: &World) {
                w.end_and_wait();
                assert_eq!(w.guarded.get(), 2, "the user was not done");
                w.leave();
            }
            Scenario::of(World::used(1, 2))
                .role("destroyer", destroy)
                .role("destroyer", destroy)
                .role("user", World::write_it)
        });
}

#[test]
fn a_destroyer_may_give_up_waiting() {
    Model::of(
        &[Reclamation, Progress],
        &["first", "not first", "gave up", "was over"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        Scenario::of(World::used(1, 2))
            .role("user and destroyer", |w| {
                w.write_it();
                w.end_and_wait();
                w.leave();
            })
            .role("impatient destroyer", |w| {
                w.end();
                {
                    let mut idle = pin!(w.life().idle());
                    let mut task = Context::from_waker(Waker::noop());
                    let over = idle.as_mut().poll(&mut task).is_ready();
                    reached(if over { "was over" } else { "gave up" });
                }
                w.leave();
            })
    });
}
