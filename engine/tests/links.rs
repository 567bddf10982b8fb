//! Requests that follow each other: the next begins when the one before it has succeeded,
//! and has no effect otherwise.
#![cfg(all(target_os = "linux", not(any(loom, shuttle))))]

use std::{
    fs,
    io::{Read, Write},
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use uaio::{Completion, Context, Drained, Errno, File, Notify, Op, Source, event, flag};
use uaio_core::wait::WaitQueue;

/// What takes so long does not end.
const LIMIT: Duration = Duration::from_secs(30);

fn reap(context: &Context, n: usize) -> Vec<Completion> {
    let mut events = Vec::new();
    assert_eq!(context.getevents(n, n, Some(LIMIT), &mut events), Ok(n));
    events
}

fn results(context: &Context, n: usize) -> Vec<Result<usize, Errno>> {
    reap(context, n)
        .into_iter()
        .map(|done| done.result)
        .collect()
}

fn is_idle(context: &Context) {
    assert_eq!(
        context.getevents(0, 1, None, &mut Vec::new()),
        Ok(0),
        "completed twice"
    );
}

fn file(content: &[u8]) -> (File, fs::File) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    (File::new(file.try_clone().unwrap()).unwrap(), file)
}

const CANCELED: Result<usize, Errno> = Err(Errno::ECANCELED);

/// At once, by workers, and by both in turn: the same, and in order.
#[test]
fn a_chain_is_carried_out_in_order() {
    const N: usize = 64;
    for way in 0..4 {
        let (file, mut read) = file(b"");
        let context = Context::new(2 * N).unwrap();
        // Each reads what the one before it has written.
        let mut ops = Vec::new();
        for n in 0..N {
            let offload = |op: Op| match way {
                0 => op,
                1 => op.offload(),
                2 if n % 2 == 0 => op.offload(),
                3 if n == N / 2 => op.offload(),
                _ => op,
            };
            let write = Op::pwrite(&file, vec![n as u8; 100], 100 * n as u64);
            ops.push(offload(write).linked().data(n as u64));
            let read = Op::pread(&file, vec![0; 100], 100 * n as u64);
            ops.push(offload(read).linked().data(n as u64));
        }
        assert_eq!(context.submit(&mut ops), Ok(2 * N));
        for (n, done) in reap(&context, 2 * N).into_iter().enumerate() {
            assert_eq!((done.data, done.result), (n as u64 / 2, Ok(100)));
            assert_eq!(done.op.into_buf(), [n as u8 / 2; 100]);
        }
        is_idle(&context);
        let mut all = Vec::new();
        std::io::Seek::rewind(&mut read).unwrap();
        read.read_to_end(&mut all).unwrap();
        assert!((0..N).all(|n| all[100 * n..100 * (n + 1)] == [n as u8; 100]));
    }
}

/// Where the first fails, at once or in a worker, nothing of the rest is done; and what
/// comes after the chain is.
#[test]
fn what_follows_a_failure_has_no_effect() {
    for offload in [false, true] {
        for fails in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            fs::write(path("kept"), b"kept").unwrap();
            let (file, _) = file(b"abc");
            let context = Context::new(8).unwrap();
            let op = |n: usize, op: Op| {
                let op = match n == fails {
                    // Short, beyond the end.
                    true => Op::pread(&file, vec![0; 8], 0),
                    false => op,
                };
                if offload { op.offload() } else { op }
            };
            let mut ops = [
                op(0, Op::nop()).linked(),
                op(1, Op::pread(&file, vec![0; 3], 0)).linked(),
                op(2, Op::fsync(&file)).linked(),
                op(3, Op::nop()).linked(),
                Op::unlinkat(None, path("kept"), 0),
                Op::nop().data(7),
            ];
            assert_eq!(context.submit(&mut ops), Ok(6));
            let mut all: Vec<_> = reap(&context, 6)
                .into_iter()
                .map(|done| (done.data, done.result))
                .collect();
            let after = all.iter().position(|(data, _)| *data == 7).unwrap();
            assert_eq!(all.remove(after).1, Ok(0));
            for (n, (_, result)) in all.into_iter().enumerate() {
                match n {
                    n if n < fails => assert_eq!(result, Ok(if n == 1 { 3 } else { 0 })),
                    n if n == fails => assert_eq!(result, Ok(3), "short"),
                    _ => assert_eq!(result, CANCELED),
                }
            }
            assert!(path("kept").exists(), "an effect");
            is_idle(&context);
        }
    }
}

/// Of streams: what has to wait for readiness holds no worker, and what follows waits.
#[test]
fn a_chain_waits_for_readiness_without_a_worker() {
    const CHAINS: usize = 50;
    let context = Context::builder(4 * CHAINS).workers(1..=1).build().unwrap();
    let (file, _keep) = file(&[0; 100]);
    let mut writers = Vec::new();
    for n in 0..CHAINS {
        let (reader, writer) = std::io::pipe().unwrap();
        let (from, to) = std::io::pipe().unwrap();
        let mut ops = [
            Op::nop().offload().linked(),
            Op::read(&File::new(reader).unwrap(), vec![0; 8]).linked(),
            Op::poll(&File::new(to.try_clone().unwrap()).unwrap(), event::OUT).linked(),
            Op::write(&File::new(to).unwrap(), vec![n as u8; 3])
                .linked()
                .data(n as u64),
        ];
        ops[3] = std::mem::replace(&mut ops[3], Op::nop()).data(n as u64 + 1);
        assert_eq!(context.submit(&mut ops), Ok(4));
        writers.push((writer, from));
    }
    // The only worker is free.
    context
        .submit(&mut [Op::pread(&file, vec![0; 10], 0).offload().data(1000)])
        .unwrap_err();
    let got = results(&context, CHAINS);
    assert!(
        got.iter().all(|result| *result == Ok(0)),
        "the first of each: {got:?}"
    );
    context
        .submit(&mut [Op::pread(&file, vec![0; 10], 0).offload()])
        .unwrap();
    assert_eq!(results(&context, 1), [Ok(10)]);
    for (writer, _) in &mut writers {
        writer.write_all(b"go").unwrap();
    }
    let all = results(&context, 3 * CHAINS);
    let out = usize::from(event::OUT);
    for result in [2, 3, out] {
        let n = all.iter().filter(|got| **got == Ok(result)).count();
        assert_eq!(n, CHAINS, "{result}");
    }
    for (n, (_, from)) in writers.iter_mut().enumerate() {
        let mut bytes = [0; 3];
        from.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [n as u8; 3]);
    }
    is_idle(&context);
}

#[test]
fn a_chain_is_accepted_as_a_whole_or_not_at_all() {
    let (file, _) = file(b"abc");
    let context = Context::new(4).unwrap();
    let read = || Op::pread(&file, vec![0; 3], 0);
    let linked = |n: usize| -> Vec<Op> { (0..n).map(|_| read().linked()).collect() };
    // More than there can be.
    assert_eq!(context.submit(&mut linked(5)), Err(Errno::EINVAL));
    // More than there is room for.
    assert_eq!(context.submit(&mut [read(), read()]), Ok(2));
    assert_eq!(context.submit(&mut linked(3)), Err(Errno::EAGAIN));
    let mut ops = linked(3);
    ops.insert(0, read());
    assert_eq!(context.submit(&mut ops), Ok(1), "what is no part of it");
    assert!(ops[1..].iter().all(|op| op.handle().is_none()));
    reap(&context, 3);
    // A part of it makes no sense.
    for bad in 0..3 {
        let mut ops = linked(3);
        ops[bad] = Op::pread(&file, vec![], u64::MAX).linked();
        assert_eq!(context.submit(&mut ops), Err(Errno::EINVAL));
        assert!(ops.iter().all(|op| op.handle().is_none()));
    }
    let asyncfd = context.asyncfd(4).unwrap();
    let mut to = [read().linked().data(1).to(&asyncfd), read()];
    assert_eq!(context.submit(&mut to), Err(Errno::EINVAL));
    let refused = context.operation(read().linked()).unwrap_err();
    assert_eq!(refused.errno, Errno::EINVAL);
    is_idle(&context);
    // The end of a chain can be for one.
    let mut to = [read().offload().linked(), read().data(1).to(&asyncfd)];
    assert_eq!(context.submit(&mut to), Ok(2));
    assert_eq!(results(&context, 1), [Ok(3)]);
    // An error that is found when it is begun, too.
    let closed = File::new(fs::File::open("/dev/null").unwrap()).unwrap();
    let mut ops = [
        read().linked(),
        Op::write(&closed, vec![1]).linked(),
        read(),
    ];
    assert_eq!(context.submit(&mut ops), Ok(3));
    assert_eq!(results(&context, 3), [Ok(3), Err(Errno::EBADF), CANCELED]);
}

/// What waits for readiness at the end of a chain goes on also while nobody reaps.
#[test]
fn the_end_of_a_chain_is_driven() {
    let context = Context::new(4).unwrap();
    let asyncfd = context.asyncfd(4).unwrap();
    for _ in 0..20 {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let read = Op::read(&File::new(reader).unwrap(), vec![0; 8]);
        let mut ops = [Op::nop().offload().linked(), read.data(1).to(&asyncfd)];
        assert_eq!(context.submit(&mut ops), Ok(2));
        thread::sleep(Duration::from_millis(2));
        writer.write_all(b"go").unwrap();
        let mut readable = [PollFd::new(&asyncfd, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: LIMIT.as_secs() as i64,
            tv_nsec: 0,
        };
        assert_eq!(poll(&mut readable, Some(&limit)), Ok(1), "nobody drives");
        let mut popped = Vec::new();
        assert_eq!(asyncfd.pop(4, &mut popped), Ok(1));
        assert_eq!(popped[0].result, Ok(2));
        let _: Drained = asyncfd.drain().unwrap();
        assert_eq!(results(&context, 1), [Ok(0)]);
    }
}

/// Before the one it follows: at once and handed over, in any mixture.
#[test]
fn no_completion_comes_before_what_it_follows() {
    let context = Context::builder(64).workers(1..=2).build().unwrap();
    for round in 0..2000 {
        let mut ops: Vec<_> = (0..6_u64)
            .map(|n| {
                let op = Op::nop().linked().data(n);
                if round >> n & 1 == 0 {
                    op
                } else {
                    op.offload()
                }
            })
            .collect();
        assert_eq!(context.submit(&mut ops), Ok(6));
        let order: Vec<_> = reap(&context, 6).iter().map(|done| done.data).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5], "round {round}");
    }
}

/// What came back, and is submitted again in a chain, is done again.
#[test]
fn a_request_that_came_back_is_begun_anew() {
    let (file, _) = file(b"aaaabbbb");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made");
    let context = Context::new(8).unwrap();
    let flags = flag::O_CREAT | flag::O_RDWR;
    let mut read = Op::pread(&file, vec![0; 4], 0);
    let mut open = Op::openat(None, &path, flags, 0o600);
    context.submit(&mut [read, open]).unwrap();
    let mut done = reap(&context, 2);
    done.sort_by_key(|done| !done.op.buf().is_empty());
    read = done.pop().unwrap().op;
    open = done.pop().unwrap().op;
    assert_eq!(read.buf(), b"aaaa");
    read.set_offset(4);
    // After one that is under way; and after one that fails, at once and not.
    let mut ops = [Op::nop().offload().linked(), read];
    context.submit(&mut ops).unwrap();
    let mut done = reap(&context, 2);
    assert_eq!(done[1].result, Ok(4));
    assert_eq!(done[1].op.buf(), b"bbbb");
    read = done.pop().unwrap().op;
    for offload in [false, true] {
        let fails = Op::pread(&file, vec![0; 1], 100).linked();
        let fails = if offload { fails.offload() } else { fails };
        context.submit(&mut [fails, open]).unwrap();
        let again = reap(&context, 2).pop().unwrap();
        assert_eq!(again.result, CANCELED);
        let made = again.op;
        open = Op::openat(None, &path, flags, 0o600);
        assert!(made.into_file().is_none(), "of another life");
    }
    let read = read.linked().unlinked();
    assert!(context.operation(read).is_ok());
}

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

/// It ends with EIO, and the worker that began it goes on.
#[test]
fn a_source_that_panics_in_its_turn_keeps_no_worker() {
    let context = Context::builder(8).workers(1..=1).build().unwrap();
    for _ in 0..10 {
        let mut ops = [
            Op::nop().offload().linked(),
            Op::poll_source(Arc::new(Panics), event::IN).linked(),
            Op::nop(),
            Op::nop().offload(),
        ];
        assert_eq!(context.submit(&mut ops), Ok(4));
        let mut all = results(&context, 4);
        all.sort_by_key(|result| result.map_or_else(Errno::raw, |_| 0));
        assert_eq!(all, [Ok(0), Ok(0), Err(Errno::EIO), CANCELED]);
    }
}

/// Of each: what waits for its turn, what is under way, and what comes after that.
#[test]
fn cancels_and_time_limits_end_what_follows_too() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let reader = File::new(reader).unwrap();
    let context = Context::new(8).unwrap();
    let submit = |limit: Option<Duration>| {
        let read = Op::read(&reader, vec![0; 8]);
        let read = match limit {
            Some(limit) => read.with_timeout(limit),
            None => read,
        };
        let mut ops = [read.linked(), Op::nop().linked(), Op::nop()];
        assert_eq!(context.submit(&mut ops), Ok(3));
        ops.map(|op| op.handle().unwrap())
    };
    let [first, ..] = submit(None);
    assert_eq!(context.cancel(first), Ok(()));
    assert_eq!(results(&context, 3), [CANCELED; 3]);
    submit(Some(Duration::from_millis(3)));
    assert_eq!(
        results(&context, 3),
        [Err(Errno::ETIME), CANCELED, CANCELED]
    );
    // What waits for its turn ends when that has come.
    let [_, second, third] = submit(None);
    assert_eq!(context.cancel(second), Err(Errno::EINPROGRESS));
    assert_eq!(context.cancel(second), Err(Errno::EALREADY));
    is_idle(&context);
    writer.write_all(b"go").unwrap();
    assert_eq!(results(&context, 3), [Ok(2), CANCELED, CANCELED]);
    assert_eq!(context.cancel(third), Err(Errno::ENOENT));
}

/// The end of the context ends all, of chains of any length, and needs no stack for it.
#[test]
fn the_end_ends_long_chains() {
    const N: usize = 100_000;
    let (reader, _writer) = std::io::pipe().unwrap();
    let reader = File::new(reader).unwrap();
    for cancelled in [false, true] {
        let context = Context::new(N).unwrap();
        let mut ops: Vec<_> = (1..N).map(|_| Op::nop().linked()).collect();
        ops.insert(0, Op::read(&reader, vec![0; 8]).linked());
        assert_eq!(context.submit(&mut ops), Ok(N));
        // A small stack.
        let end = {
            let (context, first) = (context.clone(), ops[0].handle().unwrap());
            let end = move || match cancelled {
                true => context.cancel(first),
                false => {
                    context.destroy();
                    Ok(())
                }
            };
            thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(end)
                .unwrap()
        };
        assert_eq!(end.join().unwrap(), Ok(()));
        let mut events = Vec::new();
        while events.len() < N {
            let got = context.getevents(1, N, Some(LIMIT), &mut events);
            assert!(got.is_ok_and(|n| n > 0), "{got:?} after {}", events.len());
        }
        assert!(events.iter().all(|done| done.result == CANCELED));
        context.destroy();
    }
}

/// Each is told of, also of those that nobody runs.
#[test]
fn each_of_a_chain_tells_whom_it_names() {
    let told: OwnedFd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let notify = Notify::eventfd(told.try_clone().unwrap()).unwrap();
    let context = Context::new(8).unwrap();
    let (file, _) = file(b"abc");
    let mut ops = [
        Op::nop().offload().linked().notify(&notify),
        Op::pread(&file, vec![0; 4], 0).linked().notify(&notify),
        Op::nop().linked().notify(&notify),
        Op::nop().notify(&notify),
    ];
    assert_eq!(context.submit(&mut ops), Ok(4));
    assert_eq!(results(&context, 4), [Ok(0), Ok(3), CANCELED, CANCELED]);
    let mut all = 0;
    while all < 4 {
        let mut count = [0; 8];
        match rustix::io::read(&told, &mut count) {
            Ok(_) => all += u64::from_ne_bytes(count),
            Err(_) => thread::yield_now(),
        }
    }
    assert_eq!(all, 4);
}

/// A file is made, written, made durable and named, in one submission.
#[test]
fn a_file_is_replaced_by_one_submission() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), b"old").unwrap();
    let new = fs::File::create(path("new")).unwrap();
    let new = File::new(new).unwrap();
    let context = Context::new(8).unwrap();
    let mut ops = [
        Op::pwrite(&new, b"new".to_vec(), 0).linked(),
        Op::fdatasync(&new).linked(),
        Op::renameat(None, path("new"), None, path("file"), 0).linked(),
        Op::statx(None, path("file"), 0, flag::STATX_SIZE),
    ];
    assert_eq!(context.submit(&mut ops), Ok(4));
    let mut done = reap(&context, 4);
    let all: Vec<_> = done.iter().map(|done| done.result).collect();
    assert_eq!(all, [Ok(3), Ok(0), Ok(0), Ok(0)]);
    let found = done.pop().unwrap().op.into_statx().unwrap();
    assert_eq!(found.stx_size, 3);
    assert_eq!(fs::read(path("file")).unwrap(), b"new");
}
