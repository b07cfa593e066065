//! The metadata tree: paths with bodies, and listings of what lies below a path.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::http::{self, Parsed, Response};
use super::tcp::Application;
use crate::document::Document;

/// What lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node<'a> {
    /// A body, under its normalised path.
    Body(&'a str, &'a [u8]),
    /// A path that only leads to others.
    Directory,
}

/// Paths to bodies. Paths have a leading slash and none at their end. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct MetadataTree(Arc<BTreeMap<String, Document>>);

impl Application for MetadataTree {
    fn answer(&mut self, _connection: u32, received: &[u8]) -> Option<(Response, usize)> {
        match http::answer(received, self) {
            Parsed::Answer(response, taken) => Some((response, taken)),
            Parsed::Incomplete => None,
        }
    }

    fn body(&self, path: &str) -> &[u8] {
        self.0.get(path).map(Document::as_bytes).unwrap_or_default()
    }
}

impl MetadataTree {
    pub(super) fn new(bodies: BTreeMap<String, Document>) -> Self {
        Self(Arc::new(bodies.into_iter().map(|(path, body)| (normalise(&path), body)).collect()))
    }

    /// Finds `path`: empty components and a trailing slash do not matter, a query is ignored.
    pub(super) fn find(&self, path: &str) -> Option<Node<'_>> {
        let path = normalise(path);
        if let Some((path, body)) = self.0.get_key_value(&path) {
            return Some(Node::Body(path, body.as_bytes()));
        }
        self.below(&path).next().is_some().then_some(Node::Directory)
    }

    /// The names directly below `path`, one per line, sorted, without a line end after the last.
    ///
    /// As EC2's readers expect, a name with more below it ends in a slash; the root and everything below
    /// `/openstack` list plain names, since OpenStack's readers compare these with version names.
    pub(super) fn listing(&self, path: &str) -> String {
        let path = normalise(path);
        let plain = path.is_empty() || path == "/openstack" || path.starts_with("/openstack/");
        let mut names: BTreeMap<&str, bool> = BTreeMap::new();
        for rest in self.below(&path) {
            let (name, deeper) = rest.split_once('/').map_or((rest, false), |(name, _)| (name, true));
            *names.entry(name).or_default() |= deeper;
        }
        let line = |(name, deeper)| if deeper && !plain { format!("{name}/") } else { String::from(name) };
        names.into_iter().map(line).collect::<Vec<String>>().join("\n")
    }

    /// The rests of all paths below `path`, after its slash.
    fn below<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a str> {
        let prefix = format!("{path}/");
        self.0.range(prefix.clone()..).map_while(move |(path, _)| path.strip_prefix(&prefix))
    }
}

/// The path without its query, empty components and trailing slash; the root is empty.
fn normalise(path: &str) -> String {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    path.split('/').filter(|part| !part.is_empty()).flat_map(|part| ["/", part]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> MetadataTree {
        let paths = [
            ("/latest/meta-data/hostname", "web"),
            ("/latest/meta-data/public-keys", "0=mykey"),
            ("/latest/meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA"),
            ("/latest/user-data", "#!/bin/sh"),
            ("/openstack/2018-08-27/meta_data.json", "{}"),
            ("/openstack/latest/meta_data.json", "{}"),
        ];
        MetadataTree::new(paths.iter().map(|(path, body)| ((*path).to_owned(), (*body).into())).collect())
    }

    #[test]
    fn body_is_found_whatever_the_slashes_and_the_query() {
        for path in ["/latest/user-data", "//latest//user-data/", "/latest/user-data?x=1"] {
            assert_eq!(tree().find(path), Some(Node::Body("/latest/user-data", b"#!/bin/sh")), "{path}");
        }
    }

    #[test]
    fn prefix_of_paths_is_a_directory_and_anything_else_is_not_there() {
        assert_eq!(tree().find("/"), Some(Node::Directory));
        assert_eq!(tree().find("/latest/meta-data/"), Some(Node::Directory));
        assert_eq!(tree().find("/latest/meta"), None);
        assert_eq!(tree().find("/latest/user-data/x"), None);
    }

    #[test]
    fn listings_mark_directories_except_where_versions_are_compared() {
        assert_eq!(tree().listing("/"), "latest\nopenstack");
        assert_eq!(tree().listing("/latest/"), "meta-data/\nuser-data");
        assert_eq!(tree().listing("/latest/meta-data"), "hostname\npublic-keys/");
        assert_eq!(tree().listing("/openstack"), "2018-08-27\nlatest");
    }

    #[test]
    fn path_that_has_a_body_and_more_below_answers_its_body() {
        assert_eq!(
            tree().find("/latest/meta-data/public-keys/"),
            Some(Node::Body("/latest/meta-data/public-keys", b"0=mykey"))
        );
    }
}
