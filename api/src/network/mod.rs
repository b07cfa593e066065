//! The network service (Network API v2.0): one file per resource, each with its wire structures and handlers, and
//! here what they share.

mod address_group;
mod address_scope;
mod bulk;
mod default_rule;
mod extension;
mod floating_ip;
mod host;
mod listing;
mod metering;
#[expect(clippy::module_inception, reason = "the resource has the name of its service")]
mod network;
mod number;
mod port;
mod port_forwarding;
mod qos;
mod quota;
mod rbac;
mod resource;
mod router;
mod security_group;
mod shown;
mod subnet;
mod subnet_pool;
mod tag;
mod trunk;

use control::model::network::pool::SubnetPool;
use control::model::network::{Network, Port, SecurityGroup, Subnet};
use control::model::router::{FloatingIp, Router};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use self::listing::{Listed, listing, shown};
use self::number::Number;
use self::shown::{Chosen, Made, One, OwnerFields, Shown, StandardFields};
use crate::error::Fault;
use crate::openapi::{Routes, answer, get, put};

/// What a handler that makes something answers.
type Created<T> = Result<answer::Created<T>, Fault>;

/// The routes below `/network`.
pub fn routes() -> Routes {
    Routes::new()
        .route("/v2.0", get(extension::resources))
        .route("/v2.0/extensions", get(extension::list))
        .route("/v2.0/extensions/{alias}", get(extension::show))
        .route("/v2.0/networks", get(network::list).post(network::create))
        .route("/v2.0/networks/{id}", get(network::show).put(network::update).delete(network::delete))
        .route("/v2.0/subnets", get(subnet::list).post(subnet::create))
        .route("/v2.0/subnets/{id}", get(subnet::show).put(subnet::update).delete(subnet::delete))
        .route("/v2.0/ports", get(port::list).post(port::create))
        .route("/v2.0/ports/{id}", get(port::show).put(port::update).delete(port::delete))
        .route("/v2.0/routers", get(resource::list::<Router>).post(router::create))
        .route(
            "/v2.0/routers/{id}",
            get(resource::show::<Router>).put(router::update).delete(resource::delete::<Router>),
        )
        .route("/v2.0/routers/{id}/add_router_interface", put(router::add_interface))
        .route("/v2.0/routers/{id}/remove_router_interface", put(router::remove_interface))
        .route("/v2.0/routers/{id}/add_extraroutes", put(router::add_routes))
        .route("/v2.0/routers/{id}/remove_extraroutes", put(router::remove_routes))
        .route("/v2.0/floatingips", get(resource::list::<FloatingIp>).post(floating_ip::create))
        .route(
            "/v2.0/floatingips/{id}",
            get(resource::show::<FloatingIp>).put(floating_ip::update).delete(resource::delete::<FloatingIp>),
        )
        .route(
            "/v2.0/floatingips/{id}/port_forwardings",
            get(port_forwarding::list).post(port_forwarding::create),
        )
        .route(
            "/v2.0/floatingips/{id}/port_forwardings/{forwarding_id}",
            get(port_forwarding::show).put(port_forwarding::update).delete(port_forwarding::delete),
        )
        .route("/v2.0/security-groups", get(security_group::list).post(security_group::create))
        .route(
            "/v2.0/security-groups/{id}",
            get(security_group::show).put(security_group::update).delete(security_group::delete),
        )
        .route("/v2.0/security-group-rules", get(security_group::rule_list).post(security_group::rule_create))
        .route(
            "/v2.0/security-group-rules/{id}",
            get(security_group::rule_show).delete(security_group::rule_delete),
        )
        .route("/v2.0/quotas", get(quota::list))
        .route("/v2.0/quotas/{project_id}", get(quota::show).put(quota::update).delete(quota::reset))
        .route("/v2.0/quotas/{project_id}/default", get(quota::defaults))
        .route("/v2.0/quotas/{project_id}/details", get(quota::details))
        .merge(address_group::routes())
        .merge(address_scope::routes())
        .merge(default_rule::routes())
        .merge(host::routes())
        .merge(metering::routes())
        .merge(trunk::routes())
        .merge(qos::routes())
        .merge(rbac::routes())
        .merge(subnet_pool::routes())
        .merge(tag::routes::<SubnetPool>("subnetpools"))
        .merge(tag::routes::<Network>("networks"))
        .merge(tag::routes::<Subnet>("subnets"))
        .merge(tag::routes::<Port>("ports"))
        .merge(tag::routes::<SecurityGroup>("security-groups"))
        .merge(tag::routes::<Router>("routers"))
        .merge(tag::routes::<FloatingIp>("floatingips"))
}

/// For fields where `null` says something else than absence.
fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(input).map(Some)
}

/// A prefix without bits behind it, or a fault in Neutron's words.
fn read_subnet(field: &str, text: &str) -> Result<IpNet, Fault> {
    let strange =
        || invalid(format!("Invalid input for {field}. Reason: '{text}' is not a valid IP subnet."));
    let prefix: IpNet = text.parse().map_err(|_| strange())?;
    if prefix.trunc() != prefix {
        return Err(invalid(format!(
            "Invalid input for {field}. Reason: '{text}' isn't a recognized IP subnet cidr, '{}' is recommended.",
            prefix.trunc()
        )));
    }
    Ok(prefix)
}

/// A MAC address, or a fault in Neutron's words.
fn read_mac(text: &str) -> Result<[u8; 6], Fault> {
    control::service::addressing::parse_mac(text).ok_or_else(|| {
        invalid(format!("Invalid input for mac_address. Reason: '{text}' is not a valid MAC address."))
    })
}

/// `InvalidInput`, Neutron's name for a value that cannot be.
fn invalid(message: impl Into<String>) -> Fault {
    control::error::Error::invalid("InvalidInput", message).into()
}

#[cfg(test)]
mod tests;
