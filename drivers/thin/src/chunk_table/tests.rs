use super::*;
use crate::FormatOptions;

fn decode<T>(words: &[u64], decode: impl Fn(&mut dyn FnMut() -> Option<u64>) -> Option<T>) -> Option<T> {
    let mut words = words.iter().copied();
    decode(&mut || words.next())
}

#[test]
fn links_and_the_walk_round_trip_and_are_not_taken_for_such_when_cut_short() {
    let node = NodeId;
    let mut links = Links::default();
    // A volume goes and a snapshot of it stays; then one that has never had any.
    links.retire(node(1), Some(node(5)), None, true);
    links.retire(node(9), Some(node(5)), None, true);
    assert_eq!((links.len(), links.heir(node(1))), (1, Some(node(5))));
    links.age();
    // The snapshot is merged into a child that has never written under that name.
    links.retire(node(5), None, Some(node(7)), false);
    assert_eq!((links.len(), links.heir(node(1))), (1, Some(node(7))));
    links.retire(node(8), None, Some(node(7)), true);
    let words = links.encode();
    assert_eq!(words.len() as u64, links.encoded_words());
    assert_eq!(decode(&words, |word| Links::decode(word)), Some(links.clone()));
    for cut in 0..words.len() {
        assert_eq!(decode(&words[..cut], |word| Links::decode(word)), None);
    }
    links.forget_old();
    assert_eq!((links.heir(node(1)), links.heir(node(8))), (None, Some(node(7))));

    let mut walk = TableWalk::beginning();
    assert!(walk.has_moved());
    walk.freeze();
    assert!(!walk.has_moved() && walk.is_under_way());
    let words = walk.encode();
    assert_eq!(decode(&words, |word| TableWalk::decode(word)), Some(walk));
    assert_eq!(decode(&words[..4], |word| TableWalk::decode(word)), None);
    assert_eq!(decode(&[4, 0, 0, 0, 0], |word| TableWalk::decode(word)), None);
}

#[test]
fn changed_pages_are_counted_once_and_a_table_says_how_long_it_gets() {
    let geometry = Geometry::new(8 << 30, &FormatOptions::default()).unwrap();
    let mut table = ChunkTable::default();
    let entry = ChunkEntry {
        name: 1,
        index: 2,
        birth: 3,
    };
    assert_eq!(table.pages_changed_by(0), 2);
    for chunk in [0, 1, 255, 0, TOP_CHUNKS - 1, TOP_CHUNKS] {
        table.add(chunk, entry);
    }
    assert_eq!(table.changed_pages(), 3 + 2);
    assert_eq!((table.pages_changed_by(7), table.pages_changed_by(300)), (0, 1));
    // Four top pages, and each of them lost too.
    let words = 2 + 4 * 3 + 4 * (3 + 1) + table.links.encoded_words() + 2 + TableWalk::WORDS;
    assert!(table.most_encoded_words(&geometry) >= words);
    assert!(!table.is_clean());
    table.freeze(BTreeSet::new());
    assert!(table.is_clean() && table.changed_pages() == 0);
}
