//! The tiny guest under a load of its network, and as the other end of one.

use super::*;

/// The numbers in a line of the console.
fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn two_guests_measure_the_network_between_them_and_go_on_as_before() {
    if !host_is_able() {
        return;
    }
    let (first, second) = (tap("t0"), tap("t1"));
    bridge("b0", &["t0", "t1"]);
    give_address("b0", HOST);
    let serves =
        Instance::start_over(Transport::Pci, vec![nic(first, GUEST, "#wisp\ntraffic serve 60000\n")], 4096);
    // After each load the device is the stack's again.
    let script = format!("#wisp\ntraffic serve 1\ntraffic {GUEST} 60\nping {HOST} 5\nprint over\n");
    let asks = Instance::start(vec![nic(second, OTHER, &script)], 4096);
    asks.line("over");
    assert_eq!(asks.line("command: traffic serve").trim_end(), "command: traffic serve 1 ok");
    assert_eq!(asks.line("command: traffic 10").trim_end(), "command: traffic 10.99.0.10 60 ok");
    assert!(asks.line("command: ping").starts_with("command: ping 10.99.0.1 5 ok"), "{}", asks.console());
    let echo = asks.line("traffic: end echo");
    let [trips, _lost, us, p50, p99] = numbers(&echo)[..] else { panic!("{echo}") };
    assert!(trips > 0 && us >= 60_000 && 0 < p50 && p50 <= p99, "{echo}");
    for way in ["send", "receive"] {
        let line = asks.line(&format!("traffic: end {way}"));
        let [bytes, _again, us] = numbers(&line)[..] else { panic!("{line}") };
        assert!(bytes > 100_000 && us >= 60_000, "{line}");
    }
    for guest in [asks, serves] {
        guest.client().stop(false).unwrap();
        let report = guest.end();
        assert_eq!(report.reason, ExitReason::PoweredOff, "{}", report.message);
    }
}

#[test]
fn flows_go_by_several_pairs_of_queues_and_are_counted_there() {
    if !host_is_able() {
        return;
    }
    for (number, transport) in (0..).zip([Transport::Mmio, Transport::Pci]) {
        let [served, asking, joint] = ["s", "a", "b"].map(|name| format!("{name}{number}"));
        let [first, more] = tap_of_two(&served);
        let second = tap(&asking);
        bridge(&joint, &[&served, &asking]);
        let several = NicConfig {
            more_queues: vec![inherit(more)],
            ..nic(first, GUEST, "#wisp\ntraffic serve 60000\n")
        };
        let serves = Instance::start_over(transport, vec![several], 4096);
        let script = format!("#wisp\ntraffic {GUEST} 60\nprint over\n");
        let asks = Instance::start(vec![nic(second, OTHER, &script)], 4096);
        asks.line("over");
        assert_eq!(asks.line("command: traffic").trim_end(), "command: traffic 10.99.0.10 60 ok");
        let status = |guest: &Instance| {
            let devices = guest.client().status().unwrap().devices.unwrap();
            devices.into_iter().find_map(|device| device.nic).unwrap()
        };
        let (several, one) = (status(&serves), status(&asks));
        assert_eq!((several.used, several.pairs.len()), (2, 2));
        assert_eq!((one.used, one.pairs.len()), (1, 1));
        let [streams, trips] = several.pairs[..] else { panic!("{several:?}") };
        // It answers by the pair of the flow, and what follows comes there: a connection's data by the one, all else by the other.
        assert!(streams.receive.bytes > 100_000 && streams.transmit.packets > 0, "{several:?}");
        assert!(trips.transmit.bytes > 100_000 && trips.receive.packets > 0, "{several:?}");
        for guest in [asks, serves] {
            guest.client().stop(false).unwrap();
            let report = guest.end();
            assert_eq!(report.reason, ExitReason::PoweredOff, "{}", report.message);
        }
    }
}

#[test]
fn command_line_alone_makes_a_guest_measure() {
    if !host_is_able() {
        return;
    }
    let (first, second) = (tap("t0"), tap("t1"));
    bridge("b0", &["t0", "t1"]);
    let start = |tap, address, load: String| {
        Instance::start_with(4096, |config, _| {
            config.nics = vec![NicConfig { endpoint: None, ..nic(tap, address, "") }];
            config.cmdline = load;
        })
    };
    let serves = start(first, GUEST, format!("traffic={GUEST},serve,60000"));
    let asks = start(second, OTHER, format!("traffic={OTHER},{GUEST},20"));
    asks.line("traffic: done");
    asks.line("ready without network");
    for guest in [asks, serves] {
        guest.client().stop(false).unwrap();
        assert_eq!(guest.end().reason, ExitReason::PoweredOff);
    }
}
