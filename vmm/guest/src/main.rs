//! Wisp's tiny guest: a freestanding program that boots under any VMM in milliseconds, gets its address, shows its
//! metadata, answers on its network and reads and writes its disks.
//!
//! Ring 0 is `entry.s`, a stub; everything else runs in ring 3, at native speed even where ring 0 is emulated.
#![no_std]
#![no_main]

extern crate alloc;

mod balloon;
mod boot;
mod clock;
mod commands;
mod console;
mod device;
mod disk;
mod echo;
mod entry;
mod fetch;
mod generation;
mod hotplug;
mod http;
mod hvc;
mod interrupts;
mod ipv6;
mod load;
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
mod plug;
mod pmem;
mod power;
mod register;
mod resolve;
mod ring;
mod service;
mod stack;
mod tcp;
mod traffic;
mod transport;
mod vsock;
mod watchdog;
mod wire;

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::net::IpAddr;

use crate::clock::Clock;
use crate::generation::Generation;
use crate::interrupts::Pins;
use crate::machine::{Machine, Task};
use crate::parse::acpi;
use crate::parse::cmdline::{Traffic, load_ms, say_us, touched_kib, traffic};
use crate::physical::Physical;
use crate::plug::Plug;
use crate::power::Power;
use crate::stack::Stack;

/// The first Rust code, in ring 3 on a stack of its own: how we were booted and what was handed over.
pub extern "C" fn wisp_main(protocol: u64, info: u64) -> ! {
    let Some(handover) = boot::read(protocol, info, memory::image_end()) else {
        println!("boot: nothing was handed over at {info:#x}");
        power::give_up();
    };
    let free = handover.free;
    let Some(heap_bytes) = memory::start_heap(free.clone()) else {
        println!("boot: too little memory after the image at {:#x}", memory::image_end());
        power::give_up();
    };
    interrupts::start();
    let clock = Clock::start();
    let rsdp = handover.rsdp.or_else(|| acpi::find_rsdp(&Physical));
    let acpi = rsdp.and_then(|rsdp| acpi::read(&Physical, rsdp)).unwrap_or_default();
    let pins = Pins::new(acpi.io_apics);
    let power = Power::start(&acpi, &pins);
    let plug = Plug::start(&acpi);
    let generation = Generation::start(&acpi);
    let devices = device::find(handover.cmdline, acpi.ecam, &pins, &(free.start + heap_bytes..free.end));
    clock.calibrate();
    let machine: &'static Machine =
        Box::leak(Box::new(Machine::new(clock, power, plug, generation, acpi.watchdog)));
    for device in devices {
        match device {
            device::Device::Load(mut load) => load.run(&machine.clock, load_ms(handover.cmdline)),
            device::Device::Wire(wire) => {
                if let Some(traffic) = traffic(handover.cmdline) {
                    load_network(&machine.clock, wire, traffic);
                }
            }
            device => drop(machine.add(device)),
        }
    }
    println!("guest: version {} heap {} KiB", env!("CARGO_PKG_VERSION"), heap_bytes >> 10);
    let slot = Rc::default();
    let mut tasks: Vec<Task> = machine.stacks().iter().flat_map(|stack| serve(machine, stack)).collect();
    if let Some(hvc) = machine.hvc() {
        tasks.push(Task::new(hvc::serve(machine, hvc), Rc::default()));
    }
    if let Some(balloon) = machine.balloon() {
        tasks.push(Task::new(balloon::serve(machine, balloon), Rc::default()));
    }
    if let Some(hotplug) = machine.hotplug() {
        tasks.push(Task::new(hotplug::serve(machine, hotplug), Rc::default()));
    }
    if let Some(vsock) = machine.vsock() {
        tasks.push(Task::new(vsock::serve(machine, vsock), Rc::default()));
    }
    tasks.push(Task::new(live(machine, Rc::clone(&slot)), slot));
    tasks.push(Task::new(renew(machine), Rc::default()));
    match touched_kib(handover.cmdline) {
        0 => {}
        kib => tasks.push(Task::new(touch(machine, kib), Rc::default())),
    }
    if let Some(us) = say_us(handover.cmdline) {
        tasks.push(Task::new(say(machine, us), Rc::default()));
    }
    machine.run(tasks, serve)
}

/// A load over the network as the command line says, before there is anything else.
fn load_network(clock: &Clock, wire: wire::Wire, traffic: Traffic) {
    // Time is measured against a timer, and the longer the better.
    clock.pause(CALIBRATION_NS);
    let Traffic { own, peer, milliseconds, awake_us } = traffic;
    let mut load = traffic::Traffic::new(wire, clock, own, nic::MTU_MAX, awake_us);
    let result = match peer {
        None => load.serve(milliseconds),
        Some(address) => load.measure(traffic::Target { address, hop: address }, milliseconds),
    };
    if let Err(error) = result {
        println!("traffic: failed: {error}");
    }
}

/// A sleep that makes the clock good to a part in a thousand, in nanoseconds.
const CALIBRATION_NS: u64 = 150_000_000;

/// How long DHCP may take once there is an address by IPv6, in nanoseconds: longer than its first repetition.
const IPV4_PATIENCE_NS: u64 = 1_500_000_000;

/// What is done over one stack as long as it is there.
fn serve(machine: &'static Machine, stack: &Rc<Stack>) -> Vec<Task> {
    let slot = Rc::new(Cell::new(stack.slot()));
    let mut tasks = Vec::new();
    for _ in 0..http::CONNECTIONS {
        tasks.push(Task::new(http::serve(machine, stack.clone()), slot.clone()));
    }
    for _ in 0..echo::CONNECTIONS {
        tasks.push(Task::new(echo::serve(machine, stack.clone()), slot.clone()));
    }
    tasks
}

/// How often memory is written to, in nanoseconds.
const TOUCH_NS: u64 = 100_000_000;

/// Writes to every page of so much memory, again and again.
async fn touch(machine: &'static Machine, kib: usize) {
    const PAGE_BYTES: usize = 4096;
    let mut memory = alloc::vec![0_u8; kib << 10];
    println!("touch: {kib} KiB");
    loop {
        for byte in memory.iter_mut().step_by(PAGE_BYTES) {
            *byte = byte.wrapping_add(1);
        }
        core::hint::black_box(&mut memory);
        machine.pause(TOUCH_NS).await;
    }
}

/// Says something again and again, so that somebody who waits for it knows when the guest runs.
async fn say(machine: &'static Machine, us: u64) {
    loop {
        println!(".");
        machine.pause(us.saturating_mul(1000)).await;
    }
}

/// Whenever the machine goes on as another: who it is now.
async fn renew(machine: &'static Machine) {
    let mut known = machine.generation.count();
    loop {
        machine.wait(|| (machine.generation.count() != known).then_some(())).await;
        known = machine.generation.count();
        println!("generation: {}", machine.generation);
        machine.stacks().iter().for_each(|stack| stack.renew(machine.generation.random(), &machine.clock));
        let leased = || machine.stacks().into_iter().find(|stack| stack.lease().is_some());
        let stack = machine.wait(leased).await;
        metadata::load(machine, &stack).await;
        println!("renewed");
    }
}

/// From the first address to the end of the commands in user data. When it begins, the network has been asked for
/// an address; what there is to say is said while the answer travels. `slot` is told which device it goes on with.
async fn live(machine: &'static Machine, slot: Rc<Cell<Option<u8>>>) {
    let disks = machine.disks();
    for (index, disk) in &disks {
        disk.introduce(*index);
    }
    if disks.is_empty() {
        println!("disk: none");
    }
    drop(disks);
    machine.stacks().iter().for_each(|stack| stack.introduce());
    for (index, pmem) in machine.pmem().iter().enumerate() {
        println!("pmem {index}: {} bytes", pmem.bytes());
    }
    if let Some(vsock) = machine.vsock() {
        println!("vsock: cid {}", vsock.cid());
    }
    if machine.stacks().is_empty() {
        println!("net: none");
        println!("ready without network");
    }
    let leased = || machine.stacks().into_iter().find(|stack| stack.lease().is_some());
    let with_address = || machine.stacks().into_iter().find(|stack| stack.address().is_some());
    machine.wait(|| with_address().map(drop)).await;
    // A network may have IPv6 alone; where it has both, IPv4 is what is looked for.
    let deadline = machine.clock.now_ns() + IPV4_PATIENCE_NS;
    machine.wait_until(deadline, || leased().map(drop)).await;
    let Some(stack) = leased().or_else(with_address) else { return };
    slot.set(stack.slot());
    match stack.address() {
        Some(IpAddr::V6(address)) => println!("ready http://[{address}]/"),
        Some(address) => println!("ready http://{address}/"),
        None => {}
    }
    if let Some(user_data) = metadata::load(machine, &stack).await {
        commands::run(machine, &stack, &user_data).await;
    }
}
