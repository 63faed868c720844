"""Tunnels to a provider's edge by a program of its own (cloudflared): what one may say, its files, how it is.

A tunnel leads to what an operator bound to its owner and to nothing else. What the tool itself would accept counts for
nothing here: meaning is checked first, then the tool is asked, then it is proved live.
"""
