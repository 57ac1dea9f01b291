//! What the redo log says: one record for each change of the pool's metadata.
//!
//! Records are logical. Which chunks are allocated and freed, every birth and every counter follow from applying
//! them in order ([`State::apply`](crate::state::State::apply)), the same way live and in recovery.
//! Format: docs/formats/pool.md, "Redo log".

use quarry_contract::ScrubState;
use uuid::Uuid;

use crate::partial::Blocks;
use crate::scrub::{Finding, Position, state_code, state_of_code};
use crate::sums::FewSums;
use crate::version::{NodeId, Source, VersionKind};

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    /// A blank volume.
    CreateVolume {
        node: NodeId,
        uuid: Uuid,
        size_bytes: u64,
    },
    /// A blank volume that is encrypted with the family key in this slot; it begins a family.
    CreateEncrypted {
        node: NodeId,
        uuid: Uuid,
        size_bytes: u64,
        slot: u32,
    },
    /// Two chunks hold slots of keys from now on, the same ones.
    KeyArea { chunks: [u64; 2] },
    /// `node` takes the place of `head` in the tree, with its contents so far.
    Snapshot {
        head: NodeId,
        node: NodeId,
        uuid: Uuid,
        kind: VersionKind,
    },
    /// A volume that begins with the contents of `parent`.
    Clone {
        parent: NodeId,
        node: NodeId,
        uuid: Uuid,
        size_bytes: u64,
        source: Source,
    },
    /// A volume grows.
    Extend { node: NodeId, size_bytes: u64 },
    /// A version dies; its space comes back by `Reap`.
    Delete { node: NodeId },
    /// The volume of `head` goes on as `node`, with the contents of the snapshot `parent`; `head` dies.
    Revert {
        head: NodeId,
        parent: NodeId,
        node: NodeId,
    },
    /// A chunk index is mapped to a chunk that holds its data already.
    Map { node: NodeId, index: u64, chunk: u64 },
    /// Chunk indices of one leaf are unmapped.
    Unmap { node: NodeId, first: u64, count: u64 },
    /// A chunk index is mapped to a chunk that holds these blocks already; the rest is what was mapped there before,
    /// or zeros. What was there lends it; but where that is partial and the version checksummed, what lends to that one does,
    /// and the records behind this one give the chunk all that the one before held.
    MapPart {
        node: NodeId,
        index: u64,
        chunk: u64,
        blocks: Blocks,
    },
    /// As `MapPart`, and what was mapped there before lends the rest though it is partial and the version is checksummed.
    MapOver {
        node: NodeId,
        index: u64,
        chunk: u64,
        blocks: Blocks,
    },
    /// A partial chunk holds these blocks too.
    Fill { chunk: u64, blocks: Blocks },
    /// Blocks that the record before gave to this chunk hold bytes with this checksum; changes nothing.
    Claim { chunk: u64, blocks: Blocks, crc32c: u32 },
    /// A volume that maps nothing yet is checksummed from now on.
    Checksum { node: NodeId },
    /// Blocks that the record before gave to this chunk have these sums.
    Sums { chunk: u64, sums: FewSums },
    /// Leaves of a sum tree, numbered through all trees and below one page, go: no chunk that they are for holds data.
    ForgetSums { first: u64, count: u64 },
    /// A scrub begins, at this time in seconds since 1970.
    BeginScrub { begun: u64 },
    /// The scrub has verified so many chunks more, has passed over as many as these at most, and goes on there.
    Scrubbed {
        at: Position,
        verified: u64,
        skipped: u64,
    },
    /// The scrub has found a damaged block.
    FoundBad(Finding),
    /// The scrub ends.
    EndScrub { state: ScrubState },
    /// A volume becomes a reserved one, or an ordinary one.
    Reserve { node: NodeId, reserved: bool },
    /// Leaves up to `upto_leaf` of a dead version are reclaimed; at the last leaf the version goes.
    Reap { node: NodeId, upto_leaf: u64 },
}

/// The longest encoded record, in bytes.
pub(crate) const MAX_RECORD_BYTES: usize = 1 + 8 + 8 + 16 + 8 + 1 + 16;

impl Record {
    /// Appends the encoded record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut fields = Fields(out);
        match *self {
            Record::CreateVolume {
                node,
                uuid,
                size_bytes,
            } => fields.byte(1).word(node.0).uuid(uuid).word(size_bytes),
            Record::Snapshot {
                head,
                node,
                uuid,
                kind,
            } => fields
                .byte(2)
                .word(head.0)
                .word(node.0)
                .uuid(uuid)
                .byte(kind.code()),
            Record::Clone {
                parent,
                node,
                uuid,
                size_bytes,
                source,
            } => {
                let (source_kind, source_uuid) = source.code();
                fields
                    .byte(3)
                    .word(parent.0)
                    .word(node.0)
                    .uuid(uuid)
                    .word(size_bytes)
                    .byte(source_kind)
                    .uuid(source_uuid)
            }
            Record::Extend { node, size_bytes } => fields.byte(4).word(node.0).word(size_bytes),
            Record::Delete { node } => fields.byte(5).word(node.0),
            Record::Revert { head, parent, node } => fields.byte(6).word(head.0).word(parent.0).word(node.0),
            Record::Map { node, index, chunk } => fields.byte(7).word(node.0).word(index).word(chunk),
            Record::Unmap { node, first, count } => fields.byte(8).word(node.0).word(first).word(count),
            Record::Reap { node, upto_leaf } => fields.byte(9).word(node.0).word(upto_leaf),
            Record::MapPart {
                node,
                index,
                chunk,
                blocks,
            } => fields
                .byte(10)
                .word(node.0)
                .word(index)
                .word(chunk)
                .blocks(blocks),
            Record::MapOver {
                node,
                index,
                chunk,
                blocks,
            } => fields
                .byte(23)
                .word(node.0)
                .word(index)
                .word(chunk)
                .blocks(blocks),
            Record::Fill { chunk, blocks } => fields.byte(11).word(chunk).blocks(blocks),
            Record::Claim {
                chunk,
                blocks,
                crc32c,
            } => fields.byte(12).word(chunk).blocks(blocks).half_word(crc32c),
            Record::Reserve { node, reserved } => fields.byte(13).word(node.0).byte(u8::from(reserved)),
            Record::KeyArea { chunks } => fields.byte(14).word(chunks[0]).word(chunks[1]),
            Record::CreateEncrypted {
                node,
                uuid,
                size_bytes,
                slot,
            } => fields
                .byte(15)
                .word(node.0)
                .uuid(uuid)
                .word(size_bytes)
                .half_word(slot),
            Record::Checksum { node } => fields.byte(16).word(node.0),
            Record::ForgetSums { first, count } => fields.byte(18).word(first).word(count),
            Record::BeginScrub { begun } => fields.byte(19).word(begun),
            Record::Scrubbed {
                at,
                verified,
                skipped,
            } => fields
                .byte(20)
                .half_word(at.depth)
                .word(at.node.0)
                .word(at.index)
                .word(verified)
                .word(skipped),
            Record::FoundBad(found) => fields
                .byte(21)
                .word(found.node.0)
                .word(found.index)
                .word(found.chunk)
                .half_word(found.block.into()),
            Record::EndScrub { state } => fields.byte(22).byte(state_code(state)),
            Record::Sums { chunk, sums } => {
                fields.byte(17).word(chunk).blocks(sums.blocks());
                for sum in sums.iter() {
                    fields.half_word(sum);
                }
                &mut fields
            }
        };
    }

    /// Takes one record off the front of `bytes`; `None` when it is cut short or of no known kind.
    pub fn decode(bytes: &mut &[u8]) -> Option<Record> {
        let record = match byte(bytes)? {
            1 => Record::CreateVolume {
                node: node(bytes)?,
                uuid: uuid(bytes)?,
                size_bytes: word(bytes)?,
            },
            2 => Record::Snapshot {
                head: node(bytes)?,
                node: node(bytes)?,
                uuid: uuid(bytes)?,
                kind: VersionKind::from_code(byte(bytes)?)?,
            },
            3 => Record::Clone {
                parent: node(bytes)?,
                node: node(bytes)?,
                uuid: uuid(bytes)?,
                size_bytes: word(bytes)?,
                source: Source::from_code(byte(bytes)?, uuid(bytes)?)?,
            },
            4 => Record::Extend {
                node: node(bytes)?,
                size_bytes: word(bytes)?,
            },
            5 => Record::Delete { node: node(bytes)? },
            6 => Record::Revert {
                head: node(bytes)?,
                parent: node(bytes)?,
                node: node(bytes)?,
            },
            7 => Record::Map {
                node: node(bytes)?,
                index: word(bytes)?,
                chunk: word(bytes)?,
            },
            8 => Record::Unmap {
                node: node(bytes)?,
                first: word(bytes)?,
                count: word(bytes)?,
            },
            9 => Record::Reap {
                node: node(bytes)?,
                upto_leaf: word(bytes)?,
            },
            10 => Record::MapPart {
                node: node(bytes)?,
                index: word(bytes)?,
                chunk: word(bytes)?,
                blocks: blocks(bytes)?,
            },
            23 => Record::MapOver {
                node: node(bytes)?,
                index: word(bytes)?,
                chunk: word(bytes)?,
                blocks: blocks(bytes)?,
            },
            11 => Record::Fill {
                chunk: word(bytes)?,
                blocks: blocks(bytes)?,
            },
            12 => Record::Claim {
                chunk: word(bytes)?,
                blocks: blocks(bytes)?,
                crc32c: half_word(bytes)?,
            },
            13 => Record::Reserve {
                node: NodeId(word(bytes)?),
                reserved: match byte(bytes)? {
                    0 => false,
                    1 => true,
                    _ => return None,
                },
            },
            14 => Record::KeyArea {
                chunks: [word(bytes)?, word(bytes)?],
            },
            15 => Record::CreateEncrypted {
                node: node(bytes)?,
                uuid: uuid(bytes)?,
                size_bytes: word(bytes)?,
                slot: half_word(bytes)?,
            },
            16 => Record::Checksum { node: node(bytes)? },
            19 => Record::BeginScrub { begun: word(bytes)? },
            20 => Record::Scrubbed {
                at: Position {
                    depth: half_word(bytes)?,
                    node: node(bytes)?,
                    index: word(bytes)?,
                },
                verified: word(bytes)?,
                skipped: word(bytes)?,
            },
            21 => Record::FoundBad(Finding {
                node: node(bytes)?,
                index: word(bytes)?,
                chunk: word(bytes)?,
                block: u16::try_from(half_word(bytes)?).ok()?,
            }),
            22 => Record::EndScrub {
                state: state_of_code(byte(bytes)?).filter(|state| *state != ScrubState::Running)?,
            },
            18 => Record::ForgetSums {
                first: word(bytes)?,
                count: word(bytes)?,
            },
            17 => Record::Sums {
                chunk: word(bytes)?,
                sums: FewSums::read(blocks(bytes)?, || half_word(bytes))?,
            },
            _ => return None,
        };
        Some(record)
    }
}

/// Appends fields.
struct Fields<'a>(&'a mut Vec<u8>);

impl Fields<'_> {
    fn byte(&mut self, byte: u8) -> &mut Self {
        self.0.push(byte);
        self
    }

    fn word(&mut self, word: u64) -> &mut Self {
        self.0.extend_from_slice(&word.to_le_bytes());
        self
    }

    fn half_word(&mut self, half_word: u32) -> &mut Self {
        self.0.extend_from_slice(&half_word.to_le_bytes());
        self
    }

    fn blocks(&mut self, blocks: Blocks) -> &mut Self {
        self.0.extend_from_slice(&blocks.first.to_le_bytes());
        self.0.extend_from_slice(&blocks.count.to_le_bytes());
        self
    }

    fn uuid(&mut self, uuid: Uuid) -> &mut Self {
        self.0.extend_from_slice(uuid.as_bytes());
        self
    }
}

fn byte(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

fn word(bytes: &mut &[u8]) -> Option<u64> {
    let (word, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*word))
}

fn half_word(bytes: &mut &[u8]) -> Option<u32> {
    let (half_word, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*half_word))
}

fn blocks(bytes: &mut &[u8]) -> Option<Blocks> {
    let (four, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    let [a, b, c, d] = *four;
    Some(Blocks {
        first: u16::from_le_bytes([a, b]),
        count: u16::from_le_bytes([c, d]),
    })
}

fn node(bytes: &mut &[u8]) -> Option<NodeId> {
    word(bytes).map(NodeId)
}

fn uuid(bytes: &mut &[u8]) -> Option<Uuid> {
    let (uuid, rest) = bytes.split_first_chunk::<16>()?;
    *bytes = rest;
    Some(Uuid::from_bytes(*uuid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_round_trips_and_no_prefix_of_it_decodes() {
        let uuid = Uuid::from_u128(0x1234_5678);
        let [a, b, c] = [NodeId(1), NodeId(2), NodeId(u64::MAX)];
        let records = [
            Record::CreateVolume {
                node: a,
                uuid,
                size_bytes: 4096,
            },
            Record::Snapshot {
                head: a,
                node: b,
                uuid,
                kind: VersionKind::Internal,
            },
            Record::Clone {
                parent: a,
                node: b,
                uuid,
                size_bytes: 1 << 40,
                source: Source::Volume(uuid),
            },
            Record::Extend {
                node: a,
                size_bytes: 512,
            },
            Record::Delete { node: c },
            Record::Revert {
                head: a,
                parent: b,
                node: c,
            },
            Record::Map {
                node: a,
                index: 5,
                chunk: 6,
            },
            Record::Unmap {
                node: a,
                first: 5,
                count: 6,
            },
            Record::Reap {
                node: a,
                upto_leaf: 9,
            },
            Record::MapPart {
                node: a,
                index: 5,
                chunk: 6,
                blocks: Blocks { first: 7, count: 258 },
            },
            Record::MapOver {
                node: a,
                index: 5,
                chunk: 6,
                blocks: Blocks { first: 7, count: 258 },
            },
            Record::Fill {
                chunk: 6,
                blocks: Blocks { first: 0, count: 256 },
            },
            Record::Claim {
                chunk: 6,
                blocks: Blocks { first: 0, count: 256 },
                crc32c: 0x1234_5678,
            },
            Record::Reserve {
                node: NodeId(3),
                reserved: true,
            },
            Record::KeyArea { chunks: [5, 6] },
            Record::CreateEncrypted {
                node: a,
                uuid,
                size_bytes: 4096,
                slot: 77,
            },
            Record::Checksum { node: a },
            Record::ForgetSums { first: 7, count: 8 },
            Record::BeginScrub { begun: 9 },
            Record::Scrubbed {
                at: Position {
                    depth: 1,
                    node: a,
                    index: 2,
                },
                verified: 3,
                skipped: 4,
            },
            Record::FoundBad(Finding {
                node: a,
                index: 1,
                chunk: 2,
                block: 255,
            }),
            Record::EndScrub {
                state: ScrubState::Stopped,
            },
            Record::Sums {
                chunk: 6,
                sums: FewSums::read(Blocks { first: 7, count: 8 }, || Some(0x1234_5678)).unwrap(),
            },
        ];
        let mut all = Vec::new();
        for record in records {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert!(bytes.len() <= MAX_RECORD_BYTES);
            assert_eq!(Record::decode(&mut &bytes[..]), Some(record));
            for cut in 0..bytes.len() {
                assert_eq!(
                    Record::decode(&mut &bytes[..cut]),
                    None,
                    "{record:?} cut at {cut}"
                );
            }
            all.extend_from_slice(&bytes);
        }
        let mut rest = &all[..];
        for record in records {
            assert_eq!(Record::decode(&mut rest), Some(record));
        }
        assert!(rest.is_empty());
        assert_eq!(Record::decode(&mut &[0u8, 1, 2][..]), None);
    }
}
