//! IEEE 1619-2018, annex B, and what a disk is held to.

use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;

use super::*;
use crate::format::RawFile;

/// Vector 4: AES-128, data unit 0, whose plaintext is the numbers from 0 to 255, twice.
const VECTOR_4: (&str, u64, &str) = (
    "2718281828459045235360287471352631415926535897932384626433832795",
    0,
    "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89cc78cf7f5e543445f8333d8fa7f5600000527\
     9fa5d8b5e4ad40e736ddb4d35412328063fd2aab53e5ea1e0a9f332500a5df9487d07a5c92cc512c8866c7e860ce93fdf166\
     a24912b422976146ae20ce846bb7dc9ba94a767aaef20c0d61ad02655ea92dc4c4e41a8952c651d33174be51a10c421110e6\
     d81588ede82103a252d8a750e8768defffed9122810aaeb99f9172af82b604dc4b8e51bcb08235a6f4341332e4ca60482a4b\
     a1a03b3e65008fc5da76b70bf1690db4eae29c5f1badd03c5ccf2a55d705ddcd86d449511ceb7ec30bf12b1fa35b913f9f74\
     7a8afd1b130e94bff94effd01a91735ca1726acd0b197c4e5b03393697e126826fb6bbde8ecc1e08298516e2c9ed03ff3c1b\
     7860f6de76d4cecd94c8119855ef5297ca67e9f3e7ff72b1e99785ca0a7e7720c5b36dc6d72cac9574c8cbbc2f801e23e56f\
     d344b07f22154beba0f08ce8891e643ed995c94d9a69c9f1b5f499027a78572aeebd74d20cc39881c213ee770b1010e4bea7\
     18846977ae119f7a023ab58cca0ad752afe656bb3c17256a9f6e9bf19fdd5a38fc82bbe872c5539edb609ef4f79c203ebb14\
     0f2e583cb2ad15b4aa5b655016a8449277dbd477ef2c8d6c017db738b18deb4a427d1923ce3ff262735779a418f20a282df9\
     20147beabe421ee5319d0568",
);

/// Vector 10: AES-256, data unit 255, the same plaintext.
const VECTOR_10: (&str, u64, &str) = (
    "2718281828459045235360287471352662497757247093699959574966967627\
     3141592653589793238462643383279502884197169399375105820974944592",
    0xff,
    "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44680a\
     86ac35adfc3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0c5cd4d5f\
     ff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500d\
     c4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f93ec05c52e0493ef\
     31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6dc3966380ad8fecb17b6\
     ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1505eb309326d68378f837459\
     5c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f9\
     0c29a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac6e333b93eb4aff0479da9a410e4450e0\
     dd7ae4c6e2910900575da401fc07059f645e8b7e9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed43851ad7\
     7f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa773dad38014bd2092fa755c824bb5e54c4f36ffd\
     a9fcea70b9c6e693e148c151",
);

const DISK_BYTES: u64 = 256 << 10;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn key(hex: &str) -> DiskKey {
    DiskKey::new(Zeroizing::new(bytes(hex))).unwrap()
}

/// An empty encrypted disk, and the file below it.
fn disk(key: &DiskKey) -> (EncryptedDisk<RawFile>, std::fs::File) {
    let file = tempfile::tempfile().unwrap();
    (EncryptedDisk::new(RawFile::new(file.try_clone().unwrap(), DISK_BYTES), key), file)
}

fn read(disk: &dyn Disk, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    disk.read_at(&mut buffer, offset).unwrap();
    buffer
}

#[test]
fn sectors_are_encrypted_as_the_standards_vectors_say() {
    let plain: Vec<u8> = (0..=255).chain(0..=255).collect();
    for (hex, number, expected) in [VECTOR_4, VECTOR_10] {
        let (disk, file) = disk(&key(hex));
        let offset = number * SECTOR_BYTES as u64;
        disk.write_at(&plain, offset).unwrap();
        let mut stored = vec![0; SECTOR_BYTES];
        file.read_exact_at(&mut stored, offset).unwrap();
        assert_eq!(stored, bytes(expected));
        assert_eq!(read(&disk, offset, SECTOR_BYTES), plain);
    }
}

#[test]
fn what_was_never_written_or_was_discarded_is_zeros_and_takes_no_space() {
    use std::os::unix::fs::MetadataExt as _;
    let (disk, file) = disk(&DiskKey::random(512).unwrap());
    assert_eq!(read(&disk, 0, 4096), [0; 4096]);
    assert_eq!(file.metadata().unwrap().blocks(), 0);
    disk.write_at(&[7; 16384], 0).unwrap();
    disk.write_at(&[0; 4096], 16384).unwrap();
    disk.discard(100, 8192).unwrap();
    let content = read(&disk, 0, 32768);
    assert!(content[..512].iter().chain(&content[8192..16384]).all(|byte| *byte == 7), "only whole sectors");
    assert!(content[512..8192].iter().all(|byte| *byte == content[512]) && matches!(content[512], 0 | 7));
    assert!(content[16384..].iter().all(|byte| *byte == 0), "zeros that were written, and a hole");
    let mut stored = [0; 4096];
    file.read_exact_at(&mut stored, 16384).unwrap();
    assert_ne!(stored, [0; 4096], "zeros that were written do not show");
}

#[test]
fn disk_has_whole_sectors_and_nothing_beyond_is_reached() {
    let file = tempfile::tempfile().unwrap();
    let disk = EncryptedDisk::new(RawFile::new(file, 1100), &DiskKey::random(256).unwrap());
    assert_eq!(disk.size_bytes(), 1024);
    let mut buffer = [0; 2];
    for offset in [1023, 1024, u64::MAX] {
        assert_eq!(disk.read_at(&mut buffer, offset).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(disk.write_at(&buffer, offset).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(disk.discard(offset, 2).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn key_shows_itself_to_nobody_and_travels_whole() {
    let key = DiskKey::random(512).unwrap();
    let text = serde_json::to_string(&key).unwrap();
    assert_eq!(serde_json::from_str::<DiskKey>(&text).unwrap(), key);
    assert_eq!(format!("{:?} {:#?}", key, Some(&key)), "DiskKey(…) Some(\n    DiskKey(…),\n)");
    assert_ne!(DiskKey::random(512).unwrap(), key);
    assert!(DiskKey::random(128).is_none() && DiskKey::new(Zeroizing::new(vec![1; 48])).is_none());
    let wrong = serde_json::from_str::<DiskKey>(r#""c2VjcmV0""#).unwrap_err().to_string();
    assert!(!wrong.contains("c2Vj") && !wrong.contains("secret"), "{wrong}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is written where, it is read as from a disk in the clear, and no plaintext lies below.
    #[test]
    fn disk_is_as_one_in_the_clear(
        wide in any::<bool>(),
        writes in prop::collection::vec((0..DISK_BYTES - 70_000, 1..70_000_usize, 1..=255_u8), 1..8),
    ) {
        let (disk, file) = disk(&DiskKey::random(if wide { 512 } else { 256 }).unwrap());
        let mut model = vec![0; usize::try_from(DISK_BYTES).unwrap()];
        for (offset, length, byte) in writes {
            disk.write_at(&vec![byte; length], offset).unwrap();
            let at = usize::try_from(offset).unwrap();
            model[at..at + length].fill(byte);
            prop_assert_eq!(read(&disk, offset, length), &model[at..at + length]);
        }
        prop_assert_eq!(read(&disk, 0, model.len()), model);
        let mut stored = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut stored, 0).unwrap();
        for sector in stored.chunks(SECTOR_BYTES) {
            let set = sector.iter().any(|byte| *byte != 0);
            prop_assert!(!set || sector.windows(8).all(|bytes| bytes.iter().any(|byte| *byte != bytes[0])));
        }
    }
}
