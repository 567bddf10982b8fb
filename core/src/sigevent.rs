//! What Linux's `struct sigevent` says: whether a signal is to tell of a completion, and
//! whom.
//!
//! The layouts are those of the system's interface for 64-bit programs, and for 32-bit
//! ones on a 64-bit system. Nothing here sends a signal; see [`notify`](crate::notify).

use crate::error::Errno;

/// `SIGEV_SIGNAL`.
pub const SIGNAL: i32 = 0;
/// `SIGEV_NONE`.
pub const NONE: i32 = 1;
/// `SIGEV_THREAD_ID`: a bit beside [`SIGNAL`].
pub const THREAD_ID: i32 = 4;

/// The largest signal number.
const LAST: i32 = 64;

/// `struct sigevent` of a 64-bit program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sigevent {
    /// `sigev_value`: all of the union, an integer in its low half.
    pub value: u64,
    /// `sigev_signo`.
    pub signo: i32,
    /// `sigev_notify`.
    pub notify: i32,
    /// `sigev_notify_thread_id`.
    pub tid: i32,
    /// The rest of the union.
    pub pad: [i32; 11],
}

/// `struct sigevent` of a 32-bit program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CompatSigevent {
    /// `sigev_value`: an integer, or a pointer.
    pub value: u32,
    /// `sigev_signo`.
    pub signo: i32,
    /// `sigev_notify`.
    pub notify: i32,
    /// `sigev_notify_thread_id`.
    pub tid: i32,
    /// The rest of the union.
    pub pad: [i32; 12],
}

mod layout {
    use super::{CompatSigevent, Sigevent};
    use core::mem::{align_of, offset_of, size_of};
    use static_assertions::const_assert_eq;

    const_assert_eq!(size_of::<Sigevent>(), 64);
    const_assert_eq!(offset_of!(Sigevent, value), 0);
    const_assert_eq!(offset_of!(Sigevent, signo), 8);
    const_assert_eq!(offset_of!(Sigevent, notify), 12);
    const_assert_eq!(offset_of!(Sigevent, tid), 16);
    const_assert_eq!(size_of::<CompatSigevent>(), 64);
    const_assert_eq!(align_of::<CompatSigevent>(), 4);
    const_assert_eq!(offset_of!(CompatSigevent, value), 0);
    const_assert_eq!(offset_of!(CompatSigevent, signo), 4);
    const_assert_eq!(offset_of!(CompatSigevent, notify), 8);
    const_assert_eq!(offset_of!(CompatSigevent, tid), 12);
}

/// The same for a 64-bit program: the value is extended by zeros, as a pointer is; its
/// low half is the integer that it was.
impl From<CompatSigevent> for Sigevent {
    fn from(compat: CompatSigevent) -> Self {
        let mut pad = [0; 11];
        pad.copy_from_slice(&compat.pad[..11]);
        Self {
            value: u64::from(compat.value),
            signo: compat.signo,
            notify: compat.notify,
            tid: compat.tid,
            pad,
        }
    }
}

/// Whether a signal is to be sent, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nobody: the ring alone tells.
    Nobody,
    /// The process that submitted.
    Process(Signal),
    /// One of its threads.
    Thread(Signal, i32),
}

/// A signal, and what comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// From 1 to 64.
    pub signo: i32,
    /// `si_value`.
    pub value: u64,
}

impl Sigevent {
    /// What it says.
    ///
    /// # Errors
    ///
    /// EINVAL: it is of another kind than [`NONE`], [`SIGNAL`] and [`SIGNAL`] `|`
    /// [`THREAD_ID`]; there is no such signal; the thread id is not positive. (Whether
    /// there is such a thread is for who sends to say.)
    pub fn told(&self) -> Result<Told, Errno> {
        if self.notify == NONE {
            return Ok(Told::Nobody);
        }
        let signal = Signal {
            signo: self.signo,
            value: self.value,
        };
        if !(1..=LAST).contains(&self.signo) {
            return Err(Errno::EINVAL);
        }
        match self.notify {
            SIGNAL => Ok(Told::Process(signal)),
            kind if kind == SIGNAL | THREAD_ID && self.tid > 0 => {
                Ok(Told::Thread(signal, self.tid))
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    const NOTHING: Sigevent = Sigevent {
        value: 0,
        signo: 0,
        notify: NONE,
        tid: 0,
        pad: [0; 11],
    };

    fn told(notify: i32, signo: i32, tid: i32) -> Result<Told, Errno> {
        let value = 0x1234_5678_9abc_def0;
        let event = Sigevent {
            value,
            signo,
            notify,
            tid,
            ..NOTHING
        };
        event.told()
    }

    #[test]
    fn three_kinds_are_known() {
        let signal = |signo| Signal {
            signo,
            value: 0x1234_5678_9abc_def0,
        };
        assert_eq!(told(NONE, 99, -1), Ok(Told::Nobody));
        assert_eq!(told(SIGNAL, 1, 0), Ok(Told::Process(signal(1))));
        assert_eq!(told(SIGNAL, 64, 0), Ok(Told::Process(signal(64))));
        let thread = Told::Thread(signal(34), 7);
        assert_eq!(told(SIGNAL | THREAD_ID, 34, 7), Ok(thread));
    }

    /// Also a kind that would be known if it were cut to 16 bits.
    #[test]
    fn others_are_refused() {
        for kind in [
            2,
            3,
            5,
            6,
            8,
            -1,
            1 << 16,
            NONE | 1 << 16,
            THREAD_ID | 1 << 16,
        ] {
            assert_eq!(told(kind, 34, 7), Err(Errno::EINVAL), "{kind:#x}");
        }
        for signo in [0, -1, 65, i32::MIN, i32::MAX] {
            assert_eq!(told(SIGNAL, signo, 0), Err(Errno::EINVAL), "{signo}");
        }
        for tid in [0, -1, i32::MIN] {
            let refused = told(SIGNAL | THREAD_ID, 34, tid);
            assert_eq!(refused, Err(Errno::EINVAL), "{tid}");
        }
    }

    /// What a 32-bit program says comes through, with its value as it was.
    #[test]
    fn the_narrow_layout_loses_nothing() {
        let compat = CompatSigevent {
            value: 0xfedc_ba98,
            signo: 35,
            notify: SIGNAL | THREAD_ID,
            tid: 1 << 22,
            pad: [0; 12],
        };
        let signal = Signal {
            signo: 35,
            value: 0xfedc_ba98,
        };
        let told = Sigevent::from(compat).told();
        assert_eq!(told, Ok(Told::Thread(signal, 1 << 22)));
    }
}
