//! Tables from libpq's documentation (chapter "Connection Strings") and its own URI tests.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use borealis_base::ErrorKind;

use super::*;

fn nothing(_: &Path) -> io::Result<FoundFile> {
    Err(io::ErrorKind::NotFound.into())
}

fn resolve_with(
    text: &str,
    variables: &[(&str, &str)],
    read: &dyn Fn(&Path) -> io::Result<FoundFile>,
) -> Result<ConnInfo> {
    ConnInfo::resolve(
        text,
        &Surroundings {
            variables: variables
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<BTreeMap<_, _>>(),
            home: Some("/home/ann".into()),
            os_user: Some("ann".to_owned()),
            read,
        },
    )
}

fn resolve(text: &str) -> Result<ConnInfo> {
    resolve_with(text, &[], &nothing)
}

fn secret(text: &str, mode: u32) -> FoundFile {
    FoundFile {
        text: text.to_owned(),
        mode,
        is_file: true,
    }
}

#[test]
fn hosts_ports_users_and_databases() {
    // Text; hosts with ports; user; database.
    type Case = (
        &'static str,
        &'static [(&'static str, u16)],
        &'static str,
        &'static str,
    );
    let table: [Case; 15] = [
        ("", &[(DEFAULT_SOCKET_DIRECTORY, 5432)], "ann", "ann"),
        ("host=db port=6000 user=bob", &[("db", 6000)], "bob", "bob"),
        (
            "host = 'db'  dbname='it\\'s' user=a\\ b",
            &[("db", 5432)],
            "a b",
            "it's",
        ),
        ("host=/run/pg", &[("/run/pg", 5432)], "ann", "ann"),
        ("host=a,b port=1,2", &[("a", 1), ("b", 2)], "ann", "ann"),
        ("host=a,b port=7", &[("a", 7), ("b", 7)], "ann", "ann"),
        ("host=a,b port=7,", &[("a", 7), ("b", 5432)], "ann", "ann"),
        ("host=a user=''", &[("a", 5432)], "ann", "ann"),
        (
            "postgresql://",
            &[(DEFAULT_SOCKET_DIRECTORY, 5432)],
            "ann",
            "ann",
        ),
        ("postgres://db:7/x", &[("db", 7)], "ann", "x"),
        (
            "postgresql://bob@a:1,b:2/my%20db?application_name=x",
            &[("a", 1), ("b", 2)],
            "bob",
            "my db",
        ),
        ("postgresql://[::1]:9/x", &[("::1", 9)], "ann", "x"),
        (
            "postgresql://%2Frun%2Fpg/x",
            &[("/run/pg", 5432)],
            "ann",
            "x",
        ),
        (
            "postgresql:///x?host=/run/pg&port=9",
            &[("/run/pg", 9)],
            "ann",
            "x",
        ),
        (
            "postgresql://a,b/x?user=bob",
            &[("a", 5432), ("b", 5432)],
            "bob",
            "x",
        ),
    ];
    for (text, hosts, user, database) in table {
        let info = resolve(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let found: Vec<_> = info
            .hosts
            .iter()
            .map(|h| (h.name.as_str(), h.port))
            .collect();
        assert_eq!(found, hosts, "{text}");
        assert_eq!(
            (info.user.as_str(), info.database.as_str()),
            (user, database),
            "{text}"
        );
    }
}

#[test]
fn malformed_strings_are_a_usage_error() {
    for text in [
        "host",
        "host=a hunter2",
        "user='bob",
        "host=a port=0",
        "port=65536",
        "port=x",
        "host=a,b port=1,2,3",
        "host=a,b hostaddr=10.0.0.1",
        "sslmode=on",
        "colour=blue",
        "connect_timeout=soon",
        "postgresql://[::1/x",
        "postgresql://a/x?user",
        "postgresql://a/%zz",
        "postgresql://a/%00",
        "sslmode=verify-ca",
        "sslrootcert=system sslmode=require",
    ] {
        let error = resolve(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Usage, "{text}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[test]
fn password_in_the_string_is_refused_with_the_alternatives() {
    for text in [
        "password=hunter2",
        "postgresql://ann:hunter2@db/x",
        "postgresql://db/x?password=hunter2",
        "sslpassword='hunter2'",
    ] {
        let error = resolve(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Refused);
        let hint = error.hint().expect("a hint");
        for way in ["PGPASSWORD", "PGPASSFILE", "service file"] {
            assert!(hint.contains(way), "{hint}");
        }
        assert!(!format!("{error} {error:?} {hint}").contains("hunter2"));
    }
}

#[test]
fn options_that_would_be_weaker_if_ignored_are_refused() {
    for text in [
        "sslcrl=/x",
        "require_auth=scram-sha-256",
        "requirepeer=postgres",
        "ssl_min_protocol_version=TLSv1.3",
        "gssencmode=require",
    ] {
        assert_eq!(resolve(text).expect_err(text).kind(), ErrorKind::Refused);
    }
    let from_environment = resolve_with("", &[("PGREQUIREPEER", "postgres")], &nothing);
    assert_eq!(
        from_environment.expect_err("refused").kind(),
        ErrorKind::Refused
    );
}

#[test]
fn string_beats_service_beats_environment() {
    let read = |path: &Path| {
        if path == Path::new("/etc/services") {
            Ok(secret(
                "# ours\n[other]\nhost=wrong\n[main]\nhost=from-service\nport=7\nhost=second\n\
                 password=s3cret\n[main]\nuser=wrong\n",
                0o644,
            ))
        } else {
            nothing(path)
        }
    };
    let variables = [
        ("PGSERVICEFILE", "/etc/services"),
        ("PGHOST", "from-env"),
        ("PGPORT", "8"),
        ("PGDATABASE", "from-env"),
        ("PGAPPNAME", ""),
    ];
    let info = resolve_with("service=main port=9", &variables, &read).expect("resolves");
    assert_eq!(info.hosts[0].name, "from-service");
    assert_eq!(info.hosts[0].port, 9);
    assert_eq!(info.database, "from-env");
    assert_eq!(info.application_name, "borealis");
    let password = info.hosts[0].password.as_ref().expect("from the service");
    assert_eq!(password.reveal(), "s3cret");
    assert!(!format!("{info:?}").contains("s3cret"));
    let absent = resolve_with("service=nope", &variables, &read);
    assert_eq!(absent.expect_err("unknown").kind(), ErrorKind::Usage);
}

#[test]
fn password_file_rules() {
    let file = "# comment\n\
                short:line\n\
                db:5432:x:bob:first\n\
                db:*:replication:bob:for\\:repl\\\\\n\
                db:5433:*:*:any\\*\n\
                \\:\\:1:*:*:*:v6\n\
                localhost:5432:*:ann:socket\n\
                *:5432:x:cat:last\n";
    let read = |path: &Path| {
        if path == Path::new("/home/ann/.pgpass") {
            Ok(secret(file, 0o600))
        } else {
            nothing(path)
        }
    };
    // Text; ordinary password; password of replication.
    let table: [(&str, Option<&str>, Option<&str>); 7] = [
        (
            "host=db user=bob dbname=x",
            Some("first"),
            Some("for:repl\\"),
        ),
        ("host=db user=bob dbname=y", None, Some("for:repl\\")),
        ("host=db port=5433 user=eve", Some("any*"), Some("any*")),
        ("host=::1 user=eve", Some("v6"), Some("v6")),
        ("", Some("socket"), Some("socket")),
        ("host=any user=cat dbname=x", Some("last"), Some("last")),
        ("host=any user=cat dbname=xx", None, None),
    ];
    for (text, ordinary, replication) in table {
        let info = resolve_with(text, &[], &read).expect(text);
        let host = &info.hosts[0];
        assert_eq!(
            host.password.as_ref().map(Password::reveal),
            ordinary,
            "{text}"
        );
        assert_eq!(
            host.replication_password.as_ref().map(Password::reveal),
            replication,
            "{text}"
        );
    }
    let variable = resolve_with("host=db user=bob dbname=x", &[("PGPASSWORD", "env")], &read);
    let host = variable.expect("resolves").hosts.remove(0);
    assert_eq!(host.password.expect("given").reveal(), "env");
}

#[test]
fn password_file_that_others_may_read_is_refused() {
    for mode in [0o640, 0o604, 0o644, 0o620] {
        let read = |_: &Path| Ok(secret("*:*:*:*:x\n", mode));
        let result = resolve_with("host=db", &[("PGPASSFILE", "/p")], &read);
        assert_eq!(result.expect_err("unsafe").kind(), ErrorKind::Refused);
    }
    let missing = resolve_with("passfile=/p", &[], &nothing);
    assert_eq!(missing.expect_err("named").kind(), ErrorKind::NotFound);
}

#[test]
fn tls_modes_and_roots() {
    let root = |path: &Path| {
        if path == Path::new("/home/ann/.postgresql/root.crt") {
            Ok(secret("", 0o644))
        } else {
            nothing(path)
        }
    };
    let default = resolve("host=db").expect("resolves").tls;
    assert_eq!((default.mode, default.root), (SslMode::Prefer, None));
    let home = resolve_with("sslmode=verify-full", &[], &root)
        .expect("resolves")
        .tls;
    assert_eq!(
        home.root,
        Some(RootCert::File("/home/ann/.postgresql/root.crt".into()))
    );
    let system = resolve("sslrootcert=system").expect("resolves").tls;
    assert_eq!(
        (system.mode, system.root),
        (SslMode::VerifyFull, Some(RootCert::System))
    );
    let jdbc = resolve("postgresql://db/x?ssl=true").expect("resolves").tls;
    assert_eq!(jdbc.mode, SslMode::Require);
    let identity = resolve("sslcert=/c sslkey=/k")
        .expect("resolves")
        .tls
        .identity;
    assert_eq!(identity, Some(("/c".into(), "/k".into())));
}

/// What a server reports, and for each value of `target_session_attrs` whether it will do, by the table of
/// libpq's documentation.
#[test]
fn target_session_attrs_mean_what_libpq_says() {
    // in_hot_standby, default_transaction_read_only; any, read-write, read-only, primary, standby.
    let table = [
        ("off", "off", [true, true, false, true, false]),
        ("off", "on", [true, false, true, true, false]),
        ("on", "off", [true, false, true, false, true]),
        ("on", "on", [true, false, true, false, true]),
    ];
    let names = ["any", "read-write", "read-only", "primary", "standby"];
    for (in_hot_standby, read_only, wanted) in table {
        let parameter = |name| match name {
            "in_hot_standby" => Some(in_hot_standby),
            "default_transaction_read_only" => Some(read_only),
            _ => None,
        };
        for (name, will_do) in names.into_iter().zip(wanted) {
            let info = resolve(&format!("target_session_attrs={name}")).unwrap();
            let unmet = info.target.unmet(parameter);
            assert_eq!(unmet.is_none(), will_do, "{name}: {unmet:?}");
        }
    }
    let info = resolve("host=a,b target_session_attrs=prefer-standby").unwrap();
    let passes: Vec<_> = info.passes().map(|pass| pass.target).collect();
    assert_eq!(passes, [TargetSession::Standby, TargetSession::Any]);
    let hosts: Vec<_> = info
        .each_host()
        .map(|host| host.hosts[0].name.clone())
        .collect();
    assert_eq!(hosts, ["a", "b"]);
    assert!(resolve("target_session_attrs=best").is_err());
}
