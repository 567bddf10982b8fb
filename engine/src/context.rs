//! Contexts: where requests go in and completions come out.

use std::{
    fmt,
    future::Future,
    io, mem,
    ops::RangeInclusive,
    pin::pin,
    ptr::NonNull,
    sync::Arc,
    task::{self, Poll},
    thread::{self, JoinHandle},
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
    chain::{Before, Followed},
    notify::Told,
    op::{Body, Course, Op, Unreaped},
    operation::{Awaited, Lead, Operation, Unsubmitted},
    pool::{Config, Pool, Queuing, Request, Slots, Spawner, as_result, from_result},
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
    /// What it came to: [as the system call's](Op#results), mostly bytes or zero.
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
    config: Config,
}

impl Builder {
    /// How many worker threads there are: from the fewest, which are started
    /// with the context, to the most, as there is work. As long as there may be more, a
    /// worker that begins something and leaves nobody idle starts another one first: so
    /// that who submits seldom has to.
    ///
    /// By default 1 to four for each processor that the process may use, but no fewer
    /// than 8 and no more than 256: they wait for devices, most of the time.
    pub fn workers(mut self, workers: RangeInclusive<usize>) -> Self {
        self.config.workers = Some(workers);
        self
    }

    /// How long a worker stays that finds nothing to do, and is not one of the fewest. By
    /// default five seconds.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.config.patience = patience;
        self
    }

    /// How the context's threads are started: with `builder`, which has their name and
    /// stack size, to do `body`, and nothing else after that. For who wants to name, pin
    /// or count them.
    ///
    /// It is called by who submits, by who waits, by workers, and by whoever completes,
    /// cancels or wakes what another request [follows](Op::linked); with all signals
    /// blocked, as they are to be in the thread. It must not wait for the context; and the
    /// thread must come to `body` soon, for what is submitted meanwhile relies on it. The
    /// handle is joined at the end. If it fails or panics, those who are there do the
    /// work; without any, the context is not made.
    ///
    /// ```
    /// use uaio::Context;
    ///
    /// let context = Context::builder(64)
    ///     .spawner(|builder, body| builder.name("my-worker".into()).spawn(body))
    ///     .build()?;
    /// # Ok::<(), uaio::Errno>(())
    /// ```
    pub fn spawner<F>(mut self, spawner: F) -> Self
    where
        F: Fn(thread::Builder, Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>,
        F: Send + Sync + 'static,
    {
        self.config.spawner = Spawner(Arc::new(spawner));
        self
    }

    /// Lets the context have a real-time signal, to interrupt what its workers carry out:
    /// what is cancelled, or under way at the end, and waits for somebody else in a system
    /// call. Without one, such a request goes on until it is done. (Transfers and syncs of
    /// files go on in any case.)
    ///
    /// A handler that does nothing is installed for it, without SA_RESTART, and stays. The
    /// signal is sent to workers only, which block all others, and this one but for such
    /// calls. Several contexts may have the same.
    pub fn interrupt_by(mut self, signo: i32) -> Self {
        self.config.signo = Some(signo);
        self
    }

    /// Makes the context, and starts its first workers.
    ///
    /// # Errors
    ///
    /// EINVAL: the capacity is zero or above 2^24, or the range of workers is
    /// empty, begins with zero or ends above 2^20 - 1, or what it is to be [interrupted
    /// by](Self::interrupt_by) is no real-time signal; EBUSY: or has a handler. EAGAIN: the system has no thread
    /// left; or what else the [spawner](Self::spawner) said. EMFILE,
    /// ENFILE, ENOMEM: it has no descriptor left, of which a context needs two, or no
    /// memory.
    pub fn build(self) -> Result<Context, Errno> {
        let pool = Pool::new(self.capacity, self.config)?;
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
///
/// # Fork
///
/// A process that is forked has a copy without threads. There every call is refused with
/// EINVAL, also for what is the context's: an [`AsyncFd`] of it has nothing to pop, an
/// [`Operation`] of it never resolves. Dropping them closes descriptors, and nothing else:
/// it waits for nobody, wakes nobody, and does not free their memory. The forking process
/// is not disturbed. New contexts can be made there, and [files](crate::File), of the same
/// descriptors perhaps: a copy of a file may be locked by who used it just then.
///
/// (Linux before 4.14 does not tell: there, do not touch them.)
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
        match self.0.is_copy() {
            false => destroy(&self.0),
            // SAFETY: a copy; and the pool has one owner, who is dropped once.
            true => unsafe { self.0.abandon() },
        }
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
            config: Config::default(),
        }
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.0.0
    }

    /// # Errors
    ///
    /// EINVAL: it is another process's.
    fn live(&self) -> Result<&Arc<Pool>, Errno> {
        match self.pool().is_copy() {
            false => Ok(self.pool()),
            true => Err(Errno::EINVAL),
        }
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
    /// Does not wait for devices, for other requests or for other submitters. It copies
    /// from and to the page cache, unless told [otherwise](Op::offload). (A request for a
    /// worker can complete with EAGAIN, and no effect: if another submitter was stopped
    /// midway for so long that others were cancelled by the hundred since.)
    ///
    /// # Errors
    ///
    /// Why the *first* was refused; of a later one, submitting it again tells.
    /// EAGAIN: there is no room, take completions out first. EINVAL: the request
    /// makes no sense (an offset above 2^63 - 1, more than 1,024 buffers, a name with a
    /// NUL, only a handle of one that was accepted before, a [poll](Op::poll) for what
    /// will never be, or a [target](Op::to) that is another context's, or given no data), or
    /// the context is destroyed. EBADFD: its target is closed. EOVERFLOW: a polled source has more
    /// than two heads. EBADF: it is the path of a file, and not open. ENOSPC, ENOMEM,
    /// ELOOP: epoll takes no more descriptors, or not this one.
    ///
    /// # Panics
    ///
    /// If a [source](Op::poll_source) does. Its request was accepted, ends with EIO, and
    /// left its handle where it was.
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
        let mut submission = Submission::new(self.live()?);
        let mut accepted = 0;
        while accepted < ops.len() {
            let (n, refused) = submission.accept_run(&mut ops[accepted..]);
            accepted += n;
            match refused {
                Some(errno) if accepted == 0 => return Err(errno),
                Some(_) => break,
                None => {}
            }
        }
        Ok(accepted)
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
    pub fn operation(&self, op: Op) -> Result<Operation, Unsubmitted> {
        let mut place = op;
        let pool = match self.live() {
            Ok(pool) => pool,
            Err(errno) => return Err(Unsubmitted { errno, op: place }),
        };
        let mut submission = Submission::new(pool);
        submission.awaits = true;
        let accepted = match place.body().is_some_and(Body::is_delivered) {
            true => Err(Errno::EINVAL),
            false => submission.accept(&mut place, 1),
        };
        match (accepted, submission.operation.take()) {
            (Ok(_), Some(operation)) => Ok(Operation::new(operation, pool)),
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
        let mut submission = Submission::new(self.live()?);
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
        AsyncFd::new(self.live()?, size)
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
        unsafe { AsyncFd::at(self.live()?, uring) }
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
        self.live()?;
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
        let mut got = 0;
        while got < nr {
            let wanted = (nr - got).min(CHUNK);
            events.reserve(wanted);
            let mut driven = 0;
            let n = self.pool().core.reap_each(wanted, |done| {
                // What named a target, which was closed, says so itself.
                driven += usize::from(done.payload.unreaped.is_none() && done.payload.is_driven());
                events.push(completion(done));
            })?;
            if driven > 0 {
                self.pool().drive.over(driven);
            }
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
    /// result if there is one. (It is [interrupted](Builder::interrupt_by), if it can be.) EALREADY: it is complete, or was cancelled before.
    /// ENOENT: its completion was taken out. EINVAL: it is another process's context.
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
        self.live()?.cancel(handle)
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
        if let Ok(pool) = self.live() {
            destroy(pool);
        }
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

fn destroy(pool: &Arc<Pool>) {
    let ending = pool.ending();
    pool.close(&ending);
    pool.destroy();
    pool.join();
    // Once more: whom it cannot tell now it does not tell.
    pool.core.notify_again();
}

#[inline]
pub(crate) fn completion(done: context::Completion<Box<Body>>) -> Completion {
    Completion {
        data: done.event.data,
        result: from_result(done.event.res),
        inline: !done.payload.is_handed_off(),
        op: done.payload.give_back(done.handle),
        handle: done.handle,
    }
}

/// One call of `submit`. At its end, whichever way, what was completed is
/// delivered and what was queued is called out.
struct Submission<'c> {
    pool: &'c Arc<Pool>,
    room: Option<Reservations<'c, ring::Boxed, Slots>>,
    /// More of that, for a chain.
    more: Vec<Reservations<'c, ring::Boxed, Slots>>,
    batch: Batch<'c>,
    /// Of those for workers.
    queuing: Option<Queuing<'c>>,
    /// How many it has accepted that somebody has to drive for.
    driven: usize,
    /// How many of those no reaper takes out.
    unreaped: usize,
    /// The one that it submits is waited for, by what is left here.
    awaits: bool,
    operation: Option<Awaited>,
    /// The next one is linked with the one before it,
    follows: bool,
    /// and that is so far.
    before: Before,
}

impl<'c> Submission<'c> {
    fn new(pool: &'c Arc<Pool>) -> Self {
        Self {
            pool,
            room: None,
            more: Vec::new(),
            batch: pool.core.batch(),
            queuing: None,
            driven: 0,
            unreaped: 0,
            awaits: false,
            operation: None,
            follows: false,
            before: Before::Done,
        }
    }

    /// Accepts the first of these requests, one or more, and leaves their handles; tells
    /// how many, and why the next one was refused if it was.
    ///
    /// What can be done at once is done first, one after the other, and accepted then: so
    /// the system calls have their code and data at hand, and so has what is noted of
    /// them. What cannot is the last, and begun when all before it are accepted, lest
    /// what it calls keeps their results from being told.
    fn accept_run(&mut self, ops: &mut [Op]) -> (usize, Option<Errno>) {
        let wanted = ops.len();
        let mut results = [const { Ok(0) }; CHUNK];
        let mut done = 0;
        let mut next = None;
        while done < wanted.min(CHUNK) {
            match self.begin_next(&mut ops[done..], done) {
                Ok(Some(Course::Done(it))) => results[done] = it,
                other => {
                    next = other.transpose();
                    break;
                }
            }
            done += 1;
        }
        for (n, (op, result)) in ops.iter_mut().zip(results).take(done).enumerate() {
            let accepted = match op.body().is_some_and(Body::is_only_reaped) {
                true => self.accept_done(op, result),
                false => self.accept_begun(op, Course::Done(result)),
            };
            if let Err(errno) = accepted {
                return (n, Some(errno));
            }
        }
        match next {
            None => (done, None),
            Some(Err(errno)) => (done, Some(errno)),
            Some(Ok(course)) => match self.accept_begun(&mut ops[done], course) {
                Ok(_) => (done + 1, None),
                Err(errno) => (done, Some(errno)),
            },
        }
    }

    /// Begins the first of these requests, as the one before it has it. See
    /// [`begin`](Self::begin).
    #[inline(always)]
    fn begin_next(&mut self, ops: &mut [Op], before: usize) -> Result<Option<Course>, Errno> {
        let wanted = ops.len();
        let linked = ops[0].body().is_some_and(|body| body.linked);
        if linked && !self.follows && !self.admit_chain(ops, before)? {
            return Ok(None);
        }
        let course = match &self.before {
            Before::UnderWay(_) => {
                ops[0].body_mut().ok_or(Errno::EINVAL)?.renew();
                return Ok(Some(Course::Follow));
            }
            Before::Failed => {
                ops[0].body_mut().ok_or(Errno::EINVAL)?.renew();
                Course::Done(Err(Errno::ECANCELED))
            }
            Before::Done => match self.begin(&mut ops[0], before, wanted) {
                Ok(Some(course)) => course,
                // What it is linked with has been accepted, or is to be.
                Err(errno) if self.follows => Course::Done(Err(errno)),
                other => return other,
            },
        };
        if let Course::Done(result) = course
            && (linked || self.follows)
        {
            let at_least = ops[0].body().map_or(0, Body::at_least);
            let failed = as_result(result) < at_least;
            self.before = match linked && failed {
                true => Before::Failed,
                false => Before::Done,
            };
            self.follows = linked;
        }
        Ok(Some(course))
    }

    /// Whether there is room for the chain that begins here. `false`: those before it are
    /// in the way.
    ///
    /// # Errors
    ///
    /// Why it is not accepted.
    fn admit_chain(&mut self, ops: &[Op], before: usize) -> Result<bool, Errno> {
        let linked = ops
            .iter()
            .take_while(|op| op.body().is_some_and(|body| body.linked));
        let len = (linked.count() + 1).min(ops.len());
        for op in &ops[..len] {
            let body = op.body().ok_or(Errno::EINVAL)?;
            body.check(&self.pool.drive)?;
        }
        if len > self.pool.core.capacity() {
            return Err(Errno::EINVAL);
        }
        if self.has_room(before + len) {
            return Ok(true);
        }
        if before > 0 {
            return Ok(false);
        }
        while !self.has_room(len) {
            if let Err(errno) = self.reserve(ops.len()) {
                self.room = None;
                self.more.clear();
                return Err(errno);
            }
        }
        Ok(true)
    }

    /// Whether there is room for so many.
    #[inline(always)]
    fn has_room(&self, n: usize) -> bool {
        let room = self.room.as_ref().map_or(0, |room| room.len());
        room >= n || room + self.more.iter().map(|more| more.len()).sum::<usize>() >= n
    }

    /// Makes room for some of `wanted`.
    fn reserve(&mut self, wanted: usize) -> Result<(), Errno> {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let room = self.pool.core.reserve(wanted)?;
        let before = self.room.replace(room);
        self.more.extend(before.filter(|before| !before.is_empty()));
        Ok(())
    }

    /// Takes room for one.
    #[inline(always)]
    fn take_room(&mut self) -> Option<context::Reservation<'c, ring::Boxed, Slots>> {
        match self.room.as_mut().and_then(Iterator::next) {
            Some(reservation) => Some(reservation),
            None => {
                self.room = self.more.pop();
                self.room.as_mut().and_then(Iterator::next)
            }
        }
    }

    /// Accepts the request at `op`, or leaves it there. `wanted` requests,
    /// this one included, are still to come.
    fn accept(&mut self, op: &mut Op, wanted: usize) -> Result<Handle, Errno> {
        match self.begin(op, 0, wanted)? {
            Some(course) => self.accept_begun(op, course),
            // Cannot be: with none before it there is room, or an error.
            None => Err(Errno::EAGAIN),
        }
    }

    /// Begins a request, where it is. `before` it so many have begun that are not accepted
    /// yet, and `wanted` are still to come, this one included. `None`: it has to wait for
    /// those before it, which have all the room.
    #[inline(always)]
    fn begin(
        &mut self,
        op: &mut Op,
        before: usize,
        wanted: usize,
    ) -> Result<Option<Course>, Errno> {
        let body = op.body_mut().ok_or(Errno::EINVAL)?;
        body.check(&self.pool.drive)?;
        // Also of a submission that has its room already: what it does itself
        // is no shorter for being many.
        if self.pool.core.is_destroyed() && !self.follows {
            return Err(Errno::EINVAL);
        }
        if !self.has_room(before + 1) {
            if before > 0 {
                return Ok(None);
            }
            self.reserve(wanted)?;
        }
        body.renew();
        body.begin(&self.pool.drive.epoll).map(Some)
    }

    /// As [`accept_begun`](Self::accept_begun), for most: done, and only to be reaped.
    #[inline(always)]
    fn accept_done(&mut self, op: &mut Op, result: Result<usize, Errno>) -> Result<Handle, Errno> {
        let reservation = self.take_room().ok_or(Errno::EAGAIN)?;
        let mut body = op.take(reservation.handle()).ok_or(Errno::EINVAL)?;
        body.progress().handed_off = false;
        let iocb = slots::Iocb {
            data: body.data,
            obj: 0,
        };
        let claim = reservation.fill(iocb, body).claim();
        let handle = claim.handle();
        self.batch.push(claim, as_result(result), 0);
        Ok(handle)
    }

    /// Accepts a request that has begun, in the room that there is for it.
    fn accept_begun(&mut self, op: &mut Op, course: Course) -> Result<Handle, Errno> {
        let reservation = self.take_room().ok_or(Errno::EAGAIN)?;
        let mut body = op.take(reservation.handle()).ok_or(Errno::EINVAL)?;
        let done = matches!(course, Course::Done(_));
        body.progress().handed_off = !done;
        // Of what is done, `begin_next` knows.
        let follows = match done {
            true => self.follows,
            false => mem::replace(&mut self.follows, body.linked),
        };
        let before = match done {
            true => Before::Done,
            false => mem::take(&mut self.before),
        };
        if follows && !done {
            // What it follows comes first.
            self.batch.deliver();
        }
        let mut followed = None;
        if body.linked && !done {
            let (pass, it) = Followed::new(self.pool, &body);
            self.before = Before::UnderWay(pass);
            followed = Some(it);
        }
        let driven = body.is_driven();
        let limit = body
            .timeout
            .and_then(|limit| Instant::now().checked_add(limit));
        let iocb = slots::Iocb {
            data: body.data,
            obj: 0,
        };
        let target = body.to.as_ref().map(|to| Arc::clone(&to.ring));
        let told = (body.notify.is_some() || followed.is_some())
            .then(|| Told::new(body.notify.clone(), followed, self.pool));
        let unreaped = driven && (target.is_some() || self.awaits);
        body.unreaped = unreaped.then(|| Unreaped::new(&self.pool.drive));
        let core = self.pool.core.as_ref();
        let mut request = reservation.fill(iocb, body);
        if let Some(target) = target {
            request = match core.deliver_to(request, target) {
                Ok(request) => request,
                // Closed meanwhile: as if it were just after that.
                Err(Refused { request, .. }) if done || follows => request,
                Err(refused) => return Err(refuse(refused, op)),
            };
        }
        if let Some(told) = told {
            request =
                (core.get_ref().notify_by(request, told)).map_err(|refused| refuse(refused, op))?;
        }
        if self.awaits {
            let lead = Lead::new(self.pool);
            let (awaited, operation) = Awaited::of(lead, request).map_err(|refused| {
                let Refused { error, request } = refused;
                let request = request.0;
                refuse(Refused { error, request }, op)
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
                let queuing = self.queuing.get_or_insert_with(|| self.pool.queuing());
                Ok(queuing.queue(request))
            }
            Course::Wait => Ok(request.arm()),
            Course::Follow => {
                let handle = request.early().leave();
                if let Before::UnderWay(pass) = before {
                    self.pool.pass(pass, handle);
                }
                Ok(handle)
            }
            Course::Poll(events) => core.poll(request, events),
            Course::Attempt(events) => core.attempt(request, events),
        };
        let handle = match accepted {
            Ok(handle) => handle,
            Err(Refused { error, request }) if follows => {
                let claim = request.claim();
                let handle = claim.handle();
                claim.complete(error.as_result(), 0);
                handle
            }
            Err(refused) => {
                self.driven -= usize::from(driven);
                self.unreaped -= usize::from(unreaped);
                self.before = Before::Done;
                self.follows = false;
                return Err(refuse(refused, op));
            }
        };
        if let Some(at) = limit {
            self.pool.limit(at, handle);
        }
        Ok(handle)
    }
}

/// Puts what was refused back where it was.
fn refuse(refused: Refused<Request<'_>>, place: &mut Op) -> Errno {
    let Refused { error, request } = refused;
    if let Some(mut body) = request.refuse() {
        if let Some(unreaped) = body.unreaped.take() {
            unreaped.never();
        }
        *place = body.into();
    }
    error
}

impl Drop for Submission<'_> {
    fn drop(&mut self) {
        drop(self.queuing.take());
        if self.driven > 0 {
            self.pool.drive.begun(self.driven, self.unreaped);
            self.pool.attend();
        }
    }
}
