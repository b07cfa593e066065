//! Address scopes: in one, no two subnet pools have an address in common.

use std::sync::Arc;

use super::network::{check_text, new_standard, owner_project, touch};
use super::network_resource::{made, network_resources, new_ids, only, owned};
use super::rbac;
use super::subnet_pool::version_of;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::Subnet;
use crate::model::network::pool::{AddressScope, SubnetPool};
use crate::model::network::rbac::Access;
use crate::policy::require_admin;
use crate::store::{Stored, Txn};

/// What a scope is made from.
#[derive(Debug, Clone)]
pub struct AddressScopeCreate {
    /// Name.
    pub name: String,
    /// The owner, if an administrator makes it for another project.
    pub project_id: Option<String>,
    /// 4 or 6.
    pub ip_version: u8,
    /// Everyone may use it; administrators only.
    pub shared: bool,
}

network_resources! {
    AddressScope: "Address scope", "get_address_scope", |row, cache, caller| {
        row.shared
            || caller.may_read(&row.standard.project_id)
            || rbac::is_known(cache, caller, &row.standard.id)
    };
}

impl Control {
    /// Makes a scope.
    ///
    /// # Errors
    /// `Forbidden` for a shared one, `Invalid` for an IP version that is none.
    pub async fn address_scope_create(
        &self,
        caller: &Caller,
        request: AddressScopeCreate,
    ) -> Result<Arc<Stored<AddressScope>>> {
        let project_id = owner_project(caller, request.project_id.as_deref(), "create_address_scope")?;
        if request.shared {
            require_admin(caller, "create_address_scope:shared")?;
        }
        check_text("name", &request.name)?;
        check_version(request.ip_version)?;
        let ids = new_ids(1);
        self.db
            .transact(|cache| {
                let scope = AddressScope {
                    standard: new_standard(ids[0].clone(), project_id.clone(), request.name.clone()),
                    ip_version: request.ip_version,
                    shared: request.shared,
                };
                let txn = Txn::new().create(&scope);
                rbac::imply::<AddressScope>(cache, txn, &scope.standard, Access::AccessAsShared, scope.shared)
            })
            .await?;
        only(made(self.db.cache(), &ids)?)
    }

    /// Changes a scope's name, or shares it.
    ///
    /// # Errors
    /// `Invalid` (`AddressScopeUpdateError`) for no longer sharing it.
    pub async fn address_scope_update(
        &self,
        caller: &Caller,
        id: &str,
        name: Option<&str>,
        shared: Option<bool>,
    ) -> Result<Arc<Stored<AddressScope>>> {
        if shared.is_some() {
            require_admin(caller, "update_address_scope:shared")?;
        }
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<AddressScope>(cache, caller, id, "update_address_scope")?;
                let mut scope = stored.row.clone();
                if let Some(name) = name {
                    check_text("name", name)?;
                    name.clone_into(&mut scope.standard.name);
                }
                if scope.shared && shared == Some(false) {
                    return Err(Error::invalid(
                        "AddressScopeUpdateError",
                        format!(
                            "Unable to update address scope {id} : Shared address scope can't be unshared."
                        ),
                    ));
                }
                scope.shared = shared.unwrap_or(scope.shared);
                touch(&mut scope.standard);
                let txn = Txn::new().update(&stored, &scope);
                rbac::imply::<AddressScope>(cache, txn, &scope.standard, Access::AccessAsShared, scope.shared)
            })
            .await?;
        self.network_resource(caller, id).await
    }

    /// The id of the scope that a network's subnets of one family are in, for showing it.
    pub fn address_scope_of(&self, network_id: &str, ip_version: u8) -> Option<String> {
        let cache = self.db.cache();
        let subnets = cache.filter::<Subnet>(|subnet| {
            subnet.network_id == network_id && version_of(&subnet.cidr) == ip_version
        });
        let mut pools = subnets.iter().filter_map(|subnet| subnet.row.subnetpool_id.as_ref());
        pools.find_map(|id| cache.get::<SubnetPool>(id)?.row.address_scope_id.clone())
    }

    /// Deletes a scope.
    ///
    /// # Errors
    /// `Conflict` (`AddressScopeInUse`) while pools are in it.
    pub async fn address_scope_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<AddressScope>(cache, caller, id, "delete_address_scope")?;
                if cache.find::<SubnetPool>(|pool| pool.address_scope_id.as_deref() == Some(id)).is_some() {
                    return Err(Error::conflict(
                        "AddressScopeInUse",
                        format!(
                            "Unable to complete operation on address scope {id}. There are one or more subnet pools \
                             in use on the address scope."
                        ),
                    ));
                }
                rbac::forget(cache, Txn::new().delete(&stored), id)
            })
            .await
    }
}

/// Refuses what is no version of IP.
pub(crate) fn check_version(version: u8) -> Result<()> {
    if matches!(version, 4 | 6) {
        return Ok(());
    }
    let message = format!("Invalid input for ip_version. Reason: '{version}' is not in [4, 6].");
    Err(Error::invalid("HTTPBadRequest", message))
}
