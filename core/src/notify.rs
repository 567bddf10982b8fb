//! Notifications: who is told of a completion, besides who reaps it.
//!
//! A request can name something that is to be done once its event is visible in the
//! ring: a signal sent, a descriptor written. That is its [`Notification`]. It lives in
//! the request's slot from the submission on, so nothing is allocated when the request
//! completes, and nothing can be missing then.
//!
//! # The slot has two holders
//!
//! | | reaper | who notifies |
//! |---|---|---|
//! | is first | takes the payload, leaves the slot taken | leaves the slot to the reaper |
//! | is last | gives the slot back | gives the slot back |
//!
//! So the room of a request is free when its event was reaped *and* its notification was
//! delivered. A notification that cannot be delivered now keeps its slot: who submits
//! meets EAGAIN before anybody loses a notification.
//!
//! # Visible first
//!
//! An event behind another one that is not finished is not visible, and who is told of
//! it would find nothing. Then its notification goes onto a stack, and whoever extends
//! the visible prefix tells those that it uncovers:
//!
//! | completer | |
//! |---|---|
//! | publishes; its event is visible | tells its own, and looks at the stack |
//! | publishes behind a gap | pushes its own, and looks at the stack |
//! | looks at the stack | takes all, tells the visible, pushes the others again, and looks whether the first of them has become visible meanwhile |
//!
//! Who fills a gap publishes, fences, and looks at the stack; who has pushed fences, and
//! looks at the prefix. At least one of them sees the other.
//!
//! # Not now
//!
//! [`Notification::notify`] may say that it cannot be done now. The notification then
//! waits until somebody calls [`Context::notify_again`], which whoever cannot do it has
//! to see to. Dropping the context releases what was not delivered.
//!
//! # Progress
//!
//! Lock-free: a completer waits for nobody, and does what others left only if it has
//! just uncovered it.

use core::fmt;

use crate::{
    context::{Context, Request},
    delivery::Part,
    error::Errno,
    poll::Refused,
    ring::RingMemory,
    slots::SlotMemory,
    sync::{
        atomic::{Ordering, fence},
        contain,
    },
};

/// What is done once a request's event is visible.
pub trait Notification: Send + Sized {
    /// Does it, or says that it cannot be done now, and gives itself back: then somebody
    /// has to call [`Context::notify_again`] some time.
    ///
    /// Called once a visible event, by whoever completes, with no lock held: it must not
    /// block, nor drop the context. If it panics it counts as delivered, where there is `std`; else it must not.
    ///
    /// # Errors
    ///
    /// Itself, to be tried again.
    fn notify(self) -> Result<(), Self>;

    /// What the request came to, which is not visible yet: `res` of its event. Called
    /// before [`notify`](Self::notify), once, by whoever completes; it must do no more than
    /// remember that. By default it does not.
    fn completed(&mut self, res: i64) {
        let _ = res;
    }
}

/// A slot's part for a request whose completion somebody is told of.
pub struct Notify<N>(Note<N>);

impl<N> fmt::Debug for Notify<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notify").finish_non_exhaustive()
    }
}

/// Of who holds the slot.
const NOTED: u32 = 1;
const REAPED: u32 = 1 << 1;
const DELIVERED: u32 = 1 << 2;

pub(crate) mod parts {
    use core::{fmt, ptr};

    use super::Notification;
    use crate::sync::{
        atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering},
        cell::UnsafeCell,
        const_fn, contain,
    };

    /// A notification, in its slot, and in a list by it.
    #[repr(C)]
    pub(super) struct Note<N> {
        /// Zero: there is none. See the constants.
        pub(super) hold: AtomicU32,
        /// The submitter's until it is published; then who completes; then who has it in a
        /// list.
        what: UnsafeCell<Option<N>>,
        /// As `what`.
        link: UnsafeCell<Link<N>>,
    }

    pub(super) struct Link<N> {
        next: *const Note<N>,
        /// Once the prefix has come here its event is visible.
        pub(super) end: u64,
        /// Of its slot.
        pub(super) index: u32,
    }

    // SAFETY: one thread at a time has the notification, by the rules of the slot.
    unsafe impl<N: Send> Send for Note<N> {}
    // SAFETY: as for Send.
    unsafe impl<N: Send> Sync for Note<N> {}

    impl<N> Note<N> {
        const_fn! {
            pub(super) const fn new() -> Self {
                Self {
                    what: UnsafeCell::new(None),
                    hold: AtomicU32::new(0),
                    link: UnsafeCell::new(Link { next: ptr::null(), end: 0, index: 0 }),
                }
            }
        }

        /// # Safety
        ///
        /// The caller's.
        pub(super) unsafe fn put(&self, what: N) {
            self.what.with_mut(|place| {
                // SAFETY: by the contract.
                unsafe { *place = Some(what) }
            });
        }

        /// # Safety
        ///
        /// The caller's.
        pub(super) unsafe fn take(&self) -> Option<N> {
            self.what.with_mut(|place| {
                // SAFETY: by the contract.
                unsafe { (*place).take() }
            })
        }

        /// # Safety
        ///
        /// The caller's.
        pub(super) unsafe fn completed(&self, res: i64)
        where
            N: Notification,
        {
            self.what.with_mut(|place| {
                // SAFETY: by the contract.
                if let Some(what) = unsafe { &mut *place } {
                    contain(|| what.completed(res));
                }
            });
        }

        /// # Safety
        ///
        /// The caller's, in no list but its own.
        pub(super) unsafe fn link<O>(&self, f: impl FnOnce(&mut Link<N>) -> O) -> O {
            self.link.with_mut(|link| {
                // SAFETY: by the contract.
                f(unsafe { &mut *link })
            })
        }
    }

    /// Notes that are the caller's, the last on top.
    pub struct Chain<N>(*const Note<N>);

    impl<N> fmt::Debug for Chain<N> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Chain").finish_non_exhaustive()
        }
    }

    impl<N> Clone for Chain<N> {
        fn clone(&self) -> Self {
            *self
        }
    }
    impl<N> Copy for Chain<N> {}

    impl<N> Default for Chain<N> {
        fn default() -> Self {
            Self(ptr::null())
        }
    }

    impl<N> Chain<N> {
        pub(super) fn is_empty(self) -> bool {
            self.0.is_null()
        }

        /// # Safety
        ///
        /// The note is the caller's, in no list, and stays while it is in this one.
        pub(super) unsafe fn push(&mut self, note: &Note<N>) {
            // SAFETY: by the contract.
            unsafe { note.link(|link| link.next = self.0) };
            self.0 = note;
        }

        /// Takes the top one off.
        pub(super) fn pop<'c>(&mut self) -> Option<&'c Note<N>> {
            // SAFETY: in a list it stays; and it is the caller's.
            let note = unsafe { self.0.as_ref() }?;
            // SAFETY: as above.
            self.0 = unsafe { note.link(|link| link.next) };
            Some(note)
        }

        pub(super) fn reversed(mut self) -> Self {
            let mut all = Self::default();
            while let Some(note) = self.pop() {
                // SAFETY: just taken off.
                unsafe { all.push(note) };
            }
            all
        }
    }

    /// What a context knows of notifications that wait.
    pub struct Pending<N> {
        /// Those whose events were not visible.
        pub(super) hidden: AtomicPtr<Note<N>>,
        /// Those that could not be delivered.
        pub(super) again: AtomicPtr<Note<N>>,
        /// The visible prefix goes at least so far.
        pub(super) seen: AtomicU64,
    }

    impl<N> fmt::Debug for Pending<N> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Pending").finish_non_exhaustive()
        }
    }

    impl<N> Pending<N> {
        /// Before anything is published at `position`.
        pub(super) fn new(position: u64) -> Self {
            Self {
                hidden: AtomicPtr::new(ptr::null_mut()),
                again: AtomicPtr::new(ptr::null_mut()),
                seen: AtomicU64::new(position),
            }
        }
    }

    /// Pushes all of `chain`, its first one first.
    pub(super) fn push_all<N>(stack: &AtomicPtr<Note<N>>, mut chain: Chain<N>) {
        while let Some(note) = chain.pop() {
            // Ordering: Relaxed. The compare-and-swap decides.
            let mut top = stack.load(Ordering::Relaxed);
            loop {
                // SAFETY: taken off, the caller's.
                unsafe { note.link(|link| link.next = top) };
                let this = ptr::from_ref(note).cast_mut();
                // Ordering: Release pairs with the Acquire in `take_all`: the note.
                match stack.compare_exchange_weak(top, this, Ordering::Release, Ordering::Relaxed) {
                    Ok(_) => break,
                    Err(now) => top = now,
                }
            }
        }
    }

    pub(super) fn take_all<N>(stack: &AtomicPtr<Note<N>>) -> Chain<N> {
        // Ordering: Acquire pairs with the Release in `push_all`.
        Chain(stack.swap(ptr::null_mut(), Ordering::Acquire))
    }
}
use parts::{Chain, Note, Pending, push_all, take_all};

mod private {
    use super::{Notification, Notify, Pending};
    use crate::delivery::Part;

    /// Of a slot with this part, alone or beside others.
    pub trait Notifies: Part<Chain = super::Chain<Self::Notification>> {
        type Notification: Notification;
        fn notify(&self) -> &Notify<Self::Notification>;
        fn of(pending: &Self::Pending) -> &Pending<Self::Notification>;
    }
}
pub(crate) use private::Notifies;

impl<N: Notification> Notifies for Notify<N> {
    type Notification = N;
    #[inline(always)]
    fn notify(&self) -> &Self {
        self
    }
    #[inline(always)]
    fn of(pending: &Pending<N>) -> &Pending<N> {
        pending
    }
}

/// What the notifications of a context that wait have together.
fn pending<R, S, N>(context: &Context<R, S>) -> &Pending<N>
where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Notifies<Notification = N>,
    N: Notification,
{
    <S::Delivery as Notifies>::of(context.pending())
}

impl<N: Notification> Part for Notify<N> {
    type Chain = Chain<N>;
    type Pending = Pending<N>;

    #[cfg(not(loom))]
    const NEW: Self = Self(Note::new());
    #[cfg(loom)]
    fn new() -> Self {
        Self(Note::new())
    }

    fn pending(position: u64) -> Pending<N> {
        Pending::new(position)
    }

    unsafe fn note(&self, index: u32, res: i64, chain: &mut Chain<N>) {
        // Ordering: Relaxed. The submitter's, whose publication came before.
        if self.0.hold.load(Ordering::Relaxed) == 0 {
            return;
        }
        // SAFETY: claimed by the caller, by the contract.
        unsafe { self.0.completed(res) };
        // SAFETY: as above.
        unsafe { self.0.link(|link| link.index = index) };
        // SAFETY: as above; and it stays, for its slot is held by it.
        unsafe { chain.push(&self.0) };
    }

    fn announce<R, S>(context: &Context<R, S>, chain: Chain<N>, end: u64)
    where
        R: RingMemory,
        S: SlotMemory<Delivery = Self>,
    {
        announce(context, chain, end);
    }

    fn reaped(&self) -> bool {
        let hold = &self.0.hold;
        // Ordering: Relaxed. Zero for the whole of this life, or not at all.
        if hold.load(Ordering::Relaxed) == 0 {
            return true;
        }
        // Ordering: AcqRel. Release pairs with the Acquire in `done`: what the reaper
        // took out comes before the next life; Acquire pairs with the Release there: the
        // note is out of use.
        let before = hold.fetch_or(REAPED, Ordering::AcqRel);
        // Re-check: it is told yet.
        if before & DELIVERED == 0 {
            return false;
        }
        // Ordering: Relaxed. Giving the slot back publishes it.
        hold.store(0, Ordering::Relaxed);
        true
    }

    unsafe fn clear(&self) -> bool {
        // Ordering: Relaxed. The caller's own.
        self.0.hold.store(0, Ordering::Relaxed);
        // SAFETY: by the contract.
        let what = unsafe { self.0.take() };
        contain(|| drop(what));
        true
    }
}

/// The events of these notes were published, up to `end`: tells whoever is to be told
/// now, of these and of others.
pub(crate) fn announce<R, S, N>(context: &Context<R, S>, mut chain: Chain<N>, end: u64)
where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Notifies<Notification = N>,
    N: Notification,
{
    let pending = pending(context);
    let mut own = Chain::default();
    while let Some(note) = chain.pop() {
        // SAFETY: completed by the caller, in no other list.
        unsafe { note.link(|link| link.end = end) };
        // SAFETY: as above.
        unsafe { own.push(note) };
    }
    // The first of them on top.
    if !own.is_empty() {
        if prefix_has_come_to(context, end) {
            tell_all(context, own);
        } else {
            push_all(&pending.hidden, own);
        }
    }
    loop {
        // Ordering: Relaxed. What it leads to is read behind the swap; and it is behind
        // the fence, SeqCst, of the wake that is a part of publishing: who fills a gap
        // sees what is on the stack, or who put it there sees the gap filled, below.
        if pending.hidden.load(Ordering::Relaxed).is_null() {
            return;
        }
        let mut all = take_all(&pending.hidden).reversed();
        let (mut visible, mut hidden) = (Chain::default(), Chain::default());
        let mut first = None;
        while let Some(note) = all.pop() {
            // SAFETY: taken off.
            let end = unsafe { note.link(|link| link.end) };
            if prefix_has_come_to(context, end) {
                // SAFETY: as above.
                unsafe { visible.push(note) };
            } else {
                // The one that becomes visible first: they are in no order.
                first = match first {
                    Some(first) if comes_before(first, end) => Some(first),
                    _ => Some(end),
                };
                // SAFETY: as above.
                unsafe { hidden.push(note) };
            }
        }
        push_all(&pending.hidden, hidden.reversed());
        tell_all(context, visible.reversed());
        let Some(first) = first else {
            return;
        };
        // Ordering: SeqCst, against the fence of publishing: who filled the gap before
        // they were on the stack, or while we had them off, found nothing.
        fence(Ordering::SeqCst);
        // Re-check: one of them is visible now.
        if !prefix_has_come_to(context, first) {
            return;
        }
    }
}

/// Whether all that was published up to `end` is visible, or was.
fn prefix_has_come_to<R, S, N>(context: &Context<R, S>, end: u64) -> bool
where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Notifies<Notification = N>,
    N: Notification,
{
    let seen = &pending(context).seen;
    // Ordering: Acquire pairs with the Release below: the marks before it. A hint: if it
    // is old, more is walked over.
    let from = seen.load(Ordering::Acquire);
    let now = context.prefix(from);
    if now != from {
        // Ordering: Release, as said.
        seen.store(now, Ordering::Release);
    }
    !comes_before(now, end)
}

/// Whether one position comes before another.
fn comes_before(this: u64, that: u64) -> bool {
    (this.wrapping_sub(that) as i64) < 0
}

/// Delivers those whose events are visible, and tells how many could not be delivered.
fn tell_all<R, S, N>(context: &Context<R, S>, mut chain: Chain<N>) -> usize
where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Notifies<Notification = N>,
    N: Notification,
{
    let mut again = 0;
    while let Some(note) = chain.pop() {
        // SAFETY: the caller's.
        let mut what = unsafe { note.take() };
        contain(|| what = what.take().and_then(|what| what.notify().err()));
        let Some(what) = what else {
            told(context, note);
            continue;
        };
        again += 1;
        // SAFETY: as above.
        unsafe { note.put(what) };
        let mut one = Chain::default();
        // SAFETY: as above.
        unsafe { one.push(note) };
        push_all(&pending(context).again, one);
    }
    again
}

/// It was delivered: the slot's other holder goes.
fn told<R, S, N>(context: &Context<R, S>, note: &Note<N>)
where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Notifies<Notification = N>,
    N: Notification,
{
    // SAFETY: the caller's, until the next line.
    let index = unsafe { note.link(|link| link.index) };
    // Ordering: AcqRel. Release pairs with the Acquire in `reaped`: we are done with the
    // note; Acquire pairs with the Release there: the reaper is done with the slot.
    let before = note.hold.fetch_or(DELIVERED, Ordering::AcqRel);
    // Re-check: it was not reaped before.
    if before & REAPED != 0 {
        // Ordering: Relaxed. Giving the slot back publishes it.
        note.hold.store(0, Ordering::Relaxed);
        context.give_back(index);
    }
}

impl<R, S, N> Context<R, S>
where
    R: RingMemory,
    S: SlotMemory,
    S::Delivery: Notifies<Notification = N>,
    N: Notification,
{
    /// Has `what` done once the completion of `request` is visible, instead of what was
    /// said before. If the request is refused after all, it is dropped.
    ///
    /// # Errors
    ///
    /// EINVAL: it is another context's, or an [operation](crate::operation). It is given
    /// back.
    pub fn notify_by<'c>(
        &'c self,
        request: Request<'c, R, S>,
        what: N,
    ) -> Result<Request<'c, R, S>, Refused<Request<'c, R, S>>> {
        if !request.belongs_to(self) || request.part().is_awaited() {
            return Err(Refused {
                error: Errno::EINVAL,
                request,
            });
        }
        let part = request.part();
        // SAFETY: not published: its owner's alone.
        unsafe { part.clear() };
        let note = &part.notify().0;
        // SAFETY: as above.
        unsafe { note.put(what) };
        // Ordering: Relaxed. Published with the request.
        note.hold.store(NOTED, Ordering::Relaxed);
        Ok(request)
    }

    /// Tries again to deliver what could not be delivered, in the order in which that
    /// was found out, and tells how many of them still cannot. For ordinary callers.
    pub fn notify_again(&self) -> usize {
        tell_all(self, take_all(&pending(self).again).reversed())
    }
}
