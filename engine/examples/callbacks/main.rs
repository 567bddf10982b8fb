//! A loop device in a few lines: blocks of a file, read and written by requests with
//! callbacks, each of which asks for the next.
//!
//! ```sh
//! cargo run --release -p uaio --example callbacks -- [--seconds N] [--seed N]
//! ```
//!
//! `device` serves blocks; `load` asks for them, and knows what must be in them; `cli` is
//! what a user sees. Start with `load::run`.

#[cfg(not(any(loom, shuttle)))]
mod cli;
#[cfg(not(any(loom, shuttle)))]
mod device;
#[cfg(not(any(loom, shuttle)))]
mod load;

#[cfg(not(any(loom, shuttle)))]
fn main() -> std::process::ExitCode {
    cli::main()
}

#[cfg(any(loom, shuttle))]
fn main() {}
