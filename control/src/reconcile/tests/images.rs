//! Images of servers: from the wish to the bytes, with hosts that refuse and owners that change their minds.

use super::volumes::device;
use super::*;
use crate::model::image::{ImageBlob, ImageMember};
use crate::model::volume::{DiskWork, Snapshot, Status, Volume};
use crate::service::quota::Resource;
use crate::service::server::image::{BackupSeries, NewServerImage};
use crate::service::server::volume::DeviceSource;

/// What the image, and so the fake driver's disk, has.
const CONTENT: &[u8] = &[7; 2048];

fn new_image(name: &str) -> NewServerImage {
    let metadata = BTreeMap::from([("purpose".to_owned(), "test".to_owned())]);
    NewServerImage { name: name.to_owned(), metadata, backup: None }
}

impl Cloud {
    /// Gives the image of all servers here its bytes.
    pub(super) fn fill_image(&self) {
        std::fs::write(self._state.path().join("images").join(IMAGE), CONTENT).unwrap();
    }

    async fn with_server() -> (Self, String) {
        let cloud = Self::with_volumes().await;
        cloud.fill_image();
        let server = cloud.create().await;
        cloud.until_status(&server, "ACTIVE").await;
        (cloud, server)
    }

    fn image_row(&self, id: &str) -> Option<Image> {
        self.control.db.get::<Image>(id).map(|stored| stored.row.clone())
    }

    /// Waits until no image is being made of the server, and nothing is wanted of the host any more.
    async fn until_free(&self, server: &str) -> Server {
        let found = self.until(server, |server| server.is_some_and(|server| server.task.is_none())).await;
        for _ in 0..1000 {
            self.control.db.caught_up().await.unwrap();
            if self.control.db.list::<DiskWork>().is_empty() {
                return found.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("something stays wanted: {:?}", self.control.db.list::<DiskWork>());
    }

    /// The names of the files that are on their way out of the host.
    fn outgoing(&self) -> Vec<String> {
        let directory = self._state.path().join("volumes/fake-0/outgoing");
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn images_counted(&self) -> [u64; 2] {
        [Resource::Images, Resource::ImageMib].map(|resource| self.control.quota("p", resource).used)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn image_of_a_server_has_its_disks_bytes_and_says_what_novas_do() {
    let (cloud, server) = Cloud::with_server().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let rows = control.db.get::<Server>(&server).unwrap();
    let named = Server {
        image_properties: BTreeMap::from([
            ("hw_x".to_owned(), "y".to_owned()),
            ("kernel_id".to_owned(), "k".to_owned()),
            ("cache_in_nova".to_owned(), "True".to_owned()),
        ]),
        ..rows.row.clone()
    };
    control.db.transact(|_| Ok(Txn::new().update(&rows, &named))).await.unwrap();
    let id = control.server_image_create(admin, &server, &new_image("i")).await.unwrap();
    cloud.until_free(&server).await;
    let image = cloud.image_row(&id).unwrap();
    assert_eq!((image.status, image.size_bytes), (ImageStatus::Active, Some(CONTENT.len() as u64)));
    assert_eq!((image.visibility.as_str(), image.min_disk_gib), ("private", named.flavor.disk_gib));
    let mut data = control.image_data(&image, 0..CONTENT.len() as u64).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = futures_util::StreamExt::next(&mut data).await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(bytes, CONTENT);
    let said: Vec<_> = image.properties.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [
        ("base_image_ref", IMAGE),
        ("hw_x", "y"),
        ("image_location", "snapshot"),
        ("image_state", "available"),
        ("image_type", "snapshot"),
        ("instance_uuid", server.as_str()),
        ("kernel_id", "k"),
        ("owner_id", "p"),
        ("purpose", "test"),
        ("user_id", "u"),
    ];
    assert_eq!(said, expected);
    let found = cloud.server(&server).unwrap();
    let action = found.actions.last().unwrap();
    assert_eq!((action.action.as_str(), &action.message), ("createImage", &None));
    assert_eq!(cloud.outgoing(), Vec::<String>::new());
    assert_eq!(cloud.images_counted(), [1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_becomes_an_image_does_nothing_else_and_paused_and_stopped_ones_can() {
    let (cloud, server) = Cloud::with_server().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let rows = control.db.get::<Server>(&server).unwrap();
    let taken = Server { task: Some("image_uploading".to_owned()), ..rows.row.clone() };
    control.db.transact(|_| Ok(Txn::new().update(&rows, &taken))).await.unwrap();
    let refused = control.server_image_create(admin, &server, &new_image("second")).await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    for action in [Action::Stop, Action::RebootHard, Action::Pause] {
        let refused = control.server_act(admin, &server, action).await;
        assert!(matches!(refused, Err(Error::Conflict { .. })), "{action:?}: {refused:?}");
    }
    let rows = control.db.get::<Server>(&server).unwrap();
    let free = Server { task: None, ..rows.row.clone() };
    control.db.transact(|_| Ok(Txn::new().update(&rows, &free))).await.unwrap();
    for (action, reached) in
        [(Action::Pause, "PAUSED"), (Action::Unpause, "ACTIVE"), (Action::Stop, "SHUTOFF")]
    {
        control.server_act(admin, &server, action).await.unwrap();
        cloud.until_status(&server, reached).await;
        let id = control.server_image_create(admin, &server, &new_image(reached)).await.unwrap();
        let found = cloud.until_free(&server).await;
        assert_eq!(status(&found).status, reached);
        assert_eq!(cloud.image_row(&id).unwrap().status, ImageStatus::Active);
    }
    let foreign =
        control.server_image_create(&caller("q", RoleLevel::Member), &server, &new_image("x")).await;
    assert!(matches!(foreign, Err(Error::NotFound { .. })), "{foreign:?}");
    let of_admin = caller("other", RoleLevel::Admin);
    let id = control.server_image_create(&of_admin, &server, &new_image("lent")).await.unwrap();
    cloud.until_free(&server).await;
    let image = cloud.image_row(&id).unwrap();
    assert_eq!((image.owner.as_deref(), image.visibility.as_str()), (Some("other"), "shared"));
    assert_eq!(image.properties["instance_owner"], "p");
    assert!(control.db.get::<ImageMember>(&ImageMember::key(&id, "p")).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn host_that_brings_nothing_out_leaves_no_image_and_a_free_server() {
    let (cloud, server) = Cloud::with_server().await;
    // Its disk cannot be read any more.
    std::fs::remove_file(cloud._state.path().join("images").join(IMAGE)).unwrap();
    let id = cloud.control.server_image_create(&cloud.admin, &server, &new_image("i")).await.unwrap();
    let found = cloud.until_free(&server).await;
    assert_eq!((status(&found).status, cloud.image_row(&id)), ("ACTIVE", None));
    assert_eq!(found.actions.last().unwrap().message.as_deref(), Some("Error"));
    assert_eq!(cloud.images_counted(), [0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn image_or_server_that_goes_meanwhile_leaves_nothing() {
    let (cloud, server) = Cloud::with_server().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let id = control.server_image_create(admin, &server, &new_image("i")).await.unwrap();
    control.image_delete(admin, &id).await.unwrap();
    cloud.until_free(&server).await;
    assert_eq!((cloud.image_row(&id), cloud.images_counted()), (None, [0, 0]));
    control.server_image_create(admin, &server, &new_image("i")).await.unwrap();
    control.server_delete(admin, &server).await.unwrap();
    cloud.until(&server, |server| server.is_none()).await;
    for _ in 0..1000 {
        if control.db.list::<DiskWork>().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(control.db.list::<DiskWork>().is_empty() && cloud.outgoing().is_empty());
    // The host was faster, or it was not; never half an image.
    let half =
        control.db.cache().find(|image: &Image| image.owner.is_some() && image.status != ImageStatus::Active);
    assert_eq!(half, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_backups_of_one_kind_only_the_newest_stay() {
    let (cloud, server) = Cloud::with_server().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let made = async |kind: &str, rotation: u32| {
        let series = BackupSeries { kind: kind.to_owned(), rotation };
        let new = NewServerImage { backup: Some(series), ..new_image(kind) };
        let id = control.server_image_create(admin, &server, &new).await.unwrap();
        cloud.until_free(&server).await;
        id
    };
    let weekly = made("weekly", 1).await;
    let mut daily = Vec::new();
    for _ in 0..4 {
        daily.push(made("daily", 2).await);
    }
    let there: Vec<bool> = daily.iter().map(|id| cloud.image_row(id).is_some()).collect();
    assert_eq!(there, [false, false, true, true]);
    let image = cloud.image_row(&weekly).unwrap();
    assert_eq!(
        (image.properties["image_type"].as_str(), image.properties["backup_type"].as_str()),
        ("backup", "weekly")
    );
    assert_eq!(cloud.image_row(&made("weekly", 0).await), None, "none is kept");
    assert_eq!(cloud.image_row(&weekly), None);
    assert_eq!(cloud.images_counted()[0], 2);
    assert_eq!(control.db.list::<ImageBlob>().len(), 1, "the same bytes once");
}

impl Cloud {
    /// A server that boots from a new volume of the image, with an empty one beside it.
    pub(super) async fn server_of_volumes(&self) -> String {
        self.fill_image();
        let devices = vec![
            device(DeviceSource::Image(IMAGE.to_owned()), true, 1),
            device(DeviceSource::Blank, false, 2),
        ];
        let new = NewServers { image_id: String::new(), devices, ..self.new_servers() };
        let created = self.control.servers_create(&self.admin, new).await.unwrap();
        let server = created.servers[0].id.clone();
        self.until_status(&server, "ACTIVE").await;
        server
    }

    fn volumes_of(&self, server: &str) -> Vec<Volume> {
        let server = self.server(server).unwrap();
        let volumes =
            server.volumes.iter().map(|attached| self.control.db.get::<Volume>(&attached.volume_id));
        volumes.map(|volume| volume.unwrap().row.clone()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn image_of_a_server_of_volumes_stands_for_snapshots_and_makes_servers_of_them() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let server = cloud.server_of_volumes().await;
    let of_kind = NewServerImage { backup: Some(BackupSeries::default()), ..new_image("b") };
    let refused = control.server_image_create(admin, &server, &of_kind).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    let id = control.server_image_create(admin, &server, &new_image("i")).await.unwrap();
    cloud.until_free(&server).await;
    let image = cloud.image_row(&id).unwrap();
    assert_eq!((image.status, image.size_bytes, image.stores.len()), (ImageStatus::Active, Some(0), 0));
    let mapping: serde_json::Value = serde_json::from_str(&image.properties["block_device_mapping"]).unwrap();
    let mapping = mapping.as_array().unwrap().clone();
    let shown: Vec<_> = mapping
        .iter()
        .map(|entry| {
            (entry["device_name"].clone(), entry["boot_index"].clone(), entry["volume_size"].clone())
        })
        .collect();
    assert_eq!(shown, [("/dev/vda".into(), 0.into(), 1.into()), ("/dev/vdb".into(), ().into(), 2.into())]);
    let snapshots: Vec<_> = mapping.iter().map(|entry| entry["snapshot_id"].as_str().unwrap()).collect();
    for snapshot in &snapshots {
        let row = control.db.get::<Snapshot>(snapshot).unwrap().row.clone();
        assert_eq!((row.status, row.name.as_deref()), (Status::Available, Some("snapshot for i")));
    }
    let said: Vec<_> = image.properties.keys().map(String::as_str).collect();
    let expected = ["bdm_v2", "block_device_mapping", "purpose", "root_device_name"];
    assert_eq!(said, expected);

    let new = NewServers { image_id: id.clone(), ..cloud.new_servers() };
    let created = control.servers_create(admin, new).await.unwrap();
    let second = created.servers[0].id.clone();
    cloud.until_status(&second, "ACTIVE").await;
    assert_eq!(cloud.server(&second).unwrap().image_id, "");
    let of: Vec<_> =
        cloud.volumes_of(&second).iter().map(|volume| volume.snapshot_id.clone().unwrap()).collect();
    assert_eq!(of, snapshots);
    let actions: Vec<_> =
        cloud.server(&server).unwrap().actions.iter().map(|one| one.action.clone()).collect();
    assert_eq!(actions, ["create", "createImage"]);

    for wrong in ["", "{}", "[{}]", "[]", "[{\"source_type\":\"volume\",\"destination_type\":\"volume\"}]"] {
        let stored = control.db.get::<Image>(&id).unwrap();
        let mut row = stored.row.clone();
        row.properties.insert("block_device_mapping".to_owned(), wrong.to_owned());
        control.db.transact(|_| Ok(Txn::new().update(&stored, &row))).await.unwrap();
        let new = NewServers { image_id: id.clone(), ..cloud.new_servers() };
        let refused = control.servers_create(admin, new).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{wrong}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_whose_volume_grows_has_that_among_its_actions() {
    let cloud = Cloud::with_volumes().await;
    let server = cloud.server_of_volumes().await;
    let grower = Caller { request_id: "req-grow".to_owned(), ..cloud.admin.clone() };
    let volume = cloud.volumes_of(&server).remove(1).id;
    cloud.control.volume_extend(&grower, &volume, 5, true).await.unwrap();
    cloud.until_volume(&volume, Some(Status::InUse)).await;
    let found = cloud.server(&server).unwrap();
    let action = found.actions.last().unwrap();
    let told = (action.action.as_str(), action.request_id.as_str(), action.project_id.as_str());
    assert_eq!(told, ("extend_volume", "req-grow", "p"));
    assert!(action.finished_at.is_some() && action.message.is_none());
    assert_eq!(cloud.volumes_of(&server)[1].size_gib, 5);
}
