//! `wisp doctor`: the host's abilities as a table.

use std::path::PathBuf;
use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table};
use control::driver::host::{probe_limits, probe_protections};
use vmm::rpc::ProtectionStatus;

use crate::process::abilities::{self, Ability, Found};
use crate::process::state_directory::StateDirectory;

/// The table's width in columns unless the shell says another.
const TEXT_WIDTH: u16 = 120;
/// Narrower than this no table can be read.
const TEXT_WIDTH_MIN: u16 = 60;

/// Show what this host can do, what follows from it, and what to do about what is missing.
///
/// Everything is tried, nothing is left behind. Exit code 0 if `wisp up` can run guests here, else 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "Run it as root for the whole truth: sudo wisp doctor")]
pub(super) struct Arguments {
    /// The directory whose file system the instances' disks will be on.
    #[arg(long, value_name = "DIR", default_value_os_t = StateDirectory::default_path())]
    state: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let abilities = abilities::probe(&arguments.state);
    println!("{}", table(&abilities));
    println!("What confines a VMM process here, tried on one:\n{}", protections());
    let missing: Vec<_> = abilities.iter().filter(|ability| ability.blocks()).map(|a| a.name).collect();
    if missing.is_empty() {
        println!("`wisp up` can run guests on this host.");
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "`wisp up` cannot run guests on this host as it is: {} missing. \
         `wisp up --driver fake` serves the whole API without guests.",
        missing.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

fn empty_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    table.set_width(columns.unwrap_or(TEXT_WIDTH).max(TEXT_WIDTH_MIN));
    table
}

/// What holds of a VMM process on this host, and what its control group limits.
fn protections() -> Table {
    let mut table = empty_table(["protection", "", "what it does, or why it is not there"]);
    match probe_protections() {
        Ok(held) => {
            for ProtectionStatus { protection, missing } in held {
                let (answer, detail) = match missing {
                    None => ("yes", protection.meaning().to_owned()),
                    Some(why) => ("no", why),
                };
                table.add_row([protection.to_string(), answer.to_owned(), detail]);
            }
        }
        Err(error) => {
            table.add_row(["all".to_owned(), "?".to_owned(), error.to_string()]);
        }
    }
    for (limited, outcome) in probe_limits() {
        let (answer, detail) = match outcome {
            Ok(how) => ("yes", format!("its control group takes {how}, for a flavor of 1 vCPU and 128 MiB")),
            Err(why) => ("no", why),
        };
        table.add_row([format!("limit of {limited}"), answer.to_owned(), detail]);
    }
    table
}

fn table(abilities: &[Ability]) -> Table {
    let mut table = empty_table(["ability", "", "what was found", "what follows"]);
    for ability in abilities {
        let answer = match ability.found {
            Found::Yes => "yes",
            Found::No => "no",
            Found::Unknown => "?",
        };
        table.add_row([ability.name, answer, ability.detail.as_str(), ability.follows.as_str()]);
    }
    table
}
