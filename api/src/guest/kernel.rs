//! Slim kernels: Debian's kernel source with the configuration fragments of `vmm/guest/linux`.
//!
//! The configuration is `allnoconfig` with the fragments' lines, each of which must hold in the result. The source's
//! version and the fragments make a stamp; a kernel of the same stamp is not built again.
//!
//! Must never know: what is done with a kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::{self, Cache, Stamp};
use super::packages::{self, Package};
use super::progress::Progress;
use super::tools::{self, Need};

/// Debian's package with the source.
const SOURCE_PACKAGE: &str = "linux-source-6.12";
/// Changes when the same inputs shall give another kernel.
const RECIPE: &str = "slim kernel 1";
const NEEDS: [Need; 11] = [
    packages::NEEDS[0],
    packages::NEEDS[1],
    Need::Program("gcc", "build-essential"),
    Need::Program("make", "build-essential"),
    Need::File("/usr/include/stdio.h", "libc6-dev"),
    Need::File("/usr/include/gelf.h", "libelf-dev"),
    Need::Program("flex", "flex"),
    Need::Program("bison", "bison"),
    Need::Program("bc", "bc"),
    Need::Program("tar", "tar"),
    Need::Program("xz", "xz-utils"),
];

const BASE: &str = include_str!("../../../vmm/guest/linux/base.config");
const SMALL: &str = include_str!("../../../vmm/guest/linux/small.config");
const SMP: &str = include_str!("../../../vmm/guest/linux/smp.config");

/// A slim kernel's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Flavor {
    /// One processor, the fastest boot.
    Small,
    /// Many processors, hot-plug, hardened, what container runtimes ask for.
    Smp,
}

impl Flavor {
    /// Its name on the command line and in files' names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Smp => "smp",
        }
    }

    /// All lines of its configuration fragments.
    fn fragments(self) -> String {
        let own = match self {
            Self::Small => SMALL,
            Self::Smp => SMP,
        };
        format!("{BASE}{own}")
    }

    /// About how many files are compiled for it: the length of the bar.
    fn objects_estimate(self) -> u64 {
        match self {
            Self::Small => 1230,
            Self::Smp => 1500,
        }
    }
}

/// Why a kernel was not built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tool is missing or failed.
    #[error(transparent)]
    Tool(#[from] tools::Error),
    /// The source package.
    #[error(transparent)]
    Package(#[from] packages::Error),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The package is not what it was.
    #[error("the package {package} has no {what}")]
    Source {
        /// Which package.
        package: String,
        /// What was looked for.
        what: String,
    },
    /// A line of a fragment has no effect.
    #[error(
        "the {flavor} configuration asks for what this kernel does not offer or what something else forbids: {lines}"
    )]
    Refused {
        /// The flavour.
        flavor: &'static str,
        /// The lines, separated by spaces.
        lines: String,
    },
}

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The ELF image, without symbols.
    pub path: PathBuf,
    /// What the kernel calls its version, for example `6.12.1-wisp-small`.
    pub release: String,
}

/// The slim kernel of `flavor`: from the cache, or built.
///
/// # Errors
/// Anything missing, or a build that fails.
pub fn build(flavor: Flavor, cache: &Cache, progress: &Progress) -> Result<Kernel, Error> {
    let package = packages::candidate(SOURCE_PACKAGE)?;
    let mut stamp = Stamp::new(RECIPE);
    stamp.add(package.version.as_bytes());
    stamp.add(flavor.fragments().as_bytes());
    let directory = cache.directory("kernels")?;
    let name = |what: &str| directory.join(format!("{what}-{}-{}", flavor.name(), stamp.text()));
    let (path, release_file) = (name("vmlinux"), name("release"));
    // The image is the last file written.
    if path.is_file() {
        let release = fs::read_to_string(&release_file).map_err(cache::Error::io("read", &release_file))?;
        return Ok(Kernel { path, release });
    }
    tools::require("building a kernel", &NEEDS)?;
    let work = cache.work(cache::BUILD)?;
    let build = Build::configured(flavor, package, cache, work.path(), progress)?;
    build.compile(progress)?;
    let image = build.objects.join("stripped");
    let mut strip = tools::command("strip");
    tools::output(strip.arg("-s").arg("-o").arg(&image).arg(build.objects.join("vmlinux")))?;
    let release = build.release()?;
    cache::write_whole(&release_file, release.as_bytes())?;
    fs::rename(&image, &path).map_err(cache::Error::io("move into place", &path))?;
    Ok(Kernel { path, release })
}

/// Whether every line of the flavour's fragments holds in the source's configuration; compiles nothing.
///
/// # Errors
/// Anything missing; a line has no effect.
pub fn check(flavor: Flavor, cache: &Cache, progress: &Progress) -> Result<(), Error> {
    tools::require("configuring a kernel", &NEEDS)?;
    let package = packages::candidate(SOURCE_PACKAGE)?;
    let work = cache.work(cache::BUILD)?;
    Build::configured(flavor, package, cache, work.path(), progress).map(drop)
}

/// Unpacks the source and returns its top directory.
fn unpack_source(
    package: &Package,
    cache: &Cache,
    work: &Path,
    progress: &Progress,
) -> Result<PathBuf, Error> {
    let files = packages::fetch(std::slice::from_ref(package), cache, progress)?;
    let stage = progress.stage("unpack the kernel's source", None);
    let outer = work.join("package");
    for file in files {
        packages::unpack(&file, &outer)?;
    }
    let archive = outer.join("usr/src").join(format!("{SOURCE_PACKAGE}.tar.xz"));
    let missing = |what: &Path| Error::Source {
        package: SOURCE_PACKAGE.to_owned(),
        what: what.strip_prefix(work).unwrap_or(what).display().to_string(),
    };
    if !archive.is_file() {
        return Err(missing(&archive));
    }
    let mut tar = tools::command("tar");
    tools::output(tar.arg("-C").arg(work).arg("-xJf").arg(&archive))?;
    fs::remove_dir_all(&outer).map_err(cache::Error::io("remove", &outer))?;
    let source = work.join(SOURCE_PACKAGE);
    if !source.join("Kconfig").is_file() {
        return Err(missing(&source.join("Kconfig")));
    }
    stage.done(&package.version);
    Ok(source)
}

/// One build under way.
struct Build {
    flavor: Flavor,
    source: PathBuf,
    objects: PathBuf,
    package: Package,
}

impl Build {
    /// The source unpacked below `work`, and its configuration.
    fn configured(
        flavor: Flavor,
        package: Package,
        cache: &Cache,
        work: &Path,
        progress: &Progress,
    ) -> Result<Self, Error> {
        let source = unpack_source(&package, cache, work, progress)?;
        let build = Self { flavor, source, objects: work.join("objects"), package };
        build.configure()?;
        Ok(build)
    }

    /// `make` for this build, with everything fixed that would make two builds differ.
    fn make(&self) -> Command {
        let mut make = tools::command("make");
        make.arg("-C").arg(&self.source).arg(format!("O={}", self.objects.display()));
        make.env("KBUILD_BUILD_TIMESTAMP", format!("Debian {}", self.package.version));
        make.env("KBUILD_BUILD_USER", "wisp")
            .env("KBUILD_BUILD_HOST", "wisp")
            .env("KBUILD_BUILD_VERSION", "1");
        // Paths in assertions are relative to the source; a caller's settings do not leak in.
        make.env_remove("MAKEFLAGS").env_remove("KCFLAGS").env_remove("CROSS_COMPILE").env_remove("ARCH");
        make
    }

    fn configure(&self) -> Result<(), Error> {
        let fragments = self.flavor.fragments();
        fs::create_dir_all(&self.objects).map_err(cache::Error::io("make the directory", &self.objects))?;
        let wanted = self.objects.join("wanted.config");
        cache::write_whole(&wanted, fragments.as_bytes())?;
        let mut all = std::ffi::OsString::from("KCONFIG_ALLCONFIG=");
        all.push(&wanted);
        tools::output(self.make().arg("-s").arg(all).arg("allnoconfig"))?;
        let config = self.objects.join(".config");
        let config = fs::read_to_string(&config).map_err(cache::Error::io("read", &config))?;
        let refused = refused(&fragments, &config);
        if refused.is_empty() {
            return Ok(());
        }
        Err(Error::Refused { flavor: self.flavor.name(), lines: refused.join(" ") })
    }

    fn compile(&self, progress: &Progress) -> Result<(), Error> {
        let name = format!("compile the {} kernel", self.flavor.name());
        let stage = progress.stage(&name, Some(self.flavor.objects_estimate()));
        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut objects = 0_u64;
        tools::lines(self.make().arg(format!("-j{jobs}")).arg("vmlinux"), |line| {
            if let Some(object) = line.strip_prefix("  CC ") {
                objects += 1;
                stage.step(object.trim());
            }
        })?;
        stage.done(&format!("{objects} files compiled"));
        Ok(())
    }

    fn release(&self) -> Result<String, Error> {
        let path = self.objects.join("include/config/kernel.release");
        let text = fs::read_to_string(&path).map_err(cache::Error::io("read", &path))?;
        Ok(text.trim().to_owned())
    }
}

/// The lines of `fragments` that do not hold in `config`.
fn refused<'a>(fragments: &'a str, config: &str) -> Vec<&'a str> {
    let held: std::collections::HashSet<_> = config.lines().collect();
    fragments.lines().filter(|line| line.starts_with("CONFIG_") && !held.contains(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_name_each_option_once_and_only_to_turn_it_on() {
        for flavor in [Flavor::Small, Flavor::Smp] {
            let fragments = flavor.fragments();
            let mut seen = std::collections::BTreeSet::new();
            for line in fragments.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")) {
                let (option, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
                assert!(option.starts_with("CONFIG_") && value != "n", "{line}");
                assert!(seen.insert(option.to_owned()), "{option} stands twice in {}", flavor.name());
            }
        }
    }

    #[test]
    fn line_without_effect_is_refused() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n";
        assert_eq!(refused("# why\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=\"x\"\n", config), ["CONFIG_B=y"]);
    }
}
