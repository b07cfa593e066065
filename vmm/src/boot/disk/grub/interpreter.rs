//! Running a script: variables, functions, control flow and the menu it makes.

use std::collections::BTreeMap;

use super::super::bls;
use super::super::filesystem;
use super::super::volumes::{FileName, Volumes};
use super::syntax::{self, Block, Piece, Statement, SyntaxError, Word};
use super::{Choice, SCRIPT_BYTES_MAX};

/// The most commands that one boot runs. A menu of a thousand kernels takes some ten thousand.
const STEPS_MAX: u32 = 200_000;
/// How deep calls, blocks and files may lie within each other.
const DEPTH_MAX: u32 = 64;
/// How many bytes all words of all commands may have once variables are put in.
const EXPANDED_BYTES_MAX: usize = 32 << 20;
/// The most words of one command.
const WORDS_MAX: usize = 4096;
/// The most variables.
const VARIABLES_MAX: usize = 4096;
/// The longest value of a variable in bytes: far above the kernel's longest command line.
const VALUE_BYTES_MAX: usize = 16 << 10;
/// The most entries of a menu.
const ENTRIES_MAX: usize = 10_000;
/// The most files that scripts may take in.
const FILES_MAX: u32 = 256;
/// The most menus one behind the other.
const MENUS_MAX: u32 = 8;

/// Why a configuration boots nothing.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum Error {
    /// The configuration cannot be read.
    #[error("read {path}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: filesystem::Error,
    },
    /// It is no script.
    #[error("understand {path}")]
    Syntax {
        /// Which.
        path: String,
        /// Where and why.
        #[source]
        source: SyntaxError,
    },
    /// It does not end, or needs more than any sound one.
    #[error("the configuration has no end: {0}")]
    Endless(&'static str),
    /// There is nothing to choose.
    #[error("the configuration has no menu entry")]
    NoEntry,
    /// The entry that is chosen loads no kernel.
    #[error("its entry `{title}` loads no Linux kernel{reason}")]
    NoKernel {
        /// Which.
        title: String,
        /// What went wrong on the way, with a colon before it; or nothing.
        reason: String,
    },
    /// A device that is not on the disk, or not read.
    #[error("it names {name}, which is not on this disk")]
    Device {
        /// As it stands in the configuration.
        name: String,
    },
}

/// Where a command leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// To the next one; the last one succeeded, or not.
    Next(bool),
    Break(u32),
    Continue(u32),
    Return(bool),
    /// To booting what is loaded, or to the menu of another configuration.
    Stop,
}

/// A menu entry.
#[derive(Debug, Clone)]
pub(super) struct MenuEntry {
    pub(super) title: String,
    pub(super) id: String,
    pub(super) kind: EntryKind,
}

#[derive(Debug, Clone)]
pub(super) enum EntryKind {
    /// Commands, with the arguments they see.
    Script { body: Block, arguments: Vec<String>, is_submenu: bool },
    /// An entry of the Boot Loader Specification, on this volume.
    Bls { entry: bls::Entry, volume: usize },
}

/// What `linux` and `initrd` have said so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Loaded {
    pub(super) kernel: Option<FileName>,
    pub(super) cmdline: String,
    pub(super) initrds: Vec<FileName>,
}

/// A run of a configuration.
pub(super) struct Interpreter<'a> {
    pub(super) volumes: &'a Volumes,
    pub(super) menu: Vec<MenuEntry>,
    pub(super) loaded: Loaded,
    /// The last thing that went wrong, for people.
    pub(super) complaint: Option<String>,
    pub(super) parameters: Vec<String>,
    variables: BTreeMap<String, String>,
    functions: BTreeMap<String, Block>,
    steps: u32,
    depth: u32,
    files: u32,
    expanded_bytes: usize,
}

impl<'a> Interpreter<'a> {
    pub(super) fn new(volumes: &'a Volumes) -> Self {
        let mut variables = BTreeMap::new();
        for (name, value) in [
            ("grub_cpu", "i386"),
            ("grub_platform", "pc"),
            ("pager", ""),
            ("feature_200_final", "y"),
            ("feature_all_video_module", "y"),
            ("feature_chainloader_bpb", "y"),
            ("feature_default_font_path", "y"),
            ("feature_menuentry_id", "y"),
            ("feature_menuentry_options", "y"),
            ("feature_nativedisk_cmd", "y"),
            ("feature_ntldr", "y"),
            ("feature_platform_search_hint", "y"),
            ("feature_timeout_style", "y"),
        ] {
            variables.insert(name.to_owned(), value.to_owned());
        }
        Self {
            volumes,
            menu: Vec::new(),
            loaded: Loaded::default(),
            complaint: None,
            parameters: Vec::new(),
            variables,
            functions: BTreeMap::new(),
            steps: 0,
            depth: 0,
            files: 0,
            expanded_bytes: 0,
        }
    }

    /// Runs `file`, takes the default entry of its menu, and of that one's menu if it has one.
    pub(super) fn boot(mut self, file: &FileName) -> Result<Choice, Error> {
        let device = self.volumes.device(file.volume);
        let directory = file.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        self.set("root", &device)?;
        self.set("prefix", &format!("({device}){directory}"))?;
        self.set("cmdpath", &format!("({device}){directory}"))?;
        self.configuration(file)?;
        let mut title = String::new();
        let mut wanted = self.get("default").to_owned();
        for _ in 0..MENUS_MAX {
            if self.loaded.kernel.is_some() && self.menu.is_empty() {
                break;
            }
            let (index, rest) = choose_entry(&self.menu, &wanted).ok_or(Error::NoEntry)?;
            wanted = rest;
            let entry = self.menu.swap_remove(index);
            title.clone_from(&entry.title);
            self.loaded = Loaded::default();
            self.menu.clear();
            self.complaint = None;
            self.set("chosen", &entry.title)?;
            match entry.kind {
                EntryKind::Script { body, arguments, is_submenu } => {
                    self.parameters = arguments;
                    self.block(&body)?;
                    if !is_submenu {
                        // The menu is another configuration's, with a default of its own.
                        self.get("default").clone_into(&mut wanted);
                    }
                }
                EntryKind::Bls { entry, volume } => self.load_bls(&entry, volume)?,
            }
            if self.menu.is_empty() {
                break;
            }
        }
        let Loaded { kernel, cmdline, initrds } = self.loaded;
        let reason = self.complaint.map(|complaint| format!(": {complaint}")).unwrap_or_default();
        match kernel {
            Some(kernel) => Ok(Choice { title, kernel, initrds, cmdline }),
            None => Err(Error::NoKernel { title, reason }),
        }
    }

    /// Runs a configuration in place of the current one: its menu is the menu.
    pub(super) fn configuration(&mut self, file: &FileName) -> Result<(), Error> {
        self.menu.clear();
        let device = self.volumes.device(file.volume);
        let directory = file.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        self.set("config_directory", &format!("({device}){directory}"))?;
        self.set("config_file", &format!("({device}){}", file.path))?;
        self.file(file).map(drop)
    }

    /// Runs a file's commands.
    pub(super) fn file(&mut self, file: &FileName) -> Result<Flow, Error> {
        self.files += 1;
        if self.files > FILES_MAX {
            return Err(Error::Endless("it takes in too many files"));
        }
        let path = || file.path.clone();
        let text = self.volumes.text(file, SCRIPT_BYTES_MAX);
        let text = text.map_err(|source| Error::Read { path: path(), source })?;
        let block = syntax::parse(&text).map_err(|source| Error::Syntax { path: path(), source })?;
        self.block(&block)
    }

    /// A variable's value; empty if it has none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        if value.len() > VALUE_BYTES_MAX || name.len() > VALUE_BYTES_MAX {
            return Err(Error::Endless("a variable grows beyond its bound"));
        }
        if self.variables.len() >= VARIABLES_MAX && !self.variables.contains_key(name) {
            return Err(Error::Endless("it has too many variables"));
        }
        self.variables.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    pub(super) fn unset(&mut self, name: &str) {
        self.variables.remove(name);
    }

    pub(super) fn add_entry(&mut self, entry: MenuEntry) -> Result<(), Error> {
        if self.menu.len() >= ENTRIES_MAX {
            return Err(Error::Endless("its menu has too many entries"));
        }
        self.menu.push(entry);
        Ok(())
    }

    /// Takes back the room that a text of `bytes` bytes needs.
    pub(super) fn take_bytes(&mut self, bytes: usize) -> Result<(), Error> {
        self.expanded_bytes = self.expanded_bytes.saturating_add(bytes);
        if self.expanded_bytes > EXPANDED_BYTES_MAX {
            return Err(Error::Endless("its words grow beyond their bound"));
        }
        Ok(())
    }

    /// Puts the variables' values into words.
    fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, Error> {
        let mut expanded = Vec::new();
        for word in words {
            let mut text = String::new();
            let mut is_word = word.quoted;
            for piece in &word.pieces {
                let (value, quoted) = match piece {
                    Piece::Text(text) => (text.clone(), true),
                    Piece::Variable { name, quoted } => (self.value(name), *quoted),
                };
                self.take_bytes(value.len() + 1)?;
                if quoted {
                    is_word |= !value.is_empty();
                    text.push_str(&value);
                    continue;
                }
                let blank = |character: char| matches!(character, ' ' | '\t' | '\n');
                for (index, part) in value.split(blank).enumerate() {
                    if index > 0 && (is_word || !text.is_empty()) {
                        expanded.push(std::mem::take(&mut text));
                        is_word = false;
                    }
                    text.push_str(part);
                }
            }
            if is_word || !text.is_empty() {
                expanded.push(text);
            }
            if expanded.len() > WORDS_MAX {
                return Err(Error::Endless("a command has too many words"));
            }
        }
        Ok(expanded)
    }

    fn value(&self, name: &str) -> String {
        match name.parse::<usize>() {
            Ok(0) => String::new(),
            Ok(number) => self.parameters.get(number - 1).cloned().unwrap_or_default(),
            Err(_) if name == "#" => self.parameters.len().to_string(),
            Err(_) if matches!(name, "@" | "*") => self.parameters.join(" "),
            Err(_) => self.get(name).to_owned(),
        }
    }

    /// Runs commands until one leads elsewhere.
    pub(super) fn block(&mut self, block: &Block) -> Result<Flow, Error> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Error::Endless("it calls itself"));
        }
        let mut flow = Flow::Next(true);
        for statement in block.iter() {
            flow = self.statement(statement)?;
            match flow {
                Flow::Next(status) => self.set("?", if status { "0" } else { "1" })?,
                _ => break,
            }
        }
        self.depth -= 1;
        Ok(flow)
    }

    fn statement(&mut self, statement: &Statement) -> Result<Flow, Error> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(Error::Endless("it runs too many commands"));
        }
        match statement {
            Statement::Command { words, block } => {
                let words = self.expand(words)?;
                self.call(&words, block.as_ref())
            }
            Statement::Function { name, body } => {
                if self.functions.len() >= VARIABLES_MAX {
                    return Err(Error::Endless("it has too many functions"));
                }
                self.functions.insert(name.clone(), body.clone());
                Ok(Flow::Next(true))
            }
            Statement::If { arms, otherwise } => {
                for (condition, body) in arms {
                    match self.block(condition)? {
                        Flow::Next(true) => return self.block(body),
                        Flow::Next(false) => {}
                        flow => return Ok(flow),
                    }
                }
                self.block(otherwise)
            }
            Statement::For { variable, words, body } => {
                for word in self.expand(words)? {
                    self.set(variable, &word)?;
                    if let Some(flow) = self.turn(body)? {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Next(true))
            }
            Statement::While { condition, inverted, body } => loop {
                self.steps += 1;
                match self.block(condition)? {
                    Flow::Next(status) if status != *inverted => {}
                    Flow::Next(_) => return Ok(Flow::Next(true)),
                    flow => return Ok(flow),
                }
                if let Some(flow) = self.turn(body)? {
                    return Ok(flow);
                }
                if self.steps > STEPS_MAX {
                    return Err(Error::Endless("a loop has no end"));
                }
            },
        }
    }

    /// One turn of a loop; what it leads to if that is out of the loop.
    fn turn(&mut self, body: &Block) -> Result<Option<Flow>, Error> {
        Ok(match self.block(body)? {
            Flow::Next(_) | Flow::Continue(1) => None,
            Flow::Break(1) => Some(Flow::Next(true)),
            Flow::Break(levels) => Some(Flow::Break(levels - 1)),
            Flow::Continue(levels) => Some(Flow::Continue(levels - 1)),
            flow => Some(flow),
        })
    }

    fn call(&mut self, words: &[String], block: Option<&Block>) -> Result<Flow, Error> {
        let Some((name, arguments)) = words.split_first() else { return Ok(Flow::Next(true)) };
        if name == "!" {
            return Ok(match self.call(arguments, block)? {
                Flow::Next(status) => Flow::Next(!status),
                flow => flow,
            });
        }
        let Some(body) = self.functions.get(name).cloned() else {
            return self.command(name, arguments, block);
        };
        let before = std::mem::replace(&mut self.parameters, arguments.to_vec());
        let flow = self.block(&body)?;
        self.parameters = before;
        Ok(match flow {
            Flow::Return(status) => Flow::Next(status),
            Flow::Break(_) | Flow::Continue(_) => Flow::Next(true),
            flow => flow,
        })
    }

    /// A file as a script names it: `(device)/path`, or a path on the root device.
    pub(super) fn file_name(&self, text: &str) -> Result<FileName, Error> {
        let (device, path) = match text.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device, path),
            None => (self.get("root"), text),
        };
        let device = device.trim_start_matches('(').trim_end_matches(')');
        let unknown = || Error::Device { name: format!("({device}){path}") };
        let volume = self.volumes.by_device(device).ok_or_else(unknown)?;
        Ok(FileName { volume, path: path.to_owned() })
    }
}

/// The entry that `wanted` means, and what it says of the menu behind it: a number, an identifier or a title; parts
/// for menus behind menus are separated by `>`. What means nothing is the first entry, as for GRUB.
pub(super) fn choose_entry(menu: &[MenuEntry], wanted: &str) -> Option<(usize, String)> {
    let is = |text: &str| menu.iter().position(|entry| entry.id == text || entry.title == text);
    if menu.is_empty() {
        return None;
    }
    if let Some(index) = is(wanted) {
        return Some((index, String::new()));
    }
    let (first, rest) = wanted.split_once('>').unwrap_or((wanted, ""));
    let number = first.trim().parse::<usize>().ok().filter(|&number| number < menu.len());
    let index = number.or_else(|| is(first));
    Some(index.map_or((0, String::new()), |index| (index, rest.to_owned())))
}
