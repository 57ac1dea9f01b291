//! The server with clients of its own at several addresses, each test in name spaces of its own. Needs root, Ganesha,
//! dbus-daemon, iproute2 and xfsprogs, and says so where it has them not.

mod contract;
mod fixture;
mod life;
mod nfs;
mod nfs3;
mod world;
