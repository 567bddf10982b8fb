//! A forked process has a copy of each context, which is of no use there, and no harm
//! to the other one.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    fs,
    future::Future,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{self, Poll, Waker},
    thread,
    time::Duration,
};

use common::{Bell, OnPanic, Rng, collect, fifo, soon, threads_in};
use rustix::event::{PollFd, PollFlags, poll};
use uaio::{AsyncFd, Callback, Context, Drained, Errno, File, Op, Operation, event, flag};
use uaio_core::wait::WaitQueue;

/// Forks, and has the other process do this, and end: well, unless it panics or takes too
/// long.
fn in_fork(child: impl FnOnce()) {
    // SAFETY: what it does then may allocate: the C library sees to that. It takes no
    // other lock that a thread of this process may have, or is found out by that.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: a number.
        unsafe { libc::alarm(20) };
        let code = i32::from(catch_unwind(AssertUnwindSafe(child)).is_err());
        // SAFETY: a number. Neither destructors nor the harness of the tests go on here.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: an integer to write.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    assert_eq!(status, 0, "how the forked process ended");
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn every_call_is_an_error(context: &Context, asyncfd: &AsyncFd, armed: &Op) {
    let mut events = Vec::new();
    let now = Some(Duration::ZERO);
    assert_eq!(context.submit(&mut [Op::nop()]), Err(Errno::EINVAL));
    // SAFETY: there is none.
    let raw = unsafe { context.submit_raw(&mut []) };
    assert_eq!(raw, Err(Errno::EINVAL));
    let refused = context.operation(Op::nop().data(5)).unwrap_err();
    assert_eq!((refused.errno, refused.op.handle()), (Errno::EINVAL, None));
    assert_eq!(context.asyncfd(1).unwrap_err(), Errno::EINVAL);
    let got = context.getevents(0, 1, now, &mut events);
    assert_eq!(got, Err(Errno::EINVAL));
    let got = context.getevents(1, 1, None, &mut events);
    assert_eq!(got, Err(Errno::EINVAL));
    let cancelled = context.cancel(armed.handle().unwrap());
    assert_eq!(cancelled, Err(Errno::EINVAL));
    assert_eq!(asyncfd.pop(1, &mut events), Err(Errno::EINVAL));
    assert_eq!(asyncfd.drain(), Err(Errno::EINVAL));
    assert_eq!(asyncfd.replace(1), Err(Errno::EINVAL));
    asyncfd.close();
    assert!(!asyncfd.is_closed());
    context.destroy();
    let callback = Callback::new(Op::nop(), |_| panic!("called"));
    assert_eq!(callback.submit().unwrap_err().errno, Errno::EINVAL);
    assert!(events.is_empty());
}

fn is_pending(operation: &mut Pin<Box<Operation>>) -> bool {
    let mut task = task::Context::from_waker(Waker::noop());
    operation.as_mut().poll(&mut task).is_pending()
}

static ALONE: Mutex<()> = Mutex::new(());

/// While other threads submit, wait and complete, and may have any lock.
#[test]
fn a_forked_process_disturbs_nobody() {
    let _alone = ALONE.lock();
    let mut rng = Rng::seeded();
    let called = Arc::new(AtomicUsize::new(0));
    let callbacks = AtomicUsize::new(0);
    let callback = || {
        callbacks.fetch_add(1, Relaxed);
        let called = Arc::clone(&called);
        let count = move |_| _ = called.fetch_add(1, Relaxed);
        Callback::new(Op::nop().offload(), count).submit().unwrap();
    };
    callback();
    let busy = Context::builder(64).workers(1..=4).build().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            let mut rng = rng.fork();
            let (busy, over, callback) = (&busy, &over, &callback);
            scope.spawn(move || {
                while !over.load(Relaxed) {
                    let mut ops: Vec<_> = (0..=rng.below(8))
                        .map(|_| Op::nop().offload().with_timeout(Duration::from_secs(100)))
                        .collect();
                    let n = busy.submit(&mut ops).unwrap();
                    collect(busy, n);
                    callback();
                }
            });
        }
        let _over = OnPanic(|| over.store(true, Relaxed));
        for _ in 0..50 {
            round(&busy);
        }
        over.store(true, Relaxed);
    });
    while called.load(Relaxed) < callbacks.load(Relaxed) {
        thread::yield_now();
    }
}

fn round(busy: &Context) {
    let context = Context::builder(16).workers(1..=2).build().unwrap();
    let asyncfd = context.asyncfd(4).unwrap();
    let (reader, mut writer) = io::pipe().unwrap();
    let reader = File::new(reader).unwrap();
    let other = File::new(tempfile::tempfile().unwrap()).unwrap();
    let read = || Op::read(&reader, vec![0; 1]);
    // One that is watched, with nothing under way.
    let (idle, mut idle_writer) = io::pipe().unwrap();
    let idle = File::new(idle).unwrap();
    let mut use_idle = |context: &Context, idle: &File| {
        let limit = Duration::from_secs(20);
        let read = Op::read(idle, vec![0; 1]).with_timeout(limit);
        assert_eq!(context.submit(&mut [read]), Ok(1));
        idle_writer.write_all(b"i").unwrap();
        collect(context, 1).remove(0).result
    };
    assert_eq!(use_idle(&context, &idle), Ok(1));
    let mut idle = Some(idle);
    let mut ops = [read(), read().data(1).to(&asyncfd), Op::nop()];
    assert_eq!(context.submit(&mut ops), Ok(3));
    let mut operation = Box::pin(context.operation(read()).unwrap());
    let write = Op::pwrite(&other, vec![7; 1 << 16], 0).offload();
    assert_eq!(context.submit(&mut [write]), Ok(1));
    assert!(is_pending(&mut operation));

    let mut here = Some((context.clone(), reader.clone(), writer.try_clone().unwrap()));
    let mut operation = Some(operation);
    let (mut context, mut asyncfd) = (Some(context), Some(asyncfd));
    in_fork(|| {
        {
            let context = context.as_ref().unwrap();
            every_call_is_an_error(context, asyncfd.as_ref().unwrap(), &ops[0]);
        }
        let (one_more, reader, writer) = here.take().unwrap();
        drop((one_more, writer, idle.take()));
        let before = descriptors();
        drop(context.take());
        assert_eq!(descriptors(), before - 2);
        assert!(is_pending(operation.as_mut().unwrap()));
        drop(asyncfd.take());
        assert_eq!(descriptors(), before - 3);
        drop(operation.take());
        assert_eq!(descriptors(), before - 3);
        drop(reader);
    });

    // What was under way goes on.
    writer.write_all(b"xyz").unwrap();
    let context = context.unwrap();
    let mut done = collect(&context, 3);
    done.sort_by_key(|done| done.result.unwrap());
    assert!(
        done.iter()
            .map(|done| done.result)
            .eq([Ok(0), Ok(1), Ok(1 << 16)])
    );
    let asyncfd = asyncfd.unwrap();
    let mut popped = Vec::new();
    while popped.is_empty() {
        poll(&mut [PollFd::new(&asyncfd, PollFlags::IN)], None).unwrap();
        asyncfd.pop(4, &mut popped).unwrap();
        let _: Drained = asyncfd.drain().unwrap();
    }
    assert_eq!(popped[0].result, Ok(1));
    let mut operation = operation.unwrap();
    let mut task = task::Context::from_waker(Waker::noop());
    let done = loop {
        match operation.as_mut().poll(&mut task) {
            Poll::Ready(done) => break done,
            Poll::Pending => thread::yield_now(),
        }
    };
    assert_eq!(done.result, Ok(1));
    // They are watched still.
    assert_eq!(use_idle(&context, idle.as_ref().unwrap()), Ok(1));
    assert_eq!(context.submit(&mut [Op::poll(&reader, event::IN)]), Ok(1));
    writer.write_all(b"x").unwrap();
    assert_eq!(collect(&context, 1)[0].result, Ok(event::IN.into()));
    drop(busy.clone());
}

/// One that was destroyed before, and is dropped there last. And one of its own, which
/// starts threads: std takes a lock for that, so no other thread is just being started.
#[test]
fn what_was_over_before_is_dropped_once() {
    let _alone = ALONE.lock();
    let context = Context::new(4).unwrap();
    let asyncfd = context.asyncfd(1).unwrap();
    let mut ops = [Op::nop(), Op::nop().data(1).to(&asyncfd)];
    assert_eq!(context.submit(&mut ops), Ok(2));
    context.destroy();
    let (mut context, mut asyncfd) = (Some(context), Some(asyncfd));
    in_fork(|| {
        let mut events = Vec::new();
        let got = context.as_ref().unwrap().getevents(0, 1, None, &mut events);
        assert_eq!(got, Err(Errno::EINVAL));
        let before = descriptors();
        drop((context.take(), asyncfd.take()));
        assert_eq!(descriptors(), before - 3);

        // A context of its own.
        let context = Context::new(4).unwrap();
        let file = File::new(tempfile::tempfile().unwrap()).unwrap();
        let write = Op::pwrite(&file, vec![1; 8], 0).offload();
        let (reader, mut writer) = io::pipe().unwrap();
        let read = Op::read(&File::new(reader).unwrap(), vec![0; 8]);
        assert_eq!(context.submit(&mut [write, read]), Ok(2));
        writer.write_all(&[1; 8]).unwrap();
        let done = collect(&context, 2);
        assert!(done.iter().all(|done| done.result == Ok(8)));
        drop(context);
    });
    let context = context.unwrap();
    assert_eq!(collect(&context, 1)[0].result, Ok(0));
    let mut popped = Vec::new();
    assert_eq!(asyncfd.unwrap().pop(1, &mut popped), Ok(1));
    assert_eq!(popped[0].data, 1);
}

/// It has a copy of what others wait for, and may wake that. What follows is the other
/// process's, which carries it out when it is woken there.
#[test]
fn what_follows_is_not_carried_out_in_a_forked_process() {
    let _alone = ALONE.lock();
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let context = Context::builder(8)
        .workers(1..=2)
        .patience(Duration::from_millis(1))
        .build()
        .unwrap();
    // The one worker is busy, so who leaves work has to start another one.
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(&dir);
    let open = Op::openat(None, &fifo, flag::O_RDONLY, 0);
    assert_eq!(context.submit(&mut [open.data(1)]), Ok(1));
    let opens = || threads_in("uaio-worker", libc::SYS_openat) > 0;
    assert!(soon(opens), "nobody opens it");
    let content = tempfile::tempfile().unwrap();
    let file = File::new(content.try_clone().unwrap()).unwrap();
    let bells = [(); 2].map(|()| Arc::new(Bell(WaitQueue::new())));
    for (data, bell) in bells.iter().enumerate() {
        let bell = Op::poll_source(bell.clone(), event::IN).linked();
        let write = Op::pwrite(&file, vec![1; 8], 8 * data as u64);
        assert_eq!(context.submit(&mut [bell, write]), Ok(2));
    }
    assert!(soon(|| threads() <= before + 2), "with the one that drives");
    let len = || content.metadata().unwrap().len();
    in_fork(|| {
        bells[0].0.wake(event::IN);
        bells[1].0.close();
        thread::sleep(Duration::from_millis(20));
        assert_eq!(len(), 0);
        assert_eq!(threads(), 1);
        context.destroy();
    });
    assert_eq!(len(), 0);
    bells[0].0.wake(event::IN);
    bells[1].0.close();
    // What is closed hangs up, which is an event.
    let gone = usize::from(event::ERR | event::HUP);
    let mut results: Vec<_> = collect(&context, 4)
        .into_iter()
        .map(|done| done.result.unwrap())
        .collect();
    results.sort_unstable();
    assert_eq!(results, [event::IN.into(), 8, 8, gone]);
    assert_eq!(len(), 16);
    let both = fs::OpenOptions::new().read(true).write(true).open(&fifo);
    assert_eq!(collect(&context, 1)[0].data, 1);
    drop(both);
}
