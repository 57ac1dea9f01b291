//! From a login to a session: what a connection does before its full feature phase.

use std::sync::Arc;

use super::Message;
use super::connection::{Closed, Connection, Phase, Surroundings};
use super::outbox::Digests;
use crate::exports::{Registered, Registration};
use crate::login::{Admitted, LoginStatus, Reply, SessionKind, Step};
use crate::negotiation::Parameters;
use crate::pass::Pass;
use crate::pdu::{Bhs, Login, LoginResponse};
use crate::scsi::LogicalUnit;
use crate::session::{Medium, Numbers, Role, Session};

impl Connection {
    /// Takes a login request.
    pub(super) fn login_step(&mut self, login: &Login, around: &mut Surroundings<'_>) -> Result<(), Closed> {
        let Phase::Login(machine) = &mut self.phase else {
            return Ok(());
        };
        if around.shared.is_stopping() {
            self.refuse(login, LoginStatus::ServiceUnavailable);
            return Ok(());
        }
        if login.tsih != 0 {
            // One connection a session: there is none to join, and none to take over at this recovery level.
            self.refuse(login, LoginStatus::SessionDoesNotExist);
            return Ok(());
        }
        let mut random = [0; 33];
        (around.shared.random)(&mut random)?;
        let exports = &around.shared.exports;
        match machine.step(login, &self.collected, exports, || random) {
            Step::Continue(reply) => self.answer_login(login, reply, 0),
            Step::Complete(reply, admitted) => self.admit(*admitted, reply, *login, around)?,
            Step::Fail(status) => self.refuse(login, status),
        }
        Ok(())
    }

    fn answer_login(&mut self, login: &Login, reply: Reply, tsih: u16) {
        let response = LoginResponse {
            transit: reply.transit,
            more_text: false,
            current_stage: reply.current_stage,
            next_stage: reply.next_stage,
            isid: login.isid,
            tsih,
            itt: login.itt,
            status: 0,
            data_bytes: reply.text.len(),
        };
        let header = self.encode_login(&response, login.cmd_sn);
        self.outbox.small(&header, reply.text);
    }

    fn refuse(&mut self, login: &Login, status: LoginStatus) {
        let response = LoginResponse {
            transit: false,
            more_text: false,
            current_stage: login.current_stage & 1,
            next_stage: 0,
            isid: login.isid,
            tsih: login.tsih,
            itt: login.itt,
            status: status as u16,
            data_bytes: 0,
        };
        let header = self.encode_login(&response, login.cmd_sn);
        self.outbox.header(&header);
        self.ending = Some(status);
        self.close_after_flush = true;
    }

    fn encode_login(&mut self, response: &LoginResponse, cmd_sn: u32) -> Bhs {
        let numbers = Numbers::new(self.next_stat_sn, cmd_sn);
        self.next_stat_sn = self.next_stat_sn.wrapping_add(1);
        response.encode(numbers.peek())
    }

    /// Makes a session of a login, now or when the initiator's old session has ended (RFC 7143 6.3.5).
    fn admit(
        &mut self,
        admitted: Admitted,
        reply: Reply,
        login: Login,
        around: &mut Surroundings<'_>,
    ) -> Result<(), Closed> {
        let (target, grant, parameters) = match &admitted.kind {
            SessionKind::Discovery { username } => {
                let role = Role::Discovery {
                    initiator: admitted.initiator.clone(),
                    username: username.clone(),
                };
                // A discovery session is not registered: nothing of it can be taken away.
                around.counters.login(None);
                self.start_session(&login, reply, 1, admitted.parameters, role);
                return Ok(());
            }
            SessionKind::Normal { target, grant } => (target, *grant, admitted.parameters),
        };
        let ends = (self.peer, self.portal);
        let exports = &around.shared.exports;
        let who = (&admitted.initiator, grant);
        match exports.register(target, who, admitted.isid, self.address, ends) {
            Registered::Live(export, Registration { tsih, nexus, device }) => {
                let queue = around.devices.attach(&export, &device);
                let unit = LogicalUnit::new(Arc::clone(&export.identity), device);
                around.counters.login(None);
                tracing::info!(volume = %export.volume, initiator = %admitted.initiator, peer = %self.peer,
                    tsih, "session opened");
                let medium = Medium::new(unit, export, (nexus, tsih), queue, self.address);
                self.start_session(&login, reply, tsih, parameters, Role::Normal(Box::new(medium)));
            }
            Registered::After(old) => {
                let (shared, own) = (Arc::clone(around.shared), self.address);
                let pass = Pass::then(move || {
                    let message = Message::OldSessionEnded {
                        index: own.index,
                        serial: own.serial,
                    };
                    shared.send(own.reactor, message);
                });
                self.phase = Phase::Reinstating(Box::new((admitted, reply, login)));
                around.shared.send(
                    old.reactor,
                    Message::CloseSession {
                        index: old.index,
                        serial: old.serial,
                        pass,
                    },
                );
            }
            Registered::Refused(status) => self.refuse(&login, status),
        }
        Ok(())
    }

    /// Goes on with a login that waited for the initiator's old session to end.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn old_session_ended(&mut self, around: &mut Surroundings<'_>) -> Result<(), Closed> {
        let phase = std::mem::replace(&mut self.phase, Phase::Login(Box::default()));
        match phase {
            Phase::Reinstating(waiting) => {
                let (admitted, reply, login) = *waiting;
                self.admit(admitted, reply, login, around)
            }
            other => {
                self.phase = other;
                Ok(())
            }
        }
    }

    fn start_session(&mut self, login: &Login, reply: Reply, tsih: u16, parameters: Parameters, role: Role) {
        self.answer_login(login, reply, tsih);
        let numbers = Numbers::new(self.next_stat_sn, login.cmd_sn);
        self.digests = Digests {
            header: parameters.header_digest,
            data: parameters.data_digest,
        };
        self.outbox.digests = self.digests;
        self.phase = Phase::Session(Box::new(Session::new(parameters, numbers, role, self.local)));
    }
}
