//! Pins what commands print: each answer is compared with a plain file in `src/cli/golden/`, in both formats.
//! `UPDATE=1 cargo test -p quarry --lib cli` writes the files anew; read the difference before committing it.

use std::path::PathBuf;

use super::answer::{Answer, Format};

/// Compares both formats of an answer with `NAME.txt` and `NAME.json`.
pub fn assert_golden(name: &str, answer: &Answer) {
    assert_golden_text(&format!("{name}.txt"), answer.render(Format::Table));
    assert_golden_text(&format!("{name}.json"), answer.render(Format::Json));
}

/// Compares a text with a golden file.
pub fn assert_golden_text(file: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/cli/golden")
        .join(file);
    let text = format!("{text}\n");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text,
        golden,
        "{} differs; UPDATE=1 writes it anew",
        path.display()
    );
}
