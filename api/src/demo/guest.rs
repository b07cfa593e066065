//! The guests that the demo can show: what each is made of, and how one sees from outside that it is well.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::rest::{self, Rest};
use super::screen::Screen;
use super::{Made, cloud, console, patiently, text};

/// The compute API of which the service makes a key pair itself; from 2.92 on clients bring their own.
const KEY_MAKING_VERSION: &str = "compute 2.1";
/// How long one attempt to log in may take before the next, in seconds: keys are slow on an emulated host.
const LOG_IN_TIMEOUT_S: u32 = 120;
/// What the demo's guest is called.
const NAME: &str = "demo";

/// What runs in the demo's server.
#[derive(Debug, Clone)]
pub enum Guest {
    /// The tiny guest that comes with the program.
    Tiny,
    /// A slim Linux with an ssh server, which takes its name, keys and user data from the metadata service.
    Linux {
        /// Its disk: a raw file, or a block device.
        image: PathBuf,
    },
}

impl Guest {
    /// How long a state may take to be reached before the demo gives up: many times what it takes, also where a
    /// Linux runs on an emulated host.
    pub(super) fn patience(&self) -> Duration {
        match self {
            Self::Tiny => Duration::from_secs(30),
            Self::Linux { .. } => Duration::from_secs(600),
        }
    }

    /// The image and its length in bytes.
    pub(super) fn image(&self) -> Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Self::Tiny => Ok((Box::new(vmm::guest::TINY), vmm::guest::TINY.len() as u64)),
            Self::Linux { image } => {
                let open = || {
                    let mut file = File::open(image)?;
                    // A block device says its size in no other way.
                    let length = file.seek(SeekFrom::End(0))?;
                    file.rewind()?;
                    Ok::<_, std::io::Error>((file, length))
                };
                let (file, length) = open().with_context(|| format!("open {}", image.display()))?;
                Ok((Box::new(file), length))
            }
        }
    }

    /// Memory in MiB and disk in GiB; 0 is the image's size, which a small host has room for.
    pub(super) fn size(&self) -> (u32, u32) {
        match self {
            Self::Tiny => (64, 1),
            Self::Linux { .. } => (256, 0),
        }
    }

    /// The TCP port on which it is asked how it is.
    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Tiny => 80,
            Self::Linux { .. } => 22,
        }
    }

    /// What it finds as its user data.
    pub(super) fn user_data(&self) -> &'static str {
        match self {
            Self::Tiny => "hello from the wisp demo\n",
            Self::Linux { .. } => "#!/bin/sh\necho hello from the wisp demo >/root/hello\n",
        }
    }

    /// Makes a key pair; where one can log in, its private half is kept in `file`. Returns its name.
    pub(super) fn key(&self, screen: &Screen, rest: &Rest, file: &Path) -> Result<String> {
        screen.step("key pair", |_| {
            let answer = match self {
                Self::Tiny => {
                    let public = cloud::ssh_public_key()?;
                    let key = json!({"name": NAME, "type": "ssh", "public_key": public});
                    rest.post("/compute/v2.1/os-keypairs", &json!({"keypair": key}))?
                }
                Self::Linux { .. } => {
                    let body = json!({"keypair": {"name": NAME}});
                    rest.post_as(KEY_MAKING_VERSION, "/compute/v2.1/os-keypairs", &body)?
                }
            };
            let key = &answer["keypair"];
            if let Some(private) = key["private_key"].as_str() {
                let mut options = File::options();
                let written = options.write(true).create_new(true).mode(0o600).open(file);
                written.and_then(|mut file| file.write_all(private.as_bytes())).context("keep the key")?;
            }
            Ok((NAME.to_owned(), text(&key["fingerprint"]).to_owned()))
        })
    }
}

/// Sees that the guest knows who it is, and has what it was given.
pub(super) fn look_inside(screen: &Screen, rest: &Rest, made: &Made) -> Result<()> {
    match made.guest {
        Guest::Tiny => {
            fetch_page(screen, made)?;
            show_console(screen, rest, made, &["WISP-GUEST", made.guest.user_data().trim(), "ssh-ed25519"])
        }
        Guest::Linux { .. } => {
            log_in(screen, made)?;
            show_console(screen, rest, made, &["wisp: "])
        }
    }
}

fn fetch_page(screen: &Screen, made: &Made) -> Result<()> {
    let address = made.address()?;
    screen.step("fetch a page from it", |_| {
        let page = patiently(made.guest.patience(), || {
            let page = rest::page(&format!("http://{address}/"))?;
            // The guest serves its page before it has been told who it is.
            ensure!(page.contains(&made.server), "the page does not name the server {}: {page}", made.server);
            Ok(page)
        })?;
        Ok(((), format!("{} bytes, it knows its id", page.len())))
    })
}

/// Logs in with the key that the guest got from the metadata service.
fn log_in(screen: &Screen, made: &Made) -> Result<()> {
    screen.step("log in over ssh", |_| {
        let said = patiently(made.guest.patience(), || {
            let said =
                ssh(made, "hostname; cat /root/hello; uname -r; . /etc/os-release; echo \"$PRETTY_NAME\"")?;
            // The key is there before the user data has run.
            ensure!(said.lines().count() >= 4, "the guest is not ready yet: {said}");
            Ok(said)
        })?;
        let lines: Vec<&str> = said.lines().collect();
        ensure!(lines[0] == NAME, "the guest is called {}, not {NAME}", lines[0]);
        ensure!(lines[1].contains("wisp demo"), "the user data did not run: {said}");
        Ok(((), format!("{}, Linux {}; its user data has run", lines[3], lines[2])))
    })
}

/// Runs a command in the guest; what it printed.
fn ssh(made: &Made, command: &str) -> Result<String> {
    let output = Command::new("ssh")
        .args(["-q", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", &format!("ConnectTimeout={LOG_IN_TIMEOUT_S}")])
        // The default is chosen for secrets that shall last; it takes many seconds on an emulated host.
        .args(["-o", "KexAlgorithms=curve25519-sha256"])
        .arg("-i")
        .arg(&made.key_file)
        .arg(format!("root@{}", made.address()?))
        .arg(command)
        .stdin(Stdio::null())
        .output()
        .context("run ssh (Debian: apt-get install openssh-client)")?;
    if !output.status.success() {
        bail!("ssh: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until all of `words` stand on the console, and shows its beginning.
fn show_console(screen: &Screen, rest: &Rest, made: &Made, words: &[&str]) -> Result<()> {
    let log = screen.step("console", |_| {
        let log = patiently(made.guest.patience(), || {
            let log = console(rest, &made.server)?;
            match words.iter().find(|word| !log.contains(**word)) {
                None => Ok(log),
                Some(word) => bail!("the console does not show `{word}` yet:\n{log}"),
            }
        })?;
        Ok((log.clone(), format!("{} lines", log.lines().count())))
    })?;
    log.lines().filter(|line| !line.trim().is_empty()).take(12).for_each(|line| println!("      | {line}"));
    Ok(())
}
