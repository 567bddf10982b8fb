//! The request word: completion, cancellation and wake-up meet in one atomic.
//!
//! Three parties can end a request: the one who completes it, the one who
//! cancels it, and, for a poll, the one who wakes it. Exactly one may. Each
//! request therefore has **one word** that says how far it is, and every
//! transition that can race is one read-modify-write of that word. Two words
//! could not do it: a winner that claims with the first and reads the events
//! from the second drops what arrives in between.
//!
//! ```text
//!  63                               22 21        6   5     4     3    2..0
//! +-----------------------------------+-----------+-----+-----+-----+-------+
//! | generation (42)                   | events 16 |again|expir|cancl| phase |
//! +-----------------------------------+-----------+-----+-----+-----+-------+
//! ```
//!
//! * *phase*: see below; bit 2 set means claimed, whatever the others say.
//! * *cancel*: cancellation was asked for while nobody could be stopped.
//! * *expired*: so did its time limit.
//! * *again*: a keyless wake came meanwhile: look once more.
//! * *events*: what fired so far. The claim returns all that came before it.
//! * *generation*: the slot's life. A handle names one life; who does not pin
//!   the slot changes the word only by compare-and-swap against that life, so
//!   that a late canceller meets an error and not somebody else's request.
//!
//! ```text
//!             publish          arm
//!      Free ----------->  Early  ----------->  Armed
//!       ^ |                 |   <-----------   |   |
//!       | |                 |     look_again   |   |
//!       | +-----------------|---- publish -----+   | start
//!       | |                 |                  |   v
//!       | +--- publish -----|--------- Running-|-> Running
//!       | |                 v                  |   |
//!       | +- publish ->  Claimed  <------------+---+   wake, cancel, claim
//!       +------------------ +
//!            free (generation + 1)
//! ```
//!
//! # States × operations
//!
//! | | `arm` (owner) | `start` | `claim` | `claim_running` (owner) | `wake` | `look_again` | `cancel` |
//! |---|---|---|---|---|---|---|---|
//! | Free | – | gone | gone | – | gone | gone | gone |
//! | Early | Armed, or claimed by what came meanwhile | busy | busy | – | recorded | recorded | recorded |
//! | Armed | – | Running | **won** | – | **won** | Early, the caller's | **won** |
//! | Running | – | busy | busy | **won** | recorded | busy | recorded |
//! | Claimed | – | late | late | – | late | late | late |
//! | another generation | – | gone | gone | – | gone | gone | gone |
//!
//! *Owner* pins the slot: the submitter while Early, or who looks at the source;
//! the worker while Running. `expire` is `cancel` by a clock.
//!
//! Before publication the word still says Free of its generation: nobody can
//! have the handle, a guessed one is *gone*, and so the first store needs no
//! read-modify-write. From arm to completion a ring request costs one.
//!
//! Progress: `publish`, `claim_running`, `free` are wait-free; the rest is
//! lock-free, and retries only when another party changed the same request.
//!
//! # What it answers to
//!
//! A wake in Early is neither dropped nor turned into an error: [`Word::arm`]
//! finds it. A cancel in Early is honoured by `arm`, unless an event came too:
//! the event wins, for it happened. A keyless wake claims nothing: it takes the
//! request back to where it was when its submitter looked at the source, for the
//! waker to look and to arm it again. So there is one look, and one way to miss
//! nothing that happens meanwhile.

use crate::{
    error::Errno,
    sync::{
        atomic::{AtomicU64, Ordering},
        const_fn,
    },
};

const PHASE: u64 = 0b111;
const FREE: u64 = 0;
const EARLY: u64 = 1;
const ARMED: u64 = 2;
const RUNNING: u64 = 3;
const CLAIMED: u64 = 0b100;
const CANCEL: u64 = 1 << 3;
const EXPIRED: u64 = 1 << 4;
const AGAIN: u64 = 1 << 5;
const EVENTS_SHIFT: u32 = 6;
const EVENTS: u64 = 0xffff << EVENTS_SHIFT;
const GENERATION_SHIFT: u32 = 22;

/// Which life of a slot; 42 bits, and back to zero after the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation(u64);

impl Generation {
    /// The last before the counter starts again.
    pub const MAX: Self = Self(u64::MAX >> GENERATION_SHIFT);
    /// The first.
    pub const MIN: Self = Self(0);

    /// The generation with this number, of which the low 42 bits count.
    pub const fn new(number: u64) -> Self {
        Self(number & Self::MAX.0)
    }

    /// The number, below 2^42.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after it.
    pub const fn next(self) -> Self {
        Self::new(self.0 + 1)
    }

    const fn word(self, phase: u64) -> u64 {
        self.0 << GENERATION_SHIFT | phase
    }
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody's, or reserved and not yet published.
    Free,
    /// Published, and not yet cancellable: its submitter is still at it, or
    /// somebody looks at its source.
    Early,
    /// Waiting. Whoever comes first ends it.
    Armed,
    /// A worker has it and will end it. A cancel is a request to that worker.
    Running,
    /// Ended; being delivered, or delivered and not yet reaped.
    Claimed,
}

/// The word at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Snapshot(u64);

impl Snapshot {
    /// How far the request was.
    pub const fn phase(self) -> Phase {
        match self.0 & PHASE {
            FREE => Phase::Free,
            EARLY => Phase::Early,
            ARMED => Phase::Armed,
            RUNNING => Phase::Running,
            _ => Phase::Claimed,
        }
    }

    /// The events that had fired.
    pub const fn events(self) -> u16 {
        ((self.0 & EVENTS) >> EVENTS_SHIFT) as u16
    }

    /// Whether cancellation had been asked for.
    pub const fn cancel_requested(self) -> bool {
        self.0 & CANCEL != 0
    }

    /// Whether its time limit had passed.
    pub const fn expired(self) -> bool {
        self.0 & EXPIRED != 0
    }

    /// Which life of the slot it was.
    pub const fn generation(self) -> Generation {
        Generation(self.0 >> GENERATION_SHIFT)
    }

    const fn is(self, generation: Generation, phase: Phase) -> bool {
        self.generation().0 == generation.0 && self.phase() as u8 == phase as u8
    }

    /// Why a transition that found this did not happen.
    const fn miss(self, generation: Generation) -> Miss {
        // Re-check: whose word it is now.
        if self.generation().0 != generation.0 {
            return Miss::Gone;
        }
        match self.phase() {
            Phase::Free => Miss::Gone,
            Phase::Claimed => Miss::Late,
            _ => Miss::Busy,
        }
    }
}

impl core::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Snapshot")
            .field("phase", &self.phase())
            .field("cancel_requested", &self.cancel_requested())
            .field("expired", &self.expired())
            .field("events", &self.events())
            .field("generation", &self.generation().0)
            .finish_non_exhaustive()
    }
}

/// Why a request was not the caller's to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// That life of the slot is over, or has not begun.
    Gone,
    /// Somebody claimed it before.
    Late,
    /// Its submitter or a worker has it.
    Busy,
}

impl From<Miss> for Errno {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::Gone => Self::ENOENT,
            Miss::Late => Self::EALREADY,
            Miss::Busy => Self::EBUSY,
        }
    }
}

/// What [`Word::arm`] found.
#[must_use = "`Ready` and `Cancelled` are claims: drop one and the request never completes"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// Armed: whoever comes first ends it, and it may have ended already.
    Armed,
    /// Events had fired: claimed by the caller, who completes with them.
    Ready(Snapshot),
    /// Cancelled or expired, and nothing had fired: claimed by the caller, who
    /// completes with ECANCELED or ETIME.
    Cancelled(Snapshot),
    /// A keyless wake came: still Early; look at the source and arm again.
    LookAgain,
}

/// What became of a wake.
#[must_use = "`Won` is a claim: drop it and the request never completes"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Claimed by the caller, who completes with the snapshot's events (which
    /// include the caller's).
    Won(Snapshot),
    /// Noted; whoever has the request completes it with these events.
    Recorded,
    /// Not needed any more, or the request is gone.
    Missed(Miss),
}

/// What a keyless wake asks of the waker.
#[must_use = "`Look` makes the caller the request's owner: drop it and it never completes"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recheck {
    /// It is Early again, and the caller's: look at the source, then
    /// [arm](Word::arm) or [claim](Word::claim_owned) it.
    Look,
    /// Whoever has the request, or looks right now, will look again.
    Recorded,
    /// Not needed any more, or the request is gone.
    Missed(Miss),
}

/// What became of a cancellation.
#[must_use = "`Won` is a claim: drop it and the request never completes"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// Claimed by the caller, who completes with ECANCELED or ETIME, as the
    /// snapshot says.
    Won(Snapshot),
    /// Asked of the submitter or of the worker; the completion follows.
    Recorded,
    /// Asked before.
    Again,
    /// Completing already, or gone.
    Missed(Miss),
}

/// A request's word. See the [module](self).
///
/// ```
/// # uaio_core::sync::thread::model(|| {
/// use uaio_core::request::{Arm, Cancel, Generation, Miss, Phase, Wake, Word};
///
/// let life = Generation::MIN;
/// let word = Word::new(life);
/// word.publish(life, Phase::Early);
///
/// // While its submitter is still at it, what comes is recorded ...
/// assert_eq!(word.wake(life, 0x1), Wake::Recorded);
/// assert_eq!(word.cancel(life), Cancel::Recorded);
/// // ... and an event that fired is stronger than a cancel.
/// let Arm::Ready(claim) = word.arm(life) else { panic!() };
/// assert_eq!(claim.events(), 0x1);
///
/// word.free(life);
/// assert_eq!(word.cancel(life), Cancel::Missed(Miss::Gone));
/// # });
/// ```
#[derive(Debug)]
pub struct Word(AtomicU64);

impl Word {
    const_fn! {
        /// A free slot's word; `generation` is its first life.
        pub const fn new(generation: Generation) -> Self {
            Self(AtomicU64::new(generation.word(FREE)))
        }
    }

    /// The word now, for who decides nothing by it.
    #[inline]
    pub fn peek(&self) -> Snapshot {
        // Ordering: none. Every decision is made by a later RMW on this word.
        Snapshot(self.0.load(Ordering::Relaxed))
    }

    /// One racing transition: from what is there, by `step`, in one RMW; or
    /// what was there when `step` had nothing to offer.
    ///
    /// `guess` is the expected word. The first attempt needs no load.
    #[inline]
    fn transition(
        &self,
        guess: u64,
        step: impl Fn(Snapshot) -> Option<u64>,
    ) -> Result<Snapshot, Snapshot> {
        let mut seen = guess;
        loop {
            let Some(next) = step(Snapshot(seen)) else {
                return Err(Snapshot(seen));
            };
            // Ordering: AcqRel. Acquire pairs with the Release in `publish` and
            // with the other transitions': the winner reads the payload that
            // the submitter wrote, and what each waker did before its wake.
            // Release: what this party did before is seen by who claims later.
            // Failure Relaxed: it decides nothing but the next attempt, and who
            // is told "missed" reads nothing of the request.
            match self
                .0
                .compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return Ok(Snapshot(seen)),
                Err(actual) => seen = actual,
            }
        }
    }

    /// Makes a reserved slot's request known, in `phase`.
    ///
    /// Only for the owner of a slot whose word is Free of `generation`. Nobody
    /// else writes such a word: its handle does not exist yet.
    #[inline]
    pub fn publish(&self, generation: Generation, phase: Phase) {
        let phase = match phase {
            Phase::Free => FREE,
            Phase::Early => EARLY,
            Phase::Armed => ARMED,
            Phase::Running => RUNNING,
            Phase::Claimed => CLAIMED,
        };
        // Ordering: Release pairs with the Acquire of every transition: who
        // finds the request published finds its payload written.
        self.0.store(generation.word(phase), Ordering::Release);
    }

    /// Early → Armed, unless something came meanwhile. Only for the owner.
    pub fn arm(&self, generation: Generation) -> Arm {
        let armed = self.transition(generation.word(EARLY), |seen| {
            debug_assert!(seen.is(generation, Phase::Early), "{seen:?}");
            // Re-check: keyless wakes that came while it was Early. What they tell of
            // is found by a look, also if something else is known already.
            if seen.0 & AGAIN != 0 {
                return Some(seen.0 & !AGAIN);
            }
            // Re-check: wakes with events.
            if seen.events() != 0 {
                return Some(seen.0 | CLAIMED);
            }
            // Re-check: a cancel. An event that fired wins over it.
            if seen.0 & (CANCEL | EXPIRED) != 0 {
                return Some(seen.0 | CLAIMED);
            }
            Some(seen.0 & !PHASE | ARMED)
        });
        // `step` always offers a transition, so there is no `Err`.
        let (Ok(was) | Err(was)) = armed;
        if was.0 & AGAIN != 0 {
            Arm::LookAgain
        } else if was.events() != 0 {
            Arm::Ready(was)
        } else if was.0 & (CANCEL | EXPIRED) != 0 {
            Arm::Cancelled(was)
        } else {
            Arm::Armed
        }
    }

    /// Armed → Running: the caller will end it.
    pub fn start(&self, generation: Generation) -> Result<Snapshot, Miss> {
        self.transition(generation.word(ARMED), |seen| {
            seen.is(generation, Phase::Armed)
                .then_some(seen.0 & !PHASE | RUNNING)
        })
        .map_err(|seen| seen.miss(generation))
    }

    /// Armed → Claimed: the caller delivers the completion.
    #[inline]
    pub fn claim(&self, generation: Generation) -> Result<Snapshot, Miss> {
        self.transition(generation.word(ARMED), |seen| {
            seen.is(generation, Phase::Armed)
                .then_some(seen.0 | CLAIMED)
        })
        .map_err(|seen| seen.miss(generation))
    }

    /// Early or Running → Claimed. Only for the owner: nobody else may claim
    /// then, so it cannot fail, and the slot is pinned, so it cannot hit
    /// another life.
    pub fn claim_owned(&self) -> Snapshot {
        // Ordering: Acquire pairs with the Release in `transition`: the owner sees
        // what came before a wake or a cancel that was recorded. No Release: a
        // claimed word tells nobody to read anything.
        Snapshot(self.0.fetch_or(CLAIMED, Ordering::Acquire))
    }

    /// The source reports `events` that the request waits for (never none).
    pub fn wake(&self, generation: Generation, events: u16) -> Wake {
        debug_assert!(events != 0, "a wake without events is `look_again`");
        let bits = u64::from(events) << EVENTS_SHIFT;
        let woken = self.transition(generation.word(ARMED), |seen| {
            // Re-check: not another life's.
            if seen.generation() != generation {
                return None;
            }
            match seen.phase() {
                Phase::Armed => Some(seen.0 | bits | CLAIMED),
                Phase::Early | Phase::Running => Some(seen.0 | bits),
                Phase::Free | Phase::Claimed => None,
            }
        });
        match woken {
            Ok(was) if was.phase() == Phase::Armed => Wake::Won(Snapshot(was.0 | bits)),
            Ok(_) => Wake::Recorded,
            Err(seen) => Wake::Missed(seen.miss(generation)),
        }
    }

    /// The source changed and does not say how: somebody has to look.
    pub fn look_again(&self, generation: Generation) -> Recheck {
        let noted = self.transition(generation.word(ARMED), |seen| {
            // Re-check: not another life's.
            if seen.generation() != generation {
                return None;
            }
            match seen.phase() {
                Phase::Armed => Some(seen.0 & !PHASE | EARLY),
                Phase::Early => Some(seen.0 | AGAIN),
                Phase::Running | Phase::Free | Phase::Claimed => None,
            }
        });
        match noted {
            Ok(was) if was.phase() == Phase::Armed => Recheck::Look,
            Ok(_) => Recheck::Recorded,
            Err(seen) => Recheck::Missed(seen.miss(generation)),
        }
    }

    /// Ends the request if it is Armed, else asks who has it to.
    pub fn cancel(&self, generation: Generation) -> Cancel {
        self.end(generation, CANCEL)
    }

    /// As [`cancel`](Self::cancel), because its time is up.
    pub fn expire(&self, generation: Generation) -> Cancel {
        self.end(generation, EXPIRED)
    }

    /// `why` is CANCEL or EXPIRED.
    fn end(&self, generation: Generation, why: u64) -> Cancel {
        let ended = self.transition(generation.word(ARMED), |seen| {
            // Re-check: not another life's.
            if seen.generation() != generation {
                return None;
            }
            match seen.phase() {
                Phase::Armed => Some(seen.0 | why | CLAIMED),
                Phase::Early | Phase::Running if seen.0 & why == 0 => Some(seen.0 | why),
                _ => None,
            }
        });
        match ended {
            Ok(was) if was.phase() == Phase::Armed => Cancel::Won(Snapshot(was.0 | why)),
            Ok(_) => Cancel::Recorded,
            Err(seen) => match seen.miss(generation) {
                Miss::Busy => Cancel::Again,
                miss => Cancel::Missed(miss),
            },
        }
    }

    /// Claimed → Free of the next generation. Only for who took the completion.
    #[inline]
    pub fn free(&self, generation: Generation) {
        debug_assert!(self.peek().is(generation, Phase::Claimed));
        // Ordering: Relaxed. The next owner gets the slot by the slot bitmap,
        // whose Release and Acquire order this store before its first one; a
        // late party's compare-and-swap fails against either value.
        self.0
            .store(generation.next().word(FREE), Ordering::Relaxed);
    }
}
