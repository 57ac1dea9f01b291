//! The answer to a CHAP challenge (RFC 1994 4.1; RFC 7143 12.1.3).

use anyhow::{Context, bail};
use md5::{Digest, Md5};
use sha2::Sha256;

/// What `CHAP_A` offers: SHA-256, and MD5, which every target has.
pub const ALGORITHMS: &str = "7,5";

/// Computes `CHAP_R` for the target's `CHAP_A`, `CHAP_I` and `CHAP_C`.
///
/// # Errors
/// When a value is malformed, or the algorithm none of those offered.
pub fn response(algorithm: &str, identifier: &str, challenge: &str, secret: &str) -> anyhow::Result<String> {
    let identifier: u8 = identifier.parse().context("CHAP_I is no number")?;
    let digits = challenge
        .strip_prefix("0x")
        .context("CHAP_C is not hexadecimal")?;
    let challenge = hex::decode(digits).context("CHAP_C is not hexadecimal")?;
    let parts = [&[identifier], secret.as_bytes(), &challenge];
    let response = match algorithm {
        "5" => hash::<Md5>(parts),
        "7" => hash::<Sha256>(parts),
        other => bail!("the target chose CHAP algorithm {other}, which was not offered"),
    };
    Ok(format!("0x{}", hex::encode(response)))
}

fn hash<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
    let mut digest = D::new();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_the_hash_of_identifier_secret_and_challenge() {
        // printf '\x01secretAB' | md5sum, sha256sum
        assert_eq!(
            response("5", "1", "0x4142", "secret").unwrap(),
            "0x6a23d4827de35ad492d36668ecd142fc"
        );
        assert_eq!(
            response("7", "1", "0x4142", "secret").unwrap(),
            "0x45e9553923f472cd75e3855a28d8f6c6cfab1517647a536765f153a2903a0632"
        );
    }

    #[test]
    fn what_was_not_offered_or_makes_no_sense_is_refused() {
        assert!(response("6", "1", "0x41", "s").is_err());
        assert!(response("5", "256", "0x41", "s").is_err());
        assert!(response("5", "1", "AA", "s").is_err());
    }
}
