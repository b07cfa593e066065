//! The tree that layers come to: each is applied to what those below it left (OCI image specification 1.1, "Applying
//! Changesets").
//!
//! A link is followed only here, where its target is looked up from the tree's own root: there is nothing outside to
//! reach. A whiteout takes away what lower layers have, and never what its own layer brings.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use super::layer::{Entry, EntryKind, shown};
use super::{ContainerError, run};
use crate::format::ext4::{self, Inode, Kind, Metadata, NAME_BYTES_MAX, TARGET_BYTES_MAX};

/// Entries of all layers, and directories that none of them names: the largest images have half as many.
const ENTRIES_MAX: u64 = 500_000;
/// Bytes of names, targets and the like in memory: a name of an entry has some twenty.
const TEXT_BYTES_MAX: u64 = 128 << 20;
/// The longest name of an entry in bytes (Linux, `PATH_MAX`).
const PATH_BYTES_MAX: usize = 4096;
/// Words of a path, and of what links on the way add to it.
const WORDS_MAX: usize = 256;
/// Links on the way (Linux, `MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Marks of aufs, which mean nothing here.
const AUFS: &[u8] = b".wh..wh.";
const ROOT: usize = 0;

/// Why an entry is refused.
enum Refusal {
    Entry(&'static str),
    TooMany(&'static str, u64),
}

impl From<&'static str> for Refusal {
    fn from(why: &'static str) -> Self {
        Self::Entry(why)
    }
}

/// Where a file's content comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    Layer { layer: usize, ordinal: u64 },
    Own(usize),
}

#[derive(Debug, Clone, Copy)]
struct Child {
    node: usize,
    /// The last layer that had it.
    layer: usize,
}

#[derive(Debug)]
enum Content {
    Directory(BTreeMap<Box<[u8]>, Child>),
    File(u64, Source),
    Symlink(Box<[u8]>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
    /// No name leads here any more.
    Gone,
}

#[derive(Debug)]
struct Node {
    content: Content,
    metadata: Metadata,
    capability: Box<[u8]>,
    links: u64,
}

/// A tree that layers are applied to.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    entries: u64,
    text_bytes: u64,
}

impl Tree {
    /// An empty root.
    pub(super) fn new() -> Self {
        let root = Node {
            content: Content::Directory(BTreeMap::new()),
            metadata: Metadata { mode: 0o755, ..Metadata::default() },
            capability: Box::default(),
            links: 1,
        };
        Self { nodes: vec![root], entries: 0, text_bytes: 0 }
    }

    /// Applies an entry of a layer; layers come in order.
    pub(super) fn apply(&mut self, layer: usize, entry: Entry) -> Result<(), ContainerError> {
        let name = shown(&entry.name);
        self.place(layer, entry).map_err(|refusal| match refusal {
            Refusal::Entry(why) => ContainerError::Entry { layer: layer + 1, name, why },
            Refusal::TooMany(what, most) => ContainerError::TooMany { what, most },
        })
    }

    fn place(&mut self, layer: usize, entry: Entry) -> Result<(), Refusal> {
        self.count(entry.name.len())?;
        let words = words(&entry.name)?;
        let Some((&last, parents)) = words.split_last() else {
            if entry.kind != EntryKind::Directory {
                return Err("it stands for the root, and is no directory".into());
            }
            self.nodes[ROOT].metadata = entry.metadata;
            return Ok(());
        };
        if last.starts_with(WHITEOUT) {
            return self.whiteout(layer, parents, last);
        }
        let parent = self.directory(parents, Some(layer))?.ok_or("a part of its path is no directory")?;
        let there = self.child(parent, last);
        let content = match entry.kind {
            EntryKind::Directory => {
                if let Some(there) = there
                    && matches!(self.nodes[there.node].content, Content::Directory(_))
                {
                    self.nodes[there.node].metadata = entry.metadata;
                    self.put(parent, last, Child { layer, ..there });
                    return Ok(());
                }
                Content::Directory(BTreeMap::new())
            }
            EntryKind::HardLink(target) => return self.link(layer, (parent, last), &target),
            EntryKind::File(bytes) => Content::File(bytes, Source::Layer { layer, ordinal: entry.ordinal }),
            EntryKind::Symlink(target) => {
                if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
                    return Err("the target of the link is none".into());
                }
                self.count_text(target.len())?;
                Content::Symlink(target.into())
            }
            EntryKind::Character(major, minor) => Content::Character(major, minor),
            EntryKind::Block(major, minor) => Content::Block(major, minor),
            EntryKind::Fifo => Content::Fifo,
        };
        let node = self.add(content, entry.metadata, entry.capability);
        self.replace(parent, last, Child { node, layer });
        Ok(())
    }

    /// A further name for a file that is there.
    fn link(&mut self, layer: usize, (parent, last): (usize, &[u8]), target: &[u8]) -> Result<(), Refusal> {
        const ABSENT: &str = "it is another name for a file that is not there";
        let words = words(target)?;
        let (&target, parents) = words.split_last().ok_or(ABSENT)?;
        let directory = self.directory(parents, None)?.ok_or(ABSENT)?;
        let node = self.child(directory, target).ok_or(ABSENT)?.node;
        if matches!(self.nodes[node].content, Content::Directory(_)) {
            return Err("it is another name for a directory".into());
        }
        self.nodes[node].links += 1;
        self.replace(parent, last, Child { node, layer });
        Ok(())
    }

    fn whiteout(&mut self, layer: usize, parents: &[&[u8]], mark: &[u8]) -> Result<(), Refusal> {
        let Some(parent) = self.directory(parents, None)? else { return Ok(()) };
        if mark == OPAQUE {
            self.prune(parent, layer);
            return Ok(());
        }
        if mark.starts_with(AUFS) {
            return Ok(());
        }
        let name = &mark[WHITEOUT.len()..];
        if matches!(name, b"" | b"." | b"..") {
            return Err("it takes away what has no name".into());
        }
        let Some(there) = self.child(parent, name) else { return Ok(()) };
        if there.layer < layer {
            self.remove(parent, name);
        } else if matches!(self.nodes[there.node].content, Content::Directory(_)) {
            self.prune(there.node, layer);
        }
        Ok(())
    }

    /// The directory at the end of a path; where `create` names a layer, what is missing of it is made for that layer.
    fn directory(&mut self, path: &[&[u8]], create: Option<usize>) -> Result<Option<usize>, Refusal> {
        let mut trail = vec![ROOT];
        let mut pending: VecDeque<Box<[u8]>> = path.iter().map(|word| Box::from(*word)).collect();
        let mut links = 0;
        while let Some(word) = pending.pop_front() {
            let at = *trail.last().expect("invariant: the root stays");
            if *word == *b".." {
                // The root is above itself.
                trail.truncate((trail.len() - 1).max(1));
                continue;
            }
            let Some(child) = self.child(at, &word) else {
                let Some(layer) = create else { return Ok(None) };
                self.count(word.len())?;
                let metadata = Metadata { mode: 0o755, ..Metadata::default() };
                let node = self.add(Content::Directory(BTreeMap::new()), metadata, Box::default());
                self.put(at, &word, Child { node, layer });
                trail.push(node);
                continue;
            };
            match &self.nodes[child.node].content {
                Content::Directory(_) => {
                    trail.push(child.node);
                    if let Some(layer) = create {
                        self.put(at, &word, Child { layer, ..child });
                    }
                }
                Content::Symlink(target) => {
                    links += 1;
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    let words = target.split(|&byte| byte == b'/');
                    let words: Vec<_> = words.filter(|word| !matches!(*word, b"" | b".")).collect();
                    if links > LINKS_MAX || pending.len() + words.len() > WORDS_MAX {
                        return Err("links on its path lead too far".into());
                    }
                    if words.iter().any(|word| word.len() > NAME_BYTES_MAX) {
                        return Err("a link on its path has a name of more than 255 bytes".into());
                    }
                    words.into_iter().rev().for_each(|word| pending.push_front(word.into()));
                }
                _ => return Ok(None),
            }
        }
        Ok(trail.last().copied())
    }

    fn children(&mut self, directory: usize) -> &mut BTreeMap<Box<[u8]>, Child> {
        match &mut self.nodes[directory].content {
            Content::Directory(children) => children,
            _ => unreachable!("invariant: only directories are asked for children"),
        }
    }

    fn child(&self, directory: usize, name: &[u8]) -> Option<Child> {
        match &self.nodes[directory].content {
            Content::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn put(&mut self, directory: usize, name: &[u8], child: Child) -> Option<Child> {
        self.children(directory).insert(name.into(), child)
    }

    fn replace(&mut self, directory: usize, name: &[u8], child: Child) {
        if let Some(old) = self.put(directory, name, child) {
            self.let_go(old.node);
        }
    }

    fn remove(&mut self, directory: usize, name: &[u8]) {
        if let Some(old) = self.children(directory).remove(name) {
            self.let_go(old.node);
        }
    }

    /// Takes away what lower layers have in a directory.
    fn prune(&mut self, directory: usize, layer: usize) {
        let mut pending = vec![directory];
        while let Some(directory) = pending.pop() {
            let children = self.children(directory);
            let (kept, old): (BTreeMap<_, _>, _) =
                std::mem::take(children).into_iter().partition(|(_, child)| child.layer >= layer);
            *children = kept;
            let kept: Vec<usize> = children.values().map(|child| child.node).collect();
            let directories =
                kept.into_iter().filter(|node| matches!(self.nodes[*node].content, Content::Directory(_)));
            pending.extend(directories);
            old.into_values().for_each(|child| self.let_go(child.node));
        }
    }

    /// A name fewer leads to it; without any it goes, with all below it.
    fn let_go(&mut self, node: usize) {
        let mut pending = vec![node];
        while let Some(node) = pending.pop() {
            let node = &mut self.nodes[node];
            node.links -= 1;
            if node.links == 0
                && let Content::Directory(children) = std::mem::replace(&mut node.content, Content::Gone)
            {
                pending.extend(children.into_values().map(|child| child.node));
            }
        }
    }

    fn add(&mut self, content: Content, metadata: Metadata, capability: Box<[u8]>) -> usize {
        self.nodes.push(Node { content, metadata, capability, links: 1 });
        self.nodes.len() - 1
    }

    fn count(&mut self, text_bytes: usize) -> Result<(), Refusal> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(Refusal::TooMany("entries", ENTRIES_MAX));
        }
        self.count_text(text_bytes)
    }

    fn count_text(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.text_bytes += bytes as u64;
        if self.text_bytes > TEXT_BYTES_MAX {
            return Err(Refusal::TooMany("bytes of names", TEXT_BYTES_MAX));
        }
        Ok(())
    }

    /// Adds what a guest's first program needs: itself, what it reads, and where it mounts. What an image has under these
    /// names stays, but for the first program's own directory.
    pub(super) fn add_own(&mut self, files: &[Vec<u8>; 2]) {
        let directory = |mode| Metadata { mode, ..Metadata::default() };
        let needed: [(&str, u16); 7] = [
            ("dev", 0o755),
            ("etc", 0o755),
            ("lost+found", 0o700),
            ("proc", 0o555),
            ("run", 0o755),
            ("sys", 0o555),
            ("tmp", 0o1777),
        ];
        for (name, mode) in needed {
            if self.child(ROOT, name.as_bytes()).is_none() {
                let node = self.add(Content::Directory(BTreeMap::new()), directory(mode), Box::default());
                self.put(ROOT, name.as_bytes(), Child { node, layer: 0 });
            }
        }
        let own = self.add(Content::Directory(BTreeMap::new()), directory(0o755), Box::default());
        self.replace(ROOT, run::DIRECTORY.as_bytes(), Child { node: own, layer: 0 });
        for (index, ((name, mode), bytes)) in run::NAMES.into_iter().zip(files).enumerate() {
            let content = Content::File(bytes.len() as u64, Source::Own(index));
            let node = self.add(content, directory(mode), Box::default());
            self.put(own, name.as_bytes(), Child { node, layer: 0 });
        }
    }

    /// The tree as a file system takes it, and where the files' content is.
    pub(super) fn into_inodes(mut self) -> (Vec<Inode>, Contents) {
        let mut index_of: Vec<Option<usize>> = vec![None; self.nodes.len()];
        let mut order = vec![ROOT];
        index_of[ROOT] = Some(ROOT);
        let mut at = 0;
        while let Some(&node) = order.get(at) {
            if let Content::Directory(children) = &self.nodes[node].content {
                for child in children.values() {
                    if index_of[child.node].is_none() {
                        index_of[child.node] = Some(order.len());
                        order.push(child.node);
                    }
                }
            }
            at += 1;
        }
        let mut contents = Contents { layers: BTreeMap::new(), own: [0; 2] };
        let mut inodes = Vec::with_capacity(order.len());
        for (index, node) in order.into_iter().enumerate() {
            let node = &mut self.nodes[node];
            let kind = match std::mem::replace(&mut node.content, Content::Gone) {
                Content::Directory(children) => {
                    let index_of = |child: Child| index_of[child.node].expect("invariant: all were found");
                    Kind::Directory(
                        children.into_iter().map(|(name, child)| (name, index_of(child))).collect(),
                    )
                }
                Content::File(bytes, source) => {
                    match source {
                        Source::Layer { layer, ordinal } => {
                            contents.layers.entry(layer).or_default().push((ordinal, index));
                        }
                        Source::Own(file) => contents.own[file] = index,
                    }
                    Kind::File(bytes)
                }
                Content::Symlink(target) => Kind::Symlink(target),
                Content::Character(major, minor) => Kind::Character(major, minor),
                Content::Block(major, minor) => Kind::Block(major, minor),
                Content::Fifo => Kind::Fifo,
                Content::Gone => unreachable!("invariant: a name leads to it"),
            };
            let capability = std::mem::take(&mut node.capability);
            inodes.push(Inode { kind, metadata: node.metadata, capability });
        }
        contents.layers.values_mut().for_each(|files| files.sort_unstable());
        (inodes, contents)
    }
}

/// Where the content of a tree's files is.
#[derive(Debug)]
pub(super) struct Contents {
    /// By layer: which of its entries belongs to which inode, in order.
    layers: BTreeMap<usize, Vec<(u64, usize)>>,
    own: [usize; 2],
}

impl Contents {
    /// The entries of a layer that are needed.
    pub(super) fn of_layer(&self, layer: usize) -> &[(u64, usize)] {
        self.layers.get(&layer).map_or(&[], Vec::as_slice)
    }

    /// The inodes of the files that were added.
    pub(super) fn own(&self) -> [usize; 2] {
        self.own
    }
}

/// The words of a path from the root. One that would lead above it is refused.
fn words(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.len() > PATH_BYTES_MAX {
        return Err("its path is longer than 4096 bytes");
    }
    if path.contains(&0) {
        return Err("its path has a zero byte");
    }
    let words: Vec<&[u8]> =
        path.split(|&byte| byte == b'/').filter(|word| !matches!(*word, b"" | b".")).collect();
    if words.contains(&&b".."[..]) {
        return Err("its path has `..`");
    }
    if words.iter().any(|word| word.len() > ext4::NAME_BYTES_MAX) {
        return Err("its path has a name of more than 255 bytes");
    }
    if words.len() > WORDS_MAX {
        return Err("its path has more than 256 names");
    }
    Ok(words)
}
