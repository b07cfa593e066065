//! Backups in a directory.
//!
//! ```text
//! ROOT/ID/{data,index,parent}  a backup
//! ROOT/.ID.new                 one being made
//! ROOT/.ID.gone                one being deleted
//! ```

use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{BackupStore, Data, ID_BYTES_MAX, NewBackup, Parts, Result, failed};

/// See the module.
#[derive(Debug)]
pub struct DirectoryBackups {
    root: PathBuf,
}

impl DirectoryBackups {
    /// The backups in a directory that is there.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }
}

impl BackupStore for DirectoryBackups {
    fn begin(&self, id: &str) -> Result<Box<dyn NewBackup>> {
        let partial = self.root.join(format!(".{id}.new"));
        remove_tree(&partial)?;
        fs::create_dir_all(&partial).map_err(failed("make", &partial))?;
        let path = partial.join("data");
        let data = File::create(&path).map_err(failed("create", &path))?;
        Ok(Box::new(New {
            root: self.root.clone(),
            path: self.root.join(id),
            partial,
            data,
            finished: false,
        }))
    }

    fn open(&self, id: &str) -> Result<Option<Parts>> {
        let path = self.root.join(id);
        let index = path.join("index");
        let index = match File::open(&index) {
            Ok(file) => BufReader::new(file),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &index)(error)),
        };
        let data = path.join("data");
        let file = File::open(&data).map_err(failed("open", &data))?;
        let parent = path.join("parent");
        let parent = match File::open(&parent) {
            Ok(file) => {
                let mut id = String::new();
                file.take(ID_BYTES_MAX).read_to_string(&mut id).map_err(failed("read", &parent))?;
                Some(id)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed("open", &parent)(error)),
        };
        Ok(Some(Parts { index: Box::new(index), data: Box::new(DataFile { path: data, file }), parent }))
    }

    fn delete(&self, id: &str) -> Result<()> {
        let (path, gone) = (self.root.join(id), self.root.join(format!(".{id}.gone")));
        remove_tree(&gone)?;
        remove_tree(&self.root.join(format!(".{id}.new")))?;
        match fs::rename(&path, &gone) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(failed("remove", &path))?,
        }
        sync(&self.root)?;
        remove_tree(&gone)
    }
}

struct New {
    root: PathBuf,
    path: PathBuf,
    partial: PathBuf,
    data: File,
    finished: bool,
}

impl New {
    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.partial.join(name);
        let mut file = File::create(&path).map_err(failed("create", &path))?;
        file.write_all(content).map_err(failed("write", &path))?;
        file.sync_all().map_err(failed("sync", &path))
    }
}

impl NewBackup for New {
    fn append(&mut self, chunk: &[u8]) -> Result<()> {
        self.data.write_all(chunk).map_err(failed("write", self.partial.join("data")))
    }

    fn finish(mut self: Box<Self>, index: &[u8], parent: Option<&str>) -> Result<()> {
        self.data.sync_all().map_err(failed("sync", self.partial.join("data")))?;
        if let Some(parent) = parent {
            self.write("parent", parent.as_bytes())?;
        }
        self.write("index", index)?;
        sync(&self.partial)?;
        fs::rename(&self.partial, &self.path).map_err(failed("name", &self.path))?;
        self.finished = true;
        sync(&self.root)
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if !self.finished {
            // What came before is the failure to tell of; the next try clears what stays.
            let _ = remove_tree(&self.partial);
        }
    }
}

struct DataFile {
    path: PathBuf,
    file: File,
}

impl Data for DataFile {
    fn read(&mut self, chunk: &mut [u8], place: u64) -> Result<()> {
        self.file.read_exact_at(chunk, place).map_err(failed("read", &self.path))
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<()> {
    let opened = File::open(directory).and_then(|directory| directory.sync_all());
    opened.map_err(failed("sync", directory))
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    #[test]
    fn directory_conforms_and_is_empty_again() {
        let root = tempfile::tempdir().unwrap();
        conformance::conforms(&DirectoryBackups::new(root.path().into()));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn damage_is_told() {
        let root = tempfile::tempdir().unwrap();
        let store = DirectoryBackups::new(root.path().into());
        conformance::tells_damage(&store, &|part, at, bytes| {
            let path = root.path().join("one").join(part);
            File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
        });
    }
}
