//! hello-wasi/artifact: greets, and counts how often, as a WASI command that speaks latticed-stdio-1 itself.
//!
//! JSON-RPC 2.0, one message a line, on stdin and stdout; stderr is the log. Built with Zig 0.17.1 (PyPI: ziglang):
//!
//!   zig build-exe sources/hello-wasi.zig -target wasm32-wasi -OReleaseSmall -fstrip -fsingle-threaded --stack 1048576 \
//!     -femit-bin=hello-wasi/artifact

const std = @import("std");
const wasi = std.os.wasi;

pub const panic = std.debug.no_panic; // a bug is a trap, and the daemon tells which

const memory = std.heap.wasm_allocator;
const line_bytes = 1 << 20;

const Params = struct {
    action: []const u8 = "",
    payload: std.json.Value = .null,
};

/// Requests have a method, answers to our own calls have none.
const Message = struct {
    id: std.json.Value = .null,
    method: ?[]const u8 = null,
    params: Params = .{},
    result: std.json.Value = .null,
    @"error": ?struct { data: struct { code: []const u8 = "internal" } = .{} } = null,
};

const Reply = struct {
    ok: bool,
    message: []const u8 = "",
    result: ?struct { count: i64 } = null,
    @"error": ?[]const u8 = null,
};

var input: std.ArrayList(u8) = .empty;
var postponed: std.ArrayList([]u8) = .empty;
var calls: u32 = 0;
var refusal: []const u8 = "";

pub fn main() u8 {
    while (true) {
        const line = if (postponed.items.len > 0) postponed.orderedRemove(0) else nextLine() orelse return 0;
        defer memory.free(line);
        var arena = std.heap.ArenaAllocator.init(memory);
        defer arena.deinit();
        const goes_on = handle(arena.allocator(), line) catch return 1;
        if (!goes_on) return 0;
    }
}

fn handle(arena: std.mem.Allocator, line: []const u8) !bool {
    const message = try parse(arena, line);
    const method = message.method orelse return true; // an answer that nobody waits for
    if (std.mem.eql(u8, method, "invoke")) {
        try answer(arena, message.id, try invoke(arena, message.params));
    } else if (!try simple(arena, message)) {
        return false;
    }
    return true;
}

/// What can be answered at any moment; false after the host asked us to end.
fn simple(arena: std.mem.Allocator, message: Message) !bool {
    const method = message.method.?;
    if (std.mem.eql(u8, method, "health")) {
        try answer(arena, message.id, .{ .status = "healthy", .message = "" });
    } else if (std.mem.eql(u8, method, "initialize")) {
        try answer(arena, message.id, .{});
    } else if (std.mem.eql(u8, method, "shutdown")) {
        try answer(arena, message.id, .{});
        return false;
    } else {
        const fault = .{ .code = -32601, .message = "no such method" };
        try send(arena, .{ .jsonrpc = "2.0", .id = message.id, .@"error" = fault });
    }
    return true;
}

fn invoke(arena: std.mem.Allocator, params: Params) !Reply {
    if (!std.mem.eql(u8, params.action, "greet")) return .{ .ok = false, .@"error" = "unknown action" };
    return greet(arena, params.payload) catch |fault| switch (fault) {
        error.Refused => .{ .ok = false, .@"error" = refusal }, // the Gate said no: its code says why
        else => return fault,
    };
}

fn greet(arena: std.mem.Allocator, payload: std.json.Value) !Reply {
    const name = member(payload, "name") orelse "world";
    const kept = member(try call(arena, "kv.get", .{ .key = "greetings" }), "value") orelse "0";
    const count = 1 + (std.fmt.parseInt(i64, kept, 10) catch 0);
    const words = try std.fmt.allocPrint(arena, "{d}", .{count});
    _ = try call(arena, "kv.put", .{ .key = "greetings", .value = words });
    const greeting = try std.fmt.allocPrint(arena, "Hello, {s}!", .{name});
    _ = try call(arena, "log.write", .{ .level = "info", .message = greeting });
    return .{ .ok = true, .message = greeting, .result = .{ .count = count } };
}

fn member(value: std.json.Value, name: []const u8) ?[]const u8 {
    if (value != .object) return null;
    const found = value.object.get(name) orelse return null;
    return if (found == .string) found.string else null;
}

/// One host call. What the host asks meanwhile is answered if it is simple, and waits for its turn otherwise.
fn call(arena: std.mem.Allocator, method: []const u8, params: anytype) !std.json.Value {
    calls += 1;
    try send(arena, .{ .jsonrpc = "2.0", .id = calls, .method = method, .params = params });
    while (true) {
        const line = nextLine() orelse return error.HostGone;
        const message = try parse(arena, line); // it copies what it keeps
        const asked = message.method orelse "";
        if (std.mem.eql(u8, asked, "invoke") or std.mem.eql(u8, asked, "shutdown")) {
            try postponed.append(memory, line);
            continue;
        }
        memory.free(line);
        if (message.method != null) {
            _ = try simple(arena, message);
        } else if (message.id == .integer and message.id.integer == calls) {
            if (message.@"error") |fault| {
                refusal = fault.data.code; // of the arena, which outlives the reply
                return error.Refused;
            }
            return message.result;
        }
    }
}

fn parse(arena: std.mem.Allocator, line: []const u8) !Message {
    const options: std.json.ParseOptions = .{ .ignore_unknown_fields = true, .allocate = .alloc_always };
    return std.json.parseFromSliceLeaky(Message, arena, line, options);
}

fn answer(arena: std.mem.Allocator, id: std.json.Value, result: anytype) !void {
    try send(arena, .{ .jsonrpc = "2.0", .id = id, .result = result });
}

fn send(arena: std.mem.Allocator, message: anytype) !void {
    const words = std.json.fmt(message, .{ .emit_null_optional_fields = false });
    const line = try std.fmt.allocPrint(arena, "{f}\n", .{words});
    var rest: []const u8 = line;
    while (rest.len > 0) {
        var written: usize = 0;
        const piece = [_]wasi.ciovec_t{.{ .base = rest.ptr, .len = rest.len }};
        if (wasi.fd_write(1, &piece, 1, &written) != .SUCCESS) return error.HostGone;
        rest = rest[written..];
    }
}

/// The next line without its newline, to be freed by the caller; null when the host is gone.
fn nextLine() ?[]u8 {
    while (true) {
        if (std.mem.indexOfScalar(u8, input.items, '\n')) |end| {
            const line = memory.dupe(u8, input.items[0..end]) catch return null;
            input.replaceRange(memory, 0, end + 1, &.{}) catch return null;
            return line;
        }
        if (input.items.len > line_bytes) return null;
        const room = input.addManyAsSlice(memory, 4096) catch return null;
        var count: usize = 0;
        const piece = [_]wasi.iovec_t{.{ .base = room.ptr, .len = room.len }};
        const outcome = wasi.fd_read(0, &piece, 1, &count);
        input.shrinkRetainingCapacity(input.items.len - room.len + count);
        if (outcome != .SUCCESS or count == 0) return null;
    }
}
