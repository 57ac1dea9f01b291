//! The pool and the volume that are loaded.

use std::sync::Arc;

use anyhow::Context;
use quarry_contract::{
    BlockDevice, DataSource, Durability, IoBuffer, IoQueue, OpenMode, SnapshotId, SnapshotSpec, VersionId,
    VolumeId, VolumeSpec,
};
use quarry_thin::{
    Caching, FormatOptions, IoMode, OpenOptions, PoolFile, ThinBackend, VolumeDevice, Workers,
};
use uuid::Uuid;

use crate::options::{Io, Options, Prepare};

const FILL_BYTES: usize = 1 << 20;

/// A pool of one volume, with its background work running.
pub struct Stage {
    backend: ThinBackend,
    volume: Arc<VolumeDevice>,
    file: PoolFile,
}

impl Stage {
    /// Makes the pool and brings the volume to where the load begins.
    ///
    /// # Errors
    /// When the file exists, or I/O fails.
    pub fn set(options: &Options) -> anyhow::Result<Self> {
        let mut file = PoolFile::at(&options.pool);
        file.options.mode = match options.io {
            Io::Auto => IoMode::Auto,
            Io::Uring => IoMode::Uring,
            Io::Threads => IoMode::Threads,
        };
        if options.page_cache {
            file.options.caching = Caching::PageCache;
        }
        // Twice the volume, for what is written over snapshots.
        let pool_bytes = options.size * 2 + (1 << 30);
        let backend = ThinBackend::create_file(
            &file,
            pool_bytes,
            &FormatOptions::default(),
            OpenOptions::default(),
        )
        .with_context(|| format!("making a pool in {}", file.path.display()))?;
        let pool = Arc::clone(backend.pool());
        let id = VolumeId(Uuid::from_u128(1));
        pool.create_volume(&VolumeSpec {
            checksums: options.checksums,
            ..VolumeSpec::new(id, options.size, DataSource::Blank)
        })?;
        let handle = pool.open_version(VersionId::Volume(id), OpenMode::ReadWrite)?;
        if options.prepare == Prepare::Filled {
            let data = IoBuffer::from_slice(&vec![0xA5; FILL_BYTES]);
            for at in (0..options.size).step_by(FILL_BYTES) {
                let length = FILL_BYTES.min((options.size - at) as usize);
                handle.write(at, &data[..length], Durability::Cached)?;
            }
        }
        for number in 0..options.snapshots {
            pool.create_snapshots(&[SnapshotSpec {
                id: SnapshotId(Uuid::from_u128(1 + u128::from(number))),
                volume: id,
            }])?;
        }
        handle.flush()?;
        while pool.maintain()?.more {}
        Ok(Self {
            backend,
            volume: VolumeDevice::new(handle, Workers::new()),
            file,
        })
    }

    /// Opens a queue on the volume.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn queue(&self, depth: u32) -> anyhow::Result<Box<dyn IoQueue>> {
        let device: Arc<dyn BlockDevice> = Arc::clone(&self.volume) as Arc<dyn BlockDevice>;
        Ok(device.open_queue(depth)?)
    }

    /// Removes the pool.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn strike(self) -> anyhow::Result<()> {
        drop(self.volume);
        drop(self.backend);
        Ok(std::fs::remove_file(&self.file.path)?)
    }
}
