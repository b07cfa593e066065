//! What tests of services share: a cloud on a store of its own, and who asks.

use std::path::Path;
use std::sync::Arc;

use crate::caller::{Caller, RoleLevel, Scope};
use crate::store::RedbStore;
use crate::{Control, Settings};

/// The cloud whose store and files are in `directory`.
pub(crate) async fn open(directory: &Path) -> Arc<Control> {
    let store = RedbStore::open(&directory.join("store.redb")).unwrap();
    Control::open(Arc::new(store), Settings::new("http://cloud.test", directory)).await.unwrap()
}

/// The user `u` with a role in a project.
pub(crate) fn caller(project: &str, role: RoleLevel) -> Caller {
    Caller {
        user_id: "u".into(),
        scope: Scope::Project(project.into()),
        role: Some(role),
        request_id: "req-1".into(),
        ..Caller::default()
    }
}
