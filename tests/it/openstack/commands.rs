//! Every command of the identity, image, network and volume services, one after the other, against a cloud of fake
//! hosts: the list with its results is `commands.txt`. A command that worked must go on working; one that
//! is a gap may.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::run;
use crate::harness::{Cloud, Shell};

/// How many bytes the disk image has that the commands upload.
const IMAGE_BYTES: usize = 1 << 20;
/// Seconds that a status is waited for: where it worked before, and where nothing is expected.
const PATIENCE_SECONDS: u64 = 60;
const PATIENCE_OF_A_GAP_SECONDS: u64 = 1;
/// Seconds that one command may take.
const COMMAND_SECONDS_MAX: u32 = 120;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It does what its user expects.
    Works,
    /// It is refused, so far.
    Gap,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Works => "ok",
            Self::Gap => "gap",
        }
    }
}

/// A line of the list: a command with its outcome, or a remark.
#[derive(Debug)]
enum Line<'a> {
    Command(Outcome, &'a str),
    Remark(&'a str),
}

pub(super) fn every_command_does_what_its_user_expects() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/openstack/commands.txt");
    let text = std::fs::read_to_string(&path).context("read the list of commands")?;
    let lines = text.lines().map(parse).collect::<Result<Vec<_>>>()?;
    let cloud = Cloud::start_fake_with(&["--provider", "physnet1=eth1,100-199"])?;
    let files = tempfile::tempdir()?;
    make_files(files.path())?;
    let mut shell = Shell::start(&cloud.clouds_yaml(), COMMAND_SECONDS_MAX)?;
    let mut kept = BTreeMap::from([
        ("FILES".to_owned(), files.path().to_string_lossy().into_owned()),
        ("URL".to_owned(), cloud.url.clone()),
    ]);
    let (mut list, mut broken, mut works, mut gaps) = (String::new(), Vec::new(), 0, 0);
    for line in lines {
        let (expected, command) = match line {
            Line::Command(expected, command) => (expected, command),
            Line::Remark(remark) => {
                list.push_str(remark);
                list.push('\n');
                continue;
            }
        };
        let patience = match expected {
            Outcome::Works => PATIENCE_SECONDS,
            Outcome::Gap => PATIENCE_OF_A_GAP_SECONDS,
        };
        let seen = match run(&mut |words| shell.run(words), command, &mut kept, patience) {
            Ok(_) => Outcome::Works,
            Err(error) => {
                let error = format!("{error:#}");
                let why = error.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
                println!("refused: {command}: {why}");
                if expected == Outcome::Works {
                    broken.push(format!("{command}\n    {why}"));
                }
                Outcome::Gap
            }
        };
        *(if seen == Outcome::Works { &mut works } else { &mut gaps }) += 1;
        if seen == Outcome::Works && expected == Outcome::Gap {
            println!("no gap any more: {command}");
        }
        list.push_str(&format!("{:<4} {command}\n", seen.name()));
    }
    println!("{works} commands work, {gaps} are gaps");
    if std::env::var_os("WISP_BLESS").is_some() {
        return std::fs::write(&path, list).context("write the list of commands");
    }
    let seen = Path::new(env!("CARGO_TARGET_TMPDIR")).join("commands.txt");
    std::fs::write(&seen, list).context("write what was seen")?;
    ensure!(broken.is_empty(), "{} commands worked before:\n{}", broken.len(), broken.join("\n"));
    Ok(())
}

fn parse(line: &str) -> Result<Line<'_>> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(Line::Remark(line));
    }
    let (outcome, command) = line.split_once(' ').with_context(|| format!("`{line}` has no command"))?;
    match outcome {
        "ok" => Ok(Line::Command(Outcome::Works, command.trim())),
        "gap" => Ok(Line::Command(Outcome::Gap, command.trim())),
        _ => bail!("`{outcome}` is neither ok nor gap"),
    }
}

/// A raw disk, and an empty one as qcow2: a header, then one block of references, their counts and no data.
fn make_files(directory: &Path) -> Result<()> {
    const CLUSTER: usize = 1 << 16;
    std::fs::write(directory.join("img"), vec![0x55; IMAGE_BYTES])?;
    let mut qcow2 = vec![0; 4 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| qcow2[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &(IMAGE_BYTES as u64).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..4 {
        put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes());
    }
    std::fs::write(directory.join("img.qcow2"), qcow2)?;
    Ok(())
}
