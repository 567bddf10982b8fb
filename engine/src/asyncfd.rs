//! A descriptor that is readable while there are completions to take out.
//!
//! The ring, what it keeps back and who is told of it are the core's. What is added
//! here is an eventfd, and when to write and to read it.
//!
//! # When it is written and read
//!
//! A [`Bell`] is enqueued in the core as who waits for the ring to become readable.
//! The first result that comes calls it, once, and it writes the eventfd; nobody else
//! does until it is enqueued again. That is the last thing that a drain does, if it
//! found nothing.
//!
//! | | enqueued | the eventfd |
//! |---|---|---|
//! | asleep | yes | not readable |
//! | the first result comes | taken out, then called | is written, once |
//! | awake, whatever comes | no | readable |
//! | a drain that finds results | no | readable |
//! | a drain that finds none | yes, again | is read, if it was written |
//! | it is closed, and all was popped | no | readable, for ever |
//!
//! So it is unreadable only while somebody is enqueued, and somebody is enqueued only
//! while there is nothing to read. Being read comes before being enqueued, or it would
//! swallow the next write; what came in between finds nobody enqueued, and the drain,
//! which sees it, writes the eventfd itself.
//!
//! # How often
//!
//! Each wake-up is one write, of who brought the result, and one read, of the drain: a
//! descriptor that is right for level-triggered waiting has to be reset. Who is awake
//! costs neither. A bell that was taken out may not have written yet when the drain
//! reads; it is known how many writes are owed, so a later drain reads that one, and
//! until then the descriptor may be readable for nothing.

use std::{
    fmt, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    pin::{Pin, pin},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
    task::{self, Poll, Wake, Waker},
    thread,
};

use rustix::event::{EventfdFlags, eventfd};
use uaio_core::{
    Errno,
    asyncfd::{
        Asyncfd, AsyncfdResult, Drained, LapCell, MAX_RESULTS, Mapped, Readable, ResultCell, Uring,
        UringMemory,
    },
    context::{self, Expired},
    ring::Event,
};

use crate::{
    context::{Completion, completion},
    drive::{Drive, block_on},
    pool::Pool,
    sys::{self, lock},
};

pub(crate) type Ring = Asyncfd<Memory>;

/// How many results are taken out of the core at once.
const CHUNK: usize = 32;

/// Where a ring is.
#[derive(Debug)]
pub(crate) enum Memory {
    Own(Own),
    /// Where its user has it.
    Mapped(Mapped),
}

/// Memory of our own.
#[derive(Debug)]
pub(crate) struct Own {
    uring: Uring,
    results: Box<[ResultCell]>,
    laps: Box<[LapCell]>,
}

impl Memory {
    fn own(size: usize) -> Result<Self, Errno> {
        if size == 0 || size > MAX_RESULTS {
            return Err(Errno::EINVAL);
        }
        Ok(Self::Own(Own {
            uring: Uring::new(0, size as u32, 0),
            results: (0..size).map(|_| ResultCell::new()).collect(),
            laps: (0..size).map(|_| LapCell::new()).collect(),
        }))
    }

    /// # Safety
    ///
    /// As of [`Context::asyncfd_at`](crate::Context::asyncfd_at). That ends before the
    /// value does, for a request that was given back may keep it; but what is closed is
    /// written and popped by nobody any more.
    unsafe fn mapped(uring: NonNull<Uring>) -> Result<Self, Errno> {
        // SAFETY: by the contract, for as long as it is used.
        unsafe { Mapped::new(uring) }.map(Self::Mapped)
    }
}

// SAFETY: the memory of one of them, which is valid as long as that, and nobody else's;
// our own is new, and of equal lengths.
unsafe impl UringMemory for Memory {
    fn uring(&self) -> &Uring {
        match self {
            Self::Own(own) => &own.uring,
            Self::Mapped(mapped) => mapped.uring(),
        }
    }
    fn results(&self) -> &[ResultCell] {
        match self {
            Self::Own(own) => &own.results,
            Self::Mapped(mapped) => mapped.results(),
        }
    }
    fn laps(&self) -> &[LapCell] {
        match self {
            Self::Own(own) => &own.laps,
            Self::Mapped(mapped) => mapped.laps(),
        }
    }
}

/// The eventfd, and a waker that writes it.
#[derive(Debug)]
struct Bell(OwnedFd);

impl Bell {
    fn ring(&self) {
        // It cannot fail but by being rung 2^64 times.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Tells how often it was rung. It is not readable then.
    fn reset(&self) -> u64 {
        let mut count = [0; size_of::<u64>()];
        match rustix::io::read(&self.0, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            // It was not.
            Err(_) => 0,
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

/// What the consumer knows.
#[derive(Debug)]
struct Consumer {
    enqueued: Pin<Box<Readable<Arc<Ring>>>>,
    /// How often the bell was rung, or is just being rung, since it was reset.
    rung: u64,
    /// Somebody else rang it as well.
    foreign: bool,
    wakeups: u64,
    /// Nobody brings anything any more.
    closed: bool,
}

impl Consumer {
    /// After a drain that found nothing: resets the bell, and has the next result ring
    /// it. Tells what came meanwhile.
    fn rest(&mut self, bell: &Arc<Bell>) -> Drained {
        if self.enqueued.as_mut().expire() == Expired::Woken {
            self.rung += 1;
            self.wakeups += 1;
        }
        if self.rung > 0 || self.foreign {
            let count = bell.reset();
            // Its holders may have rung it as well: then who has it still to do is read
            // the next time.
            self.foreign = count > self.rung;
            self.rung = self.rung.saturating_sub(count);
        }
        let waker = Waker::from(Arc::clone(bell));
        let mut task = task::Context::from_waker(&waker);
        match self.enqueued.as_mut().poll(&mut task) {
            Poll::Pending => Drained::Empty,
            Poll::Ready(()) => self.stay_awake(bell),
        }
    }

    fn stay_awake(&mut self, bell: &Bell) -> Drained {
        bell.ring();
        self.rung += 1;
        Drained::Unread
    }
}

/// A descriptor over a ring of completions: readable while there are any, for select,
/// poll, epoll in both of its modes, and whatever builds upon them.
///
/// Made by [`Context::asyncfd`](crate::Context::asyncfd); requests name it by
/// [`Op::to`](crate::Op::to). Its user waits for the descriptor, [pops](Self::pop), and
/// before it waits again [drains](Self::drain), until that says that there is nothing:
///
/// ```
/// use rustix::event::{PollFd, PollFlags, poll};
/// use uaio::{Context, Drained, Op};
///
/// let context = Context::new(64)?;
/// let asyncfd = context.asyncfd(8)?;
/// // More than the ring holds: the rest is kept back, in order.
/// let mut ops: Vec<_> = (1..=20).map(|n| Op::nop().data(n).to(&asyncfd)).collect();
/// context.submit(&mut ops)?;
///
/// let mut done = Vec::new();
/// while done.len() < 20 {
///     poll(&mut [PollFd::new(&asyncfd, PollFlags::IN)], None)?;
///     loop {
///         asyncfd.pop(64, &mut done)?;
///         if asyncfd.drain()? == Drained::Empty {
///             break;
///         }
///     }
/// }
/// assert!(done.iter().map(|done| done.data).eq(1..=20));
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # The descriptor
///
/// It is readable as long as completions are in the ring or kept back, and else at most
/// until the next [`drain`](Self::drain). Bringing a completion costs one system call if
/// that is the first since the user went to sleep, and none while it is awake; the drain
/// before the next sleep costs one as well, and none if nothing came.
///
/// It stays the same whichever ring is behind it. It can be duplicated, and waited for
/// by several; who reads or writes it has spurious wake-ups, or none. It is non-blocking,
/// and has to stay so, or a drain may wait.
///
/// # Full
///
/// What finds no room is kept back, in order and without memory of its own: the request
/// itself is what is kept. The next drain moves it in, as far as there is room; a
/// [larger ring](Self::replace) has more.
///
/// # Order
///
/// Completions are popped in the order in which they came about, also across a
/// replacement.
///
/// # The end
///
/// A context that is destroyed still gives what was to be had here; the `AsyncFd` keeps
/// its memory, and its two descriptors, as long. Dropping the `AsyncFd`
/// [closes](Self::close) it, and drops what is in its ring.
pub struct AsyncFd {
    ring: Arc<Ring>,
    bell: Arc<Bell>,
    consumer: Mutex<Consumer>,
    /// Dropped last: what is kept back is in its slots.
    pool: Arc<Pool>,
}

impl fmt::Debug for AsyncFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncFd")
            .field("fd", &self.as_raw_fd())
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

impl AsyncFd {
    pub(crate) fn new(pool: &Arc<Pool>, size: usize) -> Result<Self, Errno> {
        Self::over(pool, Memory::own(size)?)
    }

    /// # Safety
    ///
    /// As of [`Context::asyncfd_at`](crate::Context::asyncfd_at).
    pub(crate) unsafe fn at(pool: &Arc<Pool>, uring: NonNull<Uring>) -> Result<Self, Errno> {
        // SAFETY: the same contract.
        let memory = unsafe { Memory::mapped(uring) }?;
        Self::over(pool, memory)
    }

    /// # Errors
    ///
    /// EINVAL: it is another process's.
    fn live(&self) -> Result<(), Errno> {
        match self.pool.is_copy() {
            false => Ok(()),
            true => Err(Errno::EINVAL),
        }
    }

    fn over(pool: &Arc<Pool>, memory: Memory) -> Result<Self, Errno> {
        if pool.core.is_destroyed() {
            return Err(Errno::EINVAL);
        }
        let ring = Arc::new(Ring::new(memory)?);
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bell = Arc::new(Bell(fd.map_err(sys::errno)?));
        let mut consumer = Consumer {
            enqueued: Box::pin(Readable::new(Arc::clone(&ring))),
            rung: 0,
            foreign: false,
            wakeups: 0,
            closed: false,
        };
        // What is in it already is to be read; an error is for the user to learn.
        let _ = match ring.drain() {
            Ok(Drained::Empty) => consumer.rest(&bell),
            _ => consumer.stay_awake(&bell),
        };
        Ok(Self {
            ring,
            bell,
            consumer: Mutex::new(consumer),
            pool: Arc::clone(pool),
        })
    }

    pub(crate) fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    pub(crate) fn drive(&self) -> &Arc<Drive> {
        &self.pool.drive
    }

    /// Takes out up to `nr` completions, and no more than there is room for requests, in
    /// order, appends them to `completions`, and tells how many. Does not wait.
    ///
    /// What is kept back is not in the ring yet: see [`drain`](Self::drain).
    ///
    /// # Errors
    ///
    /// Only of a ring in its user's own memory, EFAULT: its `iuser` is out of range; or
    /// there was nothing in it but results that name no request. Those are skipped, so
    /// the next call goes on behind them.
    pub fn pop(&self, nr: usize, completions: &mut Vec<Completion>) -> Result<usize, Errno> {
        self.live()?;
        let _consumer = lock(&self.consumer);
        let mut results = [AsyncfdResult::default(); CHUNK];
        // There are no more; if there are, somebody else writes them, without end.
        let mut left = nr.min(self.pool.core.capacity());
        let (mut got, mut strange) = (0, false);
        while left > 0 {
            let wanted = left.min(CHUNK);
            let n = match while_busy(|| self.ring.pop(&mut results[..wanted])) {
                Ok(n) => n,
                Err(errno) if got == 0 => return Err(errno),
                Err(_) => break,
            };
            for result in &results[..n] {
                match self.collect(*result) {
                    Some(completion) => {
                        completions.push(completion);
                        got += 1;
                    }
                    None => strange = true,
                }
            }
            left -= n;
            if n < wanted {
                break;
            }
        }
        if got == 0 && strange {
            return Err(Errno::EFAULT);
        }
        Ok(got)
    }

    /// The completion that this result stands for; `None` if there is none, or it was
    /// collected. For who takes results out of [its own memory](ResultCell::take)
    /// itself, instead of popping them. Until it is collected it takes room in the
    /// context.
    pub fn collect(&self, result: AsyncfdResult) -> Option<Completion> {
        self.live().ok()?;
        let (op, handle) = self.pool.core.collect(&self.ring, result.obj)?;
        Some(completion(context::Completion {
            event: Event {
                data: op.data,
                obj: result.obj,
                res: result.res,
                res2: result.res2,
            },
            payload: op,
            handle,
        }))
    }

    /// Moves in what was kept back, as far as there is room, and tells whether there is
    /// anything to pop. If not, the descriptor is not readable any more, until the next
    /// completion. The last thing to be called before waiting for the descriptor.
    ///
    /// # Errors
    ///
    /// EBADFD: it was closed, and there is nothing to pop, nor will be. Of a ring in its
    /// user's own memory, EFAULT: its `iuser` is out of range. The descriptor stays
    /// readable.
    pub fn drain(&self) -> Result<Drained, Errno> {
        self.live()?;
        let mut consumer = lock(&self.consumer);
        let drained = while_busy(|| self.ring.drain())?;
        if drained == Drained::Unread {
            return Ok(drained);
        }
        if consumer.closed {
            return Err(Errno::EBADFD);
        }
        let drained = consumer.rest(&self.bell);
        drop(consumer);
        // If the driver could not be started, nobody else would try again.
        self.pool.attend();
        Ok(drained)
    }

    /// Replaces the ring by one for `size` completions. What is in the old one is popped
    /// first, then what is kept back. While completions are brought to the old one right
    /// now, waits for who does.
    ///
    /// # Errors
    ///
    /// EINVAL: the size is zero or above 2^24. EBUSY: four rings are not popped to the
    /// end yet. EBADFD: it is closed.
    pub fn replace(&self, size: usize) -> Result<(), Errno> {
        self.replace_by(Memory::own(size)?)
    }

    /// As [`replace`](Self::replace), by a ring where its user has it. When it returns
    /// nobody stores results in the old one any more.
    ///
    /// # Errors
    ///
    /// As of `replace` and of [`Context::asyncfd_at`](crate::Context::asyncfd_at).
    ///
    /// # Safety
    ///
    /// As of `Context::asyncfd_at`.
    pub unsafe fn replace_at(&self, uring: NonNull<Uring>) -> Result<(), Errno> {
        // SAFETY: the same contract.
        let memory = unsafe { Memory::mapped(uring) }?;
        self.replace_by(memory)
    }

    fn replace_by(&self, memory: Memory) -> Result<(), Errno> {
        self.live()?;
        let consumer = lock(&self.consumer);
        let out = self.ring.replace(memory).map_err(|refused| refused.error)?;
        drop(consumer);
        block_on(pin!(out));
        Ok(())
    }

    /// Closes it: requests that name it are refused from now on. The completions of
    /// those under way, and what was kept back, come out of the
    /// [context](crate::Context::getevents) instead. What is in the ring can still be
    /// popped.
    ///
    /// When this returns nobody stores in the ring any more, and the descriptor is
    /// readable, and stays so. May be called any number of times.
    pub fn close(&self) {
        if self.live().is_err() {
            return;
        }
        block_on(pin!(self.ring.close()));
        let mut consumer = lock(&self.consumer);
        if !mem::replace(&mut consumer.closed, true) {
            let _ = consumer.stay_awake(&self.bell);
        }
    }

    /// Whether it was [closed](Self::close).
    pub fn is_closed(&self) -> bool {
        self.ring.is_closed()
    }

    /// How often its user was woken, by a completion, a replacement or its closing: each
    /// time is one write of the descriptor, by who brought that. Counted by
    /// [`drain`](Self::drain), when it goes to sleep again. (What comes while it does so
    /// keeps it awake, and is not counted; drain writes the descriptor then.)
    pub fn wakeups(&self) -> u64 {
        self.live().map_or(0, |()| lock(&self.consumer).wakeups)
    }
}

impl AsyncFd {
    /// Of a copy in a forked process: closes the descriptor, and leaves all else as it is.
    fn abandon(&mut self) {
        mem::forget((
            Arc::clone(&self.ring),
            Arc::clone(&self.bell),
            Arc::clone(&self.pool),
        ));
        let consumer = (self.consumer.get_mut()).unwrap_or_else(PoisonError::into_inner);
        // Its place in a queue may be in the hands of a thread that is not there.
        let nowhere = Box::pin(Readable::new(Arc::clone(&self.ring)));
        mem::forget(mem::replace(&mut consumer.enqueued, nowhere));
        // SAFETY: it is dropped, once; its owner is not, and whoever else has that uses it
        // in the other process only.
        unsafe { sys::close(&self.bell.0) };
    }
}

/// Besides who has the lock only closing consumes, for a moment.
fn while_busy<T>(mut consume: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match consume() {
            Err(Errno::EBUSY) => thread::yield_now(),
            done => return done,
        }
    }
}

impl Drop for AsyncFd {
    fn drop(&mut self) {
        if self.live().is_err() {
            return self.abandon();
        }
        self.close();
        // Gives back the room of what was not popped, whatever became of its memory.
        let core = &self.pool.core;
        core.collect_rest(&self.ring, |op, _| drop(op));
    }
}

impl AsFd for AsyncFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.0.as_fd()
    }
}

impl AsRawFd for AsyncFd {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{io, io::Write, time::Duration};

    use super::*;
    use crate::{Context, File, Op, event};

    /// Whatever becomes of a request, somebody drives for it as long as it is there, and
    /// no longer.
    #[test]
    fn nobody_drives_for_what_is_over() {
        let context = Context::new(16).unwrap();
        let drive = Arc::clone(&context.pool().drive);
        let asyncfd = context.asyncfd(1).unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let reader = File::new(reader).unwrap();
        let read = |data| Op::read(&reader, vec![0; 1]).data(data).to(&asyncfd);
        let mut popped = Vec::new();
        let mut pop = |n: usize| {
            while popped.len() < n {
                asyncfd.pop(16, &mut popped).unwrap();
                let _ = asyncfd.drain();
            }
            assert_eq!(popped.len(), n);
            popped.drain(..).map(|done| done.op).collect::<Vec<_>>()
        };

        // Completed, cancelled, and too late.
        let mut ops = [read(1), read(2), read(3).with_timeout(Duration::ZERO)];
        assert_eq!(context.submit(&mut ops), Ok(3));
        assert_eq!(drive.needed_by(), (3, 3));
        let _ = context.cancel(ops[1].handle().unwrap());
        writer.write_all(b"x").unwrap();
        let mut ops = pop(3);
        assert_eq!(drive.needed_by(), (0, 0));
        // What is given back counts when it is submitted again; the one without a limit.
        ops.sort_by_key(|op| op.body().map(|body| body.data));
        drop(ops.pop());
        assert_eq!(context.submit(&mut ops[..1]), Ok(1));
        assert_eq!(drive.needed_by(), (1, 1));
        writer.write_all(b"x").unwrap();
        drop((pop(1), ops));
        assert_eq!(drive.needed_by(), (0, 0));

        // Done at once, refused, and one with a reaper.
        writer.write_all(b"x").unwrap();
        let regular = File::new(tempfile::tempfile().unwrap()).unwrap();
        let (other, mut other_writer) = io::pipe().unwrap();
        let other = File::new(other).unwrap();
        let mut ops = [
            Op::nop().data(1).to(&asyncfd),
            read(2),
            Op::poll(&other, event::IN),
            Op::poll(&regular, event::PRI).data(3).to(&asyncfd),
        ];
        assert_eq!(context.submit(&mut ops), Ok(3));
        assert_eq!(context.submit(&mut ops[3..]), Err(Errno::EINVAL));
        drop((pop(2), ops));
        assert_eq!(drive.needed_by(), (1, 0));
        other_writer.write_all(b"x").unwrap();
        let mut events = Vec::new();
        assert_eq!(context.getevents(1, 1, None, &mut events), Ok(1));
        assert_eq!(drive.needed_by(), (0, 0));

        // Closed: some are kept back, and some under way.
        let mut ops = [read(1), read(2), read(3), read(4), read(5)];
        assert_eq!(context.submit(&mut ops), Ok(5));
        assert_eq!(drive.needed_by(), (5, 5));
        for op in &ops[..3] {
            assert_eq!(context.cancel(op.handle().unwrap()), Ok(()));
        }
        asyncfd.close();
        assert_eq!(context.submit(&mut [read(1)]), Err(Errno::EBADFD));
        writer.write_all(b"xx").unwrap();
        let mut events = Vec::new();
        assert_eq!(context.getevents(4, 4, None, &mut events), Ok(4));
        assert_eq!(drive.needed_by(), (1, 1));
        drop(asyncfd);
        assert_eq!(drive.needed_by(), (0, 0));
    }
}
