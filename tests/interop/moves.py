"""Torrents that move: another program seeds one and ends, `gyre import` takes it over, and the daemon seeds it without having
hashed a piece of it."""

import json
import signal
import subprocess
from dataclasses import dataclass

from clients import CLIENTS, missing
from gyre import PORT, Gyre
from pair import Skipped
from payloads import difference, make_torrent
from process import END_SECONDS, Failed, JsonProgram, environment

SEEDING_SECONDS = 60
START_SECONDS = 30
COMPLETE_SECONDS = 120


@dataclass(frozen=True)
class MoveCase:
    client: str
    shape: str

    @property
    def name(self):
        return f"import-{self.client}-{self.shape}"


MOVES = [MoveCase(client, shape) for client in ("transmission", "qbittorrent", "rtorrent") for shape in ("odd", "tree")]


class Move:
    """A case with its folder and its hosts."""

    def __init__(self, case, bench, folder):
        self.case = case
        self.bench = bench
        self.folder = folder
        self.other_host, self.host, self.peer_host = bench.hosts(3)
        self.programs = []

    def run(self):
        """Raises `Failed` or `Skipped` when it does not end well."""
        reason = missing(self.case.client)
        if reason:
            raise Skipped(reason)
        try:
            return self._run(CLIENTS[self.case.client](self.other_host, self.folder))
        finally:
            for program in self.programs:
                program.kill()

    def _run(self, other):
        gyre = self.bench.gyre
        content = self.bench.payloads.get(self.case.shape, "16KiB")
        # rtorrent takes no torrent without a tracker; nobody answers there.
        announce = [f"http://{self.other_host.v4}:9/announce"]
        torrent, info_hash = make_torrent("gyre", gyre, content, "16KiB", announce, self.case.name, self.folder)
        self.programs.append(other)
        other.seed(torrent, content)
        other.wait_seeding(SEEDING_SECONDS)
        # It writes its files when it ends in order.
        other.running.stop(signal.SIGINT if self.case.client == "rtorrent" else signal.SIGTERM)
        line = self._import()
        if line["info_hash"] != info_hash.hex() or line["pieces_have"] != line["pieces"] or line["pieces_to_hash"]:
            raise Failed(f"not all of it was taken over: {line}")
        daemon = self._daemon()
        output = self.folder / "output"
        peer = f"{self.host.v4}:{PORT}"
        fetched = Gyre(gyre, self.peer_host, self.folder, "download", torrent, output, "--peer", peer, name="peer")
        self.programs.append(fetched)
        fetched.wait_complete(COMPLETE_SECONDS)
        fetched.expect_done()
        differs = difference(content, output / content.name)
        if differs:
            raise Failed(differs)
        if daemon.stop() != 0:
            raise Failed(f"the daemon ended with exit code {daemon.code()}")
        said = daemon.err.read_text(errors="replace")
        if "checking data" in said:
            raise Failed("the daemon hashed what was taken over")
        return f"{line['pieces']} pieces, none hashed"

    def _import(self):
        places = {
            "transmission": self.folder / "transmission",
            "qbittorrent": self.folder / "profile" / "qBittorrent" / "data" / "BT_backup",
            "rtorrent": self.folder / "session",
        }
        argv = [self.bench.gyre, "import", self.case.client, places[self.case.client], "--json"]
        argv += ["--state", self.folder / "daemon.state"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=END_SECONDS, env=environment(self.folder))
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode != 0 or not lines or lines[0].get("outcome") != "taken":
            raise Failed(f"gyre import: exit code {done.returncode}: {done.stdout}{done.stderr}")
        return lines[0]

    def _daemon(self):
        argv = [self.bench.gyre, "daemon", "--lines", "--state", self.folder / "daemon.state", "--port", str(PORT)]
        for option in ("port-map", "dht", "lsd", "ipv6"):
            argv += [f"--{option}", "false"]
        argv += ["--api", "off", "--downloads", self.folder, "-vv"]
        daemon = JsonProgram(self.host, "gyre", argv, self.folder)
        self.programs.append(daemon)
        daemon.wait_event("listener of the daemon", lambda event: event["event"] == "listening", START_SECONDS)
        return daemon
