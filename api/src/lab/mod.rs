//! The nested lab: a disposable host with hardware KVM on any machine that has QEMU.
//!
//! QEMU emulates an AMD machine with SVM, all of it in software. In it runs Debian's cloud kernel with `kvm_amd`, whose
//! only program is this one: it loads the modules, runs one command as root and tells outside what the command says,
//! through one virtio-serial port (the frames of [`frame`]). Everything the host has is in an initial ramdisk that is
//! written for each run, and everything it did ends with it, but for the files that were asked for.
//!
//! Must never know: what the command is for.

mod archive;
mod content;
pub mod error;
mod frame;
pub mod inside;
mod job;
mod machine;
mod modules;
mod packages;
pub mod run;
