//! Workers: how they are started, and what becomes of requests if they are not.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    fs, io,
    panic::resume_unwind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use common::{Bell, Jail, NOBODY, OnPanic, Rng, again, collect, fifo, jail, soon, threads_in};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uaio::{Context, Errno, File, Op, event, flag};
use uaio_core::wait::WaitQueue;

/// How many requests, by how many submitters.
const ALL: usize = 100_000;
const SUBMITTERS: usize = 4;

fn refused(errno: i32) -> io::Result<JoinHandle<()>> {
    Err(io::Error::from_raw_os_error(errno))
}

/// How often a spawner was asked, and what came of it.
#[derive(Debug, Default)]
struct Starts {
    good: AtomicUsize,
    bad: AtomicUsize,
    ended: AtomicUsize,
}

impl Starts {
    /// Starts a thread that is counted until its end.
    fn spawn(
        self: &Arc<Self>,
        builder: thread::Builder,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let starts = Arc::clone(self);
        let started = builder.spawn(move || {
            body();
            starts.ended.fetch_add(1, Relaxed);
        });
        let count = match &started {
            Ok(_) => &self.good,
            Err(_) => &self.bad,
        };
        count.fetch_add(1, Relaxed);
        started
    }
}

/// Submits all requests from several threads, some at a time, with a rest now and then,
/// and takes the completions out; whichever thread finds them.
fn load(context: &Context, rng: &mut Rng) {
    let file = File::new(tempfile::tempfile().unwrap()).unwrap();
    let done = Mutex::new(Vec::with_capacity(ALL));
    thread::scope(|scope| {
        for submitter in 0..SUBMITTERS {
            let mut rng = rng.fork();
            let (file, done) = (&file, &done);
            scope.spawn(move || {
                let _end = OnPanic(|| context.destroy());
                let each = ALL / SUBMITTERS;
                let mut next = submitter * each..(submitter + 1) * each;
                let (mut ops, mut events) = (Vec::new(), Vec::new());
                while !next.is_empty() || !ops.is_empty() {
                    for data in next.by_ref().take(rng.below(64)) {
                        let op = match rng.below(8) {
                            0 => Op::pwrite(file, vec![1; 8], data as u64),
                            _ => Op::nop(),
                        };
                        ops.push(op.data(data as u64).offload());
                    }
                    match context.submit(&mut ops) {
                        Ok(n) => drop(ops.drain(..n)),
                        Err(errno) => assert_eq!(errno, Errno::EAGAIN),
                    }
                    context.getevents(0, 64, None, &mut events).unwrap();
                    if rng.below(100) == 0 {
                        // Some workers leave.
                        thread::sleep(Duration::from_millis(1));
                    }
                }
                // For those who have no room otherwise.
                done.lock().unwrap().extend(events);
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.extend(collect(context, ALL - done.len()));
    assert_eq!(context.getevents(0, 1, None, &mut done), Ok(0));
    done.sort_by_key(|done| done.data);
    assert!(done.iter().map(|done| done.data).eq(0..ALL as u64));
    assert!(done.iter().all(|done| matches!(done.result, Ok(0 | 8))));
}

#[test]
fn starts_that_fail_at_random_lose_nothing() {
    let mut rng = Rng::seeded();
    let starts = Arc::new(Starts::default());
    let counted = Arc::clone(&starts);
    let dice = Mutex::new(rng.fork());
    let context = Context::builder(256)
        .workers(1..=8)
        .patience(Duration::from_micros(100))
        .spawner(move |builder, body| {
            let first = counted.good.load(Relaxed) == 0;
            let dice = dice.lock().unwrap().below(8);
            match dice {
                0..4 if !first => {
                    counted.bad.fetch_add(1, Relaxed);
                    match dice {
                        // Not what it may do, but it does not harm.
                        0 => builder.spawn(move || drop(body)),
                        1 => resume_unwind(Box::new("on purpose")),
                        _ => refused(libc::EAGAIN),
                    }
                }
                _ => counted.spawn(builder, body),
            }
        })
        .build()
        .unwrap();
    load(&context, &mut rng);
    println!("{starts:?}");
    assert!(starts.good.load(Relaxed) >= 10, "{starts:?}");
    assert!(starts.bad.load(Relaxed) >= 10, "{starts:?}");
    context.destroy();
    let good = starts.good.load(Relaxed);
    assert_eq!(starts.ended.load(Relaxed), good, "not joined");
}

#[test]
fn starts_that_the_system_refuses_lose_nothing() {
    again(Jail::Alone, &["with_a_limit_for_threads", "--exact"]);
}

/// As somebody for whom RLIMIT_NPROC holds, as it does not for root.
#[test]
fn with_a_limit_for_threads() {
    if jail() != Some(Jail::Alone) {
        return;
    }
    assert!(!rustix::process::geteuid().is_root());
    let mut rng = Rng::seeded();
    let before = getrlimit(Resource::Nproc);
    let limit = |current| {
        let limit = Rlimit { current, ..before };
        setrlimit(Resource::Nproc, limit).unwrap();
    };
    let starts = Arc::new(Starts::default());
    let counted = Arc::clone(&starts);
    let context = Context::builder(256)
        .workers(1..=8)
        .patience(Duration::from_micros(100))
        .spawner(move |builder, body| counted.spawn(builder, body))
        .build()
        .unwrap();
    let over = AtomicBool::new(false);
    let (mut bound, mut dice) = (0, rng.fork());
    thread::scope(|scope| {
        scope.spawn(|| {
            // The submitters are there, if they can.
            thread::sleep(Duration::from_millis(50));
            while !over.load(Relaxed) {
                limit(Some(1));
                let refused = thread::Builder::new().spawn(|| {}).unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN));
                bound += 1;
                thread::sleep(Duration::from_micros(dice.below(5_000) as u64));
                limit(before.current);
                thread::sleep(Duration::from_micros(dice.below(1_000) as u64));
            }
        });
        let _over = OnPanic(|| over.store(true, Relaxed));
        load(&context, &mut rng);
        over.store(true, Relaxed);
    });
    println!("{starts:?}, bound {bound} times");
    assert!(bound > 0);
    assert!(starts.good.load(Relaxed) > 1, "{starts:?}");
    assert!(starts.bad.load(Relaxed) > 0, "{starts:?}");

    limit(Some(1));
    assert_eq!(Context::new(1).unwrap_err(), Errno::EAGAIN);
    // What there is goes on.
    let mut ops: Vec<_> = (0..256).map(|_| Op::nop().offload()).collect();
    assert_eq!(context.submit(&mut ops), Ok(256));
    assert_eq!(collect(&context, 256).len(), 256);
    if rustix::process::getuid().as_raw() == NOBODY {
        assert!(fs::File::open("/etc/shadow").is_err());
    }
}

#[test]
fn no_context_without_its_first_workers() {
    for errno in [libc::EAGAIN, libc::ENOMEM, libc::EPERM] {
        let spawner = move |_: thread::Builder, _| refused(errno);
        let not_made = Context::builder(1).spawner(spawner).build();
        assert_eq!(not_made.unwrap_err().raw(), errno);
    }
    let other = |_: thread::Builder, _| Err(io::Error::other("not a number"));
    let not_made = Context::builder(1).spawner(other).build();
    assert_eq!(not_made.unwrap_err(), Errno::EAGAIN);
    let panics = |_: thread::Builder, _| resume_unwind(Box::new("on purpose"));
    let not_made = Context::builder(1).spawner(panics).build();
    assert_eq!(not_made.unwrap_err(), Errno::EAGAIN);

    // The third of three: the others are joined.
    let starts = Arc::new(Starts::default());
    let counted = Arc::clone(&starts);
    let two = move |builder: thread::Builder, body| match counted.good.load(Relaxed) {
        2 => refused(libc::ENOMEM),
        _ => counted.spawn(builder, body),
    };
    let not_made = Context::builder(1).workers(3..=8).spawner(two).build();
    assert_eq!(not_made.unwrap_err().raw(), libc::ENOMEM);
    assert_eq!(starts.good.load(Relaxed), 2);
    assert_eq!(starts.ended.load(Relaxed), 2);
}

/// Of the thread that calls it: its name, and which signals it blocks.
fn about_this_thread() -> (String, u64) {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let of = |what: &str| {
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix(what)).unwrap();
        line.trim().to_owned()
    };
    let blocked = u64::from_str_radix(&of("SigBlk:"), 16).unwrap();
    (of("Name:"), blocked)
}

#[test]
fn workers_have_a_name_and_take_no_signals() {
    let (_, own_mask) = about_this_thread();
    for own in [None, Some("a-name-of-mine")] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let context = Context::builder(1)
            .workers(2..=2)
            .spawner(move |builder, body| {
                let builder = match own {
                    Some(own) => builder.name(own.into()),
                    None => builder,
                };
                let noted = Arc::clone(&noted);
                builder.spawn(move || {
                    noted.lock().unwrap().push(about_this_thread());
                    body();
                })
            })
            .build()
            .unwrap();
        drop(context);
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 2);
        for (name, blocked) in &*seen {
            assert_eq!(name, own.unwrap_or("uaio-worker"));
            // But for those that cannot be, and those of the C library.
            for signo in 1..=64 {
                let never = [libc::SIGKILL, libc::SIGSTOP].contains(&signo);
                let reserved = (32..libc::SIGRTMIN()).contains(&signo);
                let blocks = blocked & 1 << (signo - 1) != 0;
                assert!(blocks || never || reserved, "{signo} of {blocked:x}");
            }
        }
    }
    // The caller's own mask is as it was.
    assert_eq!(about_this_thread().1, own_mask);
}

#[test]
fn workers_that_are_not_needed_leave() {
    let starts = Arc::new(Starts::default());
    let counted = Arc::clone(&starts);
    let context = Context::builder(256)
        .workers(2..=8)
        .patience(Duration::from_millis(1))
        .spawner(move |builder, body| counted.spawn(builder, body))
        .build()
        .unwrap();
    let file = File::new(tempfile::tempfile().unwrap()).unwrap();
    let burst = || {
        let mut ops: Vec<_> = (0..256)
            .map(|n| Op::pwrite(&file, vec![1; 1 << 12], n << 12).offload())
            .collect();
        assert_eq!(context.submit(&mut ops), Ok(256));
        collect(&context, 256);
    };
    let there = || starts.good.load(Relaxed) - starts.ended.load(Relaxed);
    for _ in 0..10 {
        let before = starts.good.load(Relaxed);
        while starts.good.load(Relaxed) == before.max(2) {
            burst();
        }
        assert!(soon(|| there() == 2), "{starts:?}");
        // Those never.
        thread::sleep(Duration::from_millis(20));
        assert_eq!(there(), 2, "{starts:?}");
    }
    drop(context);
    assert_eq!(there(), 0, "{starts:?}");
}

/// Of each that begins something and leaves nobody idle: so who submits starts none.
#[test]
fn workers_are_started_by_workers() {
    const MOST: usize = 5;
    let by = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&by);
    let context = Context::builder(8)
        .workers(1..=MOST)
        .spawner(move |builder, body| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            noted.lock().unwrap().push(name);
            builder.name("ahead".into()).spawn(body)
        })
        .build()
        .unwrap();
    let there = || by.lock().unwrap().len();
    let idle = || threads_in("ahead", libc::SYS_futex);
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(&dir);
    for busy in 0..MOST {
        assert!(soon(|| there() == busy + 1), "{busy} busy, {by:?}");
        assert!(soon(|| idle() == 1), "{busy} busy, {} idle", idle());
        let open = Op::openat(None, &fifo, flag::O_RDONLY, 0);
        assert_eq!(context.submit(&mut [open]), Ok(1));
    }
    assert!(soon(|| threads_in("ahead", libc::SYS_openat) == MOST));
    let both = fs::OpenOptions::new().read(true).write(true).open(&fifo);
    assert_eq!(collect(&context, MOST).len(), MOST);
    drop((context, both));
    let by = by.lock().unwrap();
    assert!(by[1..].iter().all(|name| name == "ahead"), "{by:?}");
}

/// Started by who submits, or by who wakes what another request follows. Who ends the
/// context then waits for that start, and for the thread.
#[test]
fn the_end_waits_for_a_worker_that_is_being_started() {
    for by_who_wakes in [false, true] {
        let starts = Arc::new(Starts::default());
        let counted = Arc::clone(&starts);
        let (starting, is_starting) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let (starting, may_go_on) = (Mutex::new(starting), Mutex::new(may_go_on));
        let context = Context::builder(8)
            .workers(1..=2)
            .patience(Duration::from_millis(1))
            .spawner(move |builder, body| {
                if thread::current().name() == Some("starts") {
                    starting.lock().unwrap().send(()).unwrap();
                    may_go_on.lock().unwrap().recv().unwrap();
                }
                counted.spawn(builder.name("end-worker".into()), body)
            })
            .build()
            .unwrap();
        // Somebody keeps the first one from looking.
        let dir = tempfile::tempdir().unwrap();
        let fifo = fifo(&dir);
        let open = Op::openat(None, &fifo, flag::O_RDONLY, 0);
        assert_eq!(context.submit(&mut [open]), Ok(1));
        let opens = || threads_in("end-worker", libc::SYS_openat) > 0;
        assert!(soon(opens), "nobody opens it");
        // The other one, if there was one, leaves.
        let there = || starts.good.load(Relaxed) - starts.ended.load(Relaxed);
        assert!(soon(|| there() == 1), "{starts:?}");
        let bell = Arc::new(Bell(WaitQueue::new()));
        if by_who_wakes {
            let poll = Op::poll_source(bell.clone(), event::IN).linked();
            assert_eq!(context.submit(&mut [poll, Op::nop().offload()]), Ok(2));
        }
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let start = || match by_who_wakes {
                true => bell.0.wake(event::IN),
                false => assert_eq!(context.submit(&mut [Op::nop().offload()]), Ok(1)),
            };
            let named = thread::Builder::new().name("starts".into());
            named.spawn_scoped(scope, start).unwrap();
            is_starting.recv().unwrap();
            // All that the first one waits for.
            fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(&fifo)
                .unwrap();
            scope.spawn(|| {
                context.destroy();
                over.store(true, Relaxed);
            });
            thread::sleep(Duration::from_millis(50));
            assert!(!over.load(Relaxed), "while one is being started");
            go_on.send(()).unwrap();
        });
        assert_eq!(there(), 0, "not joined");
    }
}
