//! A disk that loses its power at a chosen operation: what was not synced is there, or not, by 512-byte sector.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR_BYTES: usize = 512;

/// See the module. Clones are the same disk.
#[derive(Debug, Clone)]
pub(crate) struct CutDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// What a sync has made safe.
    durable: Vec<u8>,
    /// What is read.
    present: Vec<u8>,
    /// The sectors written since the last sync.
    unsynced: Vec<usize>,
    /// Operations until the power goes; `None` for never.
    left: Option<u64>,
    is_off: bool,
    random: u64,
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        if self.left == Some(0) {
            self.is_off = true;
        }
        if self.is_off {
            return Err(io::Error::other("the power is off"));
        }
        self.left = self.left.map(|left| left - 1);
        Ok(())
    }

    /// xorshift64: enough to choose sectors.
    fn coin(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random & 1 == 1
    }

    /// Copies a sector from what is read to what is safe.
    fn keep(&mut self, sector: usize) {
        let range = sector * SECTOR_BYTES..self.present.len().min((sector + 1) * SECTOR_BYTES);
        if !range.is_empty() {
            self.durable[range.clone()].copy_from_slice(&self.present[range]);
        }
    }
}

impl CutDisk {
    /// An empty disk whose choices follow from the seed.
    pub(crate) fn new(seed: u64) -> Self {
        let state = State {
            durable: Vec::new(),
            present: Vec::new(),
            unsynced: Vec::new(),
            left: None,
            is_off: false,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the power away after so many more writes, resizes and syncs.
    pub(crate) fn cut_after(&self, operations: u64) {
        self.lock().left = Some(operations);
    }

    /// Tells whether the power is gone.
    pub(crate) fn is_off(&self) -> bool {
        self.lock().is_off
    }

    /// Takes the power away now if it is there, and gives it back: of what was not synced, some has survived.
    pub(crate) fn power_on(&self) {
        let mut state = self.lock();
        for sector in std::mem::take(&mut state.unsynced) {
            if state.coin() {
                state.keep(sector);
            }
        }
        state.present = state.durable.clone();
        state.left = None;
        state.is_off = false;
    }
}

impl redb::StorageBackend for CutDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().present.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let state = self.lock();
        let bytes = state.present.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.step()?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        // A file system journals the length; that is not what is tested here.
        state.present.resize(len, 0);
        state.durable.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.step()?;
        for sector in std::mem::take(&mut state.unsynced) {
            state.keep(sector);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.step()?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + data.len();
        if end > state.present.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        state.present[start..end].copy_from_slice(data);
        state
            .unsynced
            .extend(start / SECTOR_BYTES..=(end.max(start + 1) - 1) / SECTOR_BYTES);
        Ok(())
    }
}
