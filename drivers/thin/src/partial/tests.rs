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
}

#[test]
fn f1_what_a_partial_lender_does_not_hold_is_found_below_it() {
    let mut partials = PartialChunks::default();
    let mut begin = |chunk, of, lender| partials.begin(chunk, of, lender, Checksums::Off).unwrap();
    begin(5, blocks(1, 2), None);
    begin(6, blocks(0, 2), Some(5));
    begin(7, blocks(3, 1), Some(6));
    let view = partials.view(7).unwrap();
    let homes: Vec<_> = view.pieces(0..5 * 4096).collect();
    assert_eq!(
        homes,
        [
            (0..8192, Home::Lender(6)),
            (8192..12288, Home::Lender(5)),
            (12288..16384, Home::Own),
            (16384..20480, Home::Nowhere)
        ]
    );
}

#[test]
fn f2_no_more_than_so_many_lie_below_a_chunk_and_none_below_itself() {
    let mut partials = PartialChunks::default();
    let mut begin = |chunk, lender| partials.begin(chunk, blocks(0, 1), lender, Checksums::Off);
    let last = MOST_LENDERS as u64;
    for chunk in 1..=last {
        begin(chunk, Some(chunk - 1)).unwrap();
    }
    assert!(begin(last + 1, Some(last)).is_err());
    assert!(begin(last + 1, Some(last + 1)).is_err());
    assert!(begin(0, None).is_err(), "it lends");
    assert_eq!(partials.view(last).unwrap().lenders.len(), MOST_LENDERS);
    let decode = |partials: &PartialChunks| {
        let words = partials.encode(1);
        let mut rest = words.into_iter();
        PartialChunks::decode(1, || rest.next())
    };
    assert!(decode(&partials).is_ok());
    partials
        .insert(last + 1, BlockMask::default(), Some(last), Checksums::Off)
        .unwrap();
    assert!(decode(&partials).is_err());
}

#[test]
fn f3_a_partial_lender_without_an_owner_goes_with_its_loan_and_ends_its_own() {
    let mut partials = PartialChunks::default();
    let mut begin = |chunk, lender| {
        partials
            .begin(chunk, blocks(0, 1), lender, Checksums::Off)
            .unwrap()
    };
    begin(5, Some(4));
    begin(6, Some(5));
    begin(7, Some(6));
    for orphan in [4, 5, 6] {
        assert!(partials.release(orphan).unwrap().is_empty());
    }
    assert_eq!(
        partials.some_from(0, 9),
        [7],
        "who fills others fills nothing for nobody"
    );
    let freed = |freed: SmallVec<[Freed; 2]>| freed.iter().map(|freed| freed.chunk).collect::<Vec<_>>();
    // The one in the middle is whole: it borrows no more, and lends on.
    assert_eq!(freed(partials.add(5, blocks(1, 15), BLOCKS).unwrap()), [4]);
    assert_eq!(partials.view(7).unwrap().lenders.len(), 2);
    assert_eq!(freed(partials.add(7, blocks(1, 15), BLOCKS).unwrap()), [6, 5]);
    assert_eq!((partials.len(), partials.orphans().count()), (0, 0));
}

#[test]
fn f4_all_that_a_chunk_consists_of_is_known_to_be_read() {
    let mut partials = PartialChunks::default();
    let mut begin = |chunk, lender| {
        partials
            .begin(chunk, blocks(0, 1), lender, Checksums::Off)
            .unwrap()
    };
    begin(6, Some(5));
    begin(7, Some(6));
    let filling = partials.view(6);
    let reading = partials.view(7);
    for orphan in [5, 6] {
        assert!(partials.release(orphan).unwrap().is_empty());
    }
    let mut freed = partials.release(7).unwrap();
    assert_eq!(
        freed.iter().map(|freed| freed.chunk).collect::<Vec<_>>(),
        [7, 6, 5]
    );
    let mut used = || -> Vec<bool> {
        let used = |freed: &mut Freed| freed.users.iter_mut().any(|users| Arc::get_mut(users).is_none());
        freed.iter_mut().map(used).collect()
    };
    assert_eq!(used(), [true; 3]);
    drop(reading);
    assert_eq!(used(), [false, true, true]);
    drop(filling);
    assert_eq!(used(), [false; 3]);
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
    assert!(partials.add(7, blocks(1, 15), BLOCKS).unwrap().is_empty());
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
    assert!(partials.add(7, blocks(0, 16), BLOCKS).unwrap().is_empty());
    let mut freed = partials.release(3).unwrap();
    let [users] = freed[0].users.as_mut_slice() else {
        panic!("a reader is known");
    };
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
    let lends_to_itself = [2, 7, 9, 1, 9, 7, 1, 0];
    for wrong in [&lends_to_nobody[..], &lends_to_itself[..]] {
        assert!(decode(wrong).is_err(), "{wrong:?}");
    }
}
