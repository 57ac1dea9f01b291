//! The clients that the kernel knows, and what they hold (`/proc/fs/nfsd/clients/N/{info,states,ctl}`).

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use quarry_contract::ShareClient;
use tracing::info;

/// A client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    folder: PathBuf,
    /// Where it comes from, without port.
    pub(crate) address: String,
    /// The minor version of NFSv4 it speaks.
    minor_version: Option<u32>,
    /// How long ago it has said that it is still there; kernels before 5.13 do not tell.
    renewed_ago: Option<Duration>,
    states: Vec<State>,
}

/// Something a client holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    /// `open`, `lock`, `deleg`, `layout`.
    kind: String,
    /// The device of the file system, as the kernel prints it: `07:00`.
    device: String,
}

impl Client {
    fn parse(folder: PathBuf, info: &str, states: &str) -> Self {
        let address = info
            .lines()
            .find_map(|line| line.strip_prefix("address: "))
            .map(|quoted| quoted.trim_matches('"'))
            // The port is behind the last colon, also of an IPv6 address.
            .map(|address| address.rsplit_once(':').map_or(address, |(host, _)| host))
            .unwrap_or("an unknown address");
        let number = |key: &str| {
            let text = info.lines().find_map(|line| line.strip_prefix(key))?;
            text.trim().parse::<u32>().ok()
        };
        Self {
            folder,
            address: address.to_owned(),
            minor_version: number("minor version: "),
            renewed_ago: number("seconds from last renew: ")
                .map(|seconds| Duration::from_secs(seconds.into())),
            states: states.lines().filter_map(State::parse).collect(),
        }
    }

    /// Describes it, with what it holds of a device. `None` when its address is not known.
    pub(crate) fn describe(&self, device: Option<&str>) -> Option<ShareClient> {
        let address: IpAddr = self.address.trim_matches(['[', ']']).parse().ok()?;
        let held = |device| self.states.iter().filter(|state| state.device == device).count() as u64;
        Some(ShareClient {
            address: address.to_canonical(),
            versions: self
                .minor_version
                .map(|minor| format!("4.{minor}"))
                .into_iter()
                .collect(),
            last_seen: self
                .renewed_ago
                .and_then(|ago| SystemTime::now().checked_sub(ago)),
            held: device.map(held),
        })
    }

    /// Tells whether it holds anything of a device.
    pub(crate) fn holds(&self, device: &str) -> bool {
        self.states.iter().any(|state| state.device == device)
    }

    /// Tells whether it has a lock on another device than this one. Everything else it can get again by itself.
    pub(crate) fn has_locks_beside(&self, device: &str) -> bool {
        self.states
            .iter()
            .any(|state| state.kind == "lock" && state.device != device)
    }

    /// Has the kernel forget all that it holds, of every export.
    pub(crate) fn expire(&self) -> io::Result<()> {
        info!(client = self.address, "the client's state is ended");
        match fs::write(self.folder.join("ctl"), "expire\n") {
            // It has gone by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

impl State {
    /// Parses `- 0x…: { type: open, access: -w, …, superblock: "07:00:133", filename: "/held", … }`. The last part of
    /// the superblock is the file.
    fn parse(line: &str) -> Option<Self> {
        let after = |key: &str| line.split_once(key).map(|(_, rest)| rest);
        let kind = after("type: ")?.split([',', ' ']).next()?;
        let superblock = after("superblock: \"")?.split('"').next()?;
        let (device, _) = superblock.rsplit_once(':')?;
        Some(Self {
            kind: kind.to_owned(),
            device: device.to_owned(),
        })
    }
}

/// Returns how the kernel prints a device (`st_dev`) among the states.
pub(crate) fn device_text(device: u64) -> String {
    // The encoding of makedev(3).
    let major = ((device >> 8) & 0xfff) | ((device >> 32) & !0xfff);
    let minor = (device & 0xff) | ((device >> 12) & !0xff);
    format!("{major:02x}:{minor:02x}")
}

/// Returns the clients below a folder. What has gone meanwhile is left out.
pub(crate) fn clients(folder: &Path) -> io::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for entry in fs::read_dir(folder)? {
        let folder = entry?.path();
        let read = |name: &str| {
            fs::read(folder.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        if let (Ok(info), Ok(states)) = (read("info"), read("states")) {
            clients.push(Client::parse(folder, &info, &states));
        }
    }
    Ok(clients)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "clientid: 0xa762579a6b0a1b54\naddress: \"10.1.0.11:939\"\nstatus: confirmed\n\
        name: \"Linux NFSv4.1 c1/lab\"\nminor version: 1\nseconds from last renew: 7\n";
    const STATES: &str = "- 0x00000001541b0a6b9a5762a702000000: { type: open, access: -w, deny: --, superblock: \
        \"07:00:133\", filename: \"/held\", owner: \"open id:\\x00\" }\n\
        - 0x00000001541b0a6b9c5762a703000000: { type: deleg, access: r, superblock: \"07:01:131\", filename: \
        \"/probe\" }\n";

    #[test]
    fn what_a_client_holds_is_known_by_the_device() {
        let client = Client::parse("/clients/3".into(), INFO, STATES);
        assert_eq!(client.address, "10.1.0.11");
        let described = client.describe(Some("07:00")).unwrap();
        assert_eq!(
            (described.versions.join(" ").as_str(), described.held),
            ("4.1", Some(1))
        );
        let ago = described.last_seen.unwrap().elapsed().unwrap();
        assert!((7..60).contains(&ago.as_secs()), "{ago:?}");
        assert!(client.holds("07:00") && client.holds("07:01") && !client.holds("07:02"));
        assert!(!client.has_locks_beside("07:00"), "a delegation is no lock");
        let locked = STATES.replace("deleg", "lock");
        let client = Client::parse(
            "/clients/3".into(),
            &INFO.replace("10.1.0.11", "[fd00::7]"),
            &locked,
        );
        assert_eq!(client.address, "[fd00::7]");
        assert_eq!(client.describe(None).unwrap().address.to_string(), "fd00::7");
        assert!(client.has_locks_beside("07:00") && !client.has_locks_beside("07:01"));
    }

    #[test]
    fn devices_are_printed_as_the_kernel_does() {
        assert_eq!(device_text(1792), "07:00");
        assert_eq!(device_text(0x1032a), "103:2a");
    }
}
