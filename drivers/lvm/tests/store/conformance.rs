//! The contract's suite.

use std::sync::Arc;

use quarry_contract::conformance::share_backend::{self, FolderFiles, ShareBackendFixture, ShareFiles};
use quarry_contract::{MountedShare, ShareBackend};
use quarry_lvm::LvmBackend;

use crate::kit::{ThinPool, can_run, runtime};

/// Pools, one after another: the last is taken away when the next is wanted.
struct Pools {
    pool: ThinPool,
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
        Box::new(FolderFiles(mounted.path.clone()))
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
