//! One request to a key service, bounded in time, and tried again where that may help.

use std::time::Duration;

use borealis_base::Entropy;
use bytes::Bytes;
use reqwest::{Certificate, Client, ClientBuilder, Method, Url, redirect};
use zeroize::Zeroizing;

use crate::Error;

/// Tries of one request, the first included.
pub(crate) const ATTEMPTS_MAX: u32 = 5;
/// The pause after the first try is below this; it doubles from try to try.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long it may take to be connected.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers are a few hundred bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Which authorities are trusted.
pub(crate) enum Trust {
    /// The system's.
    System,
    /// The system's and these.
    Besides(Vec<Certificate>),
    /// These only.
    Only(Vec<Certificate>),
}

/// Reads certificates from a PEM file.
///
/// # Errors
/// Says which file and what is wrong with it.
pub(crate) fn certificates(path: &std::path::Path) -> Result<Vec<Certificate>, String> {
    let wrong = |what: String| format!("certificates {}: {what}", path.display());
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let found = Certificate::from_pem_bundle(&bytes)
        .map_err(|error| wrong(causes(&error.without_url())))?;
    if found.is_empty() {
        return Err(wrong("there is none in it".to_owned()));
    }
    Ok(found)
}

/// A request.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: Vec<(String, String)>,
    /// Cleared once it was sent.
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// An answer, whatever it says.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// A try that did not succeed.
pub(crate) enum Failed {
    /// Trying again may help.
    Later(Error),
    /// It will not.
    Final(Error),
}

/// Asks one key service.
pub(crate) struct Http(Client);

impl Http {
    /// # Errors
    /// Where the certificates make no sense.
    pub(crate) fn new(trust: Trust) -> Result<Self, String> {
        let builder = ClientBuilder::new()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            // A token must not follow whoever sends it elsewhere.
            .redirect(redirect::Policy::none());
        let builder = match trust {
            Trust::System => builder,
            Trust::Besides(certificates) => builder.tls_certs_merge(certificates),
            Trust::Only(certificates) => builder.tls_certs_only(certificates),
        };
        let client = builder.build().map_err(|error| causes(&error))?;
        Ok(Self(client))
    }

    /// Sends one request and reads the answer.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn send(&self, request: Request) -> Result<Answer, String> {
        let mut built = self.0.request(request.method, request.url);
        for (name, value) in request.headers {
            built = built.header(name, value);
        }
        let sent = built.body(Bytes::from_owner(request.body)).send().await;
        let mut response = sent.map_err(|error| causes(&error.without_url()))?;
        let status = response.status().as_u16();
        let mut body = Zeroizing::new(Vec::new());
        loop {
            let chunk = response.chunk().await;
            let Some(chunk) = chunk.map_err(|error| causes(&error.without_url()))? else {
                return Ok(Answer { status, body });
            };
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err("its answer is too long".to_owned());
            }
            // Growing would leave a copy behind.
            let mut longer = Zeroizing::new(Vec::with_capacity(body.len() + chunk.len()));
            longer.extend_from_slice(&body);
            longer.extend_from_slice(&chunk);
            body = longer;
        }
    }
}

/// An error with its causes, each told once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = inner.source();
    }
    told
}

/// The pause after try `attempt` (from 1): at least half of what it is at most, so that those who were
/// throttled together do not come back together.
fn pause(attempt: u32, entropy: &dyn Entropy) -> Duration {
    let longest = (PAUSE_FIRST * (1 << attempt.saturating_sub(1).min(16))).min(PAUSE_MAX);
    let mut random = [0; 4];
    entropy.fill(&mut random);
    let part = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
    longest.mul_f64(0.5 + part / 2.0)
}

/// How often one request was tried.
pub(crate) struct Tries(u32);

impl Tries {
    /// Before the first.
    pub(crate) const fn new() -> Self {
        Self(1)
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The error of the last one, if it was that.
    pub(crate) async fn again(&mut self, entropy: &dyn Entropy, error: Error) -> Result<(), Error> {
        if self.0 >= ATTEMPTS_MAX {
            return Err(error);
        }
        tracing::debug!(%error, attempt = self.0, "trying again");
        tokio::time::sleep(pause(self.0, entropy)).await;
        self.0 += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::SeededEntropy;

    fn unreachable() -> Error {
        Error::Unreachable {
            service: "x".into(),
            what: "429".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tries_are_bounded() {
        let entropy = SeededEntropy::new(1);
        let mut tries = Tries::new();
        let mut waited = 0;
        while tries.again(&entropy, unreachable()).await.is_ok() {
            waited += 1;
        }
        assert_eq!(waited, ATTEMPTS_MAX - 1);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let entropy = SeededEntropy::new(2);
        let pauses: Vec<_> = (0..8).map(|_| pause(1, &entropy)).collect();
        assert!(
            pauses
                .iter()
                .all(|p| *p <= PAUSE_FIRST && *p >= PAUSE_FIRST / 2)
        );
        assert!(pauses.iter().any(|p| *p != pauses[0]), "no jitter");
        assert!(pause(40, &entropy) <= PAUSE_MAX);
    }
}
