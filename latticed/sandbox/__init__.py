"""How a child is confined: levels, probe, namespaces, Landlock, seccomp, rlimits, cgroup, the launch.

It plans what a child may do (pure), probes what the host supports, and starts a program, which applies the plan to
itself before it executes the child's program. It must never confine less than required without an error, never run
an artifact that was not verified, never leave a child uid 0, and never move, signal or wait for a process that it did
not start. Plugins' protocols are in `runners`; `processes` watches and ends a child.
"""
