from __future__ import annotations

from datetime import UTC
from zoneinfo import ZoneInfo

import pytest

from latticed.kit.zone import HostZone

DATABASE = "/usr/share/zoneinfo"


def test_zone_of_the_host_is_followed_as_its_link_is_replaced(tmp_path):
    place = tmp_path / "localtime"
    zone = HostZone({}, path=place)
    assert (zone.refresh(), zone.current) == (False, UTC)
    for name, hours in (("Asia/Kolkata", 5.5), ("America/Lima", -5)):
        place.unlink(missing_ok=True)
        place.symlink_to(f"{DATABASE}/{name}")
        assert (zone.refresh(), zone.refresh()) == (True, False)
        assert zone.current.utcoffset(None if hours is None else _noon()).total_seconds() == hours * 3_600


@pytest.mark.parametrize("data", [b"", b"no zone", b"TZif", b"x" * (2 << 20)])
def test_file_that_is_no_zone_leaves_the_zone_as_it_was(tmp_path, data):
    place = tmp_path / "localtime"
    place.symlink_to(f"{DATABASE}/Asia/Kolkata")
    zone = HostZone({}, path=place)
    zone.refresh()
    before = zone.current
    place.unlink()
    place.write_bytes(data)
    assert (zone.refresh(), zone.current) == (False, before)


@pytest.mark.parametrize("named", ["Asia/Kolkata", ":Asia/Kolkata", f"{DATABASE}/Asia/Kolkata"])
def test_variable_names_the_zone(named):
    zone = HostZone({"TZ": named})
    assert zone.refresh()
    assert zone.current.utcoffset(_noon()) == ZoneInfo("Asia/Kolkata").utcoffset(_noon())


@pytest.mark.parametrize("named", ["Nowhere/Town", "../../etc/passwd", "/etc/passwd", "CET-1CEST,M3.5.0"])
def test_variable_that_names_no_zone_is_utc(named):
    zone = HostZone({"TZ": named})
    assert (zone.refresh(), zone.current) == (False, UTC)


def _noon():
    from datetime import datetime

    return datetime(2026, 6, 1, 12, tzinfo=UTC).replace(tzinfo=None)
