"""
Starts a command that dies with its parent: leash.py PARENT SIGNAL ACCOUNT COMMAND...

PARENT is the pid that must still be the parent, SIGNAL the number the kernel sends
when it dies (Linux only), ACCOUNT "uid:gid" to run as or "-" to stay. A program of its
own because a preexec_fn forks a process full of threads, and because giving up
privileges clears the leash: it has to be put on last.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, death_signal, account, *command = sys.argv[1:]
    # What this interpreter or a background shell ignores, the command must not inherit.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    if account != "-":
        uid, gid = (int(part) for part in account.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(death_signal))
    if os.getppid() != int(parent):
        sys.exit("The supervisor ended before this process could start.")
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
