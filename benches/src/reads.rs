//! Random reads of blocks of a file: the engine, and its rivals at the same work.
//!
//! A reader gets the numbers of some blocks and reads them all, at once as far as it can,
//! into buffers that it has. Each block of the file carries its number, and each reader
//! looks whether it got the block that it asked for; so the time for that is in each
//! figure alike.

use std::{
    ffi::c_void,
    fmt,
    fs::{File, OpenOptions},
    io::{self, IoSliceMut, Read, SeekFrom, Write},
    mem,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use blocking::Task;
use futures_lite::future::block_on;
use rustix::{
    io::ReadWriteFlags,
    mm::{MapFlags, ProtFlags},
};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    runtime::{self, Runtime},
    task::JoinHandle,
};
use uaio::{Completion, Context, Iocb, Op};

/// How long a block is, in bytes.
pub const BLOCK: usize = 4096;

/// A file of blocks, each of which carries its number all over. Removed at the end.
#[derive(Debug)]
pub struct Blocks {
    file: NamedTempFile,
    count: u64,
    pinned: Option<Pinned>,
}

/// A mapping that keeps a file in the page cache, where the system takes out early what it
/// believes to be cold.
#[derive(Debug)]
struct Pinned {
    at: *mut c_void,
    len: usize,
}

impl Pinned {
    /// `None`: the system does not let this user lock so much memory.
    fn new(file: &File, len: usize) -> Option<Self> {
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: where the system wants it; nobody looks at it.
        let at = unsafe { rustix::mm::mmap(ptr::null_mut(), len, read, shared, file, 0) }.ok()?;
        let this = Self { at, len };
        // SAFETY: the mapping that was just made.
        unsafe { rustix::mm::mlock(at, len) }.ok()?;
        Some(this)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made, and nobody looks at it.
        let _ = unsafe { rustix::mm::munmap(self.at, self.len) };
    }
}

impl Blocks {
    /// A file of so many blocks in `folder`: on the disk, and in the page cache.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn new(folder: &Path, count: u64) -> io::Result<Self> {
        let mut file = NamedTempFile::new_in(folder)?;
        let mut blocks = Vec::new();
        for number in 0..count {
            blocks.extend(block(number));
            if blocks.len() == 256 * BLOCK || number + 1 == count {
                file.write_all(&blocks)?;
                blocks.clear();
            }
        }
        // Written back now, and not while somebody measures.
        file.as_file().sync_all()?;
        let pinned = Pinned::new(file.as_file(), count as usize * BLOCK);
        let blocks = Self {
            file,
            count,
            pinned,
        };
        blocks.warm()?;
        Ok(blocks)
    }

    /// Whether the page cache has it for sure.
    pub fn is_pinned(&self) -> bool {
        self.pinned.is_some()
    }

    /// Reads it all, so that the page cache has it.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn warm(&self) -> io::Result<()> {
        let mut file = self.open(0)?;
        let mut some = vec![0; 256 * BLOCK];
        while file.read(&mut some)? > 0 {}
        Ok(())
    }

    /// Another opening of it, to be read, with these flags of `open` besides.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn open(&self, flags: i32) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags);
        options.open(self.file.path())
    }

    /// The numbers of `n` blocks, at random; the same ones for the same seed.
    pub fn at_random(&self, seed: u64, n: usize) -> Vec<u64> {
        let mut state = seed;
        let numbers = std::iter::repeat_with(|| {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        numbers.take(n).map(|number| number % self.count).collect()
    }
}

/// The block with this number.
pub fn block(number: u64) -> impl Iterator<Item = u8> {
    (0..BLOCK / 8).flat_map(move |_| number.to_ne_bytes())
}

/// Looks at both ends.
#[inline]
fn check(buf: &[u8], number: u64) {
    let number = number.to_ne_bytes();
    assert_eq!(buf.len(), BLOCK, "short");
    assert_eq!(buf[..8], number, "another block");
    assert_eq!(buf[BLOCK - 8..], number, "another block");
}

/// Reads blocks of a file.
pub trait Reader {
    /// Reads the blocks with these numbers, no more than it was made for, and looks at
    /// each.
    fn round(&mut self, numbers: &[u64]);
}

/// Reads all blocks with these numbers, `depth` at a time, and tells how long that took.
pub fn turn(reader: &mut dyn Reader, numbers: &[u64], depth: usize) -> Duration {
    let start = Instant::now();
    for numbers in numbers.chunks(depth) {
        reader.round(numbers);
    }
    start.elapsed()
}

fn offset(number: u64) -> u64 {
    number * BLOCK as u64
}

/// Where a block is read to.
#[derive(Debug)]
struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// As a user has it; with `aligned` as O_DIRECT wants it.
    fn new(aligned: bool) -> Self {
        let memory = vec![0; if aligned { 2 * BLOCK } else { BLOCK }];
        let start = match aligned {
            true => memory.as_ptr().align_offset(BLOCK),
            false => 0,
        };
        Self { memory, start }
    }

    fn some(n: usize, aligned: bool) -> Vec<Self> {
        std::iter::repeat_with(|| Self::new(aligned))
            .take(n)
            .collect()
    }

    fn get(&self) -> &[u8] {
        &self.memory[self.start..][..BLOCK]
    }

    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..BLOCK]
    }
}

/// Looks at what was read, when all of it was.
fn check_all<'b>(bufs: impl IntoIterator<Item = &'b [u8]>, numbers: &[u64]) {
    for (buf, number) in bufs.into_iter().zip(numbers) {
        check(buf, *number);
    }
}

/// One `pread` after the other, as the standard library makes it.
#[derive(Debug)]
pub struct Plain {
    file: File,
    bufs: Vec<Buffer>,
}

impl Plain {
    /// Of this file; for O_DIRECT `aligned`.
    pub fn new(file: File, depth: usize, aligned: bool) -> Self {
        Self {
            file,
            bufs: Buffer::some(depth, aligned),
        }
    }
}

impl Reader for Plain {
    fn round(&mut self, numbers: &[u64]) {
        for (buf, number) in self.bufs.iter_mut().zip(numbers) {
            let read = self.file.read_at(buf.get_mut(), offset(*number));
            assert_eq!(read.expect("a read"), BLOCK);
        }
        check_all(self.bufs.iter().map(Buffer::get), numbers);
    }
}

/// One `preadv2` after the other that answers EAGAIN rather than wait, made without the C
/// library: the floor of whoever reads what is cached and must not block.
#[derive(Debug)]
pub struct Nowait {
    file: File,
    bufs: Vec<Buffer>,
}

impl Nowait {
    /// Of this file.
    pub fn new(file: File, depth: usize) -> Self {
        Self {
            file,
            bufs: Buffer::some(depth, false),
        }
    }
}

impl Reader for Nowait {
    fn round(&mut self, numbers: &[u64]) {
        for (buf, number) in self.bufs.iter_mut().zip(numbers) {
            let mut vectors = [IoSliceMut::new(buf.get_mut())];
            let (at, flags) = (offset(*number), ReadWriteFlags::NOWAIT);
            let read = rustix::io::preadv2(&self.file, &mut vectors, at, flags);
            assert_eq!(read, Ok(BLOCK));
        }
        check_all(self.bufs.iter().map(Buffer::get), numbers);
    }
}

/// This engine, as its user has it: requests that are submitted again when they come back,
/// with the buffers that they have.
#[derive(Debug)]
pub struct Uaio {
    context: Context,
    ops: Vec<Op>,
    events: Vec<Completion>,
}

impl Uaio {
    /// Of this file; with `offload` by workers all.
    pub fn new(file: File, depth: usize, offload: bool) -> Self {
        let file = uaio::File::new(file).expect("a file");
        let ops = (0..depth).map(|n| {
            let op = Op::pread(&file, vec![0; BLOCK], 0).data(n as u64);
            if offload { op.offload() } else { op }
        });
        Self {
            context: Context::new(depth).expect("a context"),
            ops: ops.collect(),
            events: Vec::with_capacity(depth),
        }
    }
}

impl Reader for Uaio {
    fn round(&mut self, numbers: &[u64]) {
        let n = numbers.len();
        for (op, number) in self.ops.iter_mut().zip(numbers) {
            op.set_offset(offset(*number));
        }
        assert_eq!(self.context.submit(&mut self.ops[..n]), Ok(n));
        assert_eq!(self.context.getevents(n, n, None, &mut self.events), Ok(n));
        for done in self.events.drain(..) {
            assert_eq!(done.result, Ok(BLOCK));
            let nth = done.data as usize;
            check(done.op.buf(), numbers[nth]);
            self.ops[nth] = done.op;
        }
    }
}

/// This engine, by requests by address: for memory that has to be aligned.
#[derive(Debug)]
pub struct UaioRaw {
    context: Context,
    file: File,
    bufs: Vec<Buffer>,
    iocbs: Vec<Iocb>,
    events: Vec<Completion>,
}

impl UaioRaw {
    /// Of this file, into memory as O_DIRECT wants it.
    pub fn new(file: File, depth: usize) -> Self {
        Self {
            context: Context::new(depth).expect("a context"),
            file,
            bufs: Buffer::some(depth, true),
            iocbs: Vec::with_capacity(depth),
            events: Vec::with_capacity(depth),
        }
    }
}

impl Reader for UaioRaw {
    fn round(&mut self, numbers: &[u64]) {
        let n = numbers.len();
        let fd = self.file.as_raw_fd();
        self.iocbs.clear();
        for (buf, number) in self.bufs.iter_mut().zip(numbers) {
            let (at, to) = (offset(*number) as i64, buf.get_mut().as_mut_ptr());
            self.iocbs.push(Iocb::new(Iocb::PREAD, fd, to, BLOCK, at));
        }
        // SAFETY: file and buffers are here until all have completed, which is waited
        // for below.
        let submitted = unsafe { self.context.submit_raw(&mut self.iocbs) };
        assert_eq!(submitted, Ok(n));
        assert_eq!(self.context.getevents(n, n, None, &mut self.events), Ok(n));
        for done in self.events.drain(..) {
            assert_eq!(done.result, Ok(BLOCK));
        }
        check_all(self.bufs.iter().map(Buffer::get), numbers);
    }
}

/// The kernel's AIO, by its system calls: `io_submit`, and `io_getevents`.
#[derive(Debug)]
pub struct KernelAio {
    context: u64,
    file: File,
    bufs: Vec<Buffer>,
    iocbs: Vec<libc::iocb>,
    events: Vec<Event>,
}

/// `struct io_event`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

impl KernelAio {
    /// Of this file; for O_DIRECT `aligned`.
    ///
    /// # Errors
    ///
    /// What `io_setup` said.
    pub fn new(file: File, depth: usize, aligned: bool) -> io::Result<Self> {
        let mut context = 0_u64;
        // SAFETY: it is given a word to write.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
        if made != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            context,
            file,
            bufs: Buffer::some(depth, aligned),
            iocbs: Vec::with_capacity(depth),
            events: vec![Event::default(); depth],
        })
    }
}

impl Reader for KernelAio {
    fn round(&mut self, numbers: &[u64]) {
        let n = numbers.len();
        self.iocbs.clear();
        for (buf, number) in self.bufs.iter_mut().zip(numbers) {
            // SAFETY: zero is a value of each of its fields, and of opcode PREAD.
            let mut iocb: libc::iocb = unsafe { mem::zeroed() };
            iocb.aio_fildes = self.file.as_raw_fd() as u32;
            iocb.aio_buf = buf.get_mut().as_mut_ptr() as u64;
            iocb.aio_nbytes = BLOCK as u64;
            iocb.aio_offset = offset(*number) as i64;
            self.iocbs.push(iocb);
        }
        let mut list = [ptr::null_mut(); 64];
        for (place, iocb) in list.iter_mut().zip(&mut self.iocbs) {
            *place = ptr::from_mut(iocb);
        }
        let (context, submit) = (self.context, libc::SYS_io_submit);
        // SAFETY: `n` iocbs, whose memory is here until all have completed, which is waited
        // for below.
        let submitted = unsafe { libc::syscall(submit, context, n, list.as_mut_ptr()) };
        assert_eq!(submitted, n as i64, "{}", io::Error::last_os_error());
        let (events, get) = (self.events.as_mut_ptr(), libc::SYS_io_getevents);
        let forever = ptr::null_mut::<libc::timespec>();
        // SAFETY: there is room for `n` events.
        let got = unsafe { libc::syscall(get, context, n, n, events, forever) };
        assert_eq!(got, n as i64, "{}", io::Error::last_os_error());
        for event in &self.events[..n] {
            assert_eq!(event.res, BLOCK as i64);
        }
        check_all(self.bufs.iter().map(Buffer::get), numbers);
    }
}

impl Drop for KernelAio {
    fn drop(&mut self) {
        // SAFETY: no memory is passed; nothing is under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

/// glibc's POSIX AIO: `aio_read` for each, and `aio_suspend`; or `lio_listio`, its call for
/// many at once.
pub struct GlibcAio {
    listed: bool,
    file: File,
    bufs: Vec<Buffer>,
    blocks: Vec<libc::aiocb>,
}

impl fmt::Debug for GlibcAio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GlibcAio").finish_non_exhaustive()
    }
}

impl GlibcAio {
    /// Of this file; with `listed` by the call for many.
    pub fn new(file: File, depth: usize, listed: bool) -> Self {
        Self {
            listed,
            file,
            bufs: Buffer::some(depth, false),
            blocks: Vec::with_capacity(depth),
        }
    }
}

impl Reader for GlibcAio {
    fn round(&mut self, numbers: &[u64]) {
        self.blocks.clear();
        for (buf, number) in self.bufs.iter_mut().zip(numbers) {
            // SAFETY: zero is a value of each of its fields.
            let mut block: libc::aiocb = unsafe { mem::zeroed() };
            block.aio_fildes = self.file.as_raw_fd();
            block.aio_lio_opcode = libc::LIO_READ;
            block.aio_buf = buf.get_mut().as_mut_ptr().cast();
            block.aio_nbytes = BLOCK;
            block.aio_offset = offset(*number) as i64;
            block.aio_sigevent.sigev_notify = libc::SIGEV_NONE;
            self.blocks.push(block);
        }
        let mut list = [ptr::null_mut(); 64];
        for (place, block) in list.iter_mut().zip(&mut self.blocks) {
            *place = ptr::from_mut(block);
        }
        let list = &list[..numbers.len()];
        if self.listed {
            let (at, n) = (list.as_ptr(), list.len() as i32);
            // SAFETY: `n` blocks, and their memory, which it waits for.
            let done = unsafe { libc::lio_listio(libc::LIO_WAIT, at, n, ptr::null_mut()) };
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
        } else {
            for block in list {
                // SAFETY: a block and its memory, which are here until it is waited for.
                let begun = unsafe { libc::aio_read(*block) };
                assert_eq!(begun, 0, "{}", io::Error::last_os_error());
            }
        }
        for block in list {
            // SAFETY: it is one of the above.
            while unsafe { libc::aio_error(*block) } == libc::EINPROGRESS {
                let one = ptr::from_ref(block).cast();
                // SAFETY: as above. If a signal ends it, it is looked at again.
                unsafe { libc::aio_suspend(one, 1, ptr::null()) };
            }
            // SAFETY: as above, and complete.
            assert_eq!(unsafe { libc::aio_return(*block) }, BLOCK as isize);
        }
        check_all(self.bufs.iter().map(Buffer::get), numbers);
    }
}

/// The crate `blocking`: a `pread` on its pool for each.
#[derive(Debug)]
pub struct Blocking {
    file: Arc<File>,
    bufs: Vec<Vec<u8>>,
    tasks: Vec<Task<Vec<u8>>>,
}

/// On another thread.
fn read_there(file: &File, mut buf: Vec<u8>, number: u64) -> Vec<u8> {
    let read = file.read_at(&mut buf, offset(number));
    assert_eq!(read.expect("a read"), BLOCK);
    buf
}

fn unaligned(depth: usize) -> Vec<Vec<u8>> {
    vec![vec![0; BLOCK]; depth]
}

impl Blocking {
    /// Of this file.
    pub fn new(file: File, depth: usize) -> Self {
        Self {
            file: Arc::new(file),
            bufs: unaligned(depth),
            tasks: Vec::with_capacity(depth),
        }
    }
}

impl Reader for Blocking {
    fn round(&mut self, numbers: &[u64]) {
        for (buf, &number) in self.bufs.drain(..numbers.len()).zip(numbers) {
            let file = Arc::clone(&self.file);
            let read = move || read_there(&file, buf, number);
            self.tasks.push(blocking::unblock(read));
        }
        for (task, number) in self.tasks.drain(..).zip(numbers) {
            let buf = block_on(task);
            check(&buf, *number);
            self.bufs.push(buf);
        }
    }
}

/// tokio's `spawn_blocking`: a `pread` on its pool for each.
#[derive(Debug)]
pub struct SpawnBlocking {
    runtime: Runtime,
    file: Arc<File>,
    bufs: Vec<Vec<u8>>,
    tasks: Vec<JoinHandle<Vec<u8>>>,
}

fn one_thread() -> Runtime {
    runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
}

impl SpawnBlocking {
    /// Of this file.
    pub fn new(file: File, depth: usize) -> Self {
        Self {
            runtime: one_thread(),
            file: Arc::new(file),
            bufs: unaligned(depth),
            tasks: Vec::with_capacity(depth),
        }
    }
}

impl Reader for SpawnBlocking {
    fn round(&mut self, numbers: &[u64]) {
        self.runtime.block_on(async {
            for (buf, &number) in self.bufs.drain(..numbers.len()).zip(numbers) {
                let file = Arc::clone(&self.file);
                let read = move || read_there(&file, buf, number);
                self.tasks.push(tokio::task::spawn_blocking(read));
            }
            for (task, number) in self.tasks.drain(..).zip(numbers) {
                let buf = task.await.expect("no panic");
                check(&buf, *number);
                self.bufs.push(buf);
            }
        });
    }
}

/// `tokio::fs::File`: an opening for each that is under way, since it has one position.
#[derive(Debug)]
pub struct TokioFile {
    runtime: Runtime,
    files: Vec<(tokio::fs::File, Vec<u8>)>,
    tasks: Vec<JoinHandle<(tokio::fs::File, Vec<u8>)>>,
}

impl TokioFile {
    /// Of these openings of one file.
    pub fn new(files: impl IntoIterator<Item = File>) -> Self {
        let files = files.into_iter().map(tokio::fs::File::from_std);
        let files: Vec<_> = files.map(|file| (file, vec![0; BLOCK])).collect();
        Self {
            runtime: one_thread(),
            tasks: Vec::with_capacity(files.len()),
            files,
        }
    }
}

impl Reader for TokioFile {
    fn round(&mut self, numbers: &[u64]) {
        self.runtime.block_on(async {
            for ((mut file, mut buf), &number) in self.files.drain(..numbers.len()).zip(numbers) {
                self.tasks.push(tokio::spawn(async move {
                    let at = file.seek(SeekFrom::Start(offset(number))).await;
                    assert_eq!(at.expect("a seek"), offset(number));
                    file.read_exact(&mut buf).await.expect("a read");
                    (file, buf)
                }));
            }
            for (task, number) in self.tasks.drain(..).zip(numbers) {
                let (file, buf) = task.await.expect("no panic");
                check(&buf, *number);
                self.files.push((file, buf));
            }
        });
    }
}
