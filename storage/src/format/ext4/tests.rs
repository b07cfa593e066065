//! What is written is read back by a reader that others wrote, and e2fsck finds nothing to complain of.

use std::io::Cursor;
use std::process::Command;

use ext4_view::Ext4;

use super::*;

fn inode(kind: Kind) -> Inode {
    let metadata = Metadata { mode: 0o755, uid: 70_000, gid: 7, modified_s: 1_700_000_000 };
    Inode { kind, metadata, capability: Box::default() }
}

/// A tree of these names below the root, and a lost+found.
fn tree(kinds: &[(&str, Kind)]) -> Vec<Inode> {
    let mut names: Vec<Name> = vec![(Box::from(&b"lost+found"[..]), 1)];
    let mut inodes = vec![inode(Kind::Directory(Vec::new())), inode(Kind::Directory(Vec::new()))];
    for (name, kind) in kinds {
        names.push((Box::from(name.as_bytes()), inodes.len()));
        inodes.push(inode(kind.clone()));
    }
    inodes[0].kind = Kind::Directory(names);
    inodes
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| u8::try_from(index % 251).unwrap()).collect()
}

/// The file system with its files' content, which e2fsck has found nothing in.
fn made(tree: &[Inode]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let plan = Plan::new(tree, *b"0123456789abcdef", 1 << 40).unwrap();
    let made = FileSystem::create(file.as_file(), tree, plan).unwrap();
    for (index, inode) in tree.iter().enumerate() {
        if let Kind::File(bytes) = inode.kind {
            let bytes = usize::try_from(bytes).unwrap();
            made.write_content(index, &mut Cursor::new(content(bytes))).unwrap();
        }
    }
    check(file.path());
    file
}

/// Has e2fsck look, where it is installed.
fn check(path: &std::path::Path) {
    let checked = Command::new("/usr/sbin/e2fsck").arg("-fn").arg(path).output();
    match checked {
        Err(error) => println!("skipped: e2fsck: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && !said.contains('?'), "{said}");
        }
    }
}

fn read(file: &tempfile::NamedTempFile) -> Ext4 {
    Ext4::load_from_path(file.path()).unwrap()
}

#[test]
fn every_kind_of_inode_is_read_back_and_found_clean() {
    let long = "t".repeat(200);
    let mut tree = tree(&[
        ("small", Kind::File(10)),
        ("empty", Kind::File(0)),
        ("large", Kind::File(3_000_001)),
        ("short-link", Kind::Symlink(Box::from(&b"small"[..]))),
        ("long-link", Kind::Symlink(Box::from(long.as_bytes()))),
        ("null", Kind::Character(1, 3)),
        ("disk", Kind::Block(259, 70_000)),
        ("pipe", Kind::Fifo),
        ("directory", Kind::Directory(vec![(Box::from(&b"again"[..]), 2)])),
    ]);
    tree[4].capability = Box::from(&[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]);
    let file = made(&tree);
    let fs = read(&file);
    assert_eq!(fs.read("/small").unwrap(), content(10));
    assert_eq!(fs.read("/directory/again").unwrap(), content(10));
    assert_eq!(fs.read("/large").unwrap(), content(3_000_001));
    assert_eq!(fs.read("/empty").unwrap(), b"");
    assert_eq!(fs.read_link("/long-link").unwrap().as_ref(), long.as_bytes());
    assert_eq!(fs.read("/short-link").unwrap(), content(10));
    let metadata = fs.metadata("/large").unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (70_000, 7, 0o755));
    let shown = Command::new("/usr/sbin/debugfs").args(["-R", "ea_list /large"]).arg(file.path()).output();
    if let Ok(shown) = shown {
        let said = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(said.contains("security.capability (20)"), "{said}");
    }
}

#[test]
fn directories_of_many_blocks_and_many_inodes_are_read_back() {
    let names: Vec<String> = (0..40_000).map(|n| format!("{n:0width$}", width = 5 + n % 200)).collect();
    let kinds: Vec<(&str, Kind)> = names.iter().map(|name| (name.as_str(), Kind::File(1))).collect();
    let file = made(&tree(&kinds));
    let fs = read(&file);
    assert_eq!(fs.read_dir("/").unwrap().count(), 40_000 + 3);
    assert_eq!(fs.read(format!("/{}", names[39_999]).as_str()).unwrap(), content(1));
}

#[test]
fn files_larger_than_groups_have_their_extents_listed_and_zeros_take_no_room() {
    /// Yields zeros, and a mark at the end of each 100 MB.
    struct Sparse(u64);
    impl Read for Sparse {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(0);
            for (offset, byte) in (self.0..).zip(buffer.iter_mut()) {
                if offset % 100_000_000 == 99_999_999 {
                    *byte = 7;
                }
            }
            self.0 += buffer.len() as u64;
            Ok(buffer.len())
        }
    }
    const BYTES: u64 = 800_000_000;
    let tree = tree(&[("first", Kind::File(1)), ("huge", Kind::File(BYTES)), ("last", Kind::File(5000))]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let plan = Plan::new(&tree, [0; 16], 1 << 40).unwrap();
    assert!(plan.extents(3).len() > 4, "its list is in a block of its own");
    let made = FileSystem::create(file.as_file(), &tree, plan).unwrap();
    made.write_content(3, &mut Sparse(0)).unwrap();
    made.write_content(4, &mut Cursor::new(content(5000))).unwrap();
    check(file.path());
    let taken = std::os::unix::fs::MetadataExt::blocks(&file.as_file().metadata().unwrap()) * 512;
    assert!(taken < 8 << 20, "{taken} bytes are taken");
    let fs = read(&file);
    assert_eq!(fs.read("/last").unwrap(), content(5000));
    let mut huge = fs.open("/huge").unwrap();
    let mut byte = [0];
    for mark in 1..=8 {
        huge.seek_to(mark * 100_000_000 - 1).unwrap();
        huge.read_bytes(&mut byte).unwrap();
        assert_eq!(byte, [7], "{mark}");
    }
}

#[test]
fn same_tree_gives_the_same_bytes() {
    let tree = tree(&[("a", Kind::File(5000)), ("b", Kind::Directory(Vec::new()))]);
    let (one, other) = (made(&tree), made(&tree));
    assert!(std::fs::read(one.path()).unwrap() == std::fs::read(other.path()).unwrap());
}

#[test]
fn what_ext4_cannot_hold_is_refused() {
    let plan = |kinds: &[(&str, Kind)], bytes_max| Plan::new(&tree(kinds), [0; 16], bytes_max).map(drop);
    let too_long = |refused| assert!(matches!(refused, Err(Ext4Error::TooLong { .. })), "{refused:?}");
    too_long(plan(&[(&"n".repeat(256), Kind::Fifo)], 1 << 40));
    too_long(plan(&[("l", Kind::Symlink(vec![b'x'; 4096].into()))], 1 << 40));
    let huge = plan(&[("f", Kind::File(u64::MAX))], u64::MAX);
    assert!(matches!(huge, Err(Ext4Error::TooLarge { .. })), "{huge:?}");
    let many = plan(&[("f", Kind::File(1 << 42)), ("g", Kind::File(1 << 42))], u64::MAX);
    assert!(matches!(many, Err(Ext4Error::TooLarge { .. })), "{many:?}");
    assert!(matches!(plan(&[], 1 << 20), Err(Ext4Error::TooLarge { bytes_max: 1_048_576, .. })));
    let names = (0..65_001).map(|n| (Box::from(format!("{n}").as_bytes()), 1)).collect();
    let inodes = [inode(Kind::Directory(names)), inode(Kind::File(0))];
    assert!(matches!(Plan::new(&inodes, [0; 16], 1 << 40), Err(Ext4Error::TooManyLinks)));
    let tree = tree(&[("f", Kind::File(10))]);
    let file = tempfile::tempfile().unwrap();
    let made = FileSystem::create(&file, &tree, Plan::new(&tree, [0; 16], 1 << 40).unwrap()).unwrap();
    let early = made.write_content(2, &mut Cursor::new(b"nine byte"));
    assert!(matches!(early, Err(Ext4Error::Content(_))));
}
