"""The fleet: what the agent of a host believes, decides and asks its daemon for. Optional; nothing below knows it.

A process of its own, which acts over the control socket like any operator. What comes from the network is believed only
once the operator's key has signed it; a plan is never approved here, a script never, no secret's value is ever read.
"""
