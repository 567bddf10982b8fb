//! Errors that shipped, as negative controls.
//!
//! Each control is the protocol of a historical error, cut down to the words that
//! raced and named after what went wrong; the checker must refute it. Where the
//! parties can be told apart from the protocol, the scenario is written once, and
//! holds with ours in its place; else the control names the model that is the same
//! scenario on our code.

#![expect(
    clippy::redundant_closure,
    reason = "a test is named after its closure, so it has to have one"
)]

mod asyncfd;
mod callback;
mod cancel;
mod context;
mod dispatch;
mod notify;
mod poll;
mod ring;
