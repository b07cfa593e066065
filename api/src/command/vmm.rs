//! `wisp vmm`: one microVM, with a terminal (`boot`) or as an instance's process (`run`), and what comes to it and goes
//! from it while it runs.

mod disk;
mod endpoint;
mod peripherals;
mod plug;
mod snapshot;
mod tap;
mod upgrade;
mod waiting;
mod words;

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use vmm::interactive::{BootOptions, DiskFile, boot_in, boot_interactive};
use vmm::kvm::Opening;
use vmm::sandbox::{self, Namespaces, Sandbox};

use crate::process::handover::Inherited;
use crate::process::terminal;

/// One microVM by itself, without a cloud.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    Boot(Box<Boot>),
    Wait(waiting::Wait),
    #[command(flatten)]
    Plug(Box<plug::Command>),
    #[command(flatten)]
    Snapshot(snapshot::Command),
    #[command(flatten)]
    Disk(disk::Command),
    Upgrade(upgrade::Upgrade),
    /// The process that a guest is handed over to, as `upgrade` starts it.
    #[command(hide = true)]
    Successor {
        /// How many disks the guest has.
        #[arg(long)]
        disks: usize,
    },
    /// The process that connects for a guest, as `boot` starts it.
    #[command(hide = true)]
    Connector {
        /// The beginning of the sockets' names.
        path: PathBuf,
    },
    /// The process of one instance, as the agent starts it.
    #[command(hide = true, disable_help_flag = true)]
    Run {
        /// See [`run`], which is what really happens.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// The one that starts a guest.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Start {
    Boot(Box<Boot>),
}

/// Boot one guest with its serial console on the terminal.
///
/// Nothing but the console is written to standard output. Ctrl-A x ends the guest. Exit code 0 if the guest ended as
/// it should.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    wisp guest export tiny tiny.elf && sudo wisp vmm boot --kernel tiny.elf\n  \
    sudo wisp vmm boot --disk debian-12-generic-amd64.raw --mem 512\n  \
    sudo wisp vmm boot --restore guest.snap --disk fork.raw --tap tap1      # see `wisp vmm snapshot --help`\n  \
    sudo wisp vmm boot --disk debian.raw --control guest.sock & sudo wisp vmm attach-disk guest.sock data.raw\n  \
    sudo wisp vmm boot --kernel vmlinux --cmdline 'root=/dev/vda' --disk root.img --mem 512 --cpus 2\n  \
    sudo wisp vmm wait vmm.sock & sudo wisp vmm boot --in vmm.sock --restore guest.snap")]
pub(super) struct Boot {
    /// The kernel: an ELF image (vmlinux) or a bzImage. Without one, the first disk boots: an ELF kernel at its
    /// beginning, or what its boot loader's configuration says (GRUB 2, systemd-boot, extlinux; ext4, XFS, Btrfs, FAT).
    #[arg(long, value_name = "K", required_unless_present_any = ["disks", "firmware", "restore"])]
    kernel: Option<PathBuf>,
    /// Boot nothing: go on from a snapshot, where its guest was. With further ones, each with the differences to the one
    /// before. Disks and taps are given in the order that the guest knows; they may be others, and the guest is told that it
    /// is another. Memory, processors and transport are the snapshot's. The files must not change meanwhile.
    #[arg(long, value_name = "SNAPSHOT", conflicts_with_all = ["kernel", "firmware", "initrd", "transport", "cmdline", "cpu", "mem", "cpus"])]
    restore: Vec<PathBuf>,
    /// Keep what a guest that goes on from packed memory asks for first, or, if the file has that already, unpack it before
    /// it is asked for. Made where it is not.
    #[arg(long, value_name = "FILE", requires = "restore")]
    working_set: Option<PathBuf>,
    /// Note what a guest that goes on writes, so that its next snapshot can have `--diff`.
    #[arg(long, requires = "restore")]
    track: bool,
    /// A firmware that boots the disks by itself, in place of a kernel: an ELF image with a PVH entry (hypervisor-fw,
    /// CLOUDHV.fd).
    #[arg(long, value_name = "F", conflicts_with_all = ["kernel", "initrd"])]
    firmware: Option<PathBuf>,
    /// The initial ramdisk.
    #[arg(long, value_name = "I", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// How the guest reaches its devices; auto: mmio for an ELF image, pci for all others.
    #[arg(long, value_name = "T", default_value = "auto")]
    transport: Transport,
    /// Words added to the kernel's command line.
    #[arg(long, value_name = "C", default_value = "")]
    cmdline: String,
    /// A raw disk. May be repeated. It is this guest's alone while it runs, and that of all who only read it if `,ro` says that
    /// it is not written. `,shared`: others write to it as well, and the guests' file system is made for that. `,direct`: it is read and written past the host's page cache,
    /// which takes less of a processor for each request of a busy guest and no memory, and lets nothing be read again from
    /// memory. `,serial=S`: the serial number that the guest reads, up to 20 bytes. `,base=BASE`: the file is an overlay, made
    /// if it is not there, that keeps what is written, over a raw disk that is only read and that many guests share.
    /// `,key-file=KEY`: its bytes lie encrypted, a base's too, as dm-crypt's plain format has them (aes-xts-plain64), with the key
    /// that is KEY's 32 or 64 bytes as they are; `head -c 64 /dev/urandom >KEY` makes one. Without it such a disk is noise to the
    /// guest, and nothing tells a wrong key. `,read-bytes=RATE[:BURST]`, `,write-bytes=…`, `,total-bytes=…`, `,read-iops=…`,
    /// `,write-iops=…`, `,total-iops=…`: how many bytes or requests a second, and how many at once after a rest, a tenth of a second's
    /// unless said. All hold together; `wisp vmm limit-disk` changes them.
    #[arg(long = "disk", value_name = words::DISK, value_parser = words::read_by(words::disk))]
    disks: Vec<DiskFile>,
    /// A tap that exists. May be repeated. `,mac=M`: the guest's MAC address, of which two on one network must not be the same;
    /// 02:57:49:53:50:00 for the first unless said. `,mtu=N`: the largest packet that the guest is told to send, 1500 bytes
    /// unless said. `,to-guest-bytes=RATE[:BURST]`, `,to-guest-packets=…`, `,from-guest-bytes=…`, `,from-guest-packets=…`: how much
    /// goes a second, and at once after a rest (a tenth of a second's unless said); `wisp vmm limit-nic` changes that. `,address=A/N`:
    /// the guest is given this address by DHCP, whose server takes none of the subnet's and keeps all others away; with
    /// `,gateway=A`, `,dns=A[+A]…`, `,hostname=H`. `,queues=N`: so many pairs of queues, up to 8, for a guest whose processors shall not wait for
    /// one another to send; one unless said. A tap for several is made so: `ip tuntap add NAME mode tap multi_queue`. The guest's
    /// driver says how many it uses, as Linux does by itself.
    #[arg(long = "tap", value_name = tap::TAP, value_parser = words::read_by(tap::tap))]
    taps: Vec<tap::Tap>,
    /// What the guest is told at 169.254.169.254, port 80, on taps with an address (and at fe80::a9fe:a9fe on all): the files in this
    /// directory, each by its path below it, as `openstack/latest/meta_data.json` or `latest/meta-data/instance-id`; by EC2's tokens,
    /// too. Read once, 1 MiB at the most. A guest that goes on from a snapshot may be told others.
    #[arg(long, value_name = "DIR", requires = "taps")]
    metadata: Option<PathBuf>,
    /// Have it run by a VMM process that waits for a guest (`wisp vmm wait`) at this socket, in place of one of its own: what takes
    /// longest of a start is over there. The socket is the guest's control socket then.
    #[arg(long = "in", value_name = "SOCKET", conflicts_with_all = ["pin_memory", "anyway"])]
    waiting: Option<PathBuf>,
    /// A control socket to make, for `wisp vmm attach-disk` and the like.
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    mem: u32,
    /// What pages its memory is made of. thp: huge ones of 2 MiB wherever the host has one free when memory is first touched;
    /// hugetlb: such as are reserved (sysctl vm.nr_hugepages), or none at all, and no balloon.
    #[arg(long, value_name = "PAGES", default_value = "none", conflicts_with = "restore")]
    huge_pages: Pages,
    /// Register the guest's memory with its disks (io_uring), of which each `,direct` request then takes a sixth to a quarter less of a processor. All of
    /// the memory is there from the start, which takes milliseconds for each MiB, and stays: so there is no balloon, none comes and goes,
    /// and no such guest goes on from a snapshot or to another program. Disks that come later do without.
    #[arg(long, requires = "disks", conflicts_with_all = ["restore", "upgradable", "balloon", "hotplug_memory"])]
    pin_memory: bool,
    /// The guest can be handed over to another program while it runs (`wisp vmm upgrade`). Its memory is a file without a name
    /// then, of which each page costs more when it is first touched; of a snapshot it is a copy. With `--huge-pages thp`, the
    /// host must have some for such files (/sys/kernel/mm/transparent_hugepage/shmem_enabled).
    #[arg(long, requires = "control", conflicts_with = "working_set")]
    upgradable: bool,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// The processor that the guest sees: all that this host's KVM can run, or x86-64-v2, which every host has.
    #[arg(long, value_name = "PROFILE", default_value = "host")]
    cpu: Cpu,
    /// Boot even what is known not to come far on this host: Linux where KVM is a software one.
    #[arg(long)]
    anyway: bool,
    #[command(flatten)]
    peripherals: peripherals::Options,
}

/// The words of `--cpu`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Cpu {
    Host,
    Baseline,
}

impl From<Cpu> for vmm::config::CpuProfile {
    fn from(cpu: Cpu) -> Self {
        match cpu {
            Cpu::Host => Self::Host,
            Cpu::Baseline => Self::Baseline,
        }
    }
}

/// The words of `--huge-pages`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Pages {
    None,
    Thp,
    Hugetlb,
}

impl From<Pages> for vmm::config::HugePages {
    fn from(pages: Pages) -> Self {
        match pages {
            Pages::None => Self::None,
            Pages::Thp => Self::Transparent,
            Pages::Hugetlb => Self::Reserved,
        }
    }
}

/// The words of `--transport`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Transport {
    Auto,
    Mmio,
    Pci,
}

impl From<Transport> for vmm::config::Transport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Auto => Self::Auto,
            Transport::Mmio => Self::Mmio,
            Transport::Pci => Self::Pci,
        }
    }
}

pub(super) fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Boot(arguments) => boot(begin(arguments.waiting.is_none())?, *arguments),
        Command::Wait(arguments) => waiting::run(&arguments),
        Command::Plug(command) => plug::run(*command),
        Command::Snapshot(command) => snapshot::run(command),
        Command::Disk(command) => disk::run(command),
        Command::Upgrade(arguments) => upgrade::run(&arguments),
        Command::Successor { disks } => upgrade::succeed(disks),
        Command::Connector { path } => peripherals::connect_for(&path),
        Command::Run { arguments } => Ok(run(&arguments)),
    }
}

/// Begins a guest's start before it is known what is to run; not `here` where the guest will be another process's.
pub(super) fn begin(here: bool) -> anyhow::Result<Opening> {
    sandbox::close_all_but(&[]).context("close what was inherited")?;
    Ok(if here { Opening::begin() } else { Opening::later() })
}

pub(super) fn start(kvm: Opening, Start::Boot(arguments): Start) -> anyhow::Result<ExitCode> {
    boot(kvm, *arguments)
}

fn boot(kvm: Opening, arguments: Boot) -> anyhow::Result<ExitCode> {
    let metadata = arguments.metadata.as_deref().map(endpoint::metadata).transpose()?.unwrap_or_default();
    let taps = arguments.taps.iter().map(|tap| tap.option(&metadata)).collect::<anyhow::Result<_>>()?;
    let restored = !arguments.restore.is_empty();
    let options = BootOptions {
        kernel: arguments.kernel,
        track: arguments.track,
        firmware: arguments.firmware,
        initrd: arguments.initrd,
        transport: arguments.transport.into(),
        anyway: arguments.anyway,
        cmdline: arguments.cmdline,
        disks: arguments.disks,
        taps,
        memory_mib: if restored { 0 } else { arguments.mem },
        huge_pages: arguments.huge_pages.into(),
        pin_memory: arguments.pin_memory,
        upgradable: arguments.upgradable,
        vcpus: if restored { 0 } else { arguments.cpus },
        restore: arguments.restore,
        working_set: arguments.working_set,
        cpu: arguments.cpu.into(),
        control: arguments.control,
        console: arguments.peripherals.console,
        balloon: arguments.peripherals.balloon,
        mem: arguments
            .peripherals
            .hotplug_memory
            .map(|region_mib| vmm::config::MemConfig { region_mib, requested_mib: 0 }),
        pmem: arguments.peripherals.pmem,
        watchdog: arguments.peripherals.watchdog.map(Into::into),
        vsock: arguments.peripherals.vsock.map(peripherals::Vsock::start).transpose()?,
    };
    let ending = match arguments.waiting {
        Some(socket) => boot_in(&socket, options)?,
        None => boot_interactive(kvm, options)?,
    };
    terminal::tell(&ending.message);
    let report = vmm::rpc::ExitReport { reason: ending.reason, message: ending.message, first_run_us: None };
    Ok(ExitCode::from(vmm::run::exit_code(&report)))
}

/// The process of one instance: `wisp vmm run INSTANCE_ID --config-fd N [--uid U --gid G] [--cell]`.
///
/// Apart from all other commands, so that nothing runs in the process and nothing stays in its memory but the VMM.
pub(super) fn run(arguments: &[OsString]) -> ExitCode {
    // For people only: the kernel names a process after its file.
    let _ = rustix::thread::set_name(c"wisp-vmm");
    let subscriber =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN);
    // The log may be on a disk that is full: to say so there would be a panic, and a guest's end.
    let logging = subscriber.with_ansi(false).log_internal_errors(false).try_init();
    match logging.map_err(|error| anyhow::anyhow!(error)).and_then(|()| run_instance(arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            terminal::tell(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run_instance(arguments: &[OsString]) -> anyhow::Result<u8> {
    let arguments = RunArguments::parse(arguments)?;
    let file =
        File::from(Inherited::numbered(arguments.config_fd).take().context("take over the configuration")?);
    let config = vmm::run::read_config(file)?;
    sandbox::close_all_but(&vmm::inherited::numbers(&config)).context("close what was inherited")?;
    let namespaces = if arguments.cell { Namespaces::Cell } else { Namespaces::Stay };
    let sandbox = Sandbox { uid: arguments.uid, gid: arguments.gid, namespaces };
    let report = vmm::run::run_instance(&arguments.instance, config, sandbox);
    Ok(vmm::run::exit_code(&report))
}

#[derive(Debug, PartialEq, Eq)]
struct RunArguments {
    instance: String,
    config_fd: i32,
    uid: Option<u32>,
    gid: Option<u32>,
    /// It is in a cell already.
    cell: bool,
}

impl RunArguments {
    fn parse(arguments: &[OsString]) -> anyhow::Result<Self> {
        const USAGE: &str =
            "wisp vmm run INSTANCE_ID --config-fd N [--uid U --gid G] [--cell]; the agent starts it";
        let mut words = arguments.iter().map(|word| word.to_str().context(USAGE));
        let instance = words.next().context(USAGE)??.to_string();
        let (mut config_fd, mut uid, mut gid, mut cell) = (None, None, None, false);
        while let Some(option) = words.next() {
            let option = option?;
            if option == "--cell" {
                cell = true;
                continue;
            }
            let value = words.next().context(USAGE)??;
            match option {
                "--config-fd" => config_fd = Some(value.parse().context(USAGE)?),
                "--uid" => uid = Some(value.parse().context(USAGE)?),
                "--gid" => gid = Some(value.parse().context(USAGE)?),
                _ => bail!("{option} is not known: {USAGE}"),
            }
        }
        Ok(Self { instance, config_fd: config_fd.context(USAGE)?, uid, gid, cell })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<RunArguments> {
        RunArguments::parse(&text.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn run_takes_an_instance_and_numbers() {
        let parsed = parse("a-b --config-fd 3 --uid 5 --gid 6 --cell").unwrap();
        assert_eq!((parsed.config_fd, parsed.uid, parsed.gid, parsed.cell), (3, Some(5), Some(6), true));
        for wrong in ["", "a", "a --config-fd", "a --config-fd x", "a --config-fd 3 --what 4"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
