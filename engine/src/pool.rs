//! What is queued, and the workers that carry it out.
//!
//! # Nothing is stranded
//!
//! Creation starts the first worker or fails, and the last one never leaves, so
//! a queued request is taken sooner or later even if no other worker can be
//! started. To have it taken *soon*, whoever leaves the queue non-empty calls
//! [`Pool::call`]: a submitter after it has queued its requests, a worker after
//! it has taken one. That wakes one idle worker, or starts one where none is
//! idle; which in turn calls the next. So a submission wakes one worker however
//! many requests it queues.
//!
//! # Who ends a queued request
//!
//! The queue holds names. Cancelling claims the request in the core and leaves
//! the name behind; the worker that comes across it finds that it is not to be
//! had. Names without requests are swept out before there are more of them than
//! requests.
//!
//! # The end
//!
//! Requests are armed under the queue's lock, and not after the pool is closed.
//! So once [`Pool::close`] has emptied the queue, the core's destruction finds
//! none that it could cancel without asking how far it got.

use std::{
    collections::VecDeque,
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use uaio_core::{
    Errno,
    context::{self, Handle},
    delivery::All,
    poll::Heads,
    request::{Miss, Phase},
    ring, slots,
};

use crate::{
    asyncfd::Ring,
    drive::{Drive, Due},
    notify::Told,
    op::Op,
    sys::{SignalsBlocked, lock},
};

pub(crate) type Slots = slots::Boxed<Op, Heads, All<Arc<Ring>, Told>>;
pub(crate) type Core = context::Context<ring::Boxed, Slots>;
pub(crate) type Claim<'c> = context::Claim<'c, ring::Boxed, Slots>;
pub(crate) type Request<'c> = context::Request<'c, ring::Boxed, Slots>;
pub(crate) type Reservation<'c> = context::Reservation<'c, ring::Boxed, Slots>;
type Running<'c> = context::Running<'c, ring::Boxed, Slots>;

/// How long a worker that is not needed stays.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) core: Pin<Box<Core>>,
    pub(crate) drive: Arc<Drive>,
    workers: RangeInclusive<usize>,
    state: Mutex<State>,
    work: Condvar,
    /// Locked after `state`, if both.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Handle>,
    workers: usize,
    /// Those that wait for work, perhaps called already.
    idle: usize,
    closed: bool,
}

impl Pool {
    /// # Errors
    ///
    /// EINVAL for a capacity or a range of workers that cannot be; EAGAIN, or
    /// what the system said, when a worker cannot be started, or no descriptor had.
    pub(crate) fn new(capacity: usize, workers: RangeInclusive<usize>) -> Result<Arc<Self>, Errno> {
        if workers.is_empty() || *workers.start() == 0 {
            return Err(Errno::EINVAL);
        }
        let pool = Arc::new(Self {
            core: Box::pin(Core::new(
                ring::Boxed::native(capacity)?,
                Slots::new(capacity)?,
            )?),
            drive: Drive::new()?,
            workers,
            state: Mutex::new(State {
                queue: VecDeque::with_capacity(2 * capacity),
                workers: 0,
                idle: 0,
                closed: false,
            }),
            work: Condvar::new(),
            threads: Mutex::new(Vec::new()),
        });
        for _ in 0..*pool.workers.start() {
            let started = pool.start_worker(&mut lock(&pool.state));
            if let Err(errno) = started {
                pool.close();
                pool.join();
                return Err(errno);
            }
        }
        Ok(pool)
    }

    /// Accepts a request and queues it. To be followed by a [`call`](Self::call).
    pub(crate) fn queue(&self, request: Request<'_>) -> Handle {
        let mut state = lock(&self.state);
        if state.closed {
            drop(state);
            let claim = request.claim();
            let handle = claim.handle();
            end(claim, Errno::ECANCELED);
            return handle;
        }
        if state.queue.len() >= 2 * self.core.capacity() {
            let armed = |&handle: &Handle| self.core.phase(handle) == Some(Phase::Armed);
            state.queue.retain(armed);
        }
        let handle = request.arm();
        state.queue.push_back(handle);
        handle
    }

    /// Has somebody look at the queue, if there is anything in it.
    pub(crate) fn call(self: &Arc<Self>) {
        self.call_locked(&mut lock(&self.state));
    }

    fn call_locked(self: &Arc<Self>, state: &mut State) {
        if state.queue.is_empty() {
        } else if state.idle > 0 {
            self.work.notify_one();
        } else if state.workers < *self.workers.end() {
            // If it cannot be started, those there are will come to it.
            let _ = self.start_worker(state);
        }
    }

    fn start_worker(self: &Arc<Self>, state: &mut State) -> Result<(), Errno> {
        self.start("uaio-worker", Self::work)?;
        state.workers += 1;
        Ok(())
    }

    fn start(self: &Arc<Self>, name: &str, life: fn(&Arc<Self>)) -> Result<(), Errno> {
        let pool = Arc::clone(self);
        let started = {
            let _blocked = SignalsBlocked::new();
            thread::Builder::new()
                .name(name.into())
                .stack_size(256 << 10)
                .spawn(move || life(&pool))
        };
        let thread = started.map_err(|error| {
            let errno = error.raw_os_error().and_then(Errno::from_raw);
            errno.unwrap_or(Errno::EAGAIN)
        })?;
        let mut threads = lock(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// Sees to it that somebody drives, for who has armed something, and for who has
    /// driven.
    pub(crate) fn attend(self: &Arc<Self>) {
        // What ends the context waits for this, and then for the thread.
        let Ok(_user) = self.core.enter() else {
            return;
        };
        if self.drive.wants_driver() {
            let drive = |pool: &Arc<Self>| pool.drive.run(&mut |due| pool.see_to(due));
            if self.start("uaio-driver", drive).is_err() {
                self.drive.no_driver();
            }
        }
    }

    /// Has the request expire at that time.
    pub(crate) fn limit(&self, at: Instant, handle: Handle) {
        let alive = |handle| !matches!(self.core.phase(handle), None | Some(Phase::Claimed));
        if alive(handle) {
            (self.drive).limit(at, handle, 2 * self.core.capacity(), alive);
        }
    }

    /// Its time has come.
    pub(crate) fn see_to(&self, due: Due) {
        match due {
            Due::Expired(handle) => self.expire(handle),
            Due::Again => {
                // How many are left it knows itself.
                self.core.notify_again();
            }
        }
    }

    /// Its time is up.
    fn expire(&self, handle: Handle) {
        match self.core.claim(handle) {
            Ok(claim) => end(claim, Errno::ETIME),
            Err(Miss::Busy) => {
                let _ = self.core.expire(handle);
            }
            // Completed before.
            Err(Miss::Late | Miss::Gone) => {}
        }
    }

    /// A worker's life.
    fn work(self: &Arc<Self>) {
        while let Some(running) = self.next() {
            // A panic drops the running request, which then ends with EIO.
            let _ = catch_unwind(AssertUnwindSafe(|| carry_out(running)));
        }
    }

    /// Waits for work. `None`: the worker is to leave, and no longer counted.
    fn next(self: &Arc<Self>) -> Option<Running<'_>> {
        let mut state = lock(&self.state);
        let mut patience = true;
        loop {
            while let Some(handle) = state.queue.pop_front() {
                if let Ok(running) = self.core.start(handle) {
                    self.call_locked(&mut state);
                    return Some(running);
                }
            }
            let needed = state.workers <= *self.workers.start();
            if state.closed || !patience && !needed {
                state.workers -= 1;
                return None;
            }
            state.idle += 1;
            state = if needed {
                (self.work.wait(state)).unwrap_or_else(PoisonError::into_inner)
            } else {
                let (state, timeout) = (self.work.wait_timeout(state, PATIENCE))
                    .unwrap_or_else(PoisonError::into_inner);
                patience = !timeout.timed_out();
                state
            };
            state.idle -= 1;
        }
    }

    /// Ends the request if it is queued, else asks who has it.
    ///
    /// # Errors
    ///
    /// See [`Context::cancel`](crate::Context::cancel).
    pub(crate) fn cancel(&self, handle: Handle) -> Result<(), Errno> {
        match self.core.claim(handle) {
            Ok(claim) => {
                end(claim, Errno::ECANCELED);
                Ok(())
            }
            // Running: it is not Armed again, so nothing is cut short here.
            Err(Miss::Busy) => match self.core.cancel(handle)? {
                context::Cancelled::Asked => Err(Errno::EINPROGRESS),
                context::Cancelled::Done => Ok(()),
            },
            Err(Miss::Late) => Err(Errno::EALREADY),
            Err(Miss::Gone) => Err(Errno::ENOENT),
        }
    }

    /// Ends what is queued, and has the workers leave when they are done.
    pub(crate) fn close(&self) {
        self.drive.close();
        let queue = {
            let mut state = lock(&self.state);
            state.closed = true;
            self.work.notify_all();
            std::mem::take(&mut state.queue)
        };
        for handle in queue {
            // Cancelled before, or ended now.
            let _ = self.cancel(handle);
        }
    }

    /// Waits until the workers have left. After [`close`](Self::close).
    pub(crate) fn join(&self) {
        // Others who wait for the same wait for this lock.
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }
}

fn carry_out(mut running: Running<'_>) {
    // `None` cannot be: nobody takes the request out.
    let result = running.with_payload(Op::run).unwrap_or(Err(Errno::EIO));
    running.complete(as_result(result), 0);
}

/// Ends a request that nobody carries out any more, with the truth: what it did
/// before it was queued, or why.
fn end(mut claim: Claim<'_>, why: Errno) {
    // None if it waits for readiness: then it did nothing.
    match claim.with_payload(|op| op.progress().done) {
        Some(done) if done > 0 => claim.complete(done as i64, 0),
        _ => claim.complete(why.as_result(), 0),
    }
}

/// Of an event. Out of memory that others can write it may be anything.
pub(crate) fn from_result(res: i64) -> Result<usize, Errno> {
    usize::try_from(res).map_err(|_| {
        let number = res
            .checked_neg()
            .and_then(|number| i32::try_from(number).ok());
        number.and_then(Errno::from_raw).unwrap_or(Errno::EIO)
    })
}

/// As in an event.
pub(crate) fn as_result(result: Result<usize, Errno>) -> i64 {
    result.map_or_else(Errno::as_result, |n| n as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, File};

    #[test]
    fn a_panic_ends_its_request_and_no_other() {
        let context = Context::builder(8).workers(1..=1).build().unwrap();
        let mut ops = [Op::nop(), Op::panic(), Op::nop(), Op::panic(), Op::nop()];
        for (n, op) in ops.iter_mut().enumerate() {
            *op = std::mem::replace(op, Op::nop()).data(n as u64).offload();
        }
        assert_eq!(context.submit(&mut ops), Ok(5));
        let mut events = Vec::new();
        assert_eq!(context.getevents(5, 5, None, &mut events), Ok(5));
        for done in events {
            let expected = match done.data {
                1 | 3 => Err(Errno::EIO),
                _ => Ok(0),
            };
            assert_eq!(done.result, expected);
        }
    }

    #[test]
    fn names_without_requests_are_swept_out() {
        const CAPACITY: usize = 4;
        let pool = Pool::new(CAPACITY, 1..=1).unwrap();
        // Once the worker waits and is not called, it takes nothing.
        while lock(&pool.state).idle == 0 {
            thread::yield_now();
        }
        let submit = || {
            let reservation = pool.core.reserve_one().unwrap();
            pool.queue(reservation.fill(slots::Iocb::default(), Op::nop()))
        };
        let kept = submit();
        for _ in 0..100 {
            assert_eq!(pool.cancel(submit()), Ok(()));
            let mut out = [None];
            assert_eq!(pool.core.reap(&mut out), Ok(1));
            let state = lock(&pool.state);
            assert!(state.queue.len() <= 2 * CAPACITY);
            assert_eq!(state.queue.front(), Some(&kept));
        }
        pool.call();
        while pool.core.phase(kept) == Some(Phase::Armed) {
            thread::yield_now();
        }
        pool.close();
        pool.join();
    }

    /// As many as there is work for, and no more; and they are called by each
    /// other, since a submission calls one.
    #[test]
    fn workers_come_as_there_is_work() {
        const MOST: usize = 4;
        let context = Context::builder(256).workers(1..=MOST).build().unwrap();
        let file = File::new(tempfile::tempfile().unwrap()).unwrap();
        let mut ops: Vec<_> = (0..256)
            .map(|n| Op::pwrite(&file, vec![1; 1 << 14], n << 14).offload())
            .collect();
        assert_eq!(context.submit(&mut ops), Ok(256));
        let mut events = Vec::new();
        assert_eq!(context.getevents(256, 256, None, &mut events), Ok(256));
        let state = lock(&context.pool().state);
        assert!((2..=MOST).contains(&state.workers), "{}", state.workers);
    }
}
