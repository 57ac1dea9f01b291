//! Pages handed out, held and given back.

use std::sync::atomic::Ordering;

use super::*;
use crate::FormatOptions;

fn geometry() -> Geometry {
    let options = FormatOptions {
        log_bytes: 64 << 10,
        ..FormatOptions::default()
    };
    Geometry::new(4 << 20, &options).unwrap()
}

#[test]
fn p1_pages_come_in_pairs_from_different_chunks_and_return_when_settled() {
    let geometry = geometry();
    let mut space = Space::new(geometry.chunk_count);
    let mut pages = PageSpace::default();
    let free = space.free();
    let mut reservation = pages.reserve(&geometry, &mut space, 20).unwrap();
    assert_eq!(space.free(), free - 4);
    let mut used = Vec::new();
    for _ in 0..17 {
        let (first, second) = reservation.next().unwrap();
        assert_ne!(
            geometry.locate_page(first).unwrap().0,
            geometry.locate_page(second).unwrap().0
        );
        used.push(PagePointer {
            first,
            second,
            birth: 0,
            crc32c: 0,
        });
    }
    let after = pages.after(&geometry, &reservation, 0, &[]).unwrap();
    pages.settle(after, &mut space, false);
    assert_eq!(pages.used_pages(), 34);
    assert!(pages.is_used(&geometry, used[16].first, CopyClass::First));
    assert!(!pages.is_used(&geometry, used[16].first, CopyClass::Second));
    let reservation = pages.reserve(&geometry, &mut space, 1).unwrap();
    let after = pages.after(&geometry, &reservation, 0, &used[..16]).unwrap();
    assert_eq!(pages.used_pages(), 36, "nothing is free before it is settled");
    pages.settle(after, &mut space, false);
    assert_eq!((pages.used_pages(), pages.chunk_count()), (2, 2));
    let reservation = Reservation::default();
    for wrong in [
        &used[..1],
        &[used[16], used[16]],
        &[PagePointer { first: 1, ..used[16] }],
    ] {
        assert!(
            pages.after(&geometry, &reservation, 0, wrong).is_err(),
            "{wrong:?}"
        );
    }
    assert!(pages.reserve(&geometry, &mut space, 10_000).is_none());
    assert_eq!(space.free(), free - 2, "a refused reservation takes nothing");
}

/// Writes so many pages in a checkpoint that frees others, and returns their pointers.
fn checkpoint(
    geometry: &Geometry,
    (space, pages): (&mut Space, &mut PageSpace),
    new: usize,
    freed: &[PagePointer],
) -> Vec<PagePointer> {
    let mut reservation = pages.reserve(geometry, space, new as u64).unwrap();
    let pair = |(first, second)| PagePointer {
        first,
        second,
        ..PagePointer::NONE
    };
    let written = (0..new).map(|_| pair(reservation.next().unwrap())).collect();
    let after = pages.after(geometry, &reservation, 0, freed).unwrap();
    pages.settle(after, space, false);
    written
}

#[test]
fn p2_p3_a_held_page_is_not_handed_out_until_it_gives_way_or_is_let_go() {
    let geometry = geometry();
    let per_chunk = geometry.pages_per_chunk() as usize;
    for gives_way in [true, false] {
        let mut space = Space::new(geometry.chunk_count);
        let mut pages = PageSpace::default();
        let free = space.free();
        let old = checkpoint(&geometry, (&mut space, &mut pages), per_chunk + 3, &[]);
        let gave_way = pages.hold();
        assert!(!pages.give_way(&mut space), "nothing would be gained");
        // One chunk of each class is emptied, another keeps a page.
        let now = checkpoint(&geometry, (&mut space, &mut pages), 1, &old[..per_chunk + 2]);
        let is_old = |page: &PagePointer| old.iter().any(|old| old.first == page.first);
        assert!(!now.iter().any(is_old), "P2");
        assert_eq!((space.held(), space.free()), (2, free - 4), "P2: chunks");
        let more = checkpoint(&geometry, (&mut space, &mut pages), per_chunk - 4, &[]);
        assert!(!more.iter().any(is_old), "P2");
        assert_eq!(
            pages.chunks_needed(&geometry, 1),
            2,
            "two pages are left, and both are held"
        );
        if gives_way {
            assert!(pages.give_way(&mut space) && !pages.give_way(&mut space), "P3");
        } else {
            pages.let_go(&mut space, false);
        }
        assert_eq!(gave_way.load(Ordering::SeqCst), gives_way, "P3");
        assert_eq!((space.held(), space.free()), (0, free - 2));
        let again = checkpoint(&geometry, (&mut space, &mut pages), 2, &[]);
        assert!(again.iter().all(is_old), "they are free again");
    }
}

#[test]
fn p3_a_checkpoint_takes_the_space_that_is_held() {
    let geometry = geometry();
    let all = geometry.chunk_count as usize / 2 * geometry.pages_per_chunk() as usize;
    let mut space = Space::new(geometry.chunk_count);
    let mut pages = PageSpace::default();
    let old = checkpoint(&geometry, (&mut space, &mut pages), all / 2, &[]);
    let gave_way = pages.hold();
    checkpoint(&geometry, (&mut space, &mut pages), all / 4, &old);
    assert!(!gave_way.load(Ordering::SeqCst));
    checkpoint(&geometry, (&mut space, &mut pages), all / 2, &[]);
    assert!(gave_way.load(Ordering::SeqCst));
}
