//! One slot of a key area: a family key, wrapped (RFC 3394) with the key of the caller.
//!
//! A slot is one sector, which is never torn. Format: docs/formats/pool.md, "Encryption".

use aes_kw::KwAes256;
use aes_kw::cipher::KeyInit;
use quarry_contract::VolumeKey;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::Zeroizing;

use super::xts::FamilyKey;

/// The size of a slot, in bytes.
pub(super) const SLOT_BYTES: usize = 512;

/// Where the wrapped key of a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyRef {
    /// The family: the node of its first volume.
    pub family: u64,
    /// The slot.
    pub slot: u32,
}

/// A slot as it is on the medium.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Slot {
    magic: [u8; 8],
    uuid: [u8; 16],
    family: U64,
    slot: U32,
    crc32c: U32,
    wrapped: [u8; 72],
    reserved: [u8; 400],
}

const MAGIC: [u8; 8] = *b"QRYKEY\0\0";

impl Slot {
    /// Wraps a family key.
    pub fn seal(pool: Uuid, at: KeyRef, family_key: &FamilyKey, key: &VolumeKey) -> Self {
        let mut slot = Self::new_zeroed();
        slot.magic = MAGIC;
        slot.uuid = *pool.as_bytes();
        slot.family = at.family.into();
        slot.slot = at.slot.into();
        wrapping(key)
            .wrap_key(&**family_key, &mut slot.wrapped)
            .expect("64 bytes are wrapped into 72");
        slot.crc32c = slot.checksum().into();
        slot
    }

    /// Unwraps the family key; `None` when this is not the key that it was wrapped with.
    pub fn unseal(&self, key: &VolumeKey) -> Option<FamilyKey> {
        let mut family_key = Zeroizing::new([0; 64]);
        wrapping(key)
            .unwrap_key(&self.wrapped, &mut *family_key)
            .is_ok()
            .then_some(family_key)
    }

    /// Decodes the slot of `at`; `None` when it holds something else.
    pub fn decode(bytes: &[u8], pool: Uuid, at: KeyRef) -> Option<Self> {
        let slot = Self::read_from_bytes(bytes).ok()?;
        let is_whole = slot.magic == MAGIC
            && slot.crc32c.get() == slot.checksum()
            && slot.uuid == *pool.as_bytes()
            && slot.family.get() == at.family
            && slot.slot.get() == at.slot;
        is_whole.then_some(slot)
    }

    fn checksum(&self) -> u32 {
        let unsummed = Self {
            crc32c: 0.into(),
            ..*self
        };
        crc32c::crc32c(unsummed.as_bytes())
    }
}

fn wrapping(key: &VolumeKey) -> KwAes256 {
    KwAes256::new_from_slice(key.expose()).expect("a volume key is a key of AES-256")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_as_documented_and_gives_its_key_only_to_the_right_one() {
        assert_eq!(size_of::<Slot>(), SLOT_BYTES);
        assert_eq!(std::mem::offset_of!(Slot, family), 24);
        assert_eq!(std::mem::offset_of!(Slot, crc32c), 36);
        assert_eq!(std::mem::offset_of!(Slot, wrapped), 40);
        let (pool, at) = (Uuid::from_u128(5), KeyRef { family: 7, slot: 9 });
        let family_key = Zeroizing::new(std::array::from_fn(|at| at as u8));
        let slot = Slot::seal(pool, at, &family_key, &VolumeKey::new([1; 32]));
        let bytes = slot.as_bytes();
        assert!(
            !bytes.windows(16).any(|window| window == &family_key[..16]),
            "the key is wrapped"
        );
        let read = Slot::decode(bytes, pool, at).expect("it is whole");
        assert_eq!(read.unseal(&VolumeKey::new([1; 32])), Some(family_key));
        assert_eq!(read.unseal(&VolumeKey::new([2; 32])), None);
        for other in [KeyRef { family: 8, slot: 9 }, KeyRef { family: 7, slot: 8 }] {
            assert!(Slot::decode(bytes, pool, other).is_none());
        }
        assert!(Slot::decode(bytes, Uuid::from_u128(6), at).is_none());
        for byte in 0..SLOT_BYTES {
            let mut flipped = bytes.to_vec();
            flipped[byte] ^= 0x10;
            assert!(Slot::decode(&flipped, pool, at).is_none(), "byte {byte}");
        }
    }

    #[test]
    fn wrapping_is_that_of_rfc_3394() {
        // Section 4.6: 256 bits of key data with a 256-bit key.
        let key: [u8; 32] = std::array::from_fn(|at| at as u8);
        let data: Vec<u8> = (0..16).map(|at| at * 0x11).chain(0..16).collect();
        let mut wrapped = [0; 40];
        wrapping(&VolumeKey::new(key))
            .wrap_key(&data, &mut wrapped)
            .expect("wrapping");
        let words: Vec<u64> = wrapped
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_be_bytes(*word))
            .collect();
        assert_eq!(
            words,
            [
                0x28c9_f404_c4b8_10f4,
                0xcbcc_b35c_fb87_f826,
                0x3f57_86e2_d80e_d326,
                0xcbc7_f0e7_1a99_f43b,
                0xfb98_8b9b_7a02_dd21,
            ]
        );
    }
}
