//! Text requests in the full feature phase: SendTargets, and declarations (RFC 7143 6.2, Appendix C).

use super::{Io, Role, Session, Violation};
use crate::login::PORTAL_GROUP;
use crate::negotiation::Answer;
use crate::pdu::{NO_TAG, Text, TextResponse};
use crate::text::{self, EXCHANGE_BYTES, TextWriter};

/// A text exchange that takes several PDUs in either direction.
#[derive(Debug, Default)]
pub struct TextExchange {
    incoming: Vec<u8>,
    /// What is left to send, and the tag under which the initiator asks for it.
    outgoing: Option<(u32, Vec<u8>)>,
}

impl Session {
    pub(super) fn text_request(
        &mut self,
        request: &Text,
        data: &mut Vec<u8>,
        io: &mut Io<'_>,
    ) -> Result<(), Violation> {
        if !self.takes(request.cmd_sn, request.immediate)? {
            return Ok(());
        }
        // A new exchange ends the one before (RFC 7143 11.10.4).
        if let Some((tag, rest)) = self.text.outgoing.take()
            && request.ttt == tag
        {
            self.text_answer(request, rest, io);
            return Ok(());
        }
        if self.text.incoming.len() + data.len() > EXCHANGE_BYTES {
            return Err(Violation::Text);
        }
        self.text.incoming.append(data);
        if request.more_text {
            let ttt = self.next_transfer_tag();
            self.text_response(request, false, ttt, Vec::new(), io);
            return Ok(());
        }
        let incoming = std::mem::take(&mut self.text.incoming);
        let pairs = text::parse(&incoming).map_err(|_| Violation::Text)?;
        let mut answer = TextWriter::default();
        for (key, value) in pairs {
            match key {
                "SendTargets" => self.send_targets(value, &mut answer, io),
                "MaxRecvDataSegmentLength" => {
                    if self.parameters.offer(key, value) == Answer::Invalid {
                        return Err(Violation::Text);
                    }
                }
                // What else there is can be negotiated at login only.
                _ => answer.pair(key, "Reject"),
            }
        }
        self.text_answer(request, answer.into_bytes(), io);
        Ok(())
    }

    /// Sends an answer, in pieces as long as the initiator takes.
    fn text_answer(&mut self, request: &Text, mut answer: Vec<u8>, io: &mut Io<'_>) {
        let limit = self.parameters.send_segment_bytes as usize;
        if answer.len() <= limit {
            self.text_response(request, request.last, NO_TAG, answer, io);
            return;
        }
        let rest = answer.split_off(limit);
        let ttt = self.next_transfer_tag();
        self.text_response(request, false, ttt, answer, io);
        self.text.outgoing = Some((ttt, rest));
    }

    fn text_response(&mut self, request: &Text, last: bool, ttt: u32, text: Vec<u8>, io: &mut Io<'_>) {
        let more_text = ttt != NO_TAG && !request.more_text;
        let response = TextResponse {
            last,
            more_text,
            lun: request.lun,
            itt: request.itt,
            ttt,
            data_bytes: text.len(),
        };
        let header = response.encode(self.numbers.respond());
        io.outbox.small(&header, text);
    }

    /// Lists the targets this session may know of (RFC 7143 Appendix C).
    fn send_targets(&self, wanted: &str, answer: &mut TextWriter, io: &Io<'_>) {
        let visible = match &self.role {
            Role::Discovery { initiator, username } => {
                io.shared.exports.visible_to(initiator, username.as_deref())
            }
            Role::Normal(medium) => vec![medium.target_name().to_owned()],
        };
        let all = match &self.role {
            Role::Discovery { .. } => wanted == "All",
            // In a normal session only its own target, by name or by an empty value.
            Role::Normal(_) => wanted.is_empty(),
        };
        let wanted = wanted.to_lowercase();
        for name in visible.iter().filter(|name| all || **name == wanted) {
            answer.pair("TargetName", name);
            for portal in io.shared.portals() {
                let mut address = portal.0;
                if address.ip().is_unspecified() {
                    address.set_ip(self.local.ip());
                }
                answer.pair("TargetAddress", format_args!("{address},{PORTAL_GROUP}"));
            }
        }
    }
}
