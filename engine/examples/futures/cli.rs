//! Options, errors, and the closing table.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use lexopt::{Arg, Parser, ValueExt};

use crate::join::{self, Counts};

const HELP: &str = "\
Joins reads and writes of a file as futures, then reads from empty pipes and drops half
of those midway; on an executor of a few lines, and on tokio. Checks every byte, and
that every buffer came home.

Usage: futures [--operations N]

  --operations N  how many at a time, from 2 to 250 (default 100)
  --help          this text

Ends with 0 if all adds up; 1 if not; 2 for a wrong option.";

pub(crate) fn main() -> ExitCode {
    let (text, code) = match parse() {
        Ok(None) => (HELP.to_owned(), 0),
        Ok(Some(operations)) => match join::run(operations) {
            Ok(counts) => (report(&counts), 0),
            Err(why) => (why, 1),
        },
        Err(why) => (format!("{why} (see --help)"), 2),
    };
    // If nobody listens, the code says it all the same.
    let _ = match code {
        0 => writeln!(io::stdout(), "{text}"),
        _ => writeln!(io::stderr(), "futures: {text}"),
    };
    ExitCode::from(code)
}

/// `None`: help is asked for.
fn parse() -> Result<Option<usize>, String> {
    let mut operations = 100;
    let mut parser = Parser::from_env();
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Long("operations") => {
                let value = parser.value().map_err(|error| error.to_string())?;
                operations = match value.parse() {
                    Ok(n) if (2..=250).contains(&n) => n,
                    _ => return Err(format!("--operations: from 2 to 250, not {value:?}")),
                };
            }
            arg => return Err(arg.unexpected().to_string()),
        }
    }
    Ok(Some(operations))
}

fn report(counts: &[Counts]) -> String {
    let mut text = String::new();
    for Counts {
        executor,
        joined,
        dropped,
    } in counts
    {
        text += &format!("{executor:<28} {joined:>5} joined, {dropped:>5} dropped midway\n");
    }
    text + "every byte as it should be, every buffer home"
}
