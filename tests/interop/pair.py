"""One case: Gyre and one other program, the torrent between them, what must hold at the end."""

from clients import CLIENTS, missing
from gyre import Gyre
from payloads import difference, make_torrent
from process import Failed
from trackers import Tracker
from trackers import missing as missing_tracker

START_SECONDS = 60
# Enough for a 1 GiB download on a busy machine: Transmission and aria2 unchoke every ten seconds.
COMPLETE_SECONDS = 300


class Skipped(Exception):
    """Why a case cannot run on this machine."""


class Pair:
    """A case with its folder and its hosts."""

    def __init__(self, case, bench, folder):
        self.case = case
        self.bench = bench
        self.folder = folder
        self.host, other_host, tracker_host = bench.hosts()
        self.other = CLIENTS[case.client](other_host, folder)
        self.other.is_encrypted = case.is_encrypted
        self.other.is_utp = case.is_utp
        self.tracker = None
        if case.tracker:
            self.tracker = Tracker(case.tracker, case.scheme, case.family, tracker_host, folder)
        self.gyre = None

    def run(self):
        """Raises `Failed` or `Skipped` when it does not end well."""
        case = self.case
        self._need()
        content = self.bench.payloads.get(case.shape, case.piece)
        announce = [self.tracker.url] if self.tracker else []
        torrent, info_hash = make_torrent(
            case.maker, self.bench.gyre, content, case.piece, announce, case.name, self.folder
        )
        try:
            if self.tracker:
                self.tracker.start(self.bench.gyre, info_hash)
            before = {family: self._bytes(family) for family in self._families()}
            if case.direction == "download":
                self._download(torrent, info_hash, content)
            else:
                self._seed(torrent, info_hash, content)
            self._went_by_family(before, content)
            self._went_encrypted()
            self._went_over_utp()
        finally:
            self.kill()

    def _need(self):
        reason = missing(self.case.client)
        if not reason and self.tracker:
            reason = missing_tracker(self.case.tracker, self.bench.gyre)
        if not reason and self.case.family == 6 and not self.bench.lab.has_ipv6:
            reason = "no IPv6 on this machine"
        if reason:
            raise Skipped(reason)

    def _download(self, torrent, info_hash, content):
        output = self.folder / "output"
        self.other.seed(torrent, content)
        self.other.wait_seeding(START_SECONDS)
        if self.tracker:
            self.tracker.wait_for_seeder(info_hash, self.other.running)
        self._start_gyre("download", torrent, output)
        self.gyre.wait_complete(COMPLETE_SECONDS)
        self.gyre.expect_done()
        self._same(content, output, may_miss_empty=False)

    def _seed(self, torrent, info_hash, content):
        output = self.folder / "output"
        output.mkdir()
        if self.tracker:
            self._start_gyre("seed", torrent, content.parent)
            self.gyre.wait_seeding(START_SECONDS)
            self.tracker.wait_for_seeder(info_hash, self.gyre)
            self.other.download(torrent, output)
        else:
            # Gyre dials, so the other one must listen before.
            self.other.download(torrent, output)
            self._start_gyre("seed", torrent, content.parent)
        self.other.wait_complete(COMPLETE_SECONDS)
        self.gyre.expect_stopped()
        self.other.stop()
        self._same(content, output, self.other.skips_empty_files)

    def _start_gyre(self, verb, torrent, where):
        options = [] if self.tracker else ["--peer", self.other.endpoint(self.case.family)]
        if self.case.is_encrypted:
            options += ["--encryption", "require"]
        if self.case.is_utp:
            options += ["--no-tcp"]
        self.gyre = Gyre(self.bench.gyre, self.host, self.folder, verb, torrent, where, *options)

    def _same(self, content, output, may_miss_empty):
        differs = difference(content, output / content.name, may_miss_empty)
        if differs:
            raise Failed(differs)

    def _families(self):
        return (4, 6) if self.bench.lab.has_ipv6 else (4,)

    def _bytes(self, family):
        host = self.host if self.case.direction == "download" else self.other.host
        return host.bytes_in(family)

    def _went_by_family(self, before, content):
        """The payload arrived in the family of the case, and not in the other one."""
        size = self.bench.payloads.size(content)
        for family in before:
            came = self._bytes(family) - before[family]
            if family == self.case.family and came < size:
                raise Failed(f"only {came} bytes came by IPv{family}")
            if family != self.case.family and came > size // 2:
                raise Failed(f"{came} bytes came by IPv{family}")

    def _went_encrypted(self):
        if self.case.is_encrypted and "cover=Encrypted" not in self.gyre.err.read_text(errors="replace"):
            raise Failed("Gyre's log tells of no encrypted connection")

    def _went_over_utp(self):
        if self.case.is_utp and "is_utp=true" not in self.gyre.err.read_text(errors="replace"):
            raise Failed("Gyre's log tells of no connection over uTP")

    def kill(self):
        for program in (self.gyre, self.other, self.tracker):
            if program:
                program.kill()
