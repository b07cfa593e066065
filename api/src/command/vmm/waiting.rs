//! A VMM process that is there before its guest.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use vmm::sandbox::{self, Namespaces, Sandbox};
use vmm::waiting::{Called, Expected, wait_for_guest};

use crate::process::terminal::tell;

/// Have a VMM process ready for a guest: confined, and with all that takes long to make.
///
/// It runs the one guest that `wisp vmm boot --in SOCKET` gives it, and ends with it. Until then it takes some 1.3 MiB of memory
/// and no processor. A guest is there so much sooner that whoever wants many at short notice keeps some waiting.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo wisp vmm wait vmm.sock &\n  \
    sudo wisp vmm boot --in vmm.sock --kernel tiny.elf\n  \
    sudo wisp vmm wait --mem 1024 next.sock & sudo wisp vmm boot --in next.sock --restore guest.snap --tap tap1")]
pub(in crate::command) struct Wait {
    /// Where it waits; the guest's control socket afterwards.
    socket: PathBuf,
    /// For how many disks it prepares queues (io_uring). What has more does without for some of them, which are served one request
    /// after the other; those that come while the guest runs have some of their own.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(..=64))]
    disks: u8,
    /// The memory in MiB that the guest will have: what KVM makes for so much of it is made ahead, which grows with the memory. A
    /// guest with another size is run as well, and not as soon.
    #[arg(long = "mem", value_name = "MIB")]
    memory_mib: Option<u32>,
}

pub(super) fn run(arguments: &Wait) -> anyhow::Result<ExitCode> {
    // For people only: the kernel names a process after its file.
    let _ = rustix::thread::set_name(c"wisp-vmm");
    sandbox::close_all_but(&[]).context("close what was inherited")?;
    let listener = vmm::interactive::listen(&arguments.socket)?;
    let sandbox = Sandbox { namespaces: Namespaces::Own, ..Sandbox::default() };
    let expected = Expected { disks: arguments.disks.into(), memory_mib: arguments.memory_mib };
    let report = wait_for_guest(Called::At(listener), expected, sandbox);
    tell(&report.message);
    Ok(ExitCode::from(vmm::run::exit_code(&report)))
}
