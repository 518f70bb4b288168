"""A program under test: started on a host, its output kept in files, waited for with a deadline, stopped."""

import json
import os
import signal
import subprocess
import time

# Programs that were asked to end are given this long. Gyre promises ten seconds.
END_SECONDS = 15
POLL_SECONDS = 0.05


class Failed(Exception):
    """What went wrong in a case."""


def wait_until(what, holds, seconds, *programs):
    """Polls until `holds()` gives something true, and returns that. Fails when one of the programs ends first."""
    deadline = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        for program in programs:
            if program.code() is not None:
                raise Failed(f"{program.name} ended with exit code {program.code()} before {what}")
        if time.monotonic() > deadline:
            raise Failed(f"no {what} within {seconds} s")
        time.sleep(POLL_SECONDS)


def environment(folder):
    """A clean one: nothing of the caller's changes what a program does, and its files stay in `folder`."""
    kept = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    if "LD_LIBRARY_PATH" in os.environ:
        kept["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return kept


class Program:
    """A child process whose output goes to `NAME.out` and `NAME.err` in a folder."""

    def __init__(self, host, name, argv, folder):
        self.name = name
        self.out = folder / f"{name}.out"
        self.err = folder / f"{name}.err"
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            err.write(f"$ {' '.join(map(str, argv))}\n".encode())
            err.flush()
            self._child = subprocess.Popen(
                host.command([str(part) for part in argv]),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=environment(folder),
                start_new_session=True,
            )

    def code(self):
        """The exit code, or `None` while it runs."""
        code = self._child.poll()
        return 128 - code if code is not None and code < 0 else code

    def wait_exit(self, seconds):
        wait_until(f"end of {self.name}", lambda: self.code() is not None, seconds)
        return self.code()

    def stop(self, sent=signal.SIGTERM):
        """Asks it to end and returns its exit code."""
        if self.code() is None:
            self._child.send_signal(sent)
        return self.wait_exit(END_SECONDS)

    def kill(self):
        if self.code() is None:
            self._child.kill()
            self._child.wait()


class JsonProgram(Program):
    """A program that prints one JSON object a line."""

    def __init__(self, host, name, argv, folder):
        super().__init__(host, name, argv, folder)
        self._lines = open(self.out, "rb")
        self._rest = b""
        self.events = []

    def read(self):
        """Takes in what it has printed since; every event so far."""
        *lines, self._rest = (self._rest + self._lines.read()).split(b"\n")
        for line in lines:
            try:
                self.events.append(json.loads(line))
            except ValueError:
                raise Failed(f"{self.name} printed what is not JSON: {line[:200]!r}") from None
        return self.events

    def wait_event(self, what, is_it, seconds):
        return wait_until(what, lambda: next((event for event in self.read() if is_it(event)), None), seconds, self)

    def last(self, name):
        """The latest event of that name, or an empty one."""
        return next((event for event in reversed(self.read()) if event.get("event") == name), {})
