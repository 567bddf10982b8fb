//! Deferred reclamation: a read-mostly pointer, looked up by many, retired by
//! one.
//!
//! Who is [pinned](Participant::pin) may use what it reads from a [`Cell`] until
//! it unpins; what is [retired](Cell::retire_if) is dropped when everybody has
//! unpinned who could have read it. It only *defers*: it never tells that *now*
//! nobody uses the old value.
//!
//! Native: an explicit [`crossbeam_epoch::Collector`], which needs no `std`.
//! Under a checker a stand-in that frees as early as the rules allow, and so
//! finds a use after free, a leak or a double retirement.

#[cfg(not(any(loom, shuttle)))]
mod native;
#[cfg(not(any(loom, shuttle)))]
use native as backend;

#[cfg(any(loom, shuttle))]
mod stand_in;
#[cfg(any(loom, shuttle))]
use stand_in as backend;

pub use backend::{Cell, Collector, Participant, Pinned};
