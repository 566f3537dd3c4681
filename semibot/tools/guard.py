"""Stand between an owner and a child process, and leave nothing of the child's tree behind.

This file is a program of its own, started once per child as ``python -I -S guard.py
CONTROL STATUS OWNER``: two descriptors and the process id of whoever starts it. It imports
nothing but the standard library, and little of that, because every import delays every
child; ``typing`` is left out for the same reason.

Theory of operation. Ending a *tree* of processes needs somebody whom the tree cannot leave,
and who outlives the owner when that is killed with SIGKILL.

* The guard is a *child subreaper*: a process that forks twice and starts a session of its
  own to escape becomes the guard's child when its parent dies. The tree is therefore always
  "all descendants of the guard", and it is gone when the guard has no child left to wait for.
* The guard reads CONTROL, a pipe whose only writing end is the owner's. Its end means that
  the owner is dead or wants nothing more, and the tree is killed. Where the kernel offers
  it, the owner's pidfd is watched too, in case the owner leaked a copy of the pipe.
* The child is armed with PR_SET_PDEATHSIG, so that it dies with the guard. That signal
  follows the *thread* that forked; armed on a process that the owner spawns, it would kill
  healthy children whenever the owner retires a worker thread. The guard forks from its
  main thread, its only one, which ends exactly when the guard does.
* The guard closes its copies of the child's stdin, stdout and stderr, so that the end of
  a stream passes between owner and child as if the guard did not exist.

Owner to guard: one order (see :func:`encode_order`), then any number of :data:`TERMINATE`
and :data:`KILL` bytes. Guard to owner, one line each on STATUS: ``unsupported REASON``, or
``failed STAGE ERRNO``, or ``started PID`` and later ``exited CODE``, negative for a signal.
The end of STATUS is the end of the guard, and with it of the tree.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

TERMINATE = b"T"
"""Asks the guard to send SIGTERM to the whole tree."""
KILL = b"K"
"""Asks the guard to kill the whole tree."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0


def encode_order(argv: Sequence[str], environment: Mapping[str, str], cwd: str | None) -> bytes:
    """Return what tells a guard which program to start: a length, a newline, NUL-joined fields.

    It travels through a pipe because a command line can be read by every user of the machine.

    Args:
        argv: Program and arguments, without NUL characters.
        environment: All that the program gets, without NUL characters.
        cwd: Directory to start in, or None to stay.
    """
    fields = [cwd or "", str(len(argv)), *argv]
    fields += [f"{name}={value}" for name, value in environment.items()]
    body = os.fsencode("\0".join(fields))
    return b"%d\n%s" % (len(body), body)


class _Order:
    """A decoded order."""

    def __init__(self, body: bytes) -> None:
        self.cwd, count, *rest = body.split(b"\0")
        self.argv = rest[: int(count)]
        pairs = (field.partition(b"=") for field in rest[int(count) :])
        self.environment = {name: value for name, _, value in pairs}


def _read_order(control: int) -> _Order | None:
    data = b""
    while True:
        size, newline, body = data.partition(b"\n")
        if newline and len(body) >= int(size):
            return _Order(body)
        chunk = os.read(control, 65536)
        if not chunk:
            return None  # the owner died, or gave up, before it had said what to start
        data += chunk


def _descendants() -> list[tuple[int, int]]:
    """Return process and group of all below this one, as far as one look at /proc shows."""
    children: dict[int, list[tuple[int, int]]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - pathlib is slow to import
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                    stat = file.read()
            except OSError:
                continue  # it has ended since the listing
            # The name, in parentheses, may hold anything; state, parent and group follow it.
            _, parent, group, *_ = stat[stat.rindex(b")") + 1 :].split(None, 3)
            children.setdefault(int(parent), []).append((int(entry), int(group)))
    found: list[tuple[int, int]] = []
    generation = children.get(os.getpid(), [])
    while generation:
        found += generation
        generation = [below for pid, _ in generation for below in children.get(pid, [])]
    return found


def _signal_tree(signum: int) -> None:
    """Signal all descendants, by group: a group cannot outrun a signal by forking.

    All members of these groups are descendants, because the child has made itself a session
    and groups do not reach across sessions. In our own group is only a child that was
    forked just now and has not got that far.
    """
    own = os.getpgrp()
    for target in {pid if group == own else -group for pid, group in _descendants()}:
        try:
            os.kill(target, signum)
        except OSError:
            continue  # gone by itself, or it changed its user and is beyond us


def _open_pidfd(pid: int) -> int | None:
    opener = getattr(os, "pidfd_open", None)
    try:
        return None if opener is None else opener(pid)
    except OSError:
        return None


def _load_prctl() -> Callable[[int, int], int]:
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).prctl
    function.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4

    def prctl(option: int, value: int) -> int:
        result: int = function(option, value, 0, 0, 0)
        return result

    return prctl


def _say(status: int, line: str) -> None:
    try:
        os.write(status, f"{line}\n".encode())
    except OSError:
        return  # the owner is gone, which the control pipe tells as well


def _reset_signals() -> None:
    """Undo what this program and its owner did to signals, so that the child gets them all."""
    for signum in signal.valid_signals():
        try:
            signal.signal(signum, signal.SIG_DFL)
        except OSError:
            continue  # SIGKILL and SIGSTOP have no other way of being handled
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _ignore(signum: int, frame: object) -> None:
    """Handle a signal; unlike SIG_IGN, this leaves a byte in the wake-up pipe."""


class _Guard:
    """The state of one guard."""

    def __init__(self, control: int, status: int, prctl: Callable[[int, int], int]) -> None:
        self._control = control
        self._status = status
        self._prctl = prctl
        self._poll = select.poll()
        self._wakeup, self._wakeup_writer = os.pipe()
        self._owner: int | None = None
        self._child = 0
        self._exec_report: int | None = None
        self._is_terminating = False
        self._is_killing = False

    def run(self, order: _Order, owner: int) -> None:
        """Start the child and return when its whole tree is gone."""
        os.set_blocking(self._wakeup_writer, False)
        signal.set_wakeup_fd(self._wakeup_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)  # its arrival wakes the poll below
        self._owner = _open_pidfd(owner)
        if os.getppid() != owner:
            return  # the owner is dead already, and the pidfd may be a stranger's
        for fd in (self._control, self._wakeup, self._owner):
            if fd is not None:
                self._poll.register(fd, select.POLLIN)
        self._start(order)
        pause = _FIRST_PAUSE
        while self._reap():
            if self._is_killing:
                # Once is not enough: what was forked since the look at /proc is still to come.
                _signal_tree(signal.SIGKILL)
                pause = min(pause * 2, _LONGEST_PAUSE)
            for fd, _ in self._poll.poll(pause * 1000 if self._is_killing else None):
                self._handle(fd)

    def _start(self, order: _Order) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        self._exec_report, writer = os.pipe()  # closed by a successful exec
        guard = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            self._become(order, guard, writer)
        os.close(writer)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        self._poll.register(self._exec_report, select.POLLIN)

    def _become(self, order: _Order, guard: int, report: int) -> None:
        """Turn this process, just forked, into the program. Never returns."""
        stage = "setup"
        try:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == guard:  # else it died before the signal was armed
                os.setsid()
                _reset_signals()
                if order.cwd:
                    stage = "cwd"
                    os.chdir(order.cwd)
                stage = "exec"
                os.execvpe(order.argv[0], order.argv, order.environment)  # noqa: S606 - on purpose
        except OSError as exc:
            os.write(report, f"{stage} {exc.errno}".encode())
        finally:
            os._exit(127)

    def _handle(self, fd: int) -> None:
        if fd == self._control:
            orders = os.read(fd, 4096)
            if not orders:
                self._poll.unregister(fd)
                self._is_killing = True
            if TERMINATE in orders:
                self._is_terminating = True
                _signal_tree(signal.SIGTERM)
                _signal_tree(signal.SIGCONT)  # a stopped process can only then obey
            if KILL in orders:
                self._is_killing = True
        elif fd == self._owner:
            self._poll.unregister(fd)
            self._is_killing = True
        elif fd == self._wakeup:
            os.read(fd, 4096)
        else:
            self._report_start()

    def _report_start(self) -> None:
        """Tell the owner how the exec went; it has gone one way or the other."""
        if self._exec_report is None:
            return
        failure = os.read(self._exec_report, 100).decode()
        self._poll.unregister(self._exec_report)
        os.close(self._exec_report)
        self._exec_report = None
        _say(self._status, f"failed {failure}" if failure else f"started {self._child}")

    def _reap(self) -> bool:
        """Collect the dead, the tree's orphans among them; return whether any child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._child:
                self._report_start()
                self._child = 0  # from now on the number may be another's
                _say(self._status, f"exited {os.waitstatus_to_exitcode(status)}")
                # The program is over, and what it left running with it; unless the tree was
                # asked to end by itself, which the owner gives it some time for.
                self._is_killing = self._is_killing or not self._is_terminating


def _serve(control: int, status: int, owner: int) -> str:
    """Guard one child; return why that is impossible, or nothing."""
    try:
        prctl = _load_prctl()
    except (ImportError, OSError, AttributeError) as exc:
        return f"no prctl: {exc}"
    if prctl(_PR_SET_CHILD_SUBREAPER, 1) != 0:
        return "prctl is refused"
    order = _read_order(control)
    if order is not None:
        _Guard(control, status, prctl).run(order, owner)
    return ""


def main() -> None:
    """Guard one child, as the command line and the control pipe say."""
    control, status, owner = (int(word) for word in sys.argv[1:4])
    for fd in (control, status):
        os.set_inheritable(fd, False)  # the child's descriptors are stdin, stdout and stderr
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the owner may have blocked SIGCHLD
    refusal = _serve(control, status, owner)
    if refusal:
        _say(status, f"unsupported {refusal}")
    os._exit(0)


if __name__ == "__main__":
    main()
