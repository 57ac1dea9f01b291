//! `quarry access`: who may use a share or a snapshot of one.

use clap::Subcommand;
use quarry_proto::v1::access_client::AccessClient;
use quarry_proto::v1::{
    AccessDecision, AccessLevel, AccessRule, AccessStatus, AccessTarget, ClientKind, ExplainAccessRequest,
    GetAccessRequest, ListClientsRequest, RuleStatus, SetAccessRequest, ShareClient, access_target,
};
use serde::Serialize;
use tonic::transport::Channel;
use uuid::Uuid;

use super::answer::{Answer, show_text, show_time};
use super::argument::{ShareVersion, parse_share_version};
use super::failure::Failure;
use super::mutation::MutationArgs;
use super::word::word;

/// The verbs of `quarry access`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replace the rules of a share or snapshot; without --rule, nobody may use it
    #[command(after_help = "\
Examples:
  quarry access set share:SHARE_ID --rule rw:10.0.0.7 --rule ro:10.0.0.0/24
  quarry access set share:SHARE_ID --rule rw:fd00::/64
  quarry access set snapshot:SNAPSHOT_ID --rule ro:10.0.0.0/8
  quarry access set snapshot:SNAPSHOT_ID --inherit
  quarry access set share:SHARE_ID

The longest prefix decides, whatever the order: here 10.0.0.7 may write, its neighbours may read. The rules hold when the
command has ended, also for files that are open.")]
    Set {
        /// The share or snapshot: share:ID or snapshot:ID
        #[arg(value_parser = parse_share_version, value_name = "KIND:ID")]
        target: ShareVersion,
        /// A rule, rw:CLIENT or ro:CLIENT, with an address or a network; may be given several times
        #[arg(long = "rule", value_parser = parse_rule, value_name = "LEVEL:CLIENT")]
        rules: Vec<Rule>,
        /// Of a snapshot: its share's rules, now and after every change of them
        #[arg(long, conflicts_with = "rules")]
        inherit: bool,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// Show the rules of a share or snapshot, and what has become of each
    Show {
        /// The share or snapshot: share:ID or snapshot:ID
        #[arg(value_parser = parse_share_version, value_name = "KIND:ID")]
        target: ShareVersion,
    },
    /// Tell what one client may do, which rule decides, and what the server has loaded
    #[command(after_help = "\
Examples:
  quarry access explain share:SHARE_ID 10.0.0.9")]
    Explain {
        /// The share or snapshot: share:ID or snapshot:ID
        #[arg(value_parser = parse_share_version, value_name = "KIND:ID")]
        target: ShareVersion,
        /// The client's address
        client: std::net::IpAddr,
    },
    /// List the clients that the server knows and that may use a share or snapshot, or still hold something of it
    Clients {
        /// The share or snapshot: share:ID or snapshot:ID
        #[arg(value_parser = parse_share_version, value_name = "KIND:ID")]
        target: ShareVersion,
    },
}

/// A rule as written after `--rule`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    level: AccessLevel,
    client: String,
}

/// Parses `rw:CLIENT` or `ro:CLIENT`; what the client is, the agent judges.
fn parse_rule(text: &str) -> Result<Rule, String> {
    let rule = |level, client: &str| Rule {
        level,
        client: client.to_owned(),
    };
    match text.split_once(':') {
        Some(("rw", client)) if !client.is_empty() => Ok(rule(AccessLevel::ReadWrite, client)),
        Some(("ro", client)) if !client.is_empty() => Ok(rule(AccessLevel::ReadOnly, client)),
        _ => Err(format!(
            "{text:?} is no rule; write rw:CLIENT or ro:CLIENT, like rw:10.0.0.7"
        )),
    }
}

fn target_of(version: ShareVersion) -> Option<AccessTarget> {
    let target = match version {
        ShareVersion::Share(id) => access_target::Target::ShareId(id.to_string()),
        ShareVersion::Snapshot(id) => access_target::Target::SnapshotId(id.to_string()),
    };
    Some(AccessTarget { target: Some(target) })
}

/// Makes the rule as the agent takes it. Its id follows from what it says, so that the same rule is the same again.
fn rule_of(rule: Rule) -> AccessRule {
    let text = format!("{}:{}", rule.level.as_str_name(), rule.client);
    AccessRule {
        id: Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).to_string(),
        kind: ClientKind::Ip.into(),
        client: rule.client,
        level: rule.level.into(),
    }
}

/// Makes rules as the agent takes them. One that is given twice is one.
fn rules_of(rules: Vec<Rule>) -> Vec<AccessRule> {
    let mut made: Vec<AccessRule> = Vec::with_capacity(rules.len());
    for rule in rules.into_iter().map(rule_of) {
        if !made.contains(&rule) {
            made.push(rule);
        }
    }
    made
}

/// Runs one verb.
pub async fn run(command: Command, channel: Channel) -> Result<Answer, Failure> {
    let mut client = AccessClient::new(channel);
    match command {
        Command::Set {
            target,
            rules,
            inherit,
            mutation,
        } => {
            let request = SetAccessRequest {
                target: target_of(target),
                rules: rules_of(rules),
                inherit,
                mutation: mutation.into(),
            };
            Ok(listed(&client.set_access(request).await?.into_inner()))
        }
        Command::Show { target } => {
            let request = GetAccessRequest {
                target: target_of(target),
            };
            Ok(listed(&client.get_access(request).await?.into_inner()))
        }
        Command::Explain {
            target,
            client: address,
        } => {
            let request = ExplainAccessRequest {
                target: target_of(target),
                client: address.to_string(),
            };
            Ok(explained(&client.explain_access(request).await?.into_inner()))
        }
        Command::Clients { target } => {
            let request = ListClientsRequest {
                target: target_of(target),
            };
            Ok(clients(&client.list_clients(request).await?.into_inner().clients))
        }
    }
}

/// A rule as JSON.
#[derive(Serialize)]
struct RuleRecord<'a> {
    id: &'a str,
    kind: String,
    client: &'a str,
    level: String,
    state: String,
    problem: &'a str,
    canonical: &'a str,
    effective: String,
    shadowed_by: &'a [String],
    inherited_from_share_id: &'a str,
}

fn level(level: AccessLevel) -> String {
    match level {
        AccessLevel::Unspecified => "none",
        AccessLevel::ReadOnly => "ro",
        AccessLevel::ReadWrite => "rw",
    }
    .to_owned()
}

fn listed(status: &AccessStatus) -> Answer {
    let record = |status: &'_ RuleStatus| -> Option<(AccessRule, AccessLevel, String)> {
        let rule = status.rule.clone()?;
        Some((
            rule,
            status.effective(),
            word(status.state().as_str_name(), "RULE_STATE_"),
        ))
    };
    let rows = status
        .rules
        .iter()
        .filter_map(|one| {
            let (rule, effective, state) = record(one)?;
            let of = match status.inherited_from_share_id.is_empty() {
                true => "own",
                false => "of its share",
            };
            let problem = match &one.shadowed_by[..] {
                [] => one.problem.clone(),
                rules => format!("shadowed by {}", rules.join(", ")),
            };
            Some(vec![
                rule.id.clone(),
                rule.client.clone(),
                level(rule.level()),
                level(effective),
                of.to_owned(),
                state,
                show_text(&problem),
            ])
        })
        .collect();
    let records: Vec<RuleRecord<'_>> = status
        .rules
        .iter()
        .filter_map(|one| {
            let rule = one.rule.as_ref()?;
            Some(RuleRecord {
                id: &rule.id,
                kind: word(rule.kind().as_str_name(), "CLIENT_KIND_"),
                client: &rule.client,
                level: level(rule.level()),
                state: word(one.state().as_str_name(), "RULE_STATE_"),
                problem: &one.problem,
                canonical: &one.canonical,
                effective: level(one.effective()),
                shadowed_by: &one.shadowed_by,
                inherited_from_share_id: &status.inherited_from_share_id,
            })
        })
        .collect();
    let columns = [
        "RULE",
        "CLIENT",
        "LEVEL",
        "EFFECTIVE",
        "WHOSE",
        "STATE",
        "PROBLEM",
    ];
    Answer::list(&columns, rows, &records)
}

/// A decision as JSON.
#[derive(Serialize)]
struct DecisionRecord<'a> {
    level: String,
    rule_id: &'a str,
    network: &'a str,
    loaded_level: String,
    loaded_network: &'a str,
    inherited_from_share_id: &'a str,
    explanation: &'a str,
}

fn explained(decision: &AccessDecision) -> Answer {
    let record = DecisionRecord {
        level: level(decision.level()),
        rule_id: &decision.rule_id,
        network: &decision.network,
        loaded_level: level(decision.loaded_level()),
        loaded_network: &decision.loaded_network,
        inherited_from_share_id: &decision.inherited_from_share_id,
        explanation: &decision.explanation,
    };
    let properties = vec![
        ("level", record.level.clone()),
        ("rule", show_text(record.rule_id)),
        ("network", show_text(record.network)),
        ("at the server", record.loaded_level.clone()),
        ("because", record.explanation.to_owned()),
    ];
    Answer::show(properties, &record)
}

/// A client as JSON.
#[derive(Serialize)]
struct ClientRecord<'a> {
    address: &'a str,
    level: String,
    versions: &'a [String],
    last_seen_time: Option<String>,
    held_count: Option<u64>,
}

fn held(client: &ShareClient) -> Option<u64> {
    client.held_known.then_some(client.held_count)
}

fn clients(clients: &[ShareClient]) -> Answer {
    let row = |client: &ShareClient| {
        vec![
            client.address.clone(),
            level(client.level()),
            show_text(&client.versions.join(" ")),
            held(client).map_or("not known".to_owned(), |held| held.to_string()),
            show_time(client.last_seen_time.as_ref()),
        ]
    };
    let records: Vec<ClientRecord<'_>> = clients
        .iter()
        .map(|client| ClientRecord {
            address: &client.address,
            level: level(client.level()),
            versions: &client.versions,
            last_seen_time: client.last_seen_time.as_ref().map(ToString::to_string),
            held_count: held(client),
        })
        .collect();
    let columns = ["CLIENT", "MAY", "SPEAKS", "HOLDS", "LAST SEEN"];
    Answer::list(&columns, clients.iter().map(row).collect(), &records)
}

#[cfg(test)]
mod tests {
    use quarry_proto::v1::RuleState;

    use super::*;
    use crate::cli::golden::assert_golden;

    #[test]
    fn rules_are_a_level_and_a_client_which_may_hold_colons() {
        assert_eq!(parse_rule("rw:fd00::/64").unwrap().client, "fd00::/64");
        assert_eq!(parse_rule("ro:10.0.0.7").unwrap().level, AccessLevel::ReadOnly);
        for text in ["", "10.0.0.7", "rw:", "wr:10.0.0.7", "none:10.0.0.7"] {
            assert!(parse_rule(text).is_err(), "{text:?}");
        }
        let rule = |text| rule_of(parse_rule(text).unwrap());
        assert_eq!(rule("rw:10.0.0.7"), rule("rw:10.0.0.7"));
        assert_ne!(rule("rw:10.0.0.7").id, rule("ro:10.0.0.7").id);
        let given = ["rw:10.0.0.7", "ro:10.0.0.7", "rw:10.0.0.7", "rw:10.0.0.7/32"];
        let made = rules_of(given.iter().map(|text| parse_rule(text).unwrap()).collect());
        assert_eq!(made, [rule(given[0]), rule(given[1]), rule(given[3])]);
    }

    #[test]
    fn access_answers_match_their_golden_files() {
        let rule = |text, state: RuleState, problem: &str| RuleStatus {
            rule: Some(rule_of(parse_rule(text).unwrap())),
            state: state.into(),
            problem: problem.into(),
            ..RuleStatus::default()
        };
        let active = RuleStatus {
            canonical: "10.0.0.0/24".into(),
            effective: AccessLevel::ReadOnly.into(),
            shadowed_by: vec!["00000000-0000-4000-8000-000000000001".into()],
            ..rule("ro:10.0.0.0/24", RuleState::Active, "")
        };
        let status = AccessStatus {
            generation: 2,
            in_sync: true,
            inherited_from_share_id: String::new(),
            rules: vec![
                active,
                rule("rw:host", RuleState::Refused, "names are not looked up"),
            ],
        };
        assert_golden("access-show", &listed(&status));
        let decision = AccessDecision {
            level: AccessLevel::ReadWrite.into(),
            rule_id: "00000000-0000-4000-8000-000000000001".into(),
            network: "10.0.0.7".into(),
            loaded_level: AccessLevel::ReadWrite.into(),
            loaded_network: "10.0.0.7".into(),
            explanation: "10.0.0.7 may read and write.".into(),
            inherited_from_share_id: "00000000-0000-4000-8000-0000000000d1".into(),
        };
        assert_golden("access-explain", &explained(&decision));
        let seen = prost_types::Timestamp {
            seconds: 1_790_000_000,
            nanos: 0,
        };
        let known = [
            ShareClient {
                address: "10.0.0.7".into(),
                level: AccessLevel::ReadWrite.into(),
                versions: vec!["4.1".into(), "4.2".into()],
                last_seen_time: Some(seen),
                ..ShareClient::default()
            },
            ShareClient {
                address: "10.0.0.8".into(),
                held_count: 2,
                held_known: true,
                ..ShareClient::default()
            },
        ];
        assert_golden("access-clients", &clients(&known));
    }
}
