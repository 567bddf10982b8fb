//! Each request completes exactly once, and its completion tells the truth,
//! while another thread cancels whatever it likes.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::{
    collections::HashSet,
    io::Write,
    sync::{Condvar, Mutex},
    thread,
};

use common::{Jail, Rng, again};
use uaio::{Completion, Context, Errno, File, Handle, Op};

/// At least as many, and ten times as many at most, until enough were met while they
/// ran: how seldom that is depends on the machine.
const REQUESTS: u64 = 100_000;
const ASKED: usize = 10;
const DEPTH: usize = 64;
const PAGE: usize = 4096;
const SIZE: usize = 1 << 20;

#[test]
fn again_under_seccomp() {
    again(Jail::Seccomp, &[]);
}

#[test]
fn again_unprivileged() {
    again(Jail::Nobody, &[]);
}

#[test]
fn again_on_tmpfs() {
    again(Jail::Tmpfs, &[]);
}

/// What the submitter tells the canceller.
struct Board {
    /// The last requests, of which some are over.
    recent: Vec<(u64, Handle)>,
    /// How often the canceller has looked.
    looks: u64,
    /// How many a worker was asked for.
    asked: usize,
    finished: bool,
}

/// What cancelling came to.
#[derive(Debug, Default)]
struct Answers {
    /// Ended by the canceller: these and no others complete with ECANCELED, or
    /// with the part that was read before they were queued.
    ended: HashSet<u64>,
    /// A worker was asked.
    asked: HashSet<u64>,
    already: u64,
    gone: u64,
}

impl Answers {
    fn cancel(&mut self, context: &Context, serial: u64, handle: Handle) {
        match context.cancel(handle) {
            Ok(()) => assert!(self.ended.insert(serial), "{serial} ended twice"),
            Err(Errno::EINPROGRESS) => {
                assert!(self.asked.insert(serial), "{serial} asked twice");
            }
            Err(Errno::EALREADY) => self.already += 1,
            Err(Errno::ENOENT) => self.gone += 1,
            Err(errno) => panic!("{errno}"),
        }
    }
}

fn cancel_at_random(
    context: &Context,
    board: &Mutex<Board>,
    looked: &Condvar,
    mut rng: Rng,
) -> Answers {
    let mut answers = Answers::default();
    loop {
        let chosen: Vec<_> = {
            let mut board = board.lock().unwrap();
            if board.finished {
                return answers;
            }
            board.looks += 1;
            board.asked = answers.asked.len();
            looked.notify_one();
            let recent = &board.recent;
            (0..recent.len().min(8))
                .map(|_| recent[rng.below(recent.len())])
                .collect()
        };
        for (serial, handle) in chosen {
            answers.cancel(context, serial, handle);
        }
        thread::yield_now();
    }
}

/// One of the requests in flight. Each has a page of its own to write.
struct Unit {
    what: What,
    serial: u64,
    /// Which serial's bytes its page holds.
    version: u64,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Nothing,
    Read { offset: usize, length: usize },
    ReadVectors { offset: usize },
    ReadOwn,
    Write,
    Sync,
}

fn page(version: u64) -> Vec<u8> {
    version.to_le_bytes().repeat(PAGE / 8)
}

#[test]
fn every_request_is_accounted_for() {
    let mut rng = Rng::seeded();
    let original = rng.bytes(SIZE);
    let source = {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&original).unwrap();
        File::new(file).unwrap()
    };
    let pages = File::new(tempfile::tempfile().unwrap()).unwrap();
    rustix::fs::ftruncate(&pages, (DEPTH * PAGE) as u64).unwrap();

    let context = Context::builder(DEPTH).workers(1..=3).build().unwrap();
    let board = Mutex::new(Board {
        recent: Vec::new(),
        looks: 0,
        asked: 0,
        finished: false,
    });
    let looked = Condvar::new();
    let mut units: Vec<_> = (0..DEPTH)
        .map(|_| Unit {
            what: What::Nothing,
            serial: 0,
            version: 0,
        })
        .collect();
    let mut free: Vec<_> = (0..DEPTH).collect();
    let mut cancelled = HashSet::new();
    let mut cut_short = HashSet::new();
    let (mut next, mut completed, mut inline) = (0, 0, 0);
    let mut own = Answers::default();

    let mut answers = thread::scope(|scope| {
        let canceller = {
            let rng = rng.clone();
            let (context, board, looked) = (&context, &board, &looked);
            scope.spawn(move || cancel_at_random(context, board, looked, rng))
        };
        let mut events = Vec::new();
        let mut goes_on = true;
        while goes_on || free.len() < DEPTH {
            let mut ops = Vec::new();
            let burst = 1 + rng.below(32);
            let mut serials = Vec::new();
            while ops.len() < burst && goes_on {
                let Some(index) = free.pop() else { break };
                let unit = &mut units[index];
                unit.serial = next;
                let own = (index * PAGE) as u64;
                let offset = rng.below(SIZE - 64 * PAGE);
                let (what, op) = match rng.below(64) {
                    0 => (What::Sync, Op::fdatasync(&pages)),
                    1..=4 => (What::Nothing, Op::nop()),
                    // Slow ones, to be caught in the act.
                    5..=12 => {
                        let length = 64 * PAGE;
                        let op = Op::pread(&source, vec![0; length], offset as u64).offload();
                        (What::Read { offset, length }, op)
                    }
                    13..=32 => {
                        let length = rng.below(2 * PAGE);
                        let op = Op::pread(&source, vec![0; length], offset as u64);
                        (What::Read { offset, length }, op)
                    }
                    33..=40 => {
                        let bufs = vec![vec![0; 100], vec![0; PAGE]];
                        let op = Op::preadv(&source, bufs, offset as u64);
                        (What::ReadVectors { offset }, op)
                    }
                    41..=48 => (What::ReadOwn, Op::pread(&pages, vec![0; PAGE], own)),
                    _ => (What::Write, Op::pwrite(&pages, page(next), own)),
                };
                unit.what = what;
                let op = op.data(index as u64);
                ops.push(if rng.below(2) == 0 { op } else { op.offload() });
                serials.push(next);
                next += 1;
            }
            // There is room, since each unit has one request.
            assert_eq!(context.submit(&mut ops), Ok(ops.len()));
            if !ops.is_empty() && rng.below(3) == 0 {
                // At once: where nothing is slow, the other one comes late. Or when a
                // worker may have begun.
                if rng.below(2) == 0 {
                    thread::yield_now();
                }
                let chosen = rng.below(ops.len());
                own.cancel(&context, serials[chosen], ops[chosen].handle().unwrap());
            }
            {
                let mut board = board.lock().unwrap();
                let asked = own.asked.len() + board.asked;
                goes_on = next < REQUESTS || asked < ASKED && next < 10 * REQUESTS;
                let handles = ops.iter().map(|op| op.handle().unwrap());
                board.recent.extend(serials.into_iter().zip(handles));
                let old = board.recent.len().saturating_sub(DEPTH);
                board.recent.drain(..old);
                if rng.below(2) == 0 {
                    // The canceller may be slow to run: give it a whole turn.
                    let turn = board.looks + 2;
                    let board = looked.wait_while(board, |board| board.looks < turn);
                    drop(board.unwrap());
                }
            }
            if next % 4096 == 0 {
                // Slow again, where there is a disk.
                let advice = rustix::fs::Advice::DontNeed;
                rustix::fs::fadvise(&source, 0, None, advice).unwrap();
            }
            let in_flight = DEPTH - free.len();
            let wanted = rng.below(in_flight + 1);
            let got = context.getevents(wanted, in_flight, None, &mut events);
            assert_eq!(got, Ok(events.len()));
            for done in events.drain(..) {
                let index = done.data as usize;
                // Once for each: a unit is free until its next request.
                assert!(!free.contains(&index));
                free.push(index);
                inline += u64::from(done.inline);
                if done.result == Err(Errno::ECANCELED) {
                    assert!(cancelled.insert(units[index].serial));
                    continue;
                }
                completed += 1;
                let unit = &mut units[index];
                if !verify(unit, done, &original) {
                    assert!(cut_short.insert(unit.serial));
                }
            }
        }
        board.lock().unwrap().finished = true;
        canceller.join().unwrap()
    });

    assert!(answers.ended.is_disjoint(&own.ended), "ended twice");
    answers.ended.extend(own.ended);
    assert!(answers.asked.is_disjoint(&own.asked), "asked twice");
    answers.asked.extend(own.asked);
    answers.already += own.already;
    answers.gone += own.gone;

    assert_eq!(completed + cancelled.len() as u64, next);
    assert!(cancelled.is_disjoint(&answers.asked));
    // Who was told `Ok`, and who ended by it.
    let ended: HashSet<_> = cancelled.union(&cut_short).copied().collect();
    assert_eq!(ended, answers.ended);
    let mut last = vec![0; DEPTH * PAGE];
    rustix::io::pread(&pages, &mut last[..], 0).unwrap();
    for (unit, there) in units.iter().zip(last.chunks(PAGE)) {
        assert!(
            there == page(unit.version),
            "a cancelled write left a trace"
        );
    }
    assert_eq!(
        context.getevents(0, 1, None, &mut Vec::new()),
        Ok(0),
        "nothing completes twice"
    );

    let (ended, asked) = (cancelled.len(), answers.asked.len());
    println!(
        "completed {completed} ({inline} inline), cancelled {ended}, cut short {}, \
         asked {asked}, already {}, gone {}",
        cut_short.len(),
        answers.already,
        answers.gone
    );
    assert!(completed >= 100 && ended >= 100);
    assert!(answers.gone >= 100 && inline >= 100);
    // Who is asked was met while it ran.
    assert!(asked >= ASKED);
}

/// What the request did is what it was asked to do: all of it, or `false`.
fn verify(unit: &mut Unit, done: Completion, original: &[u8]) -> bool {
    let what = unit.what;
    let (result, op) = (done.result.unwrap(), done.op);
    let (read, expected) = match what {
        What::Nothing | What::Sync => {
            assert_eq!(result, 0);
            return true;
        }
        What::Write => {
            assert_eq!(result, PAGE);
            unit.version = unit.serial;
            assert!(op.into_buf() == page(unit.version), "{what:?}");
            return true;
        }
        What::ReadOwn => (op.into_buf(), page(unit.version)),
        What::Read { offset, length } => (op.into_buf(), original[offset..][..length].to_vec()),
        What::ReadVectors { offset } => {
            let read = op.into_bufs().concat();
            let expected = original[offset..][..read.len()].to_vec();
            (read, expected)
        }
    };
    assert!(read[..result] == expected[..result], "{what:?}: {result}");
    result == expected.len()
}
