//! The thin driver, judged by the contract's own suites.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use quarry_contract::conformance::block_device::{self, DeviceFixture};
use quarry_contract::conformance::requirement::{LOOP_DEVICES, skip};
use quarry_contract::{BlockDevice, DataSource, OpenMode, VersionId, VolumeId, VolumeKey, VolumeSpec};
use quarry_sys::file::IoPath;
use quarry_thin::sim::SimDevice;
use quarry_thin::{
    Caching, FileDevice, FileOptions, FormatOptions, IoMode, OpenOptions, Pool, PoolDevice, VolumeDevice,
    Workers,
};

/// Makes the media that pools are formatted on, and takes them through a power cut.
trait Medium {
    fn fresh(&mut self) -> Arc<dyn PoolDevice>;
    /// Cuts the power where that can be done; else only closes and opens.
    fn power_cut(&mut self) -> Arc<dyn PoolDevice>;
}

/// One volume of a fresh pool for each device asked for.
struct Volumes<M: Medium> {
    medium: M,
    key: Option<VolumeKey>,
    /// What the last device was made of.
    latest: Option<(Arc<Pool>, Arc<Workers>)>,
}

fn volume_id() -> VolumeId {
    VolumeId(uuid::Uuid::from_u128(1))
}

impl<M: Medium> Volumes<M> {
    fn over(medium: M) -> Self {
        Self {
            medium,
            key: None,
            latest: None,
        }
    }

    fn encrypted_over(medium: M) -> Self {
        Self {
            key: Some(VolumeKey::new([7; 32])),
            ..Self::over(medium)
        }
    }

    fn open(&mut self, mode: OpenMode) -> Arc<dyn BlockDevice> {
        let (pool, workers) = self.latest.as_ref().expect("a pool was made");
        let id = VersionId::Volume(volume_id());
        let handle = pool.open_version(id, mode).expect("opening the volume");
        VolumeDevice::new(handle, Arc::clone(workers))
    }

    fn make(&mut self, size_bytes: u64, mode: OpenMode) -> Arc<dyn BlockDevice> {
        self.latest = None;
        let device = self.medium.fresh();
        let options = FormatOptions {
            log_bytes: 256 << 10,
            ..FormatOptions::default()
        };
        Pool::format(device.as_ref(), &options).expect("formatting");
        let pool = Pool::open(device, OpenOptions::default()).expect("opening the pool");
        let spec = VolumeSpec::new(volume_id(), size_bytes, DataSource::Blank);
        match &self.key {
            Some(key) => pool.create_encrypted_volume(&spec, key),
            None => pool.create_volume(&spec),
        }
        .expect("creating the volume");
        self.latest = Some((pool, Workers::new()));
        self.open(mode)
    }
}

impl<M: Medium> DeviceFixture for Volumes<M> {
    fn blank(&mut self, size_bytes: u64) -> Arc<dyn BlockDevice> {
        self.make(size_bytes, OpenMode::ReadWrite)
    }

    fn read_only(&mut self, size_bytes: u64) -> Option<Arc<dyn BlockDevice>> {
        Some(self.make(size_bytes, OpenMode::ReadOnly))
    }

    fn power_cut(&mut self, device: Arc<dyn BlockDevice>) -> Option<Arc<dyn BlockDevice>> {
        drop(device);
        self.latest = None;
        let pool = Pool::open(self.medium.power_cut(), OpenOptions::default()).expect("recovery");
        if let Some(key) = &self.key {
            pool.unlock_version(VersionId::Volume(volume_id()), key)
                .expect("unlocking the volume");
        }
        self.latest = Some((pool, Workers::new()));
        Some(self.open(OpenMode::ReadWrite))
    }
}

/// A medium that loses what was not flushed.
#[derive(Default)]
struct Simulated(Option<Arc<SimDevice>>);

impl Medium for Simulated {
    fn fresh(&mut self) -> Arc<dyn PoolDevice> {
        let device = SimDevice::new(64 << 20, 1);
        self.0 = Some(Arc::clone(&device));
        device
    }

    fn power_cut(&mut self) -> Arc<dyn PoolDevice> {
        let device = self.0.as_ref().expect("a device was made").power_cycle();
        self.0 = Some(Arc::clone(&device));
        device
    }
}

/// A sparse file, which keeps what it was given as long as the machine runs.
struct File {
    directory: tempfile::TempDir,
    options: FileOptions,
    count: u32,
}

impl File {
    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join(format!("pool-{}", self.count))
    }
}

impl Medium for File {
    fn fresh(&mut self) -> Arc<dyn PoolDevice> {
        self.count += 1;
        Arc::new(FileDevice::create(&self.path(), 64 << 20, self.options).expect("creating a file"))
    }

    fn power_cut(&mut self) -> Arc<dyn PoolDevice> {
        Arc::new(FileDevice::open(&self.path(), self.options).expect("opening the file"))
    }
}

#[test]
fn volumes_on_a_simulated_medium_keep_the_block_device_contract() {
    block_device::run(&mut Volumes::over(Simulated::default()));
    block_device::run(&mut Volumes::encrypted_over(Simulated::default()));
}

#[test]
fn volumes_on_a_file_keep_the_block_device_contract_in_every_io_mode() {
    let through_page_cache = FileOptions {
        caching: Caching::PageCache,
        ..FileOptions::default()
    };
    for options in [IoMode::Auto.into(), IoMode::Threads.into(), through_page_cache] {
        let file = || File {
            directory: tempfile::tempdir().expect("a temporary directory"),
            options,
            count: 0,
        };
        block_device::run(&mut Volumes::over(file()));
        block_device::run(&mut Volumes::encrypted_over(file()));
    }
}

/// A loop device with logical blocks of this size.
struct Disk {
    path: PathBuf,
    _backing: tempfile::NamedTempFile,
}

impl Disk {
    fn attach(logical_block_bytes: u32) -> Result<Self, String> {
        let backing = tempfile::NamedTempFile::new().expect("a file");
        backing.as_file().set_len(64 << 20).expect("a sparse file");
        let attached = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on", "--sector-size"])
            .arg(logical_block_bytes.to_string())
            .arg(backing.path())
            .output()
            .map_err(|error| error.to_string())?;
        let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !attached.status.success() {
            return Err(told(&attached.stderr));
        }
        Ok(Self {
            path: told(&attached.stdout).into(),
            _backing: backing,
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        assert!(
            detached.is_ok_and(|status| status.success()),
            "{} is still attached",
            self.path.display()
        );
    }
}

/// Block devices, each new.
struct Disks {
    logical_block_bytes: u32,
    options: FileOptions,
    disk: Option<Disk>,
}

impl Disks {
    fn open(&self) -> Arc<dyn PoolDevice> {
        let disk = self.disk.as_ref().expect("a disk was attached");
        let device = FileDevice::open(&disk.path, self.options).expect("opening the disk");
        let expected = match self.options.caching {
            Caching::Direct => IoPath::Direct {
                alignment_bytes: self.logical_block_bytes,
            },
            Caching::PageCache => IoPath::Buffered,
        };
        assert_eq!(device.io_path(), expected);
        Arc::new(device)
    }
}

impl Medium for Disks {
    fn fresh(&mut self) -> Arc<dyn PoolDevice> {
        self.disk = None;
        self.disk = Some(Disk::attach(self.logical_block_bytes).expect("another like the first"));
        self.open()
    }

    fn power_cut(&mut self) -> Arc<dyn PoolDevice> {
        self.open()
    }
}

#[test]
fn volumes_on_block_devices_keep_the_block_device_contract_in_every_io_mode() {
    for logical_block_bytes in [512, 4096] {
        if let Err(problem) = Disk::attach(logical_block_bytes).map(drop) {
            skip(
                LOOP_DEVICES,
                format!("no loop device can be attached here: {problem}"),
            );
            return;
        }
        let through_page_cache = FileOptions {
            caching: Caching::PageCache,
            ..FileOptions::default()
        };
        for options in [IoMode::Auto.into(), IoMode::Threads.into(), through_page_cache] {
            let disks = || Disks {
                logical_block_bytes,
                options,
                disk: None,
            };
            block_device::run(&mut Volumes::over(disks()));
            if options == FileOptions::default() {
                block_device::run(&mut Volumes::encrypted_over(disks()));
            }
        }
    }
}
