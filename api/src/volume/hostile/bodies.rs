//! Right bodies, of which wrong ones are made.

use axum::http::Method;
use serde_json::{Value, json};

use super::Hostile;

/// A body that is right, so far as the service can tell without a host, at a path.
pub(super) async fn right_bodies(hostile: &Hostile) -> Vec<(Method, String, &'static str, Value)> {
    let volume = hostile.volume().await;
    let kind = hostile.made("types", json!({"volume_type": {"name": "kind"}})).await;
    let group_type = hostile.made("group_types", json!({"group_type": {"name": "kind"}})).await;
    let group = json!({"group": {"group_type": group_type, "volume_types": [kind]}});
    let group = hostile.made("groups", group).await;
    let project = {
        let token = hostile.cloud.admin_token().await;
        let caller = hostile.cloud.control.token_caller(&token, String::new()).await.unwrap();
        caller.project_id().unwrap().to_owned()
    };
    let post = |path: &str, key, fields| (Method::POST, path.to_owned(), key, fields);
    let put = |path: String, key, fields| (Method::PUT, path, key, fields);
    let act = |key, fields| (Method::POST, format!("volumes/{volume}/action"), key, fields);
    vec![
        post(
            "volumes",
            "volume",
            json!({"size": 1, "name": "n", "description": "d", "metadata": {}, "availability_zone": "nova",
                   "volume_type": "kind", "imageRef": "", "snapshot_id": "", "source_volid": "", "backup_id": "",
                   "group_id": "", "consistencygroup_id": "", "multiattach": false}),
        ),
        post(
            "snapshots",
            "snapshot",
            json!({"volume_id": volume, "name": "n", "description": "d", "metadata": {}, "force": true}),
        ),
        post(
            "backups",
            "backup",
            json!({"volume_id": volume, "name": "n", "description": "d", "metadata": {}, "container": "c",
                   "incremental": false, "force": true, "snapshot_id": null, "availability_zone": "nova"}),
        ),
        post(
            "attachments",
            "attachment",
            json!({"volume_uuid": volume, "instance_uuid": "00000000-0000-4000-8000-000000000000",
                   "connector": {"host": "h"}, "mode": "rw"}),
        ),
        post(
            "volume-transfers",
            "transfer",
            json!({"volume_id": volume, "name": "n", "no_snapshots": false}),
        ),
        post(
            "groups",
            "group",
            json!({"group_type": group_type, "volume_types": [kind], "name": "n", "description": "d",
                   "availability_zone": "nova"}),
        ),
        post(
            "groups/action",
            "create-from-src",
            json!({"source_group_id": group, "name": "n", "description": "d"}),
        ),
        post(
            "group_snapshots",
            "group_snapshot",
            json!({"group_id": group, "name": "n", "description": "d"}),
        ),
        post(
            "group_types",
            "group_type",
            json!({"name": "g", "description": "d", "is_public": true, "group_specs": {}}),
        ),
        post(
            "types",
            "volume_type",
            json!({"name": "t", "description": "d", "extra_specs": {},
                                          "os-volume-type-access:is_public": true}),
        ),
        post("qos-specs", "qos_specs", json!({"name": "q", "consumer": "both", "read_iops_sec": "1"})),
        post(
            "backups/import_record",
            "backup-record",
            json!({"backup_service": "cinder.backup.drivers.posix.PosixBackupDriver", "backup_url": "e30="}),
        ),
        put(format!("volumes/{volume}"), "volume", json!({"name": "n", "description": "d", "metadata": {}})),
        put(format!("volumes/{volume}/metadata"), "metadata", json!({"k": "v"})),
        put(format!("volumes/{volume}/metadata/k"), "meta", json!({"k": "v"})),
        put(
            format!("groups/{group}"),
            "group",
            json!({"name": "n", "description": "d", "add_volumes": "",
                                                      "remove_volumes": ""}),
        ),
        put(
            format!("types/{kind}"),
            "volume_type",
            json!({"name": "n", "description": "d", "is_public": true}),
        ),
        put(format!("types/{kind}/extra_specs/k"), "k", json!("v")),
        put(format!("group_types/{group_type}"), "group_type", json!({"name": "n", "description": "d"})),
        put(format!("default-types/{project}"), "default_type", json!({"volume_type": "kind"})),
        put(format!("os-quota-sets/{project}"), "quota_set", json!({"volumes": 10, "gigabytes": 1000})),
        put("os-quota-class-sets/default".to_owned(), "quota_class_set", json!({"volumes": 10})),
        put("os-services/disable".to_owned(), "binary", json!("cinder-volume")),
        (
            Method::POST,
            format!("types/{kind}/encryption"),
            "encryption",
            json!({"provider": "luks", "cipher": "c", "key_size": 256, "control_location": "front-end"}),
        ),
        (Method::POST, format!("types/{kind}/action"), "addProjectAccess", json!({"project": project})),
        act("os-extend", json!({"new_size": 2})),
        act(
            "os-reset_status",
            json!({"status": "available", "attach_status": "detached", "migration_status": "none"}),
        ),
        act(
            "os-attach",
            json!({"instance_uuid": "i", "mountpoint": "/dev/vdb", "mode": "rw", "host_name": "h"}),
        ),
        act("os-detach", json!({"attachment_id": "a"})),
        act("os-force_detach", json!({"attachment_id": "a", "connector": {}})),
        act("os-set_bootable", json!({"bootable": true})),
        act("os-update_readonly_flag", json!({"readonly": true})),
        act("os-retype", json!({"new_type": "kind", "migration_policy": "never"})),
        act(
            "os-volume_upload_image",
            json!({"image_name": "i", "force": true, "disk_format": "raw",
                                            "container_format": "bare", "visibility": "private", "protected": false}),
        ),
        act("os-set_image_metadata", json!({"metadata": {"k": "v"}})),
        act("os-unset_image_metadata", json!({"key": "k"})),
        act("os-show_image_metadata", json!(null)),
        act("os-initialize_connection", json!({"connector": {}})),
        act("os-terminate_connection", json!({"connector": {}})),
        act("os-migrate_volume", json!({"host": "h"})),
        act("revert", json!({"snapshot_id": "s"})),
    ]
}
