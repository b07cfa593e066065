//! Linux guests under our own VMM, in the lab: Debian's kernel as its package has it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use super::{lab, text};
use crate::harness::{Need, Stock, slim_kernel, stock, trial, wisp};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "lab::linux::kernels_boot_from_disk_reboot_are_handed_over_reset_by_their_watchdog_and_forked",
            &[Need::Lab, Need::Debian, Need::SlimKernel],
            kernels_boot_from_disk_reboot_are_handed_over_and_forked,
        ),
        trial(
            "lab::linux::kernels_that_cannot_boot_say_why",
            &[Need::Lab, Need::Debian],
            kernels_that_cannot_boot_say_why,
        ),
        trial(
            "lab::linux::broken_kernel_files_are_refused",
            &[Need::Debian],
            broken_kernel_files_are_refused,
        ),
    ]
}

/// What the guest's first program does: say what it found, and end as the command line asks.
const INIT: &str = "#!/bin/busybox sh\n\
    /bin/busybox mount -t proc proc /proc 2>/dev/null\n\
    echo \"userland: $(/bin/busybox nproc) processors, root $(/bin/busybox grep ' / ' /proc/mounts)\"\n\
    echo \"features:$(for f in aes fsgsbase popcnt smep sse4_2; do /bin/busybox grep -qw $f /proc/cpuinfo && echo -n \" $f\"; done)\"\n\
    case \"$(/bin/busybox cat /proc/cmdline)\" in *fork*) . /fork.sh; /bin/busybox poweroff -f ;; esac\n\
    /bin/busybox mount -o remount,rw / && echo written >/mark && /bin/busybox sync\n\
    case \"$(/bin/busybox cat /proc/cmdline)\" in *devices*) . /devices.sh ;; esac\n\
    case \"$(/bin/busybox cat /proc/cmdline)\" in\n\
        *end=reboot*) /bin/busybox reboot -f ;;\n\
        *) /bin/busybox poweroff -f ;;\n\
    esac\n";

/// The same with the devices that somebody asked for: the drivers of its package have them in use. At last it arms its watchdog
/// and leaves it alone.
const DEVICES: &str = "mount() { /bin/busybox mount \"$@\"; }\n\
    mount -t sysfs sysfs /sys 2>/dev/null\n\
    mount -t devtmpfs devtmpfs /dev 2>/dev/null\n\
    total() { /bin/busybox sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo; }\n\
    before=$(total)\n\
    link=$(/bin/busybox ls /sys/class/net | /bin/busybox grep -v lo)\n\
    echo \"queues: $(echo $(/bin/busybox ls /sys/class/net/$link/queues))\"\n\
    /bin/busybox ip link set $link up && /bin/busybox ip address add 10.9.9.2/24 dev $link\n\
    /bin/busybox ping -c 1 -W 1 10.9.9.1 >/dev/null\n\
    for module in virtio_console virtio_balloon libnvdimm nd_btt nd_pmem nd_virtio virtio_pmem vsock \
        vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport watchdog; do\n\
        /bin/busybox insmod /modules/$module.ko 2>/dev/null\n\
    done\n\
    for device in /sys/bus/virtio/devices/*; do\n\
        [ -e $device/driver ] && echo \"driver $(/bin/busybox basename $(/bin/busybox readlink $device/driver))\"\n\
    done\n\
    for second in 1 2 3 4 5 6 7 8 9 10; do\n\
        [ $((before - $(total))) -ge 65536 ] && echo balloon: 64 MiB and no less && break\n\
        /bin/busybox sleep 1\n\
    done\n\
    echo hints may come >/dev/hvc0\n\
    for second in $(/bin/busybox seq 60); do\n\
        [ $((before - $(total))) -lt 65536 ] && echo balloon: nothing any more && break\n\
        /bin/busybox sleep 1\n\
    done\n\
    for processor in 1 2; do /bin/busybox taskset $processor /bin/busybox true || break; done && echo both run\n\
    echo \"pmem: $(/bin/busybox head -n 1 /dev/pmem0)\"\n\
    echo said on hvc0 >/dev/hvc0\n\
    /bin/busybox insmod /modules/wdat_wdt.ko timeout=3\n\
    echo \"watchdog: $(/bin/busybox cat /sys/class/watchdog/watchdog0/identity)\"\n\
    echo >/dev/watchdog\n\
    /bin/busybox sleep 100\n";

/// What a guest does that is to go on from a snapshot of itself: it waits until its kernel knows that it has.
const FORK: &str = "/bin/busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null\n\
    echo fork me\n\
    until /bin/busybox dmesg | /bin/busybox grep -q 'crng reseeded due to virtual machine fork'; do /bin/busybox sleep 0.1; done\n\
    echo \"random: $(/bin/busybox head -c 64 /dev/urandom | /bin/busybox md5sum)\"\n";

/// On the host: a guest of the slim kernel, of which two go on from one snapshot.
const FORKS: &str = "wisp vmm boot --kernel vmlinux --disk /dev/vda --mem 128 --cmdline 'root=/dev/vda quiet fork' --control /tmp/slim \
        </dev/null >/tmp/slim.log & vmm=$!; \
    until grep -q 'fork me' /tmp/slim.log; do kill -0 $vmm || { cat /tmp/slim.log; exit 8; }; sleep 1; done; \
    wisp vmm snapshot /tmp/slim /tmp/slim.snap || exit 7; kill $vmm; wait $vmm; \
    for fork in 1 2; do wisp vmm boot --restore /tmp/slim.snap --disk /dev/vda </dev/null | grep random; done";

/// On the host: a guest of the slim kernel whose memory is the host's reserved huge pages, of which so few are left at last; and
/// one for which there are too few.
const HUGE: &str = "wisp vmm boot --kernel vmlinux --disk /dev/vda --mem 64 --huge-pages hugetlb --cmdline 'root=/dev/vda quiet' </dev/null & vmm=$!; \
    while kill -0 $vmm 2>/dev/null; do grep HugePages_Free /proc/meminfo; sleep 0.1; done | sort -n -k 2 | head -n 1; \
    wait $vmm || exit 6; \
    wisp vmm boot --kernel vmlinux --mem 128 --huge-pages hugetlb 2>&1 </dev/null | sed 's/^/refused: /'";
/// How many of them there are, and how many the guest touches at least: what its kernel takes when it starts.
const HUGE_PAGES: u32 = 40;
const TOUCHED_MIN: u32 = 4;

/// Meanwhile, on the host: what the guest has free goes back, another process has it from then on, and its balloon has nothing
/// any more. Before and after, it uses all of its device's queues.
const HINTS: &str = "(until ip link set t0 up 2>/dev/null; do sleep 1; done; \
    until grep -q hints /tmp/hvc0 2>/dev/null; do sleep 1; done; \
    wisp vmm status /tmp/control >/tmp/queues; \
    tries=0; until wisp vmm balloon /tmp/control --hints >/tmp/hints 2>&1; ! grep -q '^[0-3] MiB' /tmp/hints || [ $tries = 60 ]; do \
    tries=$((tries + 1)); sleep 1; done; \
    wisp vmm upgrade /tmp/control --errors /tmp/errors >>/tmp/hints 2>&1; \
    wisp vmm status /tmp/control >>/tmp/queues; wisp vmm balloon /tmp/control 0)";

/// Drivers of Debian's kernel for these devices, in the order in which they need each other.
const MODULES: [&str; 12] = [
    "drivers/char/virtio_console",
    "drivers/virtio/virtio_balloon",
    "drivers/nvdimm/libnvdimm",
    "drivers/nvdimm/nd_btt",
    "drivers/nvdimm/nd_pmem",
    "drivers/nvdimm/nd_virtio",
    "drivers/nvdimm/virtio_pmem",
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
    "drivers/watchdog/watchdog",
    "drivers/watchdog/wdat_wdt",
];

/// A driver of Debian's kernel, by its path among all of them.
pub(super) fn driver(name: &str) -> Result<PathBuf> {
    let package = busybox()?;
    let package = package.ancestors().nth(2).context("the lab's packages are elsewhere")?;
    let mut versions = std::fs::read_dir(package.join("lib/modules")).context("list the lab's modules")?;
    let kernel = versions.next().context("the lab has no modules")??.path().join("kernel");
    Ok(kernel.join(name).with_extension("ko"))
}

/// Puts drivers of Debian's kernel into `directory/modules`, for [`root_disk`].
pub(super) fn put_drivers(directory: &Path, modules: &[&str]) -> Result<()> {
    std::fs::create_dir_all(directory.join("modules"))?;
    for module in modules {
        let from = driver(module)?;
        let name = from.file_name().context("a module has a name")?;
        std::fs::copy(&from, directory.join("modules").join(name))
            .with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(())
}

/// A disk with an ext4 file system that holds a first program and nothing else.
pub(super) fn root_disk(directory: &Path, init: &str) -> Result<PathBuf> {
    let tree = directory.join("tree");
    for name in ["bin", "sbin", "proc", "sys", "dev", "run", "tmp", "etc"] {
        std::fs::create_dir_all(tree.join(name))?;
    }
    std::fs::write(tree.join("sbin/init"), init)?;
    for file in ["bin/busybox", "sbin/init"] {
        let path = tree.join(file);
        if file == "bin/busybox" {
            std::fs::copy(busybox()?, &path).context("copy busybox")?;
            std::os::unix::fs::symlink("busybox", tree.join("bin/sh"))?;
        }
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    if directory.join("modules").exists() {
        std::fs::rename(directory.join("modules"), tree.join("modules"))?;
    }
    for script in ["devices.sh", "fork.sh"] {
        if directory.join(script).exists() {
            std::fs::rename(directory.join(script), tree.join(script))?;
        }
    }
    let disk = directory.join("root.img");
    let made = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&tree, &disk])
        .arg("16M")
        .output()
        .context("run mke2fs")?;
    ensure!(made.status.success(), "mke2fs: {}", text(&made.stderr));
    Ok(disk)
}

/// The busybox of the lab, which is linked statically.
pub(super) fn busybox() -> Result<PathBuf> {
    let cache = crate::harness::lab_cache();
    let entries = std::fs::read_dir(&cache).context("list the lab's packages")?;
    let mut found =
        entries.filter_map(|entry| Some(entry.ok()?.path().join("bin/busybox")).filter(|path| path.exists()));
    found
        .next()
        .or_else(|| Some(PathBuf::from("/bin/busybox")).filter(|path| path.exists()))
        .context("no busybox")
}

pub(super) fn path(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

/// Two processors, which take turns on the one that the lab has (with two, its emulation of SVM has a guest stop now and
/// then); the ramdisk as the package makes it, the root on virtio-blk; a reboot from inside. The second time it is shown no
/// more of the processor than every host has, and has every device that can be asked for, by one of which it ends, in another
/// process than the one that began with it. Then the slim kernel, which has a driver for generation ids: of one guest there are two; and
/// it runs in the host's reserved huge pages.
fn kernels_boot_from_disk_reboot_are_handed_over_and_forked() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let slim = slim_kernel(directory.path())?;
    let Stock { kernel, initrd, .. } = stock()?;
    put_drivers(directory.path(), &MODULES)?;
    std::fs::write(directory.path().join("devices.sh"), DEVICES)?;
    std::fs::write(directory.path().join("fork.sh"), FORK)?;
    let disk = root_disk(directory.path(), INIT)?;
    let boot = "wisp vmm boot --kernel vmlinuz --initrd initrd.img --disk /dev/vda --mem 384 --cpus 2 \
                --cmdline \"root=/dev/vda quiet $end\"";
    let script = format!(
        "end=end=reboot; {boot} || exit 9; echo again; end=devices; echo 'kept in memory' >/tmp/memory; \
         {HINTS} & {boot} --cpu baseline --console file=/tmp/hvc0 --balloon 64,firm --pmem /tmp/memory,ro --vsock /tmp/vsock \
         --tap t0,queues=2 --watchdog reset --upgradable --control /tmp/control </dev/null; code=$?; \
         while wisp vmm status /tmp/control >/dev/null 2>&1; do sleep 1; done; cat /tmp/errors >&2; {FORKS}; \
         echo {HUGE_PAGES} >/proc/sys/vm/nr_hugepages; {HUGE}; \
         echo \"on the host: $(tail -n 1 /tmp/hvc0)\"; echo \"hints: $(cat /tmp/hints)\"; \
         sed 's/^/host: /' /tmp/queues; head -c 4096 /dev/vda >/dev/null; exit $code"
    );
    let files = [&kernel, &initrd, &slim].map(|file| path(file));
    let options = ["--file", files[0], "--file", files[1], "--file", files[2], "--disk", path(&disk)];
    let options = [&options[..], &["--module", "tun"]].concat();
    let ran = lab(&options, &["sh", "-c", &script])?;
    let (said, errors) = (text(&ran.stdout), text(&ran.stderr));
    ensure!(ran.status.success(), "{}\n{said}\n{errors}", ran.status);
    ensure!(said.matches("userland: 2 processors, root /dev/vda / ext4").count() == 2, "{said}\n{errors}");
    let again = said.find("again\n").context("no second boot")?;
    ensure!(said[..again].contains("reboot: Restarting system"), "{said}");
    ensure!(said[..again].contains("features: aes fsgsbase popcnt smep sse4_2"), "{said}");
    ensure!(said[again..].lines().any(|line| line.trim_end() == "features: popcnt sse4_2"), "{said}");
    for line in [
        "queues: rx-0 rx-1 tx-0 tx-1",
        "driver virtio_console",
        "driver virtio_balloon",
        "driver virtio_pmem",
        "driver vmw_vsock_virtio_transport",
        "balloon: 64 MiB and no less",
        "balloon: nothing any more",
        "both run",
        "pmem: kept in memory",
        "watchdog: wdat_wdt",
        "on the host: said on hvc0",
    ] {
        ensure!(said[again..].lines().any(|found| found.trim_end() == line), "no line {line:?}: {said}");
    }
    // Debian's kernel empties what it takes hold of, and zeros need no pages.
    let hints = said.split("hints: ").nth(1).context("no hints")?;
    let mib = |text: &str| text.trim().parse::<u32>().ok();
    let free = hints.split_once(" MiB are free, ").and_then(|(free, rest)| {
        Some((
            mib(free)?,
            mib(rest.split_once(" MiB of them went to the host; the guest stood still for ")?.0)?,
        ))
    });
    let (free, returned) = free.with_context(|| hints.to_owned())?;
    ensure!(free >= 4 && returned * 2 >= free, "{hints}");
    ensure!(hints.contains("the guest is in another process; it stood still for "), "{hints}");
    let used = "host: nic 02:57:49:53:50:00 pairs of queues: 2, used by the guest: 2";
    ensure!(said.lines().filter(|line| *line == used).count() == 2, "{said}");
    let sent =
        said.lines().filter(|line| line.starts_with("host:   pair ") && !line.contains("sent 0 packets"));
    ensure!(sent.count() > 0, "{said}");
    let numbers: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("random: ")).collect();
    ensure!(numbers.len() == 2 && numbers[0] != numbers[1], "{numbers:?}: {said}\n{errors}");
    let ends: Vec<_> = errors.lines().filter(|line| line.starts_with("wisp: ")).collect();
    let wanted = [
        "wisp: the guest asked for a reset",
        "wisp: the guest was handed over to another process",
        "wisp: the guest's watchdog ran out, which resets the guest",
        "wisp: the VMM was told to end by signal 15",
        "wisp: the guest powered itself off",
        "wisp: the guest powered itself off",
        "wisp: the guest powered itself off",
    ];
    ensure!(ends == wanted, "{errors}");
    let left = said.lines().find_map(|line| line.strip_prefix("HugePages_Free:")?.trim().parse::<u32>().ok());
    ensure!(
        left.is_some_and(|left| left + TOUCHED_MIN <= HUGE_PAGES),
        "huge pages: {left:?}: {said}\n{errors}"
    );
    let refused = "refused: wisp: the host has not 128 MiB of free huge pages of 2 MiB";
    ensure!(said.lines().any(|line| line.starts_with(refused)), "{said}\n{errors}");
    // What the guest wrote is on the disk.
    let mark = Command::new("/usr/sbin/debugfs").args(["-R", "cat /mark", path(&disk)]).output()?;
    ensure!(text(&mark.stdout) == "written\n", "{}{}", text(&mark.stdout), text(&mark.stderr));
    Ok(())
}

fn kernels_that_cannot_boot_say_why() -> Result<()> {
    let kernel = stock()?.kernel;
    let script = "wisp vmm boot --kernel vmlinuz --mem 256 --cmdline quiet";
    let ran = lab(&["--file", path(&kernel)], &["sh", "-c", script])?;
    let (said, errors) = (text(&ran.stdout), text(&ran.stderr));
    ensure!(ran.status.code() == Some(1), "{}\n{said}\n{errors}", ran.status);
    ensure!(said.contains("Kernel panic"), "{said}\n{errors}");
    let sentence = "wisp: the guest's kernel panicked while it booted: VFS: Unable to mount root fs";
    ensure!(errors.contains(sentence), "{errors}");
    Ok(())
}

/// No KVM is needed to see that a file is no whole kernel.
fn broken_kernel_files_are_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let whole = std::fs::read(stock()?.kernel)?;
    let cases: [(&str, &[u8], &str); 4] = [
        ("truncated", &whole[..whole.len() / 2], "shorter than its header says"),
        ("short", &whole[..600], "the kernel is "),
        ("empty", &[], "neither an ELF image"),
        ("text", b"this is no kernel", "neither an ELF image"),
    ];
    for (name, bytes, wanted) in cases {
        let file = directory.path().join(name);
        std::fs::write(&file, bytes)?;
        let ran = Command::new(wisp()).args(["vmm", "boot", "--kernel", path(&file)]).output()?;
        let errors = text(&ran.stderr);
        ensure!(ran.status.code() == Some(1) && errors.contains(wanted), "{name}: {}\n{errors}", ran.status);
    }
    Ok(())
}
