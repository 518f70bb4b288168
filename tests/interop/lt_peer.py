"""A libtorrent peer: downloads or seeds one torrent until told to end, and prints a JSON object a line about it."""

import argparse
import json
import signal
import sys
import time

import libtorrent as lt

POLL_SECONDS = 0.1


UTP = {"enable_incoming_tcp": False, "enable_outgoing_tcp": False}
ENCRYPTED = {"out_enc_policy": 0, "in_enc_policy": 0, "allowed_enc_level": 2, "prefer_rc4": True}


def settings(port):
    """libtorrent's own, with all that would look for peers elsewhere than at trackers turned off."""
    return {
        "listen_interfaces": f"0.0.0.0:{port},[::]:{port}",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "alert_mask": lt.alert.category_t.error_notification
        | lt.alert.category_t.status_notification
        | lt.alert.category_t.tracker_notification
        | lt.alert.category_t.connect_notification
        | lt.alert.category_t.peer_notification,
    }


def report(handle):
    status = handle.status()
    print(
        json.dumps(
            {
                "event": "progress",
                "state": str(status.state),
                "progress": status.progress,
                "complete": status.is_seeding,
                "peers": status.num_peers,
                "downloaded_bytes": status.total_payload_download,
                "uploaded_bytes": status.total_payload_upload,
                "error": status.errc.message() if status.errc.value() else None,
            }
        ),
        flush=True,
    )


def log_alerts(session):
    for alert in session.pop_alerts():
        print(f"{time.monotonic():.3f} {alert.what()}: {alert.message()}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("torrent", help="a file or a magnet link")
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=6881)
    parser.add_argument("--peer", help="HOST:PORT to connect to")
    parser.add_argument("--no-data", action="store_true", help="fetch no file, but stay with everybody")
    parser.add_argument("--lsd", action="store_true", help="look for peers on the local network")
    parser.add_argument("--encrypted", action="store_true", help="talk to nobody who does not encrypt")
    parser.add_argument("--helper", action="store_true", help="fetch slowly, serve nobody: have peers, and tell them of each other")
    parser.add_argument("--utp", action="store_true", help="leave TCP alone")
    arguments = parser.parse_args()
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    wishes = {**settings(arguments.port), "enable_lsd": arguments.lsd, **(ENCRYPTED if arguments.encrypted else {})}
    wishes |= UTP if arguments.utp else {}
    if arguments.helper:
        wishes |= {"download_rate_limit": 131072, "unchoke_slots_limit": 0, "allow_multiple_connections_per_ip": True}
    if arguments.no_data:
        # Who wants nothing and meets a seeder would leave it.
        wishes["close_redundant_connections"] = False
    session = lt.session(wishes)
    if arguments.torrent.startswith("magnet:"):
        wanted = lt.parse_magnet_uri(arguments.torrent)
    else:
        wanted = lt.add_torrent_params()
        wanted.ti = lt.torrent_info(arguments.torrent)
        if arguments.no_data:
            wanted.file_priorities = [0] * wanted.ti.num_files()
    wanted.save_path = arguments.folder
    handle = session.add_torrent(wanted)
    if arguments.peer:
        host, port = arguments.peer.rsplit(":", 1)
        handle.connect_peer((host, int(port)))
    while not stopped:
        log_alerts(session)
        report(handle)
        time.sleep(POLL_SECONDS)
    report(handle)


main()
