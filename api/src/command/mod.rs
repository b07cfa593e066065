//! The commands of the `wisp` binary: what a person types, parsed and handed on.
//!
//! Must never know: how a command does what it does, beyond printing its result.

mod demo;
mod doctor;
mod down;
mod guest;
mod lab;
mod token;
mod up;
mod vmm;

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
    /// What to log to standard error, for example `info` or `warn,control=debug`.
    #[arg(long, global = true, env = "WISP_LOG", value_name = "FILTER", default_value = terminal::LOG_DEFAULT)]
    log: String,
    #[command(subcommand)]
    command: Command,
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
    // The process of an instance: nothing but the VMM may run in it.
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "vmm")
        && arguments.get(1).is_some_and(|word| word == "run")
    {
        return vmm::run(&arguments[2..]);
    }
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("wisp: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let children = matches!(cli.command, Command::Control(_) | Command::Agent(_));
    if !children {
        terminal::log(&cli.log)?;
    }
    match cli.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Up(arguments) => up::run(*arguments, cli.log),
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
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
