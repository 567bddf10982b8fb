//! How a completion is delivered: what a slot has for that, beside its request.
//!
//! Without anything ([`()`](unit)) a completion is an event in the ring of the request's
//! context. A context whose slots have more can deliver each request as it wants, and as
//! was said last:
//!
//! | part of the slot | said by | the completion |
//! |---|---|---|
//! | – | – | is an event in the context's ring |
//! | [`To`] | [`deliver_to`](Context::deliver_to) | is a result in an [asyncfd](crate::asyncfd) |
//! | [`Notify`] | [`notify_by`](Context::notify_by) | is an event in the ring, and somebody is [told](crate::notify) |
//! | [`Await`] | [`Operation::of`](operation::Operation::of) | is what a future resolves with |
//! | [`All`] | | any of them |

use core::fmt;

use crate::{
    asyncfd::Lead,
    context::{Context, Handle},
    notify::{self, Notification, Notify, parts},
    operation::{self, Await},
    ring::{Event, RingMemory},
    slots::SlotMemory,
    target::{self, To},
};

/// What a slot has for delivering. See the [module](self).
pub trait Delivery: private::Part {}

impl Delivery for () {}
impl Delivery for Await {}
impl<D: Lead + Send + Sync> Delivery for To<D> {}
impl<N: Notification> Delivery for Notify<N> {}
impl<D: Lead + Send + Sync, N: Notification> Delivery for All<D, N> {}

mod private {
    use super::{Context, Event, Handle, RingMemory, SlotMemory};

    pub trait Part: Send + Sync + Sized {
        /// What is collected of the requests that are completed together.
        type Chain: Copy + Default;
        /// What all slots of a context have together.
        type Pending: Send + Sync;

        #[cfg(not(loom))]
        const NEW: Self;
        #[cfg(loom)]
        fn new() -> Self;
        /// Of a context whose first event comes to this position.
        fn pending(position: u64) -> Self::Pending;

        /// Delivers a completion, unless it is for the ring: then `false`.
        ///
        /// # Safety
        ///
        /// The request was claimed by the caller, who uses its slot no more.
        #[inline(always)]
        unsafe fn deliver<R, S>(_: &Context<R, S>, _: Handle, _: Event) -> bool
        where
            R: RingMemory,
            S: SlotMemory<Delivery = Self>,
        {
            false
        }

        /// Notes who is to be told of this slot's request, before its event, with `res`, is
        /// published.
        ///
        /// # Safety
        ///
        /// The request was claimed by the caller, who announces `chain`.
        #[inline(always)]
        unsafe fn note(&self, _index: u32, _res: i64, _chain: &mut Self::Chain) {}

        /// Tells who is to be told of events that were published up to `end`.
        #[inline(always)]
        fn announce<R, S>(_: &Context<R, S>, _chain: Self::Chain, _end: u64)
        where
            R: RingMemory,
            S: SlotMemory<Delivery = Self>,
        {
        }

        /// Its event was reaped, and what it carried taken out: whether the slot is the
        /// caller's to give back.
        #[inline(always)]
        fn reaped(&self) -> bool {
            true
        }

        /// Whether an [`Operation`](crate::operation::Operation) holds the slot, of who asks as
        /// its submitter or completer.
        #[inline(always)]
        fn is_awaited(&self) -> bool {
            false
        }

        /// Forgets its target only.
        ///
        /// # Safety
        ///
        /// As of [`clear`](Self::clear).
        #[inline(always)]
        unsafe fn forget_target(&self) {}

        /// Forgets what was said of a request that is not published. `false`: an operation
        /// still holds the slot, and gives it back.
        ///
        /// # Safety
        ///
        /// The caller's own: not published, or nobody else knows the slot.
        unsafe fn clear(&self) -> bool;
    }
}
pub(crate) use private::Part;

impl Part for () {
    type Chain = ();
    type Pending = ();
    #[cfg(not(loom))]
    const NEW: Self = ();
    #[cfg(loom)]
    fn new() -> Self {}
    #[inline(always)]
    fn pending(_: u64) {}
    #[inline(always)]
    unsafe fn clear(&self) -> bool {
        true
    }
}

/// A slot's part for requests each of which is delivered as it says.
// In this order: what says that there is nothing of it is the first of the one, the last
// of the next and the first of the third.
#[repr(C)]
pub struct All<D, N> {
    awaited: Await,
    to: To<D>,
    notify: Notify<N>,
}

impl<D, N> fmt::Debug for All<D, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("All").finish_non_exhaustive()
    }
}

impl<D: Lead + Send + Sync, N: Notification> target::Targets for All<D, N> {
    type Lead = D;
    #[inline(always)]
    fn to(&self) -> &To<D> {
        &self.to
    }
}

impl<D: Lead + Send + Sync, N: Notification> notify::Notifies for All<D, N> {
    type Notification = N;
    #[inline(always)]
    fn notify(&self) -> &Notify<N> {
        &self.notify
    }
    #[inline(always)]
    fn of(pending: &Self::Pending) -> &parts::Pending<N> {
        pending
    }
}

impl<D: Lead + Send + Sync, N: Notification> operation::Awaits for All<D, N> {
    #[inline(always)]
    fn awaited(&self) -> &Await {
        &self.awaited
    }
}

impl<D: Lead + Send + Sync, N: Notification> Part for All<D, N> {
    type Chain = parts::Chain<N>;
    type Pending = parts::Pending<N>;

    #[cfg(not(loom))]
    const NEW: Self = Self {
        to: To::NEW,
        notify: Notify::NEW,
        awaited: Await::NEW,
    };
    #[cfg(loom)]
    fn new() -> Self {
        Self {
            to: To::new(),
            notify: Notify::new(),
            awaited: Await::new(),
        }
    }

    fn pending(position: u64) -> Self::Pending {
        Notify::pending(position)
    }

    #[inline(always)]
    unsafe fn deliver<R, S>(context: &Context<R, S>, handle: Handle, event: Event) -> bool
    where
        R: RingMemory,
        S: SlotMemory<Delivery = Self>,
    {
        // SAFETY: by the contract.
        let delivered = unsafe { target::deliver(context, handle, event) };
        // SAFETY: by the contract; not delivered yet.
        delivered || unsafe { operation::deliver(context, handle, event) }
    }

    #[inline(always)]
    unsafe fn note(&self, index: u32, res: i64, chain: &mut Self::Chain) {
        // SAFETY: by the contract.
        unsafe { self.notify.note(index, res, chain) }
    }

    #[inline(always)]
    fn announce<R, S>(context: &Context<R, S>, chain: Self::Chain, end: u64)
    where
        R: RingMemory,
        S: SlotMemory<Delivery = Self>,
    {
        notify::announce(context, chain, end);
    }

    #[inline(always)]
    fn reaped(&self) -> bool {
        self.notify.reaped()
    }

    #[inline(always)]
    fn is_awaited(&self) -> bool {
        self.awaited.is_awaited()
    }

    unsafe fn forget_target(&self) {
        // SAFETY: by the contract.
        unsafe { self.to.clear() };
    }

    unsafe fn clear(&self) -> bool {
        // SAFETY: by the contract.
        unsafe { self.to.clear() };
        // SAFETY: by the contract.
        unsafe { self.notify.clear() };
        // SAFETY: by the contract.
        unsafe { self.awaited.clear() }
    }
}
