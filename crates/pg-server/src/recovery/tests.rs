//! The rules, one by one.

use super::*;

fn file(path: &str, role: Role, text: &str) -> ConfigFile {
    ConfigFile {
        path: path.into(),
        role,
        text: text.to_owned(),
    }
}

fn make(config: &ConfigFiles, goal: Goal) -> RestoredConfig {
    let place = Place {
        data_dir: Path::new("/new"),
        port: 5544,
        socket_directory: Path::new("/new"),
        listen_addresses: None,
        cluster_name: "re'stored",
        exists: &|path| path == Path::new("/new/have.crt"),
        is_writable: &|path| path == Path::new("/writable"),
        has_library: &|name| name == "auto_explain",
    };
    let origin = Origin {
        config,
        settings: &Settings::default(),
        log_parameters: [300, 8, 10, 20, 64],
    };
    let recovery = Recovery {
        restore_command: r"fetch '%f' \x",
        end_command: Some("finish"),
        branch: Branch(3),
        goal,
    };
    configure(&origin, &place, &recovery)
}

fn text<'a>(made: &'a RestoredConfig, path: &str) -> &'a str {
    let found = made.files.iter().find(|file| file.path == path);
    &found
        .unwrap_or_else(|| panic!("{path} is not written"))
        .text
}

/// The settings as the server will see them, the automatic file last.
fn effective(made: &RestoredConfig, name: &str) -> Option<String> {
    let config = ConfigFiles {
        files: vec![
            file(
                "/new/postgresql.conf",
                Role::Main,
                text(made, "postgresql.conf"),
            ),
            file(
                "/new/postgresql.auto.conf",
                Role::Auto,
                text(made, "postgresql.auto.conf"),
            ),
        ],
        missing: Vec::new(),
    };
    config.setting(name)
}

fn main_only(text: &str) -> ConfigFiles {
    ConfigFiles {
        files: vec![
            file("/old/postgresql.conf", Role::Main, text),
            file("/old/pg_hba.conf", Role::Access, "local all all trust\n"),
        ],
        missing: Vec::new(),
    }
}

const HERE: Goal = Goal::Promote(Position(0x1_0000_0028));

#[test]
fn settings_that_cannot_hold_here_are_comments() {
    // Line, and the value that counts afterwards.
    for (line, name, value) in [
        ("work_mem = 4MB", "work_mem", Some("4MB")),
        ("data_directory = '/old'", "data_directory", None),
        ("hba_file = '/etc/pg_hba.conf'", "hba_file", None),
        (
            "external_pid_file = '/run/x.pid'",
            "external_pid_file",
            None,
        ),
        ("archive_command = 'push %p'", "archive_command", None),
        ("archive_mode = always", "archive_mode", Some("off")),
        ("primary_conninfo = 'host=x'", "primary_conninfo", None),
        ("recovery_target_time = 'x'", "recovery_target_time", None),
        (
            "synchronous_standby_names = '*'",
            "synchronous_standby_names",
            None,
        ),
        ("port = 5432", "port", Some("5544")),
        ("cluster_name = 'prod'", "cluster_name", Some("re'stored")),
        ("max_connections = 100", "max_connections", Some("300")),
        ("ssl_ca_file = 'gone.crt'", "ssl_ca_file", None),
        ("ssl_ca_file = 'have.crt'", "ssl_ca_file", Some("have.crt")),
        ("ssl = on", "ssl", Some("off")),
        ("ssl = false", "ssl", Some("false")),
        ("log_directory = '/var/log/pg'", "log_directory", None),
        (
            "log_directory = '/writable'",
            "log_directory",
            Some("/writable"),
        ),
        ("log_directory = 'log'", "log_directory", Some("log")),
        (
            "unix_socket_directories = '/writable'",
            "unix_socket_directories",
            Some("/writable"),
        ),
        (
            "unix_socket_directories = '/writable,/no'",
            "unix_socket_directories",
            Some("/new"),
        ),
        ("listen_addresses = '*'", "listen_addresses", Some("*")),
        (
            "listen_addresses = 'localhost,10.0.0.7'",
            "listen_addresses",
            Some("localhost"),
        ),
        ("huge_pages = on", "huge_pages", Some("try")),
        ("io_method = io_uring", "io_method", Some("worker")),
        ("io_method = 'sync'", "io_method", Some("sync")),
        (
            "shared_preload_libraries = 'timescaledb, auto_explain'",
            "shared_preload_libraries",
            Some("auto_explain"),
        ),
    ] {
        let made = make(&main_only(line), HERE);
        assert_eq!(effective(&made, name).as_deref(), value, "{line}");
        let main = text(&made, "postgresql.conf");
        assert!(
            main.contains(line),
            "the original line is kept to be read: {main}"
        );
    }
}

#[test]
fn what_a_person_should_know_is_named() {
    let made = make(
        &main_only("shared_preload_libraries = 'timescaledb'\nssl = on\nssl_key_file = '/k'"),
        HERE,
    );
    let all = made.warnings.join("\n");
    assert!(all.contains("timescaledb") && all.contains("/k"), "{all}");
    assert!(make(&main_only("work_mem = 4MB"), HERE).warnings.is_empty());
}

#[test]
fn recovery_stops_at_the_start_of_the_last_record_on_a_numbered_timeline() {
    let made = make(&main_only(""), HERE);
    for (name, value) in [
        ("recovery_target_lsn", "1/28"),
        ("recovery_target_inclusive", "on"),
        ("recovery_target_timeline", "3"),
        ("recovery_target_action", "promote"),
        ("hot_standby", "off"),
        ("restore_command", r"fetch '%f' \x"),
    ] {
        assert_eq!(effective(&made, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(text(&made, "recovery.signal"), "");
    assert!(!made.auto_after_recovery.contains("recovery_target"));
    assert!(!made.auto_after_recovery.contains("restore_command"));
    assert!(made.auto_after_recovery.contains("archive_mode = 'off'"));

    let standby = make(&main_only(""), Goal::Standby);
    assert_eq!(effective(&standby, "recovery_target_lsn"), None);
    assert_eq!(
        effective(&standby, "recovery_end_command").as_deref(),
        Some("finish")
    );
    assert_eq!(effective(&standby, "hot_standby").as_deref(), Some("on"));
    assert_eq!(text(&standby, "standby.signal"), "");
}

#[test]
fn includes_are_laid_in_where_they_stood() {
    let config = ConfigFiles {
        files: vec![
            file(
                "/etc/pg/postgresql.conf",
                Role::Main,
                "work_mem = 1MB\ninclude_dir 'conf.d'\ntemp_buffers = 1MB\n",
            ),
            file(
                "/old/postgresql.auto.conf",
                Role::Auto,
                "work_mem = '3MB'\nrestore_command = 'x'\n",
            ),
            file(
                "/etc/pg/conf.d/a.conf",
                Role::Included,
                "work_mem = 2MB\ntemp_buffers = 2MB\narchive_command = 'x'\n",
            ),
            file(
                "/etc/pg/pg_hba.conf",
                Role::Access,
                "local @people all trust\n",
            ),
            file("/etc/pg/people", Role::Included, "ann\n"),
        ],
        missing: Vec::new(),
    };
    let made = make(&config, HERE);
    let main = text(&made, "postgresql.conf");
    assert!(
        !main.lines().any(|line| line.starts_with("include")),
        "{main}"
    );
    assert_eq!(effective(&made, "temp_buffers").as_deref(), Some("1MB"));
    assert_eq!(effective(&made, "work_mem").as_deref(), Some("3MB"));
    assert_eq!(effective(&made, "archive_command"), None);
    assert_eq!(text(&made, "people"), "ann\n");
    assert_eq!(text(&made, "pg_hba.conf"), "local @people all trust\n");
    assert_eq!(text(&made, "pg_ident.conf"), "");
    assert!(!made.files.iter().any(|file| file.path.contains("conf.d")));
    assert_eq!(made.warnings, Vec::<String>::new());
}
