//! Passes a checker's cfg on to rustdoc, which does not see RUSTFLAGS.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for (cfg, variable) in [("loom", "CARGO_CFG_LOOM"), ("shuttle", "CARGO_CFG_SHUTTLE")] {
        if std::env::var_os(variable).is_some() {
            println!("cargo::rustc-cfg={cfg}");
        }
    }
}
