//! Requests with a callback, which need no context.
//!
//! What can be done at once needs nothing more. The rest is carried out by contexts of the
//! process's own: when there is no room, another one is made with twice as much, which
//! stays.
//!
//! A callback is called by the thread that completes its request. If that is just calling
//! another, further up, it is called when that returns; so each thread calls one at a
//! time, and none waits for another's.

use std::{
    error, fmt, io,
    sync::{Arc, Mutex, OnceLock},
    time::Instant,
};

use uaio_core::{
    Errno,
    callback::{self, Accepted, Callbacks},
    poll::Refused,
    ring::Event,
    slots::Iocb,
};

use crate::{
    op::{Body, Course, Op, Unreaped},
    pool::{Config, Pool, Reservation, as_result, from_result},
    sys::lock,
};

/// A request with a callback.
///
/// The callback is called exactly once after the request was [submitted](Self::submit),
/// with its completion: perhaps before that returns, from any thread, with no lock held.
/// It may submit others; a chain of any length needs no stack, since one that is
/// completed from within a callback is called when that returns. So a callback must not
/// wait for another, and one that takes long may hold up others. If it panics the process
/// goes on: see [`callback_panics`].
///
/// There is no limit but memory, and that of 33 million under way; and no cancel. A
/// [time limit](Op::with_timeout) counts from the submission.
///
/// ```
/// use std::sync::mpsc;
/// use uaio::{Callback, File, Op};
///
/// let file = File::new(tempfile::tempfile()?)?;
/// let (sender, receiver) = mpsc::channel();
/// let write = Op::pwrite(&file, b"written".to_vec(), 0);
/// Callback::new(write, move |done| sender.send(done.result).unwrap()).submit()?;
/// assert_eq!(receiver.recv(), Ok(Ok(7)));
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "it is not submitted"]
#[derive(Debug)]
pub struct Callback(callback::Request<Op>);

/// What a callback is called with.
#[derive(Debug)]
#[non_exhaustive]
pub struct Called {
    /// The submitter's own value.
    pub data: u64,
    /// What it came to: [as the system call's](Op#results), mostly bytes or zero.
    pub result: Result<usize, Errno>,
    /// The request, with its buffers. It can be submitted again.
    pub op: Op,
}

/// A callback request that was refused, and why.
#[derive(Debug)]
pub struct Uncalled {
    /// Why.
    pub errno: Errno,
    /// As it was.
    pub callback: Callback,
}

impl fmt::Display for Uncalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.errno.fmt(f)
    }
}

impl error::Error for Uncalled {}

impl From<Uncalled> for io::Error {
    fn from(uncalled: Uncalled) -> Self {
        uncalled.errno.into()
    }
}

/// How many callbacks have panicked. (That they did, and where, the panic hook reports.)
/// None in a process that was forked since there were any.
pub fn callback_panics() -> u64 {
    if is_copy() {
        return 0;
    }
    let threads = lock(&THREADS);
    let all = threads.all.iter().copied().chain([&LAST]);
    all.map(Callbacks::panics).sum()
}

impl Callback {
    /// That `callback` is called when `op` is done.
    pub fn new(op: Op, callback: impl FnOnce(Called) + Send + 'static) -> Self {
        Self(callback::Request::new(op, move |done| {
            callback(Called {
                data: done.payload.body().map_or(0, |body| body.data),
                result: from_result(done.res),
                op: done.payload,
            });
        }))
    }

    /// The request; the callback is dropped.
    pub fn into_op(self) -> Op {
        self.0.into_payload()
    }

    /// Submits it.
    ///
    /// # Errors
    ///
    /// Then the callback is not called, and it is given back. EINVAL: the request makes no
    /// sense, or it is [for](Op::to) an asyncfd or [tells](Op::notify) somebody; or the
    /// process was forked by one that has submitted a callback. EAGAIN,
    /// EMFILE, ENFILE, ENOMEM: there is no room, and the system has no thread left for
    /// more, or no descriptor. Others as of [`Context::submit`](crate::Context::submit).
    pub fn submit(mut self) -> Result<(), Uncalled> {
        let begun = match self.begin() {
            Ok((pool, room, course)) => {
                let accepted = LAST.accept(self.0);
                if let Course::Done(result) = course {
                    drop(room);
                    call(accepted, as_result(result), 0);
                    return Ok(());
                }
                start(pool, room, accepted, course)
            }
            Err(errno) => Err((errno, self.0)),
        };
        begun.map_err(|(errno, request)| Uncalled {
            errno,
            callback: Self(request),
        })
    }

    fn begin(&mut self) -> Result<(&'static Arc<Pool>, Reservation<'static>, Course), Errno> {
        let body = self.0.payload_mut().body_mut().ok_or(Errno::EINVAL)?;
        if body.is_delivered() {
            return Err(Errno::EINVAL);
        }
        if is_copy() {
            return Err(Errno::EINVAL);
        }
        let (pool, room) = room()?;
        body.check(&pool.drive)?;
        body.renew();
        let course = body.begin(&pool.drive.epoll)?;
        body.progress().handed_off = !matches!(course, Course::Done(_));
        Ok((pool, room, course))
    }
}

static POOLS: [OnceLock<Arc<Pool>>; 15] = [const { OnceLock::new() }; 15];

/// In a [forked](crate::Context#fork) process.
fn is_copy() -> bool {
    POOLS[0].get().is_some_and(|pool| pool.is_copy())
}

/// Room for one request, of a context that has some. The last has as much as can be.
fn room() -> Result<(&'static Arc<Pool>, Reservation<'static>), Errno> {
    for (n, place) in POOLS.iter().enumerate() {
        let pool = match place.get() {
            Some(pool) => pool,
            None => {
                static MAKING: Mutex<()> = Mutex::new(());
                let _making = lock(&MAKING);
                match place.get() {
                    Some(pool) => pool,
                    None => {
                        let pool = Pool::new(1024 << n, Config::default())?;
                        place.get_or_init(|| pool)
                    }
                }
            }
        };
        match pool.core.reserve_one() {
            Ok(room) => return Ok((pool, room)),
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EAGAIN)
}

/// Has it carried out; or gives it back, and tells why.
fn start(
    pool: &Arc<Pool>,
    room: Reservation<'_>,
    mut accepted: Accepted<'static, Op>,
    course: Course,
) -> Result<(), (Errno, callback::Request<Op>)> {
    let Some(mut body) = accepted.payload_mut().take(room.handle()) else {
        // Cannot be: it has begun.
        return Ok(());
    };
    let driven = body.is_driven();
    body.unreaped = driven.then(|| Unreaped::new(&pool.drive));
    let limit = (body.timeout).and_then(|limit| Instant::now().checked_add(limit));
    body.accepted = Some(accepted);
    // Before: a source's panic ends the request, and this.
    if driven {
        pool.drive.begun(1, 1);
    }
    let core = pool.core.as_ref();
    let begun = core
        .get_ref()
        .call_by(room.fill(Iocb::default(), body), over)
        .and_then(|request| match course {
            Course::Wait => Ok(request.arm()),
            Course::Poll(events) => core.poll(request, events),
            Course::Attempt(events) => core.attempt(request, events),
            Course::Work | Course::Follow | Course::Done(_) => Ok(pool.queuing().queue(request)),
        });
    let handle = match begun {
        Ok(handle) => handle,
        Err(Refused { error, request }) => {
            return match request.refuse().and_then(ended) {
                Some(accepted) => Err((error, accepted.refuse())),
                // Cannot be: nobody else takes it out.
                None => Ok(()),
            };
        }
    };
    if let Some(at) = limit {
        pool.limit(at, handle);
    }
    if driven {
        pool.attend();
    }
    Ok(())
}

/// A request is over, and its room free.
fn over(body: Box<Body>, event: Event) {
    if let Some(accepted) = ended(body) {
        call(accepted, event.res, event.res2);
    }
}

/// What its submitter is owed, with the request as it was.
fn ended(mut body: Box<Body>) -> Option<Accepted<'static, Op>> {
    body.unreaped = None;
    let mut accepted = body.accepted.take()?;
    *accepted.payload_mut() = body.ended();
    Some(accepted)
}

/// Calls the callback, or has it called by the callers of this.
fn call(accepted: Accepted<'static, Op>, res: i64, res2: i64) {
    let own = OWN.try_with(|own| own.0).unwrap_or(&LAST);
    accepted.among(own).complete(res, res2);
}

/// The callbacks of threads: each thread has its own, for as long as it is there.
struct Threads {
    all: Vec<&'static Callbacks>,
    free: Vec<&'static Callbacks>,
}

static THREADS: Mutex<Threads> = Mutex::new(Threads {
    all: Vec::new(),
    free: Vec::new(),
});

/// Those of a thread that ends, when it has no others any more; and where a request is
/// until it is completed.
static LAST: Callbacks = Callbacks::new();

thread_local! {
    static OWN: Own = Own::new();
}

struct Own(&'static Callbacks);

impl Own {
    fn new() -> Self {
        let mut threads = lock(&THREADS);
        Self(threads.free.pop().unwrap_or_else(|| {
            let callbacks = Box::leak(Box::default());
            threads.all.push(callbacks);
            callbacks
        }))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if is_copy() {
            return;
        }
        lock(&THREADS).free.push(self.0);
    }
}
