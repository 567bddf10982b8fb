#![cfg_attr(not(any(loom, shuttle)), doc = include_str!("../README.md"))]
#![cfg_attr(any(loom, shuttle), doc = "Empty under a checker.")]
#![cfg(all(target_os = "linux", not(any(loom, shuttle))))]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("uaio needs a 64-bit target: file offsets are passed in one register");

mod asyncfd;
mod callback;
mod capabilities;
mod chain;
mod context;
mod drive;
mod epoll;
mod file;
mod fs;
mod interrupt;
mod notify;
mod op;
mod operation;
mod pool;
mod raw;
mod signals;
mod sys;

pub use asyncfd::AsyncFd;
pub use callback::{Callback, Called, Uncalled, callback_panics};
pub use capabilities::{Capabilities, capabilities};
pub use context::{Builder, Completion, Context};
pub use file::{File, Unfit};
pub use fs::flag;
pub use notify::Notify;
pub use op::Op;
pub use operation::{Operation, Unsubmitted};
pub use raw::Iocb;
pub use rustix::fs::Statx;
pub use signals::SignalSet;
pub use uaio_core::{
    Errno,
    asyncfd::{AsyncfdResult, Drained, ResultCell, Uring},
    context::Handle,
    poll::{Source, event},
    sigevent::{CompatSigevent, Sigevent},
};
