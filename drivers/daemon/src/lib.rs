//! What drivers share that run a server as a process of its own.
//!
//! | module | what it gives |
//! |---|---|
//! | [`process`] | a process that outlives the agent: started, taken up again, watched, ended |
//! | [`pulse`] | whether a process that gives no answer shows life |
//! | [`folders`] | folders, and that one agent at a time has one |
//! | [`files`] | files that are replaced as a whole |
//!
//! Nothing here knows of shares.

pub mod files;
pub mod folders;
pub mod process;
pub mod pulse;
