//! A volume's limits as arguments and in answers.

use quarry_proto::v1::{IoLimits, RateLimit};
use serde::Serialize;

use super::failure::{Exit, Failure};
use crate::size::{parse_size, show_size};

/// One limit, as written after `--limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    name: &'static str,
    rate: u64,
    burst: u64,
}

/// What can be limited, as it is written: what it is a limit of, and whether it is one of bytes.
const NAMES: [(&str, Of, bool); 6] = [
    ("iops", Of::Total, false),
    ("bytes", Of::Total, true),
    ("read-iops", Of::Read, false),
    ("read-bytes", Of::Read, true),
    ("write-iops", Of::Write, false),
    ("write-bytes", Of::Write, true),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Total,
    Read,
    Write,
}

/// Parses `WHAT=RATE` or `WHAT=RATE:BURST`; bytes are written as sizes.
///
/// # Errors
/// When there is no such limit, or a number is none or zero.
pub fn parse_limit(text: &str) -> Result<Limit, String> {
    let (what, rest) = text.split_once('=').unwrap_or((text, ""));
    let Some((name, _, is_bytes)) = NAMES.iter().find(|(name, ..)| *name == what) else {
        let names = NAMES.map(|(name, ..)| name).join(", ");
        return Err(format!(
            "{what:?} is no limit; write WHAT=RATE or WHAT=RATE:BURST with one of {names}"
        ));
    };
    let number = |text: &str| match is_bytes {
        true => parse_size(text),
        false => text
            .replace('_', "")
            .parse()
            .map_err(|_| format!("{text:?} is not a number of commands; write {name}=1000")),
    };
    let (rate, burst) = match rest.split_once(':') {
        Some((rate, burst)) => (number(rate)?, number(burst)?),
        None => (number(rest)?, 0),
    };
    if rate == 0 {
        return Err(format!(
            "{name}=0 would let nothing through; leave {name} out for no limit"
        ));
    }
    Ok(Limit { name, rate, burst })
}

/// Joins limits to a message; none is none.
///
/// # Errors
/// When one is there twice.
pub fn joined(limits: &[Limit]) -> Result<Option<IoLimits>, Failure> {
    let mut message = IoLimits::default();
    for (at, limit) in limits.iter().enumerate() {
        if limits[..at].iter().any(|other| other.name == limit.name) {
            let message = format!("--limit {} is there twice; give it once", limit.name);
            return Err(Failure::new(Exit::Usage, message));
        }
        let Some((_, of, is_bytes)) = NAMES.iter().find(|(name, ..)| *name == limit.name) else {
            continue;
        };
        let part = match of {
            Of::Total => &mut message.total,
            Of::Read => &mut message.read,
            Of::Write => &mut message.write,
        }
        .get_or_insert_default();
        if *is_bytes {
            (part.bytes_per_second, part.burst_bytes) = (limit.rate, limit.burst);
        } else {
            (part.iops, part.burst_commands) = (limit.rate, limit.burst);
        }
    }
    Ok((!limits.is_empty()).then_some(message))
}

/// A volume's limits as JSON. A rate that is not limited is `null`.
#[derive(Serialize)]
pub struct LimitsRecord {
    total: PartRecord,
    read: PartRecord,
    write: PartRecord,
}

#[derive(Serialize)]
struct PartRecord {
    iops: Option<u64>,
    burst_commands: Option<u64>,
    bytes_per_second: Option<u64>,
    burst_bytes: Option<u64>,
}

impl LimitsRecord {
    /// Turns a message into what is shown.
    pub fn of(limits: Option<&IoLimits>) -> Self {
        let part = |part: Option<&RateLimit>| {
            let part = part.copied().unwrap_or_default();
            let unless_zero = |number: u64| Some(number).filter(|number| *number > 0);
            PartRecord {
                iops: unless_zero(part.iops),
                burst_commands: unless_zero(part.burst_commands),
                bytes_per_second: unless_zero(part.bytes_per_second),
                burst_bytes: unless_zero(part.burst_bytes),
            }
        };
        Self {
            total: part(limits.and_then(|limits| limits.total.as_ref())),
            read: part(limits.and_then(|limits| limits.read.as_ref())),
            write: part(limits.and_then(|limits| limits.write.as_ref())),
        }
    }
}

/// Shows limits in the words of `--limit`, or a dash when there is none.
pub fn show(limits: Option<&IoLimits>) -> String {
    let limits = limits.copied().unwrap_or_default();
    let mut shown = Vec::new();
    for (name, of, is_bytes) in NAMES {
        let part = match of {
            Of::Total => limits.total,
            Of::Read => limits.read,
            Of::Write => limits.write,
        }
        .unwrap_or_default();
        let (rate, burst) = match is_bytes {
            true => (part.bytes_per_second, part.burst_bytes),
            false => (part.iops, part.burst_commands),
        };
        let number = |number: u64| match is_bytes {
            true => show_size(number),
            false => number.to_string(),
        };
        match (rate, burst) {
            (0, _) => {}
            (rate, 0) => shown.push(format!("{name} {}/s", number(rate))),
            (rate, burst) => shown.push(format!("{name} {}/s (burst {})", number(rate), number(burst))),
        }
    }
    match shown.is_empty() {
        true => "-".to_owned(),
        false => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_joined_and_shown() {
        let limits: Vec<Limit> = ["iops=1_000:5000", "write-bytes=100MiB", "read-bytes=8KiB:1GiB"]
            .map(|text| parse_limit(text).unwrap())
            .into();
        let message = joined(&limits).unwrap().unwrap();
        assert_eq!(
            (message.total.unwrap().iops, message.total.unwrap().burst_commands),
            (1000, 5000)
        );
        assert_eq!(message.write.unwrap().bytes_per_second, 100 << 20);
        assert_eq!(
            show(Some(&message)),
            "iops 1000/s (burst 5000), read-bytes 8 KiB/s (burst 1 GiB), write-bytes 100 MiB/s"
        );
        assert_eq!(show(None), "-");
        assert_eq!(joined(&[]), Ok(None));
        let twice = [limits[0], limits[0]];
        assert_eq!(joined(&twice).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn what_is_no_limit_is_refused_with_what_there_is() {
        for (text, part) in [
            ("", "write-iops"),
            ("total=5", "one of iops, bytes"),
            ("iops", "iops=1000"),
            ("iops=x", "iops=1000"),
            ("iops=5:x", "iops=1000"),
            ("bytes=5GB", "two ways"),
            ("bytes=0", "no limit"),
        ] {
            let message = parse_limit(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
