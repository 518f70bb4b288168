"""The programs on the other side, one file each, all with the same few methods:

`seed(torrent, content)`, `download(torrent, folder)` and `download_link(link, folder)` start it, `wait_seeding` and `wait_complete` wait, `stop` ends
it. Each runs on a host of its own, where it may take any port.
"""

import shutil

from .aria2 import Aria2
from .libtorrent import Libtorrent
from .qbittorrent import Qbittorrent
from .rtorrent import Rtorrent
from .transmission import Transmission

CLIENTS = {client.name: client for client in (Transmission, Aria2, Libtorrent, Qbittorrent, Rtorrent)}


def missing(name):
    """Why that client cannot be run here, or `None`."""
    client = CLIENTS[name]
    if client.program and not shutil.which(client.program):
        return f"{client.program} is not installed"
    return client.missing()


__all__ = ["CLIENTS", "missing"]
