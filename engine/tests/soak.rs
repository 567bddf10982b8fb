//! A thousand descriptors at once: each request completes exactly once and tells the
//! truth, whatever becomes of its descriptor, and nothing is left behind. Alone in its
//! process, which it counts.
//!
//! UAIO_SOAK_SECONDS says how long; it takes longer until everything it is to see has
//! occurred often enough.
//!
//! A round is a context and its pairs. It has epochs: one thread submits, reaps and
//! replaces pairs, while others play the peers, cancel, and sometimes reap. At the end
//! of an epoch only the first is left. Then no request may wait for what is there.
#![cfg(not(any(loom, shuttle)))]

mod common;
#[path = "soak/pair.rs"]
mod pair;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::{HashMap, HashSet, VecDeque},
    env, fs, mem,
    net::TcpListener,
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicIsize, AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use common::Rng;
use pair::{Act, Fate, HANG, Pair, Pattern, ready};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uaio::{Completion, Context, Errno, File, Handle, Op, event};

const PAIRS: usize = 1_000;
/// Those whose file we have dropped, but not the peer.
const FORSAKEN: usize = 100;
const CAPACITY: usize = 4_096;
/// Above this more is cancelled than is submitted.
const CROWDED: usize = 2_500;
/// How often each outcome has to occur.
const LEAST: u64 = 100;
/// By how much longer than it was told to, before it gives up on that.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of an epoch.
const STEPS: usize = 400;
/// Bytes that there may be more at the end than before: libtest's other thread has the
/// same heap, and looks at the clock after a minute.
const SLACK: isize = 1 << 10;

/// Counts the bytes that are allocated.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: the system's allocator, and a number.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let place = unsafe { System.alloc(layout) };
        if !place.is_null() {
            LIVE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        }
        place
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

#[derive(Clone, Copy, Debug)]
enum Outcome {
    PollReady,
    PollHungUp,
    ReadBytes,
    ReadEnd,
    Written,
    Broken,
    FileRead,
    Cancelled,
    CancelAsked,
    CancelledWhileTried,
    CancelLate,
    TimedOut,
    WithinLimit,
    AfterClose,
    Driven,
    OtherReaper,
    Audited,
    Submitted,
}

const OUTCOMES: [(&str, u64); 18] = [
    ("poll ready", LEAST),
    ("poll error or hangup", LEAST),
    ("read bytes", LEAST),
    ("read the end", LEAST),
    ("written", LEAST),
    ("EPIPE, ECONNRESET and the like", LEAST),
    ("regular file read by a worker", LEAST),
    ("cancelled", LEAST),
    // Met in the act: seldom.
    ("a cancel met it being carried out", 0),
    ("which ended it", 0),
    ("a cancel came late", LEAST),
    ("timed out", LEAST),
    ("done within its limit", LEAST),
    ("accounted for after its file was dropped", LEAST),
    ("read while nobody reaped", LEAST),
    ("taken out by another reaper", LEAST),
    ("pairs whose streams added up", LEAST),
    ("requests in all", LEAST),
];

#[derive(Debug, Default)]
struct Tally([AtomicU64; OUTCOMES.len()]);

impl Tally {
    fn add(&self, outcome: Outcome, n: u64) {
        self.0[outcome as usize].fetch_add(n, Ordering::Relaxed);
    }

    fn rows(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        (OUTCOMES.iter().zip(&self.0))
            .map(|(&(name, least), n)| (name, least, n.load(Ordering::Relaxed)))
    }

    fn is_enough(&self) -> bool {
        self.rows().all(|(_, least, n)| n >= least)
    }
}

/// A request under way.
#[derive(Debug)]
struct Request {
    serial: u64,
    /// Once `submit` has returned.
    handle: Option<Handle>,
    what: What,
    deadline: Option<Instant>,
    /// Somebody is about to cancel it, or has.
    cancel: bool,
}

#[derive(Clone, Debug)]
enum What {
    On(Arc<Pair>, Act),
    /// From a regular file.
    File {
        offset: usize,
        length: usize,
    },
    FilePoll,
    Nothing,
}

/// The requests under way.
#[derive(Debug, Default)]
struct Table {
    requests: Vec<Request>,
    places: HashMap<u64, usize>,
    /// The last ones, of which some are over.
    recent: VecDeque<(u64, Handle)>,
}

impl Table {
    fn insert(&mut self, request: Request) {
        self.places.insert(request.serial, self.requests.len());
        self.requests.push(request);
    }

    fn get(&mut self, serial: u64) -> Option<&mut Request> {
        let place = *self.places.get(&serial)?;
        Some(&mut self.requests[place])
    }

    fn remove(&mut self, serial: u64) -> Option<Request> {
        let place = self.places.remove(&serial)?;
        let request = self.requests.swap_remove(place);
        if let Some(moved) = self.requests.get(place) {
            self.places.insert(moved.serial, place);
        }
        Some(request)
    }

    /// Whom to cancel.
    fn choose(&mut self, rng: &mut Rng) -> Option<(u64, Handle)> {
        let (serial, handle) = match rng.below(8) {
            0 if !self.recent.is_empty() => self.recent[rng.below(self.recent.len())],
            _ if self.requests.is_empty() => return None,
            _ => {
                let request = &self.requests[rng.below(self.requests.len())];
                (request.serial, request.handle?)
            }
        };
        if let Some(request) = self.get(serial) {
            request.cancel = true;
        }
        Some((serial, handle))
    }
}

/// What cancelling came to.
#[derive(Debug, Default)]
struct Cancels {
    /// The canceller was told that it ended them.
    ended: HashSet<u64>,
    /// That somebody was asked to.
    asked: HashSet<u64>,
    /// Completed so.
    cancelled: HashSet<u64>,
}

struct Round<'t> {
    context: Context,
    pattern: Pattern,
    regular: File,
    length: usize,
    pairs: Mutex<Vec<Arc<Pair>>>,
    /// Requests that are under way are all that keeps their files open.
    forsaken: Mutex<VecDeque<Arc<Pair>>>,
    table: Mutex<Table>,
    cancels: Mutex<Cancels>,
    destroyed: AtomicBool,
    stop: AtomicBool,
    tally: &'t Tally,
}

/// The one that submits.
struct Submitter<'r> {
    round: &'r Round<'r>,
    rng: Rng,
    listener: TcpListener,
    /// Ours, of each pair.
    files: Vec<File>,
    serial: u64,
    pairs_made: u64,
    /// Requests are to read all there is, and to wait for more.
    thirsty: bool,
}

/// Also when the submitter fails, the others are to end.
struct StopAtEnd<'s>(&'s AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Round<'_> {
    fn cancel(&self, serial: u64, handle: Handle) {
        let answer = self.context.cancel(handle);
        let mut cancels = self.cancels.lock().unwrap();
        match answer {
            Ok(()) => assert!(cancels.ended.insert(serial), "{serial} ended twice"),
            Err(Errno::EINPROGRESS) => {
                assert!(cancels.asked.insert(serial), "{serial} asked twice");
                self.tally.add(Outcome::CancelAsked, 1);
            }
            Err(Errno::EALREADY | Errno::ENOENT) => self.tally.add(Outcome::CancelLate, 1),
            Err(errno) => panic!("{errno}"),
        }
    }

    fn cancel_some(&self, rng: &mut Rng) {
        let chosen = self.table.lock().unwrap().choose(rng);
        if let Some((serial, handle)) = chosen {
            self.cancel(serial, handle);
        }
    }

    fn account(&self, done: Completion) {
        let now = Instant::now();
        let removed = self.table.lock().unwrap().remove(done.data);
        let Some(request) = removed else {
            panic!("{} completed twice, or was never made", done.data);
        };
        assert!(request.handle.is_none_or(|handle| handle == done.handle));
        let outcome = match done.result {
            Err(Errno::ECANCELED) => {
                assert!(request.cancel || self.destroyed.load(Ordering::Relaxed));
                let mut cancels = self.cancels.lock().unwrap();
                assert!(cancels.cancelled.insert(request.serial));
                Outcome::Cancelled
            }
            Err(Errno::ETIME) => {
                assert!(request.deadline.is_some_and(|deadline| deadline <= now));
                Outcome::TimedOut
            }
            result => {
                if request.deadline.is_some() {
                    self.tally.add(Outcome::WithinLimit, 1);
                }
                match &request.what {
                    What::Nothing => {
                        assert_eq!(result, Ok(0));
                        Outcome::FileRead
                    }
                    What::FilePoll => {
                        let events = event::IN | event::OUT;
                        assert_eq!(result, Ok(events.into()));
                        Outcome::PollReady
                    }
                    &What::File { offset, length } => {
                        assert_eq!(result, Ok(length));
                        let expected = pair::regular_bytes(&self.pattern, offset, length);
                        assert!(done.op.into_buf() == expected);
                        Outcome::FileRead
                    }
                    What::On(pair, act) => match pair.check(&self.pattern, *act, result, done.op) {
                        Fate::Ready => Outcome::PollReady,
                        Fate::HungUp => Outcome::PollHungUp,
                        Fate::Read => Outcome::ReadBytes,
                        Fate::End => Outcome::ReadEnd,
                        Fate::Written => Outcome::Written,
                        Fate::Broken => Outcome::Broken,
                    },
                }
            }
        };
        self.tally.add(outcome, 1);
        if let What::On(pair, act) = &request.what
            && pair.finish(*act)
        {
            self.tally.add(Outcome::AfterClose, 1);
        }
    }

    /// Takes out completions and accounts for them.
    fn reap(&self, least: usize, most: usize, time: Duration) -> usize {
        let mut events = Vec::new();
        let got = self.context.getevents(least, most, Some(time), &mut events);
        assert_eq!(got, Ok(events.len()));
        for done in events.drain(..) {
            self.account(done);
        }
        got.unwrap()
    }

    fn play_the_peers(&self, mut rng: Rng) {
        while !self.stop.load(Ordering::Relaxed) {
            for _ in 0..16 {
                let pair = match rng.below(16) {
                    0 => {
                        let forsaken = self.forsaken.lock().unwrap();
                        let Some(last) = forsaken.len().checked_sub(1) else {
                            continue;
                        };
                        Arc::clone(&forsaken[rng.below(last + 1)])
                    }
                    _ => Arc::clone(&self.pairs.lock().unwrap()[rng.below(PAIRS)]),
                };
                pair.disturb(&mut rng, &self.pattern);
            }
            // Leaves something of the machine to others.
            thread::sleep(Duration::from_micros(50));
        }
    }

    fn play_the_canceller(&self, mut rng: Rng, told: &Receiver<()>) {
        while told.recv().is_ok() {
            self.cancel_some(&mut rng);
        }
    }

    fn play_a_reaper(&self, mut rng: Rng) {
        while !self.stop.load(Ordering::Relaxed) {
            let most = 1 + rng.below(64);
            let got = self.reap(1, most, Duration::from_micros(rng.below(3000) as u64));
            self.tally.add(Outcome::OtherReaper, got as u64);
        }
    }
}

impl Submitter<'_> {
    fn pair(&mut self) -> (Arc<Pair>, File) {
        self.pairs_made += 1;
        let (pair, file) = Pair::new(&mut self.rng, &self.listener, self.pairs_made);
        (Arc::new(pair), file)
    }

    /// Puts a new pair in the place of one.
    fn replace(&mut self, index: usize) {
        let (pair, file) = self.pair();
        let old_file = mem::replace(&mut self.files[index], file);
        let old = mem::replace(&mut self.round.pairs.lock().unwrap()[index], pair);
        old.forsake();
        if old.requests() == 0 {
            self.audit(&old, &old_file);
            return;
        }
        drop(old_file);
        let mut forsaken = self.round.forsaken.lock().unwrap();
        forsaken.retain(|pair| pair.requests() > 0 && !pair.is_closed());
        if forsaken.len() == FORSAKEN
            && let Some(oldest) = forsaken.pop_front()
        {
            oldest.close_peer();
        }
        forsaken.push_back(old);
    }

    fn audit(&self, pair: &Pair, file: &File) {
        if pair.audit(&self.round.pattern, file) {
            self.round.tally.add(Outcome::Audited, 1);
        }
    }

    fn request(&mut self) -> (What, Op) {
        let rng = &mut self.rng;
        let round = self.round;
        match rng.below(32) {
            0 => {
                let length = 1 + rng.below(4096);
                let offset = rng.below(round.length - length);
                let op = Op::pread(&round.regular, vec![0; length], offset as u64).offload();
                (What::File { offset, length }, op)
            }
            1 if rng.below(4) == 0 => (
                What::FilePoll,
                Op::poll(&round.regular, event::IN | event::OUT),
            ),
            2 if rng.below(4) == 0 => (What::Nothing, Op::nop().offload()),
            _ => {
                let index = rng.below(PAIRS);
                let pair = Arc::clone(&round.pairs.lock().unwrap()[index]);
                let file = &self.files[index];
                let (act, op) = pair.request(rng, &round.pattern, file, self.thirsty);
                (What::On(pair, act), op)
            }
        }
    }

    fn submit(&mut self) {
        let round = self.round;
        let mut ops = Vec::new();
        let first = self.serial;
        for _ in 0..1 + self.rng.below(16) {
            let (what, mut op) = self.request();
            let limit = match self.rng.below(32) {
                0 => Some(Duration::ZERO),
                1..8 => Some(Duration::from_micros(self.rng.below(50_000) as u64)),
                _ => None,
            };
            if let Some(limit) = limit {
                op = op.with_timeout(limit);
            }
            round.table.lock().unwrap().insert(Request {
                serial: self.serial,
                handle: None,
                what,
                deadline: limit.map(|limit| Instant::now() + limit),
                cancel: false,
            });
            ops.push(op.data(self.serial));
            self.serial += 1;
        }
        let accepted = match round.context.submit(&mut ops) {
            Ok(accepted) => accepted,
            // There is no room.
            Err(Errno::EAGAIN) => 0,
            Err(errno) => panic!("{errno}"),
        };
        round.tally.add(Outcome::Submitted, accepted as u64);
        let mut table = round.table.lock().unwrap();
        for (n, op) in ops.iter().enumerate() {
            let serial = first + n as u64;
            if n < accepted {
                let handle = op.handle().unwrap();
                // Perhaps somebody has reaped it.
                if let Some(request) = table.get(serial) {
                    request.handle = Some(handle);
                }
                table.recent.push_back((serial, handle));
            } else {
                assert!(op.handle().is_none());
                let request = table.remove(serial).unwrap();
                if let What::On(pair, act) = request.what {
                    pair.finish(act);
                }
            }
        }
        while table.recent.len() > 64 {
            table.recent.pop_front();
        }
    }

    /// As long as the others make noise.
    fn steps(&mut self, alone: bool, canceller: &Sender<()>) {
        let round = self.round;
        for _ in 0..STEPS {
            self.submit();
            match self.rng.below(8) {
                0..2 => round.cancel_some(&mut self.rng),
                2..6 => canceller.send(()).unwrap(),
                _ => {}
            }
            for _ in 0..2 {
                let index = self.rng.below(PAIRS);
                let closed = round.pairs.lock().unwrap()[index].is_closed();
                if self.rng.below(if closed { 32 } else { 64 }) == 0 {
                    self.replace(index);
                }
            }
            if alone {
                let least = self.rng.below(8);
                let time = Duration::from_micros(self.rng.below(1000) as u64);
                round.reap(least, 64, time);
            }
            while round.table.lock().unwrap().requests.len() > CROWDED {
                for _ in 0..32 {
                    round.cancel_some(&mut self.rng);
                }
                round.reap(1, 64, Duration::from_millis(1));
            }
        }
    }

    /// Nobody reaps, for a while.
    fn pause(&mut self, canceller: &Sender<()>) {
        let round = self.round;
        self.thirsty = true;
        for _ in 0..64 {
            self.submit();
            while round.reap(0, 64, Duration::ZERO) > 0 {}
        }
        self.thirsty = false;
        canceller.send(()).unwrap();
        let pairs = round.pairs.lock().unwrap().clone();
        let waiting: Vec<_> = (pairs.iter().zip(&self.files))
            .filter(|(pair, _)| pair.reader_waits())
            .collect();
        thread::sleep(Duration::from_millis(20 + self.rng.below(30) as u64));
        let driven = (waiting.iter())
            .filter(|(pair, file)| pair.was_read(file))
            .count();
        round.tally.add(Outcome::Driven, driven as u64);
        while round.reap(0, 64, Duration::ZERO) > 0 {}
    }

    /// All are quiet. What can be done is done, without anything new to set it going.
    fn settle(&mut self) {
        let round = self.round;
        loop {
            let due = self.due();
            if due.is_empty() {
                break;
            }
            let got = round.reap(1, CAPACITY, HANG);
            assert!(got > 0, "forgotten: {due:#?}");
        }
        let mut cancels = round.cancels.lock().unwrap();
        let Cancels {
            ended,
            asked,
            cancelled,
        } = &mut *cancels;
        let mut tried = 0;
        for serial in cancelled.drain() {
            if !ended.remove(&serial) {
                assert!(asked.contains(&serial), "{serial} was not cancelled by us");
                tried += 1;
            }
        }
        round.tally.add(Outcome::CancelledWhileTried, tried);
        // What was ended is complete, and was due.
        assert!(ended.is_empty(), "no ECANCELED: {ended:?}");
        asked.clear();
    }

    /// The requests that have something to end them.
    fn due(&self) -> Vec<String> {
        let round = self.round;
        let now = Instant::now();
        let cancels = round.cancels.lock().unwrap();
        (round.table.lock().unwrap().requests.iter())
            .filter(|request| {
                let serial = &request.serial;
                request.deadline.is_some_and(|deadline| deadline <= now)
                    || cancels.ended.contains(serial)
                    || cancels.asked.contains(serial)
                    || match &request.what {
                        What::On(pair, act) => {
                            // SAFETY: a request under way keeps its descriptor open, and
                            // nobody else reaps now.
                            let fd = unsafe { BorrowedFd::borrow_raw(pair.number) };
                            ready(fd, act.events(), Duration::ZERO) != 0
                        }
                        What::File { .. } | What::FilePoll | What::Nothing => true,
                    }
            })
            .map(|request| format!("{request:?}"))
            .collect()
    }

    fn epoch(&mut self) {
        let round = self.round;
        let reapers = match self.rng.below(3) {
            0 => 1 + self.rng.below(3),
            _ => 0,
        };
        round.stop.store(false, Ordering::Relaxed);
        thread::scope(|scope| {
            let _stop = StopAtEnd(&round.stop);
            let rng = self.rng.fork();
            scope.spawn(move || round.play_the_peers(rng));
            let rng = self.rng.fork();
            let (canceller, told) = mpsc::channel();
            scope.spawn(move || round.play_the_canceller(rng, &told));
            for _ in 0..reapers {
                let rng = self.rng.fork();
                scope.spawn(move || round.play_a_reaper(rng));
            }
            self.steps(reapers == 0, &canceller);
            if reapers == 0 {
                for _ in 0..2 {
                    self.pause(&canceller);
                }
            }
        });
        self.settle();
    }
}

fn round(rng: &mut Rng, time: Duration, tally: &Tally, to_the_end: bool) {
    let begun = Instant::now();
    let pattern = Pattern::new(rng);
    let (regular, length) = pair::regular(&pattern);
    let round = Round {
        context: Context::builder(CAPACITY).workers(1..=3).build().unwrap(),
        pattern,
        regular,
        length,
        pairs: Mutex::default(),
        forsaken: Mutex::default(),
        table: Mutex::default(),
        cancels: Mutex::default(),
        destroyed: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        tally,
    };
    let mut submitter = Submitter {
        round: &round,
        rng: rng.fork(),
        listener: TcpListener::bind("127.0.0.1:0").unwrap(),
        files: Vec::new(),
        serial: 0,
        pairs_made: 0,
        thirsty: false,
    };
    for _ in 0..PAIRS {
        let (pair, file) = submitter.pair();
        round.pairs.lock().unwrap().push(pair);
        submitter.files.push(file);
    }
    let enough = || !to_the_end || tally.is_enough() || begun.elapsed() >= time + PATIENCE;
    while begun.elapsed() < time || !enough() {
        submitter.epoch();
    }
    if to_the_end {
        let left: Vec<_> = {
            let mut table = round.table.lock().unwrap();
            let mark = |request: &mut Request| {
                request.cancel = true;
                (request.serial, request.handle.unwrap())
            };
            table.requests.iter_mut().map(mark).collect()
        };
        for (serial, handle) in left {
            round.cancel(serial, handle);
        }
        submitter.settle();
    } else {
        // With what is under way.
        round.destroyed.store(true, Ordering::Relaxed);
        round.context.destroy();
        let mut events = Vec::new();
        let got = round.context.getevents(0, CAPACITY, None, &mut events);
        assert!(got == Ok(events.len()) || got == Err(Errno::EINVAL));
        for done in events {
            round.account(done);
        }
    }
    let table = round.table.lock().unwrap();
    assert!(table.requests.is_empty(), "lost: {:#?}", table.requests);
    drop(table);
    let last = round.context.getevents(0, 1, None, &mut Vec::new());
    assert!(matches!(last, Ok(0) | Err(Errno::EINVAL)), "more than once");
    let pairs = round.pairs.lock().unwrap();
    for (pair, file) in pairs.iter().zip(&submitter.files) {
        submitter.audit(pair, file);
    }
    round.context.destroy();
}

/// Raises the limit of descriptors for all this needs.
fn make_room() {
    const NEEDED: u64 = 2 * (PAIRS + FORSAKEN) as u64 + 400;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= NEEDED) {
        return;
    }
    assert!(
        maximum.is_none_or(|maximum| maximum >= NEEDED),
        "this test needs {NEEDED} descriptors, and the hard limit is {maximum:?} (ulimit -Hn)"
    );
    let raised = Rlimit {
        current: maximum.or(Some(NEEDED)),
        maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

fn count(directory: &str) -> usize {
    fs::read_dir(directory).unwrap().count()
}

fn fds_and_threads() -> (usize, usize) {
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// A thread that was joined may be in sight a moment longer.
fn assert_left_nothing(before: (usize, usize)) {
    for _ in 0..100 {
        if fds_and_threads() == before {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(fds_and_threads(), before);
}

#[test]
fn a_thousand_descriptors_lose_nothing_and_leave_nothing_behind() {
    let mut rng = Rng::seeded();
    make_room();
    let seconds = match env::var("UAIO_SOAK_SECONDS") {
        Ok(seconds) => seconds.parse().expect("UAIO_SOAK_SECONDS is a number"),
        Err(_) => 5,
    };
    let time = Duration::from_secs(seconds);
    let before = fds_and_threads();

    round(&mut rng, time / 5, &Tally::default(), false);
    assert_left_nothing(before);
    let live = LIVE.load(Ordering::Relaxed);

    let tally = Tally::default();
    round(&mut rng, time - time / 5, &tally, true);
    assert_left_nothing(before);
    // Before anything is printed, which libtest may keep.
    let more = LIVE.load(Ordering::Relaxed) - live;
    for (name, _, n) in tally.rows() {
        println!("{n:>10}  {name}");
    }
    println!("{more:>10}  bytes of the heap more than before");
    assert!(more <= SLACK, "{more} bytes are left");
    for (name, least, n) in tally.rows() {
        assert!(n >= least, "{name}: {n} times");
    }
}
