//! Beginning and ending a scrub, and telling how it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quarry_contract::{
    DriverError, Outcome, ScrubFinding, ScrubState, ScrubStatus, SnapshotId, VersionId, VolumeId,
};
use smallvec::{SmallVec, smallvec};

use super::{Finding, is_of_use, is_to_be_scrubbed};
use crate::PoolError;
use crate::format::BLOCK;
use crate::locks::{lock, read, write};
use crate::partial::Home;
use crate::pool::{Decision, Pool, Priority};
use crate::record::Record;
use crate::version::{NodeId, Version, VersionKind};

impl Pool {
    /// Begins a scrub unless one is running or no version has checksums. It is done by [`maintain`](Self::maintain).
    ///
    /// # Errors
    /// `Full` when the pool has no room for a checkpoint, which the first one makes; `Unavailable` when the pool is closed or has
    /// stopped.
    pub fn start_scrub(&self) -> Result<Outcome<ScrubStatus>, DriverError> {
        let control = lock(&self.control);
        self.check_open()?;
        let begins = {
            let state = read(&self.state);
            !state.scrub.is_running() && state.versions.iter().any(is_to_be_scrubbed)
        };
        if begins {
            self.begin_scrub().map_err(|error| self.driver_error(error))?;
            self.commit_metadata()?;
            tracing::info!(pool = %self.options.name, "scrub begun");
        }
        drop(control);
        let status = self.scrub_status()?;
        Ok(match begins {
            true => Outcome::Changed(status),
            false => Outcome::Unchanged(status),
        })
    }

    fn begin_scrub(&self) -> Result<(), PoolError> {
        if !read(&self.state).allows_scrub() {
            // From this checkpoint on, an older Quarry refuses the pool.
            write(&self.state).scrub.wanted = true;
            self.checkpoint()?;
        }
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let begun = begun.as_secs();
        self.change(Priority::Reclaim, |_| {
            Ok(Decision::Apply(smallvec![Record::BeginScrub { begun }]))
        })
    }

    /// Ends a scrub before its time.
    ///
    /// # Errors
    /// `Unavailable` when the pool is closed or has stopped.
    pub fn stop_scrub(&self) -> Result<Outcome<ScrubStatus>, DriverError> {
        let control = lock(&self.control);
        self.check_open()?;
        let mut stopped = false;
        let ended = self.change(Priority::Reclaim, |state| {
            stopped = state.scrub.is_running();
            let end = Record::EndScrub {
                state: ScrubState::Stopped,
            };
            let records: SmallVec<[Record; 2]> = stopped.then_some(end).into_iter().collect();
            Ok::<_, PoolError>(Decision::Apply(records))
        });
        ended.map_err(|error| self.driver_error(error))?;
        self.commit_metadata()?;
        drop(control);
        let status = self.scrub_status()?;
        Ok(match stopped {
            true => Outcome::Changed(status),
            false => Outcome::Unchanged(status),
        })
    }

    /// Returns how the running scrub is, or else the last one was.
    ///
    /// # Errors
    /// `Unavailable` when the medium fails.
    pub fn scrub_status(&self) -> Result<ScrubStatus, DriverError> {
        let (scrub, verifiable, unverifiable) = {
            let state = read(&self.state);
            let owned_by = |are_meant: fn(&Version) -> bool| {
                let versions = state.versions.iter().filter(|version| are_meant(version));
                let owned: i64 = versions.map(|version| version.own_chunks).sum();
                owned.max(0) as u64
            };
            let without = |version: &Version| is_of_use(version) && !version.checksums.are_on();
            (
                state.scrub.clone(),
                owned_by(is_to_be_scrubbed),
                owned_by(without),
            )
        };
        let mut findings = Vec::new();
        for finding in &scrub.findings {
            findings.push(self.name_finding(finding).map_err(|e| self.driver_error(e))?);
        }
        let gone_through = scrub.verified_chunks + scrub.skipped_chunks;
        let total_chunks = match scrub.state {
            ScrubState::Done => gone_through,
            ScrubState::Never | ScrubState::Running | ScrubState::Stopped => verifiable.max(gone_through),
        };
        let chunk_bytes = self.geometry.chunk_bytes;
        let has_begun = scrub.state != ScrubState::Never;
        Ok(ScrubStatus {
            state: scrub.state,
            begun: has_begun.then(|| UNIX_EPOCH + Duration::from_secs(scrub.begun)),
            verified_bytes: scrub.verified_chunks * chunk_bytes,
            skipped_bytes: scrub.skipped_chunks * chunk_bytes,
            total_bytes: total_chunks * chunk_bytes,
            unverifiable_bytes: unverifiable * chunk_bytes,
            bad_blocks: scrub.bad_blocks,
            findings,
        })
    }

    /// Says what a damaged block is of: the version that owns it, or else one that still maps it.
    fn name_finding(&self, finding: &Finding) -> Result<ScrubFinding, PoolError> {
        let candidates: Vec<(NodeId, VersionId)> = {
            let state = read(&self.state);
            let mut candidates: Vec<_> = (state.versions.iter())
                .filter(|version| version.checksums.are_on())
                .filter_map(|version| Some((version.node, name_of(version)?)))
                .collect();
            candidates.sort_by_key(|(node, _)| (*node != finding.node, *node));
            candidates
        };
        let mut version = None;
        for (node, name) in candidates {
            let holds_it = match self.load_chunk_at(node, finding.index) {
                Ok(chunk) => chunk == Some(finding.chunk),
                // Its map is lost since: it was the finding's when that was made.
                Err(PoolError::Damaged { .. }) => node == finding.node,
                Err(error) => return Err(error),
            };
            if holds_it {
                version = Some(name);
                break;
            }
        }
        let within = u64::from(finding.block) * BLOCK;
        let home = read(&self.state).partials.view(finding.chunk).and_then(|view| {
            let mut pieces = view.pieces(within..within + BLOCK);
            pieces.next().map(|(_, home)| home)
        });
        let chunk = match home {
            Some(Home::Lender(lender)) => lender,
            Some(Home::Own | Home::Nowhere) | None => finding.chunk,
        };
        Ok(ScrubFinding {
            version,
            offset: finding.index * self.geometry.chunk_bytes + within,
            chunk,
            pool_offset: self.chunk_offset(chunk) + within,
        })
    }

    fn load_chunk_at(&self, node: NodeId, index: u64) -> Result<Option<u64>, PoolError> {
        loop {
            let found = read(&self.state).chunk_at(node, index);
            match found {
                Ok(chunk) => return Ok(chunk),
                Err(wanted) => self.load(&wanted)?,
            }
        }
    }
}

/// Names a version that its users can see.
pub(super) fn name_of(version: &Version) -> Option<VersionId> {
    match version.kind {
        _ if version.dead => None,
        VersionKind::Volume => Some(VersionId::Volume(VolumeId(version.uuid))),
        VersionKind::Snapshot => Some(VersionId::Snapshot(SnapshotId(version.uuid))),
        VersionKind::Internal => None,
    }
}
