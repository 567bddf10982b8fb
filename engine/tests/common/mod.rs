//! What the tests share: randomness, files, and places to be run again in.
#![allow(
    dead_code,
    reason = "each test program uses a part of it, and compiles all"
)]

use std::{
    env, fs,
    io::{self, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::fs::{CWD, Mode, mkfifoat};
use tempfile::TempDir;
use uaio::{Completion, Context, Op, Source};
use uaio_core::wait::WaitQueue;

/// Names the place that a program was run again in.
const JAIL: &str = "UAIO_TEST_JAIL";
const COPY: &str = "UAIO_TEST_COPY";
const SEED: &str = "UAIO_TEST_SEED";
pub(crate) const NOBODY: u32 = 65534;

/// xorshift64*.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Seeded by UAIO_TEST_SEED, or the clock; prints it, for when the test fails.
    pub(crate) fn seeded() -> Self {
        let seed = match env::var(SEED) {
            Ok(seed) => seed.parse().expect("UAIO_TEST_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |now| now.as_nanos() as u64),
        };
        println!("{SEED}={seed}");
        Self(seed | 1)
    }

    /// Another, for another thread.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next() | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        let words = (0..n.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(n).collect()
    }
}

/// One request, from submission to completion.
pub(crate) fn complete(context: &Context, op: Op) -> Completion {
    let mut ops = [op];
    assert_eq!(context.submit(&mut ops), Ok(1));
    let mut done = collect(context, 1);
    assert_eq!(ops[0].handle(), Some(done[0].handle));
    done.remove(0)
}

/// Waits for `n` completions.
pub(crate) fn collect(context: &Context, n: usize) -> Vec<Completion> {
    let mut events = Vec::new();
    assert_eq!(context.getevents(n, n, None, &mut events), Ok(n));
    events
}

/// Whether that is there soon.
pub(crate) fn soon(what: impl Fn() -> bool) -> bool {
    (0..1_000).any(|_| {
        thread::sleep(Duration::from_millis(10));
        what()
    })
}

/// Ready when it is woken.
pub(crate) struct Bell(pub(crate) WaitQueue);

// SAFETY: the one head is a part of it.
unsafe impl Source for Bell {
    fn heads(&self, each: &mut dyn FnMut(&WaitQueue)) {
        each(&self.0);
    }
    fn mask(&self) -> u16 {
        0
    }
}

/// A FIFO, which is not opened until both ends are.
pub(crate) fn fifo(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("fifo");
    mkfifoat(CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
    path
}

/// How many threads of that name are in that system call.
pub(crate) fn threads_in(name: &str, call: libc::c_long) -> usize {
    let (name, call) = (format!("{name}\n"), format!("{call} "));
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let is = tasks.filter(|task| {
        let of = |what| fs::read_to_string(task.path().join(what)).unwrap_or_default();
        of("comm") == name && of("syscall").starts_with(&call)
    });
    is.count()
}

/// Calls it if the thread panics, lest others wait for it.
pub(crate) struct OnPanic<F: Fn()>(pub(crate) F);

impl<F: Fn()> Drop for OnPanic<F> {
    fn drop(&mut self) {
        if thread::panicking() {
            (self.0)();
        }
    }
}

/// A place to run a test program in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Jail {
    /// preadv2 and pwritev2 are answered with EPERM.
    Seccomp,
    /// As somebody without privileges.
    Nobody,
    /// Temporary files are in a tmpfs.
    Tmpfs,
    /// As `Nobody`, for one test that spoils the process for others.
    Alone,
}

/// Where the program runs, if it was run again.
pub(crate) fn jail() -> Option<Jail> {
    match env::var(JAIL).ok()?.as_str() {
        "Seccomp" => Some(Jail::Seccomp),
        "Nobody" => Some(Jail::Nobody),
        "Tmpfs" => Some(Jail::Tmpfs),
        "Alone" => Some(Jail::Alone),
        other => panic!("{JAIL}={other}"),
    }
}

/// Runs this test program again, in `jail`; all of it, or the tests so named.
pub(crate) fn again(jail: Jail, tests: &[&str]) {
    if self::jail().is_some() {
        return;
    }
    let staged = stage();
    let mut command = Command::new(staged.path().join("test"));
    command
        .args(tests)
        .arg("--nocapture")
        .env(JAIL, format!("{jail:?}"))
        .env(COPY, staged.path().join("copy"))
        .current_dir(staged.path());
    confine(&mut command, jail);
    let output = command.output().expect("the program runs again");
    // A filter that fits no test is no success.
    let ran = !String::from_utf8_lossy(&output.stdout).contains("running 0 tests");
    if !output.status.success() || !ran {
        let _ = io::stdout().write_all(&output.stdout);
        let _ = io::stderr().write_all(&output.stderr);
        panic!("in {jail:?}: {}", output.status);
    }
}

/// Confines what `command` will start.
pub(crate) fn confine(command: &mut Command, jail: Jail) {
    match jail {
        Jail::Seccomp => {
            // SAFETY: between fork and exec it makes system calls only.
            unsafe { command.pre_exec(forbid_nowait) };
        }
        Jail::Nobody | Jail::Alone => {
            if rustix::process::geteuid().is_root() {
                command.uid(NOBODY).gid(NOBODY);
            }
        }
        Jail::Tmpfs => {
            command.env("TMPDIR", "/dev/shm");
        }
    }
}

/// This program and the example, copied to where anybody may run them.
fn stage() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777));
    open(dir.path()).expect("chmod");
    let this = env::current_exe().expect("has a path");
    for (from, name) in [(this, "test"), (example(), "copy")] {
        if from.exists() {
            fs::copy(from, dir.path().join(name)).expect("copied");
        }
    }
    dir
}

/// The example `copy`, which `cargo test` builds along.
pub(crate) fn example() -> PathBuf {
    if let Some(path) = env::var_os(COPY) {
        return path.into();
    }
    let this = env::current_exe().expect("has a path");
    let profile = this.ancestors().nth(2).expect("target/<profile>/deps/this");
    profile.join("examples/copy")
}

/// Has the kernel answer preadv2 and pwritev2 with EPERM, from here on and in
/// whatever is executed.
fn forbid_nowait() -> io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    // Whether the call is the one: then over `jt` statements.
    let jump = |call: libc::c_long, jt: u8| libc::sock_filter {
        jt,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32)
    };
    let mut filter = [
        // The first word of `struct seccomp_data` is the call's number.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(libc::SYS_preadv2, 2),
        jump(libc::SYS_pwritev2, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: takes numbers only.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the program and its filter are alive during the call.
    let policy = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if privileges == 0 && policy == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
