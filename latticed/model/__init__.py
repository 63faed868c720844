"""The nouns of the house: ids, capabilities, manifests, verdicts, lifecycle, health, host calls, errors.

Everything here is a frozen value or a pure function over such values.
This room never does I/O, never reads a clock, never imports asyncio.
"""
