//! Disks: filesystems as the tools make them, with bytes changed where a boot reads them, and scripts of GRUB's own
//! words.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock};

use storage::format::Disk;
use storage::format::raw::RawFile;
use vmm::boot::disk::{find, mock};

use crate::input::Reader;

/// Changes per input: one breaks something, several together something else.
const CHANGES_MAX: u8 = 6;
/// Reads longer than this are a file's content, in which changes hit nothing.
const METADATA_BYTES_MAX: usize = 64 << 10;
/// The most bytes of a kernel or ramdisk that are read.
const READ_BYTES_MAX: u64 = 4 << 20;

const SCRIPT: &str = "load_env\nif [ \"${next_entry}\" ]; then set default=\"${next_entry}\"; else set default=1; fi\n\
    function f { insmod x; if [ x$1 = xy ]; then set a=\"$1\"; fi }\nf y\n\
    menuentry 'One' --class a --id one { search --fs-uuid --set=root X\n linux /boot/vmlinuz root=UUID=1 ro\n }\n\
    submenu 'More' --id more { for i in 1 2; do menuentry \"Two $i\" { linux /vmlinuz quiet\n initrd /boot/i /boot/i } done }\n\
    blscfg\nif [ -f ${config_directory}/custom.cfg ]; then source ${config_directory}/custom.cfg; fi\n";
const ENTRY: &str =
    "title T\nversion 6.1\nsort-key d\nmachine-id 0\nlinux /boot/vmlinuz\ninitrd /boot/i\noptions $a ro\n";

/// A disk that is kept as it is, and where a boot reads it.
struct Seed {
    disk: Arc<dyn Disk>,
    reads: Vec<(u64, usize)>,
    /// Trees' nodes carry checksums, which would keep every change from being looked at.
    is_btrfs: bool,
}

/// Notes where it is read.
struct Noting(Arc<dyn Disk>, Mutex<Vec<(u64, usize)>>);

/// The base with some bytes changed.
struct Changed {
    base: Arc<dyn Disk>,
    size_bytes: u64,
    changes: BTreeMap<u64, u8>,
}

macro_rules! read_only {
    () => {
        fn write_at(&self, _buffer: &[u8], _offset: u64) -> io::Result<()> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn discard(&self, _offset: u64, _length: u64) -> io::Result<()> {
            Ok(())
        }
    };
}

impl Disk for Noting {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if buffer.len() <= METADATA_BYTES_MAX {
            self.1.lock().expect("nobody panics with it").push((offset, buffer.len()));
        }
        self.0.read_at(buffer, offset)
    }
    read_only!();
}

impl Disk for Changed {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size_bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.base.read_at(buffer, offset)?;
        for (place, byte) in self.changes.range(offset..offset + buffer.len() as u64) {
            buffer[(place - offset) as usize] = *byte;
        }
        Ok(())
    }
    read_only!();
}

fn run_tool(tool: &str, arguments: &[&str]) -> Option<()> {
    let mut command = Command::new(tool);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().ok().filter(|status| status.success()).map(drop)
}

/// Makes a filesystem of `size` bytes of a small tree by a tool, and opens it; `None` where the tool is missing.
fn made(size: u64, tool: impl Fn(&str, &str) -> Option<()>) -> Option<Arc<dyn Disk>> {
    let directory = tempfile::tempdir().ok()?;
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (tree, image) = (path("tree"), path("image"));
    let write = |name: &str, content: &[u8]| {
        let place = directory.path().join("tree").join(name);
        std::fs::create_dir_all(place.parent()?).ok()?;
        std::fs::write(place, content).ok()
    };
    for (name, content) in files() {
        write(name, &content)?;
    }
    for index in 0..200 {
        write(&format!("boot/grub/x86_64/a-module-with-a-name-{index}"), b"")?;
    }
    std::os::unix::fs::symlink("boot/vmlinuz", directory.path().join("tree/vmlinuz")).ok()?;
    let file = File::create(&image).ok()?;
    file.set_len(size).ok()?;
    tool(&tree, &image)?;
    // The open file stays when the directory goes.
    Some(Arc::new(RawFile::whole(File::open(&image).ok()?, true).ok()?))
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("boot/grub/grub.cfg", SCRIPT.into()),
        ("boot/grub/grubenv", b"# GRUB Environment Block\nnext_entry=more>1\n#####".to_vec()),
        ("loader/entries/0-6.1.conf", ENTRY.into()),
        ("loader/entries/0-6.10+3-1.conf", ENTRY.into()),
        ("loader/loader.conf", b"default 0-*\n".to_vec()),
        ("EFI/Linux/a.efi", vec![0; 600]),
        ("boot/vmlinuz", vec![1; 300_000]),
        ("boot/i", vec![2; 70_000]),
    ]
}

/// A prototype for `mkfs.xfs -p`, in the tree's own directory.
fn prototype(tree: &str) -> Option<String> {
    let mut text = "/\n0 0\nd--755 0 0\nvmlinuz l--777 0 0 boot/vmlinuz\nboot d--755 0 0\n".to_owned();
    text += &format!("vmlinuz ---644 0 0 {tree}/boot/vmlinuz\ni ---644 0 0 {tree}/boot/i\ngrub d--755 0 0\n");
    text += &format!("grub.cfg ---644 0 0 {tree}/boot/grub/grub.cfg\n");
    text += &format!("grubenv ---644 0 0 {tree}/boot/grub/grubenv\n");
    for index in 0..200 {
        text += &format!(
            "a-module-with-a-name-{index} ---644 0 0 {tree}/boot/grub/x86_64/a-module-with-a-name-{index}\n"
        );
    }
    text += "$\n$\n$\n";
    let path = format!("{tree}.prototype");
    std::fs::write(&path, text).ok().map(|()| path)
}

/// All disks that can be made here; the one made by hand always can.
fn seeds() -> &'static [Seed] {
    static SEEDS: OnceLock<Vec<Seed>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let files = files();
        let files: Vec<_> = files.iter().map(|(name, content)| (*name, content.as_slice())).collect();
        let ext4 = |options: &'static str| {
            made(8 << 20, move |tree, image| {
                run_tool("mkfs.ext4", &["-q", "-F", "-b", "1024", "-O", options, "-d", tree, image])
            })
        };
        let xfs = |options: &'static str| {
            made(320 << 20, move |tree, image| {
                run_tool("mkfs.xfs", &["-q", "-m", options, "-p", &prototype(tree)?, image])
            })
        };
        let btrfs = made(128 << 20, |tree, image| run_tool("mkfs.btrfs", &["-q", "--rootdir", tree, image]));
        let disks: [(Option<Arc<dyn Disk>>, bool); 7] = [
            (Some(Arc::new(mock::MemoryDisk(mock::fat32(&files)))), false),
            (ext4("^metadata_csum,^64bit"), false),
            (ext4("^metadata_csum,^has_journal,^extent"), false),
            (ext4("metadata_csum,64bit"), false),
            (xfs("crc=0"), false),
            (xfs("crc=1"), false),
            (btrfs, true),
        ];
        let seed = |(disk, is_btrfs): (Option<Arc<dyn Disk>>, bool)| {
            let noting = Arc::new(Noting(disk?, Mutex::default()));
            let plan = find(noting.clone()).unwrap_or_else(|error| panic!("a sound disk boots: {error:?}"));
            read_all(&*plan.kernel);
            let reads = std::mem::take(&mut *noting.1.lock().expect("nobody panics with it"));
            Some(Seed { disk: noting.0.clone(), reads, is_btrfs })
        };
        disks.into_iter().filter_map(seed).collect()
    })
}

fn read_all(image: &dyn vmm::boot::image::Image) {
    let size = image.size_bytes().unwrap_or(0).min(READ_BYTES_MAX);
    let mut buffer = vec![0; size as usize];
    let _ = image.read_exact_at(&mut buffer, 0);
}

/// Writes the checksums of Btrfs's superblock and of the node around each change anew.
fn mend_btrfs(disk: &mut Changed) {
    const SUPERBLOCK: u64 = 0x1_0000;
    const NODE_BYTES: u64 = 16 << 10;
    let mut blocks: Vec<(u64, usize)> = Vec::new();
    for place in disk.changes.keys() {
        let block = match place / 4096 * 4096 {
            SUPERBLOCK => (SUPERBLOCK, 4096),
            _ => (place / NODE_BYTES * NODE_BYTES, NODE_BYTES as usize),
        };
        blocks.push(block);
    }
    for (start, length) in blocks {
        let mut bytes = vec![0; length];
        if disk.read_at(&mut bytes, start).is_err() {
            continue;
        }
        let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&bytes[32..]);
        for (place, byte) in (start..).zip(sum.to_le_bytes()) {
            disk.changes.insert(place, byte);
        }
    }
}

pub(crate) fn run(input: &[u8]) {
    let mut reader = Reader::new(input);
    let seeds = seeds();
    let seed = &seeds[usize::from(reader.u8()) % seeds.len()];
    let mut disk =
        Changed { base: seed.disk.clone(), size_bytes: seed.disk.size_bytes(), changes: BTreeMap::new() };
    for _ in 0..=reader.u8() % CHANGES_MAX {
        let (start, length) = seed.reads[reader.u16() as usize % seed.reads.len()];
        // Structures begin at round places, and most of what matters stands at their beginning.
        let mut within = reader.u16() as usize % length;
        if reader.u8().is_multiple_of(2) {
            within = within % 128 + within / 1024 * 1024;
        }
        let value = match reader.u8() % 4 {
            0 => u64::MAX,
            1 => 0,
            2 => u64::from(reader.u8()),
            _ => reader.u64(),
        };
        let width = 1_usize << (reader.u8() % 4);
        let big = value.to_be_bytes();
        let bytes = if reader.u8().is_multiple_of(2) {
            value.to_le_bytes()[..width].to_vec()
        } else {
            big[8 - width..].to_vec()
        };
        for (place, byte) in (start + within as u64..).zip(bytes) {
            if place < disk.size_bytes {
                disk.changes.insert(place, byte);
            }
        }
    }
    if reader.u8().is_multiple_of(16) {
        disk.size_bytes = disk.size_bytes * u64::from(reader.u8()) / 256;
    }
    if seed.is_btrfs && !reader.u8().is_multiple_of(4) {
        mend_btrfs(&mut disk);
    }
    boot(Arc::new(disk));
}

/// How many panics there were: those of the readers are turned into errors by the boot code, and are bugs all the same.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            before(panic);
        }));
    });
}

/// An error is an answer; only panics, and what does not come to an end, are bugs.
fn boot(disk: Arc<dyn Disk>) {
    count_panics();
    let before = PANICS.load(Ordering::SeqCst);
    if let Ok(plan) = find(disk) {
        read_all(&*plan.kernel);
        if let Some(initrd) = plan.initrd {
            read_all(&*initrd);
        }
    }
    assert_eq!(PANICS.load(Ordering::SeqCst), before, "a reader panicked");
}

/// Words that GRUB's language is made of.
const WORDS: &[&str] = &[
    "if",
    "then",
    "elif",
    "else",
    "fi",
    "for",
    "in",
    "do",
    "done",
    "while",
    "until",
    "function",
    "{",
    "}",
    ";",
    "\n",
    "[",
    "]",
    "!",
    "(",
    ")",
    "-a",
    "-o",
    "-f",
    "-d",
    "-eq",
    "=",
    "$a",
    "${a}",
    "\"$@\"",
    "'q w'",
    "a=$a$a",
    "a",
    "i",
    "set",
    "menuentry",
    "submenu",
    "linux",
    "initrd",
    "/boot/vmlinuz",
    "/boot/i",
    "source",
    "configfile",
    "blscfg",
    "/boot/grub/grub.cfg",
    "search",
    "--set=root",
    "--file",
    "return",
    "break",
    "continue",
    "true",
    "false",
    "shift",
    "setparams",
    "load_env",
    "default=1",
    "\\",
    "\"",
    "'",
    "${",
    "$",
    "root=(hd0)",
    "hd0",
    "increment",
    "probe",
];

/// A script of words and of arbitrary bytes, an entry and an environment of arbitrary bytes.
pub(crate) fn run_script(input: &[u8]) {
    let mut reader = Reader::new(input);
    let mut script = String::new();
    if reader.u8().is_multiple_of(4) {
        script.push_str(SCRIPT);
    }
    let count = reader.u8();
    for _ in 0..count {
        match reader.u8() {
            byte if byte < 240 => {
                script.push_str(WORDS[usize::from(byte) % WORDS.len()]);
                script.push(' ');
            }
            byte => script.push(char::from(byte & 0x7f)),
        }
    }
    let length = usize::from(reader.u8());
    let environment = [b"# GRUB Environment Block\n".as_slice(), reader.bytes(length)].concat();
    let length = usize::from(reader.u8());
    let mut entry = if reader.u8().is_multiple_of(2) { ENTRY.as_bytes().to_vec() } else { Vec::new() };
    entry.extend(reader.bytes(length));
    let length = usize::from(reader.u8());
    let image = [b"MZ".as_slice(), reader.bytes(length), &[0; 64]].concat();
    let disk = mock::fat32(&[
        ("boot/grub/grub.cfg", script.as_bytes()),
        ("boot/grub/grubenv", &environment),
        ("loader/entries/a.conf", &entry),
        ("extlinux.conf", &entry),
        ("boot/vmlinuz", &image),
        ("boot/i", b"ramdisk"),
    ]);
    boot(Arc::new(mock::MemoryDisk(disk)));
}
