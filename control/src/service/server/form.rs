//! The form of what owners say of servers: names, host names, properties, tags. Pure.

use std::collections::BTreeMap;

use super::NewServers;
use super::create::COUNT_MAX;
use crate::error::{Error, Result};
use crate::service::nic::{NicRequest, NicRequests};

/// The longest name, property key and property value in characters.
const TEXT_CHARS_MAX: usize = 255;
/// The longest label of a host name (RFC 1035 §2.3.4).
const HOSTNAME_BYTES_MAX: usize = 63;
/// The longest tag in characters.
const TAG_CHARS_MAX: usize = 60;
/// The most bytes of scheduler hints as JSON, so that a row stays far below the store's limit.
const HINTS_BYTES_MAX: usize = 16 << 10;

/// Checks what can be checked of new servers before anything is looked up.
pub(super) fn check_form(new: &NewServers) -> Result<()> {
    check_name(&new.name)?;
    if let Some(hostname) = &new.hostname {
        check_hostname(hostname)?;
    }
    if new.description.as_ref().is_some_and(|text| text.chars().count() > TEXT_CHARS_MAX) {
        return Err(invalid(format!("A description has at most {TEXT_CHARS_MAX} characters.")));
    }
    if new.min_count == 0 || new.max_count < new.min_count {
        return Err(invalid("min_count must be <= max_count, and both at least 1"));
    }
    if new.max_count > COUNT_MAX {
        return Err(invalid(format!("max_count is at most {COUNT_MAX}.")));
    }
    check_properties(&new.metadata)?;
    new.tags.iter().try_for_each(|tag| check_tag(tag))?;
    if let NicRequests::Listed(nics) = &new.nics {
        nics.iter().filter_map(NicRequest::tag).try_for_each(check_tag)?;
    }
    if new.tags.len() > super::update::TAGS_MAX {
        return Err(invalid(format!("A server has at most {} tags.", super::update::TAGS_MAX)));
    }
    if serde_json::to_vec(&new.scheduler_hints).is_ok_and(|json| json.len() > HINTS_BYTES_MAX) {
        return Err(invalid(format!("Scheduler hints have at most {HINTS_BYTES_MAX} bytes.")));
    }
    if let Some(group) = new.scheduler_hints.get("group") {
        let id = group.as_str().unwrap_or_default();
        return Err(Error::invalid(
            "InstanceGroupNotFound",
            format!("Instance group {id} could not be found."),
        ));
    }
    Ok(())
}

/// 1 to 255 printable characters.
pub(super) fn check_name(name: &str) -> Result<()> {
    let length = name.trim().chars().count();
    if (1..=TEXT_CHARS_MAX).contains(&length) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(invalid(format!(
        "Invalid input for field/attribute name: it has 1 to {TEXT_CHARS_MAX} printable characters."
    )))
}

/// One label of a domain name, or several (microversion 2.94).
pub(super) fn check_hostname(hostname: &str) -> Result<()> {
    let label = |label: &str| {
        (1..=HOSTNAME_BYTES_MAX).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if (2..=TEXT_CHARS_MAX).contains(&hostname.len()) && hostname.split('.').all(label) {
        return Ok(());
    }
    Err(invalid(format!(
        "Invalid input for field/attribute hostname: {hostname}: labels of letters, digits and inner '-' are allowed."
    )))
}

/// Keys and values of 255 characters at most.
pub(super) fn check_properties(properties: &BTreeMap<String, String>) -> Result<()> {
    for (key, value) in properties {
        let key_fits = (1..=TEXT_CHARS_MAX).contains(&key.chars().count())
            && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_:. ".contains(c));
        if !key_fits {
            return Err(invalid(format!(
                "Invalid input for field/attribute metadata: key '{key}' does not fit."
            )));
        }
        if value.chars().count() > TEXT_CHARS_MAX {
            return Err(invalid(format!(
                "Invalid input for field/attribute metadata: the value of '{key}' has more than {TEXT_CHARS_MAX} characters."
            )));
        }
    }
    Ok(())
}

/// 1 to 60 characters without `,` and `/`.
pub(super) fn check_tag(tag: &str) -> Result<()> {
    if (1..=TAG_CHARS_MAX).contains(&tag.chars().count()) && !tag.contains([',', '/']) {
        return Ok(());
    }
    Err(invalid(format!("Invalid tag '{tag}': it has 1 to {TAG_CHARS_MAX} characters without ',' and '/'.")))
}

/// A host name made of a server's name as Nova makes it (`nova.utils.sanitize_hostname`).
pub(super) fn hostname_of(name: &str, id: &str) -> String {
    let kept = name.chars().filter_map(|c| match c {
        ' ' | '_' | '.' => Some('-'),
        c if c.is_ascii_alphanumeric() || c == '-' => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    let kept: String = kept.collect();
    let cut: String = kept.trim_matches('-').chars().take(HOSTNAME_BYTES_MAX).collect();
    let hostname = cut.trim_matches('-');
    if hostname.is_empty() { format!("server-{id}") } else { hostname.to_owned() }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::invalid("InvalidInput", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_made_of_names_as_nova_does() {
        assert_eq!(hostname_of("My Server_1.x", "id"), "my-server-1-x");
        assert_eq!(hostname_of("-ä-", "id"), "server-id");
        assert_eq!(hostname_of(&"a".repeat(80), "id").len(), 63);
        assert_eq!(hostname_of("..", "1"), "server-1");
    }

    #[test]
    fn forms_that_nova_refuses_are_refused() {
        assert!(check_name("").is_err() && check_name("  ").is_err() && check_name("a\nb").is_err());
        assert!(check_name(&"x".repeat(256)).is_err() && check_name("s 1").is_ok());
        assert!(check_tag("a,b").is_err() && check_tag("").is_err() && check_tag("web").is_ok());
        assert!(check_hostname("a").is_err() && check_hostname("-ab").is_err());
        assert!(check_hostname("a..b").is_err() && check_hostname("a-b.example").is_ok());
        let long = BTreeMap::from([("k".to_owned(), "v".repeat(256))]);
        assert!(check_properties(&long).is_err());
    }
}
