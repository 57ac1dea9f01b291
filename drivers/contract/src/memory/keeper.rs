//! A keeper that remembers as long as the process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::{DriverError, Keeper, VolumeId};

/// Keeps states of exports in memory, with a switch that makes it refuse.
#[derive(Debug, Default)]
pub struct MemoryKeeper {
    states: Mutex<BTreeMap<VolumeId, Vec<u8>>>,
    refuses: AtomicBool,
}

impl MemoryKeeper {
    /// Makes a keeper that has nothing.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Returns what is kept of a volume's export; empty when nothing is.
    pub fn kept(&self, volume: VolumeId) -> Vec<u8> {
        lock(&self.states).get(&volume).cloned().unwrap_or_default()
    }

    /// Makes every call fail from now on, or no more.
    pub fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }
}

impl Keeper for MemoryKeeper {
    fn keep(&self, volume: VolumeId, state: &[u8]) -> Result<(), DriverError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(DriverError::Internal {
                detail: "the keeper is told to refuse".to_owned(),
            });
        }
        let mut states = lock(&self.states);
        match state {
            [] => states.remove(&volume),
            _ => states.insert(volume, state.to_vec()),
        };
        Ok(())
    }
}
