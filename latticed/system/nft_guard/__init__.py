"""nft guard: a default-drop firewall in one nftables table of its own, from an intent that an operator reviews.

The pure half: `decode` reads an intent strictly, `check` says what is wrong with it (with and without facts of the live
host), `compile` makes the table's lines of it, `render` writes them as one nft file, `parse` reads them back from
`nft -j`, `packets` says which line decides for a packet, and `narrows` whether a new intent only takes away. Nothing
here opens a file, starts nft or reads a clock: facts, times and listings are arguments.
"""
