"""Host calls that run programs beside the plugin: task, service, tunnel."""

from __future__ import annotations

from latticed.sdk.calls import Calls, given

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latticed.sdk import answers


class Task(Calls):
    """Scripts that run once in a sandbox, after an operator has approved exactly these bytes."""

    def list(
        self, state: answers.TaskState | None = None, *, after: int | None = None, limit: int | None = None
    ) -> answers.TaskListAnswer:
        """A page of this plugin's tasks, newest first, without scripts; of one `state` or all (task:read).

        `after` is the `next` of the page before.

        Errors: those of every call.
        Limits: `limit` is at most 200 (50).
        """
        found: answers.TaskListAnswer = self._ask("task.list", given(state=state, after=after, limit=limit))
        return found

    def get(self, task_id: str) -> answers.TaskGetAnswer:
        """Everything of one task, with its outcome when there is one (task:read).

        Errors: not_found.
        """
        found: answers.TaskGetAnswer = self._ask("task.get", {"id": task_id})
        return found

    def submit(
        self,
        script: str,
        *,
        name: str | None = None,
        interpreter: answers.Interpreter = "sh",
        targets: Sequence[str] | None = None,
        timeout_s: int | None = None,
    ) -> answers.TaskSubmitAnswer:
        """Ask for a script to be run once; it waits until an operator approves it (task:run).

        `name` is shown to operators: 1 to 64 letters, digits, `.`, `_`, `-`. `interpreter` is sh, bash, python3 or
        node. `targets` are the script's arguments, texts of visible characters.

        Errors: bad_params names the field, also for `${secret:…}` anywhere; too_large for a script of more than 64 KiB;
        quota_exceeded for too many that have not ended; service_unavailable when the operator switched tasks off.
        Limits: `task.plugin_waiting` (20); 32 targets; `timeout_s` 1 to 600 (30).
        """
        where = None if targets is None else [*targets]
        params = given(interpreter=interpreter, script=script, name=name, targets=where, timeout_s=timeout_s)
        found: answers.TaskSubmitAnswer = self._ask("task.submit", params)
        return found

    def cancel(self, task_id: str) -> answers.TaskCancelAnswer:
        """Cancel a task before or while it runs; `ok` is false when it has ended already (task:run).

        Errors: not_found.
        """
        found: answers.TaskCancelAnswer = self._ask("task.cancel", {"id": task_id})
        return found


class Service(Calls):
    """Long-lived programs of the operator's list, run while the plugin is active."""

    def put(
        self,
        name: str,
        program: str,
        *,
        args: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        restart: answers.Restart | None = None,
        network: answers.ProgramNetwork | None = None,
        data: answers.KeptQuota | None = None,
        hosts: Sequence[str] | None = None,
    ) -> answers.ServicePutAnswer:
        """Keep a program running from now on, in place of the one of that name (task:run).

        `program` is a name in the operator's `service.programs`. `restart` is always (the default), on-failure or
        never; `network` none (the default), own or host. `data` gives it a directory /data that is kept; `hosts` is
        what it may reach from its own network. docs/write/services.md has each.

        Errors: bad_params names the field, also for a program that the operator does not list and a variable that was
        not granted; egress_blocked for a network or host that was not granted; quota_exceeded for too many.
        Limits: `service.plugin_services` (8); `service.data_bytes` (256 MiB) and `service.data_files` (10,000).
        """
        more = given(
            args=None if args is None else [*args],
            environment=None if environment is None else dict(environment),
            restart=restart,
            network=network,
            data=data,
            hosts=None if hosts is None else [*hosts],
        )
        found: answers.ServicePutAnswer = self._ask("service.put", {"name": name, "program": program, **more})
        return found

    def delete(self, name: str, *, data: bool | None = None) -> answers.Ok:
        """End and remove a program, with `data` also what it kept; `ok`: whether there was anything (task:run).

        Errors: bad_params for what is no name.
        """
        found: answers.Ok = self._ask("service.delete", given(name=name, data=data))
        return found

    def status(self, name: str | None = None) -> answers.ServiceStatusAnswer:
        """The state of one program, then with its output, or of all (task:run).

        Errors: not_found.
        Limits: `service.output_bytes` (64 KiB) of each stream, the end of it.
        """
        found: answers.ServiceStatusAnswer = self._ask("service.status", given(name=name))
        return found

    def save(
        self, name: str, files: Sequence[str], *, keep: int | None = None, spare: str | None = None
    ) -> answers.ServiceSaveAnswer:
        """Copy files that a program keeps in /data, all as they were at one moment (task:run).

        `keep`: how many copies there are afterwards at most (7); `spare`: the id of one that stays besides.

        Errors: not_found when none of the files is there; bad_params for what is no name of a file; too_large;
        service_unavailable when they keep changing.
        Limits: 16 files, 32 MiB together; 32 copies.
        """
        params = given(name=name, files=[*files], keep=keep, spare=spare)
        found: answers.ServiceSaveAnswer = self._ask("service.save", params)
        return found

    def saved(self, name: str) -> answers.ServiceSavedAnswer:
        """A program's copies, newest first (task:run).

        Errors: bad_params for what is no name.
        """
        found: answers.ServiceSavedAnswer = self._ask("service.saved", {"name": name})
        return found

    def revert(self, name: str, copy_id: str) -> answers.ServiceRevertAnswer:
        """Have a program keep exactly what was copied; it is stopped for that moment (task:run).

        Errors: not_found; service_unavailable when the file system cannot exchange directories.
        """
        found: answers.ServiceRevertAnswer = self._ask("service.revert", {"name": name, "id": copy_id})
        return found


class Tunnel(Calls):
    """Tunnels from the internet to services on this host, by cloudflared."""

    def put(
        self,
        name: str,
        tunnel: str,
        ingress: Sequence[answers.TunnelRule],
        *,
        credentials: str | None = None,
        token: str | None = None,
    ) -> answers.TunnelPutAnswer:
        """Make or replace a tunnel; returns before it is connected (tunnel:admin).

        `tunnel` is its id; of the rules in `ingress` the first that matches counts, and the last one matches all.
        `credentials` or `token` names a file in the operator's `tunnel.credentials_dir`.

        Errors: bad_params names the field or rule; egress_blocked for an origin that was not bound; quota_exceeded;
        service_unavailable, also when cloudflared did not say in time whether it takes the rules.
        Limits: `tunnel.plugin_tunnels` (2).
        """
        params = given(
            name=name, tunnel=tunnel, ingress=[dict(rule) for rule in ingress], credentials=credentials, token=token
        )
        found: answers.TunnelPutAnswer = self._ask("tunnel.put", params)
        return found

    def delete(self, name: str) -> answers.Ok:
        """End and remove a tunnel; `ok`: whether there was one (tunnel:admin).

        Errors: those of every call.
        """
        found: answers.Ok = self._ask("tunnel.delete", {"name": name})
        return found

    def status(self, name: str | None = None) -> answers.TunnelStatusAnswer:
        """The state of one tunnel, then with its rules and output, or of all (tunnel:admin).

        Errors: not_found.
        """
        found: answers.TunnelStatusAnswer = self._ask("tunnel.status", given(name=name))
        return found
