//! Names of disks in a place that is shared with what is not ours: a volume group, a pool.

use super::{BackendError, id_is_safe};

/// Before the id of every disk of ours; others in the same place are left alone.
const PREFIX: &str = "wisp-";
/// After the id of one that is not there yet.
const PARTIAL: &str = ".new";

/// The name of a disk.
pub(crate) fn name_of(id: &str) -> Result<String, BackendError> {
    if id_is_safe(id) { Ok(format!("{PREFIX}{id}")) } else { Err(BackendError::unsafe_id(id)) }
}

/// The name of a disk while it is made.
pub(crate) fn partial_of(id: &str) -> Result<String, BackendError> {
    Ok(name_of(id)? + PARTIAL)
}

/// The id of what is half made by that name, if it is that.
pub(crate) fn half_made(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)?.strip_suffix(PARTIAL)
}

/// Whether a name is one of ours.
#[cfg(feature = "ceph")]
pub(crate) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The ids of the disks among what is there, in order.
pub(crate) fn ids<'n>(names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let ids = names.filter_map(|name| name.strip_prefix(PREFIX)).filter(|id| id_is_safe(id));
    let mut ids: Vec<_> = ids.map(str::to_owned).collect();
    ids.sort();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_ids_and_strange_ones_to_none() {
        let (name, partial) = (name_of("a-1").unwrap(), partial_of("a-1").unwrap());
        assert_eq!((half_made(&partial), half_made(&name), half_made("a-1.new")), (Some("a-1"), None, None));
        assert_eq!(
            ids([&*name, &*partial, "other", "wisp-", "wisp-a/b", "wisp-A"].into_iter()),
            ["A", "a-1"]
        );
        assert!(name_of("../a").is_err() && partial_of("").is_err());
    }
}
