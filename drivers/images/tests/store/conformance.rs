//! The contract's suite, over pools in files and in folders.

use std::sync::Arc;

use quarry_contract::conformance::share_backend::{self, FolderFiles, ShareBackendFixture, ShareFiles};
use quarry_contract::{MountedShare, ShareBackend};
use quarry_images::ImageBackend;

use crate::kit::{Folder, can_run, runtime};

/// Pools in files, one after another: the last is taken down when the next is wanted.
struct Pools {
    folder: Option<Folder>,
}

impl ShareBackendFixture for Pools {
    fn fresh(&mut self) -> Arc<dyn ShareBackend> {
        self.folder = None;
        let folder = Folder::new();
        let backend = ImageBackend::open(&folder.options(None)).unwrap();
        self.folder = Some(folder);
        Arc::new(backend)
    }

    fn restart(&mut self, backend: Arc<dyn ShareBackend>) -> Option<Arc<dyn ShareBackend>> {
        let folder = self.folder.as_ref().unwrap();
        // What a kill leaves: nothing is unmounted.
        drop(backend);
        Some(Arc::new(ImageBackend::open(&folder.options(None)).unwrap()))
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
    share_backend::run(&mut Pools { folder: None });
}
