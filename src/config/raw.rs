//! The file as it is written: which keys there are, and where each value stands.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Something wrong at a place of the text.
pub(super) struct Wrong {
    /// The byte of the text.
    pub(super) offset: Option<usize>,
    /// The key, dotted.
    pub(super) key: Option<String>,
    /// What is wrong, and what would be right.
    pub(super) problem: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawConfig {
    pub(super) agent: Option<RawAgent>,
    pub(super) api: Option<RawApi>,
    #[serde(default)]
    pub(super) pool: BTreeMap<Spanned<String>, RawPool>,
    pub(super) target: Option<RawTarget>,
    pub(super) metrics: Option<RawMetrics>,
    #[serde(default)]
    pub(super) share_pool: BTreeMap<Spanned<String>, RawSharePool>,
    pub(super) share_server: Option<RawShareServer>,
    pub(super) log: Option<RawLog>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawAgent {
    pub(super) state_dir: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawApi {
    pub(super) listen: Option<Spanned<String>>,
    pub(super) allow_uids: Option<Spanned<Vec<u32>>>,
    pub(super) insecure: Option<Spanned<bool>>,
    pub(super) tls_cert: Option<Spanned<String>>,
    pub(super) tls_key: Option<Spanned<String>>,
    pub(super) tls_client_ca: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawPool {
    pub(super) driver: Option<Spanned<String>>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) create: Option<Spanned<bool>>,
    pub(super) size: Option<Spanned<String>>,
    pub(super) chunk: Option<Spanned<String>>,
    pub(super) page_cache: Option<Spanned<bool>>,
    pub(super) warn: Option<Spanned<String>>,
    pub(super) brake: Option<Spanned<String>>,
    pub(super) critical: Option<Spanned<String>>,
    pub(super) on_full: Option<Spanned<String>>,
    pub(super) scrub_rate: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawTarget {
    pub(super) driver: Option<Spanned<String>>,
    pub(super) listen: Option<Vec<Spanned<String>>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawMetrics {
    pub(super) listen: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawSharePool {
    pub(super) driver: Option<Spanned<String>>,
    pub(super) path: Option<Spanned<String>>,
    pub(super) volume_group: Option<Spanned<String>>,
    pub(super) thin_pool: Option<Spanned<String>>,
    pub(super) create: Option<Spanned<bool>>,
    pub(super) size: Option<Spanned<String>>,
    pub(super) mounts: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawShareServer {
    pub(super) driver: Option<Spanned<String>>,
    pub(super) listen: Option<Spanned<String>>,
    pub(super) addresses: Option<Vec<Spanned<String>>>,
    pub(super) preferred: Option<Vec<Spanned<String>>>,
    pub(super) admin_addresses: Option<Vec<Spanned<String>>>,
    pub(super) versions: Option<Vec<Spanned<String>>>,
    pub(super) mount_port: Option<Spanned<u16>>,
    pub(super) state_dir: Option<Spanned<String>>,
    pub(super) root: Option<Spanned<String>>,
    pub(super) threads: Option<Spanned<u16>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawLog {
    pub(super) filter: Option<Spanned<String>>,
    pub(super) format: Option<Spanned<String>>,
}

/// The sections and their keys. `pool` and `share_pool` have a section for each pool.
const SECTIONS: [(&str, &[&str]); 8] = [
    ("agent", &["state_dir"]),
    (
        "api",
        &[
            "listen",
            "allow_uids",
            "insecure",
            "tls_cert",
            "tls_key",
            "tls_client_ca",
        ],
    ),
    (
        "pool",
        &[
            "driver",
            "path",
            "create",
            "size",
            "chunk",
            "page_cache",
            "warn",
            "brake",
            "critical",
            "on_full",
            "scrub_rate",
        ],
    ),
    ("target", &["driver", "listen"]),
    ("metrics", &["listen"]),
    (
        "share_pool",
        &[
            "driver",
            "path",
            "volume_group",
            "thin_pool",
            "create",
            "size",
            "mounts",
        ],
    ),
    (
        "share_server",
        &[
            "driver",
            "listen",
            "addresses",
            "preferred",
            "admin_addresses",
            "versions",
            "mount_port",
            "state_dir",
            "root",
            "threads",
        ],
    ),
    ("log", &["filter", "format"]),
];

/// Reads the text, refusing keys that are not known.
pub(super) fn read(text: &str) -> Result<RawConfig, Wrong> {
    let syntax = |error: toml::de::Error| Wrong {
        offset: error.span().map(|span| span.start),
        key: None,
        problem: error.message().to_owned(),
    };
    let table = DeTable::parse(text).map_err(syntax)?;
    check_keys(table.get_ref())?;
    toml::from_str(text).map_err(syntax)
}

fn check_keys(table: &DeTable<'_>) -> Result<(), Wrong> {
    let names: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
    for (name, section) in table {
        let known = SECTIONS
            .iter()
            .find(|(known, _)| *known == name.get_ref().as_ref());
        let Some((section_name, keys)) = known else {
            return Err(unknown("", name, &names));
        };
        let DeValue::Table(section) = section.get_ref() else {
            // The types are checked with the values.
            continue;
        };
        if !section_name.ends_with("pool") {
            check_section(section_name, section, keys)?;
            continue;
        }
        for (pool, settings) in section {
            if let DeValue::Table(settings) = settings.get_ref() {
                check_section(&format!("{section_name}.{}", pool.get_ref()), settings, keys)?;
            }
        }
    }
    Ok(())
}

fn check_section(name: &str, section: &DeTable<'_>, keys: &[&str]) -> Result<(), Wrong> {
    match section
        .iter()
        .find(|(key, _)| !keys.contains(&key.get_ref().as_ref()))
    {
        Some((key, _)) => Err(unknown(name, key, keys)),
        None => Ok(()),
    }
}

fn unknown(section: &str, key: &Spanned<toml::de::DeString<'_>>, known: &[&str]) -> Wrong {
    let name: &str = key.get_ref().as_ref();
    let dotted = if section.is_empty() {
        name.to_owned()
    } else {
        format!("{section}.{name}")
    };
    let nearest = known.iter().min_by_key(|candidate| distance(name, candidate));
    let problem = match nearest.filter(|candidate| distance(name, candidate) <= candidate.len().div_ceil(2)) {
        Some(meant) => format!("there is no such setting; did you mean {meant:?}?"),
        None => format!("there is no such setting; there are {}", known.join(", ")),
    };
    Wrong {
        offset: Some(key.span().start),
        key: Some(dotted),
        problem,
    }
}

/// Counts the letters to insert, delete or replace to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}
