//! CHAP: how an initiator and, if asked, the target prove that they know their secrets (RFC 1994; RFC 7143 12.1.3).
//!
//! Invariants
//! - C1: a challenge is random and used for one response.
//! - C2: a secret and a right response never reach a log or an error.
//! - C3: the comparison takes the same time whatever differs.
//! - C4: an initiator cannot have the target answer for it: a challenge of ours is not answered when it comes back, and
//!   a response that the target would give proves nothing (RFC 7143 9.2.1).

use base64::Engine as _;
use md5::{Digest, Md5};
use quarry_contract::ChapCredentials;
use secrecy::ExposeSecret;
use sha1::Sha1;
use sha2::Sha256;
use sha3::Sha3_256;
use subtle::ConstantTimeEq;

use crate::text::number;

/// The longest challenge an initiator may send, in bytes (RFC 7143 12.1.3).
const CHALLENGE_BYTES: usize = 1024;

/// A hash that CHAP can use, by its number in the IANA registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// 5; the one every initiator has.
    Md5,
    /// 6.
    Sha1,
    /// 7.
    Sha256,
    /// 8.
    Sha3_256,
}

impl Algorithm {
    /// Ours, best first.
    const PREFERENCE: [Algorithm; 4] = [
        Algorithm::Sha3_256,
        Algorithm::Sha256,
        Algorithm::Sha1,
        Algorithm::Md5,
    ];

    /// Chooses from an initiator's list (`CHAP_A`).
    pub fn choose(list: &str) -> Option<Self> {
        Self::PREFERENCE
            .into_iter()
            .find(|ours| list.split(',').any(|entry| entry.parse() == Ok(ours.number())))
    }

    /// Returns the number in the registry.
    pub fn number(self) -> u8 {
        match self {
            Algorithm::Md5 => 5,
            Algorithm::Sha1 => 6,
            Algorithm::Sha256 => 7,
            Algorithm::Sha3_256 => 8,
        }
    }

    fn hash(self, parts: [&[u8]; 3]) -> Vec<u8> {
        fn run<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
            let mut digest = D::new();
            for part in parts {
                digest.update(part);
            }
            digest.finalize().to_vec()
        }
        match self {
            Algorithm::Md5 => run::<Md5>(parts),
            Algorithm::Sha1 => run::<Sha1>(parts),
            Algorithm::Sha256 => run::<Sha256>(parts),
            Algorithm::Sha3_256 => run::<Sha3_256>(parts),
        }
    }
}

/// A challenge that waits for its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    algorithm: Algorithm,
    identifier: u8,
    bytes: Vec<u8>,
}

impl Challenge {
    /// Makes a challenge from 33 random bytes (C1).
    pub fn new(algorithm: Algorithm, random: [u8; 33]) -> Self {
        Self {
            algorithm,
            identifier: random[0],
            bytes: random[1..].to_vec(),
        }
    }

    /// Reads the challenge that came with the response to this one (`CHAP_I`, `CHAP_C`): the same algorithm holds in
    /// both directions. `None` when it is malformed, or this one (C4).
    pub fn counter(&self, identifier: &str, bytes: &str) -> Option<Self> {
        let bytes = binary(bytes)?;
        let fits = (1..=CHALLENGE_BYTES).contains(&bytes.len()) && bytes != self.bytes;
        fits.then_some(Self {
            algorithm: self.algorithm,
            identifier: number(identifier)?.try_into().ok()?,
            bytes,
        })
    }

    /// Returns the values of `CHAP_A`, `CHAP_I` and `CHAP_C`.
    pub fn keys(&self) -> [(&'static str, String); 3] {
        [
            ("CHAP_A", self.algorithm.number().to_string()),
            ("CHAP_I", self.identifier.to_string()),
            ("CHAP_C", format!("0x{}", hex::encode(&self.bytes))),
        ]
    }

    /// Computes the right response to it.
    pub fn response(&self, chap: &ChapCredentials) -> Vec<u8> {
        let secret = chap.secret.expose_secret().as_bytes();
        self.algorithm.hash([&[self.identifier], secret, &self.bytes])
    }

    /// Tells whether a user name and a response are the initiator's of the credentials, and the response is not what
    /// the target would give (C3, C4).
    pub fn is_answered_by(&self, username: &str, response: &[u8], credentials: &Credentials) -> bool {
        let Credentials { initiator, target } = credentials;
        let right_name = username.as_bytes().ct_eq(initiator.username.as_bytes());
        let right_response = response.ct_eq(&self.response(initiator));
        let ours = target
            .as_ref()
            .map(|target| response.ct_eq(&self.response(target)));
        (right_name & right_response & !ours.unwrap_or(0.into())).into()
    }
}

/// How an initiator and its target prove themselves to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The initiator's, which it must show.
    pub initiator: ChapCredentials,
    /// The target's, for an initiator that asks.
    pub target: Option<ChapCredentials>,
}

/// Decodes a binary value: `0x` and hexadecimal digits, or `0b` and base64 (RFC 7143 6.1: binary-value).
pub fn binary(value: &str) -> Option<Vec<u8>> {
    let (prefix, digits) = value.split_at_checked(2)?;
    match prefix {
        "0x" | "0X" if digits.len() % 2 == 1 => hex::decode(format!("0{digits}")).ok(),
        "0x" | "0X" => hex::decode(digits).ok(),
        "0b" | "0B" => base64::engine::general_purpose::STANDARD.decode(digits).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_the_hash_of_identifier_secret_and_challenge() {
        let mut random = [0xa5; 33];
        random[0] = 0x2a;
        // Each from Python's hashlib over b"\x2a" + b"secret-secret-16" + b"\xa5" * 32.
        let known = [
            (Algorithm::Md5, MD5_RESPONSE),
            (Algorithm::Sha1, SHA1_RESPONSE),
            (Algorithm::Sha256, SHA256_RESPONSE),
            (Algorithm::Sha3_256, SHA3_256_RESPONSE),
        ];
        for (algorithm, response) in known {
            let challenge = Challenge::new(algorithm, random);
            let right = chap("secret-secret-16");
            assert_eq!(hex::encode(challenge.response(&right)), response);
            let response = hex::decode(response).unwrap();
            let answered = |username, response: &[u8], initiator: &ChapCredentials| {
                let credentials = Credentials {
                    initiator: initiator.clone(),
                    target: None,
                };
                challenge.is_answered_by(username, response, &credentials)
            };
            assert!(answered("user", &response, &right));
            assert!(!answered("User", &response, &right));
            assert!(!answered("user", &response[1..], &right));
            assert!(!answered("user", &response, &chap("secret-secret-17")));
        }
    }

    fn chap(secret: &str) -> ChapCredentials {
        ChapCredentials {
            username: "user".into(),
            secret: secret.to_owned().into(),
        }
    }

    #[test]
    fn response_that_the_target_would_give_proves_nothing() {
        let challenge = Challenge::new(Algorithm::Sha256, [3; 33]);
        let answered = |target: &str, by: &str| {
            let credentials = Credentials {
                initiator: chap("secret-secret-16"),
                target: Some(chap(target)),
            };
            challenge.is_answered_by("user", &challenge.response(&chap(by)), &credentials)
        };
        assert!(answered("target-secret-16", "secret-secret-16"));
        assert!(!answered("target-secret-16", "target-secret-16"));
        assert!(!answered("secret-secret-16", "secret-secret-16"));
    }

    #[test]
    fn counter_challenge_is_another_one_of_up_to_1024_bytes() {
        let ours = Challenge::new(Algorithm::Sha1, [7; 33]);
        let longest = format!("0x{}", "ab".repeat(1024));
        for (identifier, bytes) in [("0", "0x01"), ("255", "0b3q0B"), ("0xff", &longest)] {
            let counter = ours.counter(identifier, bytes).unwrap();
            assert_eq!(counter.algorithm, Algorithm::Sha1);
        }
        let reflected = format!("0x{}", "07".repeat(32));
        let in_base64 = format!("0b{}", base64::engine::general_purpose::STANDARD.encode([7; 32]));
        let too_long = format!("0x{}", "ab".repeat(1025));
        for (identifier, bytes) in [
            ("7", reflected.as_str()),
            ("8", &reflected),
            ("7", &in_base64),
            ("7", &too_long),
            ("7", "0x"),
            ("7", "zz"),
            ("256", "0x01"),
            ("-1", "0x01"),
            ("", "0x01"),
        ] {
            assert_eq!(ours.counter(identifier, bytes), None, "{identifier} {bytes}");
        }
    }

    const MD5_RESPONSE: &str = "cd98064c28cdd060280c725e3515c7a0";
    const SHA1_RESPONSE: &str = "f5142961a5800e44db0e44a366d7d7440d45b355";
    const SHA256_RESPONSE: &str = "25ca0968ac13a989e890fc1a91a76df9449c6c7d167312dd414915ae39638b3c";
    const SHA3_256_RESPONSE: &str = "2e0f419e4e3e7481ec03b53b826ba9ddd1e2d20928d8f0fdcac9bf4637065c2b";

    #[test]
    fn best_common_algorithm_is_chosen_whatever_the_order() {
        assert_eq!(Algorithm::choose("5"), Some(Algorithm::Md5));
        assert_eq!(Algorithm::choose("5,6,7,8"), Some(Algorithm::Sha3_256));
        assert_eq!(Algorithm::choose("7,5"), Some(Algorithm::Sha256));
        assert_eq!(Algorithm::choose("9,x,"), None);
    }

    #[test]
    fn binary_values_are_hexadecimal_or_base64() {
        assert_eq!(binary("0xDEad01"), Some(vec![0xde, 0xad, 1]));
        assert_eq!(binary("0xabc"), Some(vec![0x0a, 0xbc]));
        assert_eq!(binary("0b3q0B"), Some(vec![0xde, 0xad, 1]));
        for bad in ["", "0", "dead", "0xzz", "0b***", "é"] {
            assert_eq!(binary(bad), None, "{bad:?}");
        }
    }
}
