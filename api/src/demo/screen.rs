//! What a person sees of the demo: a line per step with its time, a bar where it takes long, a table at the end.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// How long a step may take before a spinner says that it goes on.
const TICK: Duration = Duration::from_millis(80);

/// Prints steps as they go.
pub(super) struct Screen {
    started: Instant,
}

impl Screen {
    /// A screen whose clock starts now.
    pub(super) fn new() -> Self {
        Self { started: Instant::now() }
    }

    /// Runs one step. Its closure gets the bar, for a message or a length, and returns what the line says beside the
    /// step's name.
    pub(super) fn step<T>(
        &self,
        name: &str,
        run: impl FnOnce(&ProgressBar) -> Result<(T, String)>,
    ) -> Result<T> {
        let bar = ProgressBar::new_spinner();
        bar.set_style(style("{spinner} {prefix:34} {msg}"));
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(TICK);
        let started = Instant::now();
        let outcome = run(&bar);
        let took = started.elapsed();
        bar.finish_and_clear();
        match outcome {
            Ok((value, detail)) => {
                println!("  ok {:>9}  {name:34} {detail}", milliseconds(took));
                Ok(value)
            }
            Err(error) => {
                println!("FAIL {:>9}  {name:34}", milliseconds(took));
                Err(error)
            }
        }
    }

    /// Seconds since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The style of a bar that counts bytes.
pub(super) fn bytes_style() -> ProgressStyle {
    style("{spinner} {prefix:34} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("invariant: the template is ours")
}

/// A duration as the demo writes it.
pub(super) fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}
