"""libtorrent from pip, through `lt_peer.py`."""

import importlib.util
import sys
from pathlib import Path

from process import JsonProgram, wait_until

from .client import Client

PEER = Path(__file__).parent.parent / "lt_peer.py"


class Libtorrent(Client):
    name = "libtorrent"

    @classmethod
    def missing(cls):
        found = importlib.util.find_spec("libtorrent")
        return None if found else "libtorrent for Python is not installed"

    def seed(self, torrent, content, *options):
        self._start(torrent, content.parent, *options)

    def download(self, torrent, folder, *options):
        self._start(torrent, folder, *options)

    def download_link(self, link, folder):
        self._start(link, folder)

    def _start(self, torrent, folder, *options):
        argv = [sys.executable, PEER, torrent, folder, "--port", str(self.port), *options]
        argv += ["--encrypted"] if self.is_encrypted else []
        argv += ["--utp"] if self.is_utp else []
        self.running = JsonProgram(self.host, self.name, argv, self.folder)

    def is_complete(self):
        return self.running.last("progress").get("complete")

    def wait_seeding(self, seconds):
        wait_until("seeding libtorrent", self.is_complete, seconds, self.running)

    def wait_complete(self, seconds):
        wait_until("complete download by libtorrent", self.is_complete, seconds, self.running)
