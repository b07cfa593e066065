//! The owner's properties of volumes and snapshots (Block Storage API: volume metadata, snapshot metadata).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::Control;
use control::caller::Caller;
use control::error::{Error, Result};
use control::model::volume::Snapshot;
use control::policy::{Default, Target, require};
use control::service::volume::change::Properties;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::properties;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;

type Metadata = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetadataBody {
    metadata: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetaBody {
    meta: Value,
}

impl MetaBody {
    /// The one property, which has to be the one in the path.
    fn one(&self, key: &str) -> std::result::Result<Metadata, Fault> {
        let one = properties(&self.meta)?;
        match one.contains_key(key) {
            true if one.len() == 1 => Ok(one),
            true => Err(Fault::malformed("Request body contains too many items")),
            false => Err(Fault::malformed("Request body and URI mismatch")),
        }
    }
}

/// All properties.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Metadata")]
pub(super) struct Shown {
    metadata: Metadata,
}

/// One of them.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MetadataItem")]
pub(super) struct Item {
    meta: Metadata,
}

fn shown(metadata: Metadata) -> Answer<Shown> {
    Ok(Json(Shown { metadata }))
}

fn item(all: &Metadata, key: &str) -> Answer<Item> {
    match all.get(key) {
        Some(value) => Ok(Json(Item { meta: BTreeMap::from([(key.to_owned(), value.clone())]) })),
        None => Err(Error::NotFound { kind: "Metadata item", id: key.to_owned() }.into()),
    }
}

/// What has properties of its owner's.
pub(super) trait Owned {
    /// All of one's.
    fn get(control: &Control, caller: &Caller, id: &str) -> impl Future<Output = Result<Metadata>> + Send;

    /// Adds these, or with `replace` has no others; all that there are then.
    fn set(
        control: &Control,
        caller: &Caller,
        id: &str,
        set: Metadata,
        replace: bool,
    ) -> impl Future<Output = Result<Metadata>> + Send;

    /// Takes one away.
    fn unset(
        control: &Control,
        caller: &Caller,
        id: &str,
        key: &str,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// Those of volumes.
pub(super) struct OfVolume;

impl Owned for OfVolume {
    async fn get(control: &Control, caller: &Caller, id: &str) -> Result<Metadata> {
        let view = control.volume(caller, id).await?;
        let row = &view.volume.row;
        let keys = [("project_id", row.project_id.as_str()), ("user_id", row.user_id.as_str())];
        require("volume:get_volume_metadata", Default::Reader, caller, &Target::of(&keys))?;
        Ok(row.metadata.clone())
    }

    async fn set(
        control: &Control,
        caller: &Caller,
        id: &str,
        set: Metadata,
        replace: bool,
    ) -> Result<Metadata> {
        let view = control.volume_properties_set(caller, id, Properties::Own, set, replace).await?;
        Ok(view.volume.row.metadata.clone())
    }

    async fn unset(control: &Control, caller: &Caller, id: &str, key: &str) -> Result<()> {
        control.volume_property_unset(caller, id, Properties::Own, key).await.map(drop)
    }
}

/// Those of snapshots.
pub(super) struct OfSnapshot;

impl Owned for OfSnapshot {
    async fn get(control: &Control, caller: &Caller, id: &str) -> Result<Metadata> {
        let stored = control.volume_snapshot(caller, id).await?;
        let row = &stored.row;
        let keys = [("project_id", row.project_id.as_str()), ("user_id", row.user_id.as_str())];
        require("volume:get_snapshot_metadata", Default::Reader, caller, &Target::of(&keys))?;
        Ok(row.metadata.clone())
    }

    async fn set(
        control: &Control,
        caller: &Caller,
        id: &str,
        set: Metadata,
        replace: bool,
    ) -> Result<Metadata> {
        let change = |snapshot: &mut Snapshot| {
            if replace {
                snapshot.metadata.clear();
            }
            snapshot.metadata.extend(set.clone());
            Ok(())
        };
        Ok(control.volume_snapshot_update(caller, id, change).await?.row.metadata.clone())
    }

    async fn unset(control: &Control, caller: &Caller, id: &str, key: &str) -> Result<()> {
        let remove = |snapshot: &mut Snapshot| match snapshot.metadata.remove(key) {
            Some(_) => Ok(()),
            None => Err(Error::NotFound { kind: "Metadata item", id: key.to_owned() }),
        };
        control.volume_snapshot_update(caller, id, remove).await.map(drop)
    }
}

/// `GET …/{id}/metadata`.
pub(super) async fn list<O: Owned>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Shown> {
    shown(O::get(&state.control, &caller, &id).await?)
}

/// `POST …/{id}/metadata`.
pub(super) async fn add<O: Owned>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Shown> {
    shown(O::set(&state.control, &caller, &id, properties(&body.metadata)?, false).await?)
}

/// `PUT …/{id}/metadata`.
pub(super) async fn replace<O: Owned>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Shown> {
    shown(O::set(&state.control, &caller, &id, properties(&body.metadata)?, true).await?)
}

/// `GET …/{id}/metadata/{key}`.
pub(super) async fn show<O: Owned>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<Item> {
    item(&O::get(&state.control, &caller, &id).await?, &key)
}

/// `PUT …/{id}/metadata/{key}`.
pub(super) async fn set<O: Owned>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
    Body(body): Body<MetaBody>,
) -> Answer<Item> {
    item(&O::set(&state.control, &caller, &id, body.one(&key)?, false).await?, &key)
}

/// `DELETE …/{id}/metadata/{key}`.
pub(super) async fn unset<O: Owned>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> std::result::Result<(), Fault> {
    O::unset(&state.control, &caller, &id, &key).await?;
    Ok(())
}
