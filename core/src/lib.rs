//! The completion core of uaio: completion, cancellation and wake-up of
//! asynchronous requests, model-checked and shipped as checked.
//!
//! | module | what it holds |
//! |---|---|
//! | [`request`] | one word per request: who ends it, exactly once |
//! | [`slots`] | where requests live; the reservation |
//! | [`ring`] | the completion ring, in Linux's layout |
//! | [`wait`] | wait queues: who sleeps until what |
//! | [`life`] | how long a thing is used, and waiting for the last user |
//! | [`sync`] | the facade that every atomic goes through |
//!
//! No system call, no thread, no clock, no allocation unless asked for. The
//! embedder brings memory, a [`Waker`](core::task::Waker), and the work.
//!
//! # Features
//!
//! `std` (default) implies `alloc`; `table` adds the table of contexts;
//! `portable-atomic` serves targets without 64-bit atomics. Under
//! `--cfg loom` or `--cfg shuttle` the same code runs on the checker's atomics,
//! in your crate's models as in ours.
#![cfg_attr(not(any(feature = "std", loom, shuttle, test)), no_std)]

#[cfg(feature = "alloc")]
extern crate alloc;

#[cfg(all(
    not(any(loom, shuttle, feature = "portable-atomic")),
    not(all(target_has_atomic = "64", target_has_atomic = "ptr"))
))]
compile_error!(
    "uaio-core needs 64-bit and pointer-sized atomics with compare-and-swap, \
     which this target lacks: enable the feature `portable-atomic`"
);

#[cfg(target_pointer_width = "16")]
compile_error!("uaio-core needs pointers of at least 32 bits");

pub mod error;
pub mod life;
pub mod request;
pub mod ring;
pub mod slots;
pub mod sync;
pub mod wait;

pub use error::Errno;
