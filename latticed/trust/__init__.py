"""Trust decisions: verdicts on bundles, claims to plugin ids, verification of audit chains.

Pure: bytes and frozen values in, verdicts out; a verdict is a value, not an exception. It reads no clock, opens no file
but the private keys that an author names (`key_files`), never touches the network and never imports asyncio.
"""
