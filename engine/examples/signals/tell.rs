//! Requests, and the signals that tell of their completions.

use std::{
    collections::HashSet,
    fmt::Display,
    io::Write,
    thread,
    time::{Duration, Instant},
};

use uaio::{Completion, Context, Errno, File, Notify, Op, capabilities};

use crate::system::{Signalfd, block, catch, caught, caught_each, limit_pending, thread_id};

/// As many as are read back at the end without ado.
pub(crate) const MOST: u64 = 1 << 16;
/// How many are under way at a time.
const ROOM: usize = 64;
/// How many signals may be pending in the last part.
const PENDING: u64 = 4;
/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 512;

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) completions: u64,
    pub(crate) signals: u64,
    /// How often a request was refused, since others had not told yet.
    pub(crate) no_room: u64,
}

pub(crate) struct Report {
    pub(crate) kinds: Vec<(&'static str, Counts)>,
}

pub(crate) fn run(requests: u64) -> Result<Report, String> {
    let [caught, threads, limited] = [0, 1, 2].map(|n| libc::SIGRTMIN() + n);
    for signo in [caught, threads, limited] {
        block(signo, true);
    }
    let mut file = tempfile::tempfile().map_err(text)?;
    for n in 0..requests {
        file.write_all(&block_of(n)).map_err(text)?;
    }
    let file = File::new(file).map_err(|unfit| unfit.to_string())?;

    let mut kinds = vec![(
        "to the process, caught by a handler",
        caught_by_a_handler(&file, requests, caught)?,
    )];
    if capabilities().thread_signals {
        let counts = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let notify = Notify::signal(threads, 0).and_then(|to| to.to_thread(thread_id()));
                read_from_a_signalfd(&file, requests, threads, &notify.map_err(text)?)
            });
            reader.join().unwrap_or_else(|_| Err("a panic".into()))
        })?;
        kinds.push(("to a thread, read from a signalfd", counts));
    }
    limit_pending(PENDING).map_err(text)?;
    let notify = Notify::signal(limited, 0).map_err(text)?;
    kinds.push((
        "to the process, with at most 4 pending",
        read_from_a_signalfd(&file, requests, limited, &notify)?,
    ));
    Ok(Report { kinds })
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn block_of(n: u64) -> [u8; BLOCK] {
    [(n % 251) as u8; BLOCK]
}

/// Requests, of which so many are to be submitted and taken out.
struct Requests<'f> {
    context: Context,
    file: &'f File,
    notify: Notify,
    next: u64,
    all: u64,
    counts: Counts,
    /// Whose completion was taken out.
    done: HashSet<u64>,
    begun: Instant,
}

impl<'f> Requests<'f> {
    fn new(file: &'f File, all: u64, notify: &Notify) -> Result<Self, String> {
        Ok(Self {
            context: Context::new(ROOM).map_err(text)?,
            file,
            notify: notify.clone(),
            next: 0,
            all,
            counts: Counts::default(),
            done: HashSet::new(),
            begun: Instant::now(),
        })
    }

    /// Submits as many as there is room for.
    fn submit(&mut self) -> Result<(), String> {
        while self.next < self.all {
            let n = self.next;
            let mut read = Op::pread(self.file, vec![0; BLOCK], n * BLOCK as u64).data(n);
            // Half of them by a worker.
            if n % 2 == 1 {
                read = read.offload();
            }
            match (self.context).submit(&mut [read.notify(&self.notify.value(n))]) {
                Ok(_) => self.next += 1,
                Err(Errno::EAGAIN) => {
                    self.counts.no_room += 1;
                    break;
                }
                Err(errno) => return Err(text(errno)),
            }
        }
        Ok(())
    }

    /// Takes out what is there.
    fn reap(&mut self) -> Result<(), String> {
        let mut events = Vec::new();
        (self.context.getevents(0, ROOM, None, &mut events)).map_err(text)?;
        for Completion {
            data, result, op, ..
        } in events
        {
            if result != Ok(BLOCK) || op.into_buf() != block_of(data) || !self.done.insert(data) {
                return Err(format!("the completion of request {data} is wrong"));
            }
            self.counts.completions += 1;
        }
        if self.begun.elapsed() > PATIENCE {
            return Err(format!("not done after {PATIENCE:?}: {:?}", self.counts));
        }
        Ok(())
    }
}

fn caught_by_a_handler(file: &File, all: u64, signo: i32) -> Result<Counts, String> {
    catch(signo).map_err(text)?;
    block(signo, false);
    let notify = Notify::signal(signo, 0).map_err(text)?;
    let mut requests = Requests::new(file, all, &notify)?;
    while requests.counts.completions < all || caught().map_err(text)? < all {
        requests.submit()?;
        requests.reap()?;
    }
    block(signo, true);
    requests.counts.signals = caught().map_err(text)?;
    match caught_each(all) {
        Ok(true) => Ok(requests.counts),
        Ok(false) => Err(format!("wrong signals: {:?}", requests.counts)),
        Err(error) => Err(text(error)),
    }
}

fn read_from_a_signalfd(
    file: &File,
    all: u64,
    signo: i32,
    notify: &Notify,
) -> Result<Counts, String> {
    let signals = Signalfd::new(signo).map_err(text)?;
    let mut requests = Requests::new(file, all, notify)?;
    let mut told = HashSet::new();
    while requests.counts.completions < all || requests.counts.signals < all {
        requests.submit()?;
        let values = signals.read(Duration::from_millis(200)).map_err(text)?;
        requests.reap()?;
        for value in values {
            if !requests.done.contains(&value) {
                return Err(format!("told of request {value} before its completion"));
            }
            if !told.insert(value) {
                return Err(format!("told of request {value} again"));
            }
            requests.counts.signals += 1;
        }
    }
    Ok(requests.counts)
}
