//! Plays calls against a real agent, kills it, starts it again and reads its state back.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use quarry_proto::v1::{
    AccessMode, Connector, CreateAttachmentRequest, CreateGroupSnapshotRequest, CreateSnapshotRequest,
    CreateVolumeRequest, DeleteAttachmentRequest, DeleteSnapshotRequest, DeleteVolumeRequest,
    ExtendVolumeRequest, GetConnectionInfoRequest, GroupMember, ListAttachmentsRequest, ListSnapshotsRequest,
    ListVolumesRequest, RevertVolumeRequest, UpdateVolumeRequest, VolumeSource, volume_source,
};
use tonic::{Code, Status};
use uuid::Uuid;

use super::model::{Access, Call, Expected, Model, SLOT_BYTES, Source, State, VolumeState};
use crate::agent_process::AgentProcess;
use crate::dice::Dice;
use crate::grpc::{Api, reason};
use crate::initiator::Attached;

/// How much of a slot is written: a chunk's part, so that the rest of the chunk must be kept.
const WRITE_BYTES: u64 = 16 << 10;

/// An agent and a client of it.
pub struct Player {
    dir: PathBuf,
    agent: Option<AgentProcess>,
    api: Api,
    /// What hosts were told, by attachment.
    told: BTreeMap<Uuid, Attached>,
    /// How often the agent was killed.
    pub kills: u64,
    /// How often it was killed before it was ready.
    pub kills_in_start: u64,
}

impl Player {
    /// Starts an agent in an empty folder.
    pub async fn start(dir: &Path) -> Self {
        let agent = AgentProcess::start(dir);
        let api = Api::connect(&agent).await;
        Self {
            dir: dir.to_owned(),
            agent: Some(agent),
            api,
            told: BTreeMap::new(),
            kills: 0,
            kills_in_start: 0,
        }
    }

    /// Makes a call, which must end as expected.
    pub async fn call(&mut self, call: &Call, expected: &Expected) {
        if let Call::Write {
            attachment,
            slot,
            tag,
            ..
        } = call
        {
            let attached = &self.told[attachment];
            attached
                .qemu_io(&[&write_command(*slot, *tag), "flush"])
                .unwrap_or_else(|said| panic!("{call:?}: {said}"));
            return;
        }
        let answer = self.send(call).await;
        assert_as_expected(call, &answer, expected);
    }

    /// Makes a call and kills the agent at a random moment around it. Returns whether it was answered before.
    pub async fn call_and_kill(&mut self, call: &Call, expected: &Expected, dice: &mut Dice) -> bool {
        self.kills += 1;
        let agent = self.agent.take().unwrap();
        if let Call::Write {
            attachment,
            slot,
            tag,
            ..
        } = call
        {
            let mut client = self.told[attachment].qemu_io_command(&[&write_command(*slot, *tag), "flush"]);
            let mut client = client
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(dice.below(120)));
            agent.kill();
            // The client dies with it: a command that it would send again after the restart is another test's.
            let _ = client.kill();
            let _ = client.wait();
            return false;
        }
        let killer = agent.killer();
        // Most calls take a few milliseconds; every moment of them is to be hit, and the moments around them.
        let delay = Duration::from_micros(dice.below(6_000));
        let killing = std::thread::spawn(move || {
            std::thread::sleep(delay);
            killer();
        });
        let answer = self.send(call).await;
        killing.join().unwrap();
        agent.kill();
        if is_lost(&answer) {
            return false;
        }
        assert_as_expected(call, &answer, expected);
        true
    }

    /// Starts the agent again, now and then killing it once more before it is ready.
    pub async fn restart(&mut self, dice: &mut Dice) {
        drop(self.agent.take());
        while dice.chance(1, 4) {
            self.kills_in_start += 1;
            let mut child = Command::new(env!("CARGO_BIN_EXE_quarry"))
                .arg("agent")
                .arg("--dev")
                .arg(&self.dir)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_micros(dice.below(60_000)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let agent = AgentProcess::start(&self.dir);
        self.api = Api::connect(&agent).await;
        self.agent = Some(agent);
    }

    async fn send(&mut self, call: &Call) -> Result<(), Status> {
        let api = &mut self.api;
        match call {
            Call::CreateVolume { id, slots, source } => {
                let request = create_request(*id, slots * SLOT_BYTES, *source);
                api.volumes.create_volume(request).await.map(drop)
            }
            Call::Extend { id, slots } => {
                let request = ExtendVolumeRequest {
                    id: id.to_string(),
                    size_bytes: slots * SLOT_BYTES,
                    mutation: None,
                };
                api.volumes.extend_volume(request).await.map(drop)
            }
            Call::Revert { id, snapshot } => {
                let request = RevertVolumeRequest {
                    id: id.to_string(),
                    snapshot_id: snapshot.to_string(),
                    mutation: None,
                };
                api.volumes.revert_volume(request).await.map(drop)
            }
            Call::Label { id, value } => {
                let request = UpdateVolumeRequest {
                    id: id.to_string(),
                    labels: HashMap::from([("label".to_owned(), value.clone())]),
                    mutation: None,
                };
                api.volumes.update_volume(request).await.map(drop)
            }
            Call::DeleteVolume { id, cascade } => {
                let request = DeleteVolumeRequest {
                    id: id.to_string(),
                    cascade: *cascade,
                    mutation: None,
                };
                api.volumes.delete_volume(request).await.map(drop)
            }
            Call::Snapshot { members } => {
                if let [(id, volume)] = members.as_slice() {
                    let request = CreateSnapshotRequest {
                        id: id.to_string(),
                        volume_id: volume.to_string(),
                        ..CreateSnapshotRequest::default()
                    };
                    return api.snapshots.create_snapshot(request).await.map(drop);
                }
                let members = members.iter().map(|(id, volume)| GroupMember {
                    snapshot_id: id.to_string(),
                    volume_id: volume.to_string(),
                });
                let request = CreateGroupSnapshotRequest {
                    members: members.collect(),
                    ..CreateGroupSnapshotRequest::default()
                };
                api.snapshots.create_group_snapshot(request).await.map(drop)
            }
            Call::DeleteSnapshot { id } => {
                let request = DeleteSnapshotRequest {
                    id: id.to_string(),
                    mutation: None,
                };
                api.snapshots.delete_snapshot(request).await.map(drop)
            }
            Call::Attach {
                id,
                volume,
                host,
                access,
            } => self.attach(*id, *volume, host, *access).await,
            Call::Detach { id } => self.detach(*id).await,
            Call::Write { .. } => unreachable!("writes go through iSCSI"),
        }
    }

    async fn attach(&mut self, id: Uuid, volume: Uuid, host: &str, access: Access) -> Result<(), Status> {
        let request = CreateAttachmentRequest {
            id: id.to_string(),
            volume_id: volume.to_string(),
            connector: Some(Connector {
                initiator: host.to_owned(),
                ..Connector::default()
            }),
            mode: match access {
                Access::ReadWrite => AccessMode::ReadWrite.into(),
                Access::ReadOnly => AccessMode::ReadOnly.into(),
            },
            ..CreateAttachmentRequest::default()
        };
        let answer = self
            .api
            .attachments
            .create_attachment(request)
            .await?
            .into_inner();
        let info = answer.connection_info.unwrap().cinder_json;
        let attached = Attached {
            id,
            initiator: host.to_owned(),
            connection_info: serde_json::from_str(&info).unwrap(),
        };
        if let Some(before) = self.told.insert(id, attached.clone()) {
            assert_eq!(before, attached, "the repeated attach answers otherwise");
        }
        Ok(())
    }

    async fn detach(&mut self, id: Uuid) -> Result<(), Status> {
        let request = DeleteAttachmentRequest {
            id: id.to_string(),
            force: false,
            mutation: None,
        };
        self.api.attachments.delete_attachment(request).await?;
        self.told.remove(&id);
        Ok(())
    }

    /// Checks that every host would be told the same as when it attached.
    pub async fn check_connection_info(&mut self) {
        let attachments = self.state().await.attachments;
        for (id, attached) in &self.told {
            // A detach that was interrupted may have been finished.
            if !attachments.contains_key(id) {
                continue;
            }
            let request = GetConnectionInfoRequest {
                attachment_id: id.to_string(),
            };
            let info = self
                .api
                .attachments
                .get_connection_info(request)
                .await
                .unwrap()
                .into_inner();
            let now: serde_json::Value = serde_json::from_str(&info.cinder_json).unwrap();
            assert_eq!(now, attached.connection_info, "attachment {id} after a restart");
        }
    }

    /// Reads back what the API shows.
    pub async fn state(&mut self) -> State {
        let mut state = State::default();
        let request = ListVolumesRequest {
            page_size: 1000,
            ..ListVolumesRequest::default()
        };
        for volume in self
            .api
            .volumes
            .list_volumes(request)
            .await
            .unwrap()
            .into_inner()
            .volumes
        {
            let source = volume
                .source
                .and_then(|source| source.source)
                .map(|source| match source {
                    volume_source::Source::SnapshotId(id) => Source::Snapshot(parse(&id)),
                    volume_source::Source::VolumeId(id) => Source::Volume(parse(&id)),
                });
            let shown = VolumeState {
                size_bytes: volume.size_bytes,
                source,
                label: volume.labels.get("label").cloned(),
                snapshot_count: volume.snapshot_count,
                attachment_ids: volume.attachment_ids.iter().map(|id| parse(id)).collect(),
            };
            state.volumes.insert(parse(&volume.id), shown);
        }
        let request = ListSnapshotsRequest {
            page_size: 1000,
            ..ListSnapshotsRequest::default()
        };
        for snapshot in self
            .api
            .snapshots
            .list_snapshots(request)
            .await
            .unwrap()
            .into_inner()
            .snapshots
        {
            let shown = (parse(&snapshot.volume_id), snapshot.size_bytes);
            state.snapshots.insert(parse(&snapshot.id), shown);
        }
        let request = ListAttachmentsRequest {
            page_size: 1000,
            ..ListAttachmentsRequest::default()
        };
        let attachments = self
            .api
            .attachments
            .list_attachments(request)
            .await
            .unwrap()
            .into_inner();
        for attachment in attachments.attachments {
            let access = match attachment.mode() {
                AccessMode::ReadOnly => Access::ReadOnly,
                AccessMode::ReadWrite | AccessMode::Unspecified => Access::ReadWrite,
            };
            let initiator = attachment.connector.unwrap().initiator;
            let shown = (parse(&attachment.volume_id), initiator, access);
            state.attachments.insert(parse(&attachment.id), shown);
        }
        state
    }

    /// Reads a volume through iSCSI and compares every slot with the model.
    pub async fn check_volume_data(&mut self, model: &mut Model, volume: Uuid) {
        if let Some(slots) = model.volume_slots(volume) {
            self.check_slots(volume, slots, &format!("volume {volume}")).await;
            model.note_attached(volume);
        }
    }

    /// Reads a snapshot through a clone and compares every slot with the model.
    pub async fn check_snapshot_data(&mut self, model: &Model, snapshot: Uuid, dice: &mut Dice) {
        let Some(slots) = model.snapshot_slots(snapshot) else {
            return;
        };
        let clone = dice.uuid();
        let request = create_request(clone, 0, Some(Source::Snapshot(snapshot)));
        self.api.volumes.create_volume(request).await.unwrap();
        self.check_slots(clone, slots, &format!("snapshot {snapshot}"))
            .await;
        let request = DeleteVolumeRequest {
            id: clone.to_string(),
            cascade: false,
            mutation: None,
        };
        self.api.volumes.delete_volume(request).await.unwrap();
    }

    async fn check_slots(&mut self, volume: Uuid, slots: &[u8], what: &str) {
        let attachment = Uuid::new_v4();
        self.attach(
            attachment,
            volume,
            "iqn.2026-11.io.quarry.test:checker",
            Access::ReadOnly,
        )
        .await
        .unwrap();
        let mut reads = Vec::new();
        for (slot, tag) in slots.iter().enumerate() {
            let at = slot as u64 * SLOT_BYTES;
            reads.push(format!("read -q -P {tag} {at} {WRITE_BYTES}"));
            let rest = SLOT_BYTES - WRITE_BYTES;
            reads.push(format!("read -q -P 0 {} {rest}", at + WRITE_BYTES));
        }
        let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
        let attached = self.told[&attachment].clone();
        if let Err(said) = attached.qemu_io_read_only(&reads) {
            panic!("{what} does not hold {slots:?}: {said}");
        }
        self.detach(attachment).await.unwrap();
    }
}

fn create_request(id: Uuid, size_bytes: u64, source: Option<Source>) -> CreateVolumeRequest {
    CreateVolumeRequest {
        id: id.to_string(),
        size_bytes,
        source: source.map(|source| VolumeSource {
            source: Some(match source {
                Source::Snapshot(id) => volume_source::Source::SnapshotId(id.to_string()),
                Source::Volume(id) => volume_source::Source::VolumeId(id.to_string()),
            }),
        }),
        ..CreateVolumeRequest::default()
    }
}

fn write_command(slot: u64, tag: u8) -> String {
    format!("write -q -P {tag} {} {WRITE_BYTES}", slot * SLOT_BYTES)
}

/// Tells whether the connection broke before an answer came. What the agent itself answers carries a reason.
fn is_lost(answer: &Result<(), Status>) -> bool {
    let Err(status) = answer else { return false };
    reason(status).is_empty()
        && matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        )
}

fn assert_as_expected(call: &Call, answer: &Result<(), Status>, expected: &Expected) {
    match (answer, expected) {
        (Ok(()), Ok(())) => {}
        (Err(status), Err(reasons)) => {
            assert!(
                reasons.contains(reason(status).as_str()),
                "{call:?}: {} {status}",
                reason(status)
            );
        }
        (answer, expected) => panic!("{call:?}: expected {expected:?}, the agent answered {answer:?}"),
    }
}

fn parse(id: &str) -> Uuid {
    id.parse().unwrap()
}
