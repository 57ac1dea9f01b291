//! Random sequences of calls with the agent killed at random moments: whatever happens, the state is the one
//! before the interrupted call or the one after it, the repeated call answers as if nothing had happened, and
//! data that was flushed is where the model says.
//!
//! `QUARRY_CALLS` sets the number of calls, `QUARRY_SEED` the sequence; a failure prints both.

mod model;
mod player;

use std::time::{SystemTime, UNIX_EPOCH};

use crate::dice::Dice;
use model::Model;
use player::Player;

/// How many calls one run makes unless told otherwise: about a minute on two cores.
const DEFAULT_CALLS: u64 = 250;

fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_calls_and_kills_leave_the_state_of_the_model() {
    let calls = number_from_environment("QUARRY_CALLS").unwrap_or(DEFAULT_CALLS);
    let seed = number_from_environment("QUARRY_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    println!("QUARRY_SEED={seed} QUARRY_CALLS={calls}");

    let temporary = tempfile::tempdir().unwrap();
    let mut dice = Dice::new(seed);
    let mut model = Model::default();
    let mut player = Player::start(&temporary.path().join("agent")).await;
    for number in 0..calls {
        let call = model.roll_call(&mut dice);
        let before = model.clone();
        let expected = model.apply(&call);
        println!("{number}: {call:?} -> {expected:?}");
        if !dice.chance(1, 4) {
            player.call(&call, &expected).await;
            continue;
        }
        let answered = player.call_and_kill(&call, &expected, &mut dice).await;
        player.restart(&mut dice).await;
        let found = player.state().await;
        if answered || found != before.state() {
            assert_eq!(
                found,
                model.state(),
                "neither the state before {call:?} nor the one after it"
            );
        }
        player.check_connection_info().await;
        player.call(&call, &expected).await;
        assert_eq!(player.state().await, model.state(), "after repeating {call:?}");
        if let Some(volume) = call.volume() {
            player.check_volume_data(&mut model, volume).await;
        }
        if let Some(snapshot) = dice.pick(&model.snapshot_ids()) {
            player.check_snapshot_data(&model, snapshot, &mut dice).await;
        }
    }
    player.restart(&mut dice).await;
    assert_eq!(player.state().await, model.state());
    for volume in model.volume_ids() {
        player.check_volume_data(&mut model, volume).await;
    }
    for snapshot in model.snapshot_ids() {
        player.check_snapshot_data(&model, snapshot, &mut dice).await;
    }
    println!(
        "{calls} calls, {} kills, {} of them in a start",
        player.kills, player.kills_in_start
    );
}
