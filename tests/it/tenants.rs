//! Tenant networks, guest to guest: two servers on one network reach each other, two networks do not, and the host
//! has no address on either.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::harness::{Cloud, KVM_CLOUD, NewServer, Remains, isolate, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("tenants::one_network_reaches_and_two_do_not", KVM_CLOUD, one_network_reaches_and_two_do_not),
        trial("tenants::disks_are_written_and_read", KVM_CLOUD, disks_are_written_and_read),
    ]
}

fn one_network_reaches_and_two_do_not() -> Result<()> {
    isolate()?;
    let before = Remains::look()?;
    let mut cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let (red, blue) =
        (cloud.network(&rest, "red", "10.1.0.0/24")?, cloud.network(&rest, "blue", "10.1.0.0/24")?);
    let new = |name, network, user_data| NewServer { name, image: "", flavor: "m1.nano", network, user_data };
    let first = cloud.server(&rest, &new("first", &red, ""))?;
    cloud.wait_status(&rest, &first, "ACTIVE")?;
    let target = cloud.address(&rest, &first)?;
    let asks = format!("#wisp\nping {target} 20\nfetch http://{target}/\n");
    let second = cloud.server(&rest, &new("second", &red, &asks))?;
    cloud.wait_console(&rest, &second, &format!("command: fetch http://{target}/ ok 200"))?;
    cloud.wait_console(&rest, &second, &format!("command: ping {target} 20 ok"))?;
    // The other network has the same addresses; whoever has this one there must not answer for the first.
    let stranger = cloud.server(&rest, &new("filler", &blue, ""))?;
    cloud.wait_status(&rest, &stranger, "ACTIVE")?;
    let outside = format!("#wisp\nping {target} 1\nping 10.1.0.77 2\n");
    let third = cloud.server(&rest, &new("third", &blue, &outside))?;
    let console = cloud.wait_console(&rest, &third, "command: ping 10.1.0.77 2 failed")?;
    let own = cloud.address(&rest, &stranger)?;
    let answered = console.contains(&format!("command: ping {target} 1 ok"));
    ensure!(answered == (own == target), "across networks: {console}");
    let page = cloud.console(&rest, &first)?;
    ensure!(page.contains("WISP-GUEST"), "{page}");
    for server in [first, second, stranger, third] {
        rest.delete(&format!("/compute/v2.1/servers/{server}"))?;
        cloud.wait_gone(&rest, &server)?;
    }
    ensure!(cloud.down()?.status.success(), "wisp down");
    Remains::look()?.nothing_new_since(&before)
}

fn disks_are_written_and_read() -> Result<()> {
    isolate()?;
    let cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let network = cloud.network(&rest, "net", "10.2.0.0/24")?;
    let asks = "#wisp\ndisk-write 0 4000 kept across a stop\ndisk-read 0 4000\n";
    let new = NewServer { name: "disk", image: "", flavor: "m1.tiny", network: &network, user_data: asks };
    let server = cloud.server(&rest, &new)?;
    cloud.wait_console(&rest, &server, "command: disk-read 0 4000 ok")?;
    let console = cloud.console(&rest, &server)?;
    ensure!(console.contains("kept across a stop"), "{console}");
    Ok(())
}
