"""Swarms: one seeder with little bandwidth, or that super-seeds, and six leechers that must help one another."""

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
SUPER_COPIES_MAX = 1.35
START_SECONDS = 60
COMPLETE_SECONDS = 300


@dataclass(frozen=True)
class SwarmCase:
    """So many of the leechers are others: these, in turn."""

    name: str
    others: tuple = ()
    # The seeder's line is no bottleneck; it shows each leecher one piece at a time (BEP 16).
    is_super: bool = False

    @property
    def content_mib(self):
        return 64 if self.is_super else 256


SWARMS = [
    SwarmCase("swarm-gyre"),
    SwarmCase("swarm-gyre-and-libtorrent", ("libtorrent",) * 3),
    SwarmCase("swarm-super-seed", ("libtorrent", "libtorrent", "transmission", "transmission"), True),
]


class Swarm:
    """A case with its folder and its hosts."""

    def __init__(self, case, bench, folder):
        self.case = case
        self.bench = bench
        self.folder = folder
        self.programs = []

    def run(self):
        """Raises `Failed` or `Skipped`; returns how many copies the seeder sent."""
        for other in self.case.others:
            if reason := missing(other):
                raise Skipped(reason)
        try:
            return self._run()
        finally:
            for program in self.programs:
                program.kill()

    def _run(self):
        content = self.bench.payloads.get("single", "1MiB", self.case.content_mib * MIB)
        tracker_host, seeder_host, *hosts = self.bench.hosts(2 + LEECHERS)
        tracker = Tracker("gyre", "http", 4, tracker_host, self.folder)
        self.programs.append(tracker)
        gyre = self.bench.gyre
        torrent, info_hash = make_torrent(
            "gyre", gyre, content, "1MiB", [tracker.url], self.case.name, self.folder
        )
        tracker.start(gyre, info_hash)
        limit = ["--super-seed"] if self.case.is_super else ["--limit-up", f"{SEEDER_MIB_PER_S}MB"]
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
        copies_max = SUPER_COPIES_MAX if self.case.is_super else COPIES_MAX
        if sent > copies_max:
            raise Failed(f"the seeder sent {sent:.2f} copies, {copies_max} are allowed")
        return f"the seeder sent {sent:.2f} copies"

    def _leech(self, number, host, torrent):
        output = self.folder / "output" / str(number)
        output.mkdir(parents=True)
        if number < len(self.case.others):
            other = self.case.others[number]
            folder = self.folder / f"{other}-{number}"
            folder.mkdir()
            leecher = CLIENTS[other](host, folder)
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
