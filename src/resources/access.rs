//! Access rules: the whole list of a share or snapshot at once, what has become of each, and why a client may do what
//! it may.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use quarry_contract::{
    AccessLevel, AccessRule, AccessRuleId, RuleState, ShareClient, ShareId, ShareVersion, resolve_access,
};
use serde::{Deserialize, Serialize};

use super::error::{Object, ResourceError};
use super::operations::{Done, Intent};
use super::share_exports::{AccessInForce, table_of};
use super::volumes::check_generation;
use super::{Mutation, Resources};
use crate::catalog::Change;
use crate::catalog::record::{Request, ShareRecord};

/// The most rules of one share.
const MAX_RULES: usize = 1000;
/// The longest client, in bytes.
const MAX_CLIENT_BYTES: usize = 255;

/// Whose rules say who may use something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleSource {
    /// Its own: all that it shall have.
    Own(Vec<AccessRule>),
    /// Its share's, now and later. Of a snapshot only.
    Share,
}

/// All rules of a share or snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessStatus {
    /// The object's generation.
    pub generation: u64,
    /// The rules, in the order in which they were set.
    pub rules: Vec<RuleView>,
    /// Why the server does not enforce them; `None` when it does.
    pub problem: Option<String>,
    /// The share whose rules they are, when they are not its own. Answers remembered from before had none.
    #[serde(default)]
    pub inherited_from: Option<ShareId>,
}

/// A rule, and what has become of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// The rule.
    pub rule: AccessRule,
    /// What it comes to; or why it grants nothing.
    pub enforced: Result<EnforcedRule, String>,
}

/// What a rule comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnforcedRule {
    /// Whom it names, in canonical form.
    pub network: String,
    /// What those may do for whom it decides.
    pub effective: AccessLevel,
    /// The rules that decide in its place.
    pub shadowed_by: Vec<AccessRuleId>,
}

/// What one client may do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessDecision {
    /// The client.
    pub client: IpAddr,
    /// What it may do by the rules: the level, the network and the rule that decide.
    pub by_rules: Option<(AccessLevel, String, AccessRuleId)>,
    /// What it may do by what the server has loaded.
    pub loaded: Option<(AccessLevel, String)>,
    /// The share whose rules decide, when they are not its own.
    pub inherited_from: Option<ShareId>,
}

/// A client that may be using a share or snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectedClient {
    /// What the server knows of it.
    pub client: ShareClient,
    /// What it may do by what the server has loaded; `None` for one that lost its access and still holds something.
    pub level: Option<AccessLevel>,
}

impl Resources {
    /// Replaces the rules of a share or snapshot. They hold when this returns, those of a share for the snapshots, too, that
    /// take its rules.
    ///
    /// # Errors
    /// `NotFound`, `InvalidField`, `StaleGeneration`, and the server's; then the rules are what they were.
    pub async fn set_access(
        self: &Arc<Self>,
        version: ShareVersion,
        source: RuleSource,
        mutation: Mutation,
    ) -> Result<AccessStatus, ResourceError> {
        let (rules, inherits) = match source {
            RuleSource::Own(rules) => (rules, false),
            RuleSource::Share => (Vec::new(), true),
        };
        check_rules(&rules)?;
        if inherits && matches!(version, ShareVersion::Share(_)) {
            let problem = "is for snapshots of shares only; a share has rules of its own";
            return Err(ResourceError::field("inherit", problem.to_owned()));
        }
        let if_generation = mutation.if_generation;
        let request = Request::SetAccess {
            target: version,
            rules: rules.clone(),
            inherits,
        };
        let locks = self.access_locks(version).await?;
        self.mutate(locks, request, mutation, move |model, intent| {
            Box::pin(model.replace_rules(version, rules, inherits, if_generation, intent))
        })
        .await
    }

    async fn replace_rules(
        &self,
        version: ShareVersion,
        rules: Vec<AccessRule>,
        inherits: bool,
        if_generation: Option<u64>,
        intent: &mut Intent,
    ) -> Result<Done<AccessStatus>, ResourceError> {
        self.existing_share_version(version).await?;
        let record = self.share_record(version)?;
        check_generation(Object::share(version), record.generation, if_generation)?;
        if record.rules == rules && record.inherits == inherits {
            // A call that failed may have left others at the server.
            let in_force = self.access_in_force(version, &record).await?;
            for (version, in_force) in self.concerned(version, in_force).await? {
                self.sync_share(version, &in_force).await?;
            }
            return Ok(Done::unchanged(self.access_status(version, &record).await?));
        }
        intent.open().await?;
        let record = ShareRecord {
            rules,
            inherits,
            ..record
        }
        .changed_now();
        let in_force = self.access_in_force(version, &record).await?;
        let concerned = self.concerned(version, in_force).await?;
        let synced = async {
            for (version, in_force) in &concerned {
                self.sync_share(*version, in_force).await?;
            }
            Ok(())
        };
        if let Err(error) = synced.await {
            for (version, _) in &concerned {
                self.export_again(*version, "a change of rules has failed").await;
            }
            return Err(error);
        }
        let status = self.access_status(version, &record).await?;
        Ok(Done::changed(status, vec![Change::PutShare(version, record)]))
    }

    /// Returns what a change of rules concerns: what they are of, and the snapshots that take them (X4).
    async fn concerned(
        &self,
        version: ShareVersion,
        in_force: AccessInForce,
    ) -> Result<Vec<(ShareVersion, AccessInForce)>, ResourceError> {
        let mut concerned = Vec::new();
        if let ShareVersion::Share(id) = version {
            for snapshot in self.inheriting(id).await? {
                let inherited = AccessInForce {
                    rules: in_force.rules.clone(),
                    squash: in_force.squash,
                    inherited_from: Some(id),
                };
                concerned.push((snapshot, inherited));
            }
        }
        concerned.insert(0, (version, in_force));
        Ok(concerned)
    }

    /// Returns the rules of a share or snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn access(&self, version: ShareVersion) -> Result<AccessStatus, ResourceError> {
        self.existing_share_version(version).await?;
        self.access_status(version, &self.share_record(version)?).await
    }

    async fn access_status(
        &self,
        version: ShareVersion,
        record: &ShareRecord,
    ) -> Result<AccessStatus, ResourceError> {
        let in_force = self.access_in_force(version, record).await?;
        let (_, statuses) = resolve_access(&in_force.rules, &self.share_server()?.enforceable());
        let view = |(rule, status): (&AccessRule, quarry_contract::RuleStatus)| RuleView {
            rule: rule.clone(),
            enforced: match status.state {
                RuleState::Refused(refused) => Err(refused.to_string()),
                RuleState::Active {
                    network,
                    effective,
                    shadowed_by,
                } => Ok(EnforcedRule {
                    network: network.to_string(),
                    effective: match version {
                        ShareVersion::Share(_) => effective,
                        ShareVersion::Snapshot(_) => AccessLevel::ReadOnly,
                    },
                    shadowed_by,
                }),
            },
        };
        Ok(AccessStatus {
            generation: record.generation,
            rules: in_force.rules.iter().zip(statuses).map(view).collect(),
            problem: self.share_export_failure(version),
            inherited_from: in_force.inherited_from,
        })
    }

    /// Tells what one client may do, by the rules and by what the server has loaded now.
    ///
    /// # Errors
    /// `NotFound`, and the server's.
    pub async fn explain_access(
        &self,
        version: ShareVersion,
        client: IpAddr,
    ) -> Result<AccessDecision, ResourceError> {
        self.existing_share_version(version).await?;
        let record = self.share_record(version)?;
        let server = self.share_server()?;
        let in_force = self.access_in_force(version, &record).await?;
        let by_rules = table_of(version, &in_force.rules, &**server)
            .decide(client)
            .map(|entry| (entry.level, entry.network.to_string(), entry.rule));
        let loaded = server
            .loaded(version)
            .await?
            .and_then(|loaded| loaded.decide(client));
        Ok(AccessDecision {
            client,
            by_rules,
            loaded: loaded.map(|(network, level)| (level, network.to_string())),
            inherited_from: in_force.inherited_from,
        })
    }
}

impl Resources {
    /// Returns the clients that the server knows and that may use a share or snapshot, or hold something of it.
    ///
    /// # Errors
    /// `NotFound`, and the server's.
    pub async fn connected_clients(
        &self,
        version: ShareVersion,
    ) -> Result<Vec<ConnectedClient>, ResourceError> {
        self.existing_share_version(version).await?;
        let server = self.share_server()?;
        let loaded = server.loaded(version).await?;
        let mut found = Vec::new();
        for client in server.clients(version).await? {
            let decided = loaded.as_ref().and_then(|loaded| loaded.decide(client.address));
            let level = decided.map(|(_, level)| level);
            if level.is_some() || client.held.is_some_and(|held| held > 0) {
                found.push(ConnectedClient { client, level });
            }
        }
        Ok(found)
    }
}

/// Checks what is wrong with a list as a whole; a client that cannot be enforced is no such thing.
fn check_rules(rules: &[AccessRule]) -> Result<(), ResourceError> {
    if rules.len() > MAX_RULES {
        let problem = format!("{} rules are more than {MAX_RULES}", rules.len());
        return Err(ResourceError::field("rules", problem));
    }
    let mut ids = HashSet::new();
    for (at, rule) in rules.iter().enumerate() {
        if !ids.insert(rule.id) {
            let problem = format!("{} is there twice", rule.id);
            return Err(ResourceError::field(&format!("rules[{at}].id"), problem));
        }
        if rule.client.len() > MAX_CLIENT_BYTES {
            let problem = format!("has {} bytes, more than {MAX_CLIENT_BYTES}", rule.client.len());
            return Err(ResourceError::field(&format!("rules[{at}].client"), problem));
        }
    }
    Ok(())
}
