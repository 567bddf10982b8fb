//! Requests: what to do, to which file, with which memory.

use std::{
    fmt, mem,
    ops::{Deref, DerefMut},
    os::fd::AsFd,
    sync::{Arc, Weak},
    time::Duration,
};

use libc::{c_void, iovec};
use rustix::fs::FileType;
use uaio_core::{
    Errno,
    callback::Accepted,
    context::Handle,
    poll::{Source, event},
    wait::WaitQueue,
};

use crate::{
    asyncfd::{AsyncFd, Ring},
    drive::Drive,
    epoll::{Epoll, Watch},
    file::{File, Way},
    fs::Call,
    notify::Notify,
    sys::{self, Direction, EVENTS, IOV_MAX, Trial},
};

/// A request: to be submitted, and given back with its completion.
///
/// It owns its buffers and a share of its file, so whatever becomes of the
/// caller's own, they are there until the request is done.
///
/// # Results
///
/// As those of the system call of the same name. Reading asks for as many bytes
/// as the buffers are long (their length, not their capacity) and may bring
/// fewer: at the end of the file, or zero beyond it. Writing may be short too,
/// say when the disk becomes full on the way: then the rest was not written,
/// and writing it again tells why. An error means that nothing was transferred.
///
/// What else a request brings it has when it comes back: the file that it
/// [opened](Self::openat), what it has [found](Self::statx). It is given up when the
/// request is dropped or submitted again; so a file that nobody takes out is closed,
/// whatever becomes of the completion.
///
/// # Names
///
/// A name is looked up when the request is carried out: a relative one in the directory
/// that is given with it, or without one where the process is then. It is any path; one
/// with a NUL is refused with EINVAL. Flags, modes and masks are those of Linux: see
/// [`flag`](crate::flag).
///
/// # Streams
///
/// What has readiness (a socket, a pipe, an eventfd, a terminal) is [read](Self::read)
/// and [written](Self::write) without an offset, and never holds a worker: what cannot
/// be done at once is tried again when it can. A write is complete when any of it was
/// taken. Two requests of one direction are not in order if the first has to wait.
///
/// A write to a pipe that nobody reads raises SIGPIPE, as the system call does, in
/// whichever thread makes it; Rust programs ignore it. Sockets raise none.
#[derive(Debug)]
pub struct Op(Inner);

#[derive(Debug)]
enum Inner {
    /// Made once, and kept when it is submitted again. It goes from hand to hand by its
    /// pointer: from its submitter into a slot, and back with its completion.
    Made(Box<Body>),
    /// What is left in the caller's hands of one that was accepted.
    Accepted(Handle),
}

/// What a request is, and how far.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) data: u64,
    pub(crate) timeout: Option<Duration>,
    /// Where its completion goes, if not into the context's ring.
    pub(crate) to: Option<To>,
    /// Whom it tells then.
    pub(crate) notify: Option<Notify>,
    /// While it is under way, and no reaper is to be expected for it.
    pub(crate) unreaped: Option<Unreaped>,
    /// While it is under way, whose callback is called then.
    pub(crate) accepted: Option<Accepted<'static, Op>>,
    offload: bool,
    /// The next one follows it.
    pub(crate) linked: bool,
    progress: Progress,
    /// Of a stream's, while it is under way. Dropped before the file.
    watch: Option<Arc<Watch>>,
    work: Work,
}

/// The target of a request.
#[derive(Debug)]
pub(crate) struct To {
    pub(crate) ring: Arc<Ring>,
    /// Of its context, and stands for that.
    drive: Weak<Drive>,
}

/// Somebody has to drive for the request, whom no reaper stands in for, until this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Unreaped(Weak<Drive>);

impl Unreaped {
    pub(crate) fn new(drive: &Arc<Drive>) -> Self {
        Self(Arc::downgrade(drive))
    }

    /// It was not counted.
    pub(crate) fn never(mut self) {
        self.0 = Weak::new();
    }
}

impl Drop for Unreaped {
    fn drop(&mut self) {
        if let Some(drive) = self.0.upgrade() {
            drive.unreaped_over();
        }
    }
}

/// How far an accepted request is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Bytes transferred.
    pub(crate) done: usize,
    /// Whether it was handed to a worker.
    pub(crate) handed_off: bool,
}

#[derive(Debug)]
enum Work {
    Nop,
    /// Until its time is up.
    Timeout,
    Call(Call),
    Transfer(Transfer),
    Poll {
        source: Polled,
        events: u16,
    },
    #[cfg(test)]
    Panic,
    #[cfg(test)]
    OpenLate(std::path::PathBuf, Duration),
}

#[derive(Debug)]
struct Transfer {
    file: File,
    direction: Direction,
    memory: Memory,
    /// None: where the file's position is, or a stream.
    offset: Option<u64>,
}

enum Polled {
    File(File),
    Source(Arc<dyn Source + Send + Sync>),
}

impl fmt::Debug for Polled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.fmt(f),
            Self::Source(_) => f.write_str("Source"),
        }
    }
}

/// How a request goes on once it is accepted.
#[derive(Debug)]
pub(crate) enum Course {
    /// It is done.
    Done(Result<usize, Errno>),
    /// By a worker.
    Work,
    /// Until it is cancelled, or its time is up.
    Wait,
    /// Until one of these events.
    Poll(u16),
    /// Until it can be done, which one of these events may mean.
    Attempt(u16),
    /// After the one before it.
    Follow,
}

#[derive(Debug)]
enum Memory {
    One(Vec<u8>),
    Many(Vec<Vec<u8>>),
    Raw(RawMemory),
}

/// Memory by address; valid until the completion, by the contract of raw
/// submission.
#[derive(Debug)]
struct RawMemory(Vec<iovec>);

// SAFETY: the contract of raw submission leaves the memory to the request,
// whichever thread carries it out.
unsafe impl Send for RawMemory {}

/// Vectors for one system call. One of them needs no heap.
enum Vectors {
    One([iovec; 1]),
    Many(Vec<iovec>),
}

impl Deref for Vectors {
    type Target = [iovec];
    fn deref(&self) -> &[iovec] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

impl DerefMut for Vectors {
    fn deref_mut(&mut self) -> &mut [iovec] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

fn vector(buf: &mut [u8]) -> iovec {
    iovec {
        iov_base: buf.as_mut_ptr().cast::<c_void>(),
        iov_len: buf.len(),
    }
}

impl Memory {
    fn len(&self) -> usize {
        match self {
            Self::One(buf) => buf.len(),
            Self::Many(bufs) => bufs.iter().map(Vec::len).sum(),
            Self::Raw(raw) => raw.0.iter().map(|v| v.iov_len).sum(),
        }
    }

    /// What remains after the first `skip` bytes.
    fn rest(&mut self, skip: usize) -> Vectors {
        match self {
            Self::One(buf) => Vectors::One([vector(&mut buf[skip..])]),
            Self::Many(bufs) => after(bufs.iter_mut().map(|buf| vector(buf)), skip),
            Self::Raw(raw) => after(raw.0.iter().copied(), skip),
        }
    }
}

/// The vectors without their first `skip` bytes.
fn after(vectors: impl Iterator<Item = iovec>, mut skip: usize) -> Vectors {
    Vectors::Many(
        vectors
            .filter_map(|v| {
                let skipped = skip.min(v.iov_len);
                skip -= skipped;
                // Empty ones stay as long as nothing was skipped: the system
                // call is the one that was asked for.
                (skipped == 0 || skipped < v.iov_len).then(|| iovec {
                    iov_base: v.iov_base.wrapping_byte_add(skipped),
                    iov_len: v.iov_len - skipped,
                })
            })
            .collect(),
    )
}

impl Op {
    fn new(work: Work) -> Self {
        Self(Inner::Made(Box::new(Body {
            data: 0,
            timeout: None,
            to: None,
            notify: None,
            unreaped: None,
            accepted: None,
            offload: false,
            linked: false,
            progress: Progress::default(),
            watch: None,
            work,
        })))
    }

    /// What it is; of one that was accepted that is elsewhere.
    pub(crate) fn body(&self) -> Option<&Body> {
        match &self.0 {
            Inner::Made(body) => Some(body),
            Inner::Accepted(_) => None,
        }
    }

    /// As [`body`](Self::body), to change it.
    pub(crate) fn body_mut(&mut self) -> Option<&mut Body> {
        match &mut self.0 {
            Inner::Made(body) => Some(body),
            Inner::Accepted(_) => None,
        }
    }

    /// Takes it out of the caller's hands, and leaves its name there.
    pub(crate) fn take(&mut self, name: Handle) -> Option<Box<Body>> {
        match mem::replace(&mut self.0, Inner::Accepted(name)) {
            Inner::Made(body) => Some(body),
            Inner::Accepted(_) => None,
        }
    }

    /// The same request with this changed.
    fn with(mut self, change: impl FnOnce(&mut Body)) -> Self {
        if let Some(body) = self.body_mut() {
            change(body);
        }
        self
    }

    fn transfer(
        file: &File,
        direction: Direction,
        memory: Memory,
        offset: impl Into<Option<u64>>,
    ) -> Self {
        Self::new(Work::Transfer(Transfer {
            file: file.clone(),
            direction,
            memory,
            offset: offset.into(),
        }))
    }

    /// Does nothing, and completes with 0.
    pub fn nop() -> Self {
        Self::new(Work::Nop)
    }

    /// Reads up to `buf.len()` bytes from a stream, as soon as there are any; from a
    /// file, at its position.
    ///
    /// ```
    /// use std::io::Write;
    /// use uaio::{Context, File, Op};
    ///
    /// let (reader, mut writer) = std::io::pipe()?;
    /// let context = Context::new(1)?;
    /// context.submit(&mut [Op::read(&File::new(reader)?, vec![0; 16])])?;
    /// writer.write_all(b"late")?;
    ///
    /// let mut events = Vec::new();
    /// context.getevents(1, 1, None, &mut events)?;
    /// let done = events.remove(0);
    /// assert_eq!(done.result, Ok(4));
    /// assert_eq!(done.op.into_buf()[..4], *b"late");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn read(file: &File, buf: Vec<u8>) -> Self {
        Self::transfer(file, Direction::Read, Memory::One(buf), None)
    }

    /// Writes what a stream takes of `buf`, as soon as it takes any; to a file, at its
    /// position.
    pub fn write(file: &File, buf: Vec<u8>) -> Self {
        Self::transfer(file, Direction::Write, Memory::One(buf), None)
    }

    /// As [`read`](Self::read), into several buffers, one after the other; at most
    /// 1,024.
    pub fn readv(file: &File, bufs: Vec<Vec<u8>>) -> Self {
        Self::transfer(file, Direction::Read, Memory::Many(bufs), None)
    }

    /// As [`write`](Self::write), of several buffers, one after the other; at most
    /// 1,024.
    pub fn writev(file: &File, bufs: Vec<Vec<u8>>) -> Self {
        Self::transfer(file, Direction::Write, Memory::Many(bufs), None)
    }

    /// Completes when the file is ready for any of `events`, or has an error or hung
    /// up, with those of [`event`] that it is ready for. Other numbers are EINVAL.
    ///
    /// Once: what it is ready for later is another request's. What has no readiness, as
    /// regular files, is always ready to be read and written; of that, a request for
    /// other events only is refused with EINVAL.
    ///
    /// ```
    /// use uaio::{Context, File, Op, event};
    ///
    /// let (_reader, writer) = std::io::pipe()?;
    /// let context = Context::new(1)?;
    /// context.submit(&mut [Op::poll(&File::new(writer)?, event::OUT)])?;
    ///
    /// let mut events = Vec::new();
    /// context.getevents(1, 1, None, &mut events)?;
    /// assert_eq!(events[0].result, Ok(event::OUT.into()));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn poll(file: &File, events: u16) -> Self {
        Self::new(Work::Poll {
            source: Polled::File(file.clone()),
            events,
        })
    }

    /// As [`poll`](Self::poll), of an object of the program's own. One with more than
    /// two heads is refused with EOVERFLOW; one without any, that is not ready, with
    /// EINVAL.
    pub fn poll_source(source: Arc<dyn Source + Send + Sync>, events: u16) -> Self {
        Self::new(Work::Poll {
            source: Polled::Source(source),
            events,
        })
    }

    /// Reads `buf.len()` bytes at `offset`.
    pub fn pread(file: &File, buf: Vec<u8>, offset: u64) -> Self {
        Self::transfer(file, Direction::Read, Memory::One(buf), offset)
    }

    /// Writes the bytes of `buf` at `offset`; at the end if the file was opened
    /// with O_APPEND.
    pub fn pwrite(file: &File, buf: Vec<u8>, offset: u64) -> Self {
        Self::transfer(file, Direction::Write, Memory::One(buf), offset)
    }

    /// Reads into several buffers, one after the other; at most 1,024.
    pub fn preadv(file: &File, bufs: Vec<Vec<u8>>, offset: u64) -> Self {
        Self::transfer(file, Direction::Read, Memory::Many(bufs), offset)
    }

    /// Writes several buffers, one after the other; at most 1,024.
    pub fn pwritev(file: &File, bufs: Vec<Vec<u8>>, offset: u64) -> Self {
        Self::transfer(file, Direction::Write, Memory::Many(bufs), offset)
    }

    /// Completes with ETIME after `duration` from its submission, or a little later; with
    /// ECANCELED if it is [cancelled](crate::Context::cancel) before. As a time limit,
    /// which it is, of nothing: [`with_timeout`](Self::with_timeout) sets another one.
    ///
    /// ```
    /// use std::time::Duration;
    /// use uaio::{Context, Errno, Op};
    ///
    /// let context = Context::new(1)?;
    /// context.submit(&mut [Op::timeout(Duration::from_millis(5))])?;
    ///
    /// let mut events = Vec::new();
    /// context.getevents(1, 1, None, &mut events)?;
    /// assert_eq!(events[0].result, Err(Errno::ETIME));
    /// # Ok::<(), Errno>(())
    /// ```
    pub fn timeout(duration: Duration) -> Self {
        Self::new(Work::Timeout).with_timeout(duration)
    }

    pub(crate) fn call(call: Call) -> Self {
        Self::new(Work::Call(call))
    }

    pub(crate) fn into_call(self) -> Option<Call> {
        match self.into_work()? {
            Work::Call(call) => Some(call),
            _ => None,
        }
    }

    /// The caller's own value, for its [`Completion`](crate::Completion).
    pub fn data(self, data: u64) -> Self {
        self.with(|body| body.data = data)
    }

    /// Ends the request with ETIME if it has not begun by then: after `timeout` from
    /// its submission, or a little later.
    ///
    /// As a [cancel](crate::Context::cancel), it changes no result of what is already
    /// carried out. Without a reaper it may be some milliseconds late.
    ///
    /// ```
    /// use std::time::Duration;
    /// use uaio::{Context, Errno, File, Op};
    ///
    /// let (reader, _writer) = std::io::pipe()?;
    /// let read = Op::read(&File::new(reader)?, vec![0; 16]);
    /// let context = Context::new(1)?;
    /// context.submit(&mut [read.with_timeout(Duration::from_millis(5))])?;
    ///
    /// let mut events = Vec::new();
    /// context.getevents(1, 1, None, &mut events)?;
    /// assert_eq!(events[0].result, Err(Errno::ETIME));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn with_timeout(self, timeout: Duration) -> Self {
        self.with(|body| body.timeout = Some(timeout))
    }

    /// Has the completion go to `asyncfd`, where it is [popped](AsyncFd::pop), instead
    /// of the ring of the context.
    ///
    /// Its [`data`](Self::data) must not be zero, which in the asyncfd's memory says
    /// that there is nothing. What comes back with the completion keeps its target. If
    /// that is closed meanwhile, the completion comes out of the context after all. (Raw
    /// requests have no target.)
    pub fn to(self, asyncfd: &AsyncFd) -> Self {
        self.with(|body| {
            body.to = Some(To {
                ring: Arc::clone(asyncfd.ring()),
                drive: Arc::downgrade(asyncfd.drive()),
            });
            body.notify = None;
        })
    }

    /// Has somebody told once the completion is in the context's ring.
    ///
    /// What comes back with the completion keeps it. A request is delivered
    /// [to](Self::to) an asyncfd or tells of its completion in the ring: what was said
    /// last. (Raw requests tell nobody.)
    pub fn notify(self, notify: &Notify) -> Self {
        self.with(|body| {
            body.notify = Some(notify.clone());
            body.to = None;
        })
    }

    #[cfg(test)]
    pub(crate) fn panic() -> Self {
        Self::new(Work::Panic)
    }

    /// Opens it to be read, that late, and closes it.
    #[cfg(test)]
    pub(crate) fn open_late(path: std::path::PathBuf, late: Duration) -> Self {
        Self::new(Work::OpenLate(path, late)).offload()
    }

    /// Has a worker do it, without trying first whether it can be done at once. (But
    /// what has readiness never needs one.)
    ///
    /// For a submitter that has no time for copying from the page cache either.
    pub fn offload(self) -> Self {
        self.with(|body| body.offload = true)
    }

    /// Has the next request of the same submission wait for this one: it begins when this
    /// has succeeded, and ends with ECANCELED, and without effect, otherwise. With several
    /// that are linked that makes a chain, to the first that is not, or the last one of the
    /// submission.
    ///
    /// A read or a write at an offset that is short is no success; of others, whatever is
    /// no error. A chain is accepted as a whole or not at all: EAGAIN if there is no room
    /// for all of it. What is linked is not [for](Self::to) an asyncfd. A request that
    /// waits for its turn is cancelled, or meets its time limit, when that has come; and it
    /// is begun by a worker, so it waits for one that is free. (If a [source](Self::poll_source)
    /// in the midst of a chain panics in the submission, what comes after it is refused.)
    ///
    /// ```
    /// use uaio::{Context, Errno, File, Op};
    ///
    /// let file = File::new(tempfile::tempfile()?)?;
    /// let context = Context::new(4)?;
    /// let write = Op::pwrite(&file, b"written".to_vec(), 0).linked();
    /// context.submit(&mut [write, Op::fsync(&file)])?;
    /// let mut events = Vec::new();
    /// context.getevents(2, 2, None, &mut events)?;
    /// assert_eq!((events[0].result, events[1].result), (Ok(7), Ok(0)));
    ///
    /// // There is nothing to be read at the end.
    /// let read = Op::pread(&file, vec![0; 1], 7).linked();
    /// context.submit(&mut [read, Op::fsync(&file)])?;
    /// context.getevents(2, 2, None, &mut events)?;
    /// assert_eq!((events[2].result, events[3].result), (Ok(0), Err(Errno::ECANCELED)));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn linked(self) -> Self {
        self.with(|body| body.linked = true)
    }

    /// Has nothing wait for it: of a request that came back, and was [linked](Self::linked).
    pub fn unlinked(self) -> Self {
        self.with(|body| body.linked = false)
    }

    /// What [`submit`](crate::Context::submit) left here of a request that it
    /// accepted: its name. `None` if it was not submitted, or refused.
    pub fn handle(&self) -> Option<Handle> {
        match self.0 {
            Inner::Accepted(handle) => Some(handle),
            Inner::Made(_) => None,
        }
    }

    /// Where in the file it reads or writes, from now on: for a request that came back,
    /// to be submitted again. Of a stream's and of others nothing changes.
    ///
    /// ```
    /// use uaio::{Context, File, Op};
    ///
    /// # let file = tempfile::tempfile()?;
    /// # std::os::unix::fs::FileExt::write_all_at(&file, b"abcd", 0)?;
    /// let context = Context::new(1)?;
    /// let mut ops = [Op::pread(&File::new(file)?, vec![0; 2], 0)];
    /// let mut events = Vec::new();
    /// for (offset, expected) in [(0, b"ab"), (2, b"cd"), (1, b"bc")] {
    ///     ops[0].set_offset(offset);
    ///     context.submit(&mut ops)?;
    ///     context.getevents(1, 1, None, &mut events)?;
    ///     let done = events.remove(0);
    ///     assert_eq!(done.op.buf(), expected);
    ///     ops[0] = done.op;
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn set_offset(&mut self, to: u64) {
        if let Some(body) = self.body_mut()
            && let Work::Transfer(Transfer {
                offset: Some(offset),
                ..
            }) = &mut body.work
        {
            *offset = to;
        }
    }

    /// The buffer of a read or a write with one; of others an empty one.
    pub fn buf(&self) -> &[u8] {
        match self.body().map(|body| &body.work) {
            Some(Work::Transfer(Transfer {
                memory: Memory::One(buf),
                ..
            })) => buf,
            _ => &[],
        }
    }

    /// As [`buf`](Self::buf), to keep.
    pub fn into_buf(self) -> Vec<u8> {
        match self.into_work() {
            Some(Work::Transfer(Transfer {
                memory: Memory::One(buf),
                ..
            })) => buf,
            _ => Vec::new(),
        }
    }

    /// The buffers of a read or a write with several; of others none.
    pub fn into_bufs(self) -> Vec<Vec<u8>> {
        match self.into_work() {
            Some(Work::Transfer(Transfer {
                memory: Memory::Many(bufs),
                ..
            })) => bufs,
            _ => Vec::new(),
        }
    }

    fn into_work(self) -> Option<Work> {
        match self.0 {
            Inner::Made(body) => Some(body.work),
            Inner::Accepted(_) => None,
        }
    }
}

/// Raw requests. Carrying one out is sound by the contract of
/// [`submit_raw`](crate::Context::submit_raw).
impl Op {
    pub(crate) fn raw_transfer(
        file: &File,
        direction: Direction,
        vectors: Vec<iovec>,
        offset: u64,
    ) -> Self {
        // As Linux does, of a stream it is ignored.
        let stream = matches!(file.access().way(direction), Way::Stream(_));
        let offset = (!stream).then_some(offset);
        Self::transfer(file, direction, Memory::Raw(RawMemory(vectors)), offset)
    }
}

impl From<Box<Body>> for Op {
    fn from(body: Box<Body>) -> Self {
        Self(Inner::Made(body))
    }
}

/// What the context does with a request.
impl Body {
    /// What the caller gets back: of a raw request its name, lest safe code
    /// submit it again.
    #[inline]
    pub(crate) fn give_back(mut self: Box<Self>, handle: Handle) -> Op {
        self.watch = None;
        self.unreaped = None;
        match &self.work {
            Work::Call(call) if call.is_raw() => Op(Inner::Accepted(handle)),
            Work::Transfer(Transfer { file, .. })
            | Work::Poll {
                source: Polled::File(file),
                ..
            } if file.is_raw() => Op(Inner::Accepted(handle)),
            _ => self.into(),
        }
    }

    /// # Errors
    ///
    /// EINVAL when the request makes no sense, or whom it tells is gone. EBADFD: its
    /// target is closed.
    #[inline]
    pub(crate) fn check(&self, drive: &Arc<Drive>) -> Result<(), Errno> {
        if let Some(to) = &self.to {
            if self.linked || self.data == 0 || to.drive.as_ptr() != Arc::as_ptr(drive) {
                return Err(Errno::EINVAL);
            }
            if to.ring.is_closed() {
                return Err(Errno::EBADFD);
            }
        }
        if let Some(notify) = &self.notify {
            notify.check()?;
        }
        let sensible = match &self.work {
            Work::Nop | Work::Timeout => true,
            Work::Call(call) => call.is_sensible(),
            // What there is no such event for will never be.
            Work::Poll { events, .. } => events & !EVENTS == 0,
            Work::Transfer(Transfer { offset, memory, .. }) => {
                let few = !matches!(memory, Memory::Many(bufs) if bufs.len() > IOV_MAX);
                few && offset.is_none_or(|offset| i64::try_from(offset).is_ok())
            }
            #[cfg(test)]
            Work::Panic | Work::OpenLate(..) => true,
        };
        if sensible { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Whether it says where its completion goes, whom it tells, or what follows it.
    pub(crate) fn is_delivered(&self) -> bool {
        !self.is_only_reaped() || self.linked
    }

    /// Whether its completion goes to who reaps it, and nobody else is told.
    #[inline]
    pub(crate) fn is_only_reaped(&self) -> bool {
        self.to.is_none() && self.notify.is_none()
    }

    /// What it comes to if it succeeds, or more.
    pub(crate) fn at_least(&self) -> i64 {
        match &self.work {
            Work::Transfer(Transfer {
                memory,
                offset: Some(_),
                ..
            }) => memory.len() as i64,
            _ => 0,
        }
    }

    /// Whether somebody has to drive for it, until it is taken out.
    pub(crate) fn is_driven(&self) -> bool {
        self.progress.handed_off && (self.watch.is_some() || self.timeout.is_some())
    }

    /// Makes it as if it had never been submitted.
    pub(crate) fn renew(&mut self) {
        self.progress = Progress::default();
        if let Work::Call(call) = &mut self.work {
            call.renew();
        }
    }

    /// As it is given back to who is called.
    pub(crate) fn ended(mut self: Box<Self>) -> Op {
        self.watch = None;
        self.into()
    }

    pub(crate) fn is_handed_off(&self) -> bool {
        self.progress.handed_off
    }

    pub(crate) fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// Does at once what can be done without waiting, and tells how the rest goes on.
    ///
    /// # Errors
    ///
    /// The request cannot be carried out, and had no effect.
    // Inlined, as what it calls is, down to the system call: see `sys::transfer`.
    #[inline(always)]
    pub(crate) fn begin(&mut self, epoll: &Arc<Epoll>) -> Result<Course, Errno> {
        let offload = self.offload;
        let now = match &mut self.work {
            Work::Poll { source, events } => {
                let events = *events;
                let Polled::File(file) = source else {
                    return Ok(Course::Poll(events));
                };
                self.watch = file.watch(epoll)?;
                match ready_for(file, events) {
                    Some(ready) => Some(Ok(ready.into())),
                    // What epoll reports may be over by then: it is looked at again.
                    None if self.watch.is_some() => return Ok(Course::Attempt(events)),
                    None => return Err(Errno::EINVAL),
                }
            }
            Work::Transfer(transfer) => match transfer.file.access().way(transfer.direction) {
                Way::Stream(_) if !transfer.file.access().allows(transfer.direction) => {
                    Some(Err(Errno::EBADF))
                }
                Way::Stream(trial) if transfer.offset.is_none() => {
                    self.watch = transfer.file.watch(epoll)?;
                    if self.watch.is_some() {
                        return Ok(match transfer.attempt_stream(trial) {
                            Err(Errno::EAGAIN) => Course::Attempt(transfer.direction.event()),
                            result => Course::Done(result),
                        });
                    }
                    None
                }
                _ if offload => None,
                Way::Inline => Some(self.run()),
                Way::Nowait if transfer.offset.is_some() && transfer.is_worth_trying() => {
                    transfer.attempt(&mut self.progress.done)
                }
                _ => None,
            },
            Work::Timeout => return Ok(Course::Wait),
            _ if offload => None,
            Work::Call(call) if !call.is_inline() => None,
            _ => Some(self.run()),
        };
        Ok(now.map_or(Course::Work, Course::Done))
    }

    /// Whether carrying it out may wait for somebody else, and is EINTR when a signal ends
    /// that. (Transfers of files may not end early.)
    pub(crate) fn is_interruptible(&self) -> bool {
        match &self.work {
            #[cfg(test)]
            Work::OpenLate(..) => true,
            Work::Call(call) => call.is_interruptible(),
            _ => false,
        }
    }

    /// Does the rest, waiting as long as it takes.
    pub(crate) fn run(&mut self) -> Result<usize, Errno> {
        match &mut self.work {
            // Polls and timeouts are not carried out, but waited for.
            Work::Nop | Work::Poll { .. } | Work::Timeout => Ok(0),
            #[cfg(test)]
            Work::Panic => panic!("on purpose"),
            Work::Call(call) => call.run(),
            #[cfg(test)]
            Work::OpenLate(path, late) => {
                use rustix::fs::{Mode, OFlags};
                // No signal ends that.
                std::thread::sleep(*late);
                let opened = rustix::fs::open(&*path, OFlags::RDONLY, Mode::empty());
                opened.map(|_| 0).map_err(sys::errno)
            }
            Work::Transfer(transfer) => {
                let done = self.progress.done;
                match transfer.go_on(done, false) {
                    Ok(n) => Ok(done + n),
                    // What was transferred counts; the next request there
                    // meets the error again.
                    Err(_) if done > 0 => Ok(done),
                    Err(errno) => Err(errno),
                }
            }
        }
    }
}

/// What a file is ready for, of `events`, errors and hang-ups.
fn ready_for(file: &File, events: u16) -> Option<u16> {
    match sys::ready(file.as_fd()) & (events | event::ERR | event::HUP) {
        0 => None,
        ready => Some(ready),
    }
}

impl Transfer {
    /// One system call for what remains after `done` bytes.
    #[inline(always)]
    fn go_on(&mut self, done: usize, nowait: bool) -> Result<usize, Errno> {
        let mut rest = self.memory.rest(done);
        // Only what was transferred is added, so this stays in range.
        let offset = self.offset.map(|offset| offset as i64 + done as i64);
        // SAFETY: the vectors are of buffers that the request owns, borrowed
        // exclusively here; or promised to it by the contract of raw submission.
        unsafe { sys::transfer(self.file.as_fd(), self.direction, &mut rest, offset, nowait) }
    }

    /// As much as can be had of a stream; EAGAIN if that is nothing.
    fn attempt_stream(&mut self, trial: Trial) -> Result<usize, Errno> {
        let mut all = self.memory.rest(0);
        // SAFETY: as in `go_on`.
        unsafe { self.file.attempt(self.direction, &mut all, trial) }
    }

    /// As far as the last attempts tell.
    #[inline]
    fn is_worth_trying(&self) -> bool {
        self.file.access().attempts(self.direction).is_worthwhile()
    }

    /// Goes on without blocking as long as that brings anything.
    ///
    /// Reports no error: whatever it is, a plain call by a worker tells the
    /// truth.
    #[inline(always)]
    fn attempt(&mut self, done: &mut usize) -> Option<Result<usize, Errno>> {
        let result = self.try_to_go_on(done);
        let attempts = self.file.access().attempts(self.direction);
        match *done {
            0 if result.is_none() => attempts.failed(),
            _ => attempts.succeeded(),
        }
        result
    }

    #[inline(always)]
    fn try_to_go_on(&mut self, done: &mut usize) -> Option<Result<usize, Errno>> {
        let len = self.memory.len();
        loop {
            match self.go_on(*done, true) {
                Ok(0) if *done < len && !self.is_end(*done) => return None,
                Ok(n) => {
                    *done += n;
                    if n == 0 || *done == len {
                        return Some(Ok(*done));
                    }
                }
                Err(errno) => {
                    if matches!(errno.raw(), libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM) {
                        self.file.access().give_up_nowait(self.direction);
                    }
                    return None;
                }
            }
        }
    }

    /// Whether nothing transferred means the end of the file. Linux 5.9 and 5.10
    /// also mean by it that the call would block; and of a block device the size
    /// is not told here.
    fn is_end(&self, done: usize) -> bool {
        rustix::fs::fstat(self.file.as_fd()).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode).is_file()
                && (self.offset).is_some_and(|at| stat.st_size as u64 <= at + done as u64)
        })
    }
}

/// What a request waits for.
// SAFETY: a watch is kept by the request, and has the queue; a source is kept by it,
// too. An attempt changes neither.
unsafe impl Source for Box<Body> {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        match (&self.work, &self.watch) {
            (
                Work::Poll {
                    source: Polled::Source(source),
                    ..
                },
                _,
            ) => source.heads(visit),
            (_, Some(watch)) => visit(&watch.head),
            (_, None) => {}
        }
    }

    fn mask(&self) -> u16 {
        match &self.work {
            Work::Poll {
                source: Polled::Source(source),
                ..
            } => source.mask(),
            // It is tried.
            _ => 0,
        }
    }

    fn attempt(&mut self) -> Option<i64> {
        let result = match &mut self.work {
            Work::Poll {
                source: Polled::File(file),
                events,
            } => ready_for(file, *events).map_or(Err(Errno::EAGAIN), |ready| Ok(ready.into())),
            Work::Transfer(transfer) => {
                let event = transfer.direction.event();
                let watch = self.watch.as_ref();
                if watch.is_some_and(|watch| watch.is_exhausted(event)) {
                    return None;
                }
                let result = match transfer.file.access().way(transfer.direction) {
                    Way::Stream(trial) => transfer.attempt_stream(trial),
                    _ => Err(Errno::EINVAL),
                };
                if let (Some(watch), Err(Errno::EAGAIN)) = (watch, result)
                    // Too much for this one may be right for another one.
                    && sys::ready(transfer.file.as_fd()) & event == 0
                {
                    watch.exhausted(event);
                }
                result
            }
            _ => Err(Errno::EINVAL),
        };
        match result {
            Ok(n) => Some(n as i64),
            Err(Errno::EAGAIN) => None,
            Err(errno) => Some(errno.as_result()),
        }
    }
}
