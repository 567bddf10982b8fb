//! How two are compared: in turns in one run, by the median of the ratios.

use std::{process::ExitCode, time::Duration};

/// What is asked of a ratio, which says how many times as fast as its rival something is.
#[derive(Clone, Copy, Debug)]
pub enum Asked {
    /// At least this, or the gate is missed.
    Gate(f64),
    /// At least this is aimed at.
    Goal(f64),
    /// It is only told.
    Nothing,
}

/// What was measured, and whether it passes.
#[derive(Debug)]
pub struct Gate {
    measuring: bool,
    missed: usize,
}

impl Gate {
    /// As the arguments of the program say: with `--test`, or without `--bench`, everything
    /// runs once and is not measured.
    pub fn from_arguments() -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let given = |flag: &str| arguments.iter().any(|argument| argument == flag);
        Self {
            measuring: given("--bench") && !given("--test"),
            missed: 0,
        }
    }

    /// Whether it is measured.
    pub fn is_measuring(&self) -> bool {
        self.measuring
    }

    /// `much` if it is measured, or `little`.
    pub fn scale<T>(&self, much: T, little: T) -> T {
        if self.measuring { much } else { little }
    }

    /// Compares one's turns with its rival's, of so many items each, and tells the median
    /// of the ratios. A turn is told its number; who is first changes from one to the next.
    pub fn compare(
        &mut self,
        name: &str,
        asked: Asked,
        (rounds, items): (usize, usize),
        mut ours: impl FnMut(usize) -> Duration,
        mut rival: impl FnMut(usize) -> Duration,
    ) -> f64 {
        let (mut our_times, mut rival_times, mut ratios) = (vec![], vec![], vec![]);
        for round in 0..rounds {
            let (our_time, rival_time) = if round % 2 == 0 {
                let our_time = ours(round);
                (our_time, rival(round))
            } else {
                let rival_time = rival(round);
                (ours(round), rival_time)
            };
            our_times.push(our_time.as_nanos() as f64 / items as f64);
            rival_times.push(rival_time.as_nanos() as f64 / items as f64);
            ratios.push(rival_time.as_secs_f64() / our_time.as_secs_f64());
        }
        let ratio = median(ratios);
        if self.measuring {
            let verdict = self.judge(ratio, asked);
            let (ours, rival) = (median(our_times), median(rival_times));
            println!("{name:<58} {ours:8.1} ns, rival {rival:8.1} ns: {ratio:6.2}{verdict}");
        } else {
            println!("{name}: ran");
        }
        ratio
    }

    /// Whether it is what was asked for. Not asked while nothing is measured.
    pub fn judge(&mut self, ratio: f64, asked: Asked) -> String {
        match asked {
            _ if !self.measuring => String::new(),
            Asked::Nothing => String::new(),
            Asked::Gate(bound) if ratio >= bound => format!(", gate {bound:.2}: ok"),
            Asked::Gate(bound) => {
                self.missed += 1;
                format!(", gate {bound:.2}: MISSED")
            }
            Asked::Goal(bound) if ratio >= bound => format!(", goal {bound:.2}: reached"),
            Asked::Goal(bound) => format!(", goal {bound:.2}: not reached"),
        }
    }

    /// Fails if a gate was missed.
    pub fn exit(self) -> ExitCode {
        match self.missed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
