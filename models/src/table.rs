//! Contexts by number, and the reclamation under them.

use std::{mem::ManuallyDrop, sync::Arc};

use uaio_core::{
    Errno,
    life::Life,
    sync::Track,
    table::{Id, Table},
};

use crate::{
    Model, Scenario,
    Theorem::{ExactlyOnce, Reclamation},
    block_on,
    harness::{Count, Handed, pause},
    reached,
};

/// What stands in the table: dropped only once, and only after everybody's use.
struct Thing {
    // Not dropped: std's `Arc` sees to it that everybody's use came before, by a counter
    // that no checker sees.
    life: ManuallyDrop<Life>,
    /// Written when the thing ends, read while it is used.
    used: ManuallyDrop<Handed<u64>>,
    _tracked: Track<()>,
}

impl Thing {
    fn new(value: u64) -> Arc<Self> {
        Arc::new(Self {
            life: ManuallyDrop::new(Life::new()),
            used: ManuallyDrop::new(Handed::new(value)),
            _tracked: Track::new(()),
        })
    }

    /// As every operation on what was looked up: counted, or refused.
    fn operate(&self) {
        match self.life.try_get(1) {
            Ok(()) => {
                assert_eq!(self.used.get(), 7);
                self.life.put(1);
                reached("used");
            }
            Err(error) => {
                assert_eq!(error, Errno::EINVAL);
                reached("found too late");
            }
        }
    }

    fn end(&self) {
        let first = self.life.end();
        assert!(first, "taken out by one alone");
        self.life.put(1);
        block_on(self.life.idle());
        // Nobody uses it any more, nor will.
        self.used.set(0);
    }
}

struct World {
    table: Table<Thing>,
    id: Id,
    removed: Count,
}

/// One entry, in a table of two.
fn world() -> World {
    let table = Table::new(2);
    let id = table.join().insert(Thing::new(7)).expect("room");
    World {
        table,
        id,
        removed: Count::default(),
    }
}

impl World {
    fn look_up(&self) {
        match self.table.join().get(self.id) {
            Some(thing) => {
                pause();
                thing.operate();
            }
            None => reached("not found"),
        }
    }

    fn remove(&self) {
        match self.table.join().remove(self.id) {
            Some(thing) => {
                self.removed.add(1);
                thing.end();
            }
            None => reached("removed by the other"),
        }
    }
}

#[test]
fn a_lookup_finds_a_live_entry_or_none() {
    Model::of(&[Reclamation], &["used", "found too late", "not found"]).check(|| {
        Scenario::of(world())
            .role("lookup", World::look_up)
            .role("remove", World::remove)
            .finally(|world| assert_eq!(world.removed.get(), 1))
    });
}

#[test]
fn an_entry_is_taken_out_by_one() {
    Model::of(&[ExactlyOnce, Reclamation], &["removed by the other"]).check(|| {
        Scenario::of(world())
            .role("remove", World::remove)
            .role("remove", World::remove)
            .finally(|world| assert_eq!(world.removed.get(), 1))
    });
}

#[test]
fn a_place_that_is_used_anew_answers_to_its_new_number_only() {
    Model::of(
        &[Reclamation, ExactlyOnce],
        &["used", "not found", "found too late"],
    )
    .check(|| {
        Scenario::of(world())
            .role("lookup", World::look_up)
            .role("replace", |world| {
                world.remove();
                let member = world.table.join();
                // The other place, and then the one that was just left.
                for _ in 0..2 {
                    let id = member.insert(Thing::new(0)).expect("room");
                    assert_ne!(id, world.id);
                }
                assert_eq!(member.insert(Thing::new(0)), Err(Errno::EAGAIN));
            })
            .finally(|world| assert!(world.table.join().get(world.id).is_none()))
    });
}
