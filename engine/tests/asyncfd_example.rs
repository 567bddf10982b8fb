//! The example `asyncfd`, as a user runs it.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use common::{Jail, Rng, confine, example};
use sha2::{Digest, Sha256};

fn asyncfd() -> Command {
    let path = example().with_file_name("asyncfd");
    assert!(
        path.exists(),
        "{} is built by `cargo test`, or by `cargo build --example asyncfd`",
        path.display()
    );
    Command::new(path)
}

#[track_caller]
fn assert_succeeds(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn assert_fails(output: &Output, code: i32, why: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(
        stderr.starts_with("asyncfd: ") && stderr.contains(why),
        "{stderr}"
    );
    assert_eq!(stderr.matches('\n').count(), 1, "{stderr}");
    assert!(output.stdout.is_empty());
}

/// As `sha256sum` has it.
fn line(path: &Path) -> String {
    let sum = Sha256::digest(fs::read(path).unwrap());
    let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{sum}  {}", path.display())
}

/// The number before `unit`.
#[track_caller]
fn number(said: &str, unit: &str) -> u64 {
    let before = said.split(unit).next().filter(|before| *before != said);
    let word = before.and_then(|before| before.rsplit([' ', '\n']).next());
    word.unwrap_or_else(|| panic!("no {unit}: {said}"))
        .parse()
        .unwrap()
}

/// What is said behind the hashes.
#[track_caller]
fn assert_adds_up(said: &str, bytes: u64) {
    let of = |size: u32| {
        let ring = format!("ring of {size}: ");
        number(said.split(&ring).nth(1).unwrap_or(""), " completions")
    };
    let popped = of(8) + of(64) + of(1024);
    assert_eq!(popped, number(said, " completions, "), "{said}");
    assert_eq!(number(said, " replacements, "), 2, "{said}");
    assert!(number(said, " wake-ups (") <= popped + 2, "{said}");
    assert_eq!(number(said, " bytes, as plain"), bytes, "{said}");
}

#[test]
fn hashes_are_those_of_the_bytes() {
    let mut rng = Rng::seeded();
    let directory = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    let mut bytes = 0;
    for size in [0, 1, 65_535, 65_536, 65_537, 5_000_000, 3_000_000] {
        let path = directory.path().join(format!("of {size}"));
        fs::write(&path, rng.bytes(size)).unwrap();
        bytes += size as u64;
        paths.push(path);
    }
    // Another dozen, and one of them twice.
    for n in 0..12 {
        let path = directory.path().join(format!("small {n}"));
        let size = 1 + rng.below(200_000);
        fs::write(&path, rng.bytes(size)).unwrap();
        bytes += size as u64;
        paths.push(path);
    }
    bytes += fs::metadata(&paths[5]).unwrap().len();
    paths.push(paths[5].clone());
    for jail in [None, Some(Jail::Seccomp)] {
        let mut command = asyncfd();
        if let Some(jail) = jail {
            confine(&mut command, jail);
        }
        let said = assert_succeeds(&command.args(&paths).output().unwrap());
        for (path, said) in paths.iter().zip(said.lines()) {
            assert_eq!(said, line(path));
        }
        assert_adds_up(&said, bytes);
        assert_eq!(said.lines().count(), paths.len() + 6);
    }
}

#[test]
fn one_file_alone_even_an_empty_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("-x");
    for bytes in [&b""[..], b"x", b"a line\n"] {
        fs::write(&path, bytes).unwrap();
        let output = asyncfd()
            .arg("--")
            .arg("-x")
            .current_dir(&directory)
            .output();
        let said = assert_succeeds(&output.unwrap());
        let expected = line(&path).replace(&path.display().to_string(), "-x");
        assert_eq!(said.lines().next(), Some(&*expected));
        assert_adds_up(&said, bytes.len() as u64);
    }
}

/// Its length says nothing.
#[test]
fn a_file_that_is_longer_than_it_says() {
    let path = Path::new("/proc/version");
    let said = assert_succeeds(&asyncfd().arg(path).output().unwrap());
    assert_eq!(said.lines().next(), Some(&*line(path)));
}

#[test]
fn without_a_file_it_hashes_itself() {
    let said = assert_succeeds(&asyncfd().output().unwrap());
    let path = fs::canonicalize(example().with_file_name("asyncfd")).unwrap();
    assert_eq!(said.lines().next(), Some(&*line(&path)));
    assert_adds_up(&said, fs::metadata(path).unwrap().len());
}

#[test]
fn what_cannot_be_hashed() {
    let directory = tempfile::tempdir().unwrap();
    let there = directory.path().join("there");
    fs::write(&there, "x").unwrap();
    let fifo = directory.path().join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    for (path, why) in [
        (directory.path().join("missing"), "missing: No such file"),
        (directory.path().to_owned(), "neither a regular file"),
        (fifo, "neither a regular file"),
        ("/dev/null".into(), "neither a regular file"),
        ("".into(), "No such file"),
    ] {
        let output = asyncfd().args([&there, &path, &there]).output().unwrap();
        assert_fails(&output, 1, why);
    }
}

#[test]
fn wrong_options() {
    for (args, why) in [(&["--fast"][..], "--fast"), (&["-x"], "-x")] {
        assert_fails(&asyncfd().args(args).output().unwrap(), 2, why);
    }
    let help = assert_succeeds(&asyncfd().arg("--help").output().unwrap());
    assert!(help.contains("Usage: asyncfd [FILE...]"));
}

#[test]
fn nobody_has_to_listen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "x").unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let status = asyncfd().arg(path).stdout(full).status().unwrap();
    assert!(status.success());
}

/// A hole that takes longer than anybody waits.
fn endless(directory: &tempfile::TempDir) -> std::path::PathBuf {
    let path = directory.path().join("endless");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"x").unwrap();
    file.set_len(1 << 40).unwrap();
    path
}

/// Runs it, with these signals as they are by default, or ignored, whatever who starts
/// the tests has them; and waits until it is ready for them.
fn run_until_it_blocks(command: &mut Command, signals: &'static [(i32, usize)]) -> Child {
    let set = move || {
        for (signal, action) in signals {
            // SAFETY: takes numbers only; no handler.
            unsafe { libc::signal(*signal, *action) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { command.pre_exec(set) };
    let mut child = command.spawn().unwrap();
    // It blocks what is not ignored, to have it from a descriptor.
    let bit = 1_u64 << (libc::SIGTERM - 1);
    loop {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        if u64::from_str_radix(blocked.unwrap().trim(), 16).unwrap() & bit != 0 {
            return child;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

const DEFAULT: usize = libc::SIG_DFL;

#[test]
fn a_signal_ends_it_cleanly() {
    let directory = tempfile::tempdir().unwrap();
    let path = endless(&directory);
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let mut command = asyncfd();
        command
            .arg(&path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let default = &[(libc::SIGINT, DEFAULT), (libc::SIGTERM, DEFAULT)];
        let child = run_until_it_blocks(&mut command, default);
        // SAFETY: takes numbers only; the child is not waited for yet.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        assert_fails(&child.wait_with_output().unwrap(), code, "interrupted");
    }
}

#[test]
fn a_signal_that_is_ignored_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = endless(&directory);
    let ignored = &[(libc::SIGINT, libc::SIG_IGN), (libc::SIGTERM, DEFAULT)];
    let mut child = run_until_it_blocks(asyncfd().arg(&path), ignored);
    // SAFETY: takes numbers only; the child is not waited for yet.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
}
