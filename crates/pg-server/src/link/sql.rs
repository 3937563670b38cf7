//! Ordinary sessions, over `tokio_postgres`. Facts are read with the simple protocol and as text, so
//! that neither a pooler nor a server's type numbers matter.

use std::convert::Infallible;
use std::future::Ready;
use std::str::FromStr;

use borealis_base::Position;
use tokio::task::JoinHandle;
use tokio_postgres::config::{SslMode as SqlSslMode, SslNegotiation};
use tokio_postgres::tls::TlsConnect;
use tokio_postgres::{CancelToken, Client, Config, SimpleQueryMessage};

use super::{LinkStream, Login, attempts, connect, open};
use crate::conninfo::{self, ConnInfo, Host};
use crate::error::{Error, Result};

/// A session that runs SQL. Dropping it closes the connection.
#[derive(Debug)]
pub struct SqlLink {
    client: Client,
    task: JoinHandle<()>,
    info: ConnInfo,
    host: Host,
    version: u32,
    encrypted: bool,
}

/// Hands `tokio_postgres` a stream on which TLS, where there is any, already runs. Presented as
/// "direct" TLS, it makes the library send no request of its own and use our channel binding.
struct AlreadyOpen;

impl TlsConnect<LinkStream> for AlreadyOpen {
    type Stream = LinkStream;
    type Error = Infallible;
    type Future = Ready<std::result::Result<LinkStream, Infallible>>;

    fn connect(self, stream: LinkStream) -> Self::Future {
        std::future::ready(Ok(stream))
    }
}

struct SqlLogin;

impl Login for SqlLogin {
    type Link = SqlLink;

    async fn login(&self, stream: LinkStream, info: &ConnInfo, host: &Host) -> Result<SqlLink> {
        let to = host.to_string();
        let encrypted = stream.is_encrypted();
        let bound = stream.end_point.is_some();
        let mut config = Config::new();
        config
            .user(&info.user)
            .dbname(&info.database)
            .application_name(&info.application_name)
            .ssl_mode(SqlSslMode::Require)
            .ssl_negotiation(SslNegotiation::Direct)
            .channel_binding(match info.tls.channel_binding {
                conninfo::ChannelBinding::Disable => {
                    tokio_postgres::config::ChannelBinding::Disable
                }
                conninfo::ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
                conninfo::ChannelBinding::Require => {
                    tokio_postgres::config::ChannelBinding::Require
                }
            });
        if info.tls.channel_binding == conninfo::ChannelBinding::Require && !bound {
            return Err(Error::Login {
                to,
                detail: "channel binding is required and this link has none".to_owned(),
            });
        }
        if let Some(options) = &info.options {
            config.options(options);
        }
        if let Some(password) = &host.password {
            config.password(password.reveal());
        }
        let (client, connection) = config
            .connect_raw(stream, AlreadyOpen)
            .await
            .map_err(|e| Error::from_sql(&to, &e))?;
        if let Some(detail) = info.target.unmet(|name| connection.parameter(name)) {
            return Err(Error::Connect {
                to,
                detail: detail.to_owned(),
            });
        }
        let reported = to.clone();
        let task = tokio::spawn(async move {
            // Whoever waits for an answer gets the error as well; here it is only a trace.
            if let Err(error) = connection.await {
                tracing::debug!(server = %reported, %error, "sql link ended");
            }
        });
        let mut link = SqlLink {
            client,
            task,
            info: info.clone(),
            host: host.clone(),
            version: 0,
            encrypted,
        };
        // A bounded wait for ordinary questions; whatever takes long lifts it for itself. An idle
        // limit would end a backup session while files are read. The empty-but-catalog search path
        // keeps a hostile schema from shadowing a function that we call.
        link.run(
            "SET statement_timeout = '60s'; SET idle_session_timeout = 0; \
             SET idle_in_transaction_session_timeout = 0; SET lock_timeout = '30s'; \
             SET search_path = pg_catalog; SET client_encoding = 'UTF8'; SET datestyle = 'ISO'; \
             SET intervalstyle = 'postgres'; SET extra_float_digits = 1; SET timezone = 'UTC'; \
             SET standard_conforming_strings = on; \
             SET default_transaction_isolation = 'read committed'",
        )
        .await?;
        // From 17 on a role may have a limit for whole transactions, a single long statement included.
        link.rows(
            "SELECT set_config('transaction_timeout', '0', false) \
             WHERE current_setting('transaction_timeout', true) IS NOT NULL",
        )
        .await?;
        link.version = link.value("SHOW server_version_num").await?;
        Ok(link)
    }
}

impl SqlLink {
    /// Opens a session.
    pub async fn connect(info: &ConnInfo) -> Result<Self> {
        connect(info, &SqlLogin).await
    }

    /// The session itself, for what needs more than text.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The server's version as one number, such as 150018.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The server's major version, such as 15.
    pub fn major(&self) -> u32 {
        self.version / 10_000
    }

    /// Whether TLS protects this session.
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// The host that answered.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// How this session was reached, with the host that answered as the only one.
    pub fn info(&self) -> ConnInfo {
        ConnInfo {
            hosts: vec![self.host.clone()],
            ..self.info.clone()
        }
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub(crate) fn error(&self, error: &tokio_postgres::Error) -> Error {
        Error::from_sql(&self.host.to_string(), error)
    }

    /// Runs statements for their effect.
    pub async fn run(&self, sql: &str) -> Result<()> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|e| self.error(&e))
    }

    /// The rows of a query, as text.
    pub async fn rows(&self, sql: &str) -> Result<Vec<TextRow>> {
        let messages = self
            .client
            .simple_query(sql)
            .await
            .map_err(|e| self.error(&e))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(TextRow(row)),
                _ => None,
            })
            .collect())
    }

    /// The only row of a query.
    pub async fn row(&self, sql: &str) -> Result<TextRow> {
        let mut rows = self.rows(sql).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            (_, _) => Err(Error::Value {
                name: sql.to_owned(),
                detail: "not one row".to_owned(),
            }),
        }
    }

    /// The first column of the only row.
    pub async fn value<T: FromStr>(&self, sql: &str) -> Result<T> {
        let row = self.row(sql).await?;
        let name = row.0.columns().first().map_or("", |c| c.name()).to_owned();
        row.get(&name)
    }

    /// What cancels the statement that this session is running.
    pub fn canceller(&self) -> Canceller {
        Canceller {
            token: self.client.cancel_token(),
            info: self.info.clone(),
            host: self.host.clone(),
        }
    }
}

impl Drop for SqlLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks a server to give up the statement of one session.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    info: ConnInfo,
    host: Host,
}

impl Canceller {
    /// Sends the request, over a connection of its own as protected as the first. That the statement
    /// ended is seen on its session only.
    pub async fn cancel(&self) -> Result<()> {
        let ask = attempts(self.info.tls.mode, &self.host)
            .first()
            .copied()
            .expect("every mode has an attempt");
        let stream = open(&self.info, &self.host, ask).await?;
        self.token
            .cancel_query_raw(stream, AlreadyOpen)
            .await
            .map_err(|e| Error::from_sql(&self.host.to_string(), &e))
    }
}

/// A row of text values.
#[derive(Debug)]
pub struct TextRow(tokio_postgres::SimpleQueryRow);

impl TextRow {
    /// The value of `name`; `None` where it is null or absent.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.try_get(name).ok().flatten()
    }

    /// The value of `name`, read as a `T`.
    pub fn get<T: FromStr>(&self, name: &str) -> Result<T> {
        self.optional(name)?.ok_or_else(|| Error::Value {
            name: name.to_owned(),
            detail: "null".to_owned(),
        })
    }

    /// The value of `name`, read as a `T` where it is not null.
    pub fn optional<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        self.text(name)
            .map(|text| {
                text.parse().map_err(|_| Error::Value {
                    name: name.to_owned(),
                    detail: format!("`{text}` has an unexpected form"),
                })
            })
            .transpose()
    }

    /// A boolean, which the text form writes as one letter.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.text(name) {
            Some("t" | "on" | "true") => Ok(true),
            Some("f" | "off" | "false") => Ok(false),
            other => Err(Error::Value {
                name: name.to_owned(),
                detail: format!("`{}` is not a boolean", other.unwrap_or("null")),
            }),
        }
    }

    /// A log position.
    pub fn position(&self, name: &str) -> Result<Position> {
        self.get(name)
    }
}

/// `text` as an SQL string literal (with `standard_conforming_strings`, which every link sets).
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `text` as an SQL identifier.
pub fn quote_identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}
