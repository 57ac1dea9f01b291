use quarry_contract::InitiatorName;

use super::*;
use crate::scsi::{Failure, Sense};

fn port(number: u8) -> InitiatorPort {
    InitiatorPort {
        name: InitiatorName::parse("iqn.2026-11.io.x:host").unwrap(),
        isid: [0x80, 0, 0, 0, 0, number],
    }
}

fn request(action: OutAction, kind: Option<Kind>, key: u64, action_key: u64) -> OutRequest {
    OutRequest {
        action,
        kind,
        key,
        action_key,
        persist: false,
        also: Vec::new(),
        destination: None,
        unregister: false,
    }
}

/// Carries out a command of a port.
fn out(
    state: &mut Reservations,
    number: u8,
    action: OutAction,
    kind: Option<Kind>,
    key: u64,
    action_key: u64,
) -> Result<Consequences, Failure> {
    state.carry_out(&port(number), &request(action, kind, key, action_key))
}

/// Ports 1 to 3 are registered with keys 1 to 3; the first holds a reservation of a type.
fn reserved(kind: Kind) -> Reservations {
    let mut state = Reservations::default();
    for number in 1..=3 {
        out(&mut state, number, OutAction::Register, None, 0, number.into()).unwrap();
    }
    out(&mut state, 1, OutAction::Reserve, Some(kind), 1, 0).unwrap();
    state
}

fn told(numbers: &[u8], notice: Notice) -> Vec<(InitiatorPort, Notice)> {
    numbers.iter().map(|number| (port(*number), notice)).collect()
}

#[test]
fn each_type_keeps_out_whom_the_standard_says() {
    // Registered nonholder: reads, writes; unregistered: reads, writes (SPC-4 table 66).
    for (kind, expected) in [
        (Kind::WriteExclusive, [true, false, true, false]),
        (Kind::ExclusiveAccess, [false, false, false, false]),
        (Kind::WriteExclusiveRegistrantsOnly, [true, true, true, false]),
        (Kind::ExclusiveAccessRegistrantsOnly, [true, true, false, false]),
        (Kind::WriteExclusiveAllRegistrants, [true, true, true, false]),
        (Kind::ExclusiveAccessAllRegistrants, [true, true, false, false]),
    ] {
        let state = reserved(kind);
        let may = |number, touch| !state.conflicts(&port(number), touch);
        assert!(
            may(1, Touch::Reads) && may(1, Touch::Writes),
            "{kind:?}: the holder"
        );
        let seen = [
            may(2, Touch::Reads),
            may(2, Touch::Writes),
            may(9, Touch::Reads),
            may(9, Touch::Writes),
        ];
        assert_eq!(seen, expected, "{kind:?}");
        assert!(may(9, Touch::Nothing) && may(9, Touch::Status), "{kind:?}");
    }
}

#[test]
fn register_needs_the_right_key_and_the_other_form_ignores_it() {
    let mut state = Reservations::default();
    let conflict = Err(Failure::Conflict);
    assert_eq!(out(&mut state, 1, OutAction::Register, None, 5, 7), conflict);
    out(&mut state, 1, OutAction::Register, None, 0, 7).unwrap();
    assert_eq!(out(&mut state, 1, OutAction::Register, None, 0, 8), conflict);
    out(&mut state, 1, OutAction::Register, None, 7, 8).unwrap();
    out(&mut state, 1, OutAction::RegisterAndIgnore, None, 99, 9).unwrap();
    assert_eq!(state.registrants()[0].key, 9);
    assert_eq!(state.generation(), 3, "refused commands do not count");
    out(&mut state, 1, OutAction::RegisterAndIgnore, None, 0, 0).unwrap();
    assert!(state.registrants().is_empty());
}

#[test]
fn register_takes_the_named_ports_along() {
    let mut state = Reservations::default();
    let mut register = request(OutAction::Register, None, 0, 4);
    register.also = vec![port(2), port(3)];
    state.carry_out(&port(1), &register).unwrap();
    assert_eq!(state.registrants().len(), 3);
    register.key = 4;
    let again = state.carry_out(&port(1), &register);
    assert_eq!(again, Err(Sense::INVALID_FIELD_IN_PARAMETERS.into()));
}

#[test]
fn only_registrants_reserve_and_only_when_nothing_else_is_reserved() {
    let mut state = reserved(Kind::WriteExclusive);
    let conflict = Err(Failure::Conflict);
    let reserve = |state: &mut Reservations, number, kind, key| {
        out(state, number, OutAction::Reserve, Some(kind), key, 0)
    };
    reserve(&mut state, 1, Kind::WriteExclusive, 1).expect("the same again");
    assert_eq!(reserve(&mut state, 1, Kind::ExclusiveAccess, 1), conflict);
    assert_eq!(reserve(&mut state, 2, Kind::WriteExclusive, 2), conflict);
    assert_eq!(reserve(&mut state, 9, Kind::WriteExclusive, 0), conflict);
    assert_eq!(
        reserve(&mut state, 2, Kind::WriteExclusive, 1),
        conflict,
        "wrong key"
    );
    let mut state = reserved(Kind::WriteExclusiveAllRegistrants);
    reserve(&mut state, 2, Kind::WriteExclusiveAllRegistrants, 2).expect("a holder like the others");
}

#[test]
fn release_tells_registrants_of_shared_types_only() {
    for kind in Kind::ALL {
        let mut state = reserved(kind);
        let wrong = match kind {
            Kind::WriteExclusive => Kind::ExclusiveAccess,
            _ => Kind::WriteExclusive,
        };
        let refused = out(&mut state, 1, OutAction::Release, Some(wrong), 1, 0);
        assert_eq!(refused, Err(Sense::INVALID_RELEASE.into()));
        if !kind.has_all_registrants() {
            out(&mut state, 2, OutAction::Release, Some(kind), 2, 0).unwrap();
            assert_eq!(state.kind(), Some(kind), "not the holder's");
        }
        let released = out(&mut state, 1, OutAction::Release, Some(kind), 1, 0).unwrap();
        assert_eq!(state.kind(), None);
        let expected = match kind.is_for_registrants() {
            true => told(&[2, 3], Notice::ReservationsReleased),
            false => Vec::new(),
        };
        assert_eq!(released.notices, expected, "{kind:?}");
        assert_eq!(state.registrants().len(), 3);
    }
}

#[test]
fn reservation_goes_with_its_holder_or_with_the_last_registrant() {
    let unregister = |state: &mut Reservations, number: u8| {
        out(state, number, OutAction::Register, None, number.into(), 0).unwrap()
    };
    let mut state = reserved(Kind::ExclusiveAccess);
    assert_eq!(unregister(&mut state, 1), Consequences::default());
    assert_eq!(state.kind(), None);

    let mut state = reserved(Kind::WriteExclusiveRegistrantsOnly);
    let gone = unregister(&mut state, 1);
    assert_eq!(gone.notices, told(&[2, 3], Notice::ReservationsReleased));

    let mut state = reserved(Kind::ExclusiveAccessAllRegistrants);
    unregister(&mut state, 1);
    unregister(&mut state, 2);
    assert!(state.is_holder(&port(3)));
    unregister(&mut state, 3);
    assert_eq!(state.kind(), None);
}

#[test]
fn clear_empties_everything_and_tells_the_others() {
    let mut state = reserved(Kind::ExclusiveAccess);
    let generation = state.generation();
    let cleared = out(&mut state, 2, OutAction::Clear, None, 2, 0).unwrap();
    assert_eq!(cleared.notices, told(&[1, 3], Notice::ReservationsPreempted));
    assert!(state.registrants().is_empty() && !state.restricts());
    assert_eq!(state.generation(), generation + 1);
}

#[test]
fn preempting_the_holder_takes_its_reservation() {
    let mut state = reserved(Kind::ExclusiveAccess);
    let kind = Some(Kind::WriteExclusiveRegistrantsOnly);
    let taken = out(&mut state, 2, OutAction::PreemptAndAbort, kind, 2, 1).unwrap();
    assert_eq!(taken.aborted, [port(1)]);
    let mut expected = told(&[3], Notice::ReservationsReleased);
    expected.extend(told(&[1], Notice::RegistrationsPreempted));
    assert_eq!(taken.notices, expected);
    assert!(state.is_holder(&port(2)));
    assert_eq!(state.kind(), kind);
    assert!(state.conflicts(&port(1), Touch::Writes));
}

#[test]
fn preempting_a_registrant_leaves_the_reservation() {
    let mut state = reserved(Kind::WriteExclusive);
    let kind = Some(Kind::ExclusiveAccess);
    let taken = out(&mut state, 2, OutAction::Preempt, kind, 2, 3).unwrap();
    assert_eq!(taken.notices, told(&[3], Notice::RegistrationsPreempted));
    assert!(taken.aborted.is_empty());
    assert_eq!(state.kind(), Some(Kind::WriteExclusive));
    assert!(state.is_holder(&port(1)));
    let none = out(&mut state, 2, OutAction::Preempt, kind, 2, 77);
    assert_eq!(none, Err(Failure::Conflict));
    let zero = out(&mut state, 2, OutAction::Preempt, kind, 2, 0);
    assert_eq!(zero, Err(Sense::INVALID_FIELD_IN_PARAMETERS.into()));
}

#[test]
fn preempting_all_registrants_leaves_one() {
    let mut state = reserved(Kind::WriteExclusiveAllRegistrants);
    let kind = Some(Kind::ExclusiveAccess);
    out(&mut state, 2, OutAction::Preempt, kind, 2, 3).unwrap();
    assert_eq!(state.kind(), Some(Kind::WriteExclusiveAllRegistrants));
    out(&mut state, 2, OutAction::Preempt, kind, 2, 0).unwrap();
    assert_eq!((state.kind(), state.registrants().len()), (kind, 1));
    assert!(state.is_holder(&port(2)));
}

#[test]
fn a_holder_may_preempt_itself_to_change_the_type() {
    let mut state = reserved(Kind::WriteExclusive);
    let kind = Some(Kind::ExclusiveAccess);
    let changed = out(&mut state, 1, OutAction::Preempt, kind, 1, 1).unwrap();
    assert_eq!(changed.notices, told(&[2, 3], Notice::ReservationsReleased));
    assert_eq!((state.kind(), state.is_holder(&port(1))), (kind, true));
}

#[test]
fn move_hands_the_reservation_over() {
    let mut state = reserved(Kind::WriteExclusive);
    let mut hand_over = request(OutAction::RegisterAndMove, None, 1, 40);
    hand_over.destination = Some(port(4));
    hand_over.unregister = true;
    state.carry_out(&port(1), &hand_over).unwrap();
    assert!(state.is_holder(&port(4)));
    assert_eq!(state.holder_key(), Some(40));
    assert_eq!(state.registrants().len(), 3);
    hand_over.key = 2;
    let not_holder = state.carry_out(&port(2), &hand_over);
    assert_eq!(not_holder, Err(Failure::Conflict));
    hand_over.key = 40;
    let to_itself = state.carry_out(&port(4), &hand_over);
    assert_eq!(to_itself, Err(Sense::INVALID_FIELD_IN_PARAMETERS.into()));
}

#[test]
fn reserve_6_keeps_all_others_out_until_released_or_reset() {
    let mut state = Reservations::default();
    state.reserve_unit(&port(1)).unwrap();
    state.reserve_unit(&port(1)).expect("the same again");
    assert_eq!(state.reserve_unit(&port(2)), Err(Failure::Conflict));
    assert!(state.conflicts(&port(2), Touch::Status));
    assert!(!state.conflicts(&port(2), Touch::Nothing) && !state.conflicts(&port(1), Touch::Writes));
    let persistent = out(&mut state, 1, OutAction::Register, None, 0, 1);
    assert_eq!(persistent, Err(Failure::Conflict), "R3");
    state.release_unit(&port(2));
    assert!(state.restricts(), "not the owner's");
    state.release_unit(&port(1));
    assert!(!state.restricts());
    state.reserve_unit(&port(2)).unwrap();
    state.reset();
    assert!(!state.restricts());
    out(&mut state, 1, OutAction::Register, None, 0, 1).unwrap();
    assert_eq!(state.reserve_unit(&port(1)), Err(Failure::Conflict), "R3");
}

#[test]
fn reports_show_keys_holder_types_and_ports() {
    let state = reserved(Kind::ExclusiveAccessRegistrantsOnly);
    let keys = state.report(InAction::ReadKeys);
    assert_eq!(keys[..8], [0, 0, 0, 3, 0, 0, 0, 24]);
    assert_eq!(keys[8..16], 1u64.to_be_bytes());
    let reservation = state.report(InAction::ReadReservation);
    assert_eq!(reservation.len(), 24);
    assert_eq!(
        (&reservation[8..16], reservation[21]),
        (&1u64.to_be_bytes()[..], 6)
    );
    let shared = reserved(Kind::ExclusiveAccessAllRegistrants).report(InAction::ReadReservation);
    assert_eq!((&shared[8..16], shared[21]), (&[0; 8][..], 8));
    assert_eq!(Reservations::default().report(InAction::ReadReservation).len(), 8);
    let capabilities = state.report(InAction::ReportCapabilities);
    assert_eq!(capabilities, [0, 8, 0x0d, 0xb0, 0xea, 0x01, 0, 0]);
    let full = state.report(InAction::ReadFullStatus);
    let descriptor = &full[8..];
    assert_eq!(descriptor[..8], 1u64.to_be_bytes());
    assert_eq!((descriptor[12], descriptor[13]), (1, 6));
    assert_eq!(descriptor[18..20], [0, 1]);
    let length = usize::from(descriptor[23]);
    assert_eq!(
        transport_id::parse(&descriptor[24..24 + length]).unwrap().0,
        port(1)
    );
    let second = &descriptor[24 + length..];
    assert_eq!((second[7], second[12]), (2, 0));
}

#[test]
fn what_is_kept_comes_back_as_it_was() {
    for kind in Kind::ALL {
        let mut state = reserved(kind);
        assert!(state.to_keep().is_empty(), "not asked for");
        let mut persist = request(OutAction::Register, None, 2, 2);
        persist.persist = true;
        state.carry_out(&port(2), &persist).unwrap();
        let kept = state.to_keep();
        let restored = Reservations::restore(&kept).unwrap();
        assert_eq!(restored.registrants(), state.registrants());
        assert_eq!(restored.kind(), Some(kind));
        assert!(restored.is_holder(&port(1)) && restored.is_persistent());
        assert_eq!(restored.generation(), 0, "as after a loss of power");
        assert_eq!(restored.to_keep(), kept);
        for length in 1..kept.len() {
            assert_eq!(Reservations::restore(&kept[..length]), None, "cut at {length}");
        }
        let longer = [&kept[..], &[0]].concat();
        assert_eq!(Reservations::restore(&longer), None);
    }
    assert_eq!(Reservations::restore(&[]), Some(Reservations::default()));
}

#[test]
fn an_initiator_that_is_forgotten_leaves_nothing_behind() {
    let mut state = reserved(Kind::WriteExclusiveRegistrantsOnly);
    let stranger = InitiatorPort {
        name: InitiatorName::parse("iqn.2026-11.io.x:other").unwrap(),
        isid: [1; 6],
    };
    state
        .carry_out(&stranger, &request(OutAction::Register, None, 0, 9))
        .unwrap();
    let gone = state.forget(&port(1).name);
    assert_eq!(gone.notices, [(stranger.clone(), Notice::ReservationsReleased)]);
    assert_eq!(state.registrants().len(), 1);
    assert_eq!(state.kind(), None);
    state.forget(&stranger.name);
    assert!(state.registrants().is_empty());
}
