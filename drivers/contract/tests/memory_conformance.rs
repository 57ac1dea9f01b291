//! The in-memory drivers, judged by the suites that judge the real ones.

use std::sync::Arc;

use quarry_contract::conformance::{block_device, block_on, target, volume_backend};
use quarry_contract::memory::{
    MemoryBackend, MemoryBackendOptions, MemoryDevice, MemoryDeviceOptions, MemoryTarget,
};
use quarry_contract::{
    BlockDevice, BlockingQueue, DataSource, Durability, IoBuffer, IoError, OpenMode, PoolName, Request, Tag,
    Target, Verb, VersionId, VolumeBackend, VolumeId, VolumeSpec,
};

struct Devices {
    logical_block_bytes: u32,
}

impl block_device::DeviceFixture for Devices {
    fn blank(&mut self, size_bytes: u64) -> Arc<dyn BlockDevice> {
        MemoryDevice::new(&MemoryDeviceOptions {
            logical_block_bytes: self.logical_block_bytes,
            ..MemoryDeviceOptions::of_size(size_bytes)
        })
    }

    fn read_only(&mut self, size_bytes: u64) -> Option<Arc<dyn BlockDevice>> {
        Some(MemoryDevice::new(&MemoryDeviceOptions {
            logical_block_bytes: self.logical_block_bytes,
            read_only: true,
            ..MemoryDeviceOptions::of_size(size_bytes)
        }))
    }

    fn power_cut(&mut self, _device: Arc<dyn BlockDevice>) -> Option<Arc<dyn BlockDevice>> {
        None
    }
}

#[test]
fn memory_device_keeps_the_block_device_contract() {
    for logical_block_bytes in [512, 4096] {
        block_device::run(&mut Devices { logical_block_bytes });
    }
}

fn pool(capacity_bytes: u64) -> MemoryBackend {
    let name = PoolName::parse("memory").unwrap();
    MemoryBackend::new(MemoryBackendOptions::of_capacity(name, capacity_bytes))
}

struct Pools;

impl volume_backend::BackendFixture for Pools {
    fn fresh(&mut self) -> Arc<dyn VolumeBackend> {
        Arc::new(pool(64 << 20))
    }

    fn power_cut(&mut self, _backend: Arc<dyn VolumeBackend>) -> Option<Arc<dyn VolumeBackend>> {
        None
    }
}

#[test]
fn memory_backend_keeps_the_volume_backend_contract() {
    volume_backend::run(&mut Pools);
}

/// Volumes of a pool, as devices.
struct PoolVolumes;

impl block_device::DeviceFixture for PoolVolumes {
    fn blank(&mut self, size_bytes: u64) -> Arc<dyn BlockDevice> {
        open_volume(size_bytes, OpenMode::ReadWrite)
    }

    fn read_only(&mut self, size_bytes: u64) -> Option<Arc<dyn BlockDevice>> {
        Some(open_volume(size_bytes, OpenMode::ReadOnly))
    }

    fn power_cut(&mut self, _device: Arc<dyn BlockDevice>) -> Option<Arc<dyn BlockDevice>> {
        None
    }
}

fn open_volume(size_bytes: u64, mode: OpenMode) -> Arc<dyn BlockDevice> {
    let backend = pool(64 << 20);
    let id = VolumeId(uuid::Uuid::from_u128(1));
    let source = DataSource::Blank;
    block_on(backend.create_volume(&VolumeSpec::new(id, size_bytes, source))).unwrap();
    block_on(backend.open(VersionId::Volume(id), mode)).unwrap()
}

#[test]
fn volumes_of_a_memory_backend_keep_the_block_device_contract() {
    block_device::run(&mut PoolVolumes);
}

struct Targets;

impl target::TargetFixture for Targets {
    fn fresh(&mut self) -> Arc<dyn Target> {
        Arc::new(MemoryTarget::new())
    }
}

#[test]
fn memory_target_keeps_the_target_contract() {
    target::run(&mut Targets);
}

#[test]
fn held_requests_complete_when_the_device_is_released() {
    let device = MemoryDevice::of_size(1 << 20);
    device.hold();
    let mut queue = Arc::clone(&device).open_queue(2).unwrap();
    let verb = Verb::Write {
        offset: 0,
        buffer: IoBuffer::from_slice(&[7; 512]),
        durability: Durability::Cached,
    };
    queue.submit(Request { tag: Tag(1), verb }).unwrap();
    queue.kick();
    let mut done = Vec::new();
    queue.reap(&mut done);
    assert!(done.is_empty());
    assert_eq!(device.held_requests(), 1);
    device.release();
    quarry_contract::wait_for_completions(queue.as_mut(), &mut done, 1).unwrap();
    assert!(done[0].result.is_ok());
}

#[test]
fn failures_ordered_ahead_are_given_once_and_touch_nothing() {
    let memory = MemoryDevice::of_size(1 << 20);
    let device: Arc<dyn BlockDevice> = memory.clone();
    let mut queue = BlockingQueue::open(&device).unwrap();
    memory.fail_next(IoError::NoSpace);
    let refused = queue.write(0, &[1; 4096], Durability::Cached);
    assert!(matches!(refused, Err(IoError::NoSpace)));
    assert_eq!(memory.mapped_bytes(), 0);
    queue.write(0, &[1; 4096], Durability::Cached).unwrap();
}
