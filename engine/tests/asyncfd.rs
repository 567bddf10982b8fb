//! Completions that go to a descriptor: what it says, what it costs, and what becomes
//! of them.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    fs,
    io::{self, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use common::{OnPanic, Rng};
use rustix::event::{
    EventfdFlags, PollFd, PollFlags, Timespec, epoll, epoll::EventFlags, eventfd, poll,
};
use uaio::{
    AsyncFd, AsyncfdResult, Completion, Context, Drained, Errno, File, Handle, Op, ResultCell,
    Uring, event,
};

const LONG: Duration = Duration::from_secs(30);

fn context() -> Context {
    Context::new(2_048).unwrap()
}

fn file(fd: impl Into<OwnedFd>) -> File {
    File::new(fd).unwrap()
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: time.subsec_nanos().into(),
    }
}

fn readable_within(asyncfd: &AsyncFd, time: Duration) -> bool {
    let mut polled = [PollFd::new(asyncfd, PollFlags::IN)];
    poll(&mut polled, Some(&timespec(time))).unwrap() == 1
}

fn is_readable(asyncfd: &AsyncFd) -> bool {
    readable_within(asyncfd, Duration::ZERO)
}

/// How often it was written since it was read last.
fn written(asyncfd: &AsyncFd) -> u64 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", asyncfd.as_raw_fd())).unwrap();
    let count = (info.lines()).find_map(|line| line.strip_prefix("eventfd-count:"));
    u64::from_str_radix(count.unwrap().trim(), 16).unwrap()
}

fn pop(asyncfd: &AsyncFd, nr: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    assert_eq!(asyncfd.pop(nr, &mut done), Ok(done.len()));
    done
}

/// All there is; then it sleeps.
fn take(asyncfd: &AsyncFd) -> Vec<Completion> {
    let mut all = Vec::new();
    loop {
        asyncfd.pop(usize::MAX, &mut all).unwrap();
        if asyncfd.drain().unwrap() == Drained::Empty {
            return all;
        }
    }
}

/// Waits for `n` completions.
fn wait(asyncfd: &AsyncFd, n: usize) -> Vec<Completion> {
    let mut all = take(asyncfd);
    while all.len() < n {
        assert!(readable_within(asyncfd, LONG), "{} of {n}", all.len());
        all.extend(take(asyncfd));
    }
    assert_eq!(all.len(), n);
    all
}

fn submit(context: &Context, op: Op) -> Handle {
    let mut ops = [op];
    assert_eq!(context.submit(&mut ops), Ok(1));
    ops[0].handle().unwrap()
}

/// Numbered, from `first` on; done at once.
fn nops(context: &Context, asyncfd: &AsyncFd, first: u64, n: u64) {
    let mut ops: Vec<_> = (first..first + n)
        .map(|data| Op::nop().data(data).to(asyncfd))
        .collect();
    assert_eq!(context.submit(&mut ops), Ok(ops.len()));
}

fn data(done: &[Completion]) -> Vec<u64> {
    done.iter().map(|done| done.data).collect()
}

fn results(done: &[Completion]) -> Vec<Result<usize, Errno>> {
    done.iter().map(|done| done.result).collect()
}

/// The context's own ring has nothing.
#[track_caller]
fn assert_not_in_the_ring(context: &Context) {
    let got = context.getevents(0, 1, Some(Duration::ZERO), &mut Vec::new());
    assert_eq!(got, Ok(0));
}

// What the descriptor says.

#[test]
fn a_new_one_is_not_readable() {
    let context = context();
    let asyncfd = context.asyncfd(1).unwrap();
    assert!(!is_readable(&asyncfd));
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    assert_eq!((written(&asyncfd), asyncfd.wakeups()), (0, 0));
    assert!(pop(&asyncfd, 10).is_empty());
}

#[test]
fn it_does_not_block_and_is_not_inherited() {
    let asyncfd = context().asyncfd(1).unwrap();
    let flags = rustix::fs::fcntl_getfl(&asyncfd).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
    let flags = rustix::io::fcntl_getfd(&asyncfd).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn poll_and_select_see_it_until_all_is_popped_and_drained() {
    let select = |asyncfd: &AsyncFd| {
        // SAFETY: zero is a value of each of its fields.
        let mut set: libc::fd_set = unsafe { std::mem::zeroed() };
        let fd = asyncfd.as_raw_fd();
        assert!(usize::try_from(fd).unwrap() < libc::FD_SETSIZE);
        // SAFETY: in range, and a valid set.
        unsafe { libc::FD_SET(fd, &mut set) };
        let mut now = libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        };
        let none = std::ptr::null_mut();
        // SAFETY: a valid set, and a valid time.
        let n = unsafe { libc::select(fd + 1, &mut set, none, none, &mut now) };
        assert!(n >= 0);
        assert_eq!(is_readable(asyncfd), n == 1);
        n == 1
    };
    let context = context();
    let asyncfd = context.asyncfd(4).unwrap();
    assert!(!select(&asyncfd));
    nops(&context, &asyncfd, 1, 10);
    for expected in 1..=10 {
        assert!(select(&asyncfd));
        let mut done = pop(&asyncfd, 1);
        if done.is_empty() {
            assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
            assert!(select(&asyncfd));
            done = pop(&asyncfd, 1);
        }
        assert_eq!(data(&done), [expected]);
    }
    // All is popped, and it does not know yet.
    assert!(select(&asyncfd));
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    assert!(!select(&asyncfd));
    nops(&context, &asyncfd, 11, 1);
    assert!(select(&asyncfd));
}

fn epoll_with(asyncfd: &AsyncFd, flags: EventFlags) -> OwnedFd {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(&set, asyncfd, epoll::EventData::new_u64(7), flags).unwrap();
    set
}

fn reports(set: &OwnedFd, time: Duration) -> usize {
    let mut buffer = [const { MaybeUninit::uninit() }; 4];
    let (reports, _) = epoll::wait(set, &mut buffer, Some(&timespec(time))).unwrap();
    reports.len()
}

#[test]
fn level_triggered_it_is_reported_until_it_is_drained() {
    let context = context();
    let asyncfd = context.asyncfd(8).unwrap();
    let set = epoll_with(&asyncfd, EventFlags::IN);
    let now = |set| reports(set, Duration::ZERO);
    assert_eq!(now(&set), 0);
    nops(&context, &asyncfd, 1, 8);
    for _ in 0..8 {
        assert_eq!(now(&set), 1);
        assert_eq!(pop(&asyncfd, 1).len(), 1);
    }
    assert_eq!(now(&set), 1);
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    assert_eq!(now(&set), 0);
}

#[test]
fn edge_triggered_there_is_one_edge_for_each_sleep() {
    let context = context();
    let asyncfd = context.asyncfd(8).unwrap();
    let set = epoll_with(&asyncfd, EventFlags::IN | EventFlags::ET);
    let now = |set| reports(set, Duration::ZERO);
    assert_eq!(now(&set), 0);
    for round in 0..100 {
        nops(&context, &asyncfd, 1, 1 + round % 20);
        assert_eq!(now(&set), 1);
        // Awake.
        nops(&context, &asyncfd, 30, 1 + round % 7);
        assert_eq!(now(&set), 0);
        assert_eq!(
            take(&asyncfd).len() as u64,
            2 + round % 20 + round % 7,
            "round {round}"
        );
    }
    assert_eq!(asyncfd.wakeups(), 100);
}

/// A duplicate says the same.
#[test]
fn it_can_be_duplicated() {
    let context = context();
    let asyncfd = context.asyncfd(8).unwrap();
    let other = asyncfd.as_fd().try_clone_to_owned().unwrap();
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(&set, &other, epoll::EventData::new_u64(7), EventFlags::IN).unwrap();
    nops(&context, &asyncfd, 1, 1);
    assert_eq!(reports(&set, LONG), 1);
    take(&asyncfd);
    assert_eq!(reports(&set, Duration::ZERO), 0);
    drop(asyncfd);
    // Closing told it.
    assert_eq!(reports(&set, Duration::ZERO), 1);
}

// What it costs.

#[test]
fn a_burst_costs_one_write_for_each_sleep() {
    const BURST: u64 = 1_000;
    let context = context();
    for size in [8, 1_024] {
        let asyncfd = context.asyncfd(size).unwrap();
        for sleep in 1..=20 {
            assert_eq!(written(&asyncfd), 0);
            thread::scope(|scope| {
                for producer in 0..4 {
                    let (context, asyncfd) = (&context, &asyncfd);
                    scope.spawn(move || {
                        for n in 0..BURST / 4 {
                            nops(context, asyncfd, 1 + producer * BURST + n, 1);
                        }
                    });
                }
            });
            assert_eq!(written(&asyncfd), 1);
            assert_eq!(take(&asyncfd).len() as u64, BURST);
            assert_eq!(asyncfd.wakeups(), sleep);
        }
    }
}

#[test]
fn by_workers_too() {
    let context = context();
    let asyncfd = context.asyncfd(16).unwrap();
    for _ in 0..20 {
        let mut ops: Vec<_> = (1..=1_000)
            .map(|n| Op::nop().offload().data(n).to(&asyncfd))
            .collect();
        assert_eq!(context.submit(&mut ops), Ok(1_000));
        // Asleep until all are there.
        let handles: Vec<_> = ops.iter().filter_map(Op::handle).collect();
        while handles
            .iter()
            .any(|&handle| context.cancel(handle) != Err(Errno::EALREADY))
        {
            thread::yield_now();
        }
        assert!(readable_within(&asyncfd, LONG));
        assert_eq!(written(&asyncfd), 1);
        assert_eq!(wait(&asyncfd, 1_000).len(), 1_000);
    }
    // But who has just been woken may have told so later than it was seen.
    assert!(asyncfd.wakeups() <= 20 * 2, "{}", asyncfd.wakeups());
}

#[test]
fn who_is_awake_costs_nothing() {
    let context = context();
    let asyncfd = context.asyncfd(8).unwrap();
    nops(&context, &asyncfd, 1, 1);
    assert_eq!(written(&asyncfd), 1);
    for _ in 0..100 {
        // Never drained to the end: neither written nor read.
        nops(&context, &asyncfd, 1, 3);
        assert_eq!(pop(&asyncfd, 3).len(), 3);
        assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
        assert_eq!(written(&asyncfd), 1);
    }
    assert_eq!(take(&asyncfd).len(), 1);
    assert_eq!((written(&asyncfd), asyncfd.wakeups()), (0, 1));
}

/// It stays right, whatever its user does with the counter.
#[test]
fn a_counter_that_its_user_reads_or_writes_does_no_harm() {
    let context = context();
    let asyncfd = context.asyncfd(8).unwrap();
    rustix::io::write(&asyncfd, &9_u64.to_ne_bytes()).unwrap();
    assert!(is_readable(&asyncfd));
    assert_eq!(take(&asyncfd).len(), 0);
    nops(&context, &asyncfd, 1, 2);
    rustix::io::read(&asyncfd, &mut [0; 8]).unwrap();
    assert_eq!(take(&asyncfd).len(), 2);
    for _ in 0..5 {
        assert!(!is_readable(&asyncfd));
        nops(&context, &asyncfd, 1, 2);
        assert!(is_readable(&asyncfd));
        assert_eq!(take(&asyncfd).len(), 2);
    }
}

// What arrives.

#[test]
fn files_and_streams_complete_there_and_not_in_the_ring() {
    let context = context();
    let asyncfd = context.asyncfd(3).unwrap();
    let mut rng = Rng::seeded();
    let bytes = rng.bytes(100_000);
    let mut regular = tempfile::tempfile().unwrap();
    regular.write_all(&bytes).unwrap();
    let regular = file(regular);
    let (reader, mut writer) = io::pipe().unwrap();
    let (socket, mut peer) = UnixStream::pair().unwrap();
    let (reader, socket) = (file(reader), file(socket));
    let counter = file(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    let mut ops = [
        Op::pread(&regular, vec![0; 100_000], 0),
        Op::pread(&regular, vec![0; 1_000], 99_500).offload(),
        Op::fsync(&regular),
        Op::read(&reader, vec![0; 100]),
        Op::read(&socket, vec![0; 100]),
        Op::poll(&counter, event::IN),
        Op::write(&socket, b"to the peer".to_vec()),
        Op::pwrite(&regular, b"tail".to_vec(), 100_000),
        Op::poll(&regular, event::IN),
        Op::nop(),
    ];
    for (n, op) in ops.iter_mut().enumerate() {
        *op = std::mem::replace(op, Op::nop())
            .data(n as u64 + 1)
            .to(&asyncfd);
    }
    assert_eq!(context.submit(&mut ops), Ok(10));
    let handles: Vec<_> = ops.iter().map(|op| op.handle().unwrap()).collect();
    let mut done = wait(&asyncfd, 7);
    writer.write_all(b"through the pipe").unwrap();
    peer.write_all(b"from the peer").unwrap();
    rustix::io::write(&counter, &1_u64.to_ne_bytes()).unwrap();
    done.extend(wait(&asyncfd, 3));
    assert_not_in_the_ring(&context);
    let mut heard = [0; 11];
    peer.read_exact(&mut heard).unwrap();
    assert_eq!(heard, *b"to the peer");

    done.sort_by_key(|done| done.data);
    assert_eq!(data(&done), (1..=10).collect::<Vec<_>>());
    assert!(done.iter().map(|done| done.handle).eq(handles));
    let waited = [3, 4, 5].map(|n: usize| done[n].inline);
    assert_eq!(waited, [false; 3]);
    assert!(done[9].inline && !done[1].inline);
    // The write may have been first.
    let tail = done[1].result.unwrap();
    assert!([500, 504].contains(&tail), "{tail}");
    let results = results(&done);
    let expected = [100_000, tail, 0, 16, 13, event::IN.into(), 11, 4];
    assert!(results[..8].iter().copied().eq(expected.map(Ok)));
    assert_eq!(results[9], Ok(0));
    let bufs: Vec<_> = done.into_iter().map(|done| done.op.into_buf()).collect();
    assert!(bufs[0] == bytes);
    assert!(bufs[1][..500] == bytes[99_500..]);
    assert_eq!(bufs[3][..16], *b"through the pipe");
    assert_eq!(bufs[4][..13], *b"from the peer");
}

#[test]
fn without_a_reaper_somebody_drives_at_once() {
    const ROUNDS: u32 = 300;
    let context = context();
    let asyncfd = context.asyncfd(8).unwrap();
    let (socket, peer) = UnixStream::pair().unwrap();
    let (socket, mut peer) = (file(socket), peer);
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        submit(&context, Op::read(&socket, vec![0; 1]).data(1).to(&asyncfd));
        peer.write_all(b"x").unwrap();
        assert_eq!(results(&wait(&asyncfd, 1)), [Ok(1)]);
    }
    // A driver that waits whether a reaper comes would take ten milliseconds for each.
    assert!(begun.elapsed() < ROUNDS * Duration::from_millis(5));
}

#[test]
fn beside_a_reaper() {
    let context = context();
    let asyncfd = context.asyncfd(8).unwrap();
    let (reader, mut writer) = io::pipe().unwrap();
    let reader = file(reader);
    thread::scope(|scope| {
        let (told, hears) = mpsc::channel();
        let reaper = context.clone();
        scope.spawn(move || {
            for _ in 0..100 {
                let mut events = Vec::new();
                assert_eq!(reaper.getevents(1, 1, Some(LONG), &mut events), Ok(1));
                told.send(events.remove(0).data).unwrap();
            }
        });
        for round in 0..100 {
            let to_the_ring = Op::nop().offload().data(round);
            submit(&context, Op::read(&reader, vec![0; 1]).data(1).to(&asyncfd));
            writer.write_all(b"x").unwrap();
            if round % 2 == 0 {
                wait(&asyncfd, 1);
                submit(&context, to_the_ring);
            } else {
                submit(&context, to_the_ring);
                wait(&asyncfd, 1);
            }
            assert_eq!(hears.recv_timeout(LONG), Ok(round));
        }
    });
}

#[test]
fn what_comes_back_can_be_submitted_again_and_has_the_same_target() {
    let context = context();
    let asyncfd = context.asyncfd(1).unwrap();
    let mut regular = tempfile::tempfile().unwrap();
    regular.write_all(b"again").unwrap();
    let mut op = Op::pread(&file(regular), vec![0; 5], 0)
        .data(5)
        .to(&asyncfd);
    for _ in 0..10 {
        submit(&context, op);
        let done = wait(&asyncfd, 1).remove(0);
        assert_eq!((done.data, done.result), (5, Ok(5)));
        op = done.op;
    }
    assert_eq!(op.into_buf(), b"again");
}

// What is refused.

#[test]
fn a_wrong_target_is_refused_without_effect() {
    let (context, other) = (context(), Context::new(8).unwrap());
    let asyncfd = context.asyncfd(8).unwrap();
    let (reader, writer) = io::pipe().unwrap();
    let writer = file(writer);
    let regular = tempfile::tempfile().unwrap();
    let file = file(regular.try_clone().unwrap());
    let write = || Op::pwrite(&file, b"effect".to_vec(), 0);
    let refused = |context: &Context, op, why| {
        let mut ops = [Op::nop().data(9), op];
        for _ in 0..2 * context.capacity() {
            assert_eq!(context.submit(&mut ops[1..]), Err(why));
        }
        assert_eq!(ops[1].handle(), None);
        let [_, op] = ops;
        op
    };
    // No cookie.
    let op = refused(&context, write().to(&asyncfd), Errno::EINVAL);
    refused(&other, op.data(1), Errno::EINVAL);
    let stream = Op::write(&writer, b"effect".to_vec()).data(1).to(&asyncfd);
    refused(&other, stream, Errno::EINVAL);
    let twin = context.asyncfd(8).unwrap();
    twin.close();
    let op = refused(&context, write().data(1).to(&twin), Errno::EBADFD);
    drop(twin);
    let op = refused(&context, op, Errno::EBADFD);
    assert_eq!(regular.metadata().unwrap().len(), 0);
    drop(writer);
    let mut none = Vec::new();
    (&reader).read_to_end(&mut none).unwrap();
    assert!(none.is_empty());
    // It is as good as new.
    submit(&context, op.to(&asyncfd));
    assert_eq!(results(&wait(&asyncfd, 1)), [Ok(6)]);
    // Those before it are accepted.
    let mut ops = [Op::nop().data(1).to(&asyncfd), Op::nop().to(&asyncfd)];
    assert_eq!(context.submit(&mut ops), Ok(1));
    assert_eq!(data(&wait(&asyncfd, 1)), [1]);
}

/// Nor does somebody drive for it.
#[test]
fn a_poll_that_is_refused_stays_and_keeps_its_target() {
    let context = context();
    let asyncfd = context.asyncfd(8).unwrap();
    let regular = file(tempfile::tempfile().unwrap());
    let mut ops = [Op::poll(&regular, event::PRI).data(3).to(&asyncfd)];
    for _ in 0..10 {
        assert_eq!(context.submit(&mut ops), Err(Errno::EINVAL));
    }
    assert!(!is_readable(&asyncfd));
}

#[test]
fn sizes_and_contexts_that_cannot_be() {
    let context = context();
    for size in [0, (1 << 24) + 1, usize::MAX] {
        assert_eq!(context.asyncfd(size).unwrap_err(), Errno::EINVAL);
        let asyncfd = context.asyncfd(1).unwrap();
        assert_eq!(asyncfd.replace(size), Err(Errno::EINVAL));
    }
    context.destroy();
    assert_eq!(context.asyncfd(1).unwrap_err(), Errno::EINVAL);
}

// Full, and replaced.

#[test]
fn what_finds_no_room_is_kept_back_in_order() {
    let context = Context::new(100).unwrap();
    let asyncfd = context.asyncfd(8).unwrap();
    nops(&context, &asyncfd, 1, 100);
    // It takes room in the context, and nowhere else.
    let mut more = [Op::nop().data(1).to(&asyncfd)];
    assert_eq!(context.submit(&mut more), Err(Errno::EAGAIN));
    assert_eq!(data(&pop(&asyncfd, 100)), (1..=8).collect::<Vec<_>>());
    assert!(pop(&asyncfd, 100).is_empty());
    // What comes now is behind what is kept back, though there is room.
    nops(&context, &asyncfd, 101, 4);
    assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
    assert_eq!(data(&pop(&asyncfd, 4)), (9..=12).collect::<Vec<_>>());
    assert_eq!(data(&take(&asyncfd)), (13..=104).collect::<Vec<_>>());
    assert!(!is_readable(&asyncfd));
    assert_not_in_the_ring(&context);
}

#[test]
fn a_larger_ring_takes_in_what_was_kept_back() {
    let context = context();
    let asyncfd = context.asyncfd(1).unwrap();
    nops(&context, &asyncfd, 1, 100);
    assert_eq!(asyncfd.replace(10), Ok(()));
    nops(&context, &asyncfd, 101, 5);
    assert_eq!(asyncfd.replace(200), Ok(()));
    assert!(is_readable(&asyncfd));
    assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
    // All of it at once.
    assert_eq!(data(&pop(&asyncfd, 200)), (1..=105).collect::<Vec<_>>());
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    assert!(!is_readable(&asyncfd));
    nops(&context, &asyncfd, 1, 200);
    assert_eq!(pop(&asyncfd, 201).len(), 200);
}

#[test]
fn a_smaller_ring_loses_nothing_either() {
    let context = context();
    let asyncfd = context.asyncfd(100).unwrap();
    nops(&context, &asyncfd, 1, 150);
    assert_eq!(asyncfd.replace(1), Ok(()));
    nops(&context, &asyncfd, 151, 50);
    assert_eq!(data(&take(&asyncfd)), (1..=200).collect::<Vec<_>>());
}

#[test]
fn four_rings_at_most_and_room_again_once_they_are_popped() {
    let context = context();
    let asyncfd = context.asyncfd(2).unwrap();
    for ring in 0..3 {
        nops(&context, &asyncfd, 1 + ring, 1);
        assert_eq!(asyncfd.replace(2), Ok(()));
    }
    for _ in 0..10 {
        assert_eq!(asyncfd.replace(2), Err(Errno::EBUSY));
    }
    assert_eq!(data(&take(&asyncfd)), [1, 2, 3]);
    for _ in 0..100 {
        assert_eq!(asyncfd.replace(2), Ok(()));
        take(&asyncfd);
    }
    asyncfd.close();
    assert_eq!(asyncfd.replace(2), Err(Errno::EBADFD));
}

#[test]
fn it_is_replaced_while_completions_come_and_are_popped() {
    const EACH: u64 = 10_000;
    let mut rng = Rng::seeded();
    let context = Context::new(256).unwrap();
    let asyncfd = context.asyncfd(8).unwrap();
    let replaced = AtomicUsize::new(0);
    thread::scope(|scope| {
        for producer in 0..2 {
            let (context, asyncfd) = (&context, &asyncfd);
            let mut rng = rng.fork();
            scope.spawn(move || {
                let mut n = 0;
                while n < EACH {
                    let op = Op::nop().data(1 + producer * EACH + n).to(asyncfd);
                    let op = if rng.below(4) == 0 { op.offload() } else { op };
                    match context.submit(&mut [op]) {
                        Ok(_) => n += 1,
                        Err(errno) => {
                            assert_eq!(errno, Errno::EAGAIN);
                            thread::yield_now();
                        }
                    }
                }
            });
        }
        let mut sizes = rng.fork();
        let (asyncfd, counted) = (&asyncfd, &replaced);
        scope.spawn(move || {
            while !asyncfd.is_closed() {
                match asyncfd.replace(1 + sizes.below(64)) {
                    Ok(()) => _ = counted.fetch_add(1, Ordering::Relaxed),
                    Err(Errno::EBUSY) => thread::yield_now(),
                    Err(errno) => assert_eq!(errno, Errno::EBADFD),
                }
            }
        });
        let _others = OnPanic(|| asyncfd.close());
        let mut seen = vec![false; 2 * EACH as usize];
        for done in wait(asyncfd, seen.len()) {
            assert_eq!(done.result, Ok(0));
            let seen = &mut seen[done.data as usize - 1];
            assert!(!std::mem::replace(seen, true), "{} twice", done.data);
        }
        asyncfd.close();
    });
    println!("{} replacements", replaced.into_inner());
    assert_not_in_the_ring(&context);
}

#[test]
fn many_may_consume() {
    const ALL: u64 = 20_000;
    let context = Context::new(256).unwrap();
    let asyncfd = context.asyncfd(16).unwrap();
    let popped = AtomicUsize::new(0);
    let mut seen: Vec<u64> = thread::scope(|scope| {
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    while popped.load(Ordering::Relaxed) < ALL as usize {
                        readable_within(&asyncfd, Duration::from_millis(20));
                        let done = take(&asyncfd);
                        popped.fetch_add(done.len(), Ordering::Relaxed);
                        mine.extend(data(&done));
                    }
                    mine
                })
            })
            .collect();
        for n in 1..=ALL {
            while context.submit(&mut [Op::nop().data(n).to(&asyncfd)]) == Err(Errno::EAGAIN) {
                thread::yield_now();
            }
        }
        (consumers.into_iter())
            .flat_map(|consumer| consumer.join().unwrap())
            .collect()
    });
    seen.sort_unstable();
    assert!(seen.into_iter().eq(1..=ALL));
}

// Cancelled, too late, closed, destroyed.

#[test]
fn a_cancelled_request_and_one_whose_time_is_up_complete_there() {
    let context = context();
    let asyncfd = context.asyncfd(1).unwrap();
    let (reader, mut writer) = io::pipe().unwrap();
    let reader = file(reader);
    let read = |data| Op::read(&reader, vec![0; 8]).data(data).to(&asyncfd);
    let cancelled = submit(&context, read(1));
    assert!(!is_readable(&asyncfd));
    assert_eq!(context.cancel(cancelled), Ok(()));
    assert!(is_readable(&asyncfd));
    assert_eq!(context.cancel(cancelled), Err(Errno::EALREADY));
    let done = wait(&asyncfd, 1);
    assert_eq!(
        (data(&done), results(&done)),
        (vec![1], vec![Err(Errno::ECANCELED)])
    );
    assert_eq!(context.cancel(cancelled), Err(Errno::ENOENT));

    // Nobody reaps.
    let begun = Instant::now();
    let limit = Duration::from_millis(20);
    submit(&context, read(2).with_timeout(limit));
    submit(&context, read(3).with_timeout(2 * limit));
    submit(&context, read(4).with_timeout(LONG));
    let done = wait(&asyncfd, 2);
    assert!(begun.elapsed() >= 2 * limit);
    assert_eq!(data(&done), [2, 3]);
    assert_eq!(results(&done), [Err(Errno::ETIME); 2]);
    writer.write_all(b"there").unwrap();
    assert_eq!(results(&wait(&asyncfd, 1)), [Ok(5)]);
    assert!(begun.elapsed() < LONG);
}

#[test]
fn what_is_kept_back_or_comes_after_closing_comes_out_of_the_context() {
    let context = Context::new(16).unwrap();
    let asyncfd = context.asyncfd(4).unwrap();
    let (reader, mut writer) = io::pipe().unwrap();
    let reader = file(reader);
    let read = Op::read(&reader, vec![0; 8]).data(100).to(&asyncfd);
    submit(&context, read);
    nops(&context, &asyncfd, 1, 15);
    assert_not_in_the_ring(&context);
    asyncfd.close();
    assert!(asyncfd.is_closed());
    asyncfd.close();
    let mut more = [Op::nop().data(1).to(&asyncfd)];
    assert_eq!(context.submit(&mut more), Err(Errno::EBADFD));
    let reap = |n| {
        let mut events = Vec::new();
        assert_eq!(context.getevents(n, 16, Some(LONG), &mut events), Ok(n));
        events
    };
    assert_eq!(data(&reap(11)), (5..=15).collect::<Vec<_>>());
    assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
    assert_eq!(data(&pop(&asyncfd, 16)), [1, 2, 3, 4]);
    for _ in 0..2 {
        assert_eq!(asyncfd.drain(), Err(Errno::EBADFD));
        assert!(is_readable(&asyncfd));
    }

    writer.write_all(b"late").unwrap();
    let done = reap(1);
    assert_eq!((data(&done), results(&done)), (vec![100], vec![Ok(4)]));
    let mut ops: Vec<_> = (0..17).map(|_| Op::nop()).collect();
    assert_eq!(context.submit(&mut ops), Ok(16));
    assert!(pop(&asyncfd, 1).is_empty());
}

#[test]
fn dropping_it_with_requests_under_way_takes_no_room() {
    const ROUNDS: u64 = 200;
    let context = Context::new(64).unwrap();
    let (reader, mut writer) = io::pipe().unwrap();
    let reader = file(reader);
    let (mut submitted, mut gone, mut reaped) = (0, 0, Vec::new());
    let reap = |all: &mut Vec<_>| {
        let limit = Some(Duration::from_millis(1));
        context.getevents(1, 64, limit, all).unwrap();
    };
    for round in 0..ROUNDS {
        let asyncfd = context.asyncfd(2).unwrap();
        let mut ops = vec![Op::read(&reader, vec![0; 1]).data(1).to(&asyncfd)];
        ops.extend((0..20).map(|n| Op::nop().data(n + 2).to(&asyncfd).offload()));
        ops.extend((0..10).map(|n| Op::nop().data(n + 30).to(&asyncfd)));
        submitted += ops.len();
        let mut left = &mut ops[..];
        while !left.is_empty() {
            match context.submit(left) {
                Ok(n) => left = &mut left[n..],
                Err(errno) => {
                    assert_eq!(errno, Errno::EAGAIN);
                    reap(&mut reaped);
                }
            }
        }
        if round % 2 == 0 {
            writer.write_all(b"x").unwrap();
        }
        if round % 3 == 0 {
            assert_eq!(pop(&asyncfd, 1).len(), 1);
        }
        drop(asyncfd);
        // What was in its ring is gone, and it was full.
        gone += 2;
        if round % 2 == 1 {
            writer.write_all(b"x").unwrap();
        }
    }
    let begun = Instant::now();
    while reaped.len() + gone < submitted {
        assert!(begun.elapsed() < LONG);
        reap(&mut reaped);
    }
    let mut ops: Vec<_> = (0..65).map(|_| Op::nop()).collect();
    assert_eq!(context.submit(&mut ops), Ok(64));
}

#[test]
fn who_waits_is_told_of_the_closing() {
    let context = context();
    for _ in 0..200 {
        let asyncfd = context.asyncfd(2).unwrap();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    // However it meets the closing, it does not sleep on.
                    loop {
                        assert_eq!(asyncfd.pop(1, &mut Vec::new()), Ok(0));
                        match asyncfd.drain() {
                            Ok(Drained::Empty) => assert!(readable_within(&asyncfd, LONG)),
                            Ok(Drained::Unread) => {}
                            Err(errno) => return assert_eq!(errno, Errno::EBADFD),
                        }
                    }
                });
            }
            asyncfd.close();
        });
        assert!(is_readable(&asyncfd));
    }
}

#[test]
fn a_context_that_is_gone_leaves_what_was_complete() {
    for destroyed in [true, false] {
        let context = context();
        let asyncfd = context.asyncfd(4).unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        let read = Op::read(&file(reader), vec![0; 8]).data(100).to(&asyncfd);
        nops(&context, &asyncfd, 1, 20);
        let taken = pop(&asyncfd, 2);
        submit(&context, read);
        // With sixteen kept back it does not wait for them.
        if destroyed {
            context.destroy();
            context.destroy();
        }
        drop(context);
        assert!(is_readable(&asyncfd));
        let done = take(&asyncfd);
        assert_eq!(data(&taken), [1, 2]);
        assert_eq!(data(&done[..18]), (3..=20).collect::<Vec<_>>());
        // It was cancelled.
        assert_eq!(data(&done[18..]), [100]);
        assert_eq!(results(&done[18..]), [Err(Errno::ECANCELED)]);
        assert!(!is_readable(&asyncfd));
        assert_eq!(asyncfd.replace(1), Ok(()));
    }
}

#[test]
fn a_context_that_is_gone_before_what_is_kept_back() {
    let context = context();
    let (first, second) = (context.asyncfd(1).unwrap(), context.asyncfd(1).unwrap());
    for asyncfd in [&first, &second] {
        nops(&context, asyncfd, 1, 20);
    }
    drop(context);
    drop(first);
    assert_eq!(data(&take(&second)), (1..=20).collect::<Vec<_>>());
}

/// A request that waits for the descriptor which it makes readable itself.
#[test]
fn a_poll_of_the_descriptor_itself_may_complete_there() {
    let context = context();
    let asyncfd = context.asyncfd(4).unwrap();
    let itself = file(asyncfd.as_fd().try_clone_to_owned().unwrap());
    for _ in 0..100 {
        let poll = || Op::poll(&itself, event::IN).data(7).to(&asyncfd);
        submit(&context, poll());
        submit(&context, poll());
        assert!(!is_readable(&asyncfd));
        submit(&context, Op::nop().offload().data(8).to(&asyncfd));
        // Who pops before it is readable keeps it from becoming so, as who drains does.
        assert!(readable_within(&asyncfd, LONG));
        let mut done = Vec::new();
        let begun = Instant::now();
        while done.len() < 3 && begun.elapsed() < LONG {
            done.extend(pop(&asyncfd, 3));
        }
        assert!(take(&asyncfd).is_empty());
        done.sort_by_key(|done| done.data);
        assert_eq!(data(&done), [7, 7, 8]);
        assert_eq!(results(&done[..2]), [Ok(event::IN.into()); 2]);
    }
}

#[test]
fn one_asyncfd_may_tell_of_another() {
    let context = context();
    let (inner, outer) = (context.asyncfd(4).unwrap(), context.asyncfd(4).unwrap());
    let polled = file(inner.as_fd().try_clone_to_owned().unwrap());
    submit(&context, Op::poll(&polled, event::IN).data(1).to(&outer));
    assert!(!is_readable(&outer));
    nops(&context, &inner, 2, 1);
    assert_eq!(data(&wait(&outer, 1)), [1]);
    assert_eq!(data(&wait(&inner, 1)), [2]);
}

// Its user's own memory.

/// As the patch's user has it.
struct Shared {
    uring: Box<Uring>,
    results: Box<[ResultCell]>,
}

impl Shared {
    fn new(size: usize) -> Self {
        let results: Box<[ResultCell]> = (0..size).map(|_| ResultCell::new()).collect();
        let address = results.as_ptr().expose_provenance();
        Self {
            uring: Box::new(Uring::new(address as u64, size as u32, 0)),
            results,
        }
    }

    fn address(&self) -> NonNull<Uring> {
        NonNull::from(&*self.uring)
    }

    fn asyncfd(&self, context: &Context) -> AsyncFd {
        // SAFETY: the tests keep it longer, and it is all atomics.
        unsafe { context.asyncfd_at(self.address()) }.unwrap()
    }

    fn replaces(&self, asyncfd: &AsyncFd) {
        // SAFETY: the tests keep it longer, and it is all atomics.
        assert_eq!(unsafe { asyncfd.replace_at(self.address()) }, Ok(()));
    }

    /// What the user's own code does.
    fn take(&self) -> Option<AsyncfdResult> {
        let iuser = self.uring.iuser();
        let index = iuser.load(Ordering::Relaxed) as usize;
        let result = self.results[index].take()?;
        iuser.store(((index + 1) % self.results.len()) as u32, Ordering::Release);
        Some(result)
    }
}

#[test]
fn its_user_may_take_results_out_of_its_own_memory() {
    let context = context();
    let (first, second) = (Shared::new(4), Shared::new(16));
    let asyncfd = first.asyncfd(&context);
    let mut regular = tempfile::tempfile().unwrap();
    regular.write_all(b"hello").unwrap();
    let read = Op::pread(&file(regular), vec![0; 8], 0)
        .data(77)
        .to(&asyncfd);
    let handle = submit(&context, read);
    assert!(readable_within(&asyncfd, LONG));
    let result = first.take().unwrap();
    assert_eq!((result.cookie, result.res, result.res2), (77, 5, 0));
    let done = asyncfd.collect(result).unwrap();
    assert_eq!(
        (done.data, done.result, done.handle, done.op.into_buf()),
        (77, Ok(5), handle, b"hello\0\0\0".to_vec())
    );
    assert!(asyncfd.collect(result).is_none(), "once");
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    assert!(!is_readable(&asyncfd));

    // Full, and replaced: the old one first.
    nops(&context, &asyncfd, 1, 10);
    second.replaces(&asyncfd);
    assert_eq!(asyncfd.drain(), Ok(Drained::Unread));
    let results: Vec<_> = std::iter::from_fn(|| first.take().or_else(|| second.take())).collect();
    assert!(results.iter().map(|result| result.cookie).eq(1..=10));
    for result in results {
        assert!(asyncfd.collect(result).is_some());
    }
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    // The first is its user's again.
    drop(first);
    nops(&context, &asyncfd, 1, 16);
    assert_eq!(pop(&asyncfd, 20).len(), 16);
}

#[test]
fn what_is_in_it_already_makes_it_readable() {
    let context = context();
    let shared = Shared::new(4);
    shared.results[0].cookie().store(5, Ordering::Relaxed);
    let asyncfd = shared.asyncfd(&context);
    assert!(is_readable(&asyncfd));
    // But it is nobody's.
    assert_eq!(asyncfd.pop(1, &mut Vec::new()), Err(Errno::EFAULT));
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    assert!(!is_readable(&asyncfd));
}

#[test]
fn rings_that_cannot_be_are_refused() {
    let context = context();
    let shared = Shared::new(4);
    let address = shared.results.as_ptr().expose_provenance() as u64;
    for (uring, why) in [
        (Uring::new(address, 0, 0), Errno::EINVAL),
        (Uring::new(address, (1 << 24) + 1, 0), Errno::EINVAL),
        (Uring::new(address + 4, 4, 0), Errno::EINVAL),
        (Uring::new(0, 4, 0), Errno::EFAULT),
        (Uring::new(u64::MAX - 7, 4, 0), Errno::EFAULT),
        (Uring::new(address, 4, 4), Errno::EFAULT),
    ] {
        // SAFETY: a header, and an error.
        let refused = unsafe { context.asyncfd_at(NonNull::from(&uring)) };
        assert_eq!(refused.unwrap_err(), why);
        let asyncfd = context.asyncfd(1).unwrap();
        // SAFETY: as above.
        let refused = unsafe { asyncfd.replace_at(NonNull::from(&uring)) };
        assert_eq!(refused, Err(why));
        nops(&context, &asyncfd, 1, 1);
        assert_eq!(wait(&asyncfd, 1).len(), 1);
    }
    let odd = NonNull::from(&*shared.uring).map_addr(|address| address | 4);
    // SAFETY: not aligned.
    let refused = unsafe { context.asyncfd_at(odd) };
    assert_eq!(refused.unwrap_err(), Errno::EINVAL);
}

#[test]
fn what_is_scribbled_there_harms_nobody_else() {
    let context = context();
    let shared = Shared::new(4);
    let asyncfd = shared.asyncfd(&context);
    // Where to read.
    nops(&context, &asyncfd, 1, 2);
    for wrong in [4, u32::MAX] {
        shared.uring.iuser().store(wrong, Ordering::Relaxed);
        assert_eq!(asyncfd.pop(1, &mut Vec::new()), Err(Errno::EFAULT));
        assert_eq!(asyncfd.drain(), Err(Errno::EFAULT));
        assert!(is_readable(&asyncfd));
    }
    shared.uring.iuser().store(0, Ordering::Relaxed);
    shared.uring.ikernel().store(u32::MAX, Ordering::Relaxed);
    assert_eq!(data(&take(&asyncfd)), [1, 2]);

    // What was read: words of 8 bytes, the last three behind the cookie.
    let word = |index: usize, n: usize| {
        let cell: *const ResultCell = &raw const shared.results[index];
        // SAFETY: within the cell.
        let word = unsafe { cell.cast::<AtomicU64>().add(n) };
        // SAFETY: there as long as the cells.
        unsafe { &*word }
    };
    nops(&context, &asyncfd, 1, 2);
    for (res, expected) in [
        (i64::MIN, Err(Errno::EIO)),
        (-5, Err(Errno::EIO)),
        (i64::MAX, Ok(i64::MAX as usize)),
    ] {
        word(2, 2).store(res as u64, Ordering::Relaxed);
        word(2, 0).store(u64::MAX, Ordering::Relaxed);
        let done = pop(&asyncfd, 1);
        // It is the request that says its data.
        assert_eq!((data(&done), results(&done)), (vec![1], vec![expected]));
        assert_eq!(take(&asyncfd).len(), 1);
        assert_eq!(shared.uring.iuser().load(Ordering::Relaxed), 0);
        nops(&context, &asyncfd, 9, 2);
        take(&asyncfd);
        nops(&context, &asyncfd, 1, 2);
    }
    word(2, 1).store(u64::MAX, Ordering::Relaxed);
    word(3, 1).store(1 << 20, Ordering::Relaxed);
    let mut none = Vec::new();
    assert_eq!(asyncfd.pop(4, &mut none), Err(Errno::EFAULT));
    assert_eq!(asyncfd.drain(), Ok(Drained::Empty));
    // It goes on.
    nops(&context, &asyncfd, 1, 2);
    assert_eq!(take(&asyncfd).len(), 2);
}

#[test]
fn it_may_be_shared_and_moved() {
    let context = context();
    let asyncfd = Arc::new(context.asyncfd(4).unwrap());
    let there = Arc::clone(&asyncfd);
    let waits = thread::spawn(move || data(&wait(&there, 3)));
    nops(&context, &asyncfd, 1, 3);
    assert_eq!(waits.join().unwrap(), [1, 2, 3]);
    assert!(format!("{asyncfd:?}").contains("closed: false"));
}
