//! The number of each export.
//!
//! Ganesha puts it into every file handle, so a share keeps its number for good, whether it is exported or not (N2).
//! Only when all are given out, one that is not exported now is given to another; a handle from before is stale then, since
//! the file system it names is not the one behind the number.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use quarry_contract::ShareVersion;
use quarry_daemon::files;
use serde::{Deserialize, Serialize};

/// Ganesha's number 0 is the root of all exports.
const FIRST: u16 = 1;

/// The numbers given out, in a file.
pub(crate) struct ExportIds {
    path: PathBuf,
    ids: BTreeMap<ShareVersion, u16>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    version: ShareVersion,
    id: u16,
}

impl ExportIds {
    /// Reads the file; what is not there is empty.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            result => result?,
        };
        let mut ids = BTreeMap::new();
        for line in text.lines() {
            let line: Line = serde_json::from_str(line)?;
            ids.insert(line.version, line.id);
        }
        Ok(Self { path, ids })
    }

    /// Returns the number of what has one.
    pub(crate) fn find(&self, version: ShareVersion) -> Option<u16> {
        self.ids.get(&version).copied()
    }

    /// Returns the number of a version, durably its own from now on. `None` when all are in use.
    pub(crate) fn take(
        &mut self,
        version: ShareVersion,
        is_exported: impl Fn(ShareVersion) -> bool,
    ) -> io::Result<Option<u16>> {
        if let Some(id) = self.find(version) {
            return Ok(Some(id));
        }
        // Not given out before it is written: after a restart it would be another's, too.
        let mut ids = self.ids.clone();
        let mut used: Vec<u16> = ids.values().copied().collect();
        used.sort_unstable();
        let free = (FIRST..=u16::MAX).find(|id| used.binary_search(id).is_err());
        let id = match free {
            Some(id) => id,
            None => {
                let Some(unused) = ids.keys().copied().find(|other| !is_exported(*other)) else {
                    return Ok(None);
                };
                match ids.remove(&unused) {
                    Some(id) => id,
                    None => return Ok(None),
                }
            }
        };
        ids.insert(version, id);
        let each = |(version, id): (&ShareVersion, &u16)| {
            serde_json::to_string(&Line {
                version: *version,
                id: *id,
            })
        };
        let lines = ids.iter().map(each).collect::<Result<Vec<_>, _>>()?;
        files::replace(&self.path, &(lines.join("\n") + "\n"))?;
        self.ids = ids;
        Ok(Some(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use quarry_contract::ShareId;

    fn version(number: u128) -> ShareVersion {
        ShareVersion::Share(ShareId(uuid::Uuid::from_u128(number)))
    }

    #[test]
    fn a_number_is_kept_over_restarts_and_given_to_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("export-ids");
        let mut ids = ExportIds::open(path.clone()).unwrap();
        assert_eq!(ids.find(version(1)), None);
        assert_eq!(ids.take(version(2), |_| true).unwrap(), Some(1));
        assert_eq!(ids.take(version(1), |_| true).unwrap(), Some(2));
        let mut ids = ExportIds::open(path).unwrap();
        assert_eq!(ids.take(version(2), |_| true).unwrap(), Some(1));
        assert_eq!(ids.take(version(3), |_| true).unwrap(), Some(3));
    }

    #[test]
    fn a_number_that_cannot_be_written_is_not_given_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("export-ids");
        let mut ids = ExportIds::open(path).unwrap();
        for _ in 0..2 {
            ids.take(version(1), |_| true).unwrap_err();
            assert_eq!(ids.find(version(1)), None);
        }
    }

    #[test]
    fn when_all_are_given_out_one_that_is_not_exported_is_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let all = (1..=u16::MAX).map(|id| (version(u128::from(id)), id));
        let mut ids = ExportIds {
            path: folder.path().join("export-ids"),
            ids: all.collect(),
        };
        assert_eq!(ids.take(version(99_999), |_| true).unwrap(), None);
        assert_eq!(
            ids.take(version(99_999), |other| other != version(77)).unwrap(),
            Some(77)
        );
        assert_eq!(ids.find(version(77)), None);
    }
}
