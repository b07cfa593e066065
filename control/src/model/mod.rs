//! The rows of the store, one file per resource: wanted and observed, never a wire format. Each row has a schema
//! version beside it in the store; times are RFC 3339 in UTC.

pub mod compute;
pub mod identity;
pub mod image;
pub mod network;

/// A new random id as OpenStack writes them for compute, image, network and volume resources: a UUID with dashes.
pub fn random_uuid() -> String {
    uuid::Uuid::new_v4().hyphenated().to_string()
}

/// A new random id as Keystone writes them: 32 hexadecimal digits.
pub fn random_hex_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
