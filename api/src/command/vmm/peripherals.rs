//! The options of `wisp vmm boot` for devices beside disks and network devices.

use vmm::interactive::ConsoleOption;

/// What is asked for; nothing is there unless it is.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Options {
    /// A virtio console (hvc0) beside the serial port: `tty` for one on the terminal, which is the guest's console then
    /// while the serial port is heard by nobody; `file=PATH` for one whose newest MiB is kept there; `socket=PATH` for
    /// one that whoever connects to a Unix socket made there has, the last who came. With the last two, the guest's
    /// console stays the serial one unless `--cmdline console=hvc0` says otherwise.
    #[arg(long, value_name = "tty|file=PATH|socket=PATH", value_parser = console)]
    pub(super) console: Option<ConsoleOption>,
}

fn console(text: &str) -> Result<ConsoleOption, String> {
    match text.split_once('=') {
        None if text == "tty" => Ok(ConsoleOption::Terminal),
        Some(("file", path)) if !path.is_empty() => Ok(ConsoleOption::File(path.into())),
        Some(("socket", path)) if !path.is_empty() => Ok(ConsoleOption::Socket(path.into())),
        _ => Err("it is none of tty, file=PATH and socket=PATH".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_is_the_terminal_a_file_or_a_socket() {
        assert_eq!(console("tty"), Ok(ConsoleOption::Terminal));
        assert_eq!(console("file=a=b"), Ok(ConsoleOption::File("a=b".into())));
        assert_eq!(console("socket=/run/c"), Ok(ConsoleOption::Socket("/run/c".into())));
        for wrong in ["", "pty", "file", "file=", "socket=", "tty=1", "null"] {
            assert!(console(wrong).is_err(), "{wrong}");
        }
    }
}
