//! Runs one scenario under the checker that the build chose.
//!
//! # What each checker does with it
//!
//! *loom*: every order in which the roles can be spawned, each unbounded and
//! with at most three preemptions. The orders matter: loom 0.7 does not take
//! back a thread's load when the same thread then writes there, so what it
//! explores depends on who comes first; and bounded and unbounded runs explore
//! different sets. Roles of one name are alike, and their order is not varied.
//! A run that hits a cap fails, and so does a model that had only one execution
//! per order. With `UAIO_SOUND=1` loom is taken to be the patched one, which
//! needs neither: one order, and a bound only where the model has one.
//!
//! *shuttle*: random schedules, then PCT ones. The seed is printed; a failing
//! schedule is saved below `target/shuttle/`, and `UAIO_REPLAY=<file>` runs the
//! one model named on the command line with it again.
//!
//! *plain threads*: rounds, started together with a seeded jitter.
//! `UAIO_ROUNDS` says how many, `UAIO_SEED` repeats the jitter.
//!
//! Nothing here is visible to a checker: witnesses and counters are plain
//! mutexes, which add neither a scheduling point nor an ordering to a model.

use std::{
    any::type_name_of_val,
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    pin::pin,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use uaio_core::sync::{Track, cell::UnsafeCell, thread::Parker};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A failed model poisons what it held; the next one starts afresh.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The parties of a claim: what they share, what each does, and what holds when
/// all are done.
pub struct Scenario<T> {
    shared: Arc<T>,
    roles: Vec<Role>,
    check: Box<dyn FnOnce(&T) + Send>,
}

struct Role {
    name: &'static str,
    body: Box<dyn FnOnce() + Send>,
}

impl<T> std::fmt::Debug for Scenario<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.roles.iter().map(|role| role.name))
            .finish()
    }
}

impl<T: Send + Sync + 'static> Scenario<T> {
    /// A scenario about `shared`, still without parties.
    pub fn of(shared: T) -> Self {
        Self {
            shared: Arc::new(shared),
            roles: Vec::new(),
            check: Box::new(|_| ()),
        }
    }

    /// What the parties share, to give some of it to one of them.
    pub fn shared(&self) -> &T {
        &self.shared
    }

    /// Adds a party. Parties of one name do the same, whatever its names in it.
    pub fn role(mut self, name: &'static str, body: impl FnOnce(&T) + Send + 'static) -> Self {
        let shared = Arc::clone(&self.shared);
        self.roles.push(Role {
            name,
            body: Box::new(move || body(&shared)),
        });
        self
    }

    /// What to check after all have ended.
    pub fn finally(mut self, check: impl FnOnce(&T) + Send + 'static) -> Self {
        self.check = Box::new(check);
        self
    }
}

/// A claim to be checked: its outcomes and its bound. See [`check`](Self::check).
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Model {
    outcomes: &'static [&'static str],
    bound: Option<(usize, &'static str)>,
}

impl Model {
    /// A model that means something only if each of these outcomes occurs. Its
    /// scenario reports them with [`reached`].
    pub const fn reaching(outcomes: &'static [&'static str]) -> Self {
        Self {
            outcomes,
            bound: None,
        }
    }

    /// With at most `preemptions` under loom, for this reason, which the report
    /// repeats.
    pub const fn bounded(mut self, preemptions: usize, reason: &'static str) -> Self {
        self.bound = Some((preemptions, reason));
        self
    }

    /// Checks `scenario`, which is made anew for each execution.
    ///
    /// Models run one at a time, whatever the test runner does.
    pub fn check<T, F>(self, scenario: F)
    where
        T: Send + Sync + 'static,
        F: Fn() -> Scenario<T> + Send + Sync + 'static,
    {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = lock(&ONE_AT_A_TIME);

        // The test function that the closure is written in.
        let name = type_name_of_val(&scenario)
            .trim_start_matches(concat!(env!("CARGO_CRATE_NAME"), "::"))
            .trim_end_matches("::{{closure}}");
        let outcomes = self.outcomes.iter().map(|outcome| (*outcome, 0)).collect();
        *lock(&OUTCOMES) = outcomes;
        tell_what_failed();
        what_runs(name);

        let start = Instant::now();
        let report = self.run(name, scenario);
        let mut line = format!("{name}: {report}; {:.2} s", start.elapsed().as_secs_f64());
        let outcomes = std::mem::take(&mut *lock(&OUTCOMES));
        for (outcome, count) in &outcomes {
            let _ = write!(line, "; {outcome} {count}");
        }
        say(&line);
        let never = outcomes.iter().find(|(_, count)| **count == 0);
        if let Some((outcome, _)) = never {
            let vain = format!("{name}: never \"{outcome}\", so it proves nothing");
            // What plain threads get to see is up to the machine.
            if cfg!(any(loom, shuttle)) {
                panic!("{vain}");
            }
            say(&vain);
        }
    }
}

static OUTCOMES: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// Counts an outcome, which the [`Model`] must have named.
pub fn reached(outcome: &'static str) {
    match lock(&OUTCOMES).get_mut(outcome) {
        Some(count) => *count += 1,
        None => panic!("the model does not name the outcome \"{outcome}\""),
    }
}

/// A place where a plain thread may lose the processor, to make room for
/// overlaps that a machine with few cores hardly shows. The checkers need none.
pub fn pause() {
    #[cfg(not(any(loom, shuttle)))]
    stress::pause();
}

/// A line past the test runner's capture, which hides what a passing test says.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

static RUNNING: Mutex<String> = Mutex::new(String::new());

fn what_runs(what: &str) {
    *lock(&RUNNING) = what.to_owned();
}

/// Makes every panic say where the model was, past the capture: some failures
/// (a deadlock with a live guard) end the process before the runner reports.
fn tell_what_failed() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let _ = writeln!(std::io::stderr(), "{}: {panic}", lock(&RUNNING));
            usual(panic);
        }));
    });
}

#[cfg(any(loom, shuttle))]
fn run_once<T: Send + Sync + 'static>(scenario: Scenario<T>, order: &[usize]) {
    use uaio_core::sync::thread::spawn;

    let mut roles: Vec<_> = scenario.roles.into_iter().map(Some).collect();
    let threads: Vec<_> = (0..roles.len())
        .map(|i| order.get(i).copied().unwrap_or(i))
        .filter_map(|i| roles[i].take())
        .map(|role| spawn(role.body))
        .collect();
    for thread in threads {
        thread.join().expect("a role panicked");
    }
    (scenario.check)(&scenario.shared);
}

/// All orders of the roles, in which those of one name keep theirs.
#[cfg(any(loom, test))]
fn orders(names: &[&str]) -> Vec<Vec<usize>> {
    fn extend(names: &[&str], order: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        if order.len() == names.len() {
            return all.push(order.clone());
        }
        for next in 0..names.len() {
            let alike = |i: &usize| names[*i] == names[next];
            let first_left = (0..names.len()).find(|i| !order.contains(i) && alike(i));
            if first_left == Some(next) {
                order.push(next);
                extend(names, order, all);
                order.pop();
            }
        }
    }
    let mut all = Vec::new();
    extend(names, &mut Vec::new(), &mut all);
    all
}

/// Whether this is loom with our patch, which skips nothing.
#[cfg(loom)]
pub(crate) fn sound() -> bool {
    std::env::var_os("UAIO_SOUND").is_some_and(|on| on == "1")
}

#[cfg(loom)]
impl Model {
    /// No model needs that many executions in one order; one that does has to
    /// be made smaller, or bounded. With the patch there are more, in one order.
    fn most_executions() -> u64 {
        if sound() { 2_000_000 } else { 100_000 }
    }
    const MOST_BRANCHES: usize = 20_000;

    fn run<T, F>(self, name: &str, scenario: F) -> String
    where
        T: Send + Sync + 'static,
        F: Fn() -> Scenario<T> + Send + Sync + 'static,
    {
        let scenario = Arc::new(scenario);
        let names = Arc::new(Mutex::new(Vec::<&'static str>::new()));
        let mut report = String::from("loom");
        let mut most = 0;
        let bounds: &[Option<usize>] = match self.bound {
            None if sound() => &[None],
            None => &[None, Some(3)],
            Some((bound, _)) => &[Some(bound)],
        };
        for bound in bounds {
            let limit = bound.map_or("unbounded".into(), |n| format!("bound {n}"));
            // The roles are known once the scenario was made inside a model.
            let mut all = vec![Vec::new()];
            let mut done = 0;
            let mut total = 0;
            while let Some(order) = all.get(done).cloned() {
                what_runs(&format!("{name}, {limit}, spawn order {order:?}"));
                let executions = Arc::new(Mutex::new(0));
                let mut builder = loom::model::Builder::new();
                builder.preemption_bound = *bound;
                builder.max_branches = Self::MOST_BRANCHES;
                let (make, roles, count) = (
                    Arc::clone(&scenario),
                    Arc::clone(&names),
                    Arc::clone(&executions),
                );
                builder.check(move || {
                    let nth = {
                        let mut count = lock(&count);
                        *count += 1;
                        *count
                    };
                    assert!(
                        nth <= Self::most_executions(),
                        "not done after {nth} executions"
                    );
                    let scenario = make();
                    if nth == 1 {
                        *lock(&roles) = scenario.roles.iter().map(|role| role.name).collect();
                    }
                    run_once(scenario, &order);
                });
                let executions = *lock(&executions);
                most = most.max(executions);
                total += executions;
                if done == 0 && !sound() {
                    // The first of them is the order as written: done.
                    all = orders(&lock(&names));
                }
                done += 1;
            }
            let _ = write!(report, ", {limit} {total} in {done} orders");
        }
        if let Some((_, reason)) = self.bound {
            let _ = write!(report, " ({reason})");
        }
        assert!(most > 1, "{name}: only one interleaving in every order");
        report
    }
}

#[cfg(shuttle)]
impl Model {
    const EXECUTIONS: usize = 4_000;
    const PCT_DEPTH: usize = 3;
    /// So many times the PCT executions for an outcome that did not occur yet.
    const PATIENCE: u64 = 10;

    fn run<T, F>(self, name: &str, scenario: F) -> String
    where
        T: Send + Sync + 'static,
        F: Fn() -> Scenario<T> + Send + Sync + 'static,
    {
        use shuttle::{
            Config, FailurePersistence, Runner,
            scheduler::{PctScheduler, RandomScheduler, ReplayScheduler},
        };

        let body = {
            let scenario = Arc::new(scenario);
            move || run_once(scenario(), &[])
        };
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/shuttle");
        std::fs::create_dir_all(directory).expect("a place for failing schedules");
        let mut config = Config::new();
        config.failure_persistence = FailurePersistence::File(Some(directory.into()));
        config.silence_warnings = true;

        if let Some(file) = std::env::var_os("UAIO_REPLAY") {
            let scheduler = ReplayScheduler::new_from_file(file).expect("a saved schedule");
            Runner::new(scheduler, config).run(body);
            return "shuttle: replayed".into();
        }
        let seed = seed();
        what_runs(&format!("{name}, seed {seed}"));
        let random = RandomScheduler::new_from_seed(seed, Self::EXECUTIONS);
        let n = Runner::new(random, config.clone()).run(body.clone());
        let mut m = 0;
        for i in 0..Self::PATIENCE {
            let seed = seed.wrapping_add(i);
            let pct = PctScheduler::new_from_seed(seed, Self::PCT_DEPTH, Self::EXECUTIONS);
            m += Runner::new(pct, config.clone()).run(body.clone());
            if all_reached() {
                break;
            }
        }
        let depth = Self::PCT_DEPTH;
        format!("shuttle: random {n}, PCT of depth {depth} {m}, seed {seed}")
    }
}

#[cfg(not(any(loom, shuttle)))]
impl Model {
    /// Rounds whose roles are handed to the threads at once.
    const BATCH: u64 = 64;
    /// So many times the usual rounds for an outcome that did not occur yet.
    const PATIENCE: u64 = 50;
    const HANG: std::time::Duration = std::time::Duration::from_secs(60);

    fn run<T, F>(self, name: &str, scenario: F) -> String
    where
        T: Send + Sync + 'static,
        F: Fn() -> Scenario<T> + Send + Sync + 'static,
    {
        let rounds = std::env::var("UAIO_ROUNDS").map_or(1_024, |n| n.parse().expect("a number"));
        let seed = seed();
        what_runs(&format!("{name}, UAIO_SEED={seed}"));
        let mut random = stress::Random(seed);
        let mut crew = stress::Crew::default();
        let mut done = 0;
        while done < rounds || (done < rounds * Self::PATIENCE && !all_reached()) {
            let mut scenarios: Vec<_> = (0..Self::BATCH).map(|_| scenario()).collect();
            let roles = scenarios.iter_mut().map(|s| std::mem::take(&mut s.roles));
            let shifts = roles.map(|roles| roles.into_iter().map(|role| role.body).collect());
            if let Err(failure) = crew.work(shifts.collect(), &mut random, Self::HANG) {
                panic!("{name}: {failure}; UAIO_SEED={seed}");
            }
            for scenario in scenarios {
                (scenario.check)(&scenario.shared);
            }
            done += Self::BATCH;
        }
        format!("plain threads: {done} rounds, seed {seed}")
    }
}

#[cfg(not(loom))]
fn all_reached() -> bool {
    lock(&OUTCOMES).values().all(|count| *count > 0)
}

#[cfg(not(loom))]
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    match std::env::var("UAIO_SEED") {
        Ok(seed) => seed.parse().expect("UAIO_SEED is a number"),
        Err(_) => RandomState::new().hash_one(0),
    }
}

/// Threads that stay, so that a round costs no spawn and its roles do overlap.
#[cfg(not(any(loom, shuttle)))]
mod stress {
    use std::{
        cell::Cell,
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{
            Arc,
            mpsc::{Receiver, Sender, channel},
        },
        time::Duration,
    };
    use uaio_core::sync::{
        atomic::{AtomicUsize, Ordering},
        hint,
        thread::{spawn, yield_now},
    };

    type Body = Box<dyn FnOnce() + Send>;

    /// SplitMix64.
    pub(super) struct Random(pub(super) u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ z >> 31) % n
        }
    }

    thread_local! {
        static NOISE: Cell<u64> = const { Cell::new(0) };
    }

    pub(super) fn pause() {
        let mut random = Random(NOISE.get());
        match random.below(4) {
            0 => yield_now(),
            1 => spin(random.below(128)),
            _ => {}
        }
        NOISE.set(random.0);
    }

    fn spin(n: u64) {
        for _ in 0..n {
            hint::spin_loop();
        }
    }

    /// One thread's part of a batch: what to do in each round, and how many
    /// spins after the start.
    struct Shift {
        rounds: Vec<(Body, u64)>,
        parties: usize,
        gate: Arc<AtomicUsize>,
        done: Sender<Result<(), String>>,
    }

    #[derive(Default)]
    pub(super) struct Crew(Vec<Sender<Shift>>);

    impl Crew {
        /// Runs rounds of roles, the n-th role of each on the n-th thread.
        pub(super) fn work(
            &mut self,
            rounds: Vec<Vec<Body>>,
            random: &mut Random,
            hang: Duration,
        ) -> Result<(), String> {
            let parties = rounds[0].len();
            while self.0.len() < parties {
                let (sender, receiver) = channel();
                // Ends when the crew is dropped.
                let _ = spawn(move || serve(&receiver));
                self.0.push(sender);
            }
            // From none to a few microseconds.
            let mut jitter = || {
                let scale = random.below(10);
                random.below(1 << scale)
            };
            let mut shifts: Vec<Vec<_>> = (0..parties).map(|_| Vec::new()).collect();
            for round in rounds {
                for (shift, body) in shifts.iter_mut().zip(round) {
                    shift.push((body, jitter()));
                }
            }
            let gate = Arc::new(AtomicUsize::new(0));
            let (done, results) = channel();
            for (thread, rounds) in self.0.iter().zip(shifts) {
                let shift = Shift {
                    rounds,
                    parties,
                    gate: Arc::clone(&gate),
                    done: done.clone(),
                };
                thread.send(shift).map_err(|_| "a thread is gone")?;
            }
            for _ in 0..parties {
                let result = results.recv_timeout(hang);
                result.map_err(|_| "hangs")??;
            }
            Ok(())
        }
    }

    fn serve(shifts: &Receiver<Shift>) {
        for shift in shifts {
            let mut result = Ok(());
            for (round, (body, jitter)) in (1..).zip(shift.rounds) {
                // Ordering: AcqRel and Acquire: a round starts after the last.
                shift.gate.fetch_add(1, Ordering::AcqRel);
                let mut spins = 0;
                while shift.gate.load(Ordering::Acquire) < round * shift.parties {
                    spins += 1;
                    if spins % 64 == 0 {
                        yield_now();
                    }
                    hint::spin_loop();
                }
                NOISE.set(jitter);
                pause();
                spin(jitter);
                // Go on after a panic: the others wait at the gate.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
                    let text = panic.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| panic.downcast_ref().map(|s: &&str| (*s).into()));
                    result = result.and(Err(text.unwrap_or_else(|| "panicked".into())));
                }
            }
            let _ = shift.done.send(result);
        }
    }
}

/// Polls `future` and sleeps until it is done.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let sleeper = Arc::new(Sleeper::new());
    let waker = Waker::from(Arc::clone(&sleeper));
    let mut task = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut task) {
            Poll::Ready(output) => return output,
            Poll::Pending => sleeper.park(),
        }
    }
}

/// A thread's sleep as a waker. loom fails a model that forgets a clone.
#[derive(Debug)]
pub struct Sleeper(Track<Parker>);

impl Sleeper {
    /// For the calling thread.
    #[expect(clippy::new_without_default, reason = "it is about the calling thread")]
    pub fn new() -> Self {
        Self(Track::new(Parker::new()))
    }

    /// Sleeps until the waker is called. May return early.
    pub fn park(&self) {
        self.0.get_ref().park();
    }
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.0.get_ref().unpark();
    }
}

/// A witness: a number that parties add to and the final check reads.
#[derive(Debug, Default)]
pub struct Count(Mutex<u64>);

impl Count {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        *lock(&self.0) += n;
    }

    /// The sum.
    pub fn get(&self) -> u64 {
        *lock(&self.0)
    }
}

/// What a protocol hands over: accessed with no ordering of its own, so that a
/// checker sees when the protocol gives none.
#[derive(Debug)]
pub struct Handed<T>(UnsafeCell<T>);

// SAFETY: the claim under test is that accesses never overlap and are ordered;
// a checker sees when they are not, and the plain build has passed it.
unsafe impl<T: Send> Sync for Handed<T> {}

impl<T: Copy> Handed<T> {
    /// Holds `value`.
    pub fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Reads it.
    pub fn get(&self) -> T {
        self.0.with(|value| {
            // SAFETY: as for Sync.
            unsafe { *value }
        })
    }

    /// Overwrites it.
    pub fn set(&self, new: T) {
        self.0.with_mut(|value| {
            // SAFETY: as for Sync.
            unsafe { *value = new }
        });
    }
}

/// Memory that is given back while others might still touch it.
///
/// [`renew`](Self::renew) ends the value and makes another in its place, as an
/// allocator would for the next owner: a checker then sees every touch of the
/// old one that is not ordered before, and nothing is ever unmapped.
#[derive(Debug)]
pub struct Memory<T>(NonNull<T>);

// SAFETY: owns a `T` like a box, and lends it like one.
unsafe impl<T: Send + Sync> Send for Memory<T> {}
// SAFETY: as for Send.
unsafe impl<T: Send + Sync> Sync for Memory<T> {}

impl<T> Memory<T> {
    /// Holds `value`.
    pub fn new(value: T) -> Self {
        Self(NonNull::from(Box::leak(Box::new(value))))
    }

    /// The value, for as long as the scenario says that it is there.
    ///
    /// # Safety
    ///
    /// Not used after this `Memory` is dropped, which is after all roles.
    pub unsafe fn get(&self) -> &'static T {
        // SAFETY: from a box, valid until `self` is dropped.
        unsafe { self.0.as_ref() }
    }

    /// Gives the memory back and takes it for a new value.
    ///
    /// # Safety
    ///
    /// Nobody uses the old value any more: that is the claim under test.
    pub unsafe fn renew(&self, value: T) {
        // SAFETY: valid, and unused by the contract.
        drop(unsafe { self.0.replace(value) });
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: from a box, and dropped once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_one_name_keep_their_order() {
        assert_eq!(orders(&["a", "b"]), [[0, 1], [1, 0]]);
        assert_eq!(orders(&["a", "a", "b"]), [[0, 1, 2], [0, 2, 1], [2, 0, 1]]);
        assert_eq!(orders(&["a", "b", "c", "d"]).len(), 24);
    }
}
