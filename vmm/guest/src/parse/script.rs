//! Commands in user data: a first line `#wisp`, then one command a line; empty lines and `#` comments are passed over.

use core::net::{IpAddr, Ipv4Addr};

use super::cmdline::{TRAFFIC_MS_MAX, awake_us};
use super::route::Url;

/// The most commands run; user data may be 64 KiB of them.
pub const COMMANDS_MAX: usize = 256;
/// The longest wait, in seconds: a day.
pub const WAIT_S_MAX: u32 = 24 * 3600;

/// One command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command<'a> {
    /// `ping ADDRESS [TIMES]`: ICMP echoes, one a second, until one is answered.
    Ping(IpAddr, u32),
    /// `fetch http://ADDRESS[:PORT]/PATH`.
    Fetch(Url<'a>),
    /// `resolve NAME [TIMES]`: an address of a name, asked for once a second until there is one.
    Resolve(&'a str, u32),
    /// `disk-write DISK SECTOR TEXT`.
    DiskWrite(usize, u64, &'a str),
    /// `disk-read DISK SECTOR`.
    DiskRead(usize, u64),
    /// `vsock PORT TEXT`: what the host's socket of that port answers to it.
    Vsock(u32, &'a str),
    /// `pmem-write MEMORY OFFSET TEXT`.
    PmemWrite(usize, u64, &'a str),
    /// `pmem-read MEMORY OFFSET`.
    PmemRead(usize, u64),
    /// `touch MIB`: writes to so much of the memory that a balloon could give.
    Touch(u64),
    /// `watchdog arm MS`, or one of `feed`, `left` and `stop`.
    Watchdog(Watch),
    /// `traffic ADDRESS MILLISECONDS [AWAKE_US]`: round trips and a connection each way with somebody who serves, for so long each;
    /// or `traffic serve MILLISECONDS [AWAKE_US]`. The last is how long is waited awake before the processor sleeps.
    Traffic(Option<Ipv4Addr>, u64, u64),
    /// `wait SECONDS`.
    Wait(u32),
    /// `print TEXT`.
    Print(&'a str),
    /// `poweroff`.
    PowerOff,
}

/// What is done with the watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// It counts so many milliseconds from now on.
    Arm(u32),
    /// It begins again.
    Feed,
    /// It says how much is left.
    Left,
    /// It stops.
    Stop,
}

/// The commands of `user_data`, each with its line; `Err` is a line that is no command. Nothing at all if the
/// first line is not `#wisp`.
pub fn commands(user_data: &str) -> impl Iterator<Item = Result<(&str, Command<'_>), &str>> {
    let mut lines = user_data.lines().map(str::trim);
    let ours = lines.next() == Some("#wisp");
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| command(line).map(|command| (line, command)).ok_or(line))
        .take(if ours { COMMANDS_MAX } else { 0 })
}

/// The command that a line is, if it is one.
pub fn command(line: &str) -> Option<Command<'_>> {
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    let rest = rest.trim_start();
    let mut words = rest.split_ascii_whitespace();
    let command = match name {
        "print" => return Some(Command::Print(rest)),
        "disk-write" | "pmem-write" => {
            let (which, rest) = rest.split_once(' ')?;
            let (place, text) = rest.trim_start().split_once(' ').unwrap_or((rest.trim_start(), ""));
            let (which, place) = (which.parse().ok()?, place.parse().ok()?);
            let is_disk = name == "disk-write";
            let command = if is_disk { Command::DiskWrite } else { Command::PmemWrite };
            return Some(command(which, place, text));
        }
        "vsock" => {
            let (port, text) = rest.split_once(' ')?;
            return Some(Command::Vsock(port.parse().ok()?, text.trim_start()));
        }
        "ping" => {
            let address = words.next()?.parse().ok()?;
            Command::Ping(address, words.next().map_or(Some(1), |times| times.parse().ok())?)
        }
        "resolve" => {
            let name = words.next()?;
            Command::Resolve(name, words.next().map_or(Some(1), |times| times.parse().ok())?)
        }
        "fetch" => Command::Fetch(Url::parse(words.next()?)?),
        "disk-read" => Command::DiskRead(words.next()?.parse().ok()?, words.next()?.parse().ok()?),
        "pmem-read" => Command::PmemRead(words.next()?.parse().ok()?, words.next()?.parse().ok()?),
        "touch" => Command::Touch(words.next()?.parse().ok().filter(|&mib| mib < 1 << 20)?),
        "watchdog" => Command::Watchdog(match words.next()? {
            "arm" => Watch::Arm(words.next()?.parse().ok()?),
            "feed" => Watch::Feed,
            "left" => Watch::Left,
            "stop" => Watch::Stop,
            _ => return None,
        }),
        "traffic" => {
            let peer = match words.next()? {
                "serve" => None,
                address => Some(address.parse().ok()?),
            };
            let milliseconds = words.next()?.parse().ok().filter(|&ms| ms <= TRAFFIC_MS_MAX)?;
            Command::Traffic(peer, milliseconds, awake_us(words.next())?)
        }
        "wait" => Command::Wait(words.next()?.parse().ok().filter(|&seconds| seconds <= WAIT_S_MAX)?),
        "poweroff" => Command::PowerOff,
        _ => return None,
    };
    words.next().is_none().then_some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_follow_the_marker_line() {
        let script = "#wisp\n# a comment\n\nping 10.0.0.7\nping 10.0.0.7 5\nresolve web.x 3\nresolve y\n  disk-write 0 100 some text  \r\ndisk-read 0 100\nvsock 52 hello  there\ntouch 8\npmem-write 1 4096 x y\npmem-read 1 0\nwatchdog arm 500\nwatchdog feed\ntraffic 10.0.0.7 500\ntraffic serve 9000 0\n\
                      wait 3\nprint hello  there\nfetch http://10.0.0.7/x\npoweroff\n";
        let address = IpAddr::from([10, 0, 0, 7]);
        let expected = [
            Command::Ping(address, 1),
            Command::Ping(address, 5),
            Command::Resolve("web.x", 3),
            Command::Resolve("y", 1),
            Command::DiskWrite(0, 100, "some text"),
            Command::DiskRead(0, 100),
            Command::Vsock(52, "hello  there"),
            Command::Touch(8),
            Command::PmemWrite(1, 4096, "x y"),
            Command::PmemRead(1, 0),
            Command::Watchdog(Watch::Arm(500)),
            Command::Watchdog(Watch::Feed),
            Command::Traffic(Some(Ipv4Addr::new(10, 0, 0, 7)), 500, 50),
            Command::Traffic(None, 9000, 0),
            Command::Wait(3),
            Command::Print("hello  there"),
            Command::Fetch(Url { address, port: 80, target: "/x" }),
            Command::PowerOff,
        ];
        let found: Vec<_> = commands(script).map(|command| command.unwrap().1).collect();
        assert_eq!(found, expected);
        assert_eq!(commands(script).next(), Some(Ok(("ping 10.0.0.7", Command::Ping(address, 1)))));
    }

    #[test]
    fn user_data_of_others_holds_no_commands() {
        assert_eq!(commands("#!/bin/sh\npoweroff\n").count(), 0);
        assert_eq!(commands("#cloud-config\npoweroff").count(), 0);
        assert_eq!(commands("").count(), 0);
    }

    #[test]
    fn lines_that_are_no_commands_are_named_and_the_rest_goes_on() {
        let script = "#wisp\nping\nping x\ndisk-read 0\ndisk-write 0\nvsock 52\nwait 999999999\nwatchdog\nwatchdog arm\ntraffic serve\ntraffic ::1 5\ntraffic serve 9999999\nreboot\nping 1.2.3.4 5 6\npoweroff";
        let found: Vec<_> = commands(script).collect();
        assert_eq!(found.len(), 14);
        assert!(found[..13].iter().all(Result::is_err), "{found:?}");
        assert_eq!(found[13], Ok(("poweroff", Command::PowerOff)));
    }

    #[test]
    fn commands_are_bounded() {
        let script = format!("#wisp\n{}", "poweroff\n".repeat(COMMANDS_MAX + 5));
        assert_eq!(commands(&script).count(), COMMANDS_MAX);
    }
}
