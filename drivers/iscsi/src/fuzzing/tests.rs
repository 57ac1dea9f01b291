//! The corpus, and mutations of it from a fixed seed, so that what a fuzzer found once stays found.

use std::path::PathBuf;

/// Mutations of each file of the corpus; `QUARRY_FUZZ_ROUNDS` makes it more.
fn rounds(default: u64) -> u64 {
    let rounds = std::env::var("QUARRY_FUZZ_ROUNDS").ok();
    rounds.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A generator that a seed makes repeatable (Steele, Lea, Flood 2014: SplitMix64).
struct SplitMix(u64);

impl SplitMix {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() % bound as u64) as usize
    }
}

/// Values that stand at the edge of something.
const EDGES: [u8; 6] = [0x00, 0x01, 0x7f, 0x80, 0xc0, 0xff];

/// Changes up to eight places: bits, bytes, runs of bytes left out, doubled or taken from another input.
fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut SplitMix) {
    for _ in 0..=random.below(8) {
        if input.is_empty() {
            return;
        }
        let at = random.below(input.len());
        let len = (1 + random.below(64)).min(input.len() - at);
        match random.below(8) {
            0 => drop(input.drain(at..at + len)),
            1 => {
                let run = input[at..at + len].to_vec();
                input.splice(at..at, run);
            }
            2 if !other.is_empty() => {
                let from = random.below(other.len());
                let run = &other[from..(from + len).min(other.len())];
                let end = (at + run.len()).min(input.len());
                input.splice(at..end, run.iter().copied());
            }
            3 | 4 => input[at] = EDGES[random.below(EDGES.len())],
            5 => input[at] = random.next_u64() as u8,
            _ => input[at] ^= 1 << random.below(8),
        }
    }
}

/// Makes something happen before every fourth record or so of a session, and splits some in two.
fn make_happen(input: &mut [u8], random: &mut SplitMix) {
    let mut at = 0;
    while at + 3 <= input.len() {
        if random.below(4) == 0 {
            input[at] |= (1 + random.below(9) as u8) << 4;
        }
        if random.below(8) == 0 {
            input[at] |= 0x04;
        }
        at += 3 + usize::from(u16::from_be_bytes([input[at + 1], input[at + 2]]));
    }
}

/// Reads the corpus of a target.
fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    let read = |file: PathBuf| {
        let bytes = std::fs::read(&file).expect("a file");
        (file, bytes)
    };
    files.into_iter().map(read).collect()
}

/// Runs a target over its corpus and as many mutations of each file.
fn replay<R>(
    name: &str,
    rounds: u64,
    mutate: impl Fn(&mut Vec<u8>, &[u8], &mut SplitMix),
    target: fn(&[u8]) -> R,
) {
    let corpus = corpus(name);
    let mut random = SplitMix(1);
    for (file, input) in &corpus {
        let try_one = |what: &str, input: &[u8]| {
            let run = std::panic::AssertUnwindSafe(|| target(input));
            if let Err(panic) = std::panic::catch_unwind(run) {
                eprintln!("{} {what}: {}", file.display(), hex::encode(input));
                std::panic::resume_unwind(panic);
            }
        };
        try_one("as it is", input);
        for round in 0..rounds {
            let mut mutation = input.clone();
            let (_, other) = &corpus[random.below(corpus.len())];
            mutate(&mut mutation, other, &mut random);
            try_one(&format!("in round {round}"), &mutation);
        }
    }
}

#[test]
fn headers_and_texts_of_any_kind_are_taken_or_refused() {
    replay("pdu", rounds(2000), mutate, super::pdu);
}

#[test]
fn no_login_of_any_kind_gets_in_without_proof() {
    replay("login", rounds(2000), mutate, super::login);
}

#[test]
fn cdbs_and_parameter_lists_of_any_kind_are_taken_or_refused() {
    replay("cdb", rounds(2000), mutate, super::cdb);
}

#[test]
fn sessions_with_traffic_of_any_kind_answer_in_order_and_end() {
    replay("session", rounds(40), mutate, super::session);
}

#[test]
fn sessions_end_whatever_happens_to_them_at_any_time() {
    replay(
        "session",
        rounds(20),
        |input, _, random| make_happen(input, random),
        super::session,
    );
}

#[test]
fn seeds_get_past_the_login() {
    for (file, input) in corpus("session") {
        if !file.to_string_lossy().contains("regression-") {
            assert!(super::session(&input) > 0, "{} is worth little", file.display());
        }
    }
}
