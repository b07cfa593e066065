//! Yes and no as texts: in images' properties, extra specs, queries and headers.

/// A text as most of OpenStack reads a boolean (oslo.utils, `strutils.bool_from_string`): one of its `TRUE_STRINGS` or `FALSE_STRINGS` in
/// any case, with space around it or without. Nothing of all else, which oslo gives its caller's default and, where the caller
/// is strict, refuses: a service then answers 400.
///
/// Who reads another set than this says so where it does.
#[must_use]
pub fn from_text(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Some(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_oslo_are_read_in_any_case_and_nothing_else() {
        for yes in ["1", "t", "true", "on", "y", "yes", "True", "YES", " oN\n"] {
            assert_eq!(from_text(yes), Some(true), "{yes:?}");
        }
        for no in ["0", "f", "false", "off", "n", "no", "False", "NO", "\tOff "] {
            assert_eq!(from_text(no), Some(false), "{no:?}");
        }
        for neither in ["", " ", "2", "-1", "00", "tr ue", "none", "enabled", "ja", "yes!", "\u{0}"] {
            assert_eq!(from_text(neither), None, "{neither:?}");
        }
    }
}
