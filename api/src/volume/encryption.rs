//! How volumes of a type are to be encrypted, and how a volume is (Block Storage API: volume type encryption; Cinder's
//! extension `os-volume-encryption-metadata`).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::caller::Caller;
use control::error::Error;
use control::model::volume::{DiskEncryption, Encryption, VolumeType};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::time;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;

fn encryption_body(kind: &VolumeType, encryption: &Encryption) -> Value {
    json!({
        "volume_type_id": kind.id,
        "encryption_id": encryption.id,
        "provider": encryption.provider,
        "cipher": encryption.cipher,
        "key_size": encryption.key_size,
        "control_location": encryption.control_location,
        "created_at": time(encryption.created_at),
        "updated_at": encryption.updated_at.map(time),
        "deleted": false,
        "deleted_at": null,
    })
}

/// `GET /types/{id}/encryption`: an empty object where there is none.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    control::policy::require_admin(&caller, "volume_extension:volume_type_encryption:get")?;
    let stored = state.control.volume_type(&caller, &id).await?;
    let kind = &stored.row;
    Ok(Json(
        kind.encryption.as_ref().map_or_else(|| json!({}), |encryption| encryption_body(kind, encryption)),
    ))
}

/// `GET /types/{id}/encryption/{key}`.
pub(super) async fn item(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<Value> {
    control::policy::require_admin(&caller, "volume_extension:volume_type_encryption:get")?;
    let stored = state.control.volume_type(&caller, &id).await?;
    let kind = &stored.row;
    let all = kind.encryption.as_ref().map(|encryption| encryption_body(kind, encryption));
    match all.as_ref().and_then(|all| all.get(&key)) {
        Some(value) => Ok(Json(json!({ key: value }))),
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
    fn answer(&self) -> Result<Value, Fault> {
        let key_size = super::size(&self.key_size)?;
        Ok(json!({"provider": self.provider, "cipher": self.cipher, "key_size": key_size,
            "control_location": self.control_location}))
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

/// What is told of a volume; of the key itself nothing.
fn of_volume(encryption: Option<&DiskEncryption>) -> Value {
    match encryption {
        None => json!({"encryption_key_id": null}),
        Some(DiskEncryption { key_id, spec, .. }) => json!({
            "encryption_key_id": key_id,
            "provider": spec.provider,
            "cipher": spec.cipher,
            "key_size": spec.key_size,
            "control_location": spec.control_location,
        }),
    }
}

/// `GET /volumes/{id}/encryption`.
pub(super) async fn show_volume(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    Ok(Json(of_volume(state.control.volume_encryption_of(&caller, &id).await?.as_ref())))
}

/// `GET /volumes/{id}/encryption/{key}`: the value alone, as text; nothing where it is null.
pub(super) async fn volume_item(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<String, Fault> {
    let all = of_volume(state.control.volume_encryption_of(&caller, &id).await?.as_ref());
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
) -> Answer<Value> {
    let stored = state.control.volume_type(&caller, &id).await?;
    if stored.row.encryption.is_some() {
        let message = format!("Volume type encryption for type {id} already exists.");
        return Err(Error::invalid("VolumeTypeEncryptionExists", message).into());
    }
    let encryption = body.encryption.over(None)?;
    let answer = json!({"encryption": {
        "volume_type_id": id,
        "encryption_id": encryption.id,
        "provider": encryption.provider,
        "cipher": encryption.cipher,
        "key_size": encryption.key_size,
        "control_location": encryption.control_location,
    }});
    state.control.volume_type_encrypt(&caller, &id, Some(encryption)).await?;
    Ok(Json(answer))
}

/// `PUT /types/{id}/encryption/{encryption}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, encryption)): Segments<(String, String)>,
    Body(body): Body<EncryptionBody>,
) -> Answer<Value> {
    let before = found_encryption(&state, &caller, &id, &encryption).await?;
    let mut answer = body.encryption.answer()?;
    if let Some(answer) = answer.as_object_mut() {
        answer.retain(|_, value| !value.is_null());
    }
    let after = body.encryption.over(Some(&before))?;
    state.control.volume_type_encrypt(&caller, &id, Some(after)).await?;
    Ok(Json(json!({"encryption": answer})))
}

/// `DELETE /types/{id}/encryption/{encryption}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, encryption)): Segments<(String, String)>,
) -> Result<StatusCode, Fault> {
    found_encryption(&state, &caller, &id, &encryption).await?;
    state.control.volume_type_encrypt(&caller, &id, None).await?;
    Ok(StatusCode::ACCEPTED)
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
