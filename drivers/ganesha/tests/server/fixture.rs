//! A world as the contract's suite wants it. Both servers' tests have this file, each with a world of its own.

use std::net::IpAddr;
use std::sync::Arc;

use quarry_contract::conformance::share_server::{self, ShareServerFixture};
use quarry_contract::{AccessLevel, MountedShare, ShareServer, ShareVersion};

use crate::world::World;

/// Runs the suite.
pub fn run_in(world: &World) {
    let _entered = world.enter();
    share_server::run(&mut Servers { world, started: 0 });
}

/// Starts servers in a world, each under a name of its own.
struct Servers<'a> {
    world: &'a World,
    started: u32,
}

impl Servers<'_> {
    fn name(&self) -> String {
        format!("server-{}", self.started)
    }
}

impl ShareServerFixture for Servers<'_> {
    fn fresh(&mut self) -> Arc<dyn ShareServer> {
        self.started += 1;
        Arc::new(self.world.start(&self.name()))
    }

    fn mount(&mut self) -> MountedShare {
        self.world.mount()
    }

    fn attempt(
        &mut self,
        server: &Arc<dyn ShareServer>,
        version: ShareVersion,
        client: IpAddr,
    ) -> Option<AccessLevel> {
        self.world.attempt(&**server, version, &client.to_string())
    }

    fn kill(&mut self, _server: &Arc<dyn ShareServer>) -> bool {
        self.world.kill(&self.name());
        true
    }
}
