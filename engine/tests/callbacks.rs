//! Requests with callbacks.
#![cfg(not(any(loom, shuttle)))]

use std::{
    cell::Cell,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use uaio::{Callback, Context, Errno, File, Op, Source, callback_panics, event};
use uaio_core::wait::WaitQueue;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn it_is_called_once_with_what_came() {
    let file = File::new(tempfile::tempfile().unwrap()).unwrap();
    let (sender, receiver) = mpsc::channel();
    for n in 0..100 {
        let sender = sender.clone();
        let write = Op::pwrite(&file, vec![n as u8; 8], n * 8).data(n);
        let write = if n % 2 == 0 { write.offload() } else { write };
        Callback::new(write, move |done| sender.send(done).unwrap())
            .submit()
            .unwrap();
    }
    drop(sender);
    let mut all: Vec<_> = receiver
        .iter()
        .map(|done| {
            assert_eq!(done.result, Ok(8));
            assert_eq!(done.op.into_buf(), [done.data as u8; 8]);
            done.data
        })
        .collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..100));
}

/// More than there is room for, on one descriptor that is not ready.
#[test]
fn there_is_no_limit_but_memory() {
    const MANY: usize = 3000;
    let (reader, mut writer) = std::io::pipe().unwrap();
    let file = File::new(reader).unwrap();
    let (sender, receiver) = mpsc::channel();
    for n in 0..MANY as u64 {
        let sender = sender.clone();
        let read = Op::read(&file, vec![0; 1]).data(n);
        Callback::new(read, move |done| {
            sender.send((done.data, done.result)).unwrap()
        })
        .submit()
        .unwrap();
    }
    assert!(receiver.try_recv().is_err(), "nothing was written");
    writer.write_all(&[1; MANY]).unwrap();
    let mut all: Vec<_> = (0..MANY)
        .map(|_| {
            let (n, result) = receiver.recv_timeout(LIMIT).expect("all are called");
            assert_eq!(result, Ok(1));
            n
        })
        .collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..MANY as u64));
}

/// Each submits the next from its callback; on a stack that would not hold many.
#[test]
fn a_chain_of_a_million_needs_no_stack() {
    const LONG: u64 = 1_000_000;
    fn next(n: u64, done: mpsc::Sender<u64>, deep: Arc<AtomicU64>) {
        let call = move |called: uaio::Called| {
            assert_eq!(called.result, Ok(0));
            assert_eq!(deep.fetch_add(1, Ordering::Relaxed), 0, "within another");
            if n == LONG {
                done.send(n).unwrap();
            } else {
                next(n + 1, done, Arc::clone(&deep));
            }
            deep.fetch_sub(1, Ordering::Relaxed);
        };
        Callback::new(Op::nop(), call).submit().unwrap();
    }
    let (sender, receiver) = mpsc::channel();
    let chain = move || next(1, sender, Arc::default());
    let thread = thread::Builder::new().stack_size(64 << 10).spawn(chain);
    thread.unwrap().join().unwrap();
    assert_eq!(receiver.recv(), Ok(LONG));
}

#[test]
fn a_panic_is_contained_and_counted() {
    let before = callback_panics();
    let (sender, receiver) = mpsc::channel::<()>();
    for n in 0..4 {
        let sender = sender.clone();
        let op = if n < 2 {
            Op::nop()
        } else {
            Op::nop().offload()
        };
        let call = move |_| {
            let _sender = sender;
            panic!("on purpose");
        };
        Callback::new(op, call).submit().unwrap();
    }
    drop(sender);
    // Each has let go of its end.
    assert!(receiver.recv().is_err());
    let counted = || callback_panics() - before;
    while counted() < 4 {
        thread::yield_now();
    }
    assert_eq!(counted(), 4);
    let (sender, receiver) = mpsc::channel();
    let call = move |_| sender.send(()).unwrap();
    Callback::new(Op::nop(), call).submit().unwrap();
    assert_eq!(receiver.recv_timeout(LIMIT), Ok(()));
}

#[test]
fn what_is_refused_is_given_back_and_not_called() {
    let file = File::new(tempfile::tempfile().unwrap()).unwrap();
    let context = Context::new(1).unwrap();
    let asyncfd = context.asyncfd(1).unwrap();
    let called = Arc::new(Mutex::new(0));
    for (op, why) in [
        (Op::pread(&file, vec![7; 3], u64::MAX), Errno::EINVAL),
        (Op::poll(&file, event::PRI), Errno::EINVAL),
        (Op::nop().data(1).to(&asyncfd), Errno::EINVAL),
    ] {
        let counts = Arc::clone(&called);
        let refused = Callback::new(op, move |_| *counts.lock().unwrap() += 1)
            .submit()
            .unwrap_err();
        assert_eq!(refused.errno, why);
        assert_eq!(Arc::strong_count(&called), 2);
        let buf = refused.callback.into_op().into_buf();
        assert!(buf.is_empty() || buf == [7; 3]);
        assert_eq!(Arc::strong_count(&called), 1, "the callback is dropped");
    }
    assert_eq!(*called.lock().unwrap(), 0);
}

/// Reads that wait for long keep nobody else waiting.
#[test]
fn idle_ones_hold_up_no_others() {
    let (reader, writer) = std::io::pipe().unwrap();
    let idle = File::new(reader).unwrap();
    let (sender, receiver) = mpsc::channel();
    for _ in 0..5000 {
        let sender = sender.clone();
        let call = move |done: uaio::Called| sender.send(done.result).unwrap();
        Callback::new(Op::read(&idle, vec![0; 1]), call)
            .submit()
            .unwrap();
    }
    let file = File::new(tempfile::tempfile().unwrap()).unwrap();
    let (other, written) = mpsc::channel();
    let call = move |done: uaio::Called| other.send(done.result).unwrap();
    Callback::new(Op::pwrite(&file, vec![1; 3], 0).offload(), call)
        .submit()
        .unwrap();
    assert_eq!(written.recv_timeout(LIMIT), Ok(Ok(3)));
    assert!(receiver.try_recv().is_err(), "nothing was written");
    // What hangs up ends them.
    drop((sender, writer));
    assert_eq!(receiver.iter().filter(|done| *done == Ok(0)).count(), 5000);
}

/// One that waits for another's, which another thread calls.
#[test]
fn threads_do_not_wait_for_each_other() {
    let (sender, receiver) = mpsc::channel();
    let (inner, heard) = mpsc::channel();
    let call = move |_| {
        let call = move |_| inner.send(()).unwrap();
        Callback::new(Op::nop().offload(), call).submit().unwrap();
        sender.send(heard.recv_timeout(LIMIT)).unwrap();
    };
    // On this thread: it waits within its callback.
    Callback::new(Op::nop(), call).submit().unwrap();
    assert_eq!(receiver.recv(), Ok(Ok(())));
}

/// Also if another thread had submitted that one.
#[test]
fn none_is_called_within_another() {
    const CHAINS: usize = 8;
    thread_local! {
        static WITHIN: Cell<bool> = const { Cell::new(false) };
    }
    fn next(left: u32, done: mpsc::Sender<()>) {
        let call = move |_| {
            assert!(!WITHIN.replace(true), "within another");
            if left == 0 {
                done.send(()).unwrap();
            } else {
                next(left - 1, done.clone());
            }
            WITHIN.set(false);
        };
        // By this thread, and by a worker.
        let op = match left % 2 {
            0 => Op::nop(),
            _ => Op::nop().offload(),
        };
        Callback::new(op, call).submit().unwrap();
    }
    let (sender, receiver) = mpsc::channel();
    for _ in 0..CHAINS {
        let sender = sender.clone();
        thread::spawn(move || next(1000, sender));
    }
    drop(sender);
    for _ in 0..CHAINS {
        assert_eq!(receiver.recv_timeout(LIMIT), Ok(()));
    }
}

/// When a source panics.
#[derive(Clone, Copy, PartialEq)]
enum Panics {
    Never,
    InHeads,
    InMask,
}

/// A source of so many heads.
struct Strange {
    heads: Vec<WaitQueue>,
    panics: Panics,
}

// SAFETY: the queues are the owner's, and stay where they are.
unsafe impl Source for Strange {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        assert!(self.panics != Panics::InHeads, "on purpose");
        self.heads.iter().for_each(visit);
    }
    fn mask(&self) -> u16 {
        assert!(self.panics != Panics::InMask, "on purpose");
        0
    }
}

fn strange(heads: usize, panics: Panics) -> Op {
    let heads = (0..heads).map(|_| WaitQueue::new()).collect();
    let op = Op::poll_source(Arc::new(Strange { heads, panics }), event::IN);
    op.data(7)
}

/// Its submitter has the panic, and its callback EIO, with the request; not within another.
#[test]
fn a_source_that_panics_takes_no_other_request_along() {
    for (heads, panics) in [
        (0, Panics::InHeads),
        (1, Panics::InHeads),
        (0, Panics::InMask),
        (1, Panics::InMask),
    ] {
        let (sender, receiver) = mpsc::channel();
        let within = Arc::new(Mutex::new(()));
        let outer = move |_| {
            let here = within.lock().unwrap();
            let is_over = Arc::clone(&within);
            let inner = move |done: uaio::Called| {
                let alone = is_over.try_lock().is_ok();
                let said = format!("{:?}", done.op);
                sender.send((done.data, done.result, alone, said)).unwrap();
            };
            let callback = Callback::new(strange(heads, panics), inner);
            let submitted = catch_unwind(AssertUnwindSafe(|| callback.submit()));
            assert!(submitted.is_err(), "its submitter has the panic");
            drop(here);
        };
        Callback::new(Op::nop(), outer).submit().unwrap();
        let (data, result, alone, op) = receiver.recv_timeout(LIMIT).unwrap();
        assert_eq!((data, result), (7, Err(Errno::EIO)));
        assert!(alone, "within another");
        assert!(op.contains("Source"), "another request: {op}");
        assert!(receiver.recv().is_err(), "once");
    }
    let (sender, receiver) = mpsc::channel();
    let call = move |_| sender.send(()).unwrap();
    Callback::new(Op::nop().offload(), call).submit().unwrap();
    assert_eq!(receiver.recv_timeout(LIMIT), Ok(()));
}

#[test]
fn what_cannot_be_waited_for_is_given_back() {
    let (sender, receiver) = mpsc::channel::<()>();
    let callback = Callback::new(strange(3, Panics::Never), move |_| sender.send(()).unwrap());
    let refused = callback.submit().unwrap_err();
    assert_eq!(refused.errno, Errno::EOVERFLOW);
    // As it was.
    let refused = refused.callback.submit().unwrap_err();
    assert_eq!(refused.errno, Errno::EOVERFLOW);
    drop(refused.callback.into_op());
    assert!(receiver.recv().is_err(), "not called");
}

#[test]
fn its_time_can_be_limited() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let read = Op::read(&File::new(reader).unwrap(), vec![0; 1]);
    let (sender, receiver) = mpsc::channel();
    let call = move |done: uaio::Called| sender.send(done.result).unwrap();
    Callback::new(read.with_timeout(Duration::from_millis(2)), call)
        .submit()
        .unwrap();
    assert_eq!(receiver.recv_timeout(LIMIT), Ok(Err(Errno::ETIME)));
}
