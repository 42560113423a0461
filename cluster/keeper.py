"""The process between a worker and its engine: it sees to it that no engine outlives its worker. Run as a file.

``python keeper.py GRACE_SECONDS PROGRAM ARGUMENT...`` starts the program in a session of its own, writes its process
id as a line on stdout, and leaves with its exit code when it ends.

Invariant: when this process ends, by whatever means, so does the program. It is told to stop by the end of its stdin,
which comes with the worker's death too, SIGKILL included, on every system. When it is itself killed, Linux kills the
program for it (PR_SET_PDEATHSIG), and the worker kills the program's whole group, whose number it was told.
Stands on the standard library alone, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Start, wait, and leave nothing of the program's group behind; its exit code, 128 + signal when killed."""
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's; the worker says when to stop
    own = os.getpid()
    linux = sys.platform.startswith("linux")
    libc = ctypes.CDLL(None, use_errno=True) if linux else None  # loaded here: nothing is safe after the fork

    def die_with_keeper() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != own:  # it died before the call
                os._exit(1)

    try:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=sys.stderr,
            start_new_session=True,
            preexec_fn=die_with_keeper if linux else None,
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    print(program.pid, flush=True)
    threading.Thread(target=stop_at_end_of_stdin, args=(program, grace_s), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: end_group(program.pid, signal.SIGTERM))
    code = program.wait()
    end_group(program.pid, signal.SIGKILL)  # children that the program left behind
    return code if code >= 0 else 128 - code


def stop_at_end_of_stdin(program: subprocess.Popen[bytes], grace_s: float) -> None:
    """Wait for the worker's word, or its death; ask the program to end, and make it."""
    while os.read(0, 4096):
        pass
    end_group(program.pid, signal.SIGTERM)
    try:
        program.wait(grace_s)
    except subprocess.TimeoutExpired:
        end_group(program.pid, signal.SIGKILL)


def end_group(group: int, number: int) -> None:
    """A signal to every process of the program's group that is left."""
    with contextlib.suppress(
        ProcessLookupError, PermissionError
    ):  # macOS says the second of a group of zombies
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main())
