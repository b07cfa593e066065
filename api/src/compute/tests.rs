//! Nova as clients see it, over the whole router and, where servers live, a host with the fake driver.

use std::time::Duration;

use axum::http::Method;
use control::driver::fake::FakeDriver;
use serde_json::{Value, json};

use crate::harness::{Harness, Reply};

mod diagnostics;
mod images;
mod interfaces;
mod reads;

struct Cloud {
    harness: Harness,
}

impl Cloud {
    /// A cloud with the first flavors; no host.
    async fn new() -> Self {
        let harness = Harness::new().await;
        harness.control.bootstrap_flavors().await.unwrap();
        Self { harness }
    }

    /// With a host that pretends.
    async fn with_host() -> Self {
        let cloud = Self::new().await;
        cloud.harness.start_host(FakeDriver::new("fake-0", None).unwrap()).await;
        cloud
    }

    async fn call(&self, method: Method, path: &str, version: &str, body: Value) -> Reply {
        let token = self.harness.admin_token().await;
        let version = format!("compute {version}");
        let headers = [("x-auth-token", token.as_str()), ("openstack-api-version", version.as_str())];
        self.harness.call(method, &format!("/compute/v2.1{path}"), &headers, body).await
    }

    async fn get(&self, path: &str, version: &str) -> Reply {
        self.call(Method::GET, path, version, Value::Null).await
    }

    async fn post(&self, path: &str, version: &str, body: Value) -> Reply {
        self.call(Method::POST, path, version, body).await
    }
}

/// The names of an object's members, sorted.
fn members(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn flavors_are_found_by_id_never_by_name_and_gain_fields_with_versions() {
    let cloud = Cloud::new().await;
    let missing = cloud.get("/flavors/m1.nano", "2.61").await;
    assert_eq!((missing.status.as_u16(), missing.json()["itemNotFound"]["code"].as_u64()), (404, Some(404)));
    let all = cloud.get("/flavors/detail?is_public=None", "2.61").await.json();
    let names: Vec<&str> =
        all["flavors"].as_array().unwrap().iter().filter_map(|f| f["name"].as_str()).collect();
    assert_eq!(names, ["m1.tiny", "m1.small", "m1.medium", "m1.large", "m1.nano", "m1.xlarge"]);
    let cloud = &cloud;
    let nano = |version| async move { cloud.get("/flavors/42", version).await.json()["flavor"].take() };
    let old = nano("2.1").await;
    assert_eq!((&old["swap"], old.get("description"), old.get("extra_specs")), (&json!(""), None, None));
    let new = nano("2.100").await;
    assert_eq!(
        (&new["swap"], &new["description"], &new["extra_specs"]),
        (&json!(0), &Value::Null, &json!({}))
    );
}

#[tokio::test]
async fn flavor_lives_from_creation_to_deletion() {
    let cloud = Cloud::new().await;
    let body = json!({"flavor": {"OS-FLV-EXT-DATA:ephemeral": 0, "ram": 512, "swap": 0, "vcpus": "1", "id": null,
        "os-flavor-access:is_public": false, "disk": 1, "name": "fl1"}});
    let made = cloud.post("/flavors", "2.61", body.clone()).await;
    assert_eq!(made.status, 200, "{:?}", made.json());
    let id = made.json()["flavor"]["id"].as_str().unwrap().to_owned();
    assert_eq!(cloud.post("/flavors", "2.61", body).await.status, 409);
    let specs = json!({"extra_specs": {"hw:x": "y"}});
    assert_eq!(
        cloud.post(&format!("/flavors/{id}/os-extra_specs"), "2.61", specs.clone()).await.json(),
        specs
    );
    assert_eq!(cloud.get(&format!("/flavors/{id}/os-extra_specs"), "2.61").await.json(), specs);
    let specs = json!({"extra_specs": {"quota:disk_read_iops_sec": "fast"}});
    let refused = cloud.post(&format!("/flavors/{id}/os-extra_specs"), "2.61", specs).await;
    assert_eq!(refused.status, 400);
    let message = refused.json()["badRequest"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("quota:disk_read_iops_sec") && message.contains("'fast'"), "{message}");
    let access = json!({"addTenantAccess": {"tenant": "p1"}});
    let listed = cloud.post(&format!("/flavors/{id}/action"), "2.61", access).await.json();
    assert_eq!(listed["flavor_access"], json!([{"flavor_id": id, "tenant_id": "p1"}]));
    let spec = format!("/flavors/{id}/os-extra_specs/hw:x");
    assert_eq!(cloud.call(Method::DELETE, &spec, "2.61", Value::Null).await.status, 200);
    assert_eq!(cloud.get(&spec, "2.61").await.status, 404);
    let flavor = format!("/flavors/{id}");
    assert_eq!(cloud.call(Method::DELETE, &flavor, "2.61", Value::Null).await.status, 202);
    assert_eq!(cloud.get(&flavor, "2.61").await.status, 404);
    assert_eq!(
        cloud
            .post("/flavors", "2.61", json!({"flavor": {"name": "x", "ram": 0, "vcpus": 1, "disk": 0}}))
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn keypairs_are_imported_and_made_only_until_2_92() {
    let cloud = Cloud::new().await;
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOP8ekmHvO9BYhFidXp+69Ncxs20AXsw4uDHu5/YwRVu";
    let body = json!({"keypair": {"name": "k", "public_key": format!("{key}\n")}});
    let made = cloud.post("/os-keypairs", "2.10", body.clone()).await;
    assert_eq!(made.status, 201, "{:?}", made.json());
    assert_eq!(members(&made.json()["keypair"]), ["fingerprint", "name", "public_key", "type", "user_id"]);
    assert_eq!(cloud.post("/os-keypairs", "2.10", body).await.status, 409);
    let shown = cloud.get("/os-keypairs/k", "2.1").await.json();
    assert!(shown["keypair"]["id"].is_u64() && shown["keypair"].get("type").is_none());
    assert_eq!(cloud.get("/os-keypairs", "2.35").await.json()["keypairs"][0]["keypair"]["name"], "k");
    let keyless = json!({"keypair": {"name": "g"}});
    assert_eq!(cloud.post("/os-keypairs", "2.92", keyless.clone()).await.status, 400);
    let made = cloud.post("/os-keypairs", "2.91", keyless).await.json();
    let private_key = made["keypair"]["private_key"].as_str().unwrap();
    assert!(private_key.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
    assert_eq!(cloud.call(Method::DELETE, "/os-keypairs/k", "2.10", Value::Null).await.status, 204);
    assert_eq!(cloud.call(Method::DELETE, "/os-keypairs/k", "2.10", Value::Null).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn host_is_a_hypervisor_a_service_and_a_zone() {
    let cloud = Cloud::with_host().await;
    let newest = cloud.get("/os-hypervisors/detail", "2.88").await.json()["hypervisors"][0].take();
    let fields = [
        "host_ip",
        "hypervisor_hostname",
        "hypervisor_type",
        "hypervisor_version",
        "id",
        "service",
        "state",
        "status",
        "uptime",
    ];
    assert_eq!(members(&newest), fields);
    assert_eq!((&newest["state"], &newest["hypervisor_hostname"]), (&json!("up"), &json!("fake-0")));
    let oldest = cloud.get("/os-hypervisors/detail", "2.1").await.json()["hypervisors"][0].take();
    assert!(oldest["id"].is_u64() && oldest["cpu_info"].is_string() && oldest["vcpus_used"].is_u64());
    let sums = cloud.get("/os-hypervisors/statistics", "2.1").await.json();
    assert_eq!(sums["hypervisor_statistics"]["count"], 1);
    assert_eq!(cloud.get("/os-hypervisors/statistics", "2.88").await.status, 404);
    assert_eq!(cloud.get("/os-hypervisors/fake-0", "2.88").await.status, 404);
    let services = cloud.get("/os-services", "2.69").await.json();
    let id = services["services"][0]["id"].as_str().unwrap().to_owned();
    let close = json!({"status": "disabled", "disabled_reason": "x"});
    let closed = cloud.call(Method::PUT, &format!("/os-services/{id}"), "2.69", close).await.json();
    assert_eq!(
        (&closed["service"]["status"], &closed["service"]["disabled_reason"]),
        (&json!("disabled"), &json!("x"))
    );
    let zones = cloud.get("/os-availability-zone", "2.1").await.json();
    assert_eq!(
        zones["availabilityZoneInfo"],
        json!([{"zoneName": "nova", "zoneState": {"available": false}, "hosts": null}])
    );
    let open = json!({"host": "fake-0", "binary": "nova-compute"});
    assert_eq!(cloud.call(Method::PUT, "/os-services/enable", "2.1", open).await.status, 200);
    let detail = cloud.get("/os-availability-zone/detail", "2.1").await.json();
    assert_eq!(detail["availabilityZoneInfo"][0]["hosts"]["fake-0"]["nova-compute"]["available"], true);
}

#[tokio::test]
async fn limits_and_quotas_say_what_a_project_may_have() {
    let cloud = Cloud::new().await;
    let absolute = cloud.get("/limits?reserved=False", "2.57").await.json()["limits"]["absolute"].take();
    assert_eq!((&absolute["maxTotalInstances"], &absolute["totalInstancesUsed"]), (&json!(10), &json!(0)));
    assert!(absolute.get("maxPersonality").is_none());
    let project = "0123456789abcdef0123456789abcdef";
    let path = format!("/os-quota-sets/{project}");
    let set = cloud.call(Method::PUT, &path, "2.56", json!({"quota_set": {"instances": 20}})).await;
    assert_eq!(set.json()["quota_set"]["instances"], 20, "{:?}", set.json());
    let old = json!({"quota_set": {"instances": 20, "fixed_ips": 10, "injected_files": 1}});
    let set = cloud.call(Method::PUT, &path, "2.35", old.clone()).await.json();
    assert_eq!(
        (&set["quota_set"]["fixed_ips"], &set["quota_set"]["injected_files"]),
        (&json!(-1), &json!(0))
    );
    assert_eq!(cloud.call(Method::PUT, &path, "2.36", old).await.status, 400);
    assert_eq!(cloud.get(&format!("{path}/defaults"), "2.56").await.json()["quota_set"]["instances"], 10);
    let detail = cloud.get(&format!("{path}/detail"), "2.56").await.json();
    assert_eq!(detail["quota_set"]["instances"], json!({"limit": 20, "in_use": 0, "reserved": 0}));
    assert_eq!(cloud.call(Method::DELETE, &path, "2.56", Value::Null).await.status, 202);
    assert_eq!(cloud.get(&path, "2.57").await.json()["quota_set"]["instances"], 10);
}

#[tokio::test]
async fn what_is_not_there_says_so_in_novas_form() {
    let cloud = Cloud::new().await;
    assert_eq!(
        cloud.get("/servers/s1", "2.100").await.json()["itemNotFound"]["message"],
        "Instance s1 could not be found."
    );
    assert_eq!(cloud.get("/servers/detail?name=s1", "2.100").await.json(), json!({"servers": []}));
    let missing = json!({"server": {"name": "s", "imageRef": "nope", "flavorRef": "42", "networks": "none"}});
    let refused = cloud.post("/servers", "2.37", missing).await;
    assert_eq!((refused.status.as_u16(), members(&refused.json())), (400, vec!["badRequest"]));
    let act = |body| cloud.post("/servers/s1/action", "2.100", body);
    assert_eq!(act(json!({"os-start": null})).await.status, 404);
    assert_eq!(act(json!({"rebuild": {}})).await.status, 404);
    assert_eq!(act(json!({"fly": null})).await.status, 400);
    assert_eq!(act(json!({})).await.status, 400);
    assert_eq!(cloud.post("/os-server-groups", "2.64", json!({})).await.status, 501);
    assert_eq!(cloud.get("/os-server-groups", "2.64").await.json(), json!({"server_groups": []}));
    assert_eq!(cloud.get("/nonsense", "2.1").await.status, 404);
}

impl Cloud {
    /// An active image, made as a client makes it.
    async fn image(&self) -> String {
        let body =
            json!({"name": "i", "disk_format": "raw", "container_format": "bare", "os_distro": "tiny"});
        let made = self.harness.admin(Method::POST, "/image/v2/images", body).await;
        assert_eq!(made.status, 201, "{:?}", made.json());
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let request = axum::http::Request::builder()
            .method(Method::PUT)
            .uri(format!("/image/v2/images/{id}/file"))
            .header("x-auth-token", self.harness.admin_token().await)
            .header("content-type", "application/octet-stream")
            .body(vec![7u8; 4096].into())
            .unwrap();
        assert_eq!(self.harness.send(request).await.status, 204);
        id
    }

    async fn server(&self, image: &str, more: Value) -> String {
        let mut server = json!({"name": "s1", "imageRef": image, "flavorRef": "42", "networks": "none"});
        server.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = self.post("/servers", "2.100", json!({ "server": server })).await;
        assert_eq!(made.status, 202, "{:?}", made.json());
        let body = made.json();
        let id = body["server"]["id"].as_str().unwrap().to_owned();
        assert_eq!(members(&body["server"]), ["OS-DCF:diskConfig", "id", "links", "security_groups"]);
        assert_eq!(made.header("location"), Some(&*format!("http://cloud.test/compute/v2.1/servers/{id}")));
        id
    }

    async fn show(&self, id: &str, version: &str) -> Value {
        self.get(&format!("/servers/{id}"), version).await.json()["server"].take()
    }

    async fn until(&self, id: &str, status: &str) -> Value {
        for _ in 0..500 {
            let server = self.show(id, "2.100").await;
            if server["status"] == status && server["OS-EXT-STS:task_state"].is_null() {
                return server;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{id} does not become {status}: {}", self.show(id, "2.100").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_is_shown_in_the_shape_of_each_version() {
    let cloud = Cloud::with_host().await;
    let image = cloud.image().await;
    let more =
        json!({"metadata": {"a": "b"}, "tags": ["t"], "description": "d", "availability_zone": "nova"});
    let id = cloud.server(&image, more).await;
    let newest = cloud.until(&id, "ACTIVE").await;
    assert_eq!((&newest["progress"], &newest["OS-EXT-STS:power_state"]), (&json!(100), &json!(1)));
    assert_eq!(newest["OS-SRV-USG:launched_at"].as_str().unwrap().len(), "2026-01-02T03:04:05.000006".len());
    assert_eq!(newest["image"]["properties"]["os_distro"], "tiny");
    assert_eq!(newest["flavor"]["original_name"], "m1.nano");
    assert_eq!(newest["pinned_availability_zone"], "nova");
    let since = [
        ("locked", 9),
        ("host_status", 16),
        ("description", 19),
        ("tags", 26),
        ("trusted_image_certificates", 63),
        ("server_groups", 71),
        ("locked_reason", 73),
        ("pinned_availability_zone", 96),
        ("scheduler_hints", 100),
    ];
    for (field, minor) in since {
        let before = cloud.show(&id, &format!("2.{}", minor - 1)).await;
        let then = cloud.show(&id, &format!("2.{minor}")).await;
        assert!(before.get(field).is_none() && then.get(field).is_some(), "{field} came with 2.{minor}");
    }
    let oldest = cloud.show(&id, "2.1").await;
    assert_eq!(oldest["flavor"]["id"], "42");
    let listed = cloud.get("/servers/detail?name=%5Es1%24&status=active", "2.100").await.json();
    assert_eq!(listed["servers"][0]["id"], id.as_str());
    assert!(listed["servers"][0].get("server_groups").is_none());
    let updated = cloud
        .call(Method::PUT, &format!("/servers/{id}"), "2.1", json!({"server": {"name": "s2"}}))
        .await
        .json();
    assert_eq!((&updated["server"]["name"], updated["server"].get("key_name")), (&json!("s2"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_lives_through_its_actions_over_rest_and_is_gone_after_its_deletion() {
    let cloud = Cloud::with_host().await;
    let id = cloud.server(&cloud.image().await, json!({})).await;
    cloud.until(&id, "ACTIVE").await;
    let act = |body| {
        let (cloud, path) = (&cloud, format!("/servers/{id}/action"));
        async move { cloud.post(&path, "2.100", body).await }
    };
    for (body, then) in [
        (json!({"os-stop": null}), "SHUTOFF"),
        (json!({"os-start": null}), "ACTIVE"),
        (json!({"reboot": {"type": "HARD"}}), "ACTIVE"),
        (json!({"pause": null}), "PAUSED"),
        (json!({"unpause": null}), "ACTIVE"),
        (json!({"os-resetState": {"state": "error"}}), "ERROR"),
        (json!({"os-resetState": {"state": "active"}}), "ACTIVE"),
    ] {
        assert_eq!(act(body).await.status, 202);
        cloud.until(&id, then).await;
    }
    let refused = act(json!({"os-start": null})).await;
    let message = format!("Cannot 'start' instance {id} while it is in vm_state active");
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["conflictingRequest"]["message"]),
        (409, &json!(message))
    );
    let console = act(json!({"os-getConsoleOutput": {"length": 2}})).await;
    assert_eq!(
        (console.status.as_u16(), console.json()["output"].as_str().map(|text| text.lines().count())),
        (200, Some(1))
    );
    assert_eq!(act(json!({"suspend": null})).await.status, 501);
    let metadata = format!("/servers/{id}/metadata");
    assert_eq!(
        cloud.post(&metadata, "2.1", json!({"metadata": {"k": "v"}})).await.json(),
        json!({"metadata": {"k": "v"}})
    );
    assert_eq!(cloud.call(Method::DELETE, &format!("{metadata}/k"), "2.1", Value::Null).await.status, 204);
    assert_eq!(
        cloud.call(Method::PUT, &format!("/servers/{id}/tags/x"), "2.26", Value::Null).await.status,
        201
    );
    let actions = cloud.get(&format!("/servers/{id}/os-instance-actions"), "2.84").await.json();
    assert_eq!(actions["instanceActions"].as_array().unwrap().last().unwrap()["action"], "create");
    assert_eq!(cloud.call(Method::DELETE, &format!("/servers/{id}"), "2.1", Value::Null).await.status, 204);
    for _ in 0..500 {
        if cloud.get(&format!("/servers/{id}"), "2.100").await.status == 404 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the server is still there");
}

#[test]
fn booleans_of_bodies_are_those_that_novas_schema_lists() {
    let read = |value: Value| super::flag(value);
    for (yes, no) in [("true", "false"), ("True", "FALSE"), ("1", "0"), ("On", "off"), ("YES", "no")] {
        assert_eq!((read(yes.into()).unwrap(), read(no.into()).unwrap()), (Some(true), Some(false)));
    }
    assert_eq!((read(Value::Null).unwrap(), read(true.into()).unwrap()), (None, Some(true)));
    for neither in ["t", "y", "F", "n", "", " true", "2", "maybe"] {
        assert!(read(neither.into()).is_err(), "{neither}");
    }
    assert!(read(1.into()).is_err());
}
