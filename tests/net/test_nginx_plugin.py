"""nginx as a plugin of a real daemon, with the real root helper and a real nginx on loopback."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509

from latticed.plans import protocol
from tests.house import hosting, nginx_places, nginxes, pages, pebbles, plan_sites, ports, processes, route_clients

pytestmark = [pytest.mark.root, pytest.mark.daemon, pytest.mark.timeout(180)]

ID = "latticed.nginx"
PUBLISHER = b"""#!/usr/bin/env python3
from latticed.sdk import Plugin

class Publisher(Plugin):
    def do_publish(self, payload):
        return [self.static.put(path, text)["bytes"] for path, text in payload.items()]

Publisher().run()
"""


class Site(plan_sites.PlanSite):
    """With nginx."""

    plugin_id = ID
    helper: nginx_places.WebPlace

    def health(self) -> str:
        found = self.host.runtime(ID)
        return f"{found['health']}: {found['message']}"

    def until(self, holds: Any, what: str) -> None:
        processes.until(holds, what=what, deadline_s=60.0)

    def secure(self, host: str, path: str = "/", *, authorities: Path) -> tuple[int, dict[str, str], bytes]:
        return nginxes.get_secure(self.helper.ports[1], host, path, authorities=authorities)

    def told(self, event: str) -> list[str]:
        rows = self.host.daemon.get("/api/notifications").json()["notifications"]
        return [one["title"] for one in rows if one["event"] == event]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    port = ports.free()
    http = {"listen": f"127.0.0.1:{port}", "hosts": ["hello.example.org"]}
    with nginx_places.web_place(http=http) as place:
        settings = f'[apply]\nsocket = "{place.settings["socket"]}"\n{place.sections()}\n[static]\nhtml = true\n'
        with hosting.hosting(settings, builtins="latticed") as host:
            place.settings["daemon_user"] = str(host.daemon.place.uid)
            place.static = host.daemon.place.state / "static"
            host.daemon.activate(ID, accept=["network:apply", "network:plan"])
            with place.running():
                yield Site(host, place, None)


@pytest.fixture(scope="module")
def authorities(site) -> tuple[trustme.CA, Path]:
    made = trustme.CA()
    made.cert_pem.write_to_path(site.helper.home / "ca.pem")
    return made, site.helper.home / "ca.pem"


def test_sites_of_the_configuration_are_served_and_those_without_a_certificate_are_named(site):
    with nginxes.backend("app") as app:
        upstream = {"scheme": "http", "host": "127.0.0.1", "port": app.port}
        live = str(site.helper.live_certificates)
        secure = nginxes.site("wiki", answer=404, tls=nginxes.tls("wiki", live))
        site.put(site.helper.document(nginxes.site(upstream=upstream), secure))
        plan = site.applied()
        assert (site.helper.get(), site.helper.get("wiki.example.org")) == (200, 503)
        site.until(lambda: site.health().endswith("and answering 503: wiki"), "the site's name in the health")
        found = site.do("status")
        assert {one["name"]: one["served"] for one in found["sites"]} == {"shop": True, "wiki": False}
        assert (found["target"]["confirmed"], found["nginx"]["running"]) == (plan, True)


def test_routes_of_plugins_get_tls_and_a_renewed_certificate_is_taken_up_by_itself(site, authorities):
    made, trusted = authorities
    site.helper.issue("hello", made)
    hello = nginxes.site(
        "hello", upstream="http", tls=nginxes.tls("hello", str(site.helper.live_certificates), hsts={"max_age_s": 60})
    )
    site.put(site.helper.document(hello))
    plan = site.applied()
    site.host.drop("acme.hello", b"hello {{path}}", type="worker", capabilities=["worker:route"])
    site.host.daemon.activate("acme.hello")
    route_clients.url_of(site.host.daemon, "acme.hello")
    status, headers, body = site.secure("hello.example.org", "/acme.hello/x", authorities=trusted)
    assert (status, body) == (200, b"hello /acme.hello/x")
    assert headers["Strict-Transport-Security"] == "max-age=60"
    assert site.helper.get("hello.example.org") == 308
    before = nginxes.serial(site.helper.ports[1], "hello.example.org", trusted)
    site.helper.issue("hello", made)
    renewed = (site.helper.live_certificates / "hello" / "privkey.pem").read_text().splitlines()[1:-1]
    site.until(
        lambda: nginxes.serial(site.helper.ports[1], "hello.example.org", trusted) != before, "the new certificate"
    )
    assert site.do("status")["target"]["confirmed"] == plan
    # What nginx is given by path is known to nobody else.
    found = site.holding("hello.example.org", *renewed)
    assert found.keys() >= {"plans", "backup", "state"}, "the search finds what is there"
    assert all(some == ["hello.example.org"] for some in found.values()), found
    seen = [site.helper.review(plan).diff, str(site.do("status"))]
    for place in (site.helper.state, site.helper.web):
        seen += [one.read_bytes().decode("latin-1") for one in Path(place).rglob("*") if one.is_file()]
    assert not any(line in one for line in renewed for one in seen)
    # One that does not fit its key is not taken up: the one of before goes on.
    good = nginxes.serial(site.helper.ports[1], "hello.example.org", trusted)
    (site.helper.live_certificates / "hello" / "privkey.pem").write_bytes(
        made.issue_cert("hello.example.org").private_key_pem.bytes()
    )
    site.until(lambda: "does not fit its key" in site.health(), "the health to say so")
    assert nginxes.serial(site.helper.ports[1], "hello.example.org", trusted) == good


def test_files_of_a_plugin_are_served_as_they_were_when_they_were_approved(site):
    site.host.drop("acme.site", PUBLISHER, capabilities=["static:write"])
    site.host.daemon.activate("acme.site", accept=["static:write"])
    site.host.result("acme.site", "publish", {"index.html": "<p>one", "style/site.css": "p {}"})
    site.put(site.helper.document(nginxes.site(publish="acme.site")))
    assert "share=acme.site" in site.refused("plan")
    granted = site.host.daemon.ctl("caps", "grant", ID, "share=acme.site")
    assert granted.returncode == 0, granted
    site.applied()

    def served():
        return nginxes.get(site.helper.ports[0], "shop.example.org")[2]

    assert served() == b"<p>one"
    assert nginxes.get(site.helper.ports[0], "shop.example.org", "/style/site.css")[2] == b"p {}"
    site.host.result("acme.site", "publish", {"index.html": "<p>two"})
    assert served() == b"<p>one"
    # Approved, and changed once more before it is applied: the helper has other files than the operator.
    plan = site.do("plan")["sha256"]
    approve = protocol.Approve(plan=plan, review=site.helper.review(plan).review)
    assert isinstance(site.helper.ask(approve), protocol.Moved)
    site.host.result("acme.site", "publish", {"index.html": "<p>three"})
    answer = site.helper.ask(protocol.Apply(plan=plan))
    assert "index.html of acme.site is not as it was planned" in answer.message
    assert served() == b"<p>one"
    site.applied()
    assert served() == b"<p>three"
    # They stay where they were published to, whatever becomes of the plugin that wrote them.
    assert site.host.daemon.set_status("disabled", "acme.site").status == 200
    assert served() == b"<p>three"


def test_the_how_to_leads_to_a_certificate_that_is_used_renewed_and_told_of(site, tmp_path):
    """Its configuration, applied by latticectl; Debian's pebble asks the site, and uacme knows nothing of latticed."""
    home = site.helper.home
    (home / "acme").mkdir()
    webroot, kept = home / "webroot", home / "acme" / "uacme"
    webroot.mkdir()
    (page,) = (one for one in pages.PAGES if one.parent.name == "how-to" and one.name == "nginx.md")
    (text,) = (one.text for one in pages.blocks(page) if one.text.startswith("acme_webroot"))
    listen = "{{addresses = ['127.0.0.1'], http = {}, https = {}}}".format(*site.helper.ports)
    text = text.replace("/var/www/acme", str(webroot)).replace("/etc/ssl/uacme", str(kept))
    sites = tmp_path / "sites.toml"
    sites.write_text(f"listen = {listen}\n{text}")
    operator, owner = tmp_path / "latticed.toml", site.host.daemon.place.uid
    operator.write_text(f'[apply]\nsocket = "{site.helper.settings["socket"]}"\n[access]\nsocket_owner = "{owner}"\n')

    def apply(*words):
        command = [sys.executable, "-P", "-m", "latticed.ctl.main", "apply", ID, "-f", str(sites), *words]
        command += ["--config", str(operator), "--socket", str(site.host.daemon.place.socket)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
        )

    first = apply()
    assert (first.returncode, "return 308 https://shop.example.org" in first.stdout) == (1, True), first
    review = re.search(r"--review ([0-9a-f]{64})", first.stderr)
    assert review, first.stderr
    second = apply("--review", review[1], "--confirm")
    assert second.returncode == 0, second
    assert (site.helper.get(), site.helper.get("www.shop.example.org")) == (503, 308)
    with pebbles.pebble(home / "acme", http=site.helper.ports[0], days=20) as acme:
        certificate, _ = acme.certificate("shop.example.org", webroot)
        site.until(lambda: site.helper.get() == 308, "the site to be sent to its certificate")
        presented = nginxes.presented(site.helper.ports[1], "shop.example.org")
        assert presented == ssl.PEM_cert_to_DER_cert(certificate.read_text().partition("\n\n")[0])
        site.until(lambda: site.told("nginx.certificate"), "the notice of 21 days")
        (title,) = site.told("nginx.certificate")
        assert re.fullmatch("The certificate of shop ends in (19|20) days", title)
        shown = site.host.daemon.get("/metrics").body.decode()
        (ends_s,) = re.findall(r'^latticed_nginx_certificate_ends_seconds\{site="[^"]+"\} (\d+)$', shown, re.MULTILINE)
        assert int(ends_s) == int(x509.load_der_x509_certificate(presented).not_valid_after_utc.timestamp())
        acme.certificate("shop.example.org", webroot)
        site.until(
            lambda: nginxes.presented(site.helper.ports[1], "shop.example.org") != presented, "the renewed certificate"
        )
    site.until(lambda: site.health().startswith("healthy"), "a healthy plugin")
