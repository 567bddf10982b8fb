//! Cancelling what a worker is carrying out.
//!
//! What waits for somebody else in a system call (opening a FIFO does, until there is one at
//! the other end) ends early if a signal is handled by its thread. The embedder grants a
//! number for that. Its handler does nothing, and the call returns EINTR.
//!
//! A signal may come just before the call, and then ends nothing. So it is sent again, after
//! growing waits, until the worker says that it is through: by who drives, as what else
//! is to be tried again; and by who ends the context.
//!
//! A worker lets the signal in, and then puts itself on the list; it takes itself off, and
//! then blocks the signal. It is sent under the lock of the list. So it finds the thread that
//! it is for, which takes it at once, and no system call but those that can bear it.

use std::{
    os::raw::c_int,
    sync::{Arc, Mutex},
};

use rustix::thread::{Pid, gettid};
use uaio_core::{Errno, context::Handle};

use crate::{
    drive::Drive,
    sys::{self, SignalLetIn, lock},
};

/// Whom to interrupt, and by which signal.
#[derive(Debug)]
pub(crate) struct Interrupts {
    signo: Option<c_int>,
    drive: Arc<Drive>,
    workers: Mutex<Vec<Interruptible>>,
}

#[derive(Debug)]
struct Interruptible {
    handle: Handle,
    thread: Pid,
    /// It is to end, and counted as one who has yet to be told.
    asked: bool,
}

/// While a worker carries out what can be interrupted.
pub(crate) struct Entered<'i> {
    interrupts: &'i Interrupts,
    handle: Handle,
    /// Dropped after this has taken itself off the list.
    _let_in: SignalLetIn,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut workers = lock(&self.interrupts.workers);
        let own = workers.iter().position(|it| it.handle == self.handle);
        if own.is_some_and(|own| workers.swap_remove(own).asked) {
            self.interrupts.drive.told();
        }
    }
}

impl Interrupts {
    /// # Errors
    ///
    /// EINVAL: it is no real-time signal. EBUSY: somebody handles it.
    pub(crate) fn new(signo: Option<c_int>, drive: &Arc<Drive>) -> Result<Self, Errno> {
        signo.map_or(Ok(()), sys::handle_by_nothing)?;
        Ok(Self {
            signo,
            drive: Arc::clone(drive),
            workers: Mutex::default(),
        })
    }

    /// For the worker that carries this out. Who asks it to end before this has returned
    /// may not interrupt it: it is to be looked for after that. `None`: nobody can.
    pub(crate) fn enter(&self, handle: Handle) -> Option<Entered<'_>> {
        let let_in = SignalLetIn::new(self.signo?);
        lock(&self.workers).push(Interruptible {
            handle,
            thread: gettid(),
            asked: false,
        });
        Some(Entered {
            interrupts: self,
            handle,
            _let_in: let_in,
        })
    }

    /// Interrupts who carries this out, until that is over. Tells whether there is somebody,
    /// so that somebody has to drive.
    pub(crate) fn interrupt(&self, handle: Handle) -> bool {
        let mut workers = lock(&self.workers);
        let Some(worker) = workers.iter_mut().find(|it| it.handle == handle) else {
            return false;
        };
        // Before the worker can take it back.
        if !worker.asked {
            worker.asked = true;
            self.drive.untold();
        }
        self.send(worker);
        true
    }

    /// Interrupts once more who was asked to end.
    pub(crate) fn again(&self) {
        let workers = lock(&self.workers);
        let asked = workers.iter().filter(|it| it.asked);
        asked.for_each(|worker| self.send(worker));
    }

    /// Interrupts all, at the end. Tells whether there is any.
    pub(crate) fn all(&self) -> bool {
        let workers = lock(&self.workers);
        workers.iter().for_each(|worker| self.send(worker));
        !workers.is_empty()
    }

    fn send(&self, worker: &Interruptible) {
        if let Some(signo) = self.signo {
            // It is there. If there is no room for a signal: the next time.
            let _ = sys::tgkill(worker.thread, signo);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::PathBuf,
        thread,
        time::{Duration, Instant},
    };

    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use uaio_core::request::Phase;

    use super::*;
    use crate::{Context, Op, flag};

    /// What takes so long does not end.
    const LIMIT: Duration = Duration::from_secs(20);

    struct Fifo(tempfile::TempDir);

    impl Fifo {
        fn new() -> Self {
            let this = Self(tempfile::tempdir().unwrap());
            mknodat(CWD, this.path(), FileType::Fifo, Mode::RWXU, 0).unwrap();
            this
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("fifo")
        }
    }

    fn context(workers: usize) -> Context {
        Context::builder(8)
            .workers(1..=workers)
            .interrupt_by(libc::SIGRTMIN() + 3)
            .build()
            .unwrap()
    }

    /// Submits one that opens it, and waits until a worker does, or is about to.
    fn open(context: &Context, fifo: &Fifo) -> Handle {
        submit(context, Op::openat(None, fifo.path(), flag::O_RDONLY, 0))
    }

    fn submit(context: &Context, op: Op) -> Handle {
        let mut ops = [op];
        assert_eq!(context.submit(&mut ops), Ok(1));
        let handle = ops[0].handle().unwrap();
        while phase(context, handle) == Some(Phase::Armed) {
            thread::yield_now();
        }
        handle
    }

    fn phase(context: &Context, handle: Handle) -> Option<Phase> {
        context.pool().core.phase(handle)
    }

    fn result(context: &Context) -> Result<usize, Errno> {
        let mut events = Vec::new();
        let got = context.getevents(1, 1, Some(LIMIT), &mut events);
        assert_eq!(got, Ok(1), "not ended");
        events[0].result
    }

    /// Wherever it is on its way into the system call.
    #[test]
    fn a_cancel_ends_what_waits_for_somebody_else() {
        let (context, fifo) = (context(1), Fifo::new());
        for n in 0..500 {
            let handle = open(&context, &fifo);
            for _ in 0..n * 20 {
                std::hint::spin_loop();
            }
            assert_eq!(context.cancel(handle), Err(Errno::EINPROGRESS));
            if n % 2 == 0 {
                // Nobody reaps: there is who drives.
                let start = Instant::now();
                while phase(&context, handle) != Some(Phase::Claimed) {
                    assert!(start.elapsed() < LIMIT, "not ended");
                    thread::sleep(Duration::from_micros(50));
                }
            }
            assert_eq!(result(&context), Err(Errno::ECANCELED));
            assert!(lock(&context.pool().interrupts.workers).is_empty());
        }
    }

    /// Between the worker's look whether it is to end and the system call.
    #[test]
    fn a_signal_that_comes_too_early_is_sent_again() {
        let fifo = Fifo::new();
        for n in 0..30 {
            let context = context(1);
            let late = Op::open_late(fifo.path(), Duration::from_millis(n % 10));
            let handle = submit(&context, late);
            let workers = &context.pool().interrupts.workers;
            while lock(workers).is_empty() {
                thread::yield_now();
            }
            if n < 20 {
                assert_eq!(context.cancel(handle), Err(Errno::EINPROGRESS));
            }
            let start = Instant::now();
            while n < 10 && phase(&context, handle) != Some(Phase::Claimed) {
                assert!(start.elapsed() < LIMIT, "not ended");
                thread::sleep(Duration::from_micros(50));
            }
            if n >= 20 {
                context.destroy();
            }
            assert_eq!(result(&context), Err(Errno::ECANCELED));
        }
    }

    #[test]
    fn the_end_does_not_wait_for_somebody_else() {
        let fifo = Fifo::new();
        for n in 0..100 {
            let context = context(2);
            let asked = open(&context, &fifo);
            if n % 2 == 0 {
                assert_eq!(context.cancel(asked), Err(Errno::EINPROGRESS));
            }
            open(&context, &fifo);
            context.destroy();
            assert_eq!(result(&context), Err(Errno::ECANCELED));
            assert_eq!(result(&context), Err(Errno::ECANCELED));
        }
    }

    /// What happened is told, whoever was faster.
    #[test]
    fn who_opens_and_who_cancels() {
        let (context, fifo) = (context(1), Fifo::new());
        let (mut opened, mut cancelled) = (0, 0);
        let start = Instant::now();
        while (opened == 0 || cancelled == 0 || opened + cancelled < 200) && start.elapsed() < LIMIT
        {
            let handle = open(&context, &fifo);
            let path = fifo.path();
            let other = thread::spawn(move || fs::File::options().write(true).open(path));
            if opened <= cancelled {
                thread::sleep(Duration::from_micros(100));
            }
            let _ = context.cancel(handle);
            match result(&context) {
                Ok(_) => opened += 1,
                ended => {
                    assert_eq!(ended, Err(Errno::ECANCELED));
                    cancelled += 1;
                }
            }
            // The other one may wait still.
            let _both = fs::File::options().read(true).write(true).open(fifo.path());
            other.join().unwrap().unwrap();
        }
        assert!(opened > 0 && cancelled > 0, "{opened} and {cancelled}");
    }

    #[test]
    fn a_signal_that_nobody_asked_for_ends_nothing() {
        let (context, fifo) = (context(1), Fifo::new());
        let handle = open(&context, &fifo);
        let interrupts = &context.pool().interrupts;
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(1));
            lock(&interrupts.workers)
                .iter()
                .for_each(|it| interrupts.send(it));
        }
        assert_eq!(phase(&context, handle), Some(Phase::Running));
        drop(fs::File::options().write(true).open(fifo.path()).unwrap());
        assert!(result(&context).is_ok());
    }

    #[test]
    fn only_a_signal_that_is_free_can_be_granted() {
        let by = |signo| Context::builder(1).interrupt_by(signo).build();
        for signo in [-1, 0, libc::SIGTERM, 31, 32, libc::SIGRTMAX() + 1] {
            assert_eq!(by(signo).unwrap_err(), Errno::EINVAL, "{signo}");
        }
        // Any number of contexts.
        let (first, second) = (by(libc::SIGRTMIN() + 4), by(libc::SIGRTMIN() + 4));
        assert!(first.is_ok() && second.is_ok());
        let taken = libc::SIGRTMIN() + 5;
        // SAFETY: a handler that does nothing.
        unsafe { signal_hook::low_level::register(taken, || {}) }.unwrap();
        assert_eq!(by(taken).unwrap_err().raw(), libc::EBUSY);
    }
}
