//! Requests, checked and turned into the model's types. What is wrong is refused with the field's name and what
//! would be right.

use std::num::NonZeroU64;

use prost::Message;
use quarry_contract::{
    AccessLevel, AccessRule, AccessRuleId, ClientKind, InitiatorName, IoLimits, Rate, RateLimits, ShareId,
    ShareSnapshotId, ShareSource, ShareVersion, SnapshotId, Squash, VolumeId, VolumeKey,
};
use quarry_proto::v1;
use quarry_proto::v1::{access_target, share_source, volume_source};
use secrecy::zeroize::Zeroizing;
use uuid::Uuid;

use crate::catalog::record::{AccessMode, Connector, Labels, Source};
use crate::resources::{Mutation, Page, ResourceError};

/// The most labels an object has, and the longest key and value in bytes.
const MAX_LABELS: usize = 64;
const MAX_LABEL_KEY_BYTES: usize = 63;
const MAX_LABEL_VALUE_BYTES: usize = 1024;
/// The longest name for a call, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// The longest name of a host, in bytes.
const MAX_HOST_BYTES: usize = 255;
/// The most commands a second, and at once.
const MAX_COMMANDS: u64 = 1_000_000_000;
/// The least and the most bytes a second; the most at once. With less than a block a second nothing moves.
const MIN_BYTES_PER_SECOND: u64 = 4096;
const MAX_BYTES_PER_SECOND: u64 = 1 << 50;
/// How much of a list is returned when the caller does not say, and at most.
const DEFAULT_PAGE_SIZE: u32 = 100;
const MAX_PAGE_SIZE: u32 = 1000;
/// How large a page may become, in bytes: well below the 4 MiB that gRPC clients take in one message.
const MAX_PAGE_BYTES: usize = 2 << 20;

pub(super) fn wrong(field: &str, problem: impl Into<String>) -> ResourceError {
    ResourceError::InvalidField {
        field: field.to_owned(),
        problem: problem.into(),
    }
}

/// Shows what the caller sent, cut short.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

pub(super) fn uuid(field: &str, text: &str) -> Result<Uuid, ResourceError> {
    if text.is_empty() {
        return Err(wrong(
            field,
            "is missing; give a UUID like 0192f0c4-7a3e-7b1c-9d52-3f6a1c2b4d5e",
        ));
    }
    // The hyphenated form only: the other forms that a parser may take are not ids of this interface.
    let parsed = Uuid::try_parse(text)
        .ok()
        .filter(|id| text.len() == 36 && !id.is_nil());
    parsed.ok_or_else(|| {
        let problem = format!(
            "{} is not a UUID; write 32 hexadecimal digits with hyphens, not all zero",
            excerpt(text)
        );
        wrong(field, problem)
    })
}

pub(super) fn volume_id(field: &str, text: &str) -> Result<VolumeId, ResourceError> {
    uuid(field, text).map(VolumeId)
}

pub(super) fn snapshot_id(field: &str, text: &str) -> Result<SnapshotId, ResourceError> {
    uuid(field, text).map(SnapshotId)
}

pub(super) fn share_id(field: &str, text: &str) -> Result<ShareId, ResourceError> {
    uuid(field, text).map(ShareId)
}

pub(super) fn share_snapshot_id(field: &str, text: &str) -> Result<ShareSnapshotId, ResourceError> {
    uuid(field, text).map(ShareSnapshotId)
}

pub(super) fn share_source(source: Option<v1::ShareSource>) -> Result<ShareSource, ResourceError> {
    let Some(source) = source else {
        return Ok(ShareSource::Blank);
    };
    match source.source {
        None => Err(wrong(
            "source",
            "is there but empty; name a snapshot or a share, or leave it out",
        )),
        Some(share_source::Source::SnapshotId(text)) => {
            share_snapshot_id("source.snapshot_id", &text).map(ShareSource::Snapshot)
        }
        Some(share_source::Source::ShareId(text)) => {
            share_id("source.share_id", &text).map(ShareSource::Share)
        }
    }
}

pub(super) fn squash(squash: i32) -> Result<Squash, ResourceError> {
    match v1::Squash::try_from(squash) {
        Ok(v1::Squash::Unspecified | v1::Squash::None) => Ok(Squash::None),
        Ok(v1::Squash::Root) => Ok(Squash::Root),
        Ok(v1::Squash::All) => Ok(Squash::All),
        Err(_) => Err(wrong(
            "squash",
            format!("{squash} is no squash; 1 is none, 2 root, 3 all"),
        )),
    }
}

pub(super) fn access_target(target: Option<v1::AccessTarget>) -> Result<ShareVersion, ResourceError> {
    match target.and_then(|target| target.target) {
        None => Err(wrong("target", "is missing; name a share or a snapshot of one")),
        Some(access_target::Target::ShareId(text)) => {
            share_id("target.share_id", &text).map(ShareVersion::Share)
        }
        Some(access_target::Target::SnapshotId(text)) => {
            share_snapshot_id("target.snapshot_id", &text).map(ShareVersion::Snapshot)
        }
    }
}

/// What the client is may be anything: a rule that cannot be enforced is no wrong request.
pub(super) fn access_rule(field: &str, rule: v1::AccessRule) -> Result<AccessRule, ResourceError> {
    let kind = match v1::ClientKind::try_from(rule.kind) {
        Ok(v1::ClientKind::Unspecified | v1::ClientKind::Ip) => ClientKind::Ip,
        Ok(v1::ClientKind::User) => ClientKind::User,
        Ok(v1::ClientKind::Certificate) => ClientKind::Certificate,
        Err(_) => {
            let problem = format!("{} is no kind; 1 is ip, 2 user, 3 certificate", rule.kind);
            return Err(wrong(&format!("{field}.kind"), problem));
        }
    };
    let level = match v1::AccessLevel::try_from(rule.level) {
        Ok(v1::AccessLevel::ReadOnly) => AccessLevel::ReadOnly,
        Ok(v1::AccessLevel::ReadWrite) => AccessLevel::ReadWrite,
        _ => {
            let problem = format!("{} is no level; 1 is read-only, 2 read-write", rule.level);
            return Err(wrong(&format!("{field}.level"), problem));
        }
    };
    Ok(AccessRule {
        id: AccessRuleId(uuid(&format!("{field}.id"), &rule.id)?),
        kind,
        client: rule.client,
        level,
    })
}

pub(super) fn client_address(text: &str) -> Result<std::net::IpAddr, ResourceError> {
    text.parse()
        .map_err(|_| wrong("client", format!("{} is not an IP address", excerpt(text))))
}

/// Turns the empty text, which means "any", into `None`.
pub(super) fn optional<T>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, ResourceError>,
) -> Result<Option<T>, ResourceError> {
    if text.is_empty() {
        Ok(None)
    } else {
        parse(text).map(Some)
    }
}

pub(super) fn initiator(text: &str) -> Result<InitiatorName, ResourceError> {
    InitiatorName::parse(text).map_err(|problem| wrong("initiator", problem))
}

pub(super) fn source(source: Option<v1::VolumeSource>) -> Result<Source, ResourceError> {
    let Some(source) = source else {
        return Ok(Source::Blank);
    };
    match source.source {
        None => Err(wrong(
            "source",
            "is there but empty; name a snapshot or a volume, or leave it out",
        )),
        Some(volume_source::Source::SnapshotId(text)) => {
            snapshot_id("source.snapshot_id", &text).map(Source::Snapshot)
        }
        Some(volume_source::Source::VolumeId(text)) => {
            volume_id("source.volume_id", &text).map(Source::Volume)
        }
    }
}

pub(super) fn labels(labels: impl IntoIterator<Item = (String, String)>) -> Result<Labels, ResourceError> {
    let labels: Labels = labels.into_iter().collect();
    if labels.len() > MAX_LABELS {
        return Err(wrong(
            "labels",
            format!("{} labels are more than {MAX_LABELS}", labels.len()),
        ));
    }
    for (key, value) in &labels {
        if key.is_empty() || key.len() > MAX_LABEL_KEY_BYTES {
            let problem = format!(
                "the key {} does not have 1 to {MAX_LABEL_KEY_BYTES} bytes",
                excerpt(key)
            );
            return Err(wrong("labels", problem));
        }
        if value.len() > MAX_LABEL_VALUE_BYTES {
            let problem = format!(
                "the value of {key:?} has {} bytes, more than {MAX_LABEL_VALUE_BYTES}",
                value.len()
            );
            return Err(wrong("labels", problem));
        }
    }
    Ok(labels)
}

pub(super) fn limits(limits: Option<v1::IoLimits>) -> Result<IoLimits, ResourceError> {
    let v1::IoLimits { total, read, write } = limits.unwrap_or_default();
    Ok(IoLimits {
        total: rate_limits("limits.total", total)?,
        read: rate_limits("limits.read", read)?,
        write: rate_limits("limits.write", write)?,
    })
}

/// Takes a key over; what the request held of it is zeroed.
pub(super) fn volume_key(field: &str, key: Option<v1::VolumeKey>) -> Result<VolumeKey, ResourceError> {
    let bytes = Zeroizing::new(key.map(|key| key.key).unwrap_or_default());
    VolumeKey::from_slice(&bytes).ok_or_else(|| {
        let problem = format!("a key has {} bytes, not {}", VolumeKey::BYTES, bytes.len());
        wrong(field, problem)
    })
}

fn rate_limits(field: &str, limits: Option<v1::RateLimit>) -> Result<RateLimits, ResourceError> {
    let v1::RateLimit {
        iops,
        burst_commands,
        bytes_per_second,
        burst_bytes,
    } = limits.unwrap_or_default();
    let per_second = bytes_per_second;
    Ok(RateLimits {
        commands: rate(
            field,
            ("iops", iops, 1),
            ("burst_commands", burst_commands),
            MAX_COMMANDS,
        )?,
        bytes: rate(
            field,
            ("bytes_per_second", per_second, MIN_BYTES_PER_SECOND),
            ("burst_bytes", burst_bytes),
            MAX_BYTES_PER_SECOND,
        )?,
    })
}

/// Reads one limit: the field of its rate with the least it may be, the field of its burst, and the most both may be.
fn rate(
    field: &str,
    (rate_name, per_second, least): (&str, u64, u64),
    (burst_name, burst): (&str, u64),
    most: u64,
) -> Result<Option<Rate>, ResourceError> {
    let Some(rate) = NonZeroU64::new(per_second) else {
        return match burst {
            0 => Ok(None),
            _ => Err(wrong(
                &format!("{field}.{burst_name}"),
                format!("is {burst} without {rate_name}, which it goes beyond; give both"),
            )),
        };
    };
    if per_second < least || per_second > most {
        let problem = format!("{per_second} is not between {least} and {most}; 0 is no limit");
        return Err(wrong(&format!("{field}.{rate_name}"), problem));
    }
    if burst > most {
        return Err(wrong(
            &format!("{field}.{burst_name}"),
            format!("{burst} is more than {most}"),
        ));
    }
    Ok(Some(Rate {
        per_second: rate,
        burst,
    }))
}

pub(super) fn mutation(mutation: Option<v1::Mutation>) -> Result<Mutation, ResourceError> {
    let Some(v1::Mutation {
        request_id,
        if_generation,
    }) = mutation
    else {
        return Ok(Mutation::default());
    };
    if request_id.len() > MAX_REQUEST_ID_BYTES {
        let problem = format!("has {} bytes, more than {MAX_REQUEST_ID_BYTES}", request_id.len());
        return Err(wrong("mutation.request_id", problem));
    }
    Ok(Mutation {
        request_id: Some(request_id).filter(|name| !name.is_empty()),
        if_generation: Some(if_generation).filter(|generation| *generation != 0),
    })
}

pub(super) fn mode(mode: i32) -> Result<AccessMode, ResourceError> {
    match v1::AccessMode::try_from(mode) {
        Ok(v1::AccessMode::Unspecified | v1::AccessMode::ReadWrite) => Ok(AccessMode::ReadWrite),
        Ok(v1::AccessMode::ReadOnly) => Ok(AccessMode::ReadOnly),
        Err(_) => Err(wrong(
            "mode",
            format!("{mode} is not an access mode; 1 is read-write, 2 read-only"),
        )),
    }
}

pub(super) fn connector(connector: Option<v1::Connector>) -> Result<Connector, ResourceError> {
    let Some(connector) = connector else {
        let problem = "is missing; iSCSI needs the host's initiator name".to_owned();
        return Err(ResourceError::ConnectorIncomplete { problem });
    };
    let v1::Connector {
        initiator,
        host,
        ip,
        multipath,
        enforce_multipath,
    } = connector;
    if host.len() > MAX_HOST_BYTES || host.chars().any(char::is_control) {
        let problem = format!(
            "{} is not a host name; it has at most {MAX_HOST_BYTES} bytes and no control characters",
            excerpt(&host)
        );
        return Err(wrong("connector.host", problem));
    }
    if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
        let problem = format!(
            "{} is not an IP address; write it as a literal, or leave it out",
            excerpt(&ip)
        );
        return Err(wrong("connector.ip", problem));
    }
    Ok(Connector {
        initiator,
        host,
        ip,
        multipath,
        enforce_multipath,
    })
}

/// How far a list has been read, as the caller carries it: the list's name and the last key, in hexadecimal so
/// that nobody takes it for something to compute with.
pub(super) struct Cursor {
    list: &'static str,
}

impl Cursor {
    pub(super) const fn of(list: &'static str) -> Self {
        Self { list }
    }

    pub(super) fn token(&self, last: impl std::fmt::Display) -> String {
        hex::encode(format!("{}:{last}", self.list))
    }

    fn key(&self, token: &str) -> Result<String, ResourceError> {
        let text = hex::decode(token)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let key = text
            .as_deref()
            .and_then(|text| text.strip_prefix(self.list)?.strip_prefix(':'));
        key.map(str::to_owned).ok_or_else(|| self.refused(token))
    }

    fn refused(&self, token: &str) -> ResourceError {
        let problem = format!(
            "{} does not come from a list of {}; use next_page_token of the page before, or leave it out",
            excerpt(token),
            self.list
        );
        wrong("page_token", problem)
    }

    /// Reads which part of a list is asked for. One more than the page is fetched, which tells whether another
    /// page follows.
    pub(super) fn page<K>(
        &self,
        size: u32,
        token: &str,
        parse: impl FnOnce(&str) -> Option<K>,
    ) -> Result<(Page<K>, usize), ResourceError> {
        if size > MAX_PAGE_SIZE {
            return Err(wrong("page_size", format!("{size} is more than {MAX_PAGE_SIZE}")));
        }
        let size = if size == 0 { DEFAULT_PAGE_SIZE } else { size } as usize;
        let after = match token {
            "" => None,
            token => Some(parse(&self.key(token)?).ok_or_else(|| self.refused(token))?),
        };
        Ok((
            Page {
                after,
                limit: size + 1,
            },
            size,
        ))
    }

    /// Turns what was fetched into messages, as many as fit the page, and names where the next page begins.
    pub(super) fn cut<T, K: std::fmt::Display, M: Message>(
        &self,
        found: Vec<T>,
        size: usize,
        key: impl Fn(&T) -> K,
        turn: impl Fn(T) -> M,
    ) -> (Vec<M>, String) {
        let mut messages = Vec::with_capacity(found.len().min(size));
        let mut token = String::new();
        let mut bytes = 0;
        for object in found {
            let next = self.token(key(&object));
            let message = turn(object);
            bytes += message.encoded_len();
            // One object always fits: labels are limited.
            if messages.len() == size || (bytes > MAX_PAGE_BYTES && !messages.is_empty()) {
                return (messages, token);
            }
            messages.push(message);
            token = next;
        }
        (messages, String::new())
    }
}
