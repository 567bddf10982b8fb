//! Schedules at scale: random ones, PCT ones, and all of them where that ends.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use shuttle::{
    Config, FailurePersistence, MaxSteps, Runner,
    scheduler::{DfsScheduler, PctScheduler, RandomScheduler, ReplayScheduler},
};
use uaio_core::sync::timeline;

use super::{
    Count, Make, Model, all_reached,
    failure::{self, Roles},
    report::{Explored, in_workspace},
    run_once, seed,
};

pub(super) const NAME: &str = "shuttle";

/// Below the root of the workspace.
const SCHEDULES: &str = "target/shuttle";
const EXECUTIONS: usize = 4_000;
const PCT_DEPTH: usize = 3;
/// So many times these for an outcome that did not occur yet, or for a control
/// that was not refuted yet: the dearest needs some 1,000 executions.
const PATIENCE: u64 = 10;

/// Depth first ends within these, or it is cut off.
const MOST_DEPTH_FIRST: usize = 5_000;
const LONGEST_DEPTH_FIRST: Duration = Duration::from_secs(1);
/// Depth first runs who spins for ever: an execution that long is given up.
const MOST_STEPS: usize = 2_000;

/// What the random schedules follow from.
#[derive(Clone)]
pub(super) struct Place {
    seed: u64,
    /// The schedules that were there before.
    saved: BTreeSet<OsString>,
}

impl Place {
    pub(super) fn describe(&self, _: usize) -> String {
        format!("seed {}", self.seed)
    }

    /// The roles as they are spawned.
    pub(super) fn in_order(&self, roles: &[&'static str]) -> Vec<&'static str> {
        roles.into()
    }

    /// With this the schedule is run again that shuttle has just saved.
    pub(super) fn environment(&self, _: usize) -> String {
        let replayed = std::env::var_os("UAIO_REPLAY").map(PathBuf::from);
        match replayed.or_else(|| self.schedule()) {
            Some(file) => format!("UAIO_REPLAY={} ", file.display()),
            None => format!("UAIO_SEED={} ", self.seed),
        }
    }

    /// The schedule that is new.
    fn schedule(&self) -> Option<PathBuf> {
        let new = schedules().difference(&self.saved).next()?.clone();
        Some(PathBuf::from(SCHEDULES).join(new))
    }
}

/// The names of all that are saved.
fn schedules() -> BTreeSet<OsString> {
    let files = std::fs::read_dir(in_workspace(SCHEDULES))
        .into_iter()
        .flatten();
    files.flatten().map(|file| file.file_name()).collect()
}

impl Model {
    pub(super) fn run(self, _: &str, _: &Roles, make: Make) -> Option<Explored> {
        let ended = Arc::new(Count::default());
        let body = {
            let ended = Arc::clone(&ended);
            move || {
                timeline::begin();
                run_once(make(), &[]);
                ended.add(1);
            }
        };
        let directory = in_workspace(SCHEDULES);
        std::fs::create_dir_all(&directory).expect("a place for failing schedules");
        let mut config = Config::new();
        config.failure_persistence = FailurePersistence::File(Some(directory));
        config.silence_warnings = true;

        let seed = seed();
        failure::reached_place(Place {
            seed,
            saved: schedules(),
        });
        if let Some(file) = std::env::var_os("UAIO_REPLAY") {
            let file = in_workspace(file);
            let scheduler = ReplayScheduler::new_from_file(file).expect("a saved schedule");
            Runner::new(scheduler, config).run(body);
            return None;
        }
        let (mut random, mut pct) = (0, 0);
        for i in 0..PATIENCE {
            let seed = seed.wrapping_add(i);
            let scheduler = RandomScheduler::new_from_seed(seed, EXECUTIONS);
            random += Runner::new(scheduler, config.clone()).run(body.clone());
            let scheduler = PctScheduler::new_from_seed(seed, PCT_DEPTH, EXECUTIONS);
            pct += Runner::new(scheduler, config.clone()).run(body.clone());
            if all_reached() {
                break;
            }
        }

        config.max_time = Some(LONGEST_DEPTH_FIRST);
        config.max_steps = MaxSteps::ContinueAfter(MOST_STEPS);
        let (before, start) = (ended.get(), Instant::now());
        let scheduler = DfsScheduler::new(Some(MOST_DEPTH_FIRST), false);
        let dfs = Runner::new(scheduler, config).run(body);
        let all = dfs < MOST_DEPTH_FIRST
            && start.elapsed() < LONGEST_DEPTH_FIRST
            && ended.get() - before == dfs as u64;
        let extent = if all { "all" } else { "cut off" };

        Some(Explored {
            executions: vec![
                format!("random {random}"),
                format!("PCT of depth {PCT_DEPTH} {pct}"),
                format!("DFS {dfs} ({extent})"),
            ],
            most: if all { dfs } else { random } as u64,
            seed: Some(seed),
        })
    }
}
