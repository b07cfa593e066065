//! Container images as root disks: an archive as `docker save` writes it, or one in the OCI image layout, becomes an ext4
//! file system with a first program that runs what the image says.
//!
//! An archive is read twice. The first time its layers are applied to a tree in memory, which knows each file's size and
//! which of the layers has its content; so the file system can be planned. The second time the content is streamed to its
//! blocks. Nothing is unpacked on the host: names, links and devices of an archive are data, and the only files here are
//! the two that the caller has opened.
//!
//! Must never know: clouds, where images come from, what kernel will run.

mod archive;
mod layer;
mod manifest;
mod run;
mod tree;

use std::fs::File;
use std::io;

use self::archive::Archive;
use self::layer::Next;
use self::manifest::Image;
use self::tree::Tree;
use crate::format::ext4::{Ext4Error, FileSystem, Plan};

pub use self::run::{CONFIGURATION_PATH, INIT_PATH};

/// How many bytes may come out of each byte of an archive. Deflate makes a thousand of one at most, and honest layers
/// three or four.
const EXPANSION_MAX: u64 = 64;
/// What an archive of any size may come to.
const EXPANSION_FREE_BYTES: u64 = 256 << 20;

/// Why an archive is no image that a server can be made of.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The file cannot be read.
    #[error("read the archive")]
    Read(#[source] io::Error),
    /// It is packed as a whole.
    #[error("the archive is compressed as a whole: unpack it first")]
    Compressed,
    /// It is neither kind of archive.
    #[error("it is neither an OCI image layout nor what `docker save` writes: it has no {0}")]
    NoImage(&'static str),
    /// The archive itself is broken.
    #[error("the archive is no whole tar file")]
    Archive(#[source] io::Error),
    /// It holds more of something than it may.
    #[error("the image has more than {most} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many it may have.
        most: u64,
    },
    /// A part that another one names is not there.
    #[error("the archive has no {0}")]
    Missing(String),
    /// A part is not what its digest or its length says.
    #[error("{part} is not what its {mark} says")]
    Damaged {
        /// Which part.
        part: String,
        /// `digest` or `length`.
        mark: &'static str,
    },
    /// A document does not say what it has to.
    #[error("{part} is no {what}")]
    Document {
        /// Which part.
        part: String,
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        #[source]
        source: serde_json::Error,
    },
    /// A part says something that cannot be worked with.
    #[error("{part}: {why}")]
    Unusable {
        /// Which part.
        part: String,
        /// Why.
        why: &'static str,
    },
    /// No image fits the machine.
    #[error("the archive has no image for linux/amd64, only for {0}")]
    Platform(String),
    /// A layer cannot be read to its end.
    #[error("layer {layer} is no whole tar file")]
    Layer {
        /// Which one, from 1.
        layer: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry of a layer is refused.
    #[error("layer {layer} has an entry {name:?}, which is refused: {why}")]
    Entry {
        /// Which layer, from 1.
        layer: usize,
        /// The entry's name.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// More comes out than can be meant.
    #[error("the image's layers hold more data than its size allows for")]
    Expands,
    /// The file system cannot be made.
    #[error(transparent)]
    FileSystem(#[from] Ext4Error),
}

/// What an image runs, as its configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Run {
    /// The program and its arguments: the entrypoint, then the command.
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Where it begins; `/` if empty.
    pub directory: String,
    /// `user`, `user:group`, by name or number; root if empty.
    pub user: String,
    /// The signal that asks it to end; SIGTERM if empty.
    pub stop_signal: String,
}

/// Looks at an archive as far as that is cheap: that it is one, that it has an image for this machine which says what to
/// run, and that all layers are there. Their content is checked when they are read.
///
/// # Errors
/// [`ContainerError`].
pub fn check(archive: &File) -> Result<Run, ContainerError> {
    Ok(manifest::find(&Archive::index(archive)?)?.run)
}

/// Makes `raw`, an empty file, a root disk of the archive's image, of at most `bytes_max` bytes, with `init` for its first
/// program at [`INIT_PATH`]; its size. What is zero takes no room.
///
/// # Errors
/// [`ContainerError`]; `raw` is then to be thrown away.
pub fn copy_to_raw(archive: &File, raw: &File, init: &[u8], bytes_max: u64) -> Result<u64, ContainerError> {
    let archive = Archive::index(archive)?;
    let image = manifest::find(&archive)?;
    let mut left =
        archive.size_bytes().saturating_mul(EXPANSION_MAX).max(EXPANSION_FREE_BYTES).min(bytes_max);
    let mut tree = Tree::new();
    for layer in image.layers.iter().enumerate() {
        layer::read_checked(&archive, layer, &mut left, &mut |entry, _| {
            tree.apply(layer.0, entry)?;
            Ok(Next::Entry)
        })?;
    }
    let own = [init.to_vec(), run::encode(&image.run)];
    tree.add_own(&own);
    let (inodes, contents) = tree.into_inodes();
    let plan = Plan::new(&inodes, uuid(&image), bytes_max)?;
    let size_bytes = plan.size_bytes();
    let made = FileSystem::create(raw, &inodes, plan)?;
    for layer in image.layers.iter().enumerate() {
        let mut wanted = contents.of_layer(layer.0).iter().peekable();
        if wanted.peek().is_none() {
            continue;
        }
        layer::read_again(&archive, layer, &mut |entry, content| {
            if let Some((_, inode)) = wanted.next_if(|(ordinal, _)| *ordinal == entry.ordinal) {
                made.write_content(*inode, content)?;
            }
            Ok(if wanted.peek().is_some() { Next::Entry } else { Next::Enough })
        })?;
    }
    for (inode, bytes) in contents.own().into_iter().zip(&own) {
        made.write_content(inode, &mut bytes.as_slice())?;
    }
    Ok(size_bytes)
}

/// A UUID that follows from the image (RFC 9562, version 8: made of what one likes).
fn uuid(image: &Image) -> [u8; 16] {
    let digest = ring::digest::digest(&ring::digest::SHA256, image.digest.as_bytes());
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.as_ref()[..16]);
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

#[cfg(test)]
mod tests;
