//! `quarry volume extents` and `quarry snapshot extents`: what is there to be copied.

use quarry_proto::v1::data_client::DataClient;
use quarry_proto::v1::version::Version as Chosen;
use quarry_proto::v1::{Extent, ListExtentsRequest, Version};
use serde::Serialize;
use tonic::transport::Channel;

use super::answer::Answer;
use super::argument::Source;
use super::failure::Failure;
use super::paging::{PAGE_SIZE, all_pages};
use crate::size::show_size;

/// Asks for the extents of a version, since another or all of them.
pub async fn list(of: Chosen, since: Option<Source>, channel: Channel) -> Result<Answer, Failure> {
    let mut client = DataClient::new(channel);
    let since = since.map(|since| Version {
        version: Some(match since {
            Source::Snapshot(id) => Chosen::SnapshotId(id.to_string()),
            Source::Volume(id) => Chosen::VolumeId(id.to_string()),
        }),
    });
    let extents = all_pages(async |page_token| {
        let request = ListExtentsRequest {
            of: Some(Version {
                version: Some(of.clone()),
            }),
            since: since.clone(),
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = client.list_extents(request).await?.into_inner();
        Ok((page.extents, page.next_page_token))
    })
    .await?;
    Ok(listed(&extents))
}

/// An extent as JSON.
#[derive(Serialize)]
struct Record {
    offset_bytes: u64,
    length_bytes: u64,
    zeros: bool,
}

fn listed(extents: &[Extent]) -> Answer {
    let row = |extent: &Extent| {
        let kind = if extent.zeros { "zeros" } else { "data" };
        vec![
            extent.offset_bytes.to_string(),
            extent.length_bytes.to_string(),
            show_size(extent.length_bytes),
            kind.to_owned(),
        ]
    };
    let records: Vec<Record> = extents
        .iter()
        .map(|extent| Record {
            offset_bytes: extent.offset_bytes,
            length_bytes: extent.length_bytes,
            zeros: extent.zeros,
        })
        .collect();
    Answer::list(
        &["OFFSET", "LENGTH", "", "KIND"],
        extents.iter().map(row).collect(),
        &records,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::golden::assert_golden;

    #[test]
    fn extents_match_their_golden_files() {
        let extents = [
            Extent {
                offset_bytes: 0,
                length_bytes: 1 << 20,
                zeros: false,
            },
            Extent {
                offset_bytes: 1 << 30,
                length_bytes: 64 << 10,
                zeros: true,
            },
        ];
        assert_golden("extents", &listed(&extents));
    }
}
