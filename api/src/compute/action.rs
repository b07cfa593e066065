//! What is asked of a server by `POST /servers/{id}/action` (Compute API: servers, run an action).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use control::caller::Caller;
use control::model::compute::VmState;
use control::service::server::Action;
use control::service::server::image::{BackupSeries, NewServerImage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::until;
use crate::context::{AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{Accepted, Answered, Answers, Status, TAKEN, Taken};

/// Actions that the protocol has and Wisp does not.
const ABSENT: [&str; 21] = [
    "changePassword",
    "confirmResize",
    "evacuate",
    "forceDelete",
    "injectNetworkInfo",
    "migrate",
    "os-getRDPConsole",
    "os-getSPICEConsole",
    "os-getSerialConsole",
    "os-getVNCConsole",
    "os-migrateLive",
    "rebuild",
    "rescue",
    "resetNetwork",
    "resize",
    "restore",
    "resume",
    "revertResize",
    "shelve",
    "suspend",
    "trigger_crash_dump",
];
/// The same, continued: the other halves of pairs.
const ABSENT_TOO: [&str; 3] = ["shelveOffload", "unrescue", "unshelve"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reboot {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateImage {
    name: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBackup {
    name: String,
    backup_type: String,
    /// A number, or one as text.
    rotation: Value,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    locked_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResetState {
    state: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddFixedIp {
    #[serde(rename = "networkId")]
    network_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveFixedIp {
    address: IpAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddFloatingIp {
    address: Ipv4Addr,
    fixed_address: Option<Ipv4Addr>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveFloatingIp {
    address: Ipv4Addr,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Console {
    /// Lines from the end; any form that a client may send, −1 for all.
    #[serde(default)]
    length: Value,
}

/// What an action answers.
pub(super) enum Acted {
    Taken,
    /// An image is made, which is at this URL.
    ImageAt(String),
    Image(ImageMade),
    Console(ConsoleOutput),
}

/// Which image is made of a server.
#[derive(Serialize, JsonSchema)]
pub(super) struct ImageMade {
    image_id: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ConsoleOutput {
    output: String,
}

impl IntoResponse for Acted {
    fn into_response(self) -> Response {
        match self {
            Self::Taken => TAKEN.into_response(),
            Self::ImageAt(url) => ([(header::LOCATION, url)], TAKEN).into_response(),
            Self::Image(made) => Status::<202, _>(Json(made)).into_response(),
            Self::Console(output) => Json(output).into_response(),
        }
    }
}

impl Answered for Acted {
    fn describe(answers: &mut Answers) {
        Taken::describe(answers);
        answers.or::<Accepted<ImageMade>>();
        answers.or::<Json<ConsoleOutput>>();
    }
}

/// `POST /servers/{id}/action`.
pub(super) async fn act(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Acted, Fault> {
    let mut entries = body.into_iter();
    let (Some((name, argument)), None) = (entries.next(), entries.next()) else {
        return Err(Fault::malformed(
            "There is no such action, or more than one: the body has exactly one member.",
        ));
    };
    let control = &state.control;
    let simple = match name.as_str() {
        "os-start" => Some(Action::Start),
        "os-stop" => Some(Action::Stop),
        "pause" => Some(Action::Pause),
        "unpause" => Some(Action::Unpause),
        "reboot" => Some(reboot(parsed(argument.clone())?)?),
        _ => None,
    };
    if let Some(action) = simple {
        control.server_act(&caller, &id, action).await?;
        return Ok(Acted::Taken);
    }
    match name.as_str() {
        "lock" => {
            // Before 2.73 whatever is said of a lock says nothing.
            let says = version.at_least(2, 73) && !argument.is_null();
            let lock: Lock = if says { parsed(argument)? } else { Lock::default() };
            control.server_lock(&caller, &id, true, lock.locked_reason.as_deref()).await?;
            Ok(Acted::Taken)
        }
        "unlock" => {
            control.server_lock(&caller, &id, false, None).await?;
            Ok(Acted::Taken)
        }
        "os-resetState" => {
            let reset: ResetState = parsed(argument)?;
            let wanted = match reset.state.as_str() {
                "active" => VmState::Active,
                "error" => VmState::Error,
                _ => {
                    return Err(Fault::malformed(
                        "Invalid input for field/attribute state: it is active or error.",
                    ));
                }
            };
            control.server_reset_state(&caller, &id, wanted).await?;
            Ok(Acted::Taken)
        }
        "addSecurityGroup" | "removeSecurityGroup" => {
            let group: Group = parsed(argument)?;
            let add = name == "addSecurityGroup";
            control.server_change_group(&caller, &id, &group.name, add).await?;
            Ok(Acted::Taken)
        }
        "addFixedIp" | "removeFixedIp" | "addFloatingIp" | "removeFloatingIp" => {
            until(version, 44)?;
            change_address(&state, &caller, &id, &name, argument).await
        }
        "createImage" => {
            let CreateImage { name, metadata } = parsed(argument)?;
            let new = NewServerImage { name, metadata, backup: None };
            let image = control.server_image_create(&caller, &id, &new).await?;
            Ok(image_made(&state, version, &image))
        }
        "createBackup" => backup(&state, &caller, version, &id, parsed(argument)?).await,
        "os-getConsoleOutput" => console(&state, &caller, &id, argument).await,
        other if ABSENT.contains(&other) || ABSENT_TOO.contains(&other) => {
            control.server(&caller, &id).await?;
            Err(Fault::not_implemented("this server action"))
        }
        other => Err(Fault::malformed(format!("There is no such action: {other}"))),
    }
}

/// What went to the network service with microversion 2.44.
async fn change_address(
    state: &AppState,
    caller: &Caller,
    id: &str,
    name: &str,
    argument: Value,
) -> Result<Acted, Fault> {
    let control = &state.control;
    match name {
        "addFixedIp" => {
            let AddFixedIp { network_id } = parsed(argument)?;
            control.server_fixed_ip_add(caller, id, &network_id).await?;
        }
        "removeFixedIp" => {
            let RemoveFixedIp { address } = parsed(argument)?;
            control.server_fixed_ip_remove(caller, id, address).await?;
        }
        "addFloatingIp" => {
            let AddFloatingIp { address, fixed_address } = parsed(argument)?;
            control.server_floating_ip_add(caller, id, address, fixed_address).await?;
        }
        _ => {
            let RemoveFloatingIp { address } = parsed(argument)?;
            control.server_floating_ip_remove(caller, id, address).await?;
        }
    }
    Ok(Acted::Taken)
}

async fn backup(
    state: &AppState,
    caller: &Caller,
    version: Microversion,
    id: &str,
    backup: CreateBackup,
) -> Result<Acted, Fault> {
    let CreateBackup { name, backup_type: kind, rotation, metadata } = backup;
    let rotation = match &rotation {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let rotation = rotation.and_then(|rotation| u32::try_from(rotation).ok()).ok_or_else(|| {
        Fault::malformed("Invalid input for field/attribute rotation: it is a number from 0 on.")
    })?;
    let new = NewServerImage { name, metadata, backup: Some(BackupSeries { kind, rotation }) };
    let image = state.control.server_image_create(caller, id, &new).await?;
    // Of an image that is deleted as soon as it is there, nothing is said.
    Ok(if rotation == 0 { Acted::Taken } else { image_made(state, version, &image) })
}

/// Where the new image is; from microversion 2.45 on, which it is.
fn image_made(state: &AppState, version: Microversion, image: &str) -> Acted {
    if version.at_least(2, 45) {
        return Acted::Image(ImageMade { image_id: image.to_owned() });
    }
    Acted::ImageAt(format!("{}/image/images/{image}", state.public_url()))
}

async fn console(state: &AppState, caller: &Caller, id: &str, argument: Value) -> Result<Acted, Fault> {
    let console: Console = if argument.is_null() { Console::default() } else { parsed(argument)? };
    let lines = match &console.length {
        Value::Null => None,
        Value::Number(number) if number.as_i64() == Some(-1) => None,
        Value::Number(number) => Some(number.as_u64().ok_or_else(not_a_length)?),
        Value::String(text) if text == "-1" => None,
        Value::String(text) => Some(text.parse().map_err(|_| not_a_length())?),
        _ => return Err(not_a_length()),
    };
    let lines = lines.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX));
    state.control.server_seen(caller, id, "os_compute_api:os-console-output").await?;
    let output = state.control.server_console(caller, id, lines).await?;
    Ok(Acted::Console(ConsoleOutput { output }))
}

fn not_a_length() -> Fault {
    Fault::malformed("Invalid input for field/attribute length: it is -1 or a number of lines.")
}

fn reboot(reboot: Reboot) -> Result<Action, Fault> {
    match reboot.kind.to_ascii_uppercase().as_str() {
        "SOFT" => Ok(Action::RebootSoft),
        "HARD" => Ok(Action::RebootHard),
        _ => Err(Fault::malformed("Invalid input for field/attribute type: it is SOFT or HARD.")),
    }
}

fn parsed<T: serde::de::DeserializeOwned>(argument: Value) -> Result<T, Fault> {
    serde_json::from_value(argument)
        .map_err(|error| Fault::malformed(format!("Invalid input for the action: {error}")))
}
