//! The commands that decide what is booted.

use super::super::bls;
use super::super::filesystem::Found;
use super::interpreter::{EntryKind, Error, Flow, Interpreter, Loaded, MenuEntry};
use super::syntax::Block;
use super::test_command;

/// The size of GRUB's environment block is 1024 bytes; what is larger is none.
const ENVIRONMENT_BYTES_MAX: u64 = 64 << 10;
/// Its first line.
const ENVIRONMENT_HEADER: &str = "# GRUB Environment Block";

/// Commands that have no effect on what is booted, or none without a screen.
const WITHOUT_EFFECT: &[&str] = &[
    "background_color",
    "background_image",
    "clear",
    "echo",
    "export",
    "gfxmode",
    "insmod",
    "loadfont",
    "lsmod",
    "play",
    "rmmod",
    "save_env",
    "serial",
    "set_background_image",
    "sleep",
    "terminal_input",
    "terminal_output",
    "terminfo",
    "videoinfo",
    "videomode",
    "badram",
    "cutmem",
    "keymap",
    "nativedisk",
    "acpi",
    "gdbstub",
    "password",
    "password_pbkdf2",
    "rdmsr",
    "wrmsr",
    "setkey",
    "true",
    ":",
];

impl Interpreter<'_> {
    pub(super) fn command(
        &mut self,
        name: &str,
        arguments: &[String],
        block: Option<&Block>,
    ) -> Result<Flow, Error> {
        let status = match name {
            "set" => return self.set_command(arguments),
            "unset" => {
                arguments.iter().for_each(|name| self.unset(name));
                true
            }
            "[" => match arguments.split_last() {
                Some((last, expression)) if last == "]" => test_command::evaluate(self, expression),
                _ => false,
            },
            "test" => test_command::evaluate(self, arguments),
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => {
                return self.search(name, arguments);
            }
            "probe" => return self.probe(arguments),
            "load_env" => return self.load_env(arguments),
            "menuentry" | "submenu" => return self.menu_entry(name == "submenu", arguments, block),
            "linux" | "linux16" | "linuxefi" => self.linux(arguments),
            "initrd" | "initrd16" | "initrdefi" => self.initrd(arguments),
            "blscfg" => return self.blscfg(),
            "source" | "." => return self.source(arguments),
            "configfile" | "normal" | "extract_entries_configfile" => return self.config_file(arguments),
            "setparams" => {
                self.parameters = arguments.to_vec();
                true
            }
            "shift" => {
                let count = number(arguments.first()).min(self.parameters.len());
                self.parameters.drain(..count);
                true
            }
            "increment" | "decrement" => return self.count(name == "increment", arguments),
            "break" => return Ok(Flow::Break(levels(arguments))),
            "continue" => return Ok(Flow::Continue(levels(arguments))),
            "return" => return Ok(Flow::Return(arguments.first().is_none_or(|status| status == "0"))),
            "boot" | "exit" | "halt" | "reboot" => return Ok(Flow::Stop),
            "cpuid" => arguments.iter().any(|option| option == "-l" || option == "--long-mode"),
            "chainloader" | "multiboot" | "multiboot2" | "kfreebsd" | "knetbsd" | "kopenbsd"
            | "xnu_kernel" | "ntldr" | "xen_hypervisor" | "fwsetup" => {
                self.complaint = Some(format!("it uses `{name}`, which is not how Linux is booted here"));
                false
            }
            // `name=value` is `set name=value`.
            _ if name.contains('=') => return self.set_command(&[name.to_owned()]),
            _ => WITHOUT_EFFECT.contains(&name),
        };
        Ok(Flow::Next(status))
    }

    fn set_command(&mut self, arguments: &[String]) -> Result<Flow, Error> {
        for argument in arguments {
            if let Some((name, value)) = argument.split_once('=') {
                self.set(name, value)?;
            }
        }
        Ok(Flow::Next(true))
    }

    fn count(&mut self, up: bool, arguments: &[String]) -> Result<Flow, Error> {
        let Some(name) = arguments.first() else { return Ok(Flow::Next(false)) };
        let Ok(value) = self.get(name).parse::<i64>() else { return Ok(Flow::Next(false)) };
        let value = if up { value.saturating_add(1) } else { value.saturating_sub(1) };
        self.set(&name.clone(), &value.to_string())?;
        Ok(Flow::Next(true))
    }

    /// `search [--fs-uuid|--label|--file] [--set[=VARIABLE]] NAME`; the older commands are `search.KIND NAME VARIABLE`.
    fn search(&mut self, command: &str, arguments: &[String]) -> Result<Flow, Error> {
        let (mut kind, mut variable, mut name) =
            (command.strip_prefix("search.").unwrap_or("file"), None, None);
        let mut words = arguments.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            match word {
                "--fs-uuid" | "-u" => kind = "fs_uuid",
                "--label" | "--fs-label" | "-l" => kind = "fs_label",
                "--file" | "-f" => kind = "file",
                "--set" => variable = Some("root"),
                "-s" => variable = Some("root"),
                "--hint" => {
                    words.next_if(|word| word.starts_with("hd") || word.starts_with("ahci"));
                }
                word if word.starts_with("--set=") => variable = word.strip_prefix("--set="),
                word if word.starts_with('-') => {}
                word if name.is_none() => name = Some(word),
                word if command != "search" && variable.is_none() => variable = Some(word),
                _ => {}
            }
        }
        let name = name.unwrap_or_default();
        let volume = match kind {
            "fs_uuid" => self.volumes.by_uuid(name),
            "fs_label" => self.volumes.by_label(name),
            _ => self.volumes.by_file(name),
        };
        let Some(volume) = volume else {
            self.complaint = Some(format!("no filesystem on this disk is `{name}`"));
            return Ok(Flow::Next(false));
        };
        if let Some(variable) = variable {
            let device = self.volumes.device(volume);
            self.set(variable, &device)?;
        }
        Ok(Flow::Next(true))
    }

    /// `probe --set=VARIABLE --fs-uuid|--label|--fs DEVICE`
    fn probe(&mut self, arguments: &[String]) -> Result<Flow, Error> {
        let (mut variable, mut what, mut device) = (None, "", None);
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--set" | "-s" => variable = words.next(),
                "--fs-uuid" | "-u" => what = "uuid",
                "--label" | "-l" => what = "label",
                "--fs" | "-f" => what = "fs",
                word if word.starts_with("--set=") => variable = word.strip_prefix("--set="),
                word if word.starts_with('-') => {}
                word => device = Some(word.trim_start_matches('(').trim_end_matches(')')),
            }
        }
        let Some(volume) = device.and_then(|device| self.volumes.by_device(device)) else {
            return Ok(Flow::Next(false));
        };
        let volume = self.volumes.volume(volume);
        let value = match what {
            "uuid" => volume.uuid(),
            "label" => volume.label(),
            "fs" if volume.kind == "ext4" => "ext2".to_owned(),
            "fs" => volume.kind.to_lowercase(),
            _ => return Ok(Flow::Next(false)),
        };
        if let Some(variable) = variable {
            self.set(variable, &value)?;
        }
        Ok(Flow::Next(true))
    }

    /// `load_env [--file FILE] [NAME…]`: all variables of an environment block, or those named.
    fn load_env(&mut self, arguments: &[String]) -> Result<Flow, Error> {
        let mut file = None;
        let mut names = Vec::new();
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--file" | "-f" => file = words.next(),
                word if word.starts_with("--file=") => file = word.strip_prefix("--file="),
                word if word.starts_with('-') => {}
                word => names.push(word),
            }
        }
        let file = file.map_or_else(|| format!("{}/grubenv", self.get("prefix")), ToOwned::to_owned);
        let Ok(file) = self.file_name(&file) else { return Ok(Flow::Next(false)) };
        let Ok(text) = self.volumes.text(&file, ENVIRONMENT_BYTES_MAX) else { return Ok(Flow::Next(false)) };
        for (name, value) in environment(&text) {
            if names.is_empty() || names.contains(&name.as_str()) {
                self.set(&name, &value)?;
            }
        }
        Ok(Flow::Next(true))
    }

    fn menu_entry(
        &mut self,
        is_submenu: bool,
        arguments: &[String],
        block: Option<&Block>,
    ) -> Result<Flow, Error> {
        let (mut title, mut id, mut rest) = (None, None, Vec::new());
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--class" | "--users" | "--hotkey" => drop(words.next()),
                "--id" => id = words.next().cloned(),
                "--unrestricted" => {}
                word if word.starts_with("--id=") => id = word.strip_prefix("--id=").map(ToOwned::to_owned),
                word if word.starts_with("--class=") || word.starts_with("--users=") => {}
                _ if title.is_none() => title = Some(word.clone()),
                _ => rest.push(word.clone()),
            }
        }
        let (Some(title), Some(body)) = (title, block) else { return Ok(Flow::Next(false)) };
        let body = body.clone();
        let arguments = std::iter::once(title.clone()).chain(rest).collect();
        let kind = EntryKind::Script { body, arguments, is_submenu };
        self.add_entry(MenuEntry { id: id.unwrap_or_else(|| title.clone()), title, kind })?;
        Ok(Flow::Next(true))
    }

    fn linux(&mut self, arguments: &[String]) -> bool {
        let Some((kernel, words)) = arguments.split_first() else { return false };
        self.loaded = Loaded::default();
        match self.file_name(kernel) {
            Ok(file) if matches!(self.volumes.found(&file), Some(Found::File { .. })) => {
                let quoted: Vec<_> = words.iter().map(|word| quote(word)).collect();
                let words = std::iter::once(format!("BOOT_IMAGE={kernel}")).chain(quoted);
                self.loaded.cmdline = words.collect::<Vec<_>>().join(" ");
                self.loaded.kernel = Some(file);
                true
            }
            Ok(file) => {
                let place = self.volumes.describe(file.volume);
                self.complaint = Some(format!("the kernel {} is not on {place}", file.path));
                false
            }
            Err(error) => {
                self.complaint = Some(format!("the kernel is {kernel}, but {error}"));
                false
            }
        }
    }

    fn initrd(&mut self, arguments: &[String]) -> bool {
        if self.loaded.kernel.is_none() {
            return false;
        }
        self.loaded.initrds.clear();
        for name in arguments.iter().filter(|name| !name.starts_with("--")) {
            match self.file_name(name) {
                Ok(file) => self.loaded.initrds.push(file),
                Err(error) => {
                    // A system that needs its ramdisk does not come up without it.
                    self.complaint = Some(format!("the initial ramdisk is {name}, but {error}"));
                    self.loaded.kernel = None;
                    return false;
                }
            }
        }
        true
    }

    fn source(&mut self, arguments: &[String]) -> Result<Flow, Error> {
        let Some(Ok(file)) = arguments.first().map(|name| self.file_name(name)) else {
            return Ok(Flow::Next(false));
        };
        match self.file(&file) {
            Ok(Flow::Return(status)) => Ok(Flow::Next(status)),
            Err(error @ (Error::Read { .. } | Error::Syntax { .. })) => {
                self.complaint = Some(error.to_string());
                Ok(Flow::Next(false))
            }
            other => other,
        }
    }

    fn config_file(&mut self, arguments: &[String]) -> Result<Flow, Error> {
        let Some(name) = arguments.first() else { return Ok(Flow::Next(false)) };
        let file = match self.file_name(name) {
            Ok(file) if matches!(self.volumes.found(&file), Some(Found::File { .. })) => file,
            _ => {
                self.complaint = Some(format!("there is no {name}"));
                return Ok(Flow::Next(false));
            }
        };
        self.configuration(&file)?;
        Ok(Flow::Stop)
    }

    /// Fedora's command: an entry for each file of the Boot Loader Specification, the newest first.
    fn blscfg(&mut self) -> Result<Flow, Error> {
        let Some(volume) = self.volumes.by_device(self.get("root")) else {
            return Ok(Flow::Next(false));
        };
        let own = self.get("blsdir").to_owned();
        let directories = [own.as_str(), "/loader/entries", "/boot/loader/entries"];
        for directory in directories.into_iter().filter(|directory| !directory.is_empty()) {
            let entries = bls::read_directory(self.volumes, volume, directory, bls::Order::FileName);
            if entries.is_empty() {
                continue;
            }
            for entry in entries {
                let (title, id) = (entry.title.clone(), entry.id.clone());
                self.add_entry(MenuEntry { title, id, kind: EntryKind::Bls { entry, volume } })?;
            }
            return Ok(Flow::Next(true));
        }
        self.complaint = Some("there are no entries of the Boot Loader Specification".to_owned());
        Ok(Flow::Next(false))
    }

    /// Loads what an entry of the Boot Loader Specification says; GRUB puts variables into it.
    pub(super) fn load_bls(&mut self, entry: &bls::Entry, volume: usize) -> Result<(), Error> {
        let device = self.volumes.device(volume);
        let words = |text: &str, this: &mut Self| -> Result<Vec<String>, Error> {
            let mut words = Vec::new();
            for word in text.split_whitespace() {
                let value = this.put_variables(word)?;
                words.extend(value.split_whitespace().map(ToOwned::to_owned));
            }
            Ok(words)
        };
        let mut arguments = vec![format!("({device}){}", entry.linux)];
        let options = if entry.options.is_empty() { "$default_kernelopts" } else { &entry.options };
        arguments.extend(words(options, self)?);
        let mut initrds = Vec::new();
        for initrd in &entry.initrds {
            initrds.extend(words(initrd, self)?.into_iter().map(|path| format!("({device}){path}")));
        }
        if self.linux(&arguments) && !initrds.is_empty() {
            self.initrd(&initrds);
        }
        Ok(())
    }

    /// Puts variables into a text that is no script.
    fn put_variables(&mut self, text: &str) -> Result<String, Error> {
        let mut parts = text.split('$');
        let mut result = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (name, rest) = match part.strip_prefix('{').and_then(|part| part.split_once('}')) {
                Some((name, rest)) => (name, rest),
                None => {
                    let end = part.find(|next: char| !next.is_ascii_alphanumeric() && next != '_');
                    part.split_at(end.unwrap_or(part.len()))
                }
            };
            result.push_str(self.get(name));
            result.push_str(rest);
            self.take_bytes(result.len())?;
        }
        Ok(result)
    }
}

fn number(word: Option<&String>) -> usize {
    word.and_then(|word| word.parse().ok()).unwrap_or(1)
}

fn levels(arguments: &[String]) -> u32 {
    u32::try_from(number(arguments.first())).unwrap_or(1).max(1)
}

/// A word as the kernel reads it back: one with a space is quoted, and what would end the quotes is escaped.
fn quote(word: &str) -> String {
    let mut text = String::with_capacity(word.len());
    for character in word.chars() {
        if matches!(character, '\\' | '\'' | '"') {
            text.push('\\');
        }
        text.push(character);
    }
    if text.contains(' ') { format!("\"{text}\"") } else { text }
}

/// The variables of an environment block; none if it is no such block.
pub(super) fn environment(text: &str) -> Vec<(String, String)> {
    let mut lines = text.lines();
    if lines.next() != Some(ENVIRONMENT_HEADER) {
        return Vec::new();
    }
    let mut variables = Vec::new();
    for line in lines.filter(|line| !line.starts_with('#')) {
        if let Some((name, value)) = line.split_once('=') {
            let mut plain = String::with_capacity(value.len());
            let mut characters = value.chars();
            while let Some(next) = characters.next() {
                plain.extend(if next == '\\' { characters.next() } else { Some(next) });
            }
            variables.push((name.to_owned(), plain));
        }
    }
    variables
}
