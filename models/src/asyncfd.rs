//! The asyncfd: results in a ring that its user owns.

use std::{
    mem::ManuallyDrop,
    pin::Pin,
    sync::{Arc, Mutex},
};

use uaio_core::{
    Context, Errno,
    asyncfd::{Asyncfd, AsyncfdResult, Drained, UringMemory},
    poll::{
        Heads, Source,
        event::{HUP, IN},
    },
    request::Generation,
    ring,
    slots::{self, Iocb},
    sync::{Track, atomic::Ordering, hint},
    wait::WaitQueue,
};

use crate::{
    Model, Scenario,
    Theorem::{
        ExactlyOnce, HostileMemory, NoLoss, NoLostWakeup, Order, Progress, Reclamation, Truth, Wrap,
    },
    block_on,
    harness::{
        Count,
        lent::{Lent, Page, result},
        pause,
    },
    reached,
};

/// The last lap, and the last entry that the gate can count.
const LAP: u64 = (1 << 40) - 1;
const ENTRIES: u64 = (1 << 61) - 1;

/// An asyncfd, its first two rings, what went in and what came out.
struct World<const N: usize> {
    asyncfd: Asyncfd<Lent<N>>,
    pages: [Arc<Page<N>>; 2],
    stored: Mutex<Vec<u64>>,
    taken: Mutex<Vec<u64>>,
}

impl<const N: usize> World<N> {
    /// The next lap is zero, and so is the next entry.
    fn at_the_wrap() -> Self {
        let pages = [Page::new(), Page::new()];
        let asyncfd = Asyncfd::new_at(Lent::new(&pages[0]), LAP, ENTRIES);
        Self {
            asyncfd: asyncfd.expect("a ring"),
            pages,
            stored: Mutex::default(),
            taken: Mutex::default(),
        }
    }

    fn holding(self, values: &[u64]) -> Self {
        assert_eq!(self.add(values), Ok(values.len()));
        self
    }

    /// Whose consumer has seen all.
    fn drained(self) -> Self {
        assert_eq!(self.asyncfd.drain(), Ok(Drained::Empty));
        self
    }

    /// Stores what there is room for: values that ascend, per producer.
    fn add(&self, values: &[u64]) -> Result<usize, Errno> {
        let mut results = [AsyncfdResult::default(); 4];
        for (place, value) in results.iter_mut().zip(values) {
            *place = result(*value);
        }
        let n = self.asyncfd.add_results(&results[..values.len()])?;
        self.stored.lock().unwrap().extend(&values[..n]);
        Ok(n)
    }

    /// One by one.
    fn produce(&self, values: &[u64]) {
        for value in values {
            match self.add(&[*value]) {
                Ok(1) => reached("stored"),
                Ok(_) => reached("full"),
                Err(error) => {
                    assert_eq!(error, Errno::EBADFD);
                    reached("closed");
                }
            }
            pause();
        }
    }

    /// Pops at most `max`. Who replaces may be moving something in.
    fn pop(&self, max: usize) -> Result<usize, Errno> {
        let mut out = [AsyncfdResult::default(); 4];
        let n = loop {
            match self.asyncfd.pop(&mut out[..max]) {
                Err(Errno::EBUSY) => hint::spin_loop(),
                popped => break popped?,
            }
        };
        for whole in &out[..n] {
            assert_eq!(*whole, result(whole.cookie), "torn");
            self.taken.lock().unwrap().push(whole.cookie);
        }
        Ok(n)
    }

    fn consume(&self, sizes: &[usize]) {
        for max in sizes {
            match self.pop(*max) {
                Ok(0) => reached("empty"),
                Ok(_) => reached("popped"),
                Err(error) => panic!("{error}"),
            }
            pause();
        }
    }

    fn drain(&self) -> Drained {
        loop {
            match self.asyncfd.drain() {
                Err(Errno::EBUSY) => hint::spin_loop(),
                drained => break drained.expect("an honest index"),
            }
        }
    }

    /// Takes `n`, and sleeps whenever there is none.
    fn take(&self, n: usize) {
        let mut left = n - self.pop(n).expect("an honest index");
        while left > 0 {
            if self.drain() == Drained::Empty {
                reached("slept");
                block_on(self.asyncfd.readable());
            }
            left -= self.pop(left).expect("an honest index");
        }
    }

    /// Replaces the first ring by the second, and waits.
    fn replace(&self) {
        let replaced = self.asyncfd.replace(Lent::new(&self.pages[1]));
        block_on(replaced.expect("nobody else replaces it"));
    }

    fn close(&self) {
        block_on(self.asyncfd.close());
    }

    /// What went in came out, once, and of each producer in its order.
    fn settle(&self) {
        while self.drain() == Drained::Unread {
            let n = self.pop(4).expect("an honest index");
            assert_ne!(n, 0, "nothing to read");
        }
        let (mut stored, taken) = (self.stored.lock().unwrap(), self.taken.lock().unwrap());
        let mut last = [0; 4];
        for value in &*taken {
            let last = &mut last[*value as usize / 10];
            assert!(*last < *value, "{value} after {last}");
            *last = *value;
        }
        let mut taken = taken.clone();
        stored.sort_unstable();
        taken.sort_unstable();
        assert_eq!(*stored, taken, "lost or doubled");
    }
}

#[test]
fn two_producers_lose_nothing() {
    Model::of(
        &[ExactlyOnce, NoLoss, Order, Wrap],
        &["stored", "popped", "empty"],
    )
    .bounded(2, "more than 100,000 executions at bound 3")
    .check(|| {
        Scenario::of(World::<2>::at_the_wrap())
            .role("producer", |w| w.produce(&[1]))
            .role("producer", |w| w.produce(&[11]))
            .role("consumer", |w| w.consume(&[1, 1]))
            .finally(World::settle)
    });
}

#[test]
fn a_place_comes_round_to_who_produces() {
    Model::of(
        &[ExactlyOnce, NoLoss, Order, Wrap],
        &["stored", "full", "popped", "empty"],
    )
    .check(|| {
        Scenario::of(World::<1>::at_the_wrap())
            .role("producer", |w| w.produce(&[1, 2, 3]))
            .role("consumer", |w| w.consume(&[1, 1]))
            .finally(World::settle)
    });
}

#[test]
fn a_place_that_is_reserved_is_not_free() {
    Model::of(&[ExactlyOnce, NoLoss], &["stored", "full"]).check(|| {
        Scenario::of(World::<1>::at_the_wrap())
            .role("producer", |w| w.produce(&[1]))
            .role("producer", |w| w.produce(&[11]))
            .finally(World::settle)
    });
}

/// A stalled one, and one who comes round to its place.
#[test]
fn who_comes_round_finds_no_place_that_is_still_written() {
    Model::of(&[ExactlyOnce, NoLoss, Wrap], &["stored", "full", "popped"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::<2>::at_the_wrap().holding(&[1]))
                .role("producer", |w| w.produce(&[11]))
                .role("producer and consumer", |w| {
                    w.produce(&[21]);
                    w.consume(&[2]);
                    w.produce(&[22, 23]);
                })
                .finally(World::settle)
        });
}

#[test]
fn a_full_ring_is_readable() {
    Model::of(
        &[NoLostWakeup, NoLoss, Wrap],
        &["stored", "full", "popped", "readable"],
    )
    .check(|| {
        Scenario::of(World::<2>::at_the_wrap().drained().holding(&[1, 2]))
            .role("producer", |w| w.produce(&[11]))
            .role("consumer", |w| {
                assert!(w.asyncfd.is_readable(), "it looks empty");
                assert_eq!(w.drain(), Drained::Unread, "it looks empty");
                reached("readable");
                w.consume(&[1]);
            })
            .finally(World::settle)
    });
}

#[test]
fn as_many_are_stored_as_there_is_room_for() {
    Model::of(
        &[NoLoss, Order, Wrap],
        &["none", "one", "both", "popped", "the rest"],
    )
    .check(|| {
        Scenario::of(World::<2>::at_the_wrap().holding(&[1, 2]))
            .role("producer", |w| {
                let n = w.add(&[11, 12]).expect("it is open");
                reached(["none", "one", "both"][n]);
                if n == 1 && w.add(&[12]) == Ok(1) {
                    reached("the rest");
                }
            })
            .role("consumer", |w| {
                w.consume(&[1]);
                w.consume(&[1]);
            })
            .finally(|w| {
                w.settle();
                assert_eq!(w.add(&[21, 22, 23]), Ok(2), "not all there is room for");
                w.settle();
            })
    });
}

#[test]
fn only_one_consumes() {
    Model::of(&[ExactlyOnce, Progress], &["popped", "busy"]).check(|| {
        fn pop(w: &World<2>) {
            let mut out = [AsyncfdResult::default()];
            match w.asyncfd.pop(&mut out) {
                Ok(n) => {
                    assert_eq!(n, 1, "two were there");
                    w.taken.lock().unwrap().push(out[0].cookie);
                    reached("popped");
                }
                Err(error) => {
                    assert_eq!(error, Errno::EBUSY);
                    reached("busy");
                }
            }
        }
        Scenario::of(World::<2>::at_the_wrap().holding(&[1, 11]))
            .role("consumer", pop)
            .role("consumer", pop)
            .finally(World::settle)
    });
}

#[test]
fn a_foreign_consumer_finds_whole_results_in_order() {
    Model::of(
        &[ExactlyOnce, Order, Wrap],
        &["stored", "full", "popped", "empty"],
    )
    .check(|| {
        Scenario::of(World::<1>::at_the_wrap())
            .role("producer", |w| w.produce(&[1, 2]))
            .role("foreign consumer", |w| {
                let ring = &w.pages[0].ring;
                for _ in 0..2 {
                    let iuser = ring.uring().iuser();
                    let at = iuser.load(Ordering::Relaxed) as usize;
                    let Some(whole) = ring.results()[at].take() else {
                        reached("empty");
                        continue;
                    };
                    let next = (at + 1) % ring.results().len();
                    iuser.store(next as u32, Ordering::Release);
                    assert_eq!(whole, result(whole.cookie), "torn");
                    w.taken.lock().unwrap().push(whole.cookie);
                    reached("popped");
                }
            })
            .finally(World::settle)
    });
}

#[test]
fn the_public_tail_is_exact_in_memory_that_is_given_back() {
    Model::of(&[Truth], &["stored", "exact"]).check(|| {
        Scenario::of(World::<4>::at_the_wrap())
            .role("producer", |w| w.produce(&[1]))
            .role("producer", |w| w.produce(&[11]))
            .finally(|w| {
                w.close();
                let ikernel = w.pages[0].ring.uring().ikernel();
                assert_eq!(ikernel.load(Ordering::Relaxed), 2, "results");
                reached("exact");
                w.settle();
            })
    });
}

#[test]
fn who_sleeps_is_woken_for_a_result() {
    Model::of(&[NoLostWakeup, Order], &["stored", "slept"]).check(|| {
        Scenario::of(World::<1>::at_the_wrap())
            .role("producer", |w| w.produce(&[1]))
            .role("consumer", |w| w.take(1))
            .finally(World::settle)
    });
}

#[test]
fn who_sleeps_is_woken_for_both() {
    Model::of(&[NoLostWakeup, Order], &["stored", "slept"])
        .bounded_always(
            1,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::<2>::at_the_wrap())
                .role("producer", |w| w.produce(&[1]))
                .role("producer", |w| w.produce(&[11]))
                .role("consumer", |w| w.take(2))
                .finally(World::settle)
        });
}

/// The one that hides it wakes.
#[test]
fn who_sleeps_is_not_woken_for_a_hidden_one() {
    Model::of(&[NoLostWakeup, Order], &["stored", "woken"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::<2>::at_the_wrap().drained())
                .role("producer", |w| w.produce(&[1]))
                .role("producer", |w| w.produce(&[11]))
                .role("consumer", |w| {
                    block_on(w.asyncfd.readable());
                    reached("woken");
                    assert_ne!(w.pop(2), Ok(0), "woken for nothing");
                })
                .finally(World::settle)
        });
}

#[test]
fn who_is_awake_is_told_once() {
    Model::of(&[NoLostWakeup, Progress], &["stored", "slept"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::<1>::at_the_wrap().drained())
                .role("producer", |w| w.produce(&[1]))
                .role("consumer", |w| {
                    w.take(1);
                    // Nothing comes any more.
                    assert_eq!(w.drain(), Drained::Empty);
                })
                .finally(|w| {
                    // Who stored may have told only after that.
                    assert_eq!(w.drain(), Drained::Empty);
                    assert!(!w.asyncfd.is_readable(), "readable for ever");
                    w.settle();
                })
        });
}

/// As one who reads it out himself, and then takes the memory for something else.
#[test]
fn nobody_writes_a_ring_that_was_replaced() {
    Model::of(
        &[Reclamation, ExactlyOnce, NoLoss, Order, Wrap],
        &["stored", "replaced"],
    )
    .check(|| {
        Scenario::of(World::<2>::at_the_wrap())
            .role("producer", |w| w.produce(&[1]))
            .role("owner", |w| {
                w.replace();
                // Still the asyncfd's; but nobody else uses it.
                w.pages[0].give_back();
                w.pop(4).expect("an honest index");
                reached("replaced");
            })
            .finally(World::settle)
    });
}

#[test]
fn the_last_of_two_who_leave_a_replaced_ring_tells() {
    Model::of(
        &[Reclamation, NoLostWakeup, Wrap],
        &["stored", "full", "replaced"],
    )
    .bounded_always(
        2,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        Scenario::of(World::<1>::at_the_wrap())
            .role("producer", |w| w.produce(&[1]))
            .role("producer", |w| w.produce(&[11]))
            .role("owner", |w| {
                w.replace();
                w.pages[0].give_back();
                reached("replaced");
            })
            .finally(World::settle)
    });
}

#[test]
fn results_of_a_replaced_ring_are_read_first() {
    Model::of(
        &[ExactlyOnce, NoLoss, Order, Reclamation],
        &["stored", "replaced", "popped", "empty"],
    )
    .bounded_always(
        1,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        Scenario::of(World::<2>::at_the_wrap())
            .role("producer", |w| w.produce(&[1, 2]))
            .role("owner", |w| {
                w.replace();
                reached("replaced");
            })
            .role("consumer", |w| w.consume(&[1, 1]))
            .finally(World::settle)
    });
}

#[test]
fn unread_results_of_a_replaced_ring_are_readable() {
    Model::of(
        &[NoLostWakeup, NoLoss, Order],
        &["replaced", "slept", "awake"],
    )
    .bounded_always(
        2,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        Scenario::of(World::<1>::at_the_wrap().holding(&[1]))
            .role("owner", |w| {
                w.replace();
                assert_eq!(w.add(&[2]), Ok(1), "a new ring");
                reached("replaced");
            })
            .role("consumer", |w| {
                assert_eq!(w.drain(), Drained::Unread, "it looks empty");
                reached("awake");
                w.take(2);
            })
            .finally(World::settle)
    });
}

/// The first producer may be stopped in the old ring, while the other one stores
/// behind it, in the new one.
#[test]
fn who_leaves_a_replaced_ring_last_uncovers_the_next_one() {
    Model::of(&[NoLostWakeup, Order], &["stored", "unread", "empty"])
        .bounded_always(
            1,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::<2>::at_the_wrap().drained())
                .role("producer", |w| w.produce(&[1]))
                .role("owner and producer", |w| {
                    let replaced = w.asyncfd.replace(Lent::new(&w.pages[1]));
                    drop(replaced.expect("nobody else replaces it"));
                    w.produce(&[11]);
                })
                .role("consumer", |w| {
                    w.pop(1).expect("an honest index");
                    match w.drain() {
                        Drained::Unread => reached("unread"),
                        Drained::Empty => reached("empty"),
                    }
                })
                .finally(|w| {
                    w.is_readable_if_unread();
                    w.settle();
                })
        });
}

#[test]
fn one_replaces_at_a_time() {
    Model::of(
        &[ExactlyOnce, Reclamation, Progress],
        &["replaced", "busy", "both"],
    )
    .bounded_always(
        2,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        fn replace(w: &World<2>, i: usize) {
            match w.asyncfd.replace(Lent::new(&w.pages[i])) {
                Ok(replaced) => {
                    block_on(replaced);
                    reached("replaced");
                    assert_eq!(w.add(&[i as u64 * 10 + 1]), Ok(1), "a new ring");
                }
                Err(refused) => {
                    assert_eq!(refused.error, Errno::EBUSY);
                    reached("busy");
                }
            }
        }
        let mut world = World::<2>::at_the_wrap().holding(&[31]);
        world.pages = [Page::new(), Page::new()];
        Scenario::of(world)
            .role("owner", |w| replace(w, 0))
            .role("owner", |w| replace(w, 1))
            .finally(|w| {
                if w.stored.lock().unwrap().len() == 3 {
                    reached("both");
                }
                w.settle();
            })
    });
}

#[test]
fn a_ring_is_replaced_or_it_is_closed() {
    Model::of(
        &[ExactlyOnce, Reclamation, Progress],
        &["replaced", "closed"],
    )
    .check(|| {
        Scenario::of(World::<1>::at_the_wrap().holding(&[1]))
            .role("owner", |w| {
                match w.asyncfd.replace(Lent::new(&w.pages[1])) {
                    Ok(replaced) => {
                        block_on(replaced);
                        reached("replaced");
                    }
                    Err(refused) => {
                        assert_eq!(refused.error, Errno::EBADFD);
                        // Its owner's alone again.
                        w.pages[1].give_back();
                        reached("closed");
                    }
                }
            })
            .role("closer", World::close)
            .finally(|w| {
                assert_eq!(w.add(&[2]), Err(Errno::EBADFD));
                w.settle();
            })
    });
}

#[test]
fn nobody_writes_a_closed_ring() {
    Model::of(
        &[Reclamation, ExactlyOnce, NoLoss, Wrap],
        &["stored", "full", "closed"],
    )
    .bounded_always(
        2,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        Scenario::of(World::<1>::at_the_wrap())
            .role("producer", |w| w.produce(&[1]))
            .role("producer", |w| w.produce(&[11]))
            .role("closer", |w| {
                w.close();
                w.pages[0].give_back();
                assert_eq!(w.add(&[21]), Err(Errno::EBADFD));
            })
            .finally(World::settle)
    });
}

#[test]
fn each_who_closes_waits_for_who_writes() {
    Model::of(&[Reclamation, ExactlyOnce], &["stored", "closed"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            type Closed = (World<1>, Count);
            fn close((w, found): &Closed) {
                w.close();
                // For reading: the other one looks too.
                let cookie = w.pages[0].ring.results()[0].cookie();
                found.add(cookie.load(Ordering::Relaxed));
            }
            Scenario::of((World::at_the_wrap(), Count::new()))
                .role("producer", |(w, _)| w.produce(&[1]))
                .role("closer", close)
                .role("closer", close)
                .finally(|(w, found): &Closed| {
                    let stored = w.stored.lock().unwrap().len() as u64;
                    assert_eq!(found.get(), 2 * stored, "stored when it was closed");
                    w.settle();
                })
        });
}

/// Who closes wakes all who wait, also those who wait for something else.
#[test]
fn a_replacement_is_not_over_because_it_is_closed() {
    Model::of(
        &[Reclamation, Progress],
        &["stored", "closed", "replaced", "refused"],
    )
    .bounded_always(
        2,
        "more than 500,000 executions unbounded, without repetitions",
    )
    .check(|| {
        Scenario::of(World::<1>::at_the_wrap())
            .role("producer", |w| w.produce(&[1]))
            .role("closer", |w| drop(w.asyncfd.close()))
            .role("owner", |w| {
                match w.asyncfd.replace(Lent::new(&w.pages[1])) {
                    Ok(replaced) => {
                        block_on(replaced);
                        w.pages[0].give_back();
                        reached("replaced");
                    }
                    Err(refused) => {
                        assert_eq!(refused.error, Errno::EBADFD);
                        reached("refused");
                    }
                }
            })
            .finally(World::settle)
    });
}

/// Nobody waits for the ring that was replaced but who closes.
#[test]
fn nobody_writes_any_ring_of_a_closed_one() {
    Model::of(&[Reclamation, ExactlyOnce], &["stored", "closed"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(World::<1>::at_the_wrap())
                .role("producer", |w| w.produce(&[1]))
                .role("owner", |w| {
                    let replaced = w.asyncfd.replace(Lent::new(&w.pages[1]));
                    drop(replaced.expect("nobody else replaces it"));
                    w.close();
                    w.pages[0].give_back();
                    w.pages[1].give_back();
                })
                .finally(World::settle)
        });
}

#[test]
fn who_sleeps_is_woken_when_it_is_closed() {
    Model::of(&[NoLostWakeup, Progress], &["slept"]).check(|| {
        Scenario::of(World::<1>::at_the_wrap())
            .role("closer", |w| drop(w.asyncfd.close()))
            .role("consumer", |w| {
                while !w.asyncfd.is_closed() {
                    if w.drain() == Drained::Empty {
                        reached("slept");
                        block_on(w.asyncfd.readable());
                    }
                }
            })
            .finally(World::settle)
    });
}

/// With all four rings in use, and the first of them just being read.
#[test]
fn a_place_is_a_rings_again_when_the_last_one_was_read() {
    Model::of(
        &[Reclamation, ExactlyOnce, Order, Wrap],
        &["replaced", "busy", "popped"],
    )
    .check(|| {
        let mut world = World::<1>::at_the_wrap().holding(&[1]);
        for value in [2, 3, 4] {
            world.replace();
            world.pages[1] = Page::new();
            world = world.holding(&[value]);
        }
        Scenario::of(world)
            .role("owner", |w| {
                match w.asyncfd.replace(Lent::new(&w.pages[1])) {
                    Ok(replaced) => {
                        block_on(replaced);
                        assert_eq!(w.add(&[5]), Ok(1), "a new ring");
                        reached("replaced");
                    }
                    Err(refused) => {
                        assert_eq!(refused.error, Errno::EBUSY);
                        reached("busy");
                    }
                }
            })
            .role("consumer", |w| w.consume(&[2]))
            .finally(World::settle)
    });
}

/// `iuser` beyond the ring; over an unread result; and back.
#[test]
fn a_hostile_iuser_harms_only_its_owner() {
    Model::of(&[HostileMemory], &["stored", "popped", "empty", "refused"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::<2>::at_the_wrap().holding(&[1]))
                .role("scribbler", |w| {
                    let iuser = w.pages[0].ring.uring().iuser();
                    for index in [u32::MAX, 1] {
                        iuser.store(index, Ordering::Relaxed);
                        pause();
                    }
                })
                .role("producer", |w| w.produce(&[11]))
                .role("consumer", |w| {
                    let popped = w.pop(2);
                    let drained = w.asyncfd.drain();
                    reached(match (popped, drained) {
                        (Err(Errno::EFAULT), _) | (_, Err(Errno::EFAULT)) => "refused",
                        (Ok(0), _) => "empty",
                        (Ok(_), _) => "popped",
                        (Err(error), _) => panic!("{error}"),
                    });
                })
                .finally(|w| {
                    // To each place: all goes on from there.
                    for index in [0, 1, 0, 1] {
                        let iuser = w.pages[0].ring.uring().iuser();
                        iuser.store(index, Ordering::Relaxed);
                        w.pop(1).expect("an honest index");
                    }
                    w.settle();
                    let iuser = w.pages[0].ring.uring().iuser();
                    iuser.store(0, Ordering::Relaxed);
                    assert_eq!(w.add(&[21]), Ok(1), "room was lost");
                    w.settle();
                })
        });
}

/// Nobody consumes: who scribbles on a result may read anything.
#[test]
fn hostile_cookies_harm_only_their_owner() {
    Model::of(&[HostileMemory, Progress], &["stored", "full"])
        .bounded(2, "more than 100,000 executions at bound 3")
        .check(|| {
            Scenario::of(World::<1>::at_the_wrap())
                .role("scribbler", |w| {
                    let cookie = w.pages[0].ring.results()[0].cookie();
                    for value in [u64::MAX, 0] {
                        cookie.store(value, Ordering::Release);
                        pause();
                    }
                })
                .role("producer", |w| w.produce(&[1]))
                .role("producer", |w| w.produce(&[11]))
                .finally(|w| {
                    // Takes what there is, if anything.
                    let cookie = w.pages[0].ring.results()[0].cookie();
                    cookie.store(0, Ordering::Relaxed);
                    w.stored.lock().unwrap().clear();
                    assert_eq!(w.add(&[21]), Ok(1), "room was lost");
                    w.settle();
                })
        });
}

#[test]
fn a_hostile_ikernel_harms_only_its_owner() {
    Model::of(&[HostileMemory], &["replaced", "refused"]).check(|| {
        Scenario::of(World::<2>::at_the_wrap())
            .role("scribbler", |w| {
                let ikernel = w.pages[1].ring.uring().ikernel();
                for index in [u32::MAX, 1] {
                    ikernel.store(index, Ordering::Relaxed);
                    pause();
                }
            })
            .role("owner", |w| {
                match w.asyncfd.replace(Lent::new(&w.pages[1])) {
                    Ok(replaced) => {
                        block_on(replaced);
                        assert_eq!(w.add(&[1, 2, 3]), Ok(2), "not all there is room for");
                        reached("replaced");
                    }
                    Err(refused) => {
                        assert_eq!(refused.error, Errno::EFAULT);
                        reached("refused");
                    }
                }
            })
            .finally(|w| {
                // Its consumer follows.
                for index in [0, 1, 0] {
                    let iuser = w.pages[1].ring.uring().iuser();
                    iuser.store(index, Ordering::Relaxed);
                    w.pop(1).expect("an honest index");
                }
                let taken = w.taken.lock().unwrap().len();
                assert_eq!(taken, w.stored.lock().unwrap().len(), "lost");
            })
    });
}

/// What a request polls, which keeps it.
struct Polls(Track<Arc<Asyncfd<Lent<1>>>>);

// SAFETY: the asyncfd is there as long as this.
unsafe impl Source for Polls {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        self.0.get_ref().heads(visit);
    }
    fn mask(&self) -> u16 {
        self.0.get_ref().mask()
    }
}

type Slots = slots::Inline<Polls, 1, 1, Heads<1>>;

/// An asyncfd whose consumer has seen all, and a context to poll it.
struct Poller {
    asyncfd: Arc<Asyncfd<Lent<1>>>,
    context: ManuallyDrop<Pin<Box<Context<ring::Inline<2>, Slots>>>>,
}

impl Poller {
    fn new() -> Self {
        let asyncfd = Asyncfd::new_at(Lent::new(&Page::new()), LAP, ENTRIES).expect("a ring");
        assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
        let slots = Slots::new(Generation::MAX);
        let context = Context::new_at(ring::Inline::new(), u64::MAX, slots);
        Self {
            asyncfd: Arc::new(asyncfd),
            context: ManuallyDrop::new(Box::pin(context.expect("they fit"))),
        }
    }

    fn poll(&self) {
        let payload = Polls(Track::new(Arc::clone(&self.asyncfd)));
        let reserved = self.context.reserve_one().expect("there is room");
        let request = reserved.fill(Iocb { data: 1, obj: 2 }, payload);
        let polled = self.context.as_ref().poll(request, IN);
        assert!(polled.is_ok());
    }

    /// What it completed with, if it did.
    fn reap(&self) -> Option<i64> {
        let mut out = [None];
        self.context.reap(&mut out).expect("a Native ring");
        let [done] = out;
        done.map(|done| done.event.res)
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: dropped once, and not used any more.
            unsafe { ManuallyDrop::drop(&mut self.context) };
        }
    }
}

#[test]
fn who_polls_it_is_told_of_a_result() {
    Model::of(
        &[NoLostWakeup, ExactlyOnce, Reclamation],
        &["ready at once", "armed"],
    )
    .check(|| {
        Scenario::of(Poller::new())
            .role("producer", |p| {
                assert_eq!(p.asyncfd.add_results(&[result(1)]), Ok(1));
            })
            .role("submitter", |p| {
                p.poll();
                match p.reap() {
                    Some(events) => {
                        assert_eq!(events, IN.into());
                        reached("ready at once");
                        let mut out = [AsyncfdResult::default()];
                        assert_eq!(p.asyncfd.drain(), Ok(Drained::Unread));
                        assert_eq!(p.asyncfd.pop(&mut out), Ok(1), "nothing to read");
                    }
                    None => reached("armed"),
                }
            })
            .finally(|p| {
                let events = p.reap().unwrap_or(IN.into());
                assert_eq!(events, IN.into());
                assert_eq!(p.context.reserve(1).map(|all| all.len()), Ok(1), "not told");
            })
    });
}

#[test]
fn who_polls_it_is_told_that_it_is_closed() {
    Model::of(
        &[NoLostWakeup, ExactlyOnce, Reclamation],
        &["ready at once", "armed"],
    )
    .bounded(3, "more than 100,000 executions unbounded")
    .check(|| {
        Scenario::of(Poller::new())
            .role("closer", |p| drop(p.asyncfd.close()))
            .role("submitter", |p| {
                p.poll();
                reached(match p.reap() {
                    Some(events) => {
                        assert_ne!(events & i64::from(HUP), 0, "{events:#x}");
                        "ready at once"
                    }
                    None => "armed",
                });
            })
            .finally(|p| {
                let events = p.reap().unwrap_or(HUP.into());
                assert_ne!(events & i64::from(HUP), 0, "{events:#x}");
                assert_eq!(p.context.reserve(1).map(|all| all.len()), Ok(1), "not told");
            })
    });
}

impl<const N: usize> World<N> {
    fn is_readable_if_unread(&self) {
        let readable = self.asyncfd.is_readable();
        let n = self.pop(1).expect("an honest index");
        assert!(readable || n == 0, "unread, and nobody was told");
    }
}

/// Somebody who is asleep is told, although who pops is not: the one who stored saw it
/// behind what was popped then, and who stored that saw nothing left.
#[test]
fn who_pops_in_between_leaves_it_readable() {
    Model::of(&[NoLostWakeup], &["popped", "stored", "empty"])
        .bounded_always(
            2,
            "more than 500,000 executions unbounded, without repetitions",
        )
        .check(|| {
            Scenario::of(World::<2>::at_the_wrap().drained())
                .role("producer", |w| w.produce(&[1]))
                .role("producer", |w| w.produce(&[11]))
                .role("popper", |w| w.consume(&[1]))
                .finally(World::is_readable_if_unread)
        });
}
