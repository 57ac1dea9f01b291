//! A storage host with a portal in each network, and the guest as a compute host with open-iscsi.

use std::path::PathBuf;

use tempfile::TempDir;
use uuid::Uuid;

use super::guest::Guest;
use crate::agent_process::AgentProcess;
use crate::config;
use crate::initiator::{Attached, attach_as};

/// The guest's initiator name.
const INITIATOR: &str = "iqn.1993-08.org.debian:01:lab";

/// What the guest needs before its first login. Without udev, so disks are looked up in /sys.
const PREPARE: &str = r#"
for module in crc32c_generic md5 sha256_generic sd_mod iscsi_tcp; do modprobe $module; done
mkdir -p /etc/iscsi /run/lock/iscsi
echo InitiatorName=iqn.1993-08.org.debian:01:lab > /etc/iscsi/initiatorname.iscsi
rm -rf /etc/iscsi/nodes /etc/iscsi/send_targets
# iscsid's own defaults, but for a login that is tried again faster.
cat > /etc/iscsi/iscsid.conf <<'CONF'
node.startup = manual
node.session.timeo.replacement_timeout = 120
node.conn[0].timeo.login_timeout = 5
node.conn[0].timeo.noop_out_interval = 5
node.conn[0].timeo.noop_out_timeout = 5
CONF
setsid iscsid -f > /run/iscsid.log 2>&1 &
for i in $(seq 300); do grep -q ISCSIADM_ABSTRACT /proc/net/unix && exit 0; sleep 0.1; done
cat /run/iscsid.log
exit 1
"#;

/// A storage host whose agent can be stopped and started.
pub struct StorageHost {
    config: PathBuf,
    _folder: TempDir,
}

impl StorageHost {
    /// Makes one with an empty pool and a portal in each network.
    pub fn new() -> Self {
        Self::listening_on(&["10.9.0.1:3260", "10.9.1.1:3260"])
    }

    /// Makes one with an empty pool and these portals.
    pub fn listening_on(portals: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config::write(folder.path(), "size = \"4GiB\"", portals, "");
        Self {
            config,
            _folder: folder,
        }
    }

    /// Starts the agent.
    pub fn start(&self) -> AgentProcess {
        AgentProcess::start_configured(&self.config)
    }
}

impl Guest {
    /// Boots a guest and starts its initiator.
    pub fn initiator() -> Option<Self> {
        let guest = Self::boot()?;
        guest.run(PREPARE);
        Some(guest)
    }

    /// Attaches a volume to the guest and tells its initiator how to log in at one portal.
    pub fn attach(&self, agent: &AgentProcess, volume: Uuid, options: &str) -> Attached {
        let attached = attach_as(agent, volume, INITIATOR, options);
        self.add_node(&attached, &portal(&attached));
        attached
    }

    /// Tells the initiator how to log in at a portal, as os-brick does.
    pub fn add_node(&self, attached: &Attached, portal: &str) {
        self.add_node_through("default", attached, portal);
    }

    /// The same for one of its interfaces, which may have an initiator name of its own.
    pub fn add_node_through(&self, interface: &str, attached: &Attached, portal: &str) {
        let data = &attached.connection_info["data"];
        let node = format!(
            "iscsiadm -m node -T {} -p {portal} -I {interface}",
            target(attached)
        );
        self.run(&format!(
            "{node} -o new
             {node} -o update -n node.session.auth.authmethod -v CHAP
             {node} -o update -n node.session.auth.username -v {}
             {node} -o update -n node.session.auth.password -v {}",
            data["auth_username"].as_str().unwrap(),
            data["auth_password"].as_str().unwrap(),
        ));
    }

    /// Logs in at a portal and returns the disk's device file.
    pub fn log_in(&self, attached: &Attached, portal: &str) -> String {
        self.log_in_through("default", attached, portal)
    }

    /// The same through one of its interfaces.
    pub fn log_in_through(&self, interface: &str, attached: &Attached, portal: &str) -> String {
        let before = self.disks();
        self.run(&format!(
            "iscsiadm -m node -T {} -p {portal} -I {interface} --login",
            target(attached)
        ));
        for _ in 0..100 {
            if let Some(new) = self.disks().into_iter().find(|disk| !before.contains(disk)) {
                return format!("/dev/{new}");
            }
        }
        panic!("no disk appears in the guest after the login");
    }

    /// Waits until a disk has completed `more` requests from now on.
    pub fn wait_for_requests(&self, disk: &str, more: u32) {
        let name = disk.trim_start_matches("/dev/");
        // Kernel's Documentation/block/stat.rst: reads and writes completed are the first and the fifth number.
        self.run(&format!(
            "completed() {{ read -r reads _ _ _ writes _ < /sys/block/{name}/stat; echo $((reads + writes)); }}
             end=$(($(completed) + {more}))
             for i in $(seq 900); do [ $(completed) -lt $end ] || exit 0; sleep 0.1; done
             echo 'no progress on {name}'
             exit 1"
        ));
    }

    /// Logs out at all portals.
    pub fn log_out(&self, attached: &Attached) {
        self.log_out_through("default", attached);
    }

    /// The same through one of its interfaces.
    pub fn log_out_through(&self, interface: &str, attached: &Attached) {
        self.run(&format!(
            "iscsiadm -m node -T {} -I {interface} --logout",
            target(attached)
        ));
    }

    /// Returns the names of the SCSI disks that can be opened.
    fn disks(&self) -> Vec<String> {
        let said = self.run("cd /sys/block; for disk in sd*; do [ ! -b /dev/$disk ] || echo $disk; done");
        said.split_whitespace().map(str::to_owned).collect()
    }
}

/// Returns the portal of `connection_info`.
pub fn portal(attached: &Attached) -> String {
    attached.connection_info["data"]["target_portal"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Returns the target of `connection_info`.
fn target(attached: &Attached) -> &str {
    attached.connection_info["data"]["target_iqn"].as_str().unwrap()
}
