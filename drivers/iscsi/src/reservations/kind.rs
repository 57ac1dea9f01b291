//! The types of persistent reservation, and which commands they keep out (SPC-4 5.12.1, SBC-3 4.17).

/// A type of persistent reservation (SPC-4 6.15.3.4), of the whole unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// One holder writes, all read.
    WriteExclusive = 1,
    /// One holder reads and writes.
    ExclusiveAccess = 3,
    /// Registrants write, all read.
    WriteExclusiveRegistrantsOnly = 5,
    /// Registrants read and write.
    ExclusiveAccessRegistrantsOnly = 6,
    /// Registrants write, all read; every registrant is a holder.
    WriteExclusiveAllRegistrants = 7,
    /// Registrants read and write; every registrant is a holder.
    ExclusiveAccessAllRegistrants = 8,
}

/// What a command does that a reservation may keep out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// Nothing: it is let through always.
    Nothing,
    /// It asks for the unit's state; only RESERVE (6) keeps it out.
    Status,
    /// It reads the medium.
    Reads,
    /// It changes the medium, its caches or the unit's parameters.
    Writes,
}

impl Kind {
    /// Every type.
    pub const ALL: [Kind; 6] = [
        Kind::WriteExclusive,
        Kind::ExclusiveAccess,
        Kind::WriteExclusiveRegistrantsOnly,
        Kind::ExclusiveAccessRegistrantsOnly,
        Kind::WriteExclusiveAllRegistrants,
        Kind::ExclusiveAccessAllRegistrants,
    ];

    /// Reads a TYPE field.
    pub fn parse(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Tells whether every registrant is a holder.
    pub fn has_all_registrants(self) -> bool {
        matches!(
            self,
            Kind::WriteExclusiveAllRegistrants | Kind::ExclusiveAccessAllRegistrants
        )
    }

    /// Tells whether registrants that are not holders are let through.
    pub fn is_for_registrants(self) -> bool {
        !matches!(self, Kind::WriteExclusive | Kind::ExclusiveAccess)
    }

    /// Tells whether a command of a port that is not let through as such conflicts.
    pub fn keeps_out(self, touch: Touch) -> bool {
        let exclusive_access = matches!(
            self,
            Kind::ExclusiveAccess
                | Kind::ExclusiveAccessRegistrantsOnly
                | Kind::ExclusiveAccessAllRegistrants
        );
        match touch {
            Touch::Nothing | Touch::Status => false,
            Touch::Reads => exclusive_access,
            Touch::Writes => true,
        }
    }
}
