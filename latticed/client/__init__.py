"""The client of the control socket, for latticectl and the fleet: one request and its answer, bounded in time and size.

Each start of latticectl pays for its imports: it imports the standard library and `model` only. It trusts nobody whom
the socket's directory does not vouch for, and never decides what an answer means.
"""
