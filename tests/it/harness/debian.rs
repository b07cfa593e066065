//! Debian's kernel for virtual machines with the initial ramdisk that its package makes: built once below the build
//! directory, by installing the package into a directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

/// What is installed: the ramdisk's maker takes in what it finds.
const PACKAGES: &str = "linux-image-cloud-amd64,initramfs-tools,busybox,zstd,e2fsprogs";
/// Seconds that downloading and installing may take.
const SECONDS_MAX: &str = "900";

/// The files.
#[derive(Debug, Clone)]
pub(crate) struct Stock {
    /// The bzImage.
    pub kernel: PathBuf,
    /// Its ramdisk.
    pub initrd: PathBuf,
}

/// Makes them, or finds them.
pub(crate) fn stock() -> Result<Stock> {
    static MADE: OnceLock<std::result::Result<Stock, String>> = OnceLock::new();
    MADE.get_or_init(|| make().map_err(|error| format!("{error:#}"))).clone().map_err(|error| anyhow!(error))
}

fn make() -> Result<Stock> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian-boot");
    let stock = Stock { kernel: directory.join("vmlinuz"), initrd: directory.join("initrd.img") };
    if stock.initrd.exists() {
        return Ok(stock);
    }
    eprintln!("installing Debian's kernel into a directory (once) …");
    std::fs::create_dir_all(&directory).context("make the directory")?;
    let out = directory.display();
    let hook = format!("copy-out /boot {out}");
    let output = Command::new("timeout")
        .args([SECONDS_MAX, "mmdebstrap", "--quiet", "--variant=essential", "--include", PACKAGES])
        .args(["--customize-hook", &hook, "bookworm", "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .context("run mmdebstrap")?;
    ensure!(output.status.success(), "mmdebstrap: {}", String::from_utf8_lossy(&output.stderr).trim());
    for (begin, place) in [("vmlinuz-", &stock.kernel), ("initrd.img-", &stock.initrd)] {
        let entries = std::fs::read_dir(directory.join("boot")).context("list what was installed")?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let name =
            names.filter(|name| name.starts_with(begin)).max().with_context(|| format!("no {begin}"))?;
        std::fs::rename(directory.join("boot").join(name), place).context("put a file in its place")?;
    }
    std::fs::remove_dir_all(directory.join("boot")).context("remove the rest")?;
    Ok(stock)
}
