"""A sealed artifact is what was verified, and nobody can change it; what cannot be executed is refused by name."""

from __future__ import annotations

import errno
import hashlib
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.bundle import read
from latticed.model.errors import Problem
from latticed.sandbox import artifact, elf_programs, syscalls

INTERPRETERS = {"python3": "/usr/bin/python3", "sh": "/bin/sh"}


@pytest.fixture
def stored(tmp_path):
    """A function that makes a bundle directory with these bytes as its artifact, and opens it."""

    def make(data: bytes) -> read.BundleDirectory:
        (tmp_path / "manifest.json").write_bytes(b"{}")
        (tmp_path / "artifact").write_bytes(data)
        return read.open_bundle(tmp_path, limits=read.ReadLimits(), owners=frozenset({os.geteuid()}))

    return make


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sealed_program(directory: read.BundleDirectory, data: bytes) -> artifact.Artifact:
    return artifact.program(artifact.seal(directory, sha256=digest(data)), INTERPRETERS)


def test_sealed_copy_equals_the_verified_artifact(stored):
    """Bytes, digest and interpreter are compared."""
    data = b"#!/bin/sh\necho hello\n"
    with stored(data) as directory, sealed_program(directory, data) as sealed:
        assert os.pread(sealed.fd, 100, 0) == data
        assert (sealed.size, sealed.sha256, sealed.interpreter) == (len(data), digest(data), "sh")


def test_sealed_copy_cannot_be_written_or_resized(stored):
    data = b"#!/bin/sh\n"
    with stored(data) as directory, artifact.seal(directory, sha256=digest(data)) as sealed:
        again = os.open(f"/proc/self/fd/{sealed.fd}", os.O_RDWR)
        for change in (
            lambda: os.pwrite(sealed.fd, b"x", 0),
            lambda: os.ftruncate(sealed.fd, 1),
            lambda: os.ftruncate(sealed.fd, 100),
            lambda: os.write(again, b"x"),
        ):
            with pytest.raises(OSError) as refused:
                change()
            assert refused.value.errno == errno.EPERM
        os.close(again)


def test_artifact_with_other_digest_is_refused(stored):
    with stored(b"#!/bin/sh\nevil\n") as directory, pytest.raises(Problem) as refused:
        artifact.seal(directory, sha256=digest(b"#!/bin/sh\ngood\n"))
    assert refused.value.code == "digest_mismatch"
    assert digest(b"#!/bin/sh\nevil\n")[:12] in refused.value.reason


@pytest.mark.parametrize(
    ("line", "name", "arguments"),
    [
        ("#!/usr/bin/env python3", "python3", ()),
        ("#!/usr/bin/env -S python3 -u", "python3", ("-u",)),
        ("#!/bin/sh -e", "sh", ("-e",)),
        ("#! /bin/sh", "sh", ()),
        ("#!sh", "sh", ()),
        ("#!/opt/anywhere/sh", "sh", ()),  # the base name alone counts; the settings say where it is
    ],
)
def test_interpreter_is_taken_from_the_first_line(line, name, arguments):
    """Its base name counts; its arguments are kept."""
    found = artifact.classify(f"{line}\nrest".encode(), INTERPRETERS)
    assert found == {"interpreter": name, "interpreter_args": arguments}


@pytest.mark.parametrize(
    ("head", "code", "words"),
    [
        (b"#!/usr/bin/perl\n", "interpreter_not_allowed", "python3, sh"),
        (b"#!/usr/bin/env\n", "interpreter_not_allowed", 'found ""'),
        (b"#!\n", "interpreter_not_allowed", 'found ""'),
        (b"#!/bin/sh\r\n", "interpreter_not_allowed", r"sh\x0d"),
        (b"#!/usr/bin/python3.11\n", "interpreter_not_allowed", "python3.11"),
        (b"", "artifact_not_executable", "first bytes"),
        (b"echo hello\n", "artifact_not_executable", "first bytes"),
        (b"PK\x03\x04", "artifact_not_executable", "first bytes"),
        (b"#!" + b"x" * 300, "artifact_not_executable", "longer than 256"),
        (b"#!/bin/\xff\n", "artifact_not_executable", "UTF-8"),
        (b"\x7fELF", "artifact_not_executable", "64-bit"),
        (b"\x7fELF\x01\x01" + bytes(60), "artifact_not_executable", "64-bit"),
        (
            b"\x7fELF\x02\x01" + bytes(10) + struct.pack("<HH", 2, 183),
            "artifact_not_executable",
            "aarch64, this host is x86_64",
        ),
        (b"\x7fELF\x02\x01" + bytes(10) + struct.pack("<HH", 2, 8), "artifact_not_executable", "ELF machine 8"),
        (b"\x7fELF\x02\x01" + bytes(10) + struct.pack("<HH", 1, 62), "artifact_not_executable", "type 1"),
    ],
)
def test_unexecutable_artifact_is_refused_with_its_code(head, code, words):
    """The reason says what was found."""
    with pytest.raises(Problem) as refused:
        artifact.classify(head, INTERPRETERS, machine=syscalls.X86_64)
    assert refused.value.code == code
    assert words in refused.value.reason


@given(
    head=st.binary(max_size=300)
    | st.binary(max_size=50).map(lambda rest: b"#!" + rest)
    | st.binary(max_size=64).map(lambda rest: b"\x7fELF" + rest)
)
def test_any_bytes_are_classified_or_raise_problem(head):
    """No other exception is raised."""
    codes = {"artifact_not_executable", "interpreter_not_allowed"}
    try:
        found = artifact.classify(head, INTERPRETERS, machine=syscalls.X86_64)
        right = not found or found["interpreter"] in INTERPRETERS
    except Problem as problem:
        right = problem.code in codes
    assert right


@pytest.mark.parametrize("machine", syscalls.MACHINES.values(), ids=lambda machine: machine.name)
def test_probe_program_is_a_valid_elf_executable(machine):
    """It is, for both machines, by the same check as for artifacts."""
    assert artifact.classify(elf_programs.exits_42(machine), {}, machine=machine) == {}
