/* @id@: greets, and counts how often. A module that is called: it exports memory, alloc and invoke, and needs no library.
 *
 * What is exchanged is JSON. Each invocation gets a fresh instance, so nothing is freed and nothing is left behind; what
 * is to last is kept by the host (kv.put). */

typedef struct { const char *at; int length; } Text; /* a piece of JSON; at is 0 when there is none */

/* Memory is taken from the end of the module's own, and more asked for. */
extern char __heap_base;
static char *top = &__heap_base;

__attribute__((export_name("alloc"))) char *alloc(int length) {
    char *found = top;
    top += (length + 7) & ~7;
    unsigned long pages = ((unsigned long)top + 65535) >> 16, there = __builtin_wasm_memory_size(0);
    if (pages > there && __builtin_wasm_memory_grow(0, pages - there) == (unsigned long)-1) __builtin_trap();
    return found;
}

static Text text(const char *at) {
    int length = 0;
    while (at[length]) length++;
    return (Text){at, length};
}

static int same(Text a, Text b) {
    if (a.length != b.length) return 0;
    for (int i = 0; i < a.length; i++) if (a.at[i] != b.at[i]) return 0;
    return 1;
}

/* All pieces, one after the other; the last one has no `at`. */
static Text joined(const Text *pieces) {
    int length = 0, to = 0;
    for (int n = 0; pieces[n].at; n++) length += pieces[n].length;
    char *all = alloc(length);
    for (int n = 0; pieces[n].at; n++)
        for (int i = 0; i < pieces[n].length; i++) all[to++] = pieces[n].at[i];
    return (Text){all, length};
}
#define JOIN(...) joined((const Text[]){__VA_ARGS__, {0, 0}})

static int blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == ',' || c == ':'; }

/* How long the JSON value is that begins there. */
static int value_length(Text json) {
    int depth = 0, quoted = 0;
    for (int i = 0; i < json.length; i++) {
        char c = json.at[i];
        if (quoted) {
            if (c == '\\') i++;
            else if (c == '"' && (quoted = 0, depth == 0)) return i + 1;
        } else if (c == '"') quoted = 1;
        else if (c == '{' || c == '[') depth++;
        else if (c == '}' || c == ']') { if (depth == 0) return i; if (--depth == 0) return i + 1; }
        else if (depth == 0 && blank(c)) return i;
    }
    return json.length;
}

/* The value of a member of the object itself, not of one inside it or of a text that looks like it. */
static Text member(Text object, const char *name) {
    if (object.length == 0 || *object.at != '{') return (Text){0, 0};
    Text left = {object.at + 1, object.length - 1}, wanted = JOIN(text("\""), text(name), text("\""));
    for (;;) {
        while (left.length && blank(*left.at)) left.at++, left.length--;
        Text key = {left.at, value_length(left)};
        if (key.length == 0) return (Text){0, 0};
        left.at += key.length, left.length -= key.length;
        while (left.length && blank(*left.at)) left.at++, left.length--;
        Text value = {left.at, value_length(left)};
        if (same(key, wanted)) return value;
        left.at += value.length, left.length -= value.length;
    }
}

static long long packed(Text found) { return ((long long)(unsigned long)found.at << 32) | (unsigned)found.length; }

__attribute__((import_module("latticed"), import_name("call"))) long long latticed_call(const char *at, int length);

/* The answer of a host call, {"result": …} or {"error": …}. */
static Text host_call(Text request) {
    long long answer = latticed_call(request.at, request.length);
    return (Text){(const char *)(unsigned long)((unsigned long long)answer >> 32), (int)(unsigned)answer};
}

static Text number(int value) {
    char *digits = alloc(12);
    int at = 12;
    do digits[--at] = (char)('0' + value % 10); while (value /= 10);
    return (Text){digits + at, 12 - at};
}

static Text failed(Text message) { return JOIN(text("{\"ok\":false,\"error\":"), message, text("}")); }

static Text greet(Text payload) {
    Text name = member(payload, "name");
    if (name.length == 0 || *name.at != '"') return failed(text("\"expected {\\\"name\\\": text}\""));
    Text kept = member(member(host_call(text("{\"method\":\"kv.get\",\"params\":{\"key\":\"count\"}}")), "result"), "value");
    int count = 0;
    for (int i = 1; i + 1 < kept.length; i++) count = count * 10 + (kept.at[i] - '0'); /* "12", with its quotes */
    Text next = number(count + 1);
    Text put = host_call(JOIN(text("{\"method\":\"kv.put\",\"params\":{\"key\":\"count\",\"value\":\""), next, text("\"}}")));
    Text error = member(member(put, "error"), "message");
    if (error.length) return failed(error);
    return JOIN(text("{\"ok\":true,\"result\":{\"hello\":"), name, text(",\"count\":"), next, text("}}"));
}

__attribute__((export_name("invoke"))) long long invoke(const char *at, int length) {
    Text request = {at, length}, action = member(request, "action");
    if (same(action, text("\"greet\""))) return packed(greet(member(request, "payload")));
    return packed(failed(text("\"no such action\"")));
}
