//! What Ganesha and its bus are told at their start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use quarry_contract::ShareAddress;

/// How the server is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GaneshaConfig {
    /// A folder of its own: configuration, exports, the state that clients may reclaim, logs.
    pub state_dir: PathBuf,
    /// Where it listens; `[::]` is every address of both families.
    pub listen: SocketAddr,
    /// The addresses that clients are told. Needed when it listens on every address.
    pub addresses: Vec<ShareAddress>,
    /// The minor versions of NFSv4 it speaks. With 0 among them a restart always takes the whole grace period.
    pub minor_versions: Vec<u8>,
    /// NFSv3 beside it; `None` when it is not spoken.
    pub nfs3: Option<Nfs3>,
    /// How long clients have to come back after a restart before others may take their locks, in seconds.
    pub grace_seconds: u32,
    /// The programs.
    pub programs: Programs,
}

/// What NFSv3 needs beside the port of NFS: a portmapper, which has to run, and the protocol that clients mount with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nfs3 {
    /// The TCP port of the mount protocol (RFC 1813, appendix I).
    pub mount_port: u16,
}

/// The programs that are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `ganesha.nfsd`.
    pub ganesha: PathBuf,
    /// `dbus-daemon`.
    pub dbus: PathBuf,
    /// `setpriv` of util-linux.
    pub setpriv: PathBuf,
}

impl Default for Programs {
    fn default() -> Self {
        Self {
            ganesha: "/usr/bin/ganesha.nfsd".into(),
            dbus: "/usr/bin/dbus-daemon".into(),
            setpriv: "/usr/bin/setpriv".into(),
        }
    }
}

/// Returns the versions of NFS as Ganesha's configuration has them.
pub(crate) fn protocols(with_nfs3: bool) -> &'static str {
    if with_nfs3 { "3, 4" } else { "4" }
}

impl GaneshaConfig {
    /// Returns the defaults: NFSv4.1 and 4.2, ten seconds of grace.
    pub fn new(state_dir: PathBuf, listen: SocketAddr) -> Self {
        Self {
            state_dir,
            listen,
            addresses: Vec::new(),
            minor_versions: vec![1, 2],
            nfs3: None,
            grace_seconds: 10,
            programs: Programs::default(),
        }
    }

    pub(crate) fn bus_socket(&self) -> PathBuf {
        self.state_dir.join("bus.sock")
    }

    pub(crate) fn bus_config(&self) -> PathBuf {
        self.state_dir.join("bus.conf")
    }

    pub(crate) fn ganesha_config(&self) -> PathBuf {
        self.state_dir.join("ganesha.conf")
    }

    pub(crate) fn exports_dir(&self) -> PathBuf {
        self.state_dir.join("exports.d")
    }

    /// Returns the configuration of the bus: root owns names and calls, nobody else does anything.
    pub(crate) fn render_bus(&self) -> String {
        format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="root"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_type="signal"/>
  </policy>
  <policy user="root">
    <allow own="*"/>
    <allow send_destination="*"/>
  </policy>
</busconfig>
"#,
            self.bus_socket().display()
        )
    }

    /// Returns Ganesha's configuration. Nobody has access by default.
    pub(crate) fn render_ganesha(&self, plugins: &Path) -> String {
        let minor_versions: Vec<String> = self.minor_versions.iter().map(u8::to_string).collect();
        let minor_versions = minor_versions.join(", ");
        let mount_port = match self.nfs3 {
            None => String::new(),
            Some(nfs3) => format!("\n  MNT_Port = {};", nfs3.mount_port),
        };
        let state = self.state_dir.display();
        format!(
            r#"NFS_CORE_PARAM {{
  NFS_Port = {port};{mount_port}
  Bind_addr = {address};
  Protocols = {protocols};
  Enable_UDP = false;
  Enable_NLM = false;
  Enable_RQUOTA = false;
  Mount_Path_Pseudo = true;
  Plugins_Dir = "{plugins}";
  Dbus_Name_Prefix = {prefix};
}}
NFSv4 {{
  Lease_Lifetime = {grace};
  Grace_Period = {grace};
  RecoveryBackend = fs_ng;
  RecoveryRoot = "{state}/recovery";
  Only_Numeric_Owners = true;
  Minor_Versions = {minor_versions};
}}
NFS_KRB5 {{
  Active_krb5 = false;
  CCacheDir = "{state}";
}}
EXPORT_DEFAULTS {{
  Access_Type = NONE;
  SecType = sys;
  Protocols = {protocols};
  Transports = TCP;
}}
%dir "{state}/exports.d"
"#,
            port = self.listen.port(),
            protocols = protocols(self.nfs3.is_some()),
            address = self.listen.ip(),
            plugins = plugins.display(),
            prefix = crate::bus::NAME_PREFIX,
            grace = self.grace_seconds,
        )
    }
}
