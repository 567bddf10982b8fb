//! Options, errors, and the closing lines.

use std::{
    fmt::{self, Display},
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lexopt::{Arg, Parser};

use crate::{
    hash::{self, Failure, Input, Report},
    watch::Watch,
};

const HELP: &str = "\
Hashes files with SHA-256, by reads whose completions go to a descriptor in an epoll
set, beside a timer and the signals. The ring behind it has 8 places, and is replaced by
one of 64 and one of 1,024 while completions come. What does not fit is kept back, and
nothing is lost. Each file is read once more in the plain way, and has to hash to the
same.

Usage: asyncfd [FILE...]

  FILE    regular files or block devices (default: this program)
  --help  this text

Prints the hashes as sha256sum does, then how many completions were popped while each
ring was there, and how often they had to wake the program.

Ends with 0; 1 for an error; 2 for a wrong option; 130 or 143 when interrupted.";

/// How it ends if not well: a line for the user, and a code for the caller.
struct Fatal {
    code: u8,
    text: String,
}

impl Fatal {
    fn usage(text: impl Display) -> Self {
        Self {
            code: 2,
            text: format!("{text} (see --help)"),
        }
    }
}

impl From<Failure> for Fatal {
    fn from(failure: Failure) -> Self {
        let (code, text) = match failure {
            Failure::At(path, error) => (1, format!("{}: {error}", path.display())),
            Failure::Loop(error) => (1, error.to_string()),
            Failure::Signal(signal) => (128 + signal, "interrupted".to_owned()),
        };
        Self { code, text }
    }
}

pub(crate) fn main() -> ExitCode {
    let said = match parse() {
        Ok(None) => Ok(HELP.to_owned()),
        Ok(Some(paths)) => run(paths).map(|report| report.to_string()),
        Err(fatal) => Err(fatal),
    };
    // If nobody listens, the code says it all the same.
    match said {
        Ok(text) => {
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(Fatal { code, text }) => {
            let _ = writeln!(io::stderr(), "asyncfd: {text}");
            ExitCode::from(code)
        }
    }
}

/// `None`: help is asked for.
fn parse() -> Result<Option<Vec<PathBuf>>, Fatal> {
    let mut paths = Vec::new();
    let mut parser = Parser::from_env();
    while let Some(arg) = parser.next().map_err(Fatal::usage)? {
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Value(path) => paths.push(path.into()),
            arg => return Err(Fatal::usage(arg.unexpected())),
        }
    }
    Ok(Some(paths))
}

fn run(mut paths: Vec<PathBuf>) -> Result<Report, Fatal> {
    let failed = |error| Fatal::from(Failure::Loop(error));
    if paths.is_empty() {
        paths.push(std::env::current_exe().map_err(failed)?);
    }
    let watch = Watch::new().map_err(failed)?;
    let inputs: Vec<_> = (paths.into_iter().map(Input::open)).collect::<Result<_, _>>()?;
    let bar = progress_bar(inputs.iter().map(Input::length).sum());
    let report = hash::run(&watch, inputs, |bytes| bar.set_position(bytes));
    bar.finish_and_clear();
    Ok(report?)
}

/// Only for somebody who looks.
fn progress_bar(size: u64) -> ProgressBar {
    let target = if io::stdout().is_terminal() && io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(size), target);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, sum) in &self.sums {
            writeln!(f, "{sum}  {}", path.display())?;
        }
        for (size, popped) in &self.rings {
            writeln!(f, "ring of {size}: {popped} completions")?;
        }
        let Self {
            bytes,
            completions,
            wakeups,
            moved_in,
            ..
        } = self;
        let replacements = self.rings.len() - 1;
        let per_completion = *wakeups as f64 / (*completions).max(1) as f64;
        writeln!(
            f,
            "{completions} completions, {replacements} replacements, {wakeups} wake-ups \
             (which replacing is, too): {per_completion:.3} per completion"
        )?;
        writeln!(
            f,
            "full, and refilled with what was kept back: {moved_in} times"
        )?;
        write!(f, "{bytes} bytes, as plain reads have them")
    }
}
