//! Fernet tokens as Keystone's own libraries make and read them: Python's `cryptography` and `msgpack` with the keys of
//! one repository, both ways.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use control::caller::{Caller, Scope};
use control::service::auth::{Credential, DomainRef, NamedRef, ScopeWanted};
use control::store::RedbStore;
use control::{Control, Settings};
use serde_json::Value;

use crate::harness::openstack_python;

const PASSWORD: &str = "correct horse";

/// Makes two keys, as Keystone's setup does.
const KEYS: &str = "
import pathlib, sys
from cryptography.fernet import Fernet
for number in '01':
    pathlib.Path(sys.argv[1], number).write_bytes(Fernet.generate_key())
";
/// Opens a token and says what is in it.
const READ: &str = "
import json, msgpack, pathlib, sys
from cryptography.fernet import Fernet, MultiFernet
keys = sorted(pathlib.Path(sys.argv[1]).iterdir(), key=lambda path: -int(path.name))
fernet = MultiFernet([Fernet(path.read_bytes()) for path in keys])
token = sys.argv[2]
plain = fernet.decrypt((token + '=' * (-len(token) % 4)).encode())
shown = lambda value: value.hex() if isinstance(value, bytes) else [shown(one) for one in value] if isinstance(value, list) else value
print(json.dumps(shown(msgpack.unpackb(plain))))
";
/// Makes a token with these fields; `0x` begins bytes.
const WRITE: &str = "
import json, msgpack, pathlib, sys
from cryptography.fernet import Fernet
key = pathlib.Path(sys.argv[1], '1').read_bytes()
made = lambda value: bytes.fromhex(value[2:]) if isinstance(value, str) and value.startswith('0x') else [made(one) for one in value] if isinstance(value, list) else value
print(Fernet(key).encrypt(msgpack.packb(made(json.loads(sys.argv[2])))).decode().rstrip('='))
";

fn python(script: &str, keys: &Path, argument: &str) -> Result<String> {
    let mut command = Command::new("timeout");
    command.arg("60").arg(openstack_python()?).args(["-c", script]).arg(keys).arg(argument);
    let output = command.stdin(Stdio::null()).output().context("run Python")?;
    ensure!(output.status.success(), "Python: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

pub(super) fn tokens_are_read_and_made_by_keystones_own_libraries() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let directory = tempfile::tempdir()?;
    let keys = directory.path().join("fernet-keys");
    std::fs::create_dir(&keys)?;
    python(KEYS, &keys, "")?;
    runtime.block_on(async {
        let store = RedbStore::open(&directory.path().join("store.redb"))?;
        let settings = Settings::new("http://cloud.test", directory.path());
        let control = Control::open(Arc::new(store), settings).await?;
        control.bootstrap(PASSWORD.to_owned().into()).await?;
        let admin = NamedRef::Name("admin".into(), DomainRef::Id("default".into()));
        for wanted in [ScopeWanted::Unscoped, ScopeWanted::System, ScopeWanted::Project(admin.clone())] {
            let credential =
                Credential::Password { user: admin.clone(), password: PASSWORD.to_owned().into() };
            let (token, facts) = control.token_issue(vec![credential], wanted.clone()).await?;
            // Ours, read there.
            let read: Value = serde_json::from_str(&python(READ, &keys, &token)?)?;
            let user = facts.user.row.id.as_str();
            let caller = control.token_caller(&token, String::new()).await?;
            let (version, scope) = match &caller.scope {
                Scope::System => (8, Some(serde_json::json!("all"))),
                Scope::Project(id) => (2, Some(serde_json::json!([true, id]))),
                _ => (0, None),
            };
            let fields = read.as_array().context("no array")?;
            ensure!(fields[0] == version && fields[1] == serde_json::json!([true, user]), "{read}");
            ensure!(fields[2] == 2 && scope.as_ref().is_none_or(|scope| fields[3] == *scope), "{read}");
            let expiry = fields[fields.len() - 2].as_f64().context("no float")?;
            ensure!(expiry == facts.expires_at.as_second() as f64, "{read}");
            // Theirs, read here.
            let made = made(user, version, scope, expiry);
            let token = python(WRITE, &keys, &made.to_string())?;
            let theirs: Caller = control.token_caller(&token, String::new()).await?;
            ensure!(theirs == caller, "{theirs:?} is not {caller:?}");
        }
        Ok(())
    })
}

/// The fields of a token as Keystone's formatter packs them.
fn made(user: &str, version: u8, scope: Option<Value>, expiry: f64) -> Value {
    let mut fields = vec![serde_json::json!(version), serde_json::json!([true, format!("0x{user}")])];
    fields.push(serde_json::json!(2));
    fields.extend(scope.map(|scope| match scope {
        Value::Array(pair) => {
            serde_json::json!([true, format!("0x{}", pair[1].as_str().unwrap_or_default())])
        }
        other => other,
    }));
    fields.push(serde_json::json!(expiry));
    fields.push(serde_json::json!([format!("0x{}", "5a".repeat(16))]));
    Value::Array(fields)
}
