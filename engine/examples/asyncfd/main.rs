//! Hashes files by reads whose completions go to a descriptor, which sits in an epoll
//! set beside a timer and the signals. Its ring is replaced by larger ones meanwhile.
//!
//! ```sh
//! cargo run --release -p uaio --example asyncfd -- FILE...
//! ```
//!
//! `cli` is what a user sees; `watch` is the epoll set; `hash` is how it is done. Start
//! with `hash::run`.

#[cfg(not(any(loom, shuttle)))]
mod cli;
#[cfg(not(any(loom, shuttle)))]
mod hash;
#[cfg(not(any(loom, shuttle)))]
mod watch;

#[cfg(not(any(loom, shuttle)))]
fn main() -> std::process::ExitCode {
    cli::main()
}

#[cfg(any(loom, shuttle))]
fn main() {}
