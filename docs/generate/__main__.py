"""Writes the pages, or with --check names those that are not what the code says: python -m generate [--check]"""

from __future__ import annotations

import os
import sys

# Help is wrapped to this width, whatever terminal this runs on.
os.environ["COLUMNS"] = "80"

from generate import complete, pages


def main() -> int:
    """Write all pages or check them; 1 when some differ."""
    check = "--check" in sys.argv
    if found := list(complete.faults()):
        sys.stdout.write("\n".join([*found, ""]))
        return 1
    stale = [
        (path, text) for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        sys.stdout.write(f"{path}: not what the code says: make reference\n" if check else f"{path}\n")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return int(check and bool(stale))


sys.exit(main())
