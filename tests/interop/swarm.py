"""Swarms: one seeder with little bandwidth and six leechers that must help one another."""

from dataclasses import dataclass

from clients import CLIENTS, missing
from gyre import Gyre
from pair import Skipped
from payloads import MIB, difference, make_torrent
from process import Failed, wait_until
from trackers import Tracker

LEECHERS = 6
SEEDER_MIB_PER_S = 20
# What the seeder may send, in copies of the content.
COPIES_MAX = 1.5
START_SECONDS = 60
COMPLETE_SECONDS = 300


@dataclass(frozen=True)
class SwarmCase:
    """`others` of the leechers are libtorrent."""

    name: str
    others: int


SWARMS = [SwarmCase("swarm-gyre", 0), SwarmCase("swarm-gyre-and-libtorrent", 3)]
CONTENT_MIB = 256


class Swarm:
    """A case with its folder and its hosts."""

    def __init__(self, case, bench, folder):
        self.case = case
        self.bench = bench
        self.folder = folder
        self.programs = []

    def run(self):
        """Raises `Failed` or `Skipped`; returns how many copies the seeder sent."""
        if self.case.others and (reason := missing("libtorrent")):
            raise Skipped(reason)
        try:
            return self._run()
        finally:
            for program in self.programs:
                program.kill()

    def _run(self):
        content = self.bench.payloads.get("single", "1MiB", CONTENT_MIB * MIB)
        tracker_host, seeder_host, *hosts = self.bench.hosts(2 + LEECHERS)
        tracker = Tracker("gyre", "http", 4, tracker_host, self.folder)
        self.programs.append(tracker)
        gyre = self.bench.gyre
        torrent, info_hash = make_torrent(
            "gyre", gyre, content, "1MiB", [tracker.url], self.case.name, self.folder
        )
        tracker.start(gyre, info_hash)
        limit = ["--limit-up", f"{SEEDER_MIB_PER_S}MB"]
        seeder = Gyre(gyre, seeder_host, self.folder, "seed", torrent, content.parent, *limit, name="gyre-seeder")
        self.programs.append(seeder)
        seeder.wait_seeding(START_SECONDS)
        tracker.wait_for_seeder(info_hash, seeder)
        leechers = [self._leech(number, host, torrent) for number, host in enumerate(hosts)]
        for leecher, _ in leechers:
            leecher.wait_complete(COMPLETE_SECONDS)
        sent = self._sent(seeder, content)
        for leecher, output in leechers:
            differs = difference(content, output / content.name, False)
            if differs:
                raise Failed(f"{leecher.name}: {differs}")
        if sent > COPIES_MAX:
            raise Failed(f"the seeder sent {sent:.2f} copies, {COPIES_MAX} are allowed")
        return f"the seeder sent {sent:.2f} copies"

    def _leech(self, number, host, torrent):
        output = self.folder / "output" / str(number)
        output.mkdir(parents=True)
        if number < self.case.others:
            folder = self.folder / f"libtorrent-{number}"
            folder.mkdir()
            leecher = CLIENTS["libtorrent"](host, folder)
            leecher.download(torrent, output)
        else:
            name = f"gyre-{number}"
            leecher = Gyre(self.bench.gyre, host, self.folder, "download", torrent, output, "--seed", name=name)
        self.programs.append(leecher)
        return leecher, output

    def _sent(self, seeder, content):
        """Copies of the content that the seeder sent, by its own count at its end."""
        seeder.expect_stopped()
        total = content.stat().st_size
        wait_until("last figures of the seeder", lambda: seeder.last("ended"), START_SECONDS)
        return seeder.last("progress")["uploaded_bytes"] / total
