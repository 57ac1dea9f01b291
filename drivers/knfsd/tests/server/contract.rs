//! The contract's suite, with clients at their own addresses.

use crate::fixture;
use crate::world::World;

#[test]
fn the_kernels_server_keeps_the_share_server_contract() {
    if let Some(world) = World::new() {
        fixture::run_in(&world);
    }
}
