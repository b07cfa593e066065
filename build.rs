//! How the one program is linked.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The first C library that can start a program whose relocations are packed.
const GLIBC_MIN: (u32, u32) = (2, 36);
/// What the program needs of the C library, as it is named to the linker, and the archives that are given in its place.
const ARCHIVES: [(&str, &[&str]); 3] =
    [("c", &["libc.a"]), ("m", &["libm.a"]), ("gcc_s", &["libgcc_eh.a", "libgcc.a"])];
/// What begins a program that has no other file to start it, and moves itself to its addresses.
const BEGINNING: &str = "rcrt1.o";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(stands_alone)");
    if !packs_relocations() {
        return;
    }
    // They are in tens of thousands, all of the one kind that packs: a start need not read 1.4 MB of them.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names a directory for what is built"));
    if found(BEGINNING).is_some() && stand_in(&out) {
        // Every VMM is this program once more: it starts half a millisecond sooner, and keeps a megabyte less of its own, where
        // no loader looks for libraries first.
        println!("cargo::rustc-link-arg-bins=-L{}", out.display());
        println!("cargo::rustc-link-arg-bins=-static-pie");
        println!("cargo::rustc-cfg=stands_alone");
    }
}

/// Writes into `to` for each of [`ARCHIVES`] a file that the linker finds first and that names the archives. Whether all of
/// them are there: distributions have them in packages of their own.
fn stand_in(to: &Path) -> bool {
    ARCHIVES.iter().all(|(name, files)| {
        let files: Option<Vec<_>> = files.iter().map(|file| found(file)).collect();
        let Some(files) = files else { return false };
        let script = format!("GROUP ( {} )\n", files.join(" "));
        std::fs::write(to.join(format!("lib{name}.a")), script).is_ok()
    })
}

/// Where the linker's driver has a file, if it has.
fn found(file: &str) -> Option<String> {
    let told = Command::new("cc").arg(format!("-print-file-name={file}")).output().ok()?;
    let path = String::from_utf8_lossy(&told.stdout).trim().to_owned();
    (path != file && Path::new(&path).is_file()).then_some(path)
}

/// Whether the program is made for this machine's C library, and that is new enough. A program that an older one starts has
/// to be built beside one.
fn packs_relocations() -> bool {
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    if of("HOST") != of("TARGET") || of("CARGO_CFG_TARGET_ENV") != "gnu" {
        return false;
    }
    let told = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let told = told.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let version = told.trim().strip_prefix("glibc ").and_then(|version| version.split_once('.'));
    let parsed = version.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.is_some_and(|version: (u32, u32)| version >= GLIBC_MIN)
}
