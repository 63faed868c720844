"""What a child's launcher is made of. Imports nothing of tests: `confined.py` has its source run where they are not."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any
from unittest import mock

from latticed.sandbox import call_program, launch_calls

if TYPE_CHECKING:
    from latticed.sandbox import spec


def launchers_path(made: spec.ChildSpec) -> int:
    """The address of the empty path by which the launcher of this child executes its program; 0 of a stub, where it is
    another one each time.
    """
    found = [0]
    real = call_program.Calls.call

    def call(calls: Any, name: str, *arguments: Any, **more: Any) -> None:
        if name == "execveat":
            found.extend(struct.unpack_from("<Q", calls._image, calls.constant(arguments[1]).place))
        real(calls, name, *arguments, **more)

    launch_calls._made.cache_clear()
    with mock.patch.object(call_program.Calls, "call", call):
        launch_calls.executable(made.plan)
    return found[-1]
