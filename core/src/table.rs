//! Contexts by number: look-up against removal.
//!
//! Looked up on every call, changed when a context is created or destroyed:
//! read-mostly, many readers, and a removed entry must stay readable for those
//! who are just reading it. That is what deferred
//! [reclamation](crate::sync::reclaim) is for.
//!
//! An entry holds a counted reference. A look-up, pinned, clones it: the
//! table's own reference is dropped only when nobody is pinned any more who
//! could be cloning it, so the count is never raised from zero. What a look-up
//! finds may be destroyed right then; its operations then answer EINVAL, as
//! [`Life::try_get`](crate::life::Life::try_get) refuses.
//!
//! | | `get` | `remove` | `insert` |
//! |---|---|---|---|
//! | empty place | nothing | nothing | takes it |
//! | entry with this number | the entry | **the entry**, place empty | next place |
//! | entry with another number | nothing | nothing | next place |
//!
//! Numbers are not used again until 2^64 were handed out. Lock-free; `insert`
//! and joining allocate, and dropping a retired reference may happen in any
//! later operation of any member: for ordinary callers.

use alloc::{boxed::Box, sync::Arc};

use crate::{
    error::Errno,
    sync::{
        atomic::{AtomicU64, Ordering},
        reclaim::{Cell, Collector, Participant},
    },
};

/// What names an entry. Never zero.
pub type Id = u64;

struct Entry<C> {
    id: Id,
    value: Arc<C>,
}

/// A table of shared values by number. See the [module](self).
///
/// ```
/// # uaio_core::sync::thread::model(|| (|| {
/// use std::sync::Arc;
/// use uaio_core::{context::BoxedContext, table::Table};
///
/// let table = Table::new(16);
/// let member = table.join();
/// let id = member.insert(Arc::new(BoxedContext::<()>::boxed(8)?))?;
/// assert_eq!(member.get(id).unwrap().capacity(), 8);
///
/// let context = member.remove(id).unwrap();
/// assert!(member.get(id).is_none());
/// drop(context.destroy(|_| ()));
/// # Ok::<(), uaio_core::Errno>(())
/// # })().unwrap());
/// ```
pub struct Table<C> {
    /// Before the collector: dropping a cell drops what is in it.
    places: Box<[Cell<Entry<C>>]>,
    serial: AtomicU64,
    collector: Collector,
}

impl<C> core::fmt::Debug for Table<C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Table")
            .field("capacity", &self.places.len())
            .finish_non_exhaustive()
    }
}

impl<C: Send + Sync + 'static> Table<C> {
    /// An empty table with room for `capacity` entries (at least one).
    pub fn new(capacity: usize) -> Self {
        Self {
            places: (0..capacity.max(1)).map(|_| Cell::empty()).collect(),
            serial: AtomicU64::new(1),
            collector: Collector::new(),
        }
    }

    /// Joins the table: one member per thread, to be kept. Allocates.
    pub fn join(&self) -> Member<'_, C> {
        Member {
            table: self,
            participant: self.collector.join(),
        }
    }

    fn place(&self, id: Id) -> &Cell<Entry<C>> {
        &self.places[(id % self.places.len() as u64) as usize]
    }
}

/// One thread's access to a [`Table`].
#[derive(Debug)]
pub struct Member<'t, C> {
    table: &'t Table<C>,
    participant: Participant,
}

impl<C: Send + Sync + 'static> Member<'_, C> {
    /// Adds `value` and tells its number.
    ///
    /// # Errors
    ///
    /// EAGAIN when the table is full.
    pub fn insert(&self, value: Arc<C>) -> Result<Id, Errno> {
        let pinned = self.participant.pin();
        let mut entry = Box::new(Entry { id: 0, value });
        for _ in 0..self.table.places.len() {
            // Ordering: Relaxed. Only uniqueness is asked of it.
            let id = self.table.serial.fetch_add(1, Ordering::Relaxed);
            if id == 0 {
                continue;
            }
            entry.id = id;
            match self.table.place(id).put(entry, &pinned) {
                Ok(()) => return Ok(id),
                Err(refused) => entry = refused,
            }
        }
        Err(Errno::EAGAIN)
    }

    /// The entry with this number, if it is there. A number from nowhere is
    /// simply not there.
    pub fn get(&self, id: Id) -> Option<Arc<C>> {
        let pinned = self.participant.pin();
        // SAFETY: the table's cells are used with its one collector.
        let entry = unsafe { self.table.place(id).get(&pinned) };
        entry
            .filter(|entry| entry.id == id)
            .map(|entry| Arc::clone(&entry.value))
    }

    /// Takes the entry with this number out. Of several callers one gets it.
    pub fn remove(&self, id: Id) -> Option<Arc<C>> {
        let pinned = self.participant.pin();
        let place = self.table.place(id);
        // SAFETY: the table's cells are used with its one collector.
        let entry = unsafe { place.retire_if(&pinned, |entry| entry.id == id) };
        entry.map(|entry| Arc::clone(&entry.value))
    }
}
