//! Signatures of OAuth 1.0a (RFC 5849 §3): what a request says of itself, what of it is signed, and whether a secret did.
//! By HMAC-SHA1 or HMAC-SHA256; plain text and RSA are not taken.
//!
//! Must never know: consumers, tokens, HTTP.

use std::collections::BTreeSet;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::{digest, hmac};
use zeroize::Zeroizing;

use super::super::identity::invalid;
use crate::error::{Error, Result};

/// The most parameters of a request, those of its header, its query and its form together.
const PARAMETERS_MAX: usize = 64;
/// The longest parameter in bytes, decoded.
const PARAMETER_BYTES_MAX: usize = 4096;
/// By how much a request's time may differ from ours, in seconds.
const SKEW_S_MAX: i64 = 600;
/// How many signed requests are remembered, so that none is taken twice: some megabytes at most.
const NONCES_MAX: usize = 65_536;

/// A request that says that it was signed.
#[derive(Debug, Clone, Default)]
pub struct OauthRequest {
    /// `POST` and the like.
    pub method: String,
    /// Where it may have been sent, as its client wrote it: scheme, host and path.
    pub uris: Vec<String>,
    /// The value of its header `Authorization`.
    pub authorization: String,
    /// Its query and its form, decoded.
    pub pairs: Vec<(String, String)>,
}

/// What a request says of its signature.
#[derive(Debug)]
pub(crate) struct Signed<'a> {
    request: &'a OauthRequest,
    parameters: Vec<(String, String)>,
    signature: Vec<u8>,
    algorithm: hmac::Algorithm,
    timestamp_s: i64,
}

impl OauthRequest {
    /// Reads the header.
    ///
    /// # Errors
    /// `Invalid` where the header is none of OAuth's, or lacks what it must have; `Unauthorized` for a time that is
    /// too far from now, and for a method of signing that is not taken.
    pub(crate) fn read(&self) -> Result<Signed<'_>> {
        let (scheme, list) = self.authorization.split_once(' ').unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("oauth") {
            return Err(invalid("Expecting to find an OAuth Authorization header in the request."));
        }
        let mut parameters = Vec::new();
        for one in list.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let wrong = || invalid("Invalid OAuth parameters in the Authorization header.");
            let (name, value) = one.split_once('=').ok_or_else(wrong)?;
            let value = value.trim().trim_matches('"');
            let name = decode(name.trim()).ok_or_else(wrong)?;
            parameters.push((name, decode(value).ok_or_else(wrong)?));
            if parameters.len() > PARAMETERS_MAX {
                return Err(invalid("a request has too many OAuth parameters"));
            }
        }
        let of = |name: &str| {
            let mut found = parameters.iter().filter(|(key, _)| key == name);
            match (found.next(), found.next()) {
                (Some((_, value)), None) if !value.is_empty() => Ok(value.clone()),
                _ => Err(invalid(format!("Expecting to find {name} in request."))),
            }
        };
        for name in ["oauth_consumer_key", "oauth_nonce"] {
            of(name)?;
        }
        if of("oauth_version").is_ok_and(|version| version != "1.0") {
            return Err(invalid("Invalid OAuth version: it is 1.0."));
        }
        let refused = |why: &str| Error::Unauthorized(why.to_owned());
        let algorithm = match of("oauth_signature_method")?.as_str() {
            "HMAC-SHA1" => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            "HMAC-SHA256" => hmac::HMAC_SHA256,
            _ => return Err(refused("Invalid signature method")),
        };
        let timestamp_s: i64 =
            of("oauth_timestamp")?.parse().map_err(|_| invalid("Invalid timestamp: it is no number."))?;
        if timestamp_s.abs_diff(Timestamp::now().as_second()) > SKEW_S_MAX.unsigned_abs() {
            return Err(refused("Timestamp given is invalid, differ from allowed by over 600 seconds."));
        }
        // What is no base64 is no signature: it is compared like any other, and is none.
        let signature = STANDARD.decode(of("oauth_signature")?).unwrap_or_default();
        parameters.retain(|(name, _)| !["realm", "oauth_signature"].contains(&name.as_str()));
        parameters.extend(self.pairs.iter().cloned());
        let long = |(name, value): &(String, String)| name.len().max(value.len()) > PARAMETER_BYTES_MAX;
        if parameters.len() > PARAMETERS_MAX || parameters.iter().any(long) {
            return Err(invalid("a request has too many or too long parameters"));
        }
        Ok(Signed { request: self, parameters, signature, algorithm, timestamp_s })
    }
}

impl Signed<'_> {
    /// A parameter's value.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that this kind of request must have.
    pub(crate) fn must(&self, name: &str) -> Result<&str> {
        self.get(name).ok_or_else(|| invalid(format!("Expecting to find {name} in request.")))
    }

    /// Whether these two secrets signed it (RFC 5849 §3.4.2). The comparison takes the same time wherever they differ.
    pub(crate) fn is_of(&self, consumer_secret: &str, token_secret: &str) -> bool {
        let mut key = Zeroizing::new(String::new());
        encode(consumer_secret, &mut key);
        key.push('&');
        encode(token_secret, &mut key);
        let key = hmac::Key::new(self.algorithm, key.as_bytes());
        let parameters = self.normalized();
        let text = |uri: &String| self.base_string(uri, &parameters);
        let holds = |uri| hmac::verify(&key, text(uri).as_bytes(), &self.signature).is_ok();
        self.request.uris.iter().fold(false, |any, uri| holds(uri) | any)
    }

    /// RFC 5849 §3.4.1.
    fn base_string(&self, uri: &str, parameters: &str) -> String {
        let mut text = self.request.method.to_ascii_uppercase();
        for part in [base_uri(uri).as_str(), parameters] {
            text.push('&');
            encode(part, &mut text);
        }
        text
    }

    /// RFC 5849 §3.4.1.3.2.
    fn normalized(&self) -> String {
        let encoded = |text: &String| {
            let mut into = String::new();
            encode(text, &mut into);
            into
        };
        let mut pairs: Vec<_> =
            self.parameters.iter().map(|(name, value)| (encoded(name), encoded(value))).collect();
        pairs.sort_unstable();
        let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("&")
    }

    /// What no second request may say (RFC 5849 §3.3).
    fn once(&self) -> (i64, [u8; 32]) {
        let mut context = digest::Context::new(&digest::SHA256);
        for name in ["oauth_consumer_key", "oauth_token", "oauth_nonce"] {
            let value = self.get(name).unwrap_or_default();
            context.update(&(value.len() as u64).to_be_bytes());
            context.update(value.as_bytes());
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        (self.timestamp_s, hash)
    }
}

/// The signed requests of the last minutes. One that comes again is refused; a new process begins with none.
#[derive(Debug, Default)]
pub(crate) struct Nonces(Mutex<BTreeSet<(i64, [u8; 32])>>);

impl Nonces {
    /// Remembers a request whose signature holds; whether it is the first of its kind.
    pub(crate) fn first(&self, signed: &Signed<'_>) -> bool {
        let mut seen = self.0.lock().expect("invariant: no holder of the nonces panics");
        // What is older is refused for its time.
        let from = Timestamp::now().as_second().saturating_sub(SKEW_S_MAX);
        let kept = seen.split_off(&(from, [0; 32]));
        *seen = kept;
        if seen.len() >= NONCES_MAX {
            seen.pop_first();
        }
        seen.insert(signed.once())
    }
}

/// A URI as it is signed (RFC 5849 §3.4.1.2): scheme and host in lower case, without a default port.
fn base_uri(uri: &str) -> String {
    let (scheme, rest) = uri.split_once("://").unwrap_or(("", uri));
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (scheme, host) = (scheme.to_ascii_lowercase(), host.to_ascii_lowercase());
    let default = if scheme == "https" { ":443" } else { ":80" };
    let path = if path.is_empty() { "/" } else { path };
    format!("{scheme}://{}{path}", host.strip_suffix(default).unwrap_or(&host))
}

/// RFC 5849 §3.6: all but unreserved characters, in upper case.
fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = after.split_at_checked(2)?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push(u8::try_from(digit(digits[0])? * 16 + digit(digits[1])?).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(authorization: &str) -> OauthRequest {
        OauthRequest {
            method: "POST".into(),
            uris: vec!["http://EXAMPLE.com:80/request".into()],
            authorization: authorization.into(),
            pairs: Vec::new(),
        }
    }

    /// RFC 5849 §3.4.1.1: the request of §3.4.1.3.1, and its base string.
    #[test]
    fn base_string_is_the_standards() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let request = OauthRequest {
            pairs: vec![
                pair("b5", "=%3D"),
                pair("a3", "a"),
                pair("c@", ""),
                pair("a2", "r b"),
                pair("c2", ""),
                pair("a3", "2 q"),
            ],
            ..request("")
        };
        let header = [
            ("oauth_consumer_key", "9djdj82h48djs9d2"),
            ("oauth_token", "kkk9d7dh3k39sjv7"),
            ("oauth_signature_method", "HMAC-SHA1"),
            ("oauth_timestamp", "137131201"),
            ("oauth_nonce", "7d8f3e4a"),
        ];
        let parameters =
            header.map(|(name, value)| pair(name, value)).into_iter().chain(request.pairs.clone());
        let signed = Signed {
            parameters: parameters.collect(),
            signature: Vec::new(),
            algorithm: hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            timestamp_s: 137_131_201,
            request: &request,
        };
        let wanted = "POST&http%3A%2F%2Fexample.com%2Frequest&a2%3Dr%2520b%26a3%3D2%2520q%26a3%3Da%26b5%3D%253D%25253D%26c\
                      %2540%3D%26c2%3D%26oauth_consumer_key%3D9djdj82h48djs9d2%26oauth_nonce%3D7d8f3e4a%26oauth_signature_\
                      method%3DHMAC-SHA1%26oauth_timestamp%3D137131201%26oauth_token%3Dkkk9d7dh3k39sjv7";
        assert_eq!(signed.base_string(&request.uris[0], &signed.normalized()), wanted);
    }

    #[test]
    fn signature_of_other_secrets_or_of_a_changed_request_does_not_hold_and_none_holds_twice() {
        let now = Timestamp::now().as_second();
        let header = |signature: &str| {
            format!(
                "OAuth realm=\"x\", oauth_consumer_key=\"c\", oauth_nonce=\"n\", oauth_timestamp=\"{now}\", \
                 oauth_signature_method=\"HMAC-SHA1\", oauth_signature=\"{signature}\", oauth_version=\"1.0\""
            )
        };
        let unsigned = request(&header("x"));
        let signed = unsigned.read().unwrap();
        let text = signed.base_string(&unsigned.uris[0], &signed.normalized());
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"s%26&t");
        let mut signature = String::new();
        encode(&STANDARD.encode(hmac::sign(&key, text.as_bytes())), &mut signature);
        let request = request(&header(&signature));
        let signed = request.read().unwrap();
        assert!(signed.is_of("s&", "t"));
        assert!(
            !signed.is_of("s&", "") && !signed.is_of("s", "t") && !unsigned.read().unwrap().is_of("s&", "t")
        );
        for changed in [
            OauthRequest { method: "PUT".into(), ..request.clone() },
            OauthRequest { uris: vec!["http://example.com/other".into()], ..request.clone() },
            OauthRequest { pairs: vec![("a".into(), "b".into())], ..request.clone() },
        ] {
            assert!(!changed.read().unwrap().is_of("s&", "t"), "{changed:?}");
        }
        let nonces = Nonces::default();
        assert!(nonces.first(&signed) && !nonces.first(&signed));
    }

    #[test]
    fn headers_that_say_too_little_or_nonsense_are_refused() {
        let now = Timestamp::now().as_second();
        for wrong in [
            String::new(),
            "Basic abc".to_owned(),
            "OAuth oauth_consumer_key".to_owned(),
            "OAuth oauth_consumer_key=\"%zz\"".to_owned(),
            "OAuth oauth_consumer_key=\"%ff\"".to_owned(),
            "OAuth oauth_consumer_key=\"c\"".to_owned(),
            format!("OAuth {}", "a=\"b\",".repeat(PARAMETERS_MAX + 1)),
            format!("OAuth oauth_consumer_key=c,oauth_nonce=n,oauth_timestamp={now},oauth_signature_method=PLAINTEXT,oauth_signature=x"),
            "OAuth oauth_consumer_key=c,oauth_nonce=n,oauth_timestamp=1,oauth_signature_method=HMAC-SHA1,oauth_signature=x".to_owned(),
        ] {
            assert!(request(&wrong).read().is_err(), "{wrong}");
        }
    }
}
