//! Time per event: the ring, a context, and crossbeam's queue.

#[cfg(any(loom, shuttle))]
fn main() {}

#[cfg(not(any(loom, shuttle)))]
fn main() {
    measured::main();
}

#[cfg(not(any(loom, shuttle)))]
mod measured {
    use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
    use crossbeam_queue::ArrayQueue;
    use uaio_benches::{BATCH, CAPACITY, Queue, one_thread, two_threads};
    use uaio_core::{
        Context,
        ring::{Boxed, Inline, Ring},
    };

    type Group<'c> = BenchmarkGroup<'c, WallTime>;

    fn each_queue(group: &mut Group<'_>, measure: impl Measure) {
        let boxed = Boxed::native(CAPACITY).expect("a valid capacity");
        measure.queue(group, "ring", &Ring::new(boxed));
        let inline = Inline::<CAPACITY>::new();
        measure.queue(group, "ring, inline", &Ring::new(inline));
        let context = Context::boxed(CAPACITY).expect("a valid capacity");
        measure.queue(group, "context", &context);
        measure.queue(group, "ArrayQueue", &ArrayQueue::new(CAPACITY));
    }

    /// What a closure cannot be: generic.
    trait Measure {
        fn queue(&self, group: &mut Group<'_>, name: &str, queue: &impl Queue);
    }

    struct OneThread<const BATCH: usize>;

    impl<const BATCH: usize> Measure for OneThread<BATCH> {
        fn queue(&self, group: &mut Group<'_>, name: &str, queue: &impl Queue) {
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|n| one_thread::<BATCH>(queue, n));
            });
        }
    }

    struct TwoThreads<const BATCH: usize>;

    impl<const BATCH: usize> Measure for TwoThreads<BATCH> {
        fn queue(&self, group: &mut Group<'_>, name: &str, queue: &impl Queue) {
            two_threads::<BATCH, _>(queue, |run| {
                group.bench_function(name, |bencher| bencher.iter_custom(&mut *run));
            });
        }
    }

    fn groups<const BATCH: usize>(criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group(format!("one thread, batches of {BATCH}"));
        each_queue(&mut group, OneThread::<BATCH>);
        group.finish();
        let mut group = criterion.benchmark_group(format!("two threads, batches of {BATCH}"));
        each_queue(&mut group, TwoThreads::<BATCH>);
        group.finish();
    }

    pub(crate) fn main() {
        let mut criterion = Criterion::default().configure_from_args();
        groups::<1>(&mut criterion);
        groups::<BATCH>(&mut criterion);
        criterion.final_summary();
    }
}
