//! Encrypted disks beside Linux' own dm-crypt: each reads what the other wrote, for keys of either size.

use std::fs;
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use storage::format::{Disk as _, DiskKey, EncryptedDisk, RawFile};

use super::{lab, text, write};
use crate::harness::{Need, trial};

/// The tests; LVM's package brings `dmsetup`.
pub(super) fn trials() -> Vec<Trial> {
    let needs = &[Need::Lab, Need::Lvm];
    vec![trial("lab::crypt::dm_crypt_and_the_cloud_read_one_another", needs, read_one_another)]
}

const SECTORS: usize = 2048;
const SECTOR_BYTES: usize = 512;
const DISK_BYTES: usize = SECTORS * SECTOR_BYTES;
/// The sector that is written inside.
const WRITTEN: usize = 7;
const MODULES: [&str; 4] = ["dm_crypt", "xts", "ecb", "aes_generic"];

/// What is on a disk: every sector another, a hole at the end.
fn content() -> Vec<u8> {
    let mut content: Vec<u8> = (0..SECTORS / 2).flat_map(|number| [number as u8 | 1; SECTOR_BYTES]).collect();
    content.resize(DISK_BYTES, 0);
    content
}

fn read_one_another() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let keys = [256, 512].map(DiskKey::random).into_iter().collect::<Option<Vec<_>>>().context("no keys")?;
    let (mut script, mut stored) = ("set -e\n".to_owned(), fs::File::create(path("disk.img"))?);
    for (index, key) in keys.iter().enumerate() {
        let file = tempfile::NamedTempFile::new_in(directory.path())?;
        let disk = EncryptedDisk::new(RawFile::new(file.reopen()?, DISK_BYTES as u64), key);
        disk.write_at(&content()[..DISK_BYTES / 2], 0)?;
        file.as_file().set_len(DISK_BYTES as u64)?;
        stored.write_all(&fs::read(file.path())?)?;
        let hex: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let begin = index * SECTORS;
        script += &format!(
            "dmsetup create disk{index} --noudevsync --table '0 {SECTORS} crypt aes-xts-plain64 {hex} 0 /dev/vda {begin}'\n\
             head -c {} /dev/dm-{index} >>/tmp/clear\n\
             printf 'written inside' | dd of=/dev/dm-{index} bs={SECTOR_BYTES} seek={WRITTEN} conv=sync,fsync 2>/dev/null\n",
            DISK_BYTES / 2
        );
    }
    drop(stored);
    let script = write(directory.path(), "host.sh", &script)?.display().to_string();
    let (disk, clear) = (path("disk.img").display().to_string(), path("clear"));
    let bring = format!("/tmp/clear:{}", clear.display());
    let fixed = ["--file", &script, "--disk", &disk, "--bring", &bring, "--program", "/usr/sbin/dmsetup"];
    let modules = MODULES.iter().flat_map(|module| ["--module", module]);
    let ran = lab(&fixed.into_iter().chain(modules).collect::<Vec<_>>(), &["sh", "host.sh"])?;
    ensure!(ran.status.success(), "{}: {}", ran.status, text(&ran.stderr));
    let half = &content()[..DISK_BYTES / 2];
    ensure!(fs::read(clear)? == [half, half].concat(), "dm-crypt reads something else");

    let stored = fs::read(path("disk.img"))?;
    for (key, stored) in keys.iter().zip(stored.chunks(DISK_BYTES)) {
        let disk = encrypted_with(key, stored)?;
        let mut clear = vec![0; DISK_BYTES];
        disk.read_at(&mut clear, 0)?;
        let mut expected = content();
        let sector = &mut expected[WRITTEN * SECTOR_BYTES..][..SECTOR_BYTES];
        sector.fill(0);
        sector[..14].copy_from_slice(b"written inside");
        ensure!(clear == expected, "something else than dm-crypt wrote");
    }
    Ok(())
}

/// The disk of these stored bytes.
fn encrypted_with(key: &DiskKey, stored: &[u8]) -> Result<EncryptedDisk<RawFile>> {
    let mut file = tempfile::tempfile()?;
    file.write_all(stored)?;
    Ok(EncryptedDisk::new(RawFile::new(file, DISK_BYTES as u64), key))
}
