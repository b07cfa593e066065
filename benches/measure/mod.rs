//! How benchmarks say what they measured: a unit, a baseline and a ratio on every line.

use std::path::{Path, PathBuf};

#[allow(dead_code, reason = "most benchmarks measure no VMM, and none needs all of it")]
pub(crate) mod vmm;

/// Numbers of one kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The value below which this share of the samples lies; 0 of none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(0.0)
    }
}

/// One line of a benchmark.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    /// What was measured.
    pub what: &'a str,
    /// In what.
    pub unit: &'a str,
    /// Ours.
    pub value: f64,
    /// What it is compared with.
    pub baseline: f64,
    /// What that is.
    pub of: &'a str,
}

impl Line<'_> {
    /// Prints it.
    pub(crate) fn print(&self) {
        let ratio = if self.baseline > 0.0 { self.value / self.baseline } else { f64::NAN };
        println!(
            "{:58} {:>10.2} {:5} baseline {:>9.2} ({}) ratio {ratio:.3}",
            self.what, self.value, self.unit, self.baseline, self.of
        );
    }
}

/// Prints a [`Line`].
#[allow(dead_code, reason = "some benchmarks have a line with names of its parts")]
pub(crate) fn line(what: &str, unit: &str, value: f64, baseline: f64, of: &str) {
    Line { what, unit, value, baseline, of }.print();
}

/// The time since then, in milliseconds.
#[allow(dead_code, reason = "some benchmarks count other things")]
pub(crate) fn milliseconds(since: std::time::Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// A copy of a program, as installed ones are: what a linker wrote lies in the page cache by single pages, and starts later.
///
/// # Errors
/// If it cannot be read, or the directory takes no more.
#[allow(dead_code, reason = "some benchmarks start a program once")]
pub(crate) fn installed(program: &Path, directory: &Path) -> std::io::Result<PathBuf> {
    let place = directory.join(program.file_name().unwrap_or_default());
    std::fs::copy(program, &place)?;
    Ok(place)
}
