//! Memory that is lent to an asyncfd.

use std::sync::Arc;

use uaio_core::{
    asyncfd::{AsyncfdResult, Inline, LapCell, ResultCell, Uring, UringMemory},
    sync::Track,
};

use super::Handed;

/// A result whose every word follows from `value`: a torn one shows.
pub(crate) fn result(value: u64) -> AsyncfdResult {
    AsyncfdResult {
        cookie: value,
        obj: !value,
        res: value.rotate_left(17) as i64,
        res2: -(value as i64),
    }
}

/// A user's memory, and who uses it.
#[derive(Debug)]
pub(crate) struct Page<const N: usize> {
    /// What everybody may use.
    pub(crate) ring: Inline<N>,
    /// Read by each access, and written when it is given back.
    used: Handed<u64>,
}

impl<const N: usize> Page<N> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            ring: Inline::new(),
            used: Handed::new(0),
        })
    }

    /// Its user takes it for something else.
    pub(crate) fn give_back(&self) {
        self.used.set(1);
    }
}

/// The memory, lent to an asyncfd. loom fails a model that never drops it.
#[derive(Debug)]
pub(crate) struct Lent<const N: usize>(Track<Arc<Page<N>>>);

impl<const N: usize> Lent<N> {
    pub(crate) fn new(page: &Arc<Page<N>>) -> Self {
        Self(Track::new(Arc::clone(page)))
    }

    fn page(&self) -> &Page<N> {
        let page = self.0.get_ref();
        page.used.get();
        page
    }
}

impl<const N: usize> Drop for Lent<N> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.get_ref().give_back();
        }
    }
}

// SAFETY: the memory of the inline ring, which promises all of it.
unsafe impl<const N: usize> UringMemory for Lent<N> {
    fn uring(&self) -> &Uring {
        self.page().ring.uring()
    }
    fn results(&self) -> &[ResultCell] {
        self.page().ring.results()
    }
    fn laps(&self) -> &[LapCell] {
        self.page().ring.laps()
    }
}
