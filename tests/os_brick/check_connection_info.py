"""Feeds connection_info to os-brick's iSCSI connector and checks what the connector makes of it.

Reads {"connection_info": ..., "multipath": bool, "mode": "rw"|"ro"} from standard input. Commands that the
connector would run (iscsiadm) are recorded and answered here; nothing outside this process is touched.
"""

import ipaddress
import json
import re
import sys

from os_brick.initiator import connector as connector_factory
from os_brick.initiator.connectors import iscsi


class RecordingConnector(iscsi.ISCSIConnector):
    """The real connector with iscsiadm played by a script: a login makes the session appear in its list."""

    def __init__(self):
        super().__init__(root_helper=None)
        self.updates = {}
        self.logged_in = None

    def _execute(self, *command, **_):
        raise AssertionError(f"os-brick ran something this check does not play: {command}")

    def _run_iscsiadm(self, connection_properties, iscsi_command, **_):
        command = list(iscsi_command)
        if command == ["--login"]:
            self.logged_in = (connection_properties["target_portal"], connection_properties["target_iqn"])
        elif command[:2] == ["--op", "update"]:
            self.updates[command[command.index("-n") + 1]] = command[command.index("-v") + 1]
        return "", ""

    def _run_iscsi_session(self):
        # As `iscsiadm -m session` prints it: the address in its canonical form.
        if self.logged_in is None:
            return "", ""
        portal, iqn = self.logged_in
        host, port = portal.rsplit(":", 1)
        address = ipaddress.ip_address(host.strip("[]"))
        printed = f"[{address}]" if address.version == 6 else str(address)
        return f"tcp: [1] {printed}:{port},1 {iqn} (non-flash)\n", ""

    def _get_transport(self):
        return "default"


def main():
    case = json.load(sys.stdin)
    info = case["connection_info"]
    assert sorted(info) == ["data", "driver_volume_type"], sorted(info)
    protocol, data = info["driver_volume_type"], info["data"]
    assert connector_factory.get_connector_mapping()[protocol.upper()].endswith("ISCSIConnector"), protocol

    # Types that os-brick compares with what the kernel and iscsiadm print.
    assert type(data["target_lun"]) is int, data["target_lun"]
    assert data["target_iqn"] == data["target_iqn"].lower()
    assert data["target_discovered"] is False
    assert re.fullmatch(r"(\d+\.\d+\.\d+\.\d+|\[[0-9a-f:.]+\]):\d+", data["target_portal"]), data["target_portal"]
    # Another spelling of the address never matches what iscsiadm prints, and os-brick waits for the match forever.
    host = data["target_portal"].rsplit(":", 1)[0].strip("[]")
    assert host == str(ipaddress.ip_address(host)), host
    assert data["auth_method"] == "CHAP"
    assert data["auth_username"] and 12 <= len(data["auth_password"]) <= 16, "Windows takes 12 to 16 bytes"
    assert data["access_mode"] == case["mode"]
    assert data["encrypted"] is False
    assert data["discard"] is True
    assert data["qos_specs"] is None
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", data["volume_id"]), data["volume_id"]
    plural = [data.get(key) for key in ("target_portals", "target_iqns", "target_luns")]
    if case["multipath"]:
        assert all(type(values) is list and values for values in plural), plural
        assert len({len(values) for values in plural}) == 1, plural
        assert all(type(lun) is int for lun in plural[2]), plural

    connector = RecordingConnector()
    expected = (data["target_portal"], data["target_iqn"], data["target_lun"])
    targets = connector._get_all_targets(data)
    assert expected in [tuple(target) for target in targets], (expected, targets)
    assert len(targets) == (len(plural[0]) if plural[0] else 1), targets
    if case["multipath"]:
        assert connector._get_ips_iqns_luns(data) == targets
    each = list(connector._iterate_all_targets(data))
    assert [(one["target_portal"], one["target_iqn"], one["target_lun"]) for one in each] == [
        tuple(target) for target in targets
    ], each
    for one in each:
        assert not {"target_portals", "target_iqns", "target_luns"} & set(one), one
    paths = connector._get_device_path(data)
    # udev leaves the brackets of an IPv6 address out.
    portal = expected[0].translate({ord("["): None, ord("]"): None})
    assert f"/dev/disk/by-path/ip-{portal}-iscsi-{expected[1]}-lun-{expected[2]}" in paths, paths

    for one in each:
        connector.logged_in = None
        session, _ = connector._connect_to_iscsi_portal_unsafe(one)
        assert session == "1", "the session that iscsiadm prints is not recognised as this target's"
        assert connector.updates["node.session.auth.authmethod"] == "CHAP", connector.updates
        assert connector.updates["node.session.auth.username"] == data["auth_username"]
        assert connector.updates["node.session.auth.password"] == data["auth_password"]
    print(f"os-brick takes it: {len(each)} target(s)")


if __name__ == "__main__":
    main()
