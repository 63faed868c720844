"""An interpreter installed in a home directory exposes nothing of that home to the plugin."""

from __future__ import annotations

import asyncio
import os
import shutil

import pytest

from latticed.processes import child
from latticed.processes.exits import Exit
from latticed.sandbox import artifact, levels, spec
from tests.house import children

LOOKS = b"""#!/usr/bin/env mysh
for name in .secret lib/mysh/mine lib/other share/keys; do
  if command eval 'read x <"$HOME/$name"'; then echo "read $name"; fi
done 2>/dev/null
exit 0
"""


@pytest.mark.parametrize("level", ["open", "filtered", "isolated"])
async def test_only_the_interpreters_library_is_visible(tmp_path, level):
    """Hidden files of the home directory and other libraries are not."""
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_uid == os.getuid() and place != place.parent:
            place.chmod(place.stat().st_mode | 0o055)
    for name in (".secret", "lib/mysh/mine", "lib/other", "share/keys"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x\n")
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/sh", tmp_path / "bin/mysh")
    heard, ended = children.Heard(), asyncio.get_running_loop().create_future()
    interpreters = {"mysh": str(tmp_path / "bin/mysh")}
    with artifact.of_bytes(LOOKS, interpreters=interpreters) as sealed:
        request = spec.ChildRequest(
            program=sealed, environment={"HOME": str(tmp_path)}, ids=children.ids(), interpreters=interpreters
        )
        chosen = levels.Chosen(level=levels.Level.of(level), features=frozenset({levels.THREADS}))
        plan = spec.build(request, chosen, children.probed())
        await child.spawn(plan, on_exit=ended.set_result, stdout=heard, stderr=children.Heard())
    assert await ended == Exit(status=0)
    mine = ["read lib/mysh/mine"]
    everything = ["read .secret", *mine, "read lib/other", "read share/keys"]
    assert heard.data.decode().splitlines() == (everything if level == "open" else mine)
