//! Threads that are told, and end, and whose numbers others get.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    fs,
    io::Write,
    mem, ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use common::Rng;
use uaio::{Context, File, Notify, Op, capabilities};

const ROUNDS: u64 = 100;
const EACH: u64 = 100;
const LIMIT: Duration = Duration::from_secs(60);

fn signo() -> i32 {
    libc::SIGRTMIN() + 5
}

fn set() -> libc::sigset_t {
    // SAFETY: zeroes are a set to write.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: a set to write.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: a set, and a signal.
    unsafe { libc::sigaddset(&raw mut set, signo()) };
    set
}

/// Who came to be told for whom.
#[derive(Default)]
struct Told {
    right: AtomicU64,
    wrong: AtomicU64,
}

/// A thread that waits for signals with its generation in their values.
struct Target {
    tid: i32,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Target {
    fn start(generation: u64, told: &Arc<Told>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let thread = {
            let (over, told) = (Arc::clone(&over), Arc::clone(told));
            thread::spawn(move || {
                let set = set();
                // SAFETY: a set, and nothing to write.
                unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
                // SAFETY: it always succeeds.
                sender.send(unsafe { libc::gettid() }).unwrap();
                loop {
                    let last = over.load(Ordering::Acquire);
                    // SAFETY: zeroes are one to write.
                    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
                    let time = libc::timespec {
                        tv_sec: 0,
                        tv_nsec: if last { 0 } else { 1_000_000 },
                    };
                    // SAFETY: a set, a time, and where to write.
                    let got = unsafe {
                        libc::sigtimedwait(&raw const set, &raw mut info, &raw const time)
                    };
                    if got == signo() {
                        // SAFETY: such a signal has a value.
                        let value = unsafe { info.si_value() }.sival_ptr.addr() as u64;
                        let whose = if value == generation {
                            &told.right
                        } else {
                            &told.wrong
                        };
                        whose.fetch_add(1, Ordering::Relaxed);
                    } else if last {
                        return;
                    }
                }
            })
        };
        Self {
            tid: receiver.recv().unwrap(),
            over,
            thread,
        }
    }

    fn end(self) {
        self.over.store(true, Ordering::Release);
        self.thread.join().unwrap();
    }
}

/// Where the number of the next thread can be said, by who may.
const LAST: &str = "/proc/sys/kernel/ns_last_pid";

/// A thread that has this number, if others do not come in between.
fn recycle(tid: i32, generation: &mut u64, told: &Arc<Told>) -> Option<Target> {
    for _ in 0..8 {
        let _ = fs::write(LAST, (tid - 1).to_string());
        *generation += 1;
        let target = Target::start(*generation, told);
        if target.tid == tid {
            return Some(target);
        }
        target.end();
    }
    None
}

#[test]
fn nobody_is_told_for_another() {
    if !capabilities().thread_signals {
        println!("this kernel tells no threads: Linux 6.9 does");
        return;
    }
    let mut rng = Rng::seeded();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let file = File::new(reader).unwrap();
    let context = Context::new(2 * EACH as usize).unwrap();
    let told = Arc::new(Told::default());
    let to = Notify::signal(signo(), 0).unwrap();
    let (mut generation, mut expected, mut recycled, mut gone) = (0, 0, 0_u64, 0_u64);
    for _ in 0..ROUNDS {
        let mut targets = Vec::new();
        for _ in 0..4 {
            generation += 1;
            let target = Target::start(generation, &told);
            let notify = to.clone().to_thread(target.tid).unwrap();
            targets.push((target, notify.value(generation), 0_u64));
        }
        let mut ops = Vec::new();
        for n in 0..EACH {
            let which = rng.below(targets.len());
            let (_, notify, count) = &mut targets[which];
            *count += 1;
            ops.push(Op::read(&file, vec![0; 1]).data(n).notify(notify));
        }
        assert_eq!(context.submit(&mut ops), Ok(ops.len()));
        // Half of them end, and others get their numbers.
        let mut innocent = Vec::new();
        for _ in 0..2 {
            let (target, _, count) = targets.swap_remove(rng.below(targets.len()));
            let tid = target.tid;
            target.end();
            gone += count;
            if let Some(other) = recycle(tid, &mut generation, &told) {
                recycled += 1;
                innocent.push(other);
            }
        }
        expected += targets.iter().map(|(_, _, count)| count).sum::<u64>();
        writer.write_all(&[0; EACH as usize]).unwrap();
        // Each event is in the ring.
        let mut events = Vec::new();
        let got = context.getevents(EACH as usize, EACH as usize, Some(LIMIT), &mut events);
        assert_eq!(got, Ok(EACH as usize));
        assert!(events.iter().all(|done| done.result == Ok(1)));
        let begun = Instant::now();
        while told.right.load(Ordering::Relaxed) < expected {
            assert!(begun.elapsed() < LIMIT, "not all were told");
            thread::sleep(Duration::from_micros(100));
        }
        for (target, _, _) in targets {
            target.end();
        }
        for target in innocent {
            target.end();
        }
    }
    println!(
        "{} requests: {expected} told, {gone} of threads that had ended; {recycled} numbers \
         were another thread's by then",
        ROUNDS * EACH
    );
    assert_eq!(told.right.load(Ordering::Relaxed), expected, "told once");
    assert_eq!(told.wrong.load(Ordering::Relaxed), 0, "told for another");
    if fs::OpenOptions::new().write(true).open(LAST).is_ok() {
        assert!(recycled >= ROUNDS, "{recycled} numbers were recycled");
    } else {
        println!("no numbers are recycled: nobody but the superuser can write {LAST}");
    }
    // None is leaked: all room is free.
    let mut all: Vec<_> = (0..context.capacity()).map(|_| Op::nop()).collect();
    assert_eq!(context.submit(&mut all), Ok(all.len()));
}
