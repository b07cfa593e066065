//! The rows of the store, one file per resource: wanted and observed, never a wire format. Each row has a schema
//! version beside it in the store; times are RFC 3339 in UTC.

pub mod catalog;
pub mod compute;
pub mod delegation;
pub mod identity;
pub mod image;
pub mod metadef;
pub mod network;
pub mod oauth;
pub mod quota;
pub mod router;
pub mod volume;

use crate::store::{Kinds, Row};

/// Makes types rows of the store, each with its kind, its schema and its id, and what else it is found by if it is found by
/// anything, and lists them all for the cache.
macro_rules! rows {
    ($($type:path: $kind:literal, $schema:literal, |$row:ident| $id:expr $(=> $finders:expr)?;)*) => {
        $(impl Row for $type {
            const KIND: &'static str = $kind;
            const SCHEMA: u32 = $schema;

            fn id(&self) -> &str {
                let $row = self;
                $id
            }

            $(fn finders(&self) -> Vec<&str> {
                let $row = self;
                $finders
            })?
        })*

        /// All kinds of rows, for the cache.
        pub fn kinds() -> Kinds {
            Kinds::new()$(.with::<$type>())*
        }
    };
}

rows! {
    identity::Domain: "domain", 1, |row| &row.id;
    identity::Project: "project", 1, |row| &row.id;
    identity::User: "user", 1, |row| &row.id;
    identity::Group: "group", 1, |row| &row.id;
    identity::GroupMember: "group_member", 1, |row| &row.id;
    identity::Role: "role", 1, |row| &row.id;
    identity::ImpliedRole: "implied_role", 1, |row| &row.id;
    identity::Assignment: "assignment", 1, |row| &row.id;
    identity::Revocation: "revocation", 1, |row| &row.id;
    catalog::Service: "service", 1, |row| &row.id;
    catalog::Endpoint: "endpoint", 1, |row| &row.id;
    catalog::Region: "region", 1, |row| &row.id;
    catalog::EndpointGroup: "endpoint_group", 1, |row| &row.id;
    catalog::EndpointFilter: "endpoint_filter", 1, |row| &row.id;
    catalog::PolicyDocument: "policy_document", 1, |row| &row.id;
    catalog::RegisteredLimit: "registered_limit", 1, |row| &row.id;
    catalog::Limit: "limit", 1, |row| &row.id;
    delegation::StoredCredential: "credential", 1, |row| &row.id;
    delegation::ApplicationCredential: "application_credential", 1, |row| &row.id;
    delegation::AccessRule: "access_rule", 1, |row| &row.id;
    delegation::Trust: "trust", 1, |row| &row.id;
    delegation::TokenKey: "token_key", 1, |row| &row.id;
    delegation::StoredToken: "stored_token", 1, |row| &row.id;
    identity::DomainConfig: "domain_config", 1, |row| &row.id;
    oauth::OauthConsumer: "oauth_consumer", 1, |row| &row.id;
    oauth::OauthRequestToken: "oauth_request_token", 1, |row| &row.id;
    oauth::OauthAccessToken: "oauth_access_token", 1, |row| &row.id;
    image::Image: "image", 1, |row| &row.id;
    image::ImageMember: "image_member", 1, |row| &row.id;
    image::ImageBlob: "image_blob", 1, |row| &row.id;
    image::ImageTask: "image_task", 1, |row| &row.id;
    metadef::MetadefNamespace: "metadef_namespace", 1, |row| &row.id;
    metadef::MetadefEntry: "metadef_entry", 1, |row| &row.id;
    network::Network: "network", 1, |row| &row.standard.id;
    network::NetworkParts: "network_parts", 1, |row| &row.network_id;
    network::AutoTopology: "auto_topology", 1, |row| &row.project_id;
    network::Subnet: "subnet", 1, |row| &row.standard.id;
    network::Port: "port", 1, |row| &row.standard.id => row.finders();
    network::SecurityGroup: "security_group", 1, |row| &row.standard.id;
    network::SecurityGroupRule: "security_group_rule", 1, |row| &row.standard.id => vec![&row.security_group_id];
    network::address_group::AddressGroup: "address_group", 1, |row| &row.standard.id;
    network::address_group::DefaultRules: "default_security_group_rules", 1, |row| &row.id;
    network::qos::QosPolicy: "qos_policy", 1, |row| &row.standard.id;
    network::metering::MeteringLabel: "metering_label", 1, |row| &row.standard.id;
    network::metering::MeteringRule: "metering_label_rule", 1, |row| &row.id;
    network::metering::AgentNote: "network_agent_note", 1, |row| &row.host;
    network::trunk::Trunk: "trunk", 1, |row| &row.standard.id => row.ports();
    network::rbac::RbacPolicy: "rbac_policy", 1, |row| &row.key;
    network::pool::AddressScope: "address_scope", 1, |row| &row.standard.id;
    network::pool::SubnetPool: "subnet_pool", 1, |row| &row.standard.id;
    router::Router: "router", 1, |row| &row.standard.id;
    router::FloatingIp: "floating_ip", 1, |row| &row.standard.id;
    router::PortForwarding: "port_forwarding", 1, |row| &row.standard.id;
    router::RouterState: "router_state", 1, |row| &row.id;
    compute::Flavor: "flavor", 1, |row| &row.id;
    compute::Keypair: "keypair", 1, |row| &row.id;
    compute::Server: "server", 1, |row| &row.id;
    compute::Host: "host", 1, |row| &row.name;
    compute::HostClaims: "host_claims", 1, |row| &row.host;
    compute::Cloud: "cloud", 1, |row| &row.id;
    volume::Volume: "volume", 1, |row| &row.id;
    volume::Snapshot: "volume_snapshot", 1, |row| &row.id;
    volume::VolumeAttachment: "volume_attachment", 1, |row| &row.id;
    volume::DiskWork: "disk_work", 1, |row| &row.id;
    volume::VolumeType: "volume_type", 1, |row| &row.id;
    volume::QosSpec: "qos_spec", 1, |row| &row.id;
    volume::VolumeDefault: "volume_default", 1, |row| &row.id;
    volume::VolumeService: "volume_service", 1, |row| &row.id;
    volume::VolumeMessage: "volume_message", 1, |row| &row.id;
    volume::Transfer: "volume_transfer", 1, |row| &row.id;
    volume::Backup: "volume_backup", 1, |row| &row.id;
    volume::Group: "volume_group", 1, |row| &row.id;
    volume::GroupType: "volume_group_type", 1, |row| &row.id;
    volume::GroupSnapshot: "volume_group_snapshot", 1, |row| &row.id;
    quota::Usage: "usage", 1, |row| &row.id;
    quota::QuotaLimits: "quota_limits", 1, |row| &row.id;
}

/// A new random id as OpenStack writes them for compute, image, network and volume resources: a UUID with dashes.
pub fn random_uuid() -> String {
    uuid::Uuid::new_v4().hyphenated().to_string()
}

/// Bytes in hexadecimal digits, as digests are written.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A new random id as Keystone writes them: 32 hexadecimal digits.
pub fn random_hex_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
