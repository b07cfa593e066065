//! Disks that are copied as wholes: to another backend, or to a disk that is encrypted otherwise.

use storage::backend::{Backend, BackendError, Source, copy_sparse};
use storage::format::{Disk, DiskKey, EncryptedDisk};

use super::Error;

/// Moves a disk, which nobody has open, to another backend. Until its copy is whole, the first one counts; where that
/// is gone, the copy does.
pub(super) fn relocate(id: &str, from: &dyn Backend, to: &dyn Backend) -> Result<(), Error> {
    let Some(size_bytes) = from.size_bytes(id)? else {
        return match to.size_bytes(id)? {
            Some(_) => Ok(()),
            None => Err(BackendError::Missing { id: id.to_owned() }.into()),
        };
    };
    // What an earlier try left.
    to.delete(id)?;
    let copied = copy_to(id, size_bytes, from, to);
    if copied.is_err() {
        // The first failure is the one to tell of; the space is for others.
        let _ = to.delete(id);
    }
    copied?;
    Ok(from.delete(id)?)
}

fn copy_to(id: &str, size_bytes: u64, from: &dyn Backend, to: &dyn Backend) -> Result<(), Error> {
    let source = from.export(id, true)?.open(true).map_err(Error::Layers)?;
    to.create(id, size_bytes, Source::Nothing)?;
    Ok(to.rewrite(id, size_bytes, &|disk| copy_sparse(&*source, disk))?)
}

/// Makes a disk of one that nobody has open, with its content: how that lies in the two say their keys. It goes through the
/// clear in this process. Until all of it is there, there is no such disk, and where it is there already nothing is done.
pub(super) fn recode(
    (id, from): (&str, &dyn Backend),
    (new, to): (&str, &dyn Backend),
    [key, new_key]: [Result<Option<&DiskKey>, Error>; 2],
) -> Result<(), Error> {
    let (key, new_key) = (key?, new_key?);
    let missing = || BackendError::Missing { id: id.to_owned() };
    let size_bytes = from.size_bytes(id)?.ok_or_else(missing)?;
    let stored = from.export(id, true)?.open(true).map_err(Error::Layers)?;
    let clear: Box<dyn Disk> = match key {
        Some(key) => Box::new(EncryptedDisk::new(stored, key)),
        None => stored,
    };
    let fill = |disk: &dyn Disk| match new_key {
        Some(key) => copy_sparse(&*clear, &EncryptedDisk::new(disk, key)),
        None => copy_sparse(&*clear, disk),
    };
    Ok(to.create(new, size_bytes, Source::Content(&fill))?)
}

#[cfg(test)]
mod tests {
    use storage::file::FileBackend;

    use super::*;

    #[test]
    fn disk_moves_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| FileBackend::open(&directory.path().join(name)).unwrap();
        let (a, b) = (open("a"), open("b"));
        a.create("disk", 1 << 20, Source::Nothing).unwrap();
        a.export("disk", false).unwrap().open(false).unwrap().write_at(&[7; 512], 512).unwrap();
        let content = |backend: &FileBackend| {
            let mut bytes = [0; 1024];
            backend.export("disk", true).unwrap().open(true).unwrap().read_at(&mut bytes, 0).unwrap();
            bytes
        };
        let before = content(&a);
        // An earlier try came half way.
        b.create("disk", 1 << 20, Source::Nothing).unwrap();
        relocate("disk", &a, &b).unwrap();
        assert_eq!((content(&b), a.list().unwrap()), (before, Vec::<String>::new()));
        relocate("disk", &a, &b).unwrap();
        assert_eq!(content(&b), before, "again");
        let gone = relocate("other", &a, &b);
        assert!(matches!(gone, Err(Error::Backend(BackendError::Missing { .. }))), "{gone:?}");
    }

    #[test]
    fn content_of_a_disk_lies_in_another_as_its_key_says() {
        let directory = tempfile::tempdir().unwrap();
        let backend = FileBackend::open(&directory.path().join("a")).unwrap();
        let key = DiskKey::random(512).unwrap();
        backend.create("disk", 1 << 20, Source::Nothing).unwrap();
        backend.export("disk", false).unwrap().open(false).unwrap().write_at(&[7; 512], 512).unwrap();
        let stored = |id: &str| backend.export(id, true).unwrap().open(true).unwrap();
        let content = |disk: &dyn Disk| {
            let mut bytes = [0; 1536];
            disk.read_at(&mut bytes, 0).unwrap();
            bytes
        };
        let before = content(&*stored("disk"));
        recode(("disk", &backend), ("secret", &backend), [Ok(None), Ok(Some(&key))]).unwrap();
        recode(("disk", &backend), ("secret", &backend), [Ok(None), Ok(Some(&key))]).unwrap();
        assert_ne!(content(&*stored("secret")), before);
        assert_eq!(content(&EncryptedDisk::new(stored("secret"), &key)), before);
        recode(("secret", &backend), ("clear", &backend), [Ok(Some(&key)), Ok(None)]).unwrap();
        assert_eq!(content(&*stored("clear")), before);
        let gone = recode(("other", &backend), ("copy", &backend), [Ok(None), Ok(None)]);
        assert!(matches!(gone, Err(Error::Backend(BackendError::Missing { .. }))), "{gone:?}");
        let unsafe_id = recode(("disk", &backend), ("../x", &backend), [Ok(None), Ok(None)]);
        assert!(unsafe_id.is_err());
    }
}
