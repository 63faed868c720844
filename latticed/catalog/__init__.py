"""What lies on disk right now: every bundle of the plugin directories and the verdict on it, as a stream of changes.

The scan decides; events only say where to scan sooner (architecture, decision 4). The store beside it keeps the
verified pairs that runners start from. The package never decides what may be installed or run, never writes to a plugin
directory, never follows a link in one, and never blocks the event loop on a file system.
"""

from latticed.catalog.catalog import Catalog, Sighting
from latticed.catalog.store import Store

__all__ = ["Catalog", "Sighting", "Store"]
