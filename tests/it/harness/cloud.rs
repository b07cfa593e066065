//! A cloud per test: `wisp up` on a temporary directory, driven by REST and by the real `openstack` command.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Rest, Shell, processes, wisp, within};

/// The administrator's password in tests.
const PASSWORD: &str = "correct horse battery staple";
/// How long `wisp up` may take to be ready, in a debug build on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Seconds one `openstack` command may take: an upload into an emulated host takes minutes where it is busy.
const COMMAND_SECONDS_MAX: u32 = 900;
/// The driver's name that stands for a cloud in a lab.
const LAB: &str = "lab";
/// The tap to a lab: from a range for documentation, which nothing else uses (RFC 5737).
const LAB_TAP: &str = "lab0=192.0.2.1/24";
/// The lab's own address on it.
pub(crate) const LAB_INSIDE: &str = "192.0.2.2";
/// The lab's port that leads to the first server's ssh.
pub(crate) const LAB_RELAY_PORT: &str = "2222";
/// How much of what an ended lab said is shown: with its last lines comes why.
const LAB_LINES_SHOWN: usize = 20;
/// The address that the first server on the network `public` of a new cloud gets.
const LAB_FIRST_SERVER: &str = "172.24.4.3";

/// A running cloud; ended, with all that it made, when dropped.
pub(crate) struct Cloud {
    /// Where its API is.
    pub url: String,
    state: tempfile::TempDir,
    /// A file system is mounted there.
    mounted: bool,
    driver: &'static str,
    options: Vec<String>,
    /// What `wisp up` is started of.
    program: PathBuf,
    up: Option<Child>,
    /// The `openstack` command, once it was needed.
    shell: Mutex<Option<Shell>>,
}

impl Cloud {
    /// A cloud on /dev/kvm.
    pub(crate) fn start() -> Result<Self> {
        Self::start_with("kvm")
    }

    /// The same, with the default group open; a session of its administrator, and the public network.
    pub(crate) fn start_open() -> Result<(Self, Rest, String)> {
        let cloud = Self::start()?;
        let rest = cloud.rest()?;
        cloud.open_default_group(&rest)?;
        let network = cloud.public_network(&rest)?;
        Ok((cloud, rest, network))
    }

    /// A cloud on this machine's KVM, with further options of `wisp up`.
    pub(crate) fn start_kvm_with(options: &[&str]) -> Result<Self> {
        Self::start_of("kvm", options)
    }

    /// A cloud on this machine's KVM, of another program.
    pub(crate) fn start_kvm_of(program: &Path) -> Result<Self> {
        let mut cloud = Self::new("kvm", &[])?;
        cloud.program = program.to_owned();
        cloud.up()?;
        Ok(cloud)
    }

    /// [`Self::up`] of the program under test, whichever it was before.
    pub(crate) fn up_anew(&mut self) -> Result<()> {
        self.program = wisp().to_owned();
        self.up()
    }

    /// A cloud of fake hosts.
    pub(crate) fn start_fake() -> Result<Self> {
        Self::start_with("fake")
    }

    /// A cloud of fake hosts, with further options of `wisp up`.
    pub(crate) fn start_fake_with(options: &[&str]) -> Result<Self> {
        Self::start_of("fake", options)
    }

    /// A cloud in a lab of its own, on hardware KVM. Its public network is routed to this network namespace, through a
    /// tap that is gone with it.
    ///
    /// Everything is in the memory of that host, which is `memory_mib`: images, disks, guests. It has one processor: with
    /// several, each a thread of QEMU's, its emulation of SVM has a guest triple fault now and then.
    pub(crate) fn start_in_lab(memory_mib: u32) -> Result<Self> {
        Self::start_of(LAB, &["--mem", &memory_mib.to_string()])
    }

    /// A cloud of fake hosts whose state directory is a file system of its own, ext4 of so many bytes, as long as it runs.
    pub(crate) fn start_fake_on(bytes: u64) -> Result<Self> {
        let mut cloud = Self::new("fake", &[])?;
        let disk = tempfile::NamedTempFile::new().context("make a disk")?;
        disk.as_file().set_len(bytes)?;
        // Nothing is kept for root.
        for (tool, options) in [("mkfs.ext4", "-qFm0"), ("mount", "-oloop")] {
            let mut command = Command::new(tool);
            command.arg(options).arg(disk.path());
            if tool == "mount" {
                command.arg(cloud.state.path());
            }
            let status = command.status().with_context(|| format!("run {tool}"))?;
            ensure!(status.success(), "{tool}: {status}");
        }
        // The mounted loop keeps the file that has no name from here on.
        cloud.mounted = true;
        cloud.up()?;
        Ok(cloud)
    }

    fn start_with(driver: &'static str) -> Result<Self> {
        Self::start_of(driver, &[])
    }

    fn start_of(driver: &'static str, options: &[&str]) -> Result<Self> {
        let mut cloud = Self::new(driver, options)?;
        cloud.up()?;
        Ok(cloud)
    }

    fn new(driver: &'static str, options: &[&str]) -> Result<Self> {
        let state =
            tempfile::Builder::new().prefix("wisp-it-").tempdir().context("make a state directory")?;
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Ok(Self {
            url: String::new(),
            state,
            mounted: false,
            driver,
            options,
            program: wisp().to_owned(),
            up: None,
            shell: Mutex::default(),
        })
    }

    /// Its state directory.
    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    /// Starts `wisp up` on the same directory, for the first time or again, and waits until it is ready.
    pub(crate) fn up(&mut self) -> Result<()> {
        let mut command = if self.driver == LAB { self.in_lab()? } else { self.here() };
        if self.driver == LAB {
            let log = std::fs::File::create(self.lab_log()).context("make the lab's log")?;
            command.stderr(log);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start `wisp up`")?;
        let stdout = child.stdout.take().context("read from `wisp up`")?;
        self.up = Some(child);
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(READY_TIMEOUT).map_err(|_| anyhow!("`wisp up` is not ready"))?;
        let wanted = "/clouds.yaml\n";
        ensure!(line.starts_with("ready http") && line.ends_with(wanted), "`wisp up` said {line:?}");
        self.url = line.split_whitespace().nth(1).context("no URL")?.to_owned();
        if self.driver == LAB {
            self.url = format!("http://{LAB_INSIDE}:5000");
        }
        Ok(())
    }

    fn here(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["up", "--listen", "127.0.0.1:0", "--driver", self.driver, "--state"]).arg(self.state());
        command.args(&self.options).env("WISP_ADMIN_PASSWORD", PASSWORD);
        // Of servers of S3 that take any.
        command.env("WISP_S3_ACCESS_KEY", "key").env("WISP_S3_SECRET_KEY", "secret");
        command
    }

    /// The same in a lab, and the credentials outside.
    fn in_lab(&self) -> Result<Command> {
        let url = format!("http://{LAB_INSIDE}:5000");
        let auth = json!({
            "auth_url": format!("{url}/identity"), "username": "admin", "password": PASSWORD,
            "project_name": "admin", "user_domain_name": "Default", "project_domain_name": "Default",
        });
        // JSON is YAML.
        let clouds = json!({"clouds": {"wisp": {"auth": auth, "region_name": "RegionOne", "identity_api_version": 3}}});
        std::fs::write(self.clouds_yaml(), clouds.to_string()).context("write clouds.yaml")?;
        let mut command = super::wisp_before_others();
        command.args(["lab", "--quiet", "--module", "network", "--timeout", "2700"]);
        command.args(["--tap", LAB_TAP, "--env", &format!("WISP_ADMIN_PASSWORD={PASSWORD}"), "--cache"]);
        command.arg(super::lab_cache()).args(&self.options);
        // A host forwards nothing to the networks of its instances: the way to the first one is a relay.
        command.args(["--", "sh", "-c"]).arg(format!(
            "nc -ll -p {LAB_RELAY_PORT} -e nc {LAB_FIRST_SERVER} 22 2>/dev/null & \
             exec wisp up --state cloud --listen 0.0.0.0:5000 --insecure --public-url {url}"
        ));
        Ok(command)
    }

    /// The process that `wisp up` is.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.up.as_ref().and_then(|child| i32::try_from(child.id()).ok()).map(Pid::from_raw)
    }

    /// Forgets `wisp up` after it was killed.
    pub(crate) fn reap(&mut self) -> Result<()> {
        match self.up.take() {
            Some(mut child) => child.wait().map(drop).context("wait for `wisp up`"),
            None => Ok(()),
        }
    }

    /// SIGKILL to every process of this cloud except the VMMs.
    pub(crate) fn kill_all_but_guests(&mut self) -> Result<()> {
        let state = self.state().to_string_lossy().into_owned();
        let own = || -> Result<Vec<_>> {
            Ok(processes(&state)?.into_iter().filter(|(_, line)| !line.contains("vmm run")).collect())
        };
        for (pid, line) in own()? {
            kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| line.clone())?;
        }
        self.reap()?;
        within(20, || {
            let left = own()?;
            ensure!(left.is_empty(), "still there: {left:?}");
            Ok(())
        })
    }

    /// Runs `wisp down`.
    pub(crate) fn down(&mut self) -> Result<Output> {
        let output = Command::new(wisp())
            .args(["down", "--state"])
            .arg(self.state())
            .output()
            .context("run `wisp down`")?;
        self.reap()?;
        Ok(output)
    }

    /// A REST client of the administrator.
    pub(crate) fn rest(&self) -> Result<Rest> {
        Rest::log_in(&self.url, PASSWORD)
    }

    /// Runs the real `openstack` command; its standard output.
    pub(crate) fn openstack(&self, arguments: &[&str]) -> Result<String> {
        shown(arguments, self.openstack_output(arguments)?).with_context(|| self.fate())
    }

    /// Whether the cloud's process still runs, and of a lab that does not, what it said last.
    fn fate(&self) -> String {
        let Some(pid) = self.pid() else { return "`wisp up` was not started".to_owned() };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match nix::sys::wait::waitid(Id::Pid(pid), flags) {
            Ok(WaitStatus::StillAlive) => "`wisp up` runs".to_owned(),
            ended => {
                let said = std::fs::read_to_string(self.lab_log()).unwrap_or_default();
                let last = said.lines().rev().take(LAB_LINES_SHOWN).collect::<Vec<_>>();
                let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
                format!("`wisp up` has ended: {ended:?}\n{last}")
            }
        }
    }

    fn lab_log(&self) -> PathBuf {
        self.state().join("lab.log")
    }

    /// Runs the real `openstack` command; all it says.
    pub(crate) fn openstack_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *shell {
            Some(shell) => shell.run(arguments),
            none => none.insert(Shell::start(&self.clouds_yaml(), COMMAND_SECONDS_MAX)?).run(arguments),
        }
    }

    /// Waits until a server has a status.
    pub(crate) fn wait_status(&self, rest: &Rest, server: &str, wanted: &str) -> Result<Value> {
        within(60, || {
            let (code, body) = rest.get(&format!("/compute/v2.1/servers/{server}"))?;
            ensure!(code == 200, "GET server: {code} {body}");
            ensure!(
                body["server"]["status"] == wanted,
                "server is {}, not {wanted}: {}",
                body["server"]["status"],
                body["server"]["fault"]
            );
            Ok(body["server"].clone())
        })
    }

    /// Waits until a server is gone.
    pub(crate) fn wait_gone(&self, rest: &Rest, server: &str) -> Result<()> {
        within(60, || {
            let (code, body) = rest.get(&format!("/compute/v2.1/servers/{server}"))?;
            ensure!(code == 404, "the server is still there: {code} {body}");
            Ok(())
        })
    }

    /// The credentials.
    pub(crate) fn clouds_yaml(&self) -> PathBuf {
        self.state().join("clouds.yaml")
    }
}

/// A server as a test asks for it.
#[derive(Debug, Clone)]
pub(crate) struct NewServer<'a> {
    /// Its name.
    pub name: &'a str,
    /// The image's id; the public image `tiny` if empty.
    pub image: &'a str,
    /// The flavor's name.
    pub flavor: &'a str,
    /// The network's id.
    pub network: &'a str,
    /// User data, decoded.
    pub user_data: &'a str,
}

impl Cloud {
    /// The id of the network `public`.
    pub(crate) fn public_network(&self, rest: &Rest) -> Result<String> {
        first_id(&rest.shown("/network/v2.0/networks?name=public")?["networks"])
    }

    /// A network with a subnet.
    pub(crate) fn network(&self, rest: &Rest, name: &str, cidr: &str) -> Result<String> {
        let network = rest.made("/network/v2.0/networks", &json!({"network": {"name": name}}))?;
        let id = id_of(&network["network"])?;
        let subnet = json!({"subnet": {"network_id": id, "ip_version": 4, "cidr": cidr}});
        rest.made("/network/v2.0/subnets", &subnet)?;
        Ok(id)
    }

    /// An image of these bytes.
    pub(crate) fn image(&self, rest: &Rest, name: &str, bytes: &[u8]) -> Result<String> {
        let body = json!({"name": name, "disk_format": "raw", "container_format": "bare"});
        let id = id_of(&rest.made("/image/v2/images", &body)?)?;
        let status = rest.put_data(&format!("/image/v2/images/{id}/file"), bytes)?;
        ensure!(status == 204, "upload: {status}");
        Ok(id)
    }

    /// Lets ping and TCP in through the project's default group.
    pub(crate) fn open_default_group(&self, rest: &Rest) -> Result<()> {
        let groups = rest.shown("/network/v2.0/security-groups?name=default")?;
        let group = first_id(&groups["security_groups"])?;
        for protocol in ["icmp", "tcp"] {
            let rule = json!({"security_group_id": group, "direction": "ingress", "protocol": protocol});
            rest.made("/network/v2.0/security-group-rules", &json!({"security_group_rule": rule}))?;
        }
        Ok(())
    }

    /// Asks for a server; its id.
    pub(crate) fn server(&self, rest: &Rest, new: &NewServer<'_>) -> Result<String> {
        let image = match new.image {
            "" => first_id(&rest.shown("/image/v2/images?name=tiny")?["images"])?,
            id => id.to_owned(),
        };
        let flavors = rest.shown("/compute/v2.1/flavors/detail?is_public=None")?;
        let flavors = flavors["flavors"].as_array().context("no list of flavors")?;
        let flavor = flavors.iter().find(|flavor| flavor["name"] == new.flavor).context("no such flavor")?;
        let mut server = json!({
            "name": new.name, "imageRef": image, "flavorRef": flavor["id"], "networks": [{"uuid": new.network}],
        });
        if !new.user_data.is_empty() {
            server["user_data"] = json!(base64::engine::general_purpose::STANDARD.encode(new.user_data));
        }
        id_of(&rest.made("/compute/v2.1/servers", &json!({"server": server}))?["server"])
    }

    /// A server's first address.
    pub(crate) fn address(&self, rest: &Rest, server: &str) -> Result<Ipv4Addr> {
        let ports = rest.shown(&format!("/network/v2.0/ports?device_id={server}"))?;
        let address = ports["ports"][0]["fixed_ips"][0]["ip_address"].as_str().context("no address")?;
        address.parse().context("read the address")
    }

    /// A server's console.
    pub(crate) fn console(&self, rest: &Rest, server: &str) -> Result<String> {
        let path = format!("/compute/v2.1/servers/{server}/action");
        let answer = rest.made(&path, &json!({"os-getConsoleOutput": {}}))?;
        Ok(answer["output"].as_str().context("no output")?.to_owned())
    }

    /// Waits until a server's console shows a text; the console.
    pub(crate) fn wait_console(&self, rest: &Rest, server: &str, text: &str) -> Result<String> {
        within(60, || {
            let console = self.console(rest, server)?;
            ensure!(console.contains(text), "the console does not show `{text}`:\n{console}");
            Ok(console)
        })
    }
}

/// What a command showed that succeeded.
pub(crate) fn shown(arguments: &[&str], output: Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "openstack {}: {}\n{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).context("read the command's output")
}

fn id_of(value: &Value) -> Result<String> {
    value["id"].as_str().map(str::to_owned).with_context(|| format!("no id in {value}"))
}

fn first_id(list: &Value) -> Result<String> {
    id_of(&list[0])
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(mut lab) = self.up.take_if(|_| self.driver == LAB) {
            // All of it is gone with its host.
            let _ = lab.kill();
            let _ = lab.wait();
            return;
        }
        if let Some(pid) = self.pid() {
            // It may have ended already; what it left is `wisp down`'s to find.
            let _ = kill(pid, Signal::SIGTERM);
        }
        let _ = self.down();
        if self.mounted {
            let _ = nix::mount::umount2(self.state.path(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
