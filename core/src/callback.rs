//! Requests with a callback: no context, no ring, no limit but memory.
//!
//! A [`Request`] is what is to be done, and what is to be called when it was. Whoever
//! takes it from its submitter [accepts](Callbacks::accept) it; from then on it is the
//! system's, cannot be cancelled, and its callback is called exactly once, with all that
//! it carried: from whichever thread completes it, also before submitting returns, with
//! no lock held. The callback may submit again.
//!
//! # One at a time
//!
//! [`Callbacks`] are called one after the other. A completion that finds one being called
//! is left on a stack, for whoever is calling:
//!
//! | complete | |
//! |---|---|
//! | nobody is calling | calls it, then all that was left meanwhile; then looks once more |
//! | somebody is, or we are ourselves, further up | leaves it |
//!
//! So a callback that completes another does not call it from within: a chain of any
//! length needs no stack. Who leaves one pushes, fences, and then looks whether somebody
//! is calling; who has been calling says that it is not, fences, and then looks whether
//! something was left. One of the two sees the other.
//!
//! A callback that takes long holds the others up: threads that are to call at the same
//! time have [`Callbacks`] of their own.
//!
//! # Progress
//!
//! Completing is lock-free, but calls what others left. Who may not do that, say in an
//! interrupt, [leaves](Accepted::leave) its own to the next who completes, or
//! [calls](Callbacks::call).

use alloc::boxed::Box;
use core::{fmt, mem::ManuallyDrop, ptr, ptr::NonNull};

use crate::{
    error::Errno,
    role::{Held, Role},
    sync::{
        atomic::{AtomicPtr, AtomicU64, Ordering, fence},
        cell::UnsafeCell,
        const_fn, contain,
    },
};

/// What a callback is called with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done<T> {
    /// What the request carried.
    pub payload: T,
    /// The result, or a negative [error number](Errno::as_result).
    pub res: i64,
    /// A second result.
    pub res2: i64,
}

/// A request in a list.
struct Link {
    /// Of whoever has it in a list.
    next: UnsafeCell<*const Link>,
    /// Calls it, and frees it.
    call: unsafe fn(*const Link),
}

/// What all requests with such a payload have.
#[repr(C)]
struct Head<T> {
    link: Link,
    drop: unsafe fn(*mut Head<T>) -> Option<T>,
    done: UnsafeCell<Option<Done<T>>>,
}

#[repr(C)]
struct Body<T, F> {
    head: Head<T>,
    callback: F,
}

/// What is to be done, and what is to be called then.
pub struct Request<T>(NonNull<Head<T>>);

// SAFETY: it owns the payload and the callback, which are Send.
unsafe impl<T: Send> Send for Request<T> {}
// SAFETY: a shared one shows nothing but the payload's address.
unsafe impl<T: Send> Sync for Request<T> {}

impl<T> fmt::Debug for Request<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Request<T> {
    /// That `callback` is called once what `payload` says is done. Allocates.
    pub fn new(payload: T, callback: impl FnOnce(Done<T>) + Send + 'static) -> Self {
        Self(Self::allocate(payload, callback))
    }

    fn allocate<F: FnOnce(Done<T>) + Send + 'static>(payload: T, callback: F) -> NonNull<Head<T>> {
        let body = Box::new(Body {
            head: Head {
                link: Link {
                    next: UnsafeCell::new(ptr::null()),
                    call: call::<T, F>,
                },
                drop: take_apart::<T, F>,
                done: UnsafeCell::new(Some(Done {
                    payload,
                    res: 0,
                    res2: 0,
                })),
            },
            callback,
        });
        NonNull::from(Box::leak(body)).cast()
    }

    /// What it carries.
    pub fn payload_mut(&mut self) -> &mut T {
        // SAFETY: its owner's alone.
        let head = unsafe { self.0.as_ref() };
        let done = head.done.with_mut(|done| {
            // SAFETY: as above; and it stays borrowed.
            unsafe { (*done).as_mut() }
        });
        match done {
            Some(done) => &mut done.payload,
            None => unreachable!("taken out by who frees it"),
        }
    }

    /// Takes it apart: it is not submitted, and its callback is dropped.
    pub fn into_payload(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: freed once.
        match unsafe { free(this.0) } {
            Some(payload) => payload,
            None => unreachable!("taken out by who frees it"),
        }
    }
}

impl<T> Drop for Request<T> {
    fn drop(&mut self) {
        // SAFETY: freed once.
        drop(unsafe { free(self.0) });
    }
}

/// # Safety
///
/// The caller's, who does not use it again.
unsafe fn free<T>(head: NonNull<Head<T>>) -> Option<T> {
    // SAFETY: it is there.
    let drop = unsafe { head.as_ref() }.drop;
    // SAFETY: by the contract.
    unsafe { drop(head.as_ptr()) }
}

/// Frees it without a call.
///
/// # Safety
///
/// Made with this callback, the caller's, who does not use it again.
unsafe fn take_apart<T, F>(head: *mut Head<T>) -> Option<T> {
    // SAFETY: allocated as this, and the head is its first field.
    let body = unsafe { Box::from_raw(head.cast::<Body<T, F>>()) };
    body.head.done.into_inner().map(|done| done.payload)
}

/// Frees it with a call.
///
/// # Safety
///
/// As of [`take_apart`].
unsafe fn call<T, F: FnOnce(Done<T>)>(link: *const Link) {
    // SAFETY: allocated as this; the link is the head's first field, and that the body's.
    let body = unsafe { Box::from_raw(link.cast_mut().cast::<Body<T, F>>()) };
    let Body { head, callback } = *body;
    if let Some(done) = head.done.into_inner() {
        callback(done);
    }
}

/// Callbacks, of which one is called at a time. See the [module](self).
pub struct Callbacks {
    /// Who calls them.
    calling: Role,
    /// Those that were left.
    left: AtomicPtr<Link>,
    panics: AtomicU64,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks")
            .field("panics", &self.panics())
            .finish_non_exhaustive()
    }
}

impl Default for Callbacks {
    fn default() -> Self {
        Self::new()
    }
}

impl Callbacks {
    const_fn! {
        /// None yet.
        pub const fn new() -> Self {
            Self {
                calling: Role::new(),
                left: AtomicPtr::new(ptr::null_mut()),
                panics: AtomicU64::new(0),
            }
        }
    }

    /// How many callbacks have panicked. (That it did, and where, the panic hook reports.)
    /// Without the feature `std` they must not unwind.
    pub fn panics(&self) -> u64 {
        // Ordering: Relaxed. A statistic.
        self.panics.load(Ordering::Relaxed)
    }

    /// Takes the request from its submitter: its callback will be called here.
    pub fn accept<T: Send + 'static>(&self, request: Request<T>) -> Accepted<'_, T> {
        Accepted {
            callbacks: self,
            request: ManuallyDrop::new(request),
        }
    }

    /// Calls what was left, unless somebody is just calling, who does then.
    pub fn call(&self) {
        self.look_again();
    }

    /// Calls one that is the caller's, then what was left.
    ///
    /// # Safety
    ///
    /// Completed, in no list, and used no more.
    unsafe fn call_first(&self, calling: Held<'_>, first: *const Link) {
        // SAFETY: by the contract.
        unsafe { self.call_one(first) };
        drop(calling);
        self.look_again();
    }

    /// Calls what was left, as long as there is any and nobody else is calling.
    fn look_again(&self) {
        loop {
            // Ordering: SeqCst, against the same fence of others: who leaves one sees that
            // nobody is calling, or who has been calling sees what was left.
            fence(Ordering::SeqCst);
            // Ordering: Relaxed. Behind the fence; what it leads to is read behind the swap.
            if self.left.load(Ordering::Relaxed).is_null() {
                return;
            }
            // Re-check: who is calling looks again.
            if self.calling.is_held() {
                return;
            }
            if let Some(calling) = self.calling.take() {
                self.call_left(calling);
            }
        }
    }

    fn call_left(&self, calling: Held<'_>) {
        loop {
            // Ordering: Acquire pairs with the Release in `push`: the requests.
            let mut top = self
                .left
                .swap(ptr::null_mut(), Ordering::Acquire)
                .cast_const();
            if top.is_null() {
                break;
            }
            let mut first = ptr::null();
            while !top.is_null() {
                // SAFETY: taken off.
                let next = unsafe { next(top) };
                // SAFETY: as above.
                unsafe { set_next(top, first) };
                first = top;
                top = next;
            }
            while !first.is_null() {
                // SAFETY: taken off.
                let next = unsafe { next(first) };
                // SAFETY: as above, and used no more.
                unsafe { self.call_one(first) };
                first = next;
            }
        }
        drop(calling);
    }

    /// # Safety
    ///
    /// Completed, in no list, and used no more.
    unsafe fn call_one(&self, link: *const Link) {
        // SAFETY: it is there.
        let call = unsafe { &*link }.call;
        let panicked = contain(|| {
            // SAFETY: by the contract.
            unsafe { call(link) };
        });
        if panicked {
            // Ordering: Relaxed. A statistic.
            self.panics.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// # Safety
    ///
    /// Completed, in no list, and used no more.
    unsafe fn push(&self, link: *const Link) {
        // Ordering: Relaxed. The compare-and-swap decides.
        let mut top = self.left.load(Ordering::Relaxed);
        loop {
            // SAFETY: by the contract.
            unsafe { set_next(link, top) };
            // Ordering: Release pairs with the Acquire in `call_left`: the request.
            match self.left.compare_exchange_weak(
                top,
                link.cast_mut(),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }
}

impl Drop for Callbacks {
    fn drop(&mut self) {
        // What was left, and nobody has called.
        self.call();
    }
}

/// # Safety
///
/// In a list of the caller's.
unsafe fn next(link: *const Link) -> *const Link {
    // SAFETY: in a list, it is there.
    unsafe { &*link }.next.with(|next| {
        // SAFETY: the list is the caller's.
        unsafe { *next }
    })
}

/// # Safety
///
/// In no list, or in one of the caller's.
unsafe fn set_next(link: *const Link, next: *const Link) {
    // SAFETY: it is there.
    unsafe { &*link }.next.with_mut(|place| {
        // SAFETY: the caller's.
        unsafe { *place = next }
    });
}

/// A request that was taken from its submitter, to be completed. If it is dropped, say by
/// a panic, it is completed with ECANCELED.
#[must_use = "dropping it completes it with ECANCELED"]
pub struct Accepted<'c, T: Send + 'static> {
    callbacks: &'c Callbacks,
    request: ManuallyDrop<Request<T>>,
}

impl<T: Send + 'static> fmt::Debug for Accepted<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").finish_non_exhaustive()
    }
}

impl<'c, T: Send + 'static> Accepted<'c, T> {
    /// What it carries.
    pub fn payload_mut(&mut self) -> &mut T {
        self.request.payload_mut()
    }

    /// Has its callback called among those of `callbacks` instead.
    pub fn among(self, callbacks: &Callbacks) -> Accepted<'_, T> {
        let this = ManuallyDrop::new(self);
        Accepted {
            callbacks,
            request: ManuallyDrop::new(Request(this.request.0)),
        }
    }

    /// Gives it back to its submitter: its callback is not called.
    pub fn refuse(self) -> Request<T> {
        let this = ManuallyDrop::new(self);
        Request(this.request.0)
    }

    /// Completes it: its callback is called here and now, or by who is just calling.
    pub fn complete(self, res: i64, res2: i64) {
        let (callbacks, link) = self.done(res, res2);
        match callbacks.calling.take() {
            // SAFETY: completed, and the caller's.
            Some(calling) => unsafe { callbacks.call_first(calling, link) },
            None => {
                // SAFETY: completed, and the caller's.
                unsafe { callbacks.push(link) };
                callbacks.look_again();
            }
        }
    }

    /// Completes it, and leaves its callback to the next who completes with
    /// [`complete`](Self::complete), or [calls](Callbacks::call). From any context.
    pub fn leave(self, res: i64, res2: i64) {
        let (callbacks, link) = self.done(res, res2);
        // SAFETY: completed, and the caller's.
        unsafe { callbacks.push(link) };
    }

    fn done(self, res: i64, res2: i64) -> (&'c Callbacks, *const Link) {
        let this = ManuallyDrop::new(self);
        let head = this.request.0;
        // SAFETY: the caller's.
        unsafe { head.as_ref() }.done.with_mut(|done| {
            // SAFETY: as above.
            if let Some(done) = unsafe { (*done).as_mut() } {
                (done.res, done.res2) = (res, res2);
            }
        });
        (this.callbacks, head.as_ptr().cast_const().cast())
    }
}

impl<T: Send + 'static> Drop for Accepted<'_, T> {
    fn drop(&mut self) {
        let this = Accepted {
            callbacks: self.callbacks,
            request: ManuallyDrop::new(Request(self.request.0)),
        };
        this.complete(Errno::ECANCELED.as_result(), 0);
    }
}
