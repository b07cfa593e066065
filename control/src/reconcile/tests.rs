//! The whole way from a request to a host and back, on a real store and the real line to an agent with a fake driver.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

mod crash;
mod encryption;
mod every_step;
mod identity_steps;
mod images;
mod interfaces;
mod limits;
mod manage;
mod plug;
mod trunks;
mod tunnels;
mod volume_images;
mod volumes;

use super::*;
use crate::Settings;
use crate::agent::host;
use crate::agent::protocol::{Diagnostics, DiskFound, DiskObserved, DiskWanted, HostTraffic, InstanceWanted};
use crate::caller::{Caller, RoleLevel};
use crate::driver::fake::FakeDriver;
use crate::driver::{Applied, Driver, DriverError, Surroundings, Wake};
use crate::model::compute::HostClaims;
use crate::model::image::{Image, ImageStatus};
use crate::model::network::Port;
use crate::model::quota::Usage;
use crate::service::network::NetworkCreate;
use crate::service::nic::{NicRequest, NicRequests};
use crate::service::server::status::status;
use crate::service::server::{Action, NewServers};
use crate::service::subnet::SubnetCreate;
use crate::store::RedbStore;
use crate::test::caller;

const IMAGE: &str = "11111111-0000-4000-8000-000000000001";

struct Cloud {
    control: Arc<Control>,
    admin: Caller,
    network: String,
    tasks: Vec<JoinHandle<()>>,
    /// The store outlives the process that uses it.
    store: Arc<RedbStore>,
    process: Arc<crash::Process>,
    hosts: Vec<std::sync::Weak<dyn Driver>>,
    _state: tempfile::TempDir,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Cloud {
    /// A cloud with an image, flavors and a network; no host yet.
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let store = Arc::new(RedbStore::open(&state.path().join("store.redb")).unwrap());
        let process = crash::Process::new(store.clone());
        let settings = crash::settings(state.path());
        let control = Control::open(process.clone(), settings).await.unwrap();
        control.bootstrap_flavors().await.unwrap();
        let image = Image {
            name: Some("tiny".to_owned()),
            owner: None,
            status: ImageStatus::Active,
            visibility: "public".to_owned(),
            disk_format: Some("raw".to_owned()),
            container_format: Some("bare".to_owned()),
            size_bytes: Some(1 << 20),
            ..Image::new(IMAGE.to_owned(), String::new())
        };
        control.db.transact(|_| Ok(Txn::new().create(&image))).await.unwrap();
        let admin = caller("p", RoleLevel::Admin);
        let network = control
            .network_create(&admin, NetworkCreate { name: "net".to_owned(), ..NetworkCreate::default() })
            .await
            .unwrap();
        let network = network.row.standard.id.clone();
        let subnet = SubnetCreate::new(network.clone(), "10.0.0.0/24".parse().unwrap(), "sub");
        control.subnet_create(&admin, subnet).await.unwrap();
        let tasks = control.start_reconcilers();
        Self { control, admin, network, tasks, store, process, hosts: Vec::new(), _state: state }
    }

    fn connect(&mut self, driver: Arc<dyn Driver>) {
        self.hosts.push(Arc::downgrade(&driver));
        let (near, mut near_end) = tokio::io::duplex(1 << 20);
        let (mut far_end, far) = tokio::io::duplex(1 << 20);
        let agents = self.control.agents().clone();
        self.tasks.push(tokio::spawn(async move {
            let _ = agents.serve(near, None).await;
        }));
        self.tasks.push(tokio::spawn(async move {
            let _ = host::serve(far, driver).await;
        }));
        // The line itself: to abort this last task is to cut it.
        self.tasks.push(tokio::spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut near_end, &mut far_end).await;
        }));
    }

    async fn with_host() -> Self {
        let mut cloud = Self::new().await;
        cloud.connect(Arc::new(FakeDriver::new("fake-0", None).unwrap()));
        cloud
    }

    fn new_servers(&self) -> NewServers {
        NewServers {
            name: "s".to_owned(),
            description: None,
            hostname: None,
            flavor_id: "42".to_owned(),
            image_id: IMAGE.to_owned(),
            devices: Vec::new(),
            nics: NicRequests::Listed(vec![NicRequest::on(&self.network)]),
            security_groups: Vec::new(),
            key_name: None,
            user_data: None,
            config_drive: false,
            metadata: BTreeMap::new(),
            tags: Vec::new(),
            min_count: 1,
            max_count: 1,
            availability_zone: None,
            host: None,
            scheduler_hints: BTreeMap::new(),
            auto_disk_config: None,
            access_ip_v4: String::new(),
            access_ip_v6: String::new(),
        }
    }

    async fn create(&self) -> String {
        let created = self.control.servers_create(&self.admin, self.new_servers()).await.unwrap();
        created.servers[0].id.clone()
    }

    fn server(&self, id: &str) -> Option<Server> {
        self.control.db.get::<Server>(id).map(|stored| stored.row.clone())
    }

    /// Waits until the server's row is as `wanted` says; fails loudly after ten seconds.
    async fn until(&self, id: &str, wanted: impl Fn(Option<&Server>) -> bool) -> Option<Server> {
        let mut changes = self.control.db.cache().subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                let server = self.server(id);
                if wanted(server.as_ref()) {
                    return server;
                }
                changes.next().await.unwrap();
            }
        });
        waited.await.unwrap_or_else(|_| panic!("the server stays {:?}", self.server(id)))
    }

    async fn until_status(&self, id: &str, wanted: &str) -> Server {
        self.until(id, |server| server.is_some_and(|s| status(s).status == wanted && s.task.is_none()))
            .await
            .unwrap()
    }

    /// What must be nothing after all servers are deleted.
    fn left(&self) -> (usize, usize, u64, usize) {
        let db = &self.control.db;
        let ports = db.cache().filter::<Port>(|port| port.device_owner.starts_with("compute:")).len();
        let claims = db.list::<HostClaims>().iter().map(|claims| claims.row.servers.len()).sum();
        let usage = ["instances", "cores", "ram"];
        let used = usage
            .iter()
            .filter_map(|name| db.get::<Usage>(&Usage::key("p", name)))
            .map(|usage| usage.row.used);
        (db.list::<Server>().len(), ports, used.sum(), claims)
    }
}

/// A fake host that somebody meddles with: after what it does, and before that is reported.
struct Meddled<I, D> {
    fake: FakeDriver,
    instance: I,
    disk: D,
}

impl<I, D> Driver for Meddled<I, D>
where
    I: Fn(&InstanceWanted, &mut Applied) + Send + Sync + 'static,
    D: Fn(&DiskWanted, &DiskObserved) + Send + Sync + 'static,
{
    fn host_report(&self) -> HostReport {
        self.fake.host_report()
    }
    fn adopt(&self, wake: Wake) -> Vec<InstanceObserved> {
        self.fake.adopt(wake)
    }
    fn surround(&self, surroundings: &Arc<Surroundings>) -> std::result::Result<(), String> {
        self.fake.surround(surroundings)
    }
    fn know_names(&self, _changed: &[crate::agent::protocol::ZoneWanted], _gone: &[String], _whole: bool) {}
    fn routers(&self) -> Vec<RouterObserved> {
        self.fake.routers()
    }
    fn heal(&self) -> std::result::Result<(), String> {
        self.fake.heal()
    }
    fn apply(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Arc<Surroundings>,
        report: &dyn Fn(InstanceObserved),
    ) -> Applied {
        let mut applied = self.fake.apply(wanted, surroundings, report);
        (self.instance)(wanted, &mut applied);
        applied
    }
    fn apply_disk(&self, wanted: &DiskWanted) -> DiskObserved {
        let observed = self.fake.apply_disk(wanted);
        (self.disk)(wanted, &observed);
        observed
    }
    fn disks(&self, backend: &str) -> std::result::Result<Vec<DiskFound>, String> {
        self.fake.disks(backend)
    }
    fn diagnostics(&self, instance: &str) -> std::result::Result<Diagnostics, DriverError> {
        self.fake.diagnostics(instance)
    }

    fn traffic(&self) -> std::result::Result<HostTraffic, String> {
        self.fake.traffic()
    }

    fn console(&self, instance: &str, bytes_max: u32) -> std::result::Result<String, DriverError> {
        self.fake.console(instance, bytes_max)
    }
}

/// A fake host on which every instance fails, as long as it is told to.
fn breaking(broken: &Arc<AtomicBool>) -> Arc<dyn Driver> {
    let fake = FakeDriver::new("fake-0", None).unwrap();
    let broken = broken.clone();
    let instance = move |wanted: &InstanceWanted, applied: &mut Applied| {
        if broken.load(Ordering::SeqCst) && wanted.power == Power::Running {
            applied.observed.state = InstanceState::Failed;
            applied.observed.fault = Some("The kernel image is not one.".to_owned());
        }
    };
    Arc::new(Meddled { fake, instance, disk: |_: &DiskWanted, _: &DiskObserved| {} })
}

#[tokio::test(flavor = "multi_thread")]
async fn server_lives_through_every_action_and_leaves_nothing() {
    let cloud = Cloud::with_host().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let id = cloud.create().await;
    let active = cloud.until_status(&id, "ACTIVE").await;
    assert_eq!(active.host.as_deref(), Some("fake-0"));
    assert!(active.launched_at.is_some());
    let port = control.db.get::<Port>(&active.port_ids[0]).unwrap();
    assert_eq!((port.row.host.as_deref(), port.row.active), (Some("fake-0"), true));
    assert!(control.server_console(admin, &id, Some(2)).await.unwrap().contains("started"));
    for (action, then) in [
        (Action::Pause, "PAUSED"),
        (Action::Unpause, "ACTIVE"),
        (Action::RebootHard, "ACTIVE"),
        (Action::RebootSoft, "ACTIVE"),
        (Action::Stop, "SHUTOFF"),
        (Action::Start, "ACTIVE"),
    ] {
        control.server_act(admin, &id, action).await.unwrap();
        cloud.until_status(&id, then).await;
    }
    assert_eq!(cloud.left(), (1, 1, 1 + 1 + 64, 1));
    control.server_delete(admin, &id).await.unwrap();
    cloud.until(&id, |server| server.is_none()).await;
    assert_eq!(cloud.left(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_waits_for_the_first_host_to_connect() {
    let mut cloud = Cloud::new().await;
    let id = cloud.create().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(status(&cloud.server(&id).unwrap()).status, "BUILD");
    cloud.connect(Arc::new(FakeDriver::new("fake-0", None).unwrap()));
    cloud.until_status(&id, "ACTIVE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_host_connected_a_server_that_fits_none_is_refused_at_once() {
    let cloud = Cloud::with_host().await;
    cloud.until_status(&cloud.create().await, "ACTIVE").await;
    let huge = crate::service::flavor::FlavorNew {
        id: None,
        name: "huge".to_owned(),
        vcpus: 1,
        ram_mib: 1 << 24,
        disk_gib: 1,
        ephemeral_gib: 0,
        swap_mib: 0,
        rxtx_factor: 1.0,
        is_public: true,
        description: None,
    };
    let flavor_id = cloud.control.flavor_create(&cloud.admin, huge).await.unwrap().id;
    cloud
        .control
        .quota_set(&cloud.admin, "p", &[(crate::service::quota::Resource::RamMib, -1)])
        .await
        .unwrap();
    let new = NewServers { flavor_id, ..cloud.new_servers() };
    let id = cloud.control.servers_create(&cloud.admin, new).await.unwrap().servers[0].id.clone();
    let server = cloud.until_status(&id, "ERROR").await;
    assert!(server.fault.unwrap().details.ends_with("RamFilter: (start: 1, end: 0)"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_fitting_host_the_server_is_in_error_and_keeps_only_its_row() {
    let cloud = Cloud::new().await;
    let id = cloud.create().await;
    cloud.control.place_waiting(false).await.unwrap();
    let server = cloud.until_status(&id, "ERROR").await;
    let fault = server.fault.unwrap();
    assert!(fault.message.starts_with("No valid host was found"), "{}", fault.message);
    assert_eq!(fault.details, "There are no hosts.");
    assert_eq!(cloud.left(), (1, 0, 66, 0));
    cloud.control.server_delete(&cloud.admin, &id).await.unwrap();
    assert_eq!(cloud.left(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_that_fails_on_its_host_is_in_error_and_nothing_of_it_is_left_there() {
    let mut cloud = Cloud::new().await;
    let driver = breaking(&Arc::new(AtomicBool::new(true)));
    cloud.connect(driver.clone());
    let id = cloud.create().await;
    let server = cloud
        .until(&id, |server| server.is_some_and(|s| s.fault.is_some() && s.host.is_none()))
        .await
        .unwrap();
    assert_eq!(status(&server).status, "ERROR");
    assert_eq!(server.fault.unwrap().message, "The kernel image is not one.");
    assert!(driver.console(&id, 100).is_err(), "the host still has it");
    assert_eq!(cloud.left(), (1, 0, 66, 0));
    cloud.control.server_delete(&cloud.admin, &id).await.unwrap();
    assert_eq!(cloud.left(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_that_fails_later_keeps_its_disk_and_a_hard_reboot_mends_it() {
    let mut cloud = Cloud::new().await;
    let broken = Arc::new(AtomicBool::new(false));
    cloud.connect(breaking(&broken));
    let id = cloud.create().await;
    cloud.until_status(&id, "ACTIVE").await;
    broken.store(true, Ordering::SeqCst);
    cloud.control.server_act(&cloud.admin, &id, Action::RebootHard).await.unwrap();
    let server = cloud.until_status(&id, "ERROR").await;
    assert_eq!(server.host.as_deref(), Some("fake-0"));
    broken.store(false, Ordering::SeqCst);
    cloud.control.server_act(&cloud.admin, &id, Action::RebootHard).await.unwrap();
    cloud.until_status(&id, "ACTIVE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_waits_for_a_host_that_is_away() {
    let cloud = Cloud::with_host().await;
    let id = cloud.create().await;
    cloud.until_status(&id, "ACTIVE").await;
    cloud.tasks.last().unwrap().abort();
    while cloud.control.host_is_alive("fake-0") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cloud.control.server_delete(&cloud.admin, &id).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let server = cloud.server(&id).unwrap();
    assert_eq!((server.task.as_deref(), server.power), (Some("deleting"), Power::Deleted));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_get_numbers_and_go_as_far_as_the_quota() {
    let cloud = Cloud::with_host().await;
    let mut new = cloud.new_servers();
    new.max_count = 12;
    let created = cloud.control.servers_create(&cloud.admin, new.clone()).await.unwrap().servers;
    assert_eq!(created.len(), 10, "the quota has room for ten");
    assert_eq!((created[0].name.as_str(), created[9].hostname.as_str()), ("s-1", "s-10"));
    for server in &created {
        cloud.until_status(&server.id, "ACTIVE").await;
    }
    new.max_count = 1;
    let refused = cloud.control.servers_create(&cloud.admin, new).await.unwrap_err();
    assert!(matches!(refused, Error::QuotaExceeded { resource: "instances", limit: 10, .. }), "{refused}");
    for server in &created {
        cloud.control.server_delete(&cloud.admin, &server.id).await.unwrap();
    }
    for server in &created {
        cloud.until(&server.id, |server| server.is_none()).await;
    }
    assert_eq!(cloud.left(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_never_promised_twice_by_two_deciders() {
    let mut cloud = Cloud::new().await;
    cloud.connect(Arc::new(FakeDriver::new("fake-0", None).unwrap()));
    let mut new = cloud.new_servers();
    new.max_count = 10;
    new.nics = NicRequests::None;
    let create = || cloud.control.servers_create(&cloud.admin, new.clone());
    let created = create().await.unwrap().servers;
    let deciders = (0..4).map(|_| cloud.control.place_waiting(true));
    futures_util::future::join_all(deciders).await;
    for server in &created {
        cloud.until_status(&server.id, "ACTIVE").await;
    }
    let claims = cloud.control.db.get::<HostClaims>("fake-0").unwrap();
    assert_eq!(claims.row.total().vcpus, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_that_fails_at_any_server_leaves_none() {
    let cloud = Cloud::new().await;
    let mut new = cloud.new_servers();
    // The second server of the request finds no address.
    let small = SubnetCreate::new(String::new(), "10.9.0.0/30".parse().unwrap(), "small");
    let network = cloud
        .control
        .network_create(&cloud.admin, NetworkCreate { name: "small".to_owned(), ..NetworkCreate::default() })
        .await
        .unwrap();
    let id = network.row.standard.id.clone();
    let mut subnet = SubnetCreate { network_id: id.clone(), ..small };
    subnet.enable_dhcp = false;
    cloud.control.subnet_create(&cloud.admin, subnet).await.unwrap();
    new.nics = NicRequests::Listed(vec![NicRequest::on(id)]);
    new.min_count = 3;
    new.max_count = 3;
    assert!(cloud.control.servers_create(&cloud.admin, new).await.is_err());
    assert_eq!(cloud.left(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_before_anything_is_written() {
    let cloud = Cloud::new().await;
    let base = cloud.new_servers();
    let port = NicRequests::Listed(vec![NicRequest::Port { id: "nope".to_owned(), tag: None }]);
    for new in [
        NewServers { flavor_id: "nope".to_owned(), ..base.clone() },
        NewServers { image_id: "nope".to_owned(), ..base.clone() },
        NewServers { key_name: Some("nope".to_owned()), ..base.clone() },
        NewServers { nics: port, ..base.clone() },
        NewServers { security_groups: vec!["nope".to_owned()], ..base.clone() },
        NewServers { availability_zone: Some("nope".to_owned()), ..base.clone() },
        NewServers { host: Some("nope".to_owned()), ..base.clone() },
        NewServers { min_count: 3, max_count: 2, ..base.clone() },
        NewServers { name: String::new(), ..base.clone() },
        NewServers { min_count: 11, max_count: 11, ..base.clone() },
    ] {
        let refused = cloud.control.servers_create(&cloud.admin, new).await.unwrap_err();
        assert!(!matches!(refused, Error::Store(_)), "{refused}");
        assert_eq!(cloud.left(), (0, 0, 0, 0));
    }
    let reader = caller("p", RoleLevel::Reader);
    assert!(matches!(cloud.control.servers_create(&reader, base).await, Err(Error::Forbidden { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_see_no_server_and_a_lock_holds_its_owner_off() {
    let cloud = Cloud::with_host().await;
    let id = cloud.create().await;
    cloud.until_status(&id, "ACTIVE").await;
    let stranger = caller("q", RoleLevel::Member);
    assert!(matches!(cloud.control.server(&stranger, &id).await, Err(Error::NotFound { .. })));
    assert!(matches!(cloud.control.server_delete(&stranger, &id).await, Err(Error::NotFound { .. })));
    let owner = caller("p", RoleLevel::Member);
    cloud.control.server_lock(&owner, &id, true, Some("mine")).await.unwrap();
    assert!(matches!(cloud.control.server_act(&owner, &id, Action::Stop).await, Err(Error::Conflict { .. })));
    assert!(matches!(cloud.control.server_delete(&owner, &id).await, Err(Error::Conflict { .. })));
    cloud.control.server_lock(&owner, &id, false, None).await.unwrap();
    cloud.control.server_act(&owner, &id, Action::Stop).await.unwrap();
    cloud.until_status(&id, "SHUTOFF").await;
}
