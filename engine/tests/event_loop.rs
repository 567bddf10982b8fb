//! The example `event_loop`, as a user runs it.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    fs,
    io::Read,
    process::{Command, Output, Stdio},
};

use common::{Jail, confine, example};

fn event_loop(args: &[&str]) -> Command {
    let path = example().with_file_name("event_loop");
    assert!(
        path.exists(),
        "{} is built by `cargo test`, or by `cargo build --example event_loop`",
        path.display()
    );
    let mut command = Command::new(path);
    command.args(args);
    command
}

#[track_caller]
fn assert_succeeds(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

const KINDS: [&str; 12] = [
    "accept (poll)",
    "tcp read",
    "tcp write",
    "unix read",
    "unix write",
    "pipe read",
    "pipe write",
    "file read",
    "file write",
    "timeout",
    "cancel",
    "cancel or read",
];

/// The row of `kind`: submitted, inline, waited, worker, cancelled, timed out.
#[track_caller]
fn row(said: &str, kind: &str) -> [u64; 6] {
    let numbers = |line: &str| -> Option<Vec<u64>> {
        let rest = line.strip_prefix(kind)?;
        rest.split_whitespace().map(|n| n.parse().ok()).collect()
    };
    let row = said.lines().find_map(numbers);
    let row = row.unwrap_or_else(|| panic!("no {kind}: {said}"));
    row.try_into().unwrap()
}

#[track_caller]
fn assert_adds_up(said: &str) {
    for kind in KINDS {
        let [submitted, ways @ ..] = row(said, kind);
        assert!(submitted > 0, "{said}");
        assert_eq!(submitted, ways.iter().sum(), "{said}");
    }
    let [submitted, .., timed_out] = row(said, "timeout");
    assert_eq!(submitted, timed_out, "{said}");
    let [submitted, .., cancelled, _] = row(said, "cancel");
    assert_eq!(submitted, cancelled, "{said}");
    let [_, _, waited, ..] = row(said, "accept (poll)");
    assert!(waited > 0, "{said}");
    let [_, inline, .., cancelled, _] = row(said, "cancel or read");
    assert_eq!(inline, cancelled, "{said}");
    assert!(said.contains(" in time, ") && said.contains(" bytes arrived as they were sent\n"));
}

#[test]
fn all_that_was_asked_for_adds_up() {
    let output = event_loop(&["--seconds", "0.3", "--seed", "7"]).output();
    let said = assert_succeeds(&output.unwrap());
    assert!(said.starts_with("seed 7\n"), "{said}");
    assert_adds_up(&said);
}

#[test]
fn however_short_it_is() {
    for seed in ["0", "1", "18446744073709551615"] {
        let output = event_loop(&["--seconds=0.000001", "--seed", seed]).output();
        assert_adds_up(&assert_succeeds(&output.unwrap()));
    }
}

#[test]
fn without_preadv2_and_on_tmpfs() {
    for jail in [Jail::Seccomp, Jail::Tmpfs] {
        let mut command = event_loop(&["--seconds", "0.1"]);
        confine(&mut command, jail);
        assert_adds_up(&assert_succeeds(&command.output().unwrap()));
    }
}

#[test]
fn there_is_no_thread_but_the_contexts_own() {
    let mut child = event_loop(&["--seconds", "0.5"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let tasks = format!("/proc/{}/task", child.id());
    let mut seen = 0;
    while child.try_wait().unwrap().is_none() {
        let Ok(tasks) = fs::read_dir(&tasks) else {
            continue;
        };
        for task in tasks.flatten() {
            // The first one has this test's name until it executes the example.
            if task.file_name().to_string_lossy() == child.id().to_string() {
                continue;
            }
            if let Ok(name) = fs::read_to_string(task.path().join("comm")) {
                let own = name.starts_with("uaio-worker") || name.starts_with("uaio-driver");
                // It has its creator's until it has said its own.
                assert!(own || name == "event_loop\n", "{name}");
                seen += u32::from(own);
            }
        }
    }
    assert!(seen > 0);
    let mut said = String::new();
    child.stdout.unwrap().read_to_string(&mut said).unwrap();
    assert_adds_up(&said);
}

#[test]
fn wrong_options() {
    for (args, why) in [
        (&["--seconds", "0"][..], "--seconds"),
        (&["--seconds", "-1"], "--seconds"),
        (&["--seconds", "3601"], "--seconds"),
        (&["--seconds", "NaN"], "--seconds"),
        (&["--seconds", "inf"], "--seconds"),
        (&["--seconds=soon"], "--seconds"),
        (&["--seconds"], "--seconds"),
        (&["--seed", "-1"], "--seed"),
        (&["--seed", "18446744073709551616"], "--seed"),
        (&["--seed", "one"], "--seed"),
        (&["--fast"], "--fast"),
        (&["-x"], "-x"),
        (&["file"], "file"),
    ] {
        let output = event_loop(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.starts_with("event_loop: ") && stderr.contains(why),
            "{stderr}"
        );
        assert_eq!(stderr.matches('\n').count(), 1, "{stderr}");
        assert!(output.stdout.is_empty());
    }
    let help = assert_succeeds(&event_loop(&["--help"]).output().unwrap());
    assert!(help.contains("--seconds N") && help.contains("--seed N"));
}
