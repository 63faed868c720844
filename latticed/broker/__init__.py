"""Mediates every call of a plugin to the host: decide (pure), limit, record, dispatch.

A Gate answers the calls of one plugin and nothing else. It never approves, grants or widens anything, and a call that
cannot be recorded is not carried out.
"""
