//! Connection info the way OpenStack's clients (os-brick, through Nova and Cinder) read it.
//!
//! Rules, from what os-brick does with each key:
//! - the singular keys are always there; the plural ones when there is more than one portal or the host uses
//!   several paths, all of one length, because os-brick zips them;
//! - `target_lun` is a number: as text it attaches and is never found again at detach;
//! - portals are IP literals, because os-brick compares them with iscsiadm's output as text;
//! - block sizes are text;
//! - os-brick has no keys for a target that proves itself (mutual CHAP), so that those credentials are not here.
//!
//! Keys come out sorted, so the same attachment renders to the same bytes for ever.

use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use crate::catalog::record::AccessMode;
use crate::resources::ConnectionInfo;

pub(super) fn render(info: &ConnectionInfo) -> Value {
    let portals: Vec<String> = info.portals.iter().map(ToString::to_string).collect();
    let mut data = Map::new();
    let mut set = |key: &str, value: Value| data.insert(key.to_owned(), value);
    set("target_discovered", json!(false));
    set("target_portal", json!(portals.first()));
    set("target_iqn", json!(info.target_name));
    set("target_lun", json!(info.lun));
    if portals.len() > 1 || info.multipath {
        set("target_iqns", json!(vec![&info.target_name; portals.len()]));
        set("target_luns", json!(vec![info.lun; portals.len()]));
        set("target_portals", json!(portals));
    }
    set("volume_id", json!(info.volume.to_string()));
    set("auth_method", json!("CHAP"));
    set("auth_username", json!(info.chap.username));
    set("auth_password", json!(info.chap.secret.expose_secret()));
    set(
        "access_mode",
        json!(match info.mode {
            AccessMode::ReadOnly => "ro",
            AccessMode::ReadWrite => "rw",
        }),
    );
    set("qos_specs", Value::Null);
    set("encrypted", json!(false));
    set("cacheable", json!(false));
    // Absent when it is not so: os-brick's callers test for the key.
    if info.discard {
        set("discard", json!(true));
    }
    set("enforce_multipath", json!(info.enforce_multipath));
    set("logical_block_size", json!(info.logical_block_bytes.to_string()));
    set(
        "physical_block_size",
        json!(info.physical_block_bytes.to_string()),
    );
    json!({ "driver_volume_type": "iscsi", "data": data })
}

#[cfg(test)]
mod tests {
    use quarry_contract::{ChapCredentials, VolumeId};
    use uuid::Uuid;

    use super::*;

    fn info(portals: &[&str], multipath: bool) -> ConnectionInfo {
        ConnectionInfo {
            volume: VolumeId(Uuid::from_u128(0x6f96_19ff)),
            portals: portals.iter().map(|text| text.parse().unwrap()).collect(),
            target_name: "iqn.2026-11.io.quarry:volume-1".into(),
            lun: 0,
            chap: ChapCredentials {
                username: "quarry-1".into(),
                secret: "abcdefghijklmnop".to_owned().into(),
            },
            target_chap: Some(ChapCredentials {
                username: "quarry-target-1".into(),
                secret: "ponmlkjihgfedcba".to_owned().into(),
            }),
            mode: AccessMode::ReadWrite,
            multipath,
            enforce_multipath: false,
            discard: true,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        }
    }

    #[test]
    fn single_path_has_the_singular_keys_only_and_a_number_for_the_lun() {
        let expected = json!({
            "driver_volume_type": "iscsi",
            "data": {
                "target_discovered": false,
                "target_portal": "127.0.0.1:3260",
                "target_iqn": "iqn.2026-11.io.quarry:volume-1",
                "target_lun": 0,
                "volume_id": "00000000-0000-0000-0000-00006f9619ff",
                "auth_method": "CHAP",
                "auth_username": "quarry-1",
                "auth_password": "abcdefghijklmnop",
                "access_mode": "rw",
                "qos_specs": null,
                "encrypted": false,
                "cacheable": false,
                "discard": true,
                "enforce_multipath": false,
                "logical_block_size": "512",
                "physical_block_size": "4096",
            },
        });
        assert_eq!(render(&info(&["127.0.0.1:3260"], false)), expected);
    }

    #[test]
    fn several_portals_or_multipath_add_plural_keys_of_one_length() {
        for (portals, multipath) in [
            (&["10.0.0.1:3260", "[fd00::1]:3260"][..], false),
            (&["10.0.0.1:3260"][..], true),
        ] {
            let rendered = render(&info(portals, multipath));
            let data = &rendered["data"];
            assert_eq!(data["target_portals"], json!(portals));
            for key in ["target_iqns", "target_luns"] {
                assert_eq!(data[key].as_array().unwrap().len(), portals.len(), "{key}");
            }
            assert_eq!(data["target_portal"], json!(portals[0]));
        }
    }

    #[test]
    fn read_only_without_discard_says_so() {
        let info = ConnectionInfo {
            mode: AccessMode::ReadOnly,
            discard: false,
            ..info(&["127.0.0.1:1"], false)
        };
        let rendered = render(&info);
        assert_eq!(rendered["data"]["access_mode"], "ro");
        assert!(rendered["data"].get("discard").is_none());
    }
}
