"""The only gate between a plugin and the host: decide (pure), limit, record, dispatch.

A Gate answers the calls of one plugin and nothing else. It never approves, grants or widens anything, and a call that
cannot be recorded does not happen.
"""
