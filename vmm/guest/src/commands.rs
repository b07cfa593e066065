//! Commands from user data, one after the other, each with a result line `command: … ok|failed …` on the console:
//! the way to make a guest act on a network where nobody can reach it. They can be typed as well, at a virtio console.
//!
//! Must never know: where the commands came from.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString as _};
use core::fmt::Display;
use core::net::Ipv4Addr;

use crate::disk::SECTOR_SIZE;
use crate::machine::Machine;
use crate::metadata::shown;
use crate::parse::script::{self, Command, commands};
use crate::stack::Stack;
use crate::{balloon, fetch, ping, println, resolve, traffic, vsock, watchdog};

const SECOND_NS: u64 = 1_000_000_000;

/// Runs what `user_data` asks for, if it asks for anything.
pub async fn run(machine: &'static Machine, stack: &Rc<Stack>, user_data: &[u8]) {
    let Ok(text) = str::from_utf8(user_data) else { return };
    for command in commands(text) {
        match command {
            Ok((line, command)) => {
                if let Some(said) = one(machine, Some(stack), line, command).await {
                    println!("{said}");
                }
            }
            Err(line) => println!("{}", no_command(line)),
        }
    }
}

/// Runs a line that was typed; what there is to say.
pub async fn typed(machine: &'static Machine, line: &str) -> String {
    let Some(command) = script::command(line) else { return no_command(line) };
    let stack = machine.stacks().into_iter().find(|stack| stack.address().is_some());
    one(machine, stack.as_ref(), line, command)
        .await
        .unwrap_or_else(|| format!("command: {} ok", shown(line)))
}

fn no_command(line: &str) -> String {
    format!("command: {} failed: not a command", shown(line))
}

/// What became of `line`.
fn told<T: Display, E: Display>(line: &str, result: Result<T, E>) -> String {
    match result {
        Ok(value) => format!("command: {} ok {value}", shown(line)),
        Err(error) => format!("command: {} failed: {error}", shown(line)),
    }
}

async fn one(
    machine: &'static Machine,
    stack: Option<&Rc<Stack>>,
    line: &str,
    command: Command<'_>,
) -> Option<String> {
    match command {
        Command::Print(text) => return Some(shown(text).to_string()),
        Command::Wait(seconds) => {
            machine.pause(u64::from(seconds) * SECOND_NS).await;
            return None;
        }
        Command::PowerOff => machine.off(),
        Command::DiskWrite(disk, sector, text) => {
            let mut data = [0; SECTOR_SIZE];
            let len = text.len().min(SECTOR_SIZE);
            data[..len].copy_from_slice(&text.as_bytes()[..len]);
            let result = machine.disk(disk).and_then(|disk| disk.write(&machine.clock, sector, &data));
            return Some(told(&format!("disk-write {disk} {sector}"), result.map(|()| "")));
        }
        Command::DiskRead(disk, sector) => {
            let mut data = [0; SECTOR_SIZE];
            let result = machine.disk(disk).and_then(|disk| disk.read(&machine.clock, sector, &mut data));
            let text = String::from_utf8_lossy(data.split(|&byte| byte == 0).next().unwrap_or(&[]));
            return Some(told(line, result.map(|()| shown(&text).to_string())));
        }
        Command::Vsock(port, text) => {
            let answer = vsock::ask(machine, port, text.as_bytes()).await;
            return Some(told(
                &format!("vsock {port}"),
                answer.map(|bytes| shown(&String::from_utf8_lossy(&bytes)).to_string()),
            ));
        }
        Command::PmemWrite(index, offset, text) => {
            let pmem = machine.pmem().get(index).copied().ok_or("no such memory");
            let result = pmem.and_then(|pmem| pmem.write(offset, text.as_bytes()));
            return Some(told(&format!("pmem-write {index} {offset}"), result.map(|()| "")));
        }
        Command::PmemRead(index, offset) => {
            let pmem = machine.pmem().get(index).copied().ok_or("no such memory");
            let result = pmem.and_then(|pmem| pmem.read(offset));
            return Some(told(line, result.map(|text| shown(&text).to_string())));
        }
        Command::Touch(mib) => return Some(told("touch", balloon::touch(machine, mib))),
        Command::Watchdog(watch) => return Some(told(line, watchdog::act(machine, watch))),
        Command::Ping(..) | Command::Resolve(..) | Command::Fetch(_) | Command::Traffic(..) => {}
    }
    let Some(stack) = stack else { return Some(told::<&str, _>(line, Err("no network"))) };
    Some(over_network(machine, stack, line, command).await)
}

async fn over_network(
    machine: &'static Machine,
    stack: &Rc<Stack>,
    line: &str,
    command: Command<'_>,
) -> String {
    match command {
        Command::Ping(target, times) => {
            for attempt in 1..=times.max(1) {
                let started_ns = machine.clock.now_ns();
                if let Some(ns) = ping::ping(machine, stack, target).await {
                    return format!("command: {line} ok {}.{:03} ms", ns / 1_000_000, ns / 1000 % 1000);
                }
                if attempt < times {
                    machine.pause(SECOND_NS.saturating_sub(machine.clock.now_ns() - started_ns)).await;
                }
            }
            told::<&str, _>(line, Err("timeout"))
        }
        Command::Resolve(name, times) => {
            let mut attempt = 1;
            let result = loop {
                let started_ns = machine.clock.now_ns();
                match resolve::address(machine, stack, name).await {
                    Err(_) if attempt < times => attempt += 1,
                    result => break result,
                }
                machine.pause(SECOND_NS.saturating_sub(machine.clock.now_ns() - started_ns)).await;
            };
            told(line, result)
        }
        Command::Fetch(url) => {
            let answer = fetch::get(machine, stack, url).await.map(|answer| {
                let body = String::from_utf8_lossy(&answer.body);
                let first = body.lines().next().unwrap_or("");
                format!("{} {}", answer.status, shown(first))
            });
            told(line, answer)
        }
        Command::Traffic(peer, milliseconds, awake_us) => {
            told(line, load(machine, stack, peer, (milliseconds, awake_us)).map(|()| ""))
        }
        _ => no_command(line),
    }
}

/// A load over the network, which has the stack's device meanwhile.
fn load(
    machine: &'static Machine,
    stack: &Rc<Stack>,
    peer: Option<Ipv4Addr>,
    (milliseconds, awake_us): (u64, u64),
) -> Result<(), traffic::Error> {
    let lease = stack.lease().ok_or(traffic::Error::NoAddress)?;
    stack.lend(|wire| {
        let wire = wire.ok_or(traffic::Error::Device)?;
        let mut load =
            traffic::Traffic::new(wire, &machine.clock, lease.address.address(), lease.mtu, awake_us);
        match peer {
            None => load.serve(milliseconds),
            Some(address) => {
                let hop = lease.next_hop(address);
                load.measure(traffic::Target { address, hop }, milliseconds)
            }
        }
    })
}
