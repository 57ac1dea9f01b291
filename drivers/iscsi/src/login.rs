//! The login as a state machine without I/O (RFC 7143 6.3, 12.1).
//!
//! [`LoginMachine::step`] takes one login request with its text and says what to answer. It walks
//! security negotiation → operational negotiation → full feature phase; a normal session passes the first only
//! by CHAP.
//!
//! Invariants
//! - L1: a normal session is admitted only by an initiator that is granted the target and has answered a
//!   challenge with that grant's credentials. Who registers the session checks that it is still that grant.
//! - L2: a discovery session that has answered a challenge sees the targets its credentials open; one that
//!   offered only `AuthMethod=None` sees the names of the targets granted to the initiator name it declares.
//!   Names are all it can get: the text phase has no way to data.
//! - L4: the target proves itself to who asks for it (mutual CHAP) and has proved itself in the same request, and to
//!   nobody else.
//! - L3: a request that leaves the order of stages, misses a key or is malformed ends the login with a status.

use quarry_contract::InitiatorName;

use crate::chap::{Algorithm, Challenge, Credentials, binary};
use crate::negotiation::{Answer, Parameters, RECEIVE_SEGMENT_BYTES};
use crate::pdu::Login;
use crate::text::{self, EXCHANGE_BYTES, TextWriter};

/// The portal group all our portals are in; there is one.
pub const PORTAL_GROUP: u16 = 1;

/// The most requests a login may take; the longest honest one has about ten.
const MAX_STEPS: u32 = 64;

/// Why a login ends (RFC 7143 11.13.5): class in the high byte, detail in the low one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum LoginStatus {
    /// The request is wrong.
    InitiatorError = 0x0200,
    /// Wrong user, wrong response, or no method we accept.
    AuthenticationFailed = 0x0201,
    /// The target is not for this initiator.
    NotAuthorized = 0x0202,
    /// There is no such target.
    NotFound = 0x0203,
    /// The target was here and is gone.
    TargetRemoved = 0x0204,
    /// Another protocol version.
    UnsupportedVersion = 0x0205,
    /// InitiatorName or TargetName is missing.
    MissingParameter = 0x0207,
    /// An unknown session type.
    SessionTypeNotSupported = 0x0209,
    /// The TSIH names no session.
    SessionDoesNotExist = 0x020a,
    /// The request does not belong here.
    InvalidDuringLogin = 0x020b,
    /// Not now, but later: the target is stopping, or has no access to the volume.
    ServiceUnavailable = 0x0301,
    /// No room for another session.
    OutOfResources = 0x0302,
}

/// What the machine asks about exports.
pub trait Authority {
    /// Looks up what an initiator may do with a target.
    fn admission(&self, target: &str, initiator: &InitiatorName) -> Admission;

    /// Returns the credentials of every grant that an initiator has on any target.
    fn credentials_of(&self, initiator: &InitiatorName) -> Vec<Credentials>;
}

/// Tells a grant with its credentials from all others, those of the same initiator before and after it included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantId(pub u64);

/// What [`Authority::admission`] finds.
pub enum Admission {
    /// The initiator is granted and must prove itself with these.
    Granted(Credentials, GrantId),
    /// Granted to others.
    NotGranted,
    /// Was here and is gone.
    Removed,
    /// Belongs here and cannot be had now.
    Unavailable,
    /// Never heard of.
    Unknown,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Answer and wait for the next request.
    Continue(Reply),
    /// Answer; the login is over and the session begins.
    Complete(Reply, Box<Admitted>),
    /// Answer with this status and close.
    Fail(LoginStatus),
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// The stage changes.
    pub transit: bool,
    /// The stage it answers in.
    pub current_stage: u8,
    /// The stage that follows.
    pub next_stage: u8,
    /// The text.
    pub text: Vec<u8>,
}

/// The outcome of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Who.
    pub initiator: InitiatorName,
    /// The initiator's part of the session's name.
    pub isid: [u8; 6],
    /// To what.
    pub kind: SessionKind,
    /// What was agreed on.
    pub parameters: Parameters,
}

/// What a session is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionKind {
    /// I/O with a target.
    Normal {
        /// The target's name.
        target: String,
        /// Whose credentials it has proved; it may be gone by now (L1).
        grant: GrantId,
    },
    /// SendTargets only.
    Discovery {
        /// The user that proved itself, or none (L2).
        username: Option<String>,
    },
}

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;

/// How far the initiator has proved itself.
enum Proof {
    NotAsked,
    MethodChosen,
    Challenged(Challenge),
    /// Proved; the user name when it was by CHAP.
    Given(Option<String>),
}

/// Who logs in to what; known from the first request.
struct Identity {
    initiator: InitiatorName,
    kind: SessionKind,
    credentials: Vec<Credentials>,
}

/// One connection's login.
pub struct LoginMachine {
    stage: Option<u8>,
    isid: [u8; 6],
    identity: Option<Identity>,
    proof: Proof,
    parameters: Parameters,
    segment_declared: bool,
    portal_group_told: bool,
    partial_text: Vec<u8>,
    steps: u32,
}

impl Default for LoginMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl LoginMachine {
    /// Starts a login.
    pub fn new() -> Self {
        Self {
            stage: None,
            isid: [0; 6],
            identity: None,
            proof: Proof::NotAsked,
            parameters: Parameters::default(),
            segment_declared: false,
            portal_group_told: false,
            partial_text: Vec::new(),
            steps: 0,
        }
    }

    /// Takes a request. `random` gives the bytes of a challenge.
    pub fn step(
        &mut self,
        request: &Login,
        text: &[u8],
        authority: &dyn Authority,
        random: impl FnOnce() -> [u8; 33],
    ) -> Step {
        match self.try_step(request, text, authority, random) {
            Ok(step) => step,
            Err(status) => Step::Fail(status),
        }
    }

    fn try_step(
        &mut self,
        request: &Login,
        text: &[u8],
        authority: &dyn Authority,
        random: impl FnOnce() -> [u8; 33],
    ) -> Result<Step, LoginStatus> {
        self.check_order(request)?;
        if self.partial_text.len() + text.len() > EXCHANGE_BYTES {
            return Err(LoginStatus::InitiatorError);
        }
        self.partial_text.extend_from_slice(text);
        let stage = request.current_stage;
        if request.more_text {
            return Ok(Step::Continue(Reply {
                transit: false,
                current_stage: stage,
                next_stage: stage,
                text: Vec::new(),
            }));
        }
        let text = std::mem::take(&mut self.partial_text);
        let pairs = text::parse(&text).map_err(|_| LoginStatus::InitiatorError)?;

        if self.identity.is_none() {
            self.identity = Some(identify(&pairs, authority)?);
        }
        let mut reply = TextWriter::default();
        if !self.portal_group_told {
            self.portal_group_told = true;
            if let Some(Identity {
                kind: SessionKind::Normal { .. },
                ..
            }) = &self.identity
            {
                reply.pair("TargetPortalGroupTag", PORTAL_GROUP);
            }
        }
        match stage {
            SECURITY => self.prove(&pairs, &mut reply, random)?,
            _ => self.require_proof()?,
        }
        self.negotiate(&pairs, stage, &mut reply)?;
        self.conclude(request, reply)
    }

    /// Checks that the request is one that may come now (L3).
    fn check_order(&mut self, request: &Login) -> Result<(), LoginStatus> {
        self.steps += 1;
        if request.version_min > 0 {
            return Err(LoginStatus::UnsupportedVersion);
        }
        let next = request.next_stage;
        let stage_order = matches!(request.current_stage, SECURITY | OPERATIONAL)
            && (!request.transit
                || (next > request.current_stage && matches!(next, OPERATIONAL | FULL_FEATURE)));
        if self.steps > MAX_STEPS || !stage_order || (request.transit && request.more_text) {
            return Err(LoginStatus::InitiatorError);
        }
        match self.stage {
            None => self.isid = request.isid,
            Some(stage) if stage == request.current_stage && self.isid == request.isid => {}
            Some(_) => return Err(LoginStatus::InvalidDuringLogin),
        }
        self.stage = Some(request.current_stage);
        Ok(())
    }

    /// Goes one step of AuthMethod and CHAP (RFC 7143 12.1).
    fn prove(
        &mut self,
        pairs: &[(&str, &str)],
        reply: &mut TextWriter,
        random: impl FnOnce() -> [u8; 33],
    ) -> Result<(), LoginStatus> {
        let failed = LoginStatus::AuthenticationFailed;
        let value = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let identity = self.identity.as_ref().expect("set before any stage is entered");
        match &self.proof {
            Proof::NotAsked => {
                let Some(offered) = value("AuthMethod") else {
                    return Ok(());
                };
                let discovery = matches!(identity.kind, SessionKind::Discovery { .. });
                let offers = |method: &str| offered.split(',').any(|entry| entry == method);
                // Discovery without credentials: an initiator with no grant yet has none to show (L2).
                let chap_possible = !discovery || !identity.credentials.is_empty();
                if offers("CHAP") && chap_possible {
                    reply.pair("AuthMethod", "CHAP");
                    self.proof = Proof::MethodChosen;
                } else if offers("None") && discovery {
                    reply.pair("AuthMethod", "None");
                    self.proof = Proof::Given(None);
                } else {
                    return Err(failed);
                }
            }
            Proof::MethodChosen => {
                let algorithm = value("CHAP_A").and_then(Algorithm::choose).ok_or(failed)?;
                let challenge = Challenge::new(algorithm, random());
                for (key, value) in challenge.keys() {
                    reply.pair(key, value);
                }
                self.proof = Proof::Challenged(challenge);
            }
            Proof::Challenged(challenge) => {
                let username = value("CHAP_N").ok_or(failed)?;
                let response = value("CHAP_R").and_then(binary).ok_or(failed)?;
                let counter = match (value("CHAP_I"), value("CHAP_C")) {
                    (None, None) => None,
                    (Some(identifier), Some(bytes)) => {
                        Some(challenge.counter(identifier, bytes).ok_or(failed)?)
                    }
                    _ => return Err(failed),
                };
                let answers = |c: &&Credentials| challenge.is_answered_by(username, &response, c);
                let credentials = identity.credentials.iter().find(answers).ok_or(failed)?;
                if let Some(counter) = counter {
                    let own = credentials.target.as_ref().ok_or(failed)?;
                    reply.pair("CHAP_N", &own.username);
                    reply.pair("CHAP_R", format!("0x{}", hex::encode(counter.response(own))));
                }
                self.proof = Proof::Given(Some(username.to_owned()));
            }
            Proof::Given(_) => {}
        }
        Ok(())
    }

    /// Refuses to go past the security stage without proof (L1).
    fn require_proof(&mut self) -> Result<(), LoginStatus> {
        match (&self.proof, &self.identity) {
            (Proof::Given(_), _) => Ok(()),
            // The security stage may be left out, which means AuthMethod=None (RFC 7143 6.3.2).
            (
                Proof::NotAsked,
                Some(Identity {
                    kind: SessionKind::Discovery { .. },
                    ..
                }),
            ) => {
                self.proof = Proof::Given(None);
                Ok(())
            }
            _ => Err(LoginStatus::AuthenticationFailed),
        }
    }

    /// Answers the operational keys.
    fn negotiate(
        &mut self,
        pairs: &[(&str, &str)],
        stage: u8,
        reply: &mut TextWriter,
    ) -> Result<(), LoginStatus> {
        const NOT_OPERATIONAL: [&str; 9] = [
            "InitiatorName",
            "TargetName",
            "SessionType",
            "AuthMethod",
            "CHAP_A",
            "CHAP_N",
            "CHAP_R",
            "CHAP_I",
            "CHAP_C",
        ];
        for (key, value) in pairs.iter().filter(|(key, _)| !NOT_OPERATIONAL.contains(key)) {
            match self.parameters.offer(key, value) {
                Answer::Value(answer) => reply.pair(key, answer),
                Answer::Declared => {}
                Answer::NotUnderstood => reply.pair(key, "NotUnderstood"),
                Answer::Invalid => return Err(LoginStatus::InitiatorError),
            }
        }
        if stage == OPERATIONAL && !self.segment_declared {
            self.segment_declared = true;
            self.parameters.receive_segment_bytes = RECEIVE_SEGMENT_BYTES;
            reply.pair("MaxRecvDataSegmentLength", RECEIVE_SEGMENT_BYTES);
        }
        Ok(())
    }

    /// Changes the stage if the initiator asks and nothing is left to do in this one.
    fn conclude(&mut self, request: &Login, reply: TextWriter) -> Result<Step, LoginStatus> {
        let stage = request.current_stage;
        let discovery_unasked = matches!(self.proof, Proof::NotAsked)
            && matches!(
                self.identity.as_ref().map(|identity| &identity.kind),
                Some(SessionKind::Discovery { .. })
            );
        if request.transit && discovery_unasked {
            self.proof = Proof::Given(None);
        }
        if request.transit && matches!(self.proof, Proof::NotAsked) {
            // It wants to leave the security stage without having offered a method.
            return Err(LoginStatus::AuthenticationFailed);
        }
        let transit = request.transit && matches!(self.proof, Proof::Given(_));
        let next_stage = if transit { request.next_stage } else { stage };
        let reply = Reply {
            transit,
            current_stage: stage,
            next_stage,
            text: reply.into_bytes(),
        };
        self.stage = Some(next_stage);
        if next_stage != FULL_FEATURE {
            return Ok(Step::Continue(reply));
        }
        let identity = self.identity.take().ok_or(LoginStatus::InvalidDuringLogin)?;
        let kind = match (identity.kind, &self.proof) {
            (SessionKind::Discovery { .. }, Proof::Given(username)) => SessionKind::Discovery {
                username: username.clone(),
            },
            (kind, _) => kind,
        };
        self.parameters.settle();
        let admitted = Admitted {
            initiator: identity.initiator,
            isid: self.isid,
            kind,
            parameters: self.parameters,
        };
        Ok(Step::Complete(reply, Box::new(admitted)))
    }
}

/// Reads who logs in to what from the first request (RFC 7143 6.3: the leading login).
fn identify(pairs: &[(&str, &str)], authority: &dyn Authority) -> Result<Identity, LoginStatus> {
    let value = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
    let initiator = value("InitiatorName").ok_or(LoginStatus::MissingParameter)?;
    let initiator = InitiatorName::parse(initiator).map_err(|_| LoginStatus::InitiatorError)?;
    match value("SessionType") {
        Some("Discovery") => Ok(Identity {
            credentials: authority.credentials_of(&initiator),
            initiator,
            kind: SessionKind::Discovery { username: None },
        }),
        None | Some("Normal") => {
            let target = value("TargetName")
                .ok_or(LoginStatus::MissingParameter)?
                .to_lowercase();
            let (credentials, grant) = match authority.admission(&target, &initiator) {
                Admission::Granted(credentials, grant) => (credentials, grant),
                Admission::NotGranted => return Err(LoginStatus::NotAuthorized),
                Admission::Removed => return Err(LoginStatus::TargetRemoved),
                Admission::Unavailable => return Err(LoginStatus::ServiceUnavailable),
                Admission::Unknown => return Err(LoginStatus::NotFound),
            };
            Ok(Identity {
                initiator,
                kind: SessionKind::Normal { target, grant },
                credentials: vec![credentials],
            })
        }
        Some(_) => Err(LoginStatus::SessionTypeNotSupported),
    }
}

#[cfg(test)]
mod tests;
