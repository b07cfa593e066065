//! Devices and memory that come to Debian's kernel, as its package has it, while it runs, and go from it; between two of them
//! the guest goes on from a snapshot of itself.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use super::linux::{path, put_drivers, root_disk};
use super::{lab, text, write};
use crate::harness::{Need, Stock, stock, trial};

/// The tests.
pub(super) fn trials() -> Vec<Trial> {
    vec![trial(
        "lab::plug::devices_come_to_a_stock_kernel_and_go_again_and_it_goes_on_from_a_snapshot",
        &[Need::Lab, Need::Debian],
        disk_and_network_device_come_and_go,
    )]
}

/// The guest's first program: says what comes and what goes.
const INIT: &str = "#!/bin/busybox sh\n\
    for applet in mount cat dd sync sleep ls sed wc insmod poweroff; do alias $applet=\"/bin/busybox $applet\"; done\n\
    mount -t proc proc /proc 2>/dev/null\n\
    mount -t sysfs sysfs /sys 2>/dev/null\n\
    mount -t devtmpfs devtmpfs /dev 2>/dev/null\n\
    links() { ls /sys/class/net | wc -l; }\n\
    total() { sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo; }\n\
    before=$(total)\n\
    insmod /modules/virtio_mem.ko\n\
    echo \"userland, $(links) links\"\n\
    until [ $(total) -ge $((before + 262144)) ]; do sleep 0.2; done\n\
    echo memory came\n\
    until [ $(total) -le $((before + 131072)) ]; do sleep 0.2; done\n\
    echo memory went\n\
    until [ -b /dev/vdb ]; do sleep 0.2; done\n\
    echo \"disk came: $(cat /sys/block/vdb/size) sectors, serial $(cat /sys/block/vdb/serial)\"\n\
    echo written | dd of=/dev/vdb bs=512 conv=sync 2>/dev/null && sync && echo disk written\n\
    until [ $(cat /sys/block/vdb/size) = 4096 ]; do sleep 0.2; done\n\
    echo disk grew\n\
    while [ -e /sys/block/vdb ]; do sleep 0.2; done\n\
    echo disk went\n\
    until [ $(links) = 3 ]; do sleep 0.2; done\n\
    echo \"device came: $(cat /sys/class/net/*/address)\"\n\
    echo \"sum $(cat /bin/busybox | /bin/busybox md5sum) of a file that is read after all\"\n\
    while [ $(links) = 3 ]; do sleep 0.2; done\n\
    echo device went\n\
    poweroff -f\n";

/// What the host does meanwhile, by the commands that a user has.
const HOST: &str = "said() { until grep -q \"$1\" console; do kill -0 $vmm || { cat console; exit 8; }; sleep 1; done; }\n\
    cd /tmp\n\
    for tap in t0 t1; do tunctl -t $tap && ip link set $tap up || exit 7; done\n\
    dd if=/dev/zero of=data.img bs=1024 count=1024 2>/dev/null\n\
    wisp vmm boot --control guest.sock --kernel $files/vmlinuz --initrd $files/initrd.img --disk /dev/vda --tap t0 \
        --mem 384 --hotplug-memory 256 --cmdline 'root=/dev/vda quiet memhp_default_state=online_movable' </dev/null >console &\n\
    vmm=$!\n\
    said userland\n\
    wisp vmm memory guest.sock 256 || exit 12\n\
    said 'memory came'\n\
    wisp vmm memory guest.sock 128 || exit 13\n\
    said 'memory went'\n\
    wisp vmm memory guest.sock\n\
    wisp vmm attach-disk guest.sock data.img --serial data || exit 1\n\
    said 'disk written'\n\
    wisp vmm devices guest.sock\n\
    dd if=/dev/zero of=data.img bs=1024 seek=2047 count=1 conv=notrunc 2>/dev/null\n\
    wisp vmm resize-disk guest.sock data.img --serial data || exit 5\n\
    said 'disk grew'\n\
    wisp vmm detach guest.sock data --wait 120 || exit 2\n\
    said 'disk went'\n\
    echo \"on the disk: $(head -n 1 data.img)\"\n\
    wisp vmm snapshot guest.sock guest.snap --pause || exit 9\n\
    wisp vmm snapshot-info guest.snap --verify || exit 10\n\
    kill $vmm\n\
    wait $vmm\n\
    cat console\n\
    wisp vmm boot --restore guest.snap --control guest.sock --disk /dev/vda --tap t0 </dev/null >console &\n\
    vmm=$!\n\
    until wisp vmm devices guest.sock; do kill -0 $vmm || exit 11; sleep 1; done\n\
    mac=$(wisp vmm attach-nic guest.sock t1) || exit 3\n\
    said 'device came'\n\
    wisp vmm detach guest.sock $mac --wait 120 || exit 4\n\
    said 'device went'\n\
    wait $vmm\n\
    code=$?\n\
    cat console\n\
    exit $code\n";

fn disk_and_network_device_come_and_go() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let Stock { kernel, initrd, .. } = stock()?;
    put_drivers(directory.path(), &["drivers/virtio/virtio_mem"])?;
    let disk = root_disk(directory.path(), INIT)?;
    let script = write(directory.path(), "host.sh", &format!("files=$PWD\n{HOST}"))?;
    let files = [&kernel, &initrd, &script].map(|file| path(file));
    let options = [
        "--file",
        files[0],
        "--file",
        files[1],
        "--file",
        files[2],
        "--disk",
        path(&disk),
        "--module",
        "tun",
    ];
    let ran = lab(&options, &["sh", "host.sh"])?;
    let (said, errors) = (text(&ran.stdout), text(&ran.stderr));
    ensure!(ran.status.success(), "{}\n{said}\n{errors}", ran.status);
    for line in [
        "memory came",
        "requested 128 MiB, plugged 128 MiB, room for 256 MiB",
        "data present",
        "on the disk: written",
        "userland, 2 links",
        "disk came: 2048 sectors, serial data",
        "disk grew",
        "disk went",
        "the guest stands still",
        "header, state and memory match their checksums",
        "02:57:49:53:50:01",
        "device went",
    ] {
        said.lines()
            .find(|said| said.contains(line))
            .with_context(|| format!("no `{line}`:\n{said}\n{errors}"))?;
    }
    ensure!(said.matches("userland,").count() == 1, "the guest booted once:\n{said}");
    ensure!(errors.contains("wisp: the guest powered itself off"), "{errors}");
    Ok(())
}
