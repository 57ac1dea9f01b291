//! The file that tells Ganesha of one export, and what Ganesha says of it.
//!
//! Ganesha goes through the clients of an export in the order of the file, and the first that fits decides. So the order of
//! an [`AccessTable`](quarry_contract::AccessTable) is the order here, with what Ganesha 4.3 cannot read written otherwise:
//!
//! - `0.0.0.0/0` and `::/0` match nobody, or are an error: they are written as their two halves;
//! - an IPv6 prefix of three digits is a syntax error: `/128` is a bare address, `/120` to `/127` are all their
//!   addresses, and the prefixes between cannot be had ([`REFUSED_IPV6_PREFIXES`]);
//! - `0.0.0.0` without a prefix is everybody, and never written.
//!
//! An IPv4 client is one for Ganesha, too, when it comes in on a socket of both families: it lies in no IPv6 network.
//!
//! The first line of a file is a comment that says what it is for, from which everything is known again after a restart.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use quarry_contract::{AccessLevel, DriverError, LoadedAccess, Network, ShareExport, ShareVersion, Squash};
use serde::{Deserialize, Serialize};

use crate::config::protocols;

/// The IPv6 prefixes that Ganesha cannot read, and that are too many addresses to list.
pub(crate) const REFUSED_IPV6_PREFIXES: RangeInclusive<u8> = 100..=119;
/// Ganesha asks one client line after another, at every operation.
const LINES_MAX: usize = 1024;
const COMMENT: &str = "# quarry ";

/// What a file is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExportRecord {
    /// Ganesha's number of the export.
    pub(crate) id: u16,
    /// What is exported.
    pub(crate) version: ShareVersion,
    /// Where it is mounted.
    pub(crate) path: PathBuf,
    /// The device of the mount.
    pub(crate) device: u64,
    /// The path that clients mount.
    pub(crate) pseudo: String,
    /// Whose user ids are believed.
    pub(crate) squash: Squash,
    /// Whether NFSv3 is spoken, too.
    #[serde(default)]
    pub(crate) nfs3: bool,
    /// Who may do what: networks in the order in which they decide.
    pub(crate) access: Vec<(String, AccessLevel)>,
}

/// One client line: whom it is about, and what they may do; nothing, when they are denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientLine {
    pub(crate) network: Network,
    pub(crate) level: Option<AccessLevel>,
}

impl ExportRecord {
    pub(crate) fn of(export: &ShareExport, id: u16, pseudo: String, nfs3: bool) -> Self {
        let each = |(network, level): (Network, AccessLevel)| (network.to_string(), level);
        Self {
            id,
            version: export.mounted.version,
            path: export.mounted.path.clone(),
            device: export.mounted.device,
            pseudo,
            squash: export.squash,
            nfs3,
            access: LoadedAccess::of(&export.access).0.into_iter().map(each).collect(),
        }
    }

    /// Reads the first line of a file; `None` when it is not one of ours.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix(COMMENT)?;
        serde_json::from_str(line).ok()
    }

    /// Returns the table it is for.
    pub(crate) fn loaded(&self) -> Option<LoadedAccess> {
        let each = |(network, level): &(String, AccessLevel)| Some((Network::parse(network).ok()?, *level));
        self.access
            .iter()
            .map(each)
            .collect::<Option<_>>()
            .map(LoadedAccess)
    }

    /// Returns the client lines, in their order.
    ///
    /// # Errors
    /// `Limit` when they are too many, `InvalidArgument` for a network that cannot be written.
    pub(crate) fn lines(&self) -> Result<Vec<ClientLine>, DriverError> {
        let invalid = |problem: String| DriverError::InvalidArgument {
            field: "access".into(),
            problem,
        };
        let access = self
            .loaded()
            .ok_or_else(|| invalid("it names no networks".into()))?;
        let mut lines = Vec::new();
        for (network, level) in access.0 {
            let is_refused_prefix = network.is_ipv6() && REFUSED_IPV6_PREFIXES.contains(&network.prefix());
            if is_refused_prefix || network.is_unspecified_host() {
                return Err(invalid(format!("{network} cannot be told to Ganesha")));
            }
            write_lines(&mut lines, network, Some(level))?;
        }
        Ok(lines)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// As [`ExportRecord::lines`]; `InvalidArgument` for a path that cannot be quoted.
    pub(crate) fn render(&self) -> Result<String, DriverError> {
        let path = self
            .path
            .to_str()
            .filter(|path| is_quotable(path))
            .ok_or_else(|| DriverError::InvalidArgument {
                field: "path".into(),
                problem: format!("{} cannot be told to Ganesha", self.path.display()),
            })?;
        let record = serde_json::to_string(self).map_err(|error| DriverError::Internal {
            detail: format!("writing an export's record: {error}"),
        })?;
        let squash = match self.squash {
            Squash::None => "No_Root_Squash",
            Squash::Root => "Root_Squash",
            Squash::All => "All_Squash",
        };
        let mut text = format!(
            "{COMMENT}{record}\nEXPORT {{\n  Export_Id = {};\n  Path = \"{path}\";\n  Pseudo = \"{}\";\n  \
             Access_Type = NONE;\n  Squash = {squash};\n  Anonymous_Uid = 65534;\n  Anonymous_Gid = 65534;\n  \
             SecType = sys;\n  FSAL {{ Name = VFS; }}\n",
            self.id, self.pseudo
        );
        let protocols = protocols(self.nfs3);
        for line in self.lines()? {
            let level = match line.level {
                None => "NONE",
                Some(AccessLevel::ReadOnly) => "RO",
                Some(AccessLevel::ReadWrite) => "RW",
            };
            let network = line.network;
            text.push_str(&format!(
                "  CLIENT {{ Clients = {network}; Protocols = {protocols}; Access_Type = {level}; }}\n"
            ));
        }
        text.push_str("}\n");
        Ok(text)
    }
}

/// Appends what a network is written as.
fn write_lines(
    lines: &mut Vec<ClientLine>,
    network: Network,
    level: Option<AccessLevel>,
) -> Result<(), DriverError> {
    let has_other_form = network.prefix() == 0 || (network.is_ipv6() && network.prefix() >= 100);
    if let Some((low, high)) = network.halves().filter(|_| has_other_form) {
        write_lines(lines, low, level)?;
        return write_lines(lines, high, level);
    }
    if lines.len() == LINES_MAX {
        return Err(DriverError::Limit {
            object: "an export".into(),
            what: "clients".into(),
            limit: LINES_MAX as u64,
        });
    }
    lines.push(ClientLine { network, level });
    Ok(())
}

fn is_quotable(path: &str) -> bool {
    !path.contains(['"', '\\', '\n', '$'])
}

#[cfg(test)]
mod tests {
    use super::*;

    use AccessLevel::{ReadOnly, ReadWrite};

    fn record(access: &[(&str, AccessLevel)]) -> ExportRecord {
        ExportRecord {
            id: 7,
            version: ShareVersion::Share(quarry_contract::ShareId(uuid::Uuid::from_u128(1))),
            path: "/run/quarry/shares/share-1".into(),
            device: 1795,
            pseudo: "/share-1".into(),
            squash: Squash::None,
            nfs3: false,
            access: access
                .iter()
                .map(|(network, level)| ((*network).to_owned(), *level))
                .collect(),
        }
    }

    fn lines(access: &[(&str, AccessLevel)]) -> Vec<String> {
        let each = |line: ClientLine| match line.level {
            Some(level) => format!("{} {level}", line.network),
            None => format!("{} none", line.network),
        };
        record(access).lines().unwrap().into_iter().map(each).collect()
    }

    #[test]
    fn what_ganesha_cannot_read_is_written_otherwise() {
        assert_eq!(
            lines(&[
                ("10.0.0.1", ReadWrite),
                ("10.0.0.0/8", ReadOnly),
                ("0.0.0.0/0", ReadWrite)
            ]),
            ["10.0.0.1 rw", "10.0.0.0/8 ro", "0.0.0.0/1 rw", "128.0.0.0/1 rw"]
        );
        assert_eq!(
            lines(&[
                ("fd00::4", ReadWrite),
                ("fd00::8/126", ReadOnly),
                ("fd00::/99", ReadOnly)
            ]),
            [
                "fd00::4 rw",
                "fd00::8 ro",
                "fd00::9 ro",
                "fd00::a ro",
                "fd00::b ro",
                "fd00::/99 ro"
            ]
        );
        assert_eq!(
            lines(&[("8000::/1", ReadOnly), ("::/1", ReadWrite), ("::/0", ReadOnly)]),
            ["8000::/1 ro", "::/1 rw", "::/1 ro", "8000::/1 ro"]
        );
    }

    #[test]
    fn what_cannot_be_written_is_an_error_and_not_less_or_more() {
        assert!(record(&[("fd00::/110", ReadOnly)]).render().is_err());
        assert!(record(&[("0.0.0.0", ReadOnly)]).render().is_err());
        let many: Vec<(String, AccessLevel)> = (0..5)
            .map(|index| (format!("fd00::{index}00/120"), ReadOnly))
            .collect();
        let many: Vec<(&str, AccessLevel)> = many.iter().map(|(text, level)| (&**text, *level)).collect();
        assert!(matches!(record(&many).lines(), Err(DriverError::Limit { .. })));
        assert_eq!(record(&many[..4]).lines().unwrap().len(), 1024);
        for path in ["/a\"b", "/a\\b", "/a\nb"] {
            let odd = ExportRecord {
                path: path.into(),
                ..record(&[])
            };
            assert!(odd.render().is_err());
        }
    }

    #[test]
    fn a_file_says_what_it_is_for() {
        let written = record(&[("10.0.0.0/8", ReadOnly), ("fd00::1", ReadWrite)]);
        let text = written.render().unwrap();
        assert_eq!(ExportRecord::parse(&text), Some(written));
        assert!(text.contains("  Access_Type = NONE;\n"));
        assert!(text.contains("  CLIENT { Clients = 10.0.0.0/8; Protocols = 4; Access_Type = RO; }\n"));
        assert!(text.contains("  CLIENT { Clients = fd00::1; Protocols = 4; Access_Type = RW; }\n"));
        assert_eq!(ExportRecord::parse("EXPORT { }"), None);
    }
}
