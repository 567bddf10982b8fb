//! What a target keeps back: completions, linked by the slots of their requests.

use core::ptr;

use crate::{
    asyncfd::AsyncfdResult,
    sync::{cell::UnsafeCell, const_fn},
};

/// What is kept back: a node in its request's slot, and in a list by it.
#[derive(Debug)]
pub(crate) struct Kept {
    next: UnsafeCell<*const Kept>,
    pub(crate) what: UnsafeCell<What>,
}

/// A result, and its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct What {
    pub(crate) result: AsyncfdResult,
    pub(crate) back: Back,
}

/// Whom to tell that a result is where it belongs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Back {
    pub(crate) context: *const (),
    pub(crate) index: u32,
    pub(crate) over: unsafe fn(Back, AsyncfdResult, Over),
}

/// What becomes of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// It is just about to be stored.
    Stored,
    /// So it is, and it had been kept back.
    Moved,
    /// It had been kept back, and is given up.
    GivenUp,
}

/// What delivering came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Delivered {
    /// Stored.
    Stored,
    /// Kept back: not yet over.
    Kept,
    /// Closed; nothing was done.
    Refused,
}

impl Back {
    const NOBODY: Self = Self {
        context: ptr::null(),
        index: 0,
        over: |_, _, _| {},
    };

    /// # Safety
    ///
    /// Called once for a delivery. It was kept back, or the caller is delivering.
    pub(crate) unsafe fn over(self, result: AsyncfdResult, how: Over) {
        let over = self.over;
        // SAFETY: by the contract.
        unsafe { over(self, result, how) }
    }
}

/// Stands for what the consumer has taken over and not yet moved in. Never read.
pub(crate) const MOVING: *mut Kept = ptr::without_provenance_mut(align_of::<Kept>());

impl Kept {
    const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                next: UnsafeCell::new(ptr::null()),
                what: UnsafeCell::new(What {
                    result: AsyncfdResult { cookie: 0, obj: 0, res: 0, res2: 0 },
                    back: Back::NOBODY,
                }),
            }
        }
    }

    /// What is below it.
    ///
    /// # Safety
    ///
    /// It is in a list of the caller's.
    unsafe fn next(this: *const Self) -> *const Self {
        // SAFETY: in a list, it is there.
        unsafe { &*this }.next.with(|next| {
            // SAFETY: the list is the caller's.
            unsafe { *next }
        })
    }

    /// # Safety
    ///
    /// It is in no list but the caller's.
    pub(crate) unsafe fn set_next(this: *const Self, next: *const Self) {
        // SAFETY: it is there.
        unsafe { &*this }.next.with_mut(|place| {
            // SAFETY: the list is the caller's.
            unsafe { *place = next }
        });
    }

    /// Turns a stack around, from its top to its end or to what is moving.
    pub(crate) fn in_order(mut top: *const Self) -> *const Self {
        let mut first = ptr::null();
        while !top.is_null() && !ptr::eq(top, MOVING) {
            // SAFETY: taken off the stack, the caller's.
            let next = unsafe { Self::next(top) };
            // SAFETY: as above.
            unsafe { Self::set_next(top, first) };
            first = top;
            top = next;
        }
        first
    }

    /// # Safety
    ///
    /// The list is the caller's.
    pub(crate) unsafe fn count(mut first: *const Self, max: usize) -> usize {
        let mut n = 0;
        while n < max && !first.is_null() {
            // SAFETY: by the contract.
            first = unsafe { Self::next(first) };
            n += 1;
        }
        n
    }

    /// What the first has, and the next.
    ///
    /// # Safety
    ///
    /// The list is the caller's, and not empty.
    pub(crate) unsafe fn take(first: *const Self) -> (What, *const Self) {
        // SAFETY: by the contract.
        let next = unsafe { Self::next(first) };
        // SAFETY: in a list, it is there.
        let what = unsafe { &*first }.what.with(|what| {
            // SAFETY: written before it was put into the list.
            unsafe { *what }
        });
        (what, next)
    }

    /// Gives up what the caller has taken off.
    ///
    /// # Safety
    ///
    /// The list is the caller's.
    pub(crate) unsafe fn give_up(mut first: *const Self) {
        while !first.is_null() {
            // SAFETY: by the contract.
            let (what, next) = unsafe { Self::take(first) };
            first = next;
            // SAFETY: it was not over before, and is used no more.
            unsafe { what.back.over(what.result, Over::GivenUp) };
        }
    }
}
