//! `wisp demo`: checks that the host can do it, then runs the demo.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use vmm::kvm::HostKind;

use crate::demo::Guest;
use crate::guest::cache::Cache;
use crate::guest::image::{self, Format, Kind, Request};
use crate::guest::progress::Progress;

/// Start a cloud in a temporary directory, do once what a person would, and leave nothing behind.
///
/// Token, image upload, flavor, key pair, network, subnet, security group and a server; wait until the guest itself
/// answers, ping it, fetch a page from it (or log in to it), show its console, stop it, start it, delete it all, and look
/// that no process, link, rule or file is left. Each step is a line with its time. The exit code is 0 only if every step
/// held.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo wisp demo\n  \
    sudo wisp demo --keep        leaves the cloud running and says how to use it\n  \
    sudo wisp demo --linux       with a slim Debian, reached over ssh; its image is built the first time")]
pub(super) struct Arguments {
    /// Leave the cloud running, with its server.
    #[arg(long)]
    keep: bool,
    /// With a slim Debian instead of the tiny guest.
    #[arg(long)]
    linux: bool,
    /// The Linux guest's disk, raw, as `wisp guest image` builds it; built if none is given.
    #[arg(long, value_name = "FILE", requires = "linux")]
    image: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    super::up::check_host()?;
    let guest = if arguments.linux { linux(arguments.image.clone())? } else { Guest::Tiny };
    crate::demo::run(guest, arguments.keep)?;
    Ok(ExitCode::SUCCESS)
}

/// A Linux guest, where the host can run one.
fn linux(image: Option<PathBuf>) -> anyhow::Result<Guest> {
    if HostKind::detect() == HostKind::Software {
        bail!(
            "this host's KVM is a software one (module kvm_pvm), which cannot run a Linux guest's programs. The nested \
             lab can, with Debian's qemu-system-x86:\n\n  \
             wisp guest image --kind debian debian.img\n  \
             wisp lab --disk debian.img,ro --program ssh --mem 2048 --timeout 1200 -- \\\n      \
             wisp demo --linux --image /dev/vda"
        );
    }
    if let Some(image) = image {
        return Ok(Guest::Linux { image });
    }
    let request = Request {
        kind: Kind::Debian,
        ssh: true,
        format: Format::Raw,
        kernel: None,
        size_mib: None,
        boot_partition: false,
        second_kernel: false,
    };
    let built = image::build(&request, &Cache::open(None)?, &Progress::default())?;
    Ok(Guest::Linux { image: built.path })
}
