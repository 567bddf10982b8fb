//! The request word: from arm to completion one read-modify-write, measured
//! beside a bare one.

#[cfg(any(loom, shuttle))]
fn main() {}

#[cfg(not(any(loom, shuttle)))]
fn main() {
    measured::main();
}

#[cfg(not(any(loom, shuttle)))]
mod measured {
    use std::hint::black_box;

    use criterion::Criterion;
    use uaio_core::{
        request::{Arm, Cancel, Generation, Phase, Wake, Word},
        sync::atomic::{AtomicU64, Ordering},
    };

    pub(crate) fn main() {
        let mut criterion = Criterion::default().configure_from_args();
        let mut group = criterion.benchmark_group("request word");

        group.bench_function("arm, claim, free", |bencher| {
            let word = Word::new(Generation::MIN);
            let mut generation = Generation::MIN;
            bencher.iter(|| {
                let word = black_box(&word);
                word.publish(generation, Phase::Armed);
                let claimed = word.claim(generation).is_ok();
                word.free(generation);
                generation = generation.next();
                claimed
            });
        });

        group.bench_function("arm, cancel, free", |bencher| {
            let word = Word::new(Generation::MIN);
            let mut generation = Generation::MIN;
            bencher.iter(|| {
                let word = black_box(&word);
                word.publish(generation, Phase::Armed);
                let cancelled = matches!(word.cancel(generation), Cancel::Won(_));
                word.free(generation);
                generation = generation.next();
                cancelled
            });
        });

        group.bench_function("early, arm, wake, free", |bencher| {
            let word = Word::new(Generation::MIN);
            let mut generation = Generation::MIN;
            bencher.iter(|| {
                let word = black_box(&word);
                word.publish(generation, Phase::Early);
                let armed = matches!(word.arm(generation), Arm::Armed);
                let woken = matches!(word.wake(generation, 1), Wake::Won(_));
                word.free(generation);
                generation = generation.next();
                armed && woken
            });
        });

        group.bench_function("one compare-and-swap", |bencher| {
            let word = AtomicU64::new(0);
            let mut value = 0;
            bencher.iter(|| {
                let next = value + 1;
                let swapped = black_box(&word).compare_exchange(
                    value,
                    next,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                value = next;
                swapped
            });
        });

        group.finish();
        criterion.final_summary();
    }
}
