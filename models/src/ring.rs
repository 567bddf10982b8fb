//! The completion ring.

use std::sync::{Arc, Mutex};

use uaio_core::{
    Errno,
    ring::{Boxed, Event, EventCell, Header, Inline, MarkCell, Ring, RingMemory},
    sync::atomic::Ordering,
};

use crate::{
    Model, Scenario,
    Theorem::{
        ExactlyOnce, HostileMemory, NoLoss, NoLostWakeup, Order, Progress, Reclamation, Truth, Wrap,
    },
    harness::pause,
    reached,
};

/// An event whose every word follows from `value`: a torn one shows.
fn event(value: u64) -> Event {
    Event {
        data: value,
        obj: !value,
        res: value.rotate_left(17) as i64,
        res2: -(value as i64),
    }
}

fn value(whole: Event) -> u64 {
    assert_eq!(whole, event(whole.data), "torn");
    whole.data
}

/// A ring, what went in and what came out.
struct World<M> {
    ring: Ring<M>,
    stored: Mutex<Vec<u64>>,
    reaped: Mutex<Vec<u64>>,
}

/// Starts with the last position, so that the next one is zero, a lap later.
fn at_the_wrap<const N: usize>() -> World<Inline<N>> {
    World::of(Ring::new_at(Inline::new(), u64::MAX))
}

/// A ring in Linux's layout, and its memory as foreign code sees it.
struct Mapped {
    world: World<Pages>,
    pages: Pages,
}

#[derive(Clone)]
struct Pages(Arc<Boxed>);

// SAFETY: the same memory as the boxed one's, which promises all of it.
unsafe impl RingMemory for Pages {
    fn events(&self) -> &[EventCell] {
        self.0.events()
    }
    fn marks(&self) -> &[MarkCell] {
        self.0.marks()
    }
    fn header(&self) -> Option<&Header> {
        self.0.header()
    }
}

/// Starts with the last lap.
fn in_linux_layout(values: &[u64]) -> Mapped {
    let pages = Pages(Arc::new(Boxed::abi(7, 3).expect("a small ring")));
    let ring = Ring::new_at(pages.clone(), u64::MAX - 3);
    Mapped {
        world: World::of(ring).holding(values),
        pages,
    }
}

impl<M: RingMemory> World<M> {
    fn of(ring: Ring<M>) -> Self {
        Self {
            ring,
            stored: Mutex::default(),
            reaped: Mutex::default(),
        }
    }

    fn holding(self, values: &[u64]) -> Self {
        assert!(self.push(values));
        self
    }

    /// Stores what there is room for: values that ascend, per producer.
    fn push(&self, values: &[u64]) -> bool {
        let mut events = [Event::default(); 4];
        for (slot, value) in events.iter_mut().zip(values) {
            *slot = event(*value);
        }
        let n = self.ring.push(&events[..values.len()]);
        self.stored.lock().unwrap().extend(&values[..n]);
        n == values.len()
    }

    fn produce(&self, values: &[u64]) {
        for value in values {
            if !self.push(&[*value]) {
                reached("full");
            }
            pause();
        }
    }

    /// Reaps at most `max`; what one reaper sees of a producer ascends.
    fn reap(&self, max: usize, last: &mut [u64; 3]) -> Result<usize, Errno> {
        let mut out = [Event::default(); 4];
        let n = self.ring.reap(&mut out[..max])?;
        for event in &out[..n] {
            let value = value(*event);
            let last = &mut last[value as usize / 10];
            assert!(*last < value, "{value} after {last}");
            *last = value;
        }
        let values = out[..n].iter().map(|event| event.data);
        self.reaped.lock().unwrap().extend(values);
        Ok(n)
    }

    fn consume(&self, sizes: &[usize]) {
        let mut last = [0; 3];
        for max in sizes {
            match self.reap(*max, &mut last) {
                Ok(0) => reached("empty"),
                Ok(_) => reached("reaped"),
                Err(error) => panic!("{error}"),
            }
            pause();
        }
    }

    /// What went in came out, once.
    fn settle(&self) {
        while self.reap(4, &mut [0; 3]).expect("nobody else reaps") > 0 {}
        let (mut stored, mut reaped) = (self.stored.lock().unwrap(), self.reaped.lock().unwrap());
        stored.sort_unstable();
        reaped.sort_unstable();
        assert_eq!(*stored, *reaped);
    }
}

#[test]
fn one_producer_one_reaper_lose_nothing() {
    Model::of(
        &[ExactlyOnce, NoLoss, Order, Wrap],
        &["reaped", "empty", "full"],
    )
    .check(|| {
        Scenario::of(at_the_wrap::<2>())
            .role("producer", |w| w.produce(&[1, 2, 3]))
            .role("reaper", |w| w.consume(&[1, 1]))
            .finally(World::settle)
    });
}

#[test]
fn a_run_can_be_reaped_in_parts() {
    Model::of(&[ExactlyOnce, Order, Wrap], &["reaped", "empty"]).check(|| {
        Scenario::of(at_the_wrap::<2>())
            .role("producer", |w| {
                w.push(&[1, 2]);
                w.push(&[3, 4]);
            })
            .role("reaper", |w| w.consume(&[1, 2]))
            .finally(World::settle)
    });
}

#[test]
fn two_producers_lose_nothing() {
    Model::of(&[ExactlyOnce, NoLoss, Order, Wrap], &["reaped", "empty"]).check(|| {
        Scenario::of(at_the_wrap::<2>())
            .role("producer", |w| w.produce(&[1]))
            .role("producer", |w| w.produce(&[11]))
            .role("reaper", |w| w.consume(&[1, 1]))
            .finally(World::settle)
    });
}

#[test]
fn two_producers_of_runs_lose_nothing() {
    Model::of(&[ExactlyOnce, NoLoss, Order, Wrap], &["reaped", "empty"]).check(|| {
        Scenario::of(at_the_wrap::<4>())
            .role("producer", |w| {
                w.push(&[1, 2]);
            })
            .role("producer", |w| {
                w.push(&[11, 12]);
            })
            .role("reaper", |w| w.consume(&[3]))
            .finally(World::settle)
    });
}

#[test]
fn what_is_visible_can_be_reaped() {
    Model::of(&[Order, NoLostWakeup], &["none", "one", "both"]).check(|| {
        Scenario::of(at_the_wrap::<2>())
            .role("producer", |w| w.produce(&[1]))
            .role("producer", |w| w.produce(&[11]))
            .role("reaper", |w| {
                let visible = w.ring.visible(2);
                reached(["none", "one", "both"][visible]);
                let n = w.reap(2, &mut [0; 3]).expect("a Native ring");
                assert!(n >= visible, "{visible} visible, {n} reaped");
            })
            .finally(World::settle)
    });
}

/// Who looks may look where the ring has wrapped meanwhile, then in the middle of
/// a run.
#[test]
fn a_ring_that_is_never_empty_never_looks_empty() {
    Model::of(&[NoLostWakeup, Wrap], &["one", "more", "reaped"]).check(|| {
        Scenario::of(at_the_wrap::<4>().holding(&[1, 2, 3, 4]))
            .role("reaper and producer", |w| {
                w.consume(&[2]);
                w.push(&[5, 6]);
                w.consume(&[3]);
            })
            .role("observer", |w| {
                let visible = w.ring.visible(4);
                assert_ne!(visible, 0, "it looks empty");
                reached(if visible == 1 { "one" } else { "more" });
            })
            .finally(World::settle)
    });
}

/// The second reaper may find its old position overwritten, and then starts in the
/// middle of a run.
#[test]
fn a_late_reaper_reads_the_rest_of_a_run() {
    Model::of(&[Order, ExactlyOnce], &["reaped", "empty", "full"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(at_the_wrap::<2>())
                .role("producer", |w| {
                    w.push(&[1, 2]);
                    w.produce(&[3]);
                })
                .role("reaper", |w| w.consume(&[1]))
                .role("reaper", |w| w.consume(&[1]))
                .finally(World::settle)
        });
}

#[test]
fn two_reapers_take_each_event_once() {
    Model::of(&[ExactlyOnce, Wrap], &["reaped", "empty"]).check(|| {
        Scenario::of(at_the_wrap::<2>().holding(&[1]))
            .role("producer", |w| w.produce(&[2]))
            .role("reaper", |w| w.consume(&[1]))
            .role("reaper", |w| w.consume(&[1]))
            .finally(World::settle)
    });
}

#[test]
fn two_reapers_share_a_run() {
    Model::of(&[ExactlyOnce, Wrap], &["reaped", "empty"]).check(|| {
        Scenario::of(at_the_wrap::<4>().holding(&[1]))
            .role("producer", |w| {
                w.push(&[2, 3]);
            })
            .role("reaper", |w| w.consume(&[2]))
            .role("reaper", |w| w.consume(&[2]))
            .finally(World::settle)
    });
}

#[test]
fn room_returns_only_after_the_slower_reaper_copied() {
    Model::of(&[Reclamation, NoLoss, Wrap], &["reaped", "full"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(at_the_wrap::<2>().holding(&[1, 2]))
                .role("producer", |w| w.produce(&[11, 12]))
                .role("reaper", |w| w.consume(&[1]))
                .role("reaper", |w| w.consume(&[1]))
                .finally(World::settle)
        });
}

#[test]
fn two_producers_two_reapers_lose_nothing() {
    Model::of(&[ExactlyOnce, NoLoss, Order, Wrap], &["reaped", "empty"])
        .bounded(2, "four parties: 168,000 executions at bound 3")
        .check(|| {
            Scenario::of(at_the_wrap::<2>())
                .role("producer", |w| w.produce(&[1]))
                .role("producer", |w| w.produce(&[11]))
                .role("reaper", |w| w.consume(&[1]))
                .role("reaper", |w| w.consume(&[1]))
                .finally(World::settle)
        });
}

impl Mapped {
    fn header(&self) -> &Header {
        self.pages.header().expect("there is one")
    }

    /// Reaps as foreign code does: from the header alone.
    fn reap_foreign(&self, looks: usize) {
        let header = self.header();
        let cells = self.pages.events();
        let mut last = [0; 3];
        for _ in 0..looks {
            let mut head = header.head().load(Ordering::Relaxed) as usize;
            let tail = header.tail().load(Ordering::Acquire) as usize;
            reached(if head == tail { "empty" } else { "reaped" });
            while head != tail {
                let value = value(cells[head].load());
                let last = &mut last[value as usize / 10];
                assert!(*last < value, "{value} after {last}");
                *last = value;
                self.world.reaped.lock().unwrap().push(value);
                head = (head + 1) % cells.len();
                header.head().store(head as u32, Ordering::Release);
            }
            pause();
        }
    }
}

#[test]
fn a_foreign_reaper_finds_whole_events_in_order() {
    Model::of(&[Order, ExactlyOnce], &["reaped", "empty"])
        .bounded(3, "more than 100,000 executions unbounded")
        .check(|| {
            Scenario::of(in_linux_layout(&[]))
                .role("producer", |m| m.world.produce(&[1]))
                .role("producer", |m| m.world.produce(&[11]))
                .role("foreign reaper", |m| m.reap_foreign(1))
                .finally(|m| m.world.settle())
        });
}

#[test]
fn no_more_is_visible_in_linux_layout_than_there_was() {
    Model::of(&[Order, Truth], &["none", "one", "reaped"]).check(|| {
        Scenario::of(in_linux_layout(&[]))
            .role("producer and reaper", |m| {
                m.world.produce(&[1]);
                m.world.consume(&[1]);
            })
            .role("observer", |m| {
                let visible = m.world.ring.visible(3);
                assert!(visible <= 1, "{visible} of one event");
                reached(if visible == 1 { "one" } else { "none" });
            })
            .finally(|m| m.world.settle())
    });
}

#[test]
fn room_returns_when_a_foreign_reaper_moved_the_head() {
    Model::of(&[NoLoss, Wrap], &["reaped", "full", "empty"]).check(|| {
        Scenario::of(in_linux_layout(&[1, 2]))
            // The last of them where the first was, which may still be copied.
            .role("producer", |m| m.world.produce(&[3, 4, 5]))
            .role("foreign reaper", |m| m.reap_foreign(2))
            .finally(|m| {
                m.reap_foreign(1);
                assert!(m.world.push(&[6]), "the room did not return");
                m.world.settle();
            })
    });
}

#[test]
fn room_that_another_producer_noticed_is_not_still_being_copied() {
    Model::of(&[NoLoss, Reclamation], &["reaped", "full"])
        .bounded(2, "more than 100,000 executions at bound 3")
        .check(|| {
            Scenario::of(in_linux_layout(&[1, 2, 3]))
                .role("producer", |m| m.world.produce(&[4]))
                .role("producer", |m| m.world.produce(&[11]))
                .role("foreign reaper", |m| {
                    // At once: the last one's room is where the first one was.
                    for (cell, expected) in m.pages.events().iter().zip([1, 2]) {
                        assert_eq!(value(cell.load()), expected);
                        m.world.reaped.lock().unwrap().push(expected);
                    }
                    m.header().head().store(2, Ordering::Release);
                    reached("reaped");
                })
                .finally(|m| m.world.settle())
        });
}

#[test]
fn the_last_publisher_projects_every_run() {
    Model::of(&[Order, Progress], &["all projected"]).check(|| {
        Scenario::of(in_linux_layout(&[]))
            .role("producer", |m| {
                m.world.push(&[1, 2]);
            })
            .role("producer", |m| {
                m.world.push(&[11]);
            })
            .finally(|m| {
                let header = m.header();
                assert_eq!(header.tail().load(Ordering::Relaxed), 3);
                reached("all projected");
                m.world.settle();
            })
    });
}

#[test]
fn only_one_reaps_a_ring_in_linux_layout() {
    Model::of(&[ExactlyOnce, Progress], &["reaped", "busy"]).check(|| {
        fn reap(m: &Mapped) {
            match m.world.reap(1, &mut [0; 3]) {
                Ok(n) => {
                    assert_eq!(n, 1, "two were there");
                    reached("reaped");
                }
                Err(error) => {
                    assert_eq!(error, Errno::EBUSY);
                    reached("busy");
                }
            }
        }
        Scenario::of(in_linux_layout(&[1, 2]))
            .role("reaper", reap)
            .role("reaper", reap)
            .finally(|m| m.world.settle())
    });
}

#[test]
fn a_hostile_head_harms_only_its_owner() {
    Model::of(&[HostileMemory], &["reaped", "empty", "refused", "skipped"]).check(|| {
        Scenario::of(in_linux_layout(&[1]))
            .role("scribbler", |m| {
                let header = m.header();
                // Beyond the ring; beyond what is published; over an event.
                for head in [u32::MAX, 3, 1] {
                    header.head().store(head, Ordering::Relaxed);
                    pause();
                }
            })
            .role("producer", |m| {
                m.world.push(&[2]);
            })
            .role("reaper", |m| match m.world.reap(2, &mut [0; 3]) {
                Ok(0) => reached("empty"),
                Ok(_) => reached("reaped"),
                Err(Errno::EFAULT) => reached("refused"),
                // The producer found it full, and looks how far the head is.
                Err(Errno::EBUSY) => {}
                Err(error) => panic!("{error}"),
            })
            .finally(|m| {
                // Back to a head that can be: all goes on from there.
                let header = m.header();
                let tail = header.tail().load(Ordering::Relaxed);
                header.head().store(tail, Ordering::Relaxed);
                assert_eq!(m.world.reap(4, &mut [0; 3]), Ok(0));
                let (mut stored, mut reaped) = (
                    m.world.stored.lock().unwrap(),
                    m.world.reaped.lock().unwrap(),
                );
                if reaped.len() < stored.len() {
                    reached("skipped");
                }
                reaped.sort_unstable();
                reaped.dedup();
                stored.retain(|value| reaped.contains(value));
                stored.sort_unstable();
                assert_eq!(*stored, *reaped, "doubled, or never stored");
                drop((stored, reaped));
                assert!(m.world.push(&[3]));
                assert_eq!(m.world.reap(4, &mut [0; 3]), Ok(1));
            })
    });
}
