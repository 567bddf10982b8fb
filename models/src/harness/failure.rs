//! What a run says of a model that failed: where it was, the timeline, and at
//! last the command that repeats it.
//!
//! All of it comes from the panic hook and goes past the test runner's capture:
//! some failures (a deadlock with a live guard) end the process before the
//! runner reports.

use std::{
    io::Write as _,
    panic::PanicHookInfo,
    sync::{Arc, Mutex, Once, OnceLock},
    thread::{self, ThreadId},
};

use super::{Subject, checker::Place, lock};

/// The roles' names, known once the scenario was made for the first time.
pub(super) type Roles = Arc<OnceLock<Vec<&'static str>>>;

#[derive(Clone)]
struct Running {
    name: &'static str,
    /// See [`Subject::command`].
    command: (String, String),
    roles: Roles,
    place: Option<Place>,
    thread: ThreadId,
}

static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

/// From now on the panic hook is ours, which calls the one that was there.
pub(super) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| explain(panic, &*usual)));
    });
}

/// A panic is the failure of this model, until [`ended`].
pub(super) fn begun(model: &Subject, roles: &Roles) {
    watch();
    *lock(&RUNNING) = Some(Running {
        name: model.name(),
        command: model.command(),
        roles: Arc::clone(roles),
        place: None,
        thread: thread::current().id(),
    });
}

/// How far it has come.
pub(super) fn reached_place(place: Place) {
    if let Some(running) = &mut *lock(&RUNNING) {
        running.place = Some(place);
    }
}

/// It has come to the end: what fails now is not about one execution.
pub(super) fn explored() {
    if let Some(running) = &mut *lock(&RUNNING) {
        running.place = None;
    }
    #[cfg(any(loom, shuttle))]
    uaio_core::sync::timeline::take();
}

/// A panic is no model's any more.
pub(super) fn ended() {
    *lock(&RUNNING) = None;
}

fn explain(panic: &PanicHookInfo<'_>, usual: &dyn Fn(&PanicHookInfo<'_>)) {
    // loom's coroutines are ended by a panic of their own: no failure.
    if panic.payload_as_str().is_none() {
        return usual(panic);
    }
    let mut replay = None;
    // Not locked for longer: writing the timeline could panic, too.
    let running = lock(&RUNNING).clone();
    if let Some(running) = running {
        let roles = running.roles.get().map_or(&[][..], Vec::as_slice);
        let place = running.place.as_ref();
        let at = place.map_or("as a whole".into(), |place| place.describe(roles.len()));
        tell(&format!("{}, {at}: {panic}", running.name));
        // Whoever else panics says no more: the model's own thread will, too.
        if running.thread == thread::current().id() {
            #[cfg(any(loom, shuttle))]
            if let Some(place) = place {
                tell_timeline(place.in_order(roles), panic);
            }
            let environment = place.map_or(String::new(), |place| place.environment(roles.len()));
            let (before, test) = running.command;
            replay = Some(format!("{before}{environment}{test}"));
        }
    }
    usual(panic);
    if let Some(replay) = replay {
        tell(&format!("replay: {replay}"));
    }
}

fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(any(loom, shuttle))]
fn tell_timeline(roles: Vec<&'static str>, panic: &PanicHookInfo<'_>) {
    let (steps, running) = uaio_core::sync::timeline::take();
    let mut message = panic.payload_as_str().unwrap_or("panicked").to_owned();
    if let Some(at) = panic.location() {
        message += &format!("\nat {}", super::timeline::place(at));
    }
    if steps.is_empty() {
        return;
    }
    // The stack of a checker's coroutine is small.
    let write = move || super::timeline::write(&steps, &roles, running, &message);
    let text = thread::Builder::new()
        .spawn(write)
        .map(thread::JoinHandle::join);
    if let Ok(Ok(text)) = text {
        tell(&text);
    }
}

/// A model that fails, in a process of its own, and its replay.
#[cfg(all(test, any(loom, shuttle)))]
mod tests {
    use std::process::Command;

    use uaio_core::sync::atomic::{AtomicU32, Ordering};

    use crate::{Model, Scenario, Theorem, reached};

    const PLANTED: &str = "UAIO_PLANTED";

    /// Passes, unless it is asked to fail.
    #[test]
    fn a_planted_error() {
        if std::env::var_os(PLANTED).is_none() {
            return;
        }
        Model::of(&[Theorem::Order], &["ended"]).check(|| {
            Scenario::of((AtomicU32::new(0), AtomicU32::new(0)))
                .role("writer", |(data, flag)| {
                    data.store(7, Ordering::Relaxed);
                    flag.store(1, Ordering::Relaxed);
                })
                .role("reader", |(data, flag)| {
                    if flag.swap(2, Ordering::Relaxed) == 0 {
                        let seen = data.load(Ordering::Relaxed);
                        assert_ne!(seen, 7, "data before flag");
                    }
                })
                .finally(|_| reached("ended"))
        });
    }

    /// What the planted error prints under these variables.
    fn fail<'a>(environment: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
        let this = std::env::current_exe().expect("a test has a path");
        let output = Command::new(this)
            .args(["--exact", &format!("{}::a_planted_error", here())])
            .env(PLANTED, "1")
            .envs(environment)
            .output()
            .expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "it did not fail: {text}");
        text
    }

    /// This module, as the test runner names it.
    fn here() -> &'static str {
        module_path!().trim_start_matches(concat!(env!("CARGO_CRATE_NAME"), "::"))
    }

    /// The row in which `text` stands, and its column.
    fn find<'a>(output: &'a str, text: &str) -> (&'a str, usize) {
        let row = output.lines().find(|line| line.contains(text));
        let row = row.unwrap_or_else(|| panic!("no \"{text}\" in\n{output}"));
        (row, row.find(text).expect("just found"))
    }

    #[test]
    fn a_failure_has_a_timeline_and_can_be_replayed() {
        let output = fail([]);
        let (head, _) = find(&output, "| main");
        let column = |name: &str| head.find(name).expect("a column for each role");
        let (store, at) = find(&output, "store 7 Relaxed");
        assert!(store.contains("models/src/harness/failure.rs:"), "{store}");
        assert!(store[..at].starts_with("   "), "{store}");
        assert!(at.abs_diff(column("writer")) < 4, "{output}");
        let (_, swap) = find(&output, "swap 0 -> 2 Relaxed");
        assert!(swap.abs_diff(column("reader")) < 4, "{output}");
        find(&output, "reader failed: ");

        let command = output.trim_end().lines().last().expect("it says something");
        assert!(command.starts_with("replay: "), "{output}");
        let test = format!("--exact {}::a_planted_error", here());
        assert!(command.ends_with(&test), "{command}");
        let words = command.split(' ').filter_map(|word| word.split_once('='));
        let again = fail(words.filter(|(name, _)| name.starts_with("UAIO_")));
        // The same place, and no other one before it.
        let first = |output: &str| find(output, "a_planted_error, ").0.to_owned();
        if cfg!(loom) {
            assert_eq!(first(&output), first(&again));
        }
        assert_eq!(again.trim_end().lines().last(), Some(command));
        let timeline = |output: &str| {
            let rows = output.lines().skip_while(|line| !line.contains("| main"));
            rows.take_while(|row| !row.contains(" failed: "))
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert_eq!(timeline(&output), timeline(&again));
    }
}
