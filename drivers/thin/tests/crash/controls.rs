//! Negative controls: media that lie, so that the suites are seen to notice.

use quarry_thin::sim::{Setup, Violation, WithChecksums, World};

/// Runs the crash suite on a medium on which every `k`-th flush does nothing.
fn lives_on_a_lying_medium(seed: u64, k: u64, checksums: WithChecksums) -> Result<(), Violation> {
    let mut world = World::begin(Setup {
        checksums,
        ..Setup::roomy(seed)
    })?;
    world.device().ignore_every_flush(k);
    for life in 0..4 {
        world.device().cut_power_at(20 + 17 * life + seed % 13);
        world.run(60)?;
        world.recover()?;
    }
    Ok(())
}

fn violations(k: u64, checksums: WithChecksums) -> usize {
    (0..60)
        .filter(|seed| {
            let judge = || lives_on_a_lying_medium(*seed, k, checksums).is_err();
            // An engine that panics over what cannot be has noticed too.
            std::panic::catch_unwind(judge).unwrap_or(true)
        })
        .count()
}

#[test]
fn dropped_flushes_are_noticed() {
    for checksums in [WithChecksums::None, WithChecksums::All] {
        for k in [1, 2, 3] {
            let found = violations(k, checksums);
            assert!(
                found >= 10,
                "every {k}th flush dropped: noticed in {found} of 60 seeds, checksums: {checksums:?}"
            );
        }
        assert_eq!(violations(u64::MAX, checksums), 0, "an honest medium");
    }
}
