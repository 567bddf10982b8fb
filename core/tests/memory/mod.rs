//! A user's ring as a program outside would make it: header and results by address.

use std::{ptr::NonNull, sync::Arc};

use uaio_core::{
    Errno,
    asyncfd::{LapCell, Mapped, ResultCell, Uring, UringMemory},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// The memory, which lives as long as anybody has a share of it.
#[derive(Debug)]
pub(crate) struct Area {
    pub(crate) uring: Box<Uring>,
    pub(crate) cells: Box<[ResultCell]>,
}

impl Area {
    pub(crate) fn new(size: u32, start: u32) -> Arc<Self> {
        let cells: Box<[_]> = (0..size).map(|_| ResultCell::new()).collect();
        let address = cells.as_ptr().expose_provenance() as u64;
        Arc::new(Self {
            uring: Box::new(Uring::new(address, size, start)),
            cells,
        })
    }

    pub(crate) fn address(&self) -> NonNull<Uring> {
        NonNull::from(&*self.uring)
    }

    /// The header's words by number, as whoever has its address can write them.
    pub(crate) fn word(&self, n: usize) -> &AtomicU32 {
        assert!(n < 5);
        // SAFETY: within the header.
        let word = unsafe { self.address().cast::<AtomicU32>().add(n) };
        // SAFETY: valid, and only accessed atomically.
        unsafe { word.as_ref() }
    }

    pub(crate) fn indices(&self) -> (u32, u32) {
        let load = |index: &AtomicU32| index.load(Ordering::Acquire);
        (load(self.uring.iuser()), load(self.uring.ikernel()))
    }

    /// The words of a result.
    pub(crate) fn result(&self, index: usize) -> [&AtomicU64; 4] {
        let cell = NonNull::from(&self.cells[index]).cast::<AtomicU64>();
        std::array::from_fn(|n| {
            // SAFETY: a result has four words.
            let word = unsafe { cell.add(n) };
            // SAFETY: valid, and only accessed atomically.
            unsafe { word.as_ref() }
        })
    }
}

/// What an asyncfd is given: it has a share of the memory until it drops it.
#[derive(Debug)]
pub(crate) struct Shared {
    mapped: Mapped,
    _area: Arc<Area>,
}

impl Shared {
    pub(crate) fn of(area: &Arc<Area>) -> Result<Self, Errno> {
        // SAFETY: valid as long as the share; nobody makes two of one area.
        let mapped = unsafe { Mapped::new(area.address())? };
        Ok(Self {
            mapped,
            _area: Arc::clone(area),
        })
    }
}

// SAFETY: the mapped one's, whose memory is there as long as the share.
unsafe impl UringMemory for Shared {
    fn uring(&self) -> &Uring {
        self.mapped.uring()
    }
    fn results(&self) -> &[ResultCell] {
        self.mapped.results()
    }
    fn laps(&self) -> &[LapCell] {
        self.mapped.laps()
    }
}
