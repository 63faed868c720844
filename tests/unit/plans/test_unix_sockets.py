"""Which unix sockets listen at a path, as the kernel has them."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from latticed.model.errors import Problem
from latticed.plans import unix_sockets
from tests.house import forks, strangers


def listener(stack, name):
    made = stack.enter_context(socket.socket(socket.AF_UNIX))
    made.bind(name)
    made.listen()
    return os.fstat(made.fileno()).st_ino


def test_those_of_a_path_are_found_whoever_else_listens_and_those_that_were_unlinked(tmp_path):
    """Far more than the kernel puts into one part of its answer."""
    wanted = str(tmp_path / "s")
    with contextlib.ExitStack() as stack:
        for number in range(300):
            listener(stack, str(tmp_path / f"{number:050}"))
        first = listener(stack, wanted)
        os.unlink(wanted)
        second = listener(stack, wanted)
        for number in range(300):
            listener(stack, f"\0{number:050}{os.getpid()}")
        assert unix_sockets.listening(wanted) == {first, second}
    assert unix_sockets.listening(wanted) == frozenset()


def test_other_names_that_look_like_it_are_none(tmp_path, monkeypatch):
    wanted = str(tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        for name in ("s", f"\0{wanted}", f"\0\n0 0 0 0 0 0 1 {wanted}", f"{wanted}\n", wanted[:-1] + "t"):
            listener(stack, name)
        os.unlink("s")
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.bind(wanted)
        assert unix_sockets.listening(wanted) == frozenset()


@forks.as_root
def test_another_user_s_of_the_same_path_is_none(tmp_path):
    wanted = tmp_path / "s"
    with strangers.bound(bytes(wanted), over=tmp_path):
        assert unix_sockets.listening(str(wanted)) == frozenset()


def test_a_kernel_that_lists_none_is_said(monkeypatch):
    monkeypatch.setattr(unix_sockets, "_BY_FAMILY", 19)  # one that no kernel takes for unix sockets
    with pytest.raises(Problem, match="does not list unix sockets") as caught:
        unix_sockets.listening("/s")
    assert caught.value.code == "tool_failed"
