//! What a host shall be like, as a pure function of the rows: its agent is told nothing else.

use std::collections::BTreeMap;

use super::metadata::documents;
use crate::agent::protocol::{
    DiskCipher, DiskShape, DiskSource, DiskWanted, InstanceWanted, KernelWanted, NicWanted, Power,
    RootDiskWanted, VolumeWanted, Wanted,
};
use crate::model::compute::{Host, HostClaims, Server, ServerVolume, VmState};
use crate::model::network::{Network, Port};
use crate::model::volume::{Backup, DiskTask, DiskWork, Snapshot, Status, Volume};
use crate::service::disk_limits;
use crate::service::host::DEFAULT_ZONE;
use crate::service::names;
use crate::service::nic::nics_wanted;
use crate::service::router::wanted::routers_wanted;
use crate::service::server::queues;
use crate::service::tunnel;
use crate::service::volume::encryption::cipher;
use crate::store::Cache;
use crate::token::MasterKey;

/// The wanted state of the host by that name. Servers whose ports or networks are gone are left out, which changes
/// nothing on the host; the reconciler sees to them. Keys of disks are opened with `master`.
pub fn host_wanted(cache: &Cache, master: &MasterKey, cloud_tag: &str, host: &str) -> Wanted {
    let mut wanted = without_remotes(cache, master, cloud_tag, host);
    tunnel::tell_remotes(cache, host, &mut wanted.networks);
    wanted
}

fn without_remotes(cache: &Cache, master: &MasterKey, cloud_tag: &str, host: &str) -> Wanted {
    let mut wanted = Wanted { cloud_tag: cloud_tag.to_owned(), ..Wanted::default() };
    let works = cache.list_under::<DiskWork>(&format!("{host}/"));
    wanted.disks.extend(works.iter().map(|work| disk_wanted(cache, master, &work.row)));
    let routers = routers_wanted(cache, host);
    wanted.routers = routers.routers;
    wanted.networks = routers.networks.values().cloned().collect();
    let Some(claims) = cache.get::<HostClaims>(host) else { return wanted };
    let zone = cache.get::<Host>(host).map_or_else(|| DEFAULT_ZONE.to_owned(), |host| host.row.zone.clone());
    let servers = claims.row.servers.keys().filter_map(|id| cache.get::<Server>(id));
    let servers: Vec<_> = servers
        .filter(|server| server.row.host.as_deref() == Some(host))
        .filter(|server| leaves(&server.row) || missing_part(cache, &server.row).is_none())
        .filter(|server| leaves(&server.row) || !waits_for_volumes(cache, &server.row))
        .collect();
    // All devices at once, so that each group is resolved once and not once for each server.
    let port_ids: Vec<String> = servers.iter().flat_map(|server| present_ports(cache, &server.row)).collect();
    let Ok(resolved) = nics_wanted(cache, cloud_tag, &port_ids) else {
        // A row went away between the check and the use: the change that took it tells this host again.
        return wanted;
    };
    let others = resolved.networks.into_iter().filter(|network| !routers.networks.contains_key(&network.id));
    wanted.networks.extend(others);
    wanted.groups = resolved.groups;
    let carried = resolved.nics.iter().flat_map(|nic| &nic.sub_ports).map(|sub| &sub.port.port_id);
    wanted.zones = names::zones_wanted(cache, port_ids.iter().chain(carried));
    let nics: BTreeMap<&str, &NicWanted> =
        resolved.nics.iter().map(|nic| (nic.port_id.as_str(), nic)).collect();
    for server in &servers {
        let own = server.row.port_ids.iter().filter_map(|id| nics.get(id.as_str()).map(|nic| (*nic).clone()));
        let volume = |attached: &ServerVolume| {
            let volume = cache.get::<Volume>(&attached.volume_id)?;
            Some(VolumeWanted {
                id: volume.row.disk().to_owned(),
                backend: volume.row.backend.clone(),
                size_bytes: volume.row.size_gib << 30,
                read_only: attached.read_only,
                limits: disk_limits::of_volume(cache, &volume.row),
                cipher: cipher(master, volume.row.encryption.as_ref()),
            })
        };
        let mut instance = instance_wanted(&server.row, &zone, own.collect());
        let stays = server.row.volumes.iter().filter(|attached| !attached.detaching);
        let (boot, others): (Vec<_>, Vec<_>) = stays.partition(|attached| attached.boot);
        instance.root_disk.volume = boot.into_iter().find_map(volume);
        instance.volumes = others.into_iter().filter_map(volume).collect();
        wanted.instances.push(instance);
    }
    wanted
}

/// What of a server's surroundings is gone, in one sentence for its owner.
pub fn missing_part(cache: &Cache, server: &Server) -> Option<String> {
    missing_volume(cache, server).or_else(|| missing_port(cache, server))
}

fn missing_volume(cache: &Cache, server: &Server) -> Option<String> {
    server.volumes.iter().find_map(|attached| match cache.get::<Volume>(&attached.volume_id) {
        None => Some(format!("Volume {} could not be found.", attached.volume_id)),
        Some(volume) if server.vm_state == VmState::Building && volume.row.status == Status::Error => {
            Some(format!(
                "Build of instance {} aborted: Volume {} did not finish being created: its status is error.",
                server.id, attached.volume_id
            ))
        }
        Some(_) => None,
    })
}

/// Whether a volume of a server is still being made.
fn waits_for_volumes(cache: &Cache, server: &Server) -> bool {
    let volumes = server.volumes.iter().filter_map(|attached| cache.get::<Volume>(&attached.volume_id));
    volumes.into_iter().any(|volume| matches!(volume.row.status, Status::Creating | Status::Downloading))
}

/// The backend that a wish is for.
fn backend_of(cache: &Cache, task: &DiskTask) -> Option<String> {
    let of_volume = |id: &str| cache.get::<Volume>(id).and_then(|volume| volume.row.backend.clone());
    match task {
        DiskTask::CreateVolume { volume }
        | DiskTask::Extend { volume, .. }
        | DiskTask::Revert { volume, .. }
        | DiskTask::Upload { volume, .. }
        | DiskTask::Restore { volume, .. } => of_volume(volume),
        // A volume with snapshots does not move.
        DiskTask::CreateSnapshot { snapshot } | DiskTask::DeleteSnapshot { snapshot } => {
            of_volume(&cache.get::<Snapshot>(snapshot)?.row.volume_id)
        }
        DiskTask::CreateBackup { backup } => of_volume(&cache.get::<Backup>(backup)?.row.volume_id),
        DiskTask::Move { backend, .. } | DiskTask::Recode { backend, .. } => Some(backend.clone()),
        // Wherever it is, or was on its way to; or in none.
        DiskTask::DeleteVolume { .. }
        | DiskTask::Clear
        | DiskTask::DeleteBackup { .. }
        | DiskTask::UploadRoot { .. } => None,
    }
}

/// How the bytes lie that a host has to read or write itself for a wish.
fn cipher_of(cache: &Cache, master: &MasterKey, work: &DiskWork) -> DiskCipher {
    let id = match (&work.task, &work.shape) {
        (DiskTask::CreateVolume { volume }, DiskShape::Volume { source: DiskSource::Image { .. }, .. })
        | (DiskTask::Upload { volume, .. }, _) => volume,
        (DiskTask::Recode { encryption, .. }, _) => return cipher(master, encryption.as_deref()),
        _ => return DiskCipher::Clear,
    };
    // Nobody can say of what is gone whether it was encrypted.
    cache.get::<Volume>(id).map_or(DiskCipher::Lost, |volume| cipher(master, volume.row.encryption.as_ref()))
}

fn disk_wanted(cache: &Cache, master: &MasterKey, work: &DiskWork) -> DiskWanted {
    let source_cipher = match &work.task {
        DiskTask::Recode { volume, .. } => cache
            .get::<Volume>(volume)
            .map_or(DiskCipher::Lost, |volume| cipher(master, volume.row.encryption.as_ref())),
        _ => DiskCipher::Clear,
    };
    let id = work.id.split_once('/').map_or(work.id.as_str(), |(_, disk)| disk).to_owned();
    DiskWanted {
        id,
        generation: work.generation,
        backend: backend_of(cache, &work.task),
        cipher: cipher_of(cache, master, work),
        source_cipher,
        shape: work.shape.clone(),
    }
}

fn missing_port(cache: &Cache, server: &Server) -> Option<String> {
    server.port_ids.iter().find_map(|id| match cache.get::<Port>(id) {
        None => Some(format!("Port {id} could not be found.")),
        Some(port) if cache.get::<Network>(&port.row.network_id).is_none() => {
            Some(format!("Network {} could not be found.", port.row.network_id))
        }
        Some(_) => None,
    })
}

/// Whether the host shall be rid of it.
fn leaves(server: &Server) -> bool {
    server.discard || server.power == Power::Deleted
}

fn present_ports(cache: &Cache, server: &Server) -> Vec<String> {
    let present = |id: &&String| {
        cache.get::<Port>(id).is_some_and(|port| cache.get::<Network>(&port.row.network_id).is_some())
    };
    server.port_ids.iter().filter(present).cloned().collect()
}

fn instance_wanted(server: &Server, zone: &str, nics: Vec<NicWanted>) -> InstanceWanted {
    let file = |index: usize, id: &str| server.files.get(index).map_or(id, |file| &file.name).to_owned();
    InstanceWanted {
        id: server.id.clone(),
        generation: server.generation,
        power: if leaves(server) { Power::Deleted } else { server.power },
        boot: server.boot,
        shutdown_timeout_ms: server.shutdown_timeout_ms,
        vcpus: u8::try_from(server.flavor.vcpus).expect("invariant: creation refuses more than VCPUS_MAX"),
        memory_mib: server.flavor.ram_mib,
        root_disk: RootDiskWanted {
            image_id: file(0, &server.image_id),
            size_bytes: server.root_disk_bytes,
            volume: None,
            limits: disk_limits::of_flavor(&server.flavor.extra_specs),
        },
        volumes: Vec::new(),
        kernel: server.kernel.as_ref().map(|kernel| KernelWanted {
            kernel_image_id: file(1, &kernel.kernel_id),
            ramdisk_image_id: kernel.ramdisk_id.as_ref().map(|id| file(2, id)),
            cmdline: kernel.cmdline.clone(),
        }),
        hostname: server.hostname.clone(),
        metadata: documents(server, zone, &nics),
        config_drive: server.config_drive,
        queue_pairs: queues::pairs_of(server),
        nics,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::server::test::server;

    #[test]
    fn discarded_and_deleted_servers_are_wanted_gone() {
        let mut row = server();
        assert_eq!(instance_wanted(&row, "nova", Vec::new()).power, Power::Running);
        row.discard = true;
        assert_eq!(instance_wanted(&row, "nova", Vec::new()).power, Power::Deleted);
        row.discard = false;
        row.power = Power::Deleted;
        assert_eq!(instance_wanted(&row, "nova", Vec::new()).power, Power::Deleted);
    }
}
