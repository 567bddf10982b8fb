//! A disk in memory, as an embedder would write it on uaio-core: the core decides
//! who ends a request and who wakes; the disk brings its blocks, its waker and its
//! status register.

use std::{
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use uaio_core::{
    Errno,
    context::{BoxedContext, Cancelled, Completion, Handle},
    slots::Iocb,
    sync::{
        atomic::{AtomicBool, AtomicU32, Ordering},
        thread::Parker,
    },
    wait::WaitQueue,
};

/// How a thread sleeps: who rings often pays for one unpark, until it wakes.
#[derive(Debug)]
pub struct Doorbell {
    rung: AtomicBool,
    sleeper: Parker,
}

impl Doorbell {
    /// For the calling thread.
    #[expect(clippy::new_without_default, reason = "it is about the calling thread")]
    pub fn new() -> Self {
        Self {
            rung: AtomicBool::new(false),
            sleeper: Parker::new(),
        }
    }

    /// Ends the present or the next sleep.
    pub fn ring(&self) {
        // Ordering: Release, to the swap in `sleep`: what was said before is heard.
        if !self.rung.swap(true, Ordering::Release) {
            self.sleeper.unpark();
        }
    }

    /// Sleeps until it is rung, unless it was since the last sleep.
    pub fn sleep(&self) {
        // Ordering: Acquire, from the swap in `ring`. One step looks and resets:
        // between two, a ring would be forgotten.
        while !self.rung.swap(false, Ordering::Acquire) {
            self.sleeper.park();
        }
    }
}

impl Wake for Doorbell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

/// Polls `future` and sleeps until it is done.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let bell = Arc::new(Doorbell::new());
    let waker = Waker::from(Arc::clone(&bell));
    let mut task = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut task) {
            Poll::Ready(output) => return output,
            Poll::Pending => bell.sleep(),
        }
    }
}

/// A status register: bits that the device sets, and that others wait for.
#[derive(Debug)]
pub struct Status {
    bits: AtomicU32,
    queue: WaitQueue,
}

impl Status {
    /// No bit is set.
    #[expect(clippy::new_without_default, reason = "const, but under loom")]
    pub fn new() -> Self {
        Self {
            bits: AtomicU32::new(0),
            queue: WaitQueue::new(),
        }
    }

    /// Who waits for a bit.
    pub fn queue(&self) -> &WaitQueue {
        &self.queue
    }

    /// Whether all of `bits` are set.
    pub fn has(&self, bits: u16) -> bool {
        // Ordering: Relaxed; the queue orders it.
        self.bits.load(Ordering::Relaxed) & u32::from(bits) == u32::from(bits)
    }

    /// Sets `bits`, then wakes who waits for them.
    pub fn set(&self, bits: u16) {
        // Ordering: Relaxed; the queue orders it.
        self.bits.fetch_or(bits.into(), Ordering::Relaxed);
        self.queue.wake(bits);
    }
}

/// A block's content.
pub type Block = [u8; 8];

/// A request: to write `content` at `block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where.
    pub block: usize,
    /// What.
    pub content: Block,
}

/// A disk in memory. Drivers submit, cancel and reap; the device's own thread
/// executes.
#[derive(Debug)]
pub struct Disk {
    requests: Pin<Box<BoxedContext<Write>>>,
    blocks: Mutex<Vec<Block>>,
}

impl Disk {
    /// A disk of `blocks` blocks, for as many as `depth` requests at a time.
    ///
    /// # Errors
    ///
    /// EINVAL when `depth` is zero, or too much for a context.
    pub fn new(blocks: usize, depth: usize) -> Result<Self, Errno> {
        Ok(Self {
            requests: Box::pin(BoxedContext::boxed(depth)?),
            blocks: Mutex::new(vec![[0; 8]; blocks]),
        })
    }

    fn blocks(&self) -> MutexGuard<'_, Vec<Block>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a block holds; `None` beyond the last one.
    pub fn content(&self, block: usize) -> Option<Block> {
        self.blocks().get(block).copied()
    }

    /// Submits `write`. Its completion carries `tag`.
    ///
    /// # Errors
    ///
    /// EAGAIN when `depth` requests are not reaped yet.
    pub fn submit(&self, tag: u64, write: Write) -> Result<Handle, Errno> {
        let iocb = Iocb { data: tag, obj: 0 };
        Ok(self.requests.reserve_one()?.fill(iocb, write).arm())
    }

    /// Takes a request back, if the device did not begin with it.
    ///
    /// # Errors
    ///
    /// ENOENT and EALREADY: too late, its completion says what happened.
    pub fn cancel(&self, request: Handle) -> Result<Cancelled, Errno> {
        self.requests.cancel(request)
    }

    /// The device's part: executes a request, unless it was cancelled before.
    pub fn execute(&self, request: Handle) {
        let Ok(mut running) = self.requests.start(request) else {
            return;
        };
        let res = running.with_payload(|write| self.write(write));
        running.complete(res.unwrap_or(Errno::EIO.as_result()), 0);
    }

    fn write(&self, write: &Write) -> i64 {
        match self.blocks().get_mut(write.block) {
            Some(block) => {
                *block = write.content;
                block.len() as i64
            }
            None => Errno::EINVAL.as_result(),
        }
    }

    /// Sleeps until a request is completed, and reaps it.
    ///
    /// # Errors
    ///
    /// As [`uaio_core::Context::wait`].
    pub fn next(&self) -> Result<Completion<Write>, Errno> {
        loop {
            block_on(self.requests.as_ref().wait(1)?)?;
            let mut out = [None];
            self.requests.reap(&mut out)?;
            if let [Some(completion)] = out {
                return Ok(completion);
            }
            // Another driver was faster.
        }
    }
}
