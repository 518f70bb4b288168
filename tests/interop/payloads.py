"""What is shared: sample data in every shape, torrents of it, and the comparison of what arrived."""

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

from process import Failed, environment

KIB, MIB, GIB = 1024, 1024**2, 1024**3
PIECE_LENGTHS = {"16KiB": 16 * KIB, "256KiB": 256 * KIB, "16MiB": 16 * MIB}
# Sizes of the quick run: enough pieces of each length for the picker, the pipeline and the choker to matter.
QUICK_SINGLE = {"16KiB": 20 * MIB + 5000, "256KiB": 40 * MIB + 5000, "16MiB": 72 * MIB + 5000}
# A last piece of one byte.
ODD_PIECES = {"16KiB": 300, "256KiB": 40, "16MiB": 2}
TREE_FILES = 200
# The bulk of a tree goes into one of its files, so that there are several pieces of every length.
TREE_BIG_FILE = {"16KiB": 1 * MIB, "256KiB": 6 * MIB, "16MiB": 36 * MIB}
# Code points of one to four bytes. Composed forms only: some programs compose what they read.
TREE_NAMES = ["plain", "with space", "héllo wörld", "日本語", "Ελληνικά", "русский", "🌀 gyre", "a'b&c;d#e%20", "ß"]
COPY_BYTES = 4 * MIB


class Payloads:
    """Sample data by shape and piece length, made once and shared; `is_long` makes single files of 1 GiB."""

    def __init__(self, folder, is_long):
        self._folder = folder
        self._is_long = is_long
        self._made = {}
        self._lock = threading.Lock()

    def get(self, shape, piece, bytes_=None):
        """The content: a file or a folder, whose parent holds nothing else."""
        if shape == "single" and bytes_ is None:
            bytes_ = GIB if self._is_long else QUICK_SINGLE[piece]
        key = ("single", bytes_) if shape == "single" else (shape, piece)
        with self._lock:
            if key not in self._made:
                folder = self._folder / "-".join(map(str, key))
                folder.mkdir(parents=True)
                self._made[key] = _make(folder, shape, piece, bytes_)
            return self._made[key]

    @staticmethod
    def size(content):
        """Bytes of a content in all."""
        if content.is_file():
            return content.stat().st_size
        return sum((content / path).stat().st_size for path in _files(content))


def _make(folder, shape, piece, bytes_):
    if shape == "tree":
        return _make_tree(folder / "tree ünïcode", piece)
    content = folder / f"{shape}.bin"
    if shape == "odd":
        bytes_ = ODD_PIECES[piece] * PIECE_LENGTHS[piece] + 1
    _write(content, bytes_, seed=bytes_)
    return content


def _make_tree(root, piece):
    """200 files in nested folders: empty, of one byte, around the size of a block and of a piece, and one big one."""
    sizes = [0, 1, 0, 1, 1, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 7, 0, 40_000, 1]
    for at in range(TREE_FILES):
        name = TREE_NAMES[at % len(TREE_NAMES)]
        place = root / [".", name, f"{name}/deeper/{name}"][at % 3]
        place.mkdir(parents=True, exist_ok=True)
        bytes_ = TREE_BIG_FILE[piece] + 333 if at == TREE_FILES // 2 else sizes[at % len(sizes)]
        _write(place / f"{at:03} {name}.bin", bytes_, seed=at)
    return root


def _write(path, bytes_, seed):
    noise = random.Random(seed)
    with open(path, "wb") as file:
        while bytes_ > 0:
            part = min(bytes_, COPY_BYTES)
            file.write(noise.randbytes(part))
            bytes_ -= part


def make_torrent(maker, gyre, content, piece, announce, name, folder, web_seeds=()):
    """A torrent of `content`, with an info_hash of its own by `name`. Returns its path and info_hash."""
    torrent = folder / "case.torrent"
    if maker == "gyre":
        argv = [gyre, "create", content, "-o", torrent, "--piece-length", piece, "--source", name, "--json"]
    else:
        argv = [sys.executable, Path(__file__).parent / "lt_create.py", content, torrent, str(PIECE_LENGTHS[piece]), name]
    for url in announce:
        argv += ["-a", url]
    for url in web_seeds:
        argv += ["-w", url]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=environment(folder))
    if done.returncode != 0:
        raise Failed(f"{maker} made no torrent: {done.stderr.strip()}")
    shown = subprocess.run([gyre, "info", torrent, "--json"], capture_output=True, timeout=60, env=environment(folder))
    if shown.returncode != 0:
        raise Failed(f"gyre info refuses the torrent that {maker} made: {shown.stderr.decode().strip()}")
    return torrent, bytes.fromhex(json.loads(shown.stdout)["info_hash"])


def difference(content, copy, may_miss_empty=False):
    """Says how `copy` differs from `content`, or `None` when both hold the same files with the same bytes."""
    if content.is_file():
        return _file_difference(content, copy)
    wanted, found = _files(content), _files(copy)
    for path in wanted:
        if path not in found:
            if may_miss_empty and (content / path).stat().st_size == 0:
                continue
            return f"{path} is missing"
        differs = _file_difference(content / path, copy / path)
        if differs:
            return differs
    extra = found - wanted
    return f"there is a file too many: {extra.pop()}" if extra else None


def _files(root):
    return {os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names}


def _file_difference(left, right):
    if not right.is_file():
        return f"{right.name} is missing"
    if left.stat().st_size != right.stat().st_size:
        return f"{right.name} has {right.stat().st_size} bytes instead of {left.stat().st_size}"
    with open(left, "rb") as a, open(right, "rb") as b:
        at = 0
        while True:
            x, y = a.read(COPY_BYTES), b.read(COPY_BYTES)
            if x != y:
                off = next(i for i in range(len(x)) if x[i] != y[i])
                return f"{right.name} differs at byte {at + off}"
            if not x:
                return None
            at += len(x)
