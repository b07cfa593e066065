//! What can go wrong with a host's network.

use std::io;

use crate::names::{LinkKind, OwnerTag};
use crate::spec::InterfaceName;
use crate::{keeper, netlink, nftables, tap};

/// What went wrong with a host's network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Links, addresses or routes.
    #[error("change the host's links")]
    Link(#[source] netlink::Error),
    /// The packet filter.
    #[error("change the packet filter")]
    Filter(#[source] nftables::Error),
    /// A tap.
    #[error("make or open a tap")]
    Tap(#[source] tap::Error),
    /// A setting of one of our links.
    #[error("write {path}")]
    Setting {
        /// The file.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A name that does not carry the cloud's tag in the form of its kind: see [`crate::names`].
    #[error("{name:?} is no name for a {kind:?} of the cloud {tag}")]
    Name {
        /// The name.
        name: String,
        /// What it was to be the name of.
        kind: LinkKind,
        /// The cloud.
        tag: OwnerTag,
    },
    /// A name that does not carry the cloud's tag in the form of namespaces: see [`crate::names`].
    #[error("{name:?} is no name for a network namespace of the cloud {tag}")]
    NamespaceName {
        /// The name.
        name: String,
        /// The cloud.
        tag: OwnerTag,
    },
    /// A router's namespace.
    #[error("make or open a router's network namespace")]
    Namespace(#[source] keeper::Error),
    /// What was asked about is not part of the wanted network.
    #[error("{0} is not in the wanted network")]
    NotWanted(InterfaceName),
    /// The link to change is gone.
    #[error("link {0} does not exist")]
    Missing(InterfaceName),
    /// A link of somebody else has the name.
    #[error("link {0} exists and is not ours")]
    Foreign(InterfaceName),
    /// The interface of a physical network is not there.
    #[error("there is no interface {0}, which a physical network is on")]
    NoInterface(InterfaceName),
    /// The interface of a physical network is a link of ours.
    #[error("{0} is a link of this cloud's and cannot be a physical network's interface")]
    NotPhysical(InterfaceName),
    /// The interface of a physical network serves something else, which would lose it.
    #[error("interface {name} is in use by {by}: give the cloud one without addresses that is in no bridge")]
    InterfaceInUse {
        /// The interface.
        name: InterfaceName,
        /// An address of the host's, or a bridge.
        by: String,
    },
    /// A plan was carried out in part.
    #[error("{} of {steps} steps failed, the first: {first}", .others + 1)]
    Partial {
        /// How many steps there were.
        steps: usize,
        /// The first failure.
        #[source]
        first: Box<Error>,
        /// How many more.
        others: usize,
    },
}

/// The error of several steps, if any failed.
pub(super) fn partial(steps: usize, failures: Vec<Error>) -> Result<(), Error> {
    let mut failures = failures.into_iter();
    match failures.next() {
        None => Ok(()),
        Some(first) => Err(Error::Partial { steps, first: Box::new(first), others: failures.count() }),
    }
}
