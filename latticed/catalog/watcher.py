"""inotify on one plugin directory and on each bundle in it. Events only say where to look; scans find what is there.

Built on watchdog's `InotifyFD`, the layer beneath its Observer, because the Observer loses what matters here: it holds
back what follows a move for 500 ms, walks into whatever tree a bundle contains, is silent about watches it could not
add, and its thread can die of its own bookkeeping. Events are filtered by the kernel: on close, rename, deletion and
changed permissions, on each write only of what is active (decision 5). Callbacks run on watchdog's thread: they note
what happened and wake the loop once.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from typing import TYPE_CHECKING, Final

from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyFD, Mask

from latticed.bundle import read
from latticed.catalog import mounts
from latticed.catalog import root as roots
from latticed.kit import files
from latticed.kit.value import Value
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from watchdog.observers.inotify_c import InotifyEvent, WatchDescriptor

    from latticed.catalog.dirty_names import DirtyNames
    from latticed.catalog.root import Root, RootId

_log = logging.getLogger(__name__)

# Left out are IN_OPEN and IN_CLOSE_NOWRITE, since judging itself would cause events, and IN_MODIFY, since a copy would
# cause one for each write(2). IN_ATTRIB is for chmod and chown.
# IN_ONLYDIR and IN_DONT_FOLLOW make inotify_add_watch(2) itself refuse a file or link.
_MASK: Final = Mask(
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_ATTRIB
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF
    | InotifyConstants.IN_ONLYDIR
    | InotifyConstants.IN_DONT_FOLLOW
)
# For the bundles of active plugins: every write(2) is reported.
_WRITES: Final = Mask(_MASK | InotifyConstants.IN_MODIFY)
_ARRIVED: Final = InotifyConstants.IN_CREATE | InotifyConstants.IN_MOVED_TO
_PATH_ONLY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # does not ask what is mounted there
# An empty name means the watched directory itself (inotify(7): `name` is present only for files in it).
_PARTS: Final = frozenset({read.MANIFEST.encode(), read.ARTIFACT.encode(), b""})


class _Watch(Value, frozen=True, kw_only=True):
    """One watch in the kernel: its descriptor, its callback's id, the (dev, inode) that it is on, and which events."""

    wd: WatchDescriptor
    id: CallbackId
    inode: RootId
    every_write: bool = False


class Watcher:
    """Watches one plugin directory and notes in `dirty` what happened.

    `arm_root`, `arm` and `retain` are called by scans, off the event loop; there is no other way to a watch, except
    that a bundle directory which appears is armed at once, before its files are written.
    """

    def __init__(self, path: Path, *, dirty: DirtyNames) -> None:
        self._path = path
        self._dirty = dirty
        # Reentrant: arm_root holds it when it calls disarm_all.
        self._lock = threading.RLock()
        self._inotify: InotifyFD | None = None
        # watchdog keeps callbacks of one watch by id: fresh ids let an old and a new one exist side by side.
        self._ids = itertools.count(1)
        self._root: _Watch | None = None
        self._watches: dict[str, _Watch] = {}
        self._unwatched: set[str] = set()
        self._mounted: set[str] = set()
        self._reason = ""
        self._failure = ""
        self._closed = False
        self.active: set[str] = set()
        """The bundles of active plugins: each write to them causes an event (from the next `arm` on), not only the
        last."""

    def start(self) -> None:
        """Ask the kernel for an inotify instance; when there is none, `failure` says so and only scans see changes."""
        try:
            inotify = InotifyFD()
        except OSError as error:
            self._failure = f"no inotify instance: {error.strerror}"
            return
        # watchdog opens it without CLOEXEC: no child may inherit it.
        os.set_inheritable(inotify._inotify_fd, False)  # noqa: SLF001 - there is no public name for it
        inotify.start()
        with self._lock:
            self._inotify = inotify
            self._failure = ""
        # close() sets the flag, then stops; here the instance is published, then the flag read: one of both sees it.
        if self._closed:
            self.stop()

    def close(self) -> None:
        """Stop for good: a `start` that runs on another thread meanwhile is undone. Blocks, as `stop`."""
        self._closed = True
        self.stop()

    def stop(self) -> None:
        """End the inotify instance and wait for watchdog's thread; blocks, so not for the event loop's thread."""
        with self._lock:
            # Only taken out here: with the lock held, the join below could wait for a callback that wants the lock.
            inotify, self._inotify, self._root = self._inotify, None, None
            self._watches.clear()
            self._unwatched.clear()
            self._mounted.clear()
        if inotify is None:
            return
        # A thread that died while it waited for events leaves its descriptors to us.
        orphaned = not inotify.is_alive() and inotify._is_reading  # noqa: SLF001 - watchdog does not say
        inotify.stop()
        inotify.join()
        if orphaned:
            inotify._close_resources()  # noqa: SLF001 - its thread would have, and has ended

    @property
    def alive(self) -> bool:
        """Whether events can arrive: there is an inotify instance, and its thread runs."""
        inotify = self._inotify
        return inotify is not None and inotify.is_alive()

    @property
    def watched_root(self) -> RootId | None:
        """(dev, inode) of the plugin directory that is watched; None when none is."""
        watch = self._root
        return watch.inode if watch is not None else None

    @property
    def failure(self) -> str:
        """A sentence about what is not watched and why; empty when all is. Takes no lock: the event loop calls it."""
        missed = len(self._unwatched)
        return self._failure or (f"{missed} bundles are not watched ({self._reason})" if missed else "")

    @property
    def mounted(self) -> tuple[str, ...]:
        """The names on which something is mounted: these are not watched, only scans see changes there."""
        return tuple(self._mounted)

    def arm_root(self, root: Root) -> None:
        """Watch this plugin directory; watches of another one, and of its bundles, end. Failing sets `failure`."""
        with self._lock:
            if self._inotify is None or (self._root is not None and self._root.inode == root.id):
                return
            self.disarm_all()
            try:
                # By descriptor: what is watched is what was opened, whatever the path means by now. The trailing "/."
                # has the kernel go through the link in /proc, which IN_DONT_FOLLOW does not follow as last component.
                self._root = self._add(f"/proc/self/fd/{root.fd}/.", root.id, _RootEvents(self))
                self._failure = ""
            except OSError as error:
                self._failure = f"the plugin directory is not watched: {error.strerror}"

    def arm(self, name: str, root: Root, inode: RootId | None = None) -> None:
        """Watch the bundle directory `name`, unless it is watched. Watch first, read then: no change is missed.

        `inode` is what the caller found there. What is mounted in the plugin directory is not watched: its file system
        need not answer, nor report changes, and inotify_add_watch(2) would wait for it with a lock of ours held.
        """
        # Without the lock, since this is all that happens to most names in most scans; _arm asks again with it.
        known = self._watches.get(name)
        is_armed = known is not None and (known.inode, known.every_write) == (inode, name in self.active)
        # It keeps its watch beneath what is mounted on it, and where it could not be opened for another one.
        if is_armed and name not in self._mounted and name not in self._unwatched:
            return
        try:
            with files.closing(os.open(name, _PATH_ONLY, dir_fd=root.fd)) as place:
                # Neither O_PATH nor reading fdinfo asks the file system there: a dead one cannot hang here.
                if mounts.mount_of(place) != root.mount:
                    self._mounted.add(name)
                    return
                self._mounted.discard(name)
                found = os.fstat(place)
                self._arm(name, root, place, (found.st_dev, found.st_ino))
        except OSError as error:
            # The first three are no bundles. One that is closed to us is refused as unreadable; when that changes,
            # the plugin directory's own watch says so.
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES}:
                self._unwatched.add(name)
                self._reason = error.strerror or str(error)

    def _arm(self, name: str, root: Root, place: int, inode: RootId) -> None:
        """Put the watch of `name` on the directory open at `place`, unless it is on it already."""
        every_write = name in self.active
        with self._lock:
            # Again, now with the lock: watchdog's thread arms new bundles while a scan does the same.
            known = self._watches.get(name)
            is_armed = known is not None and (known.inode, known.every_write) == (inode, every_write)
            if self._root is None or self._root.inode != root.id:
                return
            if not is_armed:
                try:
                    callback = _BundleEvents(self, name)
                    made = self._add(f"/proc/self/fd/{place}/.", inode, callback, every_write=every_write)
                finally:  # only now: the kernel has one watch for one directory, which is never without it
                    self._disarm(name)
                self._watches[name] = made
            self._unwatched.discard(name)

    def retain(self, names: Collection[str]) -> None:
        """End the watches of all bundles but these."""
        with self._lock:
            for name in [name for name in self._watches if name not in names]:
                self._disarm(name)
            self._unwatched.intersection_update(names)
            self._mounted.intersection_update(names)

    def disarm_all(self) -> None:
        """End all watches; the inotify instance stays."""
        with self._lock:
            watches = [*self._watches.values(), *([self._root] if self._root is not None else [])]
            self._watches.clear()
            self._unwatched.clear()
            self._mounted.clear()
            self._root = None
            if self._inotify is not None:
                self._inotify.remove_callbacks([(watch.wd, watch.id) for watch in watches])

    def _add(
        self, path: str, inode: RootId, callback: _RootEvents | _BundleEvents, *, every_write: bool = False
    ) -> _Watch:
        """A new watch on the directory with this inode, by the `path` of its open descriptor; `callback` gets events.

        `every_write`: each write is one, not only the last before a close. OSError when the kernel has none to give.
        """
        if self._inotify is None:
            raise OSError(errno.ENODEV, "no inotify instance")
        own_id = CallbackId(next(self._ids))
        wd = self._inotify.add_callback(os.fsencode(path), _WRITES if every_write else _MASK, callback, own_id)
        # The callback was entered under -1 all the same: take it out, or the next such failure would be added to it.
        if wd == -1:  # watchdog's way of saying EACCES
            self._inotify.remove_callbacks([(wd, own_id)])
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return _Watch(wd=wd, id=own_id, inode=inode, every_write=every_write)

    def _disarm(self, name: str) -> None:
        """Take the watch of `name` away, if it has one; with the lock held."""
        watch = self._watches.pop(name, None)
        if watch is not None and self._inotify is not None:
            self._inotify.remove_callbacks([(watch.wd, watch.id)])

    # What follows runs on watchdog's thread, whose end is noticed only by a later check: nothing may be raised.

    def on_root_event(self, event: InotifyEvent) -> None:
        """Called for an event in the plugin directory: a name came or went, or something happened to the directory
        itself.
        """
        try:
            self._on_root_event(event)
        except Exception:  # noqa: BLE001 - see above; the scan finds what is missed here
            _log.exception("watch_event_failed")
            self._dirty.note(scan=True)

    def _on_root_event(self, event: InotifyEvent) -> None:
        """Watch what appeared, forget what was moved away, and mark the name."""
        if not event.name:  # the directory itself: its permissions, its name, its end, its file system's end
            self._dirty.note(scan=True)
            return
        name = os.fsdecode(event.name)
        # The same filter as a scan's: otherwise each event in a hidden directory would mark a name that no scan lists.
        if not roots.may_be_bundle(name):
            return
        # A watch follows the inode: it would report, under the old name, what happens wherever it was moved to.
        if event.is_moved_from:
            with self._lock:
                self._disarm(name)
        elif event.mask & _ARRIVED and event.is_directory:
            self._arm_new(name)
        self._dirty.note(name)

    def _arm_new(self, name: str) -> None:
        """Watch a bundle directory that has just appeared, before its files are written."""
        with self._lock:
            watched = self._root
        try:
            # Opened anew: no descriptor of the directory is kept between passes (root.Root).
            root = roots.open_root(self._path)
        except Problem:  # the directory is being removed: a scan says so
            return
        try:
            # By now the path may mean another directory than the one whose event this is.
            if watched is not None and watched.inode == root.id:
                self.arm(name, root)
        finally:
            root.close()

    def on_bundle_event(self, name: str, event: InotifyEvent) -> None:
        """Called for an event in a bundle's directory: marks its name if one of the two files, or the directory itself,
        is concerned.
        """
        if event.name in _PARTS:
            self._dirty.note(name)

    def on_root_deleted(self, wd: WatchDescriptor) -> None:
        """The kernel has ended the watch of the plugin directory: it, or its file system, is gone."""
        with self._lock:
            # By descriptor: arm_root may have put another watch in its place since the kernel ended this one.
            if self._root is not None and self._root.wd == wd:
                self._root = None
        self._dirty.note(scan=True)

    def on_bundle_deleted(self, name: str, wd: WatchDescriptor) -> None:
        """The kernel has ended the watch of a bundle, whose directory is gone."""
        with self._lock:
            # The name may have been armed anew, for another directory, since the kernel ended this watch.
            if name in self._watches and self._watches[name].wd == wd:
                del self._watches[name]
        self._dirty.note(name)

    def on_overflow(self) -> None:
        """The kernel dropped events (inotify(7), IN_Q_OVERFLOW): have everything scanned, and watched anew."""
        _log.warning("watch_overflowed")
        with self._lock:
            # A directory may have been replaced unseen. None has the inode (0, 0), so the next scan arms all again.
            # Descriptor and id stay, since removing the old callback needs them. Keys stay too, so iterating is safe.
            for name, watch in self._watches.items():
                self._watches[name] = _Watch(wd=watch.wd, id=watch.id, inode=(0, 0))
        self._dirty.note(scan=True, overflows=1)


class _RootEvents:
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


class _BundleEvents:
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
        """Nothing: the callback of the plugin directory gets the same overflow."""
