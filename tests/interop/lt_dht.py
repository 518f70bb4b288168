"""Some libtorrent nodes of a DHT on the loopback address, and at most one torrent with the last of them. Prints a JSON
object a line: first the ports, then what is announced at the nodes and how the torrent does."""

import argparse
import json
import signal
import time

import libtorrent as lt

POLL_SECONDS = 0.1


def settings(doors):
    """Nothing but the DHT, without the limits that one address for everybody would run into."""
    return {
        "listen_interfaces": "127.0.0.1:0",
        "enable_dht": True,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "dht_bootstrap_nodes": ",".join(f"127.0.0.1:{port}" for port in doors),
        "dht_restrict_routing_ips": False,
        "dht_restrict_search_ips": False,
        "dht_enforce_node_id": False,
        "dht_prefer_verified_node_ids": False,
        "dht_ignore_dark_internet": False,
        "allow_multiple_connections_per_ip": True,
        "alert_mask": lt.alert.category_t.error_notification | lt.alert.category_t.dht_notification,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--door", type=int, help="port of a node to enter through; else the first is everybody's")
    parser.add_argument("--torrent", nargs=2, metavar=("TORRENT", "FOLDER"), help="a file or a magnet link, and its data")
    arguments = parser.parse_args()
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    sessions, doors = [], [arguments.door] if arguments.door else []
    for _ in range(arguments.nodes):
        sessions.append(lt.session(settings(doors)))
        while not sessions[-1].listen_port():
            time.sleep(POLL_SECONDS)
        doors = doors or [sessions[0].listen_port()]
    print(json.dumps({"event": "ports", "ports": [session.listen_port() for session in sessions]}), flush=True)
    handle = None
    if arguments.torrent:
        if arguments.torrent[0].startswith("magnet:"):
            wanted = lt.parse_magnet_uri(arguments.torrent[0])
        else:
            wanted = lt.add_torrent_params()
            wanted.ti = lt.torrent_info(arguments.torrent[0])
        wanted.save_path = arguments.torrent[1]
        handle = sessions[-1].add_torrent(wanted)
    while not stopped:
        for session in sessions:
            for alert in session.pop_alerts():
                if isinstance(alert, lt.dht_announce_alert):
                    print(json.dumps({"event": "announced", "info_hash": str(alert.info_hash)}), flush=True)
        if handle:
            status = handle.status()
            line = {"event": "progress", "peers": status.num_peers, "complete": status.is_seeding}
            print(json.dumps(line), flush=True)
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
