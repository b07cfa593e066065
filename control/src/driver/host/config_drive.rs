//! The configuration drive: what the metadata service says, on a disk, for guests that look there first or have no
//! network (Nova: "Store metadata on a configuration drive"; cloud-init: data source ConfigDrive).
//!
//! ```text
//! openstack/{2018-08-27,latest}/{meta_data,network_data,vendor_data,vendor_data2}.json, user_data
//! ec2/{2009-04-04,latest}/meta-data.json, user-data
//! ```

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Map, Value};
use storage::file_tree::{self, FileTreeError};
use vmm::document::Document;

/// What cloud-init and others know the drive by.
const LABEL: &str = "config-2";

/// Why there is no configuration drive.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Its file.
    #[error("make its file")]
    File(#[source] io::Error),
    /// What is on it.
    #[error(transparent)]
    Files(#[from] FileTreeError),
}

/// Makes the drive anew in `disks` and opens it for reading: a boot sees what is true at that boot.
pub(super) fn make(disks: &Path, metadata: &BTreeMap<String, Document>) -> Result<File, Error> {
    let path = disks.join("config");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::File(error)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(Error::File)?;
    file_tree::write(&file, LABEL, &files(metadata))?;
    File::open(&path).map_err(Error::File)
}

/// The files, from the documents of the metadata service.
fn files(metadata: &BTreeMap<String, Document>) -> BTreeMap<String, Document> {
    let mut files = BTreeMap::new();
    let mut ec2: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for (path, document) in metadata {
        // A document whose path leads to others lists these.
        let below = format!("{path}/");
        if metadata.range(below.clone()..).next().is_some_and(|(next, _)| next.starts_with(&below)) {
            continue;
        }
        let path = path.trim_start_matches('/');
        match path.split_once('/') {
            Some(("openstack", _)) => {
                files.insert(path.to_owned(), document.clone());
            }
            Some((version, "user-data")) => {
                files.insert(format!("ec2/{version}/user-data"), document.clone());
            }
            Some((version, rest)) => {
                if let Some(item) = rest.strip_prefix("meta-data/") {
                    let text = String::from_utf8_lossy(document.as_bytes());
                    insert(ec2.entry(version).or_default(), item, &text);
                }
            }
            None => {}
        }
    }
    for (version, items) in ec2 {
        files.insert(format!("ec2/{version}/meta-data.json"), Value::Object(items).to_string().into());
    }
    files
}

/// Puts `text` at `path` in a tree of objects.
fn insert(items: &mut Map<String, Value>, path: &str, text: &str) {
    match path.split_once('/') {
        None => {
            items.insert(path.to_owned(), text.into());
        }
        Some((name, rest)) => {
            let inner = items.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> BTreeMap<String, Document> {
        let mut server = crate::service::server::test::server();
        server.key = Some(("k".to_owned(), "ssh-ed25519 AAAA".to_owned()));
        server.user_data = Some(vec![0x1f, 0x8b, 0, 255].into());
        crate::reconcile::metadata::documents(&server, "nova", &[])
    }

    #[test]
    fn drive_holds_the_documents_of_both_trees() {
        let files = files(&metadata());
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        for version in ["2018-08-27", "latest"] {
            for name in ["meta_data.json", "network_data.json", "vendor_data.json", "user_data"] {
                assert!(names.contains(&format!("openstack/{version}/{name}").as_str()), "{names:?}");
            }
        }
        assert_eq!(files["openstack/latest/user_data"].as_bytes(), [0x1f, 0x8b, 0, 255]);
        assert_eq!(files["ec2/latest/user-data"].as_bytes(), [0x1f, 0x8b, 0, 255]);
        let ec2: Value = serde_json::from_slice(files["ec2/latest/meta-data.json"].as_bytes()).unwrap();
        assert_eq!(ec2["public-keys"]["0"]["openssh-key"], "ssh-ed25519 AAAA");
        assert_eq!(ec2["placement"]["availability-zone"], "nova");
        assert!(!names.iter().any(|name| *name == "openstack" || name.ends_with("meta-data")), "{names:?}");
    }

    #[test]
    fn drive_is_made_anew_and_is_for_reading() {
        let directory = tempfile::tempdir().unwrap();
        let first = make(directory.path(), &metadata()).unwrap();
        let second = make(directory.path(), &metadata()).unwrap();
        use std::os::unix::fs::{FileExt, MetadataExt};
        assert_ne!(first.metadata().unwrap().ino(), second.metadata().unwrap().ino());
        assert!(second.write_at(b"x", 0).is_err());
        assert_eq!(second.metadata().unwrap().mode() & 0o777, 0o600);
    }
}
