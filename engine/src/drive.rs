//! Who waits for descriptors and for time limits, on behalf of all.
//!
//! One thread at a time, the *leader*: the first of those who wait for completions. It
//! sleeps in epoll, until the nearest time limit at the latest, and wakes the requests
//! that are to be woken itself; so what it waits for costs no other thread. The others
//! *follow*: they are parked, and one of them leads when the leader leaves.
//!
//! While nobody waits, a thread of the context's own does, the *driver*: it takes over
//! when nobody has driven for a while, gives way to whoever comes, and goes when it was
//! not needed for long. So what is armed goes on also without a reaper, and a program
//! that mostly waits does not pay for it. While there are requests whose completions go
//! to an asyncfd it takes over at once: no reaper is to be expected for those. So it does
//! while somebody could not be told of a completion, or a worker that it is to end, and is
//! to be tried again.
//!
//! All that is decided under one lock, which is never held while anybody sleeps, wakes
//! or is called.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{self, Wake, Waker},
    thread::{self, Thread, ThreadId},
    time::{Duration, Instant},
};

use rustix::event::Timespec;
use uaio_core::{Errno, context::Handle};

use crate::{
    epoll::Epoll,
    signals::SignalSet,
    sys::{self, lock},
};

/// How long nobody has to have driven for the driver to take over.
const GRACE: Duration = Duration::from_millis(10);
/// How long a driver that is not needed stays.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon, and how late, what could not be told is tried again.
const SOON: Duration = Duration::from_millis(1);
const LATE: Duration = Duration::from_millis(100);
/// The longest sleep: within what every kernel's epoll takes.
const LONGEST: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(crate) struct Drive {
    pub(crate) epoll: Arc<Epoll>,
    state: Mutex<State>,
    /// Where the driver waits to be needed.
    needed: Condvar,
}

#[derive(Debug)]
struct State {
    leader: Option<ThreadId>,
    followers: VecDeque<Follower>,
    /// While the leader sleeps, until when.
    sleeps: Option<Option<Instant>>,
    /// The leader is to look again before it sleeps.
    called: bool,
    /// Told apart by a count, where they are at the same time.
    limits: BTreeMap<(Instant, u64), Handle>,
    limits_set: u64,
    /// How many requests need somebody to drive. Below zero for a moment if one is
    /// taken out before it was counted.
    driven: isize,
    /// How many of those no reaper takes out: their target is an asyncfd.
    unreaped: isize,
    /// How many wait to be told.
    untold: usize,
    /// When they are tried again, and how long the last wait for that was.
    again: Option<Instant>,
    backoff: Duration,
    /// How often somebody drove.
    turns: u64,
    driver: Driver,
    closed: bool,
}

/// One who is woken when it leads, or has what it waits for.
#[derive(Debug)]
enum Follower {
    Parked(Thread),
    /// With another signal mask, until this eventfd is written.
    Polls(ThreadId, Arc<OwnedFd>),
}

impl Follower {
    fn id(&self) -> ThreadId {
        match self {
            Self::Parked(thread) => thread.id(),
            Self::Polls(thread, _) => *thread,
        }
    }

    fn wake(&self) {
        match self {
            Self::Parked(thread) => thread.unpark(),
            Self::Polls(_, bell) => sys::ring(bell.as_fd()),
        }
    }
}

/// What the leader is to see to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    /// The time of this request is up.
    Expired(Handle),
    /// What could not be told is to be tried again.
    Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Absent,
    /// Looks from time to time whether somebody drives.
    Watching,
    /// Waits to be called.
    Waiting,
    /// Leads, until somebody else comes.
    Driving,
}

impl State {
    /// Nobody has to drive.
    fn is_idle(&self) -> bool {
        self.driven <= 0 && self.untold == 0
    }

    /// Somebody has to, and no reaper is to be expected.
    fn is_unreaped(&self) -> bool {
        self.unreaped > 0 || self.untold > 0
    }

    /// What could not be told is tried again after a wait that grows.
    fn retry(&mut self) -> Instant {
        self.backoff = (self.backoff * 2).clamp(SOON, LATE);
        let at = Instant::now() + self.backoff;
        self.again = Some(at);
        at
    }
}

impl Drive {
    /// # Errors
    ///
    /// As [`Epoll::new`].
    pub(crate) fn new() -> Result<Arc<Self>, Errno> {
        Ok(Arc::new(Self {
            epoll: Epoll::new()?,
            state: Mutex::new(State {
                leader: None,
                followers: VecDeque::new(),
                sleeps: None,
                called: false,
                limits: BTreeMap::new(),
                limits_set: 0,
                driven: 0,
                unreaped: 0,
                untold: 0,
                again: None,
                backoff: Duration::ZERO,
                turns: 0,
                driver: Driver::Absent,
                closed: false,
            }),
            needed: Condvar::new(),
        }))
    }

    /// Has `expire` called with `handle` at that time. If there are more than `most`
    /// limits by then, those that are not `alive` are forgotten before.
    pub(crate) fn limit(
        &self,
        at: Instant,
        handle: Handle,
        most: usize,
        alive: impl Fn(Handle) -> bool,
    ) {
        let mut state = lock(&self.state);
        if state.limits.len() >= most {
            state.limits.retain(|_, handle| alive(*handle));
        }
        state.limits_set += 1;
        let key = (at, state.limits_set);
        state.limits.insert(key, handle);
        self.sooner(state, at);
    }

    /// Has the leader look before it sleeps again.
    fn call(&self, mut state: MutexGuard<'_, State>) {
        state.called = true;
        let sleeps = state.sleeps.take().is_some();
        drop(state);
        if sleeps {
            self.epoll.ring();
        }
    }

    /// So many more requests need somebody to drive, and so many of them have no reaper.
    pub(crate) fn begun(&self, driven: usize, unreaped: usize) {
        let mut state = lock(&self.state);
        state.driven += driven.cast_signed();
        state.unreaped += unreaped.cast_signed();
    }

    /// So many were taken out.
    pub(crate) fn over(&self, driven: usize) {
        lock(&self.state).driven -= driven.cast_signed();
    }

    /// One that had no reaper was collected, or dropped.
    pub(crate) fn unreaped_over(&self) {
        let mut state = lock(&self.state);
        state.driven -= 1;
        state.unreaped -= 1;
    }

    /// Somebody could not be told, and is to be tried again until that is
    /// [over](Self::told).
    pub(crate) fn untold(&self) {
        let mut state = lock(&self.state);
        state.untold += 1;
        if state.again.is_none() {
            let at = state.retry();
            self.sooner(state, at);
        }
    }

    /// One who could not be told was told, or is not to be.
    pub(crate) fn told(&self) {
        let mut state = lock(&self.state);
        state.untold -= 1;
        // The others may be next.
        state.backoff = Duration::ZERO;
        if state.untold == 0 {
            state.again = None;
        }
    }

    /// Has the leader wake at that time.
    fn sooner(&self, state: MutexGuard<'_, State>, at: Instant) {
        let sooner = |until: Option<Instant>| until.is_none_or(|until| at < until);
        if state.sleeps.is_some_and(sooner) {
            self.call(state);
        }
    }

    /// How many need somebody to drive, and how many of them have no reaper.
    #[cfg(test)]
    pub(crate) fn needed_by(&self) -> (isize, isize) {
        let state = lock(&self.state);
        (state.driven, state.unreaped)
    }

    /// Whether the caller has to start the driver, which [runs](Self::run); one that is
    /// there is called if need be.
    pub(crate) fn wants_driver(&self) -> bool {
        let mut state = lock(&self.state);
        if state.closed || state.leader.is_some() || state.is_idle() {
            return false;
        }
        match mem::replace(&mut state.driver, Driver::Watching) {
            Driver::Absent => return true,
            Driver::Waiting => self.needed.notify_one(),
            // It waits for a reaper, who is not to be expected for these.
            Driver::Watching if state.is_unreaped() => self.needed.notify_one(),
            Driver::Watching | Driver::Driving => {}
        }
        false
    }

    /// The driver could not be started. It is tried again, and every reaper drives.
    pub(crate) fn no_driver(&self) {
        lock(&self.state).driver = Driver::Absent;
    }

    /// The life of the driver.
    pub(crate) fn run(&self, see_to: &mut dyn FnMut(Due)) {
        let mut state = lock(&self.state);
        while !state.closed {
            let idle = state.leader.is_some() || state.is_idle();
            let turns = state.turns;
            let (driver, time) = match idle {
                true => (Driver::Waiting, PATIENCE),
                false => (Driver::Watching, GRACE),
            };
            state.driver = driver;
            // Nobody else is to be expected for those without a reaper.
            if idle || !state.is_unreaped() {
                let (back, wait) =
                    (self.needed.wait_timeout(state, time)).unwrap_or_else(PoisonError::into_inner);
                state = back;
                if !wait.timed_out() {
                    continue;
                }
                if idle {
                    if state.leader.is_some() || state.is_idle() {
                        break;
                    }
                    continue;
                }
                if state.leader.is_some() || state.turns != turns || state.closed {
                    continue;
                }
            }
            state.leader = Some(thread::current().id());
            state.driver = Driver::Driving;
            while !state.closed && state.followers.is_empty() && !state.is_idle() {
                drop(state);
                self.turn(Instant::now().checked_add(PATIENCE), None, see_to);
                state = lock(&self.state);
            }
            pass_on(&mut state);
        }
        state.driver = Driver::Absent;
    }

    /// The driver is to go, and not to come again.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.limits.clear();
        self.needed.notify_one();
        self.call(state);
    }

    /// Drives once, without waiting, unless there is nothing to do or somebody else
    /// leads. Tells whether it did.
    pub(crate) fn look(self: &Arc<Self>, see_to: &mut dyn FnMut(Due)) -> bool {
        {
            let mut state = lock(&self.state);
            if state.leader.is_some() || state.is_idle() {
                return false;
            }
            state.leader = Some(thread::current().id());
            state.called = true;
        }
        let _leader = Role {
            drive: self,
            leads: true,
            masked: None,
        };
        self.turn(None, None, see_to);
        true
    }

    /// Takes part in the waiting, as the leader if there is none; with a signal mask of
    /// its own, or without.
    ///
    /// # Errors
    ///
    /// With a mask, what the system said: EMFILE, ENFILE, ENOMEM.
    pub(crate) fn join<'d>(
        self: &'d Arc<Self>,
        mask: Option<&'d SignalSet>,
    ) -> Result<Role<'d>, Errno> {
        let bell = mask.map(|_| sys::bell().map(Arc::new)).transpose()?;
        let mut state = lock(&self.state);
        let leads = state.leader.is_none();
        if leads {
            state.leader = Some(thread::current().id());
        } else {
            state.followers.push_back(match &bell {
                None => Follower::Parked(thread::current()),
                Some(bell) => Follower::Polls(thread::current().id(), Arc::clone(bell)),
            });
            if state.driver == Driver::Driving {
                self.call(state);
            }
        }
        Ok(Role {
            drive: self,
            leads,
            masked: mask.zip(bell),
        })
    }

    /// Of the leader: ends what is due, then waits until there is something to do. Tells
    /// whether a signal ended that which the mask let in.
    fn turn(
        &self,
        until: Option<Instant>,
        mask: Option<&SignalSet>,
        see_to: &mut dyn FnMut(Due),
    ) -> bool {
        let mut due = Vec::new();
        let mut state = lock(&self.state);
        let now = Instant::now();
        while let Some(first) = state.limits.first_entry()
            && first.key().0 <= now
        {
            due.push(Due::Expired(first.remove()));
        }
        if state.again.is_some_and(|at| at <= now) {
            state.again = None;
            due.push(Due::Again);
        }
        let called = mem::take(&mut state.called);
        let next = state.limits.first_key_value().map(|((at, _), _)| *at);
        let until = [until, next, state.again].into_iter().flatten().min();
        let sleeps = !called && due.is_empty();
        if sleeps {
            state.sleeps = Some(until);
        }
        drop(state);
        for due in due {
            see_to(due);
            if matches!(due, Due::Again) {
                let mut state = lock(&self.state);
                if state.untold > 0 && state.again.is_none() {
                    state.retry();
                }
            }
        }
        let time = match sleeps {
            true => until.map(|until| until.saturating_duration_since(now).min(LONGEST)),
            false => Some(Duration::ZERO),
        };
        let mut time = time.map(timespec);
        let interrupted = mask.is_some_and(|mask| {
            let time = time.replace(timespec(Duration::ZERO));
            sys::poll_with(self.epoll.as_fd(), time.as_ref(), mask).is_err()
        });
        self.epoll.wait(time.as_ref(), || {
            let mut state = lock(&self.state);
            state.sleeps = None;
            state.turns += 1;
        });
        interrupted
    }
}

fn timespec(time: Duration) -> Timespec {
    // At most an hour.
    Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: time.subsec_nanos().into(),
    }
}

/// The leader leaves.
fn pass_on(state: &mut State) {
    state.called = false;
    state.sleeps = None;
    let next = state.followers.pop_front();
    state.leader = next.as_ref().map(Follower::id);
    if let Some(next) = next {
        next.wake();
    }
}

/// A leader's waker.
impl Wake for Drive {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.call(lock(&self.state));
    }
}

/// One who takes part in the waiting, until this is dropped.
#[derive(Debug)]
pub(crate) struct Role<'d> {
    drive: &'d Arc<Drive>,
    leads: bool,
    /// The mask to sleep with, and what ends the sleep of one who follows.
    masked: Option<(&'d SignalSet, Arc<OwnedFd>)>,
}

impl Role<'_> {
    /// Ends the next [`sleep`](Self::sleep).
    pub(crate) fn waker(&self) -> Waker {
        match &self.masked {
            _ if self.leads => Arc::clone(self.drive).into(),
            Some((_, bell)) => Arc::new(Bell(Arc::clone(bell))).into(),
            None => own_waker(),
        }
    }

    /// Waits until there is something to do, `until` is there or the role has changed;
    /// or less. Tells whether a signal ended that which the mask let in.
    pub(crate) fn sleep(&mut self, until: Option<Instant>, see_to: &mut dyn FnMut(Due)) -> bool {
        let mask = self.masked.as_ref().map(|(mask, _)| *mask);
        if self.leads {
            return self.drive.turn(until, mask, see_to);
        }
        let time = until.map(|until| until.saturating_duration_since(Instant::now()));
        let interrupted = match (&self.masked, time) {
            (Some((mask, bell)), time) => {
                let time = time.map(|time| timespec(time.min(LONGEST)));
                sys::poll_with(bell.as_fd(), time.as_ref(), mask).is_err()
            }
            (None, None) => {
                thread::park();
                false
            }
            (None, Some(time)) => {
                thread::park_timeout(time);
                false
            }
        };
        if let Some((_, bell)) = &self.masked {
            sys::hush(bell.as_fd());
        }
        self.leads = lock(&self.drive.state).leader == Some(thread::current().id());
        interrupted
    }
}

impl Drop for Role<'_> {
    fn drop(&mut self) {
        let me = thread::current().id();
        let mut state = lock(&self.drive.state);
        if state.leader == Some(me) {
            pass_on(&mut state);
        } else {
            state.followers.retain(|follower| follower.id() != me);
        }
    }
}

/// Wakes a thread that polls.
struct Bell(Arc<OwnedFd>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        sys::ring(self.0.as_fd());
    }
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Wakes the calling thread.
pub(crate) fn own_waker() -> Waker {
    Arc::new(Unpark(thread::current())).into()
}

/// Parks the calling thread until that is over.
pub(crate) fn block_on(over: Pin<&mut impl Future<Output = ()>>) {
    block_on_until(over, &own_waker(), None);
}

/// The same until that time at the latest, with the thread's own waker. Tells whether it
/// is over.
pub(crate) fn block_on_until(
    mut over: Pin<&mut impl Future<Output = ()>>,
    waker: &Waker,
    until: Option<Instant>,
) -> bool {
    let mut task = task::Context::from_waker(waker);
    while over.as_mut().poll(&mut task).is_pending() {
        match until.map(|until| until.saturating_duration_since(Instant::now())) {
            None => thread::park(),
            Some(Duration::ZERO) => return false,
            Some(time) => thread::park_timeout(time),
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use uaio_core::{poll::Source, wait::WaitQueue};

    use super::*;
    use crate::{Context, Op, event};

    struct Panics;

    // SAFETY: it has no heads.
    unsafe impl Source for Panics {
        fn heads(&self, _: &mut dyn FnMut(&WaitQueue)) {
            panic!("on purpose")
        }
        fn mask(&self) -> u16 {
            0
        }
    }

    /// What was carried out before it is told, and what is behind it was not begun.
    #[test]
    fn a_source_that_panics_ends_its_submission_only() {
        let file = tempfile::tempfile().unwrap();
        let context = Context::new(8).unwrap();
        let ours = crate::File::new(file.try_clone().unwrap()).unwrap();
        let write = |at| Op::pwrite(&ours, b"x".to_vec(), at).data(at);
        let panics = Op::poll_source(Arc::new(Panics), event::IN).data(2);
        let mut ops = [write(0), write(1), panics, write(3)];
        let submitted = catch_unwind(AssertUnwindSafe(|| context.submit(&mut ops)));
        assert!(submitted.is_err());
        let handles = ops.each_ref().map(|op| op.handle().is_some());
        assert_eq!(handles, [true, true, true, false]);
        let mut events = Vec::new();
        assert_eq!(context.getevents(3, 8, None, &mut events), Ok(3));
        events.sort_by_key(|done| done.data);
        let results = [0, 1, 2].map(|n: usize| events[n].result);
        assert_eq!(results, [Ok(1), Ok(1), Err(Errno::EIO)]);
        assert_eq!(file.metadata().unwrap().len(), 2);
    }

    #[test]
    fn nobody_drives_for_a_source_that_panicked() {
        let context = Context::new(2).unwrap();
        let op = || {
            let op = Op::poll_source(Arc::new(Panics), event::IN);
            op.with_timeout(Duration::from_secs(1))
        };
        let drive = &context.pool().drive;
        let submitted = catch_unwind(AssertUnwindSafe(|| context.submit(&mut [op()])));
        assert!(submitted.is_err());
        let mut events = Vec::new();
        assert_eq!(context.getevents(0, 2, None, &mut events), Ok(1));
        assert_eq!(events[0].result, Err(Errno::EIO));
        assert_eq!(drive.needed_by(), (0, 0));
        let submitted = catch_unwind(AssertUnwindSafe(|| drop(context.operation(op()))));
        assert!(submitted.is_err());
        assert_eq!(drive.needed_by(), (0, 0));
        assert_eq!(context.submit(&mut [Op::nop(), Op::nop()]), Ok(2));
    }
}
