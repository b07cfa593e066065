//! The commands of the `wisp` binary: what a person types, parsed and handed on.
//!
//! Must never know: how a command does what it does, beyond printing its result.

mod demo;
mod doctor;
mod down;
mod guest;
mod lab;
mod place;
mod token;
mod up;
mod vmm;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::process::{agent, control, terminal};

/// A whole microVM cloud in one program: OpenStack's API, a microVM's speed, one binary.
#[derive(Debug, Parser)]
#[command(
    name = "wisp",
    version,
    max_term_width = 100,
    after_help = "A first session:\n  \
        sudo wisp demo                       everything once, with nothing left behind\n  \
        wisp doctor                          what this host can do\n  \
        sudo wisp up --state ./cloud         start a cloud; it says `ready` and serves until Ctrl-C\n  \
        export OS_CLIENT_CONFIG_FILE=./cloud/clouds.yaml OS_CLOUD=wisp\n  \
        openstack server create --image tiny --flavor m1.nano --network public --wait first\n  \
        sudo wisp down --state ./cloud       stop the instances, remove taps, bridges and rules"
)]
struct Cli {
    #[command(flatten)]
    logging: Logging,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, clap::Args)]
struct Logging {
    /// What to log to standard error, for example `info` or `warn,control=debug`.
    #[arg(long, global = true, env = "WISP_LOG", value_name = "FILTER", default_value = terminal::LOG_DEFAULT)]
    log: String,
}

/// The part of [`Cli`] that starts a guest. To know the whole of it takes longer than all else that happens in the process
/// until the guest runs but for the kernel's work.
#[derive(Debug, Parser)]
#[command(name = "wisp")]
struct Start {
    #[command(flatten)]
    logging: Logging,
    #[command(subcommand)]
    command: StartCommand,
}

#[derive(Debug, Subcommand)]
enum StartCommand {
    #[command(subcommand)]
    Vmm(vmm::Start),
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Up(Box<up::Arguments>),
    Down(down::Arguments),
    Doctor(doctor::Arguments),
    #[command(subcommand)]
    Vmm(vmm::Command),
    #[command(subcommand)]
    Guest(guest::Command),
    #[command(subcommand)]
    Token(token::Command),
    Lab(Box<lab::Arguments>),
    /// The first process of a lab's host.
    #[command(hide = true)]
    LabInside,
    /// The control process that `up` starts.
    #[command(hide = true)]
    Control(Child),
    /// The agent that `up` starts.
    #[command(hide = true)]
    Agent(Child),
}

/// A process that `up` starts.
#[derive(Debug, clap::Args)]
struct Child {
    /// The descriptor of what is handed over.
    #[arg(long)]
    handover: i32,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let outcome = match arguments.get(1..3).unwrap_or_default() {
        // The process of an instance: nothing but the VMM may run in it.
        [vmm, run] if vmm == "vmm" && run == "run" => return vmm::run(&arguments[3..]),
        [vmm, boot] if vmm == "vmm" && boot == "boot" => start(&arguments),
        _ => None,
    };
    match outcome.unwrap_or_else(|| dispatch(Cli::parse())) {
        Ok(code) => code,
        Err(error) => {
            terminal::tell(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Starts a guest; nothing if that is not what is asked for, or not in the right words, which the whole of the command line
/// explains.
fn start(arguments: &[OsString]) -> Option<anyhow::Result<ExitCode>> {
    // A guess, with which little is lost where it is wrong: what the words mean is found out meanwhile.
    let elsewhere = |word: &OsString| word == "--in" || word.as_encoded_bytes().starts_with(b"--in=");
    let here = !arguments.iter().any(elsewhere);
    let kvm = vmm::begin(here);
    let Start { logging, command: StartCommand::Vmm(command) } = Start::try_parse_from(arguments).ok()?;
    Some(terminal::log(&logging.log).and_then(|()| vmm::start(kvm?, command)))
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let children = matches!(cli.command, Command::Control(_) | Command::Agent(_));
    if !children {
        terminal::log(&cli.logging.log)?;
    }
    match cli.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Up(arguments) => up::run(*arguments, cli.logging.log),
        Command::Down(arguments) => down::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Vmm(command) => vmm::dispatch(command),
        Command::Guest(command) => guest::dispatch(&command),
        Command::Token(command) => token::dispatch(&command),
        Command::Lab(arguments) => lab::run(*arguments),
        Command::LabInside => crate::lab::inside::main().map(|()| ExitCode::SUCCESS),
        Command::Control(child) => control::main(child.handover).map(|()| ExitCode::SUCCESS),
        Command::Agent(child) => agent::main(child.handover).map(|()| ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
        super::Start::command().debug_assert();
    }

    #[test]
    fn guest_is_started_by_the_same_words_as_the_whole_command_line_has() {
        let words = |command: clap::Command| {
            let path = ["vmm", "boot"];
            let found = path.iter().try_fold(command, |command, word| command.find_subcommand(word).cloned());
            let boot = found.expect("there is such a command");
            boot.get_arguments().map(|argument| format!("{argument:?}")).collect::<Vec<_>>()
        };
        assert_eq!(words(super::Start::command()), words(super::Cli::command()));
    }

    #[test]
    fn words_that_start_no_guest_are_left_to_the_whole_command_line() {
        let parses = |line: &str| super::Start::try_parse_from(line.split_whitespace()).is_ok();
        assert!(parses("wisp vmm boot --kernel tiny.elf --mem 64 --log warn"));
        assert!(!parses("wisp vmm boot --help"));
        assert!(!parses("wisp vmm boot"));
        assert!(!parses("wisp vmm boot --kernel tiny.elf --nonsense"));
    }
}
