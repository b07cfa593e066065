//! Archives as tools write them become disks; archives as nobody should are refused, by name and within bounds.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use ext4_view::Ext4;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::*;
use crate::hexadecimal::hexadecimal;

const BYTES_MAX: u64 = 1 << 40;
const INIT: &[u8] = b"the first program";

fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    format!("sha256:{}", hexadecimal(digest.as_ref()))
}

/// A layer's entry: what it is, its name, its link's target or its content.
type Item<'i> = (EntryType, &'i str, &'i [u8]);

const FILE: EntryType = EntryType::Regular;
const DIRECTORY: EntryType = EntryType::Directory;
const SYMLINK: EntryType = EntryType::Symlink;
const LINK: EntryType = EntryType::Link;

/// Puts a text into a head without the checks of the library, which refuses what is tested here.
fn put(field: &mut [u8], text: &[u8]) {
    field[..text.len()].copy_from_slice(text);
}

fn header(kind: EntryType, name: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    put(&mut header.as_old_mut().name, name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o751);
    header.set_uid(12);
    header.set_gid(13);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    header
}

fn layer(items: &[Item<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, content) in items {
        let is_link = matches!(*kind, EntryType::Symlink | EntryType::Link);
        let mut header = header(*kind, name, if is_link { 0 } else { content.len() as u64 });
        if is_link {
            put(&mut header.as_old_mut().linkname, content);
            header.set_cksum();
        }
        tar.append(&header, if is_link { &[] } else { *content }).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    // What may be skipped, then two frames.
    let mut packed = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    for half in bytes.chunks(bytes.len().div_ceil(2)) {
        packed.extend(ruzstd::encoding::compress_to_vec(half, ruzstd::encoding::CompressionLevel::Fastest));
    }
    packed
}

fn configuration(layers: &[Vec<u8>]) -> Value {
    let unpacked: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/bin/app"], "Cmd": ["-v"], "Env": ["A=b"], "WorkingDir": "/srv", "User": "12:13"},
        "rootfs": {"type": "layers", "diff_ids": unpacked},
    })
}

/// A tar file of these parts.
fn archive(parts: &[(String, Vec<u8>)]) -> File {
    let mut tar = Builder::new(tempfile::tempfile().unwrap());
    for (name, bytes) in parts {
        tar.append(&header(FILE, name, bytes.len() as u64), bytes.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

struct Oci {
    parts: Vec<(String, Vec<u8>)>,
}

impl Oci {
    fn add(&mut self, bytes: &[u8], kind: &str) -> Value {
        let digest = digest(bytes);
        self.parts.push((format!("blobs/sha256/{}", &digest[7..]), bytes.to_vec()));
        json!({"mediaType": format!("application/vnd.oci.image.{kind}.v1+json"), "digest": digest, "size": bytes.len()})
    }

    fn manifest(&mut self, configuration: &Value, packed: &[Vec<u8>]) -> Value {
        let config = self.add(configuration.to_string().as_bytes(), "config");
        let layers: Vec<_> = packed.iter().map(|layer| self.add(layer, "layer")).collect();
        self.add(
            json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string().as_bytes(),
            "manifest",
        )
    }

    fn end(mut self, manifests: &Value) -> Vec<(String, Vec<u8>)> {
        self.parts.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        self.parts.push(("index.json".to_owned(), json!({"manifests": manifests}).to_string().into_bytes()));
        self.parts
    }
}

/// An OCI image layout of these layers.
fn oci(layers: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let mut oci = Oci { parts: Vec::new() };
    let packed: Vec<_> = layers.iter().map(|layer| pack(layer)).collect();
    let manifest = oci.manifest(&configuration(layers), &packed);
    oci.end(&json!([manifest]))
}

/// What docker save writes of these layers.
fn saved(layers: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let configuration = configuration(layers).to_string().into_bytes();
    let name = format!("{}.json", &digest(&configuration)[7..]);
    let names: Vec<_> = (0..layers.len()).map(|index| format!("{index}/layer.tar")).collect();
    let manifest = json!([{"Config": name, "RepoTags": ["app:latest"], "Layers": names}]);
    let mut parts =
        vec![(name, configuration), ("manifest.json".to_owned(), manifest.to_string().into_bytes())];
    parts.extend(names.into_iter().zip(layers.iter().cloned()));
    parts
}

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn disk(parts: &[(String, Vec<u8>)]) -> Result<tempfile::NamedTempFile, ContainerError> {
    let raw = tempfile::NamedTempFile::new().unwrap();
    copy_to_raw(&archive(parts), raw.as_file(), INIT, BYTES_MAX).map(|_| raw)
}

fn refused(layers: &[Vec<u8>]) -> String {
    let error = disk(&oci(layers, gzip)).expect_err("it is refused");
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}")
}

fn base() -> Vec<u8> {
    layer(&[
        (DIRECTORY, "bin/", b""),
        (FILE, "bin/app", b"the app"),
        (LINK, "bin/other", b"bin/app"),
        (SYMLINK, "sbin", b"bin"),
        (SYMLINK, "outside", b"../../../../etc"),
        (FILE, "keep/old", b"old"),
        (FILE, "gone/file", b"x"),
        (FILE, "hidden/below", b"x"),
    ])
}

fn change() -> Vec<u8> {
    layer(&[
        (FILE, "./keep/.wh.old", b""),
        (FILE, ".wh.gone", b""),
        (FILE, "hidden/new", b"new"),
        (FILE, "hidden/.wh..wh..opq", b""),
        (FILE, "/sbin/through", b"the link"),
        (FILE, "outside/inside", b"stays inside"),
        (FILE, "bin/app", b"the newer app"),
    ])
}

#[test]
fn layers_become_a_disk_with_a_first_program_whoever_packed_them() {
    let layers = [base(), change()];
    let kinds = [oci(&layers, plain), oci(&layers, gzip), oci(&layers, zstd), saved(&layers)];
    for parts in kinds {
        let run = check(&archive(&parts)).unwrap();
        assert_eq!(run.arguments, ["/bin/app", "-v"]);
        let raw = disk(&parts).unwrap();
        let fs = Ext4::load_from_path(raw.path()).unwrap();
        assert_eq!(fs.read("/bin/app").unwrap(), b"the newer app");
        assert_eq!(fs.read("/bin/other").unwrap(), b"the app");
        assert_eq!(fs.read("/bin/through").unwrap(), b"the link");
        assert_eq!(fs.read("/etc/inside").unwrap(), b"stays inside");
        assert_eq!(fs.read("/hidden/new").unwrap(), b"new");
        for gone in ["/hidden/below", "/keep/old", "/gone"] {
            assert!(!fs.exists(gone).unwrap(), "{gone}");
        }
        assert!(fs.exists("/keep").unwrap());
        assert_eq!(fs.read(INIT_PATH).unwrap(), INIT);
        let run = fs.read(CONFIGURATION_PATH).unwrap();
        let wanted = "argument=/bin/app\0argument=-v\0environment=A=b\0directory=/srv\0user=12:13\0";
        assert_eq!(String::from_utf8(run).unwrap(), wanted);
        let metadata = fs.metadata("/bin/app").unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12, 13, 0o751));
        match std::process::Command::new("/usr/sbin/e2fsck").arg("-fn").arg(raw.path()).output() {
            Ok(checked) => assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout)),
            Err(error) => println!("skipped: e2fsck: {error}"),
        }
    }
}

#[test]
fn entries_that_would_leave_the_root_are_refused_or_stay_inside() {
    for (items, why) in [
        (&[(FILE, "../etc/passwd", &b"x"[..])][..], "`..`"),
        (&[(FILE, "a/../../b", b"x")], "`..`"),
        (&[(LINK, "a", b"../../etc/passwd")], "`..`"),
        (&[(LINK, "a", b"/etc/passwd")], "not there"),
        (&[(DIRECTORY, "d", b""), (LINK, "a", b"d")], "a directory"),
        (&[(SYMLINK, "a", b"b"), (SYMLINK, "b", b"a"), (FILE, "a/c", b"x")], "too far"),
        (&[(FILE, "a", b"x"), (FILE, "a/b", b"x")], "no directory"),
        (&[(SYMLINK, "a", b"")], "is none"),
        (&[(FILE, ".wh...", b"")], "no name"),
        (&[(FILE, "./", b"x"), (SYMLINK, ".", b"x")], "no directory"),
        (&[(EntryType::GNUSparse, "a", b"x")], "sparse"),
        (&[(EntryType::new(b'V'), "a", b"x")], "of a kind"),
    ] {
        let said = refused(&[layer(items)]);
        assert!(said.contains(why), "{why}: {said}");
    }
}

/// A pax head with these records, or of a length that it claims.
fn extended(records: &[u8], claimed: Option<u64>, kind: u8) -> Vec<u8> {
    let mut bytes =
        header(EntryType::new(kind), "head", claimed.unwrap_or(records.len() as u64)).as_bytes().to_vec();
    bytes.extend_from_slice(records);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn heads_that_lie_are_refused_before_room_is_made_for_them() {
    let then = layer(&[(FILE, "file", b"content")]);
    let with = |head: Vec<u8>| [head, then.clone()].concat();
    let ten_gib = 10 << 30;
    for (layer, why) in [
        (with(extended(b"", Some(ten_gib), b'x')), "1 MiB"),
        (with(extended(b"", Some(ten_gib), b'L')), "1 MiB"),
        (with(extended(b"99999 path=a\n", None, b'x')), "records"),
        (with(extended(b"1 path=a\n", None, b'x')), "records"),
        (with(extended(b"18446744073709551615 path=a\n", None, b'x')), "records"),
        (with(extended(b"13 size=1024\n", None, b'x')), "do not agree"),
        (with(extended(b"18 uid=4294967296\n", None, b'x')), "32 bits"),
        (with(extended(b"22 GNU.sparse.major=1\n", None, b'x')), "sparse"),
        (with(extended(b"23 GNU.sparse.major=1\n", None, b'x')), "records"),
        (header(FILE, "huge", ten_gib).as_bytes().to_vec(), "no whole tar file"),
        (then[..700].to_vec(), "no whole tar file"),
        (vec![7; 1024], "no whole tar file"),
    ] {
        let said = refused(&[layer]);
        assert!(said.contains(why), "{why}: {said}");
    }
    let long = "n".repeat(256);
    let record = format!(" path={long}\n");
    let record = format!("{}{record}", record.len() + 3);
    assert!(refused(&[with(extended(record.as_bytes(), None, b'x'))]).contains("255 bytes"));
}

#[test]
fn bombs_are_stopped_at_what_their_size_allows_for() {
    let content = vec![0; 300 << 20];
    let bomb = layer(&[(FILE, "zeros", &content)]);
    for parts in [oci(std::slice::from_ref(&bomb), gzip), oci(&[bomb], zstd)] {
        assert!(matches!(disk(&parts), Err(ContainerError::Expands)));
    }
}

#[test]
fn damaged_and_confused_archives_are_refused() {
    let layers = [base()];
    let cut = archive(&oci(&layers, plain));
    cut.set_len(2000).unwrap();
    assert!(matches!(check(&cut), Err(ContainerError::Archive(_))));
    for index in 0..3 {
        let mut parts = oci(&layers, gzip);
        let last = parts[index].1.len() - 1;
        parts[index].1[last] ^= 1;
        let refused = disk(&parts);
        assert!(refused.is_err(), "part {index}");
    }
    let mut parts = saved(&layers);
    // A byte of the content of `bin/app`.
    parts[2].1[1030] ^= 1;
    assert!(matches!(disk(&parts), Err(ContainerError::Damaged { mark: "digest", .. })));
    let mut parts = oci(&layers, plain);
    parts.remove(1);
    assert!(matches!(check(&archive(&parts)), Err(ContainerError::Missing(_))));
    let mut packed = tempfile::tempfile().unwrap();
    packed.write_all(&gzip(b"an archive")).unwrap();
    assert!(matches!(check(&packed), Err(ContainerError::Compressed)));
    for nonsense in [&b""[..], b"nonsense", &[0; 4096]] {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(nonsense, 0).unwrap();
        assert!(check(&file).is_err());
    }
    let claims = tempfile::tempfile().unwrap();
    claims.write_all_at(header(FILE, "index.json", 10 << 30).as_bytes(), 0).unwrap();
    assert!(matches!(check(&claims), Err(ContainerError::Archive(_))));
}

#[test]
fn the_image_for_this_machine_is_found_in_indexes_which_may_not_nest_for_ever() {
    let layers = [base()];
    let mut parts = Oci { parts: Vec::new() };
    let mut other = configuration(&layers);
    other["architecture"] = json!("arm64");
    let mut arm = parts.manifest(&other, &layers);
    let amd = parts.manifest(&configuration(&layers), &layers);
    let index = json!({"manifests": [arm, amd]}).to_string();
    let nested = parts.add(index.as_bytes(), "index");
    assert!(check(&archive(&parts.end(&json!([nested, nested])))).is_ok());

    arm["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let only = check(&archive(&Oci { parts: Vec::new() }.end(&json!([arm])))).unwrap_err().to_string();
    assert!(only.contains("only for linux/arm64"), "{only}");

    let mut parts = Oci { parts: Vec::new() };
    let mut inner = parts.manifest(&configuration(&layers), &layers);
    for _ in 0..5 {
        inner = parts.add(json!({"manifests": [inner]}).to_string().as_bytes(), "index");
    }
    assert!(matches!(check(&archive(&parts.end(&json!([inner])))), Err(ContainerError::TooMany { .. })));

    let mut parts = Oci { parts: Vec::new() };
    let mut second = configuration(&layers);
    second["config"]["Cmd"] = json!(["-q"]);
    let two = json!([parts.manifest(&second, &layers), parts.manifest(&configuration(&layers), &layers)]);
    assert!(check(&archive(&parts.end(&two))).unwrap_err().to_string().contains("several images"));

    let mut parts = Oci { parts: Vec::new() };
    let mut idle = configuration(&layers);
    idle["config"] = Value::Null;
    let idle = json!([parts.manifest(&idle, &layers)]);
    assert!(check(&archive(&parts.end(&idle))).unwrap_err().to_string().contains("nothing to run"));
}

#[test]
fn more_layers_and_parts_than_any_image_has_are_refused() {
    let layers = vec![layer(&[]); 600];
    let said = check(&archive(&saved(&layers))).unwrap_err().to_string();
    assert!(said.contains("more than 512 layers"), "{said}");
    let parts: Vec<_> = (0..16_385).map(|index| (format!("{index}"), Vec::new())).collect();
    assert!(check(&archive(&parts)).unwrap_err().to_string().contains("more than 16384 parts"));
}

#[test]
fn deep_paths_come_and_go_and_links_do_not_make_them_endless() {
    let deep = "d/".repeat(100);
    // In each directory at the end lies a link to one that is as deep again.
    let mut layers = Vec::new();
    for round in 0..42 {
        let path = "l/".repeat(round);
        let (directory, link) = (format!("{path}{deep}"), format!("{path}l"));
        layers.push(layer_of_long_names(&[
            (DIRECTORY, &directory, ""),
            (SYMLINK, &link, deep.trim_end_matches('/')),
        ]));
    }
    let said = refused(&layers);
    assert!(said.contains("too far"), "{said}");
    layers.pop();
    layers.push(layer(&[(FILE, ".wh.d", b"")]));
    let raw = disk(&oci(&layers, plain)).unwrap();
    assert!(!Ext4::load_from_path(raw.path()).unwrap().exists("/d").unwrap());
}

/// The same with names that need heads of their own.
fn layer_of_long_names(items: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, target) in items {
        for (mark, text) in [(b'L', name), (b'K', target)] {
            tar.append(&header(EntryType::new(mark), "long", text.len() as u64), text.as_bytes()).unwrap();
        }
        tar.append(&header(*kind, "short", 0), &[][..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Numbers that repeat (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % end as u64).unwrap()
    }
}

/// Changes some bytes; where they are in heads, the heads' sums are made right again, so that they are read.
fn changed(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        let choices = [0, b'.', b'/', b'0', b'7', 0x80, 0xff, bytes[random.below(bytes.len())]];
        bytes[at] = choices[random.below(choices.len())];
        let head = at / 512 * 512;
        if bytes.len() >= head + 512 && random.below(4) > 0 {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(&bytes[head..head + 512]);
            header.set_cksum();
            bytes[head..head + 512].copy_from_slice(header.as_bytes());
        }
    }
    bytes
}

#[test]
fn archives_with_changed_bytes_are_read_or_refused() {
    let mut random = Random(20);
    let pax = [extended(b"19 path=deep/er/in\n", None, b'x'), layer(&[(FILE, "file", b"content")])].concat();
    let layers = [base(), change(), pax];
    let mut made = 0;
    for round in 0..600 {
        let mut changed_layers = layers.to_vec();
        let index = random.below(3);
        changed_layers[index] = changed(&mut random, &layers[index]);
        // The digests are those of the changed layers, so that they are looked at to the end.
        let mut parts = match round % 4 {
            0 => saved(&changed_layers),
            1 => oci(&changed_layers, plain),
            2 => oci(&changed_layers, gzip),
            _ => oci(&changed_layers, zstd),
        };
        if random.below(3) == 0 {
            let index = random.below(parts.len());
            parts[index].1 = changed(&mut random, &parts[index].1);
        }
        made += usize::from(disk(&parts).is_ok());
    }
    assert!(made > 50, "{made} of 600 became disks: nothing is tested if none does");
}
