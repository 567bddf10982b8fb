//! A request as a [`Future`]: whose completion goes to the task that waits for it.
//!
//! What comes is left in the request's slot, and a wait queue there, on which nobody
//! else waits, is closed: that calls the task, whichever waker it came with last. No
//! event appears in the ring.
//!
//! # The slot has two holders
//!
//! | | completer | [`Operation`] |
//! |---|---|---|
//! | completes, and is waited for | leaves the event, closes the queue; *done* | finds it closed, takes the event and the payload; *left* |
//! | is not waited for any more | takes the payload and drops it | asks for a cancel; *left*, and *dropped* before |
//!
//! Each says with one read-modify-write of one word that it is done with the slot, and
//! the last to say so gives it back. So a payload stays where it is, and is lent to
//! whoever runs the request, until that is over: also when the future is dropped before.
//! A future that is forgotten keeps its slot.
//!
//! Whoever completes a request that nobody waits for drops what it carried: a payload
//! whose destructor may run there. (A panic of it is contained where there is `std`.)
//!
//! If it polls, whoever completes it takes it out of the wait queues then, and for that
//! waits for their locks, which are held for a few loads and stores: so not from an
//! interrupt.
//!
//! # Called
//!
//! A request can be one that nobody waits for from the start, and that says what is to be
//! [called](Context::call_by) with what it carried instead. Its room is free by then, so
//! what is called may submit again.

use core::{
    fmt,
    future::Future,
    pin::Pin,
    ptr,
    task::{Context as Task, Poll},
};

use crate::{
    context::{Completion, Context, Handle, Request},
    delivery::Part,
    error::Errno,
    poll::Refused,
    ring::{Event, RingMemory},
    slots::SlotMemory,
    sync::{
        atomic::{AtomicU32, Ordering},
        cell::UnsafeCell,
        const_fn, contain,
    },
    wait::{Enqueued, Never, WaitQueue, Waiter},
};

/// Of who holds the slot.
const AWAITED: u32 = 1;
/// The future is done with it,
const LEFT: u32 = 1 << 1;
/// and has not taken out what it carried.
const DROPPED: u32 = 1 << 2;
/// The completer is.
const DONE: u32 = 1 << 3;
/// Alone: nobody waits for it, and somebody is to be called.
const CALLED: u32 = 1 << 4;

/// A slot's part for a request that is an [`Operation`].
#[repr(C)]
pub struct Await {
    /// Zero: it is none. See the constants.
    hold: AtomicU32,
    /// The completer's, until the queue is closed; `None`: it was never submitted.
    event: UnsafeCell<Option<Event>>,
    /// A `fn(Payload, Event)` if it is to be called: the submitter's, then the
    /// completer's.
    call: UnsafeCell<*const ()>,
    queue: WaitQueue,
}

// SAFETY: the address is a function's.
unsafe impl Send for Await {}
// SAFETY: one thread at a time has the event, and the address, by the rules of the slot.
unsafe impl Sync for Await {}

impl fmt::Debug for Await {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Await").finish_non_exhaustive()
    }
}

mod private {
    use super::Await;
    use crate::delivery::Part;

    /// Of a slot with this part, alone or beside others.
    pub trait Awaits: Part {
        fn awaited(&self) -> &Await;
    }
}
pub(crate) use private::Awaits;

impl Awaits for Await {
    #[inline(always)]
    fn awaited(&self) -> &Self {
        self
    }
}

impl Await {
    const_fn! {
        const fn start() -> Self {
            Self {
                hold: AtomicU32::new(0),
                event: UnsafeCell::new(None),
                call: UnsafeCell::new(ptr::null()),
                queue: WaitQueue::new(),
            }
        }
    }

    /// Leaves what came, and calls who waits for it. `Some(true)`: nobody does, and the
    /// slot is the caller's, with all that is in it; `Some(false)`: it is, and what it
    /// carried was taken out.
    ///
    /// # Safety
    ///
    /// It is awaited, and the caller's to complete, who uses it no more unless told.
    unsafe fn complete(&self, event: Option<Event>) -> Option<bool> {
        self.event.with_mut(|place| {
            // SAFETY: the caller's.
            unsafe { *place = event }
        });
        self.queue.close();
        // Ordering: AcqRel. Release pairs with the Acquire in `leave`: our touches of the
        // slot; Acquire pairs with the Release there: the future's.
        let before = self.hold.fetch_or(DONE, Ordering::AcqRel);
        // Re-check: it is not waited for any more, or never was.
        if before & LEFT == 0 {
            return None;
        }
        // SAFETY: the last holder.
        unsafe { self.reset() };
        Some(before & DROPPED != 0)
    }

    /// The future is done with the slot. `true`: so was the completer, and the slot is
    /// the caller's.
    fn leave(&self, how: u32) -> bool {
        // Ordering: AcqRel, as in `complete`.
        let before = self.hold.fetch_or(how, Ordering::AcqRel);
        // Re-check: its completer is done with it.
        if before & DONE == 0 {
            return false;
        }
        // SAFETY: the last holder.
        unsafe { self.reset() };
        true
    }

    /// # Safety
    ///
    /// Nobody else holds the slot.
    unsafe fn reset(&self) {
        // SAFETY: closed, and nobody is in it any more.
        unsafe { self.queue.reopen() };
        // Ordering: Relaxed. Giving the slot back publishes it.
        self.hold.store(0, Ordering::Relaxed);
    }
}

impl Part for Await {
    type Chain = ();
    type Pending = ();

    #[cfg(not(loom))]
    const NEW: Self = Self::start();
    #[cfg(loom)]
    fn new() -> Self {
        Self::start()
    }

    fn pending(_: u64) {}

    #[inline(always)]
    unsafe fn deliver<R, S>(context: &Context<R, S>, handle: Handle, event: Event) -> bool
    where
        R: RingMemory,
        S: SlotMemory<Delivery = Self>,
    {
        // SAFETY: by the contract.
        unsafe { deliver(context, handle, event) }
    }

    fn is_awaited(&self) -> bool {
        // Ordering: Relaxed. The submitter's, whose publication came before; or the
        // submitter asks.
        self.hold.load(Ordering::Relaxed) & AWAITED != 0
    }

    unsafe fn clear(&self) -> bool {
        // Ordering: Relaxed. The caller's own.
        match self.hold.load(Ordering::Relaxed) {
            0 => true,
            CALLED => {
                // Ordering: Relaxed. The caller's own.
                self.hold.store(0, Ordering::Relaxed);
                true
            }
            // SAFETY: by the contract.
            _ => unsafe { self.complete(None) }.is_some(),
        }
    }
}

/// As [`Part::deliver`].
///
/// # Safety
///
/// The same.
#[inline(always)]
pub(crate) unsafe fn deliver<R, S>(context: &Context<R, S>, handle: Handle, event: Event) -> bool
where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Awaits,
{
    let part = context.slot(handle.index() as u32).delivery.awaited();
    // Ordering: Relaxed. What the submitter has written; an operation only adds to it.
    let hold = part.hold.load(Ordering::Relaxed);
    if hold != 0 {
        // SAFETY: by the contract.
        unsafe { deliver_to(context, handle, event, hold) };
    }
    hold != 0
}

/// # Safety
///
/// As for [`deliver`], and `hold` says that it is awaited.
unsafe fn deliver_to<R, S>(context: &Context<R, S>, handle: Handle, event: Event, hold: u32)
where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Awaits,
{
    let index = handle.index() as u32;
    let part = context.slot(index).delivery.awaited();
    // Until the last touch, also when a waker or a destructor panics.
    let _user = context.delivering();
    if hold == CALLED {
        let call = part.call.with(|call| {
            // SAFETY: claimed by the caller.
            unsafe { *call }
        });
        // Ordering: Relaxed. Giving the slot back publishes it.
        part.hold.store(0, Ordering::Relaxed);
        let carried = context.release(index);
        context.give_back(index);
        // SAFETY: it is what `call_by` has put there.
        let call = unsafe { core::mem::transmute::<*const (), fn(S::Payload, Event)>(call) };
        if let Some((payload, _)) = carried {
            contain(|| call(payload, event));
        }
        return;
    }
    // SAFETY: claimed by the caller.
    let own = unsafe { part.complete(Some(event)) };
    if let Some(dropped) = own {
        let carried = dropped.then(|| context.release(index));
        context.give_back(index);
        contain(|| drop(carried));
    }
}

impl<R, S> Context<R, S>
where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Awaits,
{
    /// Has `call` called with what `request` carried and its event, once it is over,
    /// instead of what was said before: by whoever completes it, with no lock held. If the
    /// request is refused after all, it is not.
    ///
    /// A panic in it is contained where there is `std`, and else must not unwind. It may
    /// submit, but not wait for the end of the context.
    ///
    /// # Errors
    ///
    /// EINVAL: it is another context's, or is waited for. It is given back.
    pub fn call_by<'c>(
        &'c self,
        request: Request<'c, R, S>,
        call: fn(S::Payload, Event),
    ) -> Result<Request<'c, R, S>, Refused<Request<'c, R, S>>> {
        if !request.belongs_to(self) || request.part().is_awaited() {
            return Err(Refused {
                error: Errno::EINVAL,
                request,
            });
        }
        // SAFETY: not published: its owner's alone.
        unsafe { request.part().clear() };
        let part = request.part().awaited();
        part.call.with_mut(|place| {
            // SAFETY: as above.
            unsafe { *place = call as *const () }
        });
        // Ordering: Relaxed. Published with the request.
        part.hold.store(CALLED, Ordering::Relaxed);
        Ok(request)
    }
}

/// What leads to a context: a reference, or an `Arc`, pinned or not.
///
/// # Safety
///
/// It leads to the same context on every call, wherever it is moved, which stays where
/// it is as long as this, or a copy of it, is there or is forgotten.
pub unsafe trait Lead {
    /// The context's ring.
    type Ring: RingMemory;
    /// The context's slots.
    type Slots: SlotMemory;
    /// The context.
    fn context(&self) -> &Context<Self::Ring, Self::Slots>;
}

macro_rules! leads {
    ($pointer:ty, $($lifetime:lifetime)?) => {
        // SAFETY: it owns it, or borrows it, by a pointer.
        unsafe impl<$($lifetime,)? R: RingMemory, S: SlotMemory> Lead for $pointer {
            type Ring = R;
            type Slots = S;
            fn context(&self) -> &Context<R, S> {
                self
            }
        }
    };
}
leads!(Pin<&'a Context<R, S>>, 'a);
#[cfg(feature = "alloc")]
leads!(Pin<alloc::sync::Arc<Context<R, S>>>,);

/// A request that somebody waits for. Resolves with its completion; or with nothing if
/// the request was dropped before it was submitted, and ever after.
///
/// Dropping it asks for a cancel, and lets go of the request: what it carries is dropped
/// when it is over.
#[must_use = "a future does nothing unless it is polled"]
pub struct Operation<L: Lead>
where
    <L::Slots as SlotMemory>::Delivery: Awaits,
{
    lead: L,
    /// None when it was collected.
    handle: Option<Handle>,
    waiter: Waiter,
}

impl<L: Lead> fmt::Debug for Operation<L>
where
    <L::Slots as SlotMemory>::Delivery: Awaits,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation").finish_non_exhaustive()
    }
}

/// What an operation carried.
type Carried<L> = <<L as Lead>::Slots as SlotMemory>::Payload;

/// A request and what waits for it; or both given back.
type Awaited<'c, L> = Result<
    (
        Request<'c, <L as Lead>::Ring, <L as Lead>::Slots>,
        Operation<L>,
    ),
    Refused<(Request<'c, <L as Lead>::Ring, <L as Lead>::Slots>, L)>,
>;

impl<L: Lead> Operation<L>
where
    <L::Slots as SlotMemory>::Delivery: Awaits,
{
    /// Waits for `request`, which the caller submits, instead of what was said of it
    /// before.
    ///
    /// # Errors
    ///
    /// EINVAL: it is another context's, or is waited for. Both are given back.
    pub fn of(lead: L, request: Request<'_, L::Ring, L::Slots>) -> Awaited<'_, L> {
        if !request.belongs_to(lead.context()) || request.part().is_awaited() {
            return Err(Refused {
                error: Errno::EINVAL,
                request: (request, lead),
            });
        }
        // SAFETY: not published: its owner's alone.
        unsafe { request.part().clear() };
        // Ordering: Relaxed. Published with the request.
        (request.part().awaited().hold).store(AWAITED, Ordering::Relaxed);
        let handle = Some(request.handle());
        let operation = Self {
            lead,
            handle,
            waiter: Waiter::new(),
        };
        Ok((request, operation))
    }

    /// The part of its slot: held, so it is of this request.
    fn part(&self, handle: Handle) -> &Await {
        let context = self.lead.context();
        context.slot(handle.index() as u32).delivery.awaited()
    }

    fn waiter(self: Pin<&Self>) -> Pin<&Waiter> {
        // SAFETY: structural: the waiter is never moved out of the future.
        unsafe { self.map_unchecked(|this| &this.waiter) }
    }

    /// What came, of a queue that is closed.
    fn collect(&self, handle: Handle) -> Option<Completion<Carried<L>>> {
        let (context, part) = (self.lead.context(), self.part(handle));
        let event = part.event.with(|event| {
            // SAFETY: the queue is closed, by who wrote it.
            unsafe { *event }
        });
        // What was never submitted is still the submitter's.
        let carried = event.and_then(|event| {
            let (payload, handle) = context.release(handle.index() as u32)?;
            Some(Completion {
                event,
                payload,
                handle,
            })
        });
        if part.leave(LEFT) {
            context.give_back(handle.index() as u32);
        }
        carried
    }
}

impl<L: Lead> Future for Operation<L>
where
    <L::Slots as SlotMemory>::Delivery: Awaits,
{
    type Output = Option<Completion<Carried<L>>>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let this = self.as_ref();
        let Some(handle) = this.handle else {
            return Poll::Ready(None);
        };
        let queue = &this.part(handle).queue;
        loop {
            let (waiter, waker) = (this.waiter(), task.waker());
            // SAFETY: the waiter is used with this queue only, until that is closed;
            // `drop` leaves it.
            match unsafe { queue.enqueue(waiter, waker, &Never) } {
                Ok(Enqueued::Waiting) => return Poll::Pending,
                // Woken by a closing that goes on: wait for its end.
                Ok(Enqueued::Ready) => {}
                Err(_closed) => break,
            }
        }
        let completion = this.collect(handle);
        // SAFETY: the handle is not structural.
        unsafe { self.as_mut().get_unchecked_mut() }.handle = None;
        Poll::Ready(completion)
    }
}

impl<L: Lead> Drop for Operation<L>
where
    <L::Slots as SlotMemory>::Delivery: Awaits,
{
    fn drop(&mut self) {
        let Some(handle) = self.handle else {
            return;
        };
        // SAFETY: the value is not moved until it is gone.
        let this = unsafe { Pin::new_unchecked(&*self) };
        let (context, part) = (this.lead.context(), this.part(handle));
        // SAFETY: the waiter is used with this queue only.
        let _ = unsafe { part.queue.leave(this.waiter()) };
        // Over, or running, or not submitted yet: then nobody waits for it all the same.
        let _ = context.cancel(handle);
        if part.leave(LEFT | DROPPED) {
            // What was never submitted is still the submitter's.
            let submitted = part.event.with(|event| {
                // SAFETY: the last holder.
                unsafe { (*event).is_some() }
            });
            let carried = submitted.then(|| context.release(handle.index() as u32));
            context.give_back(handle.index() as u32);
            drop(carried);
        }
    }
}
