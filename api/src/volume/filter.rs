//! What a list's query asks of its rows: equality, likeness (`name~`, microversion 3.31), times compared (`created_at=gt:…`,
//! 3.60), properties.

use std::collections::BTreeMap;

use control::boolean;
use jiff::Timestamp;

use crate::context::Filters;
use crate::error::Fault;
use crate::microversion::Microversion;

/// The words of a list's query that are no filters.
const OTHER_WORDS: [&str; 12] = [
    "limit",
    "marker",
    "offset",
    "sort",
    "sort_key",
    "sort_dir",
    "all_tenants",
    "with_count",
    "is_public",
    "page_reverse",
    "usage",
    "cgsnapshot_id",
];

/// What lists of volumes can be filtered by.
pub(super) const VOLUMES: [&str; 18] = [
    "id",
    "name",
    "display_name",
    "status",
    "bootable",
    "multiattach",
    "size",
    "project_id",
    "tenant_id",
    "user_id",
    "host",
    "availability_zone",
    "migration_status",
    "group_id",
    "snapshot_id",
    "source_volid",
    "volume_type_id",
    "description",
];

/// What lists of snapshots can be filtered by.
pub(super) const SNAPSHOTS: [&str; 9] = [
    "id",
    "name",
    "display_name",
    "status",
    "volume_id",
    "project_id",
    "availability_zone",
    "description",
    "group_snapshot_id",
];

/// What lists of attachments can be filtered by.
pub(super) const ATTACHMENTS: [&str; 5] =
    ["volume_id", "status", "instance_id", "attach_status", "project_id"];

/// What lists of backups can be filtered by.
pub(super) const BACKUPS: [&str; 6] = ["id", "name", "status", "volume_id", "snapshot_id", "project_id"];

/// What lists of messages can be filtered by.
pub(super) const MESSAGES: [&str; 6] =
    ["resource_uuid", "resource_type", "event_id", "request_id", "message_level", "id"];

/// What `resource_filters` says of each.
pub(super) const ALL: [(&str, &[&str]); 5] = [
    ("volume", &VOLUMES),
    ("snapshot", &SNAPSHOTS),
    ("attachment", &ATTACHMENTS),
    ("backup", &BACKUPS),
    ("message", &MESSAGES),
];

enum Test {
    Equal(String),
    Like(String),
    Time(Vec<(Comparison, Timestamp)>),
}

#[derive(Clone, Copy)]
enum Comparison {
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    Equal,
    NotEqual,
}

/// All that a query asks.
pub(super) struct Tests {
    columns: Vec<(String, Test)>,
    properties: BTreeMap<String, String>,
    image_properties: BTreeMap<String, String>,
}

impl Tests {
    /// Reads a query; from microversion 3.31 on a word that is no filter is refused.
    pub(super) fn of(filters: &Filters, version: Microversion, known: &[&str]) -> Result<Self, Fault> {
        let mut tests =
            Self { columns: Vec::new(), properties: BTreeMap::new(), image_properties: BTreeMap::new() };
        for (key, value) in filters.pairs() {
            let like = key.strip_suffix('~').filter(|_| version.at_least(3, 31));
            match key.as_str() {
                "metadata" => tests.properties.extend(dictionary(value)?),
                "glance_metadata" if version.at_least(3, 4) => {
                    tests.image_properties.extend(dictionary(value)?)
                }
                "created_at" | "updated_at" if version.at_least(3, 60) => {
                    tests.columns.push((key.clone(), Test::Time(times(key, value)?)));
                }
                word if OTHER_WORDS.contains(&word) => {}
                word if known.contains(&word) => {
                    tests.columns.push((key.clone(), Test::Equal(normal(word, value, version)?)));
                }
                _ => match like.filter(|word| known.contains(word)) {
                    Some(word) => tests.columns.push((word.to_owned(), Test::Like(value.clone()))),
                    None if version.at_least(3, 31) => {
                        return Err(Fault::malformed(format!(
                            "Invalid filters {key} are found in query options."
                        )));
                    }
                    None => {}
                },
            }
        }
        Ok(tests)
    }

    /// Whether a row passes: `column` is what a filter's word stands for; `properties` the owner's and the image's.
    pub(super) fn hold(
        &self,
        column: impl Fn(&str) -> Option<String>,
        properties: &[&BTreeMap<String, String>],
    ) -> bool {
        let within = |wanted: &BTreeMap<String, String>, index: usize| {
            wanted
                .iter()
                .all(|(key, value)| properties.get(index).and_then(|has| has.get(key)) == Some(value))
        };
        let columns = self.columns.iter().all(|(key, test)| {
            let value = column(key).unwrap_or_default();
            match test {
                Test::Equal(wanted) => value == *wanted,
                Test::Like(part) => value.contains(part.as_str()),
                Test::Time(bounds) => value
                    .parse::<Timestamp>()
                    .is_ok_and(|time| bounds.iter().all(|(how, than)| how.holds(time, *than))),
            }
        });
        columns && within(&self.properties, 0) && within(&self.image_properties, 1)
    }
}

impl Comparison {
    fn holds(self, time: Timestamp, than: Timestamp) -> bool {
        // The wire knows seconds.
        let (time, than) = (time.as_second(), than.as_second());
        match self {
            Self::Greater => time > than,
            Self::GreaterEqual => time >= than,
            Self::Less => time < than,
            Self::LessEqual => time <= than,
            Self::Equal => time == than,
            Self::NotEqual => time != than,
        }
    }
}

/// A column's text as it has to be. Yes and no are oslo's from microversion 3.2 on (`VOLUME_LIST_BOOTABLE`); before, all is yes but nothing
/// and three ways to write `false`.
fn normal(key: &str, value: &str, version: Microversion) -> Result<String, Fault> {
    if !matches!(key, "bootable" | "multiattach") {
        return Ok(value.to_owned());
    }
    let flag = if version.at_least(3, 2) {
        boolean::from_text(value)
            .ok_or_else(|| Fault::malformed(format!("Invalid input received: '{key} = {value}'")))?
    } else {
        !matches!(value, "" | "False" | "false" | "FALSE")
    };
    Ok(flag.to_string())
}

fn times(key: &str, text: &str) -> Result<Vec<(Comparison, Timestamp)>, Fault> {
    let wrong = || Fault::malformed(format!("Invalid value for time comparison of {key}: {text}"));
    let one = |part: &str| {
        let (how, time) = match part.split_once(':') {
            Some(("gt", time)) => (Comparison::Greater, time),
            Some(("gte", time)) => (Comparison::GreaterEqual, time),
            Some(("lt", time)) => (Comparison::Less, time),
            Some(("lte", time)) => (Comparison::LessEqual, time),
            Some(("eq", time)) => (Comparison::Equal, time),
            Some(("neq", time)) => (Comparison::NotEqual, time),
            _ => (Comparison::Equal, part),
        };
        let time = time.trim();
        let time = time.parse().or_else(|_| format!("{time}Z").parse()).map_err(|_| wrong())?;
        Ok((how, time))
    };
    text.split(',').map(one).collect()
}

/// `{'a': 'b'}` as Python writes it, or JSON.
fn dictionary(text: &str) -> Result<BTreeMap<String, String>, Fault> {
    let json = text.replace("u'", "'").replace('\'', "\"");
    serde_json::from_str(&json)
        .map_err(|_| Fault::malformed(format!("Invalid filter metadata: {text} is no dictionary of texts.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests(query: &str, minor: u16) -> Result<Tests, Fault> {
        Tests::of(
            &Filters::of(&format!("/x?{query}").parse().unwrap())?,
            Microversion::new(3, minor),
            &VOLUMES,
        )
    }

    #[test]
    fn unknown_words_are_refused_from_3_31_on() {
        assert!(tests("nonsense=1", 30).is_ok() && tests("nonsense=1", 31).is_err());
        assert!(tests("name~=a&limit=1", 31).is_ok());
        assert!(tests("created_at=gt:nonsense", 60).is_err());
        assert!(tests("metadata=nonsense", 0).is_err());
    }

    #[test]
    fn rows_pass_by_equality_likeness_time_and_properties() {
        let column = |key: &str| match key {
            "name" => Some("vol-1".to_owned()),
            "bootable" => Some("true".to_owned()),
            "created_at" => Some("2026-01-02T03:04:05.5Z".to_owned()),
            _ => None,
        };
        let properties = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let passes = |query: &str| tests(query, 71).unwrap().hold(column, &[&properties]);
        assert!(passes("name=vol-1") && !passes("name=vol") && passes("name~=vol"));
        assert!(passes("bootable=True") && passes("bootable=Y") && !passes("bootable=0"));
        for neither in ["", "maybe", "2"] {
            let query = format!("bootable={neither}");
            assert!(tests(&query, 2).is_err(), "{neither}");
            let passed = tests(&query, 1).unwrap().hold(column, &[&properties]);
            assert_eq!(passed, !neither.is_empty(), "{neither}");
        }
        assert!(tests("bootable=0", 1).unwrap().hold(column, &[&properties]));
        assert!(!tests("bootable=FALSE", 1).unwrap().hold(column, &[&properties]));
        assert!(passes("metadata=%7B%27a%27:%20%27b%27%7D") && !passes("metadata=%7B%27a%27:%20%27c%27%7D"));
        assert!(passes("created_at=gte:2026-01-02T03:04:05,lt:2026-01-03T00:00:00Z"));
        assert!(!passes("created_at=lt:2026-01-02T03:04:05"));
    }
}
