//! A pool on a simulated device, beside the model of what it holds.
//!
//! A history is: [`World::begin`], then [`World::step`] many times. When the device fails under a step, the
//! world is [`World::interrupted`]: the step has happened or not, and [`World::recover`] cuts the power, opens the
//! pool again and finds which. Everything unexpected is a [`Violation`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use quarry_contract::conformance::SplitMix;
use quarry_contract::{DriverError, OpenMode, VersionId, VolumeKey};

use super::action::Mix;
use super::{Action, Model, SimDevice};
use crate::{FormatOptions, OpenOptions, Pool, PoolError, VersionHandle};

/// How a simulated pool is laid out and used.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What everything random follows from.
    pub seed: u64,
    /// The size of the medium, in bytes.
    pub device_bytes: u64,
    /// The pool's chunk, in bytes.
    pub chunk_bytes: u64,
    /// The pool's log, in bytes.
    pub log_bytes: u64,
    /// The budget for clean map pages, in bytes.
    pub cache_bytes: u64,
    /// How many dirty map pages make a checkpoint due.
    pub checkpoint_dirty_pages: u64,
    /// How many chunks may be partial at a time.
    pub max_partial_chunks: usize,
    /// Whether freed chunks are discarded on the medium.
    pub discard_freed: bool,
    /// The granularity of requests and sizes, in bytes.
    pub block_bytes: u64,
    /// The largest volume, in bytes.
    pub max_volume_bytes: u64,
    /// Whether the pool may run full: then `NoSpace` is an answer like others.
    pub may_be_full: bool,
    /// How often what happens.
    pub mix: Mix,
    /// Whether every other blank volume is encrypted, with what is made of it.
    pub encrypted: bool,
    /// Which blank volumes have checksums, with what is made of them.
    pub checksums: WithChecksums,
    /// How much the host has for the medium when the pool is formatted, in bytes, if it is a file with holes.
    pub host_bytes: Option<u64>,
}

/// Which blank volumes have checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithChecksums {
    /// None.
    None,
    /// Half of them.
    Some,
    /// All.
    All,
}

impl Setup {
    /// A roomy pool whose details vary with the seed.
    pub fn roomy(seed: u64) -> Self {
        let mut random = SplitMix::new(seed);
        let mut one_of = |choices: &[u64]| choices[random.below(choices.len() as u64) as usize];
        let chunk_bytes = one_of(&[16 << 10, 16 << 10, 64 << 10]);
        Self {
            seed,
            device_bytes: 48 << 20,
            chunk_bytes,
            log_bytes: one_of(&[64 << 10, 64 << 10, 256 << 10]),
            cache_bytes: one_of(&[0, 64 << 10, 4 << 20]),
            checkpoint_dirty_pages: one_of(&[1, 8, 1000]),
            discard_freed: one_of(&[0, 1]) == 1,
            block_bytes: one_of(&[BLOCK_BYTES, 4096]),
            max_volume_bytes: chunk_bytes * one_of(&[8, 600, 512 * 300]),
            may_be_full: false,
            mix: Mix::everything(2),
            max_partial_chunks: one_of(&[0, 2, 1000, 1000]) as usize,
            encrypted: seed % 3 == 1,
            checksums: match seed % 4 {
                0 | 2 => WithChecksums::None,
                1 => WithChecksums::Some,
                _ => WithChecksums::All,
            },
            host_bytes: None,
        }
    }

    /// A pool so small that it is full soon.
    pub fn tight(seed: u64) -> Self {
        let roomy = Self::roomy(seed);
        Self {
            device_bytes: roomy.chunk_bytes * (64 + seed % 24) + roomy.log_bytes,
            may_be_full: true,
            ..roomy
        }
    }

    pub(super) fn encrypts(&self, volume: u64) -> bool {
        self.encrypted && volume % 2 == 1
    }

    pub(super) fn has_checksums(&self, volume: u64) -> bool {
        match self.checksums {
            WithChecksums::None => false,
            // Encrypted or not.
            WithChecksums::Some => (volume / 2).is_multiple_of(2),
            WithChecksums::All => true,
        }
    }

    fn format_options(&self) -> FormatOptions {
        FormatOptions {
            uuid: uuid::Uuid::from_u128(0x9000_0000_0000_0000 | u128::from(self.seed)),
            chunk_bytes: self.chunk_bytes as u32,
            log_bytes: self.log_bytes,
        }
    }

    fn open_options(&self) -> OpenOptions {
        OpenOptions {
            cache_bytes: self.cache_bytes,
            checkpoint_dirty_pages: self.checkpoint_dirty_pages,
            max_partial_chunks: self.max_partial_chunks,
            discard_freed: self.discard_freed,
            ..OpenOptions::default()
        }
    }
}

/// The key of every encrypted family.
pub(super) fn key() -> VolumeKey {
    VolumeKey::new([0x51; VolumeKey::BYTES])
}

/// The smallest unit of addressing of a volume.
const BLOCK_BYTES: u64 = 512;

/// Something happened that may not.
#[derive(Debug, Clone)]
pub struct Violation(pub String);

impl std::error::Error for Violation {}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was carried out, or refused as it should be.
    Done,
    /// The device failed under it.
    Interrupted,
}

/// The pool, its medium and its model.
pub struct World {
    pub(super) setup: Setup,
    pub(super) device: Arc<SimDevice>,
    pub(super) pool: Option<Arc<Pool>>,
    pub(super) handles: BTreeMap<u64, Arc<VersionHandle>>,
    /// What the pool holds; after an interruption, if the interrupted step happened.
    pub(super) model: Model,
    /// After an interruption: what the pool holds if the step did not happen.
    pub(super) before: Option<Model>,
    pub(super) random: SplitMix,
    pub(super) next_stamp: u64,
    pub(super) next_number: u64,
    pub(super) faults_planned: bool,
    pub(super) had_faults: bool,
    pub(super) refused: u64,
    history: Vec<Action>,
}

impl World {
    /// Formats a medium and opens the pool on it.
    ///
    /// # Errors
    /// When that fails, which it may not.
    pub fn begin(setup: Setup) -> Result<Self, Violation> {
        let device = SimDevice::new(setup.device_bytes, setup.seed);
        if let Some(bytes) = setup.host_bytes {
            device.put_on_host(bytes);
        }
        Pool::format(device.as_ref(), &setup.format_options())
            .map_err(|error| Violation(format!("formatting: {}", chain(&error))))?;
        Self::on(setup, device)
    }

    /// Opens the empty pool that is on `device`.
    ///
    /// # Errors
    /// When that fails, which it may not.
    pub fn on(setup: Setup, device: Arc<SimDevice>) -> Result<Self, Violation> {
        let mut world = Self {
            random: SplitMix::new(setup.seed ^ 0x0077_6f72_6c64),
            setup,
            device,
            pool: None,
            handles: BTreeMap::new(),
            model: Model::default(),
            before: None,
            next_stamp: 1,
            next_number: 1,
            faults_planned: false,
            had_faults: false,
            refused: 0,
            history: Vec::new(),
        };
        world.open()?;
        Ok(world)
    }

    /// Returns the setup.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Returns the medium.
    pub fn device(&self) -> &Arc<SimDevice> {
        &self.device
    }

    /// Returns the open pool.
    ///
    /// # Panics
    /// When it is not open.
    pub fn pool(&self) -> &Arc<Pool> {
        self.pool.as_ref().expect("the pool is open")
    }

    /// Returns the model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns how many changes were refused for lack of space.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Returns what was carried out last.
    pub fn last_action(&self) -> Option<&Action> {
        self.history.last()
    }

    /// Makes the medium so many chunks larger, and the pool with it.
    ///
    /// # Errors
    /// What the pool says.
    pub fn enlarge(&mut self, chunks: u64) -> Result<(), DriverError> {
        self.setup.device_bytes += chunks * self.setup.chunk_bytes;
        self.pool().enlarge(Some(self.setup.device_bytes)).map(drop)
    }

    /// Says that failures of the device are to be expected from now on, until the next recovery.
    pub fn expect_faults(&mut self) {
        self.faults_planned = true;
        self.had_faults = true;
    }

    /// Tells whether a step was interrupted and recovery is due.
    pub fn interrupted(&self) -> bool {
        self.before.is_some()
    }

    /// Chooses the next action and carries it out.
    ///
    /// # Errors
    /// What went wrong, with the history.
    pub fn step(&mut self) -> Result<Step, Violation> {
        let action = Action::choose(&mut self.random, &self.setup, &self.model, self.next_number);
        self.next_number += 2;
        self.carry_out(action)
    }

    /// Carries out a given action.
    ///
    /// # Errors
    /// What went wrong, with the history.
    pub fn carry_out(&mut self, action: Action) -> Result<Step, Violation> {
        self.history.push(action.clone());
        self.perform(&action).map_err(|violation| self.explain(violation))
    }

    /// Runs up to `steps` steps; stops when interrupted.
    ///
    /// # Errors
    /// What went wrong, with the history.
    pub fn run(&mut self, steps: usize) -> Result<Step, Violation> {
        for _ in 0..steps {
            if self.step()? == Step::Interrupted {
                return Ok(Step::Interrupted);
            }
        }
        Ok(Step::Done)
    }

    /// Cuts the power, opens the pool again and checks that it is what it was before or after the interrupted
    /// step.
    ///
    /// # Errors
    /// When it is neither.
    pub fn recover(&mut self) -> Result<(), Violation> {
        self.abandon();
        self.device = self.device.power_cycle();
        self.come_back()
    }

    /// Starts the process again, with the power on and the medium sound from now on: whatever its caches show is
    /// there. Checks as [`World::recover`] does.
    ///
    /// # Errors
    /// When the pool is neither what it was before nor after the interrupted step.
    pub fn restart(&mut self) -> Result<(), Violation> {
        self.abandon();
        self.device.heal();
        self.come_back()
    }

    /// Drops the pool as a killed process does, without a word.
    pub fn abandon(&mut self) {
        self.handles.clear();
        self.pool = None;
        self.faults_planned = false;
    }

    /// Copies a world whose pool is not open onto another medium: what a power cut left, copied or cycled once
    /// more.
    ///
    /// # Panics
    /// When the pool is open.
    pub fn branch(&self, device: Arc<SimDevice>) -> Self {
        assert!(self.pool.is_none(), "an open pool cannot be copied");
        Self {
            setup: self.setup.clone(),
            device,
            pool: None,
            handles: BTreeMap::new(),
            model: self.model.clone(),
            before: self.before.clone(),
            random: self.random.clone(),
            next_stamp: self.next_stamp,
            next_number: self.next_number,
            faults_planned: false,
            had_faults: self.had_faults,
            refused: self.refused,
            history: self.history.clone(),
        }
    }

    /// Opens the pool after a crash and checks it; see [`World::recover`].
    ///
    /// # Errors
    /// When it is neither what it was before nor after the interrupted step.
    pub fn come_back(&mut self) -> Result<(), Violation> {
        let result = self.open().and_then(|()| self.settle_on_what_is_found());
        result.map_err(|violation| self.explain(violation))
    }

    /// Opens the pool and says what came of it; nothing is checked.
    ///
    /// # Errors
    /// The pool's.
    pub fn try_open(&mut self) -> Result<(), PoolError> {
        self.pool = Some(Pool::open(self.device.clone(), self.setup.open_options())?);
        Ok(())
    }

    /// Opens a version for I/O, with its key where it is locked.
    pub(super) fn open_version(
        &self,
        id: VersionId,
        mode: OpenMode,
    ) -> Result<Arc<VersionHandle>, DriverError> {
        match self.pool().open_version(id, mode) {
            Err(DriverError::Locked { .. }) => {
                self.pool().unlock_version(id, &key())?;
                self.pool().open_version(id, mode)
            }
            opened => opened,
        }
    }

    pub(super) fn open(&mut self) -> Result<(), Violation> {
        self.try_open()
            .map_err(|error| Violation(format!("opening the pool: {}", chain(&error))))
    }

    /// Returns how many steps there have been.
    pub(super) fn moment(&self) -> u64 {
        self.history.len() as u64
    }

    /// Adds the seed, the history and the device's latest calls.
    pub(super) fn explain(&self, violation: Violation) -> Violation {
        let latest = |lines: Vec<String>, count: usize| {
            let from = lines.len().saturating_sub(count);
            lines[from..].join("\n    ")
        };
        let history: Vec<String> = self
            .history
            .iter()
            .enumerate()
            .map(|(index, action)| format!("{index}: {action:?}"))
            .collect();
        Violation(format!(
            "{}\n  setup: {:?}\n  history:\n    {}\n  latest device calls:\n    {}",
            violation.0,
            self.setup,
            latest(history, 40),
            latest(self.device.trace(), 24)
        ))
    }
}

/// Renders an error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
