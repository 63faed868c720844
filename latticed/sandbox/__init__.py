"""How a child is confined: levels, probe, namespaces, Landlock, seccomp, rlimits, cgroup, the launch stub.

This room plans what a child may do (pure), finds out what the host can give (active probe), and starts the stub that
carries the plan out on itself before it becomes the child. It must never give less than what was required without
saying so, never run an artifact that was not verified, never leave a child uid 0, and never move, signal or wait for
a process that it did not start. It knows nothing of plugins' protocols; who watches and ends a child is `processes`.
"""
