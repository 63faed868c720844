"""What is alive: one handle per plugin, kept as the lifecycle wants it.

`decide` is pure; `handle` performs what it says; `supervisor` holds the handles and their health ticks.
The package never decides what an operator wants, and a failure of one plugin never leaves its handle.
"""
