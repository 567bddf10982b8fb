//! Copies a file with many requests in flight.
//!
//! ```sh
//! cargo run --release -p uaio --example copy -- SRC DST [--depth N] [--block BYTES]
//! ```
//!
//! `cli` is what a user sees; `transfer` is how it is done.

#[cfg(not(any(loom, shuttle)))]
mod cli;
#[cfg(not(any(loom, shuttle)))]
mod transfer;

#[cfg(not(any(loom, shuttle)))]
fn main() -> std::process::ExitCode {
    cli::main()
}

#[cfg(any(loom, shuttle))]
fn main() {}
