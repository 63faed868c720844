"""One supervised child: start it confined, talk to it through pipes, watch it, end it with everything it started.

Whatever starts a process uses this package. Protocols belong to `runners`, whether to start again to `supervisor`. It
must never signal by a bare pid (it may have been reused), never need a thread per child, and never leave a process,
descriptor or group behind.
"""
