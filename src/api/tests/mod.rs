//! The semantics of the interface, over drivers in memory: what cinder.md 7.3 lists, and what is refused.

mod adoption;
mod bad_input;
mod crash;
mod encryption;
mod extents;
mod faults;
mod inherited_access;
mod kit;
mod power_cut;
mod semantics;
mod share_kit;
mod shares;
