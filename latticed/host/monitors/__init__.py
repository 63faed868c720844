"""Watching targets for plugins: what to check, when, how, and what follows from a result.

`schedule` is the actor; `decide`, `turns` and `icmp` are pure; `probes` make the checks, through the egress guard. This
part of the room must never connect anywhere the guard has not judged, and never alerts on anything but a transition.
"""
