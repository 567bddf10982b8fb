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
//! [theorems](Theorem) that it holds, and the outcomes that it exists for; an
//! outcome that never occurs fails the model, for then it proves nothing. The
//! models of a protocol stand in the module of the same name as the protocol's in
//! uaio-core. Who embeds the core finds in [`scenarios`] what to run on wakers of
//! its own; `embedder/` shows it.
//!
//! What shows that the models bite: `history` holds protocols that are known to be
//! wrong, each of which the checker must refute; `mutants/` holds planted errors,
//! each with the models that must find it, which `ci/mutants.sh` tries;
//! `ci/orderings.sh` weakens the orderings; `checker` tests loom itself.
//!
//! `MATRIX.md` lists all models and controls.

pub mod harness;
pub mod scenarios;

pub use harness::{Model, Scenario, Theorem, block_on, reached};

#[cfg(test)]
mod asyncfd;
#[cfg(test)]
mod attempt;
#[cfg(test)]
mod baton;
#[cfg(test)]
mod callback;
#[cfg(all(test, loom))]
mod checker;
#[cfg(test)]
mod context;
#[cfg(test)]
mod delivery;
#[cfg(test)]
mod dispatch;
#[cfg(all(test, any(loom, shuttle)))]
mod history;
#[cfg(test)]
mod life;
#[cfg(test)]
mod notify;
#[cfg(test)]
mod operation;
#[cfg(test)]
mod poll;
#[cfg(test)]
mod request;
#[cfg(test)]
mod ring;
#[cfg(test)]
mod slots;
#[cfg(test)]
mod table;
#[cfg(test)]
mod target;
#[cfg(test)]
mod wait;
