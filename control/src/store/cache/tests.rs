//! The cache, the transaction and the database together, over the embedded engine.

use std::sync::Arc;
use std::time::Duration;

use ::redb::backends::InMemoryBackend;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

use super::{Cache, Change, Kinds};
use crate::store::conformance::put;
use crate::store::redb::Options;
use crate::store::{
    Batch, Compare, Database, Entry, LeaseId, Operation, Outcome, RedbStore, Revision, Row, Store,
    StoreError, Stored, Txn, TxnError,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Server {
    id: String,
    name: String,
}

impl Row for Server {
    const KIND: &'static str = "server";
    const SCHEMA: u32 = 1;

    fn id(&self) -> &str {
        &self.id
    }

    fn finders(&self) -> Vec<&str> {
        self.name.split(' ').collect()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Port {
    id: String,
}

impl Row for Port {
    const KIND: &'static str = "port";
    const SCHEMA: u32 = 1;

    fn id(&self) -> &str {
        &self.id
    }
}

fn server(id: &str, name: &str) -> Server {
    Server { id: id.to_owned(), name: name.to_owned() }
}

fn port(id: &str) -> Port {
    Port { id: id.to_owned() }
}

fn kinds() -> Kinds {
    Kinds::new().with::<Server>().with::<Port>()
}

fn store(history_revisions_max: u64) -> Arc<dyn Store> {
    let options = Options { history_revisions_max, ..Options::default() };
    Arc::new(RedbStore::open_backend(InMemoryBackend::new(), options).unwrap())
}

async fn database() -> Database {
    Database::start(store(1000), kinds()).await.unwrap()
}

async fn changed(changes: &mut super::Changes) -> Change {
    tokio::time::timeout(Duration::from_secs(20), changes.next())
        .await
        .expect("a change in time")
        .expect("a cache")
}

#[tokio::test]
async fn committed_rows_are_read_at_once_in_id_order() {
    let database = database().await;
    for id in ["b", "c", "a"] {
        database.commit(Txn::new().create(&server(id, "x")).create(&port(id))).await.unwrap();
        assert_eq!(database.get::<Server>(id).unwrap().row, server(id, "x"));
    }
    let ids: Vec<_> = database.list::<Server>().iter().map(|stored| stored.row.id.clone()).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    assert_eq!(database.list::<Port>().len(), 3);
    assert!(database.get::<Server>("d").is_none());
}

#[tokio::test]
async fn update_and_delete_conflict_with_what_they_have_not_seen() {
    let database = database().await;
    let created = database.commit(Txn::new().create(&server("a", "1"))).await.unwrap();
    let old = database.get::<Server>("a").unwrap();
    assert_eq!((old.create_revision, old.mod_revision), (created, created));
    database.commit(Txn::new().update(&old, &server("a", "2"))).await.unwrap();

    for stale in [
        Txn::new().update(&old, &server("a", "3")),
        Txn::new().delete(&old),
        Txn::new().require(&old).create(&port("p")),
        Txn::new().create(&server("a", "3")),
        Txn::new().require_absent::<Server>("a"),
        Txn::new().put_if_present(&server("b", "3")),
        Txn::new().require_present::<Server>("b").create(&port("p")),
    ] {
        assert!(matches!(database.commit(stale).await, Err(TxnError::Conflict)));
    }
    assert_eq!(database.get::<Server>("a").unwrap().row.name, "2");
    assert!(database.list::<Port>().is_empty());

    let new = database.get::<Server>("a").unwrap();
    database.commit(Txn::new().put_if_present(&server("a", "4"))).await.unwrap();
    assert!(matches!(database.commit(Txn::new().delete(&new)).await, Err(TxnError::Conflict)));
    let newest = database.get::<Server>("a").unwrap();
    database.commit(Txn::new().require_present::<Server>("a").delete(&newest)).await.unwrap();
    assert!(database.get::<Server>("a").is_none());
}

#[tokio::test]
async fn conflict_leaves_the_cache_showing_what_it_conflicted_with() {
    let store = store(1000);
    let one = Database::start(store.clone(), kinds()).await.unwrap();
    let other = Database::start(store, kinds()).await.unwrap();
    one.commit(Txn::new().create(&server("a", "one"))).await.unwrap();
    assert!(matches!(other.commit(Txn::new().create(&server("a", "other"))).await, Err(TxnError::Conflict)));
    assert_eq!(other.get::<Server>("a").unwrap().row.name, "one");
}

#[tokio::test]
async fn caught_up_cache_shows_what_others_committed() {
    let store = store(1000);
    let one = Database::start(store.clone(), kinds()).await.unwrap();
    let other = Database::start(store, kinds()).await.unwrap();
    for n in 0..100 {
        let id = n.to_string();
        one.commit(Txn::new().create(&server(&id, ""))).await.unwrap();
        other.catch_up().await.unwrap();
        assert!(other.get::<Server>(&id).is_some());
    }
}

#[tokio::test]
async fn unique_key_is_taken_once_and_free_after_release() {
    let database = database().await;
    let named = |id: &str| Txn::new().create(&server(id, "web")).unique("server_name/web");
    database.commit(named("a")).await.unwrap();
    assert!(matches!(database.commit(named("b")).await, Err(TxnError::Conflict)));
    assert!(database.get::<Server>("b").is_none());
    assert!(matches!(
        database.commit(Txn::new().require_free("server_name/web")).await,
        Err(TxnError::Conflict)
    ));
    let stored = database.get::<Server>("a").unwrap();
    let gone = Txn::new().require_taken("server_name/web").delete(&stored).release("server_name/web");
    database.commit(gone).await.unwrap();
    database.commit(named("b")).await.unwrap();
}

#[tokio::test]
async fn filters_see_the_rows_they_ask_for() {
    let database = database().await;
    let mut txn = Txn::new();
    for (id, name) in [("h1/a", "x"), ("h1/b", "y"), ("h10/a", "x"), ("h2/a", "y")] {
        txn = txn.create(&server(id, name));
    }
    database.commit(txn).await.unwrap();
    let ids =
        |rows: Vec<Arc<Stored<Server>>>| rows.iter().map(|stored| stored.row.id.clone()).collect::<Vec<_>>();
    let cache = database.cache();
    assert_eq!(ids(cache.list_under("h1/")), ["h1/a", "h1/b"]);
    assert_eq!(ids(cache.filter(|server: &Server| server.name == "y")), ["h1/b", "h2/a"]);
    assert_eq!(cache.find(|server: &Server| server.name == "y").unwrap().row.id, "h1/b");
    assert!(cache.find(|server: &Server| server.name == "z").is_none());
    let twice = cache.filter(|server: &Server| cache.get::<Server>(&server.id).is_some());
    assert_eq!(twice.len(), 4, "a filter may come back to the cache");
}

#[tokio::test]
async fn rows_are_found_by_what_they_hold_now() {
    let store = store(1000);
    let database = Database::start(store.clone(), kinds()).await.unwrap();
    let mut txn = Txn::new();
    for (id, name) in [("a", "x y"), ("b", "y"), ("c", "z")] {
        txn = txn.create(&server(id, name));
    }
    database.commit(txn).await.unwrap();
    let found = |database: &Database, name: &str| -> Vec<String> {
        let rows = database.cache().found_by::<Server>(name);
        rows.iter().map(|stored| stored.row.id.clone()).collect()
    };
    assert_eq!(
        (found(&database, "x"), found(&database, "y")),
        (vec!["a".into()], vec!["a".into(), "b".into()])
    );
    let (a, b) = (database.get::<Server>("a").unwrap(), database.get::<Server>("b").unwrap());
    database.commit(Txn::new().update(&a, &server("a", "z")).delete(&b)).await.unwrap();
    for database in [&database, &Database::start(store, kinds()).await.unwrap()] {
        assert_eq!((found(database, "x"), found(database, "y")), (vec![], vec![]));
        assert_eq!(found(database, "z"), ["a", "c"]);
    }
}

#[tokio::test]
async fn subscribers_hear_of_rows_but_not_of_other_keys() {
    let database = database().await;
    let mut changes = database.cache().subscribe();
    database.store().txn(vec![], vec![put("server_name/web", ""), put("other", "")], vec![]).await.unwrap();
    let revision = database.commit(Txn::new().create(&server("a", "")).create(&port("p"))).await.unwrap();
    let rows = Arc::from([("server", "a".to_owned()), ("port", "p".to_owned())]);
    assert_eq!(changed(&mut changes).await, Change::Rows { revision, rows });
    let stored = database.get::<Server>("a").unwrap();
    let revision = database.commit(Txn::new().delete(&stored)).await.unwrap();
    let rows = Arc::from([("server", "a".to_owned())]);
    assert_eq!(changed(&mut changes).await, Change::Rows { revision, rows });
}

#[tokio::test]
async fn subscriber_that_lags_is_told_to_resync() {
    let database = database().await;
    let mut changes = database.cache().subscribe();
    for _ in 0..super::CHANGES_MAX + 1 {
        database.commit(Txn::new().put(&port("p"))).await.unwrap();
    }
    assert_eq!(changed(&mut changes).await, Change::Resync);
    assert!(matches!(changed(&mut changes).await, Change::Rows { .. }));
}

#[tokio::test]
async fn row_that_cannot_be_read_is_left_out_and_holds_nothing_up() {
    let store = store(1000);
    let bad = vec![put("server/bad", "no JSON"), put("server/new", r#"{"schema":9,"row":{}}"#)];
    store.txn(vec![], bad, vec![]).await.unwrap();
    let database = Database::start(store, kinds()).await.unwrap();
    database.commit(Txn::new().create(&server("a", ""))).await.unwrap();
    assert_eq!(database.list::<Server>().len(), 1);
    database.store().txn(vec![], vec![put("server/a", "{}")], vec![]).await.unwrap();
    database.catch_up().await.unwrap();
    assert!(database.list::<Server>().is_empty(), "no stale row either");
}

/// A store whose watches can be cut off, as they are when their history is compacted.
struct Cut {
    inner: RedbStore,
    cut: Arc<Notify>,
}

#[async_trait]
impl Store for Cut {
    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StoreError> {
        self.inner.range(prefix).await
    }

    async fn txn(
        &self,
        compare: Vec<Compare>,
        then: Vec<Operation>,
        or_else: Vec<Operation>,
    ) -> Result<Outcome, StoreError> {
        self.inner.txn(compare, then, or_else).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<mpsc::Receiver<Batch>, StoreError> {
        let mut events = self.inner.watch(prefix, from).await?;
        let (sender, receiver) = mpsc::channel(1);
        let cut = self.cut.clone();
        tokio::spawn(async move {
            let mut cut = std::pin::pin!(cut.notified());
            loop {
                tokio::select! {
                    biased;
                    () = &mut cut => return,
                    event = events.recv() => match event {
                        Some(event) => sender.send(event).await.unwrap(),
                        None => return,
                    },
                }
            }
        });
        Ok(receiver)
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.lease_grant(ttl).await
    }

    async fn lease_renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.lease_renew(lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.lease_revoke(lease).await
    }
}

#[tokio::test]
async fn cache_whose_watch_is_cut_off_lists_again_and_says_so() {
    let inner = RedbStore::open_backend(InMemoryBackend::new(), Options::default()).unwrap();
    let cut = Arc::new(Notify::new());
    let database = Database::start(Arc::new(Cut { inner, cut: cut.clone() }), kinds()).await.unwrap();
    database.commit(Txn::new().create(&server("gone", "")).create(&server("kept", ""))).await.unwrap();
    let gone = database.get::<Server>("gone").unwrap();
    let mut changes = database.cache().subscribe();
    cut.notify_waiters();
    database.commit(Txn::new().delete(&gone).create(&server("new", ""))).await.unwrap();
    assert_eq!(changed(&mut changes).await, Change::Resync);
    let ids: Vec<_> = database.list::<Server>().iter().map(|stored| stored.row.id.clone()).collect();
    assert_eq!(ids, ["kept", "new"]);
    database.commit(Txn::new().create(&server("newer", ""))).await.unwrap();
    assert!(matches!(changed(&mut changes).await, Change::Rows { .. }));
}

#[tokio::test]
async fn cache_stops_with_its_store() {
    let store = store(1000);
    let cache = Cache::start(&store, kinds()).await.unwrap();
    let mut changes = cache.subscribe();
    let revision = store.revision().await.unwrap();
    drop(store);
    let waited = tokio::time::timeout(Duration::from_secs(20), cache.wait_for(revision + 1)).await.unwrap();
    assert!(matches!(waited, Err(StoreError::Closed)));
    assert!(changes.next().await.is_none());
    assert!(cache.subscribe().next().await.is_none());
}

#[tokio::test]
async fn transaction_over_the_limit_is_refused_whole() {
    let database = database().await;
    let mut txn = Txn::new();
    for n in 0..=crate::store::TXN_OPERATIONS_MAX {
        txn = txn.put(&port(&n.to_string()));
    }
    assert!(matches!(database.commit(txn).await, Err(TxnError::Store(StoreError::Limit(_)))));
    assert!(database.list::<Port>().is_empty());
}
