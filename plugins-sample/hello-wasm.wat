;; hello-wasm/artifact, written by hand: a WASI command that writes one line to stderr, which is a plugin's log.
;; wat2wasm hello-wasm.wat gives the same bytes.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    ;; fd_write(stderr, one vector at 0, written at 8)
    (drop (call 0 (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8))))
  ;; the vector: 12 bytes at 16
  (data (i32.const 0) "\10\00\00\00\0c\00\00\00")
  (data (i32.const 16) "hello, host\n"))
