//! Runs one scenario under the checker that the build chose.
//!
//! # What each checker does with it
//!
//! *loom*: unbounded, and with at most three preemptions with the roles spawned in
//! the order in which they are written and in the reverse one. The order matters:
//! loom 0.7 does not take back a thread's load when the same thread then writes
//! there, so what it explores depends on who comes first; and bounded and unbounded
//! runs explore different sets.
//! A run that hits a cap fails, and so does a model that had only one execution
//! per order. With `UAIO_SOUND=1` loom is taken to be the patched one, which
//! needs neither: one order, and hardly any bound.
//! `UAIO_ORDER=1,0 UAIO_BOUND=3` (or `unbounded`) runs just that.
//!
//! *shuttle*: random schedules, then PCT ones, then depth first, which may be cut
//! off. The seed is printed, and `UAIO_SEED` repeats it; a failing schedule is
//! saved below `target/shuttle/`, and `UAIO_REPLAY=<file>` runs it again.
//!
//! *plain threads*: rounds, started together with a seeded jitter.
//! `UAIO_ROUNDS` says how many, `UAIO_SEED` repeats the jitter.
//!
//! A model that passes says so in a line, and in the file `UAIO_REPORT`; see
//! `report.rs`. One that fails prints, under a checker, the timeline of the
//! execution, and the command that replays it. A replay is for one model
//! (`--exact`): it demands no outcomes, and reports nothing.
//!
//! Nothing here is visible to a checker.

use std::{
    any::type_name_of_val,
    collections::BTreeMap,
    io::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

#[cfg(any(loom, shuttle))]
mod control;
mod failure;
#[cfg(test)]
pub(crate) mod lent;
mod parts;
mod report;
mod theorem;
#[cfg(any(loom, shuttle))]
mod timeline;

#[cfg(any(loom, shuttle))]
pub use control::{Control, Shows};
pub use parts::{Count, Handed, Memory, Sleeper, block_on};
pub use theorem::Theorem;

use report::{Explored, Report};

#[cfg(loom)]
mod loom;
#[cfg(loom)]
use loom as checker;

#[cfg(shuttle)]
mod shuttle;
#[cfg(shuttle)]
use shuttle as checker;

#[cfg(not(any(loom, shuttle)))]
mod plain;
#[cfg(not(any(loom, shuttle)))]
use plain as checker;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A failed model poisons what it held; the next one starts afresh.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The parties of a claim: what they share, what each does, and what holds when
/// all are done.
pub struct Scenario<T> {
    shared: Arc<T>,
    roles: Vec<Role>,
    check: Box<dyn FnOnce(&T) + Send>,
}

struct Role {
    name: &'static str,
    body: Box<dyn FnOnce() + Send>,
}

impl<T> std::fmt::Debug for Scenario<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.roles.iter().map(|role| role.name))
            .finish()
    }
}

impl<T: Send + Sync + 'static> Scenario<T> {
    /// A scenario about `shared`, still without parties.
    pub fn of(shared: T) -> Self {
        Self {
            shared: Arc::new(shared),
            roles: Vec::new(),
            check: Box::new(|_| ()),
        }
    }

    /// What the parties share, to give some of it to one of them.
    pub fn shared(&self) -> &T {
        &self.shared
    }

    /// Adds a party. Parties of one name do the same, whatever its names in it.
    pub fn role(mut self, name: &'static str, body: impl FnOnce(&T) + Send + 'static) -> Self {
        let shared = Arc::clone(&self.shared);
        self.roles.push(Role {
            name,
            body: Box::new(move || body(&shared)),
        });
        self
    }

    /// What to check after all have ended.
    pub fn finally(mut self, check: impl FnOnce(&T) + Send + 'static) -> Self {
        self.check = Box::new(check);
        self
    }
}

/// A scenario, whatever its parties share.
struct Parties {
    roles: Vec<Role>,
    check: Box<dyn FnOnce() + Send>,
}

impl<T: Send + Sync + 'static> From<Scenario<T>> for Parties {
    fn from(scenario: Scenario<T>) -> Self {
        let Scenario {
            shared,
            roles,
            check,
        } = scenario;
        Self {
            roles,
            check: Box::new(move || check(&shared)),
        }
    }
}

/// Makes it anew, for each execution.
type Make = Arc<dyn Fn() -> Parties + Send + Sync>;

/// What makes a scenario, and where it is written. All that explores one is built once,
/// and not for each model.
struct Subject {
    /// Of the closure.
    path: &'static str,
    make: Make,
}

impl Subject {
    fn of<T, F>(scenario: F) -> Self
    where
        T: Send + Sync + 'static,
        F: Fn() -> Scenario<T> + Send + Sync + 'static,
    {
        Self {
            path: type_name_of_val(&scenario),
            make: Arc::new(move || scenario().into()),
        }
    }

    /// The test function that the closure is written in, without its crate.
    fn name(&self) -> &'static str {
        let path = self.path.trim_end_matches("::{{closure}}");
        path.split_once("::").map_or(path, |(_, name)| name)
    }

    /// The command that runs the model as it is run here: what goes before more
    /// variables, and what goes after.
    fn command(&self) -> (String, String) {
        let name = self.name();
        if sound() {
            return (String::new(), format!("ci/loom.sh --sound --exact {name}"));
        }
        let checker = match checker::NAME {
            "plain" => String::new(),
            name => format!("RUSTFLAGS=\"--cfg {name}\" "),
        };
        let release = if cfg!(debug_assertions) {
            ""
        } else {
            " --release"
        };
        // Elsewhere it is for who embeds the core to say where.
        let ours = (self.path).starts_with(concat!(env!("CARGO_CRATE_NAME"), "::"));
        let package = if ours { " -p uaio-models --lib" } else { "" };
        let test = format!("cargo test{release}{package} -- --exact {name}");
        (checker, test)
    }
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    #[cfg_attr(not(loom), expect(dead_code, reason = "loom's"))]
    preemptions: usize,
    reason: &'static str,
    always: bool,
}

/// A claim to be checked: what it is about, its outcomes and its bound. See
/// [`check`](Self::check).
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Model {
    theorems: &'static [Theorem],
    outcomes: &'static [&'static str],
    bound: Option<Bound>,
}

impl Model {
    /// A model that holds `theorems`, each for a part of what it says; and that
    /// means something only if each of `outcomes` occurs, which its scenario
    /// reports with [`reached`].
    pub const fn of(theorems: &'static [Theorem], outcomes: &'static [&'static str]) -> Self {
        Self {
            theorems,
            outcomes,
            bound: None,
        }
    }

    /// With at most `preemptions` on loom as it is published, for this reason,
    /// which the report repeats. On the sound one, which repeats itself less, the
    /// model stays unbounded.
    pub const fn bounded(self, preemptions: usize, reason: &'static str) -> Self {
        self.with_bound(preemptions, reason, false)
    }

    /// As [`bounded`](Self::bounded), and on the sound one too.
    pub const fn bounded_always(self, preemptions: usize, reason: &'static str) -> Self {
        self.with_bound(preemptions, reason, true)
    }

    const fn with_bound(mut self, preemptions: usize, reason: &'static str, always: bool) -> Self {
        self.bound = Some(Bound {
            preemptions,
            reason,
            always,
        });
        self
    }

    /// The bound that holds in this build.
    fn bound(&self) -> Option<Bound> {
        self.bound.filter(|bound| bound.always || !sound())
    }

    /// Checks `scenario`, which is made anew for each execution.
    ///
    /// Models run one at a time, whatever the test runner does.
    pub fn check<T, F>(self, scenario: F)
    where
        T: Send + Sync + 'static,
        F: Fn() -> Scenario<T> + Send + Sync + 'static,
    {
        self.check_subject(&Subject::of(scenario));
    }

    fn check_subject(self, subject: &Subject) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = lock(&ONE_AT_A_TIME);

        let name = subject.name();
        let outcomes = self.outcomes.iter().map(|outcome| (*outcome, 0)).collect();
        *lock(&OUTCOMES) = outcomes;
        let start = Instant::now();
        let (roles, explored) = self.explore(subject);
        failure::explored();
        let Some(explored) = explored else {
            return say(&format!("{name}: replayed, and it did not fail"));
        };
        let most = explored.most;
        assert!(most > 1, "{name}: only one interleaving");
        let outcomes = std::mem::take(&mut *lock(&OUTCOMES));
        let report = Report {
            model: self,
            name,
            roles: roles.get().map_or(0, Vec::len),
            explored,
            outcomes: &outcomes,
            took: start.elapsed(),
        };
        report.tell();
        let never = outcomes.iter().find(|(_, count)| **count == 0);
        if let Some((outcome, _)) = never {
            let vain = format!("{name}: never \"{outcome}\", so it proves nothing");
            // What plain threads get to see is up to the machine.
            if cfg!(any(loom, shuttle)) {
                panic!("{vain}");
            }
            say(&vain);
        }
        failure::ended();
    }

    /// Explores it; `None` is what a replay says.
    fn explore(self, subject: &Subject) -> (failure::Roles, Option<Explored>) {
        let roles = failure::Roles::default();
        failure::begun(subject, &roles);
        let (make, names) = (Arc::clone(&subject.make), Arc::clone(&roles));
        let make = move || {
            #[cfg(any(loom, shuttle))]
            EXECUTIONS.add(1);
            let parties = make();
            names.get_or_init(|| parties.roles.iter().map(|role| role.name).collect());
            parties
        };
        let explored = self.run(subject.name(), &roles, Arc::new(make));
        (roles, explored)
    }
}

static OUTCOMES: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// Of the model that runs, for the controls, which run in processes of their own.
#[cfg(any(loom, shuttle))]
static EXECUTIONS: Count = Count::new();

/// Counts an outcome, which the [`Model`] must have named.
pub fn reached(outcome: &'static str) {
    match lock(&OUTCOMES).get_mut(outcome) {
        Some(count) => *count += 1,
        None => panic!("the model does not name the outcome \"{outcome}\""),
    }
}

/// A place where a plain thread may lose the processor, to make room for
/// overlaps that a machine with few cores hardly shows. The checkers need none.
pub fn pause() {
    #[cfg(not(any(loom, shuttle)))]
    plain::pause();
}

/// A line past the test runner's capture, which hides what a passing test says.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[cfg(any(loom, shuttle))]
fn run_once(parties: Parties, order: &[usize]) {
    use uaio_core::sync::thread::spawn;

    let mut roles: Vec<_> = parties.roles.into_iter().map(Some).collect();
    let threads: Vec<_> = (0..roles.len())
        .map(|i| order.get(i).copied().unwrap_or(i))
        .filter_map(|i| roles[i].take())
        .map(|role| spawn(role.body))
        .collect();
    for thread in threads {
        thread.join().expect("a role panicked");
    }
    (parties.check)();
}

/// The order in which the roles are written, and the reverse one: so of any two each comes
/// first. Roles of one name are alike.
#[cfg(any(loom, test))]
fn orders(names: &[&str]) -> Vec<Vec<usize>> {
    let written = 0..names.len();
    let reversed = written.clone().rev().collect();
    match names.iter().eq(names.iter().rev()) {
        true => vec![written.collect()],
        false => vec![written.collect(), reversed],
    }
}

/// Whether this is loom with our patch, which skips nothing.
pub(crate) fn sound() -> bool {
    cfg!(loom) && std::env::var_os("UAIO_SOUND").is_some_and(|on| on == "1")
}

#[cfg(not(loom))]
fn all_reached() -> bool {
    lock(&OUTCOMES).values().all(|count| *count > 0)
}

#[cfg(not(loom))]
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    match std::env::var("UAIO_SEED") {
        Ok(seed) => seed.parse().expect("UAIO_SEED is a number"),
        Err(_) => RandomState::new().hash_one(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_two_roles_comes_first_once() {
        assert_eq!(orders(&["a", "b"]), [[0, 1], [1, 0]]);
        assert_eq!(orders(&["a", "a", "b"]), [[0, 1, 2], [2, 1, 0]]);
        assert_eq!(orders(&["a", "b", "a"]), [[0, 1, 2]]);
    }
}
