//! What a store's answers mean. Pure: from a status and the error code in the body to what a caller may
//! conclude.
//!
//! Codes are those of the S3 API's table of error responses; compatible stores add some of their own.

use crate::store::StoreErrorKind;

/// Longest error document that is looked at.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest text of a store that a message repeats.
const MESSAGE_CHARS_MAX: usize = 300;

/// An answer that is not the success it may look like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.shown())]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// The error code in the body; empty where there is none.
    pub(super) code: String,
    /// The error message in the body; empty where there is none.
    pub(super) message: String,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// 412: an object of that name exists.
    Exists,
    /// The object does not exist: the store has looked.
    Absent,
    /// The range begins at or past the end of the object.
    PastEnd,
    /// The upload in parts does not exist (any more).
    NoUpload,
    /// The store does not know the condition that was set.
    NoCondition,
    /// Try again: throttled, failed, in conflict with another request, or damaged on the way.
    Later,
    /// Trying again will not help.
    Never(StoreErrorKind),
}

impl Answer {
    /// Reads what a store says in `body`.
    pub(super) fn of(status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&body[..body.len().min(BODY_BYTES_MAX)]);
        Self {
            status,
            code: element(&text, "Code").unwrap_or_default(),
            message: element(&text, "Message").unwrap_or_default(),
        }
    }

    /// What a caller may conclude.
    pub(super) fn verdict(&self) -> Verdict {
        use StoreErrorKind::{Denied, Full, Invalid};
        match (self.status, self.code.as_str()) {
            // A success whose body says otherwise counts by its code alone.
            (412, _) | (_, "PreconditionFailed") => Verdict::Exists,
            // "Try again", not "exists": another conditional write of this name is on its way.
            (409, _) | (_, "ConditionalRequestConflict" | "OperationAborted") => Verdict::Later,
            (_, "NoSuchUpload") => Verdict::NoUpload,
            // Anything may answer 404, such as a balancer: absence is believed only where the store
            // speaks of the key.
            (404, "NoSuchKey") => Verdict::Absent,
            (404, "NoSuchBucket") => Verdict::Never(Invalid),
            (404, _) => Verdict::Later,
            (416, _) => Verdict::PastEnd,
            (501, _) | (_, "NotImplemented") => Verdict::NoCondition,
            (507, _) | (_, "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull") => {
                Verdict::Never(Full)
            }
            // The body was damaged on the way, and the store's checksum has shown it.
            (
                _,
                "BadDigest"
                | "InvalidDigest"
                | "XAmzContentSHA256Mismatch"
                | "IncompleteBody"
                | "RequestTimeout"
                | "SlowDown"
                | "InternalError"
                | "ServiceUnavailable",
            ) => Verdict::Later,
            (401 | 403, _) | (_, "ExpiredToken" | "InvalidToken" | "AccessDenied") => {
                Verdict::Never(Denied)
            }
            (200..=299 | 408 | 429 | 500..=599, _) => Verdict::Later,
            _ => Verdict::Never(Invalid),
        }
    }

    fn shown(&self) -> String {
        let said = match (self.code.as_str(), self.message.as_str()) {
            ("", "") => String::new(),
            (code, "") => format!(" {code}"),
            ("", message) => format!(": {message}"),
            (code, message) => format!(" {code}: {message}"),
        };
        let said: String = said.chars().take(MESSAGE_CHARS_MAX).collect();
        let hint = match self.code.as_str() {
            "RequestTimeTooSkewed" => " (set this machine's clock)",
            "AuthorizationHeaderMalformed" | "PermanentRedirect" => {
                " (the bucket may be in another region)"
            }
            // Whoever may not list is not told whether an object exists.
            "AccessDenied" => " (reading also needs s3:ListBucket)",
            _ => "",
        };
        format!("the store answered {}{said}{hint}", self.status)
    }
}

/// Whether the body of a success is an error all the same. S3 answers 200 to some requests before it
/// knows how they end, the completion of an upload above all.
pub(super) fn is_error(body: &[u8]) -> bool {
    let head = String::from_utf8_lossy(&body[..body.len().min(BODY_BYTES_MAX)]);
    head.contains("<Error>") || head.contains("<Error ")
}

/// The text of the first element `name`. Error documents are flat.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inner.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: u16, code: &str) -> Verdict {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message></Error>"
        );
        Answer::of(status, body.as_bytes()).verdict()
    }

    #[test]
    fn a_conflict_is_to_be_tried_again_and_a_failed_precondition_means_exists() {
        assert_eq!(verdict(412, "PreconditionFailed"), Verdict::Exists);
        assert_eq!(verdict(409, "ConditionalRequestConflict"), Verdict::Later);
        assert_eq!(Answer::of(409, b"").verdict(), Verdict::Later);
    }

    #[test]
    fn absence_is_believed_only_where_the_store_names_the_key() {
        assert_eq!(verdict(404, "NoSuchKey"), Verdict::Absent);
        assert_eq!(
            verdict(404, "NoSuchBucket"),
            Verdict::Never(StoreErrorKind::Invalid)
        );
        assert_eq!(
            Answer::of(404, b"<html>no such host</html>").verdict(),
            Verdict::Later
        );
        // Without the right to list, S3 answers 403 for what does not exist.
        assert_eq!(
            verdict(403, "AccessDenied"),
            Verdict::Never(StoreErrorKind::Denied)
        );
    }

    #[test]
    fn throttling_failures_and_damage_on_the_way_are_tried_again() {
        for (status, code) in [
            (503, "SlowDown"),
            (500, "InternalError"),
            (429, ""),
            (400, "BadDigest"),
            (400, "XAmzContentSHA256Mismatch"),
            (400, "RequestTimeout"),
            (200, "InternalError"),
            (200, "SlowDown"),
        ] {
            assert_eq!(verdict(status, code), Verdict::Later, "{status} {code}");
        }
        assert_eq!(
            verdict(400, "EntityTooLarge"),
            Verdict::Never(StoreErrorKind::Invalid)
        );
        assert_eq!(verdict(507, ""), Verdict::Never(StoreErrorKind::Full));
    }

    #[test]
    fn a_success_with_an_error_in_its_body_is_recognised() {
        let body = b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>InternalError</Code></Error>";
        assert!(is_error(body));
        assert!(!is_error(
            b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        ));
        assert!(!is_error(b""));
    }

    #[test]
    fn messages_say_what_the_store_said_and_no_more() {
        let body = format!(
            "<Error><Code>SignatureDoesNotMatch</Code><Message>{}</Message><StringToSign>AWS4 x</StringToSign></Error>",
            "long ".repeat(200)
        );
        let shown = Answer::of(403, body.as_bytes()).to_string();
        assert!(
            shown.starts_with("the store answered 403 SignatureDoesNotMatch: long"),
            "{shown}"
        );
        assert!(!shown.contains("AWS4") && shown.len() < 400, "{shown}");
    }
}
