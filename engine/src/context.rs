//! Contexts: where requests go in and completions come out.

use std::{
    fmt,
    future::Future,
    ops::RangeInclusive,
    pin::pin,
    ptr::NonNull,
    sync::Arc,
    task::{self, Poll},
    time::{Duration, Instant},
};

use uaio_core::{
    Errno,
    asyncfd::Uring,
    context::{self, Expired, Handle, Reservations},
    poll::Refused,
    ring, slots,
};

use crate::{
    asyncfd::AsyncFd,
    drive::block_on,
    notify::Told,
    op::{Course, Op, Unreaped},
    operation::{Awaited, Lead, Operation, Unsubmitted},
    pool::{Pool, Request, Slots, as_result, from_result},
    raw::Iocb,
    signals::SignalSet,
};

type Batch<'c> = context::Batch<'c, ring::Boxed, Slots>;

/// How many completions are taken out of the core at once.
const CHUNK: usize = 32;

/// A completed request.
#[derive(Debug)]
#[non_exhaustive]
pub struct Completion {
    /// The submitter's own value.
    pub data: u64,
    /// What it came to: bytes, or zero for an operation without any.
    pub result: Result<usize, Errno>,
    /// Whether the submitter did all of it at once. (What polls a
    /// [source](Op::poll_source) is never said to be.)
    pub inline: bool,
    /// The request, with its buffers. It can be submitted again.
    pub op: Op,
    /// Its name, which names nothing any more.
    pub handle: Handle,
}

/// Makes a [`Context`].
#[derive(Clone, Debug)]
pub struct Builder {
    capacity: usize,
    workers: RangeInclusive<usize>,
}

impl Builder {
    /// How many worker threads there are: from the fewest, which are started
    /// with the context, to the most, as there is work. By default 1 to 8.
    ///
    /// A worker that finds nothing to do for five seconds leaves.
    pub fn workers(mut self, workers: RangeInclusive<usize>) -> Self {
        self.workers = workers;
        self
    }

    /// Makes the context, and starts its first workers.
    ///
    /// # Errors
    ///
    /// EINVAL: the capacity is zero or above 2^24, or the range of workers is
    /// empty or begins with zero. EAGAIN: the system has no thread left. EMFILE,
    /// ENFILE: it has no descriptor left, of which a context needs two.
    pub fn build(self) -> Result<Context, Errno> {
        let pool = Pool::new(self.capacity, self.workers)?;
        Ok(Context(Arc::new(Owner(pool))))
    }
}

/// A context: takes requests, gives completions.
///
/// A handle to it, cheap to clone; any thread may use any of them at any time.
/// When the last is dropped the context is [destroyed](Self::destroy).
///
/// # Room
///
/// A context of capacity *n* holds *n* requests, from their submission until
/// their completions are taken out. There is always room for a completion.
///
/// # Order
///
/// None, neither of execution nor of completions.
#[derive(Clone)]
pub struct Context(Arc<Owner>);

static_assertions::assert_impl_all!(Context: Send, Sync);
static_assertions::assert_impl_all!(Op: Send);
static_assertions::assert_impl_all!(Operation: Send);
static_assertions::assert_impl_all!(crate::File: Send, Sync);
static_assertions::assert_impl_all!(AsyncFd: Send, Sync);

/// What the users' handles share; the workers do not keep it alive.
struct Owner(Arc<Pool>);

impl Drop for Owner {
    fn drop(&mut self) {
        destroy(&self.0);
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pool().core.fmt(f)
    }
}

impl Context {
    /// A context for `capacity` requests, with the default number of workers.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn new(capacity: usize) -> Result<Self, Errno> {
        Self::builder(capacity).build()
    }

    /// For a context for `capacity` requests.
    pub fn builder(capacity: usize) -> Builder {
        Builder {
            capacity,
            workers: 1..=8,
        }
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.0.0
    }

    /// How many requests there can be.
    pub fn capacity(&self) -> usize {
        self.pool().core.capacity()
    }

    /// Submits requests in their order, and tells how many were accepted.
    ///
    /// An accepted request leaves `ops`; its [handle](Op::handle) remains in its
    /// place. From the first one that is refused on they all stay.
    ///
    /// Does not wait for devices or for other requests. It copies from and to the
    /// page cache, unless told [otherwise](Op::offload).
    ///
    /// # Errors
    ///
    /// Why the *first* was refused; of a later one, submitting it again tells.
    /// EAGAIN: there is no room, take completions out first. EINVAL: the request
    /// makes no sense (an offset above 2^63 - 1, more than 1,024 buffers, only
    /// a handle of one that was accepted before, a [poll](Op::poll) for what will
    /// never be, or a [target](Op::to) that is another context's, or given no data), or
    /// the context is destroyed. EBADFD: its target is closed. EOVERFLOW: a polled source has more
    /// than two heads. EBADF: it is the path of a file, and not open. ENOSPC, ENOMEM,
    /// ELOOP: epoll takes no more descriptors, or not this one.
    ///
    /// # Panics
    ///
    /// If a [source](Op::poll_source) does. Its request was accepted, ends with EIO, and
    /// left a [nop](Op::nop) where it was.
    ///
    /// ```
    /// use uaio::{Context, Errno, Op};
    ///
    /// let context = Context::new(2)?;
    /// let mut ops = [Op::nop(), Op::nop(), Op::nop()];
    /// assert_eq!(context.submit(&mut ops)?, 2);
    /// assert!(ops[1].handle().is_some() && ops[2].handle().is_none());
    /// assert_eq!(context.submit(&mut ops[2..]), Err(Errno::EAGAIN));
    /// # Ok::<(), Errno>(())
    /// ```
    pub fn submit(&self, ops: &mut [Op]) -> Result<usize, Errno> {
        let mut submission = Submission::new(self.pool());
        let total = ops.len();
        for (n, place) in ops.iter_mut().enumerate() {
            match submission.accept(place, total - n) {
                Ok(handle) => *place = Op::accepted(handle),
                Err(errno) if n == 0 => return Err(errno),
                Err(_) => return Ok(n),
            }
        }
        Ok(total)
    }

    /// Submits a request, and waits for its completion as a future: which is where that
    /// goes, and not into the context's ring. Its room is free when it has resolved *and*
    /// who completed it is done with it, which may be a moment later.
    ///
    /// # Errors
    ///
    /// As of [`submit`](Self::submit); and EINVAL: it is [for](Op::to) an asyncfd, or
    /// [tells](Op::notify) somebody. The request is given back.
    ///
    /// ```
    /// use uaio::{Context, File, Op};
    ///
    /// let file = File::new(tempfile::tempfile()?)?;
    /// let context = Context::new(2)?;
    /// let operation = context.operation(Op::pwrite(&file, b"written".to_vec(), 0))?;
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    /// # runtime.block_on(async {
    /// let done = operation.await;
    /// assert_eq!(done.result, Ok(7));
    /// # });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[expect(clippy::result_large_err, reason = "the request is given back")]
    pub fn operation(&self, op: Op) -> Result<Operation, Unsubmitted> {
        let mut place = op;
        let mut submission = Submission::new(self.pool());
        submission.awaits = true;
        let accepted = match place.is_delivered() {
            true => Err(Errno::EINVAL),
            false => submission.accept(&mut place, 1),
        };
        match (accepted, submission.operation.take()) {
            (Ok(_), Some(operation)) => Ok(Operation::new(operation)),
            (accepted, _) => Err(Unsubmitted {
                errno: accepted.err().unwrap_or(Errno::EIO),
                op: place,
            }),
        }
    }

    /// As [`submit`](Self::submit), for requests by address.
    ///
    /// The handle of an accepted one is written into its iocb, which is not used
    /// otherwise after the call. Completions of raw requests carry no buffers,
    /// only the handle. Of a stream the offset is ignored.
    ///
    /// # Errors
    ///
    /// As for `submit`, and EBADF: the descriptor is not open. EINVAL: an unknown
    /// opcode; a negative offset; more than 1,024 vectors or 2^63 - 1 bytes; a POLL
    /// with more than its events. EFAULT: an array of vectors at address zero, or not
    /// aligned.
    ///
    /// # Safety
    ///
    /// Until the completion of an accepted request is taken out or the context is
    /// destroyed: the descriptor stays open; the memory stays valid (for writes,
    /// if it is to be read into) and nobody else accesses it, other than to read
    /// what is to be written. Until the call returns: an array of vectors is valid
    /// for reads.
    ///
    /// ```
    /// use std::os::fd::AsRawFd;
    /// use uaio::{Context, Iocb};
    ///
    /// let file = tempfile::tempfile()?;
    /// let mut bytes = *b"raw";
    /// let context = Context::new(1)?;
    /// let mut iocbs = [Iocb::new(Iocb::PWRITE, file.as_raw_fd(), bytes.as_mut_ptr(), 3, 0)];
    /// // SAFETY: `file` and `bytes` are still there when the completion is.
    /// unsafe { context.submit_raw(&mut iocbs)? };
    ///
    /// let mut events = Vec::new();
    /// context.getevents(1, 1, None, &mut events)?;
    /// assert_eq!(events[0].result, Ok(3));
    /// assert_eq!(iocbs[0].handle, Some(events[0].handle));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub unsafe fn submit_raw(&self, iocbs: &mut [Iocb]) -> Result<usize, Errno> {
        let mut submission = Submission::new(self.pool());
        let mut last = None;
        let total = iocbs.len();
        for (n, iocb) in iocbs.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let op = unsafe { iocb.to_op(&mut last) };
            match op.and_then(|mut op| submission.accept(&mut op, total - n)) {
                Ok(handle) => iocb.handle = Some(handle),
                Err(errno) if n == 0 => return Err(errno),
                Err(_) => return Ok(n),
            }
        }
        Ok(total)
    }

    /// A descriptor over a ring for `size` completions, for requests that
    /// [name](Op::to) it.
    ///
    /// # Errors
    ///
    /// EINVAL: the size is zero or above 2^24, or the context is destroyed. EMFILE,
    /// ENFILE, ENOMEM: the system has no descriptor left.
    pub fn asyncfd(&self, size: usize) -> Result<AsyncFd, Errno> {
        AsyncFd::new(self.pool(), size)
    }

    /// As [`asyncfd`](Self::asyncfd), over a ring where its user has it: of `size`
    /// [`AsyncfdResult`](crate::AsyncfdResult)s at `ptr`, as the header says, which is
    /// read once. Both are the patch's of 2007, and may be shared with whoever.
    ///
    /// What others write there is their own harm: an error, or results that are not
    /// found.
    ///
    /// # Errors
    ///
    /// As of `asyncfd`; and EINVAL: an address is not aligned to 8. EFAULT: `ptr` is
    /// null, the results would reach beyond the end of the address space, or an index
    /// is out of range.
    ///
    /// # Safety
    ///
    /// If `uring` is aligned it is valid for reads and writes of a [`Uring`](crate::Uring),
    /// and if no error is returned so are the results that it describes: until the
    /// `AsyncFd` is dropped; or, of a ring that was [replaced](AsyncFd::replace), until
    /// a later [`drain`](AsyncFd::drain) has said Empty. The header is not among the
    /// results, and no other ring, of this asyncfd neither, uses any of it meanwhile.
    /// Whatever else accesses them does so atomically, word by word.
    pub unsafe fn asyncfd_at(&self, uring: NonNull<Uring>) -> Result<AsyncFd, Errno> {
        // SAFETY: the same contract.
        unsafe { AsyncFd::at(self.pool(), uring) }
    }

    /// Takes out completions, from `min_nr` to `nr` of them, appends them to
    /// `events`, and tells how many.
    ///
    /// Waits until there are `min_nr`, the time is up or the context is
    /// destroyed; then it may be fewer. `None` is no limit; zero does not wait.
    /// Meanwhile the thread drives what the context waits for, or is parked if
    /// another one does.
    ///
    /// # Errors
    ///
    /// EINVAL: `min_nr` is above `nr`; or the context is destroyed and there is
    /// none. While [`destroy`](Self::destroy) still waits for what is running,
    /// that means none yet: look again when it has returned.
    ///
    /// ```
    /// use std::time::Duration;
    /// use uaio::{Context, Op};
    ///
    /// let context = Context::new(4)?;
    /// let mut events = Vec::new();
    /// // Nothing was submitted: the time is up.
    /// let limit = Some(Duration::from_millis(1));
    /// assert_eq!(context.getevents(1, 4, limit, &mut events), Ok(0));
    /// # Ok::<(), uaio::Errno>(())
    /// ```
    pub fn getevents(
        &self,
        min_nr: usize,
        nr: usize,
        timeout: Option<Duration>,
        events: &mut Vec<Completion>,
    ) -> Result<usize, Errno> {
        self.get(min_nr, nr, timeout, None, events)
    }

    /// As [`getevents`](Self::getevents), with another signal mask for as long as the
    /// thread waits: it is set and set back together with the wait, so no signal comes in
    /// between. One that it lets in, and that is handled, ends the wait.
    ///
    /// # Errors
    ///
    /// As of `getevents`; and EINTR: a signal ended the wait, and nothing was taken out.
    /// EMFILE, ENFILE, ENOMEM: the system has no descriptor left.
    pub fn pgetevents(
        &self,
        min_nr: usize,
        nr: usize,
        timeout: Option<Duration>,
        mask: &SignalSet,
        events: &mut Vec<Completion>,
    ) -> Result<usize, Errno> {
        self.get(min_nr, nr, timeout, Some(mask), events)
    }

    fn get(
        &self,
        min_nr: usize,
        nr: usize,
        timeout: Option<Duration>,
        mask: Option<&SignalSet>,
        events: &mut Vec<Completion>,
    ) -> Result<usize, Errno> {
        if min_nr > nr {
            return Err(Errno::EINVAL);
        }
        let mut interrupted = false;
        let mut up = timeout == Some(Duration::ZERO);
        // A limit that the clock cannot express is none.
        let deadline = timeout.and_then(|limit| Instant::now().checked_add(limit));
        let core = &self.pool().core;
        let mut got = 0;
        loop {
            // Looked at first: what was there before the end was called is
            // reaped before that is told.
            let ended = core.is_destroyed();
            got += self.reap(nr - got, events)?;
            if got < nr && self.look() {
                got += self.reap(nr - got, events)?;
            }
            if got >= min_nr || up {
                return match got {
                    0 if ended => Err(Errno::EINVAL),
                    0 if interrupted => Err(Errno::EINTR),
                    got => Ok(got),
                };
            }
            let waited = self.wait((min_nr - got).min(self.capacity()), deadline, mask)?;
            interrupted = waited == Waited::Interrupted;
            up = waited != Waited::Enough;
        }
    }

    /// Takes out up to `nr` completions.
    fn reap(&self, nr: usize, events: &mut Vec<Completion>) -> Result<usize, Errno> {
        let mut chunk = [const { None }; CHUNK];
        let mut got = 0;
        while got < nr {
            let wanted = (nr - got).min(CHUNK);
            let n = self.pool().core.reap(&mut chunk[..wanted])?;
            let reaped = chunk.iter().flatten();
            // What named a target, which was closed, says so itself.
            let driven =
                reaped.filter(|done| done.payload.unreaped.is_none() && done.payload.is_driven());
            let driven = driven.count();
            if driven > 0 {
                self.pool().drive.over(driven);
            }
            events.extend(chunk.iter_mut().flat_map(Option::take).map(completion));
            got += n;
            if n < wanted {
                break;
            }
        }
        Ok(got)
    }

    /// Waits until there are `n` completions.
    fn wait(
        &self,
        n: usize,
        deadline: Option<Instant>,
        mask: Option<&SignalSet>,
    ) -> Result<Waited, Errno> {
        let pool = self.pool();
        let Ok(wait) = pool.core.as_ref().wait(n) else {
            return Ok(Waited::Up);
        };
        let mut wait = pin!(wait);
        let mut role = pool.drive.join(mask)?;
        let mut interrupted = false;
        let waited = loop {
            let waker = role.waker();
            let mut task = task::Context::from_waker(&waker);
            if let Poll::Ready(enough) = wait.as_mut().poll(&mut task) {
                break match enough {
                    Ok(_) => Waited::Enough,
                    Err(_) => Waited::Up,
                };
            }
            if interrupted || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                break match wait.as_mut().expire() {
                    Expired::Woken => Waited::Enough,
                    Expired::TimedOut if interrupted => Waited::Interrupted,
                    Expired::TimedOut => Waited::Up,
                };
            }
            interrupted = role.sleep(deadline, &mut |due| pool.see_to(due));
        };
        drop(role);
        pool.attend();
        Ok(waited)
    }

    /// Takes in what has become ready or due, if nobody else does.
    fn look(&self) -> bool {
        let pool = self.pool();
        let looked = pool.drive.look(&mut |due| pool.see_to(due));
        if looked {
            pool.attend();
        }
        looked
    }

    /// Cancels a request. Its completion comes in any case.
    ///
    /// `Ok`: it was queued, and is complete now, with ECANCELED; or, if a part of
    /// it had been transferred, with the number of those bytes.
    ///
    /// # Errors
    ///
    /// EINPROGRESS: a worker has it, or it is being tried, and will end with its real
    /// result if there is one. EALREADY: it is complete, or was cancelled before.
    /// ENOENT: its completion was taken out.
    ///
    /// ```
    /// use uaio::{Context, Errno, Op};
    ///
    /// let context = Context::new(1)?;
    /// let mut ops = [Op::nop().offload()];
    /// context.submit(&mut ops)?;
    /// let handle = ops[0].handle().unwrap();
    /// let cancelled = context.cancel(handle);
    ///
    /// let mut events = Vec::new();
    /// context.getevents(1, 1, None, &mut events)?;
    /// match cancelled {
    ///     Ok(()) => assert_eq!(events[0].result, Err(Errno::ECANCELED)),
    ///     // A worker was faster.
    ///     Err(_) => assert_eq!(events[0].result, Ok(0)),
    /// }
    /// assert_eq!(context.cancel(handle), Err(Errno::ENOENT));
    /// # Ok::<(), Errno>(())
    /// ```
    pub fn cancel(&self, handle: Handle) -> Result<(), Errno> {
        self.pool().cancel(handle)
    }

    /// Ends the context for all who have a handle to it: refuses what is new,
    /// cancels what is queued, waits for what is running, and ends the workers.
    ///
    /// Those who wait in [`getevents`](Self::getevents) return. Afterwards the
    /// remaining completions can still be taken out; if nobody does, they are
    /// dropped with the last handle. May be called any number of times, by several
    /// threads at once; each call returns when it is over.
    ///
    /// ```
    /// use uaio::{Context, Errno, Op};
    ///
    /// let context = Context::new(1)?;
    /// context.submit(&mut [Op::nop()])?;
    /// context.destroy();
    /// assert_eq!(context.submit(&mut [Op::nop()]), Err(Errno::EINVAL));
    ///
    /// let mut events = Vec::new();
    /// assert_eq!(context.getevents(1, 1, None, &mut events), Ok(1));
    /// assert_eq!(context.getevents(1, 1, None, &mut events), Err(Errno::EINVAL));
    /// # Ok::<(), Errno>(())
    /// ```
    pub fn destroy(&self) {
        destroy(self.pool());
    }
}

/// How waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    Enough,
    /// The time is up, or the context is destroyed.
    Up,
    /// A signal came.
    Interrupted,
}

fn destroy(pool: &Pool) {
    pool.close();
    block_on(pin!(pool.core.destroy(|_| {})));
    pool.join();
    // Once more: whom it cannot tell now it does not tell.
    pool.core.notify_again();
}

pub(crate) fn completion(done: context::Completion<Op>) -> Completion {
    let context::Completion {
        event,
        mut payload,
        handle,
    } = done;
    Completion {
        data: event.data,
        result: from_result(event.res),
        inline: !payload.progress().handed_off,
        op: payload.give_back(handle),
        handle,
    }
}

/// One call of `submit`. At its end, whichever way, what was completed is
/// delivered and what was queued is called out.
struct Submission<'c> {
    pool: &'c Arc<Pool>,
    room: Option<Reservations<'c, ring::Boxed, Slots>>,
    batch: Batch<'c>,
    queued: bool,
    /// How many it has accepted that somebody has to drive for.
    driven: usize,
    /// How many of those no reaper takes out.
    unreaped: usize,
    /// The one that it submits is waited for, by what is left here.
    awaits: bool,
    operation: Option<Awaited>,
}

impl<'c> Submission<'c> {
    fn new(pool: &'c Arc<Pool>) -> Self {
        Self {
            pool,
            room: None,
            batch: pool.core.batch(),
            queued: false,
            driven: 0,
            unreaped: 0,
            awaits: false,
            operation: None,
        }
    }

    /// Accepts the request at `place`, or leaves it there. `wanted` requests,
    /// this one included, are still to come.
    fn accept(&mut self, place: &mut Op, wanted: usize) -> Result<Handle, Errno> {
        place.check(&self.pool.drive)?;
        // Also of a submission that has its room already: what it does itself
        // is no shorter for being many.
        if self.pool.core.is_destroyed() {
            return Err(Errno::EINVAL);
        }
        let reservation = self.reserve(wanted)?;
        let mut op = place.take();
        let course = match op.begin(&self.pool.drive.epoll) {
            Ok(course) => course,
            Err(errno) => {
                *place = op;
                return Err(errno);
            }
        };
        op.progress().handed_off = !matches!(course, Course::Done(_));
        let driven = op.is_driven();
        let limit = op
            .timeout
            .and_then(|limit| Instant::now().checked_add(limit));
        let iocb = slots::Iocb {
            data: op.data,
            obj: 0,
        };
        let target = op.to.as_ref().map(|to| Arc::clone(&to.ring));
        let told = (op.notify.as_ref()).map(|notify| Told::new(notify, self.pool));
        let unreaped = driven && (target.is_some() || self.awaits);
        op.unreaped = unreaped.then(|| Unreaped::new(&self.pool.drive));
        let core = self.pool.core.as_ref();
        let mut request = reservation.fill(iocb, op);
        if let Some(target) = target {
            request =
                (core.deliver_to(request, target)).map_err(|refused| refuse(refused, place))?;
        }
        if let Some(told) = told {
            request = (core.get_ref().notify_by(request, told))
                .map_err(|refused| refuse(refused, place))?;
        }
        if self.awaits {
            let lead = Lead::new(self.pool);
            let (awaited, operation) = Awaited::of(lead, request).map_err(|refused| {
                let Refused { error, request } = refused;
                let request = request.0;
                refuse(Refused { error, request }, place)
            })?;
            request = awaited;
            self.operation = Some(operation);
        }
        // Before: a source's panic ends the request, and this.
        self.driven += usize::from(driven);
        self.unreaped += usize::from(unreaped);
        let accepted = match course {
            Course::Done(result) => {
                let claim = request.claim();
                let handle = claim.handle();
                self.batch.push(claim, as_result(result), 0);
                return Ok(handle);
            }
            Course::Work => {
                self.queued = true;
                Ok(self.pool.queue(request))
            }
            Course::Poll(events) => core.poll(request, events),
            Course::Attempt(events) => core.attempt(request, events),
        };
        let handle = accepted.map_err(|refused| {
            self.driven -= usize::from(driven);
            self.unreaped -= usize::from(unreaped);
            refuse(refused, place)
        })?;
        if let Some(at) = limit {
            self.pool.limit(at, handle);
        }
        Ok(handle)
    }

    fn reserve(
        &mut self,
        wanted: usize,
    ) -> Result<context::Reservation<'c, ring::Boxed, Slots>, Errno> {
        if let Some(reservation) = self.room.as_mut().and_then(Iterator::next) {
            return Ok(reservation);
        }
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let room = self.room.insert(self.pool.core.reserve(wanted)?);
        room.next().ok_or(Errno::EAGAIN)
    }
}

/// Puts what was refused back where it was.
fn refuse(refused: Refused<Request<'_>>, place: &mut Op) -> Errno {
    let Refused { error, request } = refused;
    if let Some(mut op) = request.refuse() {
        if let Some(unreaped) = op.unreaped.take() {
            unreaped.never();
        }
        *place = op;
    }
    error
}

impl Drop for Submission<'_> {
    fn drop(&mut self) {
        if self.queued {
            self.pool.call();
        }
        if self.driven > 0 {
            self.pool.drive.begun(self.driven, self.unreaped);
            self.pool.attend();
        }
    }
}
