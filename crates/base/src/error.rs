//! What a caller can do about a failure.

/// The answer to "what now?", carried by the error of every library crate. The command line turns
/// it into its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is malformed: fix the argument.
    Usage,
    /// The request is understood and not allowed in this state: the message says what would allow it.
    Refused,
    /// The named thing does not exist, proven by looking.
    NotFound,
    /// A server, store or key service could not be asked. Trying again may help.
    Unreachable,
    /// Stored or read data is not what was written. Never used for a wrong key.
    Damaged,
    /// The root key may not be used: disabled, deleted or forbidden, by the word of its key service.
    KeyUnusable,
    /// Another writer has taken over; this one must stop.
    Fenced,
    /// Stopped on request; run it again to go on.
    Interrupted,
    /// A defect of Borealis.
    Bug,
}
