//! The contract's own suite.

use std::collections::HashMap;
use std::sync::Arc;

use quarry_contract::conformance::block_device::{DeviceFixture, run};
use quarry_contract::{BlockDevice, OpenMode, VolumeId};

use crate::bench_pool::{BenchPool, IntoVersion, each_kind};

struct Fixture {
    pool: Option<BenchPool>,
    /// The volume behind each device, by the device's address.
    volumes: HashMap<*const (), VolumeId>,
}

impl Fixture {
    fn pool(&self) -> &BenchPool {
        self.pool.as_ref().expect("there is a pool between two cuts")
    }
}

fn address(device: &Arc<dyn BlockDevice>) -> *const () {
    Arc::as_ptr(device).cast()
}

impl DeviceFixture for Fixture {
    fn blank(&mut self, size_bytes: u64) -> Arc<dyn BlockDevice> {
        let (id, device) = self.pool().volume(size_bytes);
        let device: Arc<dyn BlockDevice> = device;
        self.volumes.insert(address(&device), id);
        device
    }

    fn read_only(&mut self, size_bytes: u64) -> Option<Arc<dyn BlockDevice>> {
        let (id, device) = self.pool().volume(size_bytes);
        drop(device);
        Some(self.pool().open(id.into_version(), OpenMode::ReadOnly))
    }

    fn power_cut(&mut self, device: Arc<dyn BlockDevice>) -> Option<Arc<dyn BlockDevice>> {
        // What the kernel holds survives, so this cuts only the engine's own memory; the simulated device's
        // suites cut the rest.
        let id = self.volumes[&address(&device)];
        drop(device);
        let reopened = self.pool.take().expect("there is a pool").reopen();
        let device = reopened.open(id.into_version(), OpenMode::ReadWrite);
        self.pool = Some(reopened);
        Some(device)
    }
}

#[test]
fn volume_device_keeps_the_contract_in_every_way_of_doing_io() {
    each_kind(|kind| {
        println!("{kind:?}");
        run(&mut Fixture {
            pool: Some(BenchPool::new(kind)),
            volumes: HashMap::new(),
        });
    });
}
