//! How volumes of a type are to be encrypted, and how a volume is (Block Storage API: volume type encryption; Cinder's
//! extension `os-volume-encryption-metadata`).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::error::Error;
use control::model::volume::{DiskEncryption, Encryption, VolumeType};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::time;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::{TAKEN, Taken};

/// How volumes of a type are encrypted.
#[derive(Serialize, JsonSchema)]
pub(super) struct TypeEncryption {
    volume_type_id: String,
    encryption_id: String,
    provider: String,
    cipher: Option<String>,
    key_size: Option<u32>,
    control_location: String,
    created_at: String,
    updated_at: Option<String>,
    deleted: bool,
    /// Always null.
    deleted_at: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Shown {
    Encrypted(Box<TypeEncryption>),
    Not(Nothing),
}

/// An object without a field.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Nothing {}

#[derive(Serialize, JsonSchema)]
pub(super) struct MadeEncryption {
    encryption: Made,
}

#[derive(Serialize, JsonSchema)]
struct Made {
    volume_type_id: String,
    encryption_id: String,
    provider: String,
    cipher: Option<String>,
    key_size: Option<u32>,
    control_location: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ChangedEncryption {
    encryption: Changed,
}

/// What was said of it.
#[derive(Serialize, JsonSchema)]
struct Changed {
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cipher: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    control_location: Option<String>,
}

fn encryption_body(kind: &VolumeType, encryption: &Encryption) -> TypeEncryption {
    TypeEncryption {
        volume_type_id: kind.id.clone(),
        encryption_id: encryption.id.clone(),
        provider: encryption.provider.clone(),
        cipher: encryption.cipher.clone(),
        key_size: encryption.key_size,
        control_location: encryption.control_location.clone(),
        created_at: time(encryption.created_at),
        updated_at: encryption.updated_at.map(time),
        deleted: false,
        deleted_at: None,
    }
}

/// A structure's fields by their names.
fn fields(shown: impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(shown) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// `GET /types/{id}/encryption`: an empty object where there is none.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Shown> {
    control::policy::require_admin(&caller, "volume_extension:volume_type_encryption:get")?;
    let stored = state.control.volume_type(&caller, &id).await?;
    let kind = &stored.row;
    let shown = kind.encryption.as_ref().map(|encryption| encryption_body(kind, encryption));
    Ok(Json(shown.map_or(Shown::Not(Nothing {}), |shown| Shown::Encrypted(Box::new(shown)))))
}

/// `GET /types/{id}/encryption/{key}`.
pub(super) async fn item(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<BTreeMap<String, Value>> {
    control::policy::require_admin(&caller, "volume_extension:volume_type_encryption:get")?;
    let stored = state.control.volume_type(&caller, &id).await?;
    let kind = &stored.row;
    let all = kind.encryption.as_ref().map(|encryption| fields(encryption_body(kind, encryption)));
    match all.and_then(|mut all| all.remove(&key)) {
        Some(value) => Ok(Json(BTreeMap::from([(key, value)]))),
        None => Err(Fault::NoRoute),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EncryptionBody {
    encryption: EncryptionFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EncryptionFields {
    provider: Option<String>,
    cipher: Option<String>,
    #[serde(default)]
    key_size: Value,
    control_location: Option<String>,
}

impl EncryptionFields {
    fn answer(&self) -> Result<Changed, Fault> {
        Ok(Changed {
            provider: self.provider.clone(),
            cipher: self.cipher.clone(),
            key_size: super::size(&self.key_size)?,
            control_location: self.control_location.clone(),
        })
    }

    fn over(self, before: Option<&Encryption>) -> Result<Encryption, Fault> {
        let key_size = super::size(&self.key_size)?.map(|size| u32::try_from(size).unwrap_or(u32::MAX));
        let control_location = self.control_location.or(before.map(|before| before.control_location.clone()));
        let control_location = control_location.unwrap_or_else(|| "front-end".to_owned());
        if !matches!(control_location.as_str(), "front-end" | "back-end") {
            return Err(Fault::malformed("Valid control location are: ['front-end', 'back-end']"));
        }
        let provider = self.provider.or(before.map(|before| before.provider.clone()));
        let provider = provider.filter(|provider| !provider.is_empty() && provider.len() <= 255);
        Ok(Encryption {
            id: before.map_or_else(control::model::random_uuid, |before| before.id.clone()),
            provider: provider.ok_or_else(|| Fault::malformed("provider must be defined"))?,
            cipher: self.cipher.or(before.and_then(|before| before.cipher.clone())),
            key_size: key_size.or(before.and_then(|before| before.key_size)),
            control_location,
            created_at: before.map_or_else(Timestamp::now, |before| before.created_at),
            updated_at: before.map(|_| Timestamp::now()),
        })
    }
}

/// What is told of a volume; of the key itself nothing, and of one that is not encrypted, nothing else.
#[derive(Default, Serialize, JsonSchema)]
pub(super) struct VolumeEncryption {
    encryption_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cipher: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_size: Option<Option<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    control_location: Option<String>,
}

fn of_volume(encryption: Option<&DiskEncryption>) -> VolumeEncryption {
    let Some(DiskEncryption { key_id, spec, .. }) = encryption else { return VolumeEncryption::default() };
    VolumeEncryption {
        encryption_key_id: Some(key_id.clone()),
        provider: Some(spec.provider.clone()),
        cipher: Some(spec.cipher.clone()),
        key_size: Some(spec.key_size),
        control_location: Some(spec.control_location.clone()),
    }
}

/// `GET /volumes/{id}/encryption`.
pub(super) async fn show_volume(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<VolumeEncryption> {
    Ok(Json(of_volume(state.control.volume_encryption_of(&caller, &id).await?.as_ref())))
}

/// `GET /volumes/{id}/encryption/{key}`: the value alone, as text; nothing where it is null.
pub(super) async fn volume_item(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<String, Fault> {
    let all = fields(of_volume(state.control.volume_encryption_of(&caller, &id).await?.as_ref()));
    match all.get(&key) {
        None => Err(Fault::NoRoute),
        Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Ok(other.to_string()),
    }
}

/// `POST /types/{id}/encryption`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<EncryptionBody>,
) -> Answer<MadeEncryption> {
    let stored = state.control.volume_type(&caller, &id).await?;
    if stored.row.encryption.is_some() {
        let message = format!("Volume type encryption for type {id} already exists.");
        return Err(Error::invalid("VolumeTypeEncryptionExists", message).into());
    }
    let encryption = body.encryption.over(None)?;
    let made = Made {
        volume_type_id: id.clone(),
        encryption_id: encryption.id.clone(),
        provider: encryption.provider.clone(),
        cipher: encryption.cipher.clone(),
        key_size: encryption.key_size,
        control_location: encryption.control_location.clone(),
    };
    state.control.volume_type_encrypt(&caller, &id, Some(encryption)).await?;
    Ok(Json(MadeEncryption { encryption: made }))
}

/// `PUT /types/{id}/encryption/{encryption}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, encryption)): Segments<(String, String)>,
    Body(body): Body<EncryptionBody>,
) -> Answer<ChangedEncryption> {
    let before = found_encryption(&state, &caller, &id, &encryption).await?;
    let answer = body.encryption.answer()?;
    let after = body.encryption.over(Some(&before))?;
    state.control.volume_type_encrypt(&caller, &id, Some(after)).await?;
    Ok(Json(ChangedEncryption { encryption: answer }))
}

/// `DELETE /types/{id}/encryption/{encryption}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, encryption)): Segments<(String, String)>,
) -> Result<Taken, Fault> {
    found_encryption(&state, &caller, &id, &encryption).await?;
    state.control.volume_type_encrypt(&caller, &id, None).await?;
    Ok(TAKEN)
}

/// By its id; clients also say `provider` where the id belongs.
async fn found_encryption(
    state: &AppState,
    caller: &Caller,
    id: &str,
    encryption: &str,
) -> Result<Encryption, Fault> {
    control::policy::require_admin(caller, "volume_extension:volume_type_encryption")?;
    let stored = state.control.volume_type(caller, id).await?;
    let found =
        stored.row.encryption.clone().filter(|found| found.id == encryption || encryption == "provider");
    found.ok_or_else(|| Error::not_found("Volume type encryption for type", id).into())
}
