"""Running plugins: one handle per plugin, kept in the state that the lifecycle asks for.

`decide` is pure; `handle` performs its actions; `supervisor` has the handles and their health ticks.
The package never decides what an operator wants, and a failure of one plugin never leaves its handle.
"""
