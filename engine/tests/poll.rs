//! Readiness: polls, streams, time limits, and who drives them.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    ffi::OsStr,
    fs,
    io::{self, PipeReader, PipeWriter, Read, Write},
    mem,
    net::{Shutdown, TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    panic::{self, AssertUnwindSafe},
    path::Path,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use common::{Jail, again, collect, complete, jail};
use rustix::event::{EventfdFlags, epoll, eventfd};
use uaio::{Completion, Context, Errno, File, Handle, Iocb, Op, Source, event};
use uaio_core::wait::WaitQueue;

#[test]
fn again_under_seccomp() {
    again(Jail::Seccomp, &[]);
}

#[test]
fn again_unprivileged() {
    again(Jail::Nobody, &[]);
}

fn context() -> Context {
    Context::new(128).unwrap()
}

fn file(fd: impl Into<OwnedFd>) -> File {
    File::new(fd).unwrap()
}

fn pipe() -> (PipeReader, PipeWriter) {
    io::pipe().unwrap()
}

/// Two ends of a TCP connection.
fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// What a blocking read gives at once.
fn take(mut from: impl Read) -> Vec<u8> {
    let mut buf = [0; 100];
    let n = from.read(&mut buf).unwrap();
    buf[..n].to_vec()
}

fn submit(context: &Context, op: Op) -> Handle {
    let mut ops = [op];
    assert_eq!(context.submit(&mut ops), Ok(1));
    ops[0].handle().unwrap()
}

/// Nothing is complete.
#[track_caller]
fn assert_waits(context: &Context) {
    let mut events = Vec::new();
    let got = context.getevents(0, 1, Some(Duration::ZERO), &mut events);
    let results: Vec<_> = events.iter().map(|done| done.result).collect();
    assert_eq!((got, results), (Ok(0), vec![]));
}

/// The one completion, which was waited for.
#[track_caller]
fn late(context: &Context) -> Completion {
    let done = collect(context, 1).remove(0);
    assert!(!done.inline);
    done
}

#[track_caller]
fn assert_refused(context: &Context, op: Op, why: Errno) -> Op {
    let mut ops = [op.data(7)];
    // It takes no room.
    for _ in 0..2 * context.capacity() {
        assert_eq!(context.submit(&mut ops), Err(why));
        assert_eq!(ops[0].handle(), None);
    }
    let [op] = ops;
    op
}

fn events(of: u16) -> Result<usize, Errno> {
    Ok(of.into())
}

fn blocks(fd: impl AsFd) -> bool {
    let flags = rustix::fs::fcntl_getfl(fd).unwrap();
    !flags.contains(rustix::fs::OFlags::NONBLOCK)
}

/// Fills an empty pipe, and tells with how many bytes.
fn fill_pipe(mut writer: impl Write + AsFd) -> usize {
    // SAFETY: takes numbers only.
    let n = unsafe { libc::fcntl(writer.as_fd().as_raw_fd(), libc::F_GETPIPE_SZ) };
    let n = usize::try_from(n).unwrap();
    writer.write_all(&vec![b'f'; n]).unwrap();
    n
}

/// Fills a socket, and tells with how many bytes.
fn fill_socket(socket: &impl AsRawFd) -> usize {
    let bytes = [b'f'; 4096];
    let mut all = 0;
    loop {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the bytes are there.
        let n = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), 4096, flags) };
        match usize::try_from(n) {
            Ok(n) => all += n,
            Err(_) => return all,
        }
    }
}

// What can be polled.

#[test]
fn a_regular_file_is_always_ready() {
    let context = context();
    let file = file(tempfile::tempfile().unwrap());
    for wanted in [event::IN, event::OUT, event::IN | event::OUT | event::PRI] {
        let done = complete(&context, Op::poll(&file, wanted));
        assert_eq!(done.result, events(wanted & !event::PRI));
        assert!(done.inline);
    }
}

#[test]
fn what_a_file_never_is_ready_for_is_refused_and_stays() {
    let context = context();
    let file = file(tempfile::tempfile().unwrap());
    for wanted in [event::PRI, event::RDHUP, event::HUP, event::ERR, 0] {
        assert_refused(&context, Op::poll(&file, wanted), Errno::EINVAL);
    }
    // Those before it are accepted, and it keeps its place.
    let mut ops = [
        Op::nop(),
        Op::poll(&file, event::PRI).data(9),
        Op::poll(&file, event::IN),
    ];
    assert_eq!(context.submit(&mut ops), Ok(1));
    assert_eq!(ops[1].handle(), None);
    assert_eq!(context.submit(&mut ops[2..]), Ok(1));
    assert_eq!(collect(&context, 2).len(), 2);
}

#[test]
fn what_epoll_does_not_take_is_always_ready() {
    let context = context();
    let directory = file(fs::File::open("/").unwrap());
    let null = file(
        (fs::File::options().read(true).write(true))
            .open("/dev/null")
            .unwrap(),
    );
    for file in [&directory, &null] {
        for wanted in [event::IN, event::OUT, event::IN | event::OUT] {
            let done = complete(&context, Op::poll(file, wanted));
            assert_eq!(done.result, events(wanted));
            assert!(done.inline);
        }
        assert_refused(&context, Op::poll(file, event::PRI), Errno::EINVAL);
    }
    let read = complete(&context, Op::read(&null, vec![1; 8]));
    assert_eq!(
        (read.result, read.op.into_buf().as_slice()),
        (Ok(0), &[1; 8][..])
    );
    let write = complete(&context, Op::write(&null, vec![1; 8]));
    assert_eq!(write.result, Ok(8));
    let eisdir = Errno::from_raw(libc::EISDIR).unwrap();
    let read = complete(&context, Op::read(&directory, vec![1; 8]));
    assert_eq!(read.result, Err(eisdir));
}

#[test]
fn a_pipe_tells_in_out_hup_and_err() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    submit(&context, Op::poll(&reader, event::IN | event::OUT));
    assert_waits(&context);
    writer.write_all(b"x").unwrap();
    assert_eq!(late(&context).result, events(event::IN));
    // Ready already.
    let done = complete(&context, Op::poll(&reader, event::IN));
    assert_eq!(done.result, events(event::IN));
    assert_eq!(complete(&context, Op::read(&reader, vec![0])).result, Ok(1));

    // For the end of the other side one need not ask.
    submit(&context, Op::poll(&reader, 0));
    submit(&context, Op::poll(&reader, event::IN));
    drop(writer);
    for done in collect(&context, 2) {
        assert_eq!(done.result, events(event::HUP));
    }
    assert_eq!(complete(&context, Op::read(&reader, vec![0])).result, Ok(0));

    let (mut reader, writer) = pipe();
    let other = writer.try_clone().unwrap();
    let writer = file(writer);
    let done = complete(&context, Op::poll(&writer, event::OUT));
    assert_eq!(done.result, events(event::OUT));
    let full = fill_pipe(other);
    submit(&context, Op::poll(&writer, event::OUT));
    assert_waits(&context);
    reader.read_exact(&mut vec![0; full]).unwrap();
    assert_eq!(late(&context).result, events(event::OUT));

    submit(&context, Op::poll(&writer, 0));
    assert_waits(&context);
    drop(reader);
    assert_eq!(late(&context).result, events(event::ERR));
    let done = complete(&context, Op::poll(&writer, event::OUT));
    assert_eq!(done.result, events(event::OUT | event::ERR));
}

#[test]
fn a_socket_tells_that_its_peer_writes_no_more() {
    let (client, server) = tcp();
    let pairs: [(OwnedFd, Box<dyn Fn()>); 2] = {
        let (a, b) = UnixStream::pair().unwrap();
        [
            (
                a.into(),
                Box::new(move || b.shutdown(Shutdown::Write).unwrap()),
            ),
            (
                server.into(),
                Box::new(move || client.shutdown(Shutdown::Write).unwrap()),
            ),
        ]
    };
    let context = context();
    for (socket, shut) in pairs {
        let socket = file(socket);
        submit(&context, Op::poll(&socket, event::RDHUP));
        submit(&context, Op::poll(&socket, event::PRI));
        assert_waits(&context);
        shut();
        assert_eq!(late(&context).result, events(event::RDHUP));
        let done = complete(&context, Op::poll(&socket, event::IN | event::RDHUP));
        assert_eq!(done.result, events(event::IN | event::RDHUP));
        assert_eq!(complete(&context, Op::read(&socket, vec![0])).result, Ok(0));
        // Who asked for something else still waits, until all is over.
        assert_waits(&context);
        shutdown(&socket);
        let done = late(&context).result.unwrap();
        assert_ne!(done & usize::from(event::HUP), 0, "{done:#x}");
    }
}

fn shutdown(socket: &File) {
    // SAFETY: takes numbers only.
    let shut = unsafe { libc::shutdown(socket.as_fd().as_raw_fd(), libc::SHUT_RDWR) };
    assert_eq!(shut, 0);
}

#[test]
fn urgent_data_is_pri() {
    let context = context();
    let (client, server) = tcp();
    let server = file(server);
    submit(&context, Op::poll(&server, event::PRI));
    assert_waits(&context);
    // SAFETY: the byte is there.
    let sent = unsafe { libc::send(client.as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_OOB) };
    assert_eq!(sent, 1);
    assert_eq!(late(&context).result, events(event::PRI));
}

#[test]
fn a_listener_is_readable_when_there_is_somebody_to_accept() {
    let context = context();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let polled = file(listener.try_clone().unwrap());
    for _ in 0..3 {
        submit(&context, Op::poll(&polled, event::IN));
        assert_waits(&context);
        let client = TcpStream::connect(address).unwrap();
        assert_eq!(late(&context).result, events(event::IN));
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
    }
}

#[test]
fn an_eventfd_is_read_when_it_counts_and_written_when_it_fits() {
    const FULL: u64 = u64::MAX - 1;
    let context = context();
    for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
        let counter = file(eventfd(0, flags).unwrap());
        submit(&context, Op::poll(&counter, event::IN));
        assert_waits(&context);
        rustix::io::write(&counter, &7_u64.to_ne_bytes()).unwrap();
        assert_eq!(late(&context).result, events(event::IN));
        let done = complete(&context, Op::read(&counter, vec![0; 8]));
        assert_eq!(done.op.into_buf(), 7_u64.to_ne_bytes());

        submit(&context, Op::read(&counter, vec![0; 8]).data(1));
        assert_waits(&context);
        submit(&context, Op::write(&counter, 8_u64.to_ne_bytes().to_vec()));
        for done in collect(&context, 2) {
            assert_eq!(done.result, Ok(8));
            assert_eq!(done.inline, done.data == 0);
            assert_eq!(done.op.into_buf(), 8_u64.to_ne_bytes());
        }

        let counter = file(eventfd(0, flags).unwrap());
        let full = Op::write(&counter, FULL.to_ne_bytes().to_vec());
        assert_eq!(complete(&context, full).result, Ok(8));
        submit(&context, Op::write(&counter, 1_u64.to_ne_bytes().to_vec()));
        submit(&context, Op::poll(&counter, event::OUT));
        assert_waits(&context);
        let mut buf = [0; 8];
        rustix::io::read(&counter, &mut buf).unwrap();
        assert_eq!(u64::from_ne_bytes(buf), FULL);
        let mut results: Vec<_> = (collect(&context, 2).iter())
            .map(|done| done.result.unwrap())
            .collect();
        results.sort_unstable();
        assert_eq!(results, [usize::from(event::OUT), 8]);
        rustix::io::read(&counter, &mut buf).unwrap();
        assert_eq!(u64::from_ne_bytes(buf), 1);
    }
}

/// Master and slave.
fn terminal() -> Option<(OwnedFd, fs::File)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let Ok(master) = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY) else {
        println!("skipped: no terminals here");
        return None;
    };
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = (fs::File::options().read(true).write(true))
        .open(Path::new(OsStr::from_bytes(name.to_bytes())))
        .unwrap();
    Some((master, slave))
}

#[test]
fn a_terminal_is_read_by_lines_from_both_sides() {
    let Some((master, slave)) = terminal() else {
        return;
    };
    assert!(blocks(&master) && blocks(&slave));
    let context = context();
    let (master, slave) = (file(master), file(slave));
    submit(&context, Op::read(&slave, vec![0; 64]));
    assert_waits(&context);
    assert_eq!(rustix::io::write(&master, b"half a ").unwrap(), 7);
    assert_waits(&context);
    assert_eq!(rustix::io::write(&master, b"line\n").unwrap(), 5);
    let done = late(&context);
    assert_eq!(done.result, Ok(12));
    assert_eq!(done.op.into_buf()[..12], *b"half a line\n");

    // The other side sees the echo, and what is written.
    let write = Op::write(&slave, b"answer\n".to_vec());
    assert_eq!(complete(&context, write).result, Ok(7));
    let mut seen = Vec::<u8>::new();
    while seen.len() < b"half a line\r\nanswer\r\n".len() {
        let done = complete(&context, Op::read(&master, vec![0; 64]));
        seen.extend(&done.op.into_buf()[..done.result.unwrap()]);
    }
    assert_eq!(seen, b"half a line\r\nanswer\r\n");

    submit(&context, Op::read(&master, vec![0; 64]));
    submit(&context, Op::poll(&master, event::PRI));
    assert_waits(&context);
    assert!(blocks(&master) && blocks(&slave));
    drop(slave);
    let mut results: Vec<_> = (collect(&context, 2).iter())
        .map(|done| done.result)
        .collect();
    results.sort_by_key(|result| result.is_err());
    assert_eq!(results, [events(event::HUP), Err(Errno::EIO)]);
}

/// Each line is one byte more on the way out.
#[test]
fn a_terminal_that_nobody_reads_is_waited_for() {
    let Some((master, slave)) = terminal() else {
        return;
    };
    let (tell, told) = mpsc::channel();
    let slave = file(slave);
    thread::spawn(move || {
        let context = context();
        let lines = Op::write(&slave, vec![b'\n'; 512]);
        // Until it is full: then one waits.
        submit(&context, lines);
        let mut events = Vec::new();
        while context.getevents(1, 1, Some(SHORT), &mut events) == Ok(1) {
            let done = events.remove(0);
            submit(&context, done.op);
        }
        tell.send(()).unwrap();
    });
    let submitted = told.recv_timeout(Duration::from_secs(5));
    // Ends it.
    drop(master);
    assert_eq!(submitted, Ok(()));
}

#[test]
fn an_eventfd_that_a_number_does_not_fit_is_waited_for() {
    let counter = file(eventfd(1, EventfdFlags::empty()).unwrap());
    let (tell, told) = mpsc::channel();
    let written = counter.clone();
    thread::spawn(move || {
        let context = context();
        let bytes = (u64::MAX - 1).to_ne_bytes().to_vec();
        submit(&context, Op::write(&written, bytes));
        tell.send(()).unwrap();
        late(&context)
    });
    let submitted = told.recv_timeout(Duration::from_secs(5));
    // Lets it go on.
    rustix::io::read(&counter, &mut [0; 8]).unwrap();
    assert_eq!(submitted, Ok(()));
}

/// Files of the kernel that know no way not to block but their own flag.
#[test]
fn a_timer_and_a_watch_of_files_are_read_when_they_have_something() {
    let context = context();
    let flags = libc::TFD_CLOEXEC;
    // SAFETY: takes numbers only.
    let timer = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
    // SAFETY: it is this one's.
    let timer = file(unsafe { OwnedFd::from_raw_fd(timer) });
    submit(&context, Op::read(&timer, vec![0; 8]));
    assert_waits(&context);
    let once = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: libc::timespec {
            tv_sec: 0,
            tv_nsec: 1,
        },
    };
    let fd = timer.as_fd().as_raw_fd();
    // SAFETY: a time, and nowhere to write.
    let set = unsafe { libc::timerfd_settime(fd, 0, &once, ptr::null_mut()) };
    assert_eq!(set, 0);
    let done = late(&context);
    assert_eq!(done.result, Ok(8));
    assert_eq!(done.op.into_buf(), 1_u64.to_ne_bytes());

    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    let directory = tempfile::tempdir().unwrap();
    let watch = init(CreateFlags::CLOEXEC).unwrap();
    add_watch(&watch, directory.path(), WatchFlags::CREATE).unwrap();
    let watch = file(watch);
    submit(&context, Op::read(&watch, vec![0; 512]));
    assert_waits(&context);
    fs::write(directory.path().join("created"), b"").unwrap();
    let done = late(&context);
    let n = done.result.unwrap();
    let buf = &done.op.into_buf()[..n];
    assert!(buf.windows(7).any(|name| name == b"created"), "{buf:?}");
    assert!(blocks(&timer) && blocks(&watch));
}

#[test]
fn an_epoll_is_polled_by_another() {
    let context = context();
    let inner = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let (reader, mut writer) = pipe();
    let data = epoll::EventData::new_u64(1);
    epoll::add(&inner, &reader, data, epoll::EventFlags::IN).unwrap();
    let inner = file(inner);
    for _ in 0..3 {
        submit(&context, Op::poll(&inner, event::IN));
        assert_waits(&context);
        writer.write_all(b"x").unwrap();
        assert_eq!(late(&context).result, events(event::IN));
        assert_eq!(take(&reader), b"x");
    }
}

// One descriptor, many requests; one request, many descriptors.

#[test]
fn all_who_poll_one_descriptor_are_told() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    let mut ops: Vec<_> = (0..100)
        .map(|n| Op::poll(&reader, event::IN).data(n))
        .collect();
    assert_eq!(context.submit(&mut ops), Ok(100));
    assert_waits(&context);
    writer.write_all(b"x").unwrap();
    let mut done = collect(&context, 100);
    done.sort_by_key(|done| done.data);
    for (n, done) in done.iter().enumerate() {
        assert_eq!((done.data, done.result), (n as u64, events(event::IN)));
    }
}

#[test]
fn a_poll_of_what_is_ready_is_done_by_the_submitter() {
    let context = context();
    let (_reader, writer) = pipe();
    let done = complete(&context, Op::poll(&file(writer), event::OUT));
    assert!(done.inline);
}

/// Each byte is somebody's, and nobody's twice.
#[test]
fn all_who_read_one_descriptor_share_what_comes() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    let mut ops: Vec<_> = (0..100).map(|_| Op::read(&reader, vec![0; 2])).collect();
    assert_eq!(context.submit(&mut ops), Ok(100));
    let bytes: Vec<u8> = (0..150).collect();
    writer.write_all(&bytes).unwrap();
    let mut done = collect(&context, 75);
    assert_waits(&context);
    // The end is everybody's.
    drop(writer);
    for done in collect(&context, 25) {
        assert_eq!(done.result, Ok(0));
    }
    let mut read = Vec::new();
    for done in done.drain(..) {
        assert_eq!(done.result, Ok(2));
        read.extend(done.op.into_buf());
    }
    read.sort_unstable();
    assert_eq!(read, bytes);
}

#[test]
fn duplicates_of_a_descriptor_are_told_alike() {
    let context = context();
    let (reader, mut writer) = pipe();
    let (one, two) = (file(reader.try_clone().unwrap()), file(reader));
    submit(&context, Op::poll(&one, event::IN));
    submit(&context, Op::poll(&two, event::IN));
    assert_waits(&context);
    writer.write_all(b"x").unwrap();
    for done in collect(&context, 2) {
        assert_eq!(done.result, events(event::IN));
    }
    // The one goes, the other is told all the same.
    drop(one);
    assert_eq!(complete(&context, Op::read(&two, vec![0])).result, Ok(1));
    submit(&context, Op::read(&two, vec![0]));
    assert_waits(&context);
    writer.write_all(b"y").unwrap();
    assert_eq!(late(&context).op.into_buf(), b"y");
}

#[test]
fn two_contexts_wait_for_one_file() {
    let (one, two) = (context(), context());
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    for _ in 0..2 {
        for context in [&one, &two] {
            submit(context, Op::poll(&reader, event::IN));
            assert_waits(context);
        }
        writer.write_all(b"x").unwrap();
        for context in [&one, &two] {
            assert_eq!(late(context).result, events(event::IN));
        }
        assert_eq!(complete(&one, Op::read(&reader, vec![0])).result, Ok(1));
    }
    // What is left of the first disturbs none that come after it.
    drop(one);
    let three = context();
    submit(&two, Op::poll(&reader, event::IN));
    submit(&three, Op::poll(&reader, event::IN));
    writer.write_all(b"x").unwrap();
    assert_eq!(late(&two).result, events(event::IN));
    assert_eq!(late(&three).result, events(event::IN));
}

#[test]
fn a_polled_file_stays_open_until_the_request_is_done() {
    let context = context();
    for wanted in [event::IN, event::HUP] {
        let (reader, mut writer) = pipe();
        let reader = file(reader);
        let number = reader.as_fd().as_raw_fd();
        let handle = submit(&context, Op::poll(&reader, wanted));
        drop(reader);
        // SIGPIPE is ignored: it would be EPIPE.
        writer.write_all(b"x").unwrap();
        if wanted == event::IN {
            let done = late(&context);
            assert_eq!(done.result, events(event::IN));
            let Completion { op, .. } = done;
            writer.write_all(b"x").unwrap();
            drop(op);
        } else {
            assert_waits(&context);
            assert_eq!(context.cancel(handle), Ok(()));
            drop(late(&context));
        }
        let gone = writer.write_all(b"x").unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe, "{number}");
    }
}

// By address.

/// # Safety
///
/// As of `submit_raw`.
unsafe fn submit_raw(context: &Context, iocb: Iocb) -> Handle {
    let mut iocbs = [iocb];
    // SAFETY: the caller's promise.
    assert_eq!(unsafe { context.submit_raw(&mut iocbs) }, Ok(1));
    iocbs[0].handle.unwrap()
}

fn raw_poll(fd: RawFd, events: u16) -> Iocb {
    Iocb::new(
        Iocb::POLL,
        fd,
        ptr::without_provenance_mut(events.into()),
        0,
        0,
    )
}

#[test]
fn raw_polls_and_reads_of_a_pipe() {
    let context = context();
    let (reader, mut writer) = pipe();
    let fd = reader.as_raw_fd();
    let mut buf = [0_u8; 8];
    // SAFETY: the pipe is open for as long as the context.
    unsafe { submit_raw(&context, raw_poll(fd, event::IN)) };
    // The offset of a stream is ignored.
    let iocb = Iocb::new(Iocb::PREAD, fd, buf.as_mut_ptr(), 8, 1000);
    assert_waits(&context);
    writer.write_all(b"first").unwrap();
    let done = late(&context);
    assert_eq!(done.result, events(event::IN));
    assert_eq!(context.submit(&mut [done.op]), Err(Errno::EINVAL));
    // SAFETY: the buffer outlives the request, too.
    unsafe { submit_raw(&context, iocb) };
    assert_eq!(collect(&context, 1)[0].result, Ok(5));
    assert_eq!(buf[..5], *b"first");

    // SAFETY: as above.
    let handle = unsafe { submit_raw(&context, iocb) };
    assert_waits(&context);
    writer.write_all(b"later").unwrap();
    let done = late(&context);
    assert_eq!((done.result, done.handle), (Ok(5), handle));
    assert_eq!(buf[..5], *b"later");

    let out = writer.as_raw_fd();
    // SAFETY: as above.
    unsafe { submit_raw(&context, raw_poll(out, event::OUT)) };
    assert_eq!(collect(&context, 1)[0].result, events(event::OUT));
    let bytes = buf.as_mut_ptr();
    // SAFETY: as above.
    unsafe { submit_raw(&context, Iocb::new(Iocb::PWRITE, out, bytes, 5, 77)) };
    assert_eq!(collect(&context, 1)[0].result, Ok(5));
    assert_eq!(take(&reader), b"later");
}

#[test]
fn raw_polls_that_make_no_sense() {
    let context = context();
    let (reader, _writer) = pipe();
    let fd = reader.as_raw_fd();
    let poll = raw_poll(fd, event::IN);
    let refused = |iocb: Iocb| {
        // SAFETY: what is accepted by mistake has its pipe open.
        unsafe { context.submit_raw(&mut [iocb]) }.unwrap_err()
    };
    assert_eq!(refused(Iocb { nbytes: 1, ..poll }), Errno::EINVAL);
    assert_eq!(refused(Iocb { offset: 1, ..poll }), Errno::EINVAL);
    let buf = ptr::without_provenance_mut(0x1_0000);
    assert_eq!(refused(Iocb { buf, ..poll }), Errno::EINVAL);
    assert_eq!(refused(raw_poll(-1, event::IN)), Errno::EBADF);
    let regular = tempfile::tempfile().unwrap();
    let never = raw_poll(regular.as_raw_fd(), event::PRI);
    assert_eq!(refused(never), Errno::EINVAL);
}

/// Has `number` stand for what `fd` is.
fn dup2(fd: impl AsFd, number: RawFd) {
    // SAFETY: the number's owner is still there, and closes it later.
    let new = unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) };
    assert_eq!(new, number);
}

#[test]
fn a_number_that_is_reused_is_another_file() {
    let context = context();
    let (place, _old_writer) = pipe();
    let number = place.as_raw_fd();
    let mut stolen = [0_u8; 8];
    // SAFETY: that the number stays open is violated on purpose: it is safe as long as
    // it stands for a pipe that the test owns. The memory outlives the context.
    let poll = unsafe { submit_raw(&context, raw_poll(number, event::IN)) };
    let iocb = Iocb::new(Iocb::PREAD, number, stolen.as_mut_ptr(), 8, 0);
    // SAFETY: as above.
    let read = unsafe { submit_raw(&context, iocb) };
    assert_waits(&context);

    let (new_reader, mut new_writer) = pipe();
    dup2(&new_reader, number);
    drop(new_reader);
    // SAFETY: from here on it stays open.
    let new_poll = unsafe { submit_raw(&context, raw_poll(number, event::IN)) };
    for done in collect(&context, 2) {
        let expected = match done.handle {
            handle if handle == poll => Err(Errno::EBADF),
            handle if handle == read => Err(Errno::EBADF),
            other => panic!("{other:?}"),
        };
        assert_eq!(done.result, expected);
    }
    assert_waits(&context);
    new_writer.write_all(b"new").unwrap();
    let done = late(&context);
    assert_eq!((done.handle, done.result), (new_poll, events(event::IN)));
    assert_eq!(take(&place), b"new");
    assert_eq!(stolen, [0; 8]);

    // What ended there was not deregistered in the name of the new one.
    // SAFETY: it is open.
    unsafe { submit_raw(&context, raw_poll(number, event::IN)) };
    assert_waits(&context);
    new_writer.write_all(b"more").unwrap();
    assert_eq!(late(&context).result, events(event::IN));
}

/// As above, with the old file still open elsewhere: epoll reports it on.
#[test]
fn a_reused_number_is_not_woken_by_what_it_was() {
    let context = context();
    let (place, mut old_writer) = pipe();
    let old_reader = place.try_clone().unwrap();
    let number = place.as_raw_fd();
    // SAFETY: as above.
    unsafe { submit_raw(&context, raw_poll(number, event::IN)) };
    let (new_reader, mut new_writer) = pipe();
    dup2(new_reader, number);
    // SAFETY: from here on it stays open.
    unsafe { submit_raw(&context, raw_poll(number, event::IN)) };
    assert_eq!(late(&context).result, Err(Errno::EBADF));
    old_writer.write_all(b"old").unwrap();
    assert_waits(&context);
    new_writer.write_all(b"new").unwrap();
    assert_eq!(late(&context).result, events(event::IN));
    assert_eq!(take(&place), b"new");
    assert_eq!(take(&old_reader), b"old");
}

/// The last request is within the contract; one before it is not.
#[test]
fn a_number_that_is_what_it_was_before_is_polled() {
    let context = context();
    let (place, mut writer) = pipe();
    let first = place.try_clone().unwrap();
    let number = place.as_raw_fd();
    // SAFETY: as above.
    unsafe { submit_raw(&context, raw_poll(number, event::IN)) };
    let (second, _second_writer) = pipe();
    dup2(second, number);
    // SAFETY: as above.
    unsafe { submit_raw(&context, raw_poll(number, event::IN)) };
    assert_eq!(late(&context).result, Err(Errno::EBADF));
    dup2(first, number);
    // SAFETY: from here on it stays open.
    let third = unsafe { submit_raw(&context, raw_poll(number, event::IN)) };
    writer.write_all(b"x").unwrap();
    let mut done = Vec::new();
    let _ = context.getevents(2, 2, Some(SHORT), &mut done);
    let third = done.iter().find(|done| done.handle == third);
    assert_eq!(third.map(|done| done.result), Some(events(event::IN)));
}

/// The requests were done when it was closed: nothing is violated.
#[test]
fn numbers_are_reused_again_and_again() {
    let context = context();
    for round in 0..200 {
        let (reader, mut writer) = pipe();
        let number = reader.as_raw_fd();
        // SAFETY: it is closed after the completion.
        unsafe { submit_raw(&context, raw_poll(number, event::IN)) };
        writer.write_all(b"x").unwrap();
        assert_eq!(collect(&context, 1)[0].result, events(event::IN));
        if round % 2 == 0 {
            let reader = file(reader);
            submit(&context, Op::read(&reader, vec![0]));
            submit(&context, Op::read(&reader, vec![0]));
            drop(reader);
            writer.write_all(b"y").unwrap();
            let mut read: Vec<_> = (collect(&context, 2).into_iter())
                .map(|done| done.op.into_buf()[0])
                .collect();
            read.sort_unstable();
            assert_eq!(read, b"xy");
        }
    }
}

// A program's own sources.

/// Ready for input once it is set.
#[derive(Debug)]
struct Flag<const HEADS: usize> {
    set: AtomicBool,
    heads: [WaitQueue; HEADS],
}

impl<const HEADS: usize> Flag<HEADS> {
    fn new(set: bool) -> Arc<Self> {
        Arc::new(Self {
            set: AtomicBool::new(set),
            heads: [const { WaitQueue::new() }; HEADS],
        })
    }

    fn set(&self, head: usize) {
        self.set.store(true, Ordering::Relaxed);
        self.heads[head].wake(event::IN);
    }
}

// SAFETY: the queues are in it, and each request keeps it by an `Arc`.
unsafe impl<const HEADS: usize> Source for Flag<HEADS> {
    fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        self.heads.iter().for_each(visit);
    }

    fn mask(&self) -> u16 {
        match self.set.load(Ordering::Relaxed) {
            true => event::IN,
            false => 0,
        }
    }
}

#[test]
fn a_source_without_heads_is_ready_or_refused() {
    let context = context();
    let ready = Op::poll_source(Flag::<0>::new(true), event::IN);
    assert_eq!(complete(&context, ready).result, events(event::IN));
    let never = Op::poll_source(Flag::<0>::new(false), event::IN);
    let op = assert_refused(&context, never, Errno::EINVAL);
    assert!(op.into_buf().is_empty());
    let other = Op::poll_source(Flag::<0>::new(true), event::OUT);
    assert_refused(&context, other, Errno::EINVAL);
}

#[test]
fn a_source_with_three_heads_is_refused() {
    let context = context();
    for set in [false, true] {
        let source = Flag::<3>::new(set);
        let poll = Op::poll_source(source.clone(), event::IN);
        let poll = assert_refused(&context, poll, Errno::EOVERFLOW);
        assert_eq!(Arc::strong_count(&source), 2);
        drop(poll);
        assert_eq!(Arc::strong_count(&source), 1);
    }
}

#[test]
fn either_head_of_a_source_wakes_it() {
    let context = context();
    for head in 0..2 {
        let source = Flag::<2>::new(false);
        submit(&context, Op::poll_source(source.clone(), event::IN));
        assert_waits(&context);
        source.set(head);
        assert_eq!(late(&context).result, events(event::IN));
        assert_eq!(Arc::strong_count(&source), 1);
    }
}

#[test]
fn a_source_is_woken_by_another_thread() {
    let context = context();
    for _ in 0..100 {
        let source = Flag::<1>::new(false);
        submit(&context, Op::poll_source(source.clone(), event::IN));
        thread::scope(|scope| {
            scope.spawn(|| source.set(0));
            assert_eq!(late(&context).result, events(event::IN));
        });
    }
}

#[test]
fn a_source_that_closes_ends_its_polls() {
    let context = context();
    let source = Flag::<1>::new(false);
    submit(&context, Op::poll_source(source.clone(), event::IN));
    source.heads[0].close();
    assert_eq!(late(&context).result, events(event::ERR | event::HUP));
    let poll = Op::poll_source(source, event::IN);
    assert_eq!(
        complete(&context, poll).result,
        events(event::ERR | event::HUP)
    );
}

// Cancelling.

#[test]
fn a_cancelled_read_leaves_the_data_to_the_next() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    let handle = submit(&context, Op::read(&reader, vec![9; 8]));
    assert_eq!(context.cancel(handle), Ok(()));
    assert_eq!(context.cancel(handle), Err(Errno::EALREADY));
    writer.write_all(b"data").unwrap();
    let done = late(&context);
    assert_eq!(done.result, Err(Errno::ECANCELED));
    assert_eq!(done.op.into_buf(), [9; 8]);
    assert_eq!(context.cancel(handle), Err(Errno::ENOENT));
    let done = complete(&context, Op::read(&reader, vec![0; 8]));
    assert_eq!(done.result, Ok(4));
    assert_eq!(done.op.into_buf()[..4], *b"data");
}

#[test]
fn a_cancelled_poll_is_over() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    let handle = submit(&context, Op::poll(&reader, event::IN));
    assert_eq!(context.cancel(handle), Ok(()));
    writer.write_all(b"x").unwrap();
    assert_eq!(late(&context).result, Err(Errno::ECANCELED));
    assert_waits(&context);
}

/// A reaper, a writer and a canceller at once: what is cancelled took nothing, what
/// is not took all.
#[test]
fn a_read_that_is_cancelled_while_it_is_tried_tells_the_truth() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    let (mut cancelled, mut read) = (0, 0);
    for round in 0..2_000_u32 {
        let handle = submit(&context, Op::read(&reader, vec![0; 8]));
        let mut done = thread::scope(|scope| {
            let reaper = scope.spawn(|| collect(&context, 1));
            scope.spawn(|| writer.write_all(&round.to_ne_bytes()).unwrap());
            for _ in 0..round % 64 {
                std::hint::spin_loop();
            }
            let answer = context.cancel(handle);
            let done = reaper.join().unwrap().remove(0);
            if answer == Ok(()) {
                assert_eq!(done.result, Err(Errno::ECANCELED));
            }
            done
        });
        if done.result == Err(Errno::ECANCELED) {
            cancelled += 1;
            done = complete(&context, done.op);
        } else {
            read += 1;
        }
        assert_eq!(done.result, Ok(4));
        assert_eq!(done.op.into_buf()[..4], round.to_ne_bytes());
    }
    println!("cancelled {cancelled}, read {read}");
}

// Time limits.

const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(3600);

#[test]
fn a_limit_ends_what_waits_and_not_before() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    for op in [
        Op::poll(&reader, event::IN),
        Op::read(&reader, vec![9; 8]),
        Op::poll_source(Flag::<1>::new(false), event::IN),
    ] {
        let start = Instant::now();
        submit(&context, op.with_timeout(SHORT));
        let done = late(&context);
        assert!(start.elapsed() >= SHORT);
        assert_eq!(done.result, Err(Errno::ETIME));
        assert!(done.op.into_buf().iter().all(|&byte| byte == 9));
    }
    // Neither is woken, nor takes anything.
    writer.write_all(b"data").unwrap();
    assert_waits(&context);
    let done = complete(&context, Op::read(&reader, vec![0; 8]).with_timeout(SHORT));
    assert_eq!(done.result, Ok(4));
    assert_eq!(done.op.into_buf()[..4], *b"data");
}

#[test]
fn a_limit_of_zero_ends_only_what_has_to_wait() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    let read = || Op::read(&reader, vec![0; 1]).with_timeout(Duration::ZERO);
    let poll = || Op::poll(&reader, event::IN).with_timeout(Duration::ZERO);
    assert_eq!(complete(&context, read()).result, Err(Errno::ETIME));
    assert_eq!(complete(&context, poll()).result, Err(Errno::ETIME));
    writer.write_all(b"x").unwrap();
    assert_eq!(complete(&context, poll()).result, events(event::IN));
    assert_eq!(complete(&context, read()).result, Ok(1));
    let nop = Op::nop().with_timeout(Duration::ZERO);
    assert_eq!(complete(&context, nop).result, Ok(0));
}

#[test]
fn a_limit_beyond_the_clock_is_none() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    for limit in [
        Duration::MAX,
        Duration::from_secs(1 << 60),
        Duration::from_secs(1 << 40),
        LONG,
    ] {
        submit(&context, Op::read(&reader, vec![0; 8]).with_timeout(limit));
        assert_waits(&context);
        let mut none = Vec::new();
        let waited = context.getevents(1, 1, Some(Duration::from_millis(1)), &mut none);
        assert_eq!(waited, Ok(0));
        writer.write_all(b"in time").unwrap();
        assert_eq!(late(&context).result, Ok(7));
    }
}

#[test]
fn what_comes_before_the_limit_is_all_that_comes() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    let start = Instant::now();
    submit(&context, Op::read(&reader, vec![0; 8]).with_timeout(SHORT));
    writer.write_all(b"x").unwrap();
    let done = late(&context);
    // It may have been late on a busy machine.
    if done.result == Err(Errno::ETIME) {
        assert!(start.elapsed() >= SHORT);
        return;
    }
    assert_eq!(done.result, Ok(1));
    // The limit goes by, and is nobody's: neither of this one's nor of the next one's
    // in its place.
    submit(&context, Op::read(&reader, vec![0; 8]));
    let mut none = Vec::new();
    let waited = context.getevents(1, 1, Some(2 * SHORT), &mut none);
    assert_eq!((waited, none.len()), (Ok(0), 0));
}

/// More than there are slots for: limits of what is over are forgotten.
#[test]
fn limits_do_not_pile_up() {
    let context = Context::new(2).unwrap();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    let waiting = submit(&context, Op::poll(&reader, event::PRI).with_timeout(LONG));
    for _ in 0..1_000 {
        submit(&context, Op::read(&reader, vec![0; 1]).with_timeout(LONG));
        writer.write_all(b"x").unwrap();
        assert_eq!(late(&context).result, Ok(1));
    }
    assert_eq!(context.cancel(waiting), Ok(()));
    assert_eq!(late(&context).result, Err(Errno::ECANCELED));
}

#[test]
fn the_nearest_of_many_limits_ends_first() {
    let context = context();
    let (reader, _writer) = pipe();
    let reader = file(reader);
    let mut ops: Vec<_> = (0..8)
        .map(|n| {
            // Far enough apart for a submitter that is held up.
            let limit = Duration::from_millis(50 * (8 - n));
            Op::poll(&reader, event::IN).data(n).with_timeout(limit)
        })
        .collect();
    assert_eq!(context.submit(&mut ops), Ok(8));
    let done = collect(&context, 8);
    assert!(done.iter().all(|done| done.result == Err(Errno::ETIME)));
    let order: Vec<_> = done.iter().map(|done| done.data).collect();
    assert_eq!(order, (0..8).rev().collect::<Vec<_>>());
}

/// The reaper sleeps already, until another limit.
#[test]
fn a_nearer_limit_shortens_the_sleep() {
    let context = context();
    let (reader, _writer) = pipe();
    let reader = file(reader);
    submit(&context, Op::poll(&reader, event::IN).with_timeout(LONG));
    thread::scope(|scope| {
        let reaper = sleeper(scope, || late(&context));
        let start = Instant::now();
        let poll = Op::poll(&reader, event::IN);
        let near = submit(&context, poll.with_timeout(SHORT));
        let done = reaper.join().unwrap();
        assert!(start.elapsed() >= SHORT);
        assert_eq!((done.handle, done.result), (near, Err(Errno::ETIME)));
    });
}

/// As with cancels: what timed out took nothing, what did not took all.
#[test]
fn a_read_whose_time_is_up_while_it_is_tried_tells_the_truth() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    let (mut timed_out, mut read) = (0, 0);
    for round in 0..2_000_u32 {
        let limit = Duration::from_micros(u64::from(round % 100));
        submit(&context, Op::read(&reader, vec![0; 8]).with_timeout(limit));
        let mut done = thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&round.to_ne_bytes()).unwrap());
            late(&context)
        });
        if done.result == Err(Errno::ETIME) {
            timed_out += 1;
            assert_eq!(done.op.into_buf(), [0; 8]);
            done = complete(&context, Op::read(&reader, vec![0; 8]));
        } else {
            read += 1;
        }
        assert_eq!(done.result, Ok(4));
        assert_eq!(done.op.into_buf()[..4], round.to_ne_bytes());
    }
    println!("timed out {timed_out}, read {read}");
}

/// A file in memory, for a worker.
fn memory() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    file(rustix::fs::memfd_create("uaio-test", flags).unwrap())
}

/// The only worker has something else to do, or has not: each tells the truth.
#[test]
fn a_limit_ends_what_is_queued() {
    let context = Context::builder(16).workers(1..=1).build().unwrap();
    let (busy, file) = (memory(), memory());
    let mut seen = 0;
    for _ in 0..100 {
        let mut ops: Vec<_> = (0..4)
            .map(|_| Op::pwrite(&busy, vec![1; 8 << 20], 0).offload())
            .collect();
        let last = Op::pwrite(&file, b"late".to_vec(), 0);
        ops.push(last.data(1).offload().with_timeout(Duration::ZERO));
        assert_eq!(context.submit(&mut ops), Ok(5));
        for done in collect(&context, 5) {
            let size = rustix::fs::fstat(&file).unwrap().st_size;
            match (done.data, done.result) {
                (0, result) => assert_eq!(result, Ok(8 << 20)),
                (_, Err(errno)) => {
                    assert_eq!((errno, size), (Errno::ETIME, 0));
                    seen += 1;
                }
                (_, result) => assert_eq!((result, size), (Ok(4), 4)),
            }
        }
        rustix::fs::ftruncate(&file, 0).unwrap();
        if seen == 3 {
            return;
        }
    }
    panic!("never queued for long: {seen}");
}

#[test]
fn a_limit_changes_nothing_of_what_a_worker_has() {
    const SIZE: usize = 32 << 20;
    let context = Context::builder(2).workers(1..=1).build().unwrap();
    let limit = Duration::from_micros(500);
    let mut buf = vec![1; SIZE];
    let mut overran = 0;
    for _ in 0..1_000 {
        let file = memory();
        let write = Op::pwrite(&file, mem::take(&mut buf), 0).offload();
        let mut ops = [write.with_timeout(limit)];
        let start = Instant::now();
        assert_eq!(context.submit(&mut ops), Ok(1));
        let size = || rustix::fs::fstat(&file).unwrap().st_size;
        while size() == 0 && start.elapsed() < limit {
            thread::yield_now();
        }
        let begun = size() > 0;
        let done = collect(&context, 1).remove(0);
        match done.result {
            Ok(n) => {
                assert_eq!(n, SIZE);
                overran += u32::from(start.elapsed() > limit);
            }
            Err(errno) => assert_eq!((errno, begun, size()), (Errno::ETIME, false, 0)),
        }
        buf = done.op.into_buf();
        if overran == 3 {
            return;
        }
    }
    panic!("the worker was never late: {overran}");
}

// Who drives.

/// Starts a thread, and returns once it sleeps.
fn sleeper<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    body: impl FnOnce() -> T + Send + 'scope,
) -> thread::ScopedJoinHandle<'scope, T> {
    let (tell, told) = mpsc::channel();
    let thread = scope.spawn(move || {
        // SAFETY: takes nothing.
        tell.send(unsafe { libc::gettid() }).unwrap();
        body()
    });
    let id = told.recv().unwrap();
    while !sleeps(id) {
        thread::yield_now();
    }
    thread
}

fn sleeps(id: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{id}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| rest.starts_with(" S"))
}

#[test]
fn a_limit_that_nobody_waited_for_is_found_later() {
    let context = context();
    let (reader, _writer) = pipe();
    let reader = file(reader);
    submit(&context, Op::poll(&reader, event::IN).with_timeout(SHORT));
    thread::sleep(2 * SHORT);
    let mut events = Vec::new();
    let got = context.getevents(0, 1, Some(Duration::ZERO), &mut events);
    assert_eq!(got, Ok(1));
    assert_eq!(events[0].result, Err(Errno::ETIME));
}

/// Each is done by a thread of the context's own: nobody calls it.
#[test]
fn what_is_armed_goes_on_without_a_reaper() {
    let context = context();
    let (mut reader, writer) = pipe();
    let full = fill_pipe(&writer);
    let out = file(writer);
    let (input, mut sender) = pipe();
    let input = file(input);
    for round in 0..3 {
        if round > 0 {
            fill_pipe(fs::File::from(out.as_fd().try_clone_to_owned().unwrap()));
        }
        submit(&context, Op::write(&out, b"by itself".to_vec()));
        submit(&context, Op::read(&input, vec![0; 1]));
        // A blocking read, which the request's write ends.
        let mut bytes = vec![0; full + 9];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[full..], *b"by itself");
        sender.write_all(b"x").unwrap();
        // A reaper takes over from the driver, also to wait for a time.
        for done in collect(&context, 2) {
            assert!(matches!(done.result, Ok(1 | 9)));
        }
        let (start, mut none) = (Instant::now(), Vec::new());
        let waited = context.getevents(1, 1, Some(SHORT), &mut none);
        assert_eq!(waited, Ok(0));
        assert!(start.elapsed() >= SHORT);
    }
}

/// The reaper waits with a limit, while the driver leads; what comes is told to it.
#[test]
fn a_reaper_takes_over_from_the_driver() {
    let context = context();
    let (mut drained, writer) = pipe();
    let full = fill_pipe(&writer);
    let out = file(writer);
    let (input, mut sender) = pipe();
    let input = file(input);
    submit(&context, Op::write(&out, b"!".to_vec()));
    drained.read_exact(&mut vec![0; full + 1]).unwrap();
    assert_eq!(collect(&context, 1)[0].result, Ok(1));
    submit(&context, Op::read(&input, vec![0; 8]));
    thread::scope(|scope| {
        let reaper = sleeper(scope, || {
            let mut events = Vec::new();
            assert_eq!(context.getevents(1, 1, Some(LONG), &mut events), Ok(1));
            events.remove(0)
        });
        sender.write_all(b"late").unwrap();
        let done = reaper.join().unwrap();
        assert_eq!(done.result, Ok(4));
    });
}

#[test]
fn when_the_leader_leaves_another_reaper_leads() {
    let context = context();
    for _ in 0..20 {
        let pipes = [pipe(), pipe(), pipe()];
        let (files, writers): (Vec<_>, Vec<_>) = (pipes.into_iter())
            .map(|(reader, writer)| (file(reader), writer))
            .unzip();
        for file in &files {
            submit(&context, Op::read(file, vec![0; 1]));
        }
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let context = &context;
            for _ in 0..3 {
                let tell = tell.clone();
                sleeper(scope, move || {
                    tell.send(late(context)).unwrap();
                });
            }
            for (n, mut writer) in writers.into_iter().enumerate() {
                writer.write_all(&[n as u8]).unwrap();
                let done = told.recv().unwrap();
                assert_eq!(done.result, Ok(1));
                assert_eq!(done.op.into_buf(), [n as u8]);
            }
        });
    }
}

/// The leader's own time is up, and others still wait.
#[test]
fn when_the_leaders_time_is_up_another_reaper_leads() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    for _ in 0..5 {
        submit(&context, Op::read(&reader, vec![0; 8]));
        thread::scope(|scope| {
            let short = sleeper(scope, || {
                let (start, mut none) = (Instant::now(), Vec::new());
                let got = context.getevents(1, 1, Some(2 * SHORT), &mut none);
                assert!(start.elapsed() >= 2 * SHORT);
                got
            });
            let long = sleeper(scope, || late(&context));
            assert_eq!(short.join().unwrap(), Ok(0));
            writer.write_all(b"x").unwrap();
            assert_eq!(long.join().unwrap().result, Ok(1));
        });
    }
}

/// Reapers come and go, with and without limits, while what is armed is written to.
#[test]
fn nothing_is_lost_between_many_who_wait() {
    const ROUNDS: u64 = 3_000;
    let context = Context::new(8).unwrap();
    let (a, b) = UnixStream::pair().unwrap();
    let (a, b) = (file(a), file(b));
    let over = AtomicBool::new(false);
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        for reaper in 0..3_u64 {
            let (context, over, tell) = (&context, &over, tell.clone());
            scope.spawn(move || {
                for n in reaper.. {
                    let limit = Duration::from_micros(n * 37 % 300);
                    let mut events = Vec::new();
                    let _ = context.getevents(1, 1 + n as usize % 3, Some(limit), &mut events);
                    for done in events {
                        tell.send(done).unwrap();
                    }
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        for n in 0..ROUNDS {
            let mut ops = [
                Op::read(&b, vec![0; 8]),
                Op::poll(&b, event::IN).data(1).with_timeout(LONG),
                Op::write(&a, n.to_ne_bytes().to_vec()).data(2),
            ];
            assert_eq!(context.submit(&mut ops), Ok(3));
            let mut polled = ops[1].handle();
            for _ in 0..3 {
                let done = told.recv().unwrap();
                match done.data {
                    0 => {
                        assert_eq!(done.result, Ok(8));
                        assert_eq!(done.op.into_buf(), n.to_ne_bytes());
                        // The poll may find that the read was faster.
                        if let Some(polled) = polled.take() {
                            let _ = context.cancel(polled);
                        }
                    }
                    1 => match done.result {
                        Err(errno) => assert_eq!(errno, Errno::ECANCELED),
                        result => assert_eq!(result, events(event::IN)),
                    },
                    _ => assert_eq!(done.result, Ok(8)),
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn destroying_cancels_what_is_armed() {
    let context = context();
    let (reader, writer) = pipe();
    let full = fill_pipe(&writer);
    let (reader, writer) = (file(reader), file(writer));
    let (idle, mut sender) = pipe();
    let idle = file(idle);
    let mut ops = vec![
        Op::poll(&idle, event::IN),
        Op::read(&idle, vec![0; 8]),
        Op::poll(&writer, event::OUT),
        Op::write(&writer, vec![0; 8]),
        Op::poll(&idle, event::IN).with_timeout(LONG),
        Op::poll_source(Flag::<1>::new(false), event::IN),
    ];
    assert_eq!(context.submit(&mut ops), Ok(6));
    let reaped = thread::scope(|scope| {
        let reaper = sleeper(scope, || {
            let mut events = Vec::new();
            let _ = context.getevents(7, 7, None, &mut events);
            events
        });
        context.destroy();
        reaper.join().unwrap()
    });
    let mut done = reaped;
    let _ = context.getevents(0, 8, None, &mut done);
    assert_eq!(done.len(), 6);
    for done in &done {
        assert_eq!(done.result, Err(Errno::ECANCELED));
    }
    let poll = Op::poll(&idle, event::IN);
    assert_eq!(context.submit(&mut [poll]), Err(Errno::EINVAL));
    // Nothing was read or written.
    sender.write_all(b"kept").unwrap();
    assert_eq!(rustix::io::read(&idle, &mut [0; 8]).unwrap(), 4);
    let mut all = vec![0; full + 8];
    assert_eq!(rustix::io::read(&reader, &mut all).unwrap(), full);
}

#[test]
fn a_context_that_is_dropped_lets_go_of_what_it_waited_for() {
    let (reader, mut writer) = pipe();
    {
        let context = context();
        let reader = file(reader);
        let source = Flag::<1>::new(false);
        submit(&context, Op::read(&reader, vec![0; 8]));
        submit(&context, Op::poll_source(source.clone(), event::IN));
        drop(context);
        assert_eq!(Arc::strong_count(&source), 1);
        source.set(0);
    }
    let gone = writer.write_all(b"x").unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
}

// Streams.

/// Writes `bytes` by as many requests as it takes, and tells how many it took.
fn write_all(context: &Context, file: &File, mut bytes: Vec<u8>) -> usize {
    for n in 1.. {
        let done = complete(context, Op::write(file, bytes));
        let written = done.result.unwrap();
        assert!(written > 0);
        bytes = done.op.into_buf();
        bytes.drain(..written);
        if bytes.is_empty() {
            return n;
        }
    }
    unreachable!()
}

#[test]
fn a_write_to_a_full_stream_completes_when_it_is_drained() {
    let context = context();
    let (pipe_reader, pipe_writer) = pipe();
    let full_pipe = fill_pipe(&pipe_writer);
    let (a, b) = UnixStream::pair().unwrap();
    let full_unix = fill_socket(&a);
    let (client, server) = tcp();
    let full_tcp = fill_socket(&client);
    let streams: [(OwnedFd, Box<dyn Read + Send>, usize); 3] = [
        (pipe_writer.into(), Box::new(pipe_reader), full_pipe),
        (a.into(), Box::new(b), full_unix),
        (client.into(), Box::new(server), full_tcp),
    ];
    for (n, (to, mut from, full)) in streams.into_iter().enumerate() {
        let to = file(to);
        assert!(blocks(&to));
        let long: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
        let handle = submit(&context, Op::write(&to, long.clone()));
        // TCP may find more room meanwhile.
        if n < 2 {
            assert_waits(&context);
        }
        from.read_exact(&mut vec![0; full]).unwrap();
        let done = collect(&context, 1).remove(0);
        assert_eq!(done.handle, handle);
        let written = done.result.unwrap();
        assert!(0 < written && written <= long.len(), "{written}");
        let mut read = vec![0; written];
        from.read_exact(&mut read).unwrap();
        assert!(read == long[..written]);

        // Longer than there is room for, with a reader at work.
        let rest = [&long[written..], &long].concat();
        let read = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut read = vec![0; rest.len()];
                from.read_exact(&mut read).unwrap();
                read
            });
            write_all(&context, &to, rest.clone());
            reader.join().unwrap()
        });
        assert!(read == rest);
        assert!(blocks(&to));
    }
}

#[test]
fn several_buffers_are_one_write_and_one_read() {
    let context = context();
    let (a, b) = UnixStream::pair().unwrap();
    let (reader, writer) = pipe();
    for (from, to) in [(file(a), file(b)), (file(reader), file(writer))] {
        let read = Op::readv(&from, vec![vec![0; 2], Vec::new(), vec![0; 8]]);
        submit(&context, read);
        assert_waits(&context);
        let write = Op::writev(&to, vec![b"abc".to_vec(), Vec::new(), b"def".to_vec()]);
        submit(&context, write.data(1));
        for done in collect(&context, 2) {
            assert_eq!(done.result, Ok(6));
            if done.data == 0 {
                assert_eq!(done.op.into_bufs(), [&b"ab"[..], b"", b"cdef\0\0\0\0"]);
            }
        }
    }
}

/// A read from the one end goes to the other: each is a request of the same context.
#[test]
fn both_ends_of_a_stream_may_be_requests_of_one_context() {
    let context = context();
    let (a, b) = UnixStream::pair().unwrap();
    let (a, b) = (file(a), file(b));
    submit(&context, Op::read(&b, vec![0; 8]));
    for n in 0..1_000_u64 {
        submit(&context, Op::write(&a, n.to_ne_bytes().to_vec()).data(1));
        for done in collect(&context, 2) {
            assert_eq!(done.result, Ok(8));
            if done.data == 0 {
                let buf = done.op.into_buf();
                assert_eq!(buf, n.to_ne_bytes());
                submit(&context, Op::read(&b, buf));
            }
        }
    }
}

/// A set of SIGPIPE.
fn sigpipe() -> libc::sigset_t {
    let mut set = mem::MaybeUninit::uninit();
    // SAFETY: it is given a set to write.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: a set.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE) };
    // SAFETY: written by the calls above.
    unsafe { set.assume_init() }
}

/// Whether the calling thread was sent SIGPIPE, which it blocks; taken back.
fn was_sent_sigpipe() -> bool {
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a set, nowhere to write, and a time.
    let signal = unsafe { libc::sigtimedwait(&sigpipe(), ptr::null_mut(), &now) };
    signal == libc::SIGPIPE
}

#[test]
fn a_broken_socket_is_epipe_without_a_signal() {
    // Blocked, it is kept even if it is ignored.
    // SAFETY: a set, and nowhere to write.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &sigpipe(), ptr::null_mut()) };
    let context = context();
    let epipe = Err(Errno::from_raw(libc::EPIPE).unwrap());
    let (reader, writer) = pipe();
    drop(reader);
    let done = complete(&context, Op::write(&file(writer), vec![1]));
    assert_eq!(done.result, epipe);
    // Else it would prove nothing below.
    assert!(was_sent_sigpipe());

    let (a, b) = UnixStream::pair().unwrap();
    drop(b);
    let a = file(a);
    assert_eq!(complete(&context, Op::write(&a, vec![1])).result, epipe);
    let bufs = vec![vec![1], vec![2]];
    assert_eq!(complete(&context, Op::writev(&a, bufs)).result, epipe);
    assert!(!was_sent_sigpipe());

    // The same for one that waited, by the reaper.
    let (a, b) = UnixStream::pair().unwrap();
    fill_socket(&a);
    submit(&context, Op::write(&file(a), vec![1]));
    assert_waits(&context);
    drop(b);
    let result = late(&context).result;
    let reset = Err(Errno::from_raw(libc::ECONNRESET).unwrap());
    assert!(result == epipe || result == reset, "{result:?}");
    assert!(!was_sent_sigpipe());
}

#[test]
fn reading_and_writing_nothing_never_waits() {
    let context = context();
    let (reader, writer) = pipe();
    fill_pipe(&writer);
    let (empty, _sender) = pipe();
    let (a, b) = UnixStream::pair().unwrap();
    fill_socket(&a);
    let (client, _server) = tcp();
    let counter = eventfd(0, EventfdFlags::empty()).unwrap();
    let files = [
        OwnedFd::from(empty),
        reader.into(),
        a.try_clone().unwrap().into(),
        b.into(),
        client.into(),
        counter,
    ]
    .map(file);
    for file in &files {
        for op in [
            Op::read(file, Vec::new()),
            Op::readv(file, vec![Vec::new(); 3]),
            Op::readv(file, Vec::new()),
        ] {
            let done = complete(&context, op);
            assert_eq!((done.result, done.inline), (Ok(0), true), "{file:?}");
        }
    }
    writing_nothing_never_waits(&file(a));
    writing_nothing_never_waits(&file(writer));
}

/// To what is full.
fn writing_nothing_never_waits(file: &File) {
    let context = context();
    for op in [
        Op::write(file, Vec::new()),
        Op::writev(file, vec![Vec::new(); 3]),
    ] {
        let done = complete(&context, op.with_timeout(SHORT));
        assert_eq!((done.result, done.inline), (Ok(0), true), "{file:?}");
    }
}

#[test]
fn datagrams_keep_their_bounds() {
    use std::os::unix::net::UnixDatagram;
    let context = context();
    let (a, b) = UnixDatagram::pair().unwrap();
    let (a, b) = (file(a), file(b));
    submit(&context, Op::read(&b, vec![0; 3]));
    assert_waits(&context);
    for message in [&b"long one"[..], b"", b"x"] {
        let mut ops = [Op::write(&a, message.to_vec()).data(1)];
        assert_eq!(context.submit(&mut ops), Ok(1));
    }
    for done in collect(&context, 4) {
        if done.data == 0 {
            assert_eq!(done.result, Ok(3));
            assert_eq!(done.op.into_buf(), b"lon");
        } else {
            assert_eq!(done.result, Ok(done.op.into_buf().len()));
        }
    }
    // An empty one is a message, too.
    assert_eq!(complete(&context, Op::read(&b, vec![0; 3])).result, Ok(0));
    assert_eq!(complete(&context, Op::read(&b, vec![0; 3])).result, Ok(1));
}

#[test]
fn blocking_streams_are_not_blocked_on_and_stay_as_they_are() {
    let context = context();
    let (reader, writer) = pipe();
    let (a, b) = UnixStream::pair().unwrap();
    let (client, server) = tcp();
    let counter = eventfd(0, EventfdFlags::empty()).unwrap();
    let files: Vec<_> = [
        OwnedFd::from(reader),
        a.into(),
        b.into(),
        client.into(),
        server.into(),
        counter,
    ]
    .into_iter()
    .map(file)
    .collect();
    let mut handles = Vec::new();
    for file in &files {
        handles.push(submit(&context, Op::read(file, vec![0; 8])));
        handles.push(submit(&context, Op::poll(file, event::IN)));
        // It has what is ready without a worker, whatever is asked for.
        handles.push(submit(&context, Op::read(file, vec![0; 8]).offload()));
        assert!(blocks(file));
    }
    assert_waits(&context);
    for handle in &handles {
        assert_eq!(context.cancel(*handle), Ok(()));
    }
    for done in collect(&context, handles.len()) {
        assert_eq!(done.result, Err(Errno::ECANCELED));
    }
    assert!(files.iter().all(blocks) && blocks(&writer));
}

#[test]
fn nonblocking_streams_wait_as_well() {
    let context = context();
    let (a, mut b) = UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    let (reader, mut writer) = pipe();
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
    let (a, reader) = (file(a), file(reader));
    submit(&context, Op::read(&a, vec![0; 8]).data(1));
    submit(&context, Op::read(&reader, vec![0; 8]).data(2));
    assert_waits(&context);
    b.write_all(b"sock").unwrap();
    let done = late(&context);
    assert_eq!((done.data, done.result), (1, Ok(4)));
    writer.write_all(b"pipe!").unwrap();
    let done = late(&context);
    assert_eq!((done.data, done.result), (2, Ok(5)));
    assert!(!blocks(&a) && !blocks(&reader));
}

#[test]
fn streams_have_no_offset() {
    let context = context();
    let (reader, writer) = pipe();
    let espipe = Err(Errno::from_raw(libc::ESPIPE).unwrap());
    let read = Op::pread(&file(reader), vec![0; 8], 0);
    assert_eq!(complete(&context, read).result, espipe);
    let write = Op::pwrite(&file(writer), vec![0; 8], 0);
    assert_eq!(complete(&context, write).result, espipe);
}

#[test]
fn a_direction_that_is_not_there_is_ebadf() {
    let context = context();
    let (reader, writer) = pipe();
    let (reader, writer) = (file(reader), file(writer));
    for op in [Op::write(&reader, vec![0]), Op::read(&writer, vec![0])] {
        let done = complete(&context, op.with_timeout(SHORT));
        assert_eq!(done.result, Err(Errno::EBADF));
    }
}

/// What the other tests prove under seccomp depends on it.
#[test]
fn the_jail_is_real() {
    if jail() == Some(Jail::Seccomp) {
        let (reader, _writer) = pipe();
        let flags = rustix::io::ReadWriteFlags::empty();
        let read = rustix::io::preadv2(&reader, &mut [], 0, flags);
        assert_eq!(read, Err(rustix::io::Errno::PERM));
    }
}

// Where the kernel cannot try.

/// A FIFO with a name, of which the kernel cannot be asked not to block.
fn fifo() -> (tempfile::TempDir, OwnedFd, OwnedFd) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    let both = fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let reader = fs::File::open(&path).unwrap();
    let writer = fs::File::options().write(true).open(&path).unwrap();
    drop(both);
    (place, reader.into(), writer.into())
}

#[test]
fn a_fifo_is_never_blocked_on() {
    let (_place, reader, writer) = fifo();
    let flags = rustix::fs::fcntl_getfl(&reader).unwrap();
    let (reader, writer) = (file(reader), file(writer));
    let context = context();
    for _ in 0..1_000 {
        // Two for what is enough for one: by who drives, and by the submitter.
        submit(&context, Op::read(&reader, vec![0; 1]).data(1));
        thread::scope(|scope| {
            scope.spawn(|| rustix::io::write(&writer, b"x").unwrap());
            submit(&context, Op::read(&reader, vec![0; 1]).data(2));
        });
        assert_eq!(collect(&context, 1)[0].result, Ok(1));
        rustix::io::write(&writer, b"y").unwrap();
        assert_eq!(collect(&context, 1)[0].result, Ok(1));
    }
    assert_eq!(rustix::fs::fcntl_getfl(&reader).unwrap(), flags);
}

#[test]
fn what_a_fifo_takes_whole_is_written_whole() {
    let (_place, reader, writer) = fifo();
    let context = context();
    let writer = file(writer);
    for _ in 0..16 {
        let page = complete(&context, Op::write(&writer, vec![1; libc::PIPE_BUF]));
        assert_eq!(page.result, Ok(libc::PIPE_BUF));
    }
    submit(&context, Op::write(&writer, vec![2; libc::PIPE_BUF]));
    assert_waits(&context);
    let mut page = [0; libc::PIPE_BUF];
    assert_eq!(rustix::io::read(&reader, &mut page), Ok(libc::PIPE_BUF));
    assert_eq!(late(&context).result, Ok(libc::PIPE_BUF));
}

/// It has no call for several buffers: the kernel reads into one after the other.
#[test]
fn a_watch_of_files_is_read_into_the_first_of_several_buffers() {
    let place = tempfile::tempdir().unwrap();
    let flags = rustix::fs::inotify::CreateFlags::CLOEXEC;
    let watch = rustix::fs::inotify::init(flags).unwrap();
    let created = rustix::fs::inotify::WatchFlags::CREATE;
    rustix::fs::inotify::add_watch(&watch, place.path(), created).unwrap();
    let context = context();
    let watch = file(watch);
    let bufs = || vec![Vec::new(), vec![0; 64], vec![0; 64]];
    submit(&context, Op::readv(&watch, bufs()));
    assert_waits(&context);
    fs::File::create(place.path().join("a")).unwrap();
    assert_eq!(late(&context).result, Ok(32));
    fs::File::create(place.path().join("b")).unwrap();
    assert_eq!(complete(&context, Op::readv(&watch, bufs())).result, Ok(32));
}

#[test]
fn ordinary_data_can_be_waited_for() {
    let context = context();
    let (reader, mut writer) = pipe();
    let reader = file(reader);
    submit(&context, Op::poll(&reader, event::RDNORM));
    assert_waits(&context);
    writer.write_all(b"x").unwrap();
    assert_eq!(late(&context).result, events(event::RDNORM));
    // No such event.
    let mut ops = [Op::poll(&reader, 0x4000)];
    assert_eq!(context.submit(&mut ops), Err(Errno::EINVAL));
}

/// What was read before the request is none of its business. Nobody waits, so that
/// another thread drives, and may be behind.
#[test]
fn a_poll_does_not_tell_of_what_was_before_it() {
    let context = context();
    let (reader, mut writer) = pipe();
    let watched = file(reader.try_clone().unwrap());
    submit(&context, Op::poll(&watched, event::PRI));
    let mut done = Vec::new();
    for _ in 0..3_000 {
        writer.write_all(b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(1));
        let handle = submit(&context, Op::poll(&watched, event::IN));
        thread::yield_now();
        match context.cancel(handle) {
            Ok(()) => {}
            // It is being looked at.
            Err(errno) => assert_eq!(errno, Errno::EINPROGRESS),
        }
        while context.getevents(0, 1, None, &mut done) == Ok(0) {
            thread::yield_now();
        }
        assert_eq!(done.remove(0).result, Err(Errno::ECANCELED));
    }
}

/// It is not full: another number fits.
#[test]
fn a_number_that_does_not_fit_keeps_no_other_one_waiting() {
    for flags in [
        EventfdFlags::SEMAPHORE,
        EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK,
    ] {
        let counter = eventfd(0, flags).unwrap();
        rustix::io::write(&counter, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let counter = file(counter);
        let context = context();
        let number = |n: u64| Op::write(&counter, n.to_ne_bytes().to_vec()).data(n);
        submit(&context, number(2));
        submit(&context, number(1));
        assert_waits(&context);
        rustix::io::read(&counter, &mut [0; 8]).unwrap();
        let done = late(&context);
        assert_eq!((done.data, done.result), (1, Ok(8)));
        rustix::io::read(&counter, &mut [0; 8]).unwrap();
        rustix::io::read(&counter, &mut [0; 8]).unwrap();
        assert_eq!(late(&context).data, 2);
    }
}

/// The kernel would write one after the other.
#[test]
fn of_several_numbers_the_first_is_written() {
    let context = context();
    let counter = file(eventfd(0, EventfdFlags::empty()).unwrap());
    let bufs = [u64::MAX - 1, 5].map(|n| n.to_ne_bytes().to_vec());
    let written = complete(&context, Op::writev(&counter, bufs.to_vec()));
    assert_eq!(written.result, Ok(8));
}

/// Its request ends, and nobody else's is forgotten for it.
#[test]
fn a_source_that_panics_spoils_nothing_else() {
    struct Panics(WaitQueue);
    // SAFETY: the queue is in the source.
    unsafe impl Source for Panics {
        fn heads(&self, visit: &mut dyn FnMut(&WaitQueue)) {
            visit(&self.0);
        }
        fn mask(&self) -> u16 {
            panic!("on purpose")
        }
    }
    let context = context();
    let source = Arc::new(Panics(WaitQueue::new()));
    let panics = Op::poll_source(source, event::IN).with_timeout(LONG);
    let panicked = panic::catch_unwind(AssertUnwindSafe(|| context.submit(&mut [panics])));
    assert!(panicked.is_err());
    assert_eq!(collect(&context, 1)[0].result, Err(Errno::EIO));
    // Nobody waits: the context's own thread reads.
    let (reader, mut writer) = pipe();
    submit(
        &context,
        Op::read(&file(reader.try_clone().unwrap()), vec![0; 1]),
    );
    writer.write_all(b"x").unwrap();
    while rustix::io::ioctl_fionread(&reader).unwrap() > 0 {
        thread::yield_now();
    }
    assert_eq!(late(&context).result, Ok(1));
}
