//! The loop, and what it serves.
//!
//! Each thing that goes on is a small state machine: it submits a request, and when
//! that completes it is told, and submits the next. What a request is for is in its
//! `data`: a number, under which the loop remembers the machine.
//!
//! ```text
//! acceptor:  poll the listener -> accept -> ...            starts an echo for each
//! echo:      read -> write all of it -> read ... end
//! client:    write -> write ...   and   read -> read ...   until all is echoed
//! flow:      write -> write ...   and   read -> read ... end    a pipe, a Unix socket
//! block:     write -> read -> compare -> write ...              a part of a file
//! timed:     read with a limit from nobody -> time is up -> ...   a clock's tick
//! idle:      read from nobody, cancel -> cancelled -> ...
//! racer:     read, write to it, cancel -> whichever came first -> ...
//! ```
//!
//! Until the time is up; then each comes to its end, and what was counted has to add up.

use std::{
    collections::HashMap,
    io, mem,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use uaio::{Completion, Context, Errno, File, Handle, Op, event};

/// Clients at a time.
const CLIENTS: usize = 4;
/// Parts of the file.
const BLOCKS: usize = 4;
const BLOCK: usize = 16 << 10;
/// More than the machines have requests: a client and its echo three, a flow two, the
/// others one or two each.
const CAPACITY: usize = 64;
/// What is read into; a read without effect leaves it so.
const UNTOUCHED: u8 = 0xee;
/// How long nothing may happen at the end.
const STUCK: Duration = Duration::from_secs(10);

/// What failed, for the user.
type Failure = String;

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(what()) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Accept,
    TcpRead,
    TcpWrite,
    UnixRead,
    UnixWrite,
    PipeRead,
    PipeWrite,
    FileRead,
    FileWrite,
    Timeout,
    Cancel,
    Race,
}

impl Kind {
    pub(crate) const ALL: [Self; 12] = [
        Self::Accept,
        Self::TcpRead,
        Self::TcpWrite,
        Self::UnixRead,
        Self::UnixWrite,
        Self::PipeRead,
        Self::PipeWrite,
        Self::FileRead,
        Self::FileWrite,
        Self::Timeout,
        Self::Cancel,
        Self::Race,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept (poll)",
            Self::TcpRead => "tcp read",
            Self::TcpWrite => "tcp write",
            Self::UnixRead => "unix read",
            Self::UnixWrite => "unix write",
            Self::PipeRead => "pipe read",
            Self::PipeWrite => "pipe write",
            Self::FileRead => "file read",
            Self::FileWrite => "file write",
            Self::Timeout => "timeout",
            Self::Cancel => "cancel",
            Self::Race => "cancel or read",
        }
    }

    /// What is not done at once is done by a worker, and does not wait.
    fn is_of_file(self) -> bool {
        matches!(self, Self::FileRead | Self::FileWrite)
    }
}

/// How the requests of a kind completed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) submitted: u64,
    pub(crate) inline: u64,
    pub(crate) waited: u64,
    pub(crate) worker: u64,
    pub(crate) cancelled: u64,
    pub(crate) timed_out: u64,
}

impl Tally {
    fn completed(&self) -> u64 {
        self.inline + self.waited + self.worker + self.cancelled + self.timed_out
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) tally: [Tally; Kind::ALL.len()],
    pub(crate) connections: u64,
    pub(crate) cancels_won: u64,
    pub(crate) cancels_lost: u64,
    pub(crate) bytes: u64,
}

/// Which machine a request is of.
#[derive(Clone, Copy, Debug)]
enum Who {
    Acceptor,
    Echo(u64),
    Client(u64),
    Flow(usize),
    Block(usize),
    Timed,
    Idle,
    Racer,
}

/// A request that is under way.
struct Pending {
    who: Who,
    kind: Kind,
    handle: Handle,
    submitted: Instant,
    limit: Option<Duration>,
    cancel: Option<Result<(), Errno>>,
}

/// What a machine is told.
struct Done {
    kind: Kind,
    end: End,
    buf: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// How many bytes; of a poll, which events.
    Good(usize),
    Cancelled,
    TimedOut,
}

/// All that is under way, and what became of what was.
struct Requests {
    context: Context,
    pending: HashMap<u64, Pending>,
    next: u64,
    random: u64,
    until: Instant,
    report: Report,
}

impl Requests {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Below `n`; xorshift.
    fn below(&mut self, n: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % n
    }

    /// Submits a request of the machine `who`, and names it.
    fn submit(&mut self, who: Who, kind: Kind, op: Op) -> Result<u64, Failure> {
        self.submit_limited(who, kind, op, None)
    }

    fn submit_limited(
        &mut self,
        who: Who,
        kind: Kind,
        mut op: Op,
        limit: Option<Duration>,
    ) -> Result<u64, Failure> {
        let name = self.next;
        self.next += 1;
        if let Some(limit) = limit {
            op = op.with_timeout(limit);
        }
        let submitted = Instant::now();
        let mut ops = [op.data(name)];
        self.context
            .submit(&mut ops)
            .map_err(|errno| format!("{} is refused: {errno}", kind.name()))?;
        // One that was accepted has left its handle.
        let [Some(handle)] = ops.map(|op| op.handle()) else {
            return Err(format!("{} has no handle", kind.name()));
        };
        self.report.tally[kind as usize].submitted += 1;
        let pending = Pending {
            who,
            kind,
            handle,
            submitted,
            limit,
            cancel: None,
        };
        self.pending.insert(name, pending);
        Ok(name)
    }

    /// Cancels a request, which may be too late. Its completion comes in any case.
    fn cancel(&mut self, name: u64) {
        if let Some(pending) = self.pending.get_mut(&name)
            && pending.cancel.is_none()
        {
            let answer = self.context.cancel(pending.handle);
            pending.cancel = Some(answer);
            match answer {
                Ok(()) => self.report.cancels_won += 1,
                Err(_) => self.report.cancels_lost += 1,
            }
        }
    }

    /// Checks and counts a completion.
    fn take(&mut self, done: Completion) -> Result<(Who, Done), Failure> {
        let pending = (self.pending.remove(&done.data))
            .ok_or_else(|| format!("a completion of nothing: {}", done.data))?;
        let kind = pending.kind;
        let fail = |what: &str| Err::<(), _>(format!("{}: {what}", kind.name()));
        if done.handle != pending.handle {
            fail("completed under another's handle")?;
        }
        let tally = &mut self.report.tally[kind as usize];
        let end = match done.result {
            Ok(n) => {
                match (done.inline, kind.is_of_file()) {
                    (true, _) => tally.inline += 1,
                    (false, true) => tally.worker += 1,
                    (false, false) => tally.waited += 1,
                }
                End::Good(n)
            }
            Err(Errno::ECANCELED) => {
                tally.cancelled += 1;
                End::Cancelled
            }
            Err(Errno::ETIME) => {
                tally.timed_out += 1;
                End::TimedOut
            }
            Err(errno) => return Err(format!("{}: {errno}", kind.name())),
        };
        let buf = done.op.into_buf();
        let has_no_effect = buf.iter().all(|&byte| byte == UNTOUCHED);
        match (end, pending.cancel) {
            (End::Good(_) | End::TimedOut, Some(Ok(()))) => fail("cancelled, and went on")?,
            // Who was asked to stop may.
            (End::Cancelled, Some(Ok(()) | Err(Errno::EINPROGRESS))) => {}
            (End::Cancelled, _) => fail("cancelled by nobody")?,
            _ => {}
        }
        if end == End::TimedOut {
            match pending.limit {
                None => fail("timed out without a limit")?,
                Some(limit) if pending.submitted.elapsed() < limit => fail("timed out early")?,
                Some(_) => {}
            }
        }
        if matches!(end, End::Cancelled | End::TimedOut) && !has_no_effect {
            fail("ended in vain, but not without effect")?;
        }
        Ok((pending.who, Done { kind, end, buf }))
    }
}

/// Serves for `time`, and tells what was done.
pub(crate) fn run(time: Duration, seed: u64) -> Result<Report, Failure> {
    let failed = |error: io::Error| format!("cannot start: {error}");
    let mut requests = Requests {
        context: Context::new(CAPACITY).map_err(|errno| failed(errno.into()))?,
        pending: HashMap::new(),
        next: 0,
        // Never zero, of which xorshift makes nothing.
        random: seed ^ 0x9e37_79b9_7f4a_7c15 | 1 << 63,
        until: Instant::now() + time,
        report: Report::default(),
    };
    let mut machines = Machines::new().map_err(failed)?;
    machines.start(&mut requests)?;

    let mut events = Vec::new();
    while !requests.pending.is_empty() {
        let left = requests.until.saturating_duration_since(Instant::now());
        let wait = if left.is_zero() { STUCK } else { left };
        // The thread sleeps here, and only here. What becomes ready while it does is
        // read and written by this call.
        let got = (requests.context)
            .getevents(1, CAPACITY, Some(wait), &mut events)
            .map_err(|errno| format!("getevents: {errno}"))?;
        if got == 0 && left.is_zero() {
            let kinds: Vec<_> = requests.pending.values().map(|p| p.kind.name()).collect();
            return Err(format!("stuck: {}", kinds.join(", ")));
        }
        machines.cancel_late(&mut requests);
        for done in events.drain(..) {
            let (who, done) = requests.take(done)?;
            machines.tell(&mut requests, who, done)?;
        }
        machines.finish(&mut requests);
    }
    machines.add_up(&requests.report)?;
    Ok(requests.report)
}

/// The bytes from `at` on of an endless sequence, so that who reads it can tell
/// whether a byte is missing, or comes twice, without remembering what was written.
fn pattern(sequence: u64, at: u64, len: usize) -> Vec<u8> {
    (at..at + len as u64)
        .map(|n| ((n ^ sequence << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

/// Where somebody reads a sequence.
#[derive(Debug, Default)]
struct Reader {
    sequence: u64,
    at: u64,
}

impl Reader {
    fn take(&mut self, requests: &mut Requests, bytes: &[u8]) -> Result<(), Failure> {
        let expected = pattern(self.sequence, self.at, bytes.len());
        check(bytes == expected, || {
            format!("sequence {}: wrong from byte {}", self.sequence, self.at)
        })?;
        self.at += bytes.len() as u64;
        requests.report.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn untouched(len: usize) -> Vec<u8> {
    vec![UNTOUCHED; len]
}

fn file(fd: impl Into<OwnedFd>) -> io::Result<File> {
    Ok(File::new(fd)?)
}

/// All state machines. Each has a function that is told what became of its request.
struct Machines {
    listener: TcpListener,
    polled: File,
    poll: u64,
    address: SocketAddr,
    accepted: u64,
    connected: u64,
    echoes: HashMap<u64, File>,
    clients: HashMap<u64, Client>,
    flows: [Flow; 2],
    file: File,
    blocks: [Reader; BLOCKS],
    timed: File,
    idle: File,
    /// The other ends of the two above. They say nothing.
    _silent: [UnixStream; 2],
    racer: Racer,
}

/// Writes a sequence, and reads its echo.
struct Client {
    file: File,
    length: u64,
    written: u64,
    read: Reader,
}

/// A sequence from the one end of something to the other.
struct Flow {
    /// Dropped to say that this is the end.
    to: Option<File>,
    from: File,
    write: Kind,
    read: Kind,
    /// The most of one write and of one read: who is the faster one waits.
    sizes: (u64, u64),
    /// One in so many writes is followed by a pause, until the next tick.
    pauses: u64,
    paused: bool,
    written: u64,
    arrived: Reader,
}

/// Reads what it writes itself, if that comes before the cancel.
struct Racer {
    to: File,
    from: File,
    writing: bool,
    written: u64,
    arrived: Reader,
    /// A read that is to be cancelled when the loop has waited.
    late: Option<u64>,
}

/// The sequences of the flows are 0 and 1.
const RACER: u64 = 2;
const FIRST_BLOCK: u64 = 10;
const FIRST_CLIENT: u64 = 100;

fn reader(sequence: u64) -> Reader {
    Reader { sequence, at: 0 }
}

impl Machines {
    fn new() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // For `accept`, which is no request. Streams need not be set so.
        listener.set_nonblocking(true)?;
        let (unix_from, unix_to) = UnixStream::pair()?;
        let (pipe_from, pipe_to) = io::pipe()?;
        let (timed, silent) = UnixStream::pair()?;
        let (idle, silent_too) = UnixStream::pair()?;
        let (race_from, race_to) = UnixStream::pair()?;
        Ok(Self {
            polled: file(listener.try_clone()?)?,
            poll: 0,
            address: listener.local_addr()?,
            listener,
            accepted: 0,
            connected: 0,
            echoes: HashMap::new(),
            clients: HashMap::new(),
            flows: [
                Flow {
                    to: Some(file(unix_to)?),
                    from: file(unix_from)?,
                    write: Kind::UnixWrite,
                    read: Kind::UnixRead,
                    sizes: (64 << 10, 16 << 10),
                    pauses: 1 << 10,
                    paused: false,
                    written: 0,
                    arrived: reader(0),
                },
                Flow {
                    to: Some(file(pipe_to)?),
                    from: file(pipe_from)?,
                    write: Kind::PipeWrite,
                    read: Kind::PipeRead,
                    sizes: (4 << 10, 64 << 10),
                    pauses: 4,
                    paused: false,
                    written: 0,
                    arrived: reader(1),
                },
            ],
            file: file(tempfile::tempfile()?)?,
            blocks: std::array::from_fn(|n| reader(FIRST_BLOCK + n as u64)),
            timed: file(timed)?,
            idle: file(idle)?,
            _silent: [silent, silent_too],
            racer: Racer {
                to: file(race_to)?,
                from: file(race_from)?,
                writing: false,
                written: 0,
                arrived: reader(RACER),
                late: None,
            },
        })
    }

    fn start(&mut self, requests: &mut Requests) -> Result<(), Failure> {
        self.poll(requests)?;
        for _ in 0..CLIENTS {
            self.connect(requests)?;
        }
        for n in 0..self.flows.len() {
            self.flow_write(requests, n)?;
            self.flow_read(requests, n)?;
        }
        for n in 0..BLOCKS {
            self.block_write(requests, n)?;
        }
        self.timed(requests)?;
        self.idle(requests)?;
        self.race(requests)
    }

    fn tell(&mut self, requests: &mut Requests, who: Who, done: Done) -> Result<(), Failure> {
        match who {
            Who::Acceptor => self.accept(requests, done),
            Who::Echo(id) => self.echo(requests, id, done),
            Who::Client(id) => self.client(requests, id, done),
            Who::Flow(n) => self.flow(requests, n, done),
            Who::Block(n) => self.block(requests, n, done),
            Who::Timed => self.tick(requests, done),
            Who::Idle => match done.end {
                End::Cancelled if requests.is_over() => Ok(()),
                End::Cancelled => self.idle(requests),
                end => Err(format!("cancel: {end:?} from nobody")),
            },
            Who::Racer => self.raced(requests, done),
        }
    }

    /// The acceptor does not end by itself.
    fn finish(&mut self, requests: &mut Requests) {
        if requests.is_over() && self.clients.is_empty() && self.echoes.is_empty() {
            requests.cancel(self.poll);
        }
    }

    fn poll(&mut self, requests: &mut Requests) -> Result<(), Failure> {
        let op = Op::poll(&self.polled, event::IN);
        self.poll = requests.submit(Who::Acceptor, Kind::Accept, op)?;
        Ok(())
    }

    fn accept(&mut self, requests: &mut Requests, done: Done) -> Result<(), Failure> {
        if done.end == End::Cancelled {
            return Ok(());
        }
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let id = self.accepted;
                    self.accepted += 1;
                    let stream = file(stream).map_err(|error| format!("accept: {error}"))?;
                    self.echoes.insert(id, stream);
                    self.echo_read(requests, id)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("accept: {error}")),
            }
        }
        requests.report.connections = self.accepted;
        self.poll(requests)
    }

    fn echo_read(&mut self, requests: &mut Requests, id: u64) -> Result<(), Failure> {
        let op = Op::read(&self.echoes[&id], untouched(8 << 10));
        requests.submit(Who::Echo(id), Kind::TcpRead, op)?;
        Ok(())
    }

    /// What was read is written, as often as it takes.
    fn echo(&mut self, requests: &mut Requests, id: u64, done: Done) -> Result<(), Failure> {
        let rest = match (done.kind, done.end) {
            (Kind::TcpRead, End::Good(0)) => {
                // Closes the connection.
                self.echoes.remove(&id);
                return Ok(());
            }
            (Kind::TcpRead, End::Good(n)) => &done.buf[..n],
            (Kind::TcpWrite, End::Good(n)) => &done.buf[n..],
            (_, end) => return Err(format!("echo: {end:?}")),
        };
        if rest.is_empty() {
            return self.echo_read(requests, id);
        }
        let op = Op::write(&self.echoes[&id], rest.to_vec());
        requests.submit(Who::Echo(id), Kind::TcpWrite, op)?;
        Ok(())
    }

    fn connect(&mut self, requests: &mut Requests) -> Result<(), Failure> {
        // Does not wait for `accept`: there is room in the listener's queue.
        let stream = TcpStream::connect(self.address)
            .and_then(file)
            .map_err(|error| format!("connect: {error}"))?;
        let id = self.connected;
        self.connected += 1;
        let client = Client {
            file: stream,
            length: 1 + requests.below(1 << 18),
            written: 0,
            read: reader(FIRST_CLIENT + id),
        };
        self.clients.insert(id, client);
        self.client_write(requests, id)?;
        self.client_read(requests, id)
    }

    fn client_write(&mut self, requests: &mut Requests, id: u64) -> Result<(), Failure> {
        let client = &self.clients[&id];
        let len = (1 + requests.below(1 << 14)).min(client.length - client.written);
        let bytes = pattern(client.read.sequence, client.written, len as usize);
        let op = Op::write(&client.file, bytes);
        requests.submit(Who::Client(id), Kind::TcpWrite, op)?;
        Ok(())
    }

    fn client_read(&mut self, requests: &mut Requests, id: u64) -> Result<(), Failure> {
        let op = Op::read(&self.clients[&id].file, untouched(8 << 10));
        requests.submit(Who::Client(id), Kind::TcpRead, op)?;
        Ok(())
    }

    fn client(&mut self, requests: &mut Requests, id: u64, done: Done) -> Result<(), Failure> {
        let End::Good(n) = done.end else {
            return Err(format!("client: {:?}", done.end));
        };
        let Some(client) = self.clients.get_mut(&id) else {
            return Err(format!("client: {n} bytes after all was there"));
        };
        let wrote = done.kind == Kind::TcpWrite;
        if wrote {
            client.written += n as u64;
        } else {
            check(n > 0, || "client: the echo ended early".into())?;
            client.read.take(requests, &done.buf[..n])?;
        }
        // The echo may be here before it is told that the last of it was written.
        let (all_written, all_read) = (
            client.written == client.length,
            client.read.at == client.length,
        );
        match wrote {
            true if !all_written => self.client_write(requests, id),
            false if !all_read => self.client_read(requests, id),
            _ if all_written && all_read => {
                self.clients.remove(&id);
                if requests.is_over() {
                    return Ok(());
                }
                self.connect(requests)
            }
            _ => Ok(()),
        }
    }

    fn flow_write(&mut self, requests: &mut Requests, n: usize) -> Result<(), Failure> {
        let flow = &self.flows[n];
        let Some(to) = &flow.to else {
            return Ok(());
        };
        let len = 1 + requests.below(flow.sizes.0) as usize;
        let op = Op::write(to, pattern(flow.arrived.sequence, flow.written, len));
        requests.submit(Who::Flow(n), flow.write, op)?;
        Ok(())
    }

    fn flow_read(&mut self, requests: &mut Requests, n: usize) -> Result<(), Failure> {
        let flow = &self.flows[n];
        let len = 1 + requests.below(flow.sizes.1) as usize;
        let op = Op::read(&flow.from, untouched(len));
        // Now and then impatient: then it reads again.
        let limit = (requests.below(8) == 0).then(|| Duration::from_micros(requests.below(100)));
        requests.submit_limited(Who::Flow(n), flow.read, op, limit)?;
        Ok(())
    }

    fn flow(&mut self, requests: &mut Requests, n: usize, done: Done) -> Result<(), Failure> {
        let flow = &mut self.flows[n];
        match done.end {
            End::Good(len) if done.kind == flow.write => {
                flow.written += len as u64;
                if requests.is_over() {
                    // Closes it: nothing else has this end.
                    flow.to = None;
                }
                flow.paused = flow.to.is_some() && requests.below(flow.pauses) == 0;
                match flow.paused {
                    true => Ok(()),
                    false => self.flow_write(requests, n),
                }
            }
            End::Good(0) => check(flow.to.is_none(), || {
                format!("{}: ended early", done.kind.name())
            }),
            End::Good(len) => {
                flow.arrived.take(requests, &done.buf[..len])?;
                self.flow_read(requests, n)
            }
            End::TimedOut => self.flow_read(requests, n),
            End::Cancelled => Err(format!("{}: cancelled", done.kind.name())),
        }
    }

    fn block_write(&mut self, requests: &mut Requests, n: usize) -> Result<(), Failure> {
        let block = &self.blocks[n];
        let bytes = pattern(block.sequence, block.at, BLOCK);
        let op = Op::pwrite(&self.file, bytes, (n * BLOCK) as u64);
        self.block_submit(requests, n, Kind::FileWrite, op)
    }

    /// Some are left to a worker, though the page cache might have it.
    fn block_submit(
        &self,
        requests: &mut Requests,
        n: usize,
        kind: Kind,
        op: Op,
    ) -> Result<(), Failure> {
        let op = match requests.below(4) {
            0 => op.offload(),
            _ => op,
        };
        requests.submit(Who::Block(n), kind, op)?;
        Ok(())
    }

    fn block(&mut self, requests: &mut Requests, n: usize, done: Done) -> Result<(), Failure> {
        check(done.end == End::Good(BLOCK), || {
            format!("{}: {:?}", done.kind.name(), done.end)
        })?;
        if done.kind == Kind::FileWrite {
            let op = Op::pread(&self.file, untouched(BLOCK), (n * BLOCK) as u64);
            return self.block_submit(requests, n, Kind::FileRead, op);
        }
        self.blocks[n].take(requests, &done.buf)?;
        if requests.is_over() {
            return Ok(());
        }
        self.block_write(requests, n)
    }

    fn timed(&mut self, requests: &mut Requests) -> Result<(), Failure> {
        let op = Op::read(&self.timed, untouched(8));
        let limit = Duration::from_micros(100 + requests.below(5_000));
        requests.submit_limited(Who::Timed, Kind::Timeout, op, Some(limit))?;
        Ok(())
    }

    fn tick(&mut self, requests: &mut Requests, done: Done) -> Result<(), Failure> {
        check(done.end == End::TimedOut, || {
            format!("timeout: {:?} from nobody", done.end)
        })?;
        for n in 0..self.flows.len() {
            if mem::take(&mut self.flows[n].paused) {
                self.flow_write(requests, n)?;
            }
        }
        if requests.is_over() {
            return Ok(());
        }
        self.timed(requests)
    }

    fn idle(&mut self, requests: &mut Requests) -> Result<(), Failure> {
        let op = Op::read(&self.idle, untouched(8));
        let name = requests.submit(Who::Idle, Kind::Cancel, op)?;
        requests.cancel(name);
        Ok(())
    }

    /// A read, what it waits for, and a cancel: at once, or when the loop has waited.
    fn race(&mut self, requests: &mut Requests) -> Result<(), Failure> {
        let racer = &mut self.racer;
        let read = Op::read(&racer.from, untouched(8));
        let name = requests.submit(Who::Racer, Kind::Race, read)?;
        let write = Op::write(&racer.to, pattern(RACER, racer.written, 8));
        requests.submit(Who::Racer, Kind::UnixWrite, write)?;
        racer.writing = true;
        racer.written += 8;
        // In turns.
        if racer.written.is_multiple_of(16) {
            requests.cancel(name);
        } else {
            racer.late = Some(name);
        }
        Ok(())
    }

    fn cancel_late(&mut self, requests: &mut Requests) {
        if let Some(name) = self.racer.late.take() {
            requests.cancel(name);
        }
    }

    fn raced(&mut self, requests: &mut Requests, done: Done) -> Result<(), Failure> {
        let racer = &mut self.racer;
        match (done.kind, done.end) {
            (Kind::UnixWrite, End::Good(8)) => racer.writing = false,
            (Kind::Race, End::Good(8)) => racer.arrived.take(requests, &done.buf)?,
            (Kind::Race, End::Cancelled) => {
                // Then it is still to be had.
                let read = Op::read(&racer.from, untouched(8));
                requests.submit(Who::Racer, Kind::Race, read)?;
            }
            (kind, end) => return Err(format!("{}: {end:?}", kind.name())),
        }
        let round_is_over = !racer.writing && racer.arrived.at == racer.written;
        // However short the time is, both ways are to be seen.
        let both_seen = requests.report.cancels_lost > 0;
        if !round_is_over || requests.is_over() && both_seen {
            return Ok(());
        }
        self.race(requests)
    }

    /// When nothing is under way any more.
    fn add_up(&self, report: &Report) -> Result<(), Failure> {
        for kind in Kind::ALL {
            let tally = &report.tally[kind as usize];
            check(tally.submitted == tally.completed(), || {
                format!("{}: {tally:?} does not add up", kind.name())
            })?;
            check(tally.submitted > 0, || format!("{}: none", kind.name()))?;
        }
        check(self.accepted == self.connected, || {
            format!("{} of {} accepted", self.accepted, self.connected)
        })?;
        for flow in &self.flows {
            check(flow.arrived.at == flow.written, || {
                let (written, arrived) = (flow.written, flow.arrived.at);
                format!("{}: {arrived} of {written} bytes", flow.read.name())
            })?;
        }
        let racer = &self.racer;
        check(racer.arrived.at == racer.written, || {
            format!("{} of {} bytes", racer.arrived.at, racer.written)
        })?;
        let timed_out = report.tally[Kind::Timeout as usize].timed_out;
        check(timed_out > 0, || "nothing timed out".into())?;
        check(report.cancels_won > 0, || "no cancel was in time".into())?;
        check(report.cancels_lost > 0, || "no cancel was late".into())
    }
}
