//! The completion core of uaio: completion, cancellation and wake-up of
//! asynchronous requests, model-checked and shipped as checked.
//!
//! | module | what it holds |
//! |---|---|
//! | [`request`] | one word per request: who ends it, exactly once |
//! | [`slots`] | where requests live; the reservation |
//! | [`ring`] | the completion ring, in Linux's layout |
//! | [`wait`] | wait queues: who sleeps until what |
//! | [`poll`] | requests that complete when something is ready |
//! | [`asyncfd`] | results in a ring that its user owns, polls and replaces live |
//! | [`target`] | where a completion goes, if not into the ring |
//! | [`notify`] | who is told of a completion, besides who reaps it |
//! | [`sigevent`] | the system's layout of what a signal tells |
//! | [`operation`] | a request as a future |
//! | [`delivery`] | what a slot has for each of these |
//! | [`dispatch`] | work that is handed to workers |
//! | [`latch`] | whether an attempt is worth its while |
//! | [`life`] | how long a thing is used, and waiting for the last user |
//! | [`context`] | all of them together: reserve, submit, complete, reap, destroy |
#![cfg_attr(
    feature = "alloc",
    doc = "| [`callback`] | a request that calls, without a context of its own |"
)]
#![cfg_attr(
    feature = "alloc",
    doc = "| [`baton`] | whose turn it is, of requests that follow each other |"
)]
#![cfg_attr(feature = "table", doc = "| [`table`] | contexts by number |")]
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

pub mod asyncfd;
#[cfg(feature = "alloc")]
pub mod baton;
#[cfg(feature = "alloc")]
pub mod callback;
pub mod context;
pub mod delivery;
pub mod dispatch;
pub mod error;
mod kept;
pub mod latch;
pub mod life;
pub mod notify;
pub mod operation;
pub mod poll;
pub mod request;
pub mod ring;
mod role;
pub mod sigevent;
pub mod slots;
pub mod sync;
#[cfg(feature = "table")]
pub mod table;
pub mod target;
pub mod wait;

pub use context::Context;
pub use error::Errno;

/// Who may be used from where.
#[cfg(all(feature = "alloc", not(any(loom, shuttle))))]
mod auto_traits {
    use static_assertions::{assert_impl_all, assert_not_impl_any};

    use crate::{Context, context, life, ring, wait};

    type Shared = context::BoxedContext<u64>;
    type Slots = crate::slots::Boxed<u64>;
    assert_impl_all!(Shared: Send, Sync);
    assert_impl_all!(ring::Ring<ring::Boxed>: Send, Sync);
    assert_impl_all!(context::Claim<'static, ring::Boxed, Slots>: Send, Sync);
    assert_impl_all!(context::Running<'static, ring::Boxed, Slots>: Send);
    assert_impl_all!(context::Wait<'static, ring::Boxed, Slots>: Send);
    assert_impl_all!(context::Handle: Send, Sync, Copy);
    assert_impl_all!(life::Life: Send, Sync);
    assert_impl_all!(wait::WaitQueue: Send, Sync);
    type Polling =
        crate::slots::Boxed<core::pin::Pin<alloc::sync::Arc<Shared>>, crate::poll::Heads>;
    assert_impl_all!(Context<ring::Boxed, Polling>: Send, Sync);
    // Requests and futures know it by its address.
    assert_not_impl_any!(Shared: Unpin);
    // A waiter in a list must stay where it is.
    assert_not_impl_any!(wait::Waiter: Unpin);
    assert_not_impl_any!(context::Wait<'static, ring::Boxed, Slots>: Unpin);
    // A payload that may not change threads keeps its context on one.
    assert_not_impl_any!(context::BoxedContext<*const ()>: Send, Sync);
}
