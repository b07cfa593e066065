//! How many images have which data in which store, as rows: data goes with the last one.

use storage::image::ImageDigest;

use crate::model::image::{Image, ImageBlob, ImageMember};
use crate::service::quota::{self, Resource};
use crate::store::{Cache, Stored, Txn};

/// Counts one more image that has data in these stores.
pub(crate) fn refer(cache: &Cache, txn: Txn, stores: &[String], digest: &ImageDigest) -> Txn {
    refer_by(cache, txn, stores, digest.name(), digest.size_bytes)
}

pub(crate) fn refer_by(cache: &Cache, txn: Txn, stores: &[String], name: &str, size_bytes: u64) -> Txn {
    stores.iter().fold(txn, |txn, store| {
        let id = ImageBlob::key(store, name);
        match cache.get::<ImageBlob>(&id) {
            Some(stored) => {
                let row = ImageBlob { references: stored.row.references + 1, ..stored.row.clone() };
                txn.update(&stored, &row)
            }
            None => txn.create(&ImageBlob { id, size_bytes, references: 1 }),
        }
    })
}

/// Counts one image less that has data in its stores.
pub(crate) fn unrefer(cache: &Cache, txn: Txn, image: &Image) -> Txn {
    let Some(name) = &image.data else { return txn };
    image.stores.iter().fold(txn, |txn, store| match cache.get::<ImageBlob>(&ImageBlob::key(store, name)) {
        Some(stored) if stored.row.references > 1 => {
            let row = ImageBlob { references: stored.row.references - 1, ..stored.row.clone() };
            txn.update(&stored, &row)
        }
        Some(stored) => txn.delete(&stored),
        None => txn,
    })
}

/// All that deletes an image's rows: its own, its members', its data's counts, its quota.
pub(crate) fn deletion(cache: &Cache, stored: &Stored<Image>) -> Txn {
    /// Room for the other changes of the transaction; an image has fewer members than this.
    const MEMBERS_MAX: usize = crate::store::TXN_OPERATIONS_MAX - 16;
    let image = &stored.row;
    let owner = image.owner.clone().unwrap_or_default();
    let members = cache.list_under::<ImageMember>(&format!("{}/", image.id));
    let txn = Txn::new().delete(stored);
    let txn = members.iter().take(MEMBERS_MAX).fold(txn, |txn, member| txn.delete(member));
    let txn = unrefer(cache, txn, image);
    quota::charge(txn, &owner, &[(Resource::Images, -1), (Resource::ImageMib, -charged_mib(image))])
}

/// How many MiB an image's owner is charged for it: for data that is there, not for what is on its way.
pub(crate) fn charged_mib(image: &Image) -> i64 {
    if image.status.has_data() { image.size_bytes.map_or(0, mib) } else { 0 }
}

/// Bytes as begun MiB.
pub(super) fn mib(bytes: u64) -> i64 {
    i64::try_from(bytes.div_ceil(1 << 20)).unwrap_or(i64::MAX)
}
