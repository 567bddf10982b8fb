//! Who is told when, while others are stopped midway.
#![cfg(all(feature = "std", not(any(loom, shuttle))))]

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
};

use uaio_core::{
    Context,
    context::Request,
    notify::{Notification, Notify},
    request::Generation,
    ring::{self, EventCell, MarkCell, RingMemory},
    slots::{self, Iocb},
};

type Step = Box<dyn FnOnce()>;

thread_local! {
    /// What the thread does before it looks at the marks: the next time, and the times
    /// after that.
    static STEPS: RefCell<Vec<Option<Step>>> = const { RefCell::new(Vec::new()) };
}

/// Each time somebody looks at the marks, or writes some, its next step comes first.
struct Stepwise(ring::Inline<8>);

// SAFETY: the same memory on each call, of that ring.
unsafe impl RingMemory for Stepwise {
    fn events(&self) -> &[EventCell] {
        self.0.events()
    }
    fn marks(&self) -> &[MarkCell] {
        let step = STEPS.with_borrow_mut(|steps| (!steps.is_empty()).then(|| steps.remove(0)));
        if let Some(Some(step)) = step {
            step();
        }
        self.0.marks()
    }
}

struct Tell {
    value: u64,
    told: Arc<Mutex<Vec<u64>>>,
}

impl Notification for Tell {
    fn notify(self) -> Result<(), Self> {
        self.told.lock().unwrap().push(self.value);
        Ok(())
    }
}

type Slots = slots::Inline<(), 8, 1, (), Notify<Tell>>;
type Steps = Context<Stepwise, Slots>;

fn request(context: &'static Steps) -> Request<'static, Stepwise, Slots> {
    let reserved = context.reserve_one().unwrap();
    reserved.fill(Iocb { data: 0, obj: 0 }, ())
}

/// Completes it up to where its position is taken, and its event not there yet.
fn stopped(request: Request<'static, Stepwise, Slots>) -> (mpsc::Sender<()>, JoinHandle<()>) {
    let (go, may_go) = mpsc::channel();
    let (there, is_there) = mpsc::channel();
    let thread = thread::spawn(move || {
        let stop: Step = Box::new(move || {
            there.send(()).unwrap();
            may_go.recv().unwrap();
        });
        STEPS.set(vec![Some(stop)]);
        request.claim().complete(0, 0);
    });
    is_there.recv().unwrap();
    (go, thread)
}

/// Two gaps, and behind each of them one who is to be told: the later one was hidden
/// first. When the first gap is filled, the earlier one is told, whatever becomes of the
/// second gap.
#[test]
fn who_is_visible_is_told_though_another_is_not() {
    let told: Arc<Mutex<Vec<u64>>> = Arc::default();
    let slots = Slots::new(Generation::MIN);
    let context = Context::new(Stepwise(ring::Inline::new()), slots).unwrap();
    let context: &'static Steps = Box::leak(Box::new(context));
    let noted = |value| {
        let told = Arc::clone(&told);
        let noted = context.notify_by(request(context), Tell { value, told });
        noted.map_err(|refused| refused.error).unwrap()
    };
    let (near, next, far) = (noted(1), noted(2), noted(4));
    let (go, first) = stopped(request(context));
    let second = Arc::new(Mutex::new(None));
    let place = Arc::clone(&second);
    STEPS.set(vec![
        // Two events are published behind the first gap.
        None,
        // Before that is found out, there is a second gap, and another one behind it.
        Some(Box::new(move || {
            *place.lock().unwrap() = Some(stopped(request(context)));
            let far = thread::spawn(|| far.claim().complete(0, 0));
            far.join().unwrap();
        })),
        // Taken off the stack, the far one is hidden, and the near one, too.
        None,
        None,
        // The first gap is filled, and the next one is visible.
        Some(Box::new(move || {
            go.send(()).unwrap();
            first.join().unwrap();
        })),
    ]);
    let mut batch = context.batch();
    batch.push(near.claim(), 0, 0);
    batch.push(next.claim(), 0, 0);
    drop(batch);
    assert!(STEPS.with_borrow(Vec::is_empty), "other steps");
    let mut now = told.lock().unwrap().clone();
    now.sort_unstable();
    assert_eq!(now, [1, 2]);
    let (go, second) = second.lock().unwrap().take().unwrap();
    go.send(()).unwrap();
    second.join().unwrap();
    assert_eq!(told.lock().unwrap().last(), Some(&4));
}
