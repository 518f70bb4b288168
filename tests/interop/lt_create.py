"""Makes a torrent with libtorrent: lt_create.py CONTENT TORRENT PIECE_LENGTH SOURCE [-a URL]..."""

import os
import sys

import libtorrent as lt


def main(content, torrent, piece_length, source, *announce):
    files = lt.file_storage()
    lt.add_files(files, content)
    made = lt.create_torrent(files, int(piece_length), lt.create_torrent.v1_only)
    for url in announce[1::2]:
        made.add_tracker(url)
    lt.set_piece_hashes(made, os.path.dirname(content))
    entry = made.generate()
    entry[b"info"][b"source"] = source.encode()
    with open(torrent, "wb") as file:
        file.write(lt.bencode(entry))


main(*sys.argv[1:])
