//! What uaio-core promises.

use std::fmt;

/// What a model holds: one of the promises of the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theorem {
    /// An accepted request completes once, at its target; a refused one is an
    /// error and nothing else.
    ExactlyOnce,
    /// The completion says what happened. What took effect is not reported as
    /// cancelled; ECANCELED means: no effect.
    Truth,
    /// Who waits for *n* events wakes once *n* are there.
    NoLostWakeup,
    /// Room is reserved before a request is accepted, so completing cannot fail.
    NoLoss,
    /// Nothing is touched after it is given back, nothing leaks, and destroying
    /// returns only after the last touch, for every destroyer.
    Reclamation,
    /// The payload before the event, the event before its wake-up.
    Order,
    /// No deadlock. A completer waits for nobody, and for no lock.
    Progress,
    /// Any bytes in memory that a user may write give an error or stall that
    /// user.
    HostileMemory,
    /// All of this next to the wrap of every counter.
    Wrap,
}

impl fmt::Display for Theorem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExactlyOnce => "exactly once",
            Self::Truth => "truth",
            Self::NoLostWakeup => "no lost wake-up",
            Self::NoLoss => "no loss",
            Self::Reclamation => "reclamation",
            Self::Order => "order",
            Self::Progress => "progress",
            Self::HostileMemory => "hostile memory",
            Self::Wrap => "wrap",
        })
    }
}
