//! Both ends of a line in one process, with the fake driver at the host's end.

use super::*;
use crate::agent::host;
use crate::agent::protocol::{DiskCipher, DiskShape};
use crate::agent::protocol::{InstanceState, Power};
use crate::driver::fake::FakeDriver;
use crate::driver::test::instance_wanted;

struct Cloud {
    wanted: Arc<Mutex<Wanted>>,
    agents: Agents,
    events: mpsc::Receiver<AgentEvent>,
}

impl Cloud {
    fn new() -> Self {
        let wanted = Arc::new(Mutex::new(Wanted { cloud_tag: "0abc".into(), ..Wanted::default() }));
        let (sender, events) = mpsc::channel(16);
        let source = wanted.clone();
        let agents = Agents::new(Arc::new(move |_| lock(&source).clone()), sender);
        Self { wanted, agents, events }
    }

    /// A line to a fake host by that name; both ends run.
    fn connect(&self, name: &str) -> tokio::task::JoinHandle<Result<(), LinkError>> {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let driver = Arc::new(FakeDriver::new(name, None).unwrap());
        tokio::spawn(host::serve(theirs, driver));
        let agents = self.agents.clone();
        tokio::spawn(async move { agents.serve(ours, None).await })
    }

    fn want(&self, instance: InstanceWanted) {
        let mut wanted = lock(&self.wanted);
        wanted.instances.retain(|other| other.id != instance.id);
        wanted.instances.push(instance);
        drop(wanted);
        self.agents.changed_all();
    }

    async fn next(&mut self) -> AgentEvent {
        tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await.unwrap().unwrap()
    }

    async fn next_observed(&mut self) -> InstanceObserved {
        loop {
            if let AgentEvent::Observed { instance, .. } = self.next().await {
                return instance;
            }
        }
    }
}

#[tokio::test]
async fn wanted_instance_is_made_changed_and_deleted_and_each_is_observed() {
    let mut cloud = Cloud::new();
    let mut wanted = instance_wanted("a");
    cloud.want(wanted.clone());
    cloud.connect("fake-0");
    assert!(matches!(cloud.next().await, AgentEvent::Connected { host } if host.name == "fake-0"));
    assert_eq!(cloud.next_observed().await.state, InstanceState::Running);
    for (power, state) in [(Power::Stopped, InstanceState::Stopped), (Power::Deleted, InstanceState::Deleted)]
    {
        wanted.power = power;
        wanted.generation += 1;
        cloud.want(wanted.clone());
        let observed = cloud.next_observed().await;
        assert_eq!((observed.state, observed.generation), (state, wanted.generation));
    }
}

#[tokio::test]
async fn query_is_answered_refused_for_unknown_instances_and_needs_a_line() {
    let mut cloud = Cloud::new();
    cloud.want(instance_wanted("a"));
    let query = |id: &str| Query::Console { instance: id.into(), bytes_max: 1000 };
    assert!(matches!(cloud.agents.query("fake-0", query("a")).await, Err(QueryError::NotConnected(_))));
    cloud.connect("fake-0");
    cloud.next_observed().await;
    let answer = cloud.agents.query("fake-0", query("a")).await.unwrap();
    let Answer::Console { text } = answer else { panic!("not a console: {answer:?}") };
    assert!(text.contains("fake driver"));
    assert!(matches!(cloud.agents.query("fake-0", query("b")).await, Err(QueryError::Refused(_))));
}

#[tokio::test]
async fn report_about_an_instance_of_another_host_is_refused() {
    let mut cloud = Cloud::new();
    cloud.want(instance_wanted("mine"));
    let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
    let agents = cloud.agents.clone();
    tokio::spawn(async move { agents.serve(ours, None).await });
    let observed = |id: &str| InstanceObserved {
        id: id.into(),
        generation: 1,
        boot: 1,
        state: InstanceState::Running,
        first_run_us: None,
        fault: None,
        devices: Default::default(),
    };
    let hello = ToControl::Hello {
        version: PROTOCOL_VERSION,
        host: crate::driver::Driver::host_report(&FakeDriver::new("evil", None).unwrap()),
        instances: vec![observed("other-adopted")],
    };
    frame::write(&mut theirs, &hello).await.unwrap();
    frame::write(&mut theirs, &ToControl::Observed(observed("other"))).await.unwrap();
    frame::write(&mut theirs, &ToControl::Observed(observed("mine"))).await.unwrap();
    assert_eq!(cloud.next_observed().await.id, "mine");
}

#[tokio::test]
async fn other_version_and_other_name_are_parted_with() {
    for (version, expected, matches) in [
        (PROTOCOL_VERSION + 1, None, "speaks version"),
        (PROTOCOL_VERSION, Some("good"), "the line is for host good, not for evil"),
    ] {
        let cloud = Cloud::new();
        let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        let host = crate::driver::Driver::host_report(&FakeDriver::new("evil", None).unwrap());
        let hello = ToControl::Hello { version, host, instances: Vec::new() };
        frame::write(&mut theirs, &hello).await.unwrap();
        let error = cloud.agents.serve(ours, expected).await.unwrap_err();
        assert!(error.to_string().contains(matches), "{error}");
    }
}

#[tokio::test]
async fn newer_line_to_the_same_host_takes_over_and_an_ended_one_is_gone() {
    let mut cloud = Cloud::new();
    let older = cloud.connect("fake-0");
    assert!(matches!(cloud.next().await, AgentEvent::Connected { .. }));
    let newer = cloud.connect("fake-0");
    assert!(matches!(cloud.next().await, AgentEvent::Connected { .. }));
    assert!(matches!(older.await.unwrap(), Err(LinkError::Replaced)));
    assert!(cloud.agents.is_connected("fake-0"));
    newer.abort();
}

#[tokio::test]
async fn end_of_a_line_is_an_event() {
    let mut cloud = Cloud::new();
    let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
    let host = crate::driver::Driver::host_report(&FakeDriver::new("short", None).unwrap());
    let hello = ToControl::Hello { version: PROTOCOL_VERSION, host, instances: Vec::new() };
    frame::write(&mut theirs, &hello).await.unwrap();
    drop(theirs);
    // The line may end on either side first; both are an end.
    let _ = cloud.agents.serve(ours, None).await;
    assert!(matches!(cloud.next().await, AgentEvent::Connected { .. }));
    assert_eq!(cloud.next().await, AgentEvent::Gone { host: "short".into() });
    assert!(!cloud.agents.is_connected("short"));
}

#[test]
fn only_what_differs_is_told_and_what_is_gone_is_forgotten() {
    let network = |id: &str, mtu| NetworkWanted {
        id: id.into(),
        mtu,
        host_addresses: Vec::new(),
        vni: None,
        remotes: Vec::new(),
        physical: None,
    };
    let disk = DiskWanted {
        id: "d".into(),
        generation: 1,
        backend: None,
        cipher: DiskCipher::Clear,
        source_cipher: DiskCipher::Clear,
        shape: DiskShape::Deleted,
    };
    let mut told = Told::default();
    let mut wanted = Wanted {
        cloud_tag: "0abc".into(),
        networks: vec![network("n1", 1500), network("n2", 1500)],
        groups: Vec::new(),
        instances: vec![instance_wanted("a")],
        disks: vec![disk.clone()],
        routers: Vec::new(),
        zones: Vec::new(),
    };
    assert_eq!(told.advance(wanted.clone(), true), vec![ToAgent::Wanted(wanted.clone())]);
    assert_eq!(told.advance(wanted.clone(), false), Vec::new());
    wanted.networks = vec![network("n1", 1450)];
    wanted.disks.clear();
    let change =
        Wanted { cloud_tag: "0abc".into(), networks: vec![network("n1", 1450)], ..Wanted::default() };
    let forget = ToAgent::Forget {
        networks: vec!["n2".into()],
        groups: Vec::new(),
        disks: vec!["d".into()],
        routers: Vec::new(),
        zones: Vec::new(),
    };
    assert_eq!(told.advance(wanted, false), vec![ToAgent::Change(change), forget]);
}
