//! The facade: every atomic, cell, fence and spin of the crate comes from here.
//!
//! One front, three backends. `native` is what ships. `loom` (`--cfg loom`)
//! explores every interleaving and every legal stale read of a model; `shuttle`
//! (`--cfg shuttle`) runs it under random schedules at scale. Both stand behind
//! `traced`, which records what the threads do in a `timeline`. Nothing outside
//! this folder names an atomic or a cell of `core`, `std` or a checker.
//!
//! # What differs between the backends
//!
//! | part | `native` | `loom` | `shuttle` |
//! |---|---|---|---|
//! | [`atomic`] | the target's, or `portable-atomic`'s | all orderings, stale loads; no load buffering; a weak CAS never fails spuriously; a failed CAS never reads stale | sequentially consistent, orderings ignored |
//! | SeqCst *accesses* | as in C11 | AcqRel: nothing may rest on them | as in C11 |
//! | [`fence`](atomic::fence) | the target's | SeqCst fences also add happens-before (stronger than C11) | no-op |
//! | [`cell::UnsafeCell`] | unchecked, free | a conflicting or unordered access panics, also with its end | an overlapping access panics; others may run in the middle of one |
//! | `Shadow` | nothing | as a cell | as a cell |
//! | [`hint::spin_loop`] | a pause | a yield: another thread must run first | a yield |
//! | [`Track`] | free | a value never dropped fails the model | as native |
//! | [`thread::Parker`] | thread park and unpark | mutex and condvar | mutex and condvar |
//! | `contain` | with `std`, catches a panic of the user's code; without, it must not unwind | lets it fail the model | as loom |
//! | [`reclaim`] | `crossbeam-epoch`'s `Collector` | a stand-in that sees use after free, leaks and double retirement | the same stand-in |
//! | `timeline` | there is none | every operation, with where and which value | the same |
//! | constructors | `const` | not `const` (see `const_fn!`) | `const` |
//! | shared pages | `repr(C)`, the layout of Linux's ring | the checker's atomics: larger, no layout | as loom |
//!
//! The native orderings are therefore held by loom, except for what its row
//! says it cannot see; each such place is argued where it stands.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the facade itself"
)]

#[cfg(all(loom, shuttle))]
compile_error!("`--cfg loom` and `--cfg shuttle` exclude each other: choose one checker");

#[cfg(not(any(loom, shuttle)))]
mod native;
#[cfg(not(any(loom, shuttle)))]
use native as backend;

#[cfg(any(loom, shuttle))]
mod traced;
#[cfg(any(loom, shuttle))]
use traced as backend;

#[cfg(any(loom, shuttle))]
pub mod timeline;

#[cfg(loom)]
mod loom;
#[cfg(loom)]
use loom as checker;

#[cfg(shuttle)]
mod shuttle;
#[cfg(shuttle)]
use shuttle as checker;

#[cfg(feature = "table")]
pub mod reclaim;

pub(crate) use backend::contain;
pub use backend::{Track, atomic, cell, hint};

#[cfg(any(feature = "std", loom, shuttle))]
pub use backend::thread;

/// Defines a function that is `const` wherever the backend's atomics can be
/// made in a `const` context, which is everywhere but under loom.
macro_rules! const_fn {
    ($(#[$attr:meta])* $vis:vis const fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$attr])* $vis const fn $($rest)*
        #[cfg(loom)]
        $(#[$attr])* $vis fn $($rest)*
    };
}
pub(crate) use const_fn;

/// Says that memory is read or written by one who may, for a checker to refute.
///
/// For payload whose words are atomics because strangers share them: a reader that
/// is ordered before the next writer by nothing at all would go unnoticed there,
/// since no checker explores load buffering. Nothing natively.
#[derive(Debug)]
pub(crate) struct Shadow(cell::UnsafeCell<()>);

// SAFETY: there is nothing in it.
unsafe impl Sync for Shadow {}

impl Shadow {
    const_fn! {
        pub(crate) const fn new() -> Self {
            Self(cell::UnsafeCell::new(()))
        }
    }

    #[inline(always)]
    pub(crate) fn read(&self) {
        self.0.with(|_| ());
    }

    #[inline(always)]
    pub(crate) fn write(&self) {
        self.0.with_mut(|_| ());
    }
}

/// Keeps a value on cache lines of its own.
///
/// 128 bytes: x86 prefetches lines in pairs, and some Arm cores have lines of
/// that size.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> core::ops::Deref for Padded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}
