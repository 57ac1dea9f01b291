//! The model's types, turned into messages.

use prost_types::Timestamp;
use quarry_contract::{
    AccessLevel, ChapCredentials, ClientKind, IoLimits, PoolSpace, PoolState, Rate, RateLimits, ScrubFinding,
    ScrubState, ScrubStatus, SessionInfo, ShareId, SharePoolStatus, ShareSource, SpaceLevel, Squash,
    VersionId,
};
use quarry_proto::v1;
use quarry_proto::v1::{share_source, volume_source};
use secrecy::ExposeSecret;

use super::cinder;
use crate::catalog::record::{
    AccessMode, Connector, Moment, OperationId, OperationRecord, Progress, Request, Source,
};
use crate::resources::{
    AccessDecision, AccessStatus, Attachment, AttachmentState, ConnectedClient, ConnectionInfo, DriverRole,
    ExportLocation, Node, Pool, RuleView, Share, SharePoolView, ShareSnapshot, Snapshot, Volume,
    VolumeEncryption,
};

pub(super) fn timestamp(moment: Moment) -> Timestamp {
    let seconds = i64::try_from(moment.0 / 1000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(moment.0 % 1000).unwrap_or_default() * 1_000_000;
    Timestamp { seconds, nanos }
}

fn source(source: Source) -> Option<v1::VolumeSource> {
    let source = match source {
        Source::Blank => return None,
        Source::Snapshot(id) => volume_source::Source::SnapshotId(id.to_string()),
        Source::Volume(id) => volume_source::Source::VolumeId(id.to_string()),
    };
    Some(v1::VolumeSource { source: Some(source) })
}

/// What is not limited at all is absent.
fn limits(limits: &IoLimits) -> Option<v1::IoLimits> {
    let rate = |limits: &RateLimits| {
        let figures = |rate: Option<Rate>| rate.map_or((0, 0), |rate| (rate.per_second.get(), rate.burst));
        let (iops, burst_commands) = figures(limits.commands);
        let (bytes_per_second, burst_bytes) = figures(limits.bytes);
        (*limits != RateLimits::NONE).then_some(v1::RateLimit {
            iops,
            burst_commands,
            bytes_per_second,
            burst_bytes,
        })
    };
    (!limits.is_none()).then(|| v1::IoLimits {
        total: rate(&limits.total),
        read: rate(&limits.read),
        write: rate(&limits.write),
    })
}

pub(super) fn volume(volume: Volume) -> v1::Volume {
    v1::Volume {
        id: volume.id.to_string(),
        pool: volume.pool,
        size_bytes: volume.size_bytes,
        source: source(volume.source),
        mapped_bytes: volume.mapped_bytes,
        snapshot_count: volume.snapshot_count,
        attachment_ids: volume.attachments.iter().map(ToString::to_string).collect(),
        target_name: volume.target_name,
        serial: volume.serial,
        labels: volume.labels.into_iter().collect(),
        generation: volume.generation,
        create_time: volume.created.map(timestamp),
        update_time: volume.updated.map(timestamp),
        limits: limits(&volume.limits),
        reserved: volume.reserved,
        encryption: match volume.encryption {
            VolumeEncryption::None => v1::Encryption::None,
            VolumeEncryption::Unlocked => v1::Encryption::Unlocked,
            VolumeEncryption::Locked => v1::Encryption::Locked,
        }
        .into(),
        checksums: volume.checksums,
    }
}

pub(super) fn snapshot(snapshot: Snapshot) -> v1::Snapshot {
    v1::Snapshot {
        id: snapshot.id.to_string(),
        volume_id: snapshot.volume.to_string(),
        pool: snapshot.pool,
        size_bytes: snapshot.size_bytes,
        mapped_bytes: snapshot.mapped_bytes,
        labels: snapshot.labels.into_iter().collect(),
        generation: snapshot.generation,
        create_time: snapshot.created.map(timestamp),
    }
}

fn mode(mode: AccessMode) -> v1::AccessMode {
    match mode {
        AccessMode::ReadOnly => v1::AccessMode::ReadOnly,
        AccessMode::ReadWrite => v1::AccessMode::ReadWrite,
    }
}

fn connector(connector: Connector) -> v1::Connector {
    let Connector {
        initiator,
        host,
        ip,
        multipath,
        enforce_multipath,
    } = connector;
    v1::Connector {
        initiator,
        host,
        ip,
        multipath,
        enforce_multipath,
    }
}

pub(super) fn attachment(attachment: Attachment) -> v1::Attachment {
    let (state, state_reason) = match attachment.state {
        AttachmentState::Ready => (v1::AttachmentState::Ready, String::new()),
        AttachmentState::Active => (v1::AttachmentState::Active, String::new()),
        AttachmentState::Degraded { reason } => (v1::AttachmentState::Degraded, reason),
    };
    v1::Attachment {
        id: attachment.id.to_string(),
        volume_id: attachment.volume.to_string(),
        connector: Some(connector(attachment.connector)),
        mode: mode(attachment.mode).into(),
        state: state.into(),
        state_reason,
        session_count: attachment.session_count,
        shared_on_host: attachment.shared_on_host,
        labels: attachment.labels.into_iter().collect(),
        generation: attachment.generation,
        create_time: Some(timestamp(attachment.created)),
    }
}

pub(super) fn connection_info(info: &ConnectionInfo) -> v1::ConnectionInfo {
    let iscsi = v1::IscsiConnectionInfo {
        portals: info.portals.iter().map(ToString::to_string).collect(),
        target_name: info.target_name.clone(),
        lun: info.lun.into(),
        chap: Some(credentials(&info.chap)),
        target_chap: info.target_chap.as_ref().map(credentials),
    };
    v1::ConnectionInfo {
        protocol: Some(v1::connection_info::Protocol::Iscsi(iscsi)),
        cinder_json: cinder::render(info).to_string(),
        mode: mode(info.mode).into(),
        discard: info.discard,
        logical_block_bytes: info.logical_block_bytes,
        physical_block_bytes: info.physical_block_bytes,
    }
}

fn credentials(chap: &ChapCredentials) -> v1::ChapCredentials {
    v1::ChapCredentials {
        username: chap.username.clone(),
        secret: chap.secret.expose_secret().to_owned(),
    }
}

pub(super) fn session(session: SessionInfo) -> v1::Session {
    v1::Session {
        volume_id: session.volume.to_string(),
        initiator: session.initiator.to_string(),
        peer: session.peer.to_string(),
        portal: session.portal.to_string(),
        tsih: session.tsih.into(),
    }
}

pub(super) fn scrub(scrub: ScrubStatus) -> v1::Scrub {
    let finding = |found: ScrubFinding| {
        let (volume_id, snapshot_id) = match found.version {
            Some(VersionId::Volume(id)) => (id.to_string(), String::new()),
            Some(VersionId::Snapshot(id)) => (String::new(), id.to_string()),
            None => (String::new(), String::new()),
        };
        v1::ScrubFinding {
            volume_id,
            snapshot_id,
            offset_bytes: found.offset,
            chunk: found.chunk,
            pool_offset_bytes: found.pool_offset,
        }
    };
    v1::Scrub {
        state: match scrub.state {
            ScrubState::Never => v1::ScrubState::Never,
            ScrubState::Running => v1::ScrubState::Running,
            ScrubState::Done => v1::ScrubState::Done,
            ScrubState::Stopped => v1::ScrubState::Stopped,
        }
        .into(),
        begin_time: scrub.begun.map(Timestamp::from),
        verified_bytes: scrub.verified_bytes,
        total_bytes: scrub.total_bytes,
        bad_blocks: scrub.bad_blocks,
        skipped_bytes: scrub.skipped_bytes,
        unverifiable_bytes: scrub.unverifiable_bytes,
        findings: scrub.findings.into_iter().map(finding).collect(),
    }
}

pub(super) fn pool(pool: Pool) -> v1::Pool {
    let mut answer = v1::Pool {
        name: pool.name,
        driver: pool.driver.to_owned(),
        max_volume_bytes: pool.max_volume_bytes,
        size_granularity_bytes: pool.size_granularity_bytes,
        capabilities: pool.capabilities.into_iter().map(str::to_owned).collect(),
        ..Default::default()
    };
    match pool.status {
        Err(reason) => {
            answer.set_state(v1::PoolState::Down);
            answer.state_reason = reason;
        }
        Ok(status) => {
            match status.state {
                PoolState::Up => answer.set_state(v1::PoolState::Up),
                PoolState::ReadOnly { reason } => {
                    answer.set_state(v1::PoolState::ReadOnly);
                    answer.state_reason = reason;
                }
            }
            answer.uuid = status.uuid.to_string();
            answer.total_bytes = status.total_bytes;
            answer.free_bytes = status.free_bytes;
            answer.allocated_bytes = status.allocated_bytes;
            answer.reclaimable_bytes = status.reclaimable_bytes;
            answer.reclaim_debt_bytes = status.reclaim_debt_bytes;
            answer.provisioned_bytes = status.provisioned_bytes;
            answer.chunk_bytes = status.chunk_bytes;
            answer.volume_count = status.volume_count;
            answer.snapshot_count = status.snapshot_count;
            answer.space = Some(space(&status.space));
        }
    }
    answer
}

fn space(space: &PoolSpace) -> v1::PoolSpace {
    let level = match space.level {
        SpaceLevel::Normal => v1::SpaceLevel::Normal,
        SpaceLevel::Warn => v1::SpaceLevel::Warn,
        SpaceLevel::Brake => v1::SpaceLevel::Brake,
        SpaceLevel::Critical => v1::SpaceLevel::Critical,
        SpaceLevel::Reserve => v1::SpaceLevel::Reserve,
    };
    v1::PoolSpace {
        level: level.into(),
        available_bytes: space.available_bytes,
        warn_bytes: space.warn_bytes,
        brake_bytes: space.brake_bytes,
        critical_bytes: space.critical_bytes,
        reserve_bytes: space.reserve_bytes,
        waiting_writes: space.waiting_writes,
        first_deadline_ms: space.first_deadline.map_or(0, |left| left.as_millis() as u64),
        refused_writes: space.refused_writes,
    }
}

pub(super) fn node(node: Node) -> v1::NodeInfo {
    let driver = |driver: crate::resources::Driver| v1::Driver {
        role: match driver.role {
            DriverRole::Volumes => v1::DriverRole::Volumes,
            DriverRole::Target => v1::DriverRole::Target,
            DriverRole::Shares => v1::DriverRole::Shares,
            DriverRole::ShareServer => v1::DriverRole::ShareServer,
        }
        .into(),
        name: driver.name.to_owned(),
        instance: driver.instance,
        capabilities: driver.capabilities.into_iter().map(str::to_owned).collect(),
    };
    let state = if node.problems.is_empty() {
        v1::HealthState::Ok
    } else {
        v1::HealthState::Degraded
    };
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    v1::NodeInfo {
        id: node.id.to_string(),
        hostname: hostname.to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api_versions: vec!["quarry.v1".to_owned()],
        start_time: Some(timestamp(node.started)),
        drivers: node.drivers.into_iter().map(driver).collect(),
        portals: node.portals.iter().map(ToString::to_string).collect(),
        share_portals: node.share_portals.iter().map(ToString::to_string).collect(),
        health: Some(v1::Health {
            state: state.into(),
            problems: node.problems,
        }),
        recovery: Some(v1::RecoveryReport {
            operations_finished: node.recovery.operations_finished,
            operations_undone: node.recovery.operations_undone,
            exports_restored: node.recovery.exports_restored,
            exports_failed: node.recovery.exports_failed,
        }),
    }
}

fn export_location(location: ExportLocation) -> v1::ExportLocation {
    v1::ExportLocation {
        id: location.id.to_string(),
        path: location.path,
        ipv6: location.is_ipv6,
        preferred: location.is_preferred,
        admin_only: location.is_admin_only,
        port: location.port.into(),
    }
}

pub(super) fn share(share: Share) -> v1::Share {
    let source = match share.source {
        ShareSource::Blank => None,
        ShareSource::Snapshot(id) => Some(share_source::Source::SnapshotId(id.to_string())),
        ShareSource::Share(id) => Some(share_source::Source::ShareId(id.to_string())),
    };
    let squash = match share.squash {
        Squash::None => v1::Squash::None,
        Squash::Root => v1::Squash::Root,
        Squash::All => v1::Squash::All,
    };
    v1::Share {
        id: share.id.to_string(),
        pool: share.pool,
        size_bytes: share.size_bytes,
        source: source.map(|source| v1::ShareSource { source: Some(source) }),
        used_bytes: share.used_bytes,
        allocated_bytes: share.allocated_bytes,
        squash: squash.into(),
        export_locations: share.locations.into_iter().map(export_location).collect(),
        labels: share.labels.into_iter().collect(),
        generation: share.generation,
        create_time: share.created.map(timestamp),
        update_time: share.updated.map(timestamp),
    }
}

pub(super) fn share_snapshot(snapshot: ShareSnapshot) -> v1::ShareSnapshot {
    v1::ShareSnapshot {
        id: snapshot.id.to_string(),
        share_id: snapshot.share.to_string(),
        pool: snapshot.pool,
        size_bytes: snapshot.size_bytes,
        export_locations: snapshot.locations.into_iter().map(export_location).collect(),
        labels: snapshot.labels.into_iter().collect(),
        generation: snapshot.generation,
        create_time: snapshot.created.map(timestamp),
    }
}

pub(super) fn share_pool(pool: SharePoolView) -> v1::SharePool {
    let (status, problem) = match pool.status {
        Ok(status) => (Some(status), String::new()),
        Err(problem) => (None, problem),
    };
    let figure = |of: fn(&SharePoolStatus) -> u64| status.as_ref().map_or(0, of);
    v1::SharePool {
        name: pool.name,
        driver: pool.driver.to_owned(),
        problem,
        uuid: status
            .as_ref()
            .map(|status| status.uuid.to_string())
            .unwrap_or_default(),
        total_bytes: figure(|status| status.total_bytes),
        free_bytes: figure(|status| status.free_bytes),
        reclaimable_bytes: figure(|status| status.reclaimable_bytes),
        provisioned_bytes: figure(|status| status.provisioned_bytes),
        share_count: figure(|status| status.share_count),
        snapshot_count: figure(|status| status.snapshot_count),
        capabilities: pool.capabilities.into_iter().map(str::to_owned).collect(),
        min_share_bytes: pool.limits.min_share_bytes,
        max_share_bytes: pool.limits.max_share_bytes,
        size_granularity_bytes: pool.limits.size_granularity_bytes,
    }
}

fn access_level(level: AccessLevel) -> v1::AccessLevel {
    match level {
        AccessLevel::ReadOnly => v1::AccessLevel::ReadOnly,
        AccessLevel::ReadWrite => v1::AccessLevel::ReadWrite,
    }
}

pub(super) fn access_status(status: AccessStatus) -> v1::AccessStatus {
    let in_sync = status.problem.is_none();
    let rule = |view: RuleView| {
        let kind = match view.rule.kind {
            ClientKind::Ip => v1::ClientKind::Ip,
            ClientKind::User => v1::ClientKind::User,
            ClientKind::Certificate => v1::ClientKind::Certificate,
        };
        let rule = v1::AccessRule {
            id: view.rule.id.to_string(),
            kind: kind.into(),
            client: view.rule.client,
            level: access_level(view.rule.level).into(),
        };
        match view.enforced {
            Err(problem) => v1::RuleStatus {
                rule: Some(rule),
                state: v1::RuleState::Refused.into(),
                problem,
                ..v1::RuleStatus::default()
            },
            Ok(enforced) => {
                let state = if in_sync {
                    v1::RuleState::Active
                } else {
                    v1::RuleState::Pending
                };
                v1::RuleStatus {
                    rule: Some(rule),
                    state: state.into(),
                    problem: status.problem.clone().unwrap_or_default(),
                    canonical: enforced.network,
                    effective: access_level(enforced.effective).into(),
                    shadowed_by: enforced.shadowed_by.iter().map(ToString::to_string).collect(),
                }
            }
        }
    };
    v1::AccessStatus {
        generation: status.generation,
        in_sync,
        rules: status.rules.into_iter().map(rule).collect(),
        inherited_from_share_id: optional_share(status.inherited_from),
    }
}

fn optional_share(id: Option<ShareId>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}

pub(super) fn share_client(connected: ConnectedClient) -> v1::ShareClient {
    let ConnectedClient { client, level } = connected;
    v1::ShareClient {
        address: client.address.to_string(),
        level: level.map_or(v1::AccessLevel::Unspecified, access_level).into(),
        versions: client.versions,
        last_seen_time: client.last_seen.map(prost_types::Timestamp::from),
        held_count: client.held.unwrap_or_default(),
        held_known: client.held.is_some(),
    }
}

pub(super) fn access_decision(decision: AccessDecision) -> v1::AccessDecision {
    let verb = |level: AccessLevel| match level {
        AccessLevel::ReadOnly => "may read",
        AccessLevel::ReadWrite => "may read and write",
    };
    let client = decision.client;
    let of = match decision.inherited_from {
        None => String::new(),
        Some(share) => format!(" of share {share}"),
    };
    let by_rules = match &decision.by_rules {
        None => format!("{client} has no access: no rule{of} names it"),
        Some((level, network, rule)) => {
            let verb = verb(*level);
            format!(
                "{client} {verb}: of the rules{of} that name it, {rule} has the smallest network, {network}"
            )
        }
    };
    let level = decision.by_rules.as_ref().map(|(level, _, _)| *level);
    let loaded = decision.loaded.as_ref().map(|(level, _)| *level);
    let explanation = match &decision.loaded {
        _ if level == loaded => format!("{by_rules}. The server has it so."),
        None => format!("{by_rules}. But the server gives it no access."),
        Some((level, network)) => {
            format!("{by_rules}. But at the server it {} by {network}.", verb(*level))
        }
    };
    let number = |level: Option<AccessLevel>| level.map_or(v1::AccessLevel::Unspecified, access_level).into();
    let (network, rule_id) = match decision.by_rules {
        Some((_, network, rule)) => (network, rule.to_string()),
        None => Default::default(),
    };
    v1::AccessDecision {
        level: number(level),
        rule_id,
        network,
        loaded_level: number(loaded),
        loaded_network: decision.loaded.map(|(_, network)| network).unwrap_or_default(),
        explanation,
        inherited_from_share_id: optional_share(decision.inherited_from),
    }
}

pub(super) fn operation_kind(request: &Request) -> v1::OperationKind {
    match request {
        Request::CreateVolume { .. } => v1::OperationKind::CreateVolume,
        Request::ExtendVolume { .. } => v1::OperationKind::ExtendVolume,
        Request::RevertVolume { .. } => v1::OperationKind::RevertVolume,
        Request::LimitVolume { .. } => v1::OperationKind::LimitVolume,
        Request::ReserveVolume { .. } => v1::OperationKind::ReserveVolume,
        Request::UpdateVolume { .. } => v1::OperationKind::UpdateVolume,
        Request::DeleteVolume { .. } => v1::OperationKind::DeleteVolume,
        Request::CreateSnapshots { .. } => v1::OperationKind::CreateSnapshots,
        Request::DeleteSnapshot { .. } => v1::OperationKind::DeleteSnapshot,
        Request::CreateAttachment { .. } => v1::OperationKind::CreateAttachment,
        Request::DeleteAttachment { .. } => v1::OperationKind::DeleteAttachment,
        Request::CreateShare { .. } => v1::OperationKind::CreateShare,
        Request::ResizeShare { .. } => v1::OperationKind::ResizeShare,
        Request::RevertShare { .. } => v1::OperationKind::RevertShare,
        Request::DeleteShare { .. } => v1::OperationKind::DeleteShare,
        Request::AdoptShare { .. } => v1::OperationKind::AdoptShare,
        Request::ReleaseShare { .. } => v1::OperationKind::ReleaseShare,
        Request::CreateShareSnapshots { .. } => v1::OperationKind::CreateShareSnapshots,
        Request::DeleteShareSnapshot { .. } => v1::OperationKind::DeleteShareSnapshot,
        Request::SetAccess { .. } => v1::OperationKind::SetAccess,
    }
}

pub(super) fn operation_state(progress: &Progress) -> v1::OperationState {
    match progress {
        Progress::Running => v1::OperationState::Running,
        Progress::Succeeded { .. } => v1::OperationState::Succeeded,
        Progress::Failed { .. } => v1::OperationState::Failed,
    }
}

pub(super) fn operation(id: OperationId, record: OperationRecord) -> v1::Operation {
    let error = match &record.progress {
        Progress::Failed { code, message } => Some(v1::OperationError {
            reason: v1::Reason::from_error_info(code)
                .unwrap_or(v1::Reason::Internal)
                .into(),
            message: message.clone(),
        }),
        Progress::Running | Progress::Succeeded { .. } => None,
    };
    v1::Operation {
        id: id.to_string(),
        kind: operation_kind(&record.request).into(),
        target_id: record.request.target().to_string(),
        state: operation_state(&record.progress).into(),
        request_id: record.request_id.unwrap_or_default(),
        create_time: Some(timestamp(record.created)),
        end_time: record.ended.map(timestamp),
        error,
        recovered: record.recovered,
    }
}
