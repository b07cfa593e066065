//! A cloud that dies and comes again: the process ends after a given number of commits, as by `kill -9`, and another one
//! opens the same store and the same files.

use std::sync::atomic::AtomicI64;

use async_trait::async_trait;

use super::*;
use crate::store::{Batch, Compare, Entry, LeaseId, Operation, Outcome, Revision, Store, StoreError};

/// One process's way to the store, which ends with it.
pub(super) struct Process {
    store: Arc<RedbStore>,
    /// How many commits it still lives for.
    left: AtomicI64,
}

impl Process {
    pub(super) fn new(store: Arc<RedbStore>) -> Arc<Self> {
        Arc::new(Self { store, left: AtomicI64::new(i64::MAX) })
    }

    /// It dies instead of the commit after so many.
    pub(super) fn dies_after(&self, commits: u32) {
        self.left.store(commits.into(), Ordering::SeqCst);
    }

    /// Whether a commit was refused because it is dead.
    pub(super) fn is_dead(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }

    fn alive(&self) -> std::result::Result<&RedbStore, StoreError> {
        if self.is_dead() { Err(StoreError::Closed) } else { Ok(&self.store) }
    }
}

#[async_trait]
impl Store for Process {
    async fn range(&self, prefix: &str) -> std::result::Result<(Vec<Entry>, Revision), StoreError> {
        self.alive()?.range(prefix).await
    }

    async fn txn(
        &self,
        compare: Vec<Compare>,
        then: Vec<Operation>,
        or_else: Vec<Operation>,
    ) -> std::result::Result<Outcome, StoreError> {
        if !then.is_empty() && self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(StoreError::Closed);
        }
        self.alive()?.txn(compare, then, or_else).await
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> std::result::Result<mpsc::Receiver<Batch>, StoreError> {
        self.alive()?.watch(prefix, from).await
    }

    async fn revision(&self) -> std::result::Result<Revision, StoreError> {
        self.alive()?.revision().await
    }

    async fn lease_grant(&self, ttl: Duration) -> std::result::Result<LeaseId, StoreError> {
        self.alive()?.lease_grant(ttl).await
    }

    async fn lease_renew(&self, lease: LeaseId) -> std::result::Result<(), StoreError> {
        self.alive()?.lease_renew(lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> std::result::Result<(), StoreError> {
        self.alive()?.lease_revoke(lease).await
    }
}

/// The settings of every process.
pub(super) fn settings(state: &std::path::Path) -> Settings {
    Settings { volumes_dir: state.join("volumes"), ..Settings::new("http://h", state) }
}

impl Cloud {
    /// The process and its hosts' end here: whatever they had under way does nothing more.
    pub(super) async fn die(&mut self) {
        self.process.left.store(-1, Ordering::SeqCst);
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
        // What works on files in threads of its own cannot be cut off here: it comes to its end first.
        for _ in 0..6000 {
            let runs = self.hosts.iter().any(|host| host.strong_count() > 0);
            if !runs && Arc::strong_count(&self.control) == 1 {
                self.hosts.clear();
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the dead process works on: {} hold it", Arc::strong_count(&self.control));
    }

    /// Another process on the same store; no host has connected yet.
    pub(super) async fn reopen(&mut self) {
        self.process = Process::new(self.store.clone());
        let settings = settings(self._state.path());
        self.control = Control::open(self.process.clone(), settings).await.unwrap();
    }

    /// Another process on the same store, with its host.
    pub(super) async fn restart(&mut self) {
        self.die().await;
        self.reopen().await;
        self.run().await;
    }

    /// The reconcilers start, and the host connects.
    pub(super) async fn run(&mut self) {
        self.tasks = self.control.start_reconcilers();
        let driver = self.driver();
        self.connect(driver);
        self.until_pool().await;
    }
}
