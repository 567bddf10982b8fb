//! The shipped code on this machine: rounds with jitter.

use std::time::Duration;

use super::{
    Make, Model, all_reached,
    failure::{self, Roles},
    report::Explored,
    seed,
};

mod stress;
pub(super) use stress::pause;

pub(super) const NAME: &str = "plain";

/// Rounds whose roles are handed to the threads at once.
const BATCH: u64 = 64;
/// So many times the usual rounds for an outcome that did not occur yet.
const PATIENCE: u64 = 50;
const HANG: Duration = Duration::from_secs(60);

/// What the jitter follows from.
#[derive(Clone)]
pub(super) struct Place {
    seed: u64,
}

impl Place {
    pub(super) fn describe(&self, _: usize) -> String {
        format!("UAIO_SEED={}", self.seed)
    }

    /// With this the jitter is the same; the rest is up to the machine.
    pub(super) fn environment(&self, _: usize) -> String {
        format!("UAIO_SEED={} ", self.seed)
    }
}

impl Model {
    pub(super) fn run(self, name: &str, _: &Roles, make: Make) -> Option<Explored> {
        let rounds = std::env::var("UAIO_ROUNDS").map_or(1_024, |n| n.parse().expect("a number"));
        let seed = seed();
        failure::reached_place(Place { seed });
        let mut random = stress::Random(seed);
        let mut crew = stress::Crew::default();
        let mut done = 0;
        while done < rounds || (done < rounds * PATIENCE && !all_reached()) {
            let mut all: Vec<_> = (0..BATCH).map(|_| make()).collect();
            let roles = all.iter_mut().map(|s| std::mem::take(&mut s.roles));
            let shifts = roles.map(|roles| roles.into_iter().map(|role| role.body).collect());
            if let Err(failure) = crew.work(shifts.collect(), &mut random, HANG) {
                panic!("{name}: {failure}; UAIO_SEED={seed}");
            }
            for parties in all {
                (parties.check)();
            }
            done += BATCH;
        }
        Some(Explored {
            executions: vec![format!("{done} rounds")],
            most: done,
            seed: Some(seed),
        })
    }
}
