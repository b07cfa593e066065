//! The embedded store's one writer thread: it takes what is queued, runs it in order inside one redb write
//! transaction, commits that durably once, and only then answers.
//!
//! Must never know: who watches, how a reader reads.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use ::redb::{Database, ReadableDatabase as _, ReadableTable as _};
use tokio::sync::{OwnedSemaphorePermit, broadcast, oneshot};

use super::layout::{self, meta};
use super::tables::{Tables, lease_of};
use super::{EngineFailure, Options, Progress};
use crate::store::{Batch, Compare, LeaseId, Operation, Outcome, Revision, StoreError};

/// The most requests one durable commit answers for: beyond this, waiting for the rest costs the first more than the
/// saved commit gains.
const GROUP_REQUESTS_MAX: usize = 256;
/// The most leases at a time: one per host and a few per control process, with room.
const LEASES_MAX: usize = 4096;
/// The most keys a lease holds, since they all go in one revision.
const LEASE_KEYS_MAX: usize = 1024;
/// Free space below which nothing is written down, in bytes: more than one commit takes. The engine does not survive a
/// write that finds no room, while a request that is refused can be asked for again.
const ROOM_BYTES_MIN: u64 = 16 << 20;
/// How often it is looked whether there is room again for leases that are over.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// How long the writer sleeps when no lease can end.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// What a caller wants, with the way to answer.
pub(super) enum Request {
    Txn {
        compare: Vec<Compare>,
        then: Vec<Operation>,
        or_else: Vec<Operation>,
        reply: oneshot::Sender<Result<Outcome, StoreError>>,
    },
    Grant {
        ttl: Duration,
        reply: oneshot::Sender<Result<LeaseId, StoreError>>,
    },
    Renew {
        lease: LeaseId,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    Revoke {
        lease: LeaseId,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// A request and the place in the queue that it occupies.
pub(super) struct Queued {
    pub(super) request: Request,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// An answer that waits for the commit.
enum Answer {
    Outcome(oneshot::Sender<Result<Outcome, StoreError>>, Result<Outcome, StoreError>),
    Lease(oneshot::Sender<Result<LeaseId, StoreError>>, Result<LeaseId, StoreError>),
    Done(oneshot::Sender<Result<(), StoreError>>, Result<(), StoreError>),
}

impl Answer {
    /// A caller that has gone does not care.
    fn send(self, failure: Option<&EngineFailure>) {
        let error = failure.map(EngineFailure::to_error);
        match self {
            Self::Outcome(reply, result) => drop(reply.send(error.map_or(result, Err))),
            Self::Lease(reply, result) => drop(reply.send(error.map_or(result, Err))),
            Self::Done(reply, result) => drop(reply.send(error.map_or(result, Err))),
        }
    }
}

/// The leases' clocks; the file holds only their lengths, since a clock does not survive a restart.
#[derive(Default)]
struct Leases {
    alive: HashMap<LeaseId, (Duration, Instant)>,
    by_end: BTreeSet<(Instant, LeaseId)>,
}

impl Leases {
    fn start(&mut self, lease: LeaseId, ttl: Duration) {
        let end = Instant::now() + ttl;
        if let Some((_, old)) = self.alive.insert(lease, (ttl, end)) {
            self.by_end.remove(&(old, lease));
        }
        self.by_end.insert((end, lease));
    }

    fn end(&mut self, lease: LeaseId) {
        if let Some((_, end)) = self.alive.remove(&lease) {
            self.by_end.remove(&(end, lease));
        }
    }

    fn over(&self) -> Vec<LeaseId> {
        let now = Instant::now();
        self.by_end.iter().take_while(|(end, _)| *end <= now).map(|(_, lease)| *lease).collect()
    }
}

pub(super) struct Writer {
    database: Arc<Database>,
    options: Options,
    queue: Receiver<Queued>,
    live: broadcast::Sender<Arc<Batch>>,
    revision: Revision,
    progress: Arc<Progress>,
    leases: Leases,
    /// The file, where it is one, to see how much room its file system has.
    room: Option<File>,
    /// There was no room when last looked.
    full: bool,
}

impl Writer {
    /// Reads what the thread must know beforehand.
    pub(super) fn new(
        database: Arc<Database>,
        (options, room): (Options, Option<File>),
        queue: Receiver<Queued>,
        live: broadcast::Sender<Arc<Batch>>,
        progress: Arc<Progress>,
    ) -> Result<Self, EngineFailure> {
        let read = database.begin_read().map_err(EngineFailure::at("begin reading"))?;
        let mut leases = Leases::default();
        let table = read.open_table(layout::LEASES).map_err(EngineFailure::at("open the leases"))?;
        for row in table.iter().map_err(EngineFailure::at("read the leases"))? {
            let (lease, ttl_ms) = row.map_err(EngineFailure::at("read a lease"))?;
            leases.start(lease.value(), Duration::from_millis(ttl_ms.value()));
        }
        let revision = progress.committed.load(Ordering::Acquire);
        Ok(Self { database, options, queue, live, revision, progress, leases, room, full: false })
    }

    /// Whether there is room for a commit. What cannot be found out is tried.
    fn has_room(&mut self) -> bool {
        let free = self.room.as_ref().and_then(|file| rustix::fs::fstatvfs(file).ok());
        let full = free.is_some_and(|free| free.f_bavail.saturating_mul(free.f_frsize) < ROOM_BYTES_MIN);
        if full != self.full {
            let now = if full { "full: nothing is written down" } else { "no longer full" };
            tracing::warn!("the store's file system is {now}");
        }
        self.full = full;
        !full
    }

    /// Runs until every sender of the queue is gone or the engine fails; then the file is let go.
    pub(super) fn run(mut self) {
        loop {
            let wait = self
                .leases
                .by_end
                .first()
                .map_or(IDLE_MAX, |(end, _)| end.saturating_duration_since(Instant::now()))
                .max(if self.full { ROOM_INTERVAL } else { Duration::ZERO });
            let first = match self.queue.recv_timeout(wait) {
                Ok(queued) => Some(queued),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let group: Vec<Queued> =
                first.into_iter().chain(self.queue.try_iter()).take(GROUP_REQUESTS_MAX).collect();
            if let Err(failure) = self.group(group) {
                tracing::error!(
                    error = &failure as &dyn std::error::Error,
                    "the store's engine failed and stops; restart after mending the cause"
                );
                break;
            }
        }
    }

    /// One write transaction for many requests.
    fn group(&mut self, group: Vec<Queued>) -> Result<(), EngineFailure> {
        let mut over = self.leases.over();
        let mut answers = Vec::with_capacity(group.len());
        let (mut group, mut kept) = (group, Vec::new());
        if (!group.is_empty() || !over.is_empty()) && !self.has_room() {
            over.clear();
            // A renewal writes nothing.
            (group, kept) =
                group.into_iter().partition(|queued| matches!(queued.request, Request::Renew { .. }));
        }
        answers.extend(kept.into_iter().map(|queued| refused(queued.request, StoreError::Full)));
        if group.is_empty() && over.is_empty() {
            answers.into_iter().for_each(|answer| answer.send(None));
            return Ok(());
        }
        let mut batches = Vec::new();
        let committed = self.evaluate(group, &over, &mut answers, &mut batches);
        if committed.is_ok() {
            self.progress.committed.store(self.revision, Ordering::Release);
            for batch in batches {
                // Nobody watching is no error.
                let _ = self.live.send(Arc::new(batch));
            }
        } else {
            self.progress.failed.store(true, Ordering::Release);
        }
        for answer in answers {
            answer.send(committed.as_ref().err());
        }
        committed
    }

    fn evaluate(
        &mut self,
        group: Vec<Queued>,
        over: &[LeaseId],
        answers: &mut Vec<Answer>,
        batches: &mut Vec<Batch>,
    ) -> Result<(), EngineFailure> {
        let database = self.database.clone();
        let write = database.begin_write().map_err(EngineFailure::at("begin writing"));
        let write = match write {
            Ok(write) => write,
            Err(failure) => {
                group
                    .into_iter()
                    .for_each(|queued| answers.push(refused(queued.request, failure.to_error())));
                return Err(failure);
            }
        };
        let mut dirty = false;
        let mut requests = group.into_iter().map(|queued| queued.request);
        let mut run = || -> Result<(), EngineFailure> {
            let mut tables = Tables::open(&write)?;
            for lease in over {
                dirty = true;
                self.end_lease(&mut tables, *lease, batches)?;
            }
            for request in requests.by_ref() {
                dirty |= self.request(&mut tables, request, answers, batches)?;
            }
            if !batches.is_empty() {
                tables.set(meta::REVISION, self.revision)?;
                tables.compact(self.revision, &self.options)?;
            }
            Ok(())
        };
        if let Err(failure) = run() {
            requests.for_each(|request| answers.push(refused(request, failure.to_error())));
            return Err(failure);
        }
        if !dirty {
            return write.abort().map_err(EngineFailure::at("abort"));
        }
        write.commit().map_err(EngineFailure::at("commit"))?;
        self.progress.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Runs one request; whether the file has to change. A failing engine leaves the answer among `answers`.
    fn request(
        &mut self,
        tables: &mut Tables<'_>,
        request: Request,
        answers: &mut Vec<Answer>,
        batches: &mut Vec<Batch>,
    ) -> Result<bool, EngineFailure> {
        match request {
            Request::Txn { compare, then, or_else, reply } => {
                let before = batches.len();
                let (result, failure) = split(self.txn(tables, &compare, then, or_else, batches));
                answers.push(Answer::Outcome(reply, result));
                failure.map_or(Ok(batches.len() > before), Err)
            }
            Request::Grant { ttl, reply } => {
                let (result, failure) = split(self.grant(tables, ttl));
                let granted = result.is_ok();
                answers.push(Answer::Lease(reply, result));
                failure.map_or(Ok(granted), Err)
            }
            Request::Renew { lease, reply } => {
                let result = match self.leases.alive.get(&lease).copied() {
                    Some((ttl, _)) => {
                        self.leases.start(lease, ttl);
                        Ok(())
                    }
                    None => Err(StoreError::NoLease(lease)),
                };
                answers.push(Answer::Done(reply, result));
                Ok(false)
            }
            Request::Revoke { lease, reply } => {
                if !self.leases.alive.contains_key(&lease) {
                    answers.push(Answer::Done(reply, Err(StoreError::NoLease(lease))));
                    return Ok(false);
                }
                let ended = self.end_lease(tables, lease, batches);
                answers.push(Answer::Done(reply, Ok(())));
                ended.map(|()| true)
            }
        }
    }

    fn txn(
        &mut self,
        tables: &mut Tables<'_>,
        compare: &[Compare],
        then: Vec<Operation>,
        or_else: Vec<Operation>,
        batches: &mut Vec<Batch>,
    ) -> Result<Result<Outcome, StoreError>, EngineFailure> {
        let mut succeeded = true;
        for comparison in compare {
            succeeded &= tables.holds(comparison)?;
        }
        let branch = if succeeded { then } else { or_else };
        let mut joining: HashMap<LeaseId, usize> = HashMap::new();
        for lease in branch.iter().filter_map(lease_of) {
            if !self.leases.alive.contains_key(&lease) {
                return Ok(Err(StoreError::NoLease(lease)));
            }
            *joining.entry(lease).or_default() += 1;
        }
        for (lease, keys) in joining {
            if tables.keys_of(lease)?.len() + keys > LEASE_KEYS_MAX {
                return Ok(Err(StoreError::Limit("keys per lease")));
            }
        }
        self.apply(tables, branch, batches)?;
        Ok(Ok(Outcome { succeeded, revision: self.revision }))
    }

    fn grant(
        &mut self,
        tables: &mut Tables<'_>,
        ttl: Duration,
    ) -> Result<Result<LeaseId, StoreError>, EngineFailure> {
        if self.leases.alive.len() >= LEASES_MAX {
            return Ok(Err(StoreError::Limit("leases")));
        }
        let lease = tables.number(meta::LEASE_LAST)? + 1;
        tables.set(meta::LEASE_LAST, lease)?;
        let ttl_ms = u64::try_from(ttl.as_millis())
            .expect("invariant: the time to live is limited before it gets here");
        tables.leases.insert(lease, ttl_ms).map_err(EngineFailure::at("write a lease"))?;
        self.leases.start(lease, ttl);
        Ok(Ok(lease))
    }

    fn end_lease(
        &mut self,
        tables: &mut Tables<'_>,
        lease: LeaseId,
        batches: &mut Vec<Batch>,
    ) -> Result<(), EngineFailure> {
        self.leases.end(lease);
        tables.leases.remove(lease).map_err(EngineFailure::at("delete a lease"))?;
        let deletes = tables.keys_of(lease)?.into_iter().map(Operation::Delete).collect();
        self.apply(tables, deletes, batches)
    }

    /// Makes the next revision of `operations`, unless they change nothing.
    fn apply(
        &mut self,
        tables: &mut Tables<'_>,
        operations: Vec<Operation>,
        batches: &mut Vec<Batch>,
    ) -> Result<(), EngineFailure> {
        let revision = self.revision + 1;
        let mut events = Vec::with_capacity(operations.len());
        for operation in operations {
            events.extend(tables.change(operation, revision)?);
        }
        if events.is_empty() {
            return Ok(());
        }
        let record = layout::encode_events(&events);
        tables.history.insert(revision, record.as_slice()).map_err(EngineFailure::at("write the history"))?;
        tables.history_bytes += record.len() as u64;
        self.revision = revision;
        batches.push(Batch { revision, events });
        Ok(())
    }
}

/// The answer to a request that was kept from running.
fn refused(request: Request, error: StoreError) -> Answer {
    match request {
        Request::Txn { reply, .. } => Answer::Outcome(reply, Err(error)),
        Request::Grant { reply, .. } => Answer::Lease(reply, Err(error)),
        Request::Renew { reply, .. } | Request::Revoke { reply, .. } => Answer::Done(reply, Err(error)),
    }
}

/// The caller's result, and the engine's failure if that is what it is.
fn split<T>(
    result: Result<Result<T, StoreError>, EngineFailure>,
) -> (Result<T, StoreError>, Option<EngineFailure>) {
    match result {
        Ok(result) => (result, None),
        Err(failure) => (Err(failure.to_error()), Some(failure)),
    }
}
