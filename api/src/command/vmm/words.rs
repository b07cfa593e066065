//! Words behind commas in what options of `wisp vmm` are given: a path, and what is said of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use vmm::config::{DISK_SERIAL_BYTES_MAX, DiskLimits, LIMIT_MAX, RateLimit, TransferLimits};
use vmm::interactive::DiskFile;

/// A disk's file with what is said of it.
pub(super) const DISK: &str = "FILE[,ro][,shared][,direct][,serial=S][,base=BASE][,key-file=KEY][,read-bytes=R][,write-bytes=R][,total-bytes=R][,read-iops=R][,write-iops=R][,total-iops=R]";
/// A disk of a guest with the limits that it shall have.
pub(super) const LIMITED_DISK: &str =
    "SERIAL[,read-bytes=R][,write-bytes=R][,total-bytes=R][,read-iops=R][,write-iops=R][,total-iops=R]";
/// A file that is memory, likewise.
pub(super) const PMEM: &str = "FILE[,ro]";
/// The path of a vsock's sockets, likewise.
pub(super) const VSOCK: &str = "PATH[,cid=N]";

/// The words without a value, each of some option: one of them is in no path, so that none is passed over where another
/// option is meant.
const BARE: [&str; 4] = ["ro", "shared", "direct", "firm"];

/// What was said of a path: the words, with their values, or nothing for those that have none.
pub(super) type Said<'a> = BTreeMap<&'static str, &'a OsStr>;

/// Takes a path and the words behind it apart; `form` says which there are, as `FILE[,ro][,serial=S]`. Words are read from the end up
/// to what reads as none, so a path may have commas.
///
/// # Errors
/// What reads as a word (`name=value`, or one that another option has) and is none here, a word without the value that it
/// has, one that is said twice, or no path: the sentence names what is taken.
pub(super) fn split<'a>(text: &'a OsStr, form: &'static str) -> Result<(&'a OsStr, Said<'a>), String> {
    let taken = form.split("[,").skip(1).map(|word| word.trim_end_matches(']'));
    let taken: BTreeMap<&str, bool> =
        taken.map(|word| word.split_once('=').map_or((word, false), |(name, _)| (name, true))).collect();
    let (mut rest, mut said) = (text.as_bytes(), Said::new());
    while let Some(comma) = rest.iter().rposition(|byte| *byte == b',') {
        let part = &rest[comma + 1..];
        let equals = part.iter().position(|byte| *byte == b'=');
        let (name, value) = equals.map_or((part, None), |at| (&part[..at], Some(&part[at + 1..])));
        let known = taken.iter().find(|(word, _)| word.as_bytes() == name);
        let shown = || String::from_utf8_lossy(part);
        match known {
            Some((word, has_value)) if *has_value == value.is_some() => {
                if said.insert(word, OsStr::from_bytes(value.unwrap_or_default())).is_some() {
                    return Err(format!("`{word}` is said twice"));
                }
            }
            None if !reads_as_word(name, value.is_some()) => break,
            _ => return Err(format!("`{}` is no word of this option, which takes {form}", shown())),
        }
        rest = &rest[..comma];
    }
    if rest.is_empty() {
        return Err(format!("nothing is named in front of the words: what is taken is {form}"));
    }
    Ok((OsStr::from_bytes(rest), said))
}

/// Whether a part that is no word here was meant to be one.
fn reads_as_word(name: &[u8], has_value: bool) -> bool {
    let is_name = !name.is_empty() && name.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b'-');
    if has_value { is_name } else { BARE.iter().any(|word| word.as_bytes() == name) }
}

/// Has an option's text read so.
pub(super) fn read_by<T: Clone + Send + Sync + 'static>(
    read: fn(&OsStr) -> Result<T, String>,
) -> impl TypedValueParser<Value = T> {
    OsStringValueParser::new().try_map(move |text| read(&text))
}

/// A serial number of a disk, whole or not at all: a guest that looks for what was asked for would not find a part of it.
///
/// # Errors
/// It is longer than a guest can read.
pub(super) fn serial(text: &str) -> Result<String, String> {
    if text.len() <= DISK_SERIAL_BYTES_MAX {
        return Ok(text.to_owned());
    }
    Err(format!(
        "a serial number has at most {DISK_SERIAL_BYTES_MAX} bytes on virtio's disks (VIRTIO_BLK_ID_BYTES, VIRTIO 1.3 \
         §5.2.6.1), and `{text}` has {}: give a shorter one",
        text.len()
    ))
}

/// A disk's file and how it is used, of [`DISK`].
///
/// # Errors
/// As [`split`] and [`serial`].
pub(super) fn disk(text: &OsStr) -> Result<DiskFile, String> {
    let (path, said) = split(text, DISK)?;
    if said.contains_key("shared") && said.contains_key("base") {
        return Err("an overlay is one guest's own, and not `shared`".to_owned());
    }
    Ok(DiskFile {
        path: path.into(),
        read_only: said.contains_key("ro"),
        shared: said.contains_key("shared"),
        direct: said.contains_key("direct"),
        base: said.get("base").map(PathBuf::from),
        serial: said.get("serial").map(|text| serial(&text.to_string_lossy())).transpose()?,
        key_file: said.get("key-file").map(PathBuf::from),
        limits: limits(&said)?,
    })
}

/// A disk's serial number and what it is held to, of [`LIMITED_DISK`].
///
/// # Errors
/// As [`disk`].
pub(super) fn limited_disk(text: &OsStr) -> Result<(String, DiskLimits), String> {
    let (serial, said) = split(text, LIMITED_DISK)?;
    let serial = serial.to_str().ok_or("a disk's serial number is text")?.to_owned();
    Ok((serial, limits(&said)?))
}

/// What a disk is held to, as [`LIMITED_DISK`] takes it behind the serial number; nothing of one that is held to nothing.
pub(super) fn spelled(DiskLimits { read, write, total }: &DiskLimits) -> String {
    let words = [
        ("read-bytes", read.bytes),
        ("read-iops", read.operations),
        ("write-bytes", write.bytes),
        ("write-iops", write.operations),
        ("total-bytes", total.bytes),
        ("total-iops", total.operations),
    ];
    spelled_rates(&words)
}

/// Words with what [`rate`] makes of their values, those that were said.
pub(super) fn spelled_rates(words: &[(&str, Option<RateLimit>)]) -> String {
    let spell = |(word, limit): &(&str, Option<RateLimit>)| {
        let RateLimit { per_second, burst } = (*limit)?;
        let burst = burst.map(|burst| format!(":{burst}")).unwrap_or_default();
        Some(format!("{word}={per_second}{burst}"))
    };
    words.iter().filter_map(spell).collect::<Vec<_>>().join(",")
}

fn limits(said: &Said<'_>) -> Result<DiskLimits, String> {
    let of = |bytes, operations| {
        Ok::<_, String>(TransferLimits { bytes: rate(said, bytes)?, operations: rate(said, operations)? })
    };
    Ok(DiskLimits {
        read: of("read-bytes", "read-iops")?,
        write: of("write-bytes", "write-iops")?,
        total: of("total-bytes", "total-iops")?,
    })
}

/// How much of something may go a second and, behind a colon, at once after a rest: the value of a word, if it was said.
///
/// # Errors
/// The value is none.
pub(super) fn rate(said: &Said<'_>, word: &str) -> Result<Option<RateLimit>, String> {
    let Some(text) = said.get(word) else { return Ok(None) };
    let wrong = || format!("{word}=R takes RATE[:BURST], a second and at once, each from 1 to {LIMIT_MAX}");
    let number = |text: &str| text.parse().ok().filter(|number| (1..=LIMIT_MAX).contains(number));
    let text = text.to_str().ok_or_else(wrong)?;
    let (per_second, burst) =
        text.split_once(':').map_or((text, None), |(per_second, burst)| (per_second, Some(burst)));
    let per_second = number(per_second).ok_or_else(wrong)?;
    let burst = burst.map(|burst| number(burst).ok_or_else(wrong)).transpose()?;
    Ok(Some(RateLimit { per_second, burst }))
}

/// A file that is memory, and whether it is read-only, of [`PMEM`].
///
/// # Errors
/// As [`split`].
pub(super) fn pmem(text: &OsStr) -> Result<(PathBuf, bool), String> {
    let (path, said) = split(text, PMEM)?;
    Ok((path.into(), said.contains_key("ro")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_is_used_as_the_words_behind_its_name_say() {
        let disk = |text: &str| disk(OsStr::new(text)).unwrap();
        let file = |path: &str| DiskFile { path: path.into(), ..DiskFile::default() };
        assert_eq!(disk("a.img"), file("a.img"));
        assert_eq!(disk("a.img,ro"), DiskFile { read_only: true, ..file("a.img") });
        assert_eq!(disk("a.img,shared"), DiskFile { shared: true, ..file("a.img") });
        assert_eq!(disk("a,b,other"), file("a,b,other"));
        assert_eq!(disk("d,ro/a=b.img"), file("d,ro/a=b.img"));
        let all = DiskFile {
            path: "a,b".into(),
            read_only: false,
            shared: false,
            direct: true,
            base: Some("c.img".into()),
            serial: Some("x1".to_owned()),
            key_file: Some("d.key".into()),
            limits: DiskLimits::default(),
        };
        assert_eq!(disk("a,b,serial=x1,key-file=d.key,base=c.img,direct"), all);
        let limit = |per_second, burst| Some(RateLimit { per_second, burst });
        let limits = DiskLimits {
            read: TransferLimits { bytes: limit(1 << 20, Some(4096)), operations: None },
            write: TransferLimits { bytes: None, operations: limit(100, None) },
            total: TransferLimits { bytes: limit(1, None), operations: limit(2, Some(3)) },
        };
        let text = "a.img,read-bytes=1048576:4096,write-iops=100,total-bytes=1,total-iops=2:3";
        assert_eq!(disk(text), DiskFile { limits, ..file("a.img") });
        assert_eq!(limited_disk(OsStr::new(text)), Ok(("a.img".to_owned(), limits)));
        assert_eq!(format!("a.img,{}", spelled(&limits)), text);
        assert_eq!(spelled(&DiskLimits::default()), "");
        let lifted = Ok(("a,b".to_owned(), DiskLimits::default()));
        assert_eq!(limited_disk(OsStr::new("a,b")), lifted);
        assert_eq!(pmem(OsStr::new("p,ro")), Ok(("p".into(), true)));
        assert_eq!(pmem(OsStr::new("p,q")), Ok(("p,q".into(), false)));
    }

    #[test]
    fn serial_number_that_no_guest_could_read_whole_is_refused_with_the_limit() {
        let fits = "s".repeat(20);
        assert_eq!(disk(OsStr::new(&format!("a,serial={fits}"))).unwrap().serial, Some(fits));
        for longer in ["s".repeat(21), "1a5b2f0e-6c3d-4e7f-8a9b-0c1d2e3f4a5b".to_owned(), "é".repeat(11)] {
            let error = disk(OsStr::new(&format!("a,ro,serial={longer},direct"))).unwrap_err();
            assert_eq!(serial(&longer), Err(error.clone()));
            let bytes = format!("`{longer}` has {}:", longer.len());
            assert!(error.contains("at most 20 bytes") && error.contains(&bytes), "{error}");
        }
    }

    #[test]
    fn word_that_an_option_does_not_take_is_an_error_that_says_what_it_takes() {
        for wrong in ["direct", "serial=x", "base=b", "key-file=k", "firm", "cid=4", "queues=2", "ro=1"] {
            for text in [format!("p.img,{wrong}"), format!("p.img,ro,{wrong}"), format!("p.img,{wrong},ro")] {
                let error = pmem(OsStr::new(&text)).unwrap_err();
                assert!(
                    error.contains(&format!("`{wrong}`")) && error.ends_with("takes FILE[,ro]"),
                    "{error}"
                );
            }
        }
        for wrong in ["a,firm", "a,cid=3", "a,kye-file=k", "a,kye-file=k,base=b", "a,serial", "a,direct=1"] {
            let error = disk(OsStr::new(wrong)).unwrap_err();
            assert!(error.contains("no word of this option") && error.contains(DISK), "{wrong}: {error}");
        }
        for wrong in
            ["a,read-iops=0", "a,read-iops=", "a,total-bytes=1:0", "a,total-bytes=1:2:3", "a,write-iops=1k"]
        {
            assert!(disk(OsStr::new(wrong)).unwrap_err().contains("RATE[:BURST]"), "{wrong}");
            assert!(limited_disk(OsStr::new(wrong)).unwrap_err().contains("RATE[:BURST]"), "{wrong}");
        }
        for wrong in ["a,ro", "a,serial=b", "a,read-bytes=1,direct", ",read-bytes=1", ""] {
            assert!(limited_disk(OsStr::new(wrong)).unwrap_err().contains(LIMITED_DISK), "{wrong}");
        }
        for wrong in ["a,ro,ro", "a,serial=x,direct,serial=y"] {
            assert!(disk(OsStr::new(wrong)).unwrap_err().contains("said twice"), "{wrong}");
        }
        assert!(disk(OsStr::new("a,shared,base=b")).unwrap_err().contains("one guest's own"));
        for wrong in ["", ",ro"] {
            assert!(disk(OsStr::new(wrong)).unwrap_err().contains("nothing is named"), "{wrong}");
        }
    }
}
