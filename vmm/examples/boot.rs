//! The two ways to run a guest, without the binary around them.
//!
//! - `boot run FD [UID GID]` runs the configuration in the inherited descriptor FD, as an instance's process does.
//! - `boot KERNEL [MEMORY_MIB [CPUS [DISK[,direct]…]]]` boots a kernel on the terminal, with the ramdisk, the words and the
//!   transport that the environment names as INITRD, CMDLINE and TRANSPORT (pci or mmio); `tiny` is the built-in guest.
#![expect(unsafe_code, reason = "an inherited descriptor is named by its number")]

use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use vmm::BootOptions;
use vmm::config::Transport;
use vmm::interactive::DiskFile;
use vmm::run::{exit_code, read_config, run_instance};
use vmm::sandbox::Sandbox;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let kernel = arguments.next().unwrap_or_else(|| "tiny".to_owned());
    if kernel == "run" {
        let fd = arguments.next().and_then(|text| text.parse().ok()).expect("FD is a number");
        let mut number = || arguments.next().map(|text| text.parse().expect("UID and GID are numbers"));
        let sandbox = Sandbox { uid: number(), gid: number(), ..Sandbox::default() };
        // SAFETY: the caller names a descriptor that this process inherited and nobody else here owns.
        let config = read_config(unsafe { File::from_raw_fd(fd) }).expect("read the configuration");
        let report = run_instance("example", config, sandbox);
        eprintln!("{report:?}");
        return ExitCode::from(exit_code(&report));
    }
    let memory_mib = arguments.next().map_or(128, |text| text.parse().expect("MEMORY_MIB is a number"));
    let vcpus = arguments.next().map_or(1, |text| text.parse().expect("CPUS is a number"));
    let kernel = if kernel == "tiny" {
        let path = std::env::temp_dir().join(format!("tiny-{}.elf", std::process::id()));
        let written = File::create(&path).and_then(|mut file| file.write_all(vmm::guest::TINY));
        written.expect("write the built-in guest");
        path
    } else {
        PathBuf::from(kernel)
    };
    let disk = |text: String| match text.strip_suffix(",direct") {
        Some(path) => DiskFile { path: path.into(), direct: true, ..DiskFile::default() },
        None => DiskFile { path: text.into(), ..DiskFile::default() },
    };
    let disks = arguments.map(disk).collect();
    let initrd = std::env::var_os("INITRD").map(PathBuf::from);
    let cmdline = std::env::var("CMDLINE").unwrap_or_default();
    let taps = Vec::new();
    let transport = match std::env::var("TRANSPORT").as_deref() {
        Ok("pci") => Transport::Pci,
        Ok("mmio") => Transport::Mmio,
        _ => Transport::Auto,
    };
    let options = BootOptions {
        kernel: Some(kernel),
        restore: Vec::new(),
        track: false,
        firmware: None,
        initrd,
        cmdline,
        disks,
        taps,
        memory_mib,
        vcpus,
        transport,
        cpu: Default::default(),
        anyway: true,
        ..BootOptions::default()
    };
    match vmm::boot_interactive(vmm::kvm::Opening::begin(), options) {
        Ok(ending) => {
            eprintln!("{:?}: {}", ending.reason, ending.message);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#?}");
            ExitCode::FAILURE
        }
    }
}
