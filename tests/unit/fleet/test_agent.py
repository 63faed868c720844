"""What the agent's half with the connection tells the other: words for a person, bounded, believed by nobody."""

from __future__ import annotations

import os
import socket
import threading

from latticed.fleet import agent


def half(reports):
    mine, theirs = socket.socketpair()
    theirs.close()
    return agent._LinkHalf(os.getpid(), mine, reports)


def test_link_that_writes_without_end_keeps_the_node_from_nothing():
    reports, report = os.pipe2(os.O_NONBLOCK)
    stopping = threading.Event()

    def flood():
        os.set_blocking(report, True)
        while not stopping.is_set():
            os.write(report, b"x" * 1_000 + b"\n")

    writer = threading.Thread(target=flood)
    link = half(reports)
    writer.start()
    try:
        while not link.said:  # the writer's thread may not have begun
            link.hear()
        for _ in range(1_000):
            link.hear()
        assert len(link.said) <= 500
    finally:
        stopping.set()
        while writer.is_alive():
            link.hear()
        writer.join()
        os.close(reports)
        os.close(report)
        link.channel.close()


def test_what_the_link_says_is_one_line_without_control_characters():
    reports, report = os.pipe2(os.O_NONBLOCK)
    link = half(reports)
    tell = agent._telling(report)
    tell("first")
    tell("not connected: \x1b[31m\nREADY=1 \u2028 \x00")
    tell("")
    link.hear()
    assert "\n" not in link.said
    assert link.said.isprintable()
    assert link.said.startswith("not connected: ")
    # A pipe that nobody reads is full some time: what is said then is lost, and the link goes on.
    for _ in range(1_000):
        tell("y" * 400)
    os.close(reports)
    os.close(report)
    link.channel.close()
