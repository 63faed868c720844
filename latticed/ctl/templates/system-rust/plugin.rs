//! @id@: greets. It speaks latticed-stdio-1: JSON-RPC 2.0, one message a line, on stdin and stdout; stderr is the log.
//!
//! It needs the standard library alone. Texts of JSON are handed on as they came, with their escapes; a plugin that has to
//! read more of its payload than this one had better take serde_json, in a project of cargo's.

use std::io::{self, BufRead, Write};

/// How long the JSON value is that `json` begins with.
fn value_length(json: &str) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in json.bytes().enumerate() {
        match (quoted, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') if depth == 0 => return at + 1,
            (true, b'"') => quoted = false,
            (true, _) => {}
            (false, b'"') => quoted = true,
            (false, b'{' | b'[') => depth += 1,
            (false, b'}' | b']') if depth == 0 => return at,
            (false, b'}' | b']') if depth == 1 => return at + 1,
            (false, b'}' | b']') => depth -= 1,
            (false, b',' | b':' | b' ' | b'\n' | b'\r' | b'\t') if depth == 0 => return at,
            (false, _) => {}
        }
    }
    json.len()
}

/// The value of a member of the object itself, not of one inside it or of a text that looks like it.
fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let is_blank = |c: char| " \t\r\n,:".contains(c);
    let mut left = object.strip_prefix('{')?;
    loop {
        left = left.trim_start_matches(is_blank);
        let (key, rest) = left.split_at(value_length(left));
        if key.is_empty() {
            return None;
        }
        let rest = rest.trim_start_matches(is_blank);
        let (value, after) = rest.split_at(value_length(rest));
        if key.trim_matches('"') == name {
            return Some(value);
        }
        left = after;
    }
}

/// The answer of an action: what it returns is JSON, an error is a text without quotes and backslashes.
fn invoke(action: &str, payload: &str) -> Result<String, &'static str> {
    if action != "\"greet\"" {
        return Err("no such action");
    }
    let name = member(payload, "name").filter(|name| name.starts_with('"'));
    let name = name.ok_or("expected a payload with a text name")?;
    eprintln!("greeted {name}");
    Ok(format!("{{\"hello\":{name}}}"))
}

fn answer(method: &str, params: &str) -> String {
    match method {
        "\"invoke\"" => {
            let action = member(params, "action").unwrap_or("null");
            match invoke(action, member(params, "payload").unwrap_or("null")) {
                Ok(result) => format!("\"result\":{{\"ok\":true,\"message\":\"\",\"result\":{result}}}"),
                Err(error) => format!(
                    "\"result\":{{\"ok\":false,\"message\":\"{error}\",\"result\":null,\"error\":\"{error}\"}}"
                ),
            }
        }
        "\"health\"" => "\"result\":{\"status\":\"healthy\",\"message\":\"\"}".into(),
        "\"initialize\"" | "\"shutdown\"" => "\"result\":{}".into(),
        _ => "\"error\":{\"code\":-32601,\"message\":\"no such method\"}".into(),
    }
}

fn main() -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (Some(id), Some(method)) = (member(&line, "id"), member(&line, "method")) else {
            continue;
        };
        let answered = answer(method, member(&line, "params").unwrap_or("null"));
        let mut out = io::stdout().lock();
        writeln!(out, "{{\"jsonrpc\":\"2.0\",\"id\":{id},{answered}}}")?;
        out.flush()?;
        if method == "\"shutdown\"" {
            break;
        }
    }
    Ok(())
}
