//! Time per random read of a cached block: the engine, inline and by workers, and its
//! rivals, one at a time and 32 at once.

#[cfg(any(loom, shuttle))]
fn main() {}

#[cfg(not(any(loom, shuttle)))]
fn main() {
    measured::main();
}

#[cfg(not(any(loom, shuttle)))]
mod measured {
    use std::path::Path;

    use criterion::Criterion;
    use uaio_benches::{
        BATCH,
        reads::{
            Blocking, Blocks, GlibcAio, KernelAio, Nowait, Plain, Reader, SpawnBlocking, TokioFile,
            Uaio, turn,
        },
    };

    pub(crate) fn main() {
        let mut criterion = Criterion::default().configure_from_args();
        // 256 MiB, or 1.
        let test = std::env::args().any(|argument| argument == "--test");
        let count = if test { 256 } else { 1 << 16 };
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let blocks = Blocks::new(folder, count).expect("room on the disk");
        for depth in [1, BATCH] {
            group(&mut criterion, &blocks, depth);
        }
        criterion.final_summary();
    }

    fn group(criterion: &mut Criterion, blocks: &Blocks, depth: usize) {
        let open = || blocks.open(0).expect("it is there");
        let files = || (0..depth).map(|_| open());
        let aio = KernelAio::new(open(), depth, false);
        let mut readers: Vec<(&str, Box<dyn Reader>)> = vec![
            ("pread", Box::new(Plain::new(open(), depth, false))),
            (
                "preadv2 that does not wait",
                Box::new(Nowait::new(open(), depth)),
            ),
            ("uaio", Box::new(Uaio::new(open(), depth, false))),
            ("uaio, workers", Box::new(Uaio::new(open(), depth, true))),
            ("kernel AIO", Box::new(aio.expect("as many as that"))),
            ("glibc AIO", Box::new(GlibcAio::new(open(), depth, false))),
            (
                "glibc AIO, listed",
                Box::new(GlibcAio::new(open(), depth, true)),
            ),
            ("blocking", Box::new(Blocking::new(open(), depth))),
            (
                "tokio's spawn_blocking",
                Box::new(SpawnBlocking::new(open(), depth)),
            ),
            ("tokio's File", Box::new(TokioFile::new(files()))),
        ];
        let mut group = criterion.benchmark_group(format!("cached reads, {depth} at once"));
        for (name, reader) in &mut readers {
            let mut seed = 0;
            group.bench_function(*name, |bencher| {
                bencher.iter_custom(|n| {
                    seed += 1;
                    let numbers = blocks.at_random(seed, n as usize);
                    turn(&mut **reader, &numbers, depth)
                });
            });
        }
    }
}
