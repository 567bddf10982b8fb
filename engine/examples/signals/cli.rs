//! Options, errors, and the closing table.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use lexopt::{Arg, Parser, ValueExt};

use crate::tell::{self, MOST, Report};

const HELP: &str = "\
Reads a file, and has a real-time signal sent for each completion: to a handler and to
a signalfd, to the process and to one thread, and with no more than 4 signals pending.
Checks that each signal came once, with its value, and after its completion.

Usage: signals [--requests N]

  --requests N  of each kind, from 1 to 65536 (default 1000)
  --help        this text

Ends with 0 if all adds up; 1 if not; 2 for a wrong option.";

pub(crate) fn main() -> ExitCode {
    let (text, code) = match parse() {
        Ok(None) => (HELP.to_owned(), 0),
        Ok(Some(requests)) => match tell::run(requests) {
            Ok(report) => (report.to_string(), 0),
            Err(why) => (why, 1),
        },
        Err(why) => (format!("{why} (see --help)"), 2),
    };
    // If nobody listens, the code says it all the same.
    let _ = match code {
        0 => writeln!(io::stdout(), "{text}"),
        _ => writeln!(io::stderr(), "signals: {text}"),
    };
    ExitCode::from(code)
}

/// `None`: help is asked for.
fn parse() -> Result<Option<u64>, String> {
    let mut requests = 1000;
    let mut parser = Parser::from_env();
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Long("requests") => {
                let value = parser.value().map_err(|error| error.to_string())?;
                requests = match value.parse() {
                    Ok(n) if (1..=MOST).contains(&n) => n,
                    _ => return Err(format!("--requests: from 1 to {MOST}, not {value:?}")),
                };
            }
            arg => return Err(arg.unexpected().to_string()),
        }
    }
    Ok(Some(requests))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, counts) in &self.kinds {
            writeln!(
                f,
                "{what:<44} {:>6} completions, {:>6} signals, {:>5} times no room",
                counts.completions, counts.signals, counts.no_room
            )?;
        }
        write!(f, "each signal once, with its value, after its completion")
    }
}
