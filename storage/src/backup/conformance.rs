//! What every store of backups must do.

use super::*;
use crate::format::RawFile;

const SIZE_BYTES: u64 = 20 * CHUNK_BYTES as u64 + 512;

fn disk() -> RawFile {
    RawFile::new(tempfile::tempfile().unwrap(), SIZE_BYTES)
}

fn content(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE_BYTES).unwrap()];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Whole and differing backups give back what was there, again and again, and are gone when they are deleted.
pub(super) fn conforms(store: &dyn BackupStore) {
    let from = disk();
    for chunk in [0, 1, 2, 17, 18, 19] {
        from.write_at(&[chunk as u8 + 1; 512], chunk * CHUNK_BYTES as u64).unwrap();
    }
    from.write_at(&[2; 512], SIZE_BYTES - 512).unwrap();
    let first = content(&from);
    assert_eq!(create(store, "one", &from, None).unwrap(), 6 * CHUNK_BYTES as u64 + 512);
    from.write_at(&[3; 512], CHUNK_BYTES as u64).unwrap();
    from.write_at(&[0; 512], SIZE_BYTES - 512).unwrap();
    let second = content(&from);
    assert_eq!(create(store, "two", &from, Some("one")).unwrap(), CHUNK_BYTES as u64);
    assert_eq!(create(store, "two", &from, Some("one")).unwrap(), CHUNK_BYTES as u64, "again");
    let to = disk();
    restore(store, "two", &to).unwrap();
    assert_eq!(content(&to), second);
    restore(store, "one", &to).unwrap();
    assert_eq!(content(&to), first);
    // One whose maker died is none, and is made anew.
    let mut new = store.begin("three").unwrap();
    new.append(&[9; CHUNK_BYTES]).unwrap();
    std::mem::forget(new);
    assert!(matches!(restore(store, "three", &to), Err(BackupError::Missing(_))));
    assert_eq!(create(store, "three", &disk(), None).unwrap(), 0);
    restore(store, "three", &to).unwrap();
    assert_eq!(content(&to), content(&disk()));
    let small = RawFile::new(tempfile::tempfile().unwrap(), 512);
    assert!(matches!(restore(store, "one", &small), Err(BackupError::TooSmall { .. })));
    assert!(matches!(create(store, "four", &from, Some("nobody")), Err(BackupError::Missing(_))));
    for id in ["two", "two", "three", "four"] {
        store.delete(id).unwrap();
    }
    restore(store, "one", &to).unwrap();
    store.delete("one").unwrap();
    assert!(matches!(restore(store, "one", &to), Err(BackupError::Missing(_))));
}

/// `damage` writes into a part of the backup `one`.
pub(super) fn tells_damage(store: &dyn BackupStore, damage: &dyn Fn(&str, u64, &[u8])) {
    let from = disk();
    from.write_at(&[1; 512], 0).unwrap();
    create(store, "one", &from, None).unwrap();
    damage("data", 100, &[9]);
    let damaged = restore(store, "one", &disk());
    assert!(matches!(damaged, Err(BackupError::Damaged { .. })), "{damaged:?}");
    damage("index", 0, b"nonsense");
    let damaged = restore(store, "one", &disk());
    assert!(matches!(damaged, Err(BackupError::Damaged { .. })), "{damaged:?}");
}
