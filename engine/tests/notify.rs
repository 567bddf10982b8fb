//! Who is told of completions, and waits with another signal mask.
#![cfg(not(any(loom, shuttle)))]

use std::{
    mem,
    os::{fd::OwnedFd, unix::thread::JoinHandleExt},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, eventfd};
use uaio::{CompatSigevent, Context, Errno, File, Notify, Op, Sigevent, SignalSet, capabilities};

const SIGEV_NONE: i32 = 1;
const SIGEV_SIGNAL: i32 = 0;
const SIGEV_THREAD_ID: i32 = 4;

fn rt(n: i32) -> i32 {
    libc::SIGRTMIN() + n
}

fn sigevent(notify: i32, signo: i32, tid: i32) -> Sigevent {
    Sigevent {
        value: 7,
        signo,
        notify,
        tid,
        pad: [0; 11],
    }
}

fn block(signo: i32) {
    // SAFETY: zeroes are a set to write.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: a set to write.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: a set, and a signal.
    unsafe { libc::sigaddset(&raw mut set, signo) };
    // SAFETY: a set, and nothing to write.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
}

/// A pending signal, blocked: its code and value.
fn take(signo: i32) -> Option<(i32, usize)> {
    // SAFETY: zeroes are a set to write.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: a set to write.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: a set, and a signal.
    unsafe { libc::sigaddset(&raw mut set, signo) };
    // SAFETY: zeroes are one to write.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a set, a time, and where to write.
    let got = unsafe { libc::sigtimedwait(&raw const set, &raw mut info, &raw const now) };
    // SAFETY: such a signal has a value.
    (got == signo).then(|| (info.si_code, unsafe { info.si_value() }.sival_ptr.addr()))
}

#[test]
fn a_signal_says_that_it_is_of_a_completion_and_which() {
    let signo = rt(3);
    block(signo);
    let context = Context::new(4).unwrap();
    // To this thread, lest another test's takes it.
    // SAFETY: it always succeeds.
    let tid = unsafe { libc::gettid() };
    if !capabilities().thread_signals {
        let notify = Notify::signal(signo, 0).unwrap();
        assert_eq!(notify.to_thread(tid).unwrap_err(), Errno::ENOSYS);
        return;
    }
    let notify = Notify::signal(signo, 0).unwrap().to_thread(tid).unwrap();
    for value in [0, 1, u64::MAX] {
        let op = Op::nop().notify(&notify.value(value));
        context.submit(&mut [op]).unwrap();
        assert_eq!(take(signo), Some((-4, value as usize)));
        assert_eq!(take(signo), None);
        let mut events = Vec::new();
        assert_eq!(context.getevents(1, 1, None, &mut events), Ok(1));
    }
}

#[test]
fn what_cannot_be_told_by_is_refused_and_nothing_taken() {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    for signo in [
        i32::MIN,
        -1,
        0,
        1,
        libc::SIGUSR1,
        31,
        32,
        first - 1,
        last + 1,
        256 + first,
    ] {
        assert_eq!(
            Notify::signal(signo, 0).unwrap_err(),
            Errno::EINVAL,
            "{signo}"
        );
    }
    assert!(Notify::merging_signal(libc::SIGUSR1, 0).is_ok());
    for signo in [0, 32, last + 1, i32::MAX] {
        assert_eq!(
            Notify::merging_signal(signo, 0).unwrap_err(),
            Errno::EINVAL,
            "{signo}"
        );
    }
    let from = |notify, signo, tid| Notify::sigevent(&sigevent(notify, signo, tid));
    assert!(from(SIGEV_NONE, 0, 0).unwrap().is_none());
    assert!(from(SIGEV_SIGNAL, first, 0).unwrap().is_some());
    // A kind that a narrower integer would cut to one that is known.
    for kind in [2, 3, 5, 8, 256, 1 << 16, i32::MIN, -1] {
        assert_eq!(from(kind, first, 0).unwrap_err(), Errno::EINVAL, "{kind}");
    }
    for tid in [i32::MIN, -1, 0, 1 << 30] {
        let refused = from(SIGEV_SIGNAL | SIGEV_THREAD_ID, first, tid).unwrap_err();
        assert_eq!(refused, Errno::EINVAL, "{tid}");
    }
    let compat = CompatSigevent {
        value: u32::MAX,
        signo: first,
        notify: SIGEV_SIGNAL,
        tid: 0,
        pad: [0; 12],
    };
    assert!(Notify::sigevent(&compat.into()).unwrap().is_some());
    let (reader, _writer) = std::io::pipe().unwrap();
    assert_eq!(Notify::eventfd(reader).unwrap_err(), Errno::EINVAL);
    assert_eq!(
        Notify::eventfd(tempfile::tempfile().unwrap()).unwrap_err(),
        Errno::EINVAL
    );
}

/// A thread that is gone is told nothing, and nobody else is.
#[test]
fn a_target_that_is_gone_is_refused() {
    if !capabilities().thread_signals {
        return;
    }
    let signo = rt(4);
    let (sender, receiver) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        block(rt(4));
        // SAFETY: it always succeeds.
        sender.send(unsafe { libc::gettid() }).unwrap();
        let _ = ended.recv();
    });
    let tid = receiver.recv().unwrap();
    let notify = Notify::signal(signo, 0).unwrap().to_thread(tid).unwrap();
    let context = Context::new(2).unwrap();
    // Of one that is under way it is released.
    let (reader, mut writer) = std::io::pipe().unwrap();
    let file = File::new(reader).unwrap();
    let read = Op::read(&file, vec![0; 1]).notify(&notify);
    context.submit(&mut [read]).unwrap();
    drop(end);
    thread.join().unwrap();
    // It is gone for the system a moment after it was joined.
    let gone = Instant::now() + Duration::from_secs(10);
    while Instant::now() < gone {
        let mut ops = [Op::nop().notify(&notify)];
        if context.submit(&mut ops) == Err(Errno::EINVAL) {
            break;
        }
        let mut events = Vec::new();
        context.getevents(0, 1, None, &mut events).unwrap();
    }
    assert_eq!(
        context.submit(&mut [Op::nop().notify(&notify)]),
        Err(Errno::EINVAL)
    );
    std::io::Write::write_all(&mut writer, b"x").unwrap();
    let mut events = Vec::new();
    while events.is_empty() {
        context.getevents(1, 2, None, &mut events).unwrap();
    }
    // All room is free again.
    assert_eq!(context.submit(&mut [Op::nop(), Op::nop()]), Ok(2));
}

#[test]
fn an_eventfd_counts_each_completion() {
    let told: OwnedFd = eventfd(0, EventfdFlags::SEMAPHORE).unwrap();
    let notify = Notify::eventfd(told.try_clone().unwrap()).unwrap();
    let file = File::new(tempfile::tempfile().unwrap()).unwrap();
    let context = Context::new(64).unwrap();
    let mut ops: Vec<_> = (0..64)
        .map(|n| {
            let write = Op::pwrite(&file, vec![1; 8], n * 8);
            let write = if n % 2 == 0 { write.offload() } else { write };
            write.data(n).notify(&notify)
        })
        .collect();
    assert_eq!(context.submit(&mut ops), Ok(64));
    let mut events = Vec::new();
    for _ in 0..64 {
        // By ones: it is a semaphore.
        rustix::io::read(&told, &mut [0; 8]).unwrap();
        // Whoever is told finds one.
        assert_eq!(context.getevents(0, 1, None, &mut events), Ok(1));
    }
    assert_eq!(events.len(), 64);
}

/// One as high as it can be does not hold anybody up, and is told when there is room.
#[test]
fn an_eventfd_that_is_full_is_told_later() {
    let told: OwnedFd = eventfd(0, EventfdFlags::empty()).unwrap();
    rustix::io::write(&told, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let notify = Notify::eventfd(told.try_clone().unwrap()).unwrap();
    let context = Context::new(1).unwrap();
    context.submit(&mut [Op::nop().notify(&notify)]).unwrap();
    let mut events = Vec::new();
    assert_eq!(context.getevents(1, 1, None, &mut events), Ok(1));
    // Its room is taken until it is told.
    let full = context.submit(&mut [Op::nop()]);
    assert_eq!(full, Err(Errno::EAGAIN));
    let mut count = [0; 8];
    rustix::io::read(&told, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1);
    // Blocks until it was told.
    rustix::io::read(&told, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    let free = Instant::now() + Duration::from_secs(10);
    while context.submit(&mut [Op::nop()]).is_err() {
        assert!(Instant::now() < free, "it keeps its room");
        thread::yield_now();
    }
}

/// Completed by many at a time, one below as high as it can be: none of them waits, though
/// the descriptor is one that blocks. The end, which waits for them, comes.
#[test]
fn an_eventfd_that_becomes_full_holds_nobody_up() {
    for _ in 0..200 {
        let context = Context::builder(8).workers(4..=4).build().unwrap();
        let told: OwnedFd = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&told, &(u64::MAX - 2).to_ne_bytes()).unwrap();
        let notify = Notify::eventfd(told.try_clone().unwrap()).unwrap();
        let mut ops: Vec<_> = (0..8)
            .map(|_| Op::nop().offload().notify(&notify))
            .collect();
        assert_eq!(context.submit(&mut ops), Ok(8));
        let mut events = Vec::new();
        let limit = Some(Duration::from_secs(10));
        assert_eq!(context.getevents(8, 8, limit, &mut events), Ok(8));
        let (end, ended) = std::sync::mpsc::channel();
        thread::spawn(move || {
            drop(context);
            end.send(()).unwrap();
        });
        let ended = ended.recv_timeout(Duration::from_secs(10));
        assert_eq!(ended, Ok(()), "a worker waits");
    }
}

/// A burst wakes its reader once, who finds all of it.
#[test]
fn an_eventfd_that_merges_is_readable_once() {
    let told: OwnedFd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let notify = Notify::merging_eventfd(told.try_clone().unwrap()).unwrap();
    let context = Context::new(8).unwrap();
    for _ in 0..3 {
        let mut ops: Vec<_> = (0..8).map(|_| Op::nop().notify(&notify)).collect();
        assert_eq!(context.submit(&mut ops), Ok(8));
        let mut count = [0; 8];
        rustix::io::read(&told, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        let mut events = Vec::new();
        assert_eq!(context.getevents(0, 8, None, &mut events), Ok(8));
        assert!(rustix::io::read(&told, &mut count).is_err(), "once");
    }
}

/// A context that ends while somebody could not be told.
#[test]
fn the_end_does_not_wait_for_who_cannot_be_told() {
    let told: OwnedFd = eventfd(0, EventfdFlags::empty()).unwrap();
    rustix::io::write(&told, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let notify = Notify::eventfd(told.try_clone().unwrap()).unwrap();
    let context = Context::new(1).unwrap();
    context.submit(&mut [Op::nop().notify(&notify)]).unwrap();
    context.destroy();
    drop(context);
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn handle(_: i32) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// A signal that the mask lets in ends the wait, of who leads and of who follows; one
/// that it does not let in waits.
#[test]
fn a_signal_that_is_let_in_ends_the_wait() {
    // SAFETY: zeroes are an empty mask, and no flags.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handle as extern "C" fn(_) as usize;
    // SAFETY: the handler does only what one may do.
    unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, ptr::null_mut()) };
    let context = Context::new(4).unwrap();
    let tell = |thread: libc::pthread_t| {
        // SAFETY: not joined yet.
        unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
    };
    let wait = |context: &Context| {
        block(libc::SIGUSR2);
        let mut within = SignalSet::blocked();
        within.remove(libc::SIGUSR2).unwrap();
        let limit = Some(Duration::from_secs(60));
        let ended = context.pgetevents(1, 1, limit, &within, &mut Vec::new());
        assert!(SignalSet::blocked().contains(libc::SIGUSR2), "set back");
        ended
    };
    let handled = HANDLED.load(Ordering::Relaxed);
    let two = [0, 1].map(|_| {
        let context = context.clone();
        thread::spawn(move || wait(&context))
    });
    for thread in two {
        let begun = Instant::now();
        while !thread.is_finished() {
            // Pending or let in: it is not lost, however soon it comes.
            tell(thread.as_pthread_t());
            thread::sleep(Duration::from_millis(5));
            assert!(begun.elapsed() < Duration::from_secs(30), "it waits on");
        }
        assert_eq!(thread.join().unwrap(), Err(Errno::EINTR));
    }
    assert!(HANDLED.load(Ordering::Relaxed) > handled);
    // What is there already is taken out, though a signal is pending.
    context.submit(&mut [Op::nop()]).unwrap();
    block(libc::SIGUSR2);
    // SAFETY: it always succeeds.
    tell(unsafe { libc::pthread_self() });
    let handled = HANDLED.load(Ordering::Relaxed);
    let mut events = Vec::new();
    let got = context.pgetevents(1, 1, None, &SignalSet::empty(), &mut events);
    assert_eq!(got, Ok(1));
    assert_eq!(HANDLED.load(Ordering::Relaxed), handled);
    // And then it ends the wait for the next.
    let got = context.pgetevents(1, 1, None, &SignalSet::empty(), &mut events);
    assert_eq!(got, Err(Errno::EINTR));
    assert_eq!(HANDLED.load(Ordering::Relaxed), handled + 1);
}
