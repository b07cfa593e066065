//! Networks between hosts.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use control::agent::protocol::{InstanceState, Power, RemotePortWanted};
use control::driver::Driver;

use super::{Host, links};

/// A network is joined to other hosts while it has ports there, and an instance that comes meanwhile finds it so.
pub(super) fn stretched(host: &Host) {
    let (driver, _ends) = host.driver();
    let with = |addresses: &[u8]| {
        let mut surroundings = (*host.surroundings).clone();
        let network = surroundings.networks.get_mut(&format!("private-{}", host.tag)).unwrap();
        network.vni = Some(0x77_0000 + u32::from_str_radix(&host.tag, 16).unwrap());
        let port = |last: &u8| RemotePortWanted {
            mac: [0xfa, 0x16, 0x3e, 0, 1, *last],
            host: Ipv4Addr::new(127, 0, 0, *last),
            addresses: BTreeSet::from([Ipv4Addr::new(10, 9, 9, *last).into()]),
        };
        network.remotes = addresses.iter().map(port).collect();
        Arc::new(surroundings)
    };
    let devices = || {
        let prefix = format!("wx{}-", host.tag);
        links().into_iter().filter(|name| name.starts_with(&prefix)).count()
    };
    let before = host.traces();
    let joined = with(&[2, 3]);
    driver.surround(&joined).unwrap();
    assert_eq!(devices(), 0, "nothing here is on the network");
    let mut wanted = host.wanted();
    let observed = driver.apply(&wanted, &joined, &|_| {}).observed;
    assert_eq!(observed.state, InstanceState::Running, "{observed:?}");
    assert_eq!(devices(), 1);
    for (addresses, there) in [(&[][..], 0), (&[2], 1), (&[3, 4], 1)] {
        driver.surround(&with(addresses)).unwrap();
        assert_eq!(devices(), there, "{addresses:?}");
    }
    wanted.power = Power::Deleted;
    wanted.generation += 1;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
    assert_eq!(host.traces(), before);
}
