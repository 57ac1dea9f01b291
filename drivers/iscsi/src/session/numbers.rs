//! The command and status numbers of a session (RFC 7143 4.2.2).
//!
//! Invariants
//! - N1: a command is taken in the order of its number, once; one outside the window leaves no trace.
//! - N2: MaxCmdSN never goes back. It moves on as tasks end, which is how a slow medium slows its initiators.

use crate::pdu::{Sequence, serial_before};

/// Commands that an initiator may have outstanding.
pub const WINDOW: u32 = 128;

/// See the module.
#[derive(Debug, Clone)]
pub struct Numbers {
    next_stat_sn: u32,
    exp_cmd_sn: u32,
    /// Tasks that hold a place in the window.
    held: u32,
}

/// What to do with a request, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It is its turn.
    Take,
    /// It is outside the window or was taken before (RFC 7143 4.2.2.1: silently ignored).
    Ignore,
    /// Requests before it are missing. On one connection nothing can bring them any more.
    Gap,
}

impl Numbers {
    /// Starts with the numbers the login ended with.
    pub fn new(next_stat_sn: u32, exp_cmd_sn: u32) -> Self {
        Self {
            next_stat_sn,
            exp_cmd_sn,
            held: 0,
        }
    }

    fn max_cmd_sn(&self) -> u32 {
        self.exp_cmd_sn
            .wrapping_add(WINDOW.saturating_sub(self.held))
            .wrapping_sub(1)
    }

    /// Takes a request's number (N1).
    pub fn order(&mut self, cmd_sn: u32, immediate: bool) -> Order {
        if immediate {
            return Order::Take;
        }
        if serial_before(cmd_sn, self.exp_cmd_sn) || serial_before(self.max_cmd_sn(), cmd_sn) {
            return Order::Ignore;
        }
        if cmd_sn != self.exp_cmd_sn {
            return Order::Gap;
        }
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        Order::Take
    }

    /// A task takes a place in the window.
    pub fn hold(&mut self) {
        self.held += 1;
    }

    /// A task gives its place back.
    pub fn release(&mut self) {
        self.held -= 1;
    }

    /// Numbers a response.
    pub fn respond(&mut self) -> Sequence {
        let sequence = self.peek();
        self.next_stat_sn = self.next_stat_sn.wrapping_add(1);
        sequence
    }

    /// The numbers for a PDU that has no status number of its own.
    pub fn peek(&self) -> Sequence {
        Sequence {
            stat_sn: self.next_stat_sn,
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_in_order_and_within_the_window_across_the_wrap() {
        let mut numbers = Numbers::new(1, 0xffff_ffff);
        assert_eq!(numbers.order(0xffff_fffe, false), Order::Ignore);
        assert_eq!(numbers.order(0, false), Order::Gap);
        assert_eq!(
            numbers.order(0xffff_ffffu32.wrapping_add(WINDOW), false),
            Order::Ignore
        );
        assert_eq!(numbers.order(77, true), Order::Take);
        assert_eq!(numbers.order(0xffff_ffff, false), Order::Take);
        assert_eq!(numbers.order(0, false), Order::Take);
        assert_eq!(numbers.order(0, false), Order::Ignore);
    }

    #[test]
    fn window_closes_when_full_and_max_cmd_sn_never_goes_back() {
        let mut numbers = Numbers::new(1, 10);
        let mut last = numbers.peek().max_cmd_sn;
        for cmd_sn in 10..10 + WINDOW {
            assert_eq!(numbers.order(cmd_sn, false), Order::Take);
            numbers.hold();
            assert!(numbers.peek().max_cmd_sn >= last, "N2");
            last = numbers.peek().max_cmd_sn;
        }
        assert_eq!(numbers.order(10 + WINDOW, false), Order::Ignore);
        numbers.release();
        assert_eq!(numbers.order(10 + WINDOW, false), Order::Take);
    }
}
