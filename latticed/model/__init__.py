"""Types that packages share: ids, capabilities, manifests, verdicts, lifecycle, health, host calls, errors.

Everything here is a frozen value or a pure function over such values.
It never does I/O, never reads a clock, never imports asyncio.
"""
