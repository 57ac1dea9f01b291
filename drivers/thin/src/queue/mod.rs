//! The engine's volumes as the contract's block devices.
//!
//! A [`VolumeDevice`] is made by the backend for each open volume or snapshot; targets open a [`VolumeQueue`] on
//! it for each of their threads. A request takes one of two ways:
//!
//! - **direct**: a read or a write of whole blocks for which nothing has to be waited. The engine plans it without
//!   blocking, the queue's own ring does the I/O, and no other thread is involved; where the medium is memory it is
//!   done at once. The plan's guard keeps the chunks in place until the I/O has ended, and then maps what is new.
//!   What finds a latch taken while the queue has I/O on its way waits for that to end, and is tried again.
//!   A flush goes this way too, unless somebody else's is on its way: the queue's flushes that wait ride together.
//! - **indirect**: everything else (copies, discards, pages to load, latches that others hold, errors) goes to the
//!   [`Workers`] of the pool, who call the engine's blocking methods. Without io_uring all requests go this way.
//!   Writes that find the pool full may wait there for space ([`OnFull`](crate::OnFull)).
//!
//! Invariants
//! - Q1: a request completes exactly once, with its own buffer, whatever way it took.
//! - Q2: a guard outlives its I/O: it is dropped after the ring has reported the operation.
//! - Q3: after a kick, the wake descriptor is readable whenever a reap would find something.
//!   A queue with a flush in flight is to be reaped: whoever else flushes the pool waits for that.
//! - Q4: a dropped queue has waited for what it started, and the workers hold no handle for it any more: when
//!   device and queues are gone, the volume is closed.

mod device;
mod direct;
#[cfg(test)]
mod faults;
mod flushes;
mod inbox;
mod parking;
mod spares;
mod volume_queue;
mod waiting_room;
mod workers;

pub use device::VolumeDevice;
pub use volume_queue::VolumeQueue;
pub use workers::Workers;
