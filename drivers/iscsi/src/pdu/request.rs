//! What an initiator sends (RFC 7143 11.3, 11.5, 11.7, 11.10, 11.12, 11.14, 11.16, 11.18).

use super::{Bhs, be16, be32, be64};

/// A header that is no request a target can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The opcode is unknown, or one that only a target sends.
    #[error("opcode {0:#04x} is not a request")]
    Opcode(u8),
    /// A SNACK: error recovery level 0 has none.
    #[error("SNACK is not supported at error recovery level 0")]
    Snack,
}

/// A request, its data segment not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A ping, or the answer to ours.
    NopOut(NopOut),
    /// A SCSI command.
    ScsiCommand(ScsiCommand),
    /// A task management function.
    TaskManagement(TaskManagement),
    /// A step of the login.
    Login(Login),
    /// Negotiation after the login, and SendTargets.
    Text(Text),
    /// Data of a write.
    DataOut(DataOut),
    /// The orderly end.
    Logout(Logout),
}

/// See [`Request::NopOut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NopOut {
    /// Delivered outside the command order.
    pub immediate: bool,
    /// The LUN field as sent.
    pub lun: u64,
    /// The initiator's tag; [`NO_TAG`](super::NO_TAG) asks for no answer.
    pub itt: u32,
    /// Our tag, when it answers a ping of ours.
    pub ttt: u32,
    /// The command's number.
    pub cmd_sn: u32,
    /// All responses before it have arrived.
    pub exp_stat_sn: u32,
}

/// See [`Request::ScsiCommand`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScsiCommand {
    /// Delivered outside the command order.
    pub immediate: bool,
    /// No unsolicited Data-Out follows.
    pub last: bool,
    /// The initiator expects to read.
    pub read: bool,
    /// The initiator expects to write.
    pub write: bool,
    /// The task attribute: 0 untagged, 1 simple, 2 ordered, 3 head of queue, 4 ACA.
    pub attribute: u8,
    /// The LUN field as sent.
    pub lun: u64,
    /// The initiator's tag.
    pub itt: u32,
    /// How much the initiator expects to transfer, in bytes.
    pub expected_bytes: u32,
    /// The command's number.
    pub cmd_sn: u32,
    /// All responses before it have arrived.
    pub exp_stat_sn: u32,
    /// The command descriptor block.
    pub cdb: [u8; 16],
}

/// What a task management request asks for (RFC 7143 11.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskFunction {
    /// Ends one task.
    AbortTask,
    /// Ends the tasks of this session on the LUN.
    AbortTaskSet,
    /// Ends auto contingent allegiance, which is never established here.
    ClearAca,
    /// Ends the tasks of all sessions on the LUN.
    ClearTaskSet,
    /// Resets the logical unit.
    LogicalUnitReset,
    /// Resets all logical units.
    TargetWarmReset,
    /// Resets all logical units and ends all sessions.
    TargetColdReset,
    /// Moves a task to another connection.
    TaskReassign,
    /// Any other code.
    Other(u8),
}

/// See [`Request::TaskManagement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskManagement {
    /// Delivered outside the command order.
    pub immediate: bool,
    /// What to do.
    pub function: TaskFunction,
    /// The LUN field as sent.
    pub lun: u64,
    /// The initiator's tag.
    pub itt: u32,
    /// The tag of the task to abort.
    pub referenced_task: u32,
    /// The request's number.
    pub cmd_sn: u32,
    /// All responses before it have arrived.
    pub exp_stat_sn: u32,
    /// The number of the command to abort.
    pub referenced_cmd_sn: u32,
}

/// See [`Request::Login`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Login {
    /// Asks to go to the next stage.
    pub transit: bool,
    /// The text goes on in the next request.
    pub more_text: bool,
    /// The current stage's code.
    pub current_stage: u8,
    /// The next stage's code; meaningful with `transit`.
    pub next_stage: u8,
    /// The lowest protocol version the initiator speaks.
    pub version_min: u8,
    /// The initiator's part of the session's name.
    pub isid: [u8; 6],
    /// The session to join; 0 makes a new one.
    pub tsih: u16,
    /// The initiator's tag.
    pub itt: u32,
    /// The connection's id.
    pub cid: u16,
    /// The number the first command will have.
    pub cmd_sn: u32,
    /// All responses before it have arrived.
    pub exp_stat_sn: u32,
}

/// See [`Request::Text`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text {
    /// Delivered outside the command order.
    pub immediate: bool,
    /// The last request of its exchange.
    pub last: bool,
    /// The text goes on in the next request.
    pub more_text: bool,
    /// The LUN field as sent.
    pub lun: u64,
    /// The initiator's tag.
    pub itt: u32,
    /// Our tag of the exchange it goes on with.
    pub ttt: u32,
    /// The request's number.
    pub cmd_sn: u32,
    /// All responses before it have arrived.
    pub exp_stat_sn: u32,
}

/// See [`Request::DataOut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataOut {
    /// The last of its sequence.
    pub last: bool,
    /// The initiator's tag of the command.
    pub itt: u32,
    /// Our tag of the R2T it answers; [`NO_TAG`](super::NO_TAG) when unsolicited.
    pub ttt: u32,
    /// All responses before it have arrived.
    pub exp_stat_sn: u32,
    /// Its number within the sequence.
    pub data_sn: u32,
    /// Where its data belongs, in bytes from the command's start.
    pub offset: u32,
}

/// See [`Request::Logout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logout {
    /// Delivered outside the command order.
    pub immediate: bool,
    /// 0 closes the session, 1 the connection, 2 removes the connection for recovery.
    pub reason: u8,
    /// The initiator's tag.
    pub itt: u32,
    /// The connection to close.
    pub cid: u16,
    /// The request's number.
    pub cmd_sn: u32,
    /// All responses before it have arrived.
    pub exp_stat_sn: u32,
}

impl Request {
    /// Parses a header.
    ///
    /// # Errors
    /// When the opcode is none that a target takes.
    pub fn parse(bhs: &Bhs) -> Result<Self, Malformed> {
        let immediate = bhs[0] & 0x40 != 0;
        let flags = bhs[1];
        let lun = be64(bhs, 8);
        let itt = be32(bhs, 16);
        let ttt = be32(bhs, 20);
        let cmd_sn = be32(bhs, 24);
        let exp_stat_sn = be32(bhs, 28);
        Ok(match bhs[0] & 0x3f {
            0x00 => Request::NopOut(NopOut {
                immediate,
                lun,
                itt,
                ttt,
                cmd_sn,
                exp_stat_sn,
            }),
            0x01 => {
                let mut cdb = [0; 16];
                cdb.copy_from_slice(&bhs[32..48]);
                Request::ScsiCommand(ScsiCommand {
                    immediate,
                    last: flags & 0x80 != 0,
                    read: flags & 0x40 != 0,
                    write: flags & 0x20 != 0,
                    attribute: flags & 0x07,
                    lun,
                    itt,
                    expected_bytes: ttt,
                    cmd_sn,
                    exp_stat_sn,
                    cdb,
                })
            }
            0x02 => Request::TaskManagement(TaskManagement {
                immediate,
                function: TaskFunction::of(flags & 0x7f),
                lun,
                itt,
                referenced_task: ttt,
                cmd_sn,
                exp_stat_sn,
                referenced_cmd_sn: be32(bhs, 32),
            }),
            0x03 => {
                let mut isid = [0; 6];
                isid.copy_from_slice(&bhs[8..14]);
                Request::Login(Login {
                    transit: flags & 0x80 != 0,
                    more_text: flags & 0x40 != 0,
                    current_stage: flags >> 2 & 0x03,
                    next_stage: flags & 0x03,
                    version_min: bhs[3],
                    isid,
                    tsih: be16(bhs, 14),
                    itt,
                    cid: be16(bhs, 20),
                    cmd_sn,
                    exp_stat_sn,
                })
            }
            0x04 => Request::Text(Text {
                immediate,
                last: flags & 0x80 != 0,
                more_text: flags & 0x40 != 0,
                lun,
                itt,
                ttt,
                cmd_sn,
                exp_stat_sn,
            }),
            0x05 => Request::DataOut(DataOut {
                last: flags & 0x80 != 0,
                itt,
                ttt,
                exp_stat_sn,
                data_sn: be32(bhs, 36),
                offset: be32(bhs, 40),
            }),
            0x06 => Request::Logout(Logout {
                immediate,
                reason: flags & 0x7f,
                itt,
                cid: be16(bhs, 20),
                cmd_sn,
                exp_stat_sn,
            }),
            0x10 => return Err(Malformed::Snack),
            opcode => return Err(Malformed::Opcode(opcode)),
        })
    }
}

impl TaskFunction {
    fn of(code: u8) -> Self {
        match code {
            1 => TaskFunction::AbortTask,
            2 => TaskFunction::AbortTaskSet,
            3 => TaskFunction::ClearAca,
            4 => TaskFunction::ClearTaskSet,
            5 => TaskFunction::LogicalUnitReset,
            6 => TaskFunction::TargetWarmReset,
            7 => TaskFunction::TargetColdReset,
            8 => TaskFunction::TaskReassign,
            other => TaskFunction::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scsi_command_fields_are_read_from_where_the_rfc_puts_them() {
        let mut bhs: Bhs = [0; 48];
        bhs[0] = 0x41;
        bhs[1] = 0x80 | 0x20 | 0x02;
        bhs[8..16].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        bhs[16..20].copy_from_slice(&0x1122_3344u32.to_be_bytes());
        bhs[20..24].copy_from_slice(&4096u32.to_be_bytes());
        bhs[24..28].copy_from_slice(&7u32.to_be_bytes());
        bhs[28..32].copy_from_slice(&9u32.to_be_bytes());
        bhs[32] = 0x2a;
        let Ok(Request::ScsiCommand(command)) = Request::parse(&bhs) else {
            panic!("not a command")
        };
        assert!(command.immediate && command.last && command.write && !command.read);
        assert_eq!(command.attribute, 2);
        assert_eq!(command.lun, 0x0001_0000_0000_0000);
        assert_eq!((command.itt, command.expected_bytes), (0x1122_3344, 4096));
        assert_eq!((command.cmd_sn, command.exp_stat_sn), (7, 9));
        assert_eq!(command.cdb[0], 0x2a);
    }

    #[test]
    fn opcodes_of_a_target_and_unknown_ones_are_malformed() {
        for opcode in [0x20u8, 0x21, 0x25, 0x31, 0x3f, 0x07, 0x1c] {
            let mut bhs: Bhs = [0; 48];
            bhs[0] = opcode;
            assert_eq!(Request::parse(&bhs), Err(Malformed::Opcode(opcode)));
        }
        let mut snack: Bhs = [0; 48];
        snack[0] = 0x10;
        assert_eq!(Request::parse(&snack), Err(Malformed::Snack));
    }
}
