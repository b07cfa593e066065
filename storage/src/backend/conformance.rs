//! What every backend has to do, as one test that each runs on a fresh instance of itself.

use std::fs::File;
use std::io::Write as _;

use super::{Backend, BackendError, Disk, LAYERS_MAX, Source};

const MIB: u64 = 1 << 20;

fn read(backend: &dyn Backend, id: &str, at: u64) -> u8 {
    read_both(backend, id, [at, at])[0]
}

fn read_both(backend: &dyn Backend, id: &str, at: [u64; 2]) -> [u8; 2] {
    let disk = backend.export(id, true).unwrap().open(true).unwrap();
    at.map(|at| {
        let mut byte = [0];
        disk.read_at(&mut byte, at).unwrap();
        byte[0]
    })
}

fn write(backend: &dyn Backend, id: &str, at: u64, value: u8) {
    let disk = backend.export(id, false).unwrap().open(false).unwrap();
    disk.write_at(&[value; 512], at).unwrap();
    disk.flush().unwrap();
}

fn image(bytes: usize, value: u8) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![value; bytes]).unwrap();
    file
}

/// Runs all of it.
pub(crate) fn conforms(backend: &dyn Backend) {
    conforms_in_short(backend);
    long_histories_stay_readable(backend);
    assert_eq!(backend.list().unwrap(), Vec::<String>::new(), "everything was deleted");
}

/// Runs all but what takes many steps, for a place where each takes long.
pub(crate) fn conforms_in_short(backend: &dyn Backend) {
    volumes_begin_as_their_source_and_are_their_own(backend);
    snapshots_never_change_and_outlive_their_source(backend);
    content_is_written_whole_or_there_is_no_disk(backend);
    revert_happens_once(backend);
    rewriting_happens_whole_or_not_at_all(backend);
    what_cannot_be_is_refused_and_leaves_nothing(backend);
    if backend.capabilities().copies_in_use {
        disk_in_use_is_copied_as_it_is_at_that_moment(backend);
    }
    assert_eq!(backend.list().unwrap(), Vec::<String>::new(), "everything was deleted");
}

fn volumes_begin_as_their_source_and_are_their_own(backend: &dyn Backend) {
    backend.create("zeros", 4 * MIB, Source::Nothing).unwrap();
    assert_eq!((backend.size_bytes("zeros").unwrap(), read(backend, "zeros", MIB)), (Some(4 * MIB), 0));
    write(backend, "zeros", 0, 1);
    backend.create("zeros", 4 * MIB, Source::Nothing).unwrap();
    assert_eq!(read(backend, "zeros", 0), 1, "what is there stays");

    let image = image(10_000, 7);
    backend.create("imaged", MIB, Source::Image(&image)).unwrap();
    assert_eq!((read(backend, "imaged", 9_999), read(backend, "imaged", 10_000)), (7, 0));
    write(backend, "imaged", 512, 2);
    assert_eq!((read(backend, "imaged", 512), read(backend, "imaged", 0)), (2, 7));

    backend.create("clone", 8 * MIB, Source::Disk { id: "imaged", in_use: false }).unwrap();
    write(backend, "imaged", 512, 3);
    write(backend, "clone", 1024, 4);
    assert_eq!(
        [read(backend, "clone", 512), read(backend, "clone", 1024), read(backend, "imaged", 1024)],
        [2, 4, 7]
    );
    assert_eq!(backend.size_bytes("clone").unwrap(), Some(8 * MIB));
    backend.extend("clone", 16 * MIB).unwrap();
    backend.extend("clone", 16 * MIB).unwrap();
    backend.extend("zeros", 16 * MIB).unwrap();
    write(backend, "clone", 15 * MIB, 5);
    assert_eq!([read(backend, "clone", 512), read(backend, "clone", 15 * MIB)], [2, 5]);
    assert_eq!(backend.size_bytes("zeros").unwrap(), Some(16 * MIB));
    assert_eq!(backend.list().unwrap(), ["clone", "imaged", "zeros"]);
    for id in ["clone", "imaged", "zeros", "zeros"] {
        backend.delete(id).unwrap();
    }
}

fn snapshots_never_change_and_outlive_their_source(backend: &dyn Backend) {
    backend.create("v", MIB, Source::Nothing).unwrap();
    write(backend, "v", 0, 1);
    backend.snapshot("s", "v", false).unwrap();
    backend.snapshot("s", "v", false).unwrap();
    write(backend, "v", 0, 2);
    backend.create("c", 2 * MIB, Source::Disk { id: "s", in_use: false }).unwrap();
    assert_eq!([read(backend, "s", 0), read(backend, "c", 0), read(backend, "v", 0)], [1, 1, 2]);
    let frozen = backend.export("s", false).unwrap().open(false).unwrap();
    assert!(frozen.write_at(&[9; 512], 0).is_err(), "a snapshot is not written");
    drop(frozen);
    backend.delete("v").unwrap();
    assert_eq!(read(backend, "s", 0), 1);
    backend.delete("s").unwrap();
    assert_eq!((read(backend, "c", 0), backend.size_bytes("c").unwrap()), (1, Some(2 * MIB)));
    backend.delete("c").unwrap();
}

fn revert_happens_once(backend: &dyn Backend) {
    backend.create("v", MIB, Source::Nothing).unwrap();
    write(backend, "v", 0, 1);
    backend.snapshot("s", "v", false).unwrap();
    write(backend, "v", 0, 2);
    backend.extend("v", 2 * MIB).unwrap();
    backend.revert("v", "s", 7).unwrap();
    assert_eq!((read(backend, "v", 0), backend.size_bytes("v").unwrap()), (1, Some(2 * MIB)));
    write(backend, "v", 0, 3);
    backend.revert("v", "s", 7).unwrap();
    assert_eq!(read(backend, "v", 0), 3, "that reverting is done already");
    backend.revert("v", "s", 8).unwrap();
    assert_eq!(read(backend, "v", 0), 1);
    backend.delete("s").unwrap();
    assert_eq!(read(backend, "v", 0), 1);
    backend.delete("v").unwrap();
}

fn rewriting_happens_whole_or_not_at_all(backend: &dyn Backend) {
    backend.create("w", 1 << 20, Source::Nothing).unwrap();
    write(backend, "w", 0, 1);
    backend.snapshot("w-then", "w", false).unwrap();
    let half = |disk: &dyn Disk| {
        disk.write_at(&[9; 512], 0)?;
        Err(std::io::Error::other("made to fail"))
    };
    assert!(backend.rewrite("w", 2 << 20, &half).is_err());
    assert_eq!((read(backend, "w", 0), backend.size_bytes("w").unwrap()), (1, Some(1 << 20)));
    let whole = |disk: &dyn Disk| disk.write_at(&[2; 512], 4096);
    backend.rewrite("w", 2 << 20, &whole).unwrap();
    assert_eq!((read(backend, "w", 0), read(backend, "w", 4096)), (0, 2), "zeros but for what was written");
    assert_eq!(backend.size_bytes("w").unwrap(), Some(2 << 20));
    assert_eq!(read(backend, "w-then", 0), 1, "its snapshots stay");
    assert!(matches!(backend.rewrite("none", 1, &whole), Err(BackendError::Missing { .. })));
    backend.delete("w").unwrap();
    backend.delete("w-then").unwrap();
}

fn content_is_written_whole_or_there_is_no_disk(backend: &dyn Backend) {
    let half = |disk: &dyn Disk| {
        disk.write_at(&[9; 512], 0)?;
        Err(std::io::Error::other("made to fail"))
    };
    assert!(backend.create("c", MIB, Source::Content(&half)).is_err());
    assert_eq!((backend.size_bytes("c").unwrap(), backend.list().unwrap()), (None, Vec::new()));
    let whole = |disk: &dyn Disk| disk.write_at(&[2; 512], 4096);
    backend.create("c", MIB, Source::Content(&whole)).unwrap();
    assert_eq!((read_both(backend, "c", [0, 4096]), backend.size_bytes("c").unwrap()), ([0, 2], Some(MIB)));
    write(backend, "c", 4096, 3);
    backend.create("c", MIB, Source::Content(&whole)).unwrap();
    assert_eq!(read(backend, "c", 4096), 3, "what is there stays");
    backend.delete("c").unwrap();
}

fn disk_in_use_is_copied_as_it_is_at_that_moment(backend: &dyn Backend) {
    backend.create("v", MIB, Source::Nothing).unwrap();
    let guest = backend.export("v", false).unwrap().open(false).unwrap();
    guest.write_at(&[1; 512], 0).unwrap();
    backend.snapshot("s", "v", true).unwrap();
    guest.write_at(&[2; 512], 0).unwrap();
    assert_eq!(read(backend, "s", 0), 1);
    drop(guest);
    for id in ["v", "s"] {
        backend.delete(id).unwrap();
    }
}

fn long_histories_stay_readable(backend: &dyn Backend) {
    backend.create("v", MIB, Source::Nothing).unwrap();
    let count = u8::try_from(2 * LAYERS_MAX).unwrap();
    for number in 0..count {
        write(backend, "v", u64::from(number) * 4096, number + 1);
        backend.snapshot(&format!("s{number}"), "v", false).unwrap();
    }
    for number in 0..count {
        let id = format!("s{number}");
        let at = [u64::from(number) * 4096, u64::from(number + 1) * 4096];
        assert_eq!(read_both(backend, &id, at), [number + 1, 0]);
        backend.delete(&id).unwrap();
    }
    assert_eq!(read(backend, "v", 0), 1);
    backend.delete("v").unwrap();
}

fn what_cannot_be_is_refused_and_leaves_nothing(backend: &dyn Backend) {
    let image = image(8192, 1);
    let small = backend.create("v", 4096, Source::Image(&image));
    assert!(
        matches!(small, Err(BackendError::TooSmall { size_bytes: 4096, source_bytes: 8192 })),
        "{small:?}"
    );
    let missing = backend.snapshot("s", "nobody", false);
    assert!(matches!(missing, Err(BackendError::Missing { .. })), "{missing:?}");
    assert!(matches!(backend.export("nobody", true), Err(BackendError::Missing { .. })));
    for id in ["", "../v", ".v", "a/b", "-v"] {
        assert!(matches!(backend.create(id, 4096, Source::Nothing), Err(BackendError::Id { .. })), "{id}");
        assert!(backend.delete(id).is_err(), "{id}");
    }
    assert!(backend.capacity().unwrap().total_bytes > 0);
}
