//! The thin engine on a medium that fails: simulated power cuts, faults, damage and lies, judged by an oracle.
//!
//! Every suite runs over seeds and is deterministic. A failing seed prints its number; it is replayed alone by
//! `QUARRY_SIM_SEED=<number> cargo test -p quarry-thin --test crash <suite>`. `QUARRY_SIM_SEEDS=<factor>` runs
//! that many times the default number of seeds, `QUARRY_SIM_FIRST=<number>` begins elsewhere.

mod check_beside;
mod concurrency;
mod controls;
mod damage;
mod damaged_log;
mod every_allocation;
mod every_step;
mod faults;
mod features;
mod free_space;
mod full_pool;
mod garbage;
mod gated;
mod growing;
mod histories;
mod host_full;
mod live_damage;
mod long_traces;
mod misplaced;
mod older_pools;
mod partial_chunks;
mod rebuild;
mod repair;
mod seeds;
mod small_cache;
mod sums_trim;
