//! The instance's metadata, in OpenStack's form: fetched once, shown on the console, kept for others.
//!
//! Must never know: what user data asks for.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Deserialize;

use crate::fetch;
use crate::machine::Machine;
use crate::parse::route::Url;
use crate::println;
use crate::stack::Stack;

/// How often an absent service is asked: with the pauses below for a little over a minute.
const ATTEMPTS_MAX: u32 = 12;
/// The first pause between attempts, in nanoseconds; it doubles up to [`PAUSE_NS_MAX`].
const PAUSE_NS: u64 = 250_000_000;
/// The longest pause.
const PAUSE_NS_MAX: u64 = 8_000_000_000;
/// Lines of user data shown: it may be a program.
const LINES_SHOWN_MAX: usize = 32;
/// Characters of a line shown.
const COLUMNS_SHOWN_MAX: usize = 200;
/// Public keys shown.
const KEYS_SHOWN_MAX: usize = 16;

/// What `meta_data.json` says, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
pub struct Metadata {
    /// The instance's id.
    #[serde(default)]
    pub uuid: String,
    /// Its host name.
    #[serde(default)]
    pub hostname: String,
    /// Public keys by name.
    #[serde(default)]
    pub public_keys: BTreeMap<String, String>,
    /// The document as it came.
    #[serde(skip)]
    pub document: Vec<u8>,
}

/// Fetches metadata and user data over `stack`, shows both, and returns the user data; `None` if there is none.
pub async fn load(machine: &'static Machine, stack: &Rc<Stack>) -> Option<Vec<u8>> {
    let document = fetch(machine, stack, "/openstack/latest/meta_data.json").await?;
    let mut metadata: Metadata = match serde_json::from_slice(&document) {
        Ok(metadata) => metadata,
        Err(error) => {
            println!("metadata: not understood: {error}");
            Metadata::default()
        }
    };
    metadata.document = document;
    println!("metadata: uuid {}", shown(&metadata.uuid));
    println!("metadata: hostname {}", shown(&metadata.hostname));
    for (name, key) in metadata.public_keys.iter().take(KEYS_SHOWN_MAX) {
        println!("metadata: key {} {}", shown(name), shown(key.trim_end()));
    }
    *machine.metadata.borrow_mut() = Some(metadata);
    let user_data = fetch(machine, stack, "/openstack/latest/user_data").await?;
    let text = String::from_utf8_lossy(&user_data);
    for line in text.lines().take(LINES_SHOWN_MAX) {
        println!("metadata: user-data {}", shown(line));
    }
    let hidden = text.lines().count().saturating_sub(LINES_SHOWN_MAX);
    if hidden != 0 {
        println!("metadata: {hidden} more lines of user data");
    }
    Some(user_data)
}

/// Gets one document from the service, patiently; `None` if the service has none, or is not there at all.
async fn fetch(machine: &'static Machine, stack: &Rc<Stack>, target: &str) -> Option<Vec<u8>> {
    let mut pause_ns = PAUSE_NS;
    for attempt in 1.. {
        let url = Url { address: stack.metadata_address(), port: 80, target };
        match fetch::get(machine, stack, url).await {
            Ok(answer) if answer.status == 200 => return Some(answer.body),
            Ok(answer) if answer.status == 404 => {
                return None;
            }
            Ok(answer) if attempt == ATTEMPTS_MAX => println!("metadata: status {}", answer.status),
            Err(error) if attempt == ATTEMPTS_MAX => println!("metadata: none: {error}"),
            _ => {
                machine.pause(pause_ns).await;
                pause_ns = (pause_ns * 2).min(PAUSE_NS_MAX);
                continue;
            }
        }
        break;
    }
    None
}

/// Foreign text made fit for a console: one line of bounded length, without control characters.
pub fn shown(text: &str) -> impl core::fmt::Display + '_ {
    core::fmt::from_fn(move |f| {
        use core::fmt::Write as _;
        for (column, character) in text.chars().enumerate() {
            if column == COLUMNS_SHOWN_MAX {
                return f.write_str("…");
            }
            f.write_char(if character.is_control() { '?' } else { character })?;
        }
        Ok(())
    })
}
