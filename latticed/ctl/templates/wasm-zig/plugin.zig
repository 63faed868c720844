//! @id@: greets, and counts how often. A module that is called: it exports memory, alloc and invoke.
//!
//! What is exchanged is JSON. Each invocation gets a fresh instance, so nothing is freed and nothing is left behind; what
//! is to last is kept by the host (kv.put).

const std = @import("std");

pub const panic = std.debug.no_panic; // a bug is a trap, and the daemon tells which

const memory = std.heap.wasm_allocator;

extern "latticed" fn call(at: [*]const u8, length: usize) u64;

const Request = struct {
    action: []const u8 = "",
    payload: std.json.Value = .null,
};
const Reply = struct {
    ok: bool,
    result: ?struct { hello: []const u8, count: u32 } = null,
    @"error": ?[]const u8 = null,
};
const Answer = struct {
    result: struct { value: ?[]const u8 = null } = .{},
    @"error": ?struct { message: []const u8 = "refused" } = null,
};

export fn alloc(length: usize) [*]u8 {
    return (memory.alloc(u8, length) catch @trap()).ptr;
}

export fn invoke(at: [*]const u8, length: usize) u64 {
    const reply = carriedOut(at[0..length]) catch Reply{ .ok = false, .@"error" = "expected {\"name\": text}" };
    const text = std.json.Stringify.valueAlloc(memory, reply, .{ .emit_null_optional_fields = false }) catch @trap();
    return @as(u64, @intFromPtr(text.ptr)) << 32 | text.len;
}

fn carriedOut(text: []const u8) !Reply {
    const request = try parsed(Request, text);
    if (std.mem.eql(u8, request.action, "greet")) return greet(request.payload);
    return .{ .ok = false, .@"error" = "no such action" };
}

fn greet(payload: std.json.Value) !Reply {
    if (payload != .object) return error.Unexpected;
    const name = payload.object.get("name") orelse return error.Unexpected;
    if (name != .string) return error.Unexpected;
    const kept = try hostCall("kv.get", .{ .key = "count" });
    const count = (std.fmt.parseInt(u32, kept.result.value orelse "0", 10) catch 0) + 1;
    const put = try hostCall("kv.put", .{ .key = "count", .value = try std.fmt.allocPrint(memory, "{d}", .{count}) });
    if (put.@"error") |refused| return .{ .ok = false, .@"error" = refused.message };
    return .{ .ok = true, .result = .{ .hello = name.string, .count = count } };
}

fn hostCall(method: []const u8, params: anytype) !Answer {
    const request = try std.json.Stringify.valueAlloc(memory, .{ .method = method, .params = params }, .{});
    const answer = call(request.ptr, request.len);
    const at: [*]const u8 = @ptrFromInt(@as(usize, @truncate(answer >> 32)));
    return parsed(Answer, at[0..@as(u32, @truncate(answer))]);
}

fn parsed(comptime T: type, text: []const u8) !T {
    return std.json.parseFromSliceLeaky(T, memory, text, .{ .ignore_unknown_fields = true });
}
