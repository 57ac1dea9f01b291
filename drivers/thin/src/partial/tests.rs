use super::*;

const BLOCKS: u64 = 16;

fn blocks(first: u16, count: u16) -> Blocks {
    Blocks { first, count }
}

#[test]
fn f1_pieces_say_where_each_block_is() {
    let mut partials = PartialChunks::default();
    partials.begin(7, blocks(2, 2), Some(3), Checksums::Off).unwrap();
    let view = partials.view(7).unwrap();
    let pieces: Vec<_> = view.pieces(4096 + 512..5 * 4096).collect();
    assert_eq!(
        pieces,
        [
            (4608..8192, Home::Lender(3)),
            (8192..16384, Home::Own),
            (16384..20480, Home::Lender(3))
        ]
    );
    partials.begin(8, blocks(0, 1), None, Checksums::Off).unwrap();
    let pieces: Vec<_> = partials.view(8).unwrap().pieces(512..8192).collect();
    assert_eq!(pieces, [(512..4096, Home::Own), (4096..8192, Home::Nowhere)]);
    assert!(
        partials.begin(9, blocks(0, 1), Some(7), Checksums::Off).is_err(),
        "F2"
    );
}

#[test]
fn a_mask_as_runs_has_its_first_and_its_last_block() {
    let mut mask = BlockMask::default();
    assert_eq!(mask.runs().count(), 0);
    for of in [blocks(0, 1), blocks(62, 4), blocks(255, 1)] {
        mask.set(of);
    }
    assert_eq!(mask.runs().collect::<Vec<_>>(), [0..1, 62..66, 255..256]);
    mask.set(blocks(0, 256));
    let mut runs = mask.runs();
    assert_eq!((runs.next(), runs.next()), (Some(0..256), None));
}

#[test]
fn f3_a_lender_is_freed_by_the_end_of_its_last_loan() {
    let mut partials = PartialChunks::default();
    partials.begin(7, blocks(0, 1), Some(3), Checksums::Off).unwrap();
    partials.begin(8, blocks(0, 1), Some(3), Checksums::Off).unwrap();
    assert!(partials.release(3).unwrap().is_empty());
    assert!(partials.release(3).is_err());
    assert_eq!(partials.orphans().collect::<Vec<_>>(), [3]);
    assert!(partials.add(7, blocks(1, 15), BLOCKS).unwrap().is_none());
    let freed: Vec<u64> = partials
        .release(8)
        .unwrap()
        .iter()
        .map(|freed| freed.chunk)
        .collect();
    assert_eq!(freed, [8, 3]);
    assert_eq!((partials.len(), partials.orphans().count()), (0, 0));
}

#[test]
fn f4_a_lender_freed_after_its_loans_is_still_known_to_its_readers() {
    let mut partials = PartialChunks::default();
    partials.begin(7, blocks(0, 1), Some(3), Checksums::Off).unwrap();
    let view = partials.view(7);
    assert!(partials.add(7, blocks(0, 16), BLOCKS).unwrap().is_none());
    let mut freed = partials.release(3).unwrap();
    let users = freed[0].users.as_mut().expect("a reader is known");
    assert!(Arc::get_mut(users).is_none());
    drop(view);
    assert!(Arc::get_mut(users).is_some());
}

#[test]
fn partial_chunks_round_trip_and_damage_is_told() {
    let mut partials = PartialChunks::default();
    partials.begin(7, blocks(0, 1), Some(3), Checksums::Off).unwrap();
    partials.begin(9, blocks(15, 1), None, Checksums::Off).unwrap();
    assert!(partials.release(3).unwrap().is_empty());
    let words = partials.encode(1);
    assert!(words.len() <= partials.most_encoded_words(1));
    let decode = |words: &[u64]| {
        let mut rest = words.iter().copied();
        PartialChunks::decode(1, || rest.next()).map(|partials| partials.encode(1))
    };
    assert_eq!(decode(&words).unwrap(), words);
    for cut in 0..words.len() {
        assert!(decode(&words[..cut]).is_err(), "cut at {cut}");
    }
    let lends_to_nobody = [0, 1, 3];
    let lender_is_partial = [2, 7, 9, 1, 9, u64::MAX, 1, 0];
    for wrong in [&lends_to_nobody[..], &lender_is_partial[..]] {
        assert!(decode(wrong).is_err(), "{wrong:?}");
    }
}
