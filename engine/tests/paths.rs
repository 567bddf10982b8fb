//! Names of files, what is known of them, their blocks: each call, each way to end.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use common::{Jail, Rng, again, collect, complete, jail};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    io::FdFlags,
    process::{Resource, Rlimit, geteuid, getrlimit, setrlimit},
};
use tempfile::TempDir;
use uaio::{Callback, Context, Errno, File, Op, event, flag};

#[test]
fn again_unprivileged() {
    again(Jail::Nobody, &[]);
}

#[test]
fn again_on_tmpfs() {
    again(Jail::Tmpfs, &[]);
}

/// How a request is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Context,
    Offload,
    Future,
    Callback,
}
const WAYS: [Way; 4] = [Way::Context, Way::Offload, Way::Future, Way::Callback];

type Outcome = (Result<usize, Errno>, Op);

fn run(context: &Context, way: Way, op: Op) -> Outcome {
    match way {
        Way::Context => {
            let done = complete(context, op);
            (done.result, done.op)
        }
        Way::Offload => {
            let done = complete(context, op.offload());
            assert!(!done.inline);
            (done.result, done.op)
        }
        Way::Future => {
            let operation = context.operation(op).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread();
            let done = { runtime }.build().unwrap().block_on(operation);
            (done.result, done.op)
        }
        Way::Callback => {
            let (sender, receiver) = mpsc::channel();
            let callback = Callback::new(op, move |done| {
                sender.send((done.result, done.op)).unwrap();
            });
            callback.submit().unwrap();
            receiver.recv().unwrap()
        }
    }
}

/// A directory, where everything is removed in the end.
struct Place {
    temp: TempDir,
    dir: File,
}

impl Place {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = File::new(fs::File::open(temp.path()).unwrap()).unwrap();
        Self { temp, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> File {
        fs::write(self.path(name), bytes).unwrap();
        self.open(name)
    }

    fn open(&self, name: &str) -> File {
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).open(self.path(name));
        File::new(file.unwrap()).unwrap()
    }

    fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.temp.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

/// How many descriptors of this process are below `path`.
fn open_below(path: &Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap();
    // Others come and go meanwhile.
    let targets = links.filter_map(|link| fs::read_link(link.ok()?.path()).ok());
    targets.filter(|target| target.starts_with(path)).count()
}

fn error(number: i32) -> Errno {
    Errno::from_raw(number).unwrap()
}

/// Ends with `number`, each way.
#[track_caller]
fn fails(context: &Context, number: i32, make: impl Fn() -> Op) {
    for way in WAYS {
        assert_eq!(run(context, way, make()).0, Err(error(number)), "{way:?}");
    }
}

/// Is refused with EINVAL, each way, and given back.
#[track_caller]
fn is_refused(context: &Context, make: impl Fn() -> Op) {
    let mut ops = [Op::nop(), make().data(7), Op::nop()];
    assert_eq!(context.submit(&mut ops), Ok(1));
    assert_eq!(collect(context, 1)[0].result, Ok(0));
    assert_eq!(context.submit(&mut ops[1..]), Err(Errno::EINVAL));
    let before = format!("{:?}", make().data(7));
    assert_eq!(format!("{:?}", ops[1]), before);
    let refused = context.operation(make().data(7)).unwrap_err();
    assert_eq!(refused.errno, Errno::EINVAL);
    assert_eq!(format!("{:?}", refused.op), before);
    let refused = Callback::new(make().data(7), |_| unreachable!()).submit();
    let refused = refused.unwrap_err();
    assert_eq!(refused.errno, Errno::EINVAL);
    assert_eq!(format!("{:?}", refused.callback.into_op()), before);
}

fn with_nul(place: &Place) -> PathBuf {
    place.path("a\0b")
}

/// A worker that waits until this is dropped: it opens for writing what is leased to this
/// reader.
struct Held {
    lease: fs::File,
    path: PathBuf,
}

impl Held {
    fn new(place: &Place) -> Self {
        let path = place.path("held");
        fs::write(&path, []).unwrap();
        let lease = fs::File::open(&path).unwrap();
        let held = Self { lease, path };
        // What tells of the other one is ignored.
        const F_SETSIG: i32 = 10;
        held.fcntl(F_SETSIG, libc::SIGURG);
        held.fcntl(libc::F_SETLEASE, libc::F_RDLCK);
        held
    }

    /// The only worker of the context.
    fn worker(context: &Context, place: &Place) -> Self {
        let held = Self::new(place);
        assert_eq!(context.submit(&mut [held.open().data(HELD)]), Ok(1));
        held.wait();
        held
    }

    fn open(&self) -> Op {
        Op::openat(None, &self.path, flag::O_WRONLY, 0)
    }

    /// Until it waits.
    fn wait(&self) {
        while self.fcntl(libc::F_GETLEASE, 0) == libc::F_RDLCK {
            thread::yield_now();
        }
    }

    fn fcntl(&self, command: i32, argument: i32) -> i32 {
        // SAFETY: no memory is passed.
        let returned = unsafe { libc::fcntl(self.lease.as_raw_fd(), command, argument) };
        assert_ne!(returned, -1, "{}", std::io::Error::last_os_error());
        returned
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.fcntl(libc::F_SETLEASE, libc::F_UNLCK);
    }
}

/// The data of the request that a worker is held with.
const HELD: u64 = u64::MAX;

// Opening.

#[test]
fn files_are_opened() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    let create = flag::O_RDWR | flag::O_CREAT | flag::O_EXCL;
    for way in WAYS {
        for (dir, name) in [
            (None, place.path("new")),
            (Some(&place.dir), "new".into()),
            // Absolute: the directory is not looked at.
            (Some(&place.file("other", b"")), place.path("new")),
        ] {
            let (result, op) = run(&context, way, Op::openat(dir, name, create, 0o4400));
            let file = op.into_file().unwrap();
            assert_eq!(result, Ok(file.as_fd().as_raw_fd() as usize), "{way:?}");
            let flags = rustix::io::fcntl_getfd(&file).unwrap();
            assert_eq!(flags, FdFlags::CLOEXEC);
            let opened = rustix::fs::fcntl_getfl(&file).unwrap();
            assert_eq!(opened & OFlags::RWMODE, OFlags::RDWR);
            let mode = fs::metadata(place.path("new")).unwrap().mode();
            assert_eq!(mode & 0o7777, 0o4400);
            // As any other.
            let done = complete(&context, Op::pwrite(&file, b"text".to_vec(), 0));
            assert_eq!(done.result, Ok(4));
            assert_eq!(place.read("new"), b"text");
            fs::remove_file(place.path("new")).unwrap();
        }
    }
}

#[test]
fn a_relative_name_is_looked_up_where_the_process_is() {
    let context = Context::new(1).unwrap();
    let here = std::env::current_dir().unwrap();
    let (result, op) = run(
        &context,
        Way::Context,
        Op::openat(None, ".", flag::O_PATH, 0),
    );
    let file = op.into_file().unwrap();
    assert_eq!(result, Ok(file.as_fd().as_raw_fd() as usize));
    let opened = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    assert_eq!(fs::read_link(opened).unwrap(), here);
}

#[test]
fn what_cannot_be_opened() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    let file = place.file("file", b"");
    symlink("file", place.path("link")).unwrap();
    place.fifo("fifo");
    let long = "x".repeat(256);
    for (number, dir, name, flags) in [
        (libc::ENOENT, &place.dir, "none", flag::O_RDONLY),
        (libc::ENOENT, &place.dir, "", flag::O_RDONLY),
        (
            libc::EEXIST,
            &place.dir,
            "file",
            flag::O_CREAT | flag::O_EXCL,
        ),
        (libc::EISDIR, &place.dir, ".", flag::O_WRONLY),
        (libc::ENOTDIR, &place.dir, "file/none", flag::O_RDONLY),
        (libc::ENOTDIR, &place.dir, "file", flag::O_DIRECTORY),
        (libc::ENOTDIR, &file, "none", flag::O_RDONLY),
        (libc::ELOOP, &place.dir, "link", flag::O_NOFOLLOW),
        (
            libc::ENXIO,
            &place.dir,
            "fifo",
            flag::O_WRONLY | flag::O_NONBLOCK,
        ),
        (libc::ENAMETOOLONG, &place.dir, &long, flag::O_RDONLY),
    ] {
        fails(&context, number, || {
            Op::openat(Some(dir), name, flags, 0o600)
        });
    }
    let (_, op) = run(
        &context,
        Way::Context,
        Op::openat(None, place.path("none"), 0, 0),
    );
    assert!(op.into_file().is_none());
    is_refused(&context, || {
        Op::openat(None, with_nul(&place), flag::O_CREAT, 0o600)
    });
    assert_eq!(place.names(), ["fifo", "file", "link"]);
}

#[test]
fn what_may_not_be_opened_or_removed() {
    again(Jail::Alone, &["may_not_be_opened_or_removed"]);
    if geteuid().is_root() {
        return;
    }
    let place = Place::new();
    let context = Context::new(4).unwrap();
    place.file("file", b"");
    let permit = |name: &str, mode: u32| {
        rustix::fs::chmod(place.path(name), Mode::from_raw_mode(mode)).unwrap();
    };
    permit("file", 0);
    fails(&context, libc::EACCES, || {
        Op::openat(Some(&place.dir), "file", 0, 0)
    });
    permit("", 0o500);
    fails(&context, libc::EACCES, || {
        Op::unlinkat(Some(&place.dir), "file", 0)
    });
    fails(&context, libc::EACCES, || {
        Op::renameat(Some(&place.dir), "file", Some(&place.dir), "other", 0)
    });
    permit("", 0);
    fails(&context, libc::EACCES, || {
        Op::statx(Some(&place.dir), "file", 0, flag::STATX_SIZE)
    });
    permit("", 0o700);
}

#[test]
fn no_descriptor_is_left() {
    again(Jail::Alone, &["no_descriptor_is_left"]);
    if jail() != Some(Jail::Alone) {
        return;
    }
    let place = Place::new();
    let context = Context::new(4).unwrap();
    let open = || Op::openat(Some(&place.dir), ".", flag::O_RDONLY, 0);
    // Makes what the ways need before there is none to be had.
    for way in WAYS {
        run(&context, way, open()).0.unwrap();
    }
    let before = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..before
    };
    for way in [Way::Context, Way::Offload, Way::Callback] {
        setrlimit(Resource::Nofile, none).unwrap();
        let (result, op) = run(&context, way, open());
        setrlimit(Resource::Nofile, before).unwrap();
        assert_eq!(result, Err(error(libc::EMFILE)));
        assert!(op.into_file().is_none());
    }
}

#[test]
fn a_fifo_is_opened_when_the_other_end_is() {
    let place = Place::new();
    let fifo = place.fifo("fifo");
    let context = Context::builder(4).workers(2..=2).build().unwrap();
    let mut ops = [
        Op::openat(None, &fifo, flag::O_RDONLY, 0).data(0),
        // Another worker goes on meanwhile.
        Op::nop().offload().data(1),
    ];
    assert_eq!(context.submit(&mut ops), Ok(2));
    assert_eq!(collect(&context, 1)[0].data, 1);
    let writer = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    let reader = collect(&context, 1).remove(0).op.into_file().unwrap();
    // It is a stream, as any other.
    let mut ops = [Op::read(&reader, vec![0; 8])];
    assert_eq!(context.submit(&mut ops), Ok(1));
    rustix::io::write(&writer, b"late").unwrap();
    let done = collect(&context, 1).remove(0);
    assert_eq!(done.result, Ok(4));
    assert_eq!(done.op.into_buf()[..4], *b"late");
}

#[test]
fn what_is_opened_again_is_another_one() {
    let place = Place::new();
    place.file("file", b"");
    let context = Context::new(1).unwrap();
    let open = Op::openat(Some(&place.dir), "file", flag::O_RDONLY, 0);
    let first = complete(&context, open);
    assert_eq!(open_below(&place.path("file")), 1);
    // The first is closed, for nobody has taken it out.
    let second = complete(&context, first.op);
    assert!(second.result.is_ok());
    assert_eq!(open_below(&place.path("file")), 1);
    fs::remove_file(place.path("file")).unwrap();
    let third = complete(&context, second.op);
    assert_eq!(third.result, Err(Errno::ENOENT));
    assert!(third.op.into_file().is_none());
    assert_eq!(open_below(place.temp.path()), 1, "the directory");
}

// Closing.

#[test]
fn files_are_closed() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    for way in WAYS {
        let file = place.file("file", b"");
        assert_eq!(open_below(&place.path("file")), 1);
        let (result, op) = run(&context, way, Op::close(file));
        assert_eq!(result, Ok(0), "{way:?}");
        assert_eq!(open_below(&place.path("file")), 0);
        // There is nothing to be closed any more.
        let (result, op) = run(&context, way, op);
        assert_eq!(result, Err(Errno::EBADF));
        assert!(op.into_file().is_none());
    }
}

#[test]
fn a_file_with_other_shares_is_not_closed() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    for way in WAYS {
        let file = place.file("file", b"text");
        let share = file.clone();
        let (result, op) = run(&context, way, Op::close(file));
        assert_eq!(result, Err(Errno::EBUSY), "{way:?}");
        // As it is: to be submitted again, or taken out.
        let (result, op) = run(&context, way, op);
        assert_eq!(result, Err(Errno::EBUSY));
        let file = op.into_file().unwrap();
        assert_eq!(file.as_fd().as_raw_fd(), share.as_fd().as_raw_fd());
        let read = complete(&context, Op::pread(&file, vec![0; 4], 0));
        assert_eq!(read.op.into_buf(), b"text");
        drop(share);
        assert_eq!(run(&context, way, Op::close(file)).0, Ok(0));
        assert_eq!(open_below(&place.path("file")), 0);
    }
}

#[test]
fn a_file_is_not_closed_under_a_request() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (reader, writer) = (File::new(reader).unwrap(), File::new(writer).unwrap());
    let context = Context::new(4).unwrap();
    let mut read = [Op::read(&reader, vec![0; 4])];
    assert_eq!(context.submit(&mut read), Ok(1));
    let done = complete(&context, Op::close(reader));
    assert_eq!(done.result, Err(Errno::EBUSY));
    let reader = done.op.into_file().unwrap();
    assert_eq!(context.cancel(read[0].handle().unwrap()), Ok(()));
    // It has its share until its completion is taken out and dropped.
    let cancelled = collect(&context, 1);
    let done = complete(&context, Op::close(reader));
    assert_eq!(done.result, Err(Errno::EBUSY));
    drop(cancelled);
    let number = writer.as_fd().as_raw_fd();
    // Both were waited for by epoll, which forgets them.
    let mut ops = [Op::poll(&writer, event::PRI).data(1), done.op.data(2)];
    assert_eq!(context.submit(&mut ops), Ok(2));
    let mut done = collect(&context, 2);
    done.sort_by_key(|done| done.data);
    assert_eq!(done[0].result, Ok(event::ERR.into()));
    assert_eq!(done[1].result, Ok(0));
    drop(done);
    assert_eq!(complete(&context, Op::close(writer)).result, Ok(0));
    // What has the number next is not taken for it.
    let (reader, writer) = std::io::pipe().unwrap();
    let other = rustix::io::fcntl_dupfd_cloexec(&reader, number).unwrap();
    let other = File::new(other).unwrap();
    let mut read = [Op::read(&other, vec![0; 4])];
    assert_eq!(context.submit(&mut read), Ok(1));
    rustix::io::write(&writer, b"next").unwrap();
    assert_eq!(collect(&context, 1)[0].result, Ok(4));
}

/// A file system that says so at the end is not at hand: a filter says it for the number
/// of one descriptor.
#[test]
fn an_error_of_close_is_told() {
    const NUMBER: u32 = 900;
    for number in [libc::EIO, libc::EDQUOT, libc::EINTR] {
        let place = Place::new();
        let file = thread::scope(|scope| {
            let at_end = scope.spawn(|| {
                forbid_closing(NUMBER, number);
                // Its worker is forbidden what this thread is.
                let context = Context::new(1).unwrap();
                let file = fs::File::create(place.path("file")).unwrap();
                let file = rustix::io::fcntl_dupfd_cloexec(&file, NUMBER as i32).unwrap();
                assert_eq!(file.as_raw_fd(), NUMBER as i32);
                let done = complete(&context, Op::close(File::new(file).unwrap()));
                assert_eq!(done.result, Err(error(number)));
                done.op.into_file()
            });
            at_end.join().unwrap()
        });
        // On Linux it is closed whatever that says.
        assert!(file.is_none());
        // SAFETY: the filter has left it open, and nobody else has it.
        unsafe { rustix::io::close(NUMBER as i32) };
    }
}

/// Has the kernel answer `close(fd)` of this thread with `number`.
fn forbid_closing(fd: u32, number: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let unless = |k: u32, jf: u8| libc::sock_filter {
        jf,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k)
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    // The lower half of the first argument.
    let argument = if cfg!(target_endian = "little") {
        16
    } else {
        20
    };
    let answer = libc::BPF_RET | libc::BPF_K;
    let mut filter = [
        statement(load, 0),
        unless(libc::SYS_close as u32, 3),
        statement(load, argument),
        unless(fd, 1),
        statement(answer, libc::SECCOMP_RET_ERRNO | number as u32),
        statement(answer, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: takes numbers only.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program and its filter are alive during the call.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    assert_eq!((privileges, set), (0, 0));
}

// What is known of a file.

#[test]
fn files_are_looked_up() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    let file = place.file("file", &[1; 5000]);
    symlink("file", place.path("link")).unwrap();
    let expected = fs::metadata(place.path("file")).unwrap();
    let mask = flag::STATX_BASIC_STATS;
    for way in WAYS {
        for (dir, name, flags) in [
            (None, place.path("file"), 0),
            (Some(&place.dir), "file".into(), 0),
            (Some(&place.dir), "link".into(), 0),
            (Some(&file), "".into(), flag::AT_EMPTY_PATH),
        ] {
            let (result, op) = run(&context, way, Op::statx(dir, &name, flags, mask));
            assert_eq!(result, Ok(0), "{way:?} {name:?}");
            let found = op.into_statx().unwrap();
            assert_eq!(found.stx_mask & mask, mask);
            assert_eq!(found.stx_size, 5000);
            assert_eq!(found.stx_ino, expected.ino());
            assert_eq!(u32::from(found.stx_mode), expected.mode());
            assert_eq!(u64::from(found.stx_nlink), expected.nlink());
            assert_eq!(
                (found.stx_uid, found.stx_gid),
                (expected.uid(), expected.gid())
            );
            let changed = (found.stx_mtime.tv_sec, i64::from(found.stx_mtime.tv_nsec));
            assert_eq!(changed, (expected.mtime(), expected.mtime_nsec()));
        }
        let itself = Op::statx(Some(&place.dir), "link", flag::AT_SYMLINK_NOFOLLOW, mask);
        let found = run(&context, way, itself).1.into_statx().unwrap();
        let kind = FileType::from_raw_mode(found.stx_mode.into());
        assert_eq!((kind, found.stx_size), (FileType::Symlink, 4));
    }
}

#[test]
fn what_is_not_found() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    let file = place.file("file", b"");
    let mask = flag::STATX_SIZE;
    let both = flag::AT_STATX_FORCE_SYNC | flag::AT_STATX_DONT_SYNC;
    for (number, dir, name, flags) in [
        (libc::ENOENT, &place.dir, "none", 0),
        (libc::ENOENT, &file, "", 0),
        (libc::ENOTDIR, &file, "none", 0),
        (libc::EINVAL, &file, "", both | flag::AT_EMPTY_PATH),
    ] {
        fails(&context, number, || Op::statx(Some(dir), name, flags, mask));
    }
    is_refused(&context, || Op::statx(None, with_nul(&place), 0, mask));
}

/// What a request has found it forgets when it is submitted again.
#[test]
fn looked_up_again() {
    let place = Place::new();
    let context = Context::new(1).unwrap();
    let file = place.file("file", b"");
    let statx = Op::statx(Some(&place.dir), "file", 0, flag::STATX_SIZE);
    let first = complete(&context, statx);
    rustix::fs::ftruncate(&file, 77).unwrap();
    let second = complete(&context, first.op);
    assert_eq!(second.result, Ok(0));
    fs::remove_file(place.path("file")).unwrap();
    let third = complete(&context, second.op);
    assert_eq!(third.result, Err(Errno::ENOENT));
    assert!(third.op.into_statx().is_none());
    let fourth = Op::statx(Some(&file), "", flag::AT_EMPTY_PATH, flag::STATX_SIZE);
    let fourth = complete(&context, fourth).op.into_statx().unwrap();
    assert_eq!(fourth.stx_size, 77);
}

/// Where there is nothing to wait for the submitter does it, unless told otherwise.
#[test]
fn who_does_it() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    let in_memory = jail() == Some(Jail::Tmpfs);
    let flags = flag::SYNC_FILE_RANGE_WRITE;
    let file = place.file("file", b"");
    let (empty, size) = (flag::AT_EMPTY_PATH, flag::STATX_SIZE);
    for op in [
        Op::fsync(&file),
        Op::fdatasync(&file),
        Op::sync_file_range(&file, 0, 0, flags),
        Op::statx(Some(&file), "", empty, size),
        Op::close(place.file("other", b"")),
    ] {
        let done = complete(&context, op);
        assert_eq!(done.inline, in_memory, "{:?}", done.op);
        assert!(!complete(&context, done.op.offload()).inline);
    }
    for op in [
        Op::statx(Some(&file), "", 0, size),
        Op::statx(Some(&place.dir), "", empty, size),
        Op::statx(None, place.path("file"), empty, size),
        Op::statx(Some(&file), place.path("file"), empty, size),
        Op::fallocate(&file, 0, 0, 1),
        Op::openat(None, place.path("file"), flag::O_RDONLY, 0),
        Op::renameat(None, place.path("other"), None, place.path("third"), 0),
        Op::unlinkat(None, place.path("third"), 0),
    ] {
        let done = complete(&context, op);
        assert!(!done.inline, "{:?}", done.op);
    }
}

// Names.

#[test]
fn names_are_removed() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    for way in WAYS {
        place.file("file", b"");
        fs::create_dir(place.path("dir")).unwrap();
        let op = Op::unlinkat(Some(&place.dir), "file", 0);
        assert_eq!(run(&context, way, op).0, Ok(0), "{way:?}");
        assert_eq!(place.names(), ["dir"]);
        let op = Op::unlinkat(None, place.path("dir"), flag::AT_REMOVEDIR);
        assert_eq!(run(&context, way, op).0, Ok(0));
        assert!(place.names().is_empty());
    }
}

#[test]
fn what_cannot_be_removed() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    let file = place.file("file", b"");
    fs::create_dir(place.path("dir")).unwrap();
    fs::write(place.path("dir/inside"), b"").unwrap();
    for (number, dir, name, flags) in [
        (libc::ENOENT, &place.dir, "none", 0),
        (libc::ENOENT, &place.dir, "", 0),
        (libc::EISDIR, &place.dir, "dir", 0),
        (libc::ENOTDIR, &place.dir, "file", flag::AT_REMOVEDIR),
        (libc::ENOTDIR, &file, "none", 0),
        (libc::ENOTEMPTY, &place.dir, "dir", flag::AT_REMOVEDIR),
        (libc::EINVAL, &place.dir, "file", flag::AT_SYMLINK_NOFOLLOW),
    ] {
        fails(&context, number, || Op::unlinkat(Some(dir), name, flags));
    }
    is_refused(&context, || Op::unlinkat(None, with_nul(&place), 0));
    assert_eq!(place.names(), ["dir", "file"]);
}

#[test]
fn files_are_renamed() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    let dir = Some(&place.dir);
    for way in WAYS {
        let rename = |old: &str, new: &str, flags| {
            run(&context, way, Op::renameat(dir, old, dir, new, flags)).0
        };
        place.file("one", b"1");
        place.file("two", b"2");
        assert_eq!(
            rename("one", "two", flag::RENAME_EXCHANGE),
            Ok(0),
            "{way:?}"
        );
        assert_eq!(
            (place.read("one"), place.read("two")),
            (b"2".into(), b"1".into())
        );
        assert_eq!(
            rename("one", "two", flag::RENAME_NOREPLACE),
            Err(error(libc::EEXIST))
        );
        assert_eq!(
            (place.read("one"), place.read("two")),
            (b"2".into(), b"1".into())
        );
        assert_eq!(rename("one", "two", 0), Ok(0));
        assert_eq!(
            (place.names(), place.read("two")),
            (vec!["two".into()], b"2".into())
        );
        assert_eq!(rename("two", "three", flag::RENAME_NOREPLACE), Ok(0));
        assert_eq!(place.names(), ["three"]);
        let absolute = Op::renameat(None, place.path("three"), None, place.path("one"), 0);
        assert_eq!(run(&context, way, absolute).0, Ok(0));
        assert_eq!(place.names(), ["one"]);
    }
}

#[test]
fn what_cannot_be_renamed() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    place.file("file", b"");
    for dir in ["dir", "full", "full/inside"] {
        fs::create_dir(place.path(dir)).unwrap();
    }
    let both = flag::RENAME_EXCHANGE | flag::RENAME_NOREPLACE;
    for (number, old, new, flags) in [
        (libc::ENOENT, "none", "new", 0),
        (libc::ENOENT, "file", "new", flag::RENAME_EXCHANGE),
        (libc::ENOENT, "file", "none/new", 0),
        (libc::EISDIR, "file", "dir", 0),
        (libc::ENOTDIR, "dir", "file", 0),
        (libc::ENOTEMPTY, "dir", "full", 0),
        (libc::EINVAL, "full", "full/inside/new", 0),
        (libc::EINVAL, "file", "new", both),
        (libc::EXDEV, "file", "/proc/new", 0),
    ] {
        let dir = Some(&place.dir);
        fails(&context, number, || Op::renameat(dir, old, dir, new, flags));
    }
    let nul = with_nul(&place);
    is_refused(&context, || {
        Op::renameat(None, &nul, None, place.path("new"), 0)
    });
    is_refused(&context, || {
        Op::renameat(None, place.path("file"), None, &nul, 0)
    });
    assert_eq!(place.names(), ["dir", "file", "full"]);
}

// Blocks.

#[test]
fn blocks_are_allocated_and_given_back() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    let size = |file: &File| {
        let stat = rustix::fs::fstat(file).unwrap();
        (stat.st_size, stat.st_blocks > 0)
    };
    for way in WAYS {
        let file = place.file("file", b"");
        let keep = flag::FALLOC_FL_KEEP_SIZE;
        let allocate =
            |mode, offset, len| run(&context, way, Op::fallocate(&file, mode, offset, len)).0;
        assert_eq!(allocate(keep, 0, 8192), Ok(0), "{way:?}");
        assert_eq!(size(&file), (0, true));
        assert_eq!(allocate(0, 4096, 4096), Ok(0));
        assert_eq!(size(&file), (8192, true));
        rustix::io::pwrite(&file, &[1; 8192], 0).unwrap();
        assert_eq!(allocate(keep | flag::FALLOC_FL_PUNCH_HOLE, 0, 4096), Ok(0));
        assert_eq!(place.read("file"), [[0; 4096], [1; 4096]].concat());
    }
}

#[test]
fn what_cannot_be_allocated() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    let file = place.file("file", b"");
    let read_only = File::new(fs::File::open(place.path("file")).unwrap()).unwrap();
    let pipe = File::new(std::io::pipe().unwrap().1).unwrap();
    let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC);
    let memory = File::new(memory.unwrap()).unwrap();
    let most = i64::MAX as u64;
    for (number, file, mode, offset, len) in [
        (libc::EINVAL, &file, 0, 0, 0),
        (libc::EFBIG, &file, 0, most, 1),
        (libc::EBADF, &read_only, 0, 0, 1),
        (libc::ESPIPE, &pipe, 0, 0, 1),
        (
            libc::EOPNOTSUPP,
            &memory,
            flag::FALLOC_FL_COLLAPSE_RANGE,
            0,
            4096,
        ),
    ] {
        fails(&context, number, || Op::fallocate(file, mode, offset, len));
    }
    is_refused(&context, || Op::fallocate(&file, 0, most + 1, 1));
    is_refused(&context, || Op::fallocate(&file, 0, 0, most + 1));
    assert_eq!(rustix::fs::fstat(&file).unwrap().st_blocks, 0);
}

#[test]
fn ranges_are_written() {
    let place = Place::new();
    let context = Context::new(4).unwrap();
    let file = place.file("file", &[1; 9000]);
    let pipe = File::new(std::io::pipe().unwrap().1).unwrap();
    let all = flag::SYNC_FILE_RANGE_WAIT_BEFORE
        | flag::SYNC_FILE_RANGE_WRITE
        | flag::SYNC_FILE_RANGE_WAIT_AFTER;
    let most = i64::MAX as u64;
    for way in WAYS {
        for (offset, len, flags) in [(0, 0, all), (4096, 4096, all), (most, 0, 0)] {
            let op = Op::sync_file_range(&file, offset, len, flags);
            assert_eq!(run(&context, way, op).0, Ok(0), "{way:?}");
        }
    }
    for (number, file, offset, len, flags) in [
        (libc::EINVAL, &file, 0, 0, all + 1),
        (libc::EINVAL, &file, most, 1, all),
        (libc::ESPIPE, &pipe, 0, 0, all),
    ] {
        fails(&context, number, || {
            Op::sync_file_range(file, offset, len, flags)
        });
    }
    is_refused(&context, || Op::sync_file_range(&file, most + 1, 0, all));
    is_refused(&context, || Op::sync_file_range(&file, 0, most + 1, all));
}

// Ending early.

/// Each operation, queued behind a worker that is held; and what to look at afterwards.
fn queued(place: &Place) -> [Op; 8] {
    let dir = Some(&place.dir);
    let file = place.file("file", b"text");
    place.file("other", b"other");
    [
        Op::unlinkat(dir, "file", 0),
        Op::renameat(dir, "file", dir, "other", 0),
        Op::openat(dir, "new", flag::O_CREAT, 0o600),
        Op::openat(dir, "file", flag::O_WRONLY | flag::O_TRUNC, 0),
        Op::fallocate(&file, 0, 0, 8192),
        Op::sync_file_range(&file, 0, 0, flag::SYNC_FILE_RANGE_WRITE),
        Op::statx(dir, "file", 0, flag::STATX_SIZE),
        Op::close(file),
    ]
    .map(Op::offload)
}

/// Nothing has happened; and the file that was to be closed came back.
fn assert_untouched(place: &Place, ops: impl IntoIterator<Item = Op>) {
    let mut names = place.names();
    names.retain(|name| name != "held");
    assert_eq!(names, ["file", "other"]);
    assert_eq!(place.read("file"), b"text");
    assert_eq!(place.read("other"), b"other");
    assert_eq!(open_below(&place.path("file")), 1);
    let mut files = 0;
    for op in ops {
        assert!(!format!("{op:?}").contains("found: Some"));
        let Some(file) = op.into_file() else { continue };
        let mut text = [0; 4];
        assert_eq!(rustix::io::pread(&file, &mut text, 0), Ok(4));
        assert_eq!(text, *b"text");
        files += 1;
    }
    assert_eq!(files, 1);
}

#[test]
fn what_is_cancelled_has_not_happened() {
    let place = Place::new();
    let context = Context::builder(16).workers(1..=1).build().unwrap();
    let held = Held::worker(&context, &place);
    let mut ops = queued(&place);
    assert_eq!(context.submit(&mut ops), Ok(8));
    for op in &ops {
        assert_eq!(context.cancel(op.handle().unwrap()), Ok(()));
    }
    let done = collect(&context, 8);
    assert!(done.iter().all(|done| done.result == Err(Errno::ECANCELED)));
    drop(held);
    let held = collect(&context, 1).remove(0);
    assert!((held.data, held.result.is_ok()) == (HELD, true));
    // Its worker has come to the end of the queue.
    complete(&context, Op::nop().offload());
    assert_untouched(&place, done.into_iter().map(|done| done.op));
}

#[test]
fn what_is_too_late_has_not_happened() {
    let place = Place::new();
    let context = Context::builder(16).workers(1..=1).build().unwrap();
    let held = Held::worker(&context, &place);
    let mut ops = queued(&place).map(|op| op.with_timeout(Duration::from_millis(1)));
    assert_eq!(context.submit(&mut ops), Ok(8));
    let done = collect(&context, 8);
    assert!(done.iter().all(|done| done.result == Err(Errno::ETIME)));
    drop(held);
    collect(&context, 1);
    complete(&context, Op::nop().offload());
    assert_untouched(&place, done.into_iter().map(|done| done.op));
}

#[test]
fn what_is_dropped_has_not_happened() {
    let place = Place::new();
    let context = Context::builder(16).workers(1..=1).build().unwrap();
    let held = Held::worker(&context, &place);
    for op in queued(&place) {
        drop(context.operation(op).unwrap());
    }
    drop(held);
    collect(&context, 1);
    complete(&context, Op::nop().offload());
    assert_eq!(open_below(&place.path("file")), 0);
    assert_untouched(&place, [Op::close(place.open("file"))]);
}

#[test]
fn what_a_context_ends_with_has_not_happened() {
    let place = Place::new();
    let context = Context::builder(16).workers(1..=1).build().unwrap();
    let held = Held::worker(&context, &place);
    let mut ops = queued(&place);
    assert_eq!(context.submit(&mut ops), Ok(8));
    thread::scope(|scope| {
        scope.spawn(|| context.destroy());
        // It waits for the worker, after it has ended what is queued.
        let done = collect(&context, 8);
        assert!(done.iter().all(|done| done.result == Err(Errno::ECANCELED)));
        drop(held);
        assert_untouched(&place, done.into_iter().map(|done| done.op));
    });
    let held = collect(&context, 1).remove(0);
    assert!((held.data, held.result.is_ok()) == (HELD, true));
}

// Nothing is left open.

#[test]
fn what_nobody_takes_out_is_closed() {
    let place = Place::new();
    place.file("file", b"");
    let path = place.path("file");
    let open = || Op::openat(None, place.path("file"), flag::O_RDONLY, 0);
    let context = Context::new(8).unwrap();

    // A completion that is dropped.
    let done = complete(&context, open());
    assert_eq!(open_below(&path), 1);
    drop(done);
    assert_eq!(open_below(&path), 0);

    // An operation that is dropped with its completion there.
    let operation = context.operation(open()).unwrap();
    while open_below(&path) == 0 {
        thread::yield_now();
    }
    drop(operation);
    while open_below(&path) > 0 {
        thread::yield_now();
    }

    // Completions for an asyncfd that is closed: one is there, the other is kept back.
    let asyncfd = context.asyncfd(1).unwrap();
    let mut ops = [open().data(1).to(&asyncfd), open().data(2).to(&asyncfd)];
    assert_eq!(context.submit(&mut ops), Ok(2));
    while open_below(&path) < 2 {
        thread::yield_now();
    }
    drop(asyncfd);
    while open_below(&path) > 0 {
        let got = context.getevents(0, 1, Some(Duration::ZERO), &mut Vec::new());
        assert!(got.is_ok());
    }

    // Completions that nobody reaps.
    let mut ops = [open(), open()];
    assert_eq!(context.submit(&mut ops), Ok(2));
    while open_below(&path) < 2 {
        thread::yield_now();
    }
    context.destroy();
    assert_eq!(open_below(&path), 2);
    drop(context);
    assert_eq!(open_below(&path), 0);
}

#[test]
fn what_is_opened_for_nobody_is_closed() {
    let place = Place::new();
    for destroyed in [false, true] {
        let context = Context::builder(4).workers(1..=1).build().unwrap();
        let held = Held::new(&place);
        let path = held.path.clone();
        let operation = context.operation(held.open()).unwrap();
        held.wait();
        drop(operation);
        thread::scope(|scope| {
            // It waits for the worker.
            scope.spawn(|| destroyed.then(|| context.destroy()));
            drop(held);
        });
        if !destroyed {
            complete(&context, Op::nop().offload());
        }
        while open_below(&path) > 0 {
            thread::yield_now();
        }
    }
}

/// At random: each that says that it was cancelled, or too late, has not happened, and
/// each other one has; nothing is left open.
#[test]
fn each_outcome_is_the_truth() {
    const ROUNDS: usize = 300;
    const FILES: usize = 8;
    let mut rng = Rng::seeded();
    let place = Place::new();
    let (mut happened, mut cancelled, mut late) = (0, 0, 0);
    for round in 0..ROUNDS {
        let workers = 1 + rng.below(2);
        let context = Context::builder(2 * FILES)
            .workers(1..=workers)
            .build()
            .unwrap();
        let old = |n: usize| format!("{round}-{n}");
        let new = |n: usize| format!("{round}-{n}-new");
        let kinds: Vec<_> = (0..FILES).map(|_| rng.below(4)).collect();
        let mut ops: Vec<_> = (kinds.iter().enumerate())
            .map(|(n, kind)| {
                let dir = Some(&place.dir);
                if *kind != 0 {
                    fs::write(place.path(&old(n)), b"").unwrap();
                }
                let flags = flag::O_CREAT | flag::O_EXCL | flag::O_RDWR;
                let op = match kind {
                    0 => Op::openat(dir, old(n), flags, 0o600),
                    1 => Op::unlinkat(dir, old(n), 0),
                    2 => Op::renameat(dir, old(n), dir, new(n), flag::RENAME_NOREPLACE),
                    _ => Op::close(place.open(&old(n))),
                };
                let op = op.data(n as u64);
                match rng.below(3) {
                    0 => op.with_timeout(Duration::from_micros(rng.below(200) as u64)),
                    _ => op,
                }
            })
            .collect();
        assert_eq!(context.submit(&mut ops), Ok(FILES));
        let mut done = Vec::new();
        let mut answers = [None; FILES];
        while done.len() < FILES {
            let n = rng.below(FILES);
            if rng.below(2) == 0 && answers[n].is_none() {
                answers[n] = Some(context.cancel(ops[n].handle().unwrap()));
            }
            let moment = Some(Duration::from_micros(rng.below(50) as u64));
            context
                .getevents(rng.below(2), 1, moment, &mut done)
                .unwrap();
            if rng.below(64) == 0 {
                context.destroy();
            }
        }
        for done in done {
            let n = done.data as usize;
            let effect = match done.result {
                Ok(_) => true,
                Err(Errno::ECANCELED | Errno::ETIME) => false,
                Err(errno) => panic!("{errno:?} of {:?}", done.op),
            };
            happened += usize::from(effect);
            cancelled += usize::from(done.result == Err(Errno::ECANCELED));
            late += usize::from(done.result == Err(Errno::ETIME));
            if let Some(Ok(())) = answers[n] {
                assert_eq!(done.result, Err(Errno::ECANCELED), "{:?}", done.op);
            }
            let (was, is) = (place.path(&old(n)), place.path(&new(n)));
            match kinds[n] {
                0 => assert_eq!(was.exists(), effect),
                1 => assert_eq!(was.exists(), !effect),
                2 => assert_eq!((was.exists(), is.exists()), (!effect, effect)),
                _ => assert_eq!(open_below(&was), usize::from(!effect)),
            }
            // It was opened, or was not closed.
            let file = match kinds[n] {
                0 => effect,
                3 => !effect,
                _ => false,
            };
            assert_eq!(done.op.into_file().is_some(), file);
        }
        for name in place.names() {
            fs::remove_file(place.path(&name)).unwrap();
        }
    }
    println!("{happened} happened, {cancelled} cancelled, {late} too late");
    assert!(happened > ROUNDS && cancelled > 0 && late > 0);
    assert_eq!(open_below(place.temp.path()), 1, "the directory");
}
