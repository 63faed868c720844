"""One supervised child: start it confined, talk to it through pipes, watch it, end it with everything it started.

Every later room that needs a process gets it here. This room knows how a child lives and dies, not what it says:
protocols belong to `runners`, whether to start again to `supervisor`. It must never signal by a bare pid that may mean
somebody else, never need a thread per child, and never leave anything behind: no process, no descriptor, no group.
"""
