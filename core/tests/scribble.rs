//! Two users: one scribbles all over its rings while results go there, are taken out
//! and rings are replaced; the other does not, and must not notice.
//!
//! `ci/asan.sh` runs this under AddressSanitizer. The memory of a ring goes away with
//! the asyncfd's share of it, so whoever writes it too late is caught. UAIO_TEST_SEED
//! repeats the random choices, UAIO_SCRIBBLE_MS sets how long (for 500 milliseconds).
#![cfg(all(feature = "std", not(any(loom, shuttle))))]

#[allow(dead_code, reason = "shared with another test program")]
mod memory;

use std::{
    env,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, Weak},
    task::{Context, Poll, Wake},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use memory::{Area, Shared};
use uaio_core::{
    Errno,
    asyncfd::{Asyncfd, AsyncfdResult, Drained},
    poll::Refused,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// SplitMix64, by Steele, Lea and Flood.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn seed() -> u64 {
    let seed = match env::var("UAIO_TEST_SEED") {
        Ok(seed) => seed.parse().expect("UAIO_TEST_SEED is a number"),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos() as u64,
    };
    println!("UAIO_TEST_SEED={seed}");
    seed
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Arc::new(Unpark(thread::current())).into();
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// One user: an asyncfd, its rings that still are, and what happened.
struct User {
    asyncfd: Asyncfd<Shared>,
    areas: Mutex<Vec<Weak<Area>>>,
    made: AtomicU64,
    stored: AtomicU64,
    full: AtomicU64,
    popped: AtomicU64,
    faults: AtomicU64,
}

fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl User {
    fn new(random: &mut Random) -> Self {
        let (area, areas) = (area(random), Mutex::default());
        let ring = Shared::of(&area).expect("a ring");
        let this = Self {
            asyncfd: Asyncfd::new(ring).expect("a ring"),
            areas,
            made: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            full: AtomicU64::new(0),
            popped: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        };
        this.knows(&area);
        this
    }

    fn knows(&self, area: &Arc<Area>) {
        count(&self.made, 1);
        let mut areas = self.areas.lock().expect("no panic");
        areas.retain(|area| area.strong_count() > 0);
        areas.push(Arc::downgrade(area));
    }

    /// Stores `from..` in order, `n` of them at most, and tells how many.
    fn add(&self, producer: u64, from: u64, n: u64) -> u64 {
        let results: Vec<_> = (from..from + n)
            .map(|k| AsyncfdResult {
                cookie: producer << 56 | (k + 1),
                obj: !k,
                res: producer as i64,
                res2: k as i64,
            })
            .collect();
        let stored = self.asyncfd.add_results(&results).expect("not closed") as u64;
        count(&self.stored, stored);
        count(&self.full, u64::from(stored < n));
        stored
    }

    fn replace(&self, random: &mut Random) {
        let area = area(random);
        let ring = Shared::of(&area).expect("a ring");
        self.knows(&area);
        drop(area);
        match self.asyncfd.replace(ring) {
            Ok(replaced) => block_on(replaced),
            // The rings before are not read, and perhaps never will be.
            Err(Refused { error, .. }) if error == Errno::EBUSY => {}
            // Its index was scribbled on already.
            Err(Refused { error, .. }) => {
                assert_eq!(error, Errno::EFAULT);
                count(&self.faults, 1);
            }
        }
    }

    /// Pops what there is; each goes to `check`.
    fn pop(&self, mut check: impl FnMut(AsyncfdResult)) {
        let mut out = [AsyncfdResult::default(); 16];
        match self.asyncfd.pop(&mut out) {
            Ok(n) => {
                count(&self.popped, n as u64);
                out[..n].iter().for_each(|result| check(*result));
            }
            Err(error) => {
                assert_eq!(error, Errno::EFAULT);
                count(&self.faults, 1);
            }
        }
        match self.asyncfd.drain() {
            Ok(Drained::Unread | Drained::Empty) | Err(Errno::EFAULT) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn report(&self, name: &str) {
        let told = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!(
            "{name}: {} rings, {} stored, {} times full, {} popped, {} faults",
            told(&self.made),
            told(&self.stored),
            told(&self.full),
            told(&self.popped),
            told(&self.faults),
        );
    }
}

fn area(random: &mut Random) -> Arc<Area> {
    let size = 1 + random.below(9) as u32;
    Area::new(size, random.below(u64::from(size)) as u32)
}

/// Writes something somewhere in one of the rings.
fn scribble(user: &User, random: &mut Random) {
    let areas = user.areas.lock().expect("no panic");
    let n = random.below(areas.len() as u64) as usize;
    let Some(area) = areas[n].upgrade() else {
        return;
    };
    drop(areas);
    let size = area.cells.len() as u64;
    // Mostly such that it goes on: a ring with a bad index only stalls.
    let value = match random.below(16) {
        0 => u64::MAX,
        1 => random.next(),
        2 => random.below(2 * size),
        3..8 => 0,
        _ => random.below(size),
    };
    if random.below(2) == 0 {
        let word = area.word(random.below(5) as usize);
        word.store(value as u32, Ordering::Relaxed);
    } else {
        let words = area.result(random.below(size) as usize);
        words[random.below(4) as usize].store(value, Ordering::Relaxed);
    }
}

/// Says that it is over when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn who_scribbles_harms_nobody_else() {
    const PRODUCERS: u64 = 2;
    let mut random = Random(seed());
    let milliseconds = match env::var("UAIO_SCRIBBLE_MS") {
        Ok(value) => value.parse().expect("UAIO_SCRIBBLE_MS is a number"),
        Err(_) => 500,
    };
    let (honest, hostile) = (User::new(&mut random), User::new(&mut random));
    let (over, scribbled) = (AtomicBool::new(false), AtomicU64::new(0));
    let goes_on = || !over.load(Ordering::Relaxed);
    let mut added = [0; PRODUCERS as usize];
    let mut next = [0; PRODUCERS as usize];
    let mut check = |result: AsyncfdResult| {
        let producer = result.cookie >> 56;
        let k = (result.cookie & !(0xff << 56)) - 1;
        assert_eq!(k, next[producer as usize], "of producer {producer}");
        next[producer as usize] += 1;
        assert_eq!(
            (result.obj, result.res, result.res2),
            (!k, producer as i64, k as i64),
            "torn"
        );
    };
    thread::scope(|scope| {
        // Also if this one panics.
        let _over = Over(&over);
        for (producer, added) in added.iter_mut().enumerate() {
            let (honest, hostile) = (&honest, &hostile);
            let mut random = Random(random.next());
            scope.spawn(move || {
                while goes_on() {
                    let n = 1 + random.below(4);
                    *added += honest.add(producer as u64, *added, n);
                    hostile.add(producer as u64, random.below(1 << 40), n);
                }
            });
        }
        let mut chance = Random(random.next());
        let (honest, hostile, scribbled) = (&honest, &hostile, &scribbled);
        scope.spawn(move || {
            while goes_on() {
                honest.replace(&mut chance);
                hostile.replace(&mut chance);
                thread::yield_now();
            }
        });
        let mut chance = Random(random.next());
        scope.spawn(move || {
            while goes_on() {
                scribble(hostile, &mut chance);
                count(scribbled, 1);
            }
        });
        let end = Instant::now() + Duration::from_millis(milliseconds);
        while Instant::now() < end {
            honest.pop(&mut check);
            hostile.pop(|_| ());
        }
    });
    // What is left, with nobody writing any more.
    while honest.asyncfd.drain() == Ok(Drained::Unread) {
        honest.pop(&mut check);
    }
    assert_eq!(next, added, "lost");
    honest.report("honest");
    hostile.report("hostile");
    let scribbled = scribbled.into_inner();
    println!("scribbled {scribbled} times");

    // It was not for nothing.
    for often in [
        &hostile.faults,
        &hostile.popped,
        &honest.popped,
        &honest.full,
    ] {
        assert!(often.load(Ordering::Relaxed) > 0);
    }
    assert_eq!(honest.faults.load(Ordering::Relaxed), 0);
    assert!(honest.made.load(Ordering::Relaxed) > 1 && scribbled > 0);
    // Every ring is given back in the end, whatever was written there.
    for user in [honest, hostile] {
        block_on(user.asyncfd.close());
        drop(user.asyncfd);
        let areas = user.areas.into_inner().expect("no panic");
        assert!(areas.iter().all(|area| area.strong_count() == 0));
    }
}
