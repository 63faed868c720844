"""task.*: scripts that plugins submit; one that an operator has approved is run once, confined.

Nothing runs without an approval of exactly these bytes; no process of a run outlives it.
"""
