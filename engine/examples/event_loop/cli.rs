//! Options, errors, and the closing table.

use std::{
    fmt::{self, Display},
    io::{self, Write},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lexopt::{Arg, Parser, ValueExt};

use crate::serve::{self, Kind, Report};

const HELP: &str = "\
Serves TCP and Unix sockets, a pipe and a file in one thread, with time limits and
cancels; both ends of each are requests of the same context. Checks every byte, and
prints how many requests of each kind completed how.

Usage: event_loop [--seconds N] [--seed N]

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
        Ok(Some(Options { time, seed })) => match serve::run(time, seed) {
            Ok(report) => (format!("seed {seed}\n{report}"), 0),
            Err(why) => (format!("{why} (--seed {seed})"), 1),
        },
        Err(why) => (format!("{why} (see --help)"), 2),
    };
    // If nobody listens, the code says it all the same.
    let _ = match code {
        0 => writeln!(io::stdout(), "{text}"),
        _ => writeln!(io::stderr(), "event_loop: {text}"),
    };
    ExitCode::from(code)
}

/// `None`: help is asked for.
fn parse() -> Result<Option<Options>, String> {
    let mut time = Duration::from_secs(2);
    let mut seed = None;
    let mut parser = Parser::from_env();
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Long("seconds") => {
                let seconds = |n: &f64| *n > 0.0 && *n <= 3600.0;
                let n = number(&mut parser, "--seconds", "above 0, up to 3600", seconds)?;
                time = Duration::from_secs_f64(n);
            }
            Arg::Long("seed") => {
                seed = Some(number(&mut parser, "--seed", "below 2^64", |_| true)?);
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

fn number<T: std::str::FromStr>(
    parser: &mut Parser,
    option: &str,
    range: &str,
    fits: impl Fn(&T) -> bool,
) -> Result<T, String>
where
    T::Err: Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
{
    let value = parser.value().map_err(|error| error.to_string())?;
    match value.parse::<T>() {
        Ok(number) if fits(&number) => Ok(number),
        _ => Err(format!(
            "{option}: not a number {range}: {}",
            value.display()
        )),
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<15}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "", "submitted", "inline", "waited", "worker", "cancelled", "timed out"
        )?;
        for kind in Kind::ALL {
            let n = &self.tally[kind as usize];
            writeln!(
                f,
                "{:<15}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
                kind.name(),
                n.submitted,
                n.inline,
                n.waited,
                n.worker,
                n.cancelled,
                n.timed_out
            )?;
        }
        let Self {
            connections,
            cancels_won,
            cancels_lost,
            bytes,
            ..
        } = self;
        writeln!(f, "cancels: {cancels_won} in time, {cancels_lost} too late")?;
        write!(
            f,
            "{connections} connections; {bytes} bytes arrived as they were sent"
        )
    }
}
