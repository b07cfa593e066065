//! Wisp's tiny guest: a freestanding program that boots under any VMM in milliseconds, gets its address, shows its
//! metadata, answers on its network and reads and writes its disks.
//!
//! Ring 0 is `entry.s`, a stub; everything else runs in ring 3, at native speed even where ring 0 is emulated.
#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod clock;
mod commands;
mod console;
mod device;
mod disk;
mod echo;
mod entry;
mod fetch;
mod http;
mod interrupts;
mod ipv6;
mod machine;
mod mem;
mod memory;
mod metadata;
mod nic;
mod panic;
mod parse;
mod pci;
mod physical;
mod ping;
mod power;
mod register;
mod service;
mod stack;
mod tcp;
mod transport;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::clock::Clock;
use crate::device::Devices;
use crate::interrupts::Pins;
use crate::machine::{Machine, Task};
use crate::parse::acpi;
use crate::physical::Physical;
use crate::power::Power;
use crate::stack::Stack;

/// The first Rust code, in ring 3 on a stack of its own: how we were booted and what was handed over.
pub extern "C" fn wisp_main(protocol: u64, info: u64) -> ! {
    let Some(handover) = boot::read(protocol, info, memory::image_end()) else {
        println!("boot: nothing was handed over at {info:#x}");
        power::give_up();
    };
    let Some(heap_bytes) = memory::start_heap(handover.free) else {
        println!("boot: too little memory after the image at {:#x}", memory::image_end());
        power::give_up();
    };
    interrupts::start();
    let clock = Clock::start();
    let rsdp = handover.rsdp.or_else(|| acpi::find_rsdp(&Physical));
    let acpi = rsdp.and_then(|rsdp| acpi::read(&Physical, rsdp)).unwrap_or_default();
    let pins = Pins::new(acpi.io_apics);
    let power = Power::start(&acpi, &pins);
    let devices = Devices::find(handover.cmdline, acpi.ecam, &pins);
    clock.calibrate();
    let nics = devices.nics.into_iter().enumerate();
    let stacks = nics.map(|(index, nic)| Stack::new(nic, index, &clock)).collect();
    let machine: &'static Machine = Box::leak(Box::new(Machine::new(clock, power, stacks, devices.disks)));
    println!("guest: version {} heap {} KiB", env!("CARGO_PKG_VERSION"), heap_bytes >> 10);
    machine.run(tasks(machine))
}

/// How long DHCP may take once there is an address by IPv6, in nanoseconds: longer than its first repetition.
const IPV4_PATIENCE_NS: u64 = 1_500_000_000;

fn tasks(machine: &'static Machine) -> Vec<Task> {
    let mut tasks: Vec<Task> = Vec::new();
    for stack in &machine.stacks {
        for _ in 0..http::CONNECTIONS {
            tasks.push(Box::pin(http::serve(machine, stack)));
        }
        for _ in 0..echo::CONNECTIONS {
            tasks.push(Box::pin(echo::serve(machine, stack)));
        }
    }
    tasks.push(Box::pin(live(machine)));
    tasks
}

/// From the first address to the end of the commands in user data. When it begins, the network has been asked for
/// an address; what there is to say is said while the answer travels.
async fn live(machine: &'static Machine) {
    for (index, disk) in machine.disks.iter().enumerate() {
        let mode = if disk.read_only() { "ro" } else { "rw" };
        println!("disk {index}: {} bytes {mode} serial {}", disk.bytes(), metadata::shown(disk.serial()));
    }
    if machine.disks.is_empty() {
        println!("disk: none");
    }
    for stack in &machine.stacks {
        let [a, b, c, d, e, f] = stack.mac();
        println!("{}: mac {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}", stack.name());
    }
    if machine.stacks.is_empty() {
        println!("net: none");
        println!("ready without network");
        return;
    }
    let leased = || machine.stacks.iter().find(|stack| stack.lease().is_some());
    let with_address = || machine.stacks.iter().find(|stack| stack.address().is_some());
    machine.wait(with_address).await;
    // A network may have IPv6 alone; where it has both, IPv4 is what is looked for.
    let deadline = machine.clock.now_ns() + IPV4_PATIENCE_NS;
    let leased = machine.wait_until(deadline, leased).await;
    let Some(stack) = leased.or_else(with_address) else { return };
    match stack.address() {
        Some(IpAddr::V6(address)) => println!("ready http://[{address}]/"),
        Some(address) => println!("ready http://{address}/"),
        None => {}
    }
    if let Some(user_data) = metadata::load(machine, stack).await {
        commands::run(machine, stack, &user_data).await;
    }
}
