//! The watchdog, by the registers that its table names.
//!
//! Must never know: what happens when it runs out.

use alloc::format;
use alloc::string::String;

use crate::machine::Machine;
use crate::parse::script::Watch;
use crate::parse::wdat::Step;
use crate::service;

/// Does what is asked; what there is to say of it.
pub fn act(machine: &Machine, watch: Watch) -> Result<String, &'static str> {
    let watchdog = machine.watchdog.ok_or("no watchdog")?;
    let write = |step: Step, value: u32| service::out32(step.port, value & step.mask);
    match watch {
        Watch::Arm(ms) => {
            write(watchdog.set_count, ms.div_ceil(watchdog.period_ms));
            write(watchdog.run, watchdog.run.value);
        }
        Watch::Feed => write(watchdog.begin, watchdog.begin.value),
        Watch::Stop => write(watchdog.stop, watchdog.stop.value),
        Watch::Left => {}
    }
    let left = service::in32(watchdog.left.port) & watchdog.left.mask;
    Ok(format!("{} ms left", u64::from(left) * u64::from(watchdog.period_ms)))
}
