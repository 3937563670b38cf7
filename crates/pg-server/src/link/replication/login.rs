//! Starting a replication session: the startup message and the password exchange.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt;

use super::wire::{self, Fields, protocol};
use crate::conninfo::{ChannelBinding, ConnInfo, Host, Password};
use crate::error::{Error, Result};
use crate::link::{LinkStream, Transport};

/// A stream on which the login is still under way.
struct Session<'a> {
    stream: &'a mut LinkStream,
    buffer: BytesMut,
    to: String,
    user: &'a str,
    password: Option<&'a Password>,
    binding: ChannelBinding,
}

/// Logs in for replication; returns the parameters that the server reported.
pub(super) async fn log_in(
    stream: &mut LinkStream,
    info: &ConnInfo,
    host: &Host,
) -> Result<BTreeMap<String, String>> {
    let mut session = Session {
        stream,
        buffer: BytesMut::new(),
        to: host.to_string(),
        user: &info.user,
        password: host.replication_password.as_ref(),
        binding: info.tls.channel_binding,
    };
    let mut startup = vec![
        ("user", info.user.as_str()),
        ("replication", "true"),
        ("application_name", info.application_name.as_str()),
        ("client_encoding", "UTF8"),
    ];
    if let Some(options) = &info.options {
        startup.push(("options", options));
    }
    let mut out = BytesMut::new();
    frontend::startup_message(startup, &mut out).map_err(|e| session.failed(&e))?;
    session.send(&out).await?;
    session.authenticate().await?;
    let parameters = session.settle().await?;
    let parameter = |name| parameters.get(name).map(String::as_str);
    match info.target.unmet(parameter) {
        None => Ok(parameters),
        Some(detail) => Err(Error::Connect {
            to: session.to,
            detail: detail.to_owned(),
        }),
    }
}

impl Session<'_> {
    fn failed(&self, detail: &dyn std::fmt::Display) -> Error {
        Error::Login {
            to: self.to.clone(),
            detail: detail.to_string(),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| Error::Lost {
            to: self.to.clone(),
            detail: error.to_string(),
        })
    }

    /// The next message that is not a notice.
    async fn read(&mut self) -> Result<wire::Frame> {
        loop {
            let frame = wire::read_frame(self.stream, &mut self.buffer, &self.to).await?;
            match frame.tag {
                b'E' => return Err(wire::server_error(frame.body)),
                b'N' => {}
                _ => return Ok(frame),
            }
        }
    }

    /// The code and the data of the next authentication message.
    async fn read_authentication(&mut self) -> Result<(i32, Bytes)> {
        let frame = self.read().await?;
        let mut fields = Fields(frame.body);
        match (frame.tag, fields.i32()) {
            (b'R', Some(code)) => Ok((code, fields.0)),
            _ => Err(protocol(&self.to, "no authentication message")),
        }
    }

    fn secret(&self) -> Result<&str> {
        self.password
            .map(Password::reveal)
            .ok_or_else(|| self.failed(&"the server wants a password and none was found"))
    }

    /// With a required binding, a login without it could be relayed by someone in between.
    fn unbound(&self) -> Result<()> {
        if self.binding == ChannelBinding::Require {
            return Err(
                self.failed(&"channel binding is required and the server does not offer it")
            );
        }
        Ok(())
    }

    async fn authenticate(&mut self) -> Result<()> {
        let (code, data) = self.read_authentication().await?;
        let mut out = BytesMut::new();
        match code {
            0 => return self.unbound(),
            3 => {
                self.unbound()?;
                if matches!(self.stream.transport, Transport::Tcp(_)) {
                    return Err(self.failed(&"the server asks for the password in the clear"));
                }
                frontend::password_message(self.secret()?.as_bytes(), &mut out)
                    .map_err(|e| self.failed(&e))?;
            }
            5 => {
                self.unbound()?;
                let salt = data
                    .first_chunk::<4>()
                    .ok_or_else(|| protocol(&self.to, "a short salt"))?;
                let hash = md5_hash(self.user.as_bytes(), self.secret()?.as_bytes(), *salt);
                frontend::password_message(hash.as_bytes(), &mut out)
                    .map_err(|e| self.failed(&e))?;
            }
            10 => self.scram(data).await?,
            other => {
                return Err(self.failed(&format!(
                    "the server wants authentication method {other}, which is not supported"
                )));
            }
        }
        if !out.is_empty() {
            self.send(&out).await?;
        }
        match self.read_authentication().await? {
            (0, _) => Ok(()),
            (code, _) => Err(protocol(
                &self.to,
                format!("authentication message {code} after the password"),
            )),
        }
    }

    async fn scram(&mut self, mechanisms: Bytes) -> Result<()> {
        let mut offered = Fields(mechanisms);
        let (mut plain, mut plus) = (false, false);
        while let Some(name) = offered.text().filter(|name| !name.is_empty()) {
            plain |= name == sasl::SCRAM_SHA_256;
            plus |= name == sasl::SCRAM_SHA_256_PLUS;
        }
        let end_point = self
            .stream
            .end_point
            .clone()
            .filter(|_| self.binding != ChannelBinding::Disable);
        let (binding, mechanism) = match (end_point, plus, plain) {
            (Some(value), true, _) => (
                sasl::ChannelBinding::tls_server_end_point(value),
                sasl::SCRAM_SHA_256_PLUS,
            ),
            // "We could have, but you did not offer it": a server that did offer it then knows that
            // its offer was removed on the way.
            (Some(_), false, true) => (sasl::ChannelBinding::unrequested(), sasl::SCRAM_SHA_256),
            (None, _, true) => (sasl::ChannelBinding::unsupported(), sasl::SCRAM_SHA_256),
            _ => return Err(self.failed(&"no SASL mechanism that is supported")),
        };
        if mechanism != sasl::SCRAM_SHA_256_PLUS {
            self.unbound()?;
        }
        let mut scram = sasl::ScramSha256::new(self.secret()?.as_bytes(), binding);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out)
            .map_err(|e| self.failed(&e))?;
        self.send(&out).await?;
        let (code, data) = self.read_authentication().await?;
        if code != 11 {
            return Err(protocol(&self.to, "no SASL challenge"));
        }
        scram.update(&data).map_err(|e| self.failed(&e))?;
        out.clear();
        frontend::sasl_response(scram.message(), &mut out).map_err(|e| self.failed(&e))?;
        self.send(&out).await?;
        let (code, data) = self.read_authentication().await?;
        if code != 12 {
            return Err(protocol(&self.to, "no end of SASL"));
        }
        // This is the server's proof that it knows the password too.
        scram.finish(&data).map_err(|e| self.failed(&e))
    }

    /// Reads up to the first "ready".
    async fn settle(&mut self) -> Result<BTreeMap<String, String>> {
        let mut parameters = BTreeMap::new();
        loop {
            let frame = self.read().await?;
            match frame.tag {
                b'S' => {
                    let mut fields = Fields(frame.body);
                    if let (Some(name), Some(value)) = (fields.text(), fields.text()) {
                        parameters.insert(name, value);
                    }
                }
                b'K' => {}
                b'Z' => return Ok(parameters),
                tag => {
                    return Err(protocol(
                        &self.to,
                        format!("message `{}` after the login", tag.escape_ascii()),
                    ));
                }
            }
        }
    }
}
