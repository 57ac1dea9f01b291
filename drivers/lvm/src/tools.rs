//! LVM's own tools, which alone change its metadata. Each call is one program, run to its end; they wait for each other.
//!
//! - T1: what a program has done is told by its exit status, never by its words, which are for people.
//! - T2: a name is never taken for an option: it follows the name of the group and a slash.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};

use quarry_xfs::error::{During, StoreError};
use serde::{Deserialize, Deserializer};

/// A volume group, and the tools for what is in it.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    name: String,
}

/// One logical volume, as `lvs` reports it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct LogicalVolume {
    /// Its name; of those that LVM keeps for itself in brackets.
    #[serde(rename = "lv_name")]
    pub name: String,
    #[serde(rename = "lv_uuid")]
    pub uuid: String,
    /// The identity of its group.
    #[serde(rename = "vg_uuid")]
    pub group_uuid: String,
    /// Its length, in bytes.
    #[serde(rename = "lv_size", deserialize_with = "number")]
    pub length_bytes: u64,
    /// What it is: `thin,sparse`, `thin,pool`.
    #[serde(rename = "lv_layout")]
    pub layout: String,
    /// The pool it is in.
    #[serde(rename = "pool_lv")]
    pub pool: String,
    #[serde(rename = "lv_tags", deserialize_with = "list")]
    pub tags: Vec<String>,
    /// Ten letters (lvs(8)).
    #[serde(rename = "lv_attr")]
    attributes: String,
    /// What a pool does with writes when it is full: `error` or `queue`.
    #[serde(rename = "lv_when_full")]
    pub when_full: String,
    /// What a pool gives out at a time, in bytes.
    #[serde(rename = "chunk_size", deserialize_with = "number")]
    pub chunk_bytes: u64,
    /// What the group gives out at a time, in bytes.
    #[serde(rename = "vg_extent_size", deserialize_with = "number")]
    pub extent_bytes: u64,
}

/// The fields of [`LogicalVolume`].
const FIELDS: &str = "lv_name,lv_uuid,vg_uuid,lv_size,lv_layout,pool_lv,lv_tags,lv_attr,lv_when_full,chunk_size,\
                      vg_extent_size";

impl LogicalVolume {
    /// Tells whether it has a device.
    pub(crate) fn is_active(&self) -> bool {
        matches!(self.attributes.as_bytes().get(4), Some(b'a' | b's'))
    }

    /// Tells whether its device holds everything back, as one of LVM's tools leaves it that is killed in the middle.
    pub(crate) fn is_suspended(&self) -> bool {
        matches!(self.attributes.as_bytes().get(4), Some(b's' | b'S'))
    }

    /// Tells whether somebody has its device open.
    pub(crate) fn is_open(&self) -> bool {
        self.attributes.as_bytes().get(5) == Some(&b'o')
    }

    pub(crate) fn is_thin_pool(&self) -> bool {
        self.layout == "thin,pool"
    }

    /// Returns what follows `key=` in the tag of this key.
    pub(crate) fn tag(&self, key: &str) -> Option<&str> {
        let values = self.tags.iter().filter_map(|tag| tag.strip_prefix(key));
        values.filter_map(|rest| rest.strip_prefix('=')).next()
    }
}

#[derive(Deserialize)]
struct Report {
    report: Vec<ReportPart>,
}

#[derive(Deserialize)]
struct ReportPart {
    lv: Vec<LogicalVolume>,
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(serde::de::Error::custom)
}

fn list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let text = String::deserialize(from)?;
    Ok(text
        .split(',')
        .filter(|one| !one.is_empty())
        .map(str::to_owned)
        .collect())
}

impl Group {
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
        }
    }

    /// Returns how the tools call a volume.
    fn path(&self, volume: &str) -> String {
        format!("{}/{volume}", self.name)
    }

    /// Returns the name of a volume's device in /dev/mapper.
    pub(crate) fn device_name(&self, volume: &str) -> String {
        format!("{}-{}", self.name.replace('-', "--"), volume.replace('-', "--"))
    }

    /// Lists what is in the group.
    pub(crate) fn volumes(&self) -> Result<Vec<LogicalVolume>, StoreError> {
        self.report(&self.name)
    }

    /// Returns one volume; it is an error when there is none.
    pub(crate) fn volume(&self, volume: &str) -> Result<LogicalVolume, StoreError> {
        let found = self.report(&self.path(volume))?.into_iter().next();
        found
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .during(|| format!("looking for {}", self.path(volume)))
    }

    fn report(&self, what: &str) -> Result<Vec<LogicalVolume>, StoreError> {
        let arguments = [
            "lvs",
            "--all",
            "--reportformat",
            "json",
            "--units",
            "b",
            "--nosuffix",
            "-o",
            FIELDS,
            what,
        ];
        let said = run(arguments).during(|| format!("asking LVM for {what}"))?;
        let report: Report = serde_json::from_str(&said)
            .map_err(io::Error::from)
            .during(|| format!("reading what LVM says of {what}"))?;
        Ok(report.report.into_iter().flat_map(|part| part.lv).collect())
    }

    /// Makes a thin pool that refuses writes when it is full, instead of holding them back for a minute.
    pub(crate) fn create_pool(&self, pool: &str, length_bytes: u64, tag: &str) -> Result<(), StoreError> {
        let (path, length) = (self.path(pool), format!("{length_bytes}b"));
        run([
            "lvcreate",
            "--yes",
            "--thin",
            "--size",
            &length,
            "--errorwhenfull",
            "y",
            "--addtag",
            tag,
            &path,
        ])
        .map(drop)
        .during(|| format!("making the thin pool {path}"))
    }

    /// Makes an empty thin volume, with a device.
    pub(crate) fn create(
        &self,
        pool: &str,
        volume: &str,
        length_bytes: u64,
        tags: &[&str],
    ) -> Result<(), StoreError> {
        let (path, length) = (self.path(pool), format!("{length_bytes}b"));
        let mut arguments = vec![
            "lvcreate",
            "--yes",
            "--type",
            "thin",
            "--virtualsize",
            &length,
            "--thinpool",
            &path,
        ];
        arguments.extend([
            "--setactivationskip",
            "y",
            "--ignoreactivationskip",
            "--activate",
            "y",
        ]);
        arguments.extend(["--name", volume]);
        arguments.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        run(arguments)
            .map(drop)
            .during(|| format!("making {}", self.path(volume)))
    }

    /// Takes a thin snapshot, with or without a device. What is mounted of its origin is frozen for that moment.
    pub(crate) fn snapshot(
        &self,
        origin: &str,
        volume: &str,
        activation: Activation,
        tags: &[&str],
    ) -> Result<(), StoreError> {
        let origin = self.path(origin);
        let mut arguments = vec![
            "lvcreate",
            "--yes",
            "--snapshot",
            "--setactivationskip",
            "y",
            "--name",
            volume,
        ];
        if activation == Activation::Active {
            arguments.extend(["--ignoreactivationskip", "--activate", "y"]);
        }
        arguments.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        arguments.push(&origin);
        run(arguments)
            .map(drop)
            .during(|| format!("taking a snapshot of {origin}"))
    }

    pub(crate) fn add_tag(&self, volume: &str, tag: &str) -> Result<(), StoreError> {
        let path = self.path(volume);
        run(["lvchange", "--addtag", tag, &path])
            .map(drop)
            .during(|| format!("noting what {path} is"))
    }

    pub(crate) fn remove_tag(&self, volume: &str, tag: &str) -> Result<(), StoreError> {
        let path = self.path(volume);
        run(["lvchange", "--deltag", tag, &path])
            .map(drop)
            .during(|| format!("noting what {path} is"))
    }

    /// Has a volume activated with others at the start of the machine, or not.
    pub(crate) fn set_skipped(&self, volume: &str, skipped: Skipped) -> Result<(), StoreError> {
        let path = self.path(volume);
        let is_skipped = match skipped {
            Skipped::Yes => "y",
            Skipped::No => "n",
        };
        run(["lvchange", "--setactivationskip", is_skipped, &path])
            .map(drop)
            .during(|| format!("changing how {path} is activated"))
    }

    pub(crate) fn activate(&self, volume: &str) -> Result<(), StoreError> {
        let path = self.path(volume);
        run(["lvchange", "--activate", "y", "--ignoreactivationskip", &path])
            .map(drop)
            .during(|| format!("activating {path}"))
    }

    /// Takes the devices of volumes away.
    pub(crate) fn deactivate(&self, volumes: &[String]) -> Result<(), StoreError> {
        let paths: Vec<String> = volumes.iter().map(|volume| self.path(volume)).collect();
        let mut arguments = vec!["lvchange", "--activate", "n"];
        arguments.extend(paths.iter().map(String::as_str));
        run(arguments)
            .map(drop)
            .during(|| format!("deactivating volumes of {}", self.name))
    }

    /// Makes a volume's device what the metadata says, and lets it go on when it holds everything back.
    pub(crate) fn refresh(&self, volume: &str) -> Result<(), StoreError> {
        let path = self.path(volume);
        run(["lvchange", "--refresh", &path])
            .map(drop)
            .during(|| format!("letting {path} go on"))
    }

    pub(crate) fn extend(&self, volume: &str, length_bytes: u64) -> Result<(), StoreError> {
        let (path, length) = (self.path(volume), format!("{length_bytes}b"));
        run(["lvextend", "--yes", "--size", &length, &path])
            .map(drop)
            .during(|| format!("growing {path}"))
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let (from, to) = (self.path(from), self.path(to));
        run(["lvrename", &from, &to])
            .map(drop)
            .during(|| format!("renaming {from} to {to}"))
    }

    /// Deletes a volume, which nobody has open.
    pub(crate) fn remove(&self, volume: &str) -> Result<(), StoreError> {
        let path = self.path(volume);
        run(["lvremove", "--yes", &path])
            .map(drop)
            .during(|| format!("deleting {path}"))
    }
}

/// Whether a volume gets a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Active,
    Inactive,
}

/// Whether a volume is left out when all are activated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skipped {
    Yes,
    No,
}

/// Runs one of LVM's commands to its end (T1), and returns what it printed.
fn run<'a>(arguments: impl IntoIterator<Item = &'a str>) -> io::Result<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("lvm")
        .args(arguments.into_iter().map(OsStr::new))
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        // It warns of every descriptor that it did not open.
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(
                io::ErrorKind::NotFound,
                "there is no lvm on this machine; install lvm2",
            ),
            _ => error,
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("WARNING"))
        .collect();
    Err(io::Error::other(format!(
        "lvm ended with {}: {}",
        output.status,
        lines.join("; ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As LVM 2.03.16 prints it.
    const REPORT: &str = r#"{"report": [{"lv": [
        {"lv_name":"pool", "lv_uuid":"Ay6bgf-odkG-1LyO-B4VV-9Pfn-ySGt-WxxcgB", "vg_uuid":"l225Jd-A1kd-inzQ-XJUF-FOGS-FbYO-3sfysH",
         "lv_size":"3221225472", "lv_layout":"thin,pool", "pool_lv":"", "lv_tags":"quarry.pool.1=x,other", "lv_attr":"twi-aot---",
         "chunk_size":"65536", "lv_when_full":"error", "vg_extent_size":"4194304"},
        {"lv_name":"quarry-y", "lv_uuid":"l2hKw1-M9V0-iZVD-t0R0-rBcd-BPMT-1xPibi", "vg_uuid":"l225Jd-A1kd-inzQ-XJUF-FOGS-FbYO-3sfysH",
         "lv_size":"335544320", "lv_layout":"thin,sparse", "pool_lv":"pool", "lv_tags":"", "lv_attr":"Vwi---t--k",
         "chunk_size":"0", "lv_when_full":"", "vg_extent_size":"4194304"}]}]}"#;

    #[test]
    fn a_report_is_read() {
        let report: Report = serde_json::from_str(REPORT).unwrap();
        let [pool, volume] = &report.report[0].lv[..] else {
            panic!("two volumes")
        };
        assert!(pool.is_thin_pool() && pool.is_active() && !pool.is_suspended());
        assert_eq!(pool.tag("quarry.pool.1"), Some("x"));
        assert_eq!(pool.tag("quarry.pool"), None);
        assert_eq!(pool.tag("other"), None);
        assert!(!volume.is_thin_pool() && !volume.is_active());
        assert_eq!((volume.length_bytes, volume.pool.as_str()), (320 << 20, "pool"));
        assert!(volume.tags.is_empty());
    }

    #[test]
    fn devices_have_the_names_that_lvm_gives_them() {
        let group = Group::named("my-group");
        assert_eq!(group.device_name("a-b"), "my--group-a--b");
    }
}
