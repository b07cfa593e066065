//! What all resources of the network service share: who sees one, who may change one and on which revision of it, and
//! making several at once.
//!
//! Must never know: any one resource.

use std::sync::Arc;

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::Standard;
use crate::model::random_uuid;
use crate::policy::{Target, require_member, said};
use crate::store::transaction::Txn;
use crate::store::{Cache, Row, Stored, TXN_OPERATIONS_MAX};

/// Rows of quotas and the like that a transaction changes beside what it makes.
const ROWS_BESIDE_MAX: usize = 16;

/// A kind of rows of the network service.
pub trait NetworkResource: Row {
    /// What a person calls it: `Security group`.
    const NAME: &'static str;
    /// The rule that may say who reads it: `get_security_group`.
    const GET: &'static str;

    /// Its name, owner and the like.
    fn standard(&self) -> &Standard;

    /// The same, to be changed.
    fn standard_mut(&mut self) -> &mut Standard;

    /// Whether the caller may see it: what is its project's, unless more is shared.
    fn is_seen(&self, cache: &Cache, caller: &Caller) -> bool {
        let _ = cache;
        caller.may_read(&self.standard().project_id)
    }
}

/// Makes rows resources: each with its name, its rule and, where more than its project sees it, by what.
macro_rules! network_resources {
    ($($type:ty: $name:literal, $get:literal $(, |$row:ident, $cache:ident, $caller:ident| $seen:expr)?;)*) => {
        $(impl $crate::service::network_resource::NetworkResource for $type {
            const NAME: &'static str = $name;
            const GET: &'static str = $get;

            fn standard(&self) -> &$crate::model::network::Standard {
                &self.standard
            }

            fn standard_mut(&mut self) -> &mut $crate::model::network::Standard {
                &mut self.standard
            }

            $(fn is_seen(&self, $cache: &$crate::store::Cache, $caller: &$crate::caller::Caller) -> bool {
                let $row = self;
                $seen
            })?
        })*
    };
}
pub(crate) use network_resources;

impl Control {
    /// All rows of a kind that the caller may see.
    ///
    /// # Errors
    /// What the store says.
    pub async fn network_resources<T: NetworkResource>(
        &self,
        caller: &Caller,
    ) -> Result<Vec<Arc<Stored<T>>>> {
        self.db.caught_up().await?;
        let cache = self.db.cache();
        Ok(cache.filter::<T>(|row| sees(cache, caller, row)))
    }

    /// One row that the caller may see.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn network_resource<T: NetworkResource>(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Arc<Stored<T>>> {
        self.db.caught_up().await?;
        visible(self.db.cache(), caller, id)
    }
}

/// Whether the caller sees a row: by what is shared with it, and by what a policy file says of reading.
pub(crate) fn sees<T: NetworkResource>(cache: &Cache, caller: &Caller, row: &T) -> bool {
    let keys = [("project_id", row.standard().project_id.as_str())];
    row.is_seen(cache, caller) && said(T::GET, caller, &Target::of(&keys)).unwrap_or(true)
}

/// A row that the caller may see, or `NotFound`.
pub(crate) fn visible<T: NetworkResource>(
    cache: &Cache,
    caller: &Caller,
    id: &str,
) -> Result<Arc<Stored<T>>> {
    cache
        .get::<T>(id)
        .filter(|stored| sees(cache, caller, &stored.row))
        .ok_or_else(|| Error::not_found(T::NAME, id))
}

/// A row that the caller may change, in the revision that its request is for.
pub(crate) fn owned<T: NetworkResource>(
    cache: &Cache,
    caller: &Caller,
    id: &str,
    action: &'static str,
) -> Result<Arc<Stored<T>>> {
    let stored = visible::<T>(cache, caller, id)?;
    require_member(caller, &stored.row.standard().project_id, action)?;
    check_revision(caller, stored.row.standard())?;
    Ok(stored)
}

/// Refuses a request that is for another revision (Network API: `If-Match: revision_number=N`).
pub(crate) fn check_revision(caller: &Caller, standard: &Standard) -> Result<()> {
    match caller.if_revision {
        Some(wanted) if wanted != standard.revision => Err(Error::Precondition {
            reason: "RevisionNumberConstraintFailed",
            message: format!("Constrained to {wanted}, but current revision is {}", standard.revision),
        }),
        _ => Ok(()),
    }
}

/// So many new ids.
pub(crate) fn new_ids(count: usize) -> Vec<String> {
    std::iter::repeat_with(random_uuid).take(count).collect()
}

/// The rows just made, in the order of their ids.
pub(crate) fn made<T: NetworkResource>(cache: &Cache, ids: &[String]) -> Result<Vec<Arc<Stored<T>>>> {
    ids.iter().map(|id| cache.get::<T>(id).ok_or_else(|| Error::not_found(T::NAME, id))).collect()
}

/// The one of a list of one.
pub(crate) fn only<T>(mut rows: Vec<T>) -> Result<T> {
    rows.pop()
        .ok_or_else(|| Error::invalid("InvalidInput", "Invalid input for operation: nothing is asked for."))
}

/// The transaction, unless it is more than the store does at once.
pub(crate) fn at_once(txn: Txn) -> Result<Txn> {
    if txn.changes() + ROWS_BESIDE_MAX > TXN_OPERATIONS_MAX {
        return Err(Error::invalid(
            "InvalidInput",
            "Invalid input for operation: it is more than can be done at once; ask for it in several requests.",
        ));
    }
    Ok(txn)
}
