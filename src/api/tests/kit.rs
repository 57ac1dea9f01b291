//! An agent's model and services over drivers in memory, with a restart and a way to make the target fail.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use quarry_contract::memory::{MemoryBackend, MemoryBackendOptions, MemoryTarget};
use quarry_contract::{
    Absence, DriverError, Durability, ExportInfo, ExportSpec, Grant, InitiatorName, IoBuffer, IoLimits,
    OpenMode, Outcome, PoolName, Portal, SessionInfo, Tag, Target, Verb, VersionId, VolumeBackend, VolumeId,
};
use quarry_proto::v1;
use quarry_proto::v1::attachments_server::Attachments as _;
use quarry_proto::v1::snapshots_server::Snapshots as _;
use quarry_proto::v1::volumes_server::Volumes as _;
use tempfile::TempDir;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::api::Api;
use crate::catalog::power_cut::CutDisk;
use crate::catalog::{Catalog, Change};
use crate::registry::{NamedTarget, Registry};
use crate::resources::Resources;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const HOST_A: &str = "iqn.2026-11.io.example:a";
pub(super) const HOST_B: &str = "iqn.2026-11.io.example:b";

/// A target in memory that writes down its calls and fails the n-th.
pub(super) struct FaultyTarget {
    pub(super) inner: MemoryTarget,
    pub(super) calls: Mutex<Vec<String>>,
    /// How many mutating calls from now the failing one is; 0 for none.
    fail_at: AtomicUsize,
}

impl FaultyTarget {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryTarget::new(),
            calls: Mutex::default(),
            fail_at: AtomicUsize::new(0),
        })
    }

    /// Makes the n-th mutating call from now fail, from 1.
    pub(super) fn fail_at(&self, n: usize) {
        self.fail_at.store(n, Ordering::SeqCst);
    }

    fn call(&self, name: &str, of: impl std::fmt::Display) -> Result<(), DriverError> {
        self.calls.lock().unwrap().push(format!("{name} {of}"));
        let count = |n: usize| n.checked_sub(1);
        match self
            .fail_at
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, count)
        {
            Ok(1) => Err(DriverError::Timeout {
                object: "target".into(),
                seconds: 1,
            }),
            _ => Ok(()),
        }
    }

    /// Returns who may log in to a volume, and whether it may write.
    pub(super) fn access(&self, volume: u128) -> BTreeMap<String, bool> {
        let grants = self
            .inner
            .grants(VolumeId(Uuid::from_u128(volume)))
            .unwrap_or_default();
        let writes = |grant: &Grant| grant.access == quarry_contract::Access::ReadWrite;
        grants
            .iter()
            .map(|grant| (grant.initiator.to_string(), writes(grant)))
            .collect()
    }
}

#[async_trait]
impl Target for FaultyTarget {
    fn portals(&self) -> Vec<Portal> {
        self.inner.portals()
    }

    fn address_of(&self, volume: VolumeId) -> ExportInfo {
        self.inner.address_of(volume)
    }

    async fn export(&self, spec: ExportSpec) -> Result<Outcome<ExportInfo>, DriverError> {
        self.call("export", spec.volume)?;
        self.inner.export(spec).await
    }

    async fn grant(&self, volume: VolumeId, grant: Grant) -> Result<Outcome<()>, DriverError> {
        self.call("grant", &grant.initiator)?;
        self.inner.grant(volume, grant).await
    }

    async fn revoke(&self, volume: VolumeId, initiator: &InitiatorName) -> Result<Outcome<()>, DriverError> {
        self.call("revoke", initiator)?;
        self.inner.revoke(volume, initiator).await
    }

    async fn unexport(&self, volume: VolumeId) -> Result<Outcome<()>, DriverError> {
        self.call("unexport", volume)?;
        self.inner.unexport(volume).await
    }

    fn set_absent(&self, volume: VolumeId, absence: Absence) {
        self.inner.set_absent(volume, absence);
    }

    async fn set_limits(&self, volume: VolumeId, limits: IoLimits) -> Result<Outcome<()>, DriverError> {
        self.call("set_limits", volume)?;
        self.inner.set_limits(volume, limits).await
    }

    async fn size_changed(&self, volume: VolumeId) -> Result<(), DriverError> {
        self.call("size_changed", volume)?;
        self.inner.size_changed(volume).await
    }

    async fn sessions(&self, volume: Option<VolumeId>) -> Result<Vec<SessionInfo>, DriverError> {
        self.inner.sessions(volume).await
    }

    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

/// One agent without its sockets.
pub(super) struct Kit {
    pub(super) api: Api,
    pub(super) target: Arc<FaultyTarget>,
    pub(super) backend: Arc<dyn VolumeBackend>,
    pools: BTreeMap<PoolName, Arc<dyn VolumeBackend>>,
    storage: Storage,
}

/// Where the catalog is.
enum Storage {
    File(TempDir),
    Disk(CutDisk),
}

impl Storage {
    fn open(&self) -> Catalog {
        match self {
            Storage::File(dir) => Catalog::open(&dir.path().join("catalog.redb")).unwrap(),
            Storage::Disk(disk) => Catalog::open_on(disk.clone(), Path::new("simulated")).unwrap(),
        }
    }
}

impl Kit {
    /// One pool of 1 GiB.
    pub(super) async fn new() -> Self {
        Self::with_pools(&["default"]).await
    }

    pub(super) async fn with_pools(names: &[&str]) -> Self {
        let pool = |name: &&str| {
            let name = PoolName::parse(name).unwrap();
            let options = MemoryBackendOptions {
                max_volume_bytes: 1 << 40,
                ..MemoryBackendOptions::of_capacity(name.clone(), 1 << 30)
            };
            let backend: Arc<dyn VolumeBackend> = Arc::new(MemoryBackend::new(options));
            (name, backend)
        };
        let pools: BTreeMap<_, _> = names.iter().map(pool).collect();
        Self::over(pools, Storage::File(tempfile::tempdir().unwrap())).await
    }

    /// One pool of 1 GiB, and a catalog on a disk that can lose its power.
    pub(super) async fn on_disk(disk: CutDisk) -> Self {
        let name = PoolName::parse("default").unwrap();
        let backend: Arc<dyn VolumeBackend> = Arc::new(MemoryBackend::new(
            MemoryBackendOptions::of_capacity(name.clone(), 1 << 30),
        ));
        Self::over([(name, backend)].into(), Storage::Disk(disk)).await
    }

    async fn over(pools: BTreeMap<PoolName, Arc<dyn VolumeBackend>>, storage: Storage) -> Self {
        let (api, target) = start(&pools, storage.open()).await;
        let backend = Arc::clone(pools.values().next().unwrap());
        Self {
            api,
            target,
            backend,
            pools,
            storage,
        }
    }

    /// Ends the process and starts another on the same pool and catalog.
    pub(super) async fn restart(self) -> Self {
        self.restart_after(Vec::new()).await
    }

    /// The same, with starts before that are cut after so many operations of the disk.
    pub(super) async fn restart_with_cuts(self, cuts: &[u64]) -> Self {
        let Self {
            api,
            target,
            pools,
            storage,
            ..
        } = self;
        drop((api, target));
        let Storage::Disk(disk) = &storage else {
            panic!("only a simulated disk can be cut")
        };
        for cut in cuts {
            disk.power_on();
            disk.cut_after(*cut);
            let named = NamedTarget {
                driver: "memory",
                target: FaultyTarget::new(),
            };
            if let Ok(catalog) = Catalog::open_on(disk.clone(), Path::new("simulated")) {
                // It fails, or was done before the cut: both are fine.
                let _ = Resources::new(Registry::new(pools.clone(), named), catalog)
                    .recover()
                    .await;
            }
        }
        disk.power_on();
        Self::over(pools, storage).await
    }

    /// The same, with changes of the catalog that the process wrote before it died.
    pub(super) async fn restart_after(self, written: Vec<Change>) -> Self {
        let Self {
            api,
            target,
            pools,
            storage,
            ..
        } = self;
        drop((api, target));
        if let Storage::Disk(disk) = &storage {
            disk.power_on();
        }
        if !written.is_empty() {
            storage.open().commit(written).await.unwrap();
        }
        Self::over(pools, storage).await
    }

    /// Writes to the beginning of a volume that is not attached.
    pub(super) async fn write(&self, id: u128) {
        let id = VersionId::Volume(VolumeId(Uuid::from_u128(id)));
        let device = self.backend.open(id, OpenMode::ReadWrite).await.unwrap();
        let mut queue = device.open_queue(1).unwrap();
        let buffer = IoBuffer::from_slice(&[7; 4096]);
        let verb = Verb::Write {
            offset: 0,
            buffer,
            durability: Durability::Flushed,
        };
        queue
            .submit(quarry_contract::Request { tag: Tag(0), verb })
            .unwrap();
        queue.kick();
        let mut completions = Vec::new();
        while completions.is_empty() {
            queue.reap(&mut completions);
        }
        completions.remove(0).result.unwrap();
    }

    pub(super) async fn create(&self, id: u128, mib: u64) -> v1::Volume {
        self.try_create(new_volume(id, mib)).await.unwrap()
    }

    pub(super) async fn try_create(&self, request: v1::CreateVolumeRequest) -> Result<v1::Volume, Status> {
        self.api
            .create_volume(Request::new(request))
            .await
            .map(Response::into_inner)
    }

    pub(super) async fn volume(&self, id: u128) -> Result<v1::Volume, Status> {
        let request = v1::GetVolumeRequest { id: uuid(id) };
        self.api
            .get_volume(Request::new(request))
            .await
            .map(Response::into_inner)
    }

    pub(super) async fn extend(&self, id: u128, mib: u64) -> Result<v1::Volume, Status> {
        let request = v1::ExtendVolumeRequest {
            id: uuid(id),
            size_bytes: mib * MIB,
            mutation: None,
        };
        self.api
            .extend_volume(Request::new(request))
            .await
            .map(Response::into_inner)
    }

    pub(super) async fn revert(&self, id: u128, snapshot: u128) -> Result<v1::Volume, Status> {
        let request = v1::RevertVolumeRequest {
            id: uuid(id),
            snapshot_id: uuid(snapshot),
            mutation: None,
        };
        self.api
            .revert_volume(Request::new(request))
            .await
            .map(Response::into_inner)
    }

    pub(super) async fn delete(&self, id: u128, cascade: bool) -> Result<(), Status> {
        let request = v1::DeleteVolumeRequest {
            id: uuid(id),
            cascade,
            mutation: None,
        };
        self.api.delete_volume(Request::new(request)).await.map(|_| ())
    }

    pub(super) async fn snap(&self, id: u128, volume: u128) -> Result<v1::Snapshot, Status> {
        let request = v1::CreateSnapshotRequest {
            id: uuid(id),
            volume_id: uuid(volume),
            ..Default::default()
        };
        self.api
            .create_snapshot(Request::new(request))
            .await
            .map(Response::into_inner)
    }

    pub(super) async fn snapshot(&self, id: u128) -> Result<v1::Snapshot, Status> {
        let request = v1::GetSnapshotRequest { id: uuid(id) };
        self.api
            .get_snapshot(Request::new(request))
            .await
            .map(Response::into_inner)
    }

    pub(super) async fn group(&self, members: &[(u128, u128)]) -> Result<Vec<v1::Snapshot>, Status> {
        let member = |(id, volume): &(u128, u128)| v1::GroupMember {
            snapshot_id: uuid(*id),
            volume_id: uuid(*volume),
        };
        let request = v1::CreateGroupSnapshotRequest {
            members: members.iter().map(member).collect(),
            ..Default::default()
        };
        let answer = self.api.create_group_snapshot(Request::new(request)).await?;
        Ok(answer.into_inner().snapshots)
    }

    pub(super) async fn delete_snapshot(&self, id: u128) -> Result<(), Status> {
        let request = v1::DeleteSnapshotRequest {
            id: uuid(id),
            mutation: None,
        };
        self.api.delete_snapshot(Request::new(request)).await.map(|_| ())
    }

    pub(super) async fn attach(
        &self,
        id: u128,
        volume: u128,
        host: &str,
        mode: v1::AccessMode,
    ) -> Result<v1::CreateAttachmentResponse, Status> {
        self.try_attach(new_attachment(id, volume, host, mode)).await
    }

    pub(super) async fn try_attach(
        &self,
        request: v1::CreateAttachmentRequest,
    ) -> Result<v1::CreateAttachmentResponse, Status> {
        self.api
            .create_attachment(Request::new(request))
            .await
            .map(Response::into_inner)
    }

    pub(super) async fn attachment(&self, id: u128) -> Result<v1::Attachment, Status> {
        let request = v1::GetAttachmentRequest { id: uuid(id) };
        self.api
            .get_attachment(Request::new(request))
            .await
            .map(Response::into_inner)
    }

    pub(super) async fn info(&self, id: u128) -> Result<v1::ConnectionInfo, Status> {
        let request = v1::GetConnectionInfoRequest {
            attachment_id: uuid(id),
        };
        self.api
            .get_connection_info(Request::new(request))
            .await
            .map(Response::into_inner)
    }

    pub(super) async fn detach(&self, id: u128) -> Result<bool, Status> {
        self.detach_with(id, false).await
    }

    pub(super) async fn fence(&self, id: u128) -> Result<bool, Status> {
        self.detach_with(id, true).await
    }

    async fn detach_with(&self, id: u128, force: bool) -> Result<bool, Status> {
        let request = v1::DeleteAttachmentRequest {
            id: uuid(id),
            force,
            mutation: None,
        };
        let answer = self.api.delete_attachment(Request::new(request)).await?;
        Ok(answer.into_inner().host_still_attached)
    }
}

async fn start(
    pools: &BTreeMap<PoolName, Arc<dyn VolumeBackend>>,
    catalog: Catalog,
) -> (Api, Arc<FaultyTarget>) {
    let target = FaultyTarget::new();
    let named = NamedTarget {
        driver: "memory",
        target: Arc::clone(&target) as Arc<dyn Target>,
    };
    let model = Resources::new(Registry::new(pools.clone(), named), catalog);
    model.recover().await.unwrap();
    (Api { model }, target)
}

pub(super) fn uuid(n: u128) -> String {
    Uuid::from_u128(n).to_string()
}

pub(super) fn new_volume(id: u128, mib: u64) -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest {
        id: uuid(id),
        size_bytes: mib * MIB,
        ..Default::default()
    }
}

pub(super) fn clone_of(id: u128, source: v1::volume_source::Source) -> v1::CreateVolumeRequest {
    let source = Some(v1::VolumeSource { source: Some(source) });
    v1::CreateVolumeRequest {
        id: uuid(id),
        source,
        ..Default::default()
    }
}

pub(super) fn new_attachment(
    id: u128,
    volume: u128,
    host: &str,
    mode: v1::AccessMode,
) -> v1::CreateAttachmentRequest {
    v1::CreateAttachmentRequest {
        id: uuid(id),
        volume_id: uuid(volume),
        connector: Some(v1::Connector {
            initiator: host.into(),
            host: "host".into(),
            ..Default::default()
        }),
        mode: mode.into(),
        ..Default::default()
    }
}

/// Returns an error's code and reason.
pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    let status = result.expect_err("the call should be refused");
    let details = status.get_error_details();
    let info = details.error_info().expect("every error carries its reason");
    assert_eq!(info.domain, "quarry");
    (status.code(), info.reason.clone())
}

/// Returns what stands in the way, as named in the precondition failure.
pub(super) fn blockers(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let failure = details
        .precondition_failure()
        .expect("the error names what blocks");
    failure
        .violations
        .iter()
        .map(|violation| violation.subject.clone())
        .collect()
}
