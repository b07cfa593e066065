//! Runs one target over generated inputs for a while, or over files.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use vmm_fuzz::Target;

const USAGE: &str = "usage: fuzz queue|pci|plug|vsock|endpoint|boot|disk|script|container|snapshot [--seconds N] [--seed N] [FILE…]";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_default();
    let Some(target) = Target::ALL.into_iter().find(|target| target.name() == name) else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    let (mut seconds, mut seed, mut files) = (60, 0, Vec::new());
    while let Some(word) = words.next() {
        let number = match word.as_str() {
            "--seconds" => &mut seconds,
            "--seed" => &mut seed,
            _ => {
                files.push(word);
                continue;
            }
        };
        match words.next().and_then(|word| word.parse().ok()) {
            Some(value) => *number = value,
            None => {
                eprintln!("{USAGE}");
                return ExitCode::FAILURE;
            }
        }
    }
    if files.is_empty() { generated(target, seconds, seed) } else { replayed(target, &files) }
}

/// Keeps each input in a file while it runs, so that the one that fails can be replayed.
fn generated(target: Target, seconds: u64, seed: u64) -> ExitCode {
    let kept = format!("crash-{}.bin", target.name());
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut index = 0;
    while Instant::now() < end {
        let input = target.generate(seed, index);
        let survived = std::panic::catch_unwind(|| target.run(&input)).is_ok();
        if !survived {
            eprintln!("input {index} of seed {seed} fails; it is in {kept}");
            if let Err(error) = std::fs::write(&kept, &input) {
                eprintln!("{kept} cannot be written: {error}");
            }
            return ExitCode::FAILURE;
        }
        index += 1;
    }
    println!("{}: {index} inputs of seed {seed} survived", target.name());
    ExitCode::SUCCESS
}

fn replayed(target: Target, files: &[String]) -> ExitCode {
    for file in files {
        match std::fs::read(file) {
            Ok(input) => target.run(&input),
            Err(error) => {
                eprintln!("{file} cannot be read: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
