//! Whether an attempt is worth its while, as far as the last ones tell.
//!
//! Trying to do something at once is cheap, and saves a hand-off when it succeeds. Where
//! it hardly ever does, say for a file that is not in the page cache, it is only in the
//! way. A latch keeps an account: a failure costs one, a success brings four. When
//! that is used up, attempts are left out: sixteen at first, twice as many after each
//! probe that fails, up to 4,096. A few that succeed open it again.
//!
//! # Progress
//!
//! A load and at most one store, without a read-modify-write: who is overtaken by another
//! loses a count, which decides nothing. Runs in any context.

use crate::sync::{
    atomic::{AtomicU32, Ordering},
    const_fn,
};

/// How many failures a success pays for: a hand-off takes at least so much longer than an
/// attempt.
const WORTH: u32 = 4;
/// How many failures in a row it takes at first.
const CREDIT: u32 = 32;
/// How many attempts are left out after that, at first, and how often that doubles.
const FIRST: u32 = 16;
const DOUBLINGS: u32 = 8;

/// An account of attempts. See the [module](self).
///
/// ```
/// # uaio_core::sync::thread::model(|| {
/// use uaio_core::latch::Latch;
///
/// let latch = Latch::new();
/// while latch.is_worthwhile() {
///     latch.failed();
/// }
/// // Sixteen are left out, that one included; then it is tried again.
/// assert_eq!((1..16).filter(|_| latch.is_worthwhile()).count(), 0);
/// assert!(latch.is_worthwhile());
/// # });
/// ```
#[derive(Debug)]
pub struct Latch(AtomicU32);

/// How many failures are not paid for, how often the wait was doubled, and how many are
/// to be left out yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Account {
    owed: u32,
    doublings: u32,
    left_out: u32,
}

impl Account {
    const fn of(word: u32) -> Self {
        Self {
            owed: word & 0xff,
            doublings: word >> 8 & 0xff,
            left_out: word >> 16,
        }
    }

    const fn word(self) -> u32 {
        self.owed | self.doublings << 8 | self.left_out << 16
    }
}

static_assertions::const_assert!(FIRST << DOUBLINGS <= 0xffff);

impl Default for Latch {
    fn default() -> Self {
        Self::new()
    }
}

impl Latch {
    const_fn! {
        /// Open.
        pub const fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    #[inline]
    fn get(&self) -> Account {
        // Ordering: Relaxed. Only counted.
        Account::of(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, account: Account) {
        // Ordering: Relaxed. Only counted.
        self.0.store(account.word(), Ordering::Relaxed);
    }

    /// Whether to try: to be asked before each attempt that could be made.
    #[inline]
    pub fn is_worthwhile(&self) -> bool {
        let account = self.get();
        if account.left_out > 0 {
            self.set(Account {
                left_out: account.left_out - 1,
                ..account
            });
        }
        account.left_out == 0
    }

    /// An attempt succeeded.
    #[inline]
    pub fn succeeded(&self) {
        let account = self.get();
        // No store while all is well: the line stays shared.
        if account != Account::default() {
            self.set(Account {
                owed: account.owed.saturating_sub(WORTH),
                ..Account::default()
            });
        }
    }

    /// An attempt failed.
    pub fn failed(&self) {
        let Account {
            owed, doublings, ..
        } = self.get();
        self.set(if owed + 1 < CREDIT {
            Account {
                owed: owed + 1,
                doublings,
                left_out: 0,
            }
        } else {
            Account {
                owed,
                doublings: (doublings + 1).min(DOUBLINGS),
                left_out: FIRST << doublings.min(DOUBLINGS),
            }
        });
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// Of `n` that are to be done, how many are tried, where every `nth` would succeed.
    fn tried(latch: &Latch, n: u32, nth: u32) -> u32 {
        let mut tried = 0;
        for i in 0..n {
            if latch.is_worthwhile() {
                tried += 1;
                match i % nth {
                    0 => latch.succeeded(),
                    _ => latch.failed(),
                }
            }
        }
        tried
    }

    #[test]
    fn what_pays_is_always_tried() {
        assert_eq!(tried(&Latch::new(), 10_000, 1), 10_000);
        assert_eq!(tried(&Latch::new(), 10_000, 2), 10_000);
        assert_eq!(tried(&Latch::new(), 10_000, WORTH), 10_000);
    }

    #[test]
    fn what_never_succeeds_is_hardly_tried_and_never_given_up() {
        let latch = Latch::new();
        let never = u32::MAX;
        assert!(latch.is_worthwhile());
        latch.failed();
        assert!(tried(&latch, 100_000, never) < 100);
        let longest = FIRST << DOUBLINGS;
        assert_eq!(tried(&latch, longest + 1, 1).min(1), 1, "not probed");
    }

    #[test]
    fn what_succeeds_again_is_tried_again() {
        let latch = Latch::new();
        while latch.is_worthwhile() {
            latch.failed();
        }
        let n = 1000;
        assert!(tried(&latch, n, 1) >= n - FIRST);
        assert_eq!(tried(&latch, n, 1), n);
    }
}
