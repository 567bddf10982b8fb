//! A file that answers as late as one wants: of a FUSE server in this process.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::fd::AsRawFd,
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use uaio_core::sync::atomic::{AtomicU64, Ordering};

use crate::reads::{BLOCK, block};

/// A file of blocks that carry their numbers, each of which takes its time. Every read
/// goes to the server: nothing is cached.
#[derive(Debug)]
pub struct Slow {
    file: File,
    delay: Arc<AtomicU64>,
}

/// What the server knows of requests: their numbers in the kernel's `linux/fuse.h`.
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const BATCH_FORGET: u32 = 42;
}

const ROOT: u64 = 1;
const FILE: u64 = 2;

impl Slow {
    /// A file of so many blocks. It is mounted in `folder` for a moment; once it is open
    /// it has no name any more, so nothing is left behind, however this ends. The server
    /// ends when nobody has the file open any more.
    ///
    /// # Errors
    ///
    /// What the system said: most users may not mount.
    pub fn new(folder: &Path, blocks: u64) -> io::Result<Self> {
        let mut device = OpenOptions::new();
        let device = device.read(true).write(true).open("/dev/fuse")?;
        // SAFETY: it always succeeds.
        let user = unsafe { libc::getuid() };
        let fd = device.as_raw_fd();
        let data = format!("fd={fd},rootmode=40000,user_id={user},group_id=0");
        let data = CString::new(data)?;
        let point = folder.join(format!("uaio-slow-{}", std::process::id()));
        fs::create_dir(&point)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let mounted = mount("uaio-slow", &point, "fuse", flags, data.as_c_str());
        let delay = Arc::new(AtomicU64::new(0));
        let file = mounted.map_err(io::Error::from).and_then(|()| {
            let server = Server {
                device,
                size: blocks * BLOCK as u64,
                delay: Arc::clone(&delay),
            };
            thread::spawn(move || server.serve());
            let file = File::open(point.join("blocks"));
            unmount(&point, UnmountFlags::DETACH)?;
            file
        });
        fs::remove_dir(&point)?;
        Ok(Self { file: file?, delay })
    }

    /// How long each read takes from now on, besides what it takes anyway.
    pub fn set_delay(&self, delay: Duration) {
        let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        // Ordering: Relaxed. The next read has it, or the one after.
        self.delay.store(nanos, Ordering::Relaxed);
    }

    /// The file.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn open(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

struct Server {
    device: File,
    size: u64,
    delay: Arc<AtomicU64>,
}

/// A `u32` or `u64` in a request, at this byte.
fn word<const N: usize>(request: &[u8], at: usize) -> [u8; N] {
    let bytes = request.get(at..at + N).unwrap_or(&[0; N]);
    bytes.try_into().unwrap_or([0; N])
}

impl Server {
    fn serve(mut self) {
        let mut request = vec![0; 1 << 17];
        loop {
            match self.device.read(&mut request) {
                Ok(n) => self.answer(&request[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // One that was taken back.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(_) => return,
            }
        }
    }

    /// The request begins with `{ len u32, opcode u32, unique u64, nodeid u64, .. }`, 40
    /// bytes in all; an answer with `{ len u32, error i32, unique u64 }`.
    fn answer(&mut self, request: &[u8]) {
        let opcode = u32::from_ne_bytes(word(request, 4));
        let unique = u64::from_ne_bytes(word(request, 8));
        let node = u64::from_ne_bytes(word(request, 16));
        let mut body = Vec::new();
        let error = match opcode {
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => return,
            opcode::INIT => {
                // Version 7.31, and all else as it comes.
                let words: [u32; 4] = [7, 31, 1 << 17, 0];
                body.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
                // Most in the background, and when that is congested; the longest write.
                body.extend([64_u16, 48].iter().flat_map(|word| word.to_ne_bytes()));
                body.extend(4096_u32.to_ne_bytes());
                body.resize(64, 0);
                0
            }
            opcode::LOOKUP if node == ROOT && request[40..].starts_with(b"blocks\0") => {
                // Node, generation, and how long both are valid: an hour.
                let words = [FILE, 0, 3600, 3600, 0];
                body.extend(words.iter().flat_map(|word: &u64| word.to_ne_bytes()));
                self.attributes(FILE, &mut body);
                0
            }
            opcode::LOOKUP => -libc::ENOENT,
            opcode::GETATTR => {
                body.extend([3600_u64, 0].iter().flat_map(|word| word.to_ne_bytes()));
                self.attributes(node, &mut body);
                0
            }
            opcode::OPEN => {
                // A handle, and FOPEN_DIRECT_IO.
                body.extend(0_u64.to_ne_bytes());
                body.extend(1_u64.to_ne_bytes());
                0
            }
            opcode::READ => {
                let at = u64::from_ne_bytes(word(request, 48));
                let len = u32::from_ne_bytes(word(request, 56)) as usize;
                // Ordering: Relaxed, as in `set_delay`.
                let delay = self.delay.load(Ordering::Relaxed);
                thread::sleep(Duration::from_nanos(delay));
                let blocks = at / BLOCK as u64..self.size / BLOCK as u64;
                body.extend(blocks.flat_map(block).take(len));
                0
            }
            opcode::STATFS => {
                body.resize(80, 0);
                0
            }
            opcode::RELEASE | opcode::FLUSH => 0,
            _ => -libc::ENOSYS,
        };
        let len = 16 + body.len() as u32;
        let mut answer = Vec::with_capacity(len as usize);
        answer.extend(len.to_ne_bytes());
        answer.extend(error.to_ne_bytes());
        answer.extend(unique.to_ne_bytes());
        answer.extend(body);
        // Whoever asked may be gone.
        let _ = self.device.write(&answer);
    }

    /// `{ ino, size, blocks, times [u64; 3], nsecs [u32; 3], mode, nlink, uid, gid, rdev,
    /// blksize, flags }`.
    fn attributes(&self, node: u64, to: &mut Vec<u8>) {
        let (mode, size) = match node {
            ROOT => (libc::S_IFDIR | 0o755, 0),
            _ => (libc::S_IFREG | 0o444, self.size),
        };
        let long = [node, size, size.div_ceil(512), 0, 0, 0];
        to.extend(long.iter().flat_map(|word| word.to_ne_bytes()));
        let short = [0, 0, 0, mode, 1, 0, 0, 0, BLOCK as u32, 0];
        to.extend(short.iter().flat_map(|word: &u32| word.to_ne_bytes()));
    }
}
