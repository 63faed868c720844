"""What the operator decided: transitions, grants, candidates, the trust policy in force; audited and persisted.

`sight` and `advance` are pure; `lifecycle` acts. This room never judges a bundle and never touches a process: it
tells the supervisor what is wanted. Stopping never waits for anything.
"""
