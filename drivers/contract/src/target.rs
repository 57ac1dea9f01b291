//! The role of a target: exporting devices to initiators.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};

use crate::{BlockDevice, DriverError, IoLimits, Metric, Outcome, VolumeId};

/// Exports block devices over a network protocol, one target per volume.
///
/// An export is a pure function of what its caller holds durably; the target keeps nothing on disk, and hands what
/// it must remember to its caller ([`Keeper`]). At start the caller exports everything again with the same
/// arguments, and initiators find the same names.
///
/// Contract
/// - T1: a device is reachable only through its export, and only by the initiators granted, each with its own
///   credentials. An export without grants refuses every login.
/// - T2: the names an initiator sees (target name, LUN, serial, device id) depend only on the volume's id.
/// - T3: calls are idempotent: the same grant again is `Unchanged`, a grant with other access or credentials
///   replaces the old one without touching other initiators' sessions; a change of access takes effect for the
///   next command of a live session; a change of credentials for the next login.
/// - T4: when `revoke` or `unexport` returns, the sessions it ends are closed and none of their commands will
///   reach the device any more: each either completed before or never starts.
/// - T5: when `unexport` returns the target has dropped its handle of the device and every queue on it.
/// - T6: the data path has threads of its own; a slow call on this trait never delays I/O.
/// - T7: what initiators were promised to outlive a restart (persistent reservations with APTPL) was kept before
///   they were answered. An initiator whose grant is revoked leaves nothing behind; after `unexport` nothing is
///   kept.
/// - T8: what all sessions of an export do together keeps to its limits; when `set_limits` returns, the next command
///   is under the new ones. A command over a limit waits, and ends early as one at the device would: by task
///   management, logout, `revoke`, `unexport` and `shutdown`. Sessions get equal shares of what is limited, and no
///   other export is held up.
/// - T9: an initiator that logs in to a volume that is not exported is told what it can do about it: to give up when
///   the volume was exported in this process and no longer is, or [`Absence::Removed`] was said of it, and to come
///   again when [`Absence::Unavailable`] was said last. Of other volumes the target knows nothing. The names alone
///   are remembered, those of removed ones for as long as the process lives.
#[async_trait]
pub trait Target: Send + Sync + 'static {
    /// Returns the addresses that initiators connect to.
    fn portals(&self) -> Vec<Portal>;

    /// Returns the name and LUN that a volume has, or would have when exported (T2).
    fn address_of(&self, volume: VolumeId) -> ExportInfo;

    /// Exports a device with exactly these grants and limits. Repeated for an exported volume, it makes both equal
    /// to these (T3, T8) and keeps the device it has.
    async fn export(&self, spec: ExportSpec) -> Result<Outcome<ExportInfo>, DriverError>;

    /// Adds or replaces one initiator's grant on an exported volume.
    ///
    /// # Errors
    /// `NotFound` when the volume is not exported.
    async fn grant(&self, volume: VolumeId, grant: Grant) -> Result<Outcome<()>, DriverError>;

    /// Takes one initiator's grant away and cuts its sessions before returning (T4). `Unchanged` when there is
    /// no such grant or export.
    async fn revoke(&self, volume: VolumeId, initiator: &InitiatorName) -> Result<Outcome<()>, DriverError>;

    /// Ends an export: no login any more, all sessions cut (T4, T5), and the volume is removed (T9), also when it was
    /// unavailable. `Unchanged` when not exported.
    async fn unexport(&self, volume: VolumeId) -> Result<Outcome<()>, DriverError>;

    /// Says what has become of a volume that is not exported (T9). Of one that is exported it says nothing.
    fn set_absent(&self, volume: VolumeId, absence: Absence);

    /// Replaces the limits of an exported volume (T8); `Unchanged` when it has these.
    ///
    /// # Errors
    /// `NotFound` when the volume is not exported.
    async fn set_limits(&self, volume: VolumeId, limits: IoLimits) -> Result<Outcome<()>, DriverError>;

    /// Tells initiators that the device has a new size; the size itself is read from the device.
    ///
    /// # Errors
    /// `NotFound` when the volume is not exported.
    async fn size_changed(&self, volume: VolumeId) -> Result<(), DriverError>;

    /// Returns the live sessions of one volume, or of all.
    async fn sessions(&self, volume: Option<VolumeId>) -> Result<Vec<SessionInfo>, DriverError>;

    /// Returns what the target counts.
    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }

    /// Stops taking logins, lets initiators log out for a short time, closes the other sessions after the commands in
    /// flight, and joins the threads.
    async fn shutdown(&self);
}

/// An address that initiators connect to; shown as an IP literal with port, IPv6 in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Portal(pub SocketAddr);

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An initiator's name, folded to lower case (RFC 7143 4.2.7.1: names are compared so).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InitiatorName(String);

impl InitiatorName {
    /// Parses an iSCSI name: `iqn.`, `eui.` or `naa.` form, at most 223 bytes (RFC 7143 4.2.7).
    ///
    /// # Errors
    /// Says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, String> {
        let name = text.to_lowercase();
        if name.is_empty() || name.len() > 223 {
            return Err(format!(
                "an iSCSI name has 1 to 223 bytes, this one has {}",
                name.len()
            ));
        }
        if let Some(bad) = name
            .chars()
            .find(|c| !(c.is_alphanumeric() || "-.:".contains(*c)))
        {
            return Err(format!(
                "an iSCSI name holds only letters, digits, '-', '.' and ':', not {bad:?}"
            ));
        }
        let hex = |digits: &str| digits.chars().all(|c| c.is_ascii_hexdigit());
        let well_formed = match name.split_once('.') {
            Some(("iqn", rest)) => is_dated_authority(rest),
            Some(("eui", rest)) => rest.len() == 16 && hex(rest),
            Some(("naa", rest)) => matches!(rest.len(), 16 | 32) && hex(rest),
            _ => false,
        };
        if !well_formed {
            return Err(format!(
                "{text:?} is not an iSCSI name: expected iqn.YYYY-MM.reversed.domain[:string], \
                 eui.<16 hex digits> or naa.<16 or 32 hex digits>"
            ));
        }
        Ok(Self(name))
    }

    /// Returns the folded name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InitiatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks `YYYY-MM.authority…`, the part after `iqn.`.
fn is_dated_authority(rest: &str) -> bool {
    let Some((date, authority)) = rest.split_once('.') else {
        return false;
    };
    let Some((year, month)) = date.split_once('-') else {
        return false;
    };
    let digits = |text: &str, len: usize| text.len() == len && text.bytes().all(|b| b.is_ascii_digit());
    digits(year, 4) && digits(month, 2) && ("01"..="12").contains(&month) && !authority.is_empty()
}

/// What has become of a volume that initiators have known and that is not exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// It is detached or deleted for good: initiators are to give up.
    Removed,
    /// It should be exported and cannot be at present: initiators are to come again.
    Unavailable,
}

/// What an initiator may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads only, enforced by the target.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// CHAP credentials (RFC 1994) with which one side proves itself to the other.
#[derive(Debug, Clone)]
pub struct ChapCredentials {
    /// The user name; not secret.
    pub username: String,
    /// The secret.
    pub secret: SecretString,
}

/// One initiator's right to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who.
    pub initiator: InitiatorName,
    /// What it may do.
    pub access: Access,
    /// How it proves itself.
    pub chap: ChapCredentials,
    /// How the target proves itself to it, if it asks; without them such a login fails. With the secret of `chap`
    /// every login fails (RFC 7143 9.2.1).
    pub target_chap: Option<ChapCredentials>,
}

impl PartialEq for ChapCredentials {
    fn eq(&self, other: &Self) -> bool {
        self.username == other.username && self.secret.expose_secret() == other.secret.expose_secret()
    }
}

impl Eq for ChapCredentials {}

/// A device to export.
pub struct ExportSpec {
    /// The volume, which gives the export its names (T2).
    pub volume: VolumeId,
    /// The open device; dropped at unexport (T5).
    pub device: Arc<dyn BlockDevice>,
    /// All who may log in.
    pub grants: Vec<Grant>,
    /// How fast it may be used (T8).
    pub limits: IoLimits,
    /// What was last kept for this export; empty when nothing was.
    pub kept: Vec<u8>,
    /// Who keeps what the target must remember of it (T7).
    pub keeper: Arc<dyn Keeper>,
}

/// Keeps, for a target, what must outlive a restart.
pub trait Keeper: Send + Sync + 'static {
    /// Makes the state of a volume's export durable in place of the one before; empty is none. It is what
    /// [`ExportSpec::kept`] is at the next start. Blocks.
    ///
    /// # Errors
    /// When it cannot be made durable; the one before or this one is then kept.
    fn keep(&self, volume: VolumeId, state: &[u8]) -> Result<(), DriverError>;
}

/// Where an export is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The target's name, lower case.
    pub target_name: String,
    /// The LUN.
    pub lun: u16,
    /// The unit serial number (VPD page 80h).
    pub serial: String,
}

/// A live session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// The volume.
    pub volume: VolumeId,
    /// Who is logged in.
    pub initiator: InitiatorName,
    /// From where.
    pub peer: SocketAddr,
    /// Where to.
    pub portal: Portal,
    /// The target session identifying handle (RFC 7143 3.3).
    pub tsih: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initiator_name_accepts_the_three_forms_folds_case_and_refuses_the_rest() {
        let good = [
            "iqn.1993-08.org.debian:01:ABC",
            "iqn.2026-11.io.quarry",
            "eui.02004567A425678D",
            "naa.52004567BA64678D",
        ];
        for name in good {
            assert_eq!(InitiatorName::parse(name).unwrap().as_str(), name.to_lowercase());
        }
        let long = format!("iqn.2026-11.io:{}", "x".repeat(223));
        let bad = [
            "",
            "iqn",
            "iqn.",
            "iqn.2026-13.io.x",
            "iqn.26-11.io",
            "eui.12",
            "naa.xyz",
            "host1",
            "iqn.2026-11.io:a b",
            &long,
        ];
        for name in bad {
            assert!(InitiatorName::parse(name).is_err(), "{name:?}");
        }
    }
}
