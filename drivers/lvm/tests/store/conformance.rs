//! The contract's suite.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::statvfs::statvfs;
use quarry_contract::conformance::share_backend::{self, ShareBackendFixture, ShareFiles};
use quarry_contract::{MountedShare, ShareBackend};
use quarry_lvm::LvmBackend;

use crate::kit::{ThinPool, can_run, runtime};

/// Pools, one after another: the last is taken away when the next is wanted.
struct Pools {
    pool: ThinPool,
}

struct Files(PathBuf);

impl ShareFiles for Files {
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Not flushed: a snapshot holds what was completed, wherever it is.
        File::create(self.0.join(name))?.write_all(bytes)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.0.join(name))
    }

    fn size_bytes(&self) -> io::Result<u64> {
        let told = statvfs(&self.0)?;
        Ok(told.blocks() * told.fragment_size())
    }
}

impl ShareBackendFixture for Pools {
    fn fresh(&mut self) -> Arc<dyn ShareBackend> {
        self.pool.clear();
        Arc::new(LvmBackend::open(&self.pool.options(None)).unwrap())
    }

    fn restart(&mut self, backend: Arc<dyn ShareBackend>) -> Option<Arc<dyn ShareBackend>> {
        // What a kill leaves: nothing is unmounted.
        drop(backend);
        Some(Arc::new(LvmBackend::open(&self.pool.options(None)).unwrap()))
    }

    fn files(&mut self, _backend: &Arc<dyn ShareBackend>, mounted: &MountedShare) -> Box<dyn ShareFiles> {
        Box::new(Files(mounted.path.clone()))
    }
}

#[test]
fn store_keeps_the_share_backend_contract() {
    if !can_run("store_keeps_the_share_backend_contract") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    share_backend::run(&mut Pools {
        pool: ThinPool::new(),
    });
}
