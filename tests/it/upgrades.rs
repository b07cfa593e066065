//! A guest that goes from one program to another, by handover and by snapshot, and a VMM that is asked by another program than
//! its own: the program under test and, where the environment names such (`WISP_OLDER_BIN`), older ones, whose VMMs go on after
//! an upgrade.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddrV6, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use api::demo::ping::Pinger;
use libtest_mimic::Trial;
use serde_json::json;

use crate::booted::{Ended, Files, Guest, PATIENCE, Typist, vmm};
use crate::harness::{Cloud, KVM_CLOUD, Need, NewServer, ip, isolate, trial, wisp, within};

/// What all of them need.
const NEEDS: &[Need] = &[Need::Root, Need::Tun, Need::Kvm];
/// The address that the first network device's MAC address gives.
const GUEST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x57, 0x49ff, 0xfe53, 0x5000);
/// Echo, of TCP and of vsock (RFC 862).
const ECHO: u16 = 7;

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "upgrades::guest_is_handed_to_another_program_and_back_and_serves_on",
            NEEDS,
            guest_is_handed_to_another_program,
        ),
        trial("upgrades::guest_goes_on_in_another_program_from_its_snapshot", NEEDS, guest_goes_on_elsewhere),
        trial("upgrades::vmm_of_another_program_gets_a_network_device", NEEDS, vmm_gets_a_network_device),
        trial(
            "upgrades::cloud_goes_on_with_guests_of_another_program_and_gives_them_devices",
            KVM_CLOUD,
            cloud_goes_on,
        ),
    ]
}

/// The program under test, then the older ones that `WISP_OLDER_BIN` names, with colons between them.
fn programs() -> Result<Vec<PathBuf>> {
    let named = std::env::var_os("WISP_OLDER_BIN").unwrap_or_default();
    let older: Vec<_> = std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()).collect();
    for path in &older {
        ensure!(path.is_file(), "WISP_OLDER_BIN: there is no program {}", path.display());
    }
    Ok([wisp().to_owned()].into_iter().chain(older).collect())
}

/// The program under test with each, itself included, in both directions.
fn pairs() -> Result<Vec<(PathBuf, PathBuf)>> {
    let own = || wisp().to_owned();
    let each = programs()?.into_iter().flat_map(|other| {
        let back = (other != own()).then(|| (own(), other.clone()));
        [Some((other, own())), back].into_iter().flatten()
    });
    Ok(each.collect())
}

/// Runs a command of `wisp vmm` of the program under test; what it says, or says of why it fails.
fn tried(arguments: &[&str]) -> Result<Result<String, String>> {
    let ran = Command::new(wisp()).arg("vmm").args(arguments).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(if ran.status.success() { Ok(text(&ran.stdout)) } else { Err(text(&ran.stderr)) })
}

/// A guest with a bit of everything, whichever process has it.
struct Served<'a> {
    files: &'a Files,
    tap: &'a str,
    process: Guest,
    /// One connection, for as long as the guest is the same.
    echo: BufReader<TcpStream>,
    round: u32,
    _ended: Ended,
}

impl<'a> Served<'a> {
    /// Boots one by `program`, or has it go on from a snapshot; or what that program says of why it cannot.
    fn begin(
        program: &Path,
        (files, tap): (&'a Files, &'a str),
        from: &[impl AsRef<OsStr>],
    ) -> Result<Result<Self, String>> {
        let booted = within(30, || match boot(program, (files, tap), from)? {
            // The process that had the tap before is on its way out.
            Err(why) if why.contains("busy") => bail!("{why}"),
            booted => Ok(booted),
        })?;
        let process = match booted {
            Ok(process) => process,
            Err(why) => return Ok(Err(why)),
        };
        let ended = Ended(files.path("control").into());
        let echo = within(30, || {
            let index = nix::net::if_::if_nametoindex(CString::new(tap)?.as_c_str())?;
            let address = SocketAddrV6::new(GUEST, ECHO, 0, index);
            Ok(TcpStream::connect_timeout(&address.into(), PATIENCE)?)
        })?;
        echo.set_read_timeout(Some(PATIENCE))?;
        Ok(Ok(Self { files, tap, process, echo: BufReader::new(echo), round: 0, _ended: ended }))
    }

    /// Its disk is written and read, its network and its socket device answer, its console says more, its balloon is known.
    fn serves_on(&mut self) -> Result<()> {
        self.round += 1;
        let written = format!("round {}", self.round);
        let mut typist = Typist::connect(Path::new(&self.files.path("hvc0")))?;
        for (command, answer) in [
            (format!("disk-write 0 7 {written}"), "command: disk-write 0 7 ok".to_owned()),
            ("disk-read 0 7".to_owned(), format!("command: disk-read 0 7 ok {written}")),
            ("disk-read 0 5".to_owned(), "command: disk-read 0 5 ok kept".to_owned()),
        ] {
            let said = typist.say(&command)?;
            ensure!(said == answer, "{command}: {said}");
        }
        writeln!(self.echo.get_mut(), "{written}")?;
        let mut heard = String::new();
        self.echo.read_line(&mut heard).with_context(|| format!("echo over {}", self.tap))?;
        ensure!(heard.trim_end() == written, "over {}: {heard}", self.tap);
        let mut call = UnixStream::connect(self.files.path("vsock"))?;
        call.set_read_timeout(Some(PATIENCE))?;
        write!(call, "CONNECT {ECHO}\n{written}")?;
        let (mut call, mut connected) = (BufReader::new(call), String::new());
        call.read_line(&mut connected)?;
        ensure!(connected.starts_with("OK "), "{connected}");
        let mut heard = vec![0; written.len()];
        call.read_exact(&mut heard)?;
        ensure!(heard == written.as_bytes(), "by vsock: {}", String::from_utf8_lossy(&heard));
        let length = || anyhow::Ok(std::fs::metadata(self.files.path("console"))?.len());
        let before = length()?;
        within(30, || {
            ensure!(length()? > before, "the console is silent");
            Ok(())
        })?;
        let control = self.files.path("control");
        let status = vmm(&["status", &control])?;
        ensure!(status.starts_with("running\n") && status.contains("disk kept"), "{status}");
        let balloon = vmm(&["balloon", &control])?;
        ensure!(balloon.starts_with("target 0 MiB, given 0 MiB"), "{balloon}");
        Ok(())
    }

    /// Hands it over to `program`, or what is said of why not; either way it serves on.
    fn hand_over(&mut self, program: &Path) -> Result<Result<(), String>> {
        let (control, program) = (self.files.path("control"), program.display().to_string());
        let handed = within(30, || match tried(&["upgrade", &control, "--to", &program])? {
            // It has just gone on from a snapshot.
            Err(why) if why.contains("in a moment") => bail!("{why}"),
            handed => Ok(handed),
        })?;
        if let Ok(said) = &handed {
            ensure!(said.starts_with("the guest is in another process; it stood still for "), "{said}");
        }
        self.serves_on()?;
        Ok(handed.map(drop))
    }
}

/// The process of a guest that answers, or what it says of why there is none.
fn boot(
    program: &Path,
    (files, tap): (&Files, &str),
    from: &[impl AsRef<OsStr>],
) -> Result<Result<Guest, String>> {
    let (control, hvc) = (files.path("control"), files.path("hvc0"));
    for socket in [&control, &hvc, &files.path("vsock")] {
        // None the first time.
        let _ = std::fs::remove_file(socket);
    }
    let mut boot = Command::new(program);
    boot.args(["vmm", "boot", "--upgradable", "--balloon", "0", "--tap", tap]).args(from);
    boot.args(["--disk", &format!("{},serial=kept", files.path("disk"))]);
    boot.args(["--vsock", &files.path("vsock"), "--console", &format!("socket={hvc}")]);
    boot.args(["--control", &control]).stdin(Stdio::null());
    boot.stdout(File::create(files.path("console"))?).stderr(File::create(files.path("errors"))?);
    let mut process = Guest(boot.spawn().context("boot a guest")?);
    let is_there = within(30, || {
        if process.0.try_wait()?.is_some() {
            return Ok(false);
        }
        tried(&["status", &control])?.map(|_| true).map_err(anyhow::Error::msg)
    })?;
    if is_there { Ok(Ok(process)) } else { Ok(Err(std::fs::read_to_string(files.path("errors"))?)) }
}

/// A tap at which the host has an address of the link.
fn tap(name: &str) -> Result<()> {
    ip(&format!("tuntap add mode tap vnet_hdr {name}"))?;
    ip(&format!("link set {name} up"))?;
    ip(&format!("address add fe80::1/64 dev {name} nodad"))
}

/// The files of a guest with a disk, and the words that boot it.
fn prepared() -> Result<(Files, [String; 6])> {
    let files = Files::new()?;
    let disk = File::create(files.path("disk"))?;
    disk.set_len(1 << 20)?;
    std::os::unix::fs::FileExt::write_all_at(&disk, b"kept", 5 * 512)?;
    let words = ["--kernel", &files.path("tiny.elf"), "--mem", "64", "--cmdline", "say=5000"];
    let words = words.map(str::to_owned);
    Ok((files, words))
}

/// An older program may refuse a guest that uses what it lacks; then it says what. A newer one takes what an older one has.
fn may_be_refused(by: &Path, said: &str, begin: &str) -> Result<()> {
    ensure!(by != wisp(), "{said}");
    println!("{}: {}", by.display(), said.trim_end());
    let reason = said.split_once(begin).with_context(|| said.to_owned())?.1;
    ensure!(reason.contains(' ') && !said.contains("panicked"), "{said}");
    Ok(())
}

fn guest_is_handed_to_another_program() -> Result<()> {
    isolate()?;
    tap("t0")?;
    for (from, to) in pairs()? {
        let (files, words) = prepared()?;
        let begun = Served::begin(&from, (&files, "t0"), &words)?;
        let mut guest = begun.map_err(anyhow::Error::msg)?;
        guest.serves_on()?;
        match guest.hand_over(&to)? {
            Ok(()) => {
                let ended = guest.process.ended()?;
                ensure!(ended.success(), "{ended}");
            }
            Err(said) => {
                may_be_refused(
                    &to,
                    &said,
                    "stays where it is: the VMM refused: the successor cannot take the guest over: ",
                )?;
                ensure!(guest.process.0.try_wait()?.is_none(), "it is in no process any more");
            }
        }
        // One that is back was there before, so nothing of it can be unknown; and from there on to what took it.
        guest.hand_over(&from)?.map_err(anyhow::Error::msg)?;
        guest.hand_over(wisp())?.map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

fn guest_goes_on_elsewhere() -> Result<()> {
    isolate()?;
    tap("t0")?;
    for (from, to) in pairs()? {
        let (files, words) = prepared()?;
        let (control, flat, packed) = (files.path("control"), files.path("flat"), files.path("packed"));
        let mut guest = Served::begin(&from, (&files, "t0"), &words)?.map_err(anyhow::Error::msg)?;
        guest.serves_on()?;
        vmm(&["snapshot", &control, &flat])?;
        vmm(&["snapshot", &control, &packed, "--pack"])?;
        drop(guest);
        for snapshot in [&flat, &packed] {
            let checked = Command::new(&to).args(["vmm", "snapshot-info", snapshot, "--verify"]).output()?;
            ensure!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
            match Served::begin(&to, (&files, "t0"), &["--restore", snapshot])? {
                Ok(mut guest) => {
                    guest.serves_on()?;
                    guest.hand_over(wisp())?.map_err(anyhow::Error::msg)?;
                }
                Err(said) => may_be_refused(&to, &said, "wisp: ")?,
            }
        }
    }
    Ok(())
}

/// One with several queues, of which a VMM of before knows nothing, and then one without.
fn vmm_gets_a_network_device() -> Result<()> {
    isolate()?;
    tap("t0")?;
    for program in programs()? {
        let (files, words) = prepared()?;
        let words = [&words[..], &["--transport", "pci"].map(str::to_owned)].concat();
        ip("tuntap add mode tap vnet_hdr multi_queue t1")?;
        ip("link set t1 up")?;
        let mut guest = Served::begin(&program, (&files, "t0"), &words)?.map_err(anyhow::Error::msg)?;
        let control = files.path("control");
        match tried(&["attach-nic", &control, "t1,queues=2"])? {
            Ok(_) => {}
            Err(said) => {
                may_be_refused(
                    &program,
                    &said,
                    "it does not know what it is asked for, as a VMM of an older program",
                )?;
                vmm(&["attach-nic", &control, "t1"])?;
            }
        }
        let devices = vmm(&["devices", &control])?;
        ensure!(devices.contains("02:57:49:53:50:01 present"), "{devices}");
        guest.serves_on()?;
        vmm(&["detach", &control, "02:57:49:53:50:01"])?;
        drop(guest);
        ip("link delete t1")?;
    }
    Ok(())
}

/// The server's processors wish for a pair of queues each, of which a VMM of before has one alone.
fn cloud_goes_on() -> Result<()> {
    isolate()?;
    for program in programs()? {
        let mut cloud = Cloud::start_kvm_of(&program)?;
        let rest = cloud.rest()?;
        cloud.open_default_group(&rest)?;
        let (inner, public) = (cloud.network(&rest, "inner", "10.7.0.0/24")?, cloud.public_network(&rest)?);
        let size = json!({"flavor": {"name": "two", "ram": 64, "vcpus": 2, "disk": 1}});
        let made = rest.made("/compute/v2.1/flavors", &size)?;
        let flavor = made["flavor"]["id"].as_str().context("no flavor")?;
        rest.made(
            &format!("/compute/v2.1/flavors/{flavor}/os-extra_specs"),
            &json!({"extra_specs": {"hw:vif_multiqueue_enabled": "true"}}),
        )?;
        let new = NewServer { name: "s", image: "", flavor: "two", network: &inner, user_data: "" };
        let server = cloud.server(&rest, &new)?;
        cloud.wait_status(&rest, &server, "ACTIVE")?;
        cloud.wait_console(&rest, &server, "ready")?;
        cloud.kill_all_but_guests()?;

        cloud.up_anew()?;
        let rest = cloud.rest()?;
        cloud.wait_status(&rest, &server, "ACTIVE")?;
        let attachment = json!({"interfaceAttachment": {"net_id": public}});
        let (code, body) = rest.post(&format!("/compute/v2.1/servers/{server}/os-interface"), &attachment)?;
        ensure!(code == 200, "{code} {body}");
        let address = &body["interfaceAttachment"]["fixed_ips"][0]["ip_address"];
        let address = address.as_str().context("no address")?.parse()?;
        let answered = Pinger::open(address)?.until_answer(PATIENCE)?;
        answered.with_context(|| format!("{address} does not answer"))?;
        ensure!(rest.delete(&format!("/compute/v2.1/servers/{server}"))? == 204, "it is not deleted");
        cloud.wait_gone(&rest, &server)?;
        cloud.down()?;
    }
    Ok(())
}
