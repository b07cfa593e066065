//! What of Neutron's extensions is there: exactly what is implemented. What is only kept and shown so far stands in README's
//! gaps.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Chosen, Listed, One, Shown, listing, shown};
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl, Segments};

/// Alias, name, description.
type Extension = (&'static str, &'static str, &'static str);

/// What all resources share.
const SHARED: [Extension; 12] = [
    (
        "empty-string-filtering",
        "Empty String Filtering Extension",
        "Allow filtering by attributes with empty string value",
    ),
    ("sort-key-validation", "Sort keys validation", "Provides validation on sort keys."),
    ("pagination", "Pagination support", "Extension that indicates that pagination is enabled."),
    ("project-id", "project_id field enabled", "Extension that indicates that project_id field is enabled."),
    (
        "revision-if-match",
        "If-Match constraints based on revision_number",
        "Extension indicating that If-Match based on revision_number is supported.",
    ),
    ("sorting", "Sorting support", "Extension that indicates that sorting is enabled."),
    (
        "standard-attr-description",
        "standard-attr-description",
        "Extension to add descriptions to standard attributes",
    ),
    (
        "standard-attr-revisions",
        "Resource revision numbers",
        "This extension will display the revision number of neutron resources.",
    ),
    (
        "standard-attr-tag",
        "Tag support for resources with standard attribute",
        "Enables to set tag on resources with standard attribute.",
    ),
    (
        "standard-attr-timestamp",
        "Resource timestamps",
        "Adds created_at and updated_at fields to all Neutron resources that have Neutron standard attributes.",
    ),
    ("tag-creation", "Tag creation extension", "Allow to create multiple tags using POST method"),
    (
        "tag-ports-during-bulk-creation",
        "Tag Ports During Bulk Creation",
        "Allow to tag ports during bulk creation",
    ),
];

/// What networks and ports have beyond the core.
const NETWORKS: [Extension; 14] = [
    ("network_availability_zone", "Network Availability Zone", "Availability zone support for network."),
    ("auto-allocated-topology", "Auto Allocated Topology Services", "Auto Allocated Topology Services."),
    ("trunk", "Trunk Extension", "Provides support for trunk ports"),
    ("trunk-details", "Trunk port details", "Expose trunk port details"),
    ("allowed-address-pairs", "Allowed Address Pairs", "Provides allowed address pairs"),
    ("binding", "Port Binding", "Expose port bindings of a virtual port to external application"),
    (
        "extra_dhcp_opt",
        "Neutron Extra DHCP options",
        "Extra options configuration for DHCP. For example PXE boot options to DHCP clients can be specified (e.g. \
         tftp-server, server-ip-address, bootfile-name)",
    ),
    ("dns-integration", "DNS Integration", "Provides integration with DNS."),
    ("external-net", "Neutron external network", "Adds external network attribute to network resource."),
    (
        "ip-substring-filtering",
        "IP address substring filtering",
        "Provides IP address substring filtering when listing ports",
    ),
    ("net-mtu", "Network MTU", "Provides MTU attribute for a network resource."),
    (
        "net-mtu-writable",
        "Network MTU (writable)",
        "Provides a writable MTU attribute for a network resource.",
    ),
    ("port-security", "Port Security", "Provides port security"),
    ("provider", "Provider Network", "Expose mapping of virtual networks to physical networks"),
];

/// Routers and what leads in by them.
const ROUTERS: [Extension; 10] = [
    (
        "expose-port-forwarding-in-fip",
        "Expose Port Forwarding in FIP",
        "Add 'port_forwardings' attribute to floating IP.",
    ),
    (
        "ext-gw-mode",
        "Neutron L3 Configurable external gateway mode",
        "Extension of the router abstraction for specifying whether SNAT should occur on the external gateway",
    ),
    ("extraroute", "Neutron Extra Route", "Extra routes configuration for L3 router"),
    (
        "extraroute-atomic",
        "Atomically add/remove extra routes",
        "Edit extra routes of a router on server side by atomically adding/removing extra routes",
    ),
    (
        "fip-port-details",
        "Floating IP Port Details Extension",
        "Add port_details attribute to Floating IP resource",
    ),
    (
        "floating-ip-port-forwarding",
        "Floating IP Port Forwarding",
        "Expose floating IP port forwarding resource",
    ),
    (
        "floating-ip-port-forwarding-description",
        "Floating IP Port Forwarding new field description",
        "Add a description field to Port Forwarding rules",
    ),
    (
        "floating-ip-port-forwarding-port-ranges",
        "Floating IP Port Forwarding support port ranges",
        "Support port ranges for a port forwarding",
    ),
    (
        "router",
        "Neutron L3 Router",
        "Router abstraction for basic L3 forwarding between L2 Neutron networks and access to external networks via a NAT gateway.",
    ),
    ("router_availability_zone", "Router Availability Zone", "Availability zone support for router."),
];

/// Security groups.
const GROUPS: [Extension; 7] = [
    (
        "security-groups-shared-filtering",
        "Security group filtering on the shared field",
        "Support filtering security groups on the shared field",
    ),
    ("address-group", "Address group", "Support address group"),
    ("security-group", "security-group", "The security groups extension."),
    (
        "security-groups-default-rules",
        "Default rules for security groups",
        "Configure set of security group rules used as default rules for every new security group",
    ),
    (
        "security-groups-normalized-cidr",
        "Normalized CIDR field for security group rules",
        "Add new field with normalized remote_ip_prefix cidr in SG rule",
    ),
    (
        "security-groups-remote-address-group",
        "Remote address group id field for security group rules",
        "Add new field of remote address group id in SG rules",
    ),
    (
        "security-groups-rules-belongs-to-default-sg",
        "Security group rule belongs to the project's default security group",
        "Flag to determine if the security group rule belongs to the project's default security group.",
    ),
];

/// Prefixes that subnets are cut from.
const POOLS: [Extension; 6] = [
    ("address-scope", "Address scope", "Address scopes extension."),
    (
        "default-subnetpools",
        "Default Subnetpools",
        "Provides ability to mark and use a subnetpool as the default.",
    ),
    ("subnet_allocation", "Subnet Allocation", "Enables allocation of subnets from a subnet pool"),
    (
        "subnet-service-types",
        "Subnet service types",
        "Provides ability to set the subnet service_types field",
    ),
    ("subnet_onboard", "Subnet Onboard", "Provides support for onboarding subnets into subnet pools"),
    (
        "subnetpool-prefix-ops",
        "Subnet Pool Prefix Operations",
        "Provides support for adjusting the prefix list of subnet pools",
    ),
];

/// Quality of service.
const QOS: [Extension; 14] = [
    ("qos-fip", "Floating IP QoS", "The floating IP Quality of Service extension"),
    (
        "qos-fip-network-policy",
        "QoS floating IP network policy ID",
        "Adds a the QoS network ID to the floating IP definition",
    ),
    ("qos-gateway-ip", "Gateway IP QoS", "The gateway IP Quality of Service extension"),
    ("qos", "Quality of Service", "The Quality of Service extension."),
    (
        "alias_bandwidth_limit_rules",
        "Quality of Service rules alias API",
        "API to enable GET, PUT and DELETE operations on QoS policy rules without specifying policy ID",
    ),
    (
        "alias_minimum_packet_rate_rules",
        "QoS minimum packet rate rule alias",
        "API to enable GET, PUT and DELETE operations on QoS minimum packet rate rule without specifying policy ID",
    ),
    (
        "qos-bw-limit-direction",
        "Direction for QoS bandwidth limit rule",
        "Allow to configure QoS bandwidth limit rule with specific direction: ingress or egress",
    ),
    (
        "qos-bw-minimum-ingress",
        "Ingress direction for QoS minimum bandwidth rule",
        "Allow to configure QoS minumum bandwidth rule with ingress direction.",
    ),
    ("qos-default", "QoS default policy", "Expose the QoS default policy per project"),
    (
        "qos-port-network-policy",
        "QoS port network policy ID",
        "Adds a the QoS network ID to the port definition",
    ),
    ("qos-pps", "QoS Rule Type Packet per Second Extension", "Add QoS Rule Type Packet per Second"),
    (
        "qos-rule-type-details",
        "Details of QoS rule types",
        "Expose details about QoS rule types supported by loaded backend drivers",
    ),
    (
        "qos-rule-type-filter",
        "QoS rule type filter",
        "Allow to filter the rule type list by all supported or by all rules",
    ),
    ("qos-pps-minimum", "minimum_packet_rate_rule", "Allow to configure QoS minimum packet rate rule."),
];

/// What is shared between projects.
const SHARING: [Extension; 6] = [
    (
        "rbac-policies",
        "RBAC Policies",
        "Allows creation and modification of policies that control project access to resources.",
    ),
    ("rbac-address-group", "Add address_group type to RBAC", "Add address_group type to network RBAC"),
    ("rbac-address-scope", "Address scope RBAC", "Add address_scope type to RBAC"),
    (
        "rbac-security-groups",
        "Add security_group type to network RBAC",
        "Add security_group type to network RBAC",
    ),
    ("rbac-subnetpool", "Add subnetpool type to RBAC", "Add subnetpool type to RBAC"),
    (
        "subnet-external-network",
        "Subnet belongs to an external network",
        "Informs if the subnet belongs to an external network",
    ),
];

/// What there is to administer.
const ADMINISTRATION: [Extension; 9] = [
    ("agent", "agent", "The agent management extension."),
    ("availability_zone", "Availability Zone", "The availability zone extension."),
    ("metering", "Neutron Metering", "Neutron Metering extension."),
    (
        "metering_source_and_destination_fields",
        "Neutron Metering with source and destination filtering",
        "Neutron Metering extension that enables the use of source and destination IP prefixes to create metering label rules.",
    ),
    (
        "network-ip-availability",
        "Network IP Availability",
        "Provides IP availability data for each network and subnet.",
    ),
    (
        "service-type",
        "Neutron Service Type Management",
        "API for retrieving service providers for Neutron advanced services",
    ),
    (
        "quota-check-limit",
        "Quota engine limit check",
        "Support for checking the resource usage before applying a new quota limit",
    ),
    ("quotas", "Quota management support", "Expose functions for quotas management per project"),
    (
        "quota_details",
        "Quota details management support",
        "Expose functions for quotas usage statistics per project",
    ),
];

fn extensions() -> impl Iterator<Item = &'static Extension> {
    SHARED
        .iter()
        .chain(&NETWORKS)
        .chain(&ROUTERS)
        .chain(&GROUPS)
        .chain(&POOLS)
        .chain(&QOS)
        .chain(&SHARING)
        .chain(&ADMINISTRATION)
}

/// An extension as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Extension")]
pub(super) struct ShownExtension {
    alias: &'static str,
    name: &'static str,
    description: &'static str,
    /// Always empty.
    links: [&'static str; 0],
    updated: &'static str,
}

impl Shown for ShownExtension {
    const NAMES: &'static [&'static str; 2] = &["extension", "extensions"];
    const ID: &'static str = "alias";
}

fn view(&(alias, name, description): &Extension) -> ShownExtension {
    ShownExtension { alias, name, description, links: [], updated: "2026-11-01T00:00:00-00:00" }
}

/// `GET /v2.0/extensions`.
pub(super) async fn list(
    _: Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownExtension>> {
    listing(extensions().map(view), &filters, &url)
}

/// `GET /v2.0/extensions/{alias}`.
pub(super) async fn show(
    _: Authenticated,
    Segments(alias): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownExtension>>> {
    let extension = extensions().find(|(known, _, _)| *known == alias);
    let extension = extension.ok_or_else(|| control::error::Error::not_found("Extension", alias))?;
    Ok(shown(&view(extension), &filters))
}

/// The collections that there are.
#[derive(Serialize, JsonSchema)]
pub(super) struct Collections {
    resources: Vec<Collection>,
}

#[derive(Serialize, JsonSchema)]
struct Collection {
    collection: &'static str,
    name: &'static str,
    links: [CollectionLink; 1],
}

#[derive(Serialize, JsonSchema)]
struct CollectionLink {
    rel: &'static str,
    href: String,
}

/// The names of collections and of what they hold.
const COLLECTIONS: [(&str, &str); 18] = [
    ("networks", "network"),
    ("subnets", "subnet"),
    ("subnetpools", "subnetpool"),
    ("address-scopes", "address_scope"),
    ("ports", "port"),
    ("routers", "router"),
    ("floatingips", "floatingip"),
    ("trunks", "trunk"),
    ("security-groups", "security_group"),
    ("security-group-rules", "security_group_rule"),
    ("default-security-group-rules", "default_security_group_rule"),
    ("address-groups", "address_group"),
    ("rbac-policies", "rbac_policy"),
    ("qos/policies", "policy"),
    ("metering/metering-labels", "metering_label"),
    ("metering/metering-label-rules", "metering_label_rule"),
    ("agents", "agent"),
    ("quotas", "quota"),
];

/// `GET /v2.0`: the collections.
pub(super) async fn resources(State(state): State<AppState>) -> Json<Collections> {
    let resource = |(collection, name)| {
        let href = format!("{}/network/v2.0/{collection}", state.public_url());
        Collection { collection, name, links: [CollectionLink { rel: "self", href }] }
    };
    Json(Collections { resources: COLLECTIONS.into_iter().map(resource).collect() })
}
