//! Work that is handed to waiting workers.
//!
//! Who has work that would block leaves it in a bounded queue, and sees to it that
//! somebody comes to it: a worker that waits is woken, or another one is started. What
//! a worker is, and how it is started, the embedder knows; who is called when, and that
//! nothing is left lying, is decided here.
//!
//! # One call at a time
//!
//! One word says how many workers there are, how many of them are idle, how many more are
//! being started, and whether one was *called* and has not looked at the queue since.
//! Whoever leaves work calls; while somebody is called nobody else is, so a burst wakes
//! one. Whoever is called, or was about to wait, takes the call back, looks, and, if there
//! is more than it takes, calls the next. If there is not, and nobody is idle any more, it
//! has one more started, ahead of need: so who leaves work next finds one to wake, and does
//! not start it itself.
//!
//! | what comes | nobody is called | somebody is |
//! |---|---|---|
//! | push, then call | idle > 0: called, and one is woken. Else one is being started: called. Else there may be more: called, and one is started. Else nothing: who works looks before it waits | nothing: who was called looks after that |
//! | who was called looks, one that has waited, or one that was started | takes | not called any more; takes |
//! | another one looks | takes | takes |
//! | who took | if there is more, calls as above; else, if nobody is idle or being started, and there may be more: one is started | starts, as there |
//! | a worker waits | idle + 1; looks once more; sleeps | looks |
//! | a worker leaves | workers – 1, unless it is one of the least; looks once more | looks: it stays |
//! | a start fails, or a worker is lost | if there is work, one that is idle, or being started, is called | the same, and that one is not called any more |
//! | the end | closed: whoever looks finds that, and who pushes | the same |
//!
//! Who leaves work pushes, fences, and reads the word; who waits, leaves, takes the call
//! back or closes writes the word, fences, and looks at the queue. So one of them sees
//! the other.
//!
//! # Nothing is stranded
//!
//! The least of the workers are [started](Dispatch::start) before anything is pushed, and
//! never leave before the end; one that is being started is none yet, so nobody leaves
//! because of it. Where there is none all the same, and after the end, whoever leaves work
//! is told to take it itself, and whoever closes does: until nothing is left, for that may
//! be another's, which was hidden.
//!
//! # Progress
//!
//! Pushing and calling are lock-free, do not allocate, and run from any context; they call
//! wakers: of one worker, unless two calls meet. A pusher that is stopped between taking its
//! place and filling it hides what was pushed behind it until it goes on, and calls then; and
//! who is stopped between saying that somebody is called, or being started, and waking or
//! starting it delays what others leave meanwhile, unless a worker looks. Waiting and
//! leaving are for ordinary callers.

use core::{
    fmt,
    future::Future,
    mem,
    ops::RangeInclusive,
    pin::Pin,
    task::{self, Poll},
};

use crate::{
    error::Errno,
    ring::{Event, Ring, RingMemory},
    sync::atomic::{AtomicU64, Ordering, fence},
    wait::{Enqueued, WaitQueue, Waiter},
};

/// The word: how many workers there are,
const WORKER: u64 = 1;
/// how many of them wait, or are about to,
const IDLE: u64 = 1 << 20;
/// how many more are being started,
const STARTING: u64 = 1 << 40;
const COUNT: u64 = (1 << 20) - 1;
/// that one was called, and nobody has looked since,
const CALLED: u64 = 1 << 62;
/// and that it is over.
const CLOSED: u64 = 1 << 63;

fn workers(word: u64) -> u64 {
    word & COUNT
}

fn idle(word: u64) -> u64 {
    (word / IDLE) & COUNT
}

fn starting(word: u64) -> u64 {
    (word / STARTING) & COUNT
}

fn expected(word: u64) -> u64 {
    workers(word) + starting(word)
}

/// What is handed over: two numbers, say an index and a generation.
pub type Task = [u64; 2];

/// A queue of tasks, and the workers that they are handed to. See the [module](self).
pub struct Dispatch<M> {
    queue: Ring<M>,
    word: AtomicU64,
    /// The workers that sleep.
    sleepers: WaitQueue,
    least: u64,
    most: u64,
}

impl<M> fmt::Debug for Dispatch<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Ordering: Relaxed. To be read by people.
        let word = self.word.load(Ordering::Relaxed);
        f.debug_struct("Dispatch")
            .field("workers", &workers(word))
            .field("idle", &idle(word))
            .field("closed", &(word & CLOSED != 0))
            .finish_non_exhaustive()
    }
}

/// What calling came to.
#[must_use = "a worker may have to be started"]
#[derive(Debug)]
pub enum Called<'d, M: RingMemory> {
    /// Somebody comes to what there is, or there is nothing.
    Done,
    /// The caller is to start a worker.
    Start(Starting<'d, M>),
    /// Perhaps nobody comes any more: what is there is the caller's to
    /// [take](Dispatch::take), until nothing is left.
    Take,
}

impl<M: RingMemory> Dispatch<M> {
    /// With room for as much as the memory has, and so many workers; none of them is there
    /// yet: [start](Self::start) the least.
    ///
    /// # Errors
    ///
    /// EINVAL: no worker at least, fewer at most than at least, or more than 2^20 – 1; or
    /// the memory is in Linux's layout.
    pub fn new(memory: M, workers: RangeInclusive<u32>) -> Result<Self, Errno> {
        let (least, most) = (u64::from(*workers.start()), u64::from(*workers.end()));
        if least == 0 || least > most || most > COUNT || memory.header().is_some() {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            queue: Ring::new(memory),
            word: AtomicU64::new(0),
            sleepers: WaitQueue::new(),
            least,
            most,
        })
    }

    /// One more worker, to be started by the caller; `None` when the least are there, or
    /// it is over.
    pub fn start(&self) -> Option<Starting<'_, M>> {
        self.start_if(|word| expected(word) < self.least)
    }

    /// One more worker, for what is pushed next, if nobody is idle or being started.
    fn start_ahead(&self) -> Option<Starting<'_, M>> {
        self.start_if(|word| idle(word) + starting(word) == 0 && workers(word) < self.most)
    }

    fn start_if(&self, needed: impl Fn(u64) -> bool) -> Option<Starting<'_, M>> {
        // Ordering: Relaxed. Only counted.
        let mut word = self.word.load(Ordering::Relaxed);
        while word & CLOSED == 0 && needed(word) {
            let next = word + STARTING;
            // Ordering: Relaxed. Only counted: who relies on it has changed the word since.
            match (self.word).compare_exchange_weak(
                word,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(Starting(self)),
                Err(now) => word = now,
            }
        }
        None
    }

    /// Queues as many of `tasks` as there is room for, in order, and tells how many that
    /// were. To be followed by a [call](Self::call).
    ///
    /// # Errors
    ///
    /// EAGAIN: there is no room. ECANCELED: it is over. Nothing was queued.
    pub fn push(&self, tasks: &[Task]) -> Result<usize, Errno> {
        // Ordering: Relaxed. If it is over meanwhile, `call` finds that.
        if self.word.load(Ordering::Relaxed) & CLOSED != 0 {
            return Err(Errno::ECANCELED);
        }
        let mut all = 0;
        for chunk in tasks.chunks(CHUNK) {
            let mut events = [Event::default(); CHUNK];
            for (event, task) in events.iter_mut().zip(chunk) {
                [event.data, event.obj] = *task;
            }
            let n = self.queue.push(&events[..chunk.len()]);
            all += n;
            if n < chunk.len() {
                break;
            }
        }
        match all {
            0 if !tasks.is_empty() => Err(Errno::EAGAIN),
            _ => Ok(all),
        }
    }

    /// Takes what was queued first, whoever calls.
    pub fn take(&self) -> Option<Task> {
        let mut out = [Event::default()];
        match self.queue.reap(&mut out) {
            Ok(1) => Some([out[0].data, out[0].obj]),
            // Never an error: it is not in Linux's layout.
            _ => None,
        }
    }

    /// Sees to it that somebody comes to what is queued.
    pub fn call(&self) -> Called<'_, M> {
        // Ordering: SeqCst, against the same fence of workers: what was pushed before is
        // seen by who has written the word, or what was written is seen here.
        fence(Ordering::SeqCst);
        self.call_one(true)
    }

    /// Behind a fence.
    fn call_one(&self, may_start: bool) -> Called<'_, M> {
        // Ordering: Relaxed. The fence does it.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & CLOSED != 0 {
                return Called::Take;
            }
            // Re-check: who was called looks after that.
            if word & CALLED != 0 || self.queue.visible(1) == 0 {
                return Called::Done;
            }
            let wakes = idle(word) > 0;
            let starts = !wakes && starting(word) == 0;
            let next = match starts {
                // Who is being started looks.
                false => word | CALLED,
                true if may_start && workers(word) < self.most => (word | CALLED) + STARTING,
                // There is none at all, and none can be had.
                true if workers(word) == 0 => return Called::Take,
                // All of them work, and look before they wait.
                true => return Called::Done,
            };
            // Ordering: Relaxed. What is handed over is in the queue.
            match (self.word).compare_exchange_weak(
                word,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) if starts => return Called::Start(Starting(self)),
                Ok(_) => {
                    if wakes {
                        self.sleepers.wake_one(0);
                    }
                    return Called::Done;
                }
                Err(now) => word = now,
            }
        }
    }

    /// Ends it: workers find that when they look next. What is queued is the caller's to
    /// [take](Self::take), as far as workers do not take it before.
    pub fn close(&self) {
        // Ordering: Relaxed. Waking fences, as `call` does: who pushes finds that it is over,
        // or who closes finds what was pushed.
        self.word.fetch_or(CLOSED, Ordering::Relaxed);
        self.sleepers.wake(0);
    }

    /// Whether it is over.
    pub fn is_closed(&self) -> bool {
        // Ordering: Relaxed. An answer that may be old.
        self.word.load(Ordering::Relaxed) & CLOSED != 0
    }

    /// How many workers there are, and how many of them are idle. They may be others by now.
    pub fn workers(&self) -> (usize, usize) {
        // Ordering: Relaxed. An answer that may be old.
        let word = self.word.load(Ordering::Relaxed);
        (workers(word) as usize, idle(word) as usize)
    }

    /// One that was counted is not there: others come to what it may have been called for.
    fn lost(&self, what: u64) -> Called<'_, M> {
        // Ordering: Relaxed. The fence does it.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let next = (word - what) & !CALLED;
            // Ordering: Relaxed. The fence does it.
            match (self.word).compare_exchange_weak(
                word,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        // Ordering: SeqCst, as in `call`: who has pushed and found it called relied on it.
        fence(Ordering::SeqCst);
        // Not one more to be started, which may fail as well.
        self.call_one(false)
    }

    /// Why a worker that waits does not any more.
    fn is_over_for_who_waits(&self) -> bool {
        // Ordering: Relaxed. Behind the fence of waiting.
        let word = self.word.load(Ordering::Relaxed);
        word & (CALLED | CLOSED) != 0 || self.queue.visible(1) > 0
    }
}

/// So many are copied at a time.
const CHUNK: usize = 32;

/// A worker that is to be started. Dropping it says that it could not be.
#[must_use = "who was called relies on its being started"]
pub struct Starting<'d, M: RingMemory>(&'d Dispatch<M>);

impl<M: RingMemory> fmt::Debug for Starting<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Starting")
    }
}

impl<'d, M: RingMemory> Starting<'d, M> {
    /// It was started, and this is its life.
    pub fn begin(self) -> Worker<'d, M> {
        let dispatch = self.0;
        mem::forget(self);
        // Ordering: Relaxed. Only counted. (One less, and one more.) Who relied on it has
        // changed the word before, so that this one, when it looks, finds it called.
        (dispatch.word).fetch_sub(STARTING - WORKER, Ordering::Relaxed);
        Worker {
            dispatch,
            called: true,
        }
    }

    /// It could not be started: whoever is there comes to what there is.
    pub fn fail(self) -> Called<'d, M> {
        let dispatch = self.0;
        mem::forget(self);
        dispatch.lost(STARTING)
    }
}

impl<M: RingMemory> Drop for Starting<'_, M> {
    fn drop(&mut self) {
        // What is left is for who closes, or who pushes next.
        let _ = self.0.lost(STARTING);
    }
}

/// What a worker is to do.
#[derive(Debug)]
pub enum Next<'d, M: RingMemory> {
    /// This; and, before, to start another worker, if it is said.
    Task(Task, Option<Starting<'d, M>>),
    /// To [wait](Worker::wait), or to [leave](Worker::leave).
    Idle,
    /// To end: it is over, and nothing is there to be taken.
    Over,
}

/// A worker.
///
/// Dropping it, say by a panic, ends it: others come to what there is. Then there may be
/// fewer than the least: [start](Dispatch::start) another one. If it was the last one, what
/// is queued waits for who pushes next, or closes.
#[must_use = "it is counted as a worker"]
pub struct Worker<'d, M: RingMemory> {
    dispatch: &'d Dispatch<M>,
    /// It may be the one that was called: it is new, or has waited.
    called: bool,
}

impl<M: RingMemory> fmt::Debug for Worker<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Worker")
    }
}

impl<M: RingMemory> Drop for Worker<'_, M> {
    fn drop(&mut self) {
        let _ = self.dispatch.lost(WORKER);
    }
}

impl<'d, M: RingMemory> Worker<'d, M> {
    /// Takes what is next, and sees to it that another worker comes to what there is more,
    /// or to what is pushed next.
    pub fn look(&mut self) -> Next<'d, M> {
        let dispatch = self.dispatch;
        // Ordering: Relaxed. If it is called after that, it is woken, or looks again.
        if mem::take(&mut self.called) && dispatch.word.load(Ordering::Relaxed) & CALLED != 0 {
            // Ordering: Relaxed. The fence does it.
            dispatch.word.fetch_and(!CALLED, Ordering::Relaxed);
        }
        // Ordering: SeqCst, as in `call`: who has pushed and found somebody called relied
        // on this look.
        fence(Ordering::SeqCst);
        match dispatch.take() {
            Some(task) => {
                let more = match dispatch.call_one(true) {
                    Called::Start(starting) => Some(starting),
                    Called::Done | Called::Take => dispatch.start_ahead(),
                };
                Next::Task(task, more)
            }
            None if dispatch.is_closed() => Next::Over,
            None => Next::Idle,
        }
    }

    /// Waits until there may be something to do. If it is dropped, say because the time is
    /// up, the worker is not idle any more, and looks or [leaves](Self::leave). One that is
    /// forgotten keeps what it was called for from the others, and counts as idle for ever.
    pub fn wait(&mut self) -> Wait<'_, 'd, M> {
        Wait {
            worker: self,
            waiter: Waiter::exclusive(),
            idle: false,
        }
    }

    /// Ends it, as it has nothing to do.
    ///
    /// # Errors
    ///
    /// It is needed, and is given back: it is one of the least, or was called, or there is
    /// something to do.
    pub fn leave(mut self) -> Result<(), Self> {
        let dispatch = self.dispatch;
        // Ordering: Relaxed. The fence does it.
        let mut word = dispatch.word.load(Ordering::Relaxed);
        loop {
            // Re-check: it is needed.
            if word & CALLED != 0 || (word & CLOSED == 0 && workers(word) <= dispatch.least) {
                self.called = true;
                return Err(self);
            }
            let next = word - WORKER;
            // Ordering: Relaxed. The fence does it.
            match (dispatch.word).compare_exchange_weak(
                word,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        mem::forget(self);
        // Ordering: SeqCst, as in `call`: who has pushed and found no worker idle relied
        // on each of them to look.
        fence(Ordering::SeqCst);
        match dispatch.call_one(true) {
            Called::Start(starting) => Err(starting.begin()),
            Called::Done | Called::Take => Ok(()),
        }
    }
}

/// A worker that waits.
#[must_use = "a future does nothing unless it is polled"]
pub struct Wait<'w, 'd, M: RingMemory> {
    worker: &'w mut Worker<'d, M>,
    waiter: Waiter,
    /// It is counted as that.
    idle: bool,
}

impl<M: RingMemory> fmt::Debug for Wait<'_, '_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wait")
    }
}

impl<M: RingMemory> Wait<'_, '_, M> {
    fn waiter(self: Pin<&Self>) -> Pin<&Waiter> {
        // SAFETY: structural: the waiter is never moved out of the future.
        unsafe { self.map_unchecked(|this| &this.waiter) }
    }

    /// It works again.
    fn ready(self: Pin<&mut Self>) {
        // SAFETY: nothing is moved: not structural.
        let this = unsafe { self.get_unchecked_mut() };
        if mem::take(&mut this.idle) {
            // Ordering: Relaxed. Only counted: it looks before it leaves.
            this.worker.dispatch.word.fetch_sub(IDLE, Ordering::Relaxed);
            this.worker.called = true;
        }
    }
}

impl<M: RingMemory> Future for Wait<'_, '_, M> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut task::Context<'_>) -> Poll<()> {
        let dispatch = self.worker.dispatch;
        if !self.idle {
            // Ordering: Relaxed. Enqueuing fences before it looks.
            dispatch.word.fetch_add(IDLE, Ordering::Relaxed);
            // SAFETY: nothing is moved: not structural.
            unsafe { self.as_mut().get_unchecked_mut() }.idle = true;
        }
        let waiter = self.as_ref().waiter();
        let ready = || dispatch.is_over_for_who_waits();
        // SAFETY: the waiter is used with this queue only, and `drop` leaves it.
        let enqueued = unsafe {
            dispatch
                .sleepers
                .enqueue_for_any(waiter, task.waker(), ready)
        };
        if let Ok(Enqueued::Waiting) = enqueued {
            return Poll::Pending;
        }
        self.ready();
        Poll::Ready(())
    }
}

impl<M: RingMemory> Drop for Wait<'_, '_, M> {
    fn drop(&mut self) {
        // SAFETY: the value is not moved until it is gone.
        let this = unsafe { Pin::new_unchecked(&mut *self) };
        if !this.idle {
            return;
        }
        // SAFETY: the waiter is used with this queue only.
        let _ = unsafe { this.worker.dispatch.sleepers.leave(this.as_ref().waiter()) };
        this.ready();
    }
}
