//! The directory where builds keep what they downloaded and made.
//!
//! ```text
//! DIR/packages/   packages as Debian's mirrors have them
//! DIR/kernels/    vmlinux-FLAVOR-STAMP and release-FLAVOR-STAMP
//! DIR/images/     root file systems and disks, NAME-STAMP
//! DIR/work-PID/   of a build that runs; removed at its end
//! ```

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither an option nor the environment says where it is.
    #[error("no cache directory: give one with --cache or WISP_CACHE_DIR, or set HOME")]
    NoDirectory,
    /// A file or directory.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: `what` was tried with `path`.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// The purpose of a directory in which something is built.
pub const BUILD: &str = "work";
/// The purpose of one that files come to before they are whole.
pub const FETCH: &str = "fetch";

/// The cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// The cache in `given`, or else where the environment says: `XDG_CACHE_HOME/wisp`, `HOME/.cache/wisp`.
    ///
    /// # Errors
    /// There is no such place, or it cannot be made.
    pub fn open(given: Option<&Path>) -> Result<Self, Error> {
        let from = |name: &str, below: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(|value| PathBuf::from(value).join(below))
        };
        let directory = given
            .map(Path::to_owned)
            .or_else(|| from("XDG_CACHE_HOME", "wisp"))
            .or_else(|| from("HOME", ".cache/wisp"))
            .ok_or(Error::NoDirectory)?;
        fs::create_dir_all(&directory).map_err(Error::io("make the directory", &directory))?;
        let directory = directory.canonicalize().map_err(Error::io("find", &directory))?;
        Ok(Self { directory })
    }

    /// The directory `name` in it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn directory(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.directory.join(name);
        fs::create_dir_all(&path).map_err(Error::io("make the directory", &path))?;
        Ok(path)
    }

    /// An empty directory for one build, or for another purpose of this process, removed when dropped. Those of processes
    /// that died are removed first.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn work(&self, purpose: &str) -> Result<Work, Error> {
        self.sweep();
        let path = self.directory.join(format!("{purpose}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).map_err(Error::io("make the directory", &path))?;
        Ok(Work { path })
    }

    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let purpose = name.to_str().and_then(|name| name.split_once('-'));
            let pid = purpose.filter(|(purpose, _)| [BUILD, FETCH].contains(purpose)).map(|(_, pid)| pid);
            let dead = pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
            if dead && let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "what a build left behind stays");
            }
        }
    }
}

/// The directory of one build.
#[derive(Debug)]
pub struct Work {
    path: PathBuf,
}

impl Work {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the build's directory stays");
        }
    }
}

/// A hash of a build's inputs, taken in order.
#[derive(Clone)]
pub struct Stamp(ring::digest::Context);

impl Stamp {
    /// Of a build whose recipe is `recipe`: a name with a number that changes with what the code does.
    #[must_use]
    pub fn new(recipe: &str) -> Self {
        let mut stamp = Self(ring::digest::Context::new(&ring::digest::SHA256));
        stamp.add(recipe.as_bytes());
        stamp
    }

    /// Takes in one input.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Takes in a file's content.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let mut inner = ring::digest::Context::new(&ring::digest::SHA256);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(Error::io("read", path))? {
                0 => break,
                count => inner.update(&buffer[..count]),
            }
        }
        self.add(inner.finish().as_ref());
        Ok(())
    }

    /// The first 16 bytes: enough to tell inputs apart, and a UUID's size.
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        let digest = self.0.clone().finish();
        std::array::from_fn(|index| digest.as_ref()[index])
    }

    /// The same as text for a file's name.
    #[must_use]
    pub fn text(&self) -> String {
        self.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A UUID that belongs to these inputs.
    #[must_use]
    pub fn uuid(&self) -> uuid::Uuid {
        uuid::Builder::from_random_bytes(self.bytes()).into_uuid()
    }
}

/// Copies a file with its holes: what is zero in `from` takes no room in `to`, which is as it was until it is there whole,
/// for whoever reads it meanwhile.
///
/// # Errors
/// Reading or writing.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<(), Error> {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let new = to.with_file_name(format!(".{name}.{}", std::process::id()));
    let moved = copy_sparse_into(from, &new)
        .and_then(|()| fs::rename(&new, to).map_err(Error::io("move into place", to)));
    if moved.is_err() {
        // The first failure is the one to tell of.
        let _ = fs::remove_file(&new);
    }
    moved
}

fn copy_sparse_into(from: &Path, to: &Path) -> Result<(), Error> {
    let target = File::create(to).map_err(Error::io("make", to))?;
    let size = copy_sparse_at(from, &target, to, 0)?;
    target.set_len(size).map_err(Error::io("resize", to))
}

/// The same into an open file that reads as zeros from `offset_bytes` on. The count of bytes copied.
///
/// # Errors
/// Reading or writing.
pub fn copy_sparse_at(from: &Path, target: &File, to: &Path, offset_bytes: u64) -> Result<u64, Error> {
    use std::os::unix::fs::FileExt;
    let mut source = File::open(from).map_err(Error::io("open", from))?;
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let count = source.read(&mut buffer).map_err(Error::io("read", from))?;
        let part = &buffer[..count];
        if count == 0 {
            return Ok(at);
        }
        if part.iter().any(|byte| *byte != 0) {
            target.write_all_at(part, offset_bytes + at).map_err(Error::io("write", to))?;
        }
        at += count as u64;
    }
}

/// Where two files differ first: the offset of a byte, or the shorter one's length.
///
/// # Errors
/// Reading.
pub fn first_difference(one: &Path, other: &Path) -> Result<Option<u64>, Error> {
    let open = |path| File::open(path).map(io::BufReader::new).map_err(Error::io("open", path));
    let (mut left, mut right) = (open(one)?, open(other)?);
    let mut at = 0;
    loop {
        let (a, b) = (
            left.fill_buf().map_err(Error::io("read", one))?,
            right.fill_buf().map_err(Error::io("read", other))?,
        );
        let count = a.len().min(b.len());
        if a[..count] != b[..count] {
            let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            return Ok(Some(at + same as u64));
        }
        if count == 0 {
            return Ok((a.len() != b.len()).then_some(at));
        }
        left.consume(count);
        right.consume(count);
        at += count as u64;
    }
}

/// Writes a file that is there whole or not at all.
///
/// # Errors
/// Writing.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let new = path.with_extension("new");
    let mut file = File::create(&new).map_err(Error::io("make", &new))?;
    file.write_all(bytes).map_err(Error::io("write", &new))?;
    fs::rename(&new, path).map_err(Error::io("move into place", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_tells_inputs_apart_by_content_and_by_borders() {
        let of = |inputs: &[&[u8]]| {
            let mut stamp = Stamp::new("test 1");
            inputs.iter().for_each(|input| stamp.add(input));
            stamp.text()
        };
        assert_eq!(of(&[b"a", b"b"]), of(&[b"a", b"b"]));
        assert_ne!(of(&[b"a", b"b"]), of(&[b"ab"]));
        assert_ne!(of(&[b"a"]), Stamp::new("test 2").text());
        assert_eq!(of(&[]).len(), 32);
    }

    #[test]
    fn work_directory_goes_with_its_build_and_with_a_dead_one() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(directory.path())).unwrap();
        // The largest process id there is lies below this one.
        let dead = directory.path().join("work-99999999");
        fs::create_dir(&dead).unwrap();
        let work = cache.work(BUILD).unwrap();
        let path = work.path().to_owned();
        assert!(path.is_dir() && !dead.exists());
        drop(work);
        assert!(!path.exists());
    }

    #[test]
    fn first_difference_is_a_byte_or_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let mut bytes = vec![5; 100_000];
        let (one, same, short) = (file("one", &bytes), file("same", &bytes), file("short", &bytes[..70_000]));
        bytes[90_000] = 6;
        let other = file("other", &bytes);
        assert_eq!(first_difference(&one, &same).unwrap(), None);
        assert_eq!(first_difference(&one, &other).unwrap(), Some(90_000));
        assert_eq!(first_difference(&one, &short).unwrap(), Some(70_000));
        assert_eq!(first_difference(&short, &one).unwrap(), Some(70_000));
        assert!(first_difference(&one, &directory.path().join("none")).is_err());
    }

    #[test]
    fn sparse_copy_keeps_content_and_size() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let mut bytes = vec![0; 300_000];
        bytes[70_000] = 7;
        fs::write(&from, &bytes).unwrap();
        fs::write(&to, "what was there before").unwrap();
        let reading = File::open(&to).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert_eq!(std::io::read_to_string(reading).unwrap(), "what was there before");
        assert!(copy_sparse(&from.join("none"), &to).is_err());
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 2, "nothing else is left");
        assert_eq!(fs::read(&to).unwrap(), bytes);
    }
}
