//! Negative controls: faulty protocols, which the checker must refute.
//!
//! A checker that cannot fail proves nothing. A control runs a protocol that is
//! known to be wrong as a [`Model`], and passes only if the checker shows the
//! very failure that the protocol is known for.
//!
//! The faulty protocol runs in a process of its own: the test's executable, asked
//! for this one test. There the first panic is the verdict, and ends the process
//! before anything unwinds; a deadlock with a live guard would abort it.

use std::{
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use super::{EXECUTIONS, Model, OUTCOMES, Scenario, Subject, failure, lock, report, say};

/// Names the control that this process is to run.
const CHILD: &str = "UAIO_CONTROL";
/// What the line with the child's verdict begins with.
const VERDICT: &str = "control: ";

/// The failure that a faulty protocol is known for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// Somebody waits, and nobody will wake it.
    Hang,
    /// An assertion fails whose message has this in it.
    Assertion(&'static str),
    /// Memory is accessed by two that nothing orders: use after free, or torn.
    UnorderedAccess,
    /// Something is never dropped.
    Leak,
}

impl Shows {
    fn is_shown_by(self, panic: &str) -> bool {
        match self {
            Self::Hang => panic.starts_with("deadlock"),
            Self::Assertion(text) => panic.contains(text),
            Self::UnorderedAccess => {
                // In loom's words, and in those of the facade under shuttle.
                let words = [
                    "Causality violation",
                    "cell read while",
                    "cell written while",
                ];
                words.iter().any(|word| panic.starts_with(word))
            }
            Self::Leak => panic.starts_with("Allocation leaked"),
        }
    }
}

impl std::fmt::Display for Shows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hang => f.write_str("hang"),
            Self::Assertion(text) => write!(f, "\"{text}\""),
            Self::UnorderedAccess => f.write_str("unordered access"),
            Self::Leak => f.write_str("leak"),
        }
    }
}

/// A faulty protocol, to be refuted. See the [module](self).
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Control {
    shows: Shows,
    held_by: &'static str,
    outcomes: &'static [&'static str],
    only_loom: bool,
    limit: Duration,
}

impl Control {
    /// A control whose protocol fails like this.
    pub const fn shows(shows: Shows) -> Self {
        Self {
            shows,
            held_by: "",
            outcomes: &[],
            only_loom: false,
            limit: Duration::from_secs(60),
        }
    }

    /// Names the model in which our protocol holds what this one breaks.
    pub const fn held_by(mut self, model: &'static str) -> Self {
        self.held_by = model;
        self
    }

    /// Names the outcomes that the scenario reports; here they need not occur.
    pub const fn reaching(mut self, outcomes: &'static [&'static str]) -> Self {
        self.outcomes = outcomes;
        self
    }

    /// For what shuttle does not see: orderings, leaks, and memory given back.
    pub const fn only_loom(mut self) -> Self {
        self.only_loom = true;
        self
    }

    /// Demands that the checker refutes `scenario`.
    pub fn refuted<T, F>(self, scenario: F)
    where
        T: Send + Sync + 'static,
        F: Fn() -> Scenario<T> + Send + Sync + 'static,
    {
        self.refuted_subject(&Subject::of(scenario));
    }

    fn refuted_subject(self, subject: &Subject) {
        let name = subject.name();
        if std::env::var_os(CHILD).is_some_and(|child| child == name) {
            self.run(subject);
        }
        assert!(
            is_a_test(self.held_by) && self.held_by != name,
            "{name}: no model \"{}\" holds what it breaks",
            self.held_by
        );
        if self.only_loom && cfg!(not(loom)) {
            return say(&format!("{name}: not run, for only loom sees it"));
        }

        let start = Instant::now();
        let child = this_executable()
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(CHILD, name)
            .output()
            .expect("a child process");
        let stdout = String::from_utf8_lossy(&child.stdout);
        let verdict = stdout.lines().find_map(|line| line.strip_prefix(VERDICT));
        let verdict = verdict.unwrap_or("not run: there is no test of that name");
        if child.status.code() != Some(1) || !verdict.starts_with("refuted") {
            panic!(
                "{name}: {verdict}, and is known for: {}\n{stdout}\n{}",
                self.shows,
                String::from_utf8_lossy(&child.stderr)
            );
        }
        let seconds = format!("{:.2}", start.elapsed().as_secs_f64());
        say(&format!(
            "{name}: {verdict}; {seconds} s; held by {}",
            self.held_by
        ));
        let (_, executions) = verdict.split_once(" after ").unwrap_or_default();
        let shows = self.shows.to_string();
        report::append([name, "-", "-", executions, "-", &shows, &seconds]);
    }

    /// The child: runs the faulty protocol as a model, whose first panic is the
    /// verdict.
    fn run(self, subject: &Subject) -> ! {
        std::thread::spawn(move || {
            std::thread::sleep(self.limit);
            end(&format!("not done after {:?}", self.limit));
        });
        failure::watch();
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            usual(panic);
            let message = panic.payload_as_str().unwrap_or_default();
            let executions = EXECUTIONS.get();
            if self.shows.is_shown_by(message) {
                end(&format!(
                    "refuted ({}) after {executions} executions",
                    self.shows
                ));
            }
            end(&format!("failed for another reason ({message:?})"));
        }));
        // The last one never occurs here, so a checker that goes on until all did
        // has all its patience.
        let outcomes = self.outcomes.iter().chain(&["refuted"]);
        *lock(&OUTCOMES) = outcomes.map(|outcome| (*outcome, 0)).collect();
        let (_, explored) = Model::of(&[], self.outcomes).explore(subject);
        let executions = explored.map_or(Vec::new(), |explored| explored.executions);
        end(&format!("NOT refuted ({})", executions.join(", ")));
    }
}

/// Ends the child.
fn end(verdict: &str) -> ! {
    // The test runner has begun a line.
    say(&format!("\n{VERDICT}{verdict}"));
    std::process::exit(1);
}

fn this_executable() -> Command {
    let path = std::env::current_exe().expect("the path of this test");
    let mut command = Command::new(path);
    command.env_remove("RUST_BACKTRACE");
    command
}

fn is_a_test(name: &str) -> bool {
    static TESTS: OnceLock<String> = OnceLock::new();
    let tests = TESTS.get_or_init(|| {
        let list = this_executable().arg("--list").output();
        String::from_utf8_lossy(&list.expect("a child process").stdout).into_owned()
    });
    tests
        .lines()
        .any(|line| line.strip_suffix(": test") == Some(name))
}

#[cfg(test)]
mod tests {
    use uaio_core::sync::{
        Track,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    const ANY_MODEL: &str = "request::completion_and_cancel_yield_one_claim";

    fn two(role: fn(&AtomicU32)) -> Scenario<AtomicU32> {
        Scenario::of(AtomicU32::new(0))
            .role("party", role)
            .role("party", role)
    }

    fn twice(role: fn(&AtomicU32)) -> Scenario<AtomicU32> {
        two(role).finally(|sum| assert_eq!(sum.load(Ordering::Relaxed), 2, "sum"))
    }

    fn add(sum: &AtomicU32) {
        sum.fetch_add(1, Ordering::Relaxed);
    }

    fn add_by_load_and_store(sum: &AtomicU32) {
        let seen = sum.load(Ordering::Relaxed);
        sum.store(seen + 1, Ordering::Relaxed);
    }

    #[test]
    fn what_fails_as_said_passes() {
        Control::shows(Shows::Assertion("sum"))
            .held_by(ANY_MODEL)
            .refuted(|| twice(add_by_load_and_store));
    }

    #[test]
    fn a_leak_is_seen() {
        Control::shows(Shows::Leak)
            .held_by(ANY_MODEL)
            .only_loom()
            .refuted(|| {
                two(|sum| {
                    add(sum);
                    std::mem::forget(Box::new(Track::new(())));
                })
            });
    }

    #[test]
    #[should_panic(expected = "NOT refuted")]
    fn what_is_right_fails() {
        Control::shows(Shows::Assertion("sum"))
            .held_by(ANY_MODEL)
            .refuted(|| twice(add));
    }

    #[test]
    #[should_panic(expected = "failed for another reason")]
    fn what_fails_otherwise_fails() {
        Control::shows(Shows::Hang)
            .held_by(ANY_MODEL)
            .refuted(|| twice(add_by_load_and_store));
    }

    #[test]
    #[should_panic(expected = "failed for another reason")]
    fn what_never_ends_under_the_checker_fails() {
        Control::shows(Shows::Hang).held_by(ANY_MODEL).refuted(|| {
            twice(|sum| {
                while sum.load(Ordering::Relaxed) < 3 {
                    uaio_core::sync::hint::spin_loop();
                }
            })
        });
    }

    #[test]
    #[should_panic(expected = "not done after")]
    fn what_hangs_outside_the_checker_fails() {
        let control = Control {
            limit: Duration::from_millis(100),
            ..Control::shows(Shows::Hang).held_by(ANY_MODEL)
        };
        control.refuted(|| twice(|_| std::thread::sleep(Duration::from_secs(9))));
    }

    #[test]
    #[should_panic(expected = "no test of that name")]
    fn what_is_not_run_fails() {
        fn not_a_test() {
            Control::shows(Shows::Hang)
                .held_by(ANY_MODEL)
                .refuted(|| twice(add));
        }
        not_a_test();
    }

    #[test]
    #[should_panic(expected = "no model \"ring::nothing\"")]
    fn what_nothing_holds_fails() {
        Control::shows(Shows::Assertion("sum"))
            .held_by("ring::nothing")
            .refuted(|| twice(add_by_load_and_store));
    }
}
