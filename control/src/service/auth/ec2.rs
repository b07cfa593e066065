//! Requests that an EC2 secret signed: a service that got one asks here whose it is. AWS's signatures of versions 0, 1,
//! 2 and 4 over a request, and S3's over a string.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use ring::rand::SystemRandom;
use ring::{digest, hmac};
use zeroize::Zeroizing;

use super::facts::enabled_user;
use super::{Target, TokenFacts, refused};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::delegation::StoredCredential;
use crate::model::hexadecimal;
use crate::service::identity::credential::{EC2, Ec2Key, ec2_id};
use crate::token::{Method, TokenScope, Via};

/// For how long a signature that says when it was made is good (Keystone's `[credential] auth_ttl`).
const SIGNATURE_TTL: SignedDuration = SignedDuration::from_mins(15);

/// A request as the service got it.
#[derive(Debug, Clone, Default)]
pub struct SignedRequest {
    /// The access key.
    pub access: String,
    /// The signature.
    pub signature: String,
    /// `GET` and the like.
    pub verb: String,
    /// The name and perhaps the port it came by.
    pub host: String,
    /// The path.
    pub path: String,
    /// The query or form.
    pub params: BTreeMap<String, String>,
    /// The headers.
    pub headers: BTreeMap<String, String>,
    /// The SHA-256 of the body in hexadecimal.
    pub body_hash: String,
    /// For S3: what was signed, instead of all the above.
    pub string_to_sign: Option<Vec<u8>>,
}

impl Control {
    /// The token of the user whose secret signed a request.
    ///
    /// # Errors
    /// `Unauthorized` for a wrong or old signature; `NotFound` for an unknown key; `Forbidden` unless the caller is an
    /// administrator or a service.
    pub async fn token_of_signature(
        &self,
        caller: &Caller,
        request: &SignedRequest,
    ) -> Result<(Zeroizing<String>, TokenFacts)> {
        if !caller.is_admin() && !caller.has_role("service") {
            return Err(Error::Forbidden { action: "identity:ec2tokens_validate" });
        }
        self.db.caught_up().await?;
        let unknown = || Error::not_found("EC2 access key", "of the request");
        let stored = self.db.get::<StoredCredential>(&ec2_id(&request.access)).ok_or_else(unknown)?;
        if stored.row.kind != EC2 {
            return Err(unknown());
        }
        let key = self.ec2_of(&stored.row)?;
        if !request.is_of(&key) {
            return Err(Error::Unauthorized("Invalid EC2 signature.".to_owned()));
        }
        request.check_age()?;
        let project_id = stored.row.project_id.clone().ok_or_else(refused)?;
        let user = enabled_user(self.db.cache(), &stored.row.user_id)?;
        let scope = TokenScope::Project(project_id);
        let via = match (&key.trust_id, &key.application_credential_id) {
            (Some(id), _) => Via::Trust(id.clone()),
            (None, Some(id)) => Via::ApplicationCredential(id.clone()),
            (None, None) => Via::Own,
        };
        let target = Target { user_id: user.row.id.clone(), scope, via: via.clone(), expires_at: None };
        let login = self.login(user, Method::Ec2Credential, via)?;
        self.issue_for(login, target).await
    }
}

impl SignedRequest {
    fn is_of(&self, key: &Ec2Key) -> bool {
        let expected = match &self.string_to_sign {
            Some(text) => of_string(text, &key.secret),
            None => self.of_request(&key.secret, &self.host),
        };
        let same = |expected: &Option<String>| {
            let Some(expected) = expected else { return false };
            // Codes under a key of this moment are compared, in constant time.
            let Ok(key) = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) else { return false };
            let code = hmac::sign(&key, expected.as_bytes());
            hmac::verify(&key, self.signature.as_bytes(), code.as_ref()).is_ok()
        };
        if same(&expected) {
            return true;
        }
        // Some clients leave the port out of what they sign.
        match self.host.split_once(':') {
            Some((host, _)) if self.string_to_sign.is_none() => same(&self.of_request(&key.secret, host)),
            _ => false,
        }
    }

    fn check_age(&self) -> Result<()> {
        let date = |map: &BTreeMap<String, String>| map.get("X-Amz-Date").cloned();
        let said = self.params.get("Timestamp").cloned();
        let Some(said) = said.or_else(|| date(&self.headers)).or_else(|| date(&self.params)) else {
            return Ok(());
        };
        let at = said.parse::<Timestamp>().ok().or_else(|| basic_time(&said));
        let at = at.ok_or_else(|| Error::Unauthorized("Credential timestamp is invalid".to_owned()))?;
        let until = at.checked_add(SIGNATURE_TTL).map_err(|_| refused())?;
        if Timestamp::now() > until {
            return Err(Error::Unauthorized("Credential is expired".to_owned()));
        }
        Ok(())
    }

    fn of_request(&self, secret: &str, host: &str) -> Option<String> {
        let param = |name: &str| self.params.get(name).map(String::as_str);
        match param("SignatureVersion") {
            Some("0") => {
                let text = format!("{}{}", param("Action")?, param("Timestamp")?);
                Some(STANDARD.encode(sha1(secret, text.as_bytes())))
            }
            Some("1") => {
                let mut sorted: Vec<_> = self.params.iter().filter(|(key, _)| *key != "Signature").collect();
                sorted.sort_by_key(|(key, _)| key.to_lowercase());
                let text: String = sorted.iter().map(|(key, value)| format!("{key}{value}")).collect();
                Some(STANDARD.encode(sha1(secret, text.as_bytes())))
            }
            Some("2") => {
                let query = self.canonical_query("Signature");
                let text = format!("{}\n{host}\n{}\n{query}", self.verb, self.path);
                let code = match param("SignatureMethod") {
                    Some("HmacSHA1") => sha1(secret, text.as_bytes()),
                    _ => sha256(secret.as_bytes(), text.as_bytes()),
                };
                Some(STANDARD.encode(code))
            }
            None | Some("4") => self.version_4(secret, host),
            _ => None,
        }
    }

    /// AWS Signature Version 4: the derived key over the canonical request.
    fn version_4(&self, secret: &str, host: &str) -> Option<String> {
        let headers: BTreeMap<String, &str> =
            self.headers.iter().map(|(name, value)| (name.to_lowercase(), value.trim())).collect();
        let authorization = headers.get("authorization").copied().unwrap_or_default();
        let part = |name: &str| {
            let of_header = authorization.split([',', ' ']).map(str::trim);
            let of_header = of_header.filter_map(|part| part.split_once('=')).find(|(key, _)| *key == name);
            of_header
                .map(|(_, value)| value.to_owned())
                .or_else(|| self.params.get(&format!("X-Amz-{name}")).cloned())
        };
        let credential = part("Credential")?;
        let signed_headers = part("SignedHeaders")?;
        let date = headers.get("x-amz-date").map(|date| (*date).to_owned());
        let date = date.or_else(|| self.params.get("X-Amz-Date").cloned())?;
        let mut canonical_headers = String::new();
        for name in signed_headers.split(';') {
            let value = if name == "host" { host } else { headers.get(name)? };
            canonical_headers.push_str(&format!("{name}:{value}\n"));
        }
        let query = match self.verb.to_ascii_uppercase().as_str() {
            "POST" => String::new(),
            _ => self.canonical_query("X-Amz-Signature"),
        };
        let request = format!(
            "{}\n{}\n{query}\n{canonical_headers}\n{signed_headers}\n{}",
            self.verb.to_ascii_uppercase(),
            self.path,
            self.body_hash
        );
        let (_, scope) = credential.split_once('/')?;
        if !date.starts_with(scope.split('/').next()?) {
            return None;
        }
        let hash = hexadecimal(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
        of_string(format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hash}").as_bytes(), secret)
    }

    fn canonical_query(&self, left_out: &str) -> String {
        let pairs = self.params.iter().filter(|(key, _)| *key != left_out);
        let pairs = pairs.map(|(key, value)| format!("{}={}", encoded(key), encoded(value)));
        pairs.collect::<Vec<_>>().join("&")
    }
}

/// The signature of a string: version 4 where it says so, else S3's older one.
fn of_string(text: &[u8], secret: &str) -> Option<String> {
    if !text.starts_with(b"AWS4") {
        return Some(STANDARD.encode(sha1(secret, text)));
    }
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let [b"AWS4-HMAC-SHA256", _, scope, _] = lines.as_slice() else { return None };
    let scope: Vec<&[u8]> = scope.split(|byte| *byte == b'/').collect();
    let [date, region, service, b"aws4_request"] = scope.as_slice() else { return None };
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [*date, *region, *service, b"aws4_request"] {
        key = sha256(&key, part);
    }
    Some(hexadecimal(&sha256(&key, text)))
}

fn sha1(secret: &str, text: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    hmac::sign(&key, text).as_ref().to_vec()
}

fn sha256(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

/// RFC 3986's unreserved characters stay, as AWS has it.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// `20150830T123600Z`, which AWS writes.
fn basic_time(text: &str) -> Option<Timestamp> {
    if text.len() != 16 || !text.is_ascii() {
        return None;
    }
    let (date, time) = (&text[..8], &text[9..15]);
    let written = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &date[..4],
        &date[4..6],
        &date[6..],
        &time[..2],
        &time[2..4],
        &time[4..]
    );
    written.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `get-vanilla` of AWS's own test suite of Signature Version 4.
    #[test]
    fn aws_own_vector_of_version_4_is_met() {
        let authorization = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                             SignedHeaders=host;x-amz-date, Signature=x";
        let request = SignedRequest {
            verb: "GET".into(),
            host: "example.amazonaws.com".into(),
            path: "/".into(),
            headers: BTreeMap::from([
                ("Authorization".to_owned(), authorization.to_owned()),
                ("X-Amz-Date".to_owned(), "20150830T123600Z".to_owned()),
            ]),
            body_hash: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
            ..SignedRequest::default()
        };
        let signature = request.of_request("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", &request.host);
        let wanted = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
        assert_eq!(signature.as_deref(), Some(wanted));
        assert!(request.check_age().is_err());
    }

    #[test]
    fn strings_that_are_none_of_version_4_are_refused() {
        assert!(of_string(b"AWS4-HMAC-SHA256\nx", "s").is_none());
        assert!(of_string(b"AWS4-HMAC-SHA256\nd\na/b/c/d\nh", "s").is_none());
        assert!(of_string(b"GET\n\n\n", "s").is_some());
        assert_eq!(basic_time("2015083\u{e4}0T123600Z"), None);
    }
}
