//! What can be done with each resource: authorise, check quota, write wanted state in one transaction. One file per
//! resource, each an `impl Control` block.
//!
//! Reads: `self.db.caught_up().await?`, then the cache. Writes: `self.db.transact(|cache| …)`, whose closure reads
//! the cache and returns the transaction, and runs again if another writer came first.

pub mod address_group;
pub mod address_scope;
pub mod addressing;
pub mod auth;
pub mod auto_topology;
pub(crate) mod db;
pub(crate) mod disk_image;
pub mod disk_limits;
pub mod flavor;
pub mod host;
pub mod identity;
pub mod image;
pub(crate) mod image_access;
pub mod image_data;
pub mod image_import;
pub mod image_store;
pub mod keypair;
pub mod metadef;
pub mod metadef_access;
pub mod metering;
pub mod names;
pub mod network;
pub mod network_host;
pub mod network_resource;
pub mod nic;
pub(crate) mod password;
pub mod port;
pub mod prefix;
pub mod qos;
pub mod quota;
pub mod rbac;
pub mod router;
pub mod security_group;
pub mod server;
pub mod subnet;
pub mod subnet_pool;
pub mod tag;
pub mod traffic;
pub mod trunk;
pub(crate) mod tunnel;
pub mod volume;
