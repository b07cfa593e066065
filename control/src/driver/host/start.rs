//! Starting an instance: steps in order, each with its undo. One that fails undoes all before it, so that nothing is
//! left that was not there before; disks and directories that an earlier boot made stay.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use vmm::config::{
    Addressing, Boot, CpuProfile, DiskConfig, DiskFormat, EndpointConfig, InheritedFd, Ipv4Config, NicConfig,
    SystemIdentity, Transport, VlanAddressing, VmmConfig,
};
use vmm::endpoint::METADATA_ADDRESS;
use vmm::rpc::{Client, ProtectionStatus, Status};
use vmm::sandbox::cell::Cell;
use zeroize::Zeroizing;

use super::directory::{Directory, Record};
use super::plug::{Beside, Plugging};
use super::{HostDriver, Process, config_drive, disk, sentence, spawn};
use crate::agent::protocol::{InstanceWanted, NicWanted, SubPortWanted, VolumeWanted};
use crate::driver::Surroundings;
use crate::driver::fail_points::Step;
use crate::driver::process_id::{has_ended_within, killed_by};
use crate::driver::volumes::serial;

/// How long a VMM may take from its configuration to its guest's start: kernels and memory are read and made in it.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process that was killed may take to be gone: its memory has to be given back.
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a DHCP lease holds, in seconds: a day, as Neutron's.
const LEASE_S: u32 = 86_400;
/// The MAC that answers for what the VMM answers itself: locally administered.
const ENDPOINT_MAC: [u8; 6] = [0x02, b'w', b'i', b's', b'p', 0x01];
/// The first of the users that VMM processes become, one each: above the ranges that distributions and containers
/// give away.
const USER_BASE: u32 = 1_900_000_000;
/// How many such users there are.
const USERS: u32 = 1 << 24;
/// The user where the range does not exist, as in a user namespace.
const USER_FALLBACK: u32 = 60_901;

/// What has to be taken back if a later step fails, newest last.
struct Undo<'a>(Vec<Box<dyn FnOnce() + 'a>>);

impl<'a> Undo<'a> {
    fn push(&mut self, undo: impl FnOnce() + 'a) {
        self.0.push(Box::new(undo));
    }

    fn keep_all(mut self) {
        self.0.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some(undo) = self.0.pop() {
            undo();
        }
    }
}

/// A step's failure as one sentence.
fn failed<E: std::error::Error>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {}", sentence(&error))
}

/// Logs what an undo could not take back; the next look at the host does.
fn logged<E: std::error::Error>(instance: &str, what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::warn!(instance.id = instance, error = sentence(&error), "cannot {what}");
    }
}

/// What the process gets of files.
struct Files {
    fds: Vec<OwnedFd>,
}

impl Files {
    /// Adds one, and says under what number the process finds it.
    fn push(&mut self, fd: impl Into<OwnedFd>) -> InheritedFd {
        self.fds.push(fd.into());
        InheritedFd(spawn::number_of(self.fds.len() - 1))
    }
}

impl HostDriver {
    pub(super) fn check(&self, step: Step) -> Result<(), String> {
        if self.fail.is_set(step) { Err(format!("the step {step:?} was made to fail")) } else { Ok(()) }
    }

    /// Makes what is missing and runs the guest. The error is one sentence for the server's owner.
    pub(super) fn start(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Surroundings,
        directory: &Directory,
    ) -> Result<(Process, Record, Plugging), String> {
        let id = wanted.id.as_str();
        let mut undo = Undo(Vec::new());

        let is_new = directory.create().map_err(failed("make the instance's directory"))?;
        undo.push(move || {
            let removed = if is_new { directory.remove() } else { directory.remove_run() };
            logged(id, "remove the instance's directory", removed);
        });
        self.check(Step::Directory)?;

        let mut record = Record {
            wanted: wanted.without_keys(),
            beside: Beside::default(),
            boot: wanted.boot,
            host_boot: super::directory::host_boot(),
            started: false,
            fault: None,
            first_run_us: None,
        };
        directory.remove_exit().map_err(failed("forget the end of the boot before"))?;
        directory.write_record(&record).map_err(failed("write the instance down"))?;
        self.check(Step::Record)?;

        self.volumes.claim(wanted);
        undo.push(move || self.volumes.release(id));
        let mut files = Files { fds: Vec::new() };
        let mut disks = vec![self.root_disk(wanted, directory, &mut files)?];
        self.check(Step::RootDisk)?;

        for volume in &wanted.volumes {
            disks.push(self.volume(volume, &mut files)?);
        }
        self.check(Step::Volumes)?;

        if wanted.config_drive {
            disks.push(drive(wanted, directory, &mut files)?);
        }
        self.check(Step::ConfigDrive)?;

        let boot = self.boot(wanted, &mut files)?;
        self.check(Step::Kernel)?;

        let taps = self.network.attach(surroundings, (&wanted.nics, wanted.queue_pairs));
        let taps = taps.map_err(failed("attach to the network"))?;
        undo.push(|| {
            logged(id, "detach from the network", self.network.detach(surroundings, &wanted.nics));
        });
        self.check(Step::Network)?;

        let log = directory.open_log().map_err(failed("make the VMM's log"))?;
        let config = configuration(wanted, directory, (boot, disks, taps), &mut files)?;
        self.check(Step::Files)?;

        let process = self.launch(wanted, directory, &config, (files, log), &mut undo)?;
        let status = run(&process, directory)?;
        record.first_run_us = status.first_run_us;
        self.check(Step::Start)?;
        record.started = true;
        directory.write_record(&record).map_err(failed("write the instance down"))?;
        undo.keep_all();
        Ok((process, record, Plugging::begun(wanted, status.devices)))
    }

    /// Starts the process, writes it down, tells it what to be.
    fn launch<'a>(
        &'a self,
        wanted: &'a InstanceWanted,
        directory: &Directory,
        config: &VmmConfig,
        (files, log): (Files, File),
        undo: &mut Undo<'a>,
    ) -> Result<Process, String> {
        let spawned = spawn::spawn(spawn::Spawn {
            program: &self.program,
            instance: &wanted.id,
            user: nix::unistd::geteuid().is_root().then(|| user(&wanted.id)),
            cell: self.cell.as_ref().map(Cell::handles),
            log,
            // Ours are closed with this: a listener of which we kept a copy would outlive the process.
            fds: files.fds,
        });
        let spawned = spawned.map_err(failed("start the VMM process"))?;
        let mut configuration = spawned.configuration;
        let pidfd = spawned.id.open().map(Arc::new);
        let killed = pidfd.clone();
        undo.push(move || {
            if let Some(pidfd) = killed {
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                let _ = has_ended_within(&pidfd, KILL_TIMEOUT);
            }
            self.undertaker.clear(self.cgroups.remove(&wanted.id));
        });
        let pidfd = pidfd.ok_or_else(|| died(directory, None))?;
        let process = Process { id: spawned.id, pidfd };
        self.check(Step::Process)?;

        directory.write_process(process.id).map_err(failed("write the VMM process down"))?;
        self.check(Step::ProcessRecord)?;

        // It holds keys of disks.
        let text = serde_json::to_vec(config).map(Zeroizing::new);
        let text = text.expect("invariant: a configuration is plain data");
        // A process that ends early breaks the pipe; what it left says why.
        configuration.write_all(&text).map_err(|_| why(&process, directory))?;
        drop(configuration);
        self.check(Step::Configuration)?;
        Ok(process)
    }

    fn root_disk(
        &self,
        wanted: &InstanceWanted,
        directory: &Directory,
        files: &mut Files,
    ) -> Result<DiskConfig, String> {
        let root = &wanted.root_disk;
        if let Some(volume) = &root.volume {
            return self.volume(volume, files);
        }
        let format =
            disk::open_root(&directory.disks(), &self.images, &root.image_id, root.size_bytes, |file| {
                files.push(file)
            });
        let format = format.map_err(failed("make the root disk"))?;
        Ok(DiskConfig { serial: serial(&wanted.id), limits: root.limits, ..DiskConfig::of(format) })
    }

    fn volume(&self, wanted: &VolumeWanted, files: &mut Files) -> Result<DiskConfig, String> {
        let opened = self.volumes.export(wanted, |file| files.push(file));
        opened.map_err(|error| format!("open volume {}: {error}", wanted.id))
    }

    fn boot(&self, wanted: &InstanceWanted, files: &mut Files) -> Result<Boot, String> {
        let Some(kernel) = &wanted.kernel else { return Ok(Boot::Disk) };
        let mut open = |id: &String| {
            disk::open_image(&self.images, id)
                .map(|file| files.push(file))
                .map_err(failed("prepare the kernel"))
        };
        let initrd = kernel.ramdisk_image_id.as_ref().map(&mut open).transpose()?;
        Ok(Boot::Kernel { kernel: open(&kernel.kernel_image_id)?, initrd })
    }
}

/// The configuration drive, as the disk after the root disk.
fn drive(wanted: &InstanceWanted, directory: &Directory, files: &mut Files) -> Result<DiskConfig, String> {
    let file = config_drive::make(&directory.disks(), &wanted.metadata)
        .map_err(failed("make the configuration drive"))?;
    let format = DiskFormat::Raw { file: files.push(file) };
    let serial = "config-drive".to_owned();
    Ok(DiskConfig { read_only: true, serial, ..DiskConfig::of(format) })
}

/// Makes the files of one run and says what the process shall be.
fn configuration(
    wanted: &InstanceWanted,
    directory: &Directory,
    (boot, disks, taps): (Boot, Vec<DiskConfig>, Vec<Vec<OwnedFd>>),
    files: &mut Files,
) -> Result<VmmConfig, String> {
    let nics = wanted.nics.iter().zip(taps).map(|(nic, queues)| {
        let queues = queues.into_iter().map(|queue| files.push(queue)).collect();
        nic_config(nic, wanted, queues)
    });
    let nics = nics.collect();
    let console = directory.open_console().map_err(failed("make the console log"))?;
    let exit = directory.open_exit().map_err(failed("make the file for the report of the end"))?;
    directory.remove_run().map_err(failed("remove the control socket of the boot before"))?;
    let listener =
        UnixListener::bind(directory.control_socket()).map_err(failed("make the control socket"))?;
    Ok(VmmConfig {
        memory_mib: wanted.memory_mib,
        huge_pages: Default::default(),
        upgradable: false,
        vcpus: wanted.vcpus,
        cpu: CpuProfile::Host,
        boot,
        transport: Transport::Auto,
        system: system(wanted),
        cmdline: wanted.kernel.as_ref().map(|kernel| kernel.cmdline.clone()).unwrap_or_default(),
        disks,
        nics,
        peripherals: Default::default(),
        console_log: Some(files.push(console)),
        control_socket: Some(files.push(listener)),
        exit_report: Some(files.push(exit)),
    })
}

/// What the machine says of itself: by these names, cloud-init and others know that there is a metadata service.
fn system(wanted: &InstanceWanted) -> Option<SystemIdentity> {
    let uuid = uuid::Uuid::parse_str(&wanted.id).ok()?;
    Some(SystemIdentity {
        manufacturer: "OpenStack Foundation".to_owned(),
        product: "OpenStack Nova".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        serial: wanted.id.clone(),
        uuid: uuid.into_bytes(),
    })
}

/// Has the VMM run its guest; what it says of it then.
fn run(process: &Process, directory: &Directory) -> Result<Status, String> {
    let started = Client::connect(&directory.control_socket()).and_then(|mut client| {
        client.set_timeout(START_TIMEOUT)?;
        client.start()?;
        client.status()
    });
    match started {
        Ok(status) => Ok(status),
        Err(vmm::rpc::ClientError::Refused(message)) => Err(format!("the VMM refused to start: {message}")),
        Err(error) if has_ended_within(&process.pidfd, Duration::from_secs(1)).unwrap_or(false) => {
            tracing::debug!(error = sentence(&error), "the VMM process ended before its guest ran");
            Err(why(process, directory))
        }
        Err(error) => Err(format!("the VMM process does not answer: {}", sentence(&error))),
    }
}

/// Why a process that broke its line is ending.
fn why(process: &Process, directory: &Directory) -> String {
    // The report is written right before the end.
    let _ = has_ended_within(&process.pidfd, KILL_TIMEOUT);
    died(directory, killed_by(&process.pidfd))
}

/// Why a process that has ended did, by the signal that ended it, where that is known.
pub(super) fn died(directory: &Directory, signal: Option<i32>) -> String {
    use vmm::rpc::ExitReason::{BootFailed, Crashed, Killed, PoweredOff, Reset};
    match directory.exit() {
        Some(report) => match report.reason {
            BootFailed => format!("the guest could not be booted: {}", report.message),
            Crashed | Killed | PoweredOff | Reset => report.message,
        },
        None if signal == Some(libc::SIGSYS) => {
            "the VMM process was killed at a system call that it may not \
                                                 make; the kernel's log says which"
                .into()
        }
        None => match directory.last_words() {
            Some(words) => format!("the VMM process died: {words}"),
            None => {
                "the VMM process died without a word: it was killed, or the host had no memory left".into()
            }
        },
    }
}

/// One network device of a VMM's, on the queues of this tap.
///
/// # Panics
/// If there is none.
pub(super) fn nic_config(
    nic: &NicWanted,
    wanted: &InstanceWanted,
    mut queues: Vec<InheritedFd>,
) -> NicConfig {
    let endpoint = EndpointConfig { addressing: addressing(nic, wanted), metadata: wanted.metadata.clone() };
    let tap = queues.remove(0);
    let (mac, mtu, traffic) = (nic.mac, nic.mtu, nic.traffic);
    NicConfig { tap, more_queues: queues, mac, mtu, endpoint: Some(endpoint), traffic }
}

/// What the VMM answers to the guest on one device, and in the VLANs of the ports that the device carries.
pub(super) fn addressing(nic: &NicWanted, wanted: &InstanceWanted) -> Addressing {
    let carried = nic.sub_ports.iter().map(|SubPortWanted { vlan, port }| {
        let addressing = addressing_of_port(port, wanted);
        (*vlan, VlanAddressing { mac: port.mac, mtu: port.mtu, addressing })
    });
    Addressing { vlans: carried.collect(), ..addressing_of_port(nic, wanted) }
}

fn addressing_of_port(nic: &NicWanted, wanted: &InstanceWanted) -> Addressing {
    let server = nic.dhcp_server.filter(|_| nic.dhcp);
    let ipv4 = nic.address.zip(server).map(|((address, prefix_len), dhcp_server)| Ipv4Config {
        address,
        prefix_len,
        gateway: nic.gateway,
        dhcp_server,
        // As with Neutron, who answers DHCP knows the names where nobody else was named.
        dns: if nic.dns.is_empty() { vec![dhcp_server] } else { nic.dns.clone() },
        routes: nic.routes.clone(),
        options: nic.dhcp_options.clone(),
    });
    let neighbours = server.into_iter().chain([METADATA_ADDRESS]).map(|address| (address, ENDPOINT_MAC));
    Addressing {
        ipv4,
        ipv6: nic.ipv6.clone(),
        hostname: wanted.hostname.clone(),
        domain: nic.domain.clone(),
        lease_s: LEASE_S,
        resolver: true,
        neighbours: neighbours.collect(),
        vlans: BTreeMap::new(),
    }
}

/// What would confine a VMM process on this host, tried. For a process with one thread.
///
/// # Errors
/// No process can be confined at all.
pub fn probe_protections() -> io::Result<Vec<ProtectionStatus>> {
    let user = nix::unistd::geteuid().is_root().then(|| user("probe").0);
    vmm::sandbox::probe(cell().as_ref(), user)
}

/// The cell of this host's VMM processes, unless the kernel allows none.
pub(super) fn cell() -> Option<Cell> {
    let users =
        if is_mapped(USER_BASE) { USER_BASE..USER_BASE + USERS } else { USER_FALLBACK..USER_FALLBACK + 1 };
    let made = Cell::make(nix::unistd::geteuid().is_root().then_some(&users));
    made.inspect_err(|error| {
        tracing::warn!(error = sentence(error), "VMM processes are confined without namespaces");
    })
    .ok()
}

/// The user and group that an instance's process becomes: its own, the same at every boot.
fn user(id: &str) -> (u32, u32) {
    let own = USER_BASE + net::names::short_id(id.as_bytes()) % USERS;
    let number = if is_mapped(own) { own } else { USER_FALLBACK };
    (number, number)
}

/// Whether a user exists in this user namespace (user_namespaces(7), `uid_map`).
fn is_mapped(uid: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|text| text.parse::<u64>().ok());
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(first), Some(_), Some(count)) => (first..first + count).contains(&u64::from(uid)),
            _ => false,
        }
    })
}
