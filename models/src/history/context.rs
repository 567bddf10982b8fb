//! The life of a context.

use std::{future::poll_fn, pin::pin, task::Poll};

use uaio_core::{
    life::Life,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    wait::{Closed, Enqueued, Never, WaitQueue, Waiter},
};

use crate::{
    Model, Scenario, Theorem, block_on,
    harness::{Control, Handed, Memory, Shows},
    reached,
};

/// aio 3bd9a5d734c7: a lookup finds the context and counts itself, though the
/// last reference is gone meanwhile.
#[test]
fn lookup_takes_reference_from_zero() {
    struct Entry {
        listed: AtomicBool,
        references: AtomicU64,
        context: Handed<u64>,
    }
    impl Entry {
        fn put(&self) {
            if self.references.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.context.set(0);
            }
        }
    }
    Control::shows(Shows::UnorderedAccess)
        .held_by("table::a_lookup_finds_a_live_entry_or_none")
        .refuted(|| {
            Scenario::of(Entry {
                listed: AtomicBool::new(true),
                references: AtomicU64::new(1),
                context: Handed::new(1),
            })
            .role("lookup", |e| {
                if e.listed.load(Ordering::Acquire) {
                    e.references.fetch_add(1, Ordering::AcqRel);
                    e.context.get();
                    e.put();
                }
            })
            .role("remove", |e| {
                e.listed.store(false, Ordering::Release);
                e.put();
            })
        });
}

/// Seed 003, io_uring e02ba72aabfa: who destroys waits until nothing is in flight,
/// by a counter that one way in does not raise.
#[test]
fn destroy_returns_with_work_in_flight() {
    struct Uncounted {
        ended: AtomicBool,
        in_flight: AtomicU64,
        context: Handed<u64>,
    }
    Control::shows(Shows::UnorderedAccess)
        .held_by("context::destroying_returns_after_the_last_touch")
        .refuted(|| {
            Scenario::of(Uncounted {
                ended: AtomicBool::new(false),
                in_flight: AtomicU64::new(0),
                context: Handed::new(1),
            })
            .role("worker", |u| {
                if !u.ended.load(Ordering::Acquire) {
                    u.context.get();
                }
            })
            .role("destroyer", |u| {
                u.ended.store(true, Ordering::Release);
                if u.in_flight.load(Ordering::Acquire) == 0 {
                    u.context.set(0);
                }
            })
        });
}

/// Something whose end was called, and whose last user is still at it.
trait Ending: Send + Sync + 'static {
    fn with_one_user() -> Self;
    fn try_get(&self) -> bool;
    fn put(&self);
    /// Waits for the last user's last touch.
    fn wait(&self);
}

/// One is the last user; the other one comes too late, waits for the end, and
/// gives the memory back.
fn one_leaves_one_is_refused<E: Ending>() -> Scenario<Memory<E>> {
    fn get<E: Ending>(memory: &Memory<E>) -> &E {
        // SAFETY: the user is counted, and the other one gives it back itself.
        unsafe { memory.get() }
    }
    Scenario::of(Memory::new(E::with_one_user()))
        .role("user", |memory| get(memory).put())
        .role("who is refused", |memory| {
            assert!(!get(memory).try_get(), "got in after the end");
            reached("refused");
            get(memory).wait();
            // SAFETY: nobody uses it, and the one who waited knows.
            unsafe { memory.renew(E::with_one_user()) };
        })
}

impl Ending for Life {
    fn with_one_user() -> Self {
        let life = Self::new();
        life.try_get(1).expect("not ended");
        assert!(life.end(), "the first");
        life.put(1);
        life
    }

    fn try_get(&self) -> bool {
        self.try_get(1).is_ok()
    }

    fn put(&self) {
        self.put(1);
    }

    fn wait(&self) {
        block_on(self.idle());
    }
}

#[test]
fn who_is_refused_is_never_the_last() {
    Model::of(&[Theorem::Reclamation], &["refused"]).check(|| one_leaves_one_is_refused::<Life>());
}

/// Our own: who comes in is counted first, and uncounted when refused; it may be
/// the last to uncount, beside the real last one, who still has to close.
struct CountsFirst {
    word: AtomicU64,
    idle: WaitQueue,
}

const END: u64 = 1 << 63;

impl Ending for CountsFirst {
    fn with_one_user() -> Self {
        Self {
            word: AtomicU64::new(END | 1),
            idle: WaitQueue::new(),
        }
    }

    fn try_get(&self) -> bool {
        let before = self.word.fetch_add(1, Ordering::Relaxed);
        let ended = before & END != 0;
        if ended {
            self.put();
        }
        !ended
    }

    fn put(&self) {
        if self.word.fetch_sub(1, Ordering::AcqRel) == END | 1 {
            self.idle.close();
        }
    }

    fn wait(&self) {
        let waiter = pin!(Waiter::new());
        block_on(poll_fn(|task| {
            loop {
                // SAFETY: used with this queue only; closing takes it out.
                match unsafe { (self.idle).enqueue(waiter.as_ref(), task.waker(), &Never) } {
                    Err(Closed) => return Poll::Ready(()),
                    Ok(Enqueued::Waiting) => return Poll::Pending,
                    Ok(Enqueued::Ready) => {}
                }
            }
        }));
    }
}

#[test]
fn refused_user_counted_for_a_moment() {
    Control::shows(Shows::UnorderedAccess)
        .held_by("history::context::who_is_refused_is_never_the_last")
        .reaching(&["refused"])
        .only_loom()
        .refuted(|| one_leaves_one_is_refused::<CountsFirst>());
}
