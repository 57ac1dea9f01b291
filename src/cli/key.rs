//! The keys of encrypted volumes, read from where no other process sees them: a file or standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use quarry_proto::v1::VolumeKey;
use secrecy::zeroize::Zeroizing;

use super::failure::{Exit, Failure};

/// The length of a key, in bytes.
const KEY_BYTES: usize = 32;
/// The longest key file: the key in hexadecimal digits, and the end of its line.
const MAX_FILE_BYTES: u64 = 2 * KEY_BYTES as u64 + 2;

/// Reads a key: 32 bytes, or as many in hexadecimal digits on one line. `-` is standard input.
pub fn read(path: &Path) -> Result<VolumeKey, Failure> {
    let unreadable = |error: io::Error| {
        Failure::new(
            Exit::Usage,
            format!("cannot read the key from {}: {error}", path.display()),
        )
    };
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES as usize + 1));
    let read = match path.as_os_str() == "-" {
        true => io::stdin().take(MAX_FILE_BYTES + 1).read_to_end(&mut text),
        false => File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)),
    };
    read.map_err(unreadable)?;
    parse(&text).ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            format!(
                "{} holds no key: it has to be {KEY_BYTES} bytes, or {} hexadecimal digits; \
                 `head -c {KEY_BYTES} /dev/urandom` makes one",
                path.display(),
                2 * KEY_BYTES
            ),
        )
    })
}

fn parse(text: &[u8]) -> Option<VolumeKey> {
    let key = match text.len() {
        KEY_BYTES => text.to_vec(),
        _ => {
            let digits = text.strip_suffix(b"\n").unwrap_or(text);
            let digits = digits.strip_suffix(b"\r").unwrap_or(digits);
            hex::decode(digits).ok().filter(|key| key.len() == KEY_BYTES)?
        }
    };
    Some(VolumeKey { key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_bytes_or_their_digits_on_one_line() {
        let key: Vec<u8> = (0..32).map(|byte| byte * 8).collect();
        let digits = hex::encode(&key);
        for text in [
            key.clone(),
            digits.clone().into_bytes(),
            digits.to_uppercase().into_bytes(),
            format!("{digits}\n").into_bytes(),
            format!("{digits}\r\n").into_bytes(),
        ] {
            assert_eq!(parse(&text).map(|found| found.key), Some(key.clone()));
        }
        for wrong in [
            "",
            "secret",
            &digits[..62],
            &format!("{digits}00"),
            &format!("{digits}\n\n"),
        ] {
            assert!(parse(wrong.as_bytes()).is_none(), "{wrong:?}");
        }
    }
}
