"""Holds a program, so that it ends when whoever runs it has ended, even by ``kill -9``: a script, run without Tournant.

``python leash.py PYTHON ARGUMENT ...`` runs the program with nothing on its standard input, and ends as it does. Its own standard input is a
pipe that nobody writes to; when it ends, so does the whole group of processes. It imports next to nothing, as it starts before each
of the programs.
"""

import os
import select
import signal
import sys


def main() -> None:
    """Run the program, and end as it ends or when standard input does."""
    woken, wake = os.pipe()
    for descriptor in (woken, wake):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    nothing = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    # Python ignores these two, and who is run is to find them as they are in a shell.
    usual = [signal.SIGPIPE, signal.SIGXFSZ]
    child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=nothing, setsigdef=usual)  # fmt: skip
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        ready, _, _ = select.select([0, woken], [], [])
        if 0 in ready:
            os.killpg(0, signal.SIGKILL)
        os.read(woken, 64)
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and -code != signal.SIGKILL:
        import resource

        # The program's own memory has been dumped, if that is wanted.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-code, signal.SIG_DFL)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
