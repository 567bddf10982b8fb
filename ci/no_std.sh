#!/usr/bin/env bash
# Links the core into a program without std, once per set of features, and runs
# it. A program with its own panic handler cannot link std: rustc refuses two
# (E0152). That it would is shown last, with the feature `std`.
set -euo pipefail
cd "$(dirname "$0")/.."

core=$PWD/core
lock=$PWD/Cargo.lock
target=${CARGO_TARGET_DIR:-$PWD/target}
export CARGO_TARGET_DIR=$target/no_std
# A package of its own: in the workspace, features of other members would join.
dir=$target/no_std/program
mkdir -p "$dir/src"

cat >"$dir/src/main.rs" <<'RUST'
#![no_std]
#![no_main]

use core::ffi::c_int;

use uaio_core::{context::InlineContext, slots::Iocb};

static CONTEXT: InlineContext<u32, 8, 8> = InlineContext::inline();

/// The way of one request; the status with which the program ends.
fn way() -> Option<()> {
    let iocb = Iocb { data: 42, obj: 0 };
    let handle = CONTEXT.reserve_one().ok()?.fill(iocb, 7).arm();
    CONTEXT.claim(handle).ok()?.complete(4096, 0);
    let mut out = [None];
    CONTEXT.reap(&mut out).ok()?;
    let done = out[0].take()?;
    let expected = (42, 4096, 7);
    ((done.event.data, done.event.res, done.payload) == expected).then_some(())
}

#[cfg(feature = "alloc")]
mod heap {
    extern crate alloc;

    use core::{
        alloc::{GlobalAlloc, Layout},
        ffi::c_void,
    };

    unsafe extern "C" {
        fn aligned_alloc(align: usize, size: usize) -> *mut c_void;
        fn free(pointer: *mut c_void);
    }

    struct C;

    unsafe impl GlobalAlloc for C {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let layout = layout.pad_to_align();
            unsafe { aligned_alloc(layout.align(), layout.size()) }.cast()
        }
        unsafe fn dealloc(&self, pointer: *mut u8, _: Layout) {
            unsafe { free(pointer.cast()) }
        }
    }

    #[global_allocator]
    static HEAP: C = C;

    pub fn way() -> Option<()> {
        let context = uaio_core::Context::boxed(100).ok()?;
        let payload = alloc::boxed::Box::new(7);
        let reserved = context.reserve_one().ok()?;
        reserved.fill(Default::default(), payload).claim().complete(1, 0);
        let mut out = [const { None }; 2];
        (context.reap(&mut out) == Ok(1)).then_some(())
    }
}

#[cfg(not(feature = "alloc"))]
mod heap {
    pub fn way() -> Option<()> {
        Some(())
    }
}

#[link(name = "c")]
unsafe extern "C" {
    fn exit(status: c_int) -> !;
}

#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    c_int::from(way().is_none() || heap::way().is_none())
}

/// What the prebuilt `core` was compiled to unwind with; std's is not here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe { exit(2) }
}
RUST

# with FEATURES COMMAND...: runs cargo on the program with the core so built.
with() {
    local features=$1
    shift
    cat >"$dir/Cargo.toml" <<TOML
[package]
name = "program"
version = "0.0.0"
edition = "2024"

[features]
alloc = []

[dependencies.uaio-core]
path = "$core"
default-features = false
features = [$features]

[profile.dev]
panic = "abort"

[workspace]
TOML
    cp "$lock" "$dir/Cargo.lock"
    "$@" --quiet --manifest-path "$dir/Cargo.toml"
}

with '' cargo run
echo 'no_std: no features: links without std, runs'
with '"portable-atomic"' cargo run
echo 'no_std: portable-atomic: links without std, runs'
with '"alloc"' cargo run --features alloc
echo 'no_std: alloc: links without std, runs'
with '"table"' cargo run --features alloc
echo 'no_std: table: links without std, runs'

if output=$(with '"std"' cargo build --features alloc 2>&1); then
    echo 'no_std: std linked beside the program'\''s own panic handler: this proves nothing' >&2
    exit 1
fi
if ! grep -q E0152 <<<"$output"; then
    printf 'no_std: std failed, but not with E0152:\n%s\n' "$output" >&2
    exit 1
fi
echo 'no_std: std: refused (E0152), as it must be'
