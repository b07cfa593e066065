//! The first start of a cloud: the domain, roles, projects and the administrator that all else begins with. Every step
//! can be repeated: what is there already stays as it is.

use std::collections::BTreeMap;

use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::Control;
use crate::caller::{Caller, RoleLevel, Scope};
use crate::error::{Error, Result};
use crate::model::identity::{Assignment, AssignmentTarget, Domain, Project, Role, User};
use crate::model::network::Network;
use crate::model::{random_hex_id, random_uuid};
use crate::service::identity::{
    DEFAULT_DOMAIN_ID, ROLE_CHAIN, domain_name_key, project_name_key, role_name_key, user_name_key,
};
use crate::service::network::PUBLIC_NAME;
use crate::store::Txn;

/// The name of the administrator and of its project.
pub const ADMIN: &str = "admin";
/// The project and role of services.
pub const SERVICE: &str = "service";
/// How many characters a generated password has: 120 bits.
const PASSWORD_CHARACTERS: usize = 24;
/// Thirty-two characters that nobody mistakes for each other.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// A new password; for a first start to which none was given.
///
/// # Errors
/// `Unavailable` if the system has no randomness.
pub fn generate_password() -> Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; PASSWORD_CHARACTERS]);
    let filled = SystemRandom::new().fill(bytes.as_mut_slice());
    filled.map_err(|_| Error::Unavailable("the system has no random bytes".to_owned()))?;
    Ok(Zeroizing::new(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()))
}

impl Control {
    /// Whether the cloud still needs [`Control::bootstrap`].
    pub fn is_new(&self) -> bool {
        self.db
            .cache()
            .find::<User>(|user| user.name == ADMIN && user.domain_id == DEFAULT_DOMAIN_ID)
            .is_none()
    }

    /// Makes the default domain, the roles, the projects `admin` and `service`, and the administrator with this
    /// password. A cloud that has them keeps them, the password too.
    ///
    /// # Errors
    /// What the store says; `Invalid` for an empty or overlong password.
    pub async fn bootstrap(&self, password: Zeroizing<String>) -> Result<()> {
        self.db.caught_up().await?;
        if !self.is_new() {
            return Ok(());
        }
        let hash = self.passwords.hash(password).await?;
        self.db
            .transact(|cache| {
                // One transaction: a cloud is bootstrapped or it is not.
                if cache.get::<Domain>(DEFAULT_DOMAIN_ID).is_some() {
                    return Ok(Txn::new());
                }
                Ok(first_rows(&hash))
            })
            .await
    }

    /// Whether the network `public` is still to be made.
    pub fn needs_public_network(&self) -> bool {
        self.db
            .cache()
            .find::<Network>(|network| network.standard.name == PUBLIC_NAME && network.external)
            .is_none()
    }

    /// The administrator as the bootstrap acts: in the project `admin`, with every right.
    ///
    /// # Errors
    /// `NotFound` before [`Control::bootstrap`].
    pub fn bootstrap_caller(&self) -> Result<Caller> {
        let project = self
            .db
            .cache()
            .find::<Project>(|project| project.name == ADMIN && project.domain_id == DEFAULT_DOMAIN_ID)
            .ok_or_else(|| Error::not_found("Project", ADMIN))?;
        Ok(Caller {
            user_id: ADMIN.to_owned(),
            scope: Scope::Project(project.row.id.clone()),
            role: Some(RoleLevel::Admin),
            request_id: format!("req-{}", random_uuid()),
        })
    }
}

fn first_rows(password_hash: &str) -> Txn {
    let domain = Domain {
        id: DEFAULT_DOMAIN_ID.to_owned(),
        name: "Default".to_owned(),
        description: "The default domain".to_owned(),
        enabled: true,
    };
    let mut txn = Txn::new().create(&domain).unique(domain_name_key(&domain.name));
    let mut admin_role = String::new();
    for name in ROLE_CHAIN.into_iter().chain([SERVICE]) {
        let role = Role { id: random_hex_id(), name: name.to_owned(), description: String::new() };
        txn = txn.create(&role).unique(role_name_key(name));
        if name == ADMIN {
            admin_role = role.id;
        }
    }
    let project = |name: &str, description: &str| Project {
        id: random_hex_id(),
        domain_id: domain.id.clone(),
        name: name.to_owned(),
        description: description.to_owned(),
        enabled: true,
    };
    let admin_project = project(ADMIN, "The administrator's project");
    for project in [&admin_project, &project(SERVICE, "The services' project")] {
        txn = txn.create(project).unique(project_name_key(&domain.id, &project.name));
    }
    let user = User {
        id: random_hex_id(),
        domain_id: domain.id.clone(),
        name: ADMIN.to_owned(),
        enabled: true,
        default_project_id: Some(admin_project.id.clone()),
        password_hash: Some(password_hash.to_owned()),
        tokens_from: None,
        extra: BTreeMap::new(),
    };
    txn = txn.create(&user).unique(user_name_key(&domain.id, &user.name));
    for target in [AssignmentTarget::Project(admin_project.id), AssignmentTarget::System] {
        txn = txn.create(&Assignment::new(&user.id, &admin_role, target));
    }
    txn
}

/// `clouds.yaml` with the cloud `wisp`, for `~/.config/openstack/` or `OS_CLIENT_CONFIG_FILE`. It holds the password:
/// to be written readable by its owner alone.
pub fn clouds_yaml(public_url: &str, region: &str, password: &str) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "clouds:\n  wisp:\n    auth:\n      auth_url: {}\n      username: {ADMIN}\n      password: {}\n      \
         project_name: {ADMIN}\n      user_domain_name: Default\n      project_domain_name: Default\n    \
         region_name: {}\n    identity_api_version: 3\n",
        yaml(&format!("{public_url}/identity/v3")),
        yaml(password),
        yaml(region),
    ))
}

/// The same as a file for a shell's `source`.
pub fn openrc(public_url: &str, region: &str, password: &str) -> Zeroizing<String> {
    let quoted = |text: &str| Zeroizing::new(format!("'{}'", text.replace('\'', r"'\''")));
    Zeroizing::new(format!(
        "export OS_AUTH_URL={}\nexport OS_USERNAME={ADMIN}\nexport OS_PASSWORD={}\nexport OS_PROJECT_NAME={ADMIN}\n\
         export OS_USER_DOMAIN_NAME=Default\nexport OS_PROJECT_DOMAIN_NAME=Default\nexport OS_REGION_NAME={}\n\
         export OS_IDENTITY_API_VERSION=3\n",
        *quoted(&format!("{public_url}/identity/v3")),
        *quoted(password),
        *quoted(region),
    ))
}

/// A YAML scalar in double quotes, which are JSON's.
fn yaml(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_with_quotes_stays_one_word() {
        assert!(openrc("http://h", "R", "a'b").contains("OS_PASSWORD='a'\\''b'\n"));
        assert!(clouds_yaml("http://h", "R", "a\"b\n").contains(r#"password: "a\"b\n""#));
        assert_eq!(generate_password().unwrap().len(), PASSWORD_CHARACTERS);
    }
}
