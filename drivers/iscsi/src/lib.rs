//! Quarry's native iSCSI target.
mod chap;
mod login;
mod negotiation;
mod pdu;
mod scsi;
mod text;
