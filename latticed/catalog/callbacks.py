"""What watchdog calls for each watch: it hands on to the watcher."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchdog.observers.inotify_c import InotifyEvent, WatchDescriptor

    from latticed.catalog.watcher import Watcher


class RootEvents:
    """watchdog's WatchCallback for the plugin directory."""

    __slots__ = ("_watcher",)

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def on_event(self, event: InotifyEvent) -> None:
        self._watcher.on_root_event(event)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        self._watcher.on_root_deleted(wd)

    def on_queue_overflow(self) -> None:
        self._watcher.on_overflow()


class BundleEvents:
    """watchdog's WatchCallback for one bundle."""

    __slots__ = ("_name", "_watcher")

    def __init__(self, watcher: Watcher, name: str) -> None:
        self._watcher = watcher
        self._name = name

    def on_event(self, event: InotifyEvent) -> None:
        self._watcher.on_bundle_event(self._name, event)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        self._watcher.on_bundle_deleted(self._name, wd)

    def on_queue_overflow(self) -> None:
        """The plugin directory's own callback has heard of it."""
