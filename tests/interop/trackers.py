"""The trackers that programs find one another through: opentracker and `gyre tracker`, each over HTTP and UDP."""

import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request

from netlab import endpoint
from process import JsonProgram, Program, environment, wait_until

PORT = 6969
START_SECONDS = 10
KNOWS_SECONDS = 30


class Tracker:
    """A tracker on a host of its own, for one torrent."""

    def __init__(self, kind, scheme, family, host, folder):
        self.kind = kind
        self._address = host.address(family)
        self.url = f"{scheme}://{endpoint(self._address, PORT)}/announce"
        self._host = host
        self._folder = folder
        self.running = None

    def start(self, gyre, info_hash):
        if self.kind == "opentracker":
            self._start_opentracker(info_hash)
        else:
            argv = [gyre, "tracker", "--listen", endpoint(self._address, PORT), "--json", "-vv"]
            self.running = JsonProgram(self._host, "tracker", argv, self._folder)
        wait_until("answer of the tracker", lambda: self._scrape(info_hash) is not None, START_SECONDS, self.running)

    def _start_opentracker(self, info_hash):
        # Started as root it makes this folder its root, and finds the list in there; else it only moves into it.
        home = self._folder / "opentracker"
        home.mkdir()
        (home / "whitelist").write_text(info_hash.hex() + "\n")
        ports = ["-p", str(PORT), "-P", str(PORT)]
        argv = ["opentracker", "-i", self._address, *ports, "-d", home, "-w", "whitelist"]
        self.running = Program(self._host, "tracker", argv, self._folder)

    def _scrape(self, info_hash):
        """The bencoded answer, or `None`. Always over HTTP: both trackers serve both on one port."""
        hash_ = urllib.parse.quote_from_bytes(info_hash, safe="")
        url = f"http://{endpoint(self._address, PORT)}/scrape?info_hash={hash_}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read()
        except OSError:
            return None

    def wait_for_seeder(self, info_hash, *programs):
        """Until a program that has everything has announced itself."""

        def knows():
            answer = self._scrape(info_hash) or b""
            return b"8:completei" in answer and b"8:completei0e" not in answer

        wait_until("announce of the seeder", knows, KNOWS_SECONDS, self.running, *programs)

    def kill(self):
        if self.running:
            self.running.kill()


def missing(kind, gyre):
    """Why that tracker cannot be run here, or `None`."""
    if kind == "opentracker":
        return None if shutil.which("opentracker") else "opentracker is not installed"
    tried = subprocess.run(
        # An address of nobody's: a build with the verb fails otherwise than one without.
        [gyre, "tracker", "--listen", "192.0.2.1:1"],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment("/tmp"),
    )
    return "gyre tracker is not in this build" if "not in this build" in tried.stderr or "no tracker in this build" in tried.stderr else None
