"""What the operator decided: transitions, grants, candidates, the trust policy in force; audited and persisted.

`presence`, `advance` and `granting` are pure; `registry`, `decisions` and `pairs` act on one state. The package never
judges a bundle and never touches a process: the supervisor does that for it. Stopping never waits for disk or network.
"""
