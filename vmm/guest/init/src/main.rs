//! The first program of a guest made of a container image: it makes the machine what a container expects, runs what the
//! image says, and powers off when that ends.
//!
//! It is linked statically, since an image need not have a C library, or anything at all. The kernel has configured the
//! network (`ip=dhcp`) before it begins. Whatever fails is said on the console and gone on without, as far as that can be:
//! a first program that ended would take the kernel with it.
//!
//! Must never know: which cloud it is in.

mod console;
mod end;
mod grow;
mod parse;
mod prepare;
mod program;

use nix::sys::reboot::set_cad_enabled;

use self::console::Console;

/// Beside this program: what to run.
const RUN: &str = "/.wisp/run";

fn main() -> ! {
    prepare::file_systems();
    let mut console = Console::open();
    // With it, three keys reboot the machine at once.
    if let Err(error) = set_cad_enabled(false) {
        console.say(&format!("three keys reboot this machine: {error}"));
    }
    grow::root(&mut console);
    prepare::names(&mut console);
    let signals = end::Signals::block();
    let ended = match std::fs::read(RUN) {
        Ok(bytes) => program::run(&parse::run(&bytes), &signals, &mut console),
        Err(error) => format!("{RUN} cannot be read: {error}"),
    };
    console.say(&ended);
    end::power_off(&mut console)
}
