//! A login without I/O.

use quarry_contract::InitiatorName;

use super::pdu::check_agreed;
use super::world::{self, INITIATOR, USER};
use crate::chap::{Algorithm, Challenge, Credentials, binary};
use crate::login::{Admission, Authority, GrantId, LoginMachine, SessionKind, Step};
use crate::pdu::{BHS_BYTES, Bhs, Lengths, Request, padded};
use crate::text;

const GRANT: GrantId = GrantId(1);

/// The targets that [`INITIATOR`] is granted, and others.
struct Grants;

impl Authority for Grants {
    fn admission(&self, target: &str, initiator: &InitiatorName) -> Admission {
        if target == world::target_name(3) {
            return Admission::Removed;
        }
        match world::target_name(1) == target {
            true if initiator.as_str() == INITIATOR => Admission::Granted(world::credentials(), GRANT),
            true => Admission::NotGranted,
            false => Admission::Unknown,
        }
    }

    fn credentials_of(&self, initiator: &InitiatorName) -> Vec<Credentials> {
        match initiator.as_str() {
            INITIATOR => vec![world::credentials()],
            _ => Vec::new(),
        }
    }
}

/// Takes the PDUs of a login, one after the other.
pub fn login(mut input: &[u8]) {
    let mut machine = LoginMachine::new();
    let mut told = Vec::new();
    let mut stage = None;
    for steps in 1.. {
        let Some((request, text)) = take(&mut input) else {
            return;
        };
        told.extend_from_slice(text);
        if !request.more_text {
            // Not every initiator ends its last pair.
            told.push(0);
        }
        let step = machine.step(&request, text, &Grants, world::challenge);
        let reply = match &step {
            Step::Fail(_) => return,
            Step::Continue(reply) | Step::Complete(reply, _) => reply,
        };
        assert!(steps <= 64, "a login has an end");
        assert!(stage.is_none_or(|stage| stage == request.current_stage), "L3");
        assert_eq!(reply.current_stage, request.current_stage, "L3");
        assert!(!reply.transit || request.transit, "L3");
        let next = if reply.transit {
            request.next_stage
        } else {
            request.current_stage
        };
        assert_eq!(reply.next_stage, next, "L3");
        let answers = text::parse(&reply.text).expect("an answer obeys the grammar");
        if answers.iter().any(|(key, _)| *key == "CHAP_R") {
            assert!(has_proof(&told), "L4");
        }
        stage = Some(next);
        if let Step::Complete(_, admitted) = step {
            check_agreed(&admitted.parameters);
            assert_eq!(next, 3, "L3");
            let proved = has_proof(&told);
            match &admitted.kind {
                SessionKind::Normal { target, grant } => {
                    assert_eq!(*grant, GRANT, "L1");
                    assert_eq!(*target, world::target_name(1), "L1");
                    assert_eq!(admitted.initiator.as_str(), INITIATOR, "L1");
                    assert!(proved, "L1");
                }
                SessionKind::Discovery { username: Some(name) } => {
                    assert!(proved && name == USER, "L2");
                }
                SessionKind::Discovery { username: None } => {}
            }
            return;
        }
    }
}

/// Takes one login request and its text off the input.
fn take<'a>(input: &mut &'a [u8]) -> Option<(crate::pdu::Login, &'a [u8])> {
    let (bhs, rest): (&Bhs, _) = input.split_first_chunk::<BHS_BYTES>()?;
    let Ok(Request::Login(request)) = Request::parse(bhs) else {
        return None;
    };
    let bytes = Lengths::of(bhs).data_bytes;
    let text = rest.get(..bytes)?;
    *input = rest.get(padded(bytes)..).unwrap_or_default();
    Some((request, text))
}

/// Tells, without the machine's help, whether what an initiator has said holds the user and a right response.
fn has_proof(told: &[u8]) -> bool {
    let initiator = world::credentials().initiator;
    let right: Vec<Vec<u8>> = [
        Algorithm::Md5,
        Algorithm::Sha1,
        Algorithm::Sha256,
        Algorithm::Sha3_256,
    ]
    .map(|algorithm| Challenge::new(algorithm, world::challenge()).response(&initiator))
    .to_vec();
    let values = |key: &str| {
        let prefix = format!("{key}=");
        let parts = told.split(|byte| *byte == 0);
        let parts = parts.filter_map(|part| std::str::from_utf8(part).ok());
        let values = parts.filter_map(|part| Some(part.strip_prefix(&prefix)?.to_owned()));
        values.collect::<Vec<String>>()
    };
    values("CHAP_N").contains(&initiator.username)
        && values("CHAP_R")
            .iter()
            .filter_map(|value| binary(value))
            .any(|response| right.contains(&response))
}
