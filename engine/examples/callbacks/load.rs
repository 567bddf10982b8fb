//! Who asks for blocks, and knows what must be in them.

use std::{
    collections::HashSet,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::device::{BLOCK, Device, Served};

/// How many requests are under way at a time.
const DEPTH: u64 = 32;
const BLOCKS: u64 = 1024;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    /// How many callbacks asked for the next block.
    pub(crate) resubmitted: u64,
}

struct Load {
    device: Device,
    until: Instant,
    state: Mutex<State>,
    over: Condvar,
}

struct State {
    /// What was written last, of each block.
    versions: Vec<u64>,
    /// Blocks that a request is under way for.
    taken: HashSet<u64>,
    random: u64,
    under_way: u64,
    counts: Counts,
    wrong: Option<String>,
}

impl State {
    /// By George Marsaglia: xorshift, 2003.
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// A block that nobody has.
    fn take(&mut self) -> u64 {
        loop {
            let block = self.random() % BLOCKS;
            if self.taken.insert(block) {
                return block;
            }
        }
    }
}

/// What is in a block: its number and version, over and over; zeroes before the first.
fn bytes(block: u64, version: u64) -> Vec<u8> {
    let word = match version {
        0 => 0,
        version => block << 32 | version,
    };
    word.to_ne_bytes().repeat(BLOCK / 8)
}

pub(crate) fn run(time: Duration, seed: u64) -> Result<Counts, String> {
    let load = Arc::new(Load {
        device: Device::new(BLOCKS).map_err(|error| error.to_string())?,
        until: Instant::now() + time,
        state: Mutex::new(State {
            versions: vec![0; BLOCKS as usize],
            taken: HashSet::new(),
            random: seed | 1,
            under_way: DEPTH,
            counts: Counts::default(),
            wrong: None,
        }),
        over: Condvar::new(),
    });
    for _ in 0..DEPTH {
        load.ask();
    }
    let state = load.state.lock().unwrap_or_else(PoisonError::into_inner);
    let patience = time + Duration::from_secs(30);
    let (state, waited) = (load.over)
        .wait_timeout_while(state, patience, |state| state.under_way > 0)
        .unwrap_or_else(PoisonError::into_inner);
    match &state.wrong {
        Some(wrong) => Err(wrong.clone()),
        None if waited.timed_out() => Err(format!("{} are still under way", state.under_way)),
        None => Ok(state.counts),
    }
}

impl Load {
    /// Asks for a block, and for another one when that is served, until the time is up.
    fn ask(self: &Arc<Self>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let block = state.take();
        let version = state.versions[block as usize];
        let choice = state.random();
        drop(state);
        let load = Arc::clone(self);
        let asked = if choice.is_multiple_of(3) {
            let version = version + 1;
            let done = move |served| load.served(block, version, true, served);
            let offloaded = choice.is_multiple_of(2);
            (self.device).write(block, bytes(block, version), offloaded, done)
        } else {
            let done = move |served| load.served(block, version, false, served);
            self.device.read(block, done)
        };
        if let Err(errno) = asked {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.wrong = Some(format!("block {block} is refused: {errno}"));
            state.under_way -= 1;
            self.over.notify_all();
        }
    }

    fn served(self: &Arc<Self>, block: u64, version: u64, written: bool, served: Served) {
        let right = served
            .as_ref()
            .is_ok_and(|got| *got == bytes(block, version));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !right {
            let what = served.map_or_else(|errno| errno.to_string(), |_| "other bytes".into());
            state.wrong = Some(format!("block {block}, version {version}: {what}"));
        }
        if written {
            state.versions[block as usize] = version;
            state.counts.writes += 1;
        } else {
            state.counts.reads += 1;
        }
        state.taken.remove(&block);
        if state.wrong.is_some() || Instant::now() >= self.until {
            state.under_way -= 1;
            self.over.notify_all();
            return;
        }
        state.counts.resubmitted += 1;
        drop(state);
        self.ask();
    }
}
