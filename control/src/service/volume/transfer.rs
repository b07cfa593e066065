//! Offering a volume to another project: whoever has the key may take it. The key is shown once and kept as a digest.

use std::sync::Arc;

use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

use super::{check_text, find_for_change, invalid_volume, require_status};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::volume::{Snapshot, Status, Transfer, Volume};
use crate::model::{hexadecimal, random_uuid};
use crate::policy::{require_list, require_own_project, require_write};
use crate::service::quota::{Resource, charge_of_type};
use crate::store::{Cache, Stored, Txn};

/// Random bytes of a key and of a salt: 64 bits, as Cinder's keys, written in hexadecimal.
const KEY_BYTES: usize = 8;
/// The most snapshots that go with a volume, as many as one transaction can change.
const SNAPSHOTS_MAX: usize = 40;

fn random_hex() -> Result<String> {
    let mut bytes = [0; KEY_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Unavailable("there is no randomness for a key".to_owned()))?;
    Ok(hexadecimal(&bytes))
}

fn digest_of(salt: &str, key: &str) -> String {
    hexadecimal(digest(&SHA256, format!("{salt}{key}").as_bytes()).as_ref())
}

/// In a time that says nothing of where they differ.
fn same(one: &[u8], two: &[u8]) -> bool {
    one.len() == two.len() && one.iter().zip(two).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// Whether the caller may see the offer: its maker, and whoever took it.
fn may_see(caller: &Caller, transfer: &Transfer) -> bool {
    caller.may_read(&transfer.source_project_id)
}

impl Control {
    /// The project's offers.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn volume_transfers(&self, caller: &Caller, all: bool) -> Result<Vec<Arc<Stored<Transfer>>>> {
        require_list(caller, "volume:get_all_transfers")?;
        self.db.caught_up().await?;
        let every = all && caller.is_admin();
        let project = caller.project_id();
        Ok(self.db.cache().filter::<Transfer>(|one| every || project == Some(one.source_project_id.as_str())))
    }

    /// One offer.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_transfer(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Transfer>>> {
        // Cinder asks before it looks for the offer, so there is no target but the caller's own project.
        require_list(caller, "volume:get_transfer")?;
        self.db.caught_up().await?;
        let stored = self.db.get::<Transfer>(id).filter(|stored| may_see(caller, &stored.row));
        stored.ok_or_else(|| Error::not_found("Transfer", id))
    }

    /// Offers a volume; returns the offer and its key.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` unless the volume is available.
    pub async fn volume_transfer_create(
        &self,
        caller: &Caller,
        volume_id: &str,
        name: Option<String>,
        no_snapshots: bool,
    ) -> Result<(Transfer, String)> {
        check_text("name", name.as_ref())?;
        self.db.caught_up().await?;
        let (key, salt) = (random_hex()?, random_hex()?);
        let transfer = self
            .db
            .transact_with(|cache| {
                let stored = find_for_change(cache, caller, volume_id, "volume:create_transfer")?;
                require_status(&stored.row, &[Status::Available], "transfer")?;
                if usize::try_from(stored.row.snapshots).unwrap_or(usize::MAX) > SNAPSHOTS_MAX {
                    return Err(invalid_volume(format!("it has more than {SNAPSHOTS_MAX} snapshots.")));
                }
                let volume = Volume { status: Status::AwaitingTransfer, ..stored.row.clone() };
                let transfer = Transfer {
                    id: random_uuid(),
                    name: name.clone(),
                    volume_id: volume_id.to_owned(),
                    source_project_id: stored.row.project_id.clone(),
                    destination_project_id: None,
                    accepted: false,
                    no_snapshots,
                    digest: digest_of(&salt, &key),
                    salt: salt.clone(),
                    created_at: Timestamp::now(),
                };
                Ok((Txn::new().update(&stored, &volume).create(&transfer), transfer))
            })
            .await?;
        Ok((transfer, key))
    }

    /// Takes an offered volume into the caller's project.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a wrong key; `QuotaExceeded`.
    pub async fn volume_transfer_accept(&self, caller: &Caller, id: &str, key: &str) -> Result<Transfer> {
        let project_id = require_own_project(caller, "volume:accept_transfer")?.to_owned();
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let stored = cache.get::<Transfer>(id).ok_or_else(|| Error::not_found("Transfer", id))?;
                let given = digest_of(&stored.row.salt, key);
                if !same(given.as_bytes(), stored.row.digest.as_bytes()) {
                    let message =
                        format!("Invalid auth key: Attempt to transfer {id} with invalid auth key.");
                    return Err(Error::invalid("InvalidAuthKey", message));
                }
                take(cache, caller, &stored, &project_id)
            })
            .await
    }

    /// Takes an offer back.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_transfer_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<Transfer>(id).filter(|stored| may_see(caller, &stored.row));
                let stored = stored.ok_or_else(|| Error::not_found("Transfer", id))?;
                let project = &stored.row.source_project_id;
                require_write(caller, project, "volume:delete_transfer", "Transfer", id)?;
                let txn = Txn::new().delete(&stored);
                let volume = cache.get::<Volume>(&stored.row.volume_id);
                Ok(match volume.filter(|volume| volume.row.status == Status::AwaitingTransfer) {
                    Some(volume) => {
                        let row = Volume { status: Status::Available, ..volume.row.clone() };
                        txn.update(&volume, &row)
                    }
                    None => txn,
                })
            })
            .await
    }
}

fn take(
    cache: &Cache,
    caller: &Caller,
    stored: &Stored<Transfer>,
    project_id: &str,
) -> Result<(Txn, Transfer)> {
    let missing = || Error::not_found("Volume", &stored.row.volume_id);
    let found = cache.get::<Volume>(&stored.row.volume_id).ok_or_else(missing)?;
    require_status(&found.row, &[Status::AwaitingTransfer], "transfer")?;
    let volume = Volume {
        status: Status::Available,
        project_id: project_id.to_owned(),
        user_id: caller.user_id.clone(),
        updated_at: Some(Timestamp::now()),
        ..found.row.clone()
    };
    let gib = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    let (from, to) = (&found.row.project_id, &volume.project_id);
    let moved = |txn: Txn, type_id: &str, resource: Resource, size: u64| {
        let back = [(resource, -1), (Resource::VolumeGib, -gib(size))];
        let taken = [(resource, 1), (Resource::VolumeGib, gib(size))];
        charge_of_type(charge_of_type(txn, from, type_id, &back), to, type_id, &taken)
    };
    let mut txn = Txn::new().update(&found, &volume).delete(stored);
    txn = moved(txn, &volume.type_id, Resource::Volumes, volume.size_gib);
    if !stored.row.no_snapshots {
        for snapshot in cache.filter(|one: &Snapshot| one.volume_id == volume.id).iter().take(SNAPSHOTS_MAX) {
            let row = Snapshot { project_id: project_id.to_owned(), ..snapshot.row.clone() };
            txn = moved(txn.update(snapshot, &row), &row.type_id, Resource::Snapshots, row.size_gib);
        }
    }
    let transfer = Transfer {
        accepted: true,
        destination_project_id: Some(project_id.to_owned()),
        ..stored.row.clone()
    };
    Ok((txn, transfer))
}
