//! The embedded engine's tests: the contract's, and what is its own.

use std::sync::Condvar;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::redb::StorageBackend;
use ::redb::backends::InMemoryBackend;

use super::{Options, RedbStore};
use crate::store::conformance::{change, conformance_tests, next, put};
use crate::store::{Compare, Operation, Store, StoreError};

async fn open_file() -> (Arc<dyn Store>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Arc::new(RedbStore::open(&directory.path().join("store")).unwrap()), directory)
}

conformance_tests!(open_file);

fn small(history_revisions_max: u64) -> RedbStore {
    let options = Options { history_revisions_max, ..Options::default() };
    RedbStore::open_backend(InMemoryBackend::new(), options).unwrap()
}

#[tokio::test]
async fn reopened_store_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = RedbStore::open(&path).unwrap();
    let lease = store.lease_grant(Duration::from_secs(1)).await.unwrap();
    let revision = change(&store, vec![put("a", "1")]).await;
    let leased = Operation::Put { key: "b".to_owned(), value: "2".into(), lease: Some(lease) };
    let last = change(&store, vec![leased]).await;
    drop(store);

    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), last);
    let (entries, _) = store.range("").await.unwrap();
    assert_eq!(entries.len(), 2);
    let mut watch = store.watch("", revision).await.unwrap();
    assert_eq!(next(&mut watch).await.revision, revision);
    assert_eq!(next(&mut watch).await.revision, last);
    assert_eq!(next(&mut watch).await.revision, last + 1, "the lease's end after a restart");
    assert_eq!(store.range("").await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn file_is_its_owners_and_one_process_at_a_time() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(RedbStore::open(&path), Err(StoreError::Engine { .. })));
    drop(store);
    RedbStore::open(&path).unwrap();
}

#[test]
fn store_that_another_lets_go_of_is_waited_for_and_one_that_stays_taken_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = RedbStore::open(&path).unwrap();
    let refused = RedbStore::open_once_free(&path, Duration::from_millis(30));
    assert!(matches!(refused, Err(StoreError::Engine { step: "open the database", .. })));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| RedbStore::open_once_free(&path, Duration::from_secs(60)));
        drop(store);
        waiting.join().unwrap().unwrap();
    });
}

#[tokio::test]
async fn half_made_store_of_a_crash_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    std::fs::write(directory.path().join("store.new"), b"half").unwrap();
    let store = RedbStore::open(&path).unwrap();
    change(&store, vec![put("a", "")]).await;
    drop(store);
    let names: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["store"]);
    assert_eq!(RedbStore::open(&path).unwrap().range("").await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn foreign_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    std::fs::write(&path, b"no store at all, but more than a few bytes").unwrap();
    assert!(matches!(RedbStore::open(&path), Err(StoreError::Engine { .. })));
    assert!(matches!(RedbStore::open(directory.path()), Err(StoreError::Engine { .. })));
}

#[tokio::test]
async fn compacted_history_is_told_and_the_rest_is_complete() {
    let store = small(10);
    let mut last = 0;
    for n in 0..50 {
        last = change(&store, vec![put("a", &n.to_string())]).await;
    }
    let Err(StoreError::Compacted { requested: 5, oldest }) = store.watch("", 5).await else {
        panic!("revision 5 is compacted");
    };
    assert_eq!(last - oldest + 1, 10);
    let mut watch = store.watch("", oldest).await.unwrap();
    for revision in oldest..=last {
        assert_eq!(next(&mut watch).await.revision, revision);
    }
}

#[tokio::test]
async fn history_is_bounded_in_bytes_too() {
    let options = Options { history_bytes_max: 10_000, ..Options::default() };
    let store = RedbStore::open_backend(InMemoryBackend::new(), options).unwrap();
    let value = "v".repeat(3000);
    let mut last = 0;
    for _ in 0..20 {
        last = change(&store, vec![put("a", &value)]).await;
    }
    let Err(StoreError::Compacted { oldest, .. }) = store.watch("", 1).await else {
        panic!("revision 1 is compacted")
    };
    assert_eq!(last - oldest + 1, 3);
}

#[tokio::test]
async fn watcher_that_lags_is_served_from_history() {
    let store = small(100_000);
    let start = store.revision().await.unwrap();
    let mut watch = store.watch("", start + 1).await.unwrap();
    // More than the watch's channel and the live buffer hold together.
    let store = Arc::new(store);
    let count = 1000;
    let writes = (0..count).map(|n| {
        let store = store.clone();
        async move { change(&*store, vec![put(&format!("k{n}"), "")]).await }
    });
    futures_util::future::join_all(writes).await;
    for revision in start + 1..=start + count {
        assert_eq!(next(&mut watch).await.revision, revision);
    }
}

#[tokio::test]
async fn watcher_that_lags_behind_compaction_is_closed() {
    let store = small(10);
    let start = store.revision().await.unwrap();
    let mut watch = store.watch("", start + 1).await.unwrap();
    for n in 0..1000 {
        change(&store, vec![put("a", &n.to_string())]).await;
    }
    let mut received = 0;
    while tokio::time::timeout(Duration::from_secs(20), watch.recv()).await.unwrap().is_some() {
        received += 1;
    }
    assert!(received < 1000, "received {received}");
}

#[tokio::test]
async fn dropped_store_closes_its_watches() {
    let store = small(10);
    let mut watch = store.watch("", 0).await.unwrap();
    change(&store, vec![put("a", "")]).await;
    assert_eq!(next(&mut watch).await.events.len(), 1);
    drop(store);
    assert!(tokio::time::timeout(Duration::from_secs(20), watch.recv()).await.unwrap().is_none());
}

/// A backend whose syncs wait while the gate is shut.
#[derive(Debug, Clone)]
struct Gate {
    inner: Arc<InMemoryBackend>,
    shut: Arc<(Mutex<bool>, Condvar)>,
}

impl Gate {
    fn set(&self, shut: bool) {
        *self.shut.0.lock().unwrap() = shut;
        self.shut.1.notify_all();
    }
}

impl StorageBackend for Gate {
    fn len(&self) -> std::io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        drop(self.shut.1.wait_while(self.shut.0.lock().unwrap(), |shut| *shut).unwrap());
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.inner.write(offset, data)
    }
}

#[tokio::test]
async fn waiting_transactions_share_one_durable_commit_in_order() {
    let gate = Gate { inner: Arc::new(InMemoryBackend::new()), shut: Arc::default() };
    let store = Arc::new(RedbStore::open_backend(gate.clone(), Options::default()).unwrap());
    change(&*store, vec![put("before", "")]).await;
    let before = store.durable_commits();

    gate.set(true);
    // All fifty want the same key: exactly one gets it, and the others see that inside the same group.
    let mut tasks = Vec::new();
    for n in 0..51 {
        let task_store = store.clone();
        tasks.push(tokio::spawn(async move {
            let compare = vec![Compare::Absent("one".to_owned())];
            let then = vec![put("one", &n.to_string()), put(&format!("winner{n}"), "")];
            task_store.txn(compare, then, vec![put(&format!("loser{n:02}"), "")]).await.unwrap()
        }));
        // The first alone reaches the disk and waits there; its successors queue up behind it.
        tokio::time::sleep(Duration::from_millis(if n == 0 { 100 } else { 0 })).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    gate.set(false);
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    assert_eq!(store.durable_commits() - before, 2);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.succeeded).count(), 1);
    let mut revisions: Vec<_> = outcomes.iter().map(|outcome| outcome.revision).collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 51, "each its own revision");
    assert_eq!(store.range("loser").await.unwrap().0.len(), 50);
}
