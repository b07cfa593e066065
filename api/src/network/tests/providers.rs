//! Provider networks: on which physical network they are, by which VLAN, and whom the answer names.

use super::*;

async fn provider(cloud: &Harness, fields: Value) -> Reply {
    ask(cloud, Method::POST, "networks", json!({"network": fields})).await
}

#[tokio::test]
async fn vlan_network_has_the_vlan_that_it_names_or_the_first_free_one() {
    let cloud = Harness::new().await;
    let vlan = |fields: Value| {
        let mut all = json!({"provider:network_type": "vlan"});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        all
    };
    let made = provider(&cloud, vlan(json!({"provider:physical_network": "physnet1"}))).await.json();
    has(
        &made["network"],
        json!({
            "provider:network_type": "vlan", "provider:physical_network": "physnet1",
            "provider:segmentation_id": 100, "mtu": 1500,
        }),
    );
    // None is named: what is free of those that are given.
    let made = provider(&cloud, vlan(json!({}))).await.json();
    has(&made["network"], json!({"provider:segmentation_id": 101}));
    let left = provider(&cloud, vlan(json!({}))).await;
    assert_eq!(refusal(&left), (409, "NoNetworkAvailable".into()));
    let named = json!({"provider:physical_network": "outside", "provider:segmentation_id": 4094});
    let made = provider(&cloud, vlan(named.clone())).await.json();
    has(&made["network"], json!({"provider:physical_network": "outside", "provider:segmentation_id": 4094}));
    let again = provider(&cloud, vlan(named)).await;
    assert_eq!(refusal(&again), (409, "VlanIdInUse".into()));
    // The same VLAN of another physical network is another network.
    let other = json!({"provider:physical_network": "physnet1", "provider:segmentation_id": 4094});
    assert_eq!(provider(&cloud, vlan(other)).await.status, 201);
    let shown = ask(&cloud, Method::GET, "networks?provider:network_type=vlan", Value::Null).await.json();
    assert_eq!(shown["networks"].as_array().unwrap().len(), 4);
    let id = text(&made["network"], "id");
    assert_eq!(ask(&cloud, Method::DELETE, &format!("networks/{id}"), Value::Null).await.status, 204);
    let freed = json!({"provider:physical_network": "outside", "provider:segmentation_id": 4094});
    assert_eq!(provider(&cloud, vlan(freed)).await.status, 201);
}

#[tokio::test]
async fn what_no_host_is_on_is_refused_by_name() {
    let cloud = Harness::new().await;
    let cases = [
        (json!({"provider:network_type": "flat"}), "physical_network required for flat"),
        (
            json!({"provider:network_type": "flat", "provider:physical_network": "moon"}),
            "physical_network 'moon' unknown for flat",
        ),
        (
            json!({
                "provider:network_type": "flat", "provider:physical_network": "outside",
                "provider:segmentation_id": 5,
            }),
            "segmentation_id specified for flat",
        ),
        (
            json!({"provider:network_type": "vlan", "provider:physical_network": "moon"}),
            "physical_network 'moon' unknown for VLAN",
        ),
        (
            json!({"provider:network_type": "vlan", "provider:segmentation_id": 5}),
            "segmentation_id requires physical_network",
        ),
        (
            json!({
                "provider:network_type": "vlan", "provider:physical_network": "outside",
                "provider:segmentation_id": 4095,
            }),
            "segmentation_id out of range (1 through 4094)",
        ),
        (json!({"provider:network_type": "vxlan", "provider:physical_network": "outside"}), "vxlan network"),
        (json!({"provider:network_type": "gre"}), "Invalid network type 'gre'"),
    ];
    for (fields, words) in cases {
        let reply = provider(&cloud, fields.clone()).await;
        assert_eq!(refusal(&reply), (400, "InvalidInput".into()), "{fields}");
        assert!(
            reply.json()["NeutronError"]["message"].as_str().unwrap().contains(words),
            "{}",
            reply.json()
        );
    }
}
