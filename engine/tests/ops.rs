//! Every operation, every refusal, every way to end.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    fs,
    io::Write,
    os::unix::fs::FileTypeExt as _,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::OpenOptionsExt,
    },
    thread,
    time::Duration,
};

use common::{Jail, NOBODY, Rng, again, collect, complete, jail};
use rustix::fs::Advice;
use uaio::{Context, Errno, File, Iocb, Op};

#[test]
fn again_under_seccomp() {
    again(Jail::Seccomp, &[]);
}

#[test]
fn again_unprivileged() {
    again(Jail::Nobody, &[]);
}

#[test]
fn again_on_tmpfs() {
    again(Jail::Tmpfs, &[]);
}

/// What the other tests prove depends on it.
#[test]
fn the_jail_is_real() {
    let file = tempfile::tempfile().unwrap();
    match jail() {
        Some(Jail::Seccomp) => {
            let flags = rustix::io::ReadWriteFlags::empty();
            let read = rustix::io::preadv2(&file, &mut [], 0, flags);
            assert_eq!(read, Err(rustix::io::Errno::PERM));
        }
        Some(Jail::Nobody | Jail::Alone) => {
            assert!(!rustix::process::geteuid().is_root());
            if rustix::process::getuid().as_raw() == NOBODY {
                assert!(fs::File::open("/etc/shadow").is_err());
            }
        }
        Some(Jail::Tmpfs) => {
            assert_eq!(rustix::fs::fstatfs(&file).unwrap().f_type, 0x0102_1994);
        }
        None => {}
    }
}

fn file() -> File {
    File::new(tempfile::tempfile().unwrap()).unwrap()
}

/// A file that holds `bytes`.
fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    File::new(file).unwrap()
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; rustix::fs::fstat(file).unwrap().st_size as usize];
    let n = rustix::io::pread(file, &mut bytes[..], 0).unwrap();
    assert_eq!(n, bytes.len());
    bytes
}

/// Writes what is dirty and forgets what is cached, as far as the system will.
fn evict(file: &File) {
    rustix::fs::fdatasync(file).unwrap();
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

fn workers() -> impl Iterator<Item = String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).ok()?;
        status.starts_with("Name:\tuaio-worker\n").then_some(status)
    })
}

#[test]
fn every_operation_at_once_and_by_a_worker() {
    let context = Context::new(4).unwrap();
    for offload in [false, true] {
        let how = |op: Op| if offload { op.offload() } else { op };
        let run = |op: Op| complete(&context, how(op));
        let file = file();

        let done = run(Op::pwrite(&file, b"abcdef".to_vec(), 2));
        assert_eq!(done.result, Ok(6));
        assert_eq!(done.op.into_buf(), b"abcdef");
        assert_eq!(contents(&file), b"\0\0abcdef");

        let bufs = vec![b"XY".to_vec(), Vec::new(), b"Z".to_vec()];
        let done = run(Op::pwritev(&file, bufs.clone(), 7));
        assert_eq!(done.result, Ok(3));
        assert_eq!(done.op.into_bufs(), bufs);
        assert_eq!(contents(&file), b"\0\0abcdeXYZ");

        let done = run(Op::pread(&file, vec![9; 4], 3));
        assert_eq!(done.result, Ok(4));
        assert_eq!(done.op.into_buf(), b"bcde");

        let bufs = vec![Vec::new(), vec![9; 3], vec![9; 4], vec![9; 2]];
        let done = run(Op::preadv(&file, bufs, 3));
        assert_eq!(done.result, Ok(7));
        let bufs = done.op.into_bufs();
        assert_eq!(bufs, [&b""[..], b"bcd", b"eXYZ", b"\x09\x09"]);

        assert_eq!(run(Op::fsync(&file)).result, Ok(0));
        assert_eq!(run(Op::fdatasync(&file)).result, Ok(0));

        let done = run(Op::nop().data(u64::MAX));
        assert_eq!((done.result, done.data), (Ok(0), u64::MAX));
        assert_eq!(done.inline, !offload);
    }
}

#[test]
fn a_completed_request_can_be_submitted_again() {
    let context = Context::new(1).unwrap();
    let file = file_with(b"once");
    let first = complete(&context, Op::pread(&file, vec![0; 4], 0));
    let second = complete(&context, first.op);
    assert_eq!(second.op.into_buf(), b"once");
    assert_ne!(first.handle, second.handle);
}

#[test]
fn reads_end_with_the_file() {
    let context = Context::new(4).unwrap();
    let file = file_with(&[7; 10_000]);
    for offload in [false, true] {
        for (length, offset, expected) in [
            (10_000, 0, 10_000),
            (10_001, 0, 10_000),
            (8192, 8192, 1808),
            (1, 10_000, 0),
            (100, 1 << 40, 0),
            (0, 0, 0),
            (0, 1 << 40, 0),
        ] {
            let op = Op::pread(&file, vec![1; length], offset);
            let done = complete(&context, if offload { op.offload() } else { op });
            assert_eq!(done.result, Ok(expected), "{length} at {offset}");
            let buf = done.op.into_buf();
            assert_eq!(buf.len(), length);
            assert!(buf[..expected].iter().all(|&byte| byte == 7));
            assert!(buf[expected..].iter().all(|&byte| byte == 1));
        }
    }
    // A kernel that does not wait has nothing to say of a file without pages.
    assert_eq!(
        complete(&context, Op::pread(&self::file(), vec![1; 9], 0)).result,
        Ok(0)
    );
}

/// Reads that are in the page cache as a whole, not at all, and in part.
#[test]
fn the_cached_part_and_the_rest_add_up() {
    const SIZE: usize = 1 << 20;
    let mut rng = Rng::seeded();
    let bytes = rng.bytes(SIZE);
    let file = file_with(&bytes);
    let context = Context::new(8).unwrap();
    let mut handed_off = 0;
    for round in 0..64 {
        if round % 4 != 0 {
            evict(&file);
        }
        if round % 4 == 1 {
            // No read-ahead: only these pages.
            rustix::fs::fadvise(&file, 0, None, Advice::Random).unwrap();
            let start = rng.below(SIZE / 2) as u64;
            rustix::io::pread(&file, &mut [0; 8192], start).unwrap();
        }
        let offset = rng.below(SIZE / 2);
        let length = 1 + rng.below(SIZE);
        let end = SIZE.min(offset + length);
        let first = rng.below(length);
        let op = if round % 2 == 0 {
            Op::pread(&file, vec![0; length], offset as u64)
        } else {
            let bufs = vec![vec![0; first], vec![0; length - first]];
            Op::preadv(&file, bufs, offset as u64)
        };
        let done = complete(&context, op);
        assert_eq!(done.result, Ok(end - offset));
        handed_off += u32::from(!done.inline);
        let read = if round % 2 == 0 {
            done.op.into_buf()
        } else {
            done.op.into_bufs().concat()
        };
        assert!(read[..end - offset] == bytes[offset..end], "round {round}");
    }
    println!("handed off: {handed_off} of 64");
}

/// What was read before the rest was queued is not taken back by cancelling.
#[test]
fn a_part_that_was_read_is_not_reported_cancelled() {
    const SIZE: usize = 4 << 20;
    let bytes = Rng::seeded().bytes(SIZE);
    let file = file_with(&bytes);
    let busy = self::file();
    let context = Context::builder(2).workers(1..=1).build().unwrap();
    for _ in 0..100 {
        evict(&file);
        rustix::fs::fadvise(&file, 0, None, Advice::Random).unwrap();
        rustix::io::pread(&file, &mut [0; 8192], 0).unwrap();
        let mut ops = [
            Op::pwrite(&busy, vec![1; 8 << 20], 0).data(0).offload(),
            Op::pread(&file, vec![0; SIZE], 0).data(1),
        ];
        assert_eq!(context.submit(&mut ops), Ok(2));
        let cancelled = context.cancel(ops[1].handle().unwrap());
        let mut done = collect(&context, 2);
        done.sort_by_key(|done| done.data);
        let read = done.remove(1);
        match (cancelled, read.result) {
            (Ok(()), Err(errno)) => {
                assert_eq!(errno, Errno::ECANCELED);
                assert!(read.op.into_buf() == vec![0; SIZE], "it had an effect");
            }
            (Ok(()), Ok(part)) => {
                assert!(0 < part && part < SIZE);
                assert!(read.op.into_buf()[..part] == bytes[..part]);
                return;
            }
            (Err(_), result) => assert_eq!(result, Ok(SIZE)),
        }
    }
    println!("skipped: this file system does not read in part");
}

#[test]
fn what_cannot_be_looked_at_is_given_back() {
    let path = rustix::fs::OFlags::PATH;
    let fd = rustix::fs::open("/proc/self/mem", path, rustix::fs::Mode::empty()).unwrap();
    let number = fd.as_raw_fd();
    match File::new(fd) {
        // A path is no open file: its requests say so.
        Ok(file) => {
            let context = Context::new(1).unwrap();
            let done = complete(&context, Op::pread(&file, vec![0; 1], 0));
            assert_eq!(done.result, Err(Errno::EBADF));
        }
        Err(unfit) => assert_eq!(unfit.into_fd().as_raw_fd(), number),
    }
}

#[test]
fn errors_of_the_system_come_through() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let write_only = File::new(fs::File::create(&path).unwrap()).unwrap();
    let read_only = File::new(fs::File::open(&path).unwrap()).unwrap();
    let context = Context::new(8).unwrap();
    for offload in [false, true] {
        let run = |op: Op| complete(&context, if offload { op.offload() } else { op }).result;
        let ebadf = Err(Errno::EBADF);
        assert_eq!(run(Op::pread(&write_only, vec![0; 8], 0)), ebadf);
        assert_eq!(run(Op::pwrite(&read_only, vec![0; 8], 0)), ebadf);
        assert_eq!(run(Op::pwritev(&read_only, vec![vec![0; 8]], 0)), ebadf);
        let far = i64::MAX as u64;
        let result = run(Op::pwrite(&write_only, vec![0; 8], far));
        let efbig = Errno::from_raw(libc::EFBIG).unwrap();
        assert!(
            result == Err(efbig) || result == Err(Errno::EINVAL),
            "{result:?}"
        );
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_stays() {
    let context = Context::new(4).unwrap();
    let file = file();
    let nonsense = [
        Op::pread(&file, vec![1], u64::MAX),
        Op::pwrite(&file, vec![1], 1 << 63),
        Op::preadv(&file, vec![vec![1]; 1025], 0),
        Op::pwritev(&file, vec![vec![1]; 1025], 0),
    ];
    for op in nonsense {
        let mut ops = [op];
        assert_eq!(context.submit(&mut ops), Err(Errno::EINVAL));
        assert_eq!(ops[0].handle(), None);
        let [op] = ops;
        assert!(op.into_bufs().len() != 1024);
    }

    let mut ops = [
        Op::nop(),
        Op::preadv(&file, vec![vec![1]; 1025], 0),
        Op::nop(),
    ];
    assert_eq!(context.submit(&mut ops), Ok(1));
    let [accepted, nonsense, rest] = ops;
    assert!(accepted.handle().is_some() && rest.handle().is_none());
    assert_eq!(nonsense.into_bufs().len(), 1025);
    // An accepted one is only a name.
    assert_eq!(context.submit(&mut [accepted]), Err(Errno::EINVAL));
    assert_eq!(collect(&context, 1).len(), 1);

    let most = Op::pwritev(&file, vec![vec![1]; 1024], 0);
    assert_eq!(complete(&context, most).result, Ok(1024));
    assert_eq!(context.submit(&mut []), Ok(0));
}

/// At its own place among those that are carried out together, and none behind it is.
#[test]
fn one_that_is_refused_ends_its_submission() {
    let file = file_with(&[0; 8]);
    for refused in 0..70 {
        let context = Context::builder(80).workers(1..=1).build().unwrap();
        let mut ops: Vec<_> = (0..70)
            .map(|n| match n {
                n if n == refused => Op::pwrite(&file, vec![1], u64::MAX).data(n),
                n if n < refused && n % 5 == 4 => Op::nop().data(n).offload(),
                n if n < refused => Op::pread(&file, vec![9; 2], 3).data(n),
                n => Op::pwrite(&file, vec![1], 0).data(n),
            })
            .collect();
        let accepted = match context.submit(&mut ops) {
            Err(errno) => (0, Some(errno)),
            Ok(n) => (n, None),
        };
        let expected = (refused == 0).then_some(Errno::EINVAL);
        assert_eq!(accepted, (refused as usize, expected));
        for (n, op) in ops.iter().enumerate() {
            assert_eq!(
                op.handle().is_some(),
                n < refused as usize,
                "{n} of {refused}"
            );
        }
        let n = refused as usize;
        let mut events = Vec::new();
        assert_eq!(context.getevents(n, 80, None, &mut events), Ok(n));
        events.sort_by_key(|done| done.data);
        for (n, done) in events.iter().enumerate() {
            let worked = n % 5 == 4;
            assert_eq!(
                (done.data, done.result),
                (n as u64, Ok(if worked { 0 } else { 2 }))
            );
            assert_eq!(done.op.buf(), if worked { &[][..] } else { &[0; 2] });
        }
    }
    assert_eq!(contents(&file), [0; 8]);
}

#[test]
fn a_file_stays_open_as_long_as_a_request_needs_it() {
    let context = Context::builder(32).workers(1..=1).build().unwrap();
    let file = file_with(&[5; 4096]);
    let mut ops: Vec<_> = (0..32)
        .map(|_| Op::pread(&file, vec![0; 4096], 0).offload())
        .collect();
    assert_eq!(context.submit(&mut ops), Ok(32));
    drop(file);
    for done in collect(&context, 32) {
        assert_eq!(done.result, Ok(4096));
        assert_eq!(done.op.into_buf(), [5; 4096]);
    }
}

#[test]
fn a_full_context_refuses_until_events_are_taken() {
    let context = Context::new(100).unwrap();
    let mut ops: Vec<_> = (0..150).map(|_| Op::nop()).collect();
    assert_eq!(context.submit(&mut ops), Ok(100));
    assert_eq!(context.submit(&mut ops[100..]), Err(Errno::EAGAIN));
    assert_eq!(collect(&context, 40).len(), 40);
    assert_eq!(context.submit(&mut ops[100..]), Ok(40));
    assert!(ops[139].handle().is_some() && ops[140].handle().is_none());
    assert_eq!(collect(&context, 100).len(), 100);
}

#[test]
fn getevents_counts_and_waits() {
    let context = Context::new(8).unwrap();
    let mut events = Vec::new();
    let zero = Some(Duration::ZERO);
    assert_eq!(
        context.getevents(2, 1, zero, &mut events),
        Err(Errno::EINVAL)
    );
    assert_eq!(context.getevents(0, 0, None, &mut events), Ok(0));
    assert_eq!(context.getevents(0, 8, None, &mut events), Ok(0));
    assert_eq!(context.getevents(1, 8, zero, &mut events), Ok(0));

    let ops = || [Op::nop().data(1), Op::nop().data(2), Op::nop().data(3)];
    assert_eq!(context.submit(&mut ops()), Ok(3));
    assert_eq!(context.getevents(0, 2, zero, &mut events), Ok(2));
    // The time is up: fewer than asked for.
    let moment = Some(Duration::from_millis(5));
    assert_eq!(context.getevents(2, 8, moment, &mut events), Ok(1));
    // In the order of submission, since all were done there.
    let data: Vec<_> = events.iter().map(|done| done.data).collect();
    assert_eq!(data, [1, 2, 3]);

    // More than the context can hold at once come one after the other.
    let waiting = thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut events = Vec::new();
            context.getevents(12, 12, Some(Duration::MAX), &mut events)
        });
        for _ in 0..4 {
            let mut ops = ops();
            let mut rest = &mut ops[..];
            while !rest.is_empty() {
                match context.submit(rest) {
                    Ok(n) => rest = &mut rest[n..],
                    Err(errno) => assert_eq!(errno, Errno::EAGAIN),
                }
                thread::yield_now();
            }
        }
        waiting.join().unwrap()
    });
    assert_eq!(waiting, Ok(12));
}

#[test]
fn reapers_share_and_lose_nothing() {
    const EACH: u64 = 5_000;
    let context = Context::new(16).unwrap();
    let mut seen: Vec<u64> = thread::scope(|scope| {
        let reapers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut events = Vec::new();
                    while context.getevents(1, 8, None, &mut events).is_ok() {}
                    events.iter().map(|done| done.data).collect::<Vec<_>>()
                })
            })
            .collect();
        let submitters: Vec<_> = (0..2)
            .map(|submitter| {
                let context = context.clone();
                scope.spawn(move || {
                    for n in 0..EACH {
                        let op = Op::nop().data(submitter * EACH + n);
                        let mut ops = [if n % 8 == 0 { op.offload() } else { op }];
                        while context.submit(&mut ops).is_err() {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        for submitter in submitters {
            submitter.join().unwrap();
        }
        context.destroy();
        (reapers.into_iter())
            .flat_map(|reaper| reaper.join().unwrap())
            .collect()
    });
    let mut events = Vec::new();
    while context.getevents(0, 8, None, &mut events).is_ok() {}
    seen.extend(events.iter().map(|done| done.data));
    seen.sort_unstable();
    assert_eq!(seen, (0..2 * EACH).collect::<Vec<_>>());
}

/// One worker, which the first request keeps busy for a while.
#[test]
fn cancelling() {
    let context = Context::builder(64).workers(1..=1).build().unwrap();
    let file = file();
    const SLOW: usize = 32 << 20;
    let mut buf = vec![1; SLOW];
    let (mut ended, mut asked, mut gone) = (0, 0, 0);
    for round in 0.. {
        let slow = Op::pwrite(&file, std::mem::take(&mut buf), 0);
        let slow = slow.data(0).offload();
        let mut ops = vec![slow];
        ops.extend((1..8).map(|n| {
            Op::pwrite(&file, vec![2; 64], SLOW as u64)
                .data(n)
                .offload()
        }));
        assert_eq!(context.submit(&mut ops), Ok(8));
        if round % 2 == 1 {
            // The worker is in the midst of it, unless it is slow to run.
            thread::sleep(Duration::from_millis(1));
        }
        let answers: Vec<_> = (ops.iter())
            .map(|op| context.cancel(op.handle().unwrap()))
            .collect();
        let again = context.cancel(ops[0].handle().unwrap());
        for done in collect(&context, 8) {
            let length = if done.data == 0 { SLOW } else { 64 };
            match answers[done.data as usize] {
                Ok(()) => {
                    ended += 1;
                    assert_eq!(done.result, Err(Errno::ECANCELED));
                }
                Err(Errno::EINPROGRESS) => {
                    asked += 1;
                    // The real result, and what was there already is not asked
                    // for a second time.
                    assert_eq!(done.result, Ok(length));
                    if done.data == 0 {
                        assert_eq!(again, Err(Errno::EALREADY));
                    }
                }
                Err(Errno::EALREADY) => assert_eq!(done.result, Ok(length)),
                other => panic!("{other:?}"),
            }
            let back = done.op.into_buf();
            assert_eq!(back.len(), length);
            if length == SLOW {
                buf = back;
            }
        }
        for op in &ops {
            gone += 1;
            assert_eq!(context.cancel(op.handle().unwrap()), Err(Errno::ENOENT));
        }
        assert!(round < 1_000, "ended {ended}, asked {asked}");
        if ended >= 10 && asked >= 10 {
            break;
        }
    }
    println!("ended {ended}, asked {asked}, gone {gone}");
}

/// Cancelled requests leave names in the queue; they do not pile up, and do not
/// hide what is queued behind them.
#[test]
fn cancelling_again_and_again_behind_a_busy_worker() {
    let context = Context::builder(8).workers(1..=1).build().unwrap();
    let file = file();
    let mut slow = [Op::pwrite(&file, vec![1; 16 << 20], 0).offload()];
    assert_eq!(context.submit(&mut slow), Ok(1));
    let mut done = Vec::new();
    for round in 0..2_000 {
        let mut ops = [Op::nop().data(round).offload()];
        assert_eq!(context.submit(&mut ops), Ok(1));
        if round % 1_000 != 500 {
            let _ = context.cancel(ops[0].handle().unwrap());
            done.append(&mut collect(&context, 1));
        }
    }
    done.append(&mut collect(&context, 3));
    let mut data: Vec<_> = done.iter().map(|done| done.data).collect();
    data.sort_unstable();
    // The slow one has none.
    assert_eq!(data[0], 0);
    assert_eq!(data[1..], (0..2_000).collect::<Vec<_>>());
}

#[test]
fn destroying_ends_it_for_all() {
    let context = Context::builder(64).workers(1..=1).build().unwrap();
    let file = file();
    let mut ops: Vec<_> = (0..64)
        .map(|n| {
            Op::pwrite(&file, vec![1; 1 << 18], n << 18)
                .data(n)
                .offload()
        })
        .collect();
    assert_eq!(context.submit(&mut ops), Ok(64));
    thread::scope(|scope| {
        for _ in 0..2 {
            // Nobody has 65 completions to wait for.
            let waiting = context.clone();
            scope.spawn(move || {
                let mut events = Vec::new();
                let got = waiting.getevents(1_000, 1_000, None, &mut events);
                assert!(got == Err(Errno::EINVAL) || got == Ok(events.len()));
            });
            let destroyer = context.clone();
            scope.spawn(move || {
                destroyer.destroy();
                // It is over for this one, too.
                assert_eq!(destroyer.submit(&mut [Op::nop()]), Err(Errno::EINVAL));
            });
        }
    });
    for op in &ops {
        assert!(context.cancel(op.handle().unwrap()).is_err());
    }
    context.destroy();
    drop(context.clone());
}

#[test]
fn after_the_end_each_request_has_its_completion() {
    let context = Context::builder(64).workers(1..=2).build().unwrap();
    let file = file();
    let mut ops: Vec<_> = (0..64)
        .map(|n| {
            Op::pwrite(&file, vec![1; 1 << 16], n << 16)
                .data(n)
                .offload()
        })
        .collect();
    assert_eq!(context.submit(&mut ops), Ok(64));
    context.destroy();
    let mut events = Vec::new();
    assert_eq!(context.getevents(64, 64, None, &mut events), Ok(64));
    let written = contents(&file);
    for done in events {
        let start = (done.data as usize) << 16;
        let there = written.get(start).copied().unwrap_or(0);
        match done.result {
            Ok(n) => assert_eq!((n, there), (1 << 16, 1)),
            Err(errno) => assert_eq!((errno, there), (Errno::ECANCELED, 0)),
        }
        assert_eq!(done.op.into_buf().len(), 1 << 16);
    }
    assert_eq!(
        context.getevents(0, 64, None, &mut Vec::new()),
        Err(Errno::EINVAL)
    );
}

#[test]
fn nothing_is_left_to_do_with_a_context_that_nobody_has() {
    let file = file();
    for _ in 0..20 {
        let context = Context::new(16).unwrap();
        let mut ops: Vec<_> = (0..16)
            .map(|n| Op::pwrite(&file, vec![1; 1 << 16], n << 16).offload())
            .collect();
        assert_eq!(context.submit(&mut ops), Ok(16));
        // Dropped with requests queued, running and completed.
    }
}

#[test]
fn impossible_contexts() {
    assert_eq!(Context::new(0).unwrap_err(), Errno::EINVAL);
    assert_eq!(Context::new((1 << 24) + 1).unwrap_err(), Errno::EINVAL);
    assert_eq!(Context::new(usize::MAX).unwrap_err(), Errno::EINVAL);
    let workers = |range| Context::builder(1).workers(range).build().unwrap_err();
    assert_eq!(workers(0..=1), Errno::EINVAL);
    assert_eq!(workers(std::ops::RangeInclusive::new(2, 1)), Errno::EINVAL);
}

#[test]
fn workers_take_no_signals() {
    let context = Context::builder(8).workers(2..=4).build().unwrap();
    let mut ops: Vec<_> = (0..8).map(|_| Op::nop().offload()).collect();
    assert_eq!(context.submit(&mut ops), Ok(8));
    collect(&context, 8);
    let mut seen = 0;
    for status in workers() {
        let blocked = status
            .lines()
            .find_map(|line| line.strip_prefix("SigBlk:\t"));
        let blocked = u64::from_str_radix(blocked.unwrap(), 16).unwrap();
        for signal in [
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGUSR1,
            libc::SIGXFSZ,
            40,
        ] {
            assert!(blocked & 1 << (signal - 1) != 0, "{signal}: {blocked:x}");
        }
        seen += 1;
    }
    assert!(seen >= 2);
}

/// The system refuses more threads than there are.
#[test]
fn nothing_is_stranded_when_no_worker_can_be_started() {
    again(Jail::Alone, &["with_no_thread_left", "--exact"]);
}

#[test]
fn with_no_thread_left() {
    if jail() != Some(Jail::Alone) {
        return;
    }
    let context = Context::builder(64).workers(1..=64).build().unwrap();
    let limit = rustix::process::Rlimit {
        current: Some(1),
        maximum: Some(1),
    };
    rustix::process::setrlimit(rustix::process::Resource::Nproc, limit).unwrap();

    let file = file();
    let mut ops: Vec<_> = (0..64)
        .map(|_| Op::pwrite(&file, vec![1; 1 << 16], 0).offload())
        .collect();
    assert_eq!(context.submit(&mut ops), Ok(64));
    assert_eq!(collect(&context, 64).len(), 64);
    assert_eq!(workers().count(), 1);
    assert_eq!(Context::new(1).unwrap_err(), Errno::EAGAIN);
}

#[test]
fn raw_requests() {
    let context = Context::new(8).unwrap();
    let file = tempfile::tempfile().unwrap();
    let fd = file.as_raw_fd();
    let mut out = *b"rawest";
    let mut back = [0_u8; 6];
    let halves = back.split_at_mut(3);
    let vectors = [halves.0, halves.1].map(|half| libc::iovec {
        iov_base: half.as_mut_ptr().cast(),
        iov_len: half.len(),
    });
    let vectors = Box::new(vectors);
    let submit = |iocb: Iocb| {
        let mut iocbs = [iocb];
        // SAFETY: the memory and the file outlive the test's requests.
        assert_eq!(unsafe { context.submit_raw(&mut iocbs) }, Ok(1));
        let done = collect(&context, 1).remove(0);
        assert_eq!(iocbs[0].handle, Some(done.handle));
        assert_eq!(done.data, iocb.data);
        // Safe code cannot submit it again.
        let again = context.submit(&mut [done.op]);
        let again_is_refused = again == Err(Errno::EINVAL) || iocb.opcode == Iocb::NOOP;
        assert!(again_is_refused);
        done.result
    };
    let mut iocb = Iocb::new(Iocb::PWRITE, fd, out.as_mut_ptr(), 6, 0);
    iocb.data = 77;
    assert_eq!(submit(iocb), Ok(6));
    let address = Box::into_raw(vectors);
    assert_eq!(
        submit(Iocb::new(Iocb::PREADV, fd, address.cast(), 2, 0)),
        Ok(6)
    );
    // SAFETY: it came from `into_raw`, and submission is done with it.
    drop(unsafe { Box::from_raw(address) });
    assert_eq!(back, out);
    assert_eq!(
        submit(Iocb::new(Iocb::FSYNC, fd, out.as_mut_ptr(), 0, 0)),
        Ok(0)
    );
    assert_eq!(
        submit(Iocb::new(Iocb::FDSYNC, fd, out.as_mut_ptr(), 0, 0)),
        Ok(0)
    );
    let none = std::ptr::null_mut();
    assert_eq!(submit(Iocb::new(Iocb::PREAD, fd, none, 0, 0)), Ok(0));
    assert_eq!(submit(Iocb::new(Iocb::PWRITEV, fd, none, 0, 0)), Ok(0));
    let efault = Err(Errno::EFAULT);
    assert_eq!(submit(Iocb::new(Iocb::PREAD, fd, none, 6, 0)), efault);
}

#[test]
fn raw_requests_that_make_no_sense() {
    let context = Context::new(8).unwrap();
    let file = tempfile::tempfile().unwrap();
    let fd = file.as_raw_fd();
    let mut memory = [0_u8; 32];
    let at = memory.as_mut_ptr();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let pipe = pipe.as_fd().as_raw_fd();
    let huge = [libc::iovec {
        iov_base: at.cast(),
        iov_len: isize::MAX as usize,
    }; 3];
    let huge = huge.as_ptr().cast_mut().cast();
    let events = std::ptr::without_provenance_mut(uaio::event::IN.into());
    let one = Iocb::new;
    for (iocb, errno) in [
        (one(99, fd, at, 1, 0), Errno::EINVAL),
        (one(Iocb::POLL, fd, at, 0, 0), Errno::EINVAL),
        (one(Iocb::POLL, fd, events, 1, 0), Errno::EINVAL),
        (one(Iocb::POLL, fd, events, 0, 1), Errno::EINVAL),
        (one(Iocb::POLL, -1, events, 0, 0), Errno::EBADF),
        (one(4, fd, at, 1, 0), Errno::EINVAL),
        (one(Iocb::PREAD, -1, at, 1, 0), Errno::EBADF),
        (one(Iocb::PREAD, i32::MAX, at, 1, 0), Errno::EBADF),
        (one(Iocb::FSYNC, -100, at, 1, 0), Errno::EBADF),
        (one(Iocb::PREAD, pipe, at, 1, -1), Errno::EINVAL),
        (one(Iocb::PREAD, fd, at, 1, -1), Errno::EINVAL),
        (one(Iocb::PREAD, fd, at, usize::MAX, 0), Errno::EINVAL),
        (one(Iocb::PREADV, fd, at, 1025, 0), Errno::EINVAL),
        (one(Iocb::PREADV, fd, huge, 3, 0), Errno::EINVAL),
        (
            one(Iocb::PREADV, fd, std::ptr::null_mut(), 1, 0),
            Errno::EFAULT,
        ),
        (
            one(Iocb::PREADV, fd, at.wrapping_add(1), 1, 0),
            Errno::EFAULT,
        ),
    ] {
        // SAFETY: refused, all of them, by what is looked at first.
        let submitted = unsafe { context.submit_raw(&mut [iocb]) };
        assert_eq!(submitted, Err(errno), "{iocb:?}");
    }
    let mut iocbs = [Iocb::default(), one(99, fd, at, 1, 0), Iocb::default()];
    // SAFETY: the first has no memory, the second is refused.
    assert_eq!(unsafe { context.submit_raw(&mut iocbs) }, Ok(1));
    assert!(iocbs[0].handle.is_some() && iocbs[1].handle.is_none());
}

/// O_DIRECT, where the file system has it: aligned memory, by address.
#[test]
fn direct_requests_go_to_workers() {
    #[repr(align(4096))]
    struct Aligned([u8; 4096]);
    let dir = tempfile::tempdir().unwrap();
    let direct = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(dir.path().join("direct"));
    let Ok(direct) = direct else {
        println!("skipped: no O_DIRECT here");
        return;
    };
    let context = Context::new(2).unwrap();
    let mut page = Box::new(Aligned([6; 4096]));
    let at = page.0.as_mut_ptr();
    for opcode in [Iocb::PWRITE, Iocb::PREAD] {
        let mut iocbs = [Iocb::new(opcode, direct.as_raw_fd(), at, 4096, 0)];
        // SAFETY: the file and the page outlive the requests.
        assert_eq!(unsafe { context.submit_raw(&mut iocbs) }, Ok(1));
        let done = collect(&context, 1).remove(0);
        assert_eq!(done.result, Ok(4096));
        assert_eq!(done.inline, jail() == Some(Jail::Tmpfs));
    }
    // A request that is not aligned fails as the system call does.
    let file = File::new(direct).unwrap();
    let expected = rustix::io::pread(&file, &mut [0; 100][..], 1);
    let done = complete(&context, Op::pread(&file, vec![0; 100], 1));
    let expected = expected.map_err(|errno| Errno::from_raw(errno.raw_os_error()).unwrap());
    assert_eq!(done.result, expected);
}

#[test]
fn procfs_goes_to_workers() {
    let context = Context::new(2).unwrap();
    let file = File::new(fs::File::open("/proc/self/comm").unwrap()).unwrap();
    let done = complete(&context, Op::pread(&file, vec![0; 64], 0));
    assert!(!done.inline && done.result.unwrap() > 0);
}

/// If there is one that may be read.
#[test]
fn block_devices_are_files_too() {
    let device = fs::read_dir("/dev").unwrap().find_map(|entry| {
        let entry = entry.ok()?;
        let is_block = entry.file_type().ok()?.is_block_device();
        let device = is_block.then(|| fs::File::open(entry.path()).ok())??;
        // Some are there and have no medium.
        (rustix::io::pread(&device, &mut [0; 512][..], 0) == Ok(512)).then_some(device)
    });
    let Some(device) = device else {
        println!("skipped: no block device here");
        return;
    };
    let size = rustix::fs::seek(&device, rustix::fs::SeekFrom::End(0)).unwrap();
    let context = Context::new(2).unwrap();
    let file = File::new(device).unwrap();
    for (offset, expected) in [(0, 4096), (size - 512, 512), (size, 0)] {
        let done = complete(&context, Op::pread(&file, vec![0; 4096], offset));
        assert_eq!(done.result, Ok(expected));
    }
}

/// Submitted one way and the other, from several threads, into one file.
#[test]
fn threads_share_a_context() {
    let context = Context::builder(16).workers(1..=4).build().unwrap();
    let file = file();
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (context, file) = (context.clone(), file.clone());
            scope.spawn(move || {
                for n in 0..200 {
                    let offset = (thread * 200 + n) * 16;
                    let op = Op::pwrite(&file, vec![thread as u8 + 1; 16], offset);
                    let mut ops = [if n % 3 == 0 { op.offload() } else { op }];
                    while context.submit(&mut ops).is_err() {
                        let moment = Some(Duration::from_millis(1));
                        context.getevents(1, 4, moment, &mut Vec::new()).unwrap();
                    }
                }
            });
        }
    });
    let mut events = Vec::new();
    while context.getevents(1, 16, Some(Duration::from_millis(200)), &mut events) != Ok(0) {}
    context.destroy();
    let bytes = contents(&file);
    for (n, chunk) in bytes.chunks(200 * 16).enumerate() {
        assert!(chunk.iter().all(|&byte| byte == n as u8 + 1));
    }
    assert_eq!(bytes.len(), 4 * 200 * 16);
}
