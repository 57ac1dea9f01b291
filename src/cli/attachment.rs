//! `quarry attachment`: the right of one host to reach one volume, and how it does.
//!
//! CHAP secrets are shown only by `create` and `show` and only with `-o json`, inside `connection_info` and
//! `target_chap`: a table ends up on screens and in tickets.

use std::collections::BTreeMap;

use clap::{Subcommand, ValueEnum};
use quarry_proto::v1::attachments_client::AttachmentsClient;
use quarry_proto::v1::{
    AccessMode, Attachment, ConnectionInfo, Connector, CreateAttachmentRequest, DeleteAttachmentRequest,
    GetAttachmentRequest, GetConnectionInfoRequest, ListAttachmentsRequest, ListSessionsRequest, Session,
    connection_info,
};
use serde::Serialize;
use tonic::transport::Channel;
use uuid::Uuid;

use super::answer::{Answer, show_labels, show_text, show_time, sorted_labels};
use super::argument::{id_or_new, parse_id, parse_label};
use super::failure::{Exit, Failure};
use super::mutation::MutationArgs;
use super::paging::{PAGE_SIZE, all_pages};
use super::word::word;

/// The verbs of `quarry attachment`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach a volume to a host
    #[command(after_help = "\
Examples:
  quarry attachment create --volume VOLUME_ID --initiator iqn.1993-08.org.debian:01:host1
  quarry attachment create --volume VOLUME_ID --initiator \"$IQN\" --mode ro -o json | jq .connection_info

The initiator name is in /etc/iscsi/initiatorname.iscsi on the host. With -o json the answer carries
connection_info, exactly as OpenStack's os-brick reads it, with the secret the host logs in with.")]
    Create {
        /// The volume to attach
        #[arg(long, value_parser = parse_id, value_name = "ID")]
        volume: Uuid,
        /// The host's iSCSI initiator name
        #[arg(long, value_name = "IQN")]
        initiator: String,
        /// What the host may do
        #[arg(long, value_enum, default_value = "rw")]
        mode: Mode,
        /// The attachment's id, a UUID; a new one is made and shown when left out
        #[arg(long, value_parser = parse_id)]
        id: Option<Uuid>,
        /// The host's name, for people
        #[arg(long, value_name = "NAME")]
        host: Option<String>,
        /// The host's address, for people
        #[arg(long, value_name = "ADDRESS")]
        ip: Option<String>,
        /// The host uses several paths
        #[arg(long)]
        multipath: bool,
        /// A label of your own, key=value; may be given several times
        #[arg(long = "label", value_parser = parse_label, value_name = "KEY=VALUE")]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// List attachments
    List {
        /// Only attachments of this volume
        #[arg(long, value_parser = parse_id, value_name = "ID")]
        volume: Option<Uuid>,
        /// Only attachments of the host with this initiator name
        #[arg(long, value_name = "IQN")]
        initiator: Option<String>,
    },
    /// Show one attachment in full
    Show {
        /// The attachment's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
    },
    /// Detach: cut the host's sessions and take its right away; an attachment that is not there is fine
    Delete {
        /// The attachment's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// Fence the host: its other attachments of the volume go too
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// List the sessions that are open now
    Sessions {
        /// Only sessions on this volume
        #[arg(long, value_parser = parse_id, value_name = "ID")]
        volume: Option<Uuid>,
    },
}

/// What a host may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Read and write
    Rw,
    /// Read only, enforced by the target
    Ro,
}

/// Runs one verb.
pub async fn run(command: Command, channel: Channel) -> Result<Answer, Failure> {
    let mut client = AttachmentsClient::new(channel);
    match command {
        Command::Create {
            volume,
            initiator,
            mode,
            id,
            host,
            ip,
            multipath,
            labels,
            mutation,
        } => {
            let request = CreateAttachmentRequest {
                id: id_or_new(id),
                volume_id: volume.to_string(),
                connector: Some(Connector {
                    initiator,
                    host: host.unwrap_or_default(),
                    ip: ip.unwrap_or_default(),
                    multipath,
                    enforce_multipath: false,
                }),
                mode: match mode {
                    Mode::Rw => AccessMode::ReadWrite.into(),
                    Mode::Ro => AccessMode::ReadOnly.into(),
                },
                labels: labels.into_iter().collect(),
                mutation: mutation.into(),
            };
            let created = client.create_attachment(request).await?.into_inner();
            let attachment = created.attachment.unwrap_or_default();
            shown(&attachment, &created.connection_info.unwrap_or_default())
        }
        Command::List { volume, initiator } => {
            let volume_id = volume.map(|id| id.to_string()).unwrap_or_default();
            let attachments = all_pages(async |page_token| {
                let request = ListAttachmentsRequest {
                    page_size: PAGE_SIZE,
                    page_token,
                    volume_id: volume_id.clone(),
                    initiator: initiator.clone().unwrap_or_default(),
                };
                let page = client.list_attachments(request).await?.into_inner();
                Ok((page.attachments, page.next_page_token))
            })
            .await?;
            Ok(listed(&attachments))
        }
        Command::Show { id } => {
            let id = id.to_string();
            let attachment = client
                .get_attachment(GetAttachmentRequest { id: id.clone() })
                .await?
                .into_inner();
            let info = client
                .get_connection_info(GetConnectionInfoRequest { attachment_id: id })
                .await?
                .into_inner();
            shown(&attachment, &info)
        }
        Command::Delete { id, force, mutation } => {
            let request = DeleteAttachmentRequest {
                id: id.to_string(),
                force,
                mutation: mutation.into(),
            };
            let deleted = client.delete_attachment(request).await?.into_inner();
            Ok(detached(id, deleted.host_still_attached))
        }
        Command::Sessions { volume } => {
            let volume_id = volume.map(|id| id.to_string()).unwrap_or_default();
            let sessions = all_pages(async |page_token| {
                let request = ListSessionsRequest {
                    page_size: PAGE_SIZE,
                    page_token,
                    volume_id: volume_id.clone(),
                };
                let page = client.list_sessions(request).await?.into_inner();
                Ok((page.sessions, page.next_page_token))
            })
            .await?;
            Ok(sessions_listed(&sessions))
        }
    }
}

/// An attachment as JSON.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    volume_id: &'a str,
    connector: ConnectorRecord<'a>,
    mode: &'static str,
    state: String,
    state_reason: &'a str,
    session_count: u32,
    shared_on_host: bool,
    labels: BTreeMap<&'a str, &'a str>,
    generation: u64,
    create_time: Option<String>,
    /// Only where one attachment is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_info: Option<serde_json::Value>,
    /// How the target proves itself, for which os-brick's `connection_info` has no keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    target_chap: Option<CredentialsRecord<'a>>,
}

/// The target's side of mutual CHAP, as JSON.
#[derive(Serialize)]
struct CredentialsRecord<'a> {
    username: &'a str,
    secret: &'a str,
}

/// The host, as JSON.
#[derive(Serialize)]
struct ConnectorRecord<'a> {
    initiator: &'a str,
    host: &'a str,
    ip: &'a str,
    multipath: bool,
    enforce_multipath: bool,
}

/// A detached attachment as JSON.
#[derive(Serialize)]
struct DetachedRecord {
    id: String,
    deleted: bool,
    host_still_attached: bool,
}

/// A session as JSON.
#[derive(Serialize)]
struct SessionRecord<'a> {
    volume_id: &'a str,
    initiator: &'a str,
    peer: &'a str,
    portal: &'a str,
    tsih: u32,
}

impl<'a> From<&'a Attachment> for Record<'a> {
    fn from(attachment: &'a Attachment) -> Self {
        let connector = attachment.connector.as_ref();
        Self {
            id: &attachment.id,
            volume_id: &attachment.volume_id,
            connector: ConnectorRecord {
                initiator: connector.map_or("", |connector| &connector.initiator),
                host: connector.map_or("", |connector| &connector.host),
                ip: connector.map_or("", |connector| &connector.ip),
                multipath: connector.is_some_and(|connector| connector.multipath),
                enforce_multipath: connector.is_some_and(|connector| connector.enforce_multipath),
            },
            mode: mode(attachment),
            state: state(attachment),
            state_reason: &attachment.state_reason,
            session_count: attachment.session_count,
            shared_on_host: attachment.shared_on_host,
            labels: sorted_labels(&attachment.labels),
            generation: attachment.generation,
            create_time: attachment.create_time.as_ref().map(ToString::to_string),
            connection_info: None,
            target_chap: None,
        }
    }
}

fn mode(attachment: &Attachment) -> &'static str {
    match attachment.mode() {
        AccessMode::ReadOnly => "ro",
        AccessMode::ReadWrite | AccessMode::Unspecified => "rw",
    }
}

fn state(attachment: &Attachment) -> String {
    word(attachment.state().as_str_name(), "ATTACHMENT_STATE_")
}

fn initiator(attachment: &Attachment) -> String {
    attachment
        .connector
        .as_ref()
        .map(|connector| connector.initiator.clone())
        .unwrap_or_default()
}

fn listed(attachments: &[Attachment]) -> Answer {
    let rows = attachments
        .iter()
        .map(|attachment| {
            vec![
                attachment.id.clone(),
                attachment.volume_id.clone(),
                initiator(attachment),
                mode(attachment).to_owned(),
                state(attachment),
                attachment.session_count.to_string(),
            ]
        })
        .collect();
    let records: Vec<Record<'_>> = attachments.iter().map(Record::from).collect();
    let headers = ["ID", "VOLUME", "INITIATOR", "MODE", "STATE", "SESSIONS"];
    Answer::list(&headers, rows, &records)
}

/// Shows one attachment with its connection info.
///
/// # Errors
/// When the agent sent connection info that is no JSON.
fn shown(attachment: &Attachment, info: &ConnectionInfo) -> Result<Answer, Failure> {
    let cinder = serde_json::from_str(&info.cinder_json).map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("the agent sent connection info that is no JSON: {error}"),
        )
        .with_next_step("use a `quarry` of the agent's version: `quarry node show` tells it")
    })?;
    let mut properties = vec![
        ("id", attachment.id.clone()),
        ("volume", attachment.volume_id.clone()),
        ("initiator", initiator(attachment)),
        ("mode", mode(attachment).to_owned()),
        ("state", state(attachment)),
    ];
    if !attachment.state_reason.is_empty() {
        properties.push(("reason", attachment.state_reason.clone()));
    }
    properties.push(("sessions", attachment.session_count.to_string()));
    if let Some(connector) = &attachment.connector {
        properties.push(("host", show_text(&connector.host)));
    }
    let mut target_chap = None;
    if let Some(connection_info::Protocol::Iscsi(iscsi)) = &info.protocol {
        properties.push(("portals", iscsi.portals.join(", ")));
        properties.push(("target", iscsi.target_name.clone()));
        properties.push(("lun", iscsi.lun.to_string()));
        if let Some(chap) = &iscsi.chap {
            properties.push(("chap user", chap.username.clone()));
            properties.push(("chap secret", "(only with -o json)".to_owned()));
        }
        if let Some(chap) = &iscsi.target_chap {
            properties.push(("target chap user", chap.username.clone()));
            properties.push(("target chap secret", "(only with -o json)".to_owned()));
            target_chap = Some(CredentialsRecord {
                username: &chap.username,
                secret: &chap.secret,
            });
        }
    }
    properties.extend([
        ("labels", show_labels(&attachment.labels)),
        ("generation", attachment.generation.to_string()),
        ("created", show_time(attachment.create_time.as_ref())),
    ]);
    let record = Record {
        connection_info: Some(cinder),
        target_chap,
        ..Record::from(attachment)
    };
    Ok(Answer::show(properties, &record))
}

fn detached(id: Uuid, host_still_attached: bool) -> Answer {
    let sentence = if host_still_attached {
        format!("attachment {id} is deleted; the host still reaches the volume through another attachment")
    } else {
        format!("attachment {id} is deleted; the host does not reach the volume any more")
    };
    let record = DetachedRecord {
        id: id.to_string(),
        deleted: true,
        host_still_attached,
    };
    Answer::done(sentence, &record)
}

fn sessions_listed(sessions: &[Session]) -> Answer {
    let rows = sessions
        .iter()
        .map(|session| {
            vec![
                session.volume_id.clone(),
                session.initiator.clone(),
                session.peer.clone(),
                session.portal.clone(),
                session.tsih.to_string(),
            ]
        })
        .collect();
    let records: Vec<SessionRecord<'_>> = sessions
        .iter()
        .map(|session| SessionRecord {
            volume_id: &session.volume_id,
            initiator: &session.initiator,
            peer: &session.peer,
            portal: &session.portal,
            tsih: session.tsih,
        })
        .collect();
    Answer::list(&["VOLUME", "INITIATOR", "FROM", "TO", "TSIH"], rows, &records)
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;
    use quarry_proto::v1::{AttachmentState, ChapCredentials, IscsiConnectionInfo};

    use super::*;
    use crate::cli::answer::Format;
    use crate::cli::golden::assert_golden;

    const SECRET: &str = "abcdefghijklmnop";
    const TARGET_SECRET: &str = "ponmlkjihgfedcba";

    fn attachment() -> Attachment {
        Attachment {
            id: "00000000-0000-4000-8000-0000000000a1".into(),
            volume_id: "00000000-0000-4000-8000-000000000001".into(),
            connector: Some(Connector {
                initiator: "iqn.1993-08.org.debian:01:host1".into(),
                host: "host1".into(),
                ..Connector::default()
            }),
            mode: AccessMode::ReadWrite.into(),
            state: AttachmentState::Ready.into(),
            generation: 1,
            create_time: Some(Timestamp {
                seconds: 1_790_000_000,
                nanos: 0,
            }),
            ..Attachment::default()
        }
    }

    fn info() -> ConnectionInfo {
        ConnectionInfo {
            protocol: Some(connection_info::Protocol::Iscsi(IscsiConnectionInfo {
                portals: vec!["127.0.0.1:3260".into()],
                target_name: "iqn.2026-11.io.quarry:volume-1".into(),
                lun: 1,
                chap: Some(ChapCredentials {
                    username: "host1".into(),
                    secret: SECRET.into(),
                }),
                target_chap: Some(ChapCredentials {
                    username: "target1".into(),
                    secret: TARGET_SECRET.into(),
                }),
            })),
            cinder_json: format!(
                r#"{{"driver_volume_type":"iscsi","data":{{"target_lun":1,"auth_password":"{SECRET}"}}}}"#
            ),
            mode: AccessMode::ReadWrite.into(),
            ..ConnectionInfo::default()
        }
    }

    #[test]
    fn attachment_answers_match_their_golden_files() {
        assert_golden("attachment-list", &listed(&[attachment()]));
        assert_golden("attachment-show", &shown(&attachment(), &info()).unwrap());
        assert_golden("attachment-delete", &detached(Uuid::from_u128(1), false));
        assert_golden("attachment-delete-shared", &detached(Uuid::from_u128(1), true));
        let session = Session {
            volume_id: attachment().volume_id,
            initiator: initiator(&attachment()),
            peer: "127.0.0.1:40000".into(),
            portal: "127.0.0.1:3260".into(),
            tsih: 1,
        };
        assert_golden("attachment-sessions", &sessions_listed(&[session]));
    }

    #[test]
    fn the_secrets_are_in_the_json_of_one_attachment_and_nowhere_else() {
        let one = shown(&attachment(), &info()).unwrap();
        for secret in [SECRET, TARGET_SECRET] {
            assert!(one.render(Format::Json).contains(secret));
            assert!(!one.render(Format::Table).contains(secret));
        }
    }
}
