//! Requests that follow each other.
//!
//! What can be done at once the submitter does itself, one after the other. The first
//! that cannot goes its way; the next one is accepted, and left. Between the two there is
//! a [baton](uaio_core::baton): the submitter, who brings the next one, or who completes
//! the one before it, whoever is second, puts its name into the queue. A worker that comes
//! to it begins it as a submitter does, so what has readiness holds none.
//!
//! One that is not to be run is ended by who completes the one before it, and so is what
//! follows that: from a list, in a loop, so that a chain of any length needs no stack.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
};

use uaio_core::{
    Errno, baton,
    context::{Armed, Early, Handle},
    ring,
};

use crate::{
    op::{Body, Course, Unreaped},
    pool::{Pool, Slots, as_result},
    sys::lock,
};

/// The submitter's half.
pub(crate) type Pass = baton::Pass<Handle, Weak<Pool>>;

/// What the one before it means for a request.
#[derive(Debug, Default)]
pub(crate) enum Before {
    /// Nothing: it is to be begun.
    #[default]
    Done,
    /// It is not to be run.
    Failed,
    /// It has to wait for it.
    UnderWay(Pass),
}

/// What another request follows, until it is complete.
#[derive(Debug)]
pub(crate) struct Followed {
    end: baton::End<Handle, Weak<Pool>>,
    /// A result that is less is no success.
    at_least: i64,
    succeeded: bool,
}

impl Followed {
    pub(crate) fn new(pool: &Arc<Pool>, body: &Body) -> (Pass, Self) {
        let (pass, end) = baton::baton(Arc::downgrade(pool));
        let this = Self {
            end,
            at_least: body.at_least(),
            succeeded: false,
        };
        (pass, this)
    }

    pub(crate) fn completed(&mut self, res: i64) {
        self.succeeded = res >= self.at_least;
    }

    /// It is complete, and that can be seen.
    pub(crate) fn end(self) {
        // There is a pool as long as there is a request.
        if let Some((next, pool)) = self.end.end(self.succeeded)
            && let Some(pool) = pool.upgrade()
        {
            pool.follow(next, self.succeeded);
        }
    }
}

impl Pool {
    /// Leaves a request to whose turn comes after the one before it.
    pub(crate) fn pass(self: &Arc<Self>, pass: Pass, next: Handle) {
        match pass.pass(next) {
            baton::Passed::Later => {}
            baton::Passed::Now {
                next, succeeded, ..
            } => self.follow(next, succeeded),
        }
    }

    /// Has a request that was left go on, as its turn has come: it is queued, or ended.
    pub(crate) fn follow(self: &Arc<Self>, next: Handle, succeeded: bool) {
        if !succeeded || !self.queue_left(next) {
            self.end_left(next, Errno::ECANCELED);
        }
    }

    /// Ends a request that was left, and whose name the caller has.
    pub(crate) fn end_left(&self, next: Handle, why: Errno) {
        // What follows it comes here as well: it is left to who is at it.
        match &mut *lock(&self.left) {
            Some(left) => return left.push((next, why)),
            none => *none = Some(Vec::new()),
        }
        let mut now = Some((next, why));
        while let Some((next, why)) = now {
            // SAFETY: its name was the caller's, or of who has left it here.
            let early = unsafe { self.core.early(next) };
            // Whoever is called then may panic: the others are ended all the same.
            let complete = || early.claim().complete(why.as_result(), 0);
            let _ = catch_unwind(AssertUnwindSafe(complete));
            let mut left = lock(&self.left);
            now = left.as_mut().and_then(Vec::pop);
            if now.is_none() {
                *left = None;
            }
        }
    }

    /// Begins a request that was left, as a submitter does. One that has to be carried out
    /// by a worker is started, and is the caller's.
    pub(crate) fn begin_left<'p>(
        self: &'p Arc<Self>,
        mut early: Early<'p, ring::Boxed, Slots>,
    ) -> Option<Handle> {
        if early.cancel_requested() {
            early.claim().cancel();
            return None;
        }
        let begun = early.change_payload(|body| {
            let driven = body.is_driven();
            let course = body.begin(&self.drive.epoll);
            let unreaped = body.to.is_some();
            let driven = !driven && body.is_driven();
            if driven && unreaped {
                body.unreaped = Some(Unreaped::new(&self.drive));
            }
            if driven {
                self.drive.begun(1, unreaped.into());
            }
            course
        });
        let waits = matches!(begun, Some(Ok(Course::Poll(_) | Course::Attempt(_))));
        // None cannot be: it polls nothing yet.
        match begun.unwrap_or(Err(Errno::EIO)) {
            Err(errno) => early.claim().complete(errno.as_result(), 0),
            Ok(Course::Done(result)) => early.claim().complete(as_result(result), 0),
            Ok(Course::Poll(events)) => self.core.as_ref().poll_early(early, events),
            Ok(Course::Attempt(events)) => self.core.as_ref().attempt_early(early, events),
            Ok(Course::Wait | Course::Follow) => _ = arm(early),
            Ok(Course::Work) => return arm(early),
        }
        if waits {
            self.attend();
        }
        None
    }
}

/// Armed, or ended because that was asked for.
fn arm(mut early: Early<'_, ring::Boxed, Slots>) -> Option<Handle> {
    loop {
        match early.arm() {
            Armed::Armed(handle) => return Some(handle),
            Armed::Cancelled(mut claim) => {
                // Some of it may have been done, when it was begun.
                match claim.with_payload(|body| body.progress().done) {
                    Some(done) if done > 0 => claim.complete(done as i64, 0),
                    _ => claim.cancel(),
                }
                return None;
            }
            // Nobody wakes it.
            Armed::Ready(claim) => {
                drop(claim);
                return None;
            }
            Armed::LookAgain(again) => early = again,
        }
    }
}

#[cfg(test)]
mod tests {
    use uaio_core::{context::Cancelled, slots::Iocb};

    use super::*;
    use crate::{Context, Op};

    /// One that is begun in its turn, of which some was done when it was cancelled.
    #[test]
    fn what_was_done_before_a_cancel_is_told() {
        for (done, result) in [(5, Ok(5)), (0, Err(Errno::ECANCELED))] {
            let context = Context::new(1).unwrap();
            let core = &context.pool().core;
            let reservation = core.reserve_one().unwrap();
            let mut body = Op::nop().take(reservation.handle()).unwrap();
            body.progress().done = done;
            let early = reservation.fill(Iocb::default(), body).early();
            assert_eq!(core.cancel(early.handle()), Ok(Cancelled::Asked));
            assert_eq!(arm(early), None);
            let mut events = Vec::new();
            assert_eq!(context.getevents(1, 1, None, &mut events), Ok(1));
            assert_eq!(events[0].result, result);
        }
    }
}
