//! System calls on memory that is given by address.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr, slice,
    sync::{Mutex, MutexGuard, PoisonError},
};

use libc::{c_int, c_long, iovec};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec},
    fs::{FileType, Mode, OFlags},
    io::{ReadWriteFlags, retry_on_intr},
    mm::{self, Advice, MapFlags, ProtFlags},
    thread::Pid,
};
use uaio_core::{Errno, poll::event};

use crate::signals::SignalSet;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl Direction {
    /// What a stream has to be ready for.
    pub(crate) fn event(self) -> u16 {
        match self {
            Self::Read => event::IN,
            Self::Write => event::OUT,
        }
    }
}

/// The most vectors that one request may have; Linux's IOV_MAX.
pub(crate) const IOV_MAX: usize = 1024;

pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error()).unwrap_or(Errno::EIO)
}

/// Locks. The data is good after a panic, for none happens in the midst of it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that can be waited for.
pub(crate) const EVENTS: u16 = event::IN
    | event::PRI
    | event::OUT
    | event::ERR
    | event::HUP
    | event::RDNORM
    | event::RDBAND
    | event::WRNORM
    | event::WRBAND
    | event::RDHUP;

/// What of all [`event`]s a descriptor is ready for.
pub(crate) fn ready(fd: BorrowedFd<'_>) -> u16 {
    const NOW: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::from_borrowed_fd(
        fd,
        PollFlags::from_bits_retain(EVENTS),
    )];
    while rustix::event::poll(&mut polled, Some(&NOW)) == Err(rustix::io::Errno::INTR) {}
    let revents = polled[0].revents();
    if revents.contains(PollFlags::NVAL) {
        return event::ERR;
    }
    revents.bits()
}

/// How a stream is read and written without blocking, whatever its own flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    /// By the flag of a socket's own calls.
    Socket,
    /// It is set not to block.
    Plain,
    /// By the flag of `preadv2`.
    Nowait,
}

/// Whether a call may say that it must not wait.
pub(crate) fn can_ask_not_to_wait() -> bool {
    const NONE: c_int = -1;
    let (nothing, flags) = (ptr::null::<iovec>(), libc::RWF_NOWAIT);
    // SAFETY: no memory is passed.
    let read = unsafe { libc::syscall(libc::SYS_preadv2, NONE, nothing, 0, 0, 0, flags) };
    // There is no such file: so it was looked for.
    checked(read).err() == Some(Errno::EBADF)
}

/// What a call returned, unless that says that it failed.
fn checked(returned: c_long) -> Result<c_long, Errno> {
    if returned < 0 {
        Err(last_errno())
    } else {
        Ok(returned)
    }
}

fn last_errno() -> Errno {
    let number = io::Error::last_os_error().raw_os_error();
    number.and_then(Errno::from_raw).unwrap_or(Errno::EIO)
}

/// One `preadv` or `pwritev`, repeated only while a signal interrupts it; with
/// `nowait` their sisters that answer EAGAIN rather than wait. Without an offset where
/// the file's position is, and moving that.
///
/// The plain calls are not those with flags zero: a policy that forbids the
/// latter still lets these pass. And all are made by number, since not every C
/// library has the latter.
///
/// # Safety
///
/// Each vector's memory is valid, and nobody else's, for the time of the call:
/// for writes when reading, for reads when writing.
// Inlined, and so is what calls it, up to the loop of a submission: behind a system call
// the processor predicts no return, since the kernel has used up what it knew of them.
// The least return there costs more than all that this does.
#[inline(always)]
pub(crate) unsafe fn transfer(
    fd: BorrowedFd<'_>,
    direction: Direction,
    vectors: &mut [iovec],
    offset: Option<i64>,
    nowait: bool,
) -> Result<usize, Errno> {
    const NOWAIT: ReadWriteFlags = ReadWriteFlags::NOWAIT;
    let n = vectors.len();
    // What stands for the position.
    let at = offset.map_or(u64::MAX, i64::cast_unsigned);
    let moved = match direction {
        Direction::Read => {
            let vectors = vectors.as_mut_ptr().cast::<IoSliceMut<'_>>();
            // SAFETY: of the same layout, as the type says, borrowed exclusively; their
            // memory is the caller's promise.
            let vectors = unsafe { slice::from_raw_parts_mut(vectors, n) };
            retry_on_intr(|| match offset {
                _ if nowait => rustix::io::preadv2(fd, vectors, at, NOWAIT),
                Some(_) => rustix::io::preadv(fd, vectors, at),
                None => rustix::io::readv(fd, vectors),
            })
        }
        Direction::Write => {
            let vectors = vectors.as_ptr().cast::<IoSlice<'_>>();
            // SAFETY: as above.
            let vectors = unsafe { slice::from_raw_parts(vectors, n) };
            retry_on_intr(|| match offset {
                _ if nowait => rustix::io::pwritev2(fd, vectors, at, NOWAIT),
                Some(_) => rustix::io::pwritev(fd, vectors, at),
                None => rustix::io::writev(fd, vectors),
            })
        }
    };
    moved.map_err(errno)
}

/// Calls until no signal interrupts it.
fn retry(mut call: impl FnMut() -> c_long) -> Result<usize, Errno> {
    loop {
        let moved = call();
        if moved >= 0 {
            return Ok(moved as usize);
        }
        match last_errno() {
            Errno::EINTR => {}
            errno => return Err(errno),
        }
    }
}

/// A socket's own call, which does not block whatever its flags are.
///
/// # Safety
///
/// As of [`transfer`].
pub(crate) unsafe fn message(
    fd: BorrowedFd<'_>,
    direction: Direction,
    vectors: &[iovec],
) -> Result<usize, Errno> {
    // SAFETY: zero is a value of each of its fields.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = vectors.as_ptr().cast_mut();
    header.msg_iovlen = vectors.len() as _;
    let fd: c_int = fd.as_raw_fd();
    retry(|| {
        let moved = match direction {
            // SAFETY: the vectors are there, and their memory is the caller's promise.
            Direction::Read => unsafe { libc::recvmsg(fd, &mut header, libc::MSG_DONTWAIT) },
            Direction::Write => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: as above.
                unsafe { libc::sendmsg(fd, &header, flags) }
            }
        };
        moved as c_long
    })
}

/// Writes a range of a file to its device, or waits for that, as the flags say. The
/// numbers are at most `i64::MAX`.
pub(crate) fn sync_file_range(
    fd: BorrowedFd<'_>,
    offset: u64,
    len: u64,
    flags: u32,
) -> rustix::io::Result<()> {
    let (offset, len) = (offset.cast_signed(), len.cast_signed());
    // SAFETY: no memory is passed.
    match unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, flags) } {
        0 => Ok(()),
        _ => Err(
            rustix::io::Errno::from_io_error(&io::Error::last_os_error())
                .unwrap_or(rustix::io::Errno::IO),
        ),
    }
}

/// Of a stream that cannot be tried: asks whether it is ready, and then does what ought
/// not to block; EAGAIN if it is not. It blocks if somebody else is faster.
///
/// # Safety
///
/// As of [`transfer`].
pub(crate) unsafe fn when_ready(
    fd: BorrowedFd<'_>,
    direction: Direction,
    vectors: &mut [iovec],
) -> Result<usize, Errno> {
    if ready(fd) & (direction.event() | event::ERR | event::HUP) == 0 {
        return Err(Errno::EAGAIN);
    }
    // Without a call of its own for several, the kernel reads one after the other.
    let first = vectors.iter().position(|v| v.iov_len > 0).unwrap_or(0);
    let Some(first) = vectors.get(first) else {
        // SAFETY: the same promise.
        return unsafe { transfer(fd, direction, vectors, None, false) };
    };
    let mut one = [*first];
    if direction == Direction::Read {
        // SAFETY: the same promise.
        return unsafe { transfer(fd, direction, &mut one, None, false) };
    }
    if first.iov_len >= mem::size_of::<u64>()
        && let Some(count) = eventfd_count(fd)
    {
        // SAFETY: as long as that, and the caller's promise.
        let more = unsafe { first.iov_base.cast::<u64>().read_unaligned() };
        // Ready means that one fits.
        if more != u64::MAX && u64::MAX - count <= more {
            return Err(Errno::EAGAIN);
        }
        // SAFETY: the same promise.
        return unsafe { transfer(fd, direction, &mut one, None, false) };
    }
    // A message goes out whole.
    let Some(room) = ready_for(fd) else {
        // SAFETY: the same promise.
        return unsafe { transfer(fd, direction, vectors, None, false) };
    };
    one[0].iov_len = first.iov_len.min(room);
    // SAFETY: the same promise; no more than there is.
    unsafe { transfer(fd, direction, &mut one, None, false) }
}

/// How many bytes a stream of bytes takes when it is ready to be written; `None` if it
/// is none, or is not known.
fn ready_for(fd: BorrowedFd<'_>) -> Option<usize> {
    if is_fifo(fd) {
        return Some(libc::PIPE_BUF);
    }
    // Below which the kernel says that it is ready; a byte can become two.
    rustix::termios::isatty(fd).then_some(128)
}

fn is_fifo(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo())
}

/// The counter of an eventfd; of nothing else.
fn eventfd_count(fd: BorrowedFd<'_>) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let count = info
        .lines()
        .find_map(|line| line.strip_prefix("eventfd-count:"))?;
    u64::from_str_radix(count.trim(), 16).ok()
}

/// Another opening of a pipe or a terminal, set not to block: that flag is of the
/// opening, which others may have, too. Not of a pseudo-terminal's master side, of which
/// each opening is another terminal.
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Option<OwnedFd> {
    let stat = rustix::fs::fstat(fd).ok()?;
    let master = stat.st_rdev == rustix::fs::makedev(5, 2);
    if !is_fifo(fd) && (master || !rustix::termios::isatty(fd)) {
        return None;
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = flags & OFlags::ACCMODE | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let other = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let is = rustix::fs::fstat(&other).ok()?;
    let same = (is.st_rdev, is.st_ino, is.st_dev) == (stat.st_rdev, stat.st_ino, stat.st_dev);
    same.then_some(other)
}

/// Tells a process from those that it forks. There, what threads share is a copy without
/// the threads: locked perhaps by one that is not there, and with descriptors of what is
/// the other process's still.
///
/// It is a word in a page of its own that the kernel clears in a forked process, which
/// costs nobody a system call who asks. (Linux before 4.14 does not do that, and is not
/// asked to; nor is one with vfork, which shares the memory.)
#[derive(Debug)]
pub(crate) struct Origin(*mut u64);

// SAFETY: the memory is written by `new` only, and given back by `drop`.
unsafe impl Send for Origin {}
// SAFETY: as above.
unsafe impl Sync for Origin {}

/// As much as is mapped: a page, whatever its size is.
const WORD: usize = size_of::<u64>();

impl Origin {
    /// The calling process.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub(crate) fn new() -> Result<Self, Errno> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: new memory, where there is room for it.
        let page = unsafe { mm::mmap_anonymous(ptr::null_mut(), WORD, protection, flags) };
        let page = page.map_err(errno)?;
        let this = Self(page.cast());
        // SAFETY: mapped, writable, aligned to a page, and nobody else's yet.
        unsafe { this.0.write(1) };
        // An old kernel cannot: then a forked process is not told apart.
        let _ = this.is_wiped();
        Ok(this)
    }

    /// Has the kernel clear it, if it can.
    pub(crate) fn is_wiped(&self) -> bool {
        // SAFETY: mapped, and what a forked process finds in it is for it to read.
        unsafe { mm::madvise(self.0.cast(), WORD, Advice::LinuxWipeOnFork) }.is_ok()
    }

    /// Whether the calling process is one that was forked since.
    pub(crate) fn is_other(&self) -> bool {
        // Volatile: that it changes by a fork the compiler does not know.
        //
        // SAFETY: mapped until it is dropped. No thread writes it: the kernel clears it in
        // a process that has one thread yet, whose next step is after that.
        unsafe { self.0.read_volatile() == 0 }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody's any more.
        let _ = unsafe { mm::munmap(self.0.cast(), WORD) };
    }
}

/// Closes a descriptor, of which the owner is left as it is, for ever.
///
/// # Safety
///
/// The owner is not dropped, and nobody uses it, in this process.
pub(crate) unsafe fn close(owned: &OwnedFd) {
    // SAFETY: it is open, and by the contract as good as the caller's.
    unsafe { rustix::io::close(owned.as_raw_fd()) };
}

/// Blocks all signals of the calling thread until it is dropped: a thread that
/// is spawned meanwhile starts that way, and stays so.
pub(crate) struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        let mut all = std::mem::MaybeUninit::uninit();
        let mut before = std::mem::MaybeUninit::uninit();
        // SAFETY: it is given a set to write.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: a valid set, and one to write. The call fails for a bad
        // first argument only.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: written by the call above.
        Self(unsafe { before.assume_init() })
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: a set that was this thread's mask.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// Lets a signal into the calling thread until it is dropped; that is to be there, by a
/// thread that has [blocked](SignalsBlocked) all of them.
pub(crate) struct SignalLetIn(SignalSet);

impl SignalLetIn {
    pub(crate) fn new(signo: c_int) -> Self {
        let mut set = SignalSet::empty();
        // It was checked to be one.
        let _ = set.insert(signo);
        let this = Self(set);
        this.set(libc::SIG_UNBLOCK);
        this
    }

    fn set(&self, how: c_int) {
        // SAFETY: a set, and none to write. It fails for a bad first argument only.
        unsafe { libc::pthread_sigmask(how, self.0.as_raw(), ptr::null_mut()) };
    }
}

impl Drop for SignalLetIn {
    fn drop(&mut self) {
        self.set(libc::SIG_BLOCK);
    }
}

/// Has a real-time signal do nothing but end system calls, in all of the process, and for
/// ever.
///
/// # Errors
///
/// EINVAL: it is none. EBUSY: somebody else handles it, or ignores it.
pub(crate) fn handle_by_nothing(signo: c_int) -> Result<(), Errno> {
    extern "C" fn nothing(_: c_int) {}
    let nothing = nothing as extern "C" fn(c_int) as usize;
    if !(libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signo) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: zero is a value of each of its fields.
    let mut before: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: nothing to set, and a structure to write.
    let asked = unsafe { libc::sigaction(signo, ptr::null(), &raw mut before) };
    checked(asked.into())?;
    if before.sa_sigaction == nothing {
        return Ok(());
    }
    if before.sa_sigaction != libc::SIG_DFL {
        return Err(errno(rustix::io::Errno::BUSY));
    }
    // SAFETY: zero is a value of each of its fields: no flags, and an empty mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // Not SA_RESTART: that is the point.
    action.sa_flags = libc::SA_ONSTACK;
    action.sa_sigaction = nothing;
    // SAFETY: a handler that may be called at any time, and a null pointer.
    let set = unsafe { libc::sigaction(signo, &raw const action, ptr::null_mut()) };
    checked(set.into()).map(drop)
}

/// Sends a signal to a thread of this process.
///
/// # Errors
///
/// EAGAIN: there are as many pending as there may be. ESRCH: there is no such thread.
pub(crate) fn tgkill(thread: Pid, signo: c_int) -> Result<(), Errno> {
    let (process, thread) = (std::process::id(), thread.as_raw_nonzero().get());
    // SAFETY: no memory is passed.
    checked(unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signo) }).map(drop)
}

/// What a signal carries: `siginfo_t`, as a completion fills it.
#[repr(C)]
struct Info {
    signo: c_int,
    errno: c_int,
    code: c_int,
    pad: c_int,
    pid: c_int,
    uid: libc::uid_t,
    value: u64,
    rest: [u64; 12],
}
static_assertions::const_assert_eq!(size_of::<Info>(), size_of::<libc::siginfo_t>());

/// `SI_ASYNCIO`.
const ASYNCIO: c_int = -4;
/// `PIDFD_THREAD`.
const THREAD: c_int = libc::O_EXCL;

/// A descriptor for a process, or a thread.
pub(crate) fn pidfd_open(id: c_int, thread: bool) -> Result<OwnedFd, Errno> {
    let flags = if thread { THREAD } else { 0 };
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) };
    let fd = checked(fd)?;
    // SAFETY: just opened, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Whether what it is for is there.
///
/// # Errors
///
/// ESRCH: it is gone.
pub(crate) fn pidfd_exists(pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    send(pidfd, 0, ptr::null())
}

/// Sends a signal, with a value, that says that a completion is the reason.
///
/// # Errors
///
/// EAGAIN: there are as many pending as there may be. ESRCH: who would get it is gone.
pub(crate) fn pidfd_send_signal(
    pidfd: BorrowedFd<'_>,
    signo: c_int,
    value: u64,
) -> Result<(), Errno> {
    let info = Info {
        signo,
        errno: 0,
        code: ASYNCIO,
        pad: 0,
        pid: std::process::id().cast_signed(),
        // SAFETY: it always succeeds.
        uid: unsafe { libc::getuid() },
        value,
        rest: [0; 12],
    };
    send(pidfd, signo, &raw const info)
}

fn send(pidfd: BorrowedFd<'_>, signo: c_int, info: *const Info) -> Result<(), Errno> {
    // SAFETY: the information is null, or there until the call returns.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signo,
            info,
            0,
        )
    };
    checked(sent).map(drop)
}

/// Whether a thread of this process has this number.
///
/// # Errors
///
/// ESRCH: none has.
pub(crate) fn own_thread_exists(tid: c_int) -> Result<(), Errno> {
    let process = std::process::id();
    // SAFETY: no memory is passed, and no signal sent.
    checked(unsafe { libc::syscall(libc::SYS_tgkill, process, tid, 0) }).map(drop)
}

/// Adds one to the counter of an eventfd, without waiting if nobody else does meanwhile;
/// or nothing, if it is `merging`, and readable.
///
/// # Errors
///
/// EAGAIN: it is as high as it can be.
pub(crate) fn add_one(eventfd: BorrowedFd<'_>, merging: bool) -> Result<(), Errno> {
    let ready = ready(eventfd);
    if merging && ready & event::IN != 0 {
        return Ok(());
    }
    // It may be one that blocks.
    if ready & event::OUT == 0 {
        return Err(Errno::EAGAIN);
    }
    let written = retry_on_intr(|| rustix::io::write(eventfd, &1_u64.to_ne_bytes()));
    written.map(drop).map_err(errno)
}

/// What ends a sleep: an eventfd.
///
/// # Errors
///
/// EMFILE, ENFILE, ENOMEM.
pub(crate) fn bell() -> Result<OwnedFd, Errno> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(errno)
}

/// Makes it readable.
pub(crate) fn ring(bell: BorrowedFd<'_>) {
    // It cannot fail but by being rung 2^64 times.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

/// Makes it not readable.
pub(crate) fn hush(bell: BorrowedFd<'_>) {
    // It fails if it was not.
    let _ = rustix::io::read(bell, &mut [0; 8]);
}

/// Waits until `fd` is readable or the time is up, with this mask for as long as it waits.
///
/// # Errors
///
/// EINTR: a signal that the mask let in was handled before.
pub(crate) fn poll_with(
    fd: BorrowedFd<'_>,
    time: Option<&Timespec>,
    mask: &SignalSet,
) -> Result<(), Errno> {
    let mut polled = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let time = time.map(|time| libc::timespec {
        tv_sec: time.tv_sec,
        tv_nsec: time.tv_nsec,
    });
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: one descriptor to poll; a time or none; a mask.
    let n = unsafe { libc::ppoll(&raw mut polled, 1, time, mask.as_raw()) };
    match n {
        // Anything else cannot be of such arguments, but for ENOMEM: then the caller looks.
        -1 if last_errno() == Errno::EINTR => Err(Errno::EINTR),
        _ => Ok(()),
    }
}
