//! `wisp guest`: the guests that come with the program, and Linux guests made from Debian's packages.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::place;
use crate::guest::cache::{self, Cache};
use crate::guest::image::{self, Format, Kind, Request};
use crate::guest::kernel::{self, Flavor};
use crate::guest::progress::Progress;
use crate::guest::upload;

/// The guests that come with Wisp, and Linux guests made from Debian's packages.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Write one out as an ELF file that any VMM can boot.
    #[command(after_help = "Example:\n  \
        wisp guest export tiny tiny.elf\n  \
        wisp guest image --kind debian --upload debian-slim\n  \
    sudo wisp vmm boot --kernel tiny.elf      its first words are WISP-GUEST")]
    Export {
        /// Which one.
        #[arg(value_enum)]
        guest: Guest,
        /// The file to write.
        file: PathBuf,
    },
    Kernel(KernelArguments),
    Image(ImageArguments),
}

/// A guest that comes with Wisp.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Guest {
    /// A few kilobytes that boot in milliseconds, take an address by DHCP and answer ping, echo and HTTP.
    Tiny,
}

/// Build a slim Linux kernel from Debian's source.
///
/// Minutes the first time; then it comes from the cache until its configuration or Debian's source changes. Nothing
/// is installed; the compiler and its helpers must be there, and what is missing is named.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    wisp guest kernel --out vmlinux\n  \
    wisp guest kernel --flavor small --out a --flavor smp --out b\n  \
    wisp guest kernel --flavor smp --check")]
pub(super) struct KernelArguments {
    /// Which kernel: `small` by default. May be repeated.
    #[arg(long = "flavor", value_enum, value_name = "FLAVOR")]
    flavors: Vec<Flavor>,
    /// Where to write it; one for each flavour, in their order. Without one the path in the cache is printed.
    #[arg(long = "out", value_name = "FILE")]
    outs: Vec<PathBuf>,
    /// Only see whether every line of the configuration has its effect, and compile nothing.
    #[arg(long, conflicts_with = "outs")]
    check: bool,
    #[command(flatten)]
    cache: CacheArguments,
}

/// Build a disk image with a small Linux in it from Debian's packages.
///
/// Busybox and Debian images are one ext4 file system with the slim kernel in /boot. They take their addresses by DHCP,
/// and name, ssh keys (for root) and user data from the metadata service. The same packages give the same bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    wisp guest image busybox.img\n  \
    wisp guest image --kind debian --size 2048 --format qcow2 debian.qcow2\n  \
    wisp guest image --kind debian --upload debian-slim\n  \
    wisp guest image --kind debian --verify\n  \
    sudo wisp vmm boot --kernel vmlinux --disk busybox.img --cmdline 'root=/dev/vda rw quiet'")]
pub(super) struct ImageArguments {
    /// What is in it.
    #[arg(long, value_enum, default_value = "busybox")]
    kind: Kind,
    /// With an ssh server: the default.
    #[arg(long, overrides_with = "no_ssh")]
    ssh: bool,
    /// Without one.
    #[arg(long)]
    no_ssh: bool,
    /// How the file is written.
    #[arg(long, value_enum, default_value = "raw")]
    format: Format,
    /// A kernel of your own instead of the slim one: an ELF image or a bzImage.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The disk's size in MiB; what is needed and some room by default.
    #[arg(long, value_name = "MIB")]
    size: Option<u64>,
    /// Debian generic only: /boot on a partition of its own.
    #[arg(long)]
    boot_partition: bool,
    /// Debian generic only: a second kernel lies in /var/lib/second-kernel, to be moved into /boot.
    #[arg(long)]
    second_kernel: bool,
    /// Upload it as an image of this name, into the cloud of OS_CLOUD or of the other OS_ variables.
    #[arg(long, value_name = "NAME")]
    upload: Option<String>,
    /// Build it again even if it is in the cache, and fail unless both are the same, byte for byte.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    cache: CacheArguments,
    /// The file to write; may be left out with --upload or --verify.
    #[arg(required_unless_present_any = ["upload", "verify"])]
    file: Option<PathBuf>,
}

/// Where downloads and results are kept.
#[derive(Debug, clap::Args)]
struct CacheArguments {
    /// The directory for downloads and results, ~/.cache/wisp by default. It may be deleted at any time.
    #[arg(long, value_name = "DIR", env = "WISP_CACHE_DIR")]
    cache: Option<PathBuf>,
}

pub(super) fn dispatch(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Export { guest: Guest::Tiny, file } => {
            place::check(file, "a guest")?;
            std::fs::write(file, vmm::guest::TINY).with_context(|| format!("write {}", file.display()))?;
            eprintln!("wrote {} ({} bytes)", file.display(), vmm::guest::TINY.len());
        }
        Command::Kernel(arguments) => build_kernels(arguments)?,
        Command::Image(arguments) => build_image(arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn build_kernels(arguments: &KernelArguments) -> anyhow::Result<()> {
    let flavors = if arguments.flavors.is_empty() { &[Flavor::Small][..] } else { &arguments.flavors };
    if !arguments.outs.is_empty() && arguments.outs.len() != flavors.len() {
        bail!(
            "{} flavours and {} times --out: give one for each, or none",
            flavors.len(),
            arguments.outs.len()
        );
    }
    arguments.outs.iter().try_for_each(|out| place::check(out, "a kernel"))?;
    let cache = Cache::open(arguments.cache.cache.as_deref())?;
    let progress = Progress::default();
    for (index, flavor) in flavors.iter().enumerate() {
        if arguments.check {
            kernel::check(*flavor, &cache, &progress)?;
            progress.say(&format!("every line of the {} configuration holds", flavor.name()));
            continue;
        }
        let kernel = kernel::build(*flavor, &cache, &progress)?;
        match arguments.outs.get(index) {
            Some(out) => {
                std::fs::copy(&kernel.path, out).with_context(|| format!("write {}", out.display()))?;
                progress.say(&format!("wrote {}: Linux {}", out.display(), kernel.release));
            }
            None => println!("{}", kernel.path.display()),
        }
    }
    Ok(())
}

fn build_image(arguments: &ImageArguments) -> anyhow::Result<()> {
    arguments.file.iter().try_for_each(|file| place::check(file, "an image"))?;
    let cache = Cache::open(arguments.cache.cache.as_deref())?;
    let progress = Progress::default();
    let request = Request {
        kind: arguments.kind,
        ssh: !arguments.no_ssh,
        format: arguments.format,
        kernel: arguments.kernel.clone(),
        size_mib: arguments.size,
        boot_partition: arguments.boot_partition,
        second_kernel: arguments.second_kernel,
    };
    let make = if arguments.verify { image::verify } else { image::build };
    let image = make(&request, &cache, &progress)?;
    if let Some(file) = &arguments.file {
        cache::copy_sparse(&image.path, file)?;
        let from = if image.reused { " from the cache" } else { "" };
        progress.say(&format!("wrote {}{from}", file.display()));
    }
    if let Some(name) = &arguments.upload {
        let id = upload::upload(&image.path, arguments.format.name(), name, &progress)?;
        println!("{id}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_is_exported_to_a_file_and_into_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let export =
            |name: &str| dispatch(&Command::Export { guest: Guest::Tiny, file: directory.path().join(name) });
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
        // Nobody reads from it: whoever opened it would wait.
        nix::unistd::mkfifo(&directory.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for there in ["socket", "fifo"] {
            let refused = export(there).unwrap_err().to_string();
            assert!(refused.contains(there) && refused.contains("is no regular file: a guest"), "{refused}");
        }
        for _ in 0..2 {
            export("file").unwrap();
            assert_eq!(std::fs::read(directory.path().join("file")).unwrap(), vmm::guest::TINY);
        }
    }
}
