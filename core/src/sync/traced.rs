//! The front of both checkers, whose interfaces are alike: their types, with each
//! operation recorded in the [timeline](super::timeline).

use super::{
    checker, const_fn,
    timeline::{Change, Identity, Turn, What},
};

#[cfg(loom)]
use ::loom as library;
#[cfg(shuttle)]
use ::shuttle as library;

pub use checker::cell;

/// Atomic types, orderings and fences.
pub mod atomic {
    use super::{Change, Identity, Turn, What, const_fn, library};

    pub use core::sync::atomic::Ordering;

    trait Bits {
        fn bits(self) -> u64;
    }

    impl Bits for bool {
        fn bits(self) -> u64 {
            self.into()
        }
    }

    impl Bits for u32 {
        fn bits(self) -> u64 {
            self.into()
        }
    }

    impl Bits for u64 {
        fn bits(self) -> u64 {
            self
        }
    }

    impl Bits for usize {
        fn bits(self) -> u64 {
            self as u64
        }
    }

    impl<T> Bits for *mut T {
        fn bits(self) -> u64 {
            self.addr() as u64
        }
    }

    macro_rules! atomic {
        ($name:ident [$($T:ident)?] $value:ty; $($rmw:ident: $new:expr),*) => {
            /// The checker's atomic of this name, with a timeline.
            pub struct $name $(<$T>)? {
                checked: library::sync::atomic::$name $(<$T>)?,
                identity: Identity,
            }

            impl $(<$T>)? $name $(<$T>)? {
                const_fn! {
                    /// An atomic that holds `value`.
                    #[track_caller]
                    pub const fn new(value: $value) -> Self {
                        Self {
                            checked: library::sync::atomic::$name::new(value),
                            identity: Identity::new(),
                        }
                    }
                }

                #[track_caller]
                fn did(&self, turn: Turn, method: &'static str, change: Change, order: Ordering) {
                    let object = self.identity.object(stringify!($name));
                    turn.did(What::Atomic { object, method, change, order });
                }

                /// The value, when nobody shares the atomic any more.
                #[track_caller]
                pub fn into_inner(self) -> $value {
                    self.checked.into_inner()
                }

                /// Reads the value.
                #[track_caller]
                pub fn load(&self, order: Ordering) -> $value {
                    let turn = Turn::begin();
                    let value = self.checked.load(order);
                    self.did(turn, "load", Change::Read(value.bits()), order);
                    value
                }

                /// Overwrites the value.
                #[track_caller]
                pub fn store(&self, value: $value, order: Ordering) {
                    let turn = Turn::begin();
                    self.checked.store(value, order);
                    self.did(turn, "store", Change::Written(value.bits()), order);
                }

                /// Replaces the value, and returns the old one.
                #[track_caller]
                pub fn swap(&self, value: $value, order: Ordering) -> $value {
                    let turn = Turn::begin();
                    let old = self.checked.swap(value, order);
                    let change = Change::Replaced(old.bits(), value.bits());
                    self.did(turn, "swap", change, order);
                    old
                }

                /// Replaces the value if it is `current`.
                ///
                /// # Errors
                ///
                /// The value, if it is another one.
                #[track_caller]
                pub fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    let turn = Turn::begin();
                    let result = self.checked.compare_exchange(current, new, success, failure);
                    let (change, order) = match result {
                        Ok(old) => (Change::Replaced(old.bits(), new.bits()), success),
                        Err(found) => (Change::Kept(found.bits(), current.bits()), failure),
                    };
                    self.did(turn, "compare_exchange", change, order);
                    result
                }

                /// As [`compare_exchange`](Self::compare_exchange): no checker
                /// lets it fail for nothing.
                ///
                /// # Errors
                ///
                /// The value, if it is another one.
                #[track_caller]
                pub fn compare_exchange_weak(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    self.compare_exchange(current, new, success, failure)
                }

                /// Replaces the value by what `f` makes of it, as often as others
                /// come in between.
                ///
                /// # Errors
                ///
                /// The value for which `f` returned `None`.
                #[track_caller]
                pub fn fetch_update(
                    &self,
                    set_order: Ordering,
                    fetch_order: Ordering,
                    mut f: impl FnMut($value) -> Option<$value>,
                ) -> Result<$value, $value> {
                    let mut old = self.load(fetch_order);
                    while let Some(new) = f(old) {
                        match self.compare_exchange(old, new, set_order, fetch_order) {
                            Err(found) => old = found,
                            done => return done,
                        }
                    }
                    Err(old)
                }

                $(
                    /// Replaces the value by what the operation makes of it and
                    /// of `operand`, and returns the old one.
                    #[track_caller]
                    pub fn $rmw(&self, operand: $value, order: Ordering) -> $value {
                        let turn = Turn::begin();
                        let old = self.checked.$rmw(operand, order);
                        let new: fn($value, $value) -> $value = $new;
                        let change = Change::Replaced(old.bits(), new(old, operand).bits());
                        self.did(turn, stringify!($rmw), change, order);
                        old
                    }
                )*
            }

            impl $(<$T>)? core::fmt::Debug for $name $(<$T>)? {
                fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                    self.checked.fmt(f)
                }
            }

            impl $(<$T>)? From<$value> for $name $(<$T>)? {
                #[track_caller]
                fn from(value: $value) -> Self {
                    Self::new(value)
                }
            }
        };
    }

    macro_rules! atomic_integer {
        ($name:ident $value:ty) => {
            atomic!($name [] $value;
                fetch_add: |old, n| old.wrapping_add(n),
                fetch_sub: |old, n| old.wrapping_sub(n),
                fetch_and: |old, n| old & n,
                fetch_nand: |old, n| !(old & n),
                fetch_or: |old, n| old | n,
                fetch_xor: |old, n| old ^ n,
                fetch_max: |old, n| old.max(n),
                fetch_min: |old, n| old.min(n)
            );

            impl Default for $name {
                #[track_caller]
                fn default() -> Self {
                    Self::new(0)
                }
            }
        };
    }

    atomic_integer!(AtomicU32 u32);
    atomic_integer!(AtomicU64 u64);
    atomic_integer!(AtomicUsize usize);

    atomic!(AtomicBool [] bool;
        fetch_and: |old, n| old & n,
        fetch_nand: |old, n| !(old & n),
        fetch_or: |old, n| old | n,
        fetch_xor: |old, n| old ^ n
    );

    impl Default for AtomicBool {
        #[track_caller]
        fn default() -> Self {
            Self::new(false)
        }
    }

    atomic!(AtomicPtr [T] *mut T;);

    impl<T> Default for AtomicPtr<T> {
        #[track_caller]
        fn default() -> Self {
            Self::new(core::ptr::null_mut())
        }
    }

    /// The checker's fence.
    #[track_caller]
    pub fn fence(order: Ordering) {
        let turn = Turn::begin();
        library::sync::atomic::fence(order);
        turn.did(What::Fence(order));
    }
}

/// Hints for loops that wait.
pub mod hint {
    use super::{Turn, What, library};

    /// Lets another thread run first.
    #[track_caller]
    pub fn spin_loop() {
        let turn = Turn::begin();
        library::hint::spin_loop();
        turn.did(What::Hint("spin_loop"));
    }
}

/// A value whose drop the checker may demand.
#[derive(Debug)]
pub struct Track<T> {
    tracked: checker::Track<T>,
    _end: End,
}

#[derive(Debug)]
struct End(Identity);

impl Drop for End {
    fn drop(&mut self) {
        let object = self.0.object("Track");
        Turn::begin().did(What::Use("drop", object));
    }
}

impl<T> Track<T> {
    const_fn! {
        /// Tracks `value`.
        #[track_caller]
        pub const fn new(value: T) -> Self {
            Self {
                tracked: checker::Track::new(value),
                _end: End(Identity::new()),
            }
        }
    }

    /// The value itself.
    pub fn get_ref(&self) -> &T {
        self.tracked.get_ref()
    }

    /// The value, no longer tracked.
    pub fn into_inner(self) -> T {
        self.tracked.into_inner()
    }
}

impl<T: Default> Default for Track<T> {
    #[track_caller]
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// Calls the user's code, whose panic fails the model.
pub(crate) fn contain(call: impl FnOnce()) -> bool {
    call();
    false
}

/// Threads, for models.
pub mod thread {
    use super::{
        Identity, Turn, What, checker,
        library::{
            self,
            sync::{Condvar, Mutex},
        },
    };
    use crate::sync::timeline;

    /// Runs `body` as a model.
    pub fn model(body: impl Fn() + Send + Sync + 'static) {
        checker::model(move || {
            timeline::begin();
            body();
        });
    }

    /// The right to join a thread.
    pub struct JoinHandle<T> {
        checked: library::thread::JoinHandle<T>,
        thread: usize,
    }

    impl<T> core::fmt::Debug for JoinHandle<T> {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            write!(f, "JoinHandle({})", self.thread)
        }
    }

    impl<T> JoinHandle<T> {
        /// Waits until the thread has ended.
        ///
        /// # Errors
        ///
        /// What it panicked with.
        #[track_caller]
        pub fn join(self) -> std::thread::Result<T> {
            let turn = Turn::begin();
            let result = self.checked.join();
            turn.did(What::Other("join", self.thread));
            result
        }
    }

    /// Runs `body` on a thread of the model.
    #[track_caller]
    pub fn spawn<F, T>(body: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let turn = Turn::begin();
        let new = Turn::of_new_thread();
        turn.did(What::Other("spawn", new.thread()));
        let checked = library::thread::spawn(move || {
            new.resume();
            body()
        });
        turn.resume();
        JoinHandle {
            checked,
            thread: new.thread(),
        }
    }

    /// Lets another thread run first.
    #[track_caller]
    pub fn yield_now() {
        let turn = Turn::begin();
        library::thread::yield_now();
        turn.did(What::Hint("yield_now"));
    }

    /// Lets one thread sleep until another one says otherwise.
    ///
    /// Not loom's own `park`: that forgets its token when the thread yields, and
    /// with a token beside it still reports deadlocks that are none.
    #[derive(Debug)]
    pub struct Parker {
        token: Mutex<bool>,
        changed: Condvar,
        identity: Identity,
    }

    impl Parker {
        /// A parker for the calling thread.
        #[track_caller]
        pub fn new() -> Self {
            Self {
                token: Mutex::new(false),
                changed: Condvar::new(),
                identity: Identity::new(),
            }
        }

        #[track_caller]
        fn did(&self, turn: Turn, method: &'static str) {
            turn.did(What::Use(method, self.identity.object("Parker")));
        }

        /// Sleeps until [`unpark`](Self::unpark).
        #[track_caller]
        pub fn park(&self) {
            let turn = Turn::begin();
            self.did(turn, "park");
            let mut token = self.token.lock().unwrap();
            while !*token {
                token = self.changed.wait(token).unwrap();
            }
            *token = false;
            drop(token);
            self.did(turn, "wake from");
        }

        /// Ends the present or the next sleep.
        #[track_caller]
        pub fn unpark(&self) {
            let turn = Turn::begin();
            let mut token = self.token.lock().unwrap();
            self.did(turn, "unpark");
            *token = true;
            drop(token);
            self.changed.notify_one();
            turn.resume();
        }
    }

    impl Default for Parker {
        #[track_caller]
        fn default() -> Self {
            Self::new()
        }
    }
}
