//! Builds the tiny guest (`guest/`) and the first program of container images (`guest/init/`) with cargo into `OUT_DIR`,
//! for `src/guest.rs` to embed.
//!
//! Both are outside the workspace: the guest has neither std nor unwinding, the program is linked statically. Nothing that shapes the outer build
//! (flags, profiles, targets, wrappers) may reach it, so that it is the same bytes however it is built.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// Only for 64-bit x86 so far: its ring 0 is assembly.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A program that is built apart, and carried.
struct Part {
    /// Its directory.
    directory: &'static str,
    /// The program.
    name: &'static str,
    /// What `src/guest.rs` calls it.
    carried: &'static str,
    rustflags: &'static str,
    /// Everything in its directory that decides its bytes.
    sources: &'static [&'static str],
    /// What building it needs that building the rest does not.
    needs: &'static str,
}

const PARTS: [Part; 2] = [
    Part {
        directory: "guest",
        name: "wisp-guest",
        carried: "tiny.elf",
        // Fixed addresses; no red zone is needed to be off, since interrupts switch stacks.
        rustflags: "-Crelocation-model=static",
        sources: &["Cargo.toml", "Cargo.lock", "build.rs", "guest.ld", "src"],
        needs: "nothing else",
    },
    Part {
        directory: "guest/init",
        name: "wisp-init",
        carried: "init.elf",
        rustflags: "-Crelocation-model=static\x1f-Ctarget-feature=+crt-static",
        sources: &["Cargo.toml", "Cargo.lock", "src"],
        needs: "the C library to link statically: libc6-dev has it, elsewhere a package such as glibc-static",
    },
];
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
    let out = env::var("OUT_DIR").expect("invariant: cargo sets OUT_DIR");
    for part in &PARTS {
        build(part, Path::new(&root), Path::new(&out));
    }
}

fn build(part: &Part, root: &Path, out: &Path) {
    let Part { directory, name, needs, .. } = part;
    for source in part.sources {
        println!("cargo::rerun-if-changed={directory}/{source}");
    }
    let target_dir = out.join("guest-target");
    let mut build = Command::new(env::var("CARGO").expect("invariant: cargo sets CARGO"));
    build
        .current_dir(root.join(directory))
        .args(["build", "--quiet", "--locked", "--release", "--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    for (name, _) in env::vars() {
        if OUTER.iter().any(|outer| name == *outer || outer.ends_with('_') && name.starts_with(outer)) {
            build.env_remove(name);
        }
    }
    build.env("CARGO_ENCODED_RUSTFLAGS", part.rustflags);
    let status = build.status().unwrap_or_else(|error| panic!("start cargo for {name}: {error}"));
    assert!(
        status.success(),
        "{name} in {directory} does not build for {TARGET} ({status}); it needs {needs}"
    );

    let elf = target_dir.join(TARGET).join("release").join(name);
    fs::copy(&elf, out.join(part.carried)).unwrap_or_else(|error| panic!("copy {}: {error}", elf.display()));
}
