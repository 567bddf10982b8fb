//! What an asyncfd costs: storing and taking results, what entering a ring that can be
//! replaced costs beside its alternatives, and looking a context up by number.

#[cfg(any(loom, shuttle))]
fn main() {}

#[cfg(not(any(loom, shuttle)))]
fn main() {
    measured::main();
}

#[cfg(not(any(loom, shuttle)))]
mod measured {
    use std::{
        collections::{HashMap, VecDeque},
        hint::black_box,
        sync::{Arc, Mutex, RwLock},
        thread,
    };

    use criterion::{Bencher, Criterion, Throughput};
    use uaio_benches::BATCH;
    use uaio_core::{
        asyncfd::{Asyncfd, AsyncfdResult, Inline},
        context::BoxedContext,
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
        table::Table,
    };

    const SIZE: usize = 1024;

    const RESULT: AsyncfdResult = AsyncfdResult {
        cookie: 1,
        obj: 2,
        res: 3,
        res2: 4,
    };

    pub(crate) fn main() {
        let mut criterion = Criterion::default().configure_from_args();
        results(&mut criterion);
        entering(&mut criterion);
        looking_up(&mut criterion);
        criterion.final_summary();
    }

    fn results(criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group("asyncfd, one thread");
        for batch in [1, BATCH] {
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(format!("add and pop, {batch}"), |bencher| {
                let asyncfd = Asyncfd::new(Inline::<SIZE>::new()).expect("a ring");
                let mut out = [RESULT; BATCH];
                bencher.iter(|| {
                    let stored = asyncfd.add_results(&black_box([RESULT; BATCH])[..batch]);
                    let popped = asyncfd.pop(&mut out[..batch]);
                    assert_eq!((stored, popped), (Ok(batch), Ok(batch)));
                });
            });
            group.bench_function(format!("a deque under a mutex, {batch}"), |bencher| {
                let queue = Mutex::new(VecDeque::with_capacity(SIZE));
                let mut out = [RESULT; BATCH];
                bencher.iter(|| {
                    let lock = || queue.lock().expect("no panic");
                    lock().extend(&black_box([RESULT; BATCH])[..batch]);
                    for (place, result) in out.iter_mut().zip(lock().drain(..batch)) {
                        *place = result;
                    }
                    black_box(&out);
                });
            });
        }
    }

    /// The ways to enter what can be replaced, alone and against another thread that
    /// does the same. Each lets the one who replaces know that nobody is in it any
    /// more, but for the epoch, which only defers.
    fn entering(criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group("entering a ring");
        let gate = (Apart(AtomicU64::new(0)), Apart(AtomicU64::new(0)));
        both(&mut group, "counted exits", &|| {
            let which = gate.0.0.fetch_add(8, Ordering::Acquire);
            black_box(which);
            gate.1.0.fetch_sub(8, Ordering::Release);
        });
        let lock = RwLock::new(0);
        both(&mut group, "a read lock", &|| {
            black_box(*lock.read().expect("no panic"));
        });
        let shared = Mutex::new(Arc::new(0));
        both(&mut group, "a counted reference", &|| {
            let entered = Arc::clone(&shared.lock().expect("no panic"));
            black_box(*entered);
        });
        // Pinning, which only defers. A collector of its own would have to be reached
        // from every thread that produces.
        both(&mut group, "an epoch, which only defers", &|| {
            black_box(crossbeam_epoch::pin());
        });
    }

    #[repr(align(128))]
    struct Apart(AtomicU64);

    type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

    fn both(group: &mut Group<'_>, name: &str, enter: &(dyn Fn() + Sync)) {
        group.bench_function(format!("{name}, alone"), |bencher| bencher.iter(enter));
        group.bench_function(format!("{name}, two threads"), |bencher| {
            beside(bencher, enter);
        });
    }

    fn beside(bencher: &mut Bencher<'_>, enter: &(dyn Fn() + Sync)) {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    enter();
                }
            });
            bencher.iter(enter);
            over.store(true, Ordering::Relaxed);
        });
    }

    /// A context by its number: among few, while nobody inserts or removes.
    fn looking_up(criterion: &mut Criterion) {
        const CONTEXTS: u64 = 16;
        let mut group = criterion.benchmark_group("looking a context up");
        let context = || Arc::new(BoxedContext::<()>::boxed(1).expect("room"));

        let table = Table::new(64);
        let member = table.join();
        for _ in 0..CONTEXTS {
            member.insert(context()).expect("room");
        }
        let locked: RwLock<HashMap<u64, _>> =
            RwLock::new((1..=CONTEXTS).map(|id| (id, context())).collect());
        let mutexed: Mutex<HashMap<u64, _>> =
            Mutex::new((1..=CONTEXTS).map(|id| (id, context())).collect());

        let over = AtomicBool::new(false);
        for beside in [false, true] {
            let also = if beside { ", two threads" } else { ", alone" };
            let mut run = |name: &str, other: &(dyn Fn() + Sync), this: &dyn Fn()| {
                over.store(!beside, Ordering::Relaxed);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            other();
                        }
                    });
                    group.bench_function(format!("{name}{also}"), |bencher| bencher.iter(this));
                    over.store(true, Ordering::Relaxed);
                });
            };
            let with_table = || {
                // One member per thread, as its users have it.
                let member = table.join();
                while !over.load(Ordering::Relaxed) {
                    black_box(member.get(black_box(3)));
                }
            };
            run("the table, by epochs", &with_table, &|| {
                black_box(member.get(black_box(7)));
            });
            let by_lock = |id: u64| {
                locked
                    .read()
                    .expect("no panic")
                    .get(&black_box(id))
                    .cloned()
            };
            run("a map under a read lock", &|| drop(by_lock(3)), &|| {
                black_box(by_lock(7));
            });
            let by_mutex = |id: u64| {
                mutexed
                    .lock()
                    .expect("no panic")
                    .get(&black_box(id))
                    .cloned()
            };
            run("a map under a mutex", &|| drop(by_mutex(3)), &|| {
                black_box(by_mutex(7));
            });
        }
    }
}
