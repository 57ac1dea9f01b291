//! A target on loopback over a device in memory, as every test here needs it.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quarry_contract::conformance::block_on;
use quarry_contract::memory::{MemoryDevice, MemoryDeviceOptions, MemoryKeeper};
use quarry_contract::{
    Access, BlockDevice, ChapCredentials, ExportSpec, Grant, InitiatorName, IoLimits, Keeper, Target,
    VolumeId,
};
use quarry_iscsi::{IscsiTarget, TargetConfig};
use uuid::Uuid;

pub const USER: &str = "user-1";
pub const SECRET: &str = "secret-secret-16";
pub const TARGET_USER: &str = "target-1";
pub const TARGET_SECRET: &str = "target-secret-16";
pub const INITIATOR: &str = "iqn.2026-11.io.quarry.test:host";

/// How long anything may take that is expected to happen.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A target with one export.
pub struct Rig {
    pub target: Arc<IscsiTarget>,
    pub device: Arc<MemoryDevice>,
    pub keeper: Arc<MemoryKeeper>,
    pub volume: VolumeId,
}

pub fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

pub fn volume(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(
        0x6f96_19ff_0000_4000_8000_0000_0000_0000 + number,
    ))
}

pub fn initiator(name: &str) -> InitiatorName {
    InitiatorName::parse(name).expect("a valid name")
}

pub fn grant(name: &str, access: Access) -> Grant {
    Grant {
        initiator: initiator(name),
        access,
        chap: ChapCredentials {
            username: USER.to_owned(),
            secret: SECRET.to_owned().into(),
        },
        target_chap: Some(ChapCredentials {
            username: TARGET_USER.to_owned(),
            secret: TARGET_SECRET.to_owned().into(),
        }),
    }
}

impl Rig {
    /// A 64 MiB volume that [`INITIATOR`] may read and write, two reactors.
    pub fn new() -> Self {
        Self::with(64 << 20, |_| {}, &[grant(INITIATOR, Access::ReadWrite)])
    }

    pub fn with(size_bytes: u64, configure: impl FnOnce(&mut TargetConfig), grants: &[Grant]) -> Self {
        Self::over(
            MemoryDevice::new(&MemoryDeviceOptions::of_size(size_bytes)),
            configure,
            grants,
        )
    }

    pub fn over(
        device: Arc<MemoryDevice>,
        configure: impl FnOnce(&mut TargetConfig),
        grants: &[Grant],
    ) -> Self {
        let mut config = TargetConfig::listening_on(vec![loopback()]);
        config.reactors = 2;
        configure(&mut config);
        let target = Arc::new(IscsiTarget::start(config).expect("the target starts"));
        let rig = Self {
            target,
            device,
            keeper: MemoryKeeper::new(),
            volume: volume(1),
        };
        rig.export(rig.volume, grants);
        rig
    }

    pub fn export(&self, volume: VolumeId, grants: &[Grant]) {
        block_on(self.target.export(self.spec(volume, grants))).expect("the export");
    }

    pub fn spec(&self, volume: VolumeId, grants: &[Grant]) -> ExportSpec {
        ExportSpec {
            volume,
            device: Arc::clone(&self.device) as Arc<dyn BlockDevice>,
            grants: grants.to_vec(),
            limits: IoLimits::NONE,
            kept: self.keeper.kept(volume),
            keeper: Arc::clone(&self.keeper) as Arc<dyn Keeper>,
        }
    }

    /// Ends the target and starts another, as an agent's restart does: on the same device, with what was kept.
    pub fn restart(&mut self, grants: &[Grant]) {
        block_on(self.target.shutdown());
        let mut config = TargetConfig::listening_on(vec![loopback()]);
        config.reactors = 2;
        self.target = Arc::new(IscsiTarget::start(config).expect("the target starts"));
        self.export(self.volume, grants);
    }

    pub fn address(&self) -> SocketAddr {
        self.target.portals()[0].0
    }

    pub fn name(&self) -> String {
        self.target.address_of(self.volume).target_name
    }

    /// The URL by which libiscsi and QEMU find the volume.
    pub fn url(&self) -> String {
        let lun = self.target.address_of(self.volume).lun;
        format!("iscsi://{USER}%{SECRET}@{}/{}/{lun}", self.address(), self.name())
    }

    pub fn session_count(&self) -> usize {
        block_on(self.target.sessions(None)).expect("sessions").len()
    }
}

impl Drop for Rig {
    /// Lets go of what a test that has failed still holds: the target waits for it.
    fn drop(&mut self) {
        self.device.release();
    }
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::yield_now();
    }
}
