//! What is written of an export, and what `exportfs` makes of it.
//!
//! Among networks the kernel's helper takes the first line that fits a client, so the order of an
//! [`AccessTable`](quarry_contract::AccessTable) is the order of the lines. Only among networks: a line for a single host
//! (`10.0.0.7`) goes before all of them, so hosts are written as networks (`10.0.0.7/32`) and there is one order. And
//! `0.0.0.0/0` and `::/0` match nobody: they are written as their two halves.
//!
//! `mp` on every line has nothing exported but a mounted file system, `fsid` names it in every file handle by what it is,
//! not by what the kernel or `blkid` think of its device.
//!
//! A comment before the lines of an export says what it is for, from which everything is known again after a restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quarry_contract::{AccessLevel, LoadedAccess, Network, ShareExport, ShareVersion, Squash};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const COMMENT: &str = "# quarry ";

/// An export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExportRecord {
    /// What is exported.
    pub(crate) version: ShareVersion,
    /// The device of the mount.
    pub(crate) device: u64,
    /// Whose user ids are believed.
    pub(crate) squash: Squash,
    /// Who may do what: networks in the order in which they decide.
    pub(crate) access: Vec<(String, AccessLevel)>,
}

/// One line: whom it is about, in the words of the table, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientLine {
    pub(crate) client: String,
    pub(crate) level: AccessLevel,
}

/// A line of what `exportfs` has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadedLine {
    pub(crate) client: String,
    pub(crate) options: Vec<String>,
}

/// Returns the name of an export's folder.
pub(crate) fn folder_of(version: ShareVersion) -> String {
    match version {
        ShareVersion::Share(id) => format!("share-{id}"),
        ShareVersion::Snapshot(id) => format!("share-snapshot-{id}"),
    }
}

/// Returns what names an export in file handles. A share and a snapshot are never named the same.
fn fsid_of(version: ShareVersion) -> Uuid {
    Uuid::new_v5(
        &Uuid::NAMESPACE_URL,
        format!("quarry:{}", folder_of(version)).as_bytes(),
    )
}

/// Writes a network as the table has it.
pub(crate) fn client_of(network: Network) -> String {
    format!("{}/{}", network.address(), network.prefix())
}

impl ExportRecord {
    pub(crate) fn of(export: &ShareExport) -> Self {
        let each = |(network, level): (Network, AccessLevel)| (network.to_string(), level);
        Self {
            version: export.mounted.version,
            device: export.mounted.device,
            squash: export.squash,
            access: LoadedAccess::of(&export.access).0.into_iter().map(each).collect(),
        }
    }

    /// Returns the table it is for.
    pub(crate) fn loaded(&self) -> LoadedAccess {
        let each = |(text, level): &(String, AccessLevel)| Some((Network::parse(text).ok()?, *level));
        LoadedAccess(self.access.iter().filter_map(each).collect())
    }

    /// Returns the networks that are written, in their order, none twice.
    pub(crate) fn networks(&self) -> Vec<(Network, AccessLevel)> {
        let mut networks: Vec<(Network, AccessLevel)> = Vec::new();
        for (network, level) in self.loaded().0 {
            let written = match network.halves().filter(|_| network.prefix() == 0) {
                Some((low, high)) => vec![low, high],
                None => vec![network],
            };
            for network in written {
                // The first decides; a second would be an error.
                if !networks.iter().any(|(present, _)| *present == network) {
                    networks.push((network, level));
                }
            }
        }
        networks
    }

    /// Returns the client lines, in their order.
    pub(crate) fn lines(&self) -> Vec<ClientLine> {
        let each = |(network, level)| ClientLine {
            client: client_of(network),
            level,
        };
        self.networks().into_iter().map(each).collect()
    }

    /// Returns the options of a line, in the words of `exportfs`.
    fn options(&self, level: AccessLevel) -> Vec<String> {
        let squash: &[&str] = match self.squash {
            Squash::None => &["no_root_squash", "no_all_squash"],
            Squash::Root => &["root_squash", "no_all_squash"],
            Squash::All => &["root_squash", "all_squash"],
        };
        let fixed = [
            "sync",
            "no_subtree_check",
            "insecure",
            "sec=sys",
            "anonuid=65534",
            "anongid=65534",
        ];
        let mut options = vec![level.to_string(), format!("fsid={}", fsid_of(self.version))];
        options.extend(squash.iter().chain(&fixed).map(|option| (*option).to_owned()));
        options
    }

    /// Tells whether what is loaded is this, line by line and in order.
    pub(crate) fn is_loaded_as(&self, loaded: &[LoadedLine]) -> bool {
        let lines = self.lines();
        lines.len() == loaded.len()
            && lines.iter().zip(loaded).all(|(line, loaded)| {
                let has = |option: &String| loaded.options.contains(option);
                loaded.client == line.client
                    && self.options(line.level).iter().all(has)
                    && loaded.level() == Some(line.level)
                    && loaded.options.iter().any(|option| option == "mountpoint")
            })
    }
}

impl LoadedLine {
    /// Returns what the clients may do; `None` when it is not said.
    pub(crate) fn level(&self) -> Option<AccessLevel> {
        let has = |level: &str| self.options.iter().any(|option| option == level);
        match (has("ro"), has("rw")) {
            (true, false) => Some(AccessLevel::ReadOnly),
            (false, true) => Some(AccessLevel::ReadWrite),
            _ => None,
        }
    }
}

/// Writes the table. `root` is where the exports are.
pub(crate) fn render<'a>(root: &Path, exports: impl IntoIterator<Item = &'a ExportRecord>) -> String {
    let mut text = String::from("# Written by quarry; what is changed here is overwritten.\n");
    for export in exports {
        // Of names, numbers and booleans; it cannot fail.
        let record = serde_json::to_string(export).unwrap_or_default();
        text.push_str(&format!("{COMMENT}{record}\n"));
        let path = root.join(folder_of(export.version));
        for line in export.lines() {
            let options = export.options(line.level).join(",");
            text.push_str(&format!("{} {}({options},mp)\n", path.display(), line.client));
        }
    }
    text
}

/// Reads what a table was written for.
pub(crate) fn parse(text: &str) -> BTreeMap<ShareVersion, ExportRecord> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix(COMMENT)?).ok())
        .map(|record: ExportRecord| (record.version, record))
        .collect()
}

/// Reads what `exportfs` has loaded (`/var/lib/nfs/etab`: `PATH<TAB>CLIENT(OPTION,...)`), by path, in its order.
pub(crate) fn parse_loaded(text: &str) -> BTreeMap<PathBuf, Vec<LoadedLine>> {
    let mut loaded: BTreeMap<PathBuf, Vec<LoadedLine>> = BTreeMap::new();
    for line in text.lines() {
        let Some((path, rest)) = line.split_once('\t') else {
            continue;
        };
        let Some((client, options)) = rest.trim_end().rsplit_once('(') else {
            continue;
        };
        let options = options.trim_end_matches(')').split(',').map(str::to_owned);
        loaded.entry(path.into()).or_default().push(LoadedLine {
            client: client.to_owned(),
            options: options.collect(),
        });
    }
    loaded
}

#[cfg(test)]
mod tests {
    use super::*;

    use AccessLevel::{ReadOnly, ReadWrite};
    use quarry_contract::{ShareId, ShareSnapshotId};

    fn record(access: &[(&str, AccessLevel)]) -> ExportRecord {
        ExportRecord {
            version: ShareVersion::Share(ShareId(Uuid::from_u128(1))),
            device: 1795,
            squash: Squash::None,
            access: access
                .iter()
                .map(|(network, level)| ((*network).to_owned(), *level))
                .collect(),
        }
    }

    fn lines(access: &[(&str, AccessLevel)]) -> Vec<String> {
        let each = |line: ClientLine| format!("{} {}", line.client, line.level);
        record(access).lines().into_iter().map(each).collect()
    }

    #[test]
    fn hosts_are_networks_and_everybody_is_two_halves() {
        assert_eq!(
            lines(&[
                ("10.0.0.1", ReadWrite),
                ("10.0.0.0/8", ReadOnly),
                ("0.0.0.0/0", ReadWrite)
            ]),
            [
                "10.0.0.1/32 rw",
                "10.0.0.0/8 ro",
                "0.0.0.0/1 rw",
                "128.0.0.0/1 rw"
            ]
        );
        assert_eq!(
            lines(&[("fd00::4", ReadWrite), ("fd00::/110", ReadOnly)]),
            ["fd00::4/128 rw", "fd00::/110 ro"]
        );
        assert_eq!(
            lines(&[("8000::/1", ReadOnly), ("::/0", ReadWrite)]),
            ["8000::/1 ro", "::/1 rw"],
            "no network twice: the first decides"
        );
    }

    #[test]
    fn a_table_says_what_it_is_for() {
        let one = record(&[("10.0.0.0/8", ReadOnly), ("fd00::1", ReadWrite)]);
        let two = ExportRecord {
            version: ShareVersion::Snapshot(ShareSnapshotId(Uuid::from_u128(1))),
            squash: Squash::All,
            ..record(&[])
        };
        let text = render(Path::new("/srv/quarry"), [&one, &two]);
        assert_eq!(
            parse(&text).into_values().collect::<Vec<_>>(),
            [one.clone(), two.clone()]
        );
        let written: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(written.len(), 2);
        assert_eq!(
            written[0],
            "/srv/quarry/share-00000000-0000-0000-0000-000000000001 10.0.0.0/8(ro,\
             fsid=751f28fc-c316-5850-b029-b5bf49fb160e,no_root_squash,no_all_squash,sync,no_subtree_check,insecure,\
             sec=sys,anonuid=65534,anongid=65534,mp)"
        );
        assert_ne!(
            fsid_of(one.version),
            fsid_of(two.version),
            "the same id, another kind"
        );
    }

    #[test]
    fn only_what_was_asked_for_counts_as_loaded() {
        let export = record(&[("10.0.0.1", ReadWrite), ("10.0.0.0/8", ReadOnly)]);
        let path = "/srv/quarry/share-00000000-0000-0000-0000-000000000001";
        let line = |client: &str, level: &str, more: &str| {
            format!(
                "{path}\t{client}({level},sync,wdelay,hide,nocrossmnt,insecure,no_root_squash,no_all_squash,\
                 no_subtree_check,secure_locks,acl,no_pnfs,fsid={},{more}anonuid=65534,anongid=65534,sec=sys,{level},\
                 insecure,no_root_squash,no_all_squash)\n",
                fsid_of(export.version)
            )
        };
        let is_loaded = |text: &str| {
            let loaded = parse_loaded(text);
            export.is_loaded_as(loaded.get(Path::new(path)).map_or(&[], Vec::as_slice))
        };
        let (host, network) = (
            line("10.0.0.1/32", "rw", "mountpoint,"),
            line("10.0.0.0/8", "ro", "mountpoint,"),
        );
        let other = "/srv/other\t*(rw,sync)\n";
        assert!(is_loaded(&format!("{host}{other}{network}")));
        assert!(!is_loaded(&format!("{network}{host}")), "another order");
        assert!(!is_loaded(&host), "a line less");
        assert!(
            !is_loaded(&format!("{host}{network}{}", line("*", "rw", "mountpoint,"))),
            "a line more"
        );
        assert!(
            !is_loaded(&format!("{host}{}", line("10.0.0.0/8", "rw", "mountpoint,"))),
            "wider"
        );
        assert!(
            !is_loaded(&format!("{host}{}", line("10.0.0.0/8", "ro", ""))),
            "not only when mounted"
        );
        assert!(!is_loaded(""));
    }
}
