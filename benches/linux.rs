//! What Linux guests take from the VMM's start to their first program and to their address, in the nested lab, whose
//! clock counts instructions: those of the guest, of KVM's exits and of the VMM together, whatever the machine.
//!
//! The baseline is Debian's own cloud kernel with the initial ramdisk that its package makes. With
//! `LINUX_KERNEL=/path/to/vmlinux` another kernel boots the same busybox disk. `cargo bench --bench linux` builds what
//! is missing below the build directory.

#[allow(dead_code, reason = "a count of instructions needs no second sample")]
mod measure;

#[path = "../tests/it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the system tests use the rest")]
mod harness;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::harness::{Stock, guest_image, lab_cache, stock, wisp};
use crate::measure::Line;

/// Boots what the arguments of `wisp vmm boot` say on a tap with DHCP and, at each of the marks, prints the clock and
/// the exits of KVM that were needed.
const HOST: &str = r#"
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
tunctl -t tap0 >/dev/null && ip address add 10.0.9.1/24 dev tap0 && ip link set tap0 up
printf 'start 10.0.9.2\nend 10.0.9.9\ninterface tap0\noption subnet 255.255.255.0\nlease_file /tmp/leases\n' >/tmp/udhcpd.conf
: >/tmp/leases
udhcpd /tmp/udhcpd.conf 2>/dev/null
first=$1 address=$2
shift 2
say() { read -r up idle </proc/uptime; echo "$1 $up $(cat /sys/kernel/debug/kvm/exits)"; }
say start
wisp vmm boot --tap tap0 "$@" </dev/null 2>&1 | while IFS= read -r line; do
    case "$line" in
    *"$first"*) say first ;;
    *"$address"*) say address; killall wisp ;;
    esac
done
"#;
/// Seconds that one boot may take on a busy machine.
const TIMEOUT_S: &str = "900";

/// One guest.
struct Guest {
    name: &'static str,
    memory_mib: u32,
    /// Names inside and files outside.
    files: Vec<(&'static str, PathBuf)>,
    /// Options of `wisp vmm boot`.
    options: Vec<&'static str>,
    /// What its console says when its first program runs, if it says that, and when it has its address.
    marks: [&'static str; 2],
}

/// A mark that no console has.
const UNSAID: &str = "-unsaid-";

/// What one boot took to a mark: seconds, and exits of KVM.
#[derive(Debug, Clone, Copy, Default)]
struct Reached {
    seconds: f64,
    exits: f64,
}

/// One boot.
#[derive(Debug, Clone, Copy, Default)]
struct Boot {
    first: Option<Reached>,
    address: Reached,
}

fn main() -> Result<()> {
    let mut baseline = None;
    for guest in guests()? {
        let boot = guest.boot().with_context(|| guest.name.to_owned())?;
        let of = baseline.get_or_insert(boot);
        let line = |what: &str, unit, value, baseline| {
            let what = format!("{}: {what}", guest.name);
            Line { what: &what, unit, value, baseline, of: "Debian's cloud kernel" }.print();
        };
        for (mark, reached, of) in
            [("first program", boot.first, of.first), ("address", Some(boot.address), Some(of.address))]
        {
            if let (Some(reached), Some(of)) = (reached, of) {
                line(&format!("start to {mark}"), "Ginstr", reached.seconds, of.seconds);
                line(&format!("exits to {mark}"), "exits", reached.exits, of.exits);
            }
        }
    }
    Ok(())
}

fn guests() -> Result<Vec<Guest>> {
    let slim = ["wisp: userland", "wisp: network"];
    let disk = |name, options: &[&str], memory_mib| {
        let files = vec![("disk.img", guest_image(options)?)];
        Ok::<_, anyhow::Error>(Guest {
            name,
            memory_mib,
            files,
            options: vec!["--disk", "disk.img"],
            marks: slim,
        })
    };
    let Stock { kernel, initrd, .. } = stock()?;
    let with_stock_kernel =
        ["--kind", "busybox", "--kernel", kernel.to_str().context("the build directory")?];
    let mut debian = disk("Debian's kernel, busybox", &with_stock_kernel, 256)?;
    debian.files.extend([("vmlinuz", kernel.clone()), ("initrd.img", initrd)]);
    debian.options.extend([
        "--kernel",
        "vmlinuz",
        "--initrd",
        "initrd.img",
        "--cmdline",
        "root=/dev/vda rw quiet",
    ]);
    let busybox = disk("slim kernel, busybox", &["--kind", "busybox"], 256)?;
    let other = std::env::var_os("LINUX_KERNEL").map(|path| Guest {
        name: "LINUX_KERNEL, busybox",
        memory_mib: 256,
        files: [busybox.files.clone(), vec![("vmlinux", path.into())]].concat(),
        options: [&busybox.options[..], &["--kernel", "vmlinux", "--cmdline", "root=/dev/vda rw quiet"]]
            .concat(),
        marks: slim,
    });
    // Its first program says nothing; with the same kernel it is reached as busybox is.
    let mut systemd = disk("slim kernel, Debian with systemd", &["--kind", "debian"], 256)?;
    systemd.marks[0] = UNSAID;
    let tiny = Guest {
        name: "tiny guest",
        memory_mib: 64,
        files: vec![("tiny.elf", tiny()?)],
        options: vec!["--kernel", "tiny.elf"],
        marks: ["WISP-GUEST", "net: address"],
    };
    Ok([debian].into_iter().chain(other).chain([busybox, systemd, tiny]).collect())
}

/// The tiny guest as a file.
fn tiny() -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny.elf");
    std::fs::write(&path, vmm::guest::TINY).context("write the tiny guest")?;
    Ok(path)
}

impl Guest {
    fn boot(&self) -> Result<Boot> {
        let files = tempfile::tempdir()?;
        let host = files.path().join("host.sh");
        std::fs::write(&host, HOST)?;
        let mut lab = Command::new(wisp());
        lab.args(["lab", "--quiet", "--count-instructions", "--mem", "2048", "--module", "network"]);
        lab.args(["--timeout", TIMEOUT_S, "--cache"]).arg(lab_cache()).arg("--file").arg(host);
        for (name, path) in &self.files {
            lab.arg("--file").arg(format!("{}:{name}", path.display()));
        }
        lab.args(["--", "sh", "host.sh"]).args(self.marks).args(&self.options);
        lab.args(["--mem", &self.memory_mib.to_string()]);
        let output = lab.stdin(Stdio::null()).output().context("run `wisp lab`")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let at = |mark: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(mark)?.strip_prefix(' '));
            let mut numbers = line?.split(' ').map_while(|word| word.parse::<f64>().ok());
            Some((numbers.next()?, numbers.next()?))
        };
        let (Some(start), Some(address)) = (at("start"), at("address")) else {
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            anyhow::bail!("its console lacks a mark:\n{said}");
        };
        let since = |at: (f64, f64)| Reached { seconds: at.0 - start.0, exits: at.1 - start.1 };
        Ok(Boot { first: at("first").map(since), address: since(address) })
    }
}
