//! Text as login and text requests carry it: `key=value` pairs, each ended by a NUL (RFC 7143 6.1).

use std::fmt::Write as _;

/// The longest key (RFC 7143 6.1: standard-label).
const KEY_BYTES: usize = 63;

/// The longest value (RFC 7143 6.1: a text value has at most 8192 bytes, being a large binary one).
const VALUE_BYTES: usize = 8192;

/// The longest text of one exchange, over all its PDUs, in bytes.
pub const EXCHANGE_BYTES: usize = 16384;

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Not UTF-8.
    #[error("text is not UTF-8")]
    Encoding,
    /// No equals sign, or no key.
    #[error("text has a part that is no key=value pair")]
    NotAPair,
    /// Key or value longer than allowed.
    #[error("text has a key or value that is too long")]
    TooLong,
    /// The same key twice (RFC 7143 6.2: MUST NOT).
    #[error("text has the key {0:?} twice")]
    Repeated(String),
}

/// Splits a text into its pairs, in order.
///
/// # Errors
/// When a part is no pair, is too long or repeats a key.
pub fn parse(text: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
    let text = std::str::from_utf8(text).map_err(|_| TextError::Encoding)?;
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for part in text.split('\0').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or(TextError::NotAPair)?;
        if key.is_empty() {
            return Err(TextError::NotAPair);
        }
        if key.len() > KEY_BYTES || value.len() > VALUE_BYTES {
            return Err(TextError::TooLong);
        }
        if pairs.iter().any(|(known, _)| *known == key) {
            return Err(TextError::Repeated(key.to_owned()));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// A text being written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct TextWriter(String);

impl TextWriter {
    /// Appends a pair.
    pub fn pair(&mut self, key: &str, value: impl std::fmt::Display) {
        // Writing to a String does not fail.
        let _ = write!(self.0, "{key}={value}\0");
    }

    /// Returns the text's bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}

/// Reads a number: decimal, or hexadecimal with `0x` (RFC 7143 6.1: numerical-value).
pub fn number(value: &str) -> Option<u64> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None if value.bytes().all(|b| b.is_ascii_digit()) => value.parse().ok(),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_split_at_nul_and_the_first_equals_sign() {
        let text = b"InitiatorName=iqn.a\0CHAP_R=0xab==\0Empty=\0\0";
        assert_eq!(
            parse(text),
            Ok(vec![
                ("InitiatorName", "iqn.a"),
                ("CHAP_R", "0xab=="),
                ("Empty", "")
            ])
        );
        assert_eq!(parse(b""), Ok(vec![]));
    }

    #[test]
    fn text_that_breaks_the_grammar_is_refused() {
        assert_eq!(parse(b"novalue\0"), Err(TextError::NotAPair));
        assert_eq!(parse(b"=x\0"), Err(TextError::NotAPair));
        assert_eq!(parse(b"a=\xff\0"), Err(TextError::Encoding));
        assert_eq!(parse(b"a=1\0a=2\0"), Err(TextError::Repeated("a".into())));
        let long = format!("{}=1\0", "k".repeat(64));
        assert_eq!(parse(long.as_bytes()), Err(TextError::TooLong));
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("8192"), Some(8192));
        assert_eq!(number("0x2000"), Some(8192));
        for bad in ["", "+5", "-1", "0x", "12k", "99999999999999999999"] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }
}
