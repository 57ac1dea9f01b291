//! The server with clients of its own at several addresses and the kernel's own client, in a lab guest: `scripts/lab/test`
//! runs these tests. They take the whole machine, so elsewhere they say that they are skipped.

mod contract;
#[path = "../../../ganesha/tests/server/fixture.rs"]
mod fixture;
mod life;
#[path = "../../../ganesha/tests/server/nfs.rs"]
mod nfs;
mod world;
