"""Every shell command in the README and the docs is run as written, in the second terminal of `make run`."""

from __future__ import annotations

import re
import shlex

import pytest

from latticed.ctl import main
from tests.house import pages

NOT_RUN = {
    "make run": "plugins-sample/tour.py run is what it starts: test_docs_commands runs in its second terminal",
    "make demo": "plugins-sample/tour.py demo is what it starts: test_tour runs it",
    "make check": "it would run itself",
    "make test": "it would run itself",
    "make bench": "takes a quarter of an hour and installs its references",
    "apt-get install": "installs on this machine, as root; tests/booted/test_package.py does it on machines of its own",
    "apt-get purge": "removes from this machine; tests/booted/test_package.py does it on machines of its own",
    "docker ": "needs a container engine; tests/booted/test_container.py types it all",
    "(umask 077 && rm -f": "the same",
    "tool()": "the same",
    "cp /usr/share/containers": "the same",
    "make deb": "takes minutes; tests/booted/test_package.py makes both, the first in the long run",
    "latticectl upgrade": "takes another version of that plugin; tests/daemon/test_upgrade_widening.py does it",
    "latticectl dev": "goes on until it is ended; tests/daemon/test_dev.py does",
    "pip install latticed-sdk": "asks an index; tests/unit/sdk/test_sdk_wheel.py installs the wheel",
    "latticectl pack --requirements": "asks an index; tests/unit/bundle/test_requirements.py has wheels of its own",
    "cc -O2": "not every machine has a C compiler; tests/docs/test_samples_sources.py builds it with what there is",
    "sudo latticed-apply": "is for root; tests/daemon/test_apply_helper.py starts it with a kind of its own",
    "install -m 755 cloudflared": "no trusted package of it exists; tests/daemon/test_cloudflared.py has its own",
    "cloudflared tunnel": "asks the provider; no trusted package of cloudflared exists",
    "cat > /etc/apparmor.d": "the kernel of this machine has no AppArmor",
    "install -d -m 755 /etc/latticed/tunnels": "writes to /etc; tests/daemon/test_cloudflared.py has such a directory",
    "latticectl fleet": "takes the operator's directory; tests/unit/ctl/test_ctl_fleet.py types them",
    "latticed-fleet join": "is for root; tests/daemon/test_fleet_agent.py has hosts that join",
    "install -d -m 0700 /etc/latticed-controller": "is for root; tests/booted/test_controller_unit.py starts the unit",
    "systemctl stop latticed-controller": "is for root; tests/unit/fleet/test_controller_process.py restores a backup",
    "systemctl restart latticed &&": "is for a host that joined; tests/daemon/test_fleet_agent.py runs what it starts",
    "jq -Rs": "jq is not everywhere; tests/net/test_wireguard_plugin.py adopts a file",
    "latticectl invoke latticed.proxy": "needs the root helper; tests/net/test_proxy_plugin.py asks for them",
    "install -m 644 systemd/latticed-proxy": "installs on this machine; tests/booted/test_servers.py has that unit",
    "useradd": "makes a user of this machine; tests/net/test_proxy_plugin.py takes one that is there",
    "latticectl invoke latticed.wireguard": "needs the root helper; tests/net/test_wireguard_plugin.py asks for them",
    "latticectl apply": "needs the root helper; tests/daemon/test_plans.py plays it",
    "install -d /var/www/acme": "asks a real authority; tests/net/test_nginx_plugin.py asks one of its own",
    "mkdir -p /opt": "no trusted package has Sub-Store's backend; tests/daemon/test_sub_store.py runs one",
    "cp -r dist": "a build of Sub-Store's front end",
    "latticectl invoke latticed.sub-store": "the backend does not run; tests/daemon/test_sub_store.py does all of it",
    "latticectl market": "asks another site; tests/daemon/test_market.py and test_publish.py do it",
    "tar -cf": "writes to /var/lib; tests/daemon/test_market_import.py imports such files",
    "rsync -a": "uploads to a web server",
    "tuf-on-ci-delegate": "works in a repository of GitHub",
    "git switch": "works in a repository of GitHub",
    "latticectl install latticed.notify": "asks ntfy; tests/docs/test_tutorial.py does it where there is no network",
    "latticectl ui": "goes on until it is ended; tests/daemon/test_console.py does, and asks for a link",
    "install -d -m 2750": "goes on until it is ended; tests/unit/ctl/test_ctl_ui.py serves in such a directory",
    "systemctl reload latticed.service": "is for root, on a machine; tests/booted/test_console_unit.py does it",
}
"""How a block that is not run begins, and why it is not. tests/booted/test_pages.py runs those marked `machine`, and
test_checkout.py, in the long run, those marked `checkout`; tests/docs/test_fleet_page.py those marked `fleet`.
"""


OUTSIDE = {
    *("make check", "make test", "make bench"),
    *("cloudflared tunnel", "cp -r dist", "rsync -a", "tuf-on-ci-delegate", "git switch", "cat > /etc/apparmor.d"),
}
"""Those that would run all tests, or need another site, its credentials, a build of somebody else's, another kernel."""


def _shell(page):
    return [block for block in pages.blocks(page) if block.language == "sh"]


def _run(page):
    """The blocks of a page that are run."""
    return [block for block in _shell(page) if not {"norun", "machine", "checkout", "fleet"} & set(block.words)]


def _by_tour():
    """(number, page): pages with the same number share a daemon, because none changes what another one does."""
    tours = []
    for page in pages.PAGES:
        blocks = _run(page)
        touched = set(re.findall(_CHANGES, "\n".join(block.text for block in blocks)))
        if not blocks:
            continue
        free = next((number for number, names in enumerate(tours) if not names & touched), len(tours))
        if free == len(tours):
            tours.append(set())
        tours[free] |= touched
        yield free, page


_CHANGES = re.compile(
    r"latticectl (?:install|activate|forget|caps \w+|trust add|trust remove|secret set)(?: --\S+)* (\S+)"
)


@pytest.mark.daemon
@pytest.mark.slow
@pytest.mark.parametrize(
    ("shared", "page"),
    sorted(_by_tour(), key=lambda one: one[0]),
    indirect=["shared"],
    scope="module",
    ids=lambda one: getattr(one, "name", None),
)
def test_commands_of_each_page_exit_as_the_page_says(shared, page):
    """Block by block, in the page's order; each exits with 0, or with what its fence says."""
    there = shared.elsewhere(f"{page.parent.name}-{page.stem}")
    for block in _run(page):
        done = there.type(block.text)
        assert done.returncode == block.exits, f"{block.text}\n{done.stdout}\n{done.stderr}"


def test_pages_without_a_command_to_run_are_known():
    for page in pages.PAGES:
        known = {"api.md", "container.md", "market.md", "package.md", "performance.md", "CONTRIBUTING.md"}
        known |= {"fleet.md"}  # test_fleet_page
        known |= {"unit.md", "root-helper.md", "access.md"}  # for root, on a machine: tests/booted
        known |= {"fleet-controller.md"}  # for root: tests/booted/test_controller_unit.py
        known |= {"fleet-hosts.md"}  # for an operator with his keys, and for root: test_ctl_fleet, test_fleet_agent
        known |= {"README.md", "tutorial.md", "demo.md", "what-it-is.md"}  # what they run: test_tutorial, test_tour
        named = page.name in known or page.parent.name in {"docs", "internals", "reference"}
        assert _run(page) or named, f"{page.name}: a page without a command to run is worth a look"


def test_commands_that_are_not_run_have_a_reason():
    used = set()
    for block in pages.named("sh", "norun"):
        begun = {name for name in NOT_RUN if block.text.startswith(name)}
        assert begun, f"{block.page.name}: no reason not to run\n{block.text}"
        used |= begun
    assert used == set(NOT_RUN), "a reason without its block"


def test_upgrade_of_the_guide_is_what_the_packages_tests_type():
    guide, package = (
        [one.text for one in pages.blocks(pages.CHECKOUT / "docs/operate" / name) if "apt-get install" in one.text]
        for name in ("README.md", "package.md")
    )
    assert set(guide) <= set(package)
    assert guide


def test_reasons_name_tests_that_exist():
    """Or say what no machine of tests has."""
    for begins, reason in NOT_RUN.items():
        if begins in OUTSIDE or reason == "the same":
            continue
        named = re.findall(r"tests/[\w/]+\.py|\btest_\w+", reason)
        assert named, f"{begins}: no test does what it says"
        for name in named:
            found = [pages.CHECKOUT / name] if "/" in name else list((pages.CHECKOUT / "tests").rglob(f"{name}.py"))
            assert found, f"{begins}: {name}"
            assert all(path.exists() for path in found), f"{begins}: {name}"


def test_make_targets_that_pages_name_exist():
    makefiles = (pages.CHECKOUT / "Makefile", pages.CHECKOUT / "latticed/ctl/templates/common/Makefile")
    texts = "".join(path.read_text(encoding="utf-8") for path in makefiles)
    targets = set(re.findall(r"^([a-z-]+):", texts, re.MULTILINE))
    for page in pages.PAGES:
        named = re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets, page.name


def _asked_of_latticectl(block):
    """The words behind each `latticectl` in commands of a block: of a transcript what is typed."""
    begins = {"sh": "", "console": "$ ", "text": "latticectl "}[block.language]
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith(begins):
            yield from _of_line(re.sub(r"\b\d<", "<", line.removeprefix("$ ")))


def _of_line(line):
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a quotation that goes on in the next line, as in a program that is written to a file
        return
    command = []
    for word in [*words, ";"]:
        if not set(word) <= set(";|&<>()"):
            command.append(word)
            continue
        if "latticectl" in command[:4]:
            yield command[command.index("latticectl") + 1 :]
        command = []


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_commands_that_are_not_run_are_understood_by_latticectl(page):
    """Each verb, option and number of words, also in blocks of text and transcripts."""
    for block in pages.blocks(page):
        # cli.md has usages, written from the same parsers.
        if block.language not in {"sh", "text", "console"} or block.exits or page.name == "cli.md":
            continue
        for words in _asked_of_latticectl(block):
            asked = main.top_parser().parse_args(words)
            if asked.verb is not None and "--help" not in asked.rest:
                main.verb_parser(asked.verb, main.load(asked.verb)).parse_args(asked.rest)


def test_code_blocks_have_only_known_languages():
    """A block in another language would not be tested."""
    known = {"sh", "console", "toml", "json", "mermaid", "text", "python", "html"}
    assert {block.language for page in pages.PAGES for block in pages.blocks(page)} == known


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_latticectl_verbs_that_pages_name_exist(page):
    """Verbs are looked for in blocks, and between backticks."""
    commands = [block.text for block in pages.blocks(page)] + re.findall(r"`([^`]+)`", pages.prose(page))
    verbs = set(re.findall(r"latticectl ([a-z]+)", "\n".join(commands)))
    assert verbs <= set(main.VERBS), page.name


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_links_of_each_page_resolve(page):
    for target in set(pages.links(page)):
        place, _, anchor = target.partition("#")
        found = (page.parent / place).resolve() if place else page
        assert "://" in target or found.exists(), target
        if anchor and "://" not in target:
            assert anchor in pages.anchors(found), target
