//! An agent with shares over drivers in memory; the share server outlives it, as a real one does.

use std::sync::Arc;

use quarry_contract::memory::{
    MemoryBackend, MemoryBackendOptions, MemoryShareBackend, MemoryShareServer, MemoryTarget,
};
use quarry_contract::{AccessLevel, PoolName, ShareBackend as _, ShareId, ShareSnapshotId, ShareVersion};
use quarry_proto::v1;
use quarry_proto::v1::access_server::Access as _;
use quarry_proto::v1::share_snapshots_server::ShareSnapshots as _;
use quarry_proto::v1::shares_server::Shares as _;
use tempfile::TempDir;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::api::Api;
use crate::catalog::record::{Moment, OperationId, OperationRecord, Progress, Request as Call};
use crate::catalog::{Catalog, Change};
use crate::registry::{NamedTarget, Registry};
use crate::resources::Resources;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const SIZE: u64 = 8 * MIB;

pub(super) struct Agent {
    pub(super) api: Api,
    pub(super) pool: Arc<MemoryShareBackend>,
    pub(super) server: Arc<MemoryShareServer>,
    pub(super) folder: TempDir,
}

pub(super) fn catalog_in(folder: &TempDir) -> Catalog {
    Catalog::open(&folder.path().join("catalog.redb")).unwrap()
}

impl Agent {
    pub(super) async fn new() -> Self {
        let pool = MemoryShareBackend::new(PoolName::parse("shares").unwrap(), 1 << 30);
        Self::over(
            Arc::new(pool),
            Arc::new(MemoryShareServer::new()),
            tempfile::tempdir().unwrap(),
        )
        .await
    }

    pub(super) async fn over(
        pool: Arc<MemoryShareBackend>,
        server: Arc<MemoryShareServer>,
        folder: TempDir,
    ) -> Self {
        let volumes = PoolName::parse("default").unwrap();
        let options = MemoryBackendOptions::of_capacity(volumes.clone(), 1 << 30);
        let target = NamedTarget {
            driver: "memory",
            target: Arc::new(MemoryTarget::new()),
        };
        let registry = Registry::new(
            [(volumes, Arc::new(MemoryBackend::new(options)) as _)].into(),
            target,
        )
        .with_shares(
            [(PoolName::parse("shares").unwrap(), Arc::clone(&pool) as _)].into(),
            Arc::clone(&server) as _,
        );
        let model = Resources::new(registry, catalog_in(&folder));
        model.recover().await.unwrap();
        Self {
            api: Api { model },
            pool,
            server,
            folder,
        }
    }

    /// Kills the agent with these intents open and starts it again; pool and share server live on.
    pub(super) async fn restart_in(self, calls: Vec<Call>) -> Self {
        let Self {
            api,
            pool,
            server,
            folder,
        } = self;
        drop(api);
        let operations = calls.into_iter().map(|request| {
            let record = OperationRecord {
                request,
                request_id: None,
                progress: Progress::Running,
                created: Moment::now(),
                ended: None,
                recovered: false,
            };
            Change::PutOperation(OperationId(Uuid::now_v7()), record)
        });
        let catalog = catalog_in(&folder);
        catalog.commit(operations.collect()).await.unwrap();
        drop(catalog);
        let agent = Self::over(pool, server, folder).await;
        let open = agent.api.model.operations(
            crate::resources::Page {
                after: None,
                limit: 100,
            },
            |one| one.ended.is_none(),
        );
        assert_eq!(open.unwrap(), [], "no intent is open after a start");
        agent
    }

    pub(super) async fn create(&self, n: u128) -> v1::Share {
        let request = v1::CreateShareRequest {
            id: id(n),
            size_bytes: SIZE,
            ..Default::default()
        };
        self.api
            .create_share(Request::new(request))
            .await
            .unwrap()
            .into_inner()
    }

    pub(super) async fn get(&self, n: u128) -> Result<v1::Share, Status> {
        let request = v1::GetShareRequest { id: id(n) };
        self.api
            .get_share(Request::new(request))
            .await
            .map(|answer| answer.into_inner())
    }

    pub(super) async fn snapshot(&self, n: u128, of: u128) -> v1::ShareSnapshot {
        let request = v1::CreateShareSnapshotsRequest {
            members: vec![v1::ShareSnapshotMember {
                snapshot_id: id(n),
                share_id: id(of),
            }],
            ..Default::default()
        };
        let answer = self
            .api
            .create_share_snapshots(Request::new(request))
            .await
            .unwrap();
        answer.into_inner().snapshots.remove(0)
    }

    pub(super) async fn set(
        &self,
        target: v1::access_target::Target,
        rules: &[(&str, v1::AccessLevel)],
    ) -> Result<v1::AccessStatus, Status> {
        self.set_at(target, rules, 0).await
    }

    pub(super) async fn set_at(
        &self,
        target: v1::access_target::Target,
        rules: &[(&str, v1::AccessLevel)],
        if_generation: u64,
    ) -> Result<v1::AccessStatus, Status> {
        let rule = |(at, (client, level)): (usize, &(&str, v1::AccessLevel))| v1::AccessRule {
            id: id(1000 + at as u128),
            kind: 0,
            client: (*client).to_owned(),
            level: (*level).into(),
        };
        let request = v1::SetAccessRequest {
            target: Some(v1::AccessTarget { target: Some(target) }),
            rules: rules.iter().enumerate().map(rule).collect(),
            inherit: false,
            mutation: Some(v1::Mutation {
                if_generation,
                ..Default::default()
            }),
        };
        self.api
            .set_access(Request::new(request))
            .await
            .map(|answer| answer.into_inner())
    }

    pub(super) fn attempt(&self, version: ShareVersion, client: &str) -> Option<AccessLevel> {
        self.server.attempt(version, client.parse().unwrap())
    }

    pub(super) async fn is_mounted(&self, version: ShareVersion) -> bool {
        let mounted = self.pool.mounted().await.unwrap();
        mounted.iter().any(|one| one.version == version)
    }
}

pub(super) fn id(n: u128) -> String {
    Uuid::from_u128(n).to_string()
}

pub(super) fn share_id(n: u128) -> ShareId {
    ShareId(Uuid::from_u128(n))
}

pub(super) fn snapshot_id(n: u128) -> ShareSnapshotId {
    ShareSnapshotId(Uuid::from_u128(n))
}

pub(super) fn share(n: u128) -> ShareVersion {
    ShareVersion::Share(share_id(n))
}

pub(super) fn snapshot(n: u128) -> ShareVersion {
    ShareVersion::Snapshot(snapshot_id(n))
}

pub(super) fn of_share(n: u128) -> v1::access_target::Target {
    v1::access_target::Target::ShareId(id(n))
}

pub(super) fn of_snapshot(n: u128) -> v1::access_target::Target {
    v1::access_target::Target::SnapshotId(id(n))
}

#[track_caller]
pub(super) fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str) {
    let status = result.expect_err(reason);
    let found = status.get_error_details().error_info().unwrap().reason.clone();
    assert_eq!(
        (status.code(), found.as_str()),
        (code, reason),
        "{}",
        status.message()
    );
}
