//! The examples `signals`, `callbacks` and `futures`, as a user runs them.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::process::{Command, Output};

use common::{Jail, confine, example};

fn run(name: &str, args: &[&str]) -> Command {
    let path = example().with_file_name(name);
    assert!(
        path.exists(),
        "{} is built by `cargo test`, or by `cargo build --examples`",
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

/// The numbers of the line that begins like this.
#[track_caller]
fn numbers(said: &str, line: &str) -> Vec<u64> {
    let found = said.lines().find_map(|said| said.strip_prefix(line));
    let found = found.unwrap_or_else(|| panic!("no {line}: {said}"));
    let words = found.split(|letter: char| !letter.is_ascii_digit());
    words.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn each_completion_has_its_signal() {
    for n in [1, 7, 500] {
        let output = run("signals", &["--requests", &n.to_string()]).output();
        let said = assert_succeeds(&output.unwrap());
        for way in [
            "to the process, caught by a handler",
            "to a thread, read from a signalfd",
            "to the process, with at most 4 pending",
        ] {
            let of = numbers(&said, way);
            assert_eq!(of[..2], [n, n], "{said}");
            if way.ends_with("pending") && n == 500 {
                assert!(of[2] > 0, "the limit does not bind: {said}");
            }
        }
    }
}

#[test]
fn each_block_is_as_it_should_be() {
    for (args, jail) in [
        (&["--seconds", "0.3", "--seed", "7"][..], None),
        (&["--seconds=0.000001", "--seed=7"], None),
        (&["--seconds", "0.1", "--seed", "7"], Some(Jail::Seccomp)),
        (&["--seconds", "0.1", "--seed", "7"], Some(Jail::Tmpfs)),
    ] {
        let mut command = run("callbacks", args);
        if let Some(jail) = jail {
            confine(&mut command, jail);
        }
        let said = assert_succeeds(&command.output().unwrap());
        assert!(said.starts_with("seed 7\n"), "{said}");
        assert!(said.contains("each byte as it should be"), "{said}");
        assert!(said.ends_with("; 0 callbacks panicked\n"), "{said}");
    }
}

#[test]
fn every_buffer_comes_home() {
    for n in [2, 99, 250] {
        let output = run("futures", &["--operations", &n.to_string()]).output();
        let said = assert_succeeds(&output.unwrap());
        for executor in ["an executor of a few lines", "tokio"] {
            assert_eq!(numbers(&said, executor), [2 * n, n / 2], "{said}");
        }
        assert!(said.ends_with(", every buffer home\n"), "{said}");
    }
}

#[test]
fn wrong_options() {
    for (name, args, why) in [
        ("signals", &["--requests", "0"][..], "--requests"),
        ("signals", &["--requests", "65537"], "--requests"),
        ("signals", &["--requests=-1"], "--requests"),
        ("signals", &["--requests"], "--requests"),
        ("signals", &["file"], "file"),
        ("callbacks", &["--seconds", "0"], "--seconds"),
        ("callbacks", &["--seconds", "inf"], "--seconds"),
        ("callbacks", &["--seed", "one"], "--seed"),
        ("callbacks", &["--fast"], "--fast"),
        ("futures", &["--operations", "0"], "--operations"),
        ("futures", &["--operations=many"], "--operations"),
        ("futures", &["-x"], "-x"),
    ] {
        let output = run(name, args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.starts_with(&format!("{name}: ")) && stderr.contains(why),
            "{stderr}"
        );
        assert_eq!(stderr.matches('\n').count(), 1, "{stderr}");
        assert!(output.stdout.is_empty());
    }
    for (name, option) in [
        ("signals", "--requests N"),
        ("callbacks", "--seconds N"),
        ("futures", "--operations N"),
    ] {
        let help = assert_succeeds(&run(name, &["--help"]).output().unwrap());
        assert!(help.contains(option), "{help}");
    }
}
