//! The Boot Loader Specification (UAPI.1) as systemd-boot and Fedora's GRUB read it: one file per entry under
//! `loader/entries`, unified kernel images under `EFI/Linux`, and `loader/loader.conf`.

use std::cmp::{Ordering, Reverse};

use super::filesystem::Found;
use super::grub::Choice;
use super::version;
use super::volumes::{FileName, Volumes};

/// The largest entry, and the largest `loader.conf`, in bytes.
const ENTRY_BYTES_MAX: u64 = 64 << 10;
/// The most entries that are read.
const ENTRIES_MAX: usize = 512;
/// Where unified kernel images lie.
const UNIFIED: &str = "/EFI/Linux";

/// One entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The file's name without its ending and without the counter of attempts.
    pub(super) id: String,
    pub(super) title: String,
    pub(super) linux: String,
    pub(super) initrds: Vec<String>,
    pub(super) options: String,
    version: String,
    machine_id: String,
    sort_key: String,
    /// All attempts to boot it have failed.
    is_bad: bool,
}

/// In which order entries are offered; the first is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// As systemd-boot does it.
    SortKey,
    /// As Fedora's GRUB does it: by the file's name, the newest version first.
    FileName,
}

/// The entries in a directory, in order; what is broken or not for this machine is left out.
pub(super) fn read_directory(volumes: &Volumes, volume: usize, directory: &str, order: Order) -> Vec<Entry> {
    let names = volumes.volume(volume).list(directory).unwrap_or_default();
    let mut entries: Vec<Entry> = names
        .iter()
        .filter_map(|name| Some((name, name.strip_suffix(".conf")?)))
        .take(ENTRIES_MAX)
        .filter_map(|(name, stem)| {
            let path = format!("{directory}/{name}");
            parse(stem, &volumes.text(&FileName { volume, path }, ENTRY_BYTES_MAX).ok()?)
        })
        .collect();
    entries.sort_by(|a, b| compare(a, b, order));
    entries
}

fn compare(a: &Entry, b: &Entry, order: Order) -> Ordering {
    let newest_first = |a: &str, b: &str| version::compare(b, a);
    let by_name = newest_first(&a.id, &b.id);
    if order == Order::FileName {
        return by_name;
    }
    let keyed = |entry: &Entry| Reverse(!entry.sort_key.is_empty());
    a.is_bad
        .cmp(&b.is_bad)
        .then(keyed(a).cmp(&keyed(b)))
        .then_with(|| match a.sort_key.is_empty() && b.sort_key.is_empty() {
            true => Ordering::Equal,
            false => (&a.sort_key, &a.machine_id)
                .cmp(&(&b.sort_key, &b.machine_id))
                .then(newest_first(&a.version, &b.version)),
        })
        .then(by_name)
}

/// An entry of the file `stem.conf`; `None` if it boots no Linux here.
fn parse(stem: &str, text: &str) -> Option<Entry> {
    let mut entry = Entry::default();
    (entry.id, entry.is_bad) = match stem.rsplit_once('+') {
        Some((id, counter)) if counter.starts_with(|next: char| next.is_ascii_digit()) => {
            let left = counter.split('-').next().unwrap_or_default();
            (id.to_owned(), left.parse() == Ok(0_u32))
        }
        _ => (stem.to_owned(), false),
    };
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some((key, value)) = line.split_once(|next: char| next.is_ascii_whitespace()) else { continue };
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut entry.title),
            "version" => value.clone_into(&mut entry.version),
            "machine-id" => value.clone_into(&mut entry.machine_id),
            "sort-key" => value.clone_into(&mut entry.sort_key),
            // A unified kernel image given as an EFI program is a kernel too.
            "linux" | "uki" | "efi" => entry.linux = absolute(value),
            "initrd" => entry.initrds.extend(value.split_whitespace().map(absolute)),
            "options" => {
                if !entry.options.is_empty() {
                    entry.options.push(' ');
                }
                entry.options.push_str(value);
            }
            "architecture" if !value.eq_ignore_ascii_case("x64") => return None,
            _ => {}
        }
    }
    if entry.title.is_empty() {
        entry.title.clone_from(&entry.id);
    }
    (!entry.linux.is_empty()).then_some(entry)
}

/// A path as it is meant: from the root, whatever the slashes; one that is a variable's is left alone.
fn absolute(path: &str) -> String {
    if path.starts_with('$') {
        return path.to_owned();
    }
    format!("/{}", path.replace('\\', "/").trim_start_matches('/'))
}

/// What systemd-boot would boot: of all entries on the EFI system partition and an extended boot partition the one
/// that `loader.conf` says, or the first. `None`: there is no entry.
pub(super) fn choose(volumes: &Volumes) -> Option<Choice> {
    let mut entries: Vec<(usize, Entry)> = Vec::new();
    let mut wanted = String::new();
    for volume in volumes.indices() {
        if wanted.is_empty() {
            wanted = default_pattern(volumes, volume);
        }
        for directory in ["/loader/entries", "/boot/loader/entries"] {
            let found = read_directory(volumes, volume, directory, Order::SortKey);
            entries.extend(found.into_iter().map(|entry| (volume, entry)));
        }
        entries.extend(unified(volumes, volume).into_iter().map(|entry| (volume, entry)));
    }
    entries.sort_by(|(_, a), (_, b)| compare(a, b, Order::SortKey));
    let matches = |(_, entry): &(usize, Entry)| {
        let file = |ending: &str| format!("{}{ending}", entry.id);
        !wanted.is_empty() && ["", ".conf", ".efi"].iter().any(|ending| is_match(&wanted, &file(ending)))
    };
    let index = entries.iter().position(matches).unwrap_or(0);
    let (volume, entry) = entries.into_iter().nth(index)?;
    let file = |path: String| FileName { volume, path };
    Some(Choice {
        title: entry.title,
        kernel: file(entry.linux),
        initrds: entry.initrds.into_iter().map(file).collect(),
        cmdline: entry.options,
    })
}

/// Unified kernel images as entries.
fn unified(volumes: &Volumes, volume: usize) -> Vec<Entry> {
    let names = volumes.volume(volume).list(UNIFIED).unwrap_or_default();
    let is_image = |name: &&String| name.to_ascii_lowercase().ends_with(".efi");
    let entry = |name: String| {
        let path = format!("{UNIFIED}/{name}");
        let found = volumes.found(&FileName { volume, path: path.clone() });
        let stem = name[..name.len() - ".efi".len()].to_owned();
        let entry = Entry { title: name.clone(), linux: path, id: stem, ..Entry::default() };
        matches!(found, Some(Found::File { .. })).then_some(entry)
    };
    names.iter().filter(is_image).take(ENTRIES_MAX).cloned().filter_map(entry).collect()
}

/// The pattern of the entry to boot.
fn default_pattern(volumes: &Volumes, volume: usize) -> String {
    let file = FileName { volume, path: "/loader/loader.conf".to_owned() };
    let text = volumes.text(&file, ENTRY_BYTES_MAX).unwrap_or_default();
    let setting = |line: &str| {
        let (key, value) = line.trim().split_once(|next: char| next.is_ascii_whitespace())?;
        (key == "default").then(|| value.trim().to_owned())
    };
    // What is chosen at run time (`@saved`) is kept in the firmware, which is not there.
    text.lines().find_map(setting).filter(|pattern| !pattern.starts_with('@')).unwrap_or_default()
}

/// Whether a text is what a shell's pattern of `*` and `?` means; time is bounded by the lengths' product.
fn is_match(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut position, mut star) = (0, 0, None);
    while position < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, position));
                at += 1;
            }
            Some(&next) if next == '?' || next == text[position] => {
                at += 1;
                position += 1;
            }
            _ => match star {
                // The last star takes one more.
                Some((star_at, taken)) => {
                    at = star_at + 1;
                    position = taken + 1;
                    star = Some((star_at, taken + 1));
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&rest| rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stem: &str, text: &str) -> Entry {
        parse(stem, text).unwrap()
    }

    #[test]
    fn entries_are_read_with_their_counters_and_several_lines() {
        let entry = entry(
            "debian-6.1+0-3",
            "# comment\ntitle Debian\nlinux\t/debian/6.1/linux\ninitrd /a /b\ninitrd c\noptions root=/dev/vda1\n\
             options quiet\nversion 6.1\nsort-key debian\nmachine-id 0123\n",
        );
        assert_eq!((entry.id.as_str(), entry.is_bad), ("debian-6.1", true));
        assert_eq!(entry.initrds, ["/a", "/b", "/c"]);
        assert_eq!(
            (entry.options.as_str(), entry.linux.as_str()),
            ("root=/dev/vda1 quiet", "/debian/6.1/linux")
        );
    }

    #[test]
    fn entries_without_a_kernel_or_for_other_machines_are_left_out() {
        assert_eq!(parse("a", "title A\n"), None);
        assert_eq!(parse("a", "linux /l\narchitecture aa64\n"), None);
        assert!(parse("a", "linux /l\narchitecture X64\n").is_some());
    }

    #[test]
    fn newest_good_entry_is_first() {
        let with = |stem: &str, key: &str, version: &str| {
            entry(stem, &format!("linux /l\nsort-key {key}\nversion {version}\n"))
        };
        let mut entries = [
            entry("z-9", "linux /l\n"),
            with("a", "debian", "6.1.9"),
            with("b", "debian", "6.1.10"),
            with("c+0", "debian", "7"),
            with("d", "arch", "1"),
        ];
        entries.sort_by(|a, b| compare(a, b, Order::SortKey));
        assert_eq!(entries.each_ref().map(|entry| entry.id.as_str()), ["d", "b", "a", "z-9", "c"]);
        let mut names =
            ["m-0-rescue", "m-6.5.6-300.fc39", "m-6.11.4-300.fc41"].map(|stem| entry(stem, "linux /l\n"));
        names.sort_by(|a, b| compare(a, b, Order::FileName));
        assert_eq!(
            names.each_ref().map(|entry| entry.id.as_str()),
            ["m-6.11.4-300.fc41", "m-6.5.6-300.fc39", "m-0-rescue"]
        );
    }

    #[test]
    fn patterns_are_those_of_a_shell() {
        for (pattern, text, holds) in [
            ("debian-*", "debian-6.1", true),
            ("*-6.?", "debian-6.1", true),
            ("debian", "debian-6.1", false),
            ("*", "", true),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXbXb", false),
        ] {
            assert_eq!(is_match(pattern, text), holds, "{pattern} {text}");
        }
        assert!(!is_match(&"*a".repeat(500), &"a".repeat(400)));
    }
}
