use quarry_contract::ChapCredentials;

use super::*;

const INITIATOR: &str = "iqn.2026-11.test:host";
const TARGET: &str = "iqn.2026-11.io.quarry:volume-1";

struct OneExport;

fn chap(username: &str, secret: &str) -> ChapCredentials {
    ChapCredentials {
        username: username.to_owned(),
        secret: secret.to_owned().into(),
    }
}

fn credentials() -> Credentials {
    Credentials {
        initiator: chap("user", "secret-secret-16"),
        target: Some(chap("target", "target-secret-16")),
    }
}

impl Authority for OneExport {
    fn admission(&self, target: &str, initiator: &InitiatorName) -> Admission {
        match (target, initiator.as_str()) {
            (TARGET, INITIATOR) => Admission::Granted(credentials(), GrantId(1)),
            (TARGET, _) => Admission::NotGranted,
            ("iqn.2026-11.io.quarry:volume-2", _) => Admission::Removed,
            ("iqn.2026-11.io.quarry:volume-3", _) => Admission::Unavailable,
            _ => Admission::Unknown,
        }
    }

    fn credentials_of(&self, initiator: &InitiatorName) -> Vec<Credentials> {
        if initiator.as_str() == INITIATOR {
            vec![credentials()]
        } else {
            vec![]
        }
    }
}

/// A login request: stage, next stage if it transits.
fn request(stage: u8, next: Option<u8>) -> Login {
    Login {
        transit: next.is_some(),
        more_text: false,
        current_stage: stage,
        next_stage: next.unwrap_or(0),
        version_min: 0,
        isid: [0x40, 0, 0, 1, 0, 0],
        tsih: 0,
        itt: 1,
        cid: 0,
        cmd_sn: 1,
        exp_stat_sn: 0,
    }
}

fn step(machine: &mut LoginMachine, request: Login, pairs: &[(&str, &str)]) -> Step {
    let mut text = TextWriter::default();
    for (key, value) in pairs {
        text.pair(key, value);
    }
    machine.step(&request, &text.into_bytes(), &OneExport, || [7; 33])
}

fn hello(target: &str) -> [(&str, &str); 4] {
    [
        ("InitiatorName", INITIATOR),
        ("TargetName", target),
        ("SessionType", "Normal"),
        ("AuthMethod", "CHAP,None"),
    ]
}

fn answer(secret: &str) -> String {
    let challenge = Challenge::new(Algorithm::Md5, [7; 33]);
    format!("0x{}", hex::encode(challenge.response(&chap("", secret))))
}

/// Text of a reply as pairs.
fn pairs(step: &Step) -> Vec<(String, String)> {
    let reply = match step {
        Step::Continue(reply) | Step::Complete(reply, _) => reply,
        Step::Fail(status) => panic!("login failed with {status:?}"),
    };
    let parsed = text::parse(&reply.text).unwrap();
    parsed
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// Walks to the challenge.
fn challenged() -> LoginMachine {
    let mut machine = LoginMachine::new();
    let first = step(&mut machine, request(0, Some(1)), &hello(TARGET));
    assert_eq!(
        pairs(&first),
        [
            ("TargetPortalGroupTag".to_owned(), "1".to_owned()),
            ("AuthMethod".into(), "CHAP".into())
        ]
    );
    assert!(matches!(&first, Step::Continue(reply) if !reply.transit));
    let second = step(&mut machine, request(0, None), &[("CHAP_A", "5")]);
    assert_eq!(pairs(&second)[0], ("CHAP_A".to_owned(), "5".to_owned()));
    machine
}

#[test]
fn initiator_with_the_right_secret_reaches_the_full_feature_phase() {
    let mut machine = challenged();
    let proof = [("CHAP_N", "user"), ("CHAP_R", &answer("secret-secret-16"))];
    let third = step(&mut machine, request(0, Some(1)), &proof);
    assert!(matches!(&third, Step::Continue(reply) if reply.transit && reply.next_stage == 1));
    let keys = [
        ("MaxRecvDataSegmentLength", "262144"),
        ("InitialR2T", "No"),
        ("X-new", "1"),
    ];
    let last = step(&mut machine, request(1, Some(3)), &keys);
    let told = pairs(&last);
    assert!(told.contains(&("InitialR2T".into(), "No".into())));
    assert!(told.contains(&("X-new".into(), "NotUnderstood".into())));
    assert!(told.contains(&("MaxRecvDataSegmentLength".into(), "1048576".into())));
    let Step::Complete(_, admitted) = last else {
        panic!("not complete")
    };
    assert_eq!(
        admitted.kind,
        SessionKind::Normal {
            target: TARGET.into(),
            grant: GrantId(1),
        }
    );
    assert_eq!(admitted.initiator.as_str(), INITIATOR);
    assert_eq!(admitted.parameters.send_segment_bytes, 262_144);
    assert!(!admitted.parameters.initial_r2t);
}

#[test]
fn wrong_secret_wrong_user_and_missing_answers_fail_authentication() {
    let right = answer("secret-secret-16");
    let wrong = answer("other");
    let attempts: [&[(&str, &str)]; 5] = [
        &[("CHAP_N", "user"), ("CHAP_R", &wrong)],
        &[("CHAP_N", "other"), ("CHAP_R", &right)],
        &[("CHAP_N", "user")],
        &[("CHAP_N", "user"), ("CHAP_R", "garbage")],
        &[],
    ];
    for attempt in attempts {
        let mut machine = challenged();
        assert_eq!(
            step(&mut machine, request(0, Some(1)), attempt),
            Step::Fail(LoginStatus::AuthenticationFailed)
        );
    }
}

#[test]
fn target_proves_itself_to_an_initiator_that_asks() {
    // From Python's hashlib over b"\x01" + b"target-secret-16" + b"\xde\xad".
    let known = [
        ("5", MD5_RESPONSE),
        ("6", SHA1_RESPONSE),
        ("7", SHA256_RESPONSE),
        ("8", SHA3_256_RESPONSE),
    ];
    for (algorithm, right) in known {
        let mut machine = LoginMachine::new();
        step(&mut machine, request(0, None), &hello(TARGET));
        step(&mut machine, request(0, None), &[("CHAP_A", algorithm)]);
        let challenge = Challenge::new(Algorithm::choose(algorithm).unwrap(), [7; 33]);
        let response = hex::encode(challenge.response(&credentials().initiator));
        let proof = [
            ("CHAP_N", "user"),
            ("CHAP_R", &format!("0x{response}")),
            ("CHAP_I", "1"),
            ("CHAP_C", "0xdead"),
        ];
        let third = step(&mut machine, request(0, None), &proof);
        let own = [("CHAP_N", "target".to_owned()), ("CHAP_R", format!("0x{right}"))];
        assert_eq!(pairs(&third), own.map(|(key, value)| (key.to_owned(), value)));
        // It is up to the initiator to go on, or not.
        let fourth = step(&mut machine, request(0, Some(1)), &[]);
        assert!(matches!(&fourth, Step::Continue(reply) if reply.transit && reply.next_stage == 1));
    }
}

const MD5_RESPONSE: &str = "390f5c8860fd01f5b2ebbac2f66962dd";
const SHA1_RESPONSE: &str = "ffcb000a4ddcd0f943859ea406f63e9cd592fe49";
const SHA256_RESPONSE: &str = "0285546a42737401c2deaddf82162ed3e0a832c115ff71e22e1220ffc30b14b9";
const SHA3_256_RESPONSE: &str = "63804d8279667e3ec520d75c01b5dfd64135c3634831deb554434aedce959923";

#[test]
fn target_does_not_prove_itself_to_strangers_nor_answer_its_own_challenge() {
    let right = answer("secret-secret-16");
    let wrong = answer("target-secret-16");
    let reflected = format!("0x{}", "07".repeat(32));
    let attempts: [&[(&str, &str)]; 5] = [
        &[("CHAP_R", &wrong), ("CHAP_I", "1"), ("CHAP_C", "0xdead")],
        &[("CHAP_R", &right), ("CHAP_I", "7"), ("CHAP_C", &reflected)],
        &[("CHAP_R", &right), ("CHAP_I", "1")],
        &[("CHAP_R", &right), ("CHAP_C", "0xdead")],
        &[("CHAP_R", &right), ("CHAP_I", "1"), ("CHAP_C", "")],
    ];
    for attempt in attempts {
        let mut machine = challenged();
        let attempt = [&[("CHAP_N", "user")], attempt].concat();
        assert_eq!(
            step(&mut machine, request(0, Some(1)), &attempt),
            Step::Fail(LoginStatus::AuthenticationFailed),
            "{attempt:?}"
        );
    }
}

#[test]
fn grant_without_credentials_of_the_target_fails_an_initiator_that_asks_for_them() {
    struct OneWay;
    impl Authority for OneWay {
        fn admission(&self, _: &str, _: &InitiatorName) -> Admission {
            let credentials = Credentials {
                target: None,
                ..credentials()
            };
            Admission::Granted(credentials, GrantId(1))
        }
        fn credentials_of(&self, _: &InitiatorName) -> Vec<Credentials> {
            Vec::new()
        }
    }
    for (asks, fails) in [(true, true), (false, false)] {
        let mut machine = LoginMachine::new();
        let mut go = |pairs: &[(&str, &str)]| {
            let mut text = TextWriter::default();
            pairs.iter().for_each(|(key, value)| text.pair(key, value));
            machine.step(&request(0, None), &text.into_bytes(), &OneWay, || [7; 33])
        };
        go(&hello(TARGET));
        go(&[("CHAP_A", "5")]);
        let response = answer("secret-secret-16");
        let proof = [
            ("CHAP_N", "user"),
            ("CHAP_R", response.as_str()),
            ("CHAP_I", "1"),
            ("CHAP_C", "0xdead"),
        ];
        let last = go(&proof[..if asks { 4 } else { 2 }]);
        assert_eq!(
            matches!(last, Step::Fail(LoginStatus::AuthenticationFailed)),
            fails
        );
    }
}

#[test]
fn normal_session_without_chap_is_refused_in_every_way_of_asking() {
    let mut none = LoginMachine::new();
    let mut offer = hello(TARGET);
    offer[3] = ("AuthMethod", "None");
    assert_eq!(
        step(&mut none, request(0, Some(1)), &offer),
        Step::Fail(LoginStatus::AuthenticationFailed)
    );
    let mut silent = LoginMachine::new();
    assert_eq!(
        step(&mut silent, request(0, Some(3)), &hello(TARGET)[..3]),
        Step::Fail(LoginStatus::AuthenticationFailed)
    );
    let mut skips = LoginMachine::new();
    assert_eq!(
        step(&mut skips, request(1, Some(3)), &hello(TARGET)[..3]),
        Step::Fail(LoginStatus::AuthenticationFailed)
    );
    let mut leaps = challenged();
    assert_eq!(
        step(&mut leaps, request(1, Some(3)), &[]),
        Step::Fail(LoginStatus::InvalidDuringLogin)
    );
}

#[test]
fn targets_that_are_unknown_removed_unavailable_or_for_others_have_their_own_status() {
    let cases = [
        ("iqn.2026-11.io.quarry:none", LoginStatus::NotFound),
        ("iqn.2026-11.io.quarry:volume-2", LoginStatus::TargetRemoved),
        ("iqn.2026-11.io.quarry:volume-3", LoginStatus::ServiceUnavailable),
    ];
    for (target, status) in cases {
        let mut machine = LoginMachine::new();
        assert_eq!(
            step(&mut machine, request(0, Some(1)), &hello(target)),
            Step::Fail(status)
        );
    }
    let mut stranger = hello(TARGET);
    stranger[0].1 = "iqn.2026-11.test:stranger";
    let mut machine = LoginMachine::new();
    assert_eq!(
        step(&mut machine, request(0, Some(1)), &stranger),
        Step::Fail(LoginStatus::NotAuthorized)
    );
}

#[test]
fn missing_names_bad_stages_and_bad_text_end_the_login() {
    let fail = |request: Login, pairs: &[(&str, &str)]| {
        let mut machine = LoginMachine::new();
        match step(&mut machine, request, pairs) {
            Step::Fail(status) => status,
            other => panic!("{other:?}"),
        }
    };
    let all = hello(TARGET);
    assert_eq!(fail(request(0, None), &all[1..]), LoginStatus::MissingParameter);
    assert_eq!(fail(request(0, None), &all[..1]), LoginStatus::MissingParameter);
    assert_eq!(fail(request(2, None), &all), LoginStatus::InitiatorError);
    assert_eq!(fail(request(1, Some(0)), &all), LoginStatus::InitiatorError);
    assert_eq!(fail(request(0, Some(2)), &all), LoginStatus::InitiatorError);
    let newer = Login {
        version_min: 1,
        ..request(0, None)
    };
    assert_eq!(fail(newer, &all), LoginStatus::UnsupportedVersion);
    let mut odd = all;
    odd[2] = ("SessionType", "Other");
    assert_eq!(fail(request(0, None), &odd), LoginStatus::SessionTypeNotSupported);
    let mut machine = LoginMachine::new();
    assert_eq!(
        machine.step(&request(0, None), b"rubbish", &OneExport, || [0; 33]),
        Step::Fail(LoginStatus::InitiatorError)
    );
}

#[test]
fn text_may_come_in_pieces_but_not_without_end() {
    let mut machine = LoginMachine::new();
    let more = Login {
        more_text: true,
        ..request(0, None)
    };
    let text = format!("InitiatorName={INITIATOR}\0TargetName={TARGET}\0AuthMethod=CHAP\0");
    let (head, tail) = text.as_bytes().split_at(20);
    let Step::Continue(reply) = machine.step(&more, head, &OneExport, || [0; 33]) else {
        panic!("refused")
    };
    assert!(reply.text.is_empty());
    let Step::Continue(reply) = machine.step(&request(0, None), tail, &OneExport, || [0; 33]) else {
        panic!("refused")
    };
    assert!(reply.text.ends_with(b"AuthMethod=CHAP\0"));

    let mut flood = LoginMachine::new();
    let filler = vec![b'x'; 8000];
    let last = (0..3)
        .map(|_| flood.step(&more, &filler, &OneExport, || [0; 33]))
        .last();
    assert_eq!(last, Some(Step::Fail(LoginStatus::InitiatorError)));
}

#[test]
fn discovery_may_go_without_chap_and_tells_whether_it_did() {
    let hello = [
        ("InitiatorName", INITIATOR),
        ("SessionType", "Discovery"),
        ("AuthMethod", "None"),
    ];
    let mut machine = LoginMachine::new();
    assert!(matches!(
        step(&mut machine, request(0, Some(1)), &hello),
        Step::Continue(_)
    ));
    let Step::Complete(_, admitted) = step(&mut machine, request(1, Some(3)), &[]) else {
        panic!("not complete")
    };
    assert_eq!(admitted.kind, SessionKind::Discovery { username: None });

    let mut direct = LoginMachine::new();
    assert!(matches!(
        step(&mut direct, request(1, Some(3)), &hello[..2]),
        Step::Complete(..)
    ));

    let mut chap = LoginMachine::new();
    let offer = [hello[0], hello[1], ("AuthMethod", "CHAP,None")];
    step(&mut chap, request(0, None), &offer);
    step(&mut chap, request(0, None), &[("CHAP_A", "5")]);
    let proof = [("CHAP_N", "user"), ("CHAP_R", &answer("secret-secret-16"))];
    let Step::Complete(_, admitted) = step(&mut chap, request(0, Some(3)), &proof) else {
        panic!("not complete")
    };
    assert_eq!(
        admitted.kind,
        SessionKind::Discovery {
            username: Some("user".into())
        }
    );
}
