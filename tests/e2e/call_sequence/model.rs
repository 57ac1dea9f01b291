//! What the agent should hold: the API's promises in a few maps.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::dice::Dice;

/// Volumes are made and written in steps of this.
pub const SLOT_BYTES: u64 = 1 << 20;
/// Sizes are this many slots at most.
const MAX_SLOTS: u64 = 8;
/// More objects than this only make runs slower.
const MAX_VOLUMES: usize = 10;
/// The hosts that attach.
const HOSTS: [&str; 3] = [
    "iqn.2026-11.io.quarry.test:host1",
    "iqn.2026-11.io.quarry.test:host2",
    "iqn.2026-11.io.quarry.test:host3",
];

/// One call of the API, or one flushed write of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A blank volume or a clone.
    CreateVolume {
        id: Uuid,
        slots: u64,
        source: Option<Source>,
    },
    /// Another size.
    Extend { id: Uuid, slots: u64 },
    /// Contents of a snapshot.
    Revert { id: Uuid, snapshot: Uuid },
    /// Another label.
    Label { id: Uuid, value: String },
    /// A delete.
    DeleteVolume { id: Uuid, cascade: bool },
    /// Snapshots (id, volume) at one moment.
    Snapshot { members: Vec<(Uuid, Uuid)> },
    /// A delete.
    DeleteSnapshot { id: Uuid },
    /// An attachment.
    Attach {
        id: Uuid,
        volume: Uuid,
        host: &'static str,
        access: Access,
    },
    /// A delete.
    Detach { id: Uuid },
    /// Writes a tag and flushes, as the host of an attachment.
    Write {
        attachment: Uuid,
        volume: Uuid,
        slot: u64,
        tag: u8,
    },
}

/// What a clone is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A snapshot.
    Snapshot(Uuid),
    /// A volume.
    Volume(Uuid),
}

/// What an attachment allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Reads and writes.
    ReadWrite,
    /// Reads.
    ReadOnly,
}

/// How a call should end: well, or refused with one of these reasons.
pub type Expected = Result<(), BTreeSet<&'static str>>;

/// What the API shows, without data. Compared between model and agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// Volumes by id.
    pub volumes: BTreeMap<Uuid, VolumeState>,
    /// Volume and size in bytes of snapshots, by id.
    pub snapshots: BTreeMap<Uuid, (Uuid, u64)>,
    /// Volume, host and access of attachments, by id.
    pub attachments: BTreeMap<Uuid, (Uuid, String, Access)>,
}

/// What the API shows of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeState {
    pub size_bytes: u64,
    pub source: Option<Source>,
    pub label: Option<String>,
    pub snapshot_count: u64,
    pub attachment_ids: BTreeSet<Uuid>,
}

#[derive(Debug, Clone)]
struct Volume {
    source: Option<Source>,
    label: Option<String>,
    /// The tag of each slot; zero was never written.
    slots: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Snapshot {
    volume: Uuid,
    slots: Vec<u8>,
}

/// The model.
#[derive(Debug, Clone, Default)]
pub struct Model {
    volumes: BTreeMap<Uuid, Volume>,
    snapshots: BTreeMap<Uuid, Snapshot>,
    attachments: BTreeMap<Uuid, (Uuid, &'static str, Access)>,
    /// Ids of deleted volumes: asked for again now and then, and used again if no host has seen them.
    dead: Vec<Uuid>,
    /// Ids of volumes that have been attached.
    attached_once: BTreeSet<Uuid>,
}

impl Call {
    /// Returns the volume whose data the call may have touched.
    pub fn volume(&self) -> Option<Uuid> {
        match self {
            Call::CreateVolume { id, .. } | Call::Extend { id, .. } | Call::Revert { id, .. } => Some(*id),
            Call::Write { volume, .. } => Some(*volume),
            _ => None,
        }
    }
}

impl Model {
    /// Rolls a call that makes sense most of the time.
    pub fn roll_call(&self, dice: &mut Dice) -> Call {
        loop {
            if let Some(call) = self.try_roll(dice) {
                return call;
            }
        }
    }

    fn try_roll(&self, dice: &mut Dice) -> Option<Call> {
        let slots = 1 + dice.below(MAX_SLOTS);
        Some(match dice.below(100) {
            0..16 => {
                if self.volumes.len() >= MAX_VOLUMES {
                    return None;
                }
                let source = match dice.below(3) {
                    0 => None,
                    1 => Some(Source::Snapshot(self.roll_snapshot(dice)?)),
                    _ => Some(Source::Volume(self.roll_volume(dice)?)),
                };
                let id = match dice.below(20) {
                    0 => dice.pick(&self.dead)?,
                    1 => self.roll_volume(dice)?,
                    _ => dice.uuid(),
                };
                Call::CreateVolume { id, slots, source }
            }
            16..24 => Call::Extend {
                id: self.roll_volume(dice)?,
                slots,
            },
            24..30 => Call::Revert {
                id: self.roll_volume(dice)?,
                snapshot: self.roll_snapshot(dice)?,
            },
            30..33 => Call::Label {
                id: self.roll_volume(dice)?,
                value: dice.below(1000).to_string(),
            },
            33..41 => Call::DeleteVolume {
                id: self.roll_volume(dice)?,
                cascade: dice.chance(1, 2),
            },
            41..53 => {
                let mut members = vec![(dice.uuid(), self.roll_volume(dice)?)];
                while dice.chance(1, 3) {
                    let volume = self.roll_volume(dice)?;
                    if members.iter().all(|(_, other)| *other != volume) {
                        members.push((dice.uuid(), volume));
                    }
                }
                Call::Snapshot { members }
            }
            53..59 => Call::DeleteSnapshot {
                id: self.roll_snapshot(dice)?,
            },
            59..71 => Call::Attach {
                id: dice.uuid(),
                volume: self.roll_volume(dice)?,
                host: dice.pick(&HOSTS)?,
                access: dice.pick(&[Access::ReadWrite, Access::ReadWrite, Access::ReadOnly])?,
            },
            71..79 => {
                let ids: Vec<Uuid> = self.attachments.keys().copied().collect();
                Call::Detach {
                    id: if dice.chance(1, 20) {
                        dice.uuid()
                    } else {
                        dice.pick(&ids)?
                    },
                }
            }
            _ => {
                let writable: Vec<(Uuid, Uuid)> = self
                    .attachments
                    .iter()
                    .filter(|(_, (_, _, access))| *access == Access::ReadWrite)
                    .map(|(id, (volume, _, _))| (*id, *volume))
                    .collect();
                let (attachment, volume) = dice.pick(&writable)?;
                Call::Write {
                    attachment,
                    volume,
                    slot: dice.below(self.volumes[&volume].slots.len() as u64),
                    tag: 1 + dice.below(255) as u8,
                }
            }
        })
    }

    /// Rolls a volume that exists, or now and then one that does not any more.
    fn roll_volume(&self, dice: &mut Dice) -> Option<Uuid> {
        if dice.chance(1, 30) {
            return dice.pick(&self.dead);
        }
        dice.pick(&self.volume_ids())
    }

    fn roll_snapshot(&self, dice: &mut Dice) -> Option<Uuid> {
        if dice.chance(1, 30) {
            return Some(dice.uuid());
        }
        dice.pick(&self.snapshot_ids())
    }

    /// Carries a call out, or says why it is to be refused.
    pub fn apply(&mut self, call: &Call) -> Expected {
        match call {
            Call::CreateVolume { id, slots, source } => {
                if let Some(existing) = self.volumes.get(id) {
                    let same = existing.slots.len() as u64 == *slots && existing.source == *source;
                    return if same { Ok(()) } else { refuse(["SPEC_MISMATCH"]) };
                }
                if self.attached_once.contains(id) {
                    return refuse(["SPEC_MISMATCH"]);
                }
                let mut content = match source {
                    None => Vec::new(),
                    Some(Source::Snapshot(id)) => match self.snapshots.get(id) {
                        Some(snapshot) => snapshot.slots.clone(),
                        None => return refuse(["NOT_FOUND"]),
                    },
                    Some(Source::Volume(id)) => match self.volumes.get(id) {
                        Some(volume) => volume.slots.clone(),
                        None => return refuse(["NOT_FOUND"]),
                    },
                };
                if content.len() as u64 > *slots {
                    return refuse(["SIZE_SHRINK"]);
                }
                content.resize(*slots as usize, 0);
                let volume = Volume {
                    source: *source,
                    label: None,
                    slots: content,
                };
                self.volumes.insert(*id, volume);
            }
            Call::Extend { id, slots } => {
                let Some(volume) = self.volumes.get_mut(id) else {
                    return refuse(["NOT_FOUND"]);
                };
                if volume.slots.len() as u64 > *slots {
                    return refuse(["SIZE_SHRINK"]);
                }
                volume.slots.resize(*slots as usize, 0);
            }
            Call::Revert { id, snapshot } => {
                let attached = self.is_attached(*id);
                let (Some(volume), Some(snapshot)) = (self.volumes.get_mut(id), self.snapshots.get(snapshot))
                else {
                    return refuse(["NOT_FOUND", "HAS_ATTACHMENTS"]);
                };
                let mut reasons = BTreeSet::new();
                if snapshot.volume != *id {
                    reasons.insert("INVALID_FIELD");
                }
                if attached {
                    reasons.insert("HAS_ATTACHMENTS");
                }
                if !reasons.is_empty() {
                    return Err(reasons);
                }
                let size = volume.slots.len();
                volume.slots.clone_from(&snapshot.slots);
                volume.slots.resize(size, 0);
            }
            Call::Label { id, value } => match self.volumes.get_mut(id) {
                Some(volume) => volume.label = Some(value.clone()),
                None => return refuse(["NOT_FOUND"]),
            },
            Call::DeleteVolume { id, cascade } => {
                let mut reasons = BTreeSet::new();
                if self.is_attached(*id) {
                    reasons.insert("HAS_ATTACHMENTS");
                }
                if !cascade && self.snapshots.values().any(|snapshot| snapshot.volume == *id) {
                    reasons.insert("HAS_SNAPSHOTS");
                }
                if !reasons.is_empty() {
                    return Err(reasons);
                }
                self.snapshots.retain(|_, snapshot| snapshot.volume != *id);
                if self.volumes.remove(id).is_some() {
                    self.dead.push(*id);
                }
            }
            Call::Snapshot { members } => {
                if members
                    .iter()
                    .any(|(_, volume)| !self.volumes.contains_key(volume))
                {
                    return refuse(["NOT_FOUND"]);
                }
                for (id, volume) in members {
                    let snapshot = Snapshot {
                        volume: *volume,
                        slots: self.volumes[volume].slots.clone(),
                    };
                    self.snapshots.insert(*id, snapshot);
                }
            }
            Call::DeleteSnapshot { id } => {
                self.snapshots.remove(id);
            }
            Call::Attach {
                id,
                volume,
                host,
                access,
            } => {
                if !self.volumes.contains_key(volume) {
                    return refuse(["NOT_FOUND"]);
                }
                self.attachments.insert(*id, (*volume, host, *access));
                self.note_attached(*volume);
            }
            Call::Detach { id } => {
                self.attachments.remove(id);
            }
            Call::Write {
                volume, slot, tag, ..
            } => {
                self.volumes.get_mut(volume).unwrap().slots[*slot as usize] = *tag;
            }
        }
        Ok(())
    }

    /// Notes that a host has seen a volume.
    pub fn note_attached(&mut self, volume: Uuid) {
        self.attached_once.insert(volume);
    }

    fn is_attached(&self, volume: Uuid) -> bool {
        self.attachments
            .values()
            .any(|(attached, _, _)| *attached == volume)
    }

    /// Returns the ids of all volumes.
    pub fn volume_ids(&self) -> Vec<Uuid> {
        self.volumes.keys().copied().collect()
    }

    /// Returns the ids of all snapshots.
    pub fn snapshot_ids(&self) -> Vec<Uuid> {
        self.snapshots.keys().copied().collect()
    }

    /// Returns the tag of each slot of a volume, if there is one.
    pub fn volume_slots(&self, id: Uuid) -> Option<&[u8]> {
        self.volumes.get(&id).map(|volume| volume.slots.as_slice())
    }

    /// Returns the tag of each slot of a snapshot, if there is one.
    pub fn snapshot_slots(&self, id: Uuid) -> Option<&[u8]> {
        self.snapshots.get(&id).map(|snapshot| snapshot.slots.as_slice())
    }

    /// Returns what the API should show.
    pub fn state(&self) -> State {
        let volumes = self.volumes.iter().map(|(id, volume)| {
            let state = VolumeState {
                size_bytes: volume.slots.len() as u64 * SLOT_BYTES,
                source: volume.source,
                label: volume.label.clone(),
                snapshot_count: self
                    .snapshots
                    .values()
                    .filter(|snapshot| snapshot.volume == *id)
                    .count() as u64,
                attachment_ids: self
                    .attachments
                    .iter()
                    .filter(|(_, (attached, _, _))| attached == id)
                    .map(|(attachment, _)| *attachment)
                    .collect(),
            };
            (*id, state)
        });
        let snapshots = self
            .snapshots
            .iter()
            .map(|(id, snapshot)| (*id, (snapshot.volume, snapshot.slots.len() as u64 * SLOT_BYTES)));
        let attachments = self
            .attachments
            .iter()
            .map(|(id, (volume, host, access))| (*id, (*volume, (*host).to_owned(), *access)));
        State {
            volumes: volumes.collect(),
            snapshots: snapshots.collect(),
            attachments: attachments.collect(),
        }
    }
}

fn refuse<const N: usize>(reasons: [&'static str; N]) -> Expected {
    Err(BTreeSet::from(reasons))
}
