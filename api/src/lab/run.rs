//! A run of a lab from the outside: put together, started, listened to until its command ends or its time is up.
//!
//! Must never know: how options are typed, or how progress is shown.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::content::{self, Content};
use super::error::Error;
use super::frame::{BODY_MAX, Frame};
use super::job::{Job, Link};
use super::machine::{Machine, Nic, Plan};
use super::modules::Modules;
use super::packages::{self, Packages};

use super::job::HOME;
pub use super::machine::Disk;

/// Loaded in every lab.
const ALWAYS: [&str; 4] = ["kvm_amd", "virtio_pci", "virtio_console", "tun"];
/// In every lab's ramdisk, for the kernel to load when it is asked for what they do.
const AT_HAND: &str = "network";
/// How often a host that runs is knocked at.
const KNOCK_INTERVAL: Duration = Duration::from_secs(5);

/// What a lab is to do.
#[derive(Debug, Clone)]
pub struct Lab {
    /// The command's words.
    pub command: Vec<String>,
    /// Its environment, beside what every command has.
    pub environment: Vec<(String, String)>,
    /// Where downloaded packages are kept.
    pub cache: PathBuf,
    /// The `wisp` that is the first process inside, and is there as a command.
    pub wisp: PathBuf,
    /// More programs, each with its libraries.
    pub programs: Vec<PathBuf>,
    /// Files and directories: outside, inside.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Files that come out when the command has ended: inside, outside.
    pub bring: Vec<(String, PathBuf)>,
    /// Disks, `/dev/vda` and on.
    pub disks: Vec<Disk>,
    /// Modules, or groups of them, that are loaded before the command.
    pub modules: Vec<String>,
    /// TCP ports of loopback that lead inside: outside, inside.
    pub forwards: Vec<(u16, u16)>,
    /// A tap to the host inside.
    pub tap: Option<Tap>,
    /// Memory of the host in MiB.
    pub memory_mib: u32,
    /// Its processors.
    pub cpus: u8,
    /// Its clock counts instructions, one a nanosecond, on one thread: what is timed inside does not depend on the
    /// machine outside.
    pub count_instructions: bool,
    /// Words added to its kernel's command line.
    pub cmdline: String,
    /// Where its whole console goes.
    pub console: Option<PathBuf>,
    /// The time for everything.
    pub timeout: Duration,
}

/// A tap between the host and the host inside, which passes packets on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// Its name; it is made, and gone with the lab.
    pub name: String,
    /// Our address on it; the host inside has the next.
    pub address: Ipv4Addr,
    /// The length of their network's prefix.
    pub prefix: u8,
}

impl Tap {
    /// The address of the host inside.
    pub fn inside(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits().wrapping_add(1))
    }

    /// Makes the tap with our address on it.
    fn make(&self) -> Result<OwnedFd, Error> {
        let step = |action| {
            let name = self.name.clone();
            move |source: Box<dyn std::error::Error + Send + Sync>| Error::Tap { action, name, source }
        };
        let tap = net::tap::create(&self.name).map_err(|error| step("make")(error.into()))?;
        let address = Ipv4Net::new(self.address, self.prefix)
            .map_err(|error| step("give an address to")(error.into()))?;
        let configured = net::netlink::Client::open().and_then(|mut client| {
            let index = client.link(&self.name)?.map_or(0, |link| link.index);
            client.execute(vec![
                net::netlink::Request::add_address(&self.name, index, address.into()),
                net::netlink::Request::set_up(&self.name, true),
            ])
        });
        configured.map_err(|error| step("configure")(error.into()))?;
        Ok(tap)
    }
}

/// How far a lab is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Packages are downloaded.
    Download,
    /// The ramdisk is written.
    Ramdisk,
    /// The host boots; its ramdisk has this many bytes.
    Boot(u64),
    /// The command runs.
    Run,
    /// The command has ended with this code.
    Ended(u8),
}

impl Stage {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Download => "download Debian's cloud kernel and busybox",
            Self::Ramdisk => "write the ramdisk",
            Self::Boot(_) => "boot the host",
            Self::Run => "run the command",
            Self::Ended(_) => "ended",
        }
    }
}

impl Lab {
    /// Runs it; the command's exit code. `progress` hears of each stage as it begins.
    ///
    /// # Errors
    /// Whatever keeps the command from running to its end, and files that cannot be brought out.
    pub fn run(&self, progress: &dyn Fn(Stage)) -> Result<u8, Error> {
        let deadline = Instant::now() + self.timeout;
        let packages = Packages::find(&self.cache, &|_| progress(Stage::Download))?;
        progress(Stage::Ramdisk);
        let (ramdisk, length) = self.ramdisk(&packages)?;
        let console = match &self.console {
            Some(path) => Some(File::create(path).map_err(Error::file("write", path))?),
            None => None,
        };
        let tap = self.tap.as_ref().map(Tap::make).transpose()?;
        progress(Stage::Boot(length));
        let mut machine = Machine::start(Plan {
            qemu: &packages.qemu,
            kernel: &packages.kernel,
            ramdisk: &ramdisk,
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            count_instructions: self.count_instructions,
            disks: &self.disks,
            nics: &self.nics(tap),
            cmdline: &self.cmdline,
            console,
        })?;
        drop(ramdisk);
        let input = machine.line.try_clone().map_err(Error::Line)?;
        let mut session = Session {
            lab: self,
            deadline,
            progress,
            stage: Stage::Boot(length),
            file: None,
            missing: None,
            input: Some(input),
        };
        session.listen(&mut machine)
    }

    /// The ramdisk, in memory that has no name, and its length.
    fn ramdisk(&self, packages: &Packages) -> Result<(File, u64), Error> {
        let modules = Modules::open(&packages.modules, &packages.version)?;
        let mut loaded: Vec<String> = ALWAYS.iter().map(|&name| name.to_owned()).collect();
        loaded.extend((!self.disks.is_empty()).then(|| "virtio_blk".to_owned()));
        loaded.extend((!self.links().is_empty()).then(|| "virtio_net".to_owned()));
        loaded.extend(self.modules.iter().cloned());
        let load = modules.in_order(&loaded)?;
        loaded.push(AT_HAND.to_owned());
        let all = modules.in_order(&loaded)?;

        let memory = rustix::fs::memfd_create("wisp-lab", rustix::fs::MemfdFlags::CLOEXEC);
        let memory = File::from(memory.map_err(|error| Error::Line(error.into()))?);
        let mut content = Content::new(io::BufWriter::new(memory))?;
        let place = format!("{}/wisp", content::PROGRAMS);
        let slim = packages::stripped(&self.wisp, &self.cache);
        content.program_as(slim.as_ref().unwrap_or(&self.wisp), Path::new(&place))?;
        // So that a program that knows where this one is outside finds it inside.
        content.symlink(&self.wisp, &place)?;
        for program in &self.programs {
            content.program(program)?;
        }
        for (outside, inside) in &self.files {
            content.file(outside, &Path::new(HOME).join(inside))?;
        }
        content.busybox(&packages.busybox)?;
        content.modules(packages, &modules, &all)?;
        let directory = content::modules_inside(packages);
        let (memory, length) = content.finish(&Job {
            command: self.command.clone(),
            environment: self.environment.clone(),
            modules: load.iter().map(|module| directory.join(&module.path).display().to_string()).collect(),
            bring: self.bring.iter().map(|(inside, _)| inside.clone()).collect(),
            links: self.links(),
        })?;
        Ok((memory.into_inner().map_err(|error| Error::Line(error.into_error()))?, length))
    }

    fn nics(&self, tap: Option<OwnedFd>) -> Vec<Nic> {
        let user = (!self.forwards.is_empty()).then(|| Nic::User(self.forwards.clone()));
        user.into_iter().chain(tap.map(Nic::Tap)).collect()
    }

    /// The addresses of [`Lab::nics`]; those of QEMU's own network are its documented defaults.
    fn links(&self) -> Vec<Link> {
        let user = (!self.forwards.is_empty()).then_some(Link {
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
            forwards: false,
        });
        let tap = self.tap.as_ref().map(|tap| Link {
            address: tap.inside(),
            prefix: tap.prefix,
            gateway: user.is_none().then_some(tap.address),
            forwards: true,
        });
        user.into_iter().chain(tap).collect()
    }
}

/// What is known while the host talks.
struct Session<'a> {
    lab: &'a Lab,
    deadline: Instant,
    progress: &'a dyn Fn(Stage),
    stage: Stage,
    /// The file that is being brought out.
    file: Option<(File, PathBuf)>,
    /// A file that could not be brought out.
    missing: Option<Error>,
    /// Taken by the threads that feed the command and knock.
    input: Option<UnixStream>,
}

impl Session<'_> {
    fn listen(&mut self, machine: &mut Machine) -> Result<u8, Error> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.timeout(machine));
            }
            machine.line.set_read_timeout(Some(left)).map_err(Error::Line)?;
            let frame = match Frame::read(&mut machine.line) {
                Ok(Some(frame)) => frame,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(self.timeout(machine));
                }
                Ok(None) | Err(_) => return Err(Error::Died { console: machine.last_words() }),
            };
            if let Some(code) = self.take(frame)? {
                return Ok(code);
            }
        }
    }

    fn timeout(&self, machine: &mut Machine) -> Error {
        let console = match self.stage {
            Stage::Run => String::new(),
            _ => format!("; the end of its host's console:\n{}", machine.last_words()),
        };
        Error::Timeout { seconds: self.lab.timeout.as_secs(), stage: self.stage.name(), console }
    }

    /// Does what a frame says; the exit code if it was the last.
    fn take(&mut self, frame: Frame) -> Result<Option<u8>, Error> {
        match frame {
            Frame::Started => {
                self.stage = Stage::Run;
                (self.progress)(Stage::Run);
                if let Some(line) = self.input.take().map(|line| Arc::new(Mutex::new(line))) {
                    // Where instructions are counted, what comes from outside would be counted too.
                    if !self.lab.count_instructions {
                        let line = Arc::clone(&line);
                        std::thread::spawn(move || knock(&line));
                    }
                    std::thread::spawn(move || feed(&line));
                }
            }
            // Whoever closed our output does not want to see more of it.
            Frame::Output(bytes) => drop(io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush())),
            Frame::Error(bytes) => drop(io::stderr().write_all(&bytes)),
            Frame::FileBegin { index, mode } => {
                let (_, path) = self.brought(index)?;
                let file = File::create(path).map_err(Error::file("write", path))?;
                file.set_permissions(Permissions::from_mode(mode)).map_err(Error::file("write", path))?;
                self.file = Some((file, path.clone()));
            }
            Frame::FileData(bytes) => {
                if let Some((file, path)) = &mut self.file {
                    file.write_all(&bytes).map_err(Error::file("write", &*path))?;
                }
            }
            Frame::FileEnd => self.file = None,
            Frame::FileMissing { index, said } => {
                if let Some((_, path)) = self.file.take() {
                    // Half a file looks like a whole one.
                    let _ = fs::remove_file(path);
                }
                self.missing = Some(Error::Bring { path: self.brought(index)?.0.clone(), said });
            }
            Frame::Exit(code) => {
                (self.progress)(Stage::Ended(code));
                return match self.missing.take() {
                    // A command that failed has a reason not to have written it.
                    Some(missing) if code != 0 => {
                        tracing::warn!("{missing}");
                        Ok(Some(code))
                    }
                    Some(missing) => Err(missing),
                    None => Ok(Some(code)),
                };
            }
            Frame::Failure(said) => return Err(Error::Inside { said }),
            Frame::Input(_) | Frame::InputEnd | Frame::Knock => {}
        }
        Ok(None)
    }

    fn brought(&self, index: u32) -> Result<&(String, PathBuf), Error> {
        let strange =
            || Error::Line(io::Error::new(io::ErrorKind::InvalidData, "a file that nobody asked for"));
        self.lab.bring.get(index as usize).ok_or_else(strange)
    }
}

/// Sends the host an interrupt now and then, until the line's end. By any interrupt it looks at its clock: an emulated
/// one whose processors all wait for a timer that was lost goes on with what is due.
fn knock(line: &Mutex<UnixStream>) {
    while send(line, &Frame::Knock).is_ok() {
        std::thread::sleep(KNOCK_INTERVAL);
    }
}

fn send(line: &Mutex<UnixStream>, frame: &Frame) -> io::Result<()> {
    frame.write(&mut *line.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Sends our standard input inside, until its end or the line's.
fn feed(line: &Mutex<UnixStream>) {
    let mut buffer = vec![0; BODY_MAX];
    loop {
        let frame = match io::stdin().read(&mut buffer) {
            Ok(0) | Err(_) => Frame::InputEnd,
            Ok(length) => Frame::Input(buffer[..length].to_vec()),
        };
        if send(line, &frame).is_err() || frame == Frame::InputEnd {
            return;
        }
    }
}
