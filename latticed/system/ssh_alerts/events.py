"""What is told: frozen events, each with a `word` made from the entry that it comes of. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latticed.system.ssh_alerts.intent import Attack
    from latticed.system.ssh_alerts.lines import Login


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginTold:
    """One login. `flags`: `outside` (no rule allows it), `guessed` (after as many failures from its network as are
    told), `root`, `new` (of this user from this network), `unclear` (no address). `failures`: at least so many before,
    from its network; `since_s`: when this user first came from there.
    """

    word: str
    at_s: int
    login: Login
    network: str
    flags: tuple[str, ...]
    failures: int
    since_s: int
    trusted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreLogins:
    """`more` logins since `since_s`, each as what `about` has: user, network, method; without it of several users."""

    word: str
    at_s: int
    more: int
    since_s: int
    about: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailuresTold:
    """Failed attempts are many (`begun`), go on (`on`), or have ended (`over`); `more` since the message before."""

    word: str
    at_s: int
    phase: str
    more: int
    attack: Attack


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What could not be watched. `kind`: `dropped` (journald did not take `count` messages), `unread` (`count`
    messages that begin as logins do; `text` is one), `gone` (entries were removed before they were read), `source`
    (they come from elsewhere), `forgotten` (what was remembered is lost), `down` and `up` (no reader since `since_s`;
    `text` says why).
    """

    word: str
    at_s: int
    kind: str
    count: int = 0
    since_s: int = 0
    text: str = ""


Event = LoginTold | MoreLogins | FailuresTold | Gap
