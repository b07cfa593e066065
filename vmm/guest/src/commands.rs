//! Commands from user data, one after the other, each with a result line `command: … ok|failed …` on the console:
//! the way to make a guest act on a network where nobody can reach it.
//!
//! Must never know: where the commands came from.

use alloc::rc::Rc;
use alloc::string::String;

use crate::disk::SECTOR_SIZE;
use crate::machine::Machine;
use crate::metadata::shown;
use crate::parse::script::{Command, commands};
use crate::stack::Stack;
use crate::{disk, fetch, ping, println, resolve};

const SECOND_NS: u64 = 1_000_000_000;

/// Runs what `user_data` asks for, if it asks for anything.
pub async fn run(machine: &'static Machine, stack: &Rc<Stack>, user_data: &[u8]) {
    let Ok(text) = str::from_utf8(user_data) else { return };
    for command in commands(text) {
        match command {
            Ok((line, command)) => one(machine, stack, line, command).await,
            Err(line) => println!("command: {} failed: not a command", shown(line)),
        }
    }
}

async fn one(machine: &'static Machine, stack: &Rc<Stack>, line: &str, command: Command<'_>) {
    match command {
        Command::Print(text) => println!("{}", shown(text)),
        Command::Wait(seconds) => machine.pause(u64::from(seconds) * SECOND_NS).await,
        Command::PowerOff => machine.off(),
        Command::Ping(target, times) => {
            for attempt in 1..=times.max(1) {
                let started_ns = machine.clock.now_ns();
                if let Some(ns) = ping::ping(machine, stack, target).await {
                    return println!("command: {line} ok {}.{:03} ms", ns / 1_000_000, ns / 1000 % 1000);
                }
                if attempt < times {
                    machine.pause(SECOND_NS.saturating_sub(machine.clock.now_ns() - started_ns)).await;
                }
            }
            println!("command: {line} failed: timeout");
        }
        Command::Resolve(name, times) => {
            let mut attempt = 1;
            let error = loop {
                let started_ns = machine.clock.now_ns();
                match resolve::address(machine, stack, name).await {
                    Ok(address) => return println!("command: {line} ok {address}"),
                    Err(error) if attempt >= times => break error,
                    Err(_) => attempt += 1,
                }
                machine.pause(SECOND_NS.saturating_sub(machine.clock.now_ns() - started_ns)).await;
            };
            println!("command: {line} failed: {error}");
        }
        Command::Fetch(url) => match fetch::get(machine, stack, url).await {
            Ok(answer) => {
                let body = String::from_utf8_lossy(&answer.body);
                let first = body.lines().next().unwrap_or("");
                println!("command: {} ok {} {}", shown(line), answer.status, shown(first));
            }
            Err(error) => println!("command: {} failed: {error}", shown(line)),
        },
        Command::DiskWrite(disk, sector, text) => {
            let mut data = [0; SECTOR_SIZE];
            let len = text.len().min(SECTOR_SIZE);
            data[..len].copy_from_slice(&text.as_bytes()[..len]);
            let result = machine.disk(disk).and_then(|disk| disk.write(&machine.clock, sector, &data));
            told("disk-write", disk, sector, result.map(|()| ""));
        }
        Command::DiskRead(disk, sector) => {
            let mut data = [0; SECTOR_SIZE];
            let result = machine.disk(disk).and_then(|disk| disk.read(&machine.clock, sector, &mut data));
            let text = String::from_utf8_lossy(data.split(|&byte| byte == 0).next().unwrap_or(&[]));
            told("disk-read", disk, sector, result.map(|()| &*text));
        }
    }
}

fn told(name: &str, disk: usize, sector: u64, result: Result<&str, disk::Error>) {
    match result {
        Ok(text) => println!("command: {name} {disk} {sector} ok {}", shown(text)),
        Err(error) => println!("command: {name} {disk} {sector} failed: {error}"),
    }
}
