//! The two written forms of a connection string: keywords and URI. Rules: `conninfo_parse` and
//! `conninfo_uri_parse_options` in `src/interfaces/libpq/fe-connect.c`.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Option names to values, in the words of libpq.
pub(super) type Options = BTreeMap<String, String>;

fn bad(text: impl Into<String>) -> Error {
    Error::ConnInfo(text.into())
}

/// Splits a connection string into its options. Values are never repeated in an error, since one of
/// them may be a password.
pub(super) fn parse(text: &str) -> Result<Options> {
    let text = text.trim();
    for scheme in ["postgresql://", "postgres://"] {
        if let Some(rest) = text.strip_prefix(scheme) {
            return parse_uri(rest);
        }
    }
    parse_keywords(text)
}

fn insert(options: &mut Options, name: &str, value: String) {
    // As in libpq, the last one given counts.
    options.insert(name.to_owned(), value);
}

fn parse_keywords(text: &str) -> Result<Options> {
    let mut options = Options::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(options);
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
            name.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            // A bare word may be a mistyped secret: it is not repeated.
            return Err(bad("missing `=` after an option name"));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let value = keyword_value(&mut chars)?;
        insert(&mut options, &name, value);
    }
}

fn keyword_value(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String> {
    let mut value = String::new();
    if chars.next_if_eq(&'\'').is_some() {
        loop {
            match chars.next() {
                Some('\\') => value.extend(chars.next()),
                Some('\'') => return Ok(value),
                Some(c) => value.push(c),
                None => return Err(bad("a quoted value is not closed")),
            }
        }
    }
    while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
        if c == '\\' {
            value.extend(chars.next());
        } else {
            value.push(c);
        }
    }
    Ok(value)
}

fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            rest.next()
                .and_then(|c| (c as char).to_digit(16))
                .ok_or_else(|| bad("`%` is not followed by two hexadecimal digits"))
        };
        match digit()? << 4 | digit()? {
            0 => return Err(bad("`%00` is not allowed")),
            code => bytes.push(code as u8),
        }
    }
    String::from_utf8(bytes).map_err(|_| bad("a decoded value is not UTF-8"))
}

fn parse_uri(rest: &str) -> Result<Options> {
    let mut options = Options::new();
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, database) = match rest.split_once('/') {
        Some((authority, database)) => (authority, Some(database)),
        None => (rest, None),
    };
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (Some(login), hosts),
        None => (None, authority),
    };
    if let Some(login) = login {
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        if !user.is_empty() {
            insert(&mut options, "user", decode(user)?);
        }
        if let Some(password) = password.filter(|p| !p.is_empty()) {
            insert(&mut options, "password", decode(password)?);
        }
    }
    uri_hosts(hosts, &mut options)?;
    if let Some(database) = database.filter(|d| !d.is_empty()) {
        insert(&mut options, "dbname", decode(database)?);
    }
    for pair in query.unwrap_or("").split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| bad("a URI parameter has no `=`"))?;
        let (name, value) = (decode(name)?, decode(value)?);
        if name == "ssl" && value == "true" {
            insert(&mut options, "sslmode", "require".to_owned());
        } else {
            insert(&mut options, &name, value);
        }
    }
    Ok(options)
}

fn uri_hosts(hosts: &str, options: &mut Options) -> Result<()> {
    if hosts.is_empty() {
        return Ok(());
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = if let Some(v6) = host.strip_prefix('[') {
            let (name, after) = v6
                .split_once(']')
                .ok_or_else(|| bad("`[` of an IPv6 address is not closed"))?;
            match after.strip_prefix(':') {
                Some(port) => (name, port),
                None if after.is_empty() => (name, ""),
                None => return Err(bad("unexpected text after an IPv6 address")),
            }
        } else {
            host.split_once(':').unwrap_or((host, ""))
        };
        names.push(decode(name)?);
        ports.push(port.to_owned());
    }
    if names.iter().any(|n| !n.is_empty()) {
        insert(options, "host", names.join(","));
    }
    if ports.iter().any(|p| !p.is_empty()) {
        insert(options, "port", ports.join(","));
    }
    Ok(())
}

/// The options of section `name` of a service file; `None` where the section is absent.
pub(super) fn service_section(text: &str, name: &str) -> Result<Option<Options>> {
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            if found.is_some() {
                break;
            }
            if section == name {
                found = Some(Options::new());
            }
        } else if let Some(options) = &mut found {
            let (option, value) = line
                .split_once('=')
                .ok_or_else(|| bad(format!("service `{name}`: a line has no `=`")))?;
            if option == "service" {
                return Err(bad(format!("service `{name}` names another service")));
            }
            // Unlike everywhere else, the first one counts (`parseServiceFileInfo`).
            options
                .entry(option.to_owned())
                .or_insert_with(|| value.to_owned());
        }
    }
    Ok(found)
}

/// The password of the first matching line of a password file. Rules: `passwordFromFile`.
pub(super) fn pass_line(
    text: &str,
    host: &str,
    port: &str,
    database: &str,
    user: &str,
) -> Option<String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let mut rest = line;
            for wanted in [host, port, database, user] {
                let (field, after) = pass_field(rest)?;
                if rest.get(..after.0) != Some("*") && field != wanted {
                    return None;
                }
                rest = rest.get(after.0 + 1..)?;
            }
            let mut password = String::new();
            let mut chars = rest.trim_end_matches('\r').chars();
            while let Some(c) = chars.next() {
                if c == '\\' {
                    password.extend(chars.next());
                } else {
                    password.push(c);
                }
            }
            Some(password)
        })
}

/// Where a field ends, in bytes; the byte there is the colon.
struct FieldEnd(usize);

fn pass_field(text: &str) -> Option<(String, FieldEnd)> {
    let mut field = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => field.extend(chars.next().map(|(_, c)| c)),
            ':' => return Some((field, FieldEnd(at))),
            c => field.push(c),
        }
    }
    None
}
