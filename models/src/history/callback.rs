//! Who submits, and what is called.

use uaio_core::sync::atomic::{AtomicBool, Ordering};

use crate::{
    Scenario,
    harness::{Control, Handed, Memory, Shows},
};

/// A request in memory that its completion frees, and whether it is queued.
struct World {
    request: Memory<Handed<u64>>,
    queued: AtomicBool,
}

/// One submits, one completes what is queued.
fn submitted(submit: fn(&World), complete: fn(&World)) -> Scenario<World> {
    let world = World {
        request: Memory::new(Handed::new(0)),
        queued: AtomicBool::new(false),
    };
    Scenario::of(world)
        .role("submitter", submit)
        .role("completer", move |w| {
            if w.queued.load(Ordering::Acquire) {
                complete(w);
            }
        })
}

fn request(world: &World) -> &Handed<u64> {
    // SAFETY: none: that is the error.
    unsafe { world.request.get() }
}

/// The patch of 2013, and CVE-2023-1252: submitting goes on with a request that is
/// queued, and may be freed by its completion.
#[test]
fn submit_touches_request_after_queueing() {
    Control::shows(Shows::UnorderedAccess)
        .held_by("operation::who_is_called_has_all_that_it_carried")
        .only_loom()
        .refuted(|| {
            submitted(
                |w| {
                    w.queued.store(true, Ordering::Release);
                    request(w).get();
                },
                // SAFETY: as above.
                |w| unsafe { w.request.renew(Handed::new(0)) },
            )
        });
}

/// The patch of 2013: the caller sets what its callback needs after it has submitted,
/// and the callback may have been called by then.
#[test]
fn state_set_after_submit() {
    Control::shows(Shows::UnorderedAccess)
        .held_by("operation::who_is_called_has_all_that_it_carried")
        .refuted(|| {
            submitted(
                |w| {
                    w.queued.store(true, Ordering::Release);
                    request(w).set(7);
                },
                |w| {
                    request(w).get();
                },
            )
        });
}
