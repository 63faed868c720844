"""Plans at root: what the root helper decides, keeps and does (contracts §12), and the messages of its socket.

`protocol` has the messages, `kind` what a kind of plan has to be able to do, `decide` and `review` decide (pure),
`store` keeps, `operations` acts, `dead_man` undoes what nobody confirmed. The helper's front door is `latticed.apply`.
Nothing here takes a path, an argument vector or bytes from a caller, trusts the daemon's ledger, or runs as the daemon.
"""
