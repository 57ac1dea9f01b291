//! What a check or repair of a pool found: a line for each problem, then one sentence; exit code 5 when something is
//! wrong, or left wrong.

use serde::Serialize;

use super::answer::Answer;
use super::failure::Exit;

/// Problems, a sentence each.
#[derive(Debug)]
pub struct Findings {
    /// All of them.
    pub found: Vec<String>,
    /// Those that a repair does not put right, or has not.
    pub remaining: Vec<String>,
    /// What lost pages of maps were for and the chunk table has made again, or can.
    pub rebuilt: Vec<String>,
}

/// A check or repair as JSON.
#[derive(Serialize)]
struct Record<'a> {
    sound: bool,
    found: &'a [String],
    remaining: &'a [String],
    rebuilt: &'a [String],
}

impl Findings {
    /// Tells what a check of `what` found.
    pub fn of_check(&self, what: &str) -> Answer {
        let sentence = match (self.found.len(), self.remaining.len()) {
            (0, _) => format!("{what} is sound"),
            (1, 0) => format!("{what}: 1 problem; quarry pool repair puts it right"),
            (found, 0) => format!("{what}: {found} problems; quarry pool repair puts them right"),
            (found, remaining) => {
                format!(
                    "{what}: {}, {remaining} of which only a backup puts right{}",
                    problems(found),
                    self.advice()
                )
            }
        };
        self.told(sentence, self.found.is_empty())
    }

    /// Tells what a repair of `what` did.
    pub fn of_repair(&self, what: &str) -> Answer {
        let sentence = match (self.found.len(), self.remaining.len()) {
            (0, _) => format!("{what} is sound, nothing was changed"),
            (1, 0) => format!("{what} is sound again: 1 problem was put right"),
            (found, 0) => format!("{what} is sound again: {found} problems were put right"),
            (_, remaining) => {
                format!(
                    "{what}: {} left, which only a backup puts right{}",
                    problems(remaining),
                    self.advice()
                )
            }
        };
        self.told(sentence, self.remaining.is_empty())
    }

    /// Tells what else there is to do.
    fn advice(&self) -> &'static str {
        match self.rebuilt.is_empty() {
            true => "",
            false => ", or quarry pool repair --discarded-may-come-back",
        }
    }

    fn told(&self, sentence: String, sound: bool) -> Answer {
        let lines = self.found.iter().map(|problem| {
            let left = self.remaining.contains(problem);
            format!("{} {problem}\n", if left { "!" } else { "-" })
        });
        let new = self
            .remaining
            .iter()
            .filter(|problem| !self.found.contains(problem));
        let lines = lines.chain(new.map(|problem| format!("! {problem}\n")));
        let lines = lines.chain(self.rebuilt.iter().map(|one| format!("= {one}\n")));
        let text = lines.collect::<String>() + &sentence;
        let record = Record {
            sound,
            found: &self.found,
            remaining: &self.remaining,
            rebuilt: &self.rebuilt,
        };
        Answer::done(text, &record).with_exit((!sound).then_some(Exit::Damaged))
    }
}

fn problems(count: usize) -> String {
    match count {
        1 => "1 problem".to_owned(),
        _ => format!("{count} problems"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::answer::Format;

    #[test]
    fn what_is_wrong_is_marked_and_sets_the_exit_code() {
        let sound = Findings {
            found: vec![],
            remaining: vec![],
            rebuilt: vec![],
        };
        assert_eq!(sound.of_check("pool a").exit(), None);
        assert_eq!(sound.of_check("pool a").render(Format::Table), "pool a is sound");
        let damaged = Findings {
            found: vec!["one".into(), "two".into()],
            remaining: vec!["two".into()],
            rebuilt: vec![],
        };
        for answer in [damaged.of_check("pool a"), damaged.of_repair("pool a")] {
            assert_eq!(answer.exit(), Some(Exit::Damaged));
            assert!(answer.render(Format::Table).starts_with("- one\n! two\npool a: "));
        }
        let check = damaged.of_check("pool a");
        assert!(
            check
                .render(Format::Table)
                .contains("2 problems, 1 of which only a backup")
        );
        let repair = damaged.of_repair("pool a");
        assert!(
            repair
                .render(Format::Table)
                .contains("1 problem left, which only a backup")
        );
        let repaired = Findings {
            found: vec!["one".into()],
            remaining: vec![],
            rebuilt: vec!["its map".into()],
        };
        assert_eq!(repaired.of_repair("pool a").exit(), None);
        assert!(
            repaired
                .of_repair("pool a")
                .render(Format::Table)
                .contains("\n= its map\n")
        );
        let repair = repaired.of_repair("pool a");
        let text = repair.render(Format::Table);
        assert!(text.ends_with("pool a is sound again: 1 problem was put right"));
        let check = repaired.of_check("pool a");
        assert_eq!(check.exit(), Some(Exit::Damaged));
        assert!(
            check
                .render(Format::Table)
                .ends_with("1 problem; quarry pool repair puts it right")
        );
    }
}
