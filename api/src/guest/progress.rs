//! What a person sees of a build: a bar on a terminal, a line per stage and per tenth elsewhere.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a bar is drawn anew.
const TICK: Duration = Duration::from_millis(100);

/// Tells on standard error how builds go.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }
}

impl Progress {
    /// Begins a stage; with a `length` known or estimated it gets a bar of that many units.
    #[must_use]
    pub fn stage(&self, name: &str, length: Option<u64>) -> Stage {
        let bar = match (self.terminal, length) {
            (false, _) => {
                eprintln!("{name} …");
                ProgressBar::hidden()
            }
            (true, None) => ProgressBar::new_spinner().with_style(style("{spinner} {prefix} {wide_msg}")),
            (true, Some(length)) => {
                let template = "{spinner} {prefix} [{bar:30}] {pos}/{len} {elapsed} {wide_msg}";
                ProgressBar::new(length).with_style(style(template))
            }
        };
        bar.set_prefix(name.to_owned());
        if self.terminal {
            bar.enable_steady_tick(TICK);
        }
        let tenths = Cell::new(0);
        Stage { bar, name: name.to_owned(), started: Instant::now(), terminal: self.terminal, length, tenths }
    }

    /// Says something that stays.
    pub fn say(&self, line: &str) {
        eprintln!("{line}");
    }
}

/// One stage of a build. Dropped without [`Stage::done`] it leaves nothing on the terminal.
#[derive(Debug)]
pub struct Stage {
    bar: ProgressBar,
    name: String,
    started: Instant,
    terminal: bool,
    length: Option<u64>,
    tenths: Cell<u64>,
}

impl Stage {
    /// One unit more is done; `what` is what it was.
    pub fn step(&self, what: &str) {
        self.bar.inc(1);
        self.bar.set_message(what.to_owned());
        let Some(length) = self.length.filter(|length| *length > 0) else { return };
        // An estimate may be too low: the bar then waits at its end.
        let position = self.bar.position();
        if position > length {
            self.bar.set_length(position);
        }
        let tenths = (position * 10 / length).min(10);
        if tenths > self.tenths.replace(tenths) && !self.terminal {
            eprintln!("  {}% after {:.0} s", tenths * 10, self.started.elapsed().as_secs_f64());
        }
    }

    /// What goes on, without a unit.
    pub fn message(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// The stage is over; `detail` is what came of it.
    pub fn done(self, detail: &str) {
        self.bar.finish_and_clear();
        eprintln!("  ok {:>7.1} s  {:28} {detail}", self.started.elapsed().as_secs_f64(), self.name);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("invariant: the template is ours")
}
