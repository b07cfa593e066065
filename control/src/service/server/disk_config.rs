//! Whether the partition of a server's first disk shall become as large as the disk (`OS-DCF:diskConfig`). It is kept for whoever asks, and
//! nothing is done about it: a guest does that by itself.

use std::collections::BTreeMap;

use crate::boolean;
use crate::error::{Error, Result};

/// In an image's properties: a boolean, or `disabled`.
const PROPERTY: &str = "auto_disk_config";

/// What a new server has: what is asked for it, or else what its image says, where all that is no word for yes means no (nova
/// `compute/api.py`, `_inherit_properties_from_image`).
///
/// # Errors
/// `Invalid`: `AUTO` is asked for, and the image says `disabled`.
pub(super) fn of_new(
    asked: Option<bool>,
    image_id: &str,
    properties: &BTreeMap<String, String>,
) -> Result<bool> {
    let said = properties.get(PROPERTY).map(String::as_str);
    if asked == Some(true) && said.is_some_and(|said| said.trim().eq_ignore_ascii_case("disabled")) {
        return Err(Error::invalid(
            "AutoDiskConfigDisabledByImage",
            format!("Requested image {image_id} has automatic disk resize disabled."),
        ));
    }
    Ok(asked.unwrap_or_else(|| said.and_then(boolean::from_text).unwrap_or(false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_holds_and_else_what_the_image_says() {
        let of = |asked, said: Option<&str>| {
            let properties = said.map(|said| (PROPERTY.to_owned(), said.to_owned())).into_iter().collect();
            of_new(asked, "i", &properties)
        };
        for (said, yes) in [(None, false), (Some("True"), true), (Some(" on "), true), (Some("no"), false)] {
            assert_eq!(of(None, said).unwrap(), yes, "{said:?}");
            assert!(of(Some(true), said).unwrap() && !of(Some(false), said).unwrap(), "{said:?}");
        }
        for disabled in ["disabled", " Disabled "] {
            let refused = of(Some(true), Some(disabled)).unwrap_err().to_string();
            assert_eq!(refused, "Requested image i has automatic disk resize disabled.");
            assert!(!of(None, Some(disabled)).unwrap() && !of(Some(false), Some(disabled)).unwrap());
        }
    }
}
