//! The in-memory drivers of shares, judged by the suites that judge the real ones.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use quarry_contract::conformance::{share_backend, share_server};
use quarry_contract::memory::{MemoryShareBackend, MemoryShareFiles, MemoryShareServer};
use quarry_contract::{
    AccessLevel, MountedShare, PoolName, ShareBackend, ShareId, ShareServer, ShareVersion,
};

/// Gives the suite the pool as a trait object and keeps the way to the files in it.
#[derive(Default)]
struct Pools(Option<Arc<MemoryShareBackend>>);

struct Files(MemoryShareFiles);

impl share_backend::ShareFiles for Files {
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.write(name, bytes)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.read(name)
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.0.size_bytes())
    }
}

impl share_backend::ShareBackendFixture for Pools {
    fn fresh(&mut self) -> Arc<dyn ShareBackend> {
        let name = PoolName::parse("memory").unwrap();
        let pool = Arc::new(MemoryShareBackend::new(name, 1 << 30));
        self.0 = Some(Arc::clone(&pool));
        pool
    }

    fn restart(&mut self, _backend: Arc<dyn ShareBackend>) -> Option<Arc<dyn ShareBackend>> {
        None
    }

    fn files(
        &mut self,
        _backend: &Arc<dyn ShareBackend>,
        mounted: &MountedShare,
    ) -> Box<dyn share_backend::ShareFiles> {
        let pool = self.0.as_ref().expect("made by fresh");
        Box::new(Files(pool.files(mounted.version).expect("mounted")))
    }
}

#[test]
fn memory_share_backend_keeps_the_share_backend_contract() {
    share_backend::run(&mut Pools::default());
}

#[derive(Default)]
struct Servers {
    server: Option<Arc<MemoryShareServer>>,
    mounts: u128,
}

impl share_server::ShareServerFixture for Servers {
    fn fresh(&mut self) -> Arc<dyn ShareServer> {
        let server = Arc::new(MemoryShareServer::new());
        self.server = Some(Arc::clone(&server));
        server
    }

    fn mount(&mut self) -> MountedShare {
        self.mounts += 1;
        let id = uuid::Uuid::from_u128(self.mounts);
        MountedShare {
            version: ShareVersion::Share(ShareId(id)),
            path: format!("/memory/{id}").into(),
            device: self.mounts as u64,
            filesystem: id,
        }
    }

    fn attempt(
        &mut self,
        _server: &Arc<dyn ShareServer>,
        version: ShareVersion,
        client: IpAddr,
    ) -> Option<AccessLevel> {
        let server = self.server.as_ref().expect("made by fresh");
        server.attempt(version, client)
    }

    fn kill(&mut self, _server: &Arc<dyn ShareServer>) -> bool {
        false
    }
}

#[test]
fn memory_share_server_keeps_the_share_server_contract() {
    share_server::run(&mut Servers::default());
}
