//! The hashing: reads of several files at once, and their results as they come.
//!
//! A file is read in blocks, by requests whose completions come in any order; they are
//! hashed in theirs. Up to the length that the file had when it was opened many are
//! under way at once, and behind it one after the other, up to the end that a read
//! finds. Each file is read once more then, plainly, and has to hash to the same.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs, io,
    io::Read,
    mem,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use uaio::{AsyncFd, Completion, Context, Drained, Errno, File, Op};

use crate::watch::Watch;

const BLOCK: u64 = 64 << 10;
/// How many requests may be under way.
const DEPTH: usize = 256;
/// How many blocks of one file may be under way, or wait for those before them.
const WINDOW: u64 = 64;
/// How many files are read at once.
const AT_ONCE: usize = 8;
/// The ring, and what it is replaced by.
const RINGS: [usize; 3] = [8, 64, 1_024];

/// Why it ended if not well.
pub(crate) enum Failure {
    At(PathBuf, io::Error),
    /// The loop itself.
    Loop(io::Error),
    Signal(u8),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Loop(error)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Loop(errno.into())
    }
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// In the order in which they were named.
    pub(crate) sums: Vec<(PathBuf, String)>,
    pub(crate) bytes: u64,
    /// Of each ring: its size, and how many completions were popped while it was the
    /// present one.
    pub(crate) rings: Vec<(usize, u64)>,
    pub(crate) completions: u64,
    pub(crate) wakeups: u64,
    /// How often a drain had something to move in, though all was popped.
    pub(crate) moved_in: u64,
}

/// A file that is to be read.
pub(crate) struct Input {
    path: PathBuf,
    file: fs::File,
    length: u64,
}

impl Input {
    pub(crate) fn open(path: PathBuf) -> Result<Self, Failure> {
        let open = || {
            let file = fs::OpenOptions::new()
                .read(true)
                // Opening a FIFO would wait for its writer.
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() && !metadata.file_type().is_block_device() {
                let unfit = "neither a regular file nor a block device";
                return Err(io::Error::other(unfit));
            }
            Ok((file, metadata.len()))
        };
        match open() {
            Ok((file, length)) => Ok(Self { path, file, length }),
            Err(error) => Err(Failure::At(path, error)),
        }
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    fn blocks(&self) -> u64 {
        self.length.div_ceil(BLOCK)
    }
}

/// A file that is being read.
struct Reading {
    place: usize,
    path: PathBuf,
    file: File,
    /// Where it ended when it was opened.
    length: u64,
    /// Where the next request starts.
    next: u64,
    under_way: u64,
    /// Read, but not hashed: those before them are under way.
    early: BTreeMap<u64, Vec<u8>>,
    hashed: u64,
    end: bool,
    sum: Sha256,
}

impl Reading {
    fn start(place: usize, input: Input) -> Result<Self, Failure> {
        let Input { path, file, length } = input;
        match File::new(file) {
            Ok(file) => Ok(Self {
                place,
                path,
                file,
                length,
                next: 0,
                under_way: 0,
                early: BTreeMap::new(),
                hashed: 0,
                end: false,
                sum: Sha256::new(),
            }),
            Err(unfit) => Err(Failure::At(path, unfit.into())),
        }
    }

    /// Where and how much to read next, if there is any.
    fn request(&mut self) -> Option<(u64, u64)> {
        let at = self.next;
        let in_front = self.under_way + self.early.len() as u64;
        let block = if at < self.length {
            if in_front >= WINDOW {
                return None;
            }
            BLOCK.min(self.length - at)
        } else {
            // Alone: it may be the end.
            if in_front > 0 || self.end {
                return None;
            }
            BLOCK
        };
        self.next += block;
        self.under_way += 1;
        Some((at, block))
    }

    /// Takes what was read at `at`, and hashes what has its turn.
    fn take(&mut self, at: u64, bytes: Vec<u8>) {
        self.early.insert(at, bytes);
        while let Some(bytes) = self.early.remove(&self.hashed) {
            self.sum.update(&bytes);
            self.hashed += bytes.len() as u64;
        }
    }
}

/// A read that is under way.
struct Pending {
    place: usize,
    at: u64,
    wanted: u64,
}

struct Hasher<'a> {
    context: &'a Context,
    asyncfd: &'a AsyncFd,
    inputs: VecDeque<(usize, Input)>,
    reading: Vec<Reading>,
    /// By their `data`.
    pending: HashMap<u64, Pending>,
    submitted: u64,
    /// Accepted ones leave it.
    ops: Vec<Op>,
    report: Report,
}

pub(crate) fn run(
    watch: &Watch,
    inputs: Vec<Input>,
    mut progress: impl FnMut(u64),
) -> Result<Report, Failure> {
    let context = Context::new(DEPTH)?;
    let asyncfd = context.asyncfd(RINGS[0])?;
    watch.add_results(&asyncfd)?;
    // One more read of each finds its end.
    let expected: u64 = inputs.iter().map(|input| input.blocks() + 1).sum();
    let paths: Vec<_> = inputs.iter().map(|input| input.path.clone()).collect();
    let mut hasher = Hasher {
        context: &context,
        asyncfd: &asyncfd,
        report: Report {
            sums: paths
                .into_iter()
                .map(|path| (path, String::new()))
                .collect(),
            rings: vec![(RINGS[0], 0)],
            ..Report::default()
        },
        inputs: inputs.into_iter().enumerate().collect(),
        reading: Vec::new(),
        pending: HashMap::new(),
        submitted: 0,
        ops: Vec::new(),
    };
    let done = hasher.work(watch, expected, &mut progress);
    let report = mem::take(&mut hasher.report);
    drop(hasher);
    // Waits for what is under way, if it ended early.
    context.destroy();
    done?;
    for (path, sum) in &report.sums {
        let plain = plain_sum(path, watch)?;
        if plain != *sum {
            let why = format!("changed, or was read wrongly: {sum}, plainly {plain}");
            return Err(Failure::At(path.clone(), io::Error::other(why)));
        }
    }
    Ok(report)
}

impl Hasher<'_> {
    fn work(
        &mut self,
        watch: &Watch,
        expected: u64,
        progress: &mut impl FnMut(u64),
    ) -> Result<(), Failure> {
        let mut completions = Vec::new();
        self.submit()?;
        while !self.pending.is_empty() {
            // After an eighth of all, and after a half.
            while let Some(&size) = RINGS.get(self.report.rings.len())
                && self.report.completions >= expected / [1, 8, 2][self.report.rings.len()]
            {
                self.asyncfd.replace(size)?;
                self.report.rings.push((size, 0));
            }
            // Not asleep as long as there is anything: the descriptor stays readable.
            let news = watch.wait()?;
            if let Some(signal) = news.signal {
                return Err(Failure::Signal(signal));
            }
            if news.tick {
                progress(self.report.bytes);
            }
            if !news.results {
                continue;
            }
            let n = self.asyncfd.pop(64, &mut completions)?;
            if n == 0 && self.asyncfd.drain()? == Drained::Unread {
                self.report.moved_in += 1;
            }
            self.report.completions += n as u64;
            if let Some((_, popped)) = self.report.rings.last_mut() {
                *popped += n as u64;
            }
            for done in completions.drain(..) {
                self.complete(done)?;
            }
            self.submit()?;
        }
        self.settle()
    }

    /// Nothing is under way any more: then there is nothing to be had, and all adds up.
    fn settle(&mut self) -> Result<(), Failure> {
        let nothing =
            self.asyncfd.pop(1, &mut Vec::new())? == 0 && self.asyncfd.drain()? == Drained::Empty;
        let report = &mut self.report;
        report.wakeups = self.asyncfd.wakeups();
        let popped: u64 = report.rings.iter().map(|(_, popped)| popped).sum();
        if !nothing || report.completions != self.submitted || popped != self.submitted {
            let (submitted, completions) = (self.submitted, report.completions);
            let why = format!("{submitted} requests, but {completions} completions");
            return Err(io::Error::other(why).into());
        }
        Ok(())
    }

    /// Starts files and requests, as many as may be under way.
    fn submit(&mut self) -> Result<(), Failure> {
        while self.reading.len() < AT_ONCE
            && let Some((place, input)) = self.inputs.pop_front()
        {
            self.reading.push(Reading::start(place, input)?);
        }
        for reading in &mut self.reading {
            while self.pending.len() < DEPTH
                && let Some((at, wanted)) = reading.request()
            {
                self.submitted += 1;
                let op = Op::pread(&reading.file, vec![0; wanted as usize], at)
                    // Hashing is enough to do.
                    .offload()
                    // Never zero.
                    .data(self.submitted)
                    .to(self.asyncfd);
                let place = reading.place;
                self.pending
                    .insert(self.submitted, Pending { place, at, wanted });
                self.ops.push(op);
            }
        }
        while !self.ops.is_empty() {
            let accepted = self.context.submit(&mut self.ops)?;
            self.ops.drain(..accepted);
        }
        Ok(())
    }

    fn complete(&mut self, done: Completion) -> Result<(), Failure> {
        let pending = self.pending.remove(&done.data);
        let Some(Pending { place, at, wanted }) = pending else {
            return Err(io::Error::other("a completion of no request").into());
        };
        let Some(index) = (self.reading.iter()).position(|reading| reading.place == place) else {
            return Err(io::Error::other("a completion of no file").into());
        };
        let reading = &mut self.reading[index];
        let read = done
            .result
            .map_err(|errno| Failure::At(reading.path.clone(), errno.into()))?;
        reading.under_way -= 1;
        let short = read as u64 != wanted;
        if short && at + wanted <= reading.length {
            let shrank = io::Error::other("became shorter while it was read");
            return Err(Failure::At(reading.path.clone(), shrank));
        }
        if read == 0 {
            reading.end = true;
        } else {
            if at >= reading.length {
                // It was alone, and may be short; the next goes on there.
                reading.next = at + read as u64;
            }
            let mut bytes = done.op.into_buf();
            bytes.truncate(read);
            self.report.bytes += read as u64;
            reading.take(at, bytes);
        }
        if reading.end {
            let reading = self.reading.swap_remove(index);
            self.report.sums[place].1 = hex(reading.sum);
        }
        Ok(())
    }
}

fn hex(sum: Sha256) -> String {
    let bytes = sum.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As anybody would read it.
fn plain_sum(path: &Path, watch: &Watch) -> Result<String, Failure> {
    let failed = |error| Failure::At(path.to_owned(), error);
    let mut file = fs::File::open(path).map_err(failed)?;
    let mut sum = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        if let Some(signal) = watch.look()?.signal {
            return Err(Failure::Signal(signal));
        }
        match file.read(&mut buf).map_err(failed)? {
            0 => return Ok(hex(sum)),
            n => sum.update(&buf[..n]),
        }
    }
}
