//! AES-256-XTS (IEEE Std 1619) in units of 512 bytes; the tweak is the unit's number in its volume.
//!
//! A unit of zeros stands for zeros that were never encrypted, see docs/decisions/0006-encryption.md.

use aes::Aes256;
use aes::cipher::consts::U16;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use zeroize::Zeroizing;

/// What is encrypted with one tweak, in bytes.
const UNIT_BYTES: usize = 512;
const BLOCK_BYTES: usize = 16;
const BLOCKS: usize = UNIT_BYTES / BLOCK_BYTES;
/// Units that are given to AES together: wide vector instructions take 64 blocks at once.
const GROUP: usize = 8;

/// The key of a family: first that of the data, then that of the tweak.
pub(crate) type FamilyKey = Zeroizing<[u8; 64]>;

/// The key of a family at work. Its round keys are zeroed when it is dropped.
pub(crate) struct Cipher {
    data: Aes256,
    tweak: Aes256,
}

impl Cipher {
    pub fn new(key: &FamilyKey) -> Self {
        let (data, tweak) = key.split_at(32);
        let half = |key: &[u8]| Aes256::new_from_slice(key).expect("half of 64 bytes is a key of AES-256");
        Self {
            data: half(data),
            tweak: half(tweak),
        }
    }

    /// Encrypts what is to be at byte `offset` of a volume. Offset and length are multiples of 512.
    pub fn encrypt(&self, offset: u64, bytes: &mut [u8]) {
        for (group, number) in groups(offset, bytes) {
            self.mask(group, number, |blocks| self.data.encrypt_blocks(blocks));
        }
    }

    /// Decrypts what is at byte `offset` of a volume. Units of zeros stay zeros.
    pub fn decrypt(&self, offset: u64, bytes: &mut [u8]) {
        for (group, number) in groups(offset, bytes) {
            let mut zeros = [false; GROUP];
            for (zero, unit) in zeros.iter_mut().zip(group.chunks_exact(UNIT_BYTES)) {
                *zero = is_zero(unit);
            }
            let units = group.len() / UNIT_BYTES;
            if zeros[..units].iter().all(|zero| *zero) {
                continue;
            }
            self.mask(group, number, |blocks| self.data.decrypt_blocks(blocks));
            for (zero, unit) in zeros.iter().zip(group.chunks_exact_mut(UNIT_BYTES)) {
                if *zero {
                    unit.fill(0);
                }
            }
        }
    }

    /// Combines each block of a group with its tweak before and after `work`.
    fn mask(&self, group: &mut [u8], number: u64, work: impl FnOnce(&mut [Array<u8, U16>])) {
        let mut tweaks = [0; GROUP * BLOCKS];
        self.tweaks(number, &mut tweaks[..group.len() / BLOCK_BYTES]);
        let blocks = Array::cast_slice_from_core_mut(group.as_chunks_mut::<BLOCK_BYTES>().0);
        combine(blocks, &tweaks);
        work(blocks);
        combine(blocks, &tweaks);
    }

    /// Fills in the tweak of each block of the units from `number` on: that of the first of a unit, times 2, 4, 8, …
    /// in GF(2^128).
    fn tweaks(&self, number: u64, tweaks: &mut [u128]) {
        let mut firsts: [Array<u8, U16>; GROUP] =
            std::array::from_fn(|unit| Array::from(u128::from(number + unit as u64).to_le_bytes()));
        let units = tweaks.len() / BLOCKS;
        self.tweak.encrypt_blocks(&mut firsts[..units]);
        for (first, tweaks) in firsts.iter().zip(tweaks.chunks_exact_mut(BLOCKS)) {
            let mut tweak = u128::from_le_bytes((*first).into());
            for slot in tweaks {
                *slot = tweak;
                // The reduction by x^128 + x^7 + x^2 + x + 1.
                tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
            }
        }
    }
}

/// Cuts a range into groups of units, with the number of the first of each.
fn groups(offset: u64, bytes: &mut [u8]) -> impl Iterator<Item = (&mut [u8], u64)> {
    debug_assert!(offset.is_multiple_of(UNIT_BYTES as u64) && bytes.len().is_multiple_of(UNIT_BYTES));
    bytes
        .chunks_mut(GROUP * UNIT_BYTES)
        .zip((offset / UNIT_BYTES as u64..).step_by(GROUP))
}

fn combine(blocks: &mut [Array<u8, U16>], tweaks: &[u128]) {
    for (block, tweak) in blocks.iter_mut().zip(tweaks) {
        let masked = u128::from_le_bytes((*block).into()) ^ tweak;
        *block = Array::from(masked.to_le_bytes());
    }
}

fn is_zero(unit: &[u8]) -> bool {
    // Encrypted bytes end it at once.
    unit.as_chunks::<16>()
        .0
        .iter()
        .all(|word| u128::from_ne_bytes(*word) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(hex_digits: &str) -> FamilyKey {
        let digits: Vec<u8> = hex_digits
            .chars()
            .map(|digit| digit.to_digit(16).expect("a digit") as u8)
            .collect();
        let mut key = Zeroizing::new([0; 64]);
        for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        key
    }

    /// The digits of e and pi, as in the vectors of the standard.
    fn vector_key() -> FamilyKey {
        key(concat!(
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592",
        ))
    }

    fn counting() -> Vec<u8> {
        (0..UNIT_BYTES).map(|at| at as u8).collect()
    }

    #[test]
    fn the_vector_of_ieee_1619_for_keys_of_256_bits_is_met() {
        // Vector 10: data unit ff.
        let mut unit = counting();
        Cipher::new(&vector_key()).encrypt(0xff * 512, &mut unit);
        let blocks = unit.as_chunks::<16>().0;
        assert_eq!(
            blocks[..2]
                .iter()
                .map(|block| u128::from_be_bytes(*block))
                .collect::<Vec<_>>(),
            [
                0x1c3b_3a10_2f77_0386_e483_6c99_e370_cf9b,
                0xea00_803f_5e48_2357_a4ae_12d4_14a3_e63b,
            ]
        );
    }

    #[test]
    fn another_implementation_agrees_in_every_unit() {
        let key = vector_key();
        let half = |half: &[u8]| Aes256::new_from_slice(half).expect("32 bytes");
        let other = xts_mode::Xts128::new(half(&key[..32]), half(&key[32..]));
        let cipher = Cipher::new(&key);
        for first in [0u64, 1, 77, 1 << 40] {
            let mut ours: Vec<u8> = (0..43 * UNIT_BYTES).map(|at| (at * 7 % 251) as u8).collect();
            let plain = ours.clone();
            let mut theirs = ours.clone();
            cipher.encrypt(first * 512, &mut ours);
            other.encrypt_area(&mut theirs, 512, u128::from(first), xts_mode::get_tweak_default);
            assert!(ours == theirs, "units from {first}");
            // Any unit can be decrypted without its neighbours.
            let mut one = ours[5 * UNIT_BYTES..6 * UNIT_BYTES].to_vec();
            cipher.decrypt((first + 5) * 512, &mut one);
            assert!(one == plain[5 * UNIT_BYTES..6 * UNIT_BYTES]);
            cipher.decrypt(first * 512, &mut ours);
            assert!(ours == plain);
        }
    }

    #[test]
    fn units_of_zeros_among_others_stay_zeros() {
        let cipher = Cipher::new(&vector_key());
        for pattern in 0..1u32 << 10 {
            let mut units = vec![0; 10 * UNIT_BYTES];
            let encrypted = |unit: u32| pattern & 1 << unit != 0;
            for (unit, bytes) in (0..).zip(units.chunks_mut(UNIT_BYTES)) {
                if encrypted(unit) {
                    bytes.fill(7);
                    cipher.encrypt((3 + u64::from(unit)) * 512, bytes);
                }
            }
            cipher.decrypt(3 * 512, &mut units);
            for (unit, bytes) in (0..).zip(units.chunks(UNIT_BYTES)) {
                let expected = if encrypted(unit) { 7 } else { 0 };
                assert!(bytes.iter().all(|byte| *byte == expected), "{pattern:b}: {unit}");
            }
        }
    }

    #[test]
    fn zeros_are_encrypted_and_what_was_never_encrypted_reads_as_zeros() {
        let cipher = Cipher::new(&vector_key());
        let mut units = vec![0; 2 * UNIT_BYTES];
        cipher.encrypt(0, &mut units[..UNIT_BYTES]);
        assert!(!is_zero(&units[..UNIT_BYTES]));
        cipher.decrypt(0, &mut units);
        assert!(is_zero(&units));
    }
}
