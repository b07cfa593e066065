//! Limits of disks, from a type's QoS specification and a flavor's extra specs to what a host is told.

use vmm::config::{DiskLimits, RateLimit, TransferLimits};

use super::volumes::{device, of_size};
use super::*;
use crate::agent::protocol::InstanceWanted;
use crate::driver::volumes::{Place, VolumePaths, Volumes};
use crate::model::volume::{Status, Volume};
use crate::service::server::volume::{DeviceSource, NewServerVolume};
use crate::service::volume::NewVolume;

fn operations(per_second: u64, burst: Option<u64>) -> TransferLimits {
    TransferLimits { bytes: None, operations: Some(RateLimit { per_second, burst }) }
}

fn specs(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

impl Cloud {
    /// A type of volumes whose specification is for `consumer`, and that specification's id.
    async fn limited_type(&self, name: &str, consumer: &str, of: &[(&str, &str)]) -> String {
        let (control, admin) = (&self.control, &self.admin);
        let kind = control.volume_type_create(admin, (name, None, true), BTreeMap::new()).await.unwrap();
        let qos = control.volume_qos_create(admin, name, consumer, specs(of)).await.unwrap().row.id.clone();
        control.volume_type_qos(admin, &qos, &kind.row.id, true).await.unwrap();
        qos
    }

    async fn volume_of(&self, kind: &str, size_gib: u64) -> String {
        let id = self.volume(NewVolume { volume_type: Some(kind.to_owned()), ..of_size(size_gib) }).await;
        self.until_volume(&id, Some(Status::Available)).await;
        id
    }

    /// What the host is told of a server.
    pub(super) async fn told(&self, server: &str) -> InstanceWanted {
        self.control.db.caught_up().await.unwrap();
        let wanted = {
            let (cache, master) = (self.control.db.cache(), self.control.tokens.master());
            wanted::host_wanted(cache, master, "0000", "fake-0")
        };
        wanted.instances.into_iter().find(|instance| instance.id == server).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_types_and_flavors_reach_the_host_and_those_for_the_storage_do_not() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let sized = [("write_iops_sec_per_gb", "5"), ("read_iops_sec", "7"), ("read_iops_sec_max", "70")];
    let qos = cloud.limited_type("front", "front-end", &sized).await;
    cloud.limited_type("back", "back-end", &[("read_iops_sec", "whatever it understands")]).await;
    let extra = [("quota:disk_total_iops_sec".to_owned(), "9".to_owned())];
    control.flavor_set_extra_specs(admin, "42", &extra).await.unwrap();
    let volumes = [cloud.volume_of("front", 2).await, cloud.volume_of("back", 1).await];
    let server = cloud.create().await;
    cloud.until_status(&server, "ACTIVE").await;
    for volume in &volumes {
        let new = NewServerVolume { volume_id: volume.clone(), ..NewServerVolume::default() };
        control.server_volume_attach(admin, &server, &new).await.unwrap();
    }
    let (read, write) = (operations(7, Some(70)), operations(10, None));
    let of_front = DiskLimits { read, write, ..DiskLimits::default() };
    let told = cloud.told(&server).await;
    let told_of = |index: usize| (told.volumes[index].id.as_str(), told.volumes[index].limits);
    assert_eq!(told_of(0), (volumes[0].as_str(), of_front));
    assert_eq!(told_of(1), (volumes[1].as_str(), DiskLimits::default()));
    let total = operations(9, None);
    assert_eq!(told.root_disk.limits, DiskLimits { total, ..DiskLimits::default() });

    let changed =
        control.volume_qos_change(admin, &qos, Some("both"), specs(&[("total_iops_sec", "0")]), &[]);
    assert!(matches!(changed.await, Err(Error::Invalid { .. })), "a limit of nothing");
    control.volume_qos_change(admin, &qos, Some("both"), BTreeMap::new(), &[]).await.unwrap();
    assert_eq!(cloud.told(&server).await.volumes[0].limits, of_front);
    let shown = control.volume_front_end_specs(&volumes[0]).unwrap();
    let expected = serde_json::json!({"read_iops_sec": "7", "read_iops_sec_max": "70", "write_iops_sec": 10});
    assert_eq!(serde_json::json!(shown), expected);
    assert_eq!(control.volume_front_end_specs(&volumes[1]), None);
    control.volume_qos_delete(admin, &qos, true).await.unwrap();
    assert_eq!(cloud.told(&server).await.volumes[0].limits, DiskLimits::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_that_a_server_boots_from_has_its_types_limits_and_not_the_flavors() {
    let cloud = Cloud::with_volumes().await;
    cloud.limited_type("front", "both", &[("total_iops_sec_per_gb", "3")]).await;
    let extra = [("quota:disk_read_iops_sec".to_owned(), "9".to_owned())];
    cloud.control.flavor_set_extra_specs(&cloud.admin, "42", &extra).await.unwrap();
    let mut root = device(DeviceSource::Image(IMAGE.to_owned()), true, 2);
    root.volume_type = Some("front".to_owned());
    let new = NewServers { devices: vec![root], image_id: String::new(), ..cloud.new_servers() };
    std::fs::write(cloud._state.path().join("images").join(IMAGE), [0; 512]).unwrap();
    let server = cloud.control.servers_create(&cloud.admin, new).await.unwrap().servers[0].id.clone();
    cloud.until_status(&server, "ACTIVE").await;
    let told = cloud.told(&server).await;
    let root = told.root_disk.volume.unwrap();
    assert_eq!(root.limits, DiskLimits { total: operations(6, None), ..DiskLimits::default() });
    assert_eq!(told.root_disk.limits.read, operations(9, None), "which would hold for a copy of the image");
}

/// What a host that is told anew of its servers has heard of a server's volumes, each time.
type Heard = Arc<std::sync::Mutex<Vec<Vec<DiskLimits>>>>;

impl Cloud {
    /// A cloud with volumes whose host notes what limits it is told of.
    async fn with_heard() -> (Self, Heard) {
        let mut cloud = Self::new().await;
        let (root, images) = (cloud._state.path().join("volumes/fake-0"), cloud._state.path().join("images"));
        let places = vec![Place::Files.into()];
        let volumes = Volumes::open(VolumePaths { root, places, images, bucket: None }).unwrap();
        let fake = FakeDriver::new("fake-0", None).unwrap().with_volumes(volumes);
        let heard = Heard::default();
        let instance = {
            let heard = heard.clone();
            move |wanted: &InstanceWanted, _: &mut Applied| {
                heard.lock().unwrap().push(wanted.volumes.iter().map(|volume| volume.limits).collect());
            }
        };
        cloud.connect(Arc::new(Meddled { fake, instance, disk: |_: &DiskWanted, _: &DiskObserved| {} }));
        cloud.until_pool().await;
        (cloud, heard)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn host_of_a_running_server_hears_of_limits_that_change() {
    let (cloud, heard) = Cloud::with_heard().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let qos = cloud.limited_type("front", "front-end", &[("write_iops_sec_per_gb", "5")]).await;
    cloud.limited_type("other", "both", &[("read_iops_sec", "7")]).await;
    let volume = cloud.volume_of("front", 1).await;
    let server = cloud.create().await;
    let began = cloud.until_status(&server, "ACTIVE").await;
    let new = NewServerVolume { volume_id: volume.clone(), ..NewServerVolume::default() };
    control.server_volume_attach(admin, &server, &new).await.unwrap();
    cloud.until_volume(&volume, Some(Status::InUse)).await;
    let writes = |per_second| DiskLimits { write: operations(per_second, None), ..DiskLimits::default() };
    let until_heard = async |limits: DiskLimits| {
        let is_told = || heard.lock().unwrap().last().is_some_and(|last| *last == [limits]);
        for _ in 0..1000 {
            if is_told() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{limits:?} was not heard of: {:?}", heard.lock().unwrap());
    };
    until_heard(writes(5)).await;
    control.volume_extend(admin, &volume, 2, true).await.unwrap();
    until_heard(writes(10)).await;
    cloud.until_volume(&volume, Some(Status::InUse)).await;
    control
        .volume_qos_change(admin, &qos, None, specs(&[("write_iops_sec_per_gb", "50")]), &[])
        .await
        .unwrap();
    until_heard(writes(100)).await;
    control.volume_retype(admin, &volume, "other", false).await.unwrap();
    until_heard(DiskLimits { read: operations(7, None), ..DiskLimits::default() }).await;
    let kind = control.db.get::<Volume>(&volume).unwrap().row.type_id.clone();
    let other = control.volume_qos_list(admin).await.unwrap();
    let other = other.iter().find(|qos| qos.row.name == "other").unwrap();
    control.volume_type_qos(admin, &other.row.id, &kind, false).await.unwrap();
    until_heard(DiskLimits::default()).await;
    assert_eq!(cloud.server(&server).unwrap().boot, began.boot, "it was not started again");
}
