"""The projects that `latticectl new` writes: source, tests, Makefile, README; a bundle where none is to be built.

The files of a template are in `templates/TYPE-LANGUAGE`, those that all share in `templates/common`; `@word@` in them
is replaced. The artifact of the wasm template in C is what ziglang makes of its source, byte for byte (a test says so).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.bundle.refusal import ARTIFACT
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEMPLATES: Final = Path(__file__).with_name("templates")
_ZIG: Final = "ZIG ?= $(PYTHON) -m ziglang  # pip install ziglang\n"
_ZIG_NEEDED: Final = "Building it needs Zig, which is on PyPI: `pip install ziglang`; or `make ZIG=zig`."
_TESTS_NEED: Final = (
    "The tests need `latticed.sdk` in the Python that runs them: `pip install latticed-sdk`, or `make PYTHON=…`."
)
_WASM_TESTS: Final = "The tests run the module in the real sandbox, by `latticectl run`."
_CAPABILITIES: Final = ("kv:read", "kv:write", "log:write")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectTemplate:
    """How a project of one type and language differs from the others.

    `files`: what its README says of each; `source`: what the artifact is made of, for make; `build`: the command;
    `tools`: what the Makefile says of compilers; `needs`: what the README says of them.
    """

    about: str
    files: Mapping[str, str]
    source: str
    build: str
    needs: str
    tools: str = ""
    capabilities: tuple[str, ...] = _CAPABILITIES
    protocol: str = ""
    example: str = """greet '{"name": "world"}'"""
    tests: str = "tests/test_plugin.py"
    watch: str = " --build '$(MAKE) -s artifact'"


_NATIVE: Final = "A plugin of latticed: a program that speaks latticed-stdio-1 itself, one line of JSON per message."
_MODULE: Final = "A plugin of latticed: a WebAssembly module, called for each invocation."

TEMPLATES: Final[Mapping[tuple[str, str], ProjectTemplate]] = {
    ("system", "python"): ProjectTemplate(
        about="A plugin of latticed in Python, on its SDK.",
        files={"src/plugin.py": "the plugin", "src/__main__.py": "what runs: the artifact is `src` as a zipapp"},
        source="$(shell find src -name '*.py') $(wildcard requirements.txt)",
        build="$(LATTICECTL) pack $(if $(wildcard requirements.txt),--requirements requirements.txt) src .",
        needs=f"{_TESTS_NEED} Packages of others, with hashes, go into `requirements.txt`: `latticectl pack --help`.",
        watch="",
    ),
    ("system", "sh"): ProjectTemplate(
        about="A plugin of latticed in POSIX sh: one process per invocation, which starts no other.",
        files={"plugin.sh": "the plugin"},
        source="plugin.sh",
        build="cp plugin.sh artifact",
        needs=_TESTS_NEED,
        protocol="stdio-json-v1",
        capabilities=("kv:read", "kv:write"),
    ),
    ("system", "c"): ProjectTemplate(
        about=_NATIVE,
        files={"plugin.c": "the plugin"},
        source="plugin.c",
        build="$(CC) -O2 -Wall -static -o artifact plugin.c",
        tools="# without a C compiler: make CC='python3 -m ziglang cc -target x86_64-linux-musl'\n",
        needs=f"Building it needs a C compiler and a static libc. {_TESTS_NEED}",
        capabilities=("log:write",),
    ),
    ("system", "zig"): ProjectTemplate(
        about=_NATIVE,
        files={"plugin.zig": "the plugin"},
        source="plugin.zig",
        build="$(ZIG) build-exe plugin.zig -OReleaseSmall -fstrip -fsingle-threaded -mcpu=baseline -femit-bin=artifact",
        tools=_ZIG,
        needs=f"{_ZIG_NEEDED} {_TESTS_NEED}",
        capabilities=("log:write",),
    ),
    ("system", "rust"): ProjectTemplate(
        about=_NATIVE,
        files={"plugin.rs": "the plugin"},
        source="plugin.rs",
        build="$(RUSTC) --edition 2021 -O -C target-feature=+crt-static -C strip=symbols -C panic=abort"
        " -o artifact plugin.rs",
        tools="RUSTC ?= rustc\n",
        needs=f"Building it needs rustc. {_TESTS_NEED}",
        capabilities=("log:write",),
    ),
    ("wasm", "c"): ProjectTemplate(
        about=_MODULE,
        files={"plugin.c": "the plugin"},
        source="plugin.c",
        build="$(ZIG) cc -target wasm32-freestanding -Os -s -nostdlib -Wl,--no-entry -o artifact plugin.c",
        tools=_ZIG,
        needs=f"{_ZIG_NEEDED} {_WASM_TESTS}",
        capabilities=("kv:read", "kv:write"),
    ),
    ("wasm", "zig"): ProjectTemplate(
        about=_MODULE,
        files={"plugin.zig": "the plugin"},
        source="plugin.zig",
        build="$(ZIG) build-exe plugin.zig -target wasm32-freestanding -OReleaseSmall -fstrip -fno-entry -rdynamic"
        " -femit-bin=artifact",
        tools=_ZIG,
        needs=f"{_ZIG_NEEDED} {_WASM_TESTS}",
        capabilities=("kv:read", "kv:write"),
    ),
    ("wasm", "rust"): ProjectTemplate(
        about=_MODULE,
        files={"plugin.rs": "the plugin"},
        source="plugin.rs",
        build="$(RUSTC) --edition 2021 -O --target wasm32-unknown-unknown --crate-type cdylib -C strip=symbols"
        " -C panic=abort -o artifact plugin.rs",
        tools="RUSTC ?= rustc\n",
        needs=f"Building it needs rustc with the target: `rustup target add wasm32-unknown-unknown`. {_WASM_TESTS}",
        capabilities=("kv:read", "kv:write"),
    ),
    ("worker", ""): ProjectTemplate(
        about="A plugin of latticed: a template that answers HTTP requests. No code of it is run.",
        files={"page.txt": "the template"},
        source="page.txt",
        build="cp page.txt artifact",
        needs="The tests render it by `latticectl run`.",
        capabilities=("worker:route",),
        example="""render '{"path": "/@id@/"}'""",
        tests="tests/test_page.py",
    ),
}
TYPES: Final = ("system", "wasm", "worker")
LANGUAGES: Final = ("python", "sh", "c", "zig", "rust")
_DEFAULT: Final = {"system": "python", "wasm": "c", "worker": ""}
_NOT: Final = {
    "wasm": "{language} is not compiled to a module that hosts take; write a system plugin in it: latticectl new system"
    " --lang {language}",
    "worker": "a worker is a template and has no language; what it cannot do, the action of a system plugin can",
}


def language(kind: str, wanted: str | None) -> str:
    """The language of a project of type `kind`; Problem usage for one that the type cannot have, with those it can."""
    if wanted is None:
        return _DEFAULT[kind]
    if (kind, wanted) not in TEMPLATES:
        able = ", ".join(name for type_, name in TEMPLATES if type_ == kind and name) or "none"
        raise Problem(
            "usage", f"expected a language of {kind} ({able}), found {wanted}", _NOT[kind].format(language=wanted)
        )
    return wanted


def project(kind: str, lang: str, plain: Mapping[str, Any]) -> dict[str, bytes]:
    """All files of a new project, by their path in it, but for the manifest, whose object is `plain`.

    The artifact is one of them where no compiler makes it.
    """
    template = TEMPLATES[kind, lang]
    words = {
        "id": str(plain["id"]),
        "name": str(plain["name"]),
        "publisher": str(plain.get("publisher") or "NAME"),
        "about": template.about,
        "files": "\n".join(
            f"| `{name}` | {text} |" for name, text in {**template.files, template.tests: "its tests"}.items()
        ),
        "source": template.source,
        "build": template.build,
        "tools": template.tools,
        "needs": template.needs,
        "watch": template.watch,
        "example": template.example.replace("@id@", str(plain["id"])),
    }
    found = {".gitignore" if name == "gitignore" else name: data for name, data in _files("common").items()}
    found |= _files(f"{kind}-{lang}" if lang else kind)
    if kind == "wasm":
        found |= _files("wasm")
    made = {path: data if path == ARTIFACT else _filled(data, words) for path, data in found.items()}
    if (artifact := _artifact(kind, lang, made)) is not None:
        made[ARTIFACT] = artifact
    return made


def manifest(kind: str, lang: str, *, plugin_id: str, name: str, publisher: str | None) -> dict[str, Any]:
    """A v2 manifest, ready to be signed: `latticectl sign` fills in digest and signature (contracts §3)."""
    template = TEMPLATES[kind, lang]
    plain: dict[str, Any] = {
        "schema": "latticed.manifest.v2",
        "id": plugin_id,
        "name": name,
        "type": kind,
        "version": "0.1.0",
        "capabilities": list(template.capabilities),
    }
    if publisher is not None:
        plain["publisher"] = publisher
    if template.protocol:
        plain["runtime"] = {"protocol": template.protocol}
    if kind == "worker":
        plain["routes"] = {"prefixes": [f"/{plugin_id}/"], "content_type": "text/plain"}
    return plain


def _files(folder: str) -> dict[str, bytes]:
    """The files of a template by their path in it; those in Python end in `.py.in` here, as they are none of ours."""
    top = _TEMPLATES / folder
    return {
        path.relative_to(top).as_posix().removesuffix(".in"): path.read_bytes()
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }


def _filled(data: bytes, words: Mapping[str, str]) -> bytes:
    """A file with its words put in; in one pass, so that a name with `@id@` in it stays as it is."""
    return re.sub("@([a-z]+)@", lambda found: words[found[1]], data.decode()).encode()


def _artifact(kind: str, lang: str, made: Mapping[str, bytes]) -> bytes | None:
    """The artifact of what was made, as its Makefile would build it; None where that takes a compiler."""
    from latticed.bundle import pack

    if (kind, lang) == ("system", "python"):
        sources = {path.removeprefix("src/"): data for path, data in made.items() if path.startswith("src/")}
        return pack.zipapp(sources, interpreter=pack.INTERPRETER)
    if (kind, lang) == ("system", "sh"):
        return made["plugin.sh"]
    return made["page.txt"] if kind == "worker" else made.get(ARTIFACT)
