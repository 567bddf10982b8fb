//! What a run says of a model that passed.
//!
//! One line on the standard output; and with `UAIO_REPORT=FILE` one line at the
//! end of that file, whose fields are separated by tabs:
//!
//! 1. the model, as the test runner names it;
//! 2. its component: the module that it stands in;
//! 3. the [theorems](super::Theorem) that it holds, separated by commas;
//! 4. the checker: `loom`, `loom-sound` (with our patch), `shuttle` or `plain`;
//! 5. its threads: how many roles there are;
//! 6. the executions, as `unbounded 291 in 1 orders; bound 3 291 in 2 orders`,
//!    `random 4000; PCT of depth 3 4000; DFS 70 (all)` or `1024 rounds`;
//! 7. why loom's preemptions are bounded, or `-`;
//! 8. the outcomes, each with how often it occurred, as `empty 40; reaped 251`;
//! 9. the seconds that it took.
//!
//! Of a negative control the outcomes are what it has to show, and fields 3, 5 and 7
//! are `-`.
//!
//! FILE is relative to the root of the workspace. Each line is one write at the
//! end, so that several processes can report to one file.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Bound, Model, say};

/// What a checker did with a model.
pub(super) struct Explored {
    /// How much, by each way to explore.
    pub(super) executions: Vec<String>,
    /// The most at a time: one alone proves nothing.
    pub(super) most: u64,
    /// What repeats it, where that is a matter of chance.
    pub(super) seed: Option<u64>,
}

pub(super) struct Report<'a> {
    pub(super) model: Model,
    pub(super) name: &'a str,
    pub(super) roles: usize,
    pub(super) explored: Explored,
    pub(super) outcomes: &'a BTreeMap<&'static str, u64>,
    pub(super) took: Duration,
}

impl Report<'_> {
    fn outcomes(&self) -> Vec<String> {
        let counts = self.outcomes.iter();
        counts.map(|(what, n)| format!("{what} {n}")).collect()
    }

    /// Why it is bounded; only loom has a bound.
    fn reason(&self) -> Option<&'static str> {
        let Bound { reason, .. } = self.model.bound().filter(|_| cfg!(loom))?;
        Some(reason)
    }

    pub(super) fn tell(&self) {
        let Explored {
            executions, seed, ..
        } = &self.explored;
        let executions = executions.join(", ");
        let checker = super::checker::NAME;
        let mut line = format!("{}: {checker}, {executions}", self.name);
        if let Some(reason) = self.reason() {
            line += &format!(" ({reason})");
        }
        if let Some(seed) = seed {
            line += &format!(", seed {seed}");
        }
        line += &format!("; {:.2} s; ", self.took.as_secs_f64());
        say(&(line + &self.outcomes().join("; ")));

        let theorems: Vec<_> = self
            .model
            .theorems
            .iter()
            .map(ToString::to_string)
            .collect();
        append([
            self.name,
            &theorems.join(","),
            &self.roles.to_string(),
            &self.explored.executions.join("; "),
            self.reason().unwrap_or("-"),
            &self.outcomes().join("; "),
            &format!("{:.2}", self.took.as_secs_f64()),
        ]);
    }
}

/// Appends a line with these fields, and the two that follow from the build and
/// the name, to the report if one is wanted.
pub(super) fn append(
    [
        name,
        theorems,
        threads,
        executions,
        bound,
        outcomes,
        seconds,
    ]: [&str; 7],
) {
    let Some(file) = std::env::var_os("UAIO_REPORT") else {
        return;
    };
    let component = name.split("::").next().unwrap_or_default();
    let checker = if super::sound() {
        "loom-sound"
    } else {
        super::checker::NAME
    };
    let line = [
        name, component, theorems, checker, threads, executions, bound, outcomes, seconds,
    ];
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(in_workspace(file))
        .expect("UAIO_REPORT names a file");
    file.write_all((line.join("\t") + "\n").as_bytes())
        .expect("the report can be written");
}

/// `path`, which is relative to the root of the workspace: a test runs elsewhere.
pub(super) fn in_workspace(path: impl AsRef<Path>) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn a_model_that_passes_appends_one_line_to_the_report() {
        let file = std::env::temp_dir().join(format!("uaio-report-{}", std::process::id()));
        let name = "slots::a_slot_has_one_holder";
        let this = std::env::current_exe().expect("a test has a path");
        for _ in 0..2 {
            let status = Command::new(&this)
                .args(["--exact", name])
                .env("UAIO_REPORT", &file)
                .env("UAIO_ROUNDS", "64")
                .env_remove("UAIO_ORDER")
                .env_remove("UAIO_REPLAY")
                .output()
                .expect("it starts")
                .status;
            assert!(status.success());
        }
        let report = std::fs::read_to_string(&file).expect("it was written");
        std::fs::remove_file(&file).expect("it is ours");
        let lines: Vec<_> = report.lines().collect();
        assert_eq!(lines.len(), 2, "{report}");
        let fields: Vec<_> = lines[1].split('\t').collect();
        assert_eq!(fields.len(), 9, "{report}");
        assert_eq!(fields[..3], [name, "slots", "no loss,wrap"]);
        assert!(["loom", "loom-sound", "shuttle", "plain"].contains(&fields[3]));
        assert_eq!(fields[4], "2");
        assert_eq!(fields[6], "-");
        assert!(fields[7].starts_with("full "), "{report}");
        assert!(fields[8].parse::<f64>().is_ok(), "{report}");
    }
}
