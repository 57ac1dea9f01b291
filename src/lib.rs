//! Quarry: the agent and its command line, as a library that the binary and the tests share.
//!
//! Read in the order in which a call travels: [`cli`] (a client), [`api`] (gRPC), [`resources`] (state machines,
//! locks, recovery), the drivers behind [`registry`], and beside them the [`catalog`] (durable records).
//! [`agent`] puts it together from a [`config`].

pub mod agent;
pub mod api;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod registry;
pub mod resources;
pub mod size;
pub mod telemetry;
