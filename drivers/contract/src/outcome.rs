/// What an idempotent call did: the end state is the same either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<T> {
    /// The call changed something.
    Changed(T),
    /// The described end state was already so; nothing was written.
    Unchanged(T),
}

impl<T> Outcome<T> {
    /// Returns the value, whether or not something changed.
    pub fn into_inner(self) -> T {
        match self {
            Outcome::Changed(value) | Outcome::Unchanged(value) => value,
        }
    }

    /// Tells whether the call changed something.
    pub fn is_changed(&self) -> bool {
        matches!(self, Outcome::Changed(_))
    }

    /// Converts the value, keeping what was said about it.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Outcome::Changed(value) => Outcome::Changed(convert(value)),
            Outcome::Unchanged(value) => Outcome::Unchanged(convert(value)),
        }
    }
}
