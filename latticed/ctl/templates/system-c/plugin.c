/* @id@: greets. It speaks latticed-stdio-1: JSON-RPC 2.0, one message a line, on stdin and stdout; stderr is the log. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

typedef struct { const char *at; int length; } Span; /* a piece of a line; at is NULL when there is none */

/* The end of the JSON value that begins at p: past its closing quote or bracket, or before what follows a word. */
static const char *past(const char *p) {
    int depth = 0, text = 0;
    for (; *p && *p != '\n'; p++) {
        if (text) {
            if (*p == '\\' && p[1]) p++;
            else if (*p == '"' && (text = 0, depth == 0)) return p + 1;
        } else if (*p == '"') text = 1;
        else if (*p == '{' || *p == '[') depth++;
        else if (*p == '}' || *p == ']') { if (depth == 0) return p; if (--depth == 0) return p + 1; }
        else if (depth == 0 && (*p == ',' || *p == ':' || *p == ' ')) return p;
    }
    return p;
}

/* The value of a member of the object itself, not of one inside it or of a text that looks like it. */
static Span member(Span object, const char *name) {
    const char *p = object.at, *end = object.at + object.length, *stop;
    for (p = p && *p == '{' ? p + 1 : end; p < end; p = stop) {
        p += strspn(p, " \t\r,:}");
        stop = past(p);
        if (stop == p) break;
        Span value = {stop + strspn(stop, " \t\r:"), 0};
        value.length = (int)(past(value.at) - value.at);
        if (stop - p == (int)strlen(name) + 2 && !strncmp(p + 1, name, strlen(name))) return value;
        stop = value.at + value.length;
    }
    return (Span){NULL, 0};
}

static int is(Span value, const char *text) { /* whether it is the JSON text "text" */
    return value.at && value.length == (int)strlen(text) + 2 && !strncmp(value.at + 1, text, strlen(text));
}

static void fail(const char *message) {
    printf("\"result\":{\"ok\":false,\"message\":\"%s\",\"result\":null,\"error\":\"%s\"}}\n", message, message);
}

/* One action. Its payload, and what it answers, are JSON: texts are handed on as they came, with their escapes. */
static void invoke(Span params) {
    Span name = member(member(params, "payload"), "name");
    if (!is(member(params, "action"), "greet")) fail("no such action");
    else if (!name.at || *name.at != '"') fail("expected a payload with a text name");
    else {
        fprintf(stderr, "greeted %.*s\n", name.length, name.at);
        printf("\"result\":{\"ok\":true,\"message\":\"\",\"result\":{\"hello\":%.*s}}}\n", name.length, name.at);
    }
}

int main(void) {
    char *line = NULL; size_t room = 0; ssize_t length;
    while ((length = getline(&line, &room, stdin)) > 0) {
        Span message = {line, (int)length}, id = member(message, "id"), method = member(message, "method");
        if (!id.at || !method.at) continue;
        printf("{\"jsonrpc\":\"2.0\",\"id\":%.*s,", id.length, id.at);
        if (is(method, "health")) printf("\"result\":{\"status\":\"healthy\",\"message\":\"\"}}\n");
        else if (is(method, "invoke")) invoke(member(message, "params"));
        else if (is(method, "initialize") || is(method, "shutdown")) printf("\"result\":{}}\n");
        else printf("\"error\":{\"code\":-32601,\"message\":\"no such method\"}}\n");
        if (fflush(stdout) || is(method, "shutdown")) break;
    }
    free(line);
    return 0;
}
