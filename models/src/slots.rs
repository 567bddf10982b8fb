//! Slots: the reservation.

use uaio_core::{Errno, slots::Iocb, sync::Track};

use crate::{
    Model, Scenario,
    Theorem::{NoLoss, Progress, Reclamation, Wrap},
    context::World,
    harness::pause,
    reached,
};

/// Reserves, writes the slot, and gives it back.
fn hold_one(w: &World<1>) {
    match w.submit(1) {
        Ok(request) => {
            reached("reserved");
            pause();
            let payload = request.refuse().expect("just filled");
            assert_eq!(payload.into_inner(), 1);
        }
        Err(error) => {
            assert_eq!(error, Errno::EAGAIN);
            reached("full");
        }
    }
}

#[test]
fn a_slot_has_one_holder() {
    Model::of(&[NoLoss, Wrap], &["reserved", "full"]).check(|| {
        Scenario::of(World::<1>::new())
            .role("submitter", hold_one)
            .role("submitter", hold_one)
            .finally(|w| drop(w.submit(1).expect("a slot was lost")))
    });
}

#[test]
fn who_loses_a_slot_gets_another_one() {
    Model::of(&[NoLoss, Progress], &["reserved"]).check(|| {
        let hold = |w: &World<2>| {
            let request = w.submit(1).expect("there are two");
            reached("reserved");
            pause();
            drop(request);
        };
        Scenario::of(World::<2>::new())
            .role("submitter", hold)
            .role("submitter", hold)
    });
}

#[test]
fn as_many_are_reserved_as_there_are() {
    Model::of(&[NoLoss], &["one", "both"]).check(|| {
        Scenario::of(World::<2>::new())
            .role("submitter", |w| {
                let held = w.submit(1);
                pause();
                drop(held);
            })
            .role("greedy submitter", |w| {
                let reserved = w.context().reserve(2).expect("one is free");
                reached(["one", "both"][reserved.len() - 1]);
                let iocb = Iocb { data: 2, obj: !2 };
                let held = reserved.map(|place| place.fill(iocb, Track::new(2)));
                drop(held.collect::<Vec<_>>());
            })
            .finally(|w| assert_eq!(w.context().reserve(2).expect("all free").len(), 2))
    });
}

#[test]
fn room_is_free_once_the_event_was_reaped() {
    Model::of(&[NoLoss, Wrap], &["reserved", "full"]).check(|| {
        let scenario = Scenario::of(World::<1>::new());
        let claim = scenario.shared().submit(1).expect("there is room").claim();
        claim.complete(0, 0);
        scenario
            .role("reaper", |w| assert_eq!(w.reap(1), 1))
            .role("submitter", |w| match w.submit(2) {
                Ok(request) => {
                    request.claim().complete(0, 0);
                    reached("reserved");
                }
                Err(error) => {
                    assert_eq!(error, Errno::EAGAIN);
                    reached("full");
                }
            })
    });
}

#[test]
fn reserved_room_is_not_still_being_copied() {
    Model::of(&[Reclamation, NoLoss], &["reserved", "full"])
        .bounded(2, "more than 70,000 executions in an order at bound 3")
        .check(|| {
            let scenario = Scenario::of(World::<2>::new());
            for data in [1, 2] {
                let claim = scenario
                    .shared()
                    .submit(data)
                    .expect("there is room")
                    .claim();
                claim.complete(0, 0);
            }
            scenario
                .role("reaper", |w| {
                    w.reap(1);
                })
                .role("reaper", |w| {
                    w.reap(1);
                })
                .role("submitter", |w| match w.submit(3) {
                    Ok(request) => {
                        request.claim().complete(0, 0);
                        reached("reserved");
                    }
                    Err(error) => {
                        assert_eq!(error, Errno::EAGAIN);
                        reached("full");
                    }
                })
        });
}
