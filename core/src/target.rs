//! Where the completion of a request goes: into its context's ring, or elsewhere.
//!
//! By default a completion is an event in the ring of the request's context. A context
//! whose slots have [`To`] beside them lets each request name a target instead: an
//! [asyncfd](crate::asyncfd). Who completes such a request takes the target out of the
//! slot, delivers the result there, and touches the slot no more once the result can be
//! seen: what the request carried is then the consumer's to [collect](Context::collect),
//! by the number that is the result's `obj`.
//!
//! | | completer | consumer |
//! |---|---|---|
//! | room in the target | *posted*, then stores the result | pops it, collects the payload |
//! | none | keeps it back: still claimed, linked by its slot | drains: *posted*, then stores it; and so on |
//! | target closed | delivers it into the ring of its context instead | – |
//!
//! So nothing is lost when a target is closed, also not what it had kept back: it comes
//! out of the context, as if it had named none.
//!
//! The number comes back out of memory that its user can write. It is checked against
//! what was posted, and where: a wrong one collects nothing, or what was to be collected
//! from the same target anyway.

use core::{fmt, pin::Pin};

use crate::{
    asyncfd::{AsyncfdResult, Lead, Leads as _},
    context::{Context, Handle, Request},
    delivery::Part,
    error::Errno,
    kept::{Back, Delivered, Kept, Over},
    poll::Refused,
    request::Generation,
    ring::{Event, RingMemory},
    slots::SlotMemory,
    sync::{
        atomic::{AtomicU64, AtomicUsize, Ordering},
        cell::UnsafeCell,
        const_fn, contain,
    },
};

/// A slot's part for a request that names where it is delivered, by a `D` that
/// [leads](Lead) there.
#[repr(C)]
pub struct To<D> {
    /// Which life of the slot is to be collected, plus one; zero for none.
    posted: AtomicU64,
    /// From where: the target's address.
    from: AtomicUsize,
    kept: Kept,
    /// The submitter's until it is published, then who claims it takes it out.
    target: UnsafeCell<Option<D>>,
}

// SAFETY: one thread at a time has the target and the node, by the rules of the slot.
unsafe impl<D: Send> Send for To<D> {}
// SAFETY: as for Send.
unsafe impl<D: Send> Sync for To<D> {}

impl<D> fmt::Debug for To<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("To").finish_non_exhaustive()
    }
}

impl<D> To<D> {
    const_fn! {
        const fn start() -> Self {
            Self {
                target: UnsafeCell::new(None),
                posted: AtomicU64::new(0),
                from: AtomicUsize::new(0),
                kept: Kept::new(),
            }
        }
    }

    /// # Safety
    ///
    /// The caller's own: who submits it, or who has claimed it.
    unsafe fn take(&self) -> Option<D> {
        self.target.with_mut(|target| {
            // SAFETY: by the contract.
            unsafe { (*target).take() }
        })
    }
}

/// 40 bits of which life of the slot it is.
const LIFE: u64 = u64::MAX >> INDEX_BITS;
const INDEX_BITS: u32 = 24;

/// What tells targets apart while they live.
fn place_of<D: Lead>(target: &D) -> usize {
    core::ptr::from_ref(target.asyncfd()).addr()
}

fn life(generation: Generation) -> u64 {
    generation.get() & LIFE
}

mod private {
    use super::{Lead, To};
    use crate::delivery::Part;

    /// Of a slot with this part, alone or beside others.
    pub trait Targets: Part {
        type Lead: Lead + Send + Sync;
        fn to(&self) -> &To<Self::Lead>;
    }
}
pub(crate) use private::Targets;

impl<D: Lead + Send + Sync> Targets for To<D> {
    type Lead = D;
    #[inline(always)]
    fn to(&self) -> &Self {
        self
    }
}

impl<D: Lead + Send + Sync> Part for To<D> {
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

    unsafe fn forget_target(&self) {
        // SAFETY: by the contract.
        unsafe { self.clear() };
    }

    unsafe fn clear(&self) -> bool {
        // SAFETY: by the contract.
        let lead = unsafe { self.take() };
        contain(|| drop(lead));
        true
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
    S::Delivery: Targets,
{
    let part = context.slot(handle.index() as u32).delivery.to();
    // SAFETY: claimed by the caller.
    let target = unsafe { part.take() };
    let names_one = target.is_some();
    if let Some(target) = target {
        // SAFETY: claimed by the caller.
        unsafe { deliver_to(context, handle, event, target) };
    }
    names_one
}

/// # Safety
///
/// As for [`deliver`].
unsafe fn deliver_to<R, S>(
    context: &Context<R, S>,
    handle: Handle,
    event: Event,
    target: <S::Delivery as Targets>::Lead,
) where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Targets,
{
    let part = context.slot(handle.index() as u32).delivery.to();
    let result = AsyncfdResult {
        cookie: event.data,
        obj: handle.number(),
        res: event.res,
        res2: event.res2,
    };
    // Until the last touch, also when the target ends with this.
    let _user = context.delivering();
    // Ordering: Relaxed. What is posted says when it counts.
    part.from.store(place_of(&target), Ordering::Relaxed);
    let back = Back {
        context: core::ptr::from_ref(context).cast(),
        index: handle.index() as u32,
        over: over::<R, S>,
    };
    // SAFETY: claimed; the node is in no list, since the last life was collected.
    match unsafe { target.asyncfd().deliver(result, &part.kept, back) } {
        Delivered::Stored => {}
        Delivered::Kept => context.kept_back(),
        // As if it had named none.
        Delivered::Refused => {
            context.publish(1, [(event, back.index)], Default::default());
        }
    }
    contain(|| drop(target));
}

/// What becomes of a request.
///
/// # Safety
///
/// `back` is of a claimed request of a `Context<R, S>`, which is told once.
unsafe fn over<R, S>(back: Back, result: AsyncfdResult, how: Over)
where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Targets,
{
    let context = back.context.cast::<Context<R, S>>();
    {
        // SAFETY: it is there as long as a request is under way, or kept back.
        let context = unsafe { &*context };
        let slot = context.slot(back.index);
        if how == Over::GivenUp {
            let event = Event {
                data: result.cookie,
                // SAFETY: claimed: told once.
                obj: unsafe { context.obj_of(back.index) },
                res: result.res,
                res2: result.res2,
            };
            context.publish(1, [(event, back.index)], Default::default());
        } else {
            let posted = life(slot.word.peek().generation()) + 1;
            // Ordering: Release pairs with the Acquire in `collect`: we are done with
            // the slot.
            slot.delivery.to().posted.store(posted, Ordering::Release);
        }
    }
    if how != Over::Stored {
        // SAFETY: it waits for this; the last touch.
        unsafe { Context::moved_in(context) };
    }
}

impl<R, S, D> Context<R, S>
where
    // A context that is forgotten is still told.
    R: RingMemory + 'static,
    S: SlotMemory + 'static,
    S::Delivery: Targets<Lead = D>,
    D: Lead + Send + Sync,
    // By whoever drains the target.
    Self: Sync,
    S::Payload: Send,
{
    /// Names where the completion of `request` goes, instead of what was said before. Its
    /// `data` is the result's cookie; the result's `obj` is its number, for [`collect`](Self::collect).
    ///
    /// What the target keeps back stays in this context: dropping the context waits, by
    /// spinning, until the target has moved it in, or its end was awaited
    /// ([`close`](crate::asyncfd::Asyncfd::close)), or it was dropped. So drop the context
    /// last, and let no request carry the last lead to a target: it goes after that.
    /// [Destroying](Self::destroy) does not wait for it.
    ///
    /// Who completes the request drops the lead: keep another one, or the target ends
    /// there.
    ///
    /// # Errors
    ///
    /// EINVAL: its `data` is zero, or it is another context's, or an
    /// [operation](crate::operation). It is given back.
    pub fn deliver_to<'c>(
        self: Pin<&'c Self>,
        request: Request<'c, R, S>,
        target: D,
    ) -> Result<Request<'c, R, S>, Refused<Request<'c, R, S>>> {
        if !request.belongs_to(&self) || request.data() == 0 || request.part().is_awaited() {
            return Err(Refused {
                error: Errno::EINVAL,
                request,
            });
        }
        let part = &self
            .get_ref()
            .slot(request.handle().index() as u32)
            .delivery;
        // SAFETY: not published: its owner's alone.
        unsafe { part.clear() };
        part.to().target.with_mut(|place| {
            // SAFETY: as above.
            unsafe { *place = Some(target) }
        });
        Ok(request)
    }

    /// What the request carried whose result in `target` had this number as its `obj`,
    /// and its handle. Its room is free then.
    ///
    /// `None`: there is no such result, or it was collected. A number from nowhere is
    /// no harm to anybody but the user of that target.
    pub fn collect(&self, target: &D, number: u64) -> Option<(S::Payload, Handle)> {
        let index = (number & !(u64::MAX << INDEX_BITS)) as u32;
        let posted = (number >> INDEX_BITS) + 1;
        self.take_posted(target, index, posted)
    }
}

impl<R, S, D> Context<R, S>
where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Targets<Lead = D>,
    D: Lead + Send + Sync,
{
    /// Collects what was stored in `target` and not collected: once it was
    /// [closed](crate::asyncfd::Asyncfd::close), whatever became of its memory. Looks at
    /// every slot.
    pub fn collect_rest(&self, target: &D, mut each: impl FnMut(S::Payload, Handle)) {
        for index in 0..self.capacity() as u32 {
            let Some((payload, handle)) = self.collect_at(target, index) else {
                continue;
            };
            each(payload, handle);
        }
    }

    fn collect_at(&self, target: &D, index: u32) -> Option<(S::Payload, Handle)> {
        // Ordering: Relaxed. Looked at again.
        let posted = self
            .slot_of(index)?
            .delivery
            .to()
            .posted
            .load(Ordering::Relaxed);
        self.take_posted(target, index, posted)
    }

    fn take_posted(&self, target: &D, index: u32, posted: u64) -> Option<(S::Payload, Handle)> {
        let slot = self.slot_of(index)?;
        // Ordering: Acquire pairs with the Release in `over`: who delivered it is done
        // with the slot.
        // Re-check: there is something to collect.
        if posted == 0 || slot.delivery.to().posted.load(Ordering::Acquire) != posted {
            return None;
        }
        // Ordering: Relaxed. Seen with what was posted; of this life, or the
        // compare-and-swap fails.
        // Re-check: it is not another target's.
        if slot.delivery.to().from.load(Ordering::Relaxed) != place_of(target) {
            return None;
        }
        // Ordering: Relaxed. What it takes is what was loaded: it is stored once a life.
        let collected = slot.delivery.to().posted.compare_exchange(
            posted,
            0,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        // Re-check: it is collected once.
        if collected.is_err() {
            return None;
        }
        self.free(index)
    }
}

impl Handle {
    /// What names the request in a result's `obj`: its slot, and 40 bits of which life.
    pub fn number(self) -> u64 {
        life(self.generation()) << INDEX_BITS | self.index() as u64
    }
}
