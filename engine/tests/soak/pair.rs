//! What requests are made for: our descriptor and its peer's, and what each side knows
//! to have gone in and out.

use std::{
    collections::HashSet,
    env, fs,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixStream},
    },
    process,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd},
    fs::OFlags,
    io::Errno as Number,
    net::{Shutdown, sockopt},
};
use uaio::{Errno, File, Op, event};

use crate::common::Rng;

/// Longer than a test may hang.
pub(crate) const HANG: Duration = Duration::from_secs(30);
/// A prime, so that no length of a buffer hides a shift.
const PERIOD: usize = 65_521;
/// The most that is read or written at once.
const LONGEST: usize = 8192;
const FULL: u64 = u64::MAX - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Stream,
    Datagram,
    /// Datagrams to a socket that sends none, and takes only a few unread.
    Mailbox,
    /// Of which we have the reading end.
    PipeIn,
    PipeOut,
    /// An eventfd. Its peer is another number for it.
    Counter,
}

use Kind::{Counter, Datagram, Mailbox, PipeIn, PipeOut, Stream, Tcp};

const KINDS: [Kind; 8] = [
    Tcp, Stream, Datagram, Mailbox, PipeIn, PipeOut, Counter, Stream,
];

/// The bytes of every stream, from somewhere in it on.
pub(crate) struct Pattern(Vec<u8>);

impl Pattern {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let mut bytes = rng.bytes(PERIOD);
        bytes.extend_from_within(..LONGEST);
        Self(bytes)
    }

    fn at(&self, position: u128, length: usize) -> &[u8] {
        &self.0[(position % PERIOD as u128) as usize..][..length]
    }

    /// A datagram, by its number.
    fn datagram(&self, number: u64) -> Vec<u8> {
        let mut bytes = number.to_le_bytes().to_vec();
        bytes.extend_from_slice(self.at(number.into(), (number * 7 % 400) as usize));
        bytes
    }

    /// The number of one that was received into `room` bytes.
    fn number(&self, bytes: &[u8], room: usize) -> u64 {
        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let whole = self.datagram(number);
        assert!(
            *bytes == whole[..whole.len().min(room)],
            "datagram {number}"
        );
        number
    }
}

#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) kind: Kind,
    /// Several readers and writers at a time: of a stream then only the totals are
    /// known.
    shared: bool,
    /// Of an eventfd, which blocks its peer too: that only adds, and little.
    blocking: bool,
    semaphore: bool,
    /// Where in the pattern its streams begin.
    start: u128,
    pub(crate) number: RawFd,
    ours: Mutex<Ours>,
    peer: Mutex<Peer>,
}

/// Locked before the peer, if both.
#[derive(Debug, Default)]
struct Ours {
    requests: usize,
    reads: usize,
    writes: usize,
    /// Bytes of a stream, the sum of an eventfd's values.
    received: u128,
    written: u128,
    /// Numbers of datagrams.
    seen: HashSet<u64>,
    posted: HashSet<u64>,
    next: u64,
    /// Our own share of the file is gone.
    dropped: bool,
}

#[derive(Debug, Default)]
struct Peer {
    /// None once it is closed.
    fd: Option<OwnedFd>,
    /// It writes no more.
    shut: bool,
    /// As above; of datagrams how many, which have the numbers below.
    sent: u128,
    got: u128,
    seen: HashSet<u64>,
}

/// A request, as far as its pair is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Poll(u16),
    Read { room: usize, split: bool },
    Write { length: usize, number: u64 },
}

impl Act {
    /// What it waits for.
    pub(crate) fn events(self) -> u16 {
        match self {
            Self::Poll(events) => events,
            Self::Read { .. } => event::IN,
            Self::Write { .. } => event::OUT,
        }
    }
}

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Ready,
    HungUp,
    Read,
    End,
    Written,
    Broken,
}

/// So that they are full now and then.
fn small_buffers(fd: &impl AsFd, size: usize) {
    sockopt::set_socket_send_buffer_size(fd, size).unwrap();
    sockopt::set_socket_recv_buffer_size(fd, size).unwrap();
}

fn set_nonblocking(fd: impl AsFd) {
    let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).unwrap();
}

/// Which of `events` it is ready for.
pub(crate) fn ready(fd: BorrowedFd<'_>, events: u16, time: Duration) -> u16 {
    let mut polled = [PollFd::from_borrowed_fd(
        fd,
        PollFlags::from_bits_retain(events),
    )];
    let time = Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: time.subsec_nanos().into(),
    };
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&time))).unwrap();
    polled[0].revents().bits()
}

impl Pair {
    /// A new one, and our file.
    pub(crate) fn new(rng: &mut Rng, listener: &TcpListener, serial: u64) -> (Self, File) {
        let kind = KINDS[rng.below(KINDS.len())];
        let mut blocking = rng.below(2) == 0;
        let semaphore = kind == Counter && rng.below(2) == 0;
        let (ours, peer): (OwnedFd, OwnedFd) = match kind {
            Tcp => {
                let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (peer, _) = listener.accept().unwrap();
                ours.set_nodelay(true).unwrap();
                peer.set_nodelay(true).unwrap();
                small_buffers(&ours, 16384);
                small_buffers(&peer, 16384);
                (ours.into(), peer.into())
            }
            Stream => {
                let (ours, peer) = UnixStream::pair().unwrap();
                small_buffers(&ours, 4096);
                small_buffers(&peer, 4096);
                (ours.into(), peer.into())
            }
            Datagram => {
                let (ours, peer) = UnixDatagram::pair().unwrap();
                small_buffers(&ours, 4096);
                small_buffers(&peer, 4096);
                (ours.into(), peer.into())
            }
            Mailbox => {
                let name = format!("uaio-soak-{}-{serial}", process::id());
                let address = SocketAddr::from_abstract_name(name).unwrap();
                let peer = UnixDatagram::bind_addr(&address).unwrap();
                let ours = UnixDatagram::unbound().unwrap();
                ours.connect_addr(&address).unwrap();
                (ours.into(), peer.into())
            }
            PipeIn | PipeOut => {
                let (reader, writer) = std::io::pipe().unwrap();
                rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
                match kind {
                    PipeIn => (reader.into(), writer.into()),
                    _ => (writer.into(), reader.into()),
                }
            }
            Counter => {
                let mut flags = EventfdFlags::CLOEXEC;
                flags.set(EventfdFlags::NONBLOCK, !blocking);
                flags.set(EventfdFlags::SEMAPHORE, semaphore);
                let ours = eventfd(0, flags).unwrap();
                let peer = ours.try_clone().unwrap();
                (ours, peer)
            }
        };
        if kind != Counter {
            set_nonblocking(&peer);
            if !blocking {
                set_nonblocking(&ours);
            }
            blocking = false;
        }
        let pair = Self {
            kind,
            shared: matches!(kind, Datagram | Mailbox | Counter) || rng.below(4) == 0,
            blocking,
            semaphore,
            start: rng.below(PERIOD) as u128,
            number: ours.as_raw_fd(),
            ours: Mutex::default(),
            peer: Mutex::new(Peer {
                fd: Some(peer),
                ..Peer::default()
            }),
        };
        (pair, File::new(ours).unwrap())
    }

    fn is_stream(&self) -> bool {
        !matches!(self.kind, Datagram | Mailbox | Counter)
    }

    fn ours(&self) -> MutexGuard<'_, Ours> {
        self.ours.lock().unwrap()
    }

    fn peer(&self) -> MutexGuard<'_, Peer> {
        self.peer.lock().unwrap()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.peer().fd.is_none()
    }

    /// How many requests are under way.
    pub(crate) fn requests(&self) -> usize {
        self.ours().requests
    }

    /// A request of any kind that may be made now; if it can be, to read all there is.
    pub(crate) fn request(
        &self,
        rng: &mut Rng,
        pattern: &Pattern,
        file: &File,
        thirsty: bool,
    ) -> (Act, Op) {
        let mut ours = self.ours();
        ours.requests += 1;
        let reads = !matches!(self.kind, PipeOut | Mailbox) && (self.shared || ours.reads == 0);
        // Where a write may block however ready it was, none is made.
        let writes = self.kind != PipeIn && !self.blocking && (self.shared || ours.writes == 0);
        match if thirsty { 0 } else { rng.below(8) } {
            0..=2 if reads => {
                ours.reads += 1;
                let room = match (rng.below(4), self.kind) {
                    (_, Counter) => 8,
                    (0, _) => LONGEST,
                    _ if thirsty => LONGEST,
                    _ => 8 + rng.below(500),
                };
                let split = rng.below(4) == 0;
                let op = match split {
                    true => Op::readv(file, vec![vec![0; 5], vec![0; room - 5]]),
                    false => Op::read(file, vec![0; room]),
                };
                (Act::Read { room, split }, op)
            }
            3..=5 if writes => {
                ours.writes += 1;
                let number = ours.next;
                let bytes = match self.kind {
                    Counter => 1_u64.to_ne_bytes().to_vec(),
                    Datagram | Mailbox => {
                        ours.next += 1;
                        pattern.datagram(number)
                    }
                    _ => {
                        let length = 1 + rng.below(2000);
                        (pattern.at(self.start + ours.written, length)).to_vec()
                    }
                };
                let length = bytes.len();
                (Act::Write { length, number }, Op::write(file, bytes))
            }
            _ => {
                let mut events = 0;
                for event in [event::IN, event::PRI, event::OUT, event::RDHUP] {
                    if rng.below(3) == 0 {
                        events |= event;
                    }
                }
                (Act::Poll(events), Op::poll(file, events))
            }
        }
    }

    /// The request is over, or was refused. Tells whether we had dropped the file.
    pub(crate) fn finish(&self, act: Act) -> bool {
        let mut ours = self.ours();
        ours.requests -= 1;
        match act {
            Act::Poll(_) => {}
            Act::Read { .. } => ours.reads -= 1,
            Act::Write { .. } => ours.writes -= 1,
        }
        ours.dropped
    }

    /// Our own share of the file is dropped.
    pub(crate) fn forsake(&self) {
        self.ours().dropped = true;
    }

    /// Holds what a request came to, other than ECANCELED and ETIME, against what the
    /// peer did.
    pub(crate) fn check(
        &self,
        pattern: &Pattern,
        act: Act,
        result: Result<usize, Errno>,
        op: Op,
    ) -> Fate {
        let mut ours = self.ours();
        let peer = self.peer();
        let closed = peer.fd.is_none();
        match (act, result) {
            (Act::Poll(asked), Ok(events)) => {
                let events = u16::try_from(events).unwrap();
                let failed = events & (event::ERR | event::HUP);
                assert!(events != 0 && events & !(asked | event::ERR | event::HUP) == 0);
                assert!(failed == 0 || closed, "{events:#x} with a peer");
                assert!(events & event::RDHUP == 0 || closed || peer.shut);
                match failed {
                    0 => Fate::Ready,
                    _ => Fate::HungUp,
                }
            }
            (Act::Read { room, split }, Ok(n)) => {
                let bytes = match split {
                    true => op.into_bufs().concat(),
                    false => op.into_buf(),
                };
                assert_eq!(bytes.len(), room);
                let bytes = &bytes[..n];
                match self.kind {
                    Counter => {
                        let value = u64::from_ne_bytes(bytes.try_into().unwrap());
                        assert!(value != 0 && (value == 1 || !self.semaphore));
                        ours.received += u128::from(value);
                    }
                    Datagram => {
                        let number = pattern.number(bytes, room);
                        assert!(u128::from(number) < peer.sent);
                        assert!(ours.seen.insert(number), "{number} came twice");
                    }
                    _ if n == 0 => {
                        assert!(closed || peer.shut, "the end of what goes on");
                        // A connection that is reset may lose what was sent.
                        if !(self.shared || closed && self.kind == Tcp) {
                            assert_eq!(ours.received, peer.sent);
                        }
                        return Fate::End;
                    }
                    _ => {
                        assert!(
                            self.shared || bytes == pattern.at(self.start + ours.received, n),
                            "{n} bytes at {}",
                            ours.received
                        );
                        ours.received += n as u128;
                        assert!(ours.received <= peer.sent);
                    }
                }
                Fate::Read
            }
            (Act::Write { length, number }, Ok(n)) => {
                match self.kind {
                    Counter => ours.written += 1,
                    Datagram | Mailbox => {
                        assert_eq!(n, length);
                        ours.posted.insert(number);
                    }
                    _ => {
                        assert!((1..=length).contains(&n));
                        ours.written += n as u128;
                    }
                }
                Fate::Written
            }
            (_, Err(errno)) => {
                let broken = match (act, self.kind) {
                    (Act::Read { .. } | Act::Write { .. }, Tcp | Stream) => {
                        matches!(errno.raw(), libc::EPIPE | libc::ECONNRESET)
                    }
                    (Act::Write { .. }, PipeOut) => errno.raw() == libc::EPIPE,
                    (Act::Write { .. }, Datagram | Mailbox) => {
                        matches!(errno.raw(), libc::ECONNREFUSED | libc::ENOTCONN)
                    }
                    _ => false,
                };
                assert!(broken && closed, "{errno}");
                Fate::Broken
            }
        }
    }

    /// The peer does something.
    pub(crate) fn disturb(&self, rng: &mut Rng, pattern: &Pattern) {
        let mut peer = self.peer();
        if peer.fd.is_none() {
            return;
        }
        match rng.below(512) {
            0 if matches!(self.kind, Tcp | Stream) => {
                // A connection of which we have dropped our end may be reset.
                let _ = rustix::net::shutdown(peer.fd.as_ref().unwrap(), Shutdown::Write);
                peer.shut = true;
            }
            // An eventfd has nobody to miss.
            1 if self.kind != Counter => {
                let fd = peer.fd.take().unwrap();
                if self.kind == Tcp && rng.below(2) == 0 {
                    // Closing resets it.
                    sockopt::set_socket_linger(&fd, Some(Duration::ZERO)).unwrap();
                }
            }
            2..256 => self.send(&mut peer, rng, pattern),
            _ => while self.receive(&mut peer, pattern) && rng.below(4) != 0 {},
        }
    }

    /// It is not to go on for ever.
    pub(crate) fn close_peer(&self) {
        self.peer().fd = None;
    }

    fn send(&self, peer: &mut Peer, rng: &mut Rng, pattern: &Pattern) {
        let mut value = 1 + rng.below(1000) as u64;
        let bytes = match self.kind {
            Mailbox | PipeOut => return,
            _ if peer.shut => return,
            Counter => {
                if !self.blocking && rng.below(4) == 0 {
                    self.receive(peer, pattern);
                    value = FULL;
                }
                value.to_ne_bytes().to_vec()
            }
            Datagram => pattern.datagram(peer.sent as u64),
            _ => (pattern.at(self.start + peer.sent, value as usize)).to_vec(),
        };
        match rustix::io::write(peer.fd.as_ref().unwrap(), &bytes) {
            Ok(n) => {
                peer.sent += match self.kind {
                    Counter => value.into(),
                    Datagram => 1,
                    _ => n as u128,
                }
            }
            Err(Number::AGAIN) => {}
            // Our end is closed.
            Err(Number::PIPE | Number::CONNRESET | Number::CONNREFUSED | Number::NOTCONN) => {
                peer.fd = None;
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Tells whether there was anything.
    fn receive(&self, peer: &mut Peer, pattern: &Pattern) -> bool {
        if self.kind == PipeIn || self.blocking {
            return false;
        }
        let mut buf = [0; LONGEST];
        match rustix::io::read(peer.fd.as_ref().unwrap(), &mut buf) {
            // Our end is closed.
            Ok(0) | Err(Number::CONNRESET | Number::PIPE) => peer.fd = None,
            Ok(n) => {
                match self.kind {
                    Counter => {
                        let value = u64::from_ne_bytes(buf[..8].try_into().unwrap());
                        peer.got += u128::from(value);
                    }
                    Datagram | Mailbox => {
                        let number = pattern.number(&buf[..n], LONGEST);
                        assert!(peer.seen.insert(number), "{number} went twice");
                    }
                    _ => {
                        assert!(
                            self.shared || buf[..n] == *pattern.at(self.start + peer.got, n),
                            "{n} bytes at {}",
                            peer.got
                        );
                        peer.got += n as u128;
                    }
                }
                return true;
            }
            Err(Number::AGAIN) => {}
            Err(error) => panic!("{error}"),
        }
        false
    }

    /// Whether a reader waits, all that was sent is read and accounted for, and there
    /// is only one reader.
    pub(crate) fn reader_waits(&self) -> bool {
        let ours = self.ours();
        let peer = self.peer();
        !self.shared && ours.reads == 1 && peer.fd.is_some() && ours.received == peer.sent
    }

    /// Whether something was read that is not accounted for, as far as can be told: of
    /// a connection some may be under way.
    pub(crate) fn was_read(&self, file: &File) -> bool {
        let ours = self.ours();
        let peer = self.peer();
        if !matches!(self.kind, Stream | PipeIn) {
            return false;
        }
        let unread = rustix::io::ioctl_fionread(file).unwrap();
        peer.sent > ours.received + u128::from(unread)
    }

    /// Nothing is under way. All that either side sent has arrived, or is still on its
    /// way, and nothing else: what ended without a result has taken and left nothing.
    pub(crate) fn audit(&self, pattern: &Pattern, file: &File) -> bool {
        let mut ours = self.ours();
        let mut peer = self.peer();
        assert_eq!((ours.requests, ours.reads, ours.writes), (0, 0, 0));
        let Some(fd) = peer.fd.as_ref() else {
            return false;
        };
        if self.kind == Counter {
            let came = peer.sent + ours.written;
            assert_eq!(came - peer.got - ours.received, count_of(fd).into());
            return true;
        }
        set_nonblocking(file);
        let mut buf = [0; LONGEST];
        loop {
            let missing = match self.kind {
                Datagram => ours.seen.len() as u128 != peer.sent,
                PipeOut | Mailbox => break,
                _ => ours.received != peer.sent,
            };
            if missing {
                let ready = ready(file.as_fd(), event::IN, HANG);
                assert!(ready & event::IN != 0, "lost: {ours:?} {peer:?}");
            }
            match rustix::io::read(file, &mut buf) {
                Ok(n) if missing && self.kind == Datagram => {
                    let number = pattern.number(&buf[..n], LONGEST);
                    assert!(ours.seen.insert(number), "{number} came twice");
                }
                Ok(n) if missing && n > 0 => {
                    let expected = pattern.at(self.start + ours.received, n);
                    assert!(self.shared || buf[..n] == *expected);
                    ours.received += n as u128;
                }
                Ok(0) if peer.shut => break,
                Err(Number::AGAIN) if !missing => break,
                other => panic!("{other:?} {ours:?} {peer:?}"),
            }
        }
        loop {
            let missing = self.is_stream() && peer.got != ours.written;
            if missing {
                let fd = peer.fd.as_ref().expect("there is no end before ours");
                let ready = ready(fd.as_fd(), event::IN, HANG);
                assert!(ready & event::IN != 0, "lost: {ours:?} {peer:?}");
            }
            if self.kind == PipeIn || !self.receive(&mut peer, pattern) && !missing {
                break;
            }
        }
        assert!(peer.fd.is_some(), "there is no end before ours");
        assert!(peer.seen == ours.posted);
        if self.is_stream() {
            assert_eq!(peer.got, ours.written);
        }
        true
    }
}

fn count_of(fd: &OwnedFd) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = fs::read_to_string(path).unwrap();
    let count = (info.lines())
        .find_map(|line| line.strip_prefix("eventfd-count:"))
        .unwrap();
    u64::from_str_radix(count.trim(), 16).unwrap()
}

/// A file of the pattern, and how long it is.
pub(crate) fn regular(pattern: &Pattern) -> (File, usize) {
    use std::io::Write;
    let mut file = tempfile::tempfile_in(env::temp_dir()).unwrap();
    file.write_all(&pattern.0).unwrap();
    (File::new(file).unwrap(), pattern.0.len())
}

/// What is read of it.
pub(crate) fn regular_bytes(pattern: &Pattern, offset: usize, length: usize) -> &[u8] {
    &pattern.0[offset..][..length]
}
