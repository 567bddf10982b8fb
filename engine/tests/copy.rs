//! The example `copy`, as a user runs it.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    ffi::CStr,
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use common::{Jail, Rng, again, example};
use tempfile::TempDir;

#[test]
fn again_under_seccomp() {
    again(Jail::Seccomp, &[]);
}

#[test]
fn again_unprivileged() {
    again(Jail::Nobody, &[]);
}

#[test]
fn again_on_tmpfs() {
    again(Jail::Tmpfs, &[]);
}

/// A directory with SRC.
struct Place(TempDir);

impl Place {
    fn new(src: &[u8]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("src"), src).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn copy(&self, args: &[&str]) -> Command {
        let path = example();
        assert!(
            path.exists(),
            "{} is built by `cargo test`, or by `cargo build --example copy`",
            path.display()
        );
        let mut command = Command::new(path);
        command.args(args).current_dir(self.0.path());
        command
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Waits until the copy is under way, and has written something.
    fn wait_for_temporary(&self, child: &mut Child) {
        let is_written = |name: &String| {
            let length = fs::metadata(self.path(name)).map_or(0, |file| file.len());
            name.starts_with(".uaio-copy-") && length > 0
        };
        while !self.names().iter().any(is_written) {
            assert!(child.try_wait().unwrap().is_none(), "over already");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// One line that says why, and a code.
#[track_caller]
fn assert_fails(output: &Output, code: i32, why: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(
        stderr.starts_with("copy: ") && stderr.contains(why),
        "{stderr}"
    );
    assert_eq!(stderr.matches('\n').count(), 1, "{stderr}");
    assert!(output.stdout.is_empty());
}

#[track_caller]
fn assert_succeeds(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(stdout.matches('\n').count(), 1, "{stdout}");
    stdout
}

#[test]
fn copies_are_exact() {
    let mut rng = Rng::seeded();
    let sizes = [0, 1, 511, 4096, 4097, 65_536, (1 << 20) + 3, 3_000_000];
    for size in sizes {
        let bytes = rng.bytes(size);
        let place = Place::new(&bytes);
        let block = [1 << 10, 4095, 4096, 1 << 18, 1 << 22][rng.below(5)];
        let depth = [1, 2, 7, 64][rng.below(4)];
        let (block, depth) = (block.to_string(), depth.to_string());
        let args = ["src", "dst", "--block", &block, "--depth", &depth];
        let said = assert_succeeds(&place.copy(&args).output().unwrap());
        assert!(said.starts_with(&format!("{size} bytes in ")), "{said}");
        for part in [
            " s, ",
            " MB/s; ",
            " requests: ",
            " inline, ",
            " handed off\n",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert!(fs::read(place.path("dst")).unwrap() == bytes, "{args:?}");
        assert_eq!(place.names(), ["dst", "src"]);
    }
    // One byte at a time.
    let place = Place::new(b"slow but sure");
    let args = ["--block=1", "--depth=3", "--", "src", "dst"];
    assert_succeeds(&place.copy(&args).output().unwrap());
    assert_eq!(fs::read(place.path("dst")).unwrap(), b"slow but sure");
}

#[test]
fn holes_stay_holes() {
    const PIECE: u64 = 1 << 20;
    let place = Place::new(b"");
    // '#' is data, '.' a hole.
    for (n, picture) in ["....", "#...", "...#", ".##.#..", "#.#.#"]
        .iter()
        .enumerate()
    {
        let mut src = fs::File::create(place.path("src")).unwrap();
        for (at, kind) in picture.bytes().enumerate() {
            if kind == b'#' {
                src.seek(SeekFrom::Start(at as u64 * PIECE)).unwrap();
                src.write_all(&vec![b'a' + n as u8; PIECE as usize])
                    .unwrap();
            }
        }
        src.set_len(picture.len() as u64 * PIECE + 5).unwrap();
        let blocks = src.metadata().unwrap().blocks();
        let said = assert_succeeds(&place.copy(&["src", "dst"]).output().unwrap());
        let (src, dst) = (place.path("src"), place.path("dst"));
        assert!(
            fs::read(&dst).unwrap() == fs::read(&src).unwrap(),
            "{picture}"
        );
        let copied = fs::metadata(&dst).unwrap().blocks();
        if blocks < picture.len() as u64 * PIECE / 512 {
            assert!(said.ends_with(" bytes of holes\n"), "{said}");
            // Metadata may take a few blocks more or less.
            assert!(
                copied <= blocks + 64,
                "{picture}: {copied} of {blocks} blocks"
            );
        }
    }
}

#[test]
fn the_copy_takes_the_place_of_what_was_there() {
    let place = Place::new(b"new");
    fs::write(place.path("dst"), "old").unwrap();
    let mode = fs::Permissions::from_mode(0o2741);
    fs::set_permissions(place.path("src"), mode).unwrap();
    let mut old = fs::File::open(place.path("dst")).unwrap();
    assert_succeeds(&place.copy(&["src", "dst"]).output().unwrap());
    // Who has it open keeps the old one.
    let mut kept = String::new();
    old.read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "old");
    assert_eq!(fs::read(place.path("dst")).unwrap(), b"new");
    let mode = fs::metadata(place.path("dst")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o741);

    // A link stays one.
    fs::create_dir(place.path("dir")).unwrap();
    fs::write(place.path("dir/real"), "old").unwrap();
    symlink("dir/real", place.path("link")).unwrap();
    assert_succeeds(&place.copy(&["src", "link"]).output().unwrap());
    assert!(place.path("link").is_symlink());
    assert_eq!(fs::read(place.path("dir/real")).unwrap(), b"new");
}

#[test]
fn files_that_do_not_tell_their_size_are_copied() {
    let place = Place::new(b"");
    assert_succeeds(&place.copy(&["/proc/filesystems", "dst"]).output().unwrap());
    let copied = fs::read(place.path("dst")).unwrap();
    assert_eq!(copied, fs::read("/proc/filesystems").unwrap());
}

#[test]
fn impossible_copies_leave_everything_as_it_was() {
    let place = Place::new(b"new");
    fs::write(place.path("dst"), "old").unwrap();
    fs::create_dir(place.path("dir")).unwrap();
    fs::hard_link(place.path("src"), place.path("same")).unwrap();
    symlink("nowhere", place.path("dangling")).unwrap();
    symlink("src", place.path("link")).unwrap();
    let fifo = place.path("fifo");
    let mode = rustix::fs::Mode::RWXU;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
    let before = place.names();
    let unfit = "neither a regular file nor a block device";
    for (src, dst, why) in [
        ("missing", "dst", "missing: No such file"),
        ("", "dst", "No such file"),
        ("dir", "dst", unfit),
        ("fifo", "dst", unfit),
        ("/dev/zero", "dst", unfit),
        ("dst/x", "dst", "dst/x: Not a directory"),
        ("src", "src", "src: is SRC itself"),
        ("src", "./dir/../src", "is SRC itself"),
        ("src", "same", "same: is SRC itself"),
        ("link", "src", "is SRC itself"),
        ("src", "dir", "dir: not a regular file"),
        ("src", "dir/..", "not a regular file"),
        ("src", "fifo", "not a regular file"),
        ("src", "/dev/null", "not a regular file"),
        ("src", "new/", "new/: not a regular file"),
        ("src", "dangling", "dangling: a dangling link"),
        ("src", "no/where", "no/where: No such file"),
        ("src", "dst/x", "dst/x: Not a directory"),
        ("src", "", "No such file"),
    ] {
        let output = place.copy(&[src, dst]).output().unwrap();
        assert_fails(&output, 1, why);
        assert_eq!(place.names(), before, "{src} {dst}");
        assert_eq!(fs::read(place.path("dst")).unwrap(), b"old");
        assert_eq!(fs::read(place.path("src")).unwrap(), b"new");
    }
}

#[test]
fn what_may_not_be_read_or_written() {
    if rustix::process::geteuid().is_root() {
        // Root may. The test is run again as somebody else.
        return;
    }
    let place = Place::new(b"new");
    let forbid = |name| fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o000));
    forbid("src").unwrap();
    let output = place.copy(&["src", "dst"]).output().unwrap();
    assert_fails(&output, 1, "src: Permission denied");

    fs::create_dir(place.path("dir")).unwrap();
    let read_only = fs::Permissions::from_mode(0o500);
    fs::set_permissions(place.path("dir"), read_only).unwrap();
    fs::write(place.path("readable"), "new").unwrap();
    let output = place.copy(&["readable", "dir/dst"]).output().unwrap();
    assert_fails(&output, 1, "dir/dst: Permission denied");
    assert_eq!(place.names(), ["dir", "readable", "src"]);
}

#[test]
fn wrong_options() {
    let place = Place::new(b"new");
    for (args, why) in [
        (&["src", "dst", "--depth", "0"][..], "--depth"),
        (&["src", "dst", "--block", "0"], "--block"),
        (&["src", "dst", "--depth", "65537"], "--depth"),
        (&["src", "dst", "--block", "1073741825"], "--block"),
        (
            &["src", "dst", "--block", "99999999999999999999"],
            "--block",
        ),
        (&["src", "dst", "--depth", "-1"], "--depth"),
        (&["src", "dst", "--depth=many"], "--depth"),
        (&["src", "dst", "--depth"], "--depth"),
        (&["src", "dst", "--wide"], "--wide"),
        (&["src", "dst", "-x"], "-x"),
        (&["src", "dst", "third"], "third"),
        (&["src"], "SRC and DST"),
        (&[], "SRC and DST"),
    ] {
        assert_fails(&place.copy(args).output().unwrap(), 2, why);
        assert_eq!(place.names(), ["src"]);
    }
    let help = place.copy(&["--help"]).output().unwrap();
    assert!(help.status.success() && help.stderr.is_empty());
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("--depth N") && help.contains("--block BYTES"));
}

/// Takes a minute, if it is let: many small requests, one at a time.
const SLOW: [&str; 6] = ["src", "dst", "--depth", "1", "--block", "1"];

#[test]
fn a_signal_ends_it_cleanly() {
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let place = Place::new(&vec![1; 32 << 20]);
        fs::write(place.path("dst"), "old").unwrap();
        let mut command = place.copy(&SLOW);
        // Who starts the tests in the background may have had it ignored.
        let default = move || {
            // SAFETY: takes numbers only; no handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            Ok(())
        };
        // SAFETY: between fork and exec it makes a system call only.
        unsafe { command.pre_exec(default) };
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        place.wait_for_temporary(&mut child);
        // SAFETY: takes numbers only; the child was not waited for yet.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        let output = child.wait_with_output().unwrap();
        assert_fails(&output, code, "interrupted");
        assert_eq!(place.names(), ["dst", "src"]);
        assert_eq!(fs::read(place.path("dst")).unwrap(), b"old");
    }
}

#[test]
fn a_source_that_shrinks_is_an_error() {
    let place = Place::new(&vec![1; 32 << 20]);
    let mut child = place.copy(&SLOW).stderr(Stdio::piped()).spawn().unwrap();
    place.wait_for_temporary(&mut child);
    let src = fs::OpenOptions::new().write(true).open(place.path("src"));
    src.unwrap().set_len(0).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_fails(&output, 1, "src: became shorter");
    assert_eq!(place.names(), ["src"]);
}

#[test]
fn a_file_that_may_not_become_so_large() {
    let place = Place::new(&[1; 300_000]);
    fs::write(place.path("dst"), "old").unwrap();
    let mut command = place.copy(&["src", "dst", "--block", "10000"]);
    let limit_size = || {
        let limit = rustix::process::Rlimit {
            current: Some(100_001),
            maximum: Some(100_001),
        };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit)?;
        // SAFETY: ignoring a signal is no handler that could do harm.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only.
    let output = unsafe { command.pre_exec(limit_size) }.output().unwrap();
    assert_fails(&output, 1, "dst: File too large");
    assert_eq!(place.names(), ["dst", "src"]);
    assert_eq!(fs::read(place.path("dst")).unwrap(), b"old");
}

/// On a tmpfs of 64 KiB, in a mount namespace of its own.
#[test]
fn a_full_disk() {
    let place = Place::new(&[1; 300_000]);
    fs::create_dir(place.path("full")).unwrap();
    let mut script = Command::new("sh");
    let said = "echo old >full/dst; \"$0\" src full/dst; echo $?; ls -A full; cat full/dst";
    script
        .args(["-c", said])
        .arg(example())
        .current_dir(place.0.path());
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { script.pre_exec(own_small_tmpfs(place.path("full"))) };
    let output = match script.output() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            println!("skipped: no mount namespace here");
            return;
        }
        output => output.unwrap(),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.starts_with("copy: full/dst: No space left on device"),
        "{stderr}"
    );
    assert_eq!(stderr.matches('\n').count(), 1, "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\ndst\nold\n");
}

/// Mounts a tmpfs at `path`, for what will be executed and nobody else.
fn own_small_tmpfs(path: PathBuf) -> impl FnMut() -> io::Result<()> {
    let path = std::ffi::CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
    let root = rustix::process::geteuid().is_root();
    let map = |id: u32| format!("0 {id} 1");
    let maps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        (
            "/proc/self/uid_map",
            map(rustix::process::geteuid().as_raw()),
        ),
        (
            "/proc/self/gid_map",
            map(rustix::process::getegid().as_raw()),
        ),
    ];
    move || {
        let user = if root { 0 } else { libc::CLONE_NEWUSER };
        // SAFETY: the process has one thread and shares nothing that matters.
        if unsafe { libc::unshare(libc::CLONE_NEWNS | user) } != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if !root {
            for (file, line) in &maps {
                let file =
                    rustix::fs::open(*file, rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty())?;
                rustix::io::write(&file, line.as_bytes())?;
            }
        }
        let mount = |from: &CStr, to: &CStr, flags, data: &CStr| {
            // SAFETY: strings that end with zero.
            let mounted = unsafe {
                libc::mount(
                    from.as_ptr(),
                    to.as_ptr(),
                    from.as_ptr(),
                    flags,
                    data.as_ptr().cast(),
                )
            };
            match mounted {
                0 => Ok(()),
                _ => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
            }
        };
        mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE, c"")?;
        mount(c"tmpfs", &path, 0, c"size=64k")
    }
}

#[test]
fn a_terminal_sees_a_bar() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let place = Place::new(&vec![1; 4 << 20]);
    let Ok(master) = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY) else {
        println!("skipped: no terminals here");
        return;
    };
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let terminal = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(name.to_str().unwrap()))
        .unwrap();
    let mut child = place
        .copy(&["src", "dst", "--depth", "1", "--block", "1024"])
        .env("TERM", "xterm")
        .stdout(terminal.try_clone().unwrap())
        .stderr(terminal)
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    // Ends with EIO when nobody has the other side any more.
    let _ = fs::File::from(master).read_to_end(&mut seen);
    let status = child.wait().unwrap();
    let seen = String::from_utf8_lossy(&seen);
    assert!(status.success() && status.signal().is_none(), "{seen}");
    assert!(
        seen.contains("4.00 MiB") && seen.contains("4194304 bytes in"),
        "{seen:?}"
    );
}
