//! Tells the linker how the guest's image lies in memory. Code generation for fixed addresses
//! (`-C relocation-model=static`) comes from whoever runs cargo: `vmm/build.rs`.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("invariant: cargo sets CARGO_MANIFEST_DIR");
    println!("cargo::rerun-if-changed=guest.ld");
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,norelro"]
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/guest.ld");
}
