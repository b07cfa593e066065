//! Key pairs on the wire (Compute API: keypairs).

use axum::Json;
use axum::extract::State;
use control::model::compute::Keypair;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

use super::{microseconds, number_of, with};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{Created, DONE, Done, Either, Status, TAKEN, Taken};
use crate::page::{Direction, NextLink, Page};

/// What a list says of a key pair.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Keypair")]
struct ShownKeypair {
    name: String,
    public_key: String,
    fingerprint: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct OneOfList {
    keypair: ShownKeypair,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Keypairs {
    keypairs: Vec<OneOfList>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keypairs_links: Option<NextLink>,
}

/// A key pair with all that is known of it.
#[derive(Serialize, JsonSchema)]
struct KeypairDetails {
    #[serde(flatten)]
    keypair: ShownKeypair,
    id: u32,
    user_id: String,
    /// Always false.
    deleted: bool,
    created_at: String,
    /// Always null.
    updated_at: Option<String>,
    /// Always null.
    deleted_at: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneKeypair {
    keypair: KeypairDetails,
}

/// A new key pair; its private key, which is kept nowhere, if it was made here.
#[derive(Serialize, JsonSchema)]
struct NewKeypair {
    #[serde(flatten)]
    keypair: ShownKeypair,
    user_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key: Option<PrivateKey>,
}

/// A private key, which leaves no copy in memory but that of the answer.
#[derive(JsonSchema)]
struct PrivateKey(#[schemars(with = "String")] Zeroizing<String>);

impl Serialize for PrivateKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[derive(Serialize, JsonSchema)]
pub(super) struct MadeKeypair {
    keypair: NewKeypair,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    keypair: CreateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    name: String,
    public_key: Option<String>,
    #[serde(rename = "type")]
    key_type: Option<String>,
    user_id: Option<String>,
}

/// `GET /os-keypairs`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Keypairs> {
    let keypairs = state.control.keypairs(&caller, user(&filters, version)).await?;
    let rows: Vec<Keypair> = keypairs.iter().map(|stored| stored.row.clone()).collect();
    let page = Page::of(&filters, &[("name", Direction::Ascending)])?;
    let slice =
        page.cut(rows, |row| &row.name, |row, key| (key == "name").then(|| row.name.as_str().into()))?;
    let (keypairs, keypairs_links) = slice.with_links(&url, |row| OneOfList { keypair: base(&row, version) });
    Ok(Json(Keypairs { keypairs, keypairs_links }))
}

/// `GET /os-keypairs/{name}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    Segments(name): Segments<String>,
) -> Answer<OneKeypair> {
    let keypair = state.control.keypair(&caller, user(&filters, version), &name).await?;
    let keypair = &keypair.row;
    let keypair = KeypairDetails {
        keypair: base(keypair, version),
        id: number_of(&keypair.id),
        user_id: keypair.user_id.clone(),
        deleted: false,
        created_at: microseconds(keypair.created_at),
        updated_at: None,
        deleted_at: None,
    };
    Ok(Json(OneKeypair { keypair }))
}

/// `POST /os-keypairs`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CreateBody>,
) -> Result<Either<Json<MadeKeypair>, Created<MadeKeypair>>, Fault> {
    let fields = body.keypair;
    let unexpected = (fields.key_type.is_some() && !version.at_least(2, 2))
        || (fields.user_id.is_some() && !version.at_least(2, 10));
    if unexpected {
        return Err(Fault::malformed("Additional properties are not allowed in this microversion."));
    }
    let key_type = fields.key_type.as_deref().unwrap_or("ssh");
    let user = fields.user_id.as_deref();
    let mut private_key = None;
    let keypair = if let Some(public_key) = fields.public_key {
        state.control.keypair_create(&caller, user, &fields.name, key_type, &public_key).await?
    } else {
        if version.at_least(2, 92) {
            return Err(Fault::malformed(
                "Invalid input for field/attribute keypair. 'public_key' is a required property",
            ));
        }
        let (keypair, made) = state.control.keypair_generate(&caller, user, &fields.name, key_type).await?;
        private_key = Some(PrivateKey(made));
        keypair
    };
    let shown = base(&keypair, version);
    let made = MadeKeypair { keypair: NewKeypair { keypair: shown, user_id: keypair.user_id, private_key } };
    let is_new = version.at_least(2, 2);
    Ok(if is_new { Either::Other(Status(Json(made))) } else { Either::One(Json(made)) })
}

/// `DELETE /os-keypairs/{name}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    Segments(name): Segments<String>,
) -> Result<Either<Done, Taken>, Fault> {
    state.control.keypair_delete(&caller, user(&filters, version), &name).await?;
    Ok(if version.at_least(2, 2) { Either::One(DONE) } else { Either::Other(TAKEN) })
}

/// Another user's, since 2.10.
fn user(filters: &Filters, version: Microversion) -> Option<&str> {
    filters.get("user_id").filter(|_| version.at_least(2, 10))
}

fn base(keypair: &Keypair, version: Microversion) -> ShownKeypair {
    ShownKeypair {
        name: keypair.name.clone(),
        public_key: keypair.public_key.clone(),
        fingerprint: keypair.fingerprint.clone(),
        kind: with(version, 2, keypair.key_type.clone()),
    }
}
