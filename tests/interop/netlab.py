"""Network namespaces of the tests' own: one address of each family for every program.

Transmission drops loopback peers that a tracker names, and libtorrent keeps one connection per address, so programs
that share 127.0.0.1 cannot meet. Here each program runs on a `Host`: a namespace with one interface, joined to the
others by a bridge. The bridge lies in a namespace of the tests' own process, so that the tests reach every host
directly, and nothing has a way out of the machine.

The namespaces have no names: they live as long as this process holds them, so the kernel takes them and everything in
them away however the process ends.
"""

import ctypes
import os
import subprocess
import threading
from pathlib import Path

CLONE_NEWNET = 0x4000_0000
V4_PREFIX = "10.77.0."
# The prefix kept for documentation. Transmission asks for IPv6 addresses under 2000::/3, which private ones are not.
V6_PREFIX = "2001:db8:77::"
BRIDGE = 254

_libc = ctypes.CDLL(None, use_errno=True)


class NoLab(Exception):
    """Why there can be no namespaces here."""


def _unshare():
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise NoLab(f"no network namespace: {os.strerror(ctypes.get_errno())} (needs root)")


def _run(argv, **options):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, **options)
    if done.returncode != 0:
        raise NoLab(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")


def _no_waiting_for_duplicates():
    """Makes IPv6 addresses usable at once, in the namespace of the calling thread."""
    for which in ("all", "default"):
        knob = Path(f"/proc/sys/net/ipv6/conf/{which}/accept_dad")
        if knob.exists():
            knob.write_text("0")


class Host:
    """A namespace with one interface, and a program's address in each family."""

    def __init__(self, lab, number):
        self.v4 = f"{V4_PREFIX}{number}"
        self.v6 = f"{V6_PREFIX}{number:x}"
        self._fd = _namespace()
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        port = f"host{number}"
        _run(["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self.path])
        _run(["ip", "link", "set", port, "master", "bridge", "up"])
        commands = [
            "link set lo up",
            f"address add {self.v4}/24 dev eth0",
            "link set eth0 up",
            # Some programs find out their own address by asking for the way to a public one.
            f"route add default via {V4_PREFIX}{BRIDGE}",
        ]
        if lab.has_ipv6:
            commands += [
                f"-6 address add {self.v6}/64 dev eth0 nodad",
                f"-6 route add default via {V6_PREFIX}{BRIDGE:x}",
            ]
        for command in commands:
            _run(self.command(["ip", *command.split()]))

    def command(self, argv):
        """The command line that runs `argv` here, and ends it should the tests be killed."""
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self.path}", *argv]

    def address(self, family):
        return self.v4 if family == 4 else self.v6

    def endpoint(self, family, port):
        return endpoint(self.address(family), port)

    def bytes_in(self, family):
        """Bytes of packets received so far in that family."""
        if family == 6:
            for line in self._read("/proc/net/snmp6"):
                if line.startswith("Ip6InOctets"):
                    return int(line.split()[1])
        names, values = [line.split() for line in self._read("/proc/net/netstat") if line.startswith("IpExt:")]
        return int(values[names.index("InOctets")])

    def _read(self, path):
        done = subprocess.run(self.command(["cat", path]), capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.splitlines()


class Lab:
    """The bridge and the hosts joined by it. Making it moves this process into a namespace of its own: do it before any
    thread starts."""

    def __init__(self):
        if os.geteuid() != 0:
            raise NoLab("network namespaces need root")
        _unshare()
        _no_waiting_for_duplicates()
        self.has_ipv6 = Path("/proc/sys/net/ipv6").exists()
        self._lock = threading.Lock()
        self._count = 0
        _run(["ip", "link", "set", "lo", "up"])
        # Without snooping the bridge passes neighbour discovery on at once.
        _run(["ip", "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0"])
        _run(["ip", "address", "add", f"{V4_PREFIX}{BRIDGE}/24", "dev", "bridge"])
        if self.has_ipv6:
            _run(["ip", "-6", "address", "add", f"{V6_PREFIX}{BRIDGE:x}/64", "dev", "bridge", "nodad"])
        _run(["ip", "link", "set", "bridge", "up"])

    def host(self):
        with self._lock:
            self._count += 1
            return Host(self, self._count)


def endpoint(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _namespace():
    """A new namespace as an open file; the calling thread stays where it is."""
    made = []

    def make():
        try:
            _unshare()
            _no_waiting_for_duplicates()
            made.append(os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY))
        except (NoLab, OSError) as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not isinstance(made[0], int):
        raise NoLab(str(made[0]))
    return made[0]
