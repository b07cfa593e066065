//! The guests of which samples are kept in `src/handover/tests` and `src/snapshot/tests`, so that one can be made of a new version
//! as the ones before were: with `WISP_SAMPLES=DIR` what is said of each is written there.

use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

use vmm::config::{
    AnnouncedPrefix, Announcement, DhcpOption, Dhcpv6Config, Ipv6Config, MemConfig, RateLimit,
    TransferLimits, VlanAddressing,
};
use vmm::handover::HELLO;
use vmm::rpc::VmState;

use super::*;

/// Bytes of what is sent ahead of a snapshot's header, and of that header.
const PREFIX_BYTES: usize = 24;
const HEAD_BYTES: usize = 4096;

fn number<const N: usize>(bytes: &[u8], at: usize) -> usize {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[at..at + N]);
    usize::try_from(u64::from_le_bytes(wide)).unwrap()
}

fn keep(name: &str, bytes: &[u8]) {
    if let Some(directory) = std::env::var_os("WISP_SAMPLES") {
        std::fs::write(Path::new(&directory).join(name), bytes).unwrap();
    }
}

fn option(name: &str, value: &str) -> DhcpOption {
    DhcpOption { name: name.to_owned(), value: value.to_owned() }
}

/// Everything that an endpoint can be told, once.
fn addressing() -> Addressing {
    let prefix = "2001:db8:1::/64".parse().unwrap();
    let announcement = Announcement {
        router: Some([0x02, 0x57, 0x49, 0x53, 0x50, 0xfe]),
        is_default: true,
        managed: true,
        other: true,
        prefixes: vec![AnnouncedPrefix { prefix, autonomous: false }],
        routes: vec!["2001:db8:2::/48".parse().unwrap()],
        dns: vec!["2001:db8:1::53".parse().unwrap()],
    };
    let dhcp = Dhcpv6Config {
        addresses: vec!["2001:db8:1::10".parse().unwrap()],
        on_link: vec![prefix],
        dns: vec!["2001:db8:1::53".parse().unwrap()],
        options: vec![option("domain-search", "wisp")],
    };
    let ipv4 = Ipv4Config {
        address: GUEST,
        prefix_len: 24,
        gateway: Some(HOST),
        dhcp_server: Ipv4Addr::new(10, 99, 0, 2),
        dns: vec![Ipv4Addr::new(10, 99, 0, 53)],
        routes: vec![(Ipv4Addr::new(10, 98, 0, 0), 16, Ipv4Addr::new(10, 99, 0, 3))],
        options: vec![option("ntp-server", "10.99.0.4")],
    };
    Addressing {
        ipv4: Some(ipv4),
        ipv6: Ipv6Config { announcements: vec![announcement], others_announce: true, dhcp: Some(dhcp) },
        hostname: "tiny".to_owned(),
        domain: "wisp".to_owned(),
        lease_s: 3600,
        resolver: true,
        neighbours: BTreeMap::from([(Ipv4Addr::new(10, 99, 0, 77), [0x02, 0x57, 0x49, 0x53, 0x50, 0x77])]),
        vlans: BTreeMap::new(),
    }
}

/// What a guest's VMM sends of it up to its descriptors; its receiver then hangs up, and it goes on where it is.
fn sent(instance: &Instance) -> Vec<u8> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    let receiving = std::thread::spawn(move || {
        let mut message = vec![0; PREFIX_BYTES + HEAD_BYTES];
        theirs.read_exact(&mut message).unwrap();
        let mut rest = vec![0; number::<4>(&message, 12) + number::<8>(&message, PREFIX_BYTES + 64)];
        theirs.read_exact(&mut rest).unwrap();
        message.extend(rest);
        message
    });
    let refused = instance.client().hand_over(ours.as_fd(), PATIENCE).unwrap_err().to_string();
    println!("{refused}");
    receiving.join().unwrap()
}

#[test]
fn guest_on_pci_with_an_endpoint_and_pairs_of_queues_is_sent_whole() {
    if !host_is_able() {
        return;
    }
    let [tap, more] = tap_of_two("t0");
    give_address("t0", HOST);
    let rate = |per_second| Some(RateLimit { per_second, burst: Some(2 * per_second) });
    let instance = Instance::start_with(1 << 20, |config, _| {
        config.transport = Transport::Pci;
        config.upgradable = true;
        config.vcpus = 2;
        let mut nic = NicConfig { more_queues: vec![inherit(more)], ..nic(tap, GUEST, "") };
        let mut addressing = addressing();
        let vlan = VlanAddressing {
            mac: [0x02, 0x57, 0x49, 0x53, 0x50, 0x0b],
            mtu: 1400,
            addressing: addressing.clone(),
        };
        addressing.vlans.insert(7, vlan);
        nic.endpoint.as_mut().unwrap().addressing = addressing;
        nic.traffic.egress = TransferLimits { bytes: rate(1 << 30), operations: rate(1 << 20) };
        nic.traffic.dscp = Some(10);
        config.nics = vec![nic];
    });
    instance.line("metadata: key");
    let message = sent(&instance);
    assert!(message.starts_with(&HELLO));
    keep("version-1-network.message", &message);
    let status = instance.client().status().unwrap();
    assert_eq!((status.state, status.upgraded), (VmState::Running, None));
    assert_eq!(http("GET", "/disk/0", b"").1, b"1048576\n");
    instance.client().stop(true).unwrap();
    instance.end();
}

/// A guest whose memory comes and goes is not handed over, so what a snapshot says of it is kept.
#[test]
fn guest_whose_memory_comes_and_goes_is_saved_whole() {
    if !peripherals::has_kvm() {
        return;
    }
    let instance = Instance::start_with(1 << 20, |config, _| {
        config.transport = Transport::Pci;
        config.peripherals.mem = Some(MemConfig { region_mib: 128, requested_mib: 6 });
    });
    let deadline = Instant::now() + PATIENCE;
    while instance.client().status().unwrap().memory.unwrap().plugged_mib != 6 {
        assert!(Instant::now() < deadline, "{}", instance.console());
        std::thread::sleep(Duration::from_millis(2));
    }
    let file = tempfile::tempfile().unwrap();
    instance.client().snapshot(&file, false, false).unwrap();
    let mut said = vec![0; HEAD_BYTES];
    file.read_exact_at(&mut said, 0).unwrap();
    let mut state = vec![0; number::<8>(&said, 64)];
    file.read_exact_at(&mut state, number::<8>(&said, 56) as u64).unwrap();
    said.extend(state);
    keep("version-3-memory.state", &said);
    instance.client().stop(true).unwrap();
    instance.end();
}
