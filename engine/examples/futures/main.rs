//! Requests as futures: joined, and dropped midway, on an executor of a few lines and on
//! tokio.
//!
//! ```sh
//! cargo run --release -p uaio --example futures -- [--operations N]
//! ```
//!
//! `join` is what runs on both; `executor` is the small one; `home` counts the buffers
//! that are lent out; `cli` is what a user sees. Start with `join::run`.

#[cfg(not(any(loom, shuttle)))]
mod cli;
#[cfg(not(any(loom, shuttle)))]
mod executor;
#[cfg(not(any(loom, shuttle)))]
mod home;
#[cfg(not(any(loom, shuttle)))]
mod join;

#[cfg(not(any(loom, shuttle)))]
fn main() -> std::process::ExitCode {
    cli::main()
}

#[cfg(any(loom, shuttle))]
fn main() {}
