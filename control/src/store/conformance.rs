//! What every engine must do, as tests against the contract alone. An engine's tests open an empty store and run all of
//! them through [`conformance_tests`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    Batch, Compare, Event, KEY_BYTES_MAX, LeaseId, Operation, Outcome, Revision, Store, StoreError,
    TXN_BYTES_MAX, TXN_OPERATIONS_MAX, VALUE_BYTES_MAX,
};

/// Makes a test of each conformance test; `$open` is an async function that gives an `Arc<dyn Store>` and something to
/// keep as long as it.
macro_rules! conformance_tests {
    ($open:path) => {
        $crate::store::conformance::conformance_tests!(@each $open:
            empty_store_has_no_entries
            put_is_read_back_with_its_revisions
            range_is_by_prefix_in_key_order
            failed_comparison_runs_the_other_branch
            comparisons_are_all_needed
            comparison_of_revision_sees_every_change
            transaction_that_changes_nothing_keeps_the_revision
            changes_of_one_transaction_share_a_revision
            deleted_key_starts_anew
            limits_are_enforced_and_leave_nothing
            concurrent_increments_lose_nothing
            watch_replays_history_then_goes_on_live
            watch_sees_its_prefix_only
            watch_from_the_future_begins_there
            watch_of_a_busy_store_misses_nothing
            lease_end_deletes_its_keys
            renewed_lease_lives_on
            revoked_lease_deletes_its_keys_at_once
            put_without_lease_leaves_the_lease
            unknown_lease_is_refused
        );
    };
    (@each $open:path: $($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let (store, _keep) = $open().await;
                $crate::store::conformance::$name(store).await;
            }
        )*
    };
}
pub(crate) use conformance_tests;

/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn put(key: &str, value: &str) -> Operation {
    Operation::Put { key: key.to_owned(), value: Bytes::copy_from_slice(value.as_bytes()), lease: None }
}

fn put_leased(key: &str, lease: LeaseId) -> Operation {
    Operation::Put { key: key.to_owned(), value: Bytes::new(), lease: Some(lease) }
}

fn delete(key: &str) -> Operation {
    Operation::Delete(key.to_owned())
}

pub(crate) async fn change(store: &dyn Store, then: Vec<Operation>) -> Revision {
    let outcome = store.txn(vec![], then, vec![]).await.unwrap();
    assert!(outcome.succeeded);
    outcome.revision
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.range(prefix).await.unwrap().0.into_iter().map(|entry| entry.key).collect()
}

pub(crate) async fn next(watch: &mut mpsc::Receiver<Batch>) -> Batch {
    tokio::time::timeout(PATIENCE, watch.recv()).await.expect("a batch in time").expect("an open watch")
}

async fn eventually_gone(store: &dyn Store, key: &str) {
    let mut waited = Duration::ZERO;
    while keys(store, "").await.iter().any(|other| other == key) {
        assert!(waited < PATIENCE, "{key} is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
        waited += Duration::from_millis(20);
    }
}

pub(crate) async fn empty_store_has_no_entries(store: Arc<dyn Store>) {
    let (entries, revision) = store.range("").await.unwrap();
    assert!(entries.is_empty());
    assert_eq!(store.revision().await.unwrap(), revision);
}

pub(crate) async fn put_is_read_back_with_its_revisions(store: Arc<dyn Store>) {
    let start = store.revision().await.unwrap();
    let created = change(&*store, vec![put("a", "1")]).await;
    let changed = change(&*store, vec![put("a", "2")]).await;
    assert_eq!((created, changed), (start + 1, start + 2));
    assert_eq!(store.revision().await.unwrap(), changed);
    let (entries, revision) = store.range("a").await.unwrap();
    assert_eq!(revision, changed);
    assert_eq!(entries.len(), 1);
    assert_eq!((&entries[0].key[..], &entries[0].value[..]), ("a", &b"2"[..]));
    assert_eq!((entries[0].create_revision, entries[0].mod_revision), (created, changed));
}

pub(crate) async fn range_is_by_prefix_in_key_order(store: Arc<dyn Store>) {
    let all = ["b/2", "a", "b/1", "b", "b0", "c", "b/ü", "b/10"];
    change(&*store, all.iter().map(|key| put(key, "")).collect()).await;
    assert_eq!(keys(&*store, "b/").await, ["b/1", "b/10", "b/2", "b/ü"]);
    assert_eq!(keys(&*store, "").await.len(), all.len());
    assert_eq!(keys(&*store, "d").await, [""; 0]);
}

pub(crate) async fn failed_comparison_runs_the_other_branch(store: Arc<dyn Store>) {
    change(&*store, vec![put("a", "1")]).await;
    let outcome = store
        .txn(vec![Compare::Absent("a".to_owned())], vec![put("a", "2"), put("b", "2")], vec![put("c", "2")])
        .await
        .unwrap();
    assert!(!outcome.succeeded);
    let (entries, revision) = store.range("").await.unwrap();
    assert_eq!(revision, outcome.revision);
    assert_eq!(entries.len(), 2);
    assert_eq!((&entries[0].value[..], &entries[1].key[..]), (&b"1"[..], "c"));
}

pub(crate) async fn comparisons_are_all_needed(store: Arc<dyn Store>) {
    change(&*store, vec![put("a", "1")]).await;
    let present = Compare::Present("a".to_owned());
    let absent = Compare::Absent("a".to_owned());
    let run = |compare| store.txn(compare, vec![], vec![]);
    assert!(run(vec![]).await.unwrap().succeeded);
    assert!(run(vec![present.clone()]).await.unwrap().succeeded);
    assert!(!run(vec![present, absent]).await.unwrap().succeeded);
    assert!(!run(vec![Compare::Present("b".to_owned())]).await.unwrap().succeeded);
    assert!(run(vec![Compare::Absent("b".to_owned())]).await.unwrap().succeeded);
}

pub(crate) async fn comparison_of_revision_sees_every_change(store: Arc<dyn Store>) {
    let created = change(&*store, vec![put("a", "1")]).await;
    let holds = async |revision| {
        let compare = vec![Compare::ModRevision("a".to_owned(), revision)];
        store.txn(compare, vec![], vec![]).await.unwrap().succeeded
    };
    assert!(holds(created).await);
    let changed = change(&*store, vec![put("a", "1")]).await;
    assert!(!holds(created).await, "the same value again is a change");
    assert!(holds(changed).await);
    change(&*store, vec![delete("a")]).await;
    assert!(!holds(changed).await);
    assert!(!holds(0).await);
}

pub(crate) async fn transaction_that_changes_nothing_keeps_the_revision(store: Arc<dyn Store>) {
    let before = change(&*store, vec![put("a", "1")]).await;
    assert_eq!(change(&*store, vec![]).await, before);
    assert_eq!(change(&*store, vec![delete("absent")]).await, before);
    assert_eq!(store.revision().await.unwrap(), before);
}

pub(crate) async fn changes_of_one_transaction_share_a_revision(store: Arc<dyn Store>) {
    change(&*store, vec![put("b", "1")]).await;
    let revision = change(&*store, vec![put("a", "1"), delete("b"), put("c", "1")]).await;
    let mut watch = store.watch("", revision).await.unwrap();
    let batch = next(&mut watch).await;
    assert_eq!(batch.revision, revision);
    assert_eq!(batch.events.len(), 3);
    assert!(batch.events.contains(&Event::Deleted { key: "b".to_owned(), revision }));
    let (entries, _) = store.range("").await.unwrap();
    assert!(entries.iter().all(|entry| entry.mod_revision == revision));
}

pub(crate) async fn deleted_key_starts_anew(store: Arc<dyn Store>) {
    change(&*store, vec![put("a", "1")]).await;
    change(&*store, vec![delete("a")]).await;
    let again = change(&*store, vec![put("a", "1")]).await;
    assert_eq!(store.range("a").await.unwrap().0[0].create_revision, again);
}

pub(crate) async fn limits_are_enforced_and_leave_nothing(store: Arc<dyn Store>) {
    let before = store.revision().await.unwrap();
    let many = |count: usize| (0..count).map(|n| put(&format!("k{n}"), "")).collect::<Vec<_>>();
    let long =
        |bytes: usize| Operation::Put { key: "v".to_owned(), value: vec![0; bytes].into(), lease: None };
    let refused = [
        store.txn(vec![], many(TXN_OPERATIONS_MAX + 1), vec![]).await,
        store.txn(vec![], vec![], many(TXN_OPERATIONS_MAX + 1)).await,
        store.txn(vec![Compare::Absent("a".to_owned()); TXN_OPERATIONS_MAX + 1], vec![], vec![]).await,
        store.txn(vec![], vec![put(&"k".repeat(KEY_BYTES_MAX + 1), "")], vec![]).await,
        store.txn(vec![], vec![put("", "")], vec![]).await,
        store.txn(vec![], vec![long(VALUE_BYTES_MAX + 1)], vec![]).await,
        store.txn(vec![], vec![long(VALUE_BYTES_MAX)], vec![long(TXN_BYTES_MAX - VALUE_BYTES_MAX)]).await,
    ];
    for (index, result) in refused.into_iter().enumerate() {
        assert!(matches!(result, Err(StoreError::Limit(_))), "case {index}: {result:?}");
    }
    let twice = store.txn(vec![], vec![put("a", "1"), delete("a")], vec![]).await;
    assert!(matches!(twice, Err(StoreError::DuplicateKey(_))), "{twice:?}");
    assert_eq!(store.revision().await.unwrap(), before);

    change(&*store, many(TXN_OPERATIONS_MAX)).await;
    change(&*store, vec![put(&"k".repeat(KEY_BYTES_MAX), "")]).await;
    change(&*store, vec![long(VALUE_BYTES_MAX)]).await;
}

pub(crate) async fn concurrent_increments_lose_nothing(store: Arc<dyn Store>) {
    change(&*store, vec![put("counter", "0")]).await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            for _ in 0..5 {
                loop {
                    let entry = store.range("counter").await.unwrap().0.remove(0);
                    let count: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                    let compare = vec![Compare::ModRevision("counter".to_owned(), entry.mod_revision)];
                    let then = vec![put("counter", &(count + 1).to_string())];
                    if store.txn(compare, then, vec![]).await.unwrap().succeeded {
                        break;
                    }
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(&store.range("counter").await.unwrap().0[0].value[..], b"40");
}

pub(crate) async fn watch_replays_history_then_goes_on_live(store: Arc<dyn Store>) {
    let first = change(&*store, vec![put("a", "1")]).await;
    change(&*store, vec![put("a", "2")]).await;
    let mut watch = store.watch("a", first).await.unwrap();
    change(&*store, vec![delete("a")]).await;
    for revision in first..first + 3 {
        let batch = next(&mut watch).await;
        assert_eq!(batch.revision, revision);
        match &batch.events[0] {
            Event::Put(entry) => {
                assert_eq!((entry.create_revision, entry.mod_revision), (first, revision));
                assert_eq!(entry.value, (revision - first + 1).to_string());
            }
            Event::Deleted { .. } => assert_eq!(revision, first + 2),
        }
    }
    assert!(watch.try_recv().is_err(), "nothing twice");
}

pub(crate) async fn watch_sees_its_prefix_only(store: Arc<dyn Store>) {
    let now = store.revision().await.unwrap();
    let mut watch = store.watch("b/", now + 1).await.unwrap();
    change(&*store, vec![put("a", "1")]).await;
    let second = change(&*store, vec![put("b", "1"), put("b/1", "1"), put("c", "1")]).await;
    let batch = next(&mut watch).await;
    assert_eq!(batch.revision, second);
    assert!(matches!(&batch.events[..], [Event::Put(entry)] if entry.key == "b/1"), "{batch:?}");
}

pub(crate) async fn watch_from_the_future_begins_there(store: Arc<dyn Store>) {
    let now = store.revision().await.unwrap();
    let mut watch = store.watch("", now + 3).await.unwrap();
    for value in ["1", "2", "3"] {
        change(&*store, vec![put("a", value)]).await;
    }
    assert_eq!(next(&mut watch).await.revision, now + 3);
}

pub(crate) async fn watch_of_a_busy_store_misses_nothing(store: Arc<dyn Store>) {
    let now = store.revision().await.unwrap();
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..400 {
                change(&*store, vec![put(&format!("k{}", n % 7), "")]).await;
            }
        })
    };
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(store.watch("", now + 1).await.unwrap());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for watch in &mut watches {
        for revision in now + 1..=now + 400 {
            assert_eq!(next(watch).await.revision, revision);
        }
    }
    writer.await.unwrap();
}

pub(crate) async fn lease_end_deletes_its_keys(store: Arc<dyn Store>) {
    let lease = store.lease_grant(Duration::from_secs(1)).await.unwrap();
    let revision = change(&*store, vec![put_leased("a", lease), put_leased("b", lease), put("c", "")]).await;
    assert_eq!(keys(&*store, "").await, ["a", "b", "c"]);
    let mut watch = store.watch("", revision + 1).await.unwrap();
    let batch = next(&mut watch).await;
    assert!(batch.events.iter().all(|event| matches!(event, Event::Deleted { .. })));
    eventually_gone(&*store, "a").await;
    eventually_gone(&*store, "b").await;
    assert_eq!(keys(&*store, "").await, ["c"]);
    assert!(matches!(store.lease_renew(lease).await, Err(StoreError::NoLease(_))));
    let late = store.txn(vec![], vec![put_leased("a", lease)], vec![]).await;
    assert!(matches!(late, Err(StoreError::NoLease(_))));
}

pub(crate) async fn renewed_lease_lives_on(store: Arc<dyn Store>) {
    let lease = store.lease_grant(Duration::from_secs(3)).await.unwrap();
    change(&*store, vec![put_leased("a", lease)]).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        store.lease_renew(lease).await.unwrap();
    }
    assert_eq!(keys(&*store, "").await, ["a"]);
}

pub(crate) async fn revoked_lease_deletes_its_keys_at_once(store: Arc<dyn Store>) {
    let lease = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    change(&*store, vec![put_leased("a", lease)]).await;
    store.lease_revoke(lease).await.unwrap();
    assert_eq!(keys(&*store, "").await, [""; 0]);
    assert!(matches!(store.lease_revoke(lease).await, Err(StoreError::NoLease(_))));
}

pub(crate) async fn put_without_lease_leaves_the_lease(store: Arc<dyn Store>) {
    let first = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let second = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    assert_ne!(first, second);
    let all = ["deleted", "kept", "moved"];
    change(&*store, all.iter().map(|key| put_leased(key, first)).collect()).await;
    change(&*store, vec![put("kept", ""), put_leased("moved", second), delete("deleted")]).await;
    change(&*store, vec![put("deleted", "")]).await;
    store.lease_revoke(first).await.unwrap();
    assert_eq!(keys(&*store, "").await, all);
    store.lease_revoke(second).await.unwrap();
    assert_eq!(keys(&*store, "").await, ["deleted", "kept"]);
}

pub(crate) async fn unknown_lease_is_refused(store: Arc<dyn Store>) {
    let before: Outcome = store.txn(vec![], vec![], vec![]).await.unwrap();
    let refused = store.txn(vec![], vec![put("a", ""), put_leased("b", 424_242)], vec![]).await;
    assert!(matches!(refused, Err(StoreError::NoLease(424_242))));
    assert!(matches!(store.lease_renew(424_242).await, Err(StoreError::NoLease(_))));
    assert!(store.lease_grant(Duration::ZERO).await.is_err());
    assert_eq!(store.revision().await.unwrap(), before.revision);
}
