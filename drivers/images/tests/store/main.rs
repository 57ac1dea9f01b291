//! The store on real file systems: needs root, loop devices and xfsprogs, and says so where it has them not.

mod bad_input;
mod conformance;
mod full_pool;
mod killed;
mod kit;
mod scale;
