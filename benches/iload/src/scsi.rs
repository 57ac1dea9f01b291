//! The commands that are sent (SBC-4 5).

/// A command descriptor block, padded to what a header holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cdb(pub [u8; 16]);

/// When a write counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// When the target has it.
    Cached,
    /// When it survives a power cut (FUA).
    Flushed,
}

impl Cdb {
    /// TEST UNIT READY.
    pub fn test_unit_ready() -> Self {
        Self([0; 16])
    }

    /// READ CAPACITY (16), asking for `bytes`.
    pub fn read_capacity(bytes: u32) -> Self {
        let mut cdb = [0; 16];
        cdb[0] = 0x9e;
        cdb[1] = 0x10;
        cdb[10..14].copy_from_slice(&bytes.to_be_bytes());
        Self(cdb)
    }

    /// READ (10), or (16) where that does not reach.
    pub fn read(lba: u64, blocks: u32) -> Self {
        Self::transfer(0x28, 0x88, 0, lba, blocks)
    }

    /// WRITE (10), or (16) where that does not reach.
    pub fn write(lba: u64, blocks: u32, durability: Durability) -> Self {
        let flags = match durability {
            Durability::Cached => 0,
            Durability::Flushed => 0x08,
        };
        Self::transfer(0x2a, 0x8a, flags, lba, blocks)
    }

    /// SYNCHRONIZE CACHE (10) of everything.
    pub fn flush() -> Self {
        let mut cdb = [0; 16];
        cdb[0] = 0x35;
        Self(cdb)
    }

    fn transfer(short: u8, long: u8, flags: u8, lba: u64, blocks: u32) -> Self {
        let mut cdb = [0; 16];
        cdb[1] = flags;
        match (u32::try_from(lba), u16::try_from(blocks)) {
            (Ok(lba), Ok(blocks)) => {
                cdb[0] = short;
                cdb[2..6].copy_from_slice(&lba.to_be_bytes());
                cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
            }
            _ => {
                cdb[0] = long;
                cdb[2..10].copy_from_slice(&lba.to_be_bytes());
                cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
            }
        }
        Self(cdb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_blocks_take_the_long_form() {
        let near = Cdb::write(0x0102_0304, 8, Durability::Flushed).0;
        assert_eq!(near[..10], [0x2a, 8, 1, 2, 3, 4, 0, 0, 8, 0]);
        let far = Cdb::read(1 << 32, 8).0;
        assert_eq!((far[0], far[5], far[13]), (0x88, 1, 8));
    }
}
