"""Magnet links between Gyre and other programs, and peers told of to and by libtorrent."""

from dataclasses import dataclass

from clients import CLIENTS, missing
from gyre import PORT, Gyre
from pair import Skipped
from payloads import difference, make_torrent
from process import Failed, wait_until

START_SECONDS = 60
COMPLETE_SECONDS = 300
# A Gyre that has next to nothing for as long as a case lasts.
SLOW_KIB_PER_S = 20


@dataclass(frozen=True)
class LinkCase:
    """`what` is one of the methods of `Links` below."""

    name: str
    what: str
    client: str


LINKS = [
    *(LinkCase(f"magnet-download-{client}", "download", client) for client in ("transmission", "qbittorrent", "libtorrent")),
    *(LinkCase(f"magnet-seed-{client}", "seed", client) for client in ("libtorrent", "aria2", "transmission")),
    LinkCase("pex-from-libtorrent", "told_by", "libtorrent"),
    LinkCase("magnet-pex-libtorrent", "told_by_with_link", "libtorrent"),
    LinkCase("magnet-lsd-libtorrent", "local", "libtorrent"),
    LinkCase("pex-to-libtorrent", "tells", "libtorrent"),
]


class Links:
    """A case with its folder and its hosts."""

    def __init__(self, case, bench, folder):
        self.case = case
        self.bench = bench
        self.folder = folder
        self.host, self.other_host, self.third_host = bench.hosts()
        self.other = CLIENTS[case.client](self.other_host, folder)
        self.programs = []

    def run(self):
        """Raises `Failed` or `Skipped` when it does not end well."""
        if reason := missing(self.case.client):
            raise Skipped(reason)
        content = self.bench.payloads.get("single", "256KiB")
        torrent, info_hash = make_torrent(
            "gyre", self.bench.gyre, content, "256KiB", [], self.case.name, self.folder
        )
        self.output = self.folder / "output"
        self.output.mkdir()
        try:
            getattr(self, self.case.what)(torrent, self._link(info_hash), content)
        finally:
            self.other.kill()
            for program in self.programs:
                program.kill()
        differs = difference(content, self.output / content.name, False)
        if differs:
            raise Failed(differs)

    def download(self, torrent, link, content):
        """Gyre gets metadata and data from the other program."""
        self.other.seed(torrent, content)
        self.other.wait_seeding(START_SECONDS)
        gyre = self._gyre(self.host, "download", f"{link}&x.pe={self.other.endpoint(4)}", self.output)
        gyre.wait_complete(COMPLETE_SECONDS)
        gyre.expect_done()

    def seed(self, torrent, link, content):
        """The other program gets metadata and data from Gyre, which dials it."""
        self.other.download_link(link, self.output)
        dial = ["--peer", self.other.endpoint(4)]
        gyre = self._gyre(self.host, "seed", torrent, content.parent, *dial)
        self.other.wait_complete(COMPLETE_SECONDS)
        gyre.expect_stopped()
        self.other.stop()

    def told_by(self, torrent, _, content):
        """Gyre knows only a libtorrent without data, which knows a seeder."""
        self._known_seeder(torrent, content)
        self._meets_by_pex(torrent, "--peer", self.other.endpoint(4))

    def told_by_with_link(self, torrent, link, content):
        """The same with a link: metadata from who has no data, data from whom that one tells of."""
        self._known_seeder(torrent, content)
        self._meets_by_pex(f"{link}&x.pe={self.other.endpoint(4)}")

    def _known_seeder(self, torrent, content):
        """A seeder that tells nobody of anybody, and a libtorrent that is connected with it and wants nothing."""
        seeder = self._gyre(self.third_host, "seed", torrent, content.parent, name="gyre-seeder")
        seeder.wait_seeding(START_SECONDS)
        middle = self.folder / "middle"
        middle.mkdir()
        self.other.download(torrent, middle, "--peer", self.third_host.endpoint(4, PORT), "--no-data")
        self._wait_connected()

    def _wait_connected(self):
        running = self.other.running
        wait_until("connected libtorrent", lambda: running.last("progress").get("peers"), START_SECONDS, running)

    def _meets_by_pex(self, source, *options):
        gyre = self._gyre(self.host, "download", source, self.output, *options, pex=True)
        gyre.wait_complete(COMPLETE_SECONDS)
        gyre.expect_done()
        met = gyre.last("progress")["connections_by_source"]
        if not met["pex"]:
            raise Failed(f"nobody was met by peer exchange: {met}")

    def local(self, torrent, link, content):
        """A link that names nobody, and a seeding libtorrent on the same network."""
        self.other.seed(torrent, content, "--lsd")
        self.other.wait_seeding(START_SECONDS)
        gyre = self._gyre(self.host, "download", link, self.output, lsd=True)
        gyre.wait_complete(COMPLETE_SECONDS)
        gyre.expect_done()
        met = gyre.last("progress")["connections_by_source"]
        if not (met["lsd"] or met["incoming"]):
            raise Failed(f"nobody was met on the local network: {met}")

    def tells(self, torrent, _, content):
        """libtorrent knows only a slow Gyre, which knows a seeder."""
        seeder = self._gyre(self.third_host, "seed", torrent, content.parent, name="gyre-seeder")
        seeder.wait_seeding(START_SECONDS)
        self.other.download(torrent, self.output)
        slow = self.folder / "slow"
        dial = ["--peer", self.third_host.endpoint(4, PORT), "--peer", self.other.endpoint(4)]
        limit = ["--limit-down", f"{SLOW_KIB_PER_S}KiB"]
        gyre = self._gyre(self.host, "download", torrent, slow, *dial, *limit, pex=True)
        self.other.wait_complete(COMPLETE_SECONDS)
        if gyre.last("complete"):
            raise Failed("the slow one was not slow")
        self.other.stop()

    def _link(self, info_hash):
        return f"magnet:?xt=urn:btih:{info_hash.hex()}&dn=by+a+link"

    def _gyre(self, host, verb, source, where, *options, **more):
        gyre = Gyre(self.bench.gyre, host, self.folder, verb, source, where, *options, **more)
        self.programs.append(gyre)
        return gyre
