//! Options, errors, and the closing table.

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lexopt::{Arg, Parser, ValueExt};

use crate::{device::BLOCK, load};

const HELP: &str = "\
Serves blocks of a file to requests with callbacks: 32 at a time, each of which asks for
another block when it is called, until the time is up. Checks every byte.

Usage: callbacks [--seconds N] [--seed N]

  --seconds N  for how long, above 0 and up to 3600 (default 2)
  --seed N     of what is random (default: the clock)
  --help       this text

Ends with 0 if all adds up; 1 if not; 2 for a wrong option.";

struct Options {
    time: Duration,
    seed: u64,
}

pub(crate) fn main() -> ExitCode {
    let (text, code) = match parse() {
        Ok(None) => (HELP.to_owned(), 0),
        Ok(Some(Options { time, seed })) => match load::run(time, seed) {
            Ok(counts) => {
                let bytes = (counts.reads + counts.writes) * BLOCK as u64;
                let text = format!(
                    "seed {seed}\n{} reads and {} writes, {} MB, each byte as it should be\n\
                     {} asked for from a callback; {} callbacks panicked",
                    counts.reads,
                    counts.writes,
                    bytes / 1_000_000,
                    counts.resubmitted,
                    uaio::callback_panics(),
                );
                (text, 0)
            }
            Err(why) => (format!("{why} (--seed {seed})"), 1),
        },
        Err(why) => (format!("{why} (see --help)"), 2),
    };
    // If nobody listens, the code says it all the same.
    let _ = match code {
        0 => writeln!(io::stdout(), "{text}"),
        _ => writeln!(io::stderr(), "callbacks: {text}"),
    };
    ExitCode::from(code)
}

/// `None`: help is asked for.
fn parse() -> Result<Option<Options>, String> {
    let mut time = Duration::from_secs(2);
    let mut seed = None;
    let mut parser = Parser::from_env();
    while let Some(arg) = parser.next().map_err(text)? {
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Long("seconds") => {
                let value = parser.value().map_err(text)?;
                let seconds = value.parse::<f64>().unwrap_or(0.0);
                if !(seconds > 0.0 && seconds <= 3600.0) {
                    return Err(format!("--seconds: above 0, up to 3600, not {value:?}"));
                }
                time = Duration::from_secs_f64(seconds);
            }
            Arg::Long("seed") => {
                let value = parser.value().map_err(text)?;
                let number = value.parse::<u64>();
                seed = Some(number.map_err(|_| format!("--seed: below 2^64, not {value:?}"))?);
            }
            arg => return Err(arg.unexpected().to_string()),
        }
    }
    let clock = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    };
    Ok(Some(Options {
        time,
        seed: seed.unwrap_or_else(clock),
    }))
}

fn text(error: impl Display) -> String {
    error.to_string()
}
