//! Errors: Linux's numbers, each named by what the caller did.

use core::fmt;

/// An error number, lossless.
///
/// The values are those of Linux's generic ABI (x86, Arm, RISC-V); the core
/// makes no system call, so they are names here and not the target's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            const fn describe(self) -> Option<(&'static str, &'static str)> {
                match self.0 {
                    $($value => Some((stringify!($name), $text)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// The request is gone: completed and reaped, or never was. Of a name: there is none.
    ENOENT = 2, "no such request or name";
    /// Who is to be told is gone.
    ESRCH = 3, "no such process or thread";
    /// A blocking call was interrupted.
    EINTR = 4, "interrupted";
    /// The work could not be carried out, and nobody said why.
    EIO = 5, "input/output error";
    /// The descriptor does not allow the operation.
    EBADF = 9, "bad file descriptor";
    /// No room: every slot is taken by a request that is not reaped yet.
    EAGAIN = 11, "no room: reap completions, then submit again";
    /// The user's ring holds indices that cannot be.
    EFAULT = 14, "the ring's indices are out of range";
    /// Somebody else has the role that is asked for.
    EBUSY = 16, "busy";
    /// The arguments make no sense, or the context is destroyed.
    EINVAL = 22, "invalid argument";
    /// Waiting here for oneself would never end.
    EDEADLK = 35, "would wait for itself";
    /// The system has no such call.
    ENOSYS = 38, "not implemented by this system";
    /// The time was up.
    ETIME = 62, "timer expired";
    /// More wait-queue heads than a request has waiters for.
    EOVERFLOW = 75, "too many wait queues";
    /// The asyncfd was closed.
    EBADFD = 77, "closed";
    /// The payload has no such operation.
    EOPNOTSUPP = 95, "operation not supported";
    /// The request is completing, or its cancellation was asked for before.
    EALREADY = 114, "already completing or already cancelled";
    /// The cancellation is noted; the completion follows.
    EINPROGRESS = 115, "cancellation under way";
    /// The request was cancelled before it had any effect.
    ECANCELED = 125, "cancelled";
}

impl Errno {
    /// The error with this positive number; `None` for zero and below.
    pub const fn from_raw(number: i32) -> Option<Self> {
        if number > 0 { Some(Self(number)) } else { None }
    }

    /// The number, positive.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// As a completion's result: the negative number.
    pub const fn as_result(self) -> i64 {
        -(self.0 as i64)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((name, text)) => write!(f, "{text} ({name})"),
            None => write!(f, "error number {}", self.0),
        }
    }
}

impl core::error::Error for Errno {}

#[cfg(feature = "std")]
impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_the_round_trip() {
        for n in [1, 11, 125, 4095] {
            assert_eq!(Errno::from_raw(n).unwrap().raw(), n);
        }
        assert_eq!(Errno::from_raw(0), None);
        assert_eq!(Errno::from_raw(-5), None);
        assert_eq!(Errno::ECANCELED.as_result(), -125);
    }
}
