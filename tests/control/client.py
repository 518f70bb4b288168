"""qbittorrent-api, the library that qbit_manage and many scripts use, against the server: `client.py ADDR PASSWORD TORRENT`.

Ends with 77 where the library is missing.
"""

import sys

try:
    import qbittorrentapi
except ImportError:
    sys.exit(77)


def refused(error, call):
    try:
        call()
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


def main(addr, password, file):
    refused(qbittorrentapi.LoginFailed, qbittorrentapi.Client(host=addr, username="x", password="wrong").auth_log_in)
    client = qbittorrentapi.Client(
        host=addr, username="x", password=password, RAISE_ERROR_FOR_UNSUPPORTED_QBITTORRENT_VERSIONS=True
    )
    client.auth_log_in()
    client.app.preferences = {"dl_limit": 1_000_000}
    assert client.transfer.download_limit == 1_000_000
    client.torrents_create_category("tv")
    with open(file, "rb") as torrent:
        added = client.torrents_add(
            torrent_files=torrent, category="tv", tags=["a", "b"], is_stopped=True, content_layout="Original", ratio_limit=2
        )
    assert added == "Ok.", added
    [torrent] = client.torrents_info(category="tv")
    assert (torrent.state_enum.is_stopped, torrent.ratio_limit, torrent.tags) == (True, 2, "a, b"), dict(torrent)
    assert torrent.export().startswith(b"d")
    torrent.add_tags("c")
    torrent.remove_tags("a")
    torrent.set_category("films")
    torrent.set_upload_limit(5_000)
    torrent.add_trackers(["udp://127.0.0.1:9/announce"])
    torrent.top_priority()
    torrent.start()
    torrent.sync_local()
    assert (torrent.category, torrent.up_limit, torrent.trackers_count) == ("films", 5_000, 2), dict(torrent)
    assert list(client.torrents_tags()) == ["b", "c"]
    assert sorted(client.torrents_categories()) == ["films", "tv"]
    everything = client.sync.maindata.delta()
    assert everything.full_update and torrent.hash in everything.torrents
    torrent.delete(delete_files=False)
    delta = client.sync.maindata.delta()
    assert list(delta.torrents_removed) == [torrent.hash] and not delta.torrents, delta
    refused(qbittorrentapi.NotFound404Error, lambda: client.torrents_properties(torrent.hash))
    refused(qbittorrentapi.Conflict409Error, lambda: client.torrents_add(urls="http://127.0.0.1/x.torrent"))
    client.auth_log_out()


main(*sys.argv[1:])
