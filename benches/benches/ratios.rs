//! The gate: how long the ring takes, as a part of what crossbeam's queue takes
//! for the same, measured in turns in one run.
//!
//! Prints the median ratio of each line and fails when one is above its bound.
//! With `--test`, or without `--bench`, it runs everything once and measures
//! nothing.

#[cfg(any(loom, shuttle))]
fn main() {}

#[cfg(not(any(loom, shuttle)))]
fn main() -> std::process::ExitCode {
    measured::main()
}

#[cfg(not(any(loom, shuttle)))]
mod measured {
    use std::{process::ExitCode, time::Duration};

    use crossbeam_queue::ArrayQueue;
    use uaio_benches::{BATCH, CAPACITY, Queue, one_thread, two_threads};
    use uaio_core::ring::{Boxed, Event, Ring};

    /// Events in a turn: a millisecond or two. Shorter than the scheduler's
    /// slice, so that most turns are undisturbed; longer than any start-up.
    const EVENTS: u64 = 1 << 16;
    /// Turns of each queue; odd, so that there is a middle one.
    const ROUNDS: usize = 201;

    /// Measures one queue's turn of so many events.
    type Turn<Q> = fn(&Q, u64) -> Duration;

    struct Line {
        name: &'static str,
        ours: Turn<Ring<Boxed>>,
        rival: Turn<ArrayQueue<Event>>,
        /// The largest ratio that passes; `None` for what is only told.
        bound: Option<f64>,
    }

    const LINES: [Line; 4] = [
        Line {
            name: "one thread, single",
            ours: one_thread::<1>,
            rival: one_thread::<1>,
            bound: Some(1.0),
        },
        Line {
            name: "one thread, batches of 32",
            ours: one_thread::<BATCH>,
            rival: one_thread::<BATCH>,
            bound: None,
        },
        Line {
            name: "two threads, single",
            ours: handed_over::<1>,
            rival: handed_over::<1>,
            bound: None,
        },
        Line {
            name: "two threads, batches of 32",
            ours: handed_over::<BATCH>,
            rival: handed_over::<BATCH>,
            bound: Some(0.3),
        },
    ];

    fn handed_over<const BATCH: usize>(queue: &impl Queue, events: u64) -> Duration {
        two_threads::<BATCH, _>(queue, |run| run(events))
    }

    fn median(mut values: Vec<f64>) -> f64 {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    pub(crate) fn main() -> ExitCode {
        let arguments: Vec<String> = std::env::args().collect();
        let given = |flag: &str| arguments.iter().any(|argument| argument == flag);
        let measuring = given("--bench") && !given("--test");
        let (events, rounds) = if measuring {
            (EVENTS, ROUNDS)
        } else {
            (256, 1)
        };

        let per_event = |took: Duration| took.as_nanos() as f64 / events as f64;

        let mut missed = 0;
        for line in &LINES {
            let memory = Boxed::native(CAPACITY).expect("a valid capacity");
            let (ours, rival) = (Ring::new(memory), ArrayQueue::new(CAPACITY));
            let (mut our_times, mut rival_times, mut ratios) = (vec![], vec![], vec![]);
            for _ in 0..rounds {
                let our_time = per_event((line.ours)(&ours, events));
                let rival_time = per_event((line.rival)(&rival, events));
                our_times.push(our_time);
                rival_times.push(rival_time);
                ratios.push(our_time / rival_time);
            }
            if !measuring {
                println!("{}: ran", line.name);
                continue;
            }
            let ratio = median(ratios);
            let verdict = match line.bound {
                None => String::new(),
                Some(bound) if ratio <= bound => format!(", at most {bound}: ok"),
                Some(bound) => {
                    missed += 1;
                    format!(", above {bound}: MISSED")
                }
            };
            println!(
                "{:<27} ring {:6.2} ns, ArrayQueue {:6.2} ns, ratio {ratio:.2}{verdict}",
                line.name,
                median(our_times),
                median(rival_times),
            );
        }
        if missed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
