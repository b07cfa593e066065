//! `wisp lab`: a command in a disposable host with hardware KVM.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::lab::error::Error;
use crate::lab::run::{Disk, Lab, Stage, Tap};

/// The port of the cloud's API inside, as `wisp up` chooses it by itself.
const API_PORT: u16 = 5000;
/// The exit code of a lab whose time was up, as `timeout` has it.
const TIMEOUT_CODE: u8 = 124;
/// The exit code of a lab that failed itself.
const LAB_CODE: u8 = 125;

/// Run a command in a disposable host with hardware KVM, wherever QEMU runs.
///
/// QEMU emulates an AMD machine with SVM; in it Debian's cloud kernel runs with kvm_amd, and this program. The command
/// runs there as root in /root; its input, output and exit code are this command's. Exit code 124 if the time was up,
/// 125 if the lab itself failed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    wisp lab -- wisp doctor\n  \
    wisp lab --file vmlinuz --file initrd.img -- wisp vmm boot --kernel vmlinuz --initrd initrd.img --mem 256\n  \
    wisp lab --module xfs --disk scratch.img -- sh -c 'mount /dev/vda /mnt && ls /mnt'\n  \
    wisp lab --api 5055 --timeout 3600 -- wisp up --listen 0.0.0.0:5000 --insecure --public-url http://127.0.0.1:5055\n\n\
    Groups of modules: network (at hand in every lab), storage, nfs.")]
pub(super) struct Arguments {
    /// A file or directory that is inside at GUEST: an absolute path, or one below /root; else /root/NAME.
    #[arg(long = "file", value_name = "HOST[:GUEST]")]
    files: Vec<String>,
    /// A program that is inside as a command, with its libraries.
    #[arg(long = "program", value_name = "PATH")]
    programs: Vec<PathBuf>,
    /// A disk inside, /dev/vda and on: raw, or qcow2 if it is named so.
    #[arg(long = "disk", value_name = "FILE[,ro]")]
    disks: Vec<String>,
    /// A file that is brought out when the command has ended: to HOST, else to the same name here.
    #[arg(long, value_name = "GUEST[:HOST]")]
    bring: Vec<String>,
    /// A kernel module, or group of modules, that is loaded before the command.
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// A variable of the command's environment.
    #[arg(long = "env", value_name = "NAME=VALUE")]
    environment: Vec<String>,
    /// A port of 127.0.0.1 that leads to port 5000 inside, where a cloud serves its API.
    #[arg(long, value_name = "PORT")]
    api: Option<u16>,
    /// A port of 127.0.0.1 that leads to a port inside.
    #[arg(long = "forward", value_name = "PORT:INSIDE")]
    forwards: Vec<String>,
    /// A tap that is made with this address; the host inside has the next address and passes packets on, so that a
    /// route through it reaches what is behind.
    #[arg(long, value_name = "NAME=ADDRESS/PREFIX")]
    tap: Option<String>,
    /// Memory of the host inside, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    mem: u32,
    /// Processors of the host inside.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// The clock inside counts instructions, one a nanosecond, and nothing else passes: what is timed there hardly
    /// depends on this machine or on what else it does.
    #[arg(long)]
    count_instructions: bool,
    /// Seconds for everything.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// Where downloaded packages are kept [default: $XDG_CACHE_HOME/wisp/lab, ~/.cache/wisp/lab].
    #[arg(long, value_name = "DIR", env = "WISP_LAB_CACHE")]
    cache: Option<PathBuf>,
    /// The `wisp` inside [default: this one].
    #[arg(long, value_name = "PATH")]
    wisp: Option<PathBuf>,
    /// Words added to the command line of the host's kernel.
    #[arg(long, value_name = "WORDS", default_value = "")]
    cmdline: String,
    /// Where the console of the host inside is written.
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// No progress on standard error.
    #[arg(long, short)]
    quiet: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let progress = Progress::new(arguments.quiet);
    let lab = lab(arguments)?;
    let outcome = lab.run(&|stage| progress.begin(stage));
    progress.clear();
    match outcome {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => {
            let code = if matches!(error, Error::Timeout { .. }) { TIMEOUT_CODE } else { LAB_CODE };
            eprintln!("wisp: {:#}", anyhow::Error::from(error));
            Ok(ExitCode::from(code))
        }
    }
}

fn lab(arguments: Arguments) -> anyhow::Result<Lab> {
    let pair = |text: &String| match text.split_once(':') {
        Some((left, right)) => (left.to_owned(), Some(right.to_owned())),
        None => (text.clone(), None),
    };
    let name = |path: &str| {
        Path::new(path).file_name().map(PathBuf::from).with_context(|| format!("{path} is no file"))
    };
    let mut files = Vec::new();
    for (outside, inside) in arguments.files.iter().map(pair) {
        let inside = inside.map_or_else(|| name(&outside), |path| Ok(path.into()))?;
        files.push((outside.into(), inside));
    }
    let mut bring = Vec::new();
    for (inside, outside) in arguments.bring.iter().map(pair) {
        let outside = outside.map_or_else(|| name(&inside), |path| Ok(path.into()))?;
        bring.push((inside, outside));
    }
    let mut forwards: Vec<_> = arguments.api.map(|port| (port, API_PORT)).into_iter().collect();
    for text in &arguments.forwards {
        let ports = text
            .split_once(':')
            .and_then(|(outside, inside)| Some((outside.parse().ok()?, inside.parse().ok()?)));
        forwards.push(ports.with_context(|| format!("--forward {text} is not PORT:INSIDE"))?);
    }
    let environment = arguments.environment.iter().map(|text| {
        let (name, value) =
            text.split_once('=').with_context(|| format!("--env {text} is not NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    });
    Ok(Lab {
        environment: environment.collect::<anyhow::Result<_>>()?,
        cache: arguments.cache.map_or_else(cache, Ok)?,
        wisp: match arguments.wisp {
            Some(path) => std::path::absolute(&path).context("find the program")?,
            None => std::env::current_exe().context("find this program")?,
        },
        programs: arguments.programs.iter().map(|path| program(path)).collect::<anyhow::Result<_>>()?,
        files,
        bring,
        disks: arguments.disks.iter().map(|text| disk(text)).collect(),
        modules: arguments.modules,
        forwards,
        tap: arguments.tap.map(|text| tap(&text)).transpose()?,
        memory_mib: arguments.mem,
        cpus: arguments.cpus,
        count_instructions: arguments.count_instructions,
        cmdline: arguments.cmdline,
        console: arguments.console,
        timeout: Duration::from_secs(arguments.timeout),
        command: arguments.command,
    })
}

/// A program by its path, or by its name as a shell finds it.
fn program(path: &Path) -> anyhow::Result<PathBuf> {
    if path.components().count() > 1 || path.exists() {
        return Ok(path.to_owned());
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&directories).map(|directory| directory.join(path)).find(|path| path.is_file());
    found.with_context(|| format!("there is no program {}", path.display()))
}

fn disk(text: &str) -> Disk {
    match text.strip_suffix(",ro") {
        Some(path) => Disk { path: path.into(), read_only: true },
        None => Disk { path: text.into(), read_only: false },
    }
}

fn tap(text: &str) -> anyhow::Result<Tap> {
    let parsed = text.split_once('=').and_then(|(name, network)| {
        let (address, prefix) = network.split_once('/')?;
        Some(Tap { name: name.to_owned(), address: address.parse().ok()?, prefix: prefix.parse().ok()? })
    });
    let tap = parsed.with_context(|| format!("--tap {text} is not NAME=ADDRESS/PREFIX"))?;
    let network = ipnet::Ipv4Net::new(tap.address, tap.prefix).with_context(|| format!("--tap {text}"))?;
    if !network.contains(&tap.inside()) {
        bail!("--tap {text}: the next address, which the host inside gets, is not in that network");
    }
    Ok(tap)
}

/// Where downloads are kept unless told otherwise (XDG Base Directory Specification).
fn cache() -> anyhow::Result<PathBuf> {
    let absolute = |name: &OsStr| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base =
        absolute(OsStr::new("XDG_CACHE_HOME")).or_else(|| Some(absolute(OsStr::new("HOME"))?.join(".cache")));
    match base {
        Some(base) => Ok(base.join("wisp/lab")),
        None => bail!("there is no home directory: say --cache DIR"),
    }
}

/// Progress on standard error: a line that changes on a terminal, a line per stage elsewhere.
struct Progress {
    started: Instant,
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Progress {
    fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("{spinner} lab: {msg} {elapsed}")
                    .expect("invariant: the template is ours"),
            );
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { started: Instant::now(), bar, quiet }
    }

    fn begin(&self, stage: Stage) {
        let name = match stage {
            Stage::Boot(bytes) => format!("{} (ramdisk of {} MiB)", stage.name(), bytes >> 20),
            Stage::Ended(code) => format!("the command ended with {code}"),
            _ => stage.name().to_owned(),
        };
        match &self.bar {
            // From now on the terminal is the command's.
            Some(bar) if stage == Stage::Run => bar.finish_and_clear(),
            Some(bar) => bar.set_message(name),
            None if !self.quiet => eprintln!("lab: {:5.1} s  {name}", self.started.elapsed().as_secs_f64()),
            None => {}
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(text: &str) -> anyhow::Result<Lab> {
        let words = std::iter::once("lab").chain(text.split_whitespace());
        lab(<Line as clap::Parser>::try_parse_from(words)?.arguments)
    }

    #[test]
    fn options_say_what_goes_in_and_comes_out() {
        let lab = parse(
            "--cache /c --file a/b --file c:/d --disk e,ro --bring /f/g --bring h:i --api 5001 --forward 22:2222 \
             --tap t=10.9.8.7/24 --env A=b=c -- wisp vmm boot --kernel b",
        )
        .unwrap();
        assert_eq!(lab.files, [("a/b".into(), "b".into()), ("c".into(), "/d".into())]);
        assert_eq!(lab.bring, [("/f/g".to_owned(), "g".into()), ("h".to_owned(), "i".into())]);
        assert_eq!(lab.disks, [Disk { path: "e".into(), read_only: true }]);
        assert_eq!(lab.forwards, [(5001, 5000), (22, 2222)]);
        let tap = lab.tap.unwrap();
        assert_eq!((tap.name.as_str(), tap.inside().to_string().as_str(), tap.prefix), ("t", "10.9.8.8", 24));
        assert_eq!(lab.environment, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(lab.command, ["wisp", "vmm", "boot", "--kernel", "b"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for wrong in [
            "",
            "--forward 1 -- x",
            "--tap t -- x",
            "--tap t=10.0.0.255/24 -- x",
            "--env A -- x",
            "--program no/such --api 99999 -- x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
