use super::*;

pub(crate) use super::mock::MemoryDisk;

mod fixtures;

use fixtures::*;

const DEBIAN: &str = include_str!("tests/debian.cfg");
const STUB: &str = "search.fs_uuid 8f1c1c9e-2b9e-4f9d-9d9c-0a1b2c3d4e5f root hd0,gpt1 \n\
                    set prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n";
const CMDLINE: &str = "BOOT_IMAGE=/boot/vmlinuz-6.1.0-18-amd64 root=UUID=8f1c1c9e-2b9e-4f9d-9d9c-0a1b2c3d4e5f ro \
                       console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0";

/// Debian's /boot with a kernel and a ramdisk that are larger than one read.
fn debian(workshop: &Workshop) {
    workshop
        .file("boot/grub/grub.cfg", DEBIAN)
        .file("boot/vmlinuz-6.1.0-18-amd64", pattern(3_000_001, 1))
        .file("boot/initrd.img-6.1.0-18-amd64", pattern(5_000_003, 2))
        .file("boot/vmlinuz-6.1.0-17-amd64", pattern(1000, 3))
        .file("boot/initrd.img-6.1.0-17-amd64", pattern(1001, 4))
        .file("boot/extra.img", pattern(10, 5))
        .link("vmlinuz", "boot/vmlinuz-6.1.0-18-amd64");
}

fn check_debian(plan: &Plan) {
    assert_eq!(plan.cmdline, CMDLINE);
    assert!(bytes(&*plan.kernel) == pattern(3_000_001, 1));
    assert!(bytes(&**plan.initrd.as_ref().unwrap()) == pattern(5_000_003, 2));
}

/// A GPT as Debian's cloud images have it: the root filesystem first, then the BIOS's and the EFI's partition.
const GPT: &str = "label: gpt\nfirst-lba: 34\n1: start=262144\n14: start=2048, size=6144, \
                   type=21686148-6449-6E6F-744E-656564454649\n15: start=8192, size=253952, \
                   type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n";

#[test]
fn gpt_with_ext4_and_debians_grub_boots_the_default_entry() {
    if !have(&[EXT4, SFDISK]) {
        return;
    }
    let workshop = Workshop::new();
    debian(&workshop);
    let root = workshop.ext4("root", 64 * MIB, &[]);
    let disk = workshop.disk(256 * MIB, GPT, &[(262_144 * 512, &root)]);
    let plan = plan(&disk).unwrap();
    check_debian(&plan);
    assert_eq!(plan.description, "`Debian GNU/Linux`: /boot/vmlinuz-6.1.0-18-amd64 on partition 1 (ext4)");
}

#[test]
fn ext_filesystems_of_every_shape_are_read() {
    if !have(&[EXT4]) {
        return;
    }
    for options in [
        &["-b", "1024", "-t", "ext2"][..],
        &["-t", "ext3"],
        &["-O", "^metadata_csum,^64bit,^flex_bg"],
        &["-O", "metadata_csum,metadata_csum_seed,64bit,quota,project"],
        &["-b", "65536"],
        &["-O", "bigalloc", "-C", "65536"],
        &["-I", "128", "-O", "^metadata_csum"],
    ] {
        let workshop = Workshop::new();
        debian(&workshop);
        let image = workshop.ext4("disk", 64 * MIB, options);
        match plan(&image) {
            Ok(plan) => check_debian(&plan),
            Err(error) => panic!("{options:?}: {}", chain(&error)),
        }
    }
}

#[test]
fn entry_chosen_in_grubs_environment_is_taken_by_its_path_through_the_menus() {
    if !have(&[EXT4]) {
        return;
    }
    for wanted in [
        "gnulinux-advanced-8f1c1c9e-2b9e-4f9d-9d9c-0a1b2c3d4e5f>gnulinux-6.1.0-17-amd64-recovery-8f1c1c9e-2b9e-4f9d-9d9c-0a1b2c3d4e5f",
        "1>1",
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-17-amd64 (recovery mode)",
    ] {
        let workshop = Workshop::new();
        debian(&workshop);
        let environment = format!("# GRUB Environment Block\nnext_entry={wanted}\n");
        workshop.file("boot/grub/grubenv", format!("{environment:#<1024}"));
        let plan = plan(&workshop.ext4("disk", 64 * MIB, &[])).unwrap();
        assert!(plan.cmdline.ends_with(" ro single"), "{}", plan.cmdline);
        assert!(bytes(&*plan.kernel) == pattern(1000, 3));
        let mut initrd = pattern(1001, 4);
        initrd.extend([0; 3]);
        initrd.extend(pattern(10, 5));
        assert!(bytes(&**plan.initrd.as_ref().unwrap()) == initrd, "ramdisks follow each other aligned");
    }
}

#[test]
fn mbr_with_logical_partitions_is_read() {
    if !have(&[EXT4, SFDISK]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.file("nothing", "");
    let empty = workshop.ext4("empty", 8 * MIB, &["-U", "random"]);
    debian(&workshop);
    let root = workshop.ext4("root", 64 * MIB, &[]);
    let table = "label: dos\n1: start=2048, size=16384, type=83\n2: start=20480, type=5\n\
                 5: start=22528, size=16384, type=82\n6: start=43008, size=131072, type=83\n";
    let disk = workshop.disk(128 * MIB, table, &[(2048 * 512, &empty), (43_008 * 512, &root)]);
    let plan = plan(&disk).unwrap();
    check_debian(&plan);
    assert!(plan.description.ends_with("on partition 6 (ext4)"), "{}", plan.description);
}

#[test]
fn gpt_is_read_from_its_copy_where_the_first_is_broken() {
    if !have(&[EXT4, SFDISK]) {
        return;
    }
    let workshop = Workshop::new();
    debian(&workshop);
    let root = workshop.ext4("root", 64 * MIB, &[]);
    let disk = workshop.disk(256 * MIB, GPT, &[(262_144 * 512, &root)]);
    let file = std::fs::File::options().write(true).open(&disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"broken", 512).unwrap();
    check_debian(&plan(&disk).unwrap());
}

/// The configuration of systemd-boot on an EFI system partition.
#[test]
fn systemd_boots_entries_on_fat_are_taken_by_its_own_rules() {
    if !have(&[FAT, MTOOLS, SFDISK]) {
        return;
    }
    for width in ["12", "16", "32"] {
        let workshop = Workshop::new();
        let entry = |version: &str| {
            format!(
                "title Debian {version}\nversion {version}\nmachine-id 0123\nsort-key debian\n\
                 options root=/dev/vda2\noptions rw\nlinux /0123/{version}/linux\ninitrd /0123/{version}/initrd.img\n"
            )
        };
        workshop
            .file("loader/loader.conf", "timeout 3\n#default x\n")
            .file("loader/entries/0123-6.1.0-9.conf", entry("6.1.0-9"))
            .file("loader/entries/0123-6.1.0-10.conf", entry("6.1.0-10"))
            .file("loader/entries/0123-6.1.0-11+0-3.conf", entry("6.1.0-11"))
            .file("0123/6.1.0-10/linux", pattern(1_000_000, 7))
            .file("0123/6.1.0-10/initrd.img", pattern(700_001, 8))
            .file("0123/6.1.0-9/linux", pattern(10, 9))
            .file("0123/6.1.0-9/initrd.img", pattern(11, 10));
        let size = if width == "12" { 7 } else { 40 };
        let esp = workshop.fat("esp", size * MIB, width);
        let disk = workshop.disk(256 * MIB, GPT, &[(8192 * 512, &esp)]);
        let plan = plan(&disk).unwrap_or_else(|error| panic!("FAT{width}: {}", chain(&error)));
        assert_eq!(plan.cmdline, "root=/dev/vda2 rw");
        assert!(bytes(&*plan.kernel) == pattern(1_000_000, 7), "FAT{width}");
        assert!(bytes(&**plan.initrd.as_ref().unwrap()) == pattern(700_001, 8), "FAT{width}");
        workshop.file("loader/loader.conf", "default 0123-*-9\n");
        let esp = workshop.fat("esp", size * MIB, width);
        let chosen = fixtures::plan(&workshop.disk(256 * MIB, GPT, &[(8192 * 512, &esp)])).unwrap();
        assert!(bytes(&*chosen.kernel) == pattern(10, 9), "FAT{width}");
    }
}

#[test]
fn grubs_stub_on_the_efi_partition_leads_to_the_configuration_proper() {
    let stub = fat32_disk(&[
        ("EFI/debian/grub.cfg", STUB.replace(UUID, "1234-ABCD").as_bytes()),
        ("boot/grub/real.cfg", b""),
        ("vmlinuz", b"kernel"),
    ]);
    // On a disk without a partition table nothing is an EFI partition, so the stub alone is nothing.
    let error = find(stub).err().map(|error| chain(&error)).unwrap_or_default();
    assert!(
        error.starts_with("no boot loader configuration is on the first disk: the disk (FAT) has"),
        "{error}"
    );
}

fn fat32_disk(files: &[(&str, &[u8])]) -> Arc<dyn Disk> {
    Arc::new(MemoryDisk(mock::fat32(files)))
}

#[test]
fn fat_that_has_another_ones_magic_number_among_its_bytes_is_read() {
    let file = [0x53, 0xef].repeat(1024);
    let image = mock::fat32(&[("a", &file)]);
    assert_eq!(image[1080..1082], [0x53, 0xef], "where an ext filesystem has it");
    let volumes = Volumes::open(Arc::new(MemoryDisk(image))).unwrap();
    assert_eq!(volumes.unreadable(), [""; 0]);
    assert_eq!(volumes.volume(0).kind, "FAT");
}

#[test]
fn xfs_is_read_in_all_its_shapes() {
    if !have(&[XFS]) {
        return;
    }
    for options in [
        &[][..],
        &["-m", "crc=0"],
        &["-m", "bigtime=1,reflink=1", "-i", "nrext64=1"],
        &["-b", "size=1024"],
        &["-i", "sparse=1", "-n", "size=8192"],
    ] {
        let workshop = Workshop::new();
        debian(&workshop);
        for index in 0..300 {
            workshop.file(&format!("boot/modules/a-name-that-is-not-short-{index}"), "");
        }
        let image = workshop.xfs("disk", 400 * MIB, options);
        match plan(&image) {
            Ok(plan) => check_debian(&plan),
            Err(error) => panic!("{options:?}: {}", chain(&error)),
        }
    }
}

#[test]
fn btrfs_is_read() {
    if !have(&[BTRFS]) {
        return;
    }
    let workshop = Workshop::new();
    debian(&workshop);
    let plan = plan(&workshop.btrfs("disk", 256 * MIB, UUID)).unwrap();
    check_debian(&plan);
}

#[test]
fn unified_kernel_image_brings_its_parts() {
    let mut image = vec![0_u8; 0x400];
    image[..2].copy_from_slice(b"MZ");
    image[60] = 0x80;
    image[0x80..0x84].copy_from_slice(b"PE\0\0");
    image[0x86] = 3;
    let parts: [(&[u8; 8], &[u8]); 3] = [
        (b".cmdline", b"root=/dev/vda2 quiet\n\0"),
        (b".linux\0\0", b"the kernel"),
        (b".initrd\0", b"the ramdisk"),
    ];
    for (index, (name, content)) in parts.into_iter().enumerate() {
        let header = 0x98 + 40 * index;
        let (start, size) = (u32::try_from(image.len()).unwrap(), u32::try_from(content.len()).unwrap());
        image[header..header + 8].copy_from_slice(name);
        image[header + 8..header + 12].copy_from_slice(&size.to_le_bytes());
        image[header + 16..header + 20].copy_from_slice(&size.next_multiple_of(512).to_le_bytes());
        image[header + 20..header + 24].copy_from_slice(&start.to_le_bytes());
        image.extend(content);
        image.resize(image.len().next_multiple_of(512), 0);
    }
    let plan = find(fat32_disk(&[("EFI/Linux/debian-6.1.efi", &image)])).unwrap();
    assert_eq!(plan.cmdline, "root=/dev/vda2 quiet");
    assert_eq!(bytes(&*plan.kernel), b"the kernel");
    assert_eq!(bytes(&**plan.initrd.as_ref().unwrap()), b"the ramdisk");
}

#[test]
fn alpines_extlinux_is_read() {
    let configuration =
        b"DEFAULT virt\nLABEL virt\n LINUX vmlinuz-virt\n INITRD initramfs-virt\n APPEND root=/dev/vda\n";
    let disk = fat32_disk(&[
        ("boot/extlinux.conf", configuration),
        ("boot/vmlinuz-virt", b"kernel"),
        ("boot/initramfs-virt", b"ramdisk"),
    ]);
    let plan = find(disk).unwrap();
    assert_eq!((plan.cmdline.as_str(), bytes(&*plan.kernel)), ("root=/dev/vda", b"kernel".to_vec()));
}

#[test]
fn links_in_circles_and_out_of_the_root_lead_nowhere_bad() {
    if !have(&[EXT4]) {
        return;
    }
    let workshop = Workshop::new();
    workshop
        .file("boot/grub/grub.cfg", "linux /a\nif [ -f /circle ]; then linux /x; fi\n")
        .link("circle", "circle2")
        .link("circle2", "/circle")
        .link("a", "../../../b/c/../kernel")
        .link("b", "boot/./")
        .file("boot/c/d", "")
        .file("boot/kernel", "kernel");
    let plan = plan(&workshop.ext4("disk", 16 * MIB, &[])).unwrap();
    assert_eq!(bytes(&*plan.kernel), b"kernel");
}

#[test]
fn what_boots_nothing_says_why_in_one_sentence() {
    let disk = |bytes: &[u8], size: usize| {
        let mut bytes = bytes.to_vec();
        bytes.resize(size, 0);
        find(Arc::new(MemoryDisk(bytes))).err().map(|error| chain(&error)).unwrap_or_default()
    };
    let mut ntfs = vec![0; 512];
    ntfs[3..11].copy_from_slice(b"NTFS    ");
    for (bytes, size, says) in [
        (
            &b""[..],
            0,
            "the first disk has no partition table and no filesystem that is known; it has 0 bytes",
        ),
        (b"", 1 << 20, "no filesystem that is known; it begins with zeros"),
        (b"#!/bin/sh\n", 1 << 20, "it begins with 23212f62696e2f73"),
        (
            b"LUKS\xba\xbe",
            1 << 20,
            "nothing on the first disk can be read: the disk is an encrypted volume (LUKS)",
        ),
        (&ntfs, 1 << 20, "the disk is NTFS, as Windows has it"),
    ] {
        let error = disk(bytes, size);
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn partitions_that_cannot_be_read_are_named() {
    if !have(&[EXT4, SFDISK]) {
        return;
    }
    let workshop = Workshop::new();
    debian(&workshop);
    let root = workshop.ext4("root", 64 * MIB, &[]);
    let locked = workshop.path("locked");
    std::fs::write(&locked, b"LUKS\xba\xbe").unwrap();
    let table =
        "label: gpt\n1: start=2048, size=2048\n2: start=4096, size=131072\n3: start=143360, size=2048\n";
    let disk = workshop.disk(100 * MIB, table, &[(2048 * 512, &locked), (4096 * 512, &root)]);
    check_debian(&plan(&disk).unwrap());
    let file = std::fs::File::options().write(true).open(&disk).unwrap();
    file.set_len(40 * MIB).unwrap();
    let error = sentence(&disk);
    assert_eq!(
        error,
        "nothing on the first disk can be read: partition 1 is an encrypted volume (LUKS); partition 2 ends at byte \
         69206016, but the disk at byte 41943040: the image is truncated; partition 3 ends at byte 74448896, but the \
         disk at byte 41943040: the image is truncated"
    );
    workshop.file("boot/grub/grub.cfg", DEBIAN.replace("/boot/initrd", "/boot/missing"));
    let error = sentence(&workshop.ext4("root", 64 * MIB, &[]));
    assert_eq!(
        error,
        "open the initial ramdisk /boot/missing.img-6.1.0-18-amd64 on the disk (ext4), which `Debian GNU/Linux` \
         names: there is no such file"
    );
    workshop.file("boot/grub/grub.cfg", DEBIAN.replace("vmlinuz-6", "linux-6"));
    let error = sentence(&workshop.ext4("root", 64 * MIB, &[]));
    assert!(
        error.ends_with(
            "its entry `Debian GNU/Linux` loads no Linux kernel: the kernel /boot/linux-6.1.0-18-amd64 is not on \
             the disk (ext4)"
        ),
        "{error}"
    );
}

/// As Debian's and Ubuntu's installers lay it out (paths from the top level), and as SUSE's does (paths from the default
/// subvolume), with every compression.
#[test]
fn btrfs_subvolumes_and_compression_are_read() {
    if !have(&[BTRFS, ("btrfs", "btrfs-progs")]) {
        return;
    }
    for (compression, is_default) in [("zstd", true), ("zlib", false), ("lzo", false), ("no", true)] {
        let workshop = Workshop::new();
        debian(&workshop);
        // What compresses: long runs with a little between them.
        let kernel: Vec<u8> =
            (0..3_000_000_u32).map(|index| u8::try_from(index / 1000 % 250).unwrap()).collect();
        workshop.file("boot/vmlinuz-6.1.0-18-amd64", &kernel);
        let empty = Workshop::new();
        // The kernel knows filesystems by their UUIDs.
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
        let image = empty.btrfs("disk", 256 * MIB, uuid.trim());
        let Some(mount) = Mount::new(&image, &format!("loop,compress-force={compression}"), &workshop) else {
            return;
        };
        let root = mount.path("@rootfs");
        run("btrfs", &["subvolume", "create", &root]);
        run("cp", &["-a", &workshop.path("tree/boot"), &root]);
        if is_default {
            run("btrfs", &["subvolume", "set-default", &root]);
        } else {
            let script = DEBIAN
                .replace("/boot/vmlinuz", "/@rootfs/boot/vmlinuz")
                .replace("/boot/init", "/@rootfs/boot/init");
            std::fs::write(mount.path("@rootfs/boot/grub/grub.cfg"), script).unwrap();
        }
        drop(mount);
        let plan = plan(&image).unwrap_or_else(|error| panic!("{compression}: {}", chain(&error)));
        assert!(bytes(&*plan.kernel) == kernel, "{compression}");
        assert!(bytes(&**plan.initrd.as_ref().unwrap()) == pattern(5_000_003, 2), "{compression}");
    }
}

/// The image is copied while the filesystem is in use: what was written is in the journal alone, as after a crash.
#[test]
fn filesystem_that_was_not_unmounted_is_read_as_it_was() {
    if !have(&[EXT4, XFS]) {
        return;
    }
    for kind in ["ext4", "XFS"] {
        let workshop = Workshop::new();
        debian(&workshop);
        let image = match kind {
            "ext4" => workshop.ext4("disk", 64 * MIB, &[]),
            _ => workshop.xfs("disk", 400 * MIB, &[]),
        };
        let Some(mount) = Mount::new(&image, "loop", &workshop) else { return };
        let script = DEBIAN.replace("6.1.0-18", "6.1.0-19");
        for (name, bytes) in [
            ("boot/vmlinuz-6.1.0-19-amd64", pattern(400_000, 1)),
            ("boot/initrd.img-6.1.0-19-amd64", pattern(500_000, 2)),
            ("boot/grub/grub.cfg.new", script.into_bytes()),
        ] {
            std::fs::write(mount.path(name), bytes).unwrap();
            std::fs::File::open(mount.path(name)).unwrap().sync_all().unwrap();
        }
        std::fs::rename(mount.path("boot/grub/grub.cfg.new"), mount.path("boot/grub/grub.cfg")).unwrap();
        std::fs::File::open(mount.path("boot/grub")).unwrap().sync_all().unwrap();
        let copy = workshop.path("crashed");
        run("cp", &["--sparse=always", &image, &copy]);
        drop(mount);
        let plan = plan(&copy).unwrap_or_else(|error| panic!("{kind}: {}", chain(&error)));
        assert!(bytes(&*plan.kernel) == pattern(400_000, 1), "{kind}");
    }
}

/// How long a boot takes to have the kernel and a ramdisk of 60 MiB in hand; a figure, not a bound.
#[test]
fn large_ramdisk_is_read_in_large_pieces() {
    if !have(&[EXT4, XFS, BTRFS]) {
        return;
    }
    for kind in ["ext4", "XFS", "Btrfs"] {
        let workshop = Workshop::new();
        debian(&workshop);
        workshop.file("boot/initrd.img-6.1.0-18-amd64", vec![7; 60 << 20]);
        let image = match kind {
            "ext4" => workshop.ext4("disk", 256 * MIB, &[]),
            "XFS" => workshop.xfs("disk", 400 * MIB, &[]),
            _ => workshop.btrfs("disk", 256 * MIB, UUID),
        };
        let begun = std::time::Instant::now();
        let plan = plan(&image).unwrap();
        let found = begun.elapsed();
        let (initrd, mut buffer) = (plan.initrd.unwrap(), vec![0; 1 << 20]);
        for piece in 0..60 {
            initrd.read_exact_at(&mut buffer, piece << 20).unwrap();
        }
        println!("{kind}: found in {found:?}, 60 MiB read after {:?}", begun.elapsed());
    }
}
