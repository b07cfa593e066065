//! How fast disks may be, by the names that OpenStack has for it: `read_bytes_sec`, `total_iops_sec`, … in the QoS
//! specifications of volumes' types, and the same after `quota:disk_` in flavors' extra specs. A guest is held to what
//! holds now; a flavor's are those that the server was made with.
//!
//! A `…_max` beside a limit is what may go at once after a rest, as QEMU takes it: a second at that rate.

use std::collections::BTreeMap;

use serde_json::Value;
use vmm::config::{DiskLimits, LIMIT_MAX, RateLimit, TransferLimits};

use crate::Control;
use crate::model::volume::{QosSpec, Volume, VolumeType};
use crate::store::Cache;

/// The limits.
const NAMES: [&str; 6] = [
    "read_bytes_sec",
    "read_iops_sec",
    "write_bytes_sec",
    "write_iops_sec",
    "total_bytes_sec",
    "total_iops_sec",
];
/// The burst of a limit; where that depends on the size, its upper bound.
const MAX: &str = "_max";
/// A limit for each GiB of a volume's size (Cinder: capacity based quality of service).
const PER_GIB: &str = "_per_gb";
/// What such a limit does not fall below however small the volume is.
const PER_GIB_MIN: &str = "_per_gb_min";
/// What flavors' extra specs put before the names (Nova: extra specs, `quota`).
const QUOTA: &str = "quota:disk_";

/// What of a volume's QoS specification is the hypervisor's matter, as `connection_info` shows it: limits by size are
/// computed. Nothing if its type has no specification, or one for the storage alone.
pub fn front_end(cache: &Cache, volume: &Volume) -> Option<BTreeMap<String, Value>> {
    let kind = cache.get::<VolumeType>(&volume.type_id)?;
    let qos = cache.get::<QosSpec>(kind.row.qos_id.as_ref()?)?;
    (qos.row.consumer != "back-end").then(|| sized(&qos.row.specs, volume.size_gib))
}

/// The limits of a volume in a guest. What cannot be read limits nothing.
pub fn of_volume(cache: &Cache, volume: &Volume) -> DiskLimits {
    let Some(specs) = front_end(cache, volume) else { return DiskLimits::default() };
    limits(|name| match specs.get(name)? {
        Value::String(text) => number(text),
        value => value.as_u64(),
    })
}

/// The limits that a flavor has for a disk that is no volume. What cannot be read limits nothing.
pub fn of_flavor(extra_specs: &BTreeMap<String, String>) -> DiskLimits {
    limits(|name| number(extra_specs.get(&format!("{QUOTA}{name}"))?))
}

/// Checks the limits of a QoS specification that is not for the storage alone.
///
/// # Errors
/// The first that is none, in one sentence.
pub fn check_specs(specs: &BTreeMap<String, String>) -> Result<(), String> {
    for (key, value) in specs {
        let suffixes = ["", MAX, PER_GIB, PER_GIB_MIN];
        let known = |suffix: &&str| key.strip_suffix(*suffix).is_some_and(|name| NAMES.contains(&name));
        if let Some(suffix) = suffixes.into_iter().find(known) {
            check(key, value, u64::from(suffix != PER_GIB_MIN))?;
        }
    }
    Ok(())
}

/// Checks an extra spec of a flavor, if it is a limit; 0 is none, as with Nova.
///
/// # Errors
/// It is no number, in one sentence.
pub fn check_extra_spec(key: &str, value: &str) -> Result<(), String> {
    let name = key.strip_prefix(QUOTA).map(|name| name.strip_suffix(MAX).unwrap_or(name));
    if name.is_some_and(|name| NAMES.contains(&name)) { check(key, value, 0) } else { Ok(()) }
}

fn check(key: &str, value: &str, least: u64) -> Result<(), String> {
    if value.trim().parse().is_ok_and(|value: u64| (least..=LIMIT_MAX).contains(&value)) {
        return Ok(());
    }
    Err(format!(
        "Invalid input for field/attribute {key}: '{value}' is not a whole number from {least} to {LIMIT_MAX}."
    ))
}

/// A limit that is one.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|value| (1..=LIMIT_MAX).contains(value))
}

fn limits(number: impl Fn(&str) -> Option<u64>) -> DiskLimits {
    let rate = |way: &str, unit: &str| {
        let name = format!("{way}_{unit}_sec");
        Some(RateLimit { per_second: number(&name)?, burst: number(&format!("{name}{MAX}")) })
    };
    let transfers = |way: &str| TransferLimits { bytes: rate(way, "bytes"), operations: rate(way, "iops") };
    DiskLimits { read: transfers("read"), write: transfers("write"), total: transfers("total") }
}

/// The specs with those by size replaced by what they come to, as Cinder hands them on.
fn sized(specs: &BTreeMap<String, String>, size_gib: u64) -> BTreeMap<String, Value> {
    let mut shown: BTreeMap<String, Value> =
        specs.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    for name in NAMES {
        let keys = [PER_GIB, PER_GIB_MIN, MAX].map(|suffix| format!("{name}{suffix}"));
        let [per_gib, least, most] = keys.each_ref().map(|key| number(specs.get(key)?));
        let Some(per_gib) = per_gib else { continue };
        for key in &keys {
            shown.remove(key);
        }
        let value = per_gib.saturating_mul(size_gib).max(least.unwrap_or(1)).min(most.unwrap_or(LIMIT_MAX));
        shown.insert(name.to_owned(), value.into());
    }
    shown
}

impl Control {
    /// [`front_end`] of the volume by that id, for somebody who may see it.
    pub fn volume_front_end_specs(&self, volume_id: &str) -> Option<BTreeMap<String, Value>> {
        let volume = self.db.cache().get::<Volume>(volume_id)?;
        front_end(self.db.cache(), &volume.row)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn specs(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn rate(per_second: u64, burst: Option<u64>) -> Option<RateLimit> {
        Some(RateLimit { per_second, burst })
    }

    #[test]
    fn every_name_has_its_limit_and_what_is_none_limits_nothing() {
        let found = of_flavor(&specs(&[
            ("quota:disk_read_bytes_sec", "1"),
            ("quota:disk_read_iops_sec", " 2 "),
            ("quota:disk_write_bytes_sec", "3"),
            ("quota:disk_write_bytes_sec_max", "30"),
            ("quota:disk_write_iops_sec", "0"),
            ("quota:disk_total_bytes_sec", "many"),
            ("quota:disk_total_iops_sec", "6"),
            ("quota:disk_total_iops_sec_max", "99999999999999999999"),
            ("read_iops_sec", "7"),
        ]));
        let read = TransferLimits { bytes: rate(1, None), operations: rate(2, None) };
        let write = TransferLimits { bytes: rate(3, Some(30)), operations: None };
        let total = TransferLimits { bytes: None, operations: rate(6, None) };
        assert_eq!(found, DiskLimits { read, write, total });
        assert_eq!(of_flavor(&BTreeMap::new()), DiskLimits::default());
    }

    #[test]
    fn limits_by_size_are_computed_between_their_bounds() {
        let of = specs(&[
            ("total_iops_sec_per_gb", "10"),
            ("read_bytes_sec_per_gb", "1000"),
            ("read_bytes_sec_per_gb_min", "2500"),
            ("read_bytes_sec_max", "4000"),
            ("write_iops_sec", "5"),
            ("write_iops_sec_max", "50"),
            ("write_bytes_sec_per_gb", "none"),
            ("vendor:x", "y"),
        ]);
        for (size_gib, iops, bytes) in [(1, 10, 2500), (3, 30, 3000), (100, 1000, 4000)] {
            let expected = json!({
                "total_iops_sec": iops, "read_bytes_sec": bytes, "write_iops_sec": "5", "write_iops_sec_max": "50",
                "write_bytes_sec_per_gb": "none", "vendor:x": "y",
            });
            assert_eq!(json!(sized(&of, size_gib)), expected, "{size_gib} GiB");
        }
        let huge = sized(&specs(&[("read_iops_sec_per_gb", "1099511627776")]), u64::MAX);
        assert_eq!(huge["read_iops_sec"], LIMIT_MAX);
    }

    #[test]
    fn what_is_no_limit_is_refused_with_its_key_and_its_value() {
        for (key, value) in [
            ("read_iops_sec", "0"),
            ("read_iops_sec", "-1"),
            ("total_bytes_sec_max", "1.5"),
            ("write_bytes_sec_per_gb", ""),
            ("write_bytes_sec_per_gb_min", "x"),
            ("total_bytes_sec", "1099511627777"),
            ("total_bytes_sec", "18446744073709551616"),
        ] {
            let error = check_specs(&specs(&[(key, value)])).unwrap_err();
            assert!(error.contains(key) && error.contains(&format!("'{value}'")), "{error}");
        }
        let fine = [
            ("read_iops_sec", "1"),
            ("read_iops_sec_per_gb_min", "0"),
            ("iops_bytes", "500"),
            ("x_max", "y"),
        ];
        assert_eq!(check_specs(&specs(&fine)), Ok(()));
        assert!(check_extra_spec("quota:disk_read_iops_sec", "fast").is_err());
        assert!(check_extra_spec("quota:disk_total_bytes_sec_max", "-1").is_err());
        for (key, value) in
            [("quota:disk_read_iops_sec", "0"), ("quota:cpu_shares", "x"), ("read_iops_sec", "x")]
        {
            assert_eq!(check_extra_spec(key, value), Ok(()), "{key}");
        }
    }
}
