"""Keeping DNS records up to date for plugins: what is wanted, how it stands, who is asked, and when.

`schedule` is the actor; `standing` and `spec` are pure; `cloudflare` and `rfc2136` ask the providers, through the
egress guard. This part of the room must never publish an address that is not public unless the operator says so, never
repeat what a provider has denied, and never delete a record that it cannot know to be its own.
"""
