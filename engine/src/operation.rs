//! Requests as futures.

use std::{
    error, fmt,
    future::Future,
    io,
    mem::ManuallyDrop,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use uaio_core::{Errno, operation, ring};

use crate::{
    context::{Completion, completion},
    op::Op,
    pool::{Core, Pool, Slots},
};

/// What leads an operation to its context: alive as long as it is.
pub(crate) struct Lead(Arc<Pool>);

impl Lead {
    pub(crate) fn new(pool: &Arc<Pool>) -> Self {
        Self(Arc::clone(pool))
    }
}

// SAFETY: the pool has one context, on the heap, as long as it is there.
unsafe impl operation::Lead for Lead {
    type Ring = ring::Boxed;
    type Slots = Slots;
    fn context(&self) -> &Core {
        &self.0.core
    }
}

pub(crate) type Awaited = operation::Operation<Lead>;

/// A request that is waited for. Resolves with its completion.
///
/// It goes on without being polled. Dropping it cancels the request, as far as that is
/// possible still; its buffers and its share of the file are kept until it is over, and
/// dropped then.
///
/// When the context is destroyed the request ends as any other. An operation does not
/// keep the context from that, and may outlive it.
#[must_use = "dropping it cancels the request"]
pub struct Operation {
    awaited: ManuallyDrop<Awaited>,
    pool: Weak<Pool>,
}

impl Operation {
    /// In a [forked](crate::Context#fork) process.
    fn is_copy(&self) -> bool {
        self.pool.upgrade().is_some_and(|pool| pool.is_copy())
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // A copy may be linked into what it waits for, or in the hands of a thread that is
        // not there. Nobody comes across it any more: it is left as it is.
        if !self.is_copy() {
            // SAFETY: it is not used any more.
            unsafe { ManuallyDrop::drop(&mut self.awaited) };
        }
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation").finish_non_exhaustive()
    }
}

impl Operation {
    pub(crate) fn new(awaited: Awaited, pool: &Arc<Pool>) -> Self {
        Self {
            awaited: ManuallyDrop::new(awaited),
            pool: Arc::downgrade(pool),
        }
    }
}

impl Future for Operation {
    type Output = Completion;

    /// # Panics
    ///
    /// When it has resolved before.
    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Completion> {
        if self.is_copy() {
            return Poll::Pending;
        }
        // SAFETY: structural: it is never moved out.
        let awaited = unsafe { self.map_unchecked_mut(|this| &mut *this.awaited) };
        awaited.poll(task).map(|done| {
            let done = done.expect("an operation is polled after it has resolved");
            completion(done)
        })
    }
}

/// A request that was refused, and why.
#[derive(Debug)]
pub struct Unsubmitted {
    /// Why.
    pub errno: Errno,
    /// As it was.
    pub op: Op,
}

impl fmt::Display for Unsubmitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.errno.fmt(f)
    }
}

impl error::Error for Unsubmitted {}

impl From<Unsubmitted> for io::Error {
    fn from(unsubmitted: Unsubmitted) -> Self {
        unsubmitted.errno.into()
    }
}
