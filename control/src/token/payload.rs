//! What stands in a token, as Keystone packs it: a MessagePack array whose first element is the payload's version.
//!
//! | version | then |
//! |---|---|
//! | 0 unscoped | user, methods, expiry, audit ids |
//! | 1 domain | user, methods, domain, expiry, audit ids |
//! | 2 project | user, methods, project, expiry, audit ids |
//! | 3 trust | user, methods, project, expiry, audit ids, trust |
//! | 7 OAuth | user, methods, project, access token, expiry, audit ids |
//! | 8 system | user, methods, `"all"`, expiry, audit ids |
//! | 9 application credential | user, methods, project, expiry, audit ids, application credential |
//!
//! Versions 4 to 6 and 10 are of federation, whose users are not here: they are not understood.
//!
//! User and project are `[true, 16 bytes]` where the id is a UUID's 32 digits and `[false, text]` otherwise; a domain
//! is the 16 bytes or the text alone. Methods are a bitmask, the expiry is a float of seconds since the epoch, an
//! audit id is 16 bytes.

use rmpv::Value;

/// The most audit ids of a token: its own and its first ancestor's.
pub(super) const AUDIT_IDS_MAX: usize = 2;
/// The longest id in a token, in bytes.
const ID_BYTES_MAX: usize = 64;
/// How deep arrays may nest: a payload has two levels, of which the reader counts each twice.
const DEPTH_MAX: usize = 8;

/// How the user proved to be the user. The discriminants are Keystone's bits, from the order of its default list of
/// methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// By a web server before the service.
    External = 1,
    /// By password.
    Password = 2,
    /// By an earlier token.
    Token = 4,
    /// By OAuth 1.0a.
    Oauth1 = 8,
    /// By federation.
    Mapped = 16,
    /// By an application credential.
    ApplicationCredential = 32,
    /// By a request that an EC2 secret signed.
    Ec2Credential = 64,
}

impl Method {
    const ALL: [Self; 7] = [
        Self::External,
        Self::Password,
        Self::Token,
        Self::Oauth1,
        Self::Mapped,
        Self::ApplicationCredential,
        Self::Ec2Credential,
    ];

    /// The method's name in a request and in a token's body.
    pub fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Password => "password",
            Self::Token => "token",
            Self::Oauth1 => "oauth1",
            Self::Mapped => "mapped",
            Self::ApplicationCredential => "application_credential",
            Self::Ec2Credential => "ec2credential",
        }
    }

    /// The method of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

/// Under what somebody else's right a token was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Via {
    /// None.
    #[default]
    Own,
    /// A trust's id.
    Trust(String),
    /// An application credential's id.
    ApplicationCredential(String),
    /// The id of an access token of OAuth.
    Oauth(String),
}

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenScope {
    /// Only for asking for another token.
    Unscoped,
    /// A domain's id.
    Domain(String),
    /// A project's id.
    Project(String),
    /// The whole deployment.
    System,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload {
    /// The user's id.
    pub user_id: String,
    /// How the user proved it.
    pub methods: Vec<Method>,
    /// What it is good for.
    pub scope: TokenScope,
    /// Until when, in seconds since the epoch.
    pub expires_at_s: f64,
    /// Its own id for revocation and audit, then the one it came from.
    pub audit_ids: Vec<[u8; 16]>,
    /// Under what right; only with a project.
    pub via: Via,
}

/// Why a payload was not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PayloadError {
    /// It is no MessagePack array.
    #[error("not a MessagePack array")]
    NoArray,
    /// A version that is not made here.
    #[error("payload version {0} is not known")]
    Version(u64),
    /// A field is missing or not what it should be.
    #[error("the field {0} is not as it should be")]
    Field(&'static str),
}

impl Payload {
    /// As MessagePack.
    pub fn pack(&self) -> Vec<u8> {
        let methods = self.methods.iter().fold(0_u8, |bits, method| bits | *method as u8);
        let scope = match &self.scope {
            TokenScope::Unscoped => (0_u8, None),
            TokenScope::Domain(id) => (
                1,
                Some(
                    uuid_bytes(id)
                        .map_or_else(|| Value::from(id.as_str()), |bytes| Value::Binary(bytes.into())),
                ),
            ),
            TokenScope::Project(id) => {
                let version = match &self.via {
                    Via::Own => 2,
                    Via::Trust(_) => 3,
                    Via::ApplicationCredential(_) => 9,
                    Via::Oauth(_) => 7,
                };
                (version, Some(pack_id(id)))
            }
            TokenScope::System => (8, Some(Value::from("all"))),
        };
        let audit_ids = self.audit_ids.iter().map(|id| Value::Binary(id.to_vec())).collect();
        let mut fields = vec![Value::from(scope.0), pack_id(&self.user_id), Value::from(methods)];
        fields.extend(scope.1);
        if let (Via::Oauth(id), TokenScope::Project(_)) = (&self.via, &self.scope) {
            fields.push(pack_id(id));
        }
        fields.extend([Value::F64(self.expires_at_s), Value::Array(audit_ids)]);
        if let (Via::Trust(id) | Via::ApplicationCredential(id), TokenScope::Project(_)) =
            (&self.via, &self.scope)
        {
            fields.push(match (&self.via, uuid_bytes(id)) {
                // Keystone packs a trust's bytes alone.
                (Via::Trust(_), Some(bytes)) => Value::Binary(bytes.into()),
                _ => pack_id(id),
            });
        }
        let mut bytes = Vec::with_capacity(128);
        rmpv::encode::write_value(&mut bytes, &Value::Array(fields))
            .expect("invariant: writing to a vector does not fail");
        bytes
    }

    /// From MessagePack.
    ///
    /// # Errors
    /// See [`PayloadError`].
    pub fn unpack(mut bytes: &[u8]) -> Result<Self, PayloadError> {
        let value = rmpv::decode::read_value_with_max_depth(&mut bytes, DEPTH_MAX);
        let Ok(Value::Array(fields)) = value else { return Err(PayloadError::NoArray) };
        let mut fields = fields.into_iter();
        let mut next = |name| fields.next().ok_or(PayloadError::Field(name));
        let version = next("version")?.as_u64().ok_or(PayloadError::Field("version"))?;
        let user_id = unpack_id(&next("user")?).ok_or(PayloadError::Field("user"))?;
        let bits = next("methods")?.as_u64().ok_or(PayloadError::Field("methods"))?;
        let methods = Method::ALL.into_iter().filter(|method| bits & (*method as u64) != 0).collect();
        let scope = match version {
            0 => TokenScope::Unscoped,
            1 => TokenScope::Domain(unpack_id(&next("domain")?).ok_or(PayloadError::Field("domain"))?),
            2 | 3 | 7 | 9 => {
                TokenScope::Project(unpack_id(&next("project")?).ok_or(PayloadError::Field("project"))?)
            }
            8 if next("system")?.as_str() == Some("all") => TokenScope::System,
            8 => return Err(PayloadError::Field("system")),
            other => return Err(PayloadError::Version(other)),
        };
        let access_token = match version {
            7 => Some(unpack_id(&next("access token")?).ok_or(PayloadError::Field("access token"))?),
            _ => None,
        };
        let expires_at_s =
            next("expiry")?.as_f64().filter(|s| s.is_finite()).ok_or(PayloadError::Field("expiry"))?;
        let audit_ids = match next("audit ids")? {
            Value::Array(ids) if (1..=AUDIT_IDS_MAX).contains(&ids.len()) => ids
                .iter()
                .map(|id| id.as_slice().and_then(|bytes| bytes.try_into().ok()))
                .collect::<Option<_>>()
                .ok_or(PayloadError::Field("audit ids"))?,
            _ => return Err(PayloadError::Field("audit ids")),
        };
        let mut last = |name| unpack_id(&next(name)?).ok_or(PayloadError::Field(name));
        let via = match version {
            3 => Via::Trust(last("trust")?),
            9 => Via::ApplicationCredential(last("application credential")?),
            _ => access_token.map_or(Via::Own, Via::Oauth),
        };
        Ok(Self { user_id, methods, scope, expires_at_s, audit_ids, via })
    }
}

/// The sixteen bytes of an id that is 32 lower-case hexadecimal digits, so that reading gives the same text back.
fn uuid_bytes(id: &str) -> Option<[u8; 16]> {
    let hexadecimal = id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    hexadecimal.then(|| uuid::Uuid::try_parse(id).ok().map(uuid::Uuid::into_bytes)).flatten()
}

fn pack_id(id: &str) -> Value {
    Value::Array(match uuid_bytes(id) {
        Some(bytes) => vec![Value::from(true), Value::Binary(bytes.into())],
        None => vec![Value::from(false), Value::from(id)],
    })
}

/// Either form: the pair, or the bytes or text alone.
fn unpack_id(value: &Value) -> Option<String> {
    match value {
        Value::Array(pair) => match pair.as_slice() {
            [Value::Boolean(_), value @ (Value::Binary(_) | Value::String(_))] => unpack_id(value),
            _ => None,
        },
        Value::Binary(bytes) => {
            let bytes: [u8; 16] = bytes.as_slice().try_into().ok()?;
            Some(uuid::Uuid::from_bytes(bytes).simple().to_string())
        }
        Value::String(text) => text.as_str().filter(|text| text.len() <= ID_BYTES_MAX).map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn payload(scope: TokenScope) -> Payload {
        Payload {
            user_id: "0123456789abcdef0123456789abcdef".into(),
            methods: vec![Method::Password, Method::Token],
            scope,
            expires_at_s: 1_700_000_000.25,
            audit_ids: vec![[1; 16], [2; 16]],
            via: Via::Own,
        }
    }

    #[test]
    fn every_scope_reads_back() {
        let hex = "ffffffffffffffffffffffffffffffff".to_owned();
        for scope in [
            TokenScope::Unscoped,
            TokenScope::System,
            TokenScope::Domain("default".into()),
            TokenScope::Domain(hex.clone()),
            TokenScope::Project(hex),
            TokenScope::Project("Not-A-UUID".into()),
        ] {
            let payload = payload(scope);
            assert_eq!(Payload::unpack(&payload.pack()).unwrap(), payload);
        }
    }

    #[test]
    fn what_is_handed_on_reads_back() {
        let hex = "ee".repeat(16);
        let oauth = Via::Oauth(hex.clone());
        for via in
            [Via::Trust(hex.clone()), Via::ApplicationCredential(hex), Via::Trust("short".into()), oauth]
        {
            let payload = Payload { via, ..payload(TokenScope::Project("ff".repeat(16))) };
            assert_eq!(Payload::unpack(&payload.pack()).unwrap(), payload);
        }
    }

    /// `msgpack.packb((2, (True, b'\x01\x23…'), 2, (True, b'\xff…'), 1.5, [b'\x07' * 16]))` of Python's msgpack.
    #[test]
    fn project_payload_is_byte_for_byte_keystones() {
        let payload = Payload {
            user_id: "0123456789abcdef0123456789abcdef".into(),
            methods: vec![Method::Password],
            scope: TokenScope::Project("ff".repeat(16)),
            expires_at_s: 1.5,
            audit_ids: vec![[7; 16]],
            via: Via::Own,
        };
        let mut wanted = vec![0x96, 0x02, 0x92, 0xc3, 0xc4, 0x10];
        wanted.extend([
            0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
        ]);
        wanted.extend([0x02, 0x92, 0xc3, 0xc4, 0x10]);
        wanted.extend([0xff; 16]);
        wanted.extend([0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0, 0x91, 0xc4, 0x10]);
        wanted.extend([7; 16]);
        assert_eq!(payload.pack(), wanted);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Payload::unpack(&bytes);
        }
    }
}
