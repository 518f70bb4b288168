"""rtorrent, without its screen: it is told all by its settings and seen by the session that it writes."""

from process import Program, wait_until

from .client import Client

CONFIG = """\
system.daemon.set = true
session.path.set = {session}
directory.default.set = {folder}
network.port_range.set = {port}-{port}
network.port_random.set = no
dht.mode.set = disable
protocol.pex.set = no
trackers.use_udp.set = no
schedule2 = save, 1, 1, ((session.save))
"""


class Rtorrent(Client):
    name = "rtorrent"
    program = "rtorrent"

    @property
    def session(self):
        return self.folder / "session"

    def seed(self, torrent, content):
        self.session.mkdir()
        config = self.folder / "rtorrent.rc"
        text = CONFIG.format(session=self.session, folder=content.parent, port=self.port)
        config.write_text(text)
        argv = ["rtorrent", "-n", "-o", f"import={config}", torrent]
        self.running = Program(self.host, self.name, argv, self.folder)

    def _is_complete(self):
        files = self.session.glob("*.rtorrent")
        return any(b"8:completei1e" in file.read_bytes() for file in files)

    def wait_seeding(self, seconds):
        wait_until("seeding rtorrent", self._is_complete, seconds, self.running)
