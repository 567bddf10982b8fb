//! What the checkers see instead of epochs.
//!
//! It frees as early as the rules of reclamation allow: the moment the last
//! participant unpins that was pinned when the value was retired. Its
//! bookkeeping is a plain mutex that the checker does not see; what it shows
//! the checker are scheduling points (pinning and retiring touch one common
//! word, Relaxed, so that they come in every order and order nothing) and
//! exactly the happens-before that epochs promise: unpinning before freeing.

use std::{
    boxed::Box,
    fmt,
    marker::PhantomData,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool as Flag, Ordering as Plain},
    },
    vec::Vec,
};

use crate::sync::{
    Track,
    atomic::{AtomicPtr, AtomicUsize, Ordering, fence},
    cell::UnsafeCell,
};

/// How many guards there can be in one execution of a model.
const GUARDS: usize = 16;

trait Garbage: Send {
    /// # Safety
    ///
    /// Nobody uses the value any more.
    unsafe fn free(self: Box<Self>);
}

#[derive(Default)]
struct Books {
    /// Guards so far; each has its own word in `left`.
    guards: usize,
    /// Guards that are pinned.
    pinned: Vec<usize>,
    /// What is retired, and which guards it waits for.
    garbage: Vec<(Box<dyn Garbage>, Vec<usize>)>,
}

struct State {
    /// Pinning and retiring meet here.
    turn: AtomicUsize,
    /// Written when the guard with that number unpins.
    left: Vec<AtomicUsize>,
    books: Mutex<Books>,
}

impl State {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees what nobody can be reading.
    fn collect(&self) {
        loop {
            let (garbage, unpinned) = {
                let mut books = self.books();
                let Books {
                    guards,
                    pinned,
                    garbage,
                } = &mut *books;
                let free = garbage
                    .iter()
                    .position(|(_, wait)| wait.iter().all(|guard| !pinned.contains(guard)));
                let Some(at) = free else { return };
                let unpinned: Vec<_> = (0..*guards).filter(|g| !pinned.contains(g)).collect();
                (garbage.swap_remove(at).0, unpinned)
            };
            for guard in unpinned {
                // Ordering: Acquire pairs with the Release in `Pinned::drop`.
                self.left[guard].fetch_add(0, Ordering::Acquire);
            }
            // SAFETY: every guard that could have read it has unpinned.
            unsafe { garbage.free() };
        }
    }
}

/// Where participants meet.
pub struct Collector(Arc<State>);

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

impl Default for Collector {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector {
    /// A collector without participants.
    pub fn new() -> Self {
        Self(Arc::new(State {
            turn: AtomicUsize::new(0),
            left: (0..GUARDS).map(|_| AtomicUsize::new(0)).collect(),
            books: Mutex::default(),
        }))
    }

    /// Joins it: one participant per thread. Allocates.
    pub fn join(&self) -> Participant {
        Participant(Arc::clone(&self.0), PhantomData)
    }
}

/// One thread's part in a [`Collector`].
pub struct Participant(Arc<State>, PhantomData<*const ()>);

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Participant")
    }
}

impl Participant {
    /// From now until the guard is dropped, what is read stays.
    pub fn pin(&self) -> Pinned<'_> {
        // Ordering: Relaxed. A scheduling point; epochs order nothing here.
        self.0.turn.fetch_add(1, Ordering::Relaxed);
        let guard = {
            let mut books = self.0.books();
            let guard = books.guards;
            assert!(guard < GUARDS, "more guards than the stand-in has room");
            books.guards += 1;
            books.pinned.push(guard);
            guard
        };
        // Ordering: SeqCst, as epochs fence when they pin.
        fence(Ordering::SeqCst);
        Pinned {
            state: &self.0,
            guard,
            not_send: PhantomData,
        }
    }
}

/// The right to use what is read from a [`Cell`].
pub struct Pinned<'p> {
    state: &'p State,
    guard: usize,
    not_send: PhantomData<*const ()>,
}

impl fmt::Debug for Pinned<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pinned")
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        // Ordering: Release pairs with the Acquire in `collect`.
        self.state.left[self.guard].store(1, Ordering::Release);
        self.state
            .books()
            .pinned
            .retain(|&guard| guard != self.guard);
        if !std::thread::panicking() {
            self.state.collect();
        }
    }
}

struct Node<T> {
    /// Read by each reader, written when it is freed: an unordered use panics.
    alive: UnsafeCell<()>,
    freed: Flag,
    value: Mutex<Option<Track<Box<T>>>>,
    /// Where the value is, until it is freed.
    at: *const T,
}

// SAFETY: `at` leads into `value`, which is Send and Sync if `T` is.
unsafe impl<T: Send + Sync> Send for Node<T> {}
// SAFETY: as for Send.
unsafe impl<T: Send + Sync> Sync for Node<T> {}

impl<T> Node<T> {
    fn check(&self) {
        assert!(!self.freed.load(Plain::Relaxed), "use after free");
        self.alive.with(|_| ());
    }

    fn into_value(self: &Arc<Self>) -> Option<Box<T>> {
        self.alive.with_mut(|_| ());
        assert!(!self.freed.swap(true, Plain::Relaxed), "freed twice");
        let value = self
            .value
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        value.map(Track::into_inner)
    }
}

impl<T: Send + Sync> Garbage for Arc<Node<T>> {
    unsafe fn free(self: Box<Self>) {
        drop(self.into_value());
    }
}

/// Room for one shared value.
pub struct Cell<T> {
    node: AtomicPtr<Node<T>>,
    /// Every node there ever was: freed values leave their nodes behind, so
    /// that a use after free is a report and not undefined behaviour.
    nodes: Mutex<Vec<Arc<Node<T>>>>,
}

impl<T> fmt::Debug for Cell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cell")
    }
}

impl<T: Send + Sync> Default for Cell<T> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<T: Send + Sync> Cell<T> {
    /// An empty cell.
    pub fn empty() -> Self {
        Self {
            node: AtomicPtr::new(std::ptr::null_mut()),
            nodes: Mutex::default(),
        }
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Arc<Node<T>>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `value` into the cell, if it is empty.
    ///
    /// # Errors
    ///
    /// The value, if the cell is not empty.
    pub fn put(&self, value: Box<T>, _pinned: &Pinned<'_>) -> Result<(), Box<T>> {
        let at: *const T = &*value;
        let node = Arc::new(Node {
            alive: UnsafeCell::new(()),
            freed: Flag::new(false),
            value: Mutex::new(Some(Track::new(value))),
            at,
        });
        let address = Arc::as_ptr(&node).cast_mut();
        self.nodes().push(Arc::clone(&node));
        // Ordering: Release pairs with the Acquire in `get`, as natively.
        let put = self.node.compare_exchange(
            std::ptr::null_mut(),
            address,
            Ordering::Release,
            Ordering::Relaxed,
        );
        match put {
            Ok(_) => Ok(()),
            // Never published, so nobody else took it out.
            Err(_) => match node.into_value() {
                Some(value) => Err(value),
                None => Ok(()),
            },
        }
    }

    /// What is in the cell, for as long as the caller is pinned.
    ///
    /// # Safety
    ///
    /// All calls on one cell are with the same collector.
    pub unsafe fn get<'g>(&'g self, _pinned: &'g Pinned<'_>) -> Option<&'g T> {
        // Ordering: Acquire pairs with the Release in `put`, as natively.
        let node = self.node.load(Ordering::Acquire);
        // SAFETY: nodes live as long as the cell, freed or not.
        let node = unsafe { node.as_ref() }?;
        node.check();
        // SAFETY: checked to be there; the guard, if it does its work, keeps it.
        Some(unsafe { &*node.at })
    }

    /// Takes the value out if it satisfies `which`, and drops it when nobody
    /// can be reading it any more. Until the caller unpins, it can be read.
    ///
    /// # Safety
    ///
    /// All calls on one cell are with the same collector.
    pub unsafe fn retire_if<'g>(
        &'g self,
        pinned: &'g Pinned<'_>,
        which: impl Fn(&T) -> bool,
    ) -> Option<&'g T>
    where
        T: 'static,
    {
        // Ordering: Acquire, as in `get`.
        let address = self.node.load(Ordering::Acquire);
        // SAFETY: nodes live as long as the cell, freed or not.
        let node = unsafe { address.as_ref() }?;
        node.check();
        // SAFETY: checked to be there; this guard keeps it.
        let value = unsafe { &*node.at };
        if !which(value) {
            return None;
        }
        // Ordering: Relaxed, as natively.
        self.node
            .compare_exchange(
                address,
                std::ptr::null_mut(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            )
            .ok()?;
        let node = self
            .nodes()
            .iter()
            .find(|node| std::ptr::eq(Arc::as_ptr(node), address))
            .cloned()?;
        // Ordering: Relaxed. A scheduling point, as in `pin`.
        pinned.state.turn.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut books = pinned.state.books();
        let wait = books.pinned.clone();
        books.garbage.push((Box::new(node), wait));
        Some(value)
    }
}

impl<T> Drop for Cell<T> {
    fn drop(&mut self) {
        // Ordering: Relaxed. Nobody shares the cell any more.
        let address = self.node.load(Ordering::Relaxed);
        let nodes = self.nodes.get_mut().unwrap_or_else(PoisonError::into_inner);
        for node in nodes.drain(..) {
            if std::ptr::eq(Arc::as_ptr(&node), address) {
                drop(node.into_value());
            }
        }
    }
}
