//! extlinux's configuration (SYSLINUX wiki, "Config"), as Alpine's images have it.

use super::grub::Choice;
use super::volumes::{FileName, Volumes};

/// The largest configuration in bytes.
const CONFIGURATION_BYTES_MAX: u64 = 256 << 10;
/// Where it lies.
const PATHS: [&str; 6] = [
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
];

/// One label.
#[derive(Debug, Default, PartialEq, Eq)]
struct Label {
    name: String,
    kernel: String,
    initrds: Vec<String>,
    append: String,
}

/// What the first configuration boots by default. `None`: there is none, or it boots no kernel.
pub(super) fn choose(volumes: &Volumes) -> Option<Choice> {
    let files = volumes.indices().flat_map(|volume| PATHS.map(|path| (volume, path)));
    for (volume, path) in files {
        let file = FileName { volume, path: path.to_owned() };
        let Ok(text) = volumes.text(&file, CONFIGURATION_BYTES_MAX) else { continue };
        let Some(label) = parse(&text) else { continue };
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let file = |name: &str| FileName {
            volume,
            path: if name.starts_with('/') { name.to_owned() } else { format!("{directory}/{name}") },
        };
        return Some(Choice {
            kernel: file(&label.kernel),
            initrds: label.initrds.iter().map(|name| file(name)).collect(),
            title: label.name,
            cmdline: label.append,
        });
    }
    None
}

/// The default label: the one that `default` names, or the first that has a kernel.
fn parse(text: &str) -> Option<Label> {
    let mut default = String::new();
    let mut labels: Vec<Label> = Vec::new();
    for line in text.lines().map(str::trim) {
        let Some((key, value)) = line.split_once(|next: char| next.is_ascii_whitespace()) else { continue };
        let value = value.trim();
        match (key.to_ascii_lowercase().as_str(), labels.last_mut()) {
            ("default", _) => value.clone_into(&mut default),
            ("label", _) => labels.push(Label { name: value.to_owned(), ..Label::default() }),
            ("linux" | "kernel", Some(label)) => value.clone_into(&mut label.kernel),
            ("initrd", Some(label)) => label.initrds = value.split(',').map(ToOwned::to_owned).collect(),
            ("append", Some(label)) => {
                for word in value.split_whitespace() {
                    match word.strip_prefix("initrd=") {
                        Some(names) => label.initrds = names.split(',').map(ToOwned::to_owned).collect(),
                        None => {
                            label.append.push_str(if label.append.is_empty() { "" } else { " " });
                            label.append.push_str(word);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    let is_kernel = |label: &Label| {
        let name = label.kernel.to_ascii_lowercase();
        !name.is_empty() && ![".c32", ".com", ".0", ".bin"].iter().any(|ending| name.ends_with(ending))
    };
    let wanted = labels.iter().position(|label| label.name == default && is_kernel(label));
    let index = wanted.or_else(|| labels.iter().position(is_kernel))?;
    Some(labels.swap_remove(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_label_is_taken_with_its_ramdisks_and_words() {
        let text = "DEFAULT menu.c32\nPROMPT 0\nLABEL virt\n  MENU LABEL Linux virt\n  LINUX vmlinuz-virt\n  \
                    INITRD ucode.img,initramfs-virt\n  APPEND root=UUID=1 modules=ext4  quiet\nLABEL other\n KERNEL /x\n";
        let label = parse(text).unwrap();
        assert_eq!((label.name.as_str(), label.kernel.as_str()), ("virt", "vmlinuz-virt"));
        assert_eq!(label.initrds, ["ucode.img", "initramfs-virt"]);
        assert_eq!(label.append, "root=UUID=1 modules=ext4 quiet");
        assert_eq!(parse(&text.replace("menu.c32", "other")).unwrap().kernel, "/x");
        assert_eq!(parse("label a\n"), None);
    }
}
