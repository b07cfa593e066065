//! JSON Web Signatures (RFC 7515) with ES256, as Keystone's JWS provider makes them: a header, claims and a signature
//! in URL-safe base64 with dots between. The claims are `sub`, `iat`, `exp` and Keystone's own with `openstack_` before
//! them; those that say nothing are left out.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING};
use ring::signature::{EcdsaKeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::payload::{AUDIT_IDS_MAX, Method, Payload, TokenScope, Via};

/// The longest token that is looked at, in characters: ours have some 700.
const TOKEN_CHARACTERS_MAX: usize = 4096;
/// `{"typ":"JWT","alg":"ES256"}`: no other is made or taken, whatever a token says of itself.
const HEADER: &str = r#"{"typ":"JWT","alg":"ES256"}"#;

/// A key pair.
pub struct JwsKey {
    pair: EcdsaKeyPair,
    document: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for JwsKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JwsKey(…)")
    }
}

impl JwsKey {
    /// A new random key pair; none if the system has no randomness.
    pub fn random() -> Option<Self> {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).ok()?;
        Self::from_document(document.as_ref())
    }

    /// Reads a key pair in PKCS #8 form.
    pub fn from_document(document: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document, &random).ok()?;
        Some(Self { pair, document: Zeroizing::new(document.to_vec()) })
    }

    /// The key pair in PKCS #8 form.
    pub fn document(&self) -> &[u8] {
        &self.document
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    iat: u64,
    exp: u64,
    openstack_methods: Vec<String>,
    openstack_audit_ids: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    openstack_system: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    openstack_domain_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    openstack_project_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    openstack_trust_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    openstack_app_cred_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    openstack_access_token_id: Option<String>,
}

/// Signs; none if the system has no randomness.
pub(super) fn sign(key: &JwsKey, payload: &Payload, issued_at_s: u64) -> Option<String> {
    let (mut system, mut domain, mut project) = (None, None, None);
    match &payload.scope {
        TokenScope::Unscoped => {}
        TokenScope::System => system = Some("all".to_owned()),
        TokenScope::Domain(id) => domain = Some(id.clone()),
        TokenScope::Project(id) => project = Some(id.clone()),
    }
    let (mut trust, mut application_credential, mut access_token) = (None, None, None);
    match &payload.via {
        Via::Own => {}
        Via::Trust(id) => trust = Some(id.clone()),
        Via::ApplicationCredential(id) => application_credential = Some(id.clone()),
        Via::Oauth(id) => access_token = Some(id.clone()),
    }
    let claims = Claims {
        sub: payload.user_id.clone(),
        iat: issued_at_s,
        exp: payload.expires_at_s as u64,
        openstack_methods: payload.methods.iter().map(|method| method.name().to_owned()).collect(),
        openstack_audit_ids: payload.audit_ids.iter().map(|id| URL_SAFE_NO_PAD.encode(id)).collect(),
        openstack_system: system,
        openstack_domain_id: domain,
        openstack_project_id: project,
        openstack_trust_id: trust,
        openstack_app_cred_id: application_credential,
        openstack_access_token_id: access_token,
    };
    let claims = serde_json::to_vec(&claims).expect("invariant: claims are plain");
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(claims));
    let signature = key.pair.sign(&SystemRandom::new(), signed.as_bytes()).ok()?;
    Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
}

/// Opens a token of this key: what it says, and when it was signed.
pub(super) fn open(key: &JwsKey, token: &str) -> Option<(Payload, u64)> {
    if token.len() > TOKEN_CHARACTERS_MAX {
        return None;
    }
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.pair.public_key().as_ref());
    public.verify(signed.as_bytes(), &signature).ok()?;
    let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
    if header.alg != "ES256" {
        return None;
    }
    let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    let scope = match (claims.openstack_system, claims.openstack_domain_id, claims.openstack_project_id) {
        (None, None, None) => TokenScope::Unscoped,
        (Some(_), None, None) => TokenScope::System,
        (None, Some(id), None) => TokenScope::Domain(id),
        (None, None, Some(id)) => TokenScope::Project(id),
        _ => return None,
    };
    let (trust, credential) = (claims.openstack_trust_id, claims.openstack_app_cred_id);
    let via = match (trust, credential, claims.openstack_access_token_id) {
        (None, None, None) => Via::Own,
        (Some(id), None, None) => Via::Trust(id),
        (None, Some(id), None) => Via::ApplicationCredential(id),
        (None, None, Some(id)) => Via::Oauth(id),
        _ => return None,
    };
    let bytes = |id: &String| URL_SAFE_NO_PAD.decode(id).ok()?.try_into().ok();
    let audit_ids: Vec<[u8; 16]> = claims.openstack_audit_ids.iter().map(bytes).collect::<Option<_>>()?;
    if !(1..=AUDIT_IDS_MAX).contains(&audit_ids.len()) {
        return None;
    }
    let methods = claims.openstack_methods.iter().filter_map(|name| Method::named(name)).collect();
    let expires_at_s = claims.exp as f64;
    Some((Payload { user_id: claims.sub, methods, scope, expires_at_s, audit_ids, via }, claims.iat))
}
