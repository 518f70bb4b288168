"""Which cases there are, which cannot be, and which of them the quick run takes."""

import itertools
from collections import Counter
from dataclasses import astuple, dataclass, fields

DIRECTIONS = ("download", "seed")
CLIENTS = ("transmission", "aria2", "libtorrent", "qbittorrent")
DISCOVERIES = ("direct", "opentracker-http", "opentracker-udp", "gyre-http", "gyre-udp")
SHAPES = ("single", "tree", "odd")
PIECES = ("16KiB", "256KiB", "16MiB")
FAMILIES = (4, 6)


@dataclass(frozen=True)
class Case:
    """Gyre downloads from, or seeds to, one other program."""

    # What Gyre does.
    direction: str
    client: str
    # How the two find each other. `direct` is `--peer` on Gyre's side.
    discovery: str
    # `single` is one file, `tree` 200 files, `odd` one file whose last piece is one byte.
    shape: str
    piece: str
    family: int
    # Both sides leave alone whoever does not encrypt.
    is_encrypted: bool = False
    # Gyre has no TCP, and the other one no more than it needs.
    is_utp: bool = False

    @property
    def name(self):
        words = [*astuple(self)[:-3], f"ipv{self.family}"]
        marks = [word for word, is_it in (("encrypted", self.is_encrypted), ("utp", self.is_utp)) if is_it]
        return "-".join([*words, *marks])

    @property
    def tracker(self):
        return None if self.discovery == "direct" else self.discovery.rsplit("-", 1)[0]

    @property
    def scheme(self):
        return self.discovery.rsplit("-", 1)[-1]

    @property
    def maker(self):
        """Who makes the torrent: mostly Gyre, so that it is seen to load everywhere."""
        places = (DISCOVERIES.index(self.discovery), SHAPES.index(self.shape), PIECES.index(self.piece), self.family)
        return "libtorrent" if sum(places) % 4 == 3 else "gyre"


def impossible(case):
    """Why the others cannot do that, or `None`."""
    if case.tracker == "opentracker" and case.family == 6:
        return "Debian's opentracker is built for IPv4"
    if case.client in ("aria2", "transmission") and case.scheme == "udp" and case.family == 6:
        return "aria2 and Transmission 3 send nothing to UDP trackers over IPv6"
    return None


def all_cases():
    """Every combination that can be."""
    return [*open_cases(), *encrypted_cases(), *utp_cases()]


def open_cases():
    """Those in which both sides do as they are used to."""
    whole = itertools.product(DIRECTIONS, CLIENTS, DISCOVERIES, SHAPES, PIECES, FAMILIES)
    return [case for case in itertools.starmap(Case, whole) if not impossible(case)]


def encrypted_cases():
    """Each client, dialed by Gyre and dialing it."""
    ways = (("download", "direct"), ("seed", "gyre-http"))
    return [Case(way, client, found, "single", "256KiB", 4, True) for client in CLIENTS for way, found in ways]


def utp_cases():
    """Those that speak uTP and can be told to, dialed by Gyre and dialing it, over both families."""
    ways = (("download", "direct", 4), ("seed", "gyre-http", 4), ("download", "direct", 6), ("seed", "gyre-http", 6))
    clients = ("libtorrent", "transmission")
    return [Case(*way[:1], client, way[1], "single", "256KiB", way[2], False, True) for client in clients for way in ways]


def quick_cases():
    """A selection in which every two values of different factors meet, and every client meets every way of discovery in
    both directions; and the encrypted ones, and those over uTP.

    Greedy: always the case that covers most of what is not covered yet; of equals the one whose values were taken
    least.
    """
    left = {case: _covers(case) for case in open_cases()}
    uncovered = set().union(*left.values())
    chosen, taken = [], Counter()
    while uncovered:
        best = max(left, key=lambda case: (len(left[case] & uncovered), -sum(taken[value] for value in _values(case))))
        chosen.append(best)
        taken.update(_values(best))
        uncovered -= left.pop(best)
    return [*chosen, *encrypted_cases(), *utp_cases()]


def _values(case):
    """Of a case in the open."""
    return [(field.name, getattr(case, field.name)) for field in fields(case)[:-2]]


def _covers(case):
    """The pairs of values in a case, and its direction, client and discovery together."""
    values = _values(case)
    return {*itertools.combinations(values, 2), tuple(values[:3])}
