//! QoS of what routers lead outside: what of a policy comes to a router's host.

use net::spec::{AddressLimit, Direction, LimitUnit};

use super::*;
use crate::model::network::qos::QosRuleKind;
use crate::service::network::NetworkUpdate;
use crate::service::qos::QosPolicyCreate;

impl Cloud {
    /// A policy of one rule: of bandwidth to the outside, without a burst.
    async fn policy(&self, max_kbps: u32) -> String {
        let request = QosPolicyCreate { name: "p".into(), ..QosPolicyCreate::default() };
        let policy = self.control.qos_policy_create(&admin(), request).await.unwrap();
        let id = policy.row.standard.id.clone();
        let rule = QosRuleKind::BandwidthLimit { max_kbps, max_burst_kbps: 0, direction: Direction::Egress };
        self.control.qos_rule_create(&admin(), &id, rule).await.unwrap();
        id
    }

    async fn mark(&self, policy: &str, dscp_mark: u8) {
        let rule = QosRuleKind::DscpMarking { dscp_mark };
        self.control.qos_rule_create(&admin(), policy, rule).await.unwrap();
    }

    /// A router, and an address outside of it that leads to a port behind it.
    async fn router_with_a_floating_ip(&self) -> (String, FloatingIp) {
        let me = admin();
        let (subnet, network) = self.subnet(&me, "10.0.0.0/24").await;
        let router = self.router(&me).await;
        self.connect(&me, &router, &subnet).await.unwrap();
        let port = self.port(&me, &network).await.row.standard.id.clone();
        (router, self.floating(&me, Some(&port)).await.unwrap().row.clone())
    }
}

fn held(address: impl Into<IpAddr>, per_second: u64) -> AddressLimit {
    let burst = per_second * 4 / 5;
    let (address, direction) = (address.into(), Direction::Egress);
    AddressLimit { address, direction, unit: LimitUnit::Bytes, per_second, burst }
}

#[tokio::test]
async fn floating_ips_and_ways_out_are_held_by_their_own_policies_or_their_networks() {
    let (cloud, me) = (Cloud::new().await, admin());
    let (router, floating) = cloud.router_with_a_floating_ip().await;
    assert_eq!(cloud.wanted(&router).limits, [].into());
    let own = cloud.wanted(&router).outside.unwrap().1.unwrap();

    let (slow, slower, slowest) = (cloud.policy(80).await, cloud.policy(40).await, cloud.policy(8).await);
    let wish = GatewayWish {
        network_id: cloud.outside.clone(),
        qos_policy_id: Some(Some(slow.clone())),
        ..GatewayWish::default()
    };
    let update = RouterUpdate { gateway: Some(Some(wish)), ..RouterUpdate::default() };
    cloud.control.router_update(&me, &router, update).await.unwrap();
    assert_eq!(cloud.wanted(&router).limits, [held(own, 10_000)].into());

    let change = |policy: Option<String>| FloatingIpUpdate {
        qos_policy_id: Some(policy),
        ..FloatingIpUpdate::default()
    };
    let id = &floating.standard.id;
    cloud.control.floating_ip_update(&me, id, change(Some(slower))).await.unwrap();
    let limits = [held(own, 10_000), held(floating.address, 5000)];
    assert_eq!(cloud.wanted(&router).limits, limits.into());

    // What has no policy of its own has that of the network outside.
    let update = NetworkUpdate { qos_policy_id: Some(Some(slowest)), ..NetworkUpdate::default() };
    cloud.control.network_update(&me, &cloud.outside, update).await.unwrap();
    cloud.control.floating_ip_update(&me, id, change(None)).await.unwrap();
    let limits = [held(own, 10_000), held(floating.address, 1000)];
    assert_eq!(cloud.wanted(&router).limits, limits.into());

    // A rate of nothing limits nothing.
    let free = cloud.policy(0).await;
    cloud.control.floating_ip_update(&me, id, change(Some(free))).await.unwrap();
    assert_eq!(cloud.wanted(&router).limits, [held(own, 10_000)].into());
}

#[tokio::test]
async fn floating_ips_and_ways_out_are_marked_by_their_own_policies_or_their_networks() {
    let (cloud, me) = (Cloud::new().await, admin());
    let (router, floating) = cloud.router_with_a_floating_ip().await;
    let (quick, quicker) = (cloud.policy(0).await, cloud.policy(0).await);
    let update = NetworkUpdate { qos_policy_id: Some(Some(quick.clone())), ..NetworkUpdate::default() };
    cloud.control.network_update(&me, &cloud.outside, update).await.unwrap();
    assert_eq!(cloud.wanted(&router).marks, [].into());
    cloud.mark(&quick, 10).await;
    cloud.mark(&quicker, 46).await;
    let wanted = cloud.wanted(&router);
    let own = wanted.ipv6_as.unwrap();
    assert_eq!(Some(own), wanted.outside.unwrap().1.map(IpAddr::V4));
    assert_eq!(wanted.marks, [(own, 10), (floating.address.into(), 10)].into());
    let update = FloatingIpUpdate { qos_policy_id: Some(Some(quicker)), ..FloatingIpUpdate::default() };
    cloud.control.floating_ip_update(&me, &floating.standard.id, update).await.unwrap();
    assert_eq!(cloud.wanted(&router).marks, [(own, 10), (floating.address.into(), 46)].into());
}

#[tokio::test]
async fn way_out_by_ipv6_alone_is_held_as_its_own_address() {
    let cloud = Cloud::new().await;
    let me = admin();
    let request = NetworkCreate { external: true, ..NetworkCreate::default() };
    let outside = cloud.control.network_create(&me, request).await.unwrap().row.standard.id.clone();
    let subnet = SubnetCreate::new(outside.clone(), "2001:db8::/64".parse().unwrap(), "");
    cloud.control.subnet_create(&me, subnet).await.unwrap();
    let policy = cloud.policy(80).await;
    cloud.mark(&policy, 46).await;
    let wish =
        GatewayWish { network_id: outside, qos_policy_id: Some(Some(policy)), ..GatewayWish::default() };
    let request = RouterCreate { gateway: Some(wish), ..RouterCreate::default() };
    let router = cloud.control.router_create(&me, request).await.unwrap().row.standard.id.clone();
    let wanted = cloud.wanted(&router);
    let own = wanted.ipv6_as.unwrap();
    assert!(own.is_ipv6() && wanted.outside.unwrap().1.is_none());
    assert_eq!(wanted.limits, [held(own, 10_000)].into());
    assert_eq!(wanted.marks, [(own, 46)].into());
}
