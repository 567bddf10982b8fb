//! Threads that stay, so that a round costs no spawn and its roles do overlap.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use uaio_core::sync::{
    atomic::{AtomicUsize, Ordering},
    hint,
    thread::{spawn, yield_now},
};

type Body = Box<dyn FnOnce() + Send>;

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }
}

thread_local! {
    static NOISE: Cell<u64> = const { Cell::new(0) };
}

pub(in crate::harness) fn pause() {
    let mut random = Random(NOISE.get());
    match random.below(4) {
        0 => yield_now(),
        1 => spin(random.below(128)),
        _ => {}
    }
    NOISE.set(random.0);
}

fn spin(n: u64) {
    for _ in 0..n {
        hint::spin_loop();
    }
}

/// One thread's part of a batch: what to do in each round, and how many
/// spins after the start.
struct Shift {
    rounds: Vec<(Body, u64)>,
    parties: usize,
    gate: Arc<AtomicUsize>,
    done: Sender<Result<(), String>>,
}

#[derive(Default)]
pub(super) struct Crew(Vec<Sender<Shift>>);

impl Crew {
    /// Runs rounds of roles, the n-th role of each on the n-th thread.
    pub(super) fn work(
        &mut self,
        rounds: Vec<Vec<Body>>,
        random: &mut Random,
        hang: Duration,
    ) -> Result<(), String> {
        let parties = rounds[0].len();
        while self.0.len() < parties {
            let (sender, receiver) = channel();
            // Ends when the crew is dropped.
            let _ = spawn(move || serve(&receiver));
            self.0.push(sender);
        }
        // From none to a few microseconds.
        let mut jitter = || {
            let scale = random.below(10);
            random.below(1 << scale)
        };
        let mut shifts: Vec<Vec<_>> = (0..parties).map(|_| Vec::new()).collect();
        for round in rounds {
            for (shift, body) in shifts.iter_mut().zip(round) {
                shift.push((body, jitter()));
            }
        }
        let gate = Arc::new(AtomicUsize::new(0));
        let (done, results) = channel();
        for (thread, rounds) in self.0.iter().zip(shifts) {
            let shift = Shift {
                rounds,
                parties,
                gate: Arc::clone(&gate),
                done: done.clone(),
            };
            thread.send(shift).map_err(|_| "a thread is gone")?;
        }
        for _ in 0..parties {
            let result = results.recv_timeout(hang);
            result.map_err(|_| "hangs")??;
        }
        Ok(())
    }
}

fn serve(shifts: &Receiver<Shift>) {
    for shift in shifts {
        let mut result = Ok(());
        for (round, (body, jitter)) in (1..).zip(shift.rounds) {
            // Ordering: AcqRel and Acquire: a round starts after the last.
            shift.gate.fetch_add(1, Ordering::AcqRel);
            let mut spins = 0;
            while shift.gate.load(Ordering::Acquire) < round * shift.parties {
                spins += 1;
                if spins % 64 == 0 {
                    yield_now();
                }
                hint::spin_loop();
            }
            NOISE.set(jitter);
            pause();
            spin(jitter);
            // Go on after a panic: the others wait at the gate.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref().map(|s: &&str| (*s).into()));
                result = result.and(Err(text.unwrap_or_else(|| "panicked".into())));
            }
        }
        let _ = shift.done.send(result);
    }
}
