//! The modules of a kernel's package: where each is, what each needs, what the kernel asks for them by.
//!
//! A package that was never installed has no `modules.dep`, so what that says is read from the modules themselves:
//! their section `.modinfo` holds strings `key=value`, each ended by a NUL.
//!
//! Must never know: what the modules are for, beyond the names of the groups.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::error::Error;

/// Names that stand for several modules.
const GROUPS: [(&str, &[&str]); 3] = [
    (
        "network",
        &[
            "tun",
            "bridge",
            "br_netfilter",
            "8021q",
            "veth",
            "vxlan",
            "dummy",
            "nf_tables",
            "nft_ct",
            "nft_nat",
            "nft_masq",
            "nft_chain_nat",
            "nft_reject_inet",
            "nft_limit",
            "nft_log",
            "nft_meta_bridge",
            "nft_reject_bridge",
            "nf_conntrack_bridge",
            "sch_htb",
            "sch_ingress",
            "act_police",
            "cls_matchall",
        ],
    ),
    (
        "storage",
        &[
            "loop",
            "ext4",
            "xfs",
            "btrfs",
            "vfat",
            "nls_cp437",
            "nls_ascii",
            "dm_thin_pool",
            "dm_snapshot",
            "nbd",
            "overlay",
        ],
    ),
    ("nfs", &["nfsd", "nfs", "nfsv4"]),
];

/// The modules of one kernel.
#[derive(Debug)]
pub(super) struct Modules {
    directory: PathBuf,
    kernel: String,
    /// By name with underscores, the path below `directory`.
    paths: BTreeMap<String, PathBuf>,
    /// What is part of the kernel itself.
    built_in: BTreeSet<String>,
}

/// A module with what it says about itself.
#[derive(Debug, Clone)]
pub(super) struct Module {
    /// Its path below the directory of its kernel's modules.
    pub(super) path: PathBuf,
    /// Names of the modules that it needs.
    needs: Vec<String>,
    /// What the kernel asks for it by.
    aliases: Vec<String>,
    name: String,
}

impl Modules {
    /// The modules below `directory`, which is `…/lib/modules/VERSION`.
    pub(super) fn open(directory: &Path, kernel: &str) -> Result<Self, Error> {
        let mut paths = BTreeMap::new();
        let mut pending = vec![directory.join("kernel")];
        while let Some(path) = pending.pop() {
            let entries = fs::read_dir(&path).map_err(Error::file("list", &path))?;
            for entry in entries {
                let path = entry.map_err(Error::file("list", &path))?.path();
                let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
                if let Some(name) = file.strip_suffix(".ko") {
                    let relative = path.strip_prefix(directory).expect("invariant: found below it");
                    paths.insert(normal(name), relative.to_path_buf());
                } else if file.contains(".ko.") {
                    return Err(Error::CompressedModules { kernel: kernel.to_owned() });
                } else if path.is_dir() {
                    pending.push(path);
                }
            }
        }
        let built_in = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
        let built_in =
            built_in.lines().filter_map(|line| Path::new(line).file_stem()?.to_str().map(normal)).collect();
        Ok(Self { directory: directory.to_path_buf(), kernel: kernel.to_owned(), paths, built_in })
    }

    /// The modules that these names and groups stand for, each after those it needs.
    pub(super) fn in_order(&self, names: &[String]) -> Result<Vec<Module>, Error> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            match GROUPS.iter().find(|(group, _)| group == name) {
                // A group is for kernels that differ: it stands for those of its modules that there are.
                Some((_, members)) => {
                    for member in members.iter().filter(|member| self.paths.contains_key(**member)) {
                        self.visit(member, &mut seen, &mut found)?;
                    }
                }
                None => self.visit(name, &mut seen, &mut found)?,
            }
        }
        Ok(found)
    }

    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, found: &mut Vec<Module>) -> Result<(), Error> {
        let name = normal(name);
        if self.built_in.contains(&name) || !seen.insert(name.clone()) {
            return Ok(());
        }
        let Some(path) = self.paths.get(&name) else {
            return Err(Error::NoModule { module: name, kernel: self.kernel.clone() });
        };
        let whole = self.directory.join(path);
        let bytes = fs::read(&whole).map_err(Error::file("read", whole))?;
        let module = Module {
            path: path.clone(),
            needs: values(&bytes, "depends")
                .flat_map(|list| list.split(',').map(normal).collect::<Vec<_>>())
                .filter(|name| !name.is_empty())
                .collect(),
            aliases: values(&bytes, "alias").collect(),
            name,
        };
        for need in &module.needs {
            self.visit(need, seen, found)?;
        }
        found.push(module);
        Ok(())
    }

    /// A module's file.
    pub(super) fn file(&self, module: &Module) -> PathBuf {
        self.directory.join(&module.path)
    }
}

/// `modules.dep`: each module with all that it needs, for `modprobe`.
pub(super) fn dependencies(modules: &[Module]) -> String {
    let by_name: BTreeMap<_, _> = modules.iter().map(|module| (module.name.as_str(), module)).collect();
    let mut text = String::new();
    for module in modules {
        text.push_str(&format!("{}:", module.path.display()));
        // Nearest first, as `depmod` writes it: modprobe loads the list from its end.
        let mut all: Vec<&str> = Vec::new();
        let mut pending: Vec<&str> = module.needs.iter().map(String::as_str).collect();
        while let Some(name) = pending.pop() {
            all.retain(|other| *other != name);
            all.push(name);
            pending.extend(
                by_name.get(name).into_iter().flat_map(|module| module.needs.iter().map(String::as_str)),
            );
        }
        for path in all.iter().filter_map(|name| by_name.get(name)).map(|module| &module.path) {
            text.push_str(&format!(" {}", path.display()));
        }
        text.push('\n');
    }
    text
}

/// `modules.alias`: what the kernel asks for each module by.
pub(super) fn aliases(modules: &[Module]) -> String {
    let lines =
        modules.iter().flat_map(|module| module.aliases.iter().map(move |alias| (alias, &module.name)));
    lines.map(|(alias, name)| format!("alias {alias} {name}\n")).collect()
}

/// A module's file without its signature, which an emulated processor would take long to check.
pub(super) fn without_signature(bytes: &[u8]) -> &[u8] {
    // The end of a signed module: the signature, 12 bytes of which the last 4 are its length (big-endian), the mark.
    const MARK: &[u8] = b"~Module signature appended~\n";
    const TAIL_BYTES: usize = 12;
    let whole = bytes.strip_suffix(MARK).and_then(|rest| {
        let length = u32::from_be_bytes(*rest.last_chunk()?) as usize;
        rest.get(..rest.len().checked_sub(TAIL_BYTES + length)?)
    });
    whole.unwrap_or(bytes)
}

/// Names are compared with underscores.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// The values of a key in a module's information.
fn values<'a>(bytes: &'a [u8], key: &str) -> impl Iterator<Item = String> + use<'a> {
    let start = format!("{key}=").into_bytes();
    bytes.split(|byte| *byte == 0).filter_map(move |text| {
        let value = text.strip_prefix(start.as_slice())?;
        String::from_utf8(value.to_vec()).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> (tempfile::TempDir, Modules) {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("kernel/drivers");
        fs::create_dir_all(&kernel).unwrap();
        for (name, information) in [
            ("tun.ko", "depends="),
            ("base-one.ko", "depends="),
            ("middle.ko", "alias=pci:v1*\0depends=base-one,inside"),
            ("top.ko", "depends=middle,base-one"),
        ] {
            fs::write(kernel.join(name), format!("\x7fELF\0\0license=GPL\0{information}\0rest")).unwrap();
        }
        fs::write(directory.path().join("modules.builtin"), "kernel/lib/inside.ko\n").unwrap();
        let modules = Modules::open(directory.path(), "6.1").unwrap();
        (directory, modules)
    }

    #[test]
    fn a_module_comes_after_what_it_needs() {
        let (_directory, modules) = kernel();
        let found = modules.in_order(&["top".into(), "middle".into()]).unwrap();
        let names: Vec<_> = found.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["base_one", "middle", "top"]);
        let path = "kernel/drivers";
        assert!(
            dependencies(&found).contains(&format!("{path}/top.ko: {path}/middle.ko {path}/base-one.ko\n")),
            "{}",
            dependencies(&found)
        );
        assert_eq!(aliases(&found), "alias pci:v1* middle\n");
    }

    #[test]
    fn a_group_stands_for_what_there_is_and_a_name_for_itself() {
        let (_directory, modules) = kernel();
        assert_eq!(modules.in_order(&["network".into()]).unwrap().len(), 1);
        let error = modules.in_order(&["bridge".into()]).unwrap_err();
        assert_eq!(error.to_string(), "the kernel 6.1 has no module bridge");
    }

    #[test]
    fn a_signature_is_cut_off_and_nothing_else() {
        let signed =
            [&b"moduleSIGNATURE"[..], &[0; 8], &9_u32.to_be_bytes(), b"~Module signature appended~\n"]
                .concat();
        assert_eq!(without_signature(&signed), b"module");
        assert_eq!(without_signature(b"module"), b"module");
        let wrong = [&[0xff; 20][..], b"~Module signature appended~\n"].concat();
        assert_eq!(without_signature(&wrong), wrong);
    }

    #[test]
    fn compressed_modules_are_said_to_be() {
        let (directory, _modules) = kernel();
        fs::write(directory.path().join("kernel/x.ko.xz"), "").unwrap();
        let error = Modules::open(directory.path(), "6.12").unwrap_err();
        assert!(matches!(error, Error::CompressedModules { .. }));
    }
}
