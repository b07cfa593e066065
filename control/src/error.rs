//! What a service of the control plane can answer instead of a result. It knows no HTTP: `api` maps each variant
//! to a status and to the service's own fault body in one place.

use crate::store::{StoreError, TxnError};
use crate::token::TokenError;

/// Why a request was not carried out. Messages are for the person who asked and name no secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No valid credentials.
    #[error("{0}")]
    Unauthorized(String),
    /// Valid credentials that do not allow this.
    #[error("policy does not allow {action} to be performed")]
    Forbidden {
        /// The rule's name, for example `os_compute_api:servers:create`.
        action: &'static str,
    },
    /// Nothing by that id, or nothing this caller may see.
    #[error("{kind} {id} could not be found")]
    NotFound {
        /// The resource's kind as a person reads it, for example `Network`.
        kind: &'static str,
        /// What was asked for.
        id: String,
    },
    /// The request is well-formed but says something that cannot be.
    #[error("{message}")]
    Invalid {
        /// A stable name of what is wrong, in the service's own vocabulary where it has one (`InvalidCIDR`).
        reason: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The request is fine but the resource's state, or another resource, is in its way.
    #[error("{message}")]
    Conflict {
        /// A stable name, in the service's own vocabulary where it has one (`NetworkInUse`).
        reason: &'static str,
        /// What is in the way.
        message: String,
    },
    /// The request holds for another state of the resource than the one it is in (`If-Match`).
    #[error("{message}")]
    Precondition {
        /// A stable name, in the service's own vocabulary where it has one (`RevisionNumberConstraintFailed`).
        reason: &'static str,
        /// What was wanted and what is.
        message: String,
    },
    /// A quota would be crossed.
    #[error("quota exceeded for {resource}: requested {requested}, already used {used} of {limit}")]
    QuotaExceeded {
        /// The quota's name, for example `instances`.
        resource: &'static str,
        /// How many more were asked for.
        requested: u64,
        /// How many there are.
        used: u64,
        /// How many there may be.
        limit: u64,
    },
    /// A body or an upload larger than allowed.
    #[error("{what} is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit_bytes: u64,
    },
    /// The protocol has it, Wisp does not yet.
    #[error("{0} is not implemented")]
    NotImplemented(&'static str),
    /// It may work later: a host that does not answer, a store that is closing.
    #[error("{0}")]
    Unavailable(String),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// A transaction could not be carried out.
    #[error("the transaction failed")]
    Transaction(#[from] TxnError),
    /// The keys of tokens could not be used.
    #[error("a token could not be made")]
    Token(#[from] TokenError),
    /// A file of the cloud's own could not be read or written.
    #[error("{step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// `kind` with `id` is not there, or not for this caller.
    pub fn not_found(kind: &'static str, id: impl Into<String>) -> Self {
        Self::NotFound { kind, id: id.into() }
    }

    /// The request says something that cannot be.
    pub fn invalid(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { reason, message: message.into() }
    }

    /// Something is in the way.
    pub fn conflict(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Conflict { reason, message: message.into() }
    }
}

/// The result of a service.
pub type Result<T> = std::result::Result<T, Error>;
