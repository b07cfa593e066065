//! The first start of a cloud: what all else begins with. Every step
//! can be repeated: what is there already stays as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::Control;
use crate::caller::{Caller, RoleLevel, Scope};
use crate::error::{Error, Result};
use crate::model::identity::{Assignment, AssignmentTarget, Domain, ImpliedRole, Project, Role, User};
use crate::model::image::Image;
use crate::model::network::Network;
use crate::model::{random_hex_id, random_uuid};
use crate::service::identity::catalog::first_catalog;
use crate::service::identity::role::ROLE_CHAIN;
use crate::service::identity::{DEFAULT_DOMAIN_ID, Entity};
use crate::service::network::PUBLIC_NAME;
use crate::store::{Stored, Txn};

/// The name of the administrator and of its project.
pub const ADMIN: &str = "admin";
/// The project and role of services.
pub const SERVICE: &str = "service";
/// What the tiny guest's image is called.
pub const TINY: &str = "tiny";
/// The key that says that the tiny guest's image was made once: who deletes it does not get it back.
const TINY_MARKER: &str = "bootstrapped/image/tiny";

impl Control {
    /// Makes what every cloud begins with: the default domain, roles, the projects `admin` and `service`, the
    /// administrator and the image of the tiny guest. A cloud that has them keeps them; the administrator's password
    /// is the given one in any case, as with Keystone's own bootstrap.
    ///
    /// # Errors
    /// What the store says; `Invalid` for an empty or overlong password.
    pub async fn bootstrap(&self, password: Zeroizing<String>) -> Result<()> {
        self.db.caught_up().await?;
        match self.administrator() {
            None => self.bootstrap_identity(password).await?,
            Some(user) => self.set_admin_password(&user, password).await?,
        }
        let owner = self.admin_project()?.row.id.clone();
        self.image_install(tiny_image(owner), vmm::guest::TINY, TINY_MARKER).await
    }

    fn administrator(&self) -> Option<Arc<Stored<User>>> {
        self.db.cache().find::<User>(|user| user.name == ADMIN && user.domain_id == DEFAULT_DOMAIN_ID)
    }

    fn admin_project(&self) -> Result<Arc<Stored<Project>>> {
        let of_admin = |row: &Project| row.name == ADMIN && row.domain_id == DEFAULT_DOMAIN_ID;
        self.db.cache().find::<Project>(of_admin).ok_or_else(|| Error::not_found("Project", ADMIN))
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
        let project = self.admin_project()?;
        Ok(Caller {
            user_id: ADMIN.to_owned(),
            scope: Scope::Project(project.row.id.clone()),
            role: Some(RoleLevel::Admin),
            request_id: format!("req-{}", random_uuid()),
            ..Caller::default()
        })
    }

    async fn bootstrap_identity(&self, password: Zeroizing<String>) -> Result<()> {
        let hash = self.passwords.hash(password).await?;
        self.db
            .transact(|cache| {
                // One transaction: a cloud is bootstrapped or it is not.
                if cache.get::<Domain>(DEFAULT_DOMAIN_ID).is_some() {
                    return Ok(Txn::new());
                }
                Ok(first_rows(&hash).and(first_catalog(self.region())))
            })
            .await
    }

    async fn set_admin_password(&self, user: &Stored<User>, password: Zeroizing<String>) -> Result<()> {
        let before = user.row.password_hash.clone();
        if before.is_some() && self.passwords.verify(password.clone(), before).await? {
            return Ok(());
        }
        let hash = self.passwords.hash(password).await?;
        self.db
            .transact(|cache| {
                let Some(stored) = cache.get::<User>(&user.row.id) else { return Ok(Txn::new()) };
                let row = User {
                    password_hash: Some(hash.clone()),
                    password_at: Some(Timestamp::now()),
                    tokens_from: Some(Timestamp::now()),
                    ..stored.row.clone()
                };
                Ok(Txn::new().update(&stored, &row))
            })
            .await
    }
}

fn tiny_image(owner: String) -> Image {
    Image {
        name: Some(TINY.to_owned()),
        visibility: "public".to_owned(),
        disk_format: Some("raw".to_owned()),
        container_format: Some("bare".to_owned()),
        properties: BTreeMap::from([("description".to_owned(), "Wisp's tiny guest".to_owned())]),
        ..Image::new(random_uuid(), owner)
    }
}

/// A row with what makes it unique.
fn create<T: Entity>(txn: Txn, row: &T) -> Txn {
    row.unique().into_iter().fold(txn.create(row), Txn::unique)
}

fn first_rows(password_hash: &str) -> Txn {
    let domain = Domain {
        id: DEFAULT_DOMAIN_ID.to_owned(),
        name: "Default".to_owned(),
        description: "The default domain".to_owned(),
        enabled: true,
        ..Domain::default()
    };
    let mut txn = create(Txn::new(), &domain);
    let mut chain: Vec<Role> = Vec::new();
    for name in ROLE_CHAIN.into_iter().chain([SERVICE]) {
        let role = Role { id: random_hex_id(), name: name.to_owned(), ..Role::default() };
        txn = create(txn, &role);
        chain.push(role);
    }
    for pair in chain[..ROLE_CHAIN.len()].windows(2) {
        txn = txn.create(&ImpliedRole::new(&pair[0].id, &pair[1].id));
    }
    let project = |name: &str, description: &str| Project {
        id: random_hex_id(),
        domain_id: domain.id.clone(),
        name: name.to_owned(),
        description: description.to_owned(),
        enabled: true,
        ..Project::default()
    };
    let admin_project = project(ADMIN, "The administrator's project");
    for project in [&admin_project, &project(SERVICE, "The services' project")] {
        txn = create(txn, project);
    }
    let user = User {
        id: random_hex_id(),
        domain_id: domain.id.clone(),
        name: ADMIN.to_owned(),
        enabled: true,
        default_project_id: Some(admin_project.id.clone()),
        password_hash: Some(password_hash.to_owned()),
        password_at: Some(Timestamp::now()),
        ..User::default()
    };
    txn = create(txn, &user);
    for target in [AssignmentTarget::Project(admin_project.id), AssignmentTarget::System] {
        txn = txn.create(&Assignment::new(&user.id, &chain[0].id, target));
    }
    txn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::ImageStatus;
    use crate::test::open;

    #[tokio::test]
    async fn second_start_keeps_everything_but_takes_the_given_password() {
        let directory = tempfile::tempdir().unwrap();
        let control = open(directory.path()).await;
        control.bootstrap("one".to_owned().into()).await.unwrap();
        let image = control.db.cache().find::<Image>(|image| image.name.as_deref() == Some(TINY)).unwrap();
        assert_eq!(image.row.status, ImageStatus::Active);
        assert_eq!(image.row.size_bytes, Some(vmm::guest::TINY.len() as u64));
        control.bootstrap("two".to_owned().into()).await.unwrap();
        assert_eq!(control.db.list::<Image>().len(), 1);
        assert_eq!(control.db.list::<User>().len(), 1);
        assert_eq!(control.db.list::<Role>().len(), 5);
        let hash = control.administrator().unwrap().row.password_hash.clone();
        assert!(control.passwords.verify("two".to_owned().into(), hash).await.unwrap());
    }
}
