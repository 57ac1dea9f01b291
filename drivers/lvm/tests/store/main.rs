//! The store on real logical volumes, in a lab guest: `scripts/lab/test` runs these tests. They take the disk for
//! themselves, so elsewhere they say that they are skipped.

mod conformance;
mod killed;
mod kit;
mod surroundings;
