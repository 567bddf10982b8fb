//! Operations, joined and dropped.

use std::{
    fmt::Display,
    future::{Future, poll_fn},
    io::{PipeReader, Write},
    pin::Pin,
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use uaio::{Completion, Context, Errno, File, Op, Operation};

use crate::{
    executor,
    home::{BUFFER, buffer, out},
};

/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Counts {
    pub(crate) executor: &'static str,
    /// Joined to their end.
    pub(crate) joined: usize,
    /// Dropped while they waited, or ran.
    pub(crate) dropped: usize,
}

pub(crate) fn run(operations: usize) -> Result<Vec<Counts>, String> {
    let small = executor::block_on(work("an executor of a few lines", operations))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .map_err(text)?;
    let work = runtime.spawn(work("tokio", operations));
    let tokio = runtime.block_on(work).map_err(text)??;
    Ok(vec![small, tokio])
}

/// Who completes a request gives its room back a moment after its future may know.
fn submit(context: &Context, mut op: Op) -> Result<Operation, String> {
    let begun = Instant::now();
    loop {
        match context.operation(op) {
            Ok(operation) => return Ok(operation),
            Err(refused) => {
                wait_for_room(refused.errno, begun)?;
                op = refused.op;
            }
        }
    }
}

fn wait_for_room(errno: Errno, begun: Instant) -> Result<(), String> {
    if errno != Errno::EAGAIN || begun.elapsed() > PATIENCE {
        return Err(text(errno));
    }
    thread::yield_now();
    Ok(())
}

fn text(error: impl Display) -> String {
    error.to_string()
}

async fn work(executor: &'static str, operations: usize) -> Result<Counts, String> {
    let before = out();
    let context = Context::new(operations).map_err(text)?;
    let joined = join_all(&context, operations).await?;
    let dropped = drop_half(&context, operations).await?;
    // The completions of those that were dropped may come a little later.
    let begun = Instant::now();
    while out() > before {
        if begun.elapsed() > PATIENCE {
            return Err(format!("{} buffers did not come home", out() - before));
        }
        thread::yield_now();
    }
    // And all room is free again: for requests whose completions stay where they are.
    for _ in 0..operations {
        let mut nop = [Op::nop()];
        while let Err(errno) = context.submit(&mut nop) {
            wait_for_room(errno, begun)?;
        }
    }
    Ok(Counts {
        executor,
        joined,
        dropped,
    })
}

/// Writes a file by pieces, and reads them again, each in turn by a worker.
async fn join_all(context: &Context, operations: usize) -> Result<usize, String> {
    let file = File::new(tempfile::tempfile().map_err(text)?).map_err(|unfit| unfit.to_string())?;
    let at = |n: usize| (n * BUFFER) as u64;
    let begin = |n: usize, op: Op| {
        let op = if n.is_multiple_of(2) {
            op.offload()
        } else {
            op
        };
        submit(context, op.data(n as u64))
    };
    let writes = (0..operations).map(|n| {
        let mut full = buffer();
        full.fill(n as u8);
        begin(n, Op::pwrite(&file, full, at(n)))
    });
    let written = join(writes.collect::<Result<_, _>>()?).await;
    let reads = (0..operations).map(|n| begin(n, Op::pread(&file, buffer(), at(n))));
    let read = join(reads.collect::<Result<_, _>>()?).await;
    for (n, done) in written.iter().chain(&read).enumerate() {
        if done.result != Ok(BUFFER) || done.data != (n % operations) as u64 {
            return Err(format!("operation {n} is wrong: {:?}", done.result));
        }
    }
    let total = written.len() + read.len();
    for done in read {
        let n = done.data as u8;
        if done.op.into_buf().iter().any(|&byte| byte != n) {
            return Err(format!("the bytes of read {n} are wrong"));
        }
    }
    Ok(total)
}

/// Reads from pipes that stay empty until half of the reads are dropped.
async fn drop_half(context: &Context, operations: usize) -> Result<usize, String> {
    let mut writers = Vec::new();
    let mut reads = Vec::new();
    for n in 0..operations {
        let (reader, writer) = std::io::pipe().map_err(text)?;
        let read = Op::read(&file(reader)?, buffer()).data(n as u64);
        reads.push(submit(context, read)?);
        writers.push(writer);
    }
    // Each has been polled, and waits.
    let mut reads: Vec<_> = reads.into_iter().map(Box::pin).collect();
    let waiting = poll_fn(|task| {
        let waiting = reads.iter_mut().map(|read| read.as_mut().poll(task));
        Poll::Ready(waiting.filter(Poll::is_pending).count())
    })
    .await;
    if waiting != operations {
        return Err(format!("{waiting} of {operations} wait for nothing"));
    }
    let mut kept = Vec::new();
    let mut dropped = 0;
    for (n, read) in reads.into_iter().enumerate() {
        if n.is_multiple_of(2) {
            kept.push(read);
        } else {
            drop(read);
            dropped += 1;
        }
    }
    for (n, writer) in writers.iter_mut().enumerate() {
        // Nobody may read it any more.
        if let Err(error) = writer.write_all(&[n as u8])
            && n.is_multiple_of(2)
        {
            return Err(text(error));
        }
    }
    for (n, done) in all(kept).await.into_iter().enumerate() {
        if done.result != Ok(1) || done.op.into_buf()[0] != 2 * n as u8 {
            return Err(format!("read {n} is wrong: {:?}", done.result));
        }
    }
    Ok(dropped)
}

fn file(reader: PipeReader) -> Result<File, String> {
    File::new(reader).map_err(|unfit| unfit.to_string())
}

async fn join(operations: Vec<Operation>) -> Vec<Completion> {
    all(operations.into_iter().map(Box::pin).collect()).await
}

/// Waits for all, in their order.
async fn all(mut operations: Vec<Pin<Box<Operation>>>) -> Vec<Completion> {
    let mut done: Vec<_> = operations.iter().map(|_| None).collect();
    poll_fn(|task| {
        let mut pending = false;
        for (operation, done) in operations.iter_mut().zip(&mut done) {
            if done.is_none() {
                match operation.as_mut().poll(task) {
                    Poll::Ready(completion) => *done = Some(completion),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    done.into_iter().flatten().collect()
}
