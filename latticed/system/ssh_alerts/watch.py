"""The state machine over sshd's entries: what of them is told, and what is remembered. Pure.

Times are those of the entries, so that entries that are read again, in other pages, give the same events under the same
`word`; whoever tells them leaves out words that were told before. `tick` ends what is over when no entries come.
Everything that is remembered is bounded; where a bound is reached, the oldest goes.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.system.ssh_alerts import lines
from latticed.system.ssh_alerts.events import FailuresTold, Gap, LoginTold, MoreLogins
from latticed.system.ssh_alerts.intent import Allow, Attack, Known, Rules, Run, Seen, State
from latticed.system.ssh_alerts.lines import Failure, Login, Other

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.system.ssh_alerts.events import Event
    from latticed.system.ssh_alerts.intent import Entry

MAX_KNOWN: Final = 256
MAX_LOGINS: Final = 20
MAX_RUNS: Final = 32
MAX_FREQUENT: Final = 32
MAX_CONNECTIONS: Final = 64
MAX_NAME_BYTES: Final = 48
"""Of a user name in what is remembered; longer ones are cut, with a hash of the whole."""

RUN_S: Final = 600
"""How long equal logins are counted together."""
TOLD_EACH: Final = 5
"""Equal logins within RUN_S that are told one by one."""
TOLD_ALL: Final = 60
"""Logins within RUN_S that are told one by one, of all users; those against the rules are told beyond it."""
GAP_S: Final = 3_600
"""How long gaps of one kind are counted together."""
FIRST_PAUSE_S: Final = 3_600
LAST_PAUSE_S: Final = 86_400
"""Pauses between messages about failures that go on: each is twice the one before, a day at most."""
MAX_TIME_S: Final = 250_000_000_000
"""Early enough before the year 10000, which datetime has not, to be shown in any time zone."""
DOWN_S: Final = 60
"""Seconds without a reader after which that is told."""


def advance(state: State, rules: Rules, entries: Iterable[Entry]) -> tuple[State, list[Event]]:
    """The state after the entries, in their order, and what is told of them."""
    work = _Work(state, rules)
    for entry in entries:
        work.take(entry)
    return work.state(), work.events


def tick(state: State, rules: Rules, now_s: int) -> tuple[State, list[Event]]:
    """The state at `now_s`, when all entries until then were taken, and what is told of what has ended."""
    work = _Work(state, rules)
    work.close(now_s)
    return work.state(), work.events


def gone(state: State, kind: str, now_s: int) -> tuple[State, list[Event]]:
    """A gap (`gone`, `source`, `forgotten`) at the state's cursor; told once for each."""
    if state.gap_at == f"{kind} {state.cursor}":
        return state, []
    counts = msgspec.structs.replace(state.counts, gaps=state.counts.gaps + 1)
    after = msgspec.structs.replace(state, counts=counts, gap_at=f"{kind} {state.cursor}")
    return after, [Gap(word=f"{kind}:{_hash(state.cursor)}:{state.counts.gaps}", at_s=now_s, kind=kind)]


def down(state: State, reason: str, now_s: int) -> tuple[State, list[Event]]:
    """Entries cannot be read; told once, when that has lasted DOWN_S."""
    since_s = state.down_s or now_s
    if state.down_told or 0 <= now_s - since_s < DOWN_S:
        return msgspec.structs.replace(state, down_s=since_s), []
    counts = msgspec.structs.replace(state.counts, gaps=state.counts.gaps + 1)
    after = msgspec.structs.replace(state, down_s=since_s, down_told=True, counts=counts)
    return after, [Gap(word=f"down:{_downs(state)}", at_s=now_s, kind="down", since_s=since_s, text=reason)]


def up(state: State, now_s: int) -> tuple[State, list[Event]]:
    """Entries can be read; told when it was told that they could not."""
    if not state.down_s:
        return state, []
    after = msgspec.structs.replace(state, down_s=0, down_told=False, downs=state.downs + state.down_told)
    if not state.down_told:
        return after, []
    return after, [Gap(word=f"up:{_downs(state)}", at_s=now_s, kind="up", since_s=state.down_s)]


def allows(rules: Rules, login: Login, at_s: int) -> bool:
    """Whether a login is expected: there are no rules, or one allows it."""
    return not rules.allow or any(_allows(rule, rules, login, at_s) for rule in rules.allow)


def _allows(rule: Allow, rules: Rules, login: Login, at_s: int) -> bool:
    if rule.users and login.user not in rule.users:
        return False
    if rule.networks and not any(_is_within(login.address, network) for network in rule.networks):
        return False
    there = datetime.fromtimestamp(at_s, rules.zone)
    if rule.days and there.weekday() not in rule.days:
        return False
    minute = there.hour * 60 + there.minute
    return not rule.hours or any(
        begin <= minute < end if begin < end else minute >= begin or minute < end for begin, end in rule.hours
    )


def _is_within(address: str, network: Any) -> bool:
    return bool(address) and lines.address_of(address) in network


def is_over(since_s: int, now_s: int, span_s: int) -> bool:
    """Whether `span_s` have passed. A clock that was set back by less is waited for; by more, it is over as well."""
    return not -span_s < now_s - since_s < span_s


class _Work:
    """The parts of a state, which change while entries are taken."""

    def __init__(self, state: State, rules: Rules) -> None:
        self.events: list[Event] = []
        self._rules = rules
        self._before = state
        self._at_s = state.at_s
        self._trusted = state.trusted
        self._sample = state.sample
        self._counts = msgspec.structs.asdict(state.counts)
        self._known = dict(state.known)
        self._logins = list(state.logins)
        self._runs = dict(state.runs)
        self._few = list(state.few)
        self._attack = state.attack
        self._connections = dict(state.connections)

    def state(self) -> State:
        return msgspec.structs.replace(
            self._before,
            at_s=self._at_s,
            trusted=self._trusted,
            sample=self._sample,
            counts=type(self._before.counts)(**self._counts),
            known=self._known,
            logins=tuple(self._logins[-MAX_LOGINS:]),
            runs=self._runs,
            few=tuple(self._few),
            attack=self._attack,
            connections=self._connections,
        )

    def take(self, entry: Entry) -> None:
        # One without a time is of the time of the one before it.
        self._at_s = at_s = _seconds(entry.at, self._at_s)
        self._trusted = entry.trusted
        self.close(at_s)
        if entry.dropped:
            self._counts["dropped"] += entry.dropped
            self._gap("dropped", entry, entry.dropped, "")
            return
        line = lines.read(entry.message)
        match line:
            case Login():
                self._login(line, entry, at_s)
            case Failure():
                for _ in range(line.times):
                    self._failure(line, entry, at_s)
            case Other.UNREAD | Other.UNREAD_LOGIN:
                self._counts["unread"] += 1
                self._sample = entry.message[:200]
                if line is Other.UNREAD_LOGIN:
                    self._gap("unread", entry, 1, entry.message[:1_000])

    def close(self, now_s: int) -> None:
        """End what is over at `now_s`."""
        for name in [name for name, run in self._runs.items() if is_over(run.since_s, now_s, _span_s(name))]:
            self._end(name, now_s)
        if self._attack is not None and is_over(self._attack.last_s, now_s, self._rules.window_s):
            if self._attack.untold:
                self._tell_attack("over", self._attack.last_s)
            self._attack = None

    # Logins

    def _login(self, login: Login, entry: Entry, at_s: int) -> None:
        self._counts["logins"] += 1
        network = lines.network(login.address)
        self._uncount(login, network)
        name = f"{short(login.user)} {network}"
        before = self._known.pop(name, None)
        failures = self._failures_from(network)
        marks = {
            "outside": not allows(self._rules, login, at_s),
            "guessed": failures >= self._rules.failures,
            "root": login.user == "root",
            "new": before is None or not network,
            "unclear": not network,
        }
        flags = tuple(flag for flag, holds in marks.items() if holds)
        if network:
            since_s, count = (before.first_s, before.count) if before else (at_s, 0)
            self._known[name] = Known(since_s, at_s, count + 1)  # at the end: the least recent is first
            _trim(self._known, MAX_KNOWN)
        fingerprint = login.fingerprint[:100]
        self._logins.append(
            Seen(
                at_s=at_s,
                user=short(login.user),
                address=login.address,
                method=login.method,
                fingerprint=fingerprint,
                flags=flags,
            )
        )
        if self._rules.tell == "unusual" and not flags:
            return
        about = {"user": short(login.user), "network": network, "method": login.method, "fingerprint": fingerprint}
        # Those that are always told begin a run of their own: equal ones that are usual must not use it up.
        run = (*about.values(), str(marks["outside"]), str(marks["guessed"]))
        same = f"login {_hash(' '.join(run))[:16]}"
        if not self._is_told(same, entry, at_s, TOLD_EACH, about):
            return
        always = marks["outside"] or marks["guessed"]
        if not always and not self._is_told("logins", entry, at_s, TOLD_ALL, {}):
            return
        self.events.append(
            LoginTold(
                word=f"login:{entry.id}",
                at_s=at_s,
                login=login,
                network=network,
                flags=flags,
                failures=failures,
                since_s=before.first_s if before else 0,
                trusted=entry.trusted,
            )
        )

    def _is_told(self, name: str, entry: Entry, at_s: int, most: int, about: dict[str, Any]) -> bool:
        """Whether one more of the run is told, or counted."""
        run = self._run(name, entry, at_s, about)
        told = run.told < most
        self._runs[name] = msgspec.structs.replace(run, told=run.told + told, more=run.more + (not told))
        return told

    # Failures

    def _failure(self, failure: Failure, entry: Entry, at_s: int) -> None:
        connection = f"{failure.address} {failure.port}"
        counted = self._connections.pop(connection, None)
        self._connections[connection] = counted or not failure.once
        _trim(self._connections, MAX_CONNECTIONS)
        # A message of the kind that comes besides another one of this connection was counted, or counts for this one.
        if counted is not None and (failure.once or not counted):
            return
        self._counts["failures"] += 1
        network, user = lines.network(failure.address) or "unclear", short(failure.user)
        if self._attack is not None:
            attack = self._attack
            self._attack = msgspec.structs.replace(
                attack,
                last_s=at_s,
                total=attack.total + 1,
                untold=attack.untold + 1,
                networks=_counted(attack.networks, network),
                users=_counted(attack.users, user),
            )
            if is_over(attack.told_s, at_s, attack.pause_s):
                self._tell_attack("on", at_s)
            return
        span_s = self._rules.window_s
        self._few = [one for one in self._few if not is_over(one[0], at_s, span_s)][-self._rules.failures :]
        self._few.append((at_s, network, user))
        if len(self._few) >= self._rules.failures:
            self._begin_attack(entry, at_s)

    def _uncount(self, login: Login, network: str) -> None:
        """Take back the failure of a connection that only tried keys before it got in."""
        only_once = self._connections.pop(f"{login.address} {login.port}", None) is False
        if not only_once:
            return
        self._counts["failures"] -= 1
        user = short(login.user)
        if self._attack is None:
            for place in reversed(range(len(self._few))):
                if self._few[place][1:] == (network, user):
                    del self._few[place]
                    break
            return
        attack = self._attack
        self._attack = msgspec.structs.replace(
            attack,
            total=attack.total - 1,
            untold=max(attack.untold - 1, 0),
            networks=_less(attack.networks, network),
            users=_less(attack.users, user),
        )

    def _begin_attack(self, entry: Entry, at_s: int) -> None:
        networks: dict[str, int] = {}
        users: dict[str, int] = {}
        for _, network, user in self._few:
            networks, users = _counted(networks, network), _counted(users, user)
        self._attack = Attack(
            id=entry.id,
            first_s=self._few[0][0],
            last_s=at_s,
            total=len(self._few),
            untold=len(self._few),
            told_s=at_s,
            pause_s=FIRST_PAUSE_S // 2,  # doubled with the first message
            messages=0,
            networks=networks,
            users=users,
        )
        self._few = []
        self._tell_attack("begun", at_s)

    def _tell_attack(self, phase: str, at_s: int) -> None:
        assert self._attack is not None  # noqa: S101 - see callers
        attack = self._attack
        word = f"failures:{attack.id}:{attack.messages}"
        self.events.append(FailuresTold(word=word, at_s=at_s, phase=phase, more=attack.untold, attack=attack))
        self._attack = msgspec.structs.replace(
            attack,
            untold=0,
            told_s=at_s,
            pause_s=min(attack.pause_s * 2, LAST_PAUSE_S),
            messages=attack.messages + 1,
        )

    def _failures_from(self, network: str) -> int:
        """At least so many failures from a network belong to what goes on now."""
        if not network:
            return 0
        many = self._attack.networks.get(network, 0) if self._attack is not None else 0
        recent = [one for one in self._few if not is_over(one[0], self._at_s, self._rules.window_s)]
        return many + sum(1 for one in recent if one[1] == network)

    # Gaps and runs

    def _gap(self, kind: str, entry: Entry, count: int, text: str) -> None:
        """Tell the first gap of a kind, and count further ones until GAP_S have passed."""
        run = self._run(f"gap {kind}", entry, self._at_s, {"text": text})
        if run.told:
            run = msgspec.structs.replace(run, more=run.more + count)
        else:
            run = msgspec.structs.replace(run, told=1)
            self._counts["gaps"] += 1
            self.events.append(Gap(word=f"{kind}:{entry.id}", at_s=self._at_s, kind=kind, count=count, text=text))
        self._runs[f"gap {kind}"] = run

    def _run(self, name: str, entry: Entry, at_s: int, about: dict[str, Any]) -> Run:
        if name not in self._runs:
            # Those of equal logins make room for each other; of the others there are few, and they bound those.
            if len(self._runs) >= MAX_RUNS:
                self._end(next(one for one in self._runs if one.startswith("login ")), at_s)
            self._runs[name] = Run(since_s=at_s, id=entry.id, about=about)
        return self._runs[name]

    def _end(self, name: str, now_s: int) -> None:
        run = self._runs.pop(name)
        if not run.more:
            return
        word, text = f"more:{run.id}:{name.replace(' ', '-')}", run.about.get("text", "")
        if name.startswith("gap "):
            kind = name.removeprefix("gap ")
            self.events.append(
                Gap(word=word, at_s=now_s, kind=kind, count=run.more, since_s=run.since_s, text=str(text))
            )
            return
        self.events.append(MoreLogins(word=word, at_s=now_s, more=run.more, since_s=run.since_s, about=run.about))


def short(user: str) -> str:
    """A user name of at most MAX_NAME_BYTES, in which two different ones stay different."""
    data = user.encode("utf-8", "replace")
    if len(data) <= MAX_NAME_BYTES:
        return user
    return f"{data[: MAX_NAME_BYTES - 12].decode('utf-8', 'ignore')}…{_hash(user)[:8]}"


def _span_s(name: str) -> int:
    return GAP_S if name.startswith("gap ") else RUN_S


def _trim(table: dict[str, Any], most: int) -> None:
    while len(table) > most:
        del table[next(iter(table))]


def _counted(table: dict[str, int], name: str) -> dict[str, int]:
    """One more of `name`; of a full table every number loses one (Misra and Gries), so that each is a lower bound."""
    if name in table or len(table) < MAX_FREQUENT:
        return {**table, name: table.get(name, 0) + 1}
    return {key: count - 1 for key, count in table.items() if count > 1}


def _less(table: dict[str, int], name: str) -> dict[str, int]:
    """One less of `name`."""
    return {key: count for key, each in table.items() if (count := each - (key == name)) > 0}


def _seconds(at: str | None, otherwise: int) -> int:
    try:
        return min(max(int(datetime.fromisoformat(at).timestamp()), 0), MAX_TIME_S) if at else otherwise
    except (ValueError, OverflowError):
        return otherwise


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _downs(state: State) -> str:
    return f"{_hash(state.cursor)}:{state.downs}"
