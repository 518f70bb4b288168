"""libtorrent's half of the tests of BitTorrent v2.

lt.py make CONTENT TORRENT PIECE_LENGTH v1|v2|hybrid   makes a torrent
lt.py hashes TORRENT                                    prints its info_hashes, or `-`
lt.py peer SOURCE FOLDER [HOST:PORT]                    shares it until stdin ends: JSON lines with `port`, then `complete`
"""

import json
import os
import select
import sys

import libtorrent as lt

KINDS = {"v1": lt.create_torrent.v1_only, "v2": lt.create_torrent.v2_only, "hybrid": 0}


def make(content, torrent, piece_length, kind):
    files = lt.file_storage()
    lt.add_files(files, content)
    made = lt.create_torrent(files, int(piece_length), KINDS[kind])
    lt.set_piece_hashes(made, os.path.dirname(content))
    with open(torrent, "wb") as file:
        file.write(lt.bencode(made.generate()))


def hashes(torrent):
    both = lt.torrent_info(torrent).info_hashes()
    print(both.v1 if both.has_v1() else "-", both.v2 if both.has_v2() else "-")


def say(**what):
    print(json.dumps(what), flush=True)


def peer(source, folder, other=None):
    session = lt.session(
        {
            "listen_interfaces": "127.0.0.1:0",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "allow_multiple_connections_per_ip": True,
            "alert_mask": lt.alert.category_t.all_categories if os.environ.get("LT_LOG") else lt.alert.category_t.status_notification,
        }
    )
    if source.startswith("magnet:"):
        wanted = lt.parse_magnet_uri(source)
    else:
        wanted = lt.add_torrent_params()
        wanted.ti = lt.torrent_info(source)
    wanted.save_path = folder
    handle = session.add_torrent(wanted)
    say(port=session.listen_port())
    if other:
        host, port = other.rsplit(":", 1)
        handle.connect_peer((host, int(port)))
    is_told = False
    while True:
        status = handle.status()
        if status.is_seeding and not is_told:
            say(complete=True)
            is_told = True
        for alert in session.pop_alerts():
            if os.environ.get("LT_LOG"):
                print(alert.what(), alert.message(), file=sys.stderr, flush=True)
        # An end of stdin wakes it at once.
        ready, _, _ = select.select([sys.stdin], [], [], 0.05)
        if ready and not os.read(0, 1):
            return


{"make": make, "hashes": hashes, "peer": peer}[sys.argv[1]](*sys.argv[2:])
