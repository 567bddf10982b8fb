//! The gate: how many times as fast as its rivals something is, measured in turns in one
//! run; first the core's ring, then the engine's reads.
//!
//! Prints the median ratio of each line and fails when one is below its gate.
//! With `--test`, or without `--bench`, it runs everything once and measures
//! nothing.

#[cfg(any(loom, shuttle))]
fn main() {}

#[cfg(not(any(loom, shuttle)))]
fn main() -> std::process::ExitCode {
    let mut gate = uaio_benches::gate::Gate::from_arguments();
    ring::measure(&mut gate);
    reads::measure(&mut gate);
    submitting::measure(&mut gate);
    gate.exit()
}

#[cfg(not(any(loom, shuttle)))]
mod ring {
    use std::time::Duration;

    use crossbeam_queue::ArrayQueue;
    use uaio_benches::{
        BATCH, CAPACITY, Queue,
        gate::{Asked, Gate},
        one_thread, two_threads,
    };
    use uaio_core::ring::{Boxed, Event, Ring};

    /// Events in a turn: a millisecond or two. Shorter than the scheduler's
    /// slice, so that most turns are undisturbed; longer than any start-up.
    const EVENTS: usize = 1 << 16;
    /// Turns of each queue; odd, so that there is a middle one.
    const ROUNDS: usize = 201;

    /// Measures one queue's turn of so many events.
    type Turn<Q> = fn(&Q, u64) -> Duration;

    struct Line {
        name: &'static str,
        ours: Turn<Ring<Boxed>>,
        rival: Turn<ArrayQueue<Event>>,
        asked: Asked,
    }

    const LINES: [Line; 4] = [
        Line {
            name: "ring / ArrayQueue, one thread, single",
            ours: one_thread::<1>,
            rival: one_thread::<1>,
            asked: Asked::Gate(1.0),
        },
        Line {
            name: "ring / ArrayQueue, one thread, batches of 32",
            ours: one_thread::<BATCH>,
            rival: one_thread::<BATCH>,
            asked: Asked::Nothing,
        },
        Line {
            name: "ring / ArrayQueue, two threads, single",
            ours: handed_over::<1>,
            rival: handed_over::<1>,
            asked: Asked::Nothing,
        },
        Line {
            name: "ring / ArrayQueue, two threads, batches of 32",
            ours: handed_over::<BATCH>,
            rival: handed_over::<BATCH>,
            // A third of the time, and a little less.
            asked: Asked::Gate(1.0 / 0.3),
        },
    ];

    fn handed_over<const BATCH: usize>(queue: &impl Queue, events: u64) -> Duration {
        two_threads::<BATCH, _>(queue, |run| run(events))
    }

    pub(crate) fn measure(gate: &mut Gate) {
        let (rounds, events) = gate.scale((ROUNDS, EVENTS), (1, 256));
        for line in &LINES {
            let memory = Boxed::native(CAPACITY).expect("a valid capacity");
            let (ring, queue) = (Ring::new(memory), ArrayQueue::new(CAPACITY));
            gate.compare(
                line.name,
                line.asked,
                (rounds, events),
                |_| (line.ours)(&ring, events as u64),
                |_| (line.rival)(&queue, events as u64),
            );
        }
    }
}

/// Random reads of blocks of a file.
#[cfg(not(any(loom, shuttle)))]
mod reads {
    use std::{
        mem,
        path::Path,
        time::{Duration, Instant},
    };

    use uaio_benches::{
        BATCH,
        gate::{Asked, Gate},
        reads::{
            Blocking, Blocks, GlibcAio, KernelAio, Nowait, Plain, Reader, SpawnBlocking, TokioFile,
            Uaio, UaioRaw, turn,
        },
    };

    /// The blocks for each turn. A rival reads those of a turn half a run away: the same
    /// ones in the end, but none that the other one has just brought into the processor's
    /// caches.
    struct Turns {
        all: Vec<Vec<u64>>,
        reads: usize,
    }

    impl Turns {
        fn new(blocks: &Blocks, rounds: usize, reads: usize) -> Self {
            let seeds = 1..=rounds as u64;
            let all = seeds.map(|seed| blocks.at_random(seed, reads)).collect();
            Self { all, reads }
        }

        fn compare(
            &self,
            gate: &mut Gate,
            name: &str,
            asked: Asked,
            depth: usize,
            ours: &mut dyn Reader,
            rival: &mut dyn Reader,
        ) {
            let rounds = self.all.len();
            gate.compare(
                &format!("{name}, depth {depth}"),
                asked,
                (rounds, self.reads),
                |round| turn(ours, &self.all[round], depth),
                |round| turn(rival, &self.all[(round + rounds / 2) % rounds], depth),
            );
        }
    }

    pub(crate) fn measure(gate: &mut Gate) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // 256 MiB, or 1.
        let count = gate.scale(1 << 16, 256);
        let blocks = Blocks::new(folder, count).expect("room on the disk");
        if !blocks.is_pinned() {
            println!("the file is not locked into the page cache: the limit is too low");
        }
        cached(gate, &blocks);
        uncached(gate, &blocks);
    }

    fn cached(gate: &mut Gate, blocks: &Blocks) {
        use Asked::{Gate as AtLeast, Goal, Nothing};

        let open = || blocks.open(0).expect("it is there");
        // Some milliseconds a turn, for the slowest, too.
        let long = gate.scale((201, 2048), (1, 64));
        let short = gate.scale((51, 512), (1, 64));
        let (long, short) = (
            Turns::new(blocks, long.0, long.1),
            Turns::new(blocks, short.0, short.1),
        );
        let aio = |depth| KernelAio::new(open(), depth, false).expect("as many as that");

        const D: usize = BATCH;
        let mut ours = Uaio::new(open(), D, false);
        let mut plain = Plain::new(open(), D, false);
        let mut nowait = Nowait::new(open(), D);
        let mut line = |turns: &Turns, name: &str, asked, rival: &mut dyn Reader| {
            turns.compare(gate, name, asked, D, &mut ours, rival);
        };
        line(&long, "inline / pread loop", AtLeast(0.97), &mut plain);
        line(
            &long,
            "inline / its system call in a loop",
            Nothing,
            &mut nowait,
        );
        line(&long, "inline / kernel AIO", AtLeast(1.0), &mut aio(D));
        let mut rival = GlibcAio::new(open(), D, false);
        line(&short, "inline / glibc AIO", AtLeast(3.0), &mut rival);
        let mut rival = GlibcAio::new(open(), D, true);
        line(&short, "inline / glibc AIO, listed", Nothing, &mut rival);
        let mut rival = SpawnBlocking::new(open(), D);
        line(&short, "inline / spawn_blocking", AtLeast(10.0), &mut rival);
        let mut rival = TokioFile::new((0..D).map(|_| open()));
        line(
            &short,
            "inline / tokio::fs::File",
            AtLeast(20.0),
            &mut rival,
        );

        let mut ours = Uaio::new(open(), 1, false);
        let (mut plain, mut rival) = (Plain::new(open(), 1, false), aio(1));
        let mut line = |name: &str, asked, rival: &mut dyn Reader| {
            long.compare(gate, name, asked, 1, &mut ours, rival);
        };
        line("inline / kernel AIO", AtLeast(1.2), &mut rival);
        line("inline / pread loop", Nothing, &mut plain);

        let mut ours = Uaio::new(open(), D, true);
        let mut plain = Plain::new(open(), D, false);
        let mut line = |name: &str, asked, rival: &mut dyn Reader| {
            short.compare(gate, name, asked, D, &mut ours, rival);
        };
        line("workers / pread loop", Goal(0.65), &mut plain);
        let mut rival = Blocking::new(open(), D);
        line("workers / blocking", Goal(2.0), &mut rival);
        let mut rival = SpawnBlocking::new(open(), D);
        line("workers / spawn_blocking", Goal(4.0), &mut rival);
    }

    /// A report, for disks are what they are; with the processor's time for each read.
    fn uncached(gate: &mut Gate, blocks: &Blocks) {
        let Ok(_) = blocks.open(libc::O_DIRECT) else {
            println!("uncached: this file system has no O_DIRECT");
            return;
        };
        let open = || blocks.open(libc::O_DIRECT).expect("as before");
        let (rounds, reads) = gate.scale((21, 512), (1, 64));
        let turns = Turns::new(blocks, rounds, reads);
        let mut ours = UaioRaw::new(open(), BATCH);
        let mut plain = Plain::new(open(), BATCH, true);
        let mut aio = KernelAio::new(open(), BATCH, true).expect("as many as that");
        let mut line = |name: &str, rival: &mut dyn Reader| {
            turns.compare(gate, name, Asked::Nothing, BATCH, &mut ours, rival);
        };
        line("uncached / kernel AIO", &mut aio);
        line("uncached / pread loop", &mut plain);
        let costs = |name: &str, reader: &mut dyn Reader| {
            let (start, before) = (Instant::now(), processor_time());
            for numbers in &turns.all {
                turn(reader, numbers, BATCH);
            }
            let (took, cost) = (start.elapsed(), processor_time().saturating_sub(before));
            if gate.is_measuring() {
                let each = |time: Duration| time.as_secs_f64() * 1e6 / (rounds * reads) as f64;
                let (took, cost) = (each(took), each(cost));
                println!("uncached: {name:<48} {took:8.1} us, of a processor {cost:6.1} us");
            }
        };
        costs("uaio", &mut ours);
        costs("kernel AIO", &mut aio);
        costs("pread loop", &mut plain);
    }

    /// What this process has had of all processors.
    fn processor_time() -> Duration {
        // SAFETY: zero is a value of each of its fields.
        let mut usage: libc::rusage = unsafe { mem::zeroed() };
        // SAFETY: it is given one to write.
        unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
        let of = |time: libc::timeval| {
            Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
        };
        of(usage.ru_utime) + of(usage.ru_stime)
    }
}

/// What submitting costs when the source is slow: as much as when it is not.
#[cfg(not(any(loom, shuttle)))]
mod submitting {
    use std::{
        fs::File,
        mem,
        os::unix::fs::FileExt,
        path::Path,
        time::{Duration, Instant},
    };

    use uaio::{Context, Op};
    use uaio_benches::{
        gate::{Asked, Gate},
        reads::{BLOCK, Blocks},
        slow::Slow,
    };

    const DEPTH: usize = 32;
    const BLOCKS: u64 = 1024;

    struct Submitted {
        /// How often the submitter gave its processor up while it submitted.
        switches: i64,
        /// The longest but one in a thousand.
        longest: Duration,
        /// How long a read took, all in all.
        each: Duration,
    }

    pub(crate) fn measure(gate: &mut Gate) {
        let n = gate.scale(4000, 64);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (source, fast, slow) = match Slow::new(folder, BLOCKS) {
            Ok(server) => {
                let open = || server.open().expect("it is mounted");
                let fast = submit(open(), n);
                server.set_delay(99 * fast.each);
                let slow = submit(open(), gate.scale(2000, 64));
                ("a FUSE server that answers late", fast, slow)
            }
            Err(error) => {
                println!("submitting: no FUSE server ({error}): reads with O_DIRECT instead");
                let blocks = Blocks::new(folder, BLOCKS).expect("room on the disk");
                let fast = submit(blocks.open(0).expect("it is there"), n);
                let direct = blocks.open(libc::O_DIRECT).and_then(|file| {
                    // Not every one of them takes memory as it comes.
                    file.read_at(&mut vec![0; BLOCK], 0).map(|_| file)
                });
                match direct {
                    Ok(file) => ("a disk, past the page cache", fast, submit(file, n)),
                    Err(error) => {
                        println!("submitting: nor O_DIRECT ({error}): not measured");
                        return;
                    }
                }
            }
        };
        if !gate.is_measuring() {
            println!("submitting to {source}: ran");
            return;
        }
        let times = slow.each.as_secs_f64() / fast.each.as_secs_f64();
        println!("submitting to {source}, {times:.0} times as slow:");
        // As a ratio: one in a hundred is none.
        let more = (slow.switches - fast.switches).max(0) as f64 / n as f64;
        let verdict = gate.judge(f64::from(more < 0.01), Asked::Gate(1.0));
        let (before, after) = (fast.switches, slow.switches);
        println!("  voluntary switches: {before}, then {after}{verdict}");
        let ratio = fast.longest.as_secs_f64() / slow.longest.as_secs_f64();
        let verdict = gate.judge(ratio, Asked::Goal(0.5));
        let (before, after) = (fast.longest, slow.longest);
        println!("  p99.9 of submit: {before:?}, then {after:?}: {ratio:.2}{verdict}");
    }

    /// Has workers read `n` blocks of this file, and submits one at a time.
    fn submit(file: File, n: usize) -> Submitted {
        let file = uaio::File::new(file).expect("a file");
        let context = Context::new(DEPTH).expect("a context");
        let read = || Op::pread(&file, vec![0; BLOCK], 0).offload();
        let mut free: Vec<_> = std::iter::repeat_with(read).take(DEPTH).collect();
        let (mut events, mut times) = (Vec::with_capacity(DEPTH), Vec::with_capacity(n));
        let mut switched = 0;
        let begun = Instant::now();
        for nth in 0..n as u64 {
            if free.is_empty() {
                let got = context.getevents(1, DEPTH, None, &mut events);
                assert!(got.is_ok_and(|got| got > 0), "{got:?}");
            }
            for done in events.drain(..) {
                assert_eq!(done.result, Ok(BLOCK));
                assert_eq!(done.op.buf()[..8], done.data.to_ne_bytes());
                free.push(done.op);
            }
            let number = nth % BLOCKS;
            let mut op = free.pop().expect("one").data(number);
            op.set_offset(number * BLOCK as u64);
            let mut ops = [op];
            let (before, start) = (switches(), Instant::now());
            assert_eq!(context.submit(&mut ops), Ok(1));
            times.push(start.elapsed());
            switched += switches() - before;
        }
        let each = begun.elapsed() / n as u32;
        times.sort_unstable();
        Submitted {
            switches: switched,
            longest: times[n - 1 - n / 1000],
            each,
        }
    }

    fn switches() -> i64 {
        // SAFETY: zero is a value of each of its fields.
        let mut usage: libc::rusage = unsafe { mem::zeroed() };
        // SAFETY: it is given one to write.
        unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
        usage.ru_nvcsw
    }
}
