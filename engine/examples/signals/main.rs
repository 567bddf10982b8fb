//! A signal for each completion: caught by a handler, or read from a signalfd; to the
//! process, or to one of its threads; and none lost, however few may be pending.
//!
//! ```sh
//! cargo run --release -p uaio --example signals -- [--requests N]
//! ```
//!
//! `tell` submits, and counts what comes; `system` is what Rust has no words for; `cli`
//! is what a user sees. Start with `tell::run`.

#[cfg(not(any(loom, shuttle)))]
mod cli;
#[cfg(not(any(loom, shuttle)))]
mod system;
#[cfg(not(any(loom, shuttle)))]
mod tell;

#[cfg(not(any(loom, shuttle)))]
fn main() -> std::process::ExitCode {
    cli::main()
}

#[cfg(any(loom, shuttle))]
fn main() {}
