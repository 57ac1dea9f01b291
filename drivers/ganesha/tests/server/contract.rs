//! The contract's suite, with clients at their own addresses.

use crate::fixture;
use crate::world::{World, isolated};

#[test]
fn ganesha_keeps_the_share_server_contract() {
    isolated("contract::ganesha_keeps_the_share_server_contract", || {
        fixture::run_in(&World::new());
    });
}
