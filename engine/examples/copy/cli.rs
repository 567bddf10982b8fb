//! Options, errors, signals; and the temporary file that becomes DST.

use std::{
    ffi::OsString,
    fmt::{self, Display},
    fs, io,
    io::{IsTerminal, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock},
    thread,
    time::Instant,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lexopt::{Arg, Parser, ValueExt};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    iterator::Signals,
};
use uaio::{Context, File};

use crate::transfer::{Failure, Report, Transfer};

const HELP: &str = "\
Copies a file, with many requests in flight.

Usage: copy SRC DST [--depth N] [--block BYTES]

  SRC            a regular file or a block device; holes are kept
  DST            written beside its place under another name, and renamed at
                 success: until then it stands as it was. If it is a symbolic
                 link, the file that it leads to is replaced. Gets SRC's
                 permissions. Not synced to disk.
  --depth N      how many requests may be in flight, 1 to 65536 (default 32)
  --block BYTES  how much one request moves, 1 to 2^30 (default 262144)
  --help         this text

SRC is copied up to where it ends: also what is appended meanwhile. If it
becomes shorter, that is an error.

Ends with 0; 1 for an error; 2 for a wrong option; 129, 130 or 143
when interrupted.";

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

    fn at(path: &Path, error: impl Display) -> Self {
        Self {
            code: 1,
            text: format!("{}: {error}", path.display()),
        }
    }
}

struct Options {
    src: PathBuf,
    dst: PathBuf,
    depth: usize,
    block: usize,
}

pub(crate) fn main() -> ExitCode {
    let said = match parse() {
        Ok(None) => Ok(HELP.to_owned()),
        Ok(Some(options)) => copy(&options).map(|summary| summary.to_string()),
        Err(fatal) => Err(fatal),
    };
    // If nobody listens any more, the copy is made all the same.
    match said {
        Ok(text) => {
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(Fatal { code, text }) => {
            let _ = writeln!(io::stderr(), "copy: {text}");
            ExitCode::from(code)
        }
    }
}

/// `None`: help is asked for.
fn parse() -> Result<Option<Options>, Fatal> {
    let mut paths = Vec::<OsString>::new();
    let (mut depth, mut block) = (32, 256 << 10);
    let mut parser = Parser::from_env();
    while let Some(arg) = parser.next().map_err(Fatal::usage)? {
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Long("depth") => depth = number(&mut parser, "--depth", 1 << 16)?,
            Arg::Long("block") => block = number(&mut parser, "--block", 1 << 30)?,
            Arg::Value(path) if paths.len() < 2 => paths.push(path),
            arg => return Err(Fatal::usage(arg.unexpected())),
        }
    }
    match <[OsString; 2]>::try_from(paths) {
        Ok([src, dst]) => Ok(Some(Options {
            src: src.into(),
            dst: dst.into(),
            depth,
            block,
        })),
        Err(_) => Err(Fatal::usage("SRC and DST are needed")),
    }
}

fn number(parser: &mut Parser, option: &str, max: usize) -> Result<usize, Fatal> {
    let value = parser.value().map_err(Fatal::usage)?;
    match value.parse() {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        _ => Err(Fatal::usage(format_args!(
            "{option}: not a number from 1 to {max}: {}",
            value.display()
        ))),
    }
}

/// The closing line.
struct Summary {
    report: Report,
    seconds: f64,
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report {
            size,
            moved,
            inline,
            handed_off,
        } = self.report;
        let rate = moved as f64 / 1e6 / self.seconds.max(1e-9);
        write!(
            f,
            "{size} bytes in {:.3} s, {rate:.1} MB/s; {} requests: {inline} inline, \
             {handed_off} handed off",
            self.seconds,
            inline + handed_off,
        )?;
        match size.saturating_sub(moved) {
            0 => Ok(()),
            holes => write!(f, "; {holes} bytes of holes"),
        }
    }
}

fn copy(options: &Options) -> Result<Summary, Fatal> {
    let Options { src, dst, .. } = options;
    let start = Instant::now();
    let source = fs::OpenOptions::new()
        .read(true)
        // Opening a FIFO would wait for its writer.
        .custom_flags(libc::O_NONBLOCK)
        .open(src)
        .map_err(|error| Fatal::at(src, error))?;
    let from = source.metadata().map_err(|error| Fatal::at(src, error))?;
    if !from.is_file() && !from.file_type().is_block_device() {
        let unfit = "neither a regular file nor a block device";
        return Err(Fatal::at(src, unfit));
    }
    let source = File::new(source).map_err(|error| Fatal::at(src, error))?;

    let place = resolve(dst, &from)?;
    let beside = match place.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let context = Context::new(options.depth)
        .map_err(|errno| Fatal::at(Path::new("context"), io::Error::from(errno)))?;
    // Before there is a file to be removed.
    let interrupted = listen(&context)?;
    let (target, temporary) = tempfile::Builder::new()
        .prefix(".uaio-copy-")
        .rand_bytes(12)
        .make_in(beside, |path| {
            let mut open = fs::OpenOptions::new();
            open.write(true).create_new(true).mode(0o600).open(path)
        })
        .map_err(|error| Fatal::at(dst, error))?
        .into_parts();
    let target = File::new(target).map_err(|error| Fatal::at(dst, error))?;

    let bar = progress_bar(from.len());
    let done = Transfer::new(&context, &source, &target, options.block)
        .run(|position| bar.set_position(position))
        .and_then(|report| {
            let mode = rustix::fs::Mode::from_raw_mode(from.mode() & 0o777);
            rustix::fs::fchmod(&target, mode).map_err(|error| Failure::Target(error.into()))?;
            Ok(report)
        });
    // Waits for what is in flight.
    context.destroy();
    bar.finish_and_clear();

    if let Some(&signal) = interrupted.get() {
        return Err(Fatal {
            code: 128 + signal as u8,
            text: "interrupted".to_owned(),
        });
    }
    let report = done.map_err(|failure| match failure {
        Failure::Source(error) => Fatal::at(src, error),
        Failure::Target(error) => Fatal::at(dst, error),
        Failure::Context(errno) => Fatal::at(Path::new("context"), errno),
    })?;
    (temporary.persist(&place)).map_err(|failed| Fatal::at(dst, failed.error))?;
    Ok(Summary {
        report,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Where the copy goes: DST, or where it leads as a link.
fn resolve(dst: &Path, from: &fs::Metadata) -> Result<PathBuf, Fatal> {
    match fs::metadata(dst) {
        Ok(to) if (to.dev(), to.ino()) == (from.dev(), from.ino()) => {
            Err(Fatal::at(dst, "is SRC itself"))
        }
        Ok(to) if !to.is_file() => Err(Fatal::at(dst, "not a regular file")),
        Ok(_) => fs::canonicalize(dst).map_err(|error| Fatal::at(dst, error)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Fatal::at(dst, error)),
        Err(error) if dst.as_os_str().is_empty() => Err(Fatal::at(dst, error)),
        Err(_) if fs::symlink_metadata(dst).is_ok() => Err(Fatal::at(dst, "a dangling link")),
        Err(_) if dst.as_os_str().as_bytes().ends_with(b"/") => {
            Err(Fatal::at(dst, "not a regular file"))
        }
        Err(_) => Ok(dst.to_owned()),
    }
}

/// On a signal, ends the context: what is queued is cancelled, what is running
/// is waited for, and who waits for events returns.
fn listen(context: &Context) -> Result<Arc<OnceLock<i32>>, Fatal> {
    let interrupted = Arc::new(OnceLock::new());
    let failed = |error| Fatal::at(Path::new("signals"), error);
    let mut signals = [SIGHUP, SIGINT, SIGTERM].to_vec();
    // Not if the caller has them ignored, as `nohup` does.
    signals.retain(|&signal| !ignored(signal));
    // Not to die of it: then a write above the limit answers EFBIG.
    signals.push(SIGXFSZ);
    let mut signals = Signals::new(signals).map_err(failed)?;
    let (context, tell) = (context.clone(), Arc::clone(&interrupted));
    let listener = move || {
        for signal in signals.forever().filter(|&signal| signal != SIGXFSZ) {
            let _ = tell.set(signal);
            context.destroy();
        }
    };
    thread::Builder::new().spawn(listener).map_err(failed)?;
    Ok(interrupted)
}

/// Whether the process was started with the signal ignored.
fn ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Only for somebody who looks.
fn progress_bar(size: u64) -> ProgressBar {
    let target = if io::stdout().is_terminal() && io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(size), target);
    if let Ok(style) =
        ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    bar
}
