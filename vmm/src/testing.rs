//! What tests share.

/// Says why a test cannot run here; with `WISP_REQUIRE_ALL=1` that is a failure.
pub(crate) fn skipped(reason: &str) {
    assert!(std::env::var_os("WISP_REQUIRE_ALL").is_none_or(|value| value != "1"), "skipped: {reason}");
    println!("skipped: {reason}");
}
