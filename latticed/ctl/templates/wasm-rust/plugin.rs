//! @id@: greets, and counts how often. A module that is called: it exports memory, alloc and invoke.
//!
//! What is exchanged is JSON. Each invocation gets a fresh instance, so nothing is freed and nothing is left behind; what
//! is to last is kept by the host (kv.put). Texts of JSON are handed on as they came, with their escapes.

#[cfg(target_arch = "wasm32")]
#[link(wasm_import_module = "latticed")]
extern "C" {
    fn call(at: *const u8, length: usize) -> u64;
}

/// There is no host where this is only checked.
#[cfg(not(target_arch = "wasm32"))]
unsafe fn call(_: *const u8, _: usize) -> u64 {
    0
}

/// Room for what the host writes; it is never freed.
#[no_mangle]
pub extern "C" fn alloc(length: usize) -> *mut u8 {
    Box::leak(vec![0_u8; length].into_boxed_slice()).as_mut_ptr()
}

/// # Safety
/// The host gives the address and length of what it wrote to where `alloc` said.
#[no_mangle]
pub unsafe extern "C" fn invoke(at: *const u8, length: usize) -> u64 {
    let request = unsafe { text(at, length) };
    let action = member(request, "action").unwrap_or("null");
    let reply = match (action, member(request, "payload").unwrap_or("null")) {
        ("\"greet\"", payload) => greet(payload),
        _ => failed("\"no such action\""),
    };
    packed(reply)
}

fn greet(payload: &str) -> String {
    let Some(name) = member(payload, "name").filter(|name| name.starts_with('"')) else {
        return failed("\"expected {\\\"name\\\": text}\"");
    };
    let kept = host_call("{\"method\":\"kv.get\",\"params\":{\"key\":\"count\"}}");
    let kept = member(kept, "result").and_then(|result| member(result, "value")).unwrap_or("\"0\"");
    let count = kept.trim_matches('"').parse::<u32>().unwrap_or(0) + 1;
    let put = host_call(&format!("{{\"method\":\"kv.put\",\"params\":{{\"key\":\"count\",\"value\":\"{count}\"}}}}"));
    match member(put, "error").and_then(|error| member(error, "message")) {
        Some(message) => failed(message),
        None => format!("{{\"ok\":true,\"result\":{{\"hello\":{name},\"count\":{count}}}}}"),
    }
}

/// A reply with an error, which is a text of JSON.
fn failed(error: &str) -> String {
    format!("{{\"ok\":false,\"error\":{error}}}")
}

/// The answer of a host call, `{"result": …}` or `{"error": …}`.
fn host_call(request: &str) -> &'static str {
    let answer = unsafe { call(request.as_ptr(), request.len()) };
    unsafe { text((answer >> 32) as usize as *const u8, answer as u32 as usize) }
}

unsafe fn text(at: *const u8, length: usize) -> &'static str {
    if length == 0 {
        return "";
    }
    std::str::from_utf8(unsafe { std::slice::from_raw_parts(at, length) }).unwrap_or("")
}

fn packed(reply: String) -> u64 {
    let reply: &'static str = Box::leak(reply.into_boxed_str());
    (reply.as_ptr() as usize as u64) << 32 | reply.len() as u64
}

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
