//! The scripted initiator, and how it finds the target of a [`Rig`].
#![allow(dead_code, reason = "each test binary uses a part")]

mod wire;

pub use wire::*;

use crate::rig::{INITIATOR, Rig, SECRET, USER};

impl Login {
    pub fn to(rig: &Rig) -> Self {
        Self {
            initiator: INITIATOR.to_owned(),
            target: rig.name(),
            user: USER.to_owned(),
            secret: SECRET.to_owned(),
            isid: [0x40, 0, 0, 0, 0, 1],
            keys: Self::usual_keys(),
        }
    }
}

impl Client {
    /// Logs in, and clears the unit attention of a new nexus.
    pub fn login(rig: &Rig) -> Self {
        Self::log_in(rig, &Login::to(rig)).expect("the login succeeds")
    }

    pub fn log_in(rig: &Rig, login: &Login) -> Result<Self, u16> {
        Self::log_in_at(rig.address(), login)
    }
}
