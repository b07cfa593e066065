//! Volumes of servers that run: what a host says of devices that come and go, and what follows.

use super::volumes::of_size;
use super::*;
use crate::agent::protocol::DevicesObserved;
use crate::driver::volumes::{Place, VolumePaths, Volumes};
use crate::model::volume::Status;
use crate::service::server::volume::NewServerVolume;

/// What its host says of a server's devices, as it says it.
type Said = Arc<std::sync::Mutex<DevicesObserved>>;

impl Cloud {
    /// A cloud whose host says of devices what a test has it say.
    async fn that_says(said: &Said) -> Self {
        let mut cloud = Self::new().await;
        let (root, images) = (cloud._state.path().join("volumes/fake-0"), cloud._state.path().join("images"));
        let paths = VolumePaths { root, places: vec![Place::Files.into()], images, bucket: None };
        let fake = FakeDriver::new("fake-0", None).unwrap().with_volumes(Volumes::open(paths).unwrap());
        let said = said.clone();
        let instance = move |_: &InstanceWanted, applied: &mut Applied| {
            applied.observed.devices = said.lock().unwrap().clone();
        };
        cloud.connect(Arc::new(Meddled { fake, instance, disk: |_: &DiskWanted, _: &DiskObserved| {} }));
        cloud.until_pool().await;
        cloud
    }

    /// A free volume, and a server that runs.
    async fn volume_and_server(&self) -> (String, String) {
        let volume = self.volume(of_size(1)).await;
        self.until_volume(&volume, Some(Status::Available)).await;
        let server = self.create().await;
        self.until_status(&server, "ACTIVE").await;
        (volume, server)
    }

    /// A volume that a running server has, and how it came to it.
    async fn attached_volume(&self) -> (String, String, NewServerVolume) {
        let (volume, server) = self.volume_and_server().await;
        let new = NewServerVolume { volume_id: volume.clone(), ..NewServerVolume::default() };
        self.control.server_volume_attach(&self.admin, &server, &new).await.unwrap();
        self.until_volume(&volume, Some(Status::InUse)).await;
        (volume, server, new)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_is_nobody_elses_until_the_guest_has_let_it_go() {
    let said = Said::default();
    let cloud = Cloud::that_says(&said).await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let (volume, server, new) = cloud.attached_volume().await;
    said.lock().unwrap().leaving = [volume.clone()].into();
    for _ in 0..2 {
        control.server_volume_detach(admin, &server, &volume).await.unwrap();
        let reached = |server: &Server| server.observed_generation == server.generation;
        let row = cloud.until(&server, |server| server.is_some_and(reached)).await.unwrap();
        cloud.until_volume(&volume, Some(Status::Detaching)).await;
        assert!(row.volumes[0].detaching && row.actions.last().unwrap().finished_at.is_none(), "{row:?}");
        let other = cloud.create().await;
        cloud.until_status(&other, "ACTIVE").await;
        let refused = control.server_volume_attach(admin, &other, &new).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
    said.lock().unwrap().leaving.clear();
    control.server_volume_detach(admin, &server, &volume).await.unwrap();
    cloud.until_volume(&volume, Some(Status::Available)).await;
    let row = cloud.server(&server).unwrap();
    assert!(row.volumes.is_empty() && row.actions.iter().all(|action| action.message.is_none()), "{row:?}");

    // What a guest has until it is off is not taken from it before.
    control.server_volume_attach(admin, &server, &new).await.unwrap();
    cloud.until_volume(&volume, Some(Status::InUse)).await;
    said.lock().unwrap().fixed = [volume.clone()].into();
    control.server_act(admin, &server, Action::RebootHard).await.unwrap();
    cloud.until(&server, |server| server.is_some_and(|server| !server.fixed_devices.is_empty())).await;
    cloud.until_status(&server, "ACTIVE").await;
    let refused = control.server_volume_detach(admin, &server, &volume).await;
    assert!(matches!(refused, Err(Error::Conflict { reason: "InstanceCannotPlug", .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_asked_back_before_it_is_known_to_stay_is_its_servers_again() {
    let said = Said::default();
    let cloud = Cloud::that_says(&said).await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let (volume, server, _) = cloud.attached_volume().await;
    {
        let mut said = said.lock().unwrap();
        (said.leaving, said.fixed) = ([volume.clone()].into(), [volume.clone()].into());
    }
    control.server_volume_detach(admin, &server, &volume).await.unwrap();
    let failed = |server: &Server| server.actions.iter().any(|action| action.message.is_some());
    let row = cloud.until(&server, |server| server.is_some_and(failed)).await.unwrap();
    assert!(!row.volumes[0].detaching, "{row:?}");
    cloud.until_volume(&volume, Some(Status::InUse)).await;
    let refused = control.server_volume_detach(admin, &server, &volume).await;
    assert!(matches!(refused, Err(Error::Conflict { reason: "InstanceCannotPlug", .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_that_the_guest_cannot_get_is_free_again_and_the_action_says_so() {
    let said = Said::default();
    let cloud = Cloud::that_says(&said).await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let (volume, server) = cloud.volume_and_server().await;
    said.lock().unwrap().missing = [(volume.clone(), "no slot is free".to_owned())].into();
    let new = NewServerVolume { volume_id: volume.clone(), ..NewServerVolume::default() };
    control.server_volume_attach(admin, &server, &new).await.unwrap();
    cloud.until(&server, |server| server.is_some_and(|server| server.volumes.is_empty())).await;
    cloud.until_volume(&volume, Some(Status::Available)).await;
    let row = cloud.server(&server).unwrap();
    let attach = row.actions.iter().find(|action| action.action == "attach_volume").unwrap();
    assert_eq!((attach.message.as_deref(), attach.finished_at.is_some()), (Some("Error"), true));
    assert_eq!(status(&row).status, "ACTIVE");
}
