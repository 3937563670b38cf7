//! Logins and TLS against a real server, for every `sslmode`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use borealis_base::ErrorKind;
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::{ReplicationLink, SqlLink};
use borealis_testkit::TestServer;
use borealis_testkit::server::{ServerOptions, give_to, system_user};

fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .current_dir(dir)
        .args(arguments.split(' '))
        .output()
        .expect("openssl is installed");
    assert!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An authority `ca.crt`, another `other.crt`, and a certificate `server.crt` of the first for
/// `names`.
fn certificates(dir: &Path, names: &str) {
    for ca in ["ca", "other"] {
        openssl(
            dir,
            &format!(
                "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.crt"
            ),
        );
    }
    openssl(
        dir,
        "req -newkey rsa:2048 -nodes -subj /CN=server -keyout server.key -out server.csr",
    );
    std::fs::write(dir.join("ext"), format!("subjectAltName={names}\n")).expect("writable");
    openssl(
        dir,
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt",
    );
    let key = dir.join("server.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("ours");
    give_to(&key, system_user().as_ref());
}

const REFUSED: Result<bool, ErrorKind> = Err(ErrorKind::Refused);

async fn tls_server(names: &str, hba: &[&str]) -> (TestServer, std::path::PathBuf) {
    let mut options = ServerOptions::default();
    for line in hba {
        options = options.with_hba(line);
    }
    let mut server = TestServer::start(options).await;
    let dir = server.scratch("tls");
    certificates(&dir, names);
    server
        .sql(&format!(
            "ALTER SYSTEM SET ssl_cert_file = '{0}/server.crt'",
            dir.display()
        ))
        .await;
    server
        .sql(&format!(
            "ALTER SYSTEM SET ssl_key_file = '{0}/server.key'",
            dir.display()
        ))
        .await;
    server.sql("ALTER SYSTEM SET ssl = on").await;
    server.restart().await;
    server
        .sql("CREATE ROLE ann LOGIN REPLICATION PASSWORD 's3cret'")
        .await;
    (server, dir)
}

/// Both protocols must agree; yields whether TLS is in use.
async fn both(info: &ConnInfo) -> Result<bool, ErrorKind> {
    let sql = SqlLink::connect(info).await;
    let replication = ReplicationLink::connect(info).await;
    match (sql, replication) {
        (Ok(sql), Ok(mut replication)) => {
            assert_eq!(sql.is_encrypted(), replication.is_encrypted());
            let seen: String = sql
                .value("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
                .await
                .expect("readable");
            assert_eq!(seen == "t", sql.is_encrypted());
            replication.identify_system().await.expect("works");
            Ok(sql.is_encrypted())
        }
        (Err(a), Err(b)) => {
            assert_eq!(a.kind(), b.kind(), "{a} / {b}");
            assert!(!format!("{a} {a:?} {b} {b:?}").contains("s3cret"));
            Err(a.kind())
        }
        (a, b) => panic!("the protocols differ: {a:?} / {b:?}"),
    }
}

#[tokio::test]
async fn passwords_by_scram_and_md5_and_never_in_the_clear() {
    let mut server = TestServer::start(
        ServerOptions::default()
            .with_hba("host all,replication clear 127.0.0.1/32 password")
            .with_hba("host all,replication old 127.0.0.1/32 md5"),
    )
    .await;
    server
        .sql(
            "CREATE ROLE ann LOGIN REPLICATION PASSWORD 's3cret'; \
             CREATE ROLE clear LOGIN REPLICATION PASSWORD 's3cret'; \
             SET password_encryption = 'md5'; \
             CREATE ROLE old LOGIN REPLICATION PASSWORD 's3cret'",
        )
        .await;
    for user in ["ann", "old"] {
        assert_eq!(both(&server.tcp_info(user, "s3cret", "")).await, Ok(false));
        let wrong = server.tcp_info(user, "s3cret!", "");
        assert_eq!(both(&wrong).await, Err(ErrorKind::Refused));
    }
    let clear = server.tcp_info("clear", "s3cret", "");
    assert_eq!(both(&clear).await, Err(ErrorKind::Refused));
    server.allow_in_log("password authentication failed");
    // From 18 on.
    server.allow_in_log("setting an MD5-encrypted password");
    let bound = server.tcp_info("ann", "s3cret", "channel_binding=require");
    assert_eq!(both(&bound).await, Err(ErrorKind::Refused));
    server.stop().await;
    let gone = server.tcp_info("ann", "s3cret", "");
    assert_eq!(both(&gone).await, Err(ErrorKind::Unreachable));
}

#[tokio::test]
async fn every_sslmode_means_what_libpq_says() {
    let (mut server, dir) = tls_server(
        "DNS:localhost",
        &[
            "hostnossl all,replication plain 127.0.0.1/32 scram-sha-256",
            "hostssl all,replication plain 127.0.0.1/32 reject",
            "hostnossl all,replication tls 127.0.0.1/32 reject",
            "hostssl all,replication clear 127.0.0.1/32 password",
        ],
    )
    .await;
    for user in ["plain", "tls", "clear"] {
        server
            .sql(&format!(
                "CREATE ROLE {user} LOGIN REPLICATION PASSWORD 's3cret'"
            ))
            .await;
    }
    server.allow_in_log("pg_hba.conf rejects");
    server.allow_in_log("could not accept SSL connection");
    let (ca, other) = (dir.join("ca.crt"), dir.join("other.crt"));
    let (ca, other) = (ca.display(), other.display());
    // User, options, and whether the session is encrypted.
    let table = [
        ("ann", "sslmode=disable".to_owned(), Ok(false)),
        ("ann", "sslmode=allow".to_owned(), Ok(false)),
        ("ann", "sslmode=prefer".to_owned(), Ok(true)),
        ("ann", "sslmode=require".to_owned(), Ok(true)),
        ("tls", "sslmode=disable".to_owned(), REFUSED),
        ("tls", "sslmode=allow".to_owned(), Ok(true)),
        ("plain", "sslmode=prefer".to_owned(), Ok(false)),
        ("plain", "sslmode=require".to_owned(), REFUSED),
        ("clear", "sslmode=require".to_owned(), Ok(true)),
        // A root certificate at hand is used by `require` too.
        (
            "ann",
            format!("sslmode=require sslrootcert={other}"),
            REFUSED,
        ),
        ("ann", format!("sslmode=require sslrootcert={ca}"), Ok(true)),
        (
            "ann",
            format!("sslmode=prefer sslrootcert={other}"),
            Ok(false),
        ),
        (
            "ann",
            format!("sslmode=verify-ca sslrootcert={ca}"),
            Ok(true),
        ),
        (
            "ann",
            format!("sslmode=verify-ca sslrootcert={other}"),
            REFUSED,
        ),
        (
            "ann",
            format!("sslmode=verify-full sslrootcert={ca}"),
            Ok(true),
        ),
        (
            "ann",
            format!("sslmode=verify-full sslrootcert={other}"),
            REFUSED,
        ),
        ("ann", "sslrootcert=system".to_owned(), REFUSED),
        (
            "ann",
            "sslmode=require channel_binding=require".to_owned(),
            Ok(true),
        ),
        (
            "ann",
            "sslmode=disable channel_binding=require".to_owned(),
            REFUSED,
        ),
        (
            "clear",
            "sslmode=require channel_binding=require".to_owned(),
            REFUSED,
        ),
    ];
    for (user, options, expected) in table {
        let info = server.tcp_info(user, "s3cret", &options);
        assert_eq!(both(&info).await, expected, "{user} {options}");
    }
}

#[tokio::test]
async fn only_verify_full_looks_at_the_name() {
    let (mut server, dir) = tls_server("DNS:elsewhere.example", &[]).await;
    server.allow_in_log("could not accept SSL connection");
    let ca = dir.join("ca.crt").display().to_string();
    for (mode, expected) in [
        ("verify-ca", Ok(true)),
        ("verify-full", Err(ErrorKind::Refused)),
    ] {
        let options = format!("sslmode={mode} sslrootcert={ca}");
        let info = server.tcp_info("ann", "s3cret", &options);
        assert_eq!(both(&info).await, expected, "{mode}");
    }
    // Without TLS on the server, insisting fails and preferring does not.
    server.sql("ALTER SYSTEM SET ssl = off").await;
    server.restart().await;
    for (mode, expected) in [("prefer", Ok(false)), ("require", Err(ErrorKind::Refused))] {
        let info = server.tcp_info("ann", "s3cret", &format!("sslmode={mode}"));
        assert_eq!(both(&info).await, expected, "{mode}");
    }
}

#[tokio::test]
async fn hosts_are_tried_in_order_until_one_will_do() {
    let server = TestServer::start(ServerOptions::default()).await;
    let mut info = server.info();
    let mut absent = info.hosts[0].clone();
    absent.port = 1;
    info.hosts.insert(0, absent);
    assert_eq!(both(&info).await, Ok(false));
    info.target = borealis_pg_server::conninfo::TargetSession::Standby;
    assert_eq!(both(&info).await, Err(ErrorKind::Unreachable));
}
