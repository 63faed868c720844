;; hello-wasm/artifact, written by hand: a small module that is called for each invocation (docs/write/wasm.md).
;; It has the host write a line to the log, and answers {"ok":true,"message":"hello, host","result":<what it was asked>}.
;; wasmtime.wat2wasm (PyPI: wasmtime) makes the same bytes of it.
(module
  ;; call(address, length of a request as JSON) -> address << 32 | length of the answer
  (import "latticed" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (global $free (mut i32) (i32.const 1024))
  (data (i32.const 0) "{\"method\":\"log.write\",\"params\":{\"level\":\"info\",\"message\":\"hello, host\"}}")
  (data (i32.const 128) "{\"ok\":true,\"message\":\"hello, host\",\"result\":")

  ;; Room for what the host writes. Nothing is ever freed: each invocation has a memory of its own.
  (func $alloc (export "alloc") (param $length i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $free))
    (global.set $free (i32.add (local.get $at) (local.get $length)))
    (block $enough
      (br_if $enough (i32.le_u (global.get $free) (i32.shl (memory.size) (i32.const 16))))
      (br_if $enough
        (i32.ge_s
          (memory.grow (i32.add (i32.shr_u (local.get $length) (i32.const 16)) (i32.const 1)))
          (i32.const 0)))
      (unreachable))
    (local.get $at))

  ;; invoke(address, length of {"action", "payload"}) -> address << 32 | length of the reply
  (func (export "invoke") (param $at i32) (param $length i32) (result i64)
    (local $reply i32)
    (drop (call $call (i32.const 0) (i32.const 72)))
    (local.set $reply (call $alloc (i32.add (local.get $length) (i32.const 45))))
    (memory.copy (local.get $reply) (i32.const 128) (i32.const 44))
    (memory.copy (i32.add (local.get $reply) (i32.const 44)) (local.get $at) (local.get $length))
    (i32.store8 (i32.add (i32.add (local.get $reply) (i32.const 44)) (local.get $length)) (i32.const 125))
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get $reply)) (i64.const 32))
      (i64.extend_i32_u (i32.add (local.get $length) (i32.const 45))))))
