//! The unmodified `openstack` command against `wisp up`, verb by verb: `transcript.txt` is what a person types and
//! sees, and the test. Ids, times and addresses that differ from run to run stand there as `<uuid>` and the like.
//!
//! `WISP_BLESS=1 cargo test --test it openstack` writes the transcript anew. [`commands`] is the list of all commands.

mod commands;
mod tokens;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;

use crate::booted::export;
use crate::harness::{Cloud, Need, isolate, shown, trial, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "openstack::every_verb_answers_as_in_the_transcript",
            &[Need::Root, Need::Kvm, Need::Tun, Need::OpenStack],
            every_verb_answers_as_in_the_transcript,
        ),
        trial(
            "commands_of_services::every_command_does_what_its_user_expects",
            &[Need::OpenStack],
            commands::every_command_does_what_its_user_expects,
        ),
        trial(
            "openstack::tokens_are_read_and_made_by_keystones_own_libraries",
            &[Need::OpenStack],
            tokens::tokens_are_read_and_made_by_keystones_own_libraries,
        ),
    ]
}

/// Seconds that a status is waited for.
const PATIENCE_SECONDS: u64 = 60;

/// One command and what it shows.
#[derive(Debug, PartialEq, Eq)]
struct Exchange {
    /// The line after `$ `; the transcript's title says what may stand before `openstack`.
    command: String,
    shows: String,
}

fn every_verb_answers_as_in_the_transcript() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/openstack/transcript.txt");
    let text = std::fs::read_to_string(&path).context("read the transcript")?;
    let (title, exchanges) = parse(&text);
    isolate()?;
    let cloud = Cloud::start()?;
    let files = tempfile::tempdir()?;
    let guest = files.path().join("tiny.elf");
    export(&guest)?;
    std::fs::write(files.path().join("user-data"), "hello from the transcript\n")?;
    let mut kept = BTreeMap::from([("FILES".to_owned(), files.path().to_string_lossy().into_owned())]);
    let mut seen = Vec::with_capacity(exchanges.len());
    let mut differences = Vec::new();
    for exchange in &exchanges {
        let shows = normalise(&run(
            &mut |words| cloud.openstack_output(words),
            &exchange.command,
            &mut kept,
            PATIENCE_SECONDS,
        )?);
        if shows != exchange.shows {
            differences
                .push(format!("$ {}\n--- expected\n{}\n--- seen\n{shows}", exchange.command, exchange.shows));
        }
        seen.push(Exchange { command: exchange.command.clone(), shows });
    }
    if std::env::var_os("WISP_BLESS").is_some() {
        return std::fs::write(&path, render(&title, &seen)).context("write the transcript");
    }
    ensure!(
        differences.is_empty(),
        "{} of {} differ:\n{}",
        differences.len(),
        exchanges.len(),
        differences.join("\n\n")
    );
    Ok(())
}

/// Runs a line of a transcript by `openstack`; what it shows. `patience` are the seconds that a status is waited for.
fn run(
    openstack: &mut dyn FnMut(&[&str]) -> Result<Output>,
    command: &str,
    kept: &mut BTreeMap<String, String>,
    patience: u64,
) -> Result<String> {
    let words: Vec<String> = command
        .split_whitespace()
        .map(|word| {
            kept.iter().fold(word.to_owned(), |word, (name, value)| word.replace(&format!("${name}"), value))
        })
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut shows = |words: &[&str]| shown(words, openstack(words)?);
    match words.as_slice() {
        ["openstack", words @ ..] => shows(words),
        ["!", "openstack", words @ ..] => {
            let output = openstack(words)?;
            ensure!(!output.status.success(), "openstack {} succeeded", words.join(" "));
            String::from_utf8(output.stderr).context("read the command's errors")
        }
        ["has", wanted, "openstack", words @ ..] => within(patience, || {
            let shows = shows(words)?;
            ensure!(shows.contains(wanted), "no {wanted} in {shows}");
            Ok(String::new())
        }),
        ["let", names, "openstack", words @ ..] => {
            let shows = shows(words)?;
            match names.split(',').collect::<Vec<_>>().as_slice() {
                [name] => {
                    kept.insert((*name).to_owned(), shows.trim().to_owned());
                }
                // A line for each.
                names => kept.extend(
                    names.iter().zip(shows.lines()).map(|(name, line)| ((*name).to_owned(), line.to_owned())),
                ),
            }
            Ok(String::new())
        }
        ["until", wanted, "openstack", words @ ..] => within(patience, || {
            let shows = shows(words)?;
            ensure!(shows.trim() == *wanted, "still {}", shows.trim());
            Ok(shows)
        }),
        _ => bail!("the transcript's line `{command}` is no command"),
    }
}

fn parse(text: &str) -> (String, Vec<Exchange>) {
    let mut title = String::new();
    let mut exchanges: Vec<Exchange> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("$ "), exchanges.last_mut()) {
            (Some(command), _) => {
                exchanges.push(Exchange { command: command.to_owned(), shows: String::new() })
            }
            (None, Some(exchange)) => {
                exchange.shows.push_str(line);
                exchange.shows.push('\n');
            }
            (None, None) => {
                title.push_str(line);
                title.push('\n');
            }
        }
    }
    for exchange in &mut exchanges {
        exchange.shows = exchange.shows.trim_end().to_owned();
    }
    (title, exchanges)
}

fn render(title: &str, exchanges: &[Exchange]) -> String {
    let mut text = title.to_owned();
    for exchange in exchanges {
        text.push_str(&format!("$ {}\n{}\n", exchange.command, exchange.shows));
        if !exchange.shows.is_empty() {
            text.push('\n');
        }
    }
    text
}

/// How many bytes of a text's beginning are of a kind, if they are.
type Matcher = fn(&[u8]) -> Option<usize>;

/// Replaces what differs from run to run by its kind.
fn normalise(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let kinds: [(&str, Matcher); 5] =
            [("uuid", uuid), ("time", time), ("mac", mac), ("hex", hex_id), ("address", api_address)];
        let boundary = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        let found = kinds
            .iter()
            .filter(|_| boundary)
            .find_map(|(kind, matches)| Some((kind, matches(&bytes[at..])?)));
        match found {
            Some((kind, length)) => {
                out.push_str(&format!("<{kind}>"));
                at += length;
            }
            None => {
                let next = text[at..].chars().next().map_or(1, char::len_utf8);
                out.push_str(&text[at..at + next]);
                at += next;
            }
        }
    }
    // A progress line is written over itself; what stands in the end counts.
    let last = |line: &str| line.rsplit('\r').next().unwrap_or_default().trim_end().to_owned();
    out.lines().map(last).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

/// Matches a pattern in which `h` is a hexadecimal digit, `d` a decimal one and all else itself.
fn pattern(bytes: &[u8], pattern: &str) -> Option<usize> {
    let fits = |(byte, wanted): (&u8, u8)| match wanted {
        b'h' => byte.is_ascii_hexdigit(),
        b'd' => byte.is_ascii_digit(),
        other => *byte == other,
    };
    (bytes.len() >= pattern.len() && bytes.iter().zip(pattern.bytes()).all(fits)).then_some(pattern.len())
}

fn uuid(bytes: &[u8]) -> Option<usize> {
    pattern(bytes, "hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh")
}

fn mac(bytes: &[u8]) -> Option<usize> {
    pattern(bytes, "hh:hh:hh:hh:hh:hh")
}

fn time(bytes: &[u8]) -> Option<usize> {
    pattern(bytes, "dddd-dd-ddTdd:dd:dd.ddddddZ")
        .or_else(|| pattern(bytes, "dddd-dd-ddTdd:dd:dd.dddddd"))
        .or_else(|| pattern(bytes, "dddd-dd-ddTdd:dd:dd+dddd"))
        .or_else(|| pattern(bytes, "dddd-dd-ddTdd:dd:ddZ"))
}

/// Where the API is.
fn api_address(bytes: &[u8]) -> Option<usize> {
    let port = bytes.strip_prefix(b"127.0.0.1:")?.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (port > 0).then_some("127.0.0.1:".len() + port)
}

/// Ids of 32 hexadecimal digits, and longer digests.
fn hex_id(bytes: &[u8]) -> Option<usize> {
    let length = bytes.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    (length >= 32).then_some(length)
}
