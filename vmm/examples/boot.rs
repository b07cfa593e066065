//! Boots a kernel on the terminal: `boot KERNEL [MEMORY_MIB [CPUS [DISK…]]]`; `tiny` is the built-in guest.

use std::io::Write;
use std::path::PathBuf;

use vmm::BootOptions;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let kernel = arguments.next().unwrap_or_else(|| "tiny".to_owned());
    let memory_mib = arguments.next().map_or(128, |text| text.parse().expect("MEMORY_MIB is a number"));
    let vcpus = arguments.next().map_or(1, |text| text.parse().expect("CPUS is a number"));
    let kernel = if kernel == "tiny" {
        let path = std::env::temp_dir().join(format!("tiny-{}.elf", std::process::id()));
        let written = std::fs::File::create(&path).and_then(|mut file| file.write_all(vmm::guest::TINY));
        written.expect("write the built-in guest");
        path
    } else {
        PathBuf::from(kernel)
    };
    let disks = arguments.map(|path| (PathBuf::from(path), false)).collect();
    let options = BootOptions { kernel: Some(kernel), disks, memory_mib, vcpus, ..BootOptions::default() };
    match vmm::boot_interactive(options) {
        Ok(ending) => eprintln!("{:?}: {}", ending.reason, ending.message),
        Err(error) => {
            eprintln!("{error:#?}");
            std::process::exit(1);
        }
    }
}
