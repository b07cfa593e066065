//! What keeps a network, and each of its subnets, from going while something comes to be on it: a row that every new port,
//! and every port with a new address, writes, and that the deletion of the network or of a subnet compares and writes too.
//! It is kept by tallies, so that many ports of one transaction write it once.

use crate::model::network::{Network, NetworkParts};
use crate::store::{Cache, Txn};

/// How the keys of these tallies end; before it is the network's id.
const SUFFIX: &str = "/parts-of-network";

/// Notes that something has come to be on a network, or a subnet has gone from it.
pub(crate) fn note(txn: Txn, network_id: &str) -> Txn {
    txn.tally(format!("{network_id}{SUFFIX}"), 1)
}

/// The network that a tally is about, if it is one of these.
pub(crate) fn network_of(tally: &str) -> Option<&str> {
    tally.strip_suffix(SUFFIX)
}

/// Turns such a tally into a change of the network's row.
pub(crate) fn settle(cache: &Cache, txn: Txn, network_id: &str) -> Txn {
    match cache.get::<NetworkParts>(network_id) {
        Some(stored) => {
            let row = NetworkParts { changes: stored.row.changes + 1, ..stored.row.clone() };
            txn.update(&stored, &row)
        }
        None => {
            let txn = txn.create(&NetworkParts { network_id: network_id.to_owned(), changes: 1 });
            // One that is made in this transaction is not there yet, and cannot go.
            match cache.get::<Network>(network_id) {
                Some(_) => txn.require_present::<Network>(network_id),
                None => txn,
            }
        }
    }
}

/// Adds to the transaction in which a network goes that nothing has come to be on it.
pub(crate) fn forget(cache: &Cache, txn: Txn, network_id: &str) -> Txn {
    match cache.get::<NetworkParts>(network_id) {
        Some(stored) => txn.delete(&stored),
        None => txn.require_absent::<NetworkParts>(network_id),
    }
}
