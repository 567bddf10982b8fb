//! Slots: where requests live, and what a reservation is.
//!
//! A bitmap says which slots are taken. Taking some is one `fetch_or` of the
//! bits that looked free: those that were free are the caller's. Giving back is
//! one `fetch_and`. No list, so no ABA; up to 64 slots at a time.
//!
//! A slot is taken from the moment room is reserved until its event has been
//! reaped. There are no more slots than the ring has room, so whoever holds one
//! holds room in the ring as well: **the slot is the reservation**.
//!
//! # Who may touch a slot
//!
//! 1. Its *word*: anybody, by the rules of [`request`](crate::request).
//! 2. Its *private part* (the submitter's values and payload): who reserved it,
//!    until it is published; then who runs or has claimed it; once the event is
//!    in the ring, nobody, until a reaper has claimed the event; then that
//!    reaper, until it gives the slot back.
//!
//! Progress: giving back is wait-free. Taking is lock-free, and finds none only
//! when it saw every slot taken.

use crate::{
    delivery::{self, Delivery},
    poll::{Part, Polling},
    request::{Generation, Word},
    sync::{
        atomic::{AtomicU64, Ordering},
        cell::UnsafeCell,
        const_fn,
    },
};

/// What the submitter says of a request, and what comes back with its event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iocb {
    /// The submitter's own value; the event's `data`.
    pub data: u64,
    /// The submitter's object; the event's `obj`.
    pub obj: u64,
}

/// A request's private part.
#[derive(Debug)]
pub(crate) struct Private<T> {
    pub(crate) iocb: Iocb,
    pub(crate) payload: Option<T>,
}

/// Room for one request. See the [module](self).
#[derive(Debug)]
// In this order: what every request touches lies together.
#[repr(C)]
pub struct Slot<T, P = (), D = ()> {
    pub(crate) word: Word,
    pub(crate) private: UnsafeCell<Private<T>>,
    /// Where its completion goes, by the rules of [`delivery`](crate::delivery).
    pub(crate) delivery: D,
    /// Where it waits, by the rules of [`poll`](crate::poll).
    pub(crate) polling: P,
}

// SAFETY: the word is an atomic; the private part is accessed by one thread at
// a time, by the module's rules, and moves between threads: hence `T: Send`.
unsafe impl<T: Send, P: Sync, D: Sync> Sync for Slot<T, P, D> {}

impl<T, P: Part<T>, D: delivery::Part> Slot<T, P, D> {
    const_fn! {
        /// A free slot whose first life is `generation`.
        pub const fn new(generation: Generation) -> Self {
            Self {
                word: Word::new(generation),
                private: UnsafeCell::new(Private {
                    iocb: Iocb { data: 0, obj: 0 },
                    payload: None,
                }),
                #[cfg(not(loom))]
                polling: P::NEW,
                #[cfg(loom)]
                polling: P::new(),
                #[cfg(not(loom))]
                delivery: D::NEW,
                #[cfg(loom)]
                delivery: D::new(),
            }
        }
    }
}

/// Which of 64 slots are taken. Only a context writes it.
#[derive(Debug)]
pub struct Bits(AtomicU64);

impl Bits {
    const_fn! {
        /// None is.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }
}

impl Default for Bits {
    fn default() -> Self {
        Self::new()
    }
}

/// The memory that slots live in.
///
/// # Safety
///
/// Each method returns the same memory on every call, valid as long as `self`,
/// and new when the context is made; no other context is made in it meanwhile.
/// `taken` has at least one bit for each slot. There are at least 1 and at most
/// 2^24 slots.
pub unsafe trait SlotMemory {
    /// What a request carries while it is under way.
    type Payload;
    /// `()`, or what its requests need to [poll](crate::poll).
    type Polling: Polling<Self::Payload>;
    /// `()`, or what its requests need to be delivered [elsewhere](crate::delivery).
    type Delivery: Delivery;
    /// The slots.
    fn slots(&self) -> &[Slot<Self::Payload, Self::Polling, Self::Delivery>];
    /// One bit per slot, set while it is taken.
    fn taken(&self) -> &[Bits];
}

/// Up to 64 slots of one word of the bitmap, the caller's to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    word: usize,
    bits: u64,
}

impl Taken {
    /// How many there are.
    pub(crate) fn len(self) -> u32 {
        self.bits.count_ones()
    }
}

impl Iterator for Taken {
    type Item = u32;
    fn next(&mut self) -> Option<u32> {
        if self.bits == 0 {
            return None;
        }
        let bit = self.bits.trailing_zeros();
        self.bits &= self.bits - 1;
        Some(self.word as u32 * 64 + bit)
    }
}

/// The slots of a context.
#[derive(Debug)]
pub(crate) struct Slots<M>(pub(crate) M);

impl<M: SlotMemory> Slots<M> {
    pub(crate) fn get(&self, index: u32) -> Option<&Slot<M::Payload, M::Polling, M::Delivery>> {
        self.0.slots().get(index as usize)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.slots().len()
    }

    /// Takes at least one and at most `max` slots, or none if all are taken.
    pub(crate) fn take(&self, max: u32) -> Option<Taken> {
        let slots = self.len();
        for (word, taken) in self.0.taken()[..slots.div_ceil(64)].iter().enumerate() {
            let exist = match slots - word * 64 {
                64.. => u64::MAX,
                n => (1 << n) - 1,
            };
            // Ordering: Relaxed. A hint; the RMW below decides.
            let mut free = !taken.0.load(Ordering::Relaxed) & exist;
            while free != 0 {
                let wanted = lowest(free, max);
                // Ordering: Acquire pairs with the Release in `give_back`: the
                // last life's accesses come before this one's.
                let before = taken.0.fetch_or(wanted, Ordering::Acquire);
                let bits = wanted & !before;
                // Re-check: others may have won them all.
                if bits != 0 {
                    return Some(Taken { word, bits });
                }
                free = !before & exist;
            }
        }
        None
    }

    /// Gives slots back that the caller holds, whose words are Free.
    pub(crate) fn give_back(&self, slots: impl IntoIterator<Item = u32>) {
        let mut batch = Taken { word: 0, bits: 0 };
        for index in slots {
            let word = index as usize / 64;
            if word != batch.word {
                self.give_back_word(batch);
                batch = Taken { word, bits: 0 };
            }
            batch.bits |= 1 << (index % 64);
        }
        self.give_back_word(batch);
    }

    fn give_back_word(&self, batch: Taken) {
        if batch.bits != 0 {
            // Ordering: Release pairs with the Acquire in `take`.
            self.0.taken()[batch.word]
                .0
                .fetch_and(!batch.bits, Ordering::Release);
        }
    }
}

/// The lowest `n` of the bits that are set.
fn lowest(bits: u64, n: u32) -> u64 {
    if bits.count_ones() <= n {
        return bits;
    }
    let mut rest = bits;
    for _ in 0..n {
        rest &= rest - 1;
    }
    bits & !rest
}

/// Memory for `N` slots, at most 64 × `W`, inside the value itself.
#[derive(Debug)]
pub struct Inline<T, const N: usize, const W: usize = 1, P = (), D = ()> {
    slots: [Slot<T, P, D>; N],
    taken: [Bits; W],
}

impl<T, const N: usize, const W: usize, P: Part<T>, D: delivery::Part> Inline<T, N, W, P, D> {
    const SIZE: () = assert!(
        N >= 1 && N <= 64 * W && N <= 1 << 24,
        "from 1 to 64 slots per word of the bitmap"
    );

    #[cfg(not(loom))]
    /// Free slots; the first life of each is `generation`.
    pub const fn new(generation: Generation) -> Self {
        let () = Self::SIZE;
        // An array of a type that is not Copy: `[const { .. }; N]` cannot name
        // `generation`, so fill it one by one.
        let mut slots = [const { core::mem::MaybeUninit::<Slot<T, P, D>>::uninit() }; N];
        let mut i = 0;
        while i < N {
            slots[i] = core::mem::MaybeUninit::new(Slot::new(generation));
            i += 1;
        }
        Self {
            // SAFETY: every element was written; the layouts are the same.
            slots: unsafe {
                core::mem::transmute_copy::<
                    [core::mem::MaybeUninit<Slot<T, P, D>>; N],
                    [Slot<T, P, D>; N],
                >(&slots)
            },
            taken: [const { Bits::new() }; W],
        }
    }

    #[cfg(loom)]
    /// Free slots; the first life of each is `generation`.
    pub fn new(generation: Generation) -> Self {
        let () = Self::SIZE;
        Self {
            slots: core::array::from_fn(|_| Slot::new(generation)),
            taken: core::array::from_fn(|_| Bits::new()),
        }
    }
}

// SAFETY: arrays with at least one bit per slot, made zero, private to the value.
unsafe impl<T, const N: usize, const W: usize, P: Polling<T>, D: Delivery> SlotMemory
    for Inline<T, N, W, P, D>
{
    type Payload = T;
    type Polling = P;
    type Delivery = D;
    fn slots(&self) -> &[Slot<T, P, D>] {
        &self.slots
    }
    fn taken(&self) -> &[Bits] {
        &self.taken
    }
}

/// Memory for slots on the heap.
#[cfg(feature = "alloc")]
#[derive(Debug)]
pub struct Boxed<T, P = (), D = ()> {
    slots: alloc::boxed::Box<[Slot<T, P, D>]>,
    taken: alloc::boxed::Box<[Bits]>,
}

#[cfg(feature = "alloc")]
impl<T, P: Part<T>, D: delivery::Part> Boxed<T, P, D> {
    /// Memory for `n` slots.
    ///
    /// # Errors
    ///
    /// EINVAL for zero and for more than 2^24.
    pub fn new(n: usize) -> Result<Self, crate::error::Errno> {
        if n == 0 || n > 1 << 24 {
            return Err(crate::error::Errno::EINVAL);
        }
        Ok(Self {
            slots: (0..n).map(|_| Slot::new(Generation::MIN)).collect(),
            taken: (0..n.div_ceil(64)).map(|_| Bits::new()).collect(),
        })
    }
}

// SAFETY: boxed slices, never moved or resized, one bit per slot, made zero.
#[cfg(feature = "alloc")]
unsafe impl<T, P: Polling<T>, D: Delivery> SlotMemory for Boxed<T, P, D> {
    type Payload = T;
    type Polling = P;
    type Delivery = D;
    fn slots(&self) -> &[Slot<T, P, D>] {
        &self.slots
    }
    fn taken(&self) -> &[Bits] {
        &self.taken
    }
}
