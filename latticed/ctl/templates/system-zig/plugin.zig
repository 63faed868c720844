//! @id@: greets. It speaks latticed-stdio-1: JSON-RPC 2.0, one message a line, on stdin and stdout; stderr is the log.

const std = @import("std");
const linux = std.os.linux;

pub const panic = std.debug.no_panic; // a bug ends the plugin, and the daemon starts it again

const memory = std.heap.page_allocator;
const most_bytes = 1 << 20; // of a line

const Params = struct {
    action: []const u8 = "",
    payload: std.json.Value = .null,
};
const Message = struct {
    id: std.json.Value = .null,
    method: ?[]const u8 = null,
    params: ?Params = null,
};
const Reply = struct {
    ok: bool,
    message: []const u8 = "",
    result: ?struct { hello: []const u8 } = null,
    @"error": ?[]const u8 = null,
};

var input: std.ArrayList(u8) = .empty;

pub fn main() u8 {
    while (nextLine() catch return 1) |line| {
        defer memory.free(line);
        var arena = std.heap.ArenaAllocator.init(memory);
        defer arena.deinit();
        const goes_on = handle(arena.allocator(), line) catch return 1;
        if (!goes_on) return 0;
    }
    return 0;
}

/// Answers one request; false after the host asked us to end.
fn handle(arena: std.mem.Allocator, line: []const u8) !bool {
    const message = try std.json.parseFromSliceLeaky(Message, arena, line, .{ .ignore_unknown_fields = true });
    const method = message.method orelse return true;
    if (std.mem.eql(u8, method, "invoke")) {
        try answer(arena, message.id, try invoke(message.params orelse .{}));
    } else if (std.mem.eql(u8, method, "health")) {
        try answer(arena, message.id, .{ .status = "healthy", .message = "" });
    } else if (std.mem.eql(u8, method, "initialize") or std.mem.eql(u8, method, "shutdown")) {
        try answer(arena, message.id, .{});
        return std.mem.eql(u8, method, "initialize");
    } else {
        const fault = .{ .code = -32601, .message = "no such method" };
        try send(arena, .{ .jsonrpc = "2.0", .id = message.id, .@"error" = fault });
    }
    return true;
}

/// One action: what it is asked for and what it answers are any JSON.
fn invoke(params: Params) !Reply {
    if (!std.mem.eql(u8, params.action, "greet")) return failed("no such action");
    if (params.payload != .object) return failed("expected a payload with a text name");
    const name = params.payload.object.get("name") orelse return failed("expected a payload with a text name");
    if (name != .string) return failed("expected a payload with a text name");
    try write(2, "greeted\n"); // the log
    return .{ .ok = true, .result = .{ .hello = name.string } };
}

fn failed(message: []const u8) Reply {
    return .{ .ok = false, .message = message, .@"error" = message };
}

fn answer(arena: std.mem.Allocator, id: std.json.Value, result: anytype) !void {
    try send(arena, .{ .jsonrpc = "2.0", .id = id, .result = result });
}

fn send(arena: std.mem.Allocator, message: anytype) !void {
    const words = std.json.fmt(message, .{ .emit_null_optional_fields = false });
    try write(1, try std.fmt.allocPrint(arena, "{f}\n", .{words}));
}

fn write(fd: i32, data: []const u8) !void {
    var rest = data;
    while (rest.len > 0) {
        const written = linux.write(fd, rest.ptr, rest.len);
        if (@as(isize, @bitCast(written)) <= 0) return error.HostGone;
        rest = rest[written..];
    }
}

/// The next line without its newline, to be freed by the caller; null when the host is gone.
fn nextLine() !?[]u8 {
    while (true) {
        if (std.mem.indexOfScalar(u8, input.items, '\n')) |end| {
            const line = try memory.dupe(u8, input.items[0..end]);
            try input.replaceRange(memory, 0, end + 1, &.{});
            return line;
        }
        if (input.items.len > most_bytes) return error.LineTooLong;
        const room = try input.addManyAsSlice(memory, 4096);
        const count: isize = @bitCast(linux.read(0, room.ptr, room.len));
        input.shrinkRetainingCapacity(input.items.len - room.len + @as(usize, @intCast(@max(count, 0))));
        if (count <= 0) return null;
    }
}
