//! Disks, network devices and the memory of a guest that runs, by its control socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vmm::config::{DISK_SERIAL_BYTES_MAX, DiskConfig, DiskLimits, NicConfig, Traffic, WatchdogAction};
use vmm::interactive::{DiskFile, mac, nic_config};
use vmm::rpc::{
    Client, DeviceName, DeviceState, DeviceStatus, DiskCounts, DiskEngine, FreeReport, NicStatus,
    ProtectionStatus, QueueCounts, QueueTraffic, Status, VirtioStatus, VmState, WatchdogStatus,
};
use vmm::virtio::mem::MemStatus;

use super::endpoint;
use super::tap::{self, Tap};
use super::words;
use crate::process::terminal::{say, tell};

/// How often it is looked whether a guest has let a device go.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What is asked of a guest's devices.
#[derive(Debug, clap::Subcommand)]
pub(in crate::command) enum Command {
    /// Give a guest that runs a disk, on PCI.
    AttachDisk {
        /// The control socket (`wisp vmm boot --control`).
        socket: PathBuf,
        /// The file, and how it is used, as of `wisp vmm boot --disk`.
        #[arg(value_name = words::DISK, value_parser = words::read_by(words::disk))]
        file: DiskFile,
        /// The serial number that the guest finds it by, and `detach` too, up to 20 bytes; the first 20 of the file's name unless
        /// said. It is printed.
        #[arg(long, value_name = "S", value_parser = words::serial)]
        serial: Option<String>,
    },
    /// Tell a guest that runs that the file of one of its disks has become larger.
    ResizeDisk {
        /// The control socket.
        socket: PathBuf,
        /// The file, and how it is used, as when the guest got it.
        #[arg(value_name = words::DISK, value_parser = words::read_by(words::disk))]
        file: DiskFile,
        /// The disk's serial number; as `attach-disk` has it unless said.
        #[arg(long, value_name = "S", value_parser = words::serial)]
        serial: Option<String>,
    },
    /// Have a guest use a disk so fast from now on, in place of what it was limited to before.
    ///
    /// R is RATE[:BURST]: bytes or requests a second, and at once after a rest, a tenth of a second's unless said. What is
    /// not said is not limited. What the guest has waiting is tried anew at once.
    LimitDisk {
        /// The control socket.
        socket: PathBuf,
        /// The disk's serial number and its limits, as of `wisp vmm boot --disk`.
        #[arg(value_name = words::LIMITED_DISK, value_parser = words::read_by(words::limited_disk))]
        limits: (String, DiskLimits),
    },
    /// Give a guest that runs a network device, on PCI.
    AttachNic {
        /// The control socket.
        socket: PathBuf,
        /// A tap that exists, and what is said of it, as of `wisp vmm boot --tap`.
        #[arg(value_name = tap::TAP, value_parser = words::read_by(tap::tap))]
        tap: Tap,
        /// The MAC address; the first of Wisp's own that is free unless said.
        #[arg(long, value_name = "M")]
        mac: Option<String>,
        /// What the guest is told there, as of `wisp vmm boot --metadata`.
        #[arg(long, value_name = "DIR")]
        metadata: Option<PathBuf>,
    },
    /// Have so much go through a network device of a guest from now on, in place of what it was limited to before.
    ///
    /// R is RATE[:BURST]: bytes or packets a second, and at once after a rest, a tenth of a second's unless said. What is
    /// not said is not limited. A code point that packets were marked with is theirs again.
    LimitNic {
        /// The control socket.
        socket: PathBuf,
        /// The device's MAC address as its network has it, and its limits, as of `wisp vmm boot --tap`.
        #[arg(value_name = tap::LIMITED, value_parser = words::read_by(tap::limited))]
        limits: ([u8; 6], Traffic),
    },
    /// End a guest: its power button is pressed, and what it does about that is its own affair.
    Stop {
        /// The control socket.
        socket: PathBuf,
        /// Do not ask the guest: its VMM process ends, as by Ctrl-A x.
        #[arg(long)]
        force: bool,
    },
    /// Take a device from a guest that runs, and wait until the guest has let it go.
    ///
    /// Exit code 1 if it has not in that time; it may all the same later on. What is asked again is asked anew.
    Detach {
        /// The control socket.
        socket: PathBuf,
        /// The disk's serial number or the network device's MAC address.
        device: String,
        /// How many seconds to wait.
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        wait: u32,
    },
    /// Show a guest's memory balloon (`wisp vmm boot --balloon`), or ask for more or less memory.
    ///
    /// What the guest gives it gives when it can: the command does not wait for it.
    Balloon {
        /// The control socket.
        socket: PathBuf,
        /// How many MiB the guest is asked to give in all.
        target_mib: Option<u32>,
        /// Ask the guest what it has free now (free page hints), and give that back to the host. It has a second to say it, in which its
        /// devices wait, and stands still while the pages go. What it writes to meanwhile stays, and the size of its memory too.
        #[arg(long, conflicts_with = "target_mib")]
        hints: bool,
    },
    /// Show a guest's memory that comes and goes (`wisp vmm boot --hotplug-memory`), or ask it to have more or less.
    ///
    /// The guest does that when it can: the command does not wait for it.
    Memory {
        /// The control socket.
        socket: PathBuf,
        /// How many MiB the guest is asked to have beside its RAM, an even number.
        requested_mib: Option<u32>,
    },
    /// Show how a guest is, and what confines its VMM process.
    Status {
        /// The control socket.
        socket: PathBuf,
    },
    /// List the disks and network devices of a guest that runs, each with how far it is.
    Devices {
        /// The control socket.
        socket: PathBuf,
    },
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::AttachDisk { socket, file, serial } => {
            let (config, files) = disk(&file, serial, DiskFile::open)?;
            let serial = config.serial.clone();
            let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
            connect(&socket)?.add_disk(config, &files)?;
            say(serial)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::ResizeDisk { socket, file, serial } => {
            let (config, files) = disk(&file, serial, DiskFile::open_again)?;
            let passed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
            let before = connect(&socket)?.resize_locked_disk(config, &passed)?;
            // What the guest has now is what was opened here, and what it had locked is here alone. A disk that was as large before is
            // as it was, with its lock.
            let _ = file.lock_after(files, before);
            Ok(ExitCode::SUCCESS)
        }
        Command::AttachNic { socket, tap, mac, metadata } => {
            attach_nic(&socket, &tap, mac.as_deref(), metadata.as_deref())
        }
        Command::LimitDisk { socket, limits: (serial, limits) } => {
            connect(&socket)?.limit_disk(serial, limits)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::LimitNic { socket, limits: (mac, traffic) } => {
            connect(&socket)?.reshape(mac, traffic)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Stop { socket, force } => {
            connect(&socket)?.stop(force)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Detach { socket, device, wait } => {
            detach(&socket, &device, Duration::from_secs(wait.into()))
        }
        Command::Balloon { socket, hints: true, .. } => give_back_free(&socket),
        Command::Balloon { socket, target_mib, .. } => balloon(&socket, target_mib),
        Command::Memory { socket, requested_mib } => memory(&socket, requested_mib),
        Command::Status { socket } => {
            say(shown(&connect(&socket)?.status()?).trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Devices { socket } => {
            for device in devices(&mut connect(&socket)?)? {
                say(format_args!("{} {}", name(&device.0), state(device.1)))?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

pub(super) fn connect(socket: &Path) -> anyhow::Result<Client> {
    Client::connect(socket).with_context(|| format!("no guest is controlled by {}", socket.display()))
}

fn devices(client: &mut Client) -> anyhow::Result<Vec<(DeviceName, DeviceState)>> {
    let devices = client.status()?.devices.context("this VMM is of a version that cannot plug devices")?;
    Ok(devices.into_iter().map(|device| (device.device, device.state)).collect())
}

/// How a disk is opened.
type Open = fn(&DiskFile, String) -> Result<(DiskConfig, Vec<OwnedFd>), vmm::interactive::Error>;

/// A disk's files, and what a VMM is told of it.
fn disk(file: &DiskFile, serial: Option<String>, open: Open) -> anyhow::Result<(DiskConfig, Vec<OwnedFd>)> {
    if let (Some(behind), Some(beside)) = (&file.serial, &serial) {
        bail!("the serial number is said twice: `,serial={behind}` and `--serial {beside}`");
    }
    // A name of nobody's choice for the purpose is cut to what fits; one that somebody gives was refused where it was read.
    let own = || {
        let mut name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.truncate(name.floor_char_boundary(DISK_SERIAL_BYTES_MAX));
        name
    };
    let serial = serial.or_else(|| file.serial.clone()).unwrap_or_else(own);
    let file = DiskFile { serial: None, ..file.clone() };
    Ok(open(&file, serial)?)
}

fn attach_nic(
    socket: &Path,
    tap: &Tap,
    wished: Option<&str>,
    metadata: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let metadata = metadata.map(endpoint::metadata).transpose()?.unwrap_or_default();
    let wished = match (wished.map(tap::mac_of_device).transpose().map_err(anyhow::Error::msg)?, tap.mac) {
        (Some(_), Some(_)) => bail!("the MAC address is said twice: by `,mac=` and by `--mac`"),
        (beside, behind) => beside.or(behind),
    };
    let mut client = connect(socket)?;
    let mac = match wished {
        Some(mac) => mac,
        None => {
            let there = devices(&mut client)?;
            let is_free = |mac: &[u8; 6]| there.iter().all(|(name, _)| *name != DeviceName::Nic(*mac));
            (0..=u8::MAX).map(mac).find(is_free).context("no MAC address is free")?
        }
    };
    let queues = tap.open()?;
    let borrowed: Vec<_> = queues.iter().map(AsFd::as_fd).collect();
    let config = nic_config(mac, queues.len());
    let (mtu, traffic) = (tap.mtu.unwrap_or(config.mtu), tap.traffic);
    let endpoint = endpoint::endpoint(tap.addressing.as_deref(), &metadata);
    client.add_nic(NicConfig { mtu, traffic, endpoint, ..config }, &borrowed)?;
    say(name(&DeviceName::Nic(mac)))?;
    Ok(ExitCode::SUCCESS)
}

fn detach(socket: &Path, device: &str, patience: Duration) -> anyhow::Result<ExitCode> {
    let mut client = connect(socket)?;
    let there = devices(&mut client)?;
    let disk = DeviceName::Disk(device.to_owned());
    let device = match tap::parse_mac(device) {
        Some(mac) if there.iter().all(|(name, _)| *name != disk) => DeviceName::Nic(mac),
        _ => disk,
    };
    if there.iter().all(|(name, _)| *name != device) {
        bail!("the guest has no {}", name(&device));
    }
    let deadline = Instant::now() + patience;
    if client.remove(device.clone())? == DeviceState::Gone {
        return Ok(ExitCode::SUCCESS);
    }
    while Instant::now() < deadline {
        if devices(&mut client)?.iter().all(|(name, _)| *name != device) {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    tell(format_args!("the guest has not let {} go yet", name(&device)));
    Ok(ExitCode::FAILURE)
}

/// How long a guest may take to say how its memory is.
const STATISTICS_PATIENCE: Duration = Duration::from_secs(1);

fn balloon(socket: &Path, target_mib: Option<u32>) -> anyhow::Result<ExitCode> {
    let mut client = connect(socket)?;
    target_mib.map(|target| client.set_balloon(target)).transpose()?;
    let deadline = Instant::now() + STATISTICS_PATIENCE;
    let asked = Instant::now();
    let status = loop {
        let status = client.status()?.balloon.context("the guest has no memory balloon")?;
        // What was said before it was asked is old.
        let is_new =
            status.statistics_age_ms.is_some_and(|age| Duration::from_millis(age) <= asked.elapsed());
        if is_new || Instant::now() >= deadline {
            break status;
        }
        std::thread::sleep(LOOK_INTERVAL);
    };
    say(format_args!("target {} MiB, given {} MiB", status.target_mib, status.given_mib))?;
    say(format_args!("returned to the host so far {} MiB", status.returned_bytes >> 20))?;
    if let Some(statistics) = status.statistics {
        let numbers = [
            ("in all", statistics.total_bytes),
            ("free", statistics.free_bytes),
            ("available", statistics.available_bytes),
            ("cached", statistics.cached_bytes),
        ];
        let numbers =
            numbers.iter().filter_map(|(what, bytes)| Some(format!("{} MiB {what}", (*bytes)? >> 20)));
        say(format_args!("guest {}", numbers.collect::<Vec<_>>().join(", ")))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn give_back_free(socket: &Path) -> anyhow::Result<ExitCode> {
    let FreeReport { hinted_bytes, returned_bytes, paused_us, .. } = connect(socket)?.give_back_free()?;
    let [hinted, returned] = [hinted_bytes, returned_bytes].map(|bytes| bytes >> 20);
    let stood = Duration::from_micros(paused_us).as_secs_f64() * 1e3;
    say(format_args!(
        "{hinted} MiB are free, {returned} MiB of them went to the host; the guest stood still for {stood:.1} ms"
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn memory(socket: &Path, requested_mib: Option<u32>) -> anyhow::Result<ExitCode> {
    let mut client = connect(socket)?;
    requested_mib.map(|mib| client.set_memory(mib)).transpose()?;
    let status = client.status()?.memory.context("the guest has no memory that comes and goes")?;
    let MemStatus { region_mib, requested_mib, plugged_mib } = status;
    say(format_args!("requested {requested_mib} MiB, plugged {plugged_mib} MiB, room for {region_mib} MiB"))?;
    Ok(ExitCode::SUCCESS)
}

/// A line for the state, one or more for each disk, one or two for each network device and one for each pair of its queues, one for each
/// queue of all other devices and of disks that was used, one for the watchdog, then one for each protection.
fn shown(status: &Status) -> String {
    let state = match status.state {
        VmState::Created => "not started",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Stopping => "stopping",
        VmState::Stopped => "stopped",
    };
    let mut text = format!("{state}\n");
    for device in status.devices.iter().flatten() {
        if let Some(engine) = device.engine {
            let engine = match engine {
                DiskEngine::IoUring => "by io_uring",
                DiskEngine::Synchronous => "one request after the other",
            };
            let serial = format!("disk {}", name(&device.device));
            text.push_str(&format!("{serial:<20} {engine}\n"));
            if let Some(DiskCounts { flushes, failures, throttled }) = device.requests {
                text.push_str(&format!(
                    "{serial:<20} {flushes} flushes, {failures} requests failed, {throttled} times one waited for a limit\n"
                ));
            }
        }
        text.extend(held_to(device));
        if let Some(nic) = &device.nic {
            text.push_str(&passed(&name(&device.device), nic));
        }
    }
    status.virtio.iter().for_each(|device| text.push_str(&requests(device)));
    if let Some(watchdog) = &status.watchdog {
        text.push_str(&format!("{:<20} {}\n", "watchdog", watched(watchdog)));
    }
    for ProtectionStatus { protection, missing } in status.protections.iter().flatten() {
        let line = match missing {
            None => format!("{protection:<20} yes\n"),
            Some(why) => format!("{protection:<20} no: {why}\n"),
        };
        text.push_str(&line);
    }
    text
}

/// What went through the queues of a device that had any; of a network device, its packets tell that.
fn requests(VirtioStatus { kind, device, driven, queues }: &VirtioStatus) -> String {
    let label = match device {
        Some(DeviceName::Nic(_)) => return String::new(),
        Some(disk) => format!("{kind} {}", name(disk)),
        None => kind.clone(),
    };
    if !driven {
        return format!("{label:<20} the guest has no driver for it, or has not started it\n");
    }
    let used = queues.iter().enumerate().filter(|(_, queue)| queue.requests > 0);
    let queue = |(index, queue): (usize, &QueueTraffic)| {
        let QueueTraffic { requests, from_guest_bytes, to_guest_bytes } = queue;
        format!(
            "{label:<20} queue {index}: {requests} done, {from_guest_bytes} bytes from the guest, {to_guest_bytes} to it\n"
        )
    };
    used.map(queue).collect()
}

/// What a device is held to, if it is to anything, in the words of the commands that change it.
fn held_to(device: &DeviceStatus) -> Option<String> {
    let traffic = device.nic.as_ref().and_then(|nic| nic.traffic.as_ref());
    let words = device.limits.as_ref().map(words::spelled).or(traffic.map(tap::spelled));
    let words = words.filter(|words| !words.is_empty())?;
    let kind = if device.nic.is_some() { "nic" } else { "disk" };
    let label = format!("{kind} {}", name(&device.device));
    Some(format!("{label:<20} held to {words}\n"))
}

/// How many pairs of queues a network device has, and what went through each.
fn passed(mac: &str, NicStatus { used, pairs, .. }: &NicStatus) -> String {
    let mut text = format!("nic {mac} pairs of queues: {}, used by the guest: {used}\n", pairs.len());
    let counts = |QueueCounts { packets, bytes, drops }: QueueCounts| {
        format!("{packets} packets of {bytes} bytes, {drops} lost")
    };
    for (index, pair) in pairs.iter().enumerate() {
        let pair_name = format!("  pair {index}");
        let (received, sent) = (counts(pair.receive), counts(pair.transmit));
        text.push_str(&format!("{pair_name:<20} received {received}; sent {sent}\n"));
    }
    text
}

/// How a watchdog is, what it will do, and how often it did.
fn watched(watchdog: &WatchdogStatus) -> String {
    let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
    let armed = match watchdog.left_ms {
        Some(left) => format!("armed, {} of {} left", seconds(left), seconds(watchdog.timeout_ms)),
        None => "not armed".to_owned(),
    };
    let action = match watchdog.action {
        WatchdogAction::Reset => "resets the guest",
        WatchdogAction::PowerOff => "powers the guest off",
        WatchdogAction::Pause => "pauses the guest",
        WatchdogAction::Report => "is counted",
    };
    format!("{armed}; running out {action}; ran out {} times", watchdog.expiries)
}

fn name(device: &DeviceName) -> String {
    match device {
        DeviceName::Disk(serial) => serial.clone(),
        DeviceName::Nic([a, b, c, d, e, f]) => format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
    }
}

fn state(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Present => "present",
        DeviceState::Fixed => "fixed",
        DeviceState::Leaving => "leaving",
        DeviceState::Gone => "gone",
    }
}

#[cfg(test)]
mod tests {
    use vmm::config::{RateLimit, TransferLimits};
    use vmm::rpc::{PairStatus, Protection};

    use super::*;

    #[test]
    fn status_tells_what_holds_and_why_the_rest_does_not() {
        let one = |protection, missing: Option<&str>| ProtectionStatus {
            protection,
            missing: missing.map(str::to_owned),
        };
        let protections = Some(vec![
            one(Protection::Landlock, None),
            one(Protection::PidNamespace, Some("it is in its terminal's session")),
        ]);
        let rate = |per_second| RateLimit { per_second, burst: None };
        let limit = |bytes: Option<u64>, operations: Option<u64>| TransferLimits {
            bytes: bytes.map(rate),
            operations: operations.map(rate),
        };
        let traffic = Traffic { egress: limit(None, Some(7)), ..Traffic::default() };
        let disk = DeviceStatus {
            device: DeviceName::Disk("root".to_owned()),
            state: DeviceState::Present,
            bytes: Some(512),
            engine: Some(DiskEngine::IoUring),
            requests: Some(DiskCounts { flushes: 4, failures: 1, throttled: 7 }),
            limits: Some(DiskLimits { read: limit(Some(1000), Some(5)), ..DiskLimits::default() }),
            nic: None,
        };
        let counts = |packets| QueueCounts { packets, bytes: 60 * packets, drops: 0 };
        let pairs =
            [3, 0].map(|packets| PairStatus { receive: counts(packets), transmit: counts(2 * packets) });
        let nic = DeviceStatus {
            device: DeviceName::Nic([2, 0, 0, 0, 0, 1]),
            bytes: None,
            engine: None,
            requests: None,
            limits: None,
            nic: Some(NicStatus { used: 1, pairs: pairs.into(), traffic: Some(traffic) }),
            ..disk.clone()
        };
        let virtio = |kind: &str, device, driven| VirtioStatus {
            kind: kind.to_owned(),
            device,
            driven,
            queues: [0, 5]
                .map(|requests| QueueTraffic { requests, from_guest_bytes: 80, to_guest_bytes: 517 })
                .into(),
        };
        let status = Status {
            state: VmState::Running,
            first_run_us: None,
            console_bytes: 0,
            devices: Some(vec![disk, nic]),
            virtio: vec![
                virtio("disk", Some(DeviceName::Disk("root".to_owned())), true),
                virtio("network device", Some(DeviceName::Nic([2, 0, 0, 0, 0, 1])), true),
                virtio("socket device", None, false),
            ],
            balloon: None,
            memory: None,
            watchdog: Some(WatchdogStatus {
                action: WatchdogAction::Pause,
                armed: true,
                timeout_ms: 30_000,
                left_ms: Some(12_345),
                expiries: 2,
            }),
            upgraded: None,
            protections,
        };
        assert_eq!(
            shown(&status),
            "running\ndisk root            by io_uring\ndisk root            4 flushes, 1 requests failed, 7 times one waited for a limit\ndisk root            held to read-bytes=1000,read-iops=5\nnic 02:00:00:00:00:01 held to from-guest-packets=7\nnic 02:00:00:00:00:01 pairs of queues: 2, used by the guest: 1\n  pair 0             received 3 packets of 180 bytes, 0 lost; sent 6 packets of 360 bytes, 0 lost\n  pair 1             received 0 packets of 0 bytes, 0 lost; sent 0 packets of 0 bytes, 0 lost\ndisk root            queue 1: 5 done, 80 bytes from the guest, 517 to it\nsocket device        the guest has no driver for it, or has not started it\nwatchdog             armed, 12.3 s of 30.0 s left; running out pauses the guest; ran out 2 times\nLandlock             yes\nPID namespace        no: it is in its terminal's session\n"
        );
    }
}
