//! An event loop: sockets, a pipe and a file, with time limits and cancels, in one
//! thread.
//!
//! ```sh
//! cargo run --release -p uaio --example event_loop -- [--seconds N] [--seed N]
//! ```
//!
//! `serve` is the loop, and what it serves; `cli` is what a user sees. Start with
//! `serve::run`.

#[cfg(not(any(loom, shuttle)))]
mod cli;
#[cfg(not(any(loom, shuttle)))]
mod serve;

#[cfg(not(any(loom, shuttle)))]
fn main() -> std::process::ExitCode {
    cli::main()
}

#[cfg(any(loom, shuttle))]
fn main() {}
