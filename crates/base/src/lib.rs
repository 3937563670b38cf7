//! The words every other crate speaks: where in a log ([`Position`], [`Branch`], [`RecordSpan`]), when
//! ([`Timestamp`]), how much ([`ByteLen`]), which one ([`id`]), and what a caller should do about a
//! failure ([`ErrorKind`]). Time and randomness are values that are passed in ([`Clock`],
//! [`Entropy`]), so that every rule above this crate can be tested without waiting and without luck.

pub mod clock;
pub mod entropy;
pub mod error;
pub mod id;
pub mod position;
pub mod progress;
pub mod record;
pub mod size;
pub mod timestamp;

pub use clock::{Clock, ManualClock, SystemClock};
pub use entropy::{Entropy, SeededEntropy, SystemEntropy};
pub use error::ErrorKind;
pub use id::{LineageId, ObjectId, RepositoryId, WriteId};
pub use position::{Branch, Position};
pub use progress::{NoProgress, Progress, Unit};
pub use record::{RecordSpan, TimeStep};
pub use size::{ByteLen, parse_duration, show_duration};
pub use timestamp::Timestamp;
