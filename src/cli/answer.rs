//! What a command shows when it succeeds: a table for people or JSON for scripts, on standard output.
//!
//! The JSON is part of the public interface: `list` prints an array, every other verb one object; keys are
//! `snake_case`, sizes are numbers of bytes with a name that ends in `_bytes`, times are RFC 3339 in UTC, what is
//! not set is `null`. Keys are added, never renamed. docs/operations/command-line.md lists them all.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{Table, TableStyle};
use serde::Serialize;
use uuid::Uuid;

use super::failure::Exit;

/// How to show an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for people; may change
    Table,
    /// JSON for scripts; stable
    Json,
}

/// A delete as JSON.
#[derive(Serialize)]
struct DeletedRecord {
    id: String,
    deleted: bool,
}

/// A release as JSON.
#[derive(Serialize)]
struct ReleasedRecord {
    id: String,
    released: bool,
}

/// One successful answer, in both formats.
#[derive(Debug)]
pub struct Answer {
    text: String,
    json: String,
    exit: Option<Exit>,
}

impl Answer {
    /// Makes an answer of many things: one row each under `headers`, and a JSON array.
    pub fn list<T: Serialize>(headers: &[&str], rows: Vec<Vec<String>>, records: &[T]) -> Self {
        let mut table = Table::new();
        table
            .load_style(TableStyle::new())
            .set_header(headers.iter().copied());
        for row in rows {
            table.add_row(row.iter().map(|cell| in_one_line(cell)));
        }
        Self {
            text: aligned(&table),
            json: pretty(records),
            exit: None,
        }
    }

    /// Makes an answer of one thing: a line for each property, and a JSON object.
    pub fn show<T: Serialize>(properties: Vec<(&str, String)>, record: &T) -> Self {
        let mut table = Table::new();
        table.load_style(TableStyle::new());
        for (name, value) in properties {
            table.add_row([name, &in_one_line(&value)]);
        }
        Self {
            text: aligned(&table),
            json: pretty(record),
            exit: None,
        }
    }

    /// Makes an answer that only says what was done.
    pub fn done<T: Serialize>(sentence: String, record: &T) -> Self {
        Self {
            text: sentence,
            json: pretty(record),
            exit: None,
        }
    }

    /// Makes the answer of a delete: what was deleted, whether it was there or not.
    pub fn deleted(noun: &str, id: Uuid) -> Self {
        let record = DeletedRecord {
            id: id.to_string(),
            deleted: true,
        };
        Self::done(format!("{noun} {id} is deleted"), &record)
    }

    /// Makes the answer of a release: what was given up, whether it was there still or not.
    pub fn released(noun: &str, id: Uuid) -> Self {
        let record = ReleasedRecord {
            id: id.to_string(),
            released: true,
        };
        Self::done(
            format!("{noun} {id} is released, and holds what it held"),
            &record,
        )
    }

    /// Makes the process exit with something else than 0.
    pub fn with_exit(self, exit: Option<Exit>) -> Self {
        Self { exit, ..self }
    }

    /// Returns what to exit with, unless that is 0.
    pub fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Returns the answer as text without a final line end.
    pub fn render(&self, format: Format) -> &str {
        match format {
            Format::Table => &self.text,
            Format::Json => &self.json,
        }
    }

    /// Writes the answer to standard output. A reader that has gone away (`quarry volume list | head -1`) is no
    /// error: it has what it wanted.
    ///
    /// # Errors
    /// When standard output fails otherwise, for example on a full disk.
    pub fn print(&self, format: Format) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        match writeln!(stdout, "{}", self.render(format)).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}

/// Lays the table out without trailing blanks and without the preset's one-column margin.
fn aligned(table: &Table) -> String {
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// Writes characters that would end a line, or tell a terminal something, as what they are: others choose labels and the clients
/// of rules.
fn in_one_line(cell: &str) -> Cow<'_, str> {
    if !cell.contains(char::is_control) {
        return cell.into();
    }
    let mut shown = String::with_capacity(cell.len());
    for character in cell.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown.into()
}

fn pretty<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("records have string keys and no fallible serializers")
}

/// Shows a time, or a dash when there is none.
pub fn show_time(time: Option<&prost_types::Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// Puts labels into the order of their keys, for JSON.
pub fn sorted_labels(labels: &HashMap<String, String>) -> BTreeMap<&str, &str> {
    labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

/// Shows labels as `a=1, b=2`, or a dash when there are none.
pub fn show_labels(labels: &HashMap<String, String>) -> String {
    let shown: Vec<String> = sorted_labels(labels)
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    show_text(&shown.join(", "))
}

/// Shows text, or a dash when it is empty.
pub fn show_text(text: &str) -> String {
    match text {
        "" => "-".to_owned(),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_aligned_without_trailing_blanks_and_its_json_is_an_array() {
        let rows = vec![
            vec!["a".into(), "1 GiB".into()],
            vec!["longer".into(), "2 B".into()],
        ];
        let answer = Answer::list(&["NAME", "SIZE"], rows, &[1, 2]);
        assert_eq!(
            answer.render(Format::Table),
            "NAME    SIZE\na       1 GiB\nlonger  2 B"
        );
        assert_eq!(answer.render(Format::Json), "[\n  1,\n  2\n]");
    }

    #[test]
    fn what_would_end_a_line_or_steer_a_terminal_is_shown_as_what_it_is() {
        let rows = vec![vec!["a\nb".into(), "\u{1b}[2Jü".into()]];
        let answer = Answer::list::<u8>(&["NAME", "CLIENT"], rows, &[]);
        assert_eq!(answer.render(Format::Table), "NAME  CLIENT\na\\nb  \\u{1b}[2Jü");
        let answer = Answer::show(vec![("label", "a\tb".into())], &7);
        assert_eq!(answer.render(Format::Table), "label  a\\tb");
    }

    #[test]
    fn an_empty_list_shows_its_header_and_an_empty_array() {
        let answer = Answer::list::<u8>(&["NAME"], Vec::new(), &[]);
        assert_eq!(answer.render(Format::Table), "NAME");
        assert_eq!(answer.render(Format::Json), "[]");
    }

    #[test]
    fn properties_are_shown_one_a_line() {
        let answer = Answer::show(vec![("id", "7".into()), ("size", "1 B".into())], &7);
        assert_eq!(answer.render(Format::Table), "id    7\nsize  1 B");
    }
}
