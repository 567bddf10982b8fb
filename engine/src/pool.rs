//! What is queued, and the workers that carry it out.
//!
//! Who is called when, and that nothing is left lying, is decided by the core's
//! [dispatch](uaio_core::dispatch): creation starts the least of the workers or fails,
//! they leave at the end only, and a submission wakes one, however many requests it
//! queues. (It starts one when work comes faster than workers begin to take it, or the one
//! that was ahead has left; else workers do, ahead of need.)
//!
//! # Names
//!
//! The queue holds names. Cancelling claims the request in the core and leaves the name
//! behind; the worker that comes across it finds that it is not to be had. A name that is
//! queued is that of another request than the one to be queued, and there are as many
//! places as requests at least: so if there is no place, some name is dead. Then
//! whoever queues takes names out at the front, and puts those that are alive back at
//! the end, until a dead one was among them. As there are about twice as many places,
//! that is two names for each that died. (Where a submitter is stopped just before it
//! fills the first place, nothing can be taken. Who then finds no place does not wait for
//! it: the request ends with EAGAIN, and no effect.)
//!
//! # The end
//!
//! Whoever has a name in hand is counted: between arming the request and leaving its
//! name in the queue, and between taking the name and starting the request. Closing lets
//! nobody in any more, and waits for those. Then all names are in the queue, nobody else
//! takes any, and their requests are ended here. So the core's destruction, which comes
//! next, finds none that it could cancel without asking how far it got. (What was left, to
//! [follow](crate::chain) another one, and whose turn comes only then, is ended by who
//! completes that.)

use std::{
    collections::VecDeque,
    fmt, io, mem,
    num::NonZero,
    ops::RangeInclusive,
    os::raw::c_int,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use uaio_core::{
    Errno,
    context::{self, Handle},
    delivery::All,
    dispatch::{Called, Dispatch, Next, Starting, Task},
    life::Life,
    poll::Heads,
    request::{Generation, Miss, Phase},
    ring, slots,
};

use crate::{
    asyncfd::Ring,
    drive::{Drive, Due, block_on, block_on_until, own_waker},
    interrupt::Interrupts,
    notify::Told,
    op::Body,
    sys::{SignalsBlocked, lock},
};

pub(crate) type Slots = slots::Boxed<Box<Body>, Heads, All<Arc<Ring>, Told>>;
pub(crate) type Core = context::Context<ring::Boxed, Slots>;
pub(crate) type Claim<'c> = context::Claim<'c, ring::Boxed, Slots>;
pub(crate) type Request<'c> = context::Request<'c, ring::Boxed, Slots>;
pub(crate) type Reservation<'c> = context::Reservation<'c, ring::Boxed, Slots>;
type Running<'c> = context::Running<'c, ring::Boxed, Slots>;

/// How soon who ends the context interrupts its workers again.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(1);
/// There are places for so many names at least.
const PLACES: usize = 256;

/// What a thread is to do.
pub(crate) type ThreadMain = Box<dyn FnOnce() + Send>;

/// How threads are started.
#[derive(Clone)]
pub(crate) struct Spawner(
    pub(crate) Arc<dyn Fn(thread::Builder, ThreadMain) -> io::Result<JoinHandle<()>> + Send + Sync>,
);

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner").finish_non_exhaustive()
    }
}

/// What workers there are.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// None: as many as are good for the number of processors.
    pub(crate) workers: Option<RangeInclusive<usize>>,
    /// How long one that is not needed stays.
    pub(crate) patience: Duration,
    pub(crate) spawner: Spawner,
    /// What workers are interrupted by.
    pub(crate) signo: Option<c_int>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: None,
            patience: Duration::from_secs(5),
            spawner: Spawner(Arc::new(thread::Builder::spawn)),
            signo: None,
        }
    }
}

/// They wait, most of the time, for devices: there can be more of them than processors,
/// and a disk wants several requests at once however few processors there are. But each
/// has a stack, and no device becomes faster by hundreds.
fn default_workers(processors: usize) -> RangeInclusive<usize> {
    1..=processors.saturating_mul(4).clamp(8, 256)
}

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) core: Pin<Box<Core>>,
    pub(crate) drive: Arc<Drive>,
    pub(crate) interrupts: Interrupts,
    dispatch: Dispatch<ring::Boxed>,
    /// Those who have names in hand.
    hands: Life,
    least: usize,
    patience: Duration,
    spawner: Spawner,
    /// Locked by who has started one, or joins it.
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Locked by who ends it: the others wait for that.
    ending: Mutex<()>,
    /// What is to be ended by who is just ending what comes before it in its chain.
    /// Locked to be looked at.
    pub(crate) left: Mutex<Option<Vec<(Handle, Errno)>>>,
}

/// A request's name, as the queue has it.
fn name(handle: Handle) -> Task {
    [handle.index() as u64, handle.generation().get()]
}

fn handle([index, generation]: Task) -> Handle {
    Handle::from_parts(index as u32, Generation::new(generation))
}

/// Who has names in hand: closing waits until it is dropped.
#[derive(Debug)]
struct Hand<'p>(&'p Life);

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        self.0.put(1);
    }
}

/// One who queues. When it is dropped, somebody is called.
#[derive(Debug)]
pub(crate) struct Queuing<'p> {
    pool: &'p Arc<Pool>,
    /// None: it is over.
    hand: Option<Hand<'p>>,
}

impl Queuing<'_> {
    /// Accepts a request and queues it.
    pub(crate) fn queue(&self, request: Request<'_>) -> Handle {
        if self.hand.is_none() {
            let claim = request.claim();
            let handle = claim.handle();
            end(claim, Errno::ECANCELED);
            return handle;
        }
        let handle = request.arm();
        self.pool.leave_name(name(handle));
        handle
    }
}

impl Drop for Queuing<'_> {
    fn drop(&mut self) {
        if self.hand.is_some() {
            self.pool.call();
        }
    }
}

/// A worker that is to be started, and what it works for.
struct Hired {
    /// Of the pool below: dropped before that.
    starting: Starting<'static, ring::Boxed>,
    pool: Arc<Pool>,
}

impl Hired {
    fn new(pool: &Arc<Pool>, starting: Starting<'_, ring::Boxed>) -> Self {
        // SAFETY: only the lifetime differs. What it borrows is in the pool, which is on
        // the heap, and there as long as `pool`: that goes after it if this is dropped,
        // and outlives the worker's life if this is taken apart for that.
        let starting = unsafe {
            mem::transmute::<Starting<'_, ring::Boxed>, Starting<'static, ring::Boxed>>(starting)
        };
        let pool = Arc::clone(pool);
        Self { starting, pool }
    }
}

impl Pool {
    /// # Errors
    ///
    /// EINVAL for a capacity or a range of workers that cannot be; EAGAIN, or
    /// what the system said, when a worker cannot be started, or no descriptor had.
    pub(crate) fn new(capacity: usize, config: Config) -> Result<Arc<Self>, Errno> {
        let workers = config.workers.unwrap_or_else(|| {
            default_workers(thread::available_parallelism().map_or(1, NonZero::get))
        });
        let number = |n: usize| u32::try_from(n).map_err(|_| Errno::EINVAL);
        let places = capacity.saturating_mul(2).clamp(PLACES, ring::MAX_EVENTS);
        let drive = Drive::new()?;
        let pool = Arc::new(Self {
            core: Box::pin(Core::new(
                ring::Boxed::native(capacity)?,
                Slots::new(capacity)?,
            )?),
            interrupts: Interrupts::new(config.signo, &drive)?,
            drive,
            dispatch: Dispatch::new(
                ring::Boxed::native(places)?,
                number(*workers.start())?..=number(*workers.end())?,
            )?,
            hands: Life::new(),
            least: *workers.start(),
            patience: config.patience,
            spawner: config.spawner,
            threads: Mutex::new(Vec::new()),
            ending: Mutex::new(()),
            left: Mutex::default(),
        });
        while let Some(starting) = pool.dispatch.start() {
            if let Err(errno) = pool.hire(starting) {
                pool.close(&pool.ending());
                pool.join();
                return Err(errno);
            }
        }
        Ok(pool)
    }

    /// Whether this is a copy in a process that was forked since, where it is of no use:
    /// its threads are not there, and may have had its locks.
    pub(crate) fn is_copy(&self) -> bool {
        self.drive.epoll.is_copy()
    }

    /// Of a copy: closes its descriptors, and leaves all else as it is.
    ///
    /// # Safety
    ///
    /// It is one, and this is not called again.
    pub(crate) unsafe fn abandon(self: &Arc<Self>) {
        mem::forget(Arc::clone(self));
        // SAFETY: by the contract; and as it is forgotten, the pool is never dropped, and
        // has it.
        unsafe { self.drive.epoll.close_copy() };
    }

    /// For who has requests to queue.
    pub(crate) fn queuing(self: &Arc<Self>) -> Queuing<'_> {
        Queuing {
            pool: self,
            hand: self.hand(),
        }
    }

    fn hand(&self) -> Option<Hand<'_>> {
        self.hands.try_get(1).ok().map(|()| Hand(&self.hands))
    }

    /// Queues a name, of who is counted.
    fn leave_name(self: &Arc<Self>, name: Task) {
        if self.dispatch.push(&[name]).is_err() {
            self.push_for_a_dead_one(name);
        }
    }

    /// There is no place: takes a dead name's.
    #[cold]
    fn push_for_a_dead_one(self: &Arc<Self>, name: Task) {
        let mut held = VecDeque::from([name]);
        let mut nothing = 0;
        while let Some(first) = held.front() {
            if self.dispatch.push(&[*first]).is_ok() {
                held.pop_front();
                continue;
            }
            match self.dispatch.take() {
                Some(other) => {
                    nothing = 0;
                    if self.is_queued(other) {
                        held.push_back(other);
                    }
                }
                // By now there is a place.
                None if nothing == 0 => nothing += 1,
                // Or somebody is stopped who is about to fill the first one, and is not
                // to be waited for.
                None => {
                    for name in held.drain(..) {
                        self.end_queued(name, Errno::EAGAIN);
                    }
                }
            }
        }
    }

    /// Early: it was left, to be begun.
    fn is_queued(&self, name: Task) -> bool {
        matches!(
            self.core.phase(handle(name)),
            Some(Phase::Armed | Phase::Early)
        )
    }

    /// Queues a request that was left, unless it is over.
    pub(crate) fn queue_left(self: &Arc<Self>, left: Handle) -> bool {
        let Some(hand) = self.hand() else {
            return false;
        };
        self.leave_name(name(left));
        self.call();
        // Who ends the pool waits for a worker that is just being started, too.
        drop(hand);
        true
    }

    /// Ends the request of this name, unless it is over.
    fn end_queued(self: &Arc<Self>, name: Task, why: Errno) {
        match self.core.claim(handle(name)) {
            Ok(claim) => end(claim, why),
            // Its name is ours, so nobody runs it: it was left.
            Err(Miss::Busy) => self.end_left(handle(name), why),
            Err(Miss::Late | Miss::Gone) => {}
        }
    }

    /// Takes over the request of this name, unless it is over.
    fn start(self: &Arc<Self>, name: Task) -> Option<Running<'_>> {
        let mut next = handle(name);
        match self.core.start(next) {
            Ok(running) => return Some(running),
            Err(Miss::Busy) => {
                // SAFETY: its name is ours, so nobody runs it: it was left, to whoever
                // comes across that.
                let early = unsafe { self.core.early(next) };
                next = self.begin_left(early)?;
            }
            Err(Miss::Late | Miss::Gone) => return None,
        }
        self.core.start(next).ok()
    }

    fn call(self: &Arc<Self>) {
        match self.dispatch.call() {
            Called::Done => {}
            // If it cannot be started, those there are will come to it.
            Called::Start(starting) => _ = self.hire(starting),
            // The workers have left: it is over.
            Called::Take => self.end_all_queued(),
        }
    }

    fn end_all_queued(self: &Arc<Self>) {
        while let Some(name) = self.dispatch.take() {
            self.end_queued(name, Errno::ECANCELED);
        }
    }

    fn hire(self: &Arc<Self>, starting: Starting<'_, ring::Boxed>) -> Result<(), Errno> {
        // In a box, or its reference would be an argument of what drops the pool.
        let hired = Box::new(Hired::new(self, starting));
        self.spawn("uaio-worker", move || {
            let Hired { starting, pool } = *hired;
            pool.work(starting);
        })
    }

    fn spawn(&self, name: &str, life: impl FnOnce() + Send + 'static) -> Result<(), Errno> {
        let builder = thread::Builder::new()
            .name(name.into())
            .stack_size(256 << 10);
        let started = {
            let _blocked = SignalsBlocked::new();
            catch_unwind(AssertUnwindSafe(|| {
                (self.spawner.0)(builder, Box::new(life))
            }))
        };
        let number = |error: io::Error| error.raw_os_error().and_then(Errno::from_raw);
        let thread = match started {
            Ok(Ok(thread)) => thread,
            Ok(Err(error)) => return Err(number(error).unwrap_or(Errno::EAGAIN)),
            Err(_panic) => return Err(Errno::EAGAIN),
        };
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
            let pool = Arc::clone(self);
            let drive = move || pool.drive.run(&mut |due| pool.see_to(due));
            if self.spawn("uaio-driver", drive).is_err() {
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
                self.interrupts.again();
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
    fn work(self: &Arc<Self>, starting: Starting<'_, ring::Boxed>) {
        let mut worker = starting.begin();
        let waker = own_waker();
        // None: it is over, and what is left in the queue is for who closes.
        while let Some(hand) = self.hand() {
            match worker.look() {
                Next::Task(name, more) => {
                    // What is begun here may be a source that panics. Then it ends with EIO.
                    let started = catch_unwind(AssertUnwindSafe(|| self.start(name)));
                    drop(hand);
                    // Else it looks itself.
                    if let Ok(Some(running)) = started {
                        if let Some(more) = more {
                            let _ = self.hire(more);
                        }
                        // A panic drops the running request, which then ends with EIO.
                        let _ = catch_unwind(AssertUnwindSafe(|| self.carry_out(running)));
                    }
                }
                Next::Idle => {
                    drop(hand);
                    let needed = self.dispatch.workers().0 <= self.least;
                    let until = match needed {
                        true => None,
                        false => Instant::now().checked_add(self.patience),
                    };
                    if !block_on_until(pin!(worker.wait()), &waker, until) {
                        worker = match worker.leave() {
                            Ok(()) => return,
                            Err(worker) => worker,
                        };
                    }
                }
                Next::Over => return,
            }
        }
    }

    fn carry_out(&self, mut running: Running<'_>) {
        // `None` cannot be: nobody takes the request out.
        let run = |running: &mut Running<'_>| {
            let result = running.with_payload(|body| body.run());
            result.unwrap_or(Err(Errno::EIO))
        };
        let result = match running.with_payload(|op| op.is_interruptible()) {
            Some(true) => {
                let _entered = self.interrupts.enter(running.handle());
                loop {
                    // Re-check: who asked before did not find it on the list.
                    if running.cancel_requested() {
                        break Err(Errno::ECANCELED);
                    }
                    match run(&mut running) {
                        Err(Errno::EINTR) => {}
                        result => break result,
                    }
                }
            }
            _ => run(&mut running),
        };
        running.complete(as_result(result), 0);
    }

    /// Has who carries it out, and was asked to end, do so; if that is possible.
    fn interrupt(self: &Arc<Self>, handle: Handle) {
        if self.interrupts.interrupt(handle) {
            self.attend();
        }
    }

    /// Ends the request if it is queued, else asks who has it.
    ///
    /// # Errors
    ///
    /// See [`Context::cancel`](crate::Context::cancel).
    pub(crate) fn cancel(self: &Arc<Self>, handle: Handle) -> Result<(), Errno> {
        match self.core.claim(handle) {
            Ok(claim) => {
                end(claim, Errno::ECANCELED);
                Ok(())
            }
            // Running: it is not Armed again, so nothing is cut short here.
            Err(Miss::Busy) => match self.core.cancel(handle)? {
                context::Cancelled::Asked => {
                    self.interrupt(handle);
                    Err(Errno::EINPROGRESS)
                }
                context::Cancelled::Done => Ok(()),
            },
            Err(Miss::Late) => Err(Errno::EALREADY),
            Err(Miss::Gone) => Err(Errno::ENOENT),
        }
    }

    /// For who ends it. The others wait.
    pub(crate) fn ending(&self) -> MutexGuard<'_, ()> {
        lock(&self.ending)
    }

    /// Ends what is queued, and has the workers leave when they are done.
    pub(crate) fn close(self: &Arc<Self>, _: &MutexGuard<'_, ()>) {
        self.drive.close();
        if self.hands.end() {
            self.hands.put(1);
        }
        block_on(pin!(self.hands.idle()));
        self.dispatch.close();
        self.end_all_queued();
    }

    /// Ends the core. After [`close`](Self::close).
    pub(crate) fn destroy(&self) {
        let mut over = pin!(self.core.destroy(|_| {}));
        let waker = own_waker();
        loop {
            // Nobody drives any more. (Who puts itself on the list now looks after that
            // whether it is to end, and is.)
            let until = self
                .interrupts
                .all()
                .then(|| Instant::now() + INTERRUPT_AGAIN);
            if block_on_until(over.as_mut(), &waker, until) {
                return;
            }
        }
    }

    /// Waits until the workers have left. After [`close`](Self::close).
    pub(crate) fn join(&self) {
        // One that is joined may have started another, and says so before it ends.
        let next = || lock(&self.threads).pop();
        while let Some(thread) = next() {
            let _ = thread.join();
        }
    }
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
    use crate::{Context, File, Op};

    #[test]
    fn a_panic_ends_its_request_and_no_other() {
        let context = Context::builder(8).workers(1..=1).build().unwrap();
        let mut ops = [Op::nop(), Op::panic(), Op::nop(), Op::panic(), Op::nop()];
        for (n, op) in ops.iter_mut().enumerate() {
            *op = mem::replace(op, Op::nop()).data(n as u64).offload();
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

    /// With workers that are kept from their work.
    #[test]
    fn names_without_requests_make_room() {
        for capacity in [1, 2, PLACES, 2 * PLACES] {
            let bodies = Arc::new(Mutex::new(Vec::<ThreadMain>::new()));
            let keep = Arc::clone(&bodies);
            let spawner = move |builder: thread::Builder, body| {
                lock(&keep).push(body);
                builder.spawn(|| {})
            };
            let config = Config {
                workers: Some(1..=1),
                spawner: Spawner(Arc::new(spawner)),
                ..Config::default()
            };
            let pool = Pool::new(capacity, config).unwrap();
            let submit = || {
                let reservation = pool.core.reserve_one().unwrap();
                let body = Op::nop().take(reservation.handle()).unwrap();
                let request = reservation.fill(slots::Iocb::default(), body);
                pool.queuing().queue(request)
            };
            // All but one stay, and are in the way of those that go.
            let kept: Vec<_> = (1..capacity).map(|_| submit()).collect();
            for _ in 0..10 * (PLACES + capacity) {
                assert_eq!(pool.cancel(submit()), Ok(()));
                assert_eq!(pool.core.reap(&mut [None]), Ok(1));
            }
            assert!((kept.iter()).all(|kept| pool.core.phase(*kept) == Some(Phase::Armed)));
            let worker = thread::spawn(lock(&bodies).pop().unwrap());
            let mut out: Vec<_> = (0..capacity).map(|_| None).collect();
            let mut reaped = Vec::new();
            while reaped.len() < kept.len() {
                pool.core.reap(&mut out).unwrap();
                reaped.extend(out.iter_mut().flat_map(Option::take));
                thread::yield_now();
            }
            let by_index = |handle: &Handle| handle.index();
            let mut reaped: Vec<_> = reaped.iter().map(|done| done.handle).collect();
            reaped.sort_by_key(by_index);
            let mut kept = kept;
            kept.sort_by_key(by_index);
            assert_eq!(reaped, kept);
            pool.close(&pool.ending());
            pool.join();
            worker.join().unwrap();
            assert_eq!(pool.core.reap(&mut out), Ok(0));
        }
    }

    #[test]
    fn default_workers_are_enough_and_not_too_many() {
        assert_eq!(default_workers(1), 1..=8);
        assert_eq!(default_workers(256), 1..=256);
        for processors in 1..=256 {
            let most = *default_workers(processors).end();
            assert!(most >= processors && (8..=256).contains(&most));
            assert!(most <= 4 * processors.max(2));
        }
        assert_eq!(default_workers(usize::MAX), 1..=256);
    }

    /// The end is called while a request is being queued, of which some was done.
    #[test]
    fn what_was_done_before_the_end_is_told() {
        let context = Context::builder(1).workers(1..=1).build().unwrap();
        let pool = context.pool();
        let queuing = pool.queuing();
        let reservation = pool.core.reserve_one().unwrap();
        let mut body = Op::nop().take(reservation.handle()).unwrap();
        body.progress().done = 5;
        let request = reservation.fill(slots::Iocb::default(), body);
        thread::scope(|scope| {
            scope.spawn(|| context.destroy());
            while !pool.hands.has_ended() {
                thread::yield_now();
            }
            // It has time to go on, if it does not wait.
            thread::sleep(Duration::from_millis(10));
            queuing.queue(request);
            drop(queuing);
        });
        let mut events = Vec::new();
        assert_eq!(context.getevents(1, 1, None, &mut events), Ok(1));
        assert_eq!(events[0].result, Ok(5));
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
        // Also those that have not begun yet.
        let started = lock(&context.pool().threads).len();
        assert!((2..=MOST).contains(&started), "{started}");
    }
}
