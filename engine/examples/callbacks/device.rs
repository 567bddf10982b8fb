//! A block device in a file.

use std::io;

use uaio::{Callback, Errno, File, Op};

pub(crate) const BLOCK: usize = 4096;

/// The device: cheap to clone.
#[derive(Clone)]
pub(crate) struct Device {
    file: File,
    pub(crate) blocks: u64,
}

/// What became of a block request: the block's bytes.
pub(crate) type Served = Result<Vec<u8>, Errno>;

impl Device {
    pub(crate) fn new(blocks: u64) -> io::Result<Self> {
        let file = tempfile::tempfile()?;
        file.set_len(blocks * BLOCK as u64)?;
        let file = File::new(file).map_err(|unfit| io::Error::other(unfit.to_string()))?;
        Ok(Self { file, blocks })
    }

    /// Reads a block, and calls `done` with it.
    ///
    /// # Errors
    ///
    /// It is refused, and `done` not called.
    pub(crate) fn read(
        &self,
        block: u64,
        done: impl FnOnce(Served) + Send + 'static,
    ) -> Result<(), Errno> {
        serve(Op::pread(&self.file, vec![0; BLOCK], self.at(block)), done)
    }

    /// Writes a block, and calls `done` with what it was given. As a worker does it, if
    /// it is to be `offloaded`.
    ///
    /// # Errors
    ///
    /// As of `read`.
    pub(crate) fn write(
        &self,
        block: u64,
        bytes: Vec<u8>,
        offloaded: bool,
        done: impl FnOnce(Served) + Send + 'static,
    ) -> Result<(), Errno> {
        let write = Op::pwrite(&self.file, bytes, self.at(block));
        serve(if offloaded { write.offload() } else { write }, done)
    }

    fn at(&self, block: u64) -> u64 {
        block % self.blocks * BLOCK as u64
    }
}

fn serve(op: Op, done: impl FnOnce(Served) + Send + 'static) -> Result<(), Errno> {
    let callback = Callback::new(op, move |called| {
        done(match called.result {
            Ok(BLOCK) => Ok(called.op.into_buf()),
            Ok(_) => Err(Errno::EIO),
            Err(errno) => Err(errno),
        });
    });
    callback.submit().map_err(|refused| refused.errno)
}
