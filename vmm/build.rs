//! Builds the tiny guest (`guest/`) with cargo into `OUT_DIR/tiny.elf`, for `src/guest.rs` to embed.
//!
//! The guest is outside the workspace: it has neither std nor unwinding. Nothing that shapes the outer build
//! (flags, profiles, targets, wrappers) may reach it, so that it is the same bytes however it is built.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// Only for 64-bit x86 so far: its ring 0 is assembly.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Fixed addresses; no red zone is needed to be off, since interrupts switch stacks.
const RUSTFLAGS: &str = "-Crelocation-model=static";
/// Everything in the guest's directory that decides its bytes.
const SOURCES: [&str; 5] = ["Cargo.toml", "Cargo.lock", "build.rs", "guest.ld", "src"];
/// Variables by which a user or an outer cargo shapes a build; prefixes end in `_`.
const OUTER: [&str; 11] = [
    "CARGO_BUILD_",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
    "CARGO_UNSTABLE_",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTC_LINKER",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
];

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("invariant: cargo sets CARGO_MANIFEST_DIR");
    let guest = Path::new(&root).join("guest");
    let out = env::var("OUT_DIR").expect("invariant: cargo sets OUT_DIR");
    let out = Path::new(&out);
    let target_dir = out.join("guest-target");
    for source in SOURCES {
        println!("cargo::rerun-if-changed=guest/{source}");
    }

    let mut build = Command::new(env::var("CARGO").expect("invariant: cargo sets CARGO"));
    build
        .current_dir(&guest)
        .args(["build", "--quiet", "--locked", "--release", "--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    for (name, _) in env::vars() {
        if OUTER.iter().any(|outer| name == *outer || outer.ends_with('_') && name.starts_with(outer)) {
            build.env_remove(name);
        }
    }
    build.env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS);
    let status = build.status().unwrap_or_else(|error| panic!("start cargo for the tiny guest: {error}"));
    assert!(status.success(), "the tiny guest in {} does not build for {TARGET}: {status}", guest.display());

    let elf = target_dir.join(TARGET).join("release/wisp-guest");
    fs::copy(&elf, out.join("tiny.elf")).unwrap_or_else(|error| panic!("copy {}: {error}", elf.display()));
}
