//! What uaio-core claims, as models.
//!
//! One claim is one test function, named as the claim, and its body is the same
//! under every checker:
//!
//! | command | checker | what it sees |
//! |---|---|---|
//! | `RUSTFLAGS="--cfg loom" cargo test --release` | loom | every interleaving and every legal stale read, orderings included |
//! | `RUSTFLAGS="--cfg shuttle" cargo test --release` | shuttle | random and PCT schedules at scale, sequentially consistent |
//! | `cargo test` | plain threads | the shipped code on this machine |
//!
//! A model is a [`Scenario`]: what is shared, the roles (one thread each), and
//! what holds when all are done. [`Model::check`] runs it. A model names the
//! outcomes that it exists for; one that never occurs fails the model, for then
//! it proves nothing. The models of a protocol stand in the module of the same
//! name as the protocol's in uaio-core.
//!
//! `mutants/` holds planted errors, each with the model that must find it;
//! `ci/mutants.sh` tries them.

pub mod harness;

pub use harness::{Model, Scenario, block_on, reached};

#[cfg(all(test, loom))]
mod checker;
#[cfg(test)]
mod context;
#[cfg(test)]
mod life;
#[cfg(test)]
mod request;
#[cfg(test)]
mod ring;
#[cfg(test)]
mod slots;
#[cfg(test)]
mod table;
#[cfg(test)]
mod wait;
