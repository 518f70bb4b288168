"""A daemon asked and commanded while it sends as fast as it can: the part of `scripts/scale --load`.

One large torrent is added to those that are there, and one process takes blocks of it over a few connections, throwing them
away in the kernel. Meanwhile the daemon is asked over its control socket as a page, a client of downloads and a person would:
everything once a second, what changed twice, one torrent five times, one torrent added and stopped. The same transfer without
questions, from a daemon that has nothing else, is what the rate is held against.
"""

import base64
import hashlib
import multiprocessing
import os
import pathlib
import random
import re
import select
import socket
import struct
import time

BLOCK, PIECE, BYTES = 16384, 1 << 20, 256 << 20
PEERS, DEEP = 4, 64
MESSAGE = 13 + BLOCK
GROWS_S = 3


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Large:
    """The torrent that is sent, with its data in the page cache."""

    def __init__(self, folder, bencode):
        folder.mkdir(parents=True, exist_ok=True)
        name = "large torrent that is sent"
        hashes = []
        with open(folder / name, "wb") as file:
            source = random.Random(7)
            for _ in range(BYTES // PIECE):
                piece = source.randbytes(PIECE)
                hashes.append(hashlib.sha1(piece).digest())
                file.write(piece)
        info = {"name": name, "piece length": PIECE, "pieces": b"".join(hashes), "length": BYTES, "private": 1}
        self.info_hash = hashlib.sha1(bencode(info)).digest()
        self.metainfo = bencode({"info": info})
        self.folder = folder


def take(port, info_hash, core, taken):
    """Takes blocks for ever; `taken` counts their bytes."""
    os.sched_setaffinity(0, {core})
    peers = []
    for number in range(PEERS):
        peer = socket.create_connection(("127.0.0.1", port), timeout=15)
        peer.sendall(b"\x13BitTorrent protocol" + bytes(8) + info_hash + b"-XX0000-" + os.urandom(12))
        stream = peer.makefile("rb", 0)
        read = lambda count: b"".join(iter_exact(stream, count))
        read(68)
        peer.sendall(struct.pack(">IB", 1, 2))
        while True:
            body = read(struct.unpack(">I", read(4))[0])
            if body[:1] == b"\x01":
                break
        peers.append([peer, number * 997, 0])
    blocks = BYTES // BLOCK

    def ask(peer, count):
        at = peer[1]
        wanted = ((at + more) % blocks * BLOCK for more in range(count))
        peer[0].sendall(b"".join(struct.pack(">IBIII", 13, 6, one // PIECE, one % PIECE, BLOCK) for one in wanted))
        peer[1] = at + count

    poll = select.epoll()
    by_fd = {}
    for peer in peers:
        by_fd[peer[0].fileno()] = peer
        poll.register(peer[0].fileno(), select.EPOLLIN)
        ask(peer, DEEP)
    room = memoryview(bytearray(4 << 20))
    while True:
        for fd, _ in poll.poll():
            peer = by_fd[fd]
            # The kernel throws it away, and tells how much it was.
            got = peer[0].recv_into(room, len(room), socket.MSG_TRUNC)
            if got == 0:
                raise SystemExit("a connection was closed")
            before = peer[2] // MESSAGE
            peer[2] += got
            taken.value += got
            if done := peer[2] // MESSAGE - before:
                ask(peer, done)


def iter_exact(stream, count):
    while count:
        part = stream.read(count)
        if not part:
            raise SystemExit("the daemon closed the connection")
        count -= len(part)
        yield part


class Transfer:
    def __init__(self, port, info_hash, core):
        self.taken = multiprocessing.Value("Q", 0, lock=False)
        self.process = multiprocessing.Process(target=take, args=(port, info_hash, core, self.taken), daemon=True)
        self.process.start()
        begun = time.monotonic()
        while self.taken.value == 0 and time.monotonic() < begun + 30:
            time.sleep(0.05)
        time.sleep(GROWS_S)
        self.begin()

    def begin(self):
        self.since, self.at = time.monotonic(), self.taken.value

    def rate(self):
        return (self.taken.value - self.at) / (time.monotonic() - self.since)

    def end(self):
        self.process.kill()
        self.process.join()


def add_large(program, large):
    program.rpc.call("torrent-add", metainfo=base64.b64encode(large.metainfo).decode(),
                     **{"download-dir": str(large.folder)})
    until = time.monotonic() + 120
    while time.monotonic() < until:
        found = program.rpc.call("torrent-get", ids=[large.info_hash.hex()], fields=["percentDone", "status"])["torrents"]
        if found and found[0]["status"] == 6 and found[0]["percentDone"] == 1:
            return
        time.sleep(0.1)
    raise SystemExit("error: the large torrent is not seeded")


def alone(program, large, core, seconds):
    """Bytes a second of the transfer when nobody asks."""
    add_large(program, large)
    transfer = Transfer(program.port, large.info_hash, core)
    time.sleep(seconds)
    rate = transfer.rate()
    transfer.end()
    return rate


def lag_counts(program):
    text = program.rpc.text("/metrics")
    found = re.findall(r'gyre_loop_lag_seconds_bucket\{le="([^"]+)"\} (\d+)', text)
    return {float(bound.replace("+Inf", "inf")): int(count) for bound, count in found}


def loaded(program, large, core, seconds, fresh, fields):
    """The daemon at work and asked. `fresh` are torrents it does not have, one a second is added."""
    add_large(program, large)
    transfer = Transfer(program.port, large.info_hash, core)
    rpc, times = program.rpc, {}

    def timed(name, method, **arguments):
        at = time.monotonic()
        answer = rpc.raw(method, **arguments)
        times.setdefault(name, []).append((time.monotonic() - at) * 1000)
        return answer

    hashes = [info_hash.hex() for info_hash in program.torrents.hashes]
    for name, arguments in (("all", {"fields": fields}),):
        timed(name, "torrent-get", **arguments)
    times.clear()
    before = lag_counts(program)
    transfer.begin()
    begun = time.monotonic()
    for second, torrent in zip(range(int(seconds)), fresh):
        one = lambda: {"ids": [random.choice(hashes)], "fields": fields}
        work = [("all", "torrent-get", {"fields": fields})]
        work += [("recent", "torrent-get", {"ids": "recently-active", "fields": fields}) for _ in range(2)]
        work += [("one", "torrent-get", one()) for _ in range(5)]
        work += [("add", "torrent-add", {"metainfo": base64.b64encode(torrent[1]).decode(),
                                         "download-dir": str(program.torrents.data)}),
                 ("stop", "torrent-stop", {"ids": [torrent[0].hex()]})]
        for at, (name, method, arguments) in enumerate(work):
            due = begun + second + at / len(work)
            time.sleep(max(0, due - time.monotonic()))
            timed(name, method, **arguments)
    time.sleep(max(0, begun + seconds - time.monotonic()))
    rate = transfer.rate()
    after = lag_counts(program)
    transfer.end()
    counts = {bound: count - before.get(bound, 0) for bound, count in after.items()}
    whole = counts.get(float("inf"), 0)
    within = [bound for bound, count in sorted(counts.items()) if count >= whole * 0.999]
    return {"rate": rate, "lag_s": within[0] if within else float("inf"), "lags": whole, "times": times}


LIMITS_MS = {"all": 150, "recent": 10, "one": 10, "add": 50, "stop": 50}
NAMES = {"all": "20 fields of all", "recent": "recently-active", "one": "20 fields of one", "add": "adding one",
         "stop": "stopping one"}


def report(figures, rate_alone):
    """Lines of the report, and whether all of it holds."""
    lines, holds = [], []

    def line(what, value, limit, is_good):
        holds.append(is_good)
        lines.append(f"{'pass' if is_good else 'FAIL'}  {what:28} {value:>24}   {limit}")

    for name, limit in LIMITS_MS.items():
        times = figures["times"][name]
        p99 = percentile(times, 0.99)
        text = f"{percentile(times, 0.5):.1f} / {p99:.1f} / {max(times):.1f} ms"
        line(NAMES[name] + " p50/p99/max", text, f"p99 at most {limit} ms, of {len(times)}", p99 <= limit)
    share = figures["rate"] / rate_alone
    line("sent", f"{figures['rate'] / 1e6:.0f} MB/s, {share:.0%}", f"at least 90 % of {rate_alone / 1e6:.0f} MB/s", share >= 0.9)
    lag = figures["lag_s"] * 1000
    line("event loop late, p99.9", f"under {lag:g} ms", f"at most 20 ms, of {figures['lags']}", lag <= 20)
    return lines, all(holds)
