//! Who may use a share: access rules, and the table that every server enforces the same way.
//!
//! A pure function turns the rules of a share into a [`AccessTable`] and a [`RuleStatus`] for each rule; servers get
//! the table and nothing else, so what a client may do never depends on the server, or on the order and age of the
//! rules.
//!
//! Invariants
//! - A1: the rule whose network has the longest prefix decides. Of rules for equal networks the widest level does.
//! - A2: whom no rule names has no access; a rule that cannot be enforced names nobody, and no other rule suffers
//!   from it.
//! - A3: the table of the same rules in any order is the same, byte for byte.
//! - A4: a rule about one family says nothing of the other, also `0.0.0.0/0` and `::/0`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::network::{Network, Share};
use crate::AccessRuleId;

/// What a client may do. Ordered: the wider level is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum AccessLevel {
    /// Reads only, enforced by the server.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

impl fmt::Display for AccessLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AccessLevel::ReadOnly => "ro",
            AccessLevel::ReadWrite => "rw",
        })
    }
}

/// What a rule names clients by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum ClientKind {
    /// An address or a network.
    Ip,
    /// A user's name.
    User,
    /// A certificate's common name.
    Certificate,
}

impl fmt::Display for ClientKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClientKind::Ip => "ip",
            ClientKind::User => "user",
            ClientKind::Certificate => "cert",
        })
    }
}

/// A rule, as its author wrote it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AccessRule {
    /// Its id.
    pub id: AccessRuleId,
    /// What it names clients by.
    pub kind: ClientKind,
    /// The client or clients.
    pub client: String,
    /// What they may do.
    pub level: AccessLevel,
}

/// What a server can enforce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnforceableAccess {
    /// What it knows clients by.
    pub kinds: Vec<ClientKind>,
    /// Whether clients can come over IPv4.
    pub ipv4: bool,
    /// Whether clients can come over IPv6.
    pub ipv6: bool,
    /// Prefixes that an IPv6 network must not have.
    pub refused_ipv6_prefixes: Option<RangeInclusive<u8>>,
}

/// Why a rule is not enforced. It grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedRule {
    /// The server does not know clients by this.
    #[error("clients cannot be named by {kind} here")]
    UnsupportedKind {
        /// By what the rule names them.
        kind: ClientKind,
    },
    /// The server has no address of this family.
    #[error("the server has no {family} address")]
    UnsupportedFamily {
        /// The family.
        family: &'static str,
    },
    /// The server cannot tell networks of this size apart.
    #[error("the server knows no IPv6 network with a prefix from {} to {}, not /{prefix}", .refused.start(), .refused.end())]
    UnsupportedPrefix {
        /// The network's.
        prefix: u8,
        /// Those it does not know.
        refused: RangeInclusive<u8>,
    },
    /// It does not name a client.
    #[error("{problem}")]
    InvalidClient {
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// What has become of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleState {
    /// It is in the table.
    Active {
        /// Whom it names, in the one form that equal networks have.
        network: Network,
        /// What those may do for whom it decides.
        effective: AccessLevel,
        /// The rules that decide in its place for every client it names; empty when it decides for some.
        shadowed_by: Vec<AccessRuleId>,
    },
    /// It grants nothing.
    Refused(RefusedRule),
}

/// A rule with what has become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleStatus {
    /// The rule.
    pub id: AccessRuleId,
    /// What has become of it.
    pub state: RuleState,
}

/// One line of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessEntry {
    /// Whom it is about.
    pub network: Network,
    /// What they may do.
    pub level: AccessLevel,
    /// The rule it stands for.
    pub rule: AccessRuleId,
}

/// All that a server enforces for one export: the first entry that names a client decides (A1), and a client that
/// none names has no access (A2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessTable {
    entries: Vec<AccessEntry>,
}

impl AccessTable {
    /// Returns the entries in the order in which they decide: IPv4 before IPv6, longer prefixes before shorter ones,
    /// then by address; no network twice.
    pub fn entries(&self) -> &[AccessEntry] {
        &self.entries
    }

    /// Tells whether nobody has access.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the entry that decides for a client.
    pub fn decide(&self, client: IpAddr) -> Option<&AccessEntry> {
        self.entries.iter().find(|entry| entry.network.contains(client))
    }

    /// Returns the table in which everybody may at most read.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        for entry in &mut self.entries {
            entry.level = AccessLevel::ReadOnly;
        }
        self
    }
}

/// Turns rules into what is enforced, and says of each rule what has become of it, in the order of the rules.
pub fn resolve_access(rules: &[AccessRule], can: &EnforceableAccess) -> (AccessTable, Vec<RuleStatus>) {
    let networks: Vec<Result<Network, RefusedRule>> =
        rules.iter().map(|rule| enforceable(rule, can)).collect();
    let mut deciding: BTreeMap<Network, &AccessRule> = BTreeMap::new();
    for (rule, network) in rules.iter().zip(&networks) {
        let Ok(network) = network else { continue };
        let present = deciding.entry(*network).or_insert(rule);
        // The widest level; between equals the id, which does not depend on the order (A3).
        if (rule.level, present.id) > (present.level, rule.id) {
            *present = rule;
        }
    }
    let mut entries: Vec<AccessEntry> = deciding
        .iter()
        .map(|(network, rule)| AccessEntry {
            network: *network,
            level: rule.level,
            rule: rule.id,
        })
        .collect();
    let order = |network: &Network| {
        (
            network.is_ipv6(),
            std::cmp::Reverse(network.prefix()),
            network.address(),
        )
    };
    entries.sort_by_key(|entry| order(&entry.network));
    let table = AccessTable { entries };
    let statuses = rules
        .iter()
        .zip(networks)
        .map(|(rule, network)| RuleStatus {
            id: rule.id,
            state: match network {
                Ok(network) => status_of(rule, network, &table),
                Err(refused) => RuleState::Refused(refused),
            },
        })
        .collect();
    (table, statuses)
}

fn enforceable(rule: &AccessRule, can: &EnforceableAccess) -> Result<Network, RefusedRule> {
    if rule.kind != ClientKind::Ip || !can.kinds.contains(&rule.kind) {
        return Err(RefusedRule::UnsupportedKind { kind: rule.kind });
    }
    let invalid = |problem| RefusedRule::InvalidClient { problem };
    let network = Network::parse(&rule.client).map_err(invalid)?;
    if network.is_unspecified_host() {
        // No client has it, and servers take it for everybody.
        let family = if network.is_ipv6() { "IPv6" } else { "IPv4" };
        return Err(invalid(format!(
            "{:?} is the address of no client; every {family} client is {network}/0",
            rule.client
        )));
    }
    match network.is_ipv6() {
        true if !can.ipv6 => Err(RefusedRule::UnsupportedFamily { family: "IPv6" }),
        false if !can.ipv4 => Err(RefusedRule::UnsupportedFamily { family: "IPv4" }),
        true => match &can.refused_ipv6_prefixes {
            Some(refused) if refused.contains(&network.prefix()) => Err(RefusedRule::UnsupportedPrefix {
                prefix: network.prefix(),
                refused: refused.clone(),
            }),
            _ => Ok(network),
        },
        false => Ok(network),
    }
}

fn status_of(rule: &AccessRule, network: Network, table: &AccessTable) -> RuleState {
    let entry_of = |wanted: Network| table.entries.iter().find(|entry| entry.network == wanted);
    let (effective, shadowed_by) = match entry_of(network) {
        Some(entry) if entry.rule == rule.id => (entry.level, covering(network, table)),
        Some(entry) => (entry.level, vec![entry.rule]),
        // Every network that is enforceable has an entry.
        None => (rule.level, Vec::new()),
    };
    RuleState::Active {
        network,
        effective,
        shadowed_by,
    }
}

/// Returns the rules whose networks together are all of `network`; none when a client of it is left to it.
fn covering(network: Network, table: &AccessTable) -> Vec<AccessRuleId> {
    let inside: Vec<&AccessEntry> = table
        .entries
        .iter()
        .filter(|entry| entry.network != network && network.covers(&entry.network))
        .collect();
    let is_outermost = |entry: &AccessEntry| {
        !inside
            .iter()
            .any(|other| other.network != entry.network && other.network.covers(&entry.network))
    };
    let covered = inside
        .iter()
        .filter(|entry| is_outermost(entry))
        .fold(Share::NONE, |sum, entry| {
            sum.plus(entry.network.share_of_family())
        });
    if inside.is_empty() || covered != network.share_of_family() {
        return Vec::new();
    }
    let mut rules: Vec<AccessRuleId> = inside.iter().map(|entry| entry.rule).collect();
    rules.sort_unstable();
    rules
}

#[cfg(test)]
mod tests;
