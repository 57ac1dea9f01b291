//! The queue layer over the engine, on real files, in every way it can do I/O.

mod bench_pool;
mod busy;
mod conformance;
mod deep;
#[path = "../disk/mod.rs"]
mod disk;
mod finishing;
mod flushing;
mod refusals;
mod waiting;
mod waking;
mod without_uring;
