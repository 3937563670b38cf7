//! Uploads in parts, for what is too long for one request.
//!
//! Packs and log pieces are not: one PUT is one request, atomic and conditional, and after a broken
//! connection sending 32 MiB again costs less than the three requests more of an upload in parts. The
//! manifests of very large clusters are.
//!
//! The object appears when the upload is completed, on the same condition as a PUT. Parts of an upload
//! that is given up are removed; those of a writer that was killed stay until the bucket's rule for
//! incomplete uploads removes them.

use bytes::Bytes;
use object_store::PutMode;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;

use super::S3Store;
use super::answer::Verdict;
use super::retry::Failure;
use crate::store::Store;

/// What is longer is uploaded in parts.
pub(super) const SINGLE_PUT_BYTES_MAX: usize = 64 << 20;
/// Bytes of each part but the last. All are equal, which Cloudflare R2 requires.
const PART_BYTES: usize = 32 << 20;

impl S3Store {
    /// Creates an object in parts, one after the other.
    pub(super) async fn put_in_parts(
        &self,
        name: &str,
        bytes: &Bytes,
        mode: PutMode,
    ) -> Result<(), Failure> {
        let key = Key::from(self.location.key(name));
        let begin = || self.within("create", name, 0, self.inner.create_multipart(&key));
        let upload = self.patiently(begin).await?;
        let outcome = match self.put_parts(name, &key, &upload, bytes).await {
            Ok(parts) => self.complete(name, &key, &upload, parts, &mode).await,
            Err(failure) => Err(failure),
        };
        if outcome.is_err() {
            let abort = self.inner.abort_multipart(&key, &upload);
            if let Err(failure) = self.within("create", name, 0, abort).await {
                tracing::debug!(error = %failure.error, "parts of an upload that was given up stay");
            }
        }
        outcome
    }

    async fn put_parts(
        &self,
        name: &str,
        key: &Key,
        upload: &String,
        bytes: &Bytes,
    ) -> Result<Vec<PartId>, Failure> {
        let mut parts = Vec::new();
        for (number, start) in (0..bytes.len()).step_by(PART_BYTES).enumerate() {
            let part = bytes.slice(start..bytes.len().min(start + PART_BYTES));
            let once = || {
                let put = (self.inner).put_part(key, upload, number, part.clone().into());
                self.within("create", name, part.len(), put)
            };
            parts.push(self.patiently(once).await?);
        }
        Ok(parts)
    }

    async fn complete(
        &self,
        name: &str,
        key: &Key,
        upload: &String,
        parts: Vec<PartId>,
        mode: &PutMode,
    ) -> Result<(), Failure> {
        let client = match mode {
            PutMode::Create => &self.completing,
            _ => &self.inner,
        };
        let once = || {
            let complete = client.complete_multipart(key, upload, parts.clone());
            self.within("create", name, 0, complete)
        };
        match self.patiently(once).await {
            Ok(_) => Ok(()),
            // Completed by a try whose reply was lost, it seems: the object tells, and to the caller it
            // is one that exists.
            Err(failure) if failure.verdict == Verdict::NoUpload => {
                let found = self.stat(name).await;
                let verdict = match found {
                    Ok(Some(_)) => Verdict::Exists,
                    _ => Verdict::Later,
                };
                Err(Failure {
                    verdict,
                    error: failure.error,
                })
            }
            Err(failure) => Err(failure),
        }
    }
}
