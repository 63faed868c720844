"""Benchmarks against known programs, in one run on one machine: `make bench`.

One file per target, each measured in a process of its own. It never asserts: it reports, and
docs/operate/performance.md says how to read it. It must never be imported by latticed.
"""
