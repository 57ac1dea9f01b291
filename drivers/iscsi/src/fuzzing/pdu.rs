//! Headers and texts.

use crate::negotiation::{Answer, Parameters};
use crate::pdu::{BHS_BYTES, Bhs, Lengths, Malformed, Request};
use crate::text::{self, EXCHANGE_BYTES, TextWriter};

/// Takes one header, and what follows as a text and its keys as offers.
pub fn pdu(input: &[u8]) {
    let Some((header, rest)) = input.split_first_chunk::<BHS_BYTES>() else {
        return;
    };
    check_header(header);
    check_text(&rest[..rest.len().min(EXCHANGE_BYTES)]);
}

fn check_header(bhs: &Bhs) {
    let lengths = Lengths::of(bhs);
    assert!(lengths.ahs_bytes <= 1020 && lengths.data_bytes <= 0xff_ffff);
    let opcode = bhs[0] & 0x3f;
    let parsed = match Request::parse(bhs) {
        Ok(Request::NopOut(_)) => 0x00,
        Ok(Request::ScsiCommand(_)) => 0x01,
        Ok(Request::TaskManagement(_)) => 0x02,
        Ok(Request::Login(_)) => 0x03,
        Ok(Request::Text(_)) => 0x04,
        Ok(Request::DataOut(_)) => 0x05,
        Ok(Request::Logout(_)) => 0x06,
        Err(Malformed::Snack) => 0x10,
        Err(Malformed::Opcode(opcode)) => {
            assert!(opcode > 0x06 && opcode != 0x10);
            opcode
        }
    };
    assert_eq!(parsed, opcode);
}

fn check_text(bytes: &[u8]) {
    let Ok(pairs) = text::parse(bytes) else { return };
    let mut writer = TextWriter::default();
    let mut parameters = Parameters::default();
    for (key, value) in &pairs {
        writer.pair(key, value);
        if let Answer::Value(answer) = parameters.offer(key, value) {
            let mut reply = TextWriter::default();
            reply.pair(key, &answer);
            assert_eq!(
                text::parse(&reply.into_bytes()),
                Ok(vec![(*key, answer.as_str())])
            );
        }
    }
    assert_eq!(text::parse(&writer.into_bytes()).as_ref(), Ok(&pairs));
    parameters.settle();
    check_agreed(&parameters);
}

/// Asserts that what was agreed on is what the keys may be (RFC 7143 13.12 to 13.14).
pub fn check_agreed(parameters: &Parameters) {
    let legal = 512..=0xff_ffff;
    assert!(legal.contains(&parameters.send_segment_bytes), "{parameters:?}");
    assert!(
        legal.contains(&parameters.receive_segment_bytes),
        "{parameters:?}"
    );
    assert!(legal.contains(&parameters.max_burst_bytes), "{parameters:?}");
    assert!(legal.contains(&parameters.first_burst_bytes), "{parameters:?}");
    assert!(
        parameters.first_burst_bytes <= parameters.max_burst_bytes,
        "{parameters:?}"
    );
}
