//! A trunk of a Linux server's port in a whole cloud: the guest's own VLAN devices are ports of other networks, and what
//! the trunk does not carry is nowhere.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tar::{Builder, Header};

use super::cloud::{BOOT_SECONDS_MAX, console, ssh_saying};
use super::linux::driver;
use crate::harness::{Cloud, NewServer, Rest, within};

/// The VLAN that is carried from the start, and one that is carried for a while only.
const CARRIED: u16 = 101;
const LENT: u16 = 102;
/// Drivers of Debian's kernel for VLAN devices, in the order in which they need each other.
const DRIVERS: [&str; 5] = ["net/llc/llc", "net/802/stp", "net/802/mrp", "net/802/garp", "net/8021q/8021q"];
/// Seconds that a change of a trunk may take until it holds.
const CHANGE_SECONDS_MAX: u64 = 60;

/// A port on a network of its own, with somebody who is on that network too.
struct Side {
    port: String,
    mac: String,
    address: String,
    other: String,
    other_address: String,
}

/// Trunk, carried ports and the servers on their networks.
pub(super) struct Trunked<'a> {
    cloud: &'a Cloud,
    rest: Rest,
    inner: Side,
    lent: Side,
}

/// Makes a trunk of `parent`, a port that no server has yet, which carries one port; and servers on the networks of that
/// one and of another. The first goes on asking until the carried port's guest answers.
pub(super) fn make<'a>(cloud: &'a Cloud, parent: &str) -> Result<Trunked<'a>> {
    let rest = cloud.rest()?;
    let inner = side(cloud, &rest, "inner", "10.77.0")?;
    let lent = side(cloud, &rest, "lent", "10.78.0")?;
    let carried = format!("port={},segmentation-type=vlan,segmentation-id={CARRIED}", inner.port);
    let create = ["network", "trunk", "create", "--parent-port", parent, "--subport", &carried, "trunk"];
    cloud.openstack(&create)?;
    let trunked = Trunked { cloud, rest, inner, lent };
    ensure!(trunked.status()? == "DOWN", "nobody has its port");
    Ok(trunked)
}

fn side(cloud: &Cloud, rest: &Rest, name: &str, net: &str) -> Result<Side> {
    let made = rest.made("/network/v2.0/networks", &json!({"network": {"name": name}}))?;
    let network = text(&made["network"], "id")?;
    let subnet =
        json!({"network_id": network, "ip_version": 4, "cidr": format!("{net}.0/24"), "gateway_ip": null});
    rest.made("/network/v2.0/subnets", &json!({"subnet": subnet}))?;
    let port = json!({"port": {"network_id": network, "name": format!("{name}-port")}});
    let port = rest.made("/network/v2.0/ports", &port)?["port"].clone();
    let address = text(&port["fixed_ips"][0], "ip_address")?;
    let asks = format!("#wisp\nping {address} {BOOT_SECONDS_MAX}\n");
    let new = NewServer { name, image: "", flavor: "m1.nano", network: &network, user_data: &asks };
    let other = cloud.server(rest, &new)?;
    let other_address = cloud.address(rest, &other)?.to_string();
    Ok(Side { port: text(&port, "id")?, mac: text(&port, "mac_address")?, address, other, other_address })
}

fn text(value: &Value, key: &str) -> Result<String> {
    value[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {value}"))
}

/// The drivers in an archive, as the guest takes them.
fn drivers() -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    for name in DRIVERS {
        let path: PathBuf = driver(name)?;
        let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        let name = path.file_name().context("a driver has a name")?;
        archive.append_data(&mut header, name, content.as_slice())?;
    }
    Ok(archive.into_inner()?)
}

impl Trunked<'_> {
    fn status(&self) -> Result<String> {
        let shown = self.cloud.openstack(&["network", "trunk", "show", "trunk", "-f", "json"])?;
        text(&serde_json::from_str(&shown)?, "status")
    }

    fn port_status(&self, side: &Side) -> Result<String> {
        let shown = self.rest.shown(&format!("/network/v2.0/ports/{}", side.port))?;
        text(&shown["port"], "status")
    }

    /// The guest makes a device of each VLAN. What is carried has its address by DHCP and reaches its network, both ways;
    /// what is not reaches nothing, until the trunk carries it, and no more when it does not.
    pub(super) fn carries_what_it_is_told(&self, key: &Path) -> Result<()> {
        let Self { inner, lent, .. } = self;
        ensure!(self.status()? == "ACTIVE", "its port's server runs");
        ensure!(self.port_status(inner)? == "ACTIVE" && self.port_status(lent)? == "DOWN");
        let device = |vlan: u16, side: &Side| {
            let (mac, name) = (&side.mac, format!("$device.{vlan}"));
            format!(
                "ip link add link $device name {name} address {mac} type vlan id {vlan} && ip link set {name} up"
            )
        };
        let dhcp = |vlan: u16| format!("udhcpc -n -q -t 3 -T 2 -i $device.{vlan} -s /etc/udhcpc 2>&1");
        let find = "device=$(cd /sys/class/net && ls -d e* | head -n 1)";
        let begin = format!(
            "set -e; mkdir -p /run/drivers; tar -x -f - -C /run/drivers\n\
             for driver in llc stp mrp garp 8021q; do insmod /run/drivers/$driver.ko; done\n\
             {find}; {}; {}\n{}\nip -4 -o address show dev $device.{CARRIED}\n\
             ping -c 3 -W 5 {}; wget -q -O - http://{}/\n\
             if {}; then echo 'an address that nobody gave'; exit 9; fi\n\
             ip address add {}/24 dev $device.{LENT}; echo done",
            device(CARRIED, inner),
            device(LENT, lent),
            dhcp(CARRIED),
            inner.other_address,
            inner.other_address,
            dhcp(LENT),
            lent.address,
        );
        let said =
            ssh_saying(key, "root", &begin, &drivers()?).with_context(|| console(self.cloud, "first"))?;
        let address = format!("inet {}/24", inner.address);
        for wanted in [&address, "Hello from inner", "done\n"] {
            ensure!(said.contains(wanted), "no `{wanted}` in:\n{said}");
        }
        within(BOOT_SECONDS_MAX, || {
            let said = self.cloud.console(&self.rest, &inner.other)?;
            let answered = format!("command: ping {} {BOOT_SECONDS_MAX} ok", inner.address);
            ensure!(said.contains(&answered), "no `{answered}`:\n{said}");
            Ok(())
        })?;

        let reaches = |address: &str| -> Result<bool> {
            let command = format!("ping -c 1 -W 3 {address} >/dev/null && echo reached || echo lost");
            Ok(ssh_saying(key, "root", &command, &[])?.trim() == "reached")
        };
        let until = |side: &Side, reached: bool, status: &str| {
            within(CHANGE_SECONDS_MAX, || {
                let address = &side.other_address;
                ensure!(reaches(address)? == reached, "{address} is reached: {}", !reached);
                let found = self.port_status(side)?;
                ensure!(found == status, "the port is {found}, not {status}");
                Ok(())
            })
        };
        ensure!(!reaches(&lent.other_address)?, "a VLAN that the trunk does not carry");
        let lend = format!("port={},segmentation-type=vlan,segmentation-id={LENT}", lent.port);
        self.cloud.openstack(&["network", "trunk", "set", "--subport", &lend, "trunk"])?;
        until(lent, true, "ACTIVE").context("a subport that came")?;
        let said = ssh_saying(key, "root", &format!("{find}; {}", dhcp(LENT)), &[])?;
        ensure!(said.contains(&lent.address), "its DHCP said:\n{said}");
        self.cloud.openstack(&["network", "trunk", "unset", "--subport", &lent.port, "trunk"])?;
        until(lent, false, "DOWN").context("a subport that went")?;
        ensure!(reaches(&inner.other_address)?, "the other VLAN stays");
        self.cloud.openstack(&["network", "trunk", "unset", "--subport", &inner.port, "trunk"])?;
        until(inner, false, "DOWN").context("the last subport went")?;
        ensure!(self.status()? == "ACTIVE", "it carries nothing, and could");
        Ok(())
    }

    /// The servers on the carried ports' networks.
    pub(super) fn delete(&self) -> Result<()> {
        for server in [&self.inner.other, &self.lent.other] {
            ensure!(self.rest.delete(&format!("/compute/v2.1/servers/{server}"))? == 204);
        }
        Ok(())
    }
}
