//! Parsers of single arguments, shared by the nouns. Each error says what would have been right; clap puts the
//! argument's name in front and exits with 2.

use uuid::Uuid;

/// Where a new volume's contents come from, as written after `--from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `snapshot:ID`
    Snapshot(Uuid),
    /// `volume:ID`
    Volume(Uuid),
}

/// A share or a snapshot of one, as written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareVersion {
    /// `share:ID`
    Share(Uuid),
    /// `snapshot:ID`
    Snapshot(Uuid),
}

/// Parses `share:ID` or `snapshot:ID`.
///
/// # Errors
/// When the kind is another or the id is not a UUID.
pub fn parse_share_version(text: &str) -> Result<ShareVersion, String> {
    match text.split_once(':') {
        Some(("share", id)) => parse_id(id).map(ShareVersion::Share),
        Some(("snapshot", id)) => parse_id(id).map(ShareVersion::Snapshot),
        _ => Err(format!("{text:?} names neither; write share:ID or snapshot:ID")),
    }
}

/// Parses an id.
///
/// # Errors
/// When the text is not a UUID.
pub fn parse_id(text: &str) -> Result<Uuid, String> {
    Uuid::try_parse(text).map_err(|_| {
        format!(
            "{text:?} is not a UUID like 01890a5d-ac96-774b-bcce-b302099a8057; `list` shows the ids there are"
        )
    })
}

/// Parses `snapshot:ID` or `volume:ID`.
///
/// # Errors
/// When the kind is another or the id is not a UUID.
pub fn parse_source(text: &str) -> Result<Source, String> {
    match text.split_once(':') {
        Some(("snapshot", id)) => parse_id(id).map(Source::Snapshot),
        Some(("volume", id)) => parse_id(id).map(Source::Volume),
        _ => Err(format!(
            "{text:?} names no source; write snapshot:ID for a clone of a snapshot or volume:ID for a clone of a \
             volume as it is now"
        )),
    }
}

/// Parses `key=value`.
///
/// # Errors
/// When there is no `=` or no key before it.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a label; write key=value")),
    }
}

/// Returns the id given, or a new one.
pub fn id_or_new(id: Option<Uuid>) -> String {
    id.unwrap_or_else(Uuid::now_v7).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_by_kind_and_refused_with_both_forms() {
        let id = Uuid::from_u128(7);
        assert_eq!(parse_source(&format!("snapshot:{id}")), Ok(Source::Snapshot(id)));
        assert_eq!(parse_source(&format!("volume:{id}")), Ok(Source::Volume(id)));
        for text in ["", "image:x", &id.to_string()] {
            let message = parse_source(text).unwrap_err();
            assert!(
                message.contains("snapshot:ID") && message.contains("volume:ID"),
                "{message}"
            );
        }
        assert!(
            parse_source("volume:7")
                .unwrap_err()
                .contains("\"7\" is not a UUID")
        );
    }

    #[test]
    fn labels_keep_everything_after_the_first_equals_sign() {
        assert_eq!(parse_label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_label("a="), Ok(("a".into(), String::new())));
        for text in ["", "a", "=b"] {
            assert!(parse_label(text).is_err(), "{text:?}");
        }
    }
}
