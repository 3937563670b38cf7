//! TLS towards the server: what `sslmode` promises, no more and no less, and the value that binds a
//! login to the channel. The cryptography is passed to `rustls` explicitly, so that no other crate's
//! choice of a process-wide provider can change it.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::conninfo::{Host, RootCert, SslMode, TlsSettings, check_key_file};
use crate::error::{Error, Result};

fn failed(host: &Host, detail: &dyn std::fmt::Display) -> Error {
    Error::Tls {
        to: host.to_string(),
        detail: detail.to_string(),
    }
}

/// The settings of one handshake with `host`.
pub(super) fn client_config(tls: &TlsSettings, host: &Host) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(host, &e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier(tls, host, &provider)?);
    let config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            check_key_file(key)?;
            let chain = read_certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| failed(host, &format!("read {}: {e}", key.display())))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| failed(host, &e))?
        }
    };
    Ok(Arc::new(config))
}

fn verifier(
    tls: &TlsSettings,
    host: &Host,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>> {
    let algorithms = provider.signature_verification_algorithms;
    let roots = match (&tls.root, tls.mode) {
        (Some(RootCert::System), _) => {
            let system = rustls_platform_verifier::Verifier::new(provider.clone())
                .map_err(|e| failed(host, &e))?;
            return Ok(Arc::new(system));
        }
        (None, SslMode::VerifyCa | SslMode::VerifyFull) => {
            return Err(failed(host, &"no root certificate"));
        }
        // As in libpq: without a root certificate the weaker modes encrypt and check nothing.
        (None, _) => {
            return Ok(Arc::new(ChainOnly {
                roots: None,
                algorithms,
            }));
        }
        (Some(RootCert::File(path)), _) => Arc::new(read_roots(path)?),
    };
    if tls.mode == SslMode::VerifyFull {
        let full = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| failed(host, &e))?;
        return Ok(full);
    }
    Ok(Arc::new(ChainOnly {
        roots: Some(roots),
        algorithms,
    }))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let unreadable = |detail: String| Error::UnsafeFile {
        path: path.to_owned(),
        problem: detail,
    };
    let text = std::fs::read(path).map_err(|e| Error::file("read", path, e))?;
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| unreadable(e.to_string()))?;
    if chain.is_empty() {
        return Err(unreadable("holds no certificate in PEM form".to_owned()));
    }
    Ok(chain)
}

fn read_roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|e| Error::UnsafeFile {
            path: path.to_owned(),
            problem: e.to_string(),
        })?;
    }
    Ok(roots)
}

/// Checks the chain against `roots` where there are any, and never the name: `verify-ca`, and the
/// modes below it. The proof that the server holds its key is always checked.
#[derive(Debug)]
struct ChainOnly {
    roots: Option<Arc<RootCertStore>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                roots,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The `tls-server-end-point` value of a certificate (RFC 5929, 4.1): its hash by the algorithm that
/// signed it, SHA-256 in place of MD5 and SHA-1. `None` where the algorithm names no hash; the
/// server then has no such value either (`be_tls_get_certificate_hash` in `be-secure-openssl.c`).
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (outer, _) = der(certificate, 0x30)?;
    let (_, after_body) = der(outer, 0x30)?;
    let (algorithm, _) = der(after_body, 0x30)?;
    let (identifier, _) = der(algorithm, 0x06)?;
    // 1.2.840.113549.1.1.x is RSA, 1.2.840.10045.4.x is ECDSA.
    let hash = match identifier {
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 4 | 5 | 11]
        | [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 1]
        | [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 2] => &digest::SHA256,
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 12]
        | [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 3] => &digest::SHA384,
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 13]
        | [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 4] => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(hash, certificate).as_ref().to_vec())
}

/// The content of the DER value at the front of `bytes`, and what follows it.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    if found != tag {
        return None;
    }
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7F);
        if count == 0 || count > 4 {
            return None;
        }
        let len = rest
            .get(..count)?
            .iter()
            .fold(0_usize, |len, byte| len << 8 | usize::from(*byte));
        (len, rest.get(count..)?)
    };
    Some((rest.get(..len)?, rest.get(len..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_certificates_have_no_end_point() {
        for bytes in [
            &[][..],
            &[0x30],
            &[0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF],
            &[0x30, 0x80, 0, 0],
            &[0x30, 4, 0x30, 0, 0x30, 0],
        ] {
            assert_eq!(end_point(bytes), None);
        }
    }
}
