"""Web seeds: Gyre downloads from nginx, alone and beside a seeder of its own, from a .torrent and from a link."""

import shutil
import subprocess
from dataclasses import dataclass

from clients import CLIENTS, missing
from gyre import Gyre
from pair import Skipped
from payloads import MIB, Payloads, difference, make_torrent
from process import Failed, Program, wait_until

PORT = 8080
START_SECONDS = 20
COMPLETE_SECONDS = 120
SINGLE_MIB = 64
# Beside a seeder that is held to this rate, both must have sent something.
SEEDER_MIB_PER_S = 20
CONFIG = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen {endpoint};
        root "{root}";
        location = /{case}.torrent {{ alias "{torrent}"; }}
    }}
}}
"""


@dataclass(frozen=True)
class WebCase:
    """`has_peer`: a Gyre seeds as well. `link`: Gyre has only a link to the data on the server, which gets the metadata
    from the .torrent there (`xs`) or from a peer without data (`x.pe`)."""

    name: str
    shape: str
    has_peer: bool = False
    link: str | None = None


WEB = [
    WebCase("web-nginx-single", "single"),
    WebCase("web-nginx-tree", "tree"),
    WebCase("web-nginx-and-gyre", "single", has_peer=True),
    WebCase("web-nginx-magnet", "tree", link="xs"),
    WebCase("web-nginx-magnet-metadata-from-libtorrent", "single", link="x.pe"),
]


class Web:
    """A case with its folder and its hosts."""

    def __init__(self, case, bench, folder):
        self.case = case
        self.bench = bench
        self.folder = folder
        self.programs = []

    def run(self):
        """Raises `Failed` or `Skipped`; returns how much came from the web server."""
        if not shutil.which("nginx"):
            raise Skipped("nginx is not installed")
        try:
            return self._run()
        finally:
            for program in self.programs:
                program.kill()

    def _run(self):
        gyre = self.bench.gyre
        bytes_ = SINGLE_MIB * MIB if self.case.shape == "single" else None
        content = self.bench.payloads.get(self.case.shape, "256KiB", bytes_)
        server_host, seeder_host, host = self.bench.hosts(3)
        # The last slash makes it the folder that the content lies in.
        url = f"http://{server_host.endpoint(4, PORT)}/"
        seeds = [] if self.case.link else [url]
        torrent, info_hash = make_torrent("gyre", gyre, content, "256KiB", [], self.case.name, self.folder, seeds)
        self._serve(server_host, content.parent, torrent)
        options = []
        if self.case.has_peer:
            limit = ["--limit-up", f"{SEEDER_MIB_PER_S}MB"]
            seeder = Gyre(gyre, seeder_host, self.folder, "seed", torrent, content.parent, *limit, name="gyre-seeder")
            self.programs.append(seeder)
            seeder.wait_seeding(START_SECONDS)
            options = ["--peer", seeder_host.endpoint(4, 6881), "--limit-down", f"{3 * SEEDER_MIB_PER_S}MB"]
        output = self.folder / "output"
        output.mkdir()
        source = self._link(info_hash, url, seeder_host, torrent) if self.case.link else torrent
        leecher = Gyre(gyre, host, self.folder, "download", source, output, *options)
        self.programs.append(leecher)
        leecher.wait_complete(COMPLETE_SECONDS)
        leecher.expect_done()
        differs = difference(content, output / content.name)
        if differs:
            raise Failed(differs)
        return self._judge(leecher.last("progress"), Payloads.size(content))

    def _link(self, info_hash, url, peer_host, torrent):
        link = f"magnet:?xt=urn:btih:{info_hash.hex()}&ws={url}"
        if self.case.link == "xs":
            return f"{link}&xs={url}{self.case.name}.torrent"
        if reason := missing("libtorrent"):
            raise Skipped(reason)
        peer = CLIENTS["libtorrent"](peer_host, self.folder)
        nothing = self.folder / "nothing"
        nothing.mkdir()
        peer.download(torrent, nothing, "--no-data")
        self.programs.append(peer)
        return f"{link}&x.pe={peer.endpoint(4)}"

    def _serve(self, host, root, torrent):
        home = self.folder / "nginx"
        home.mkdir()
        config = home / "nginx.conf"
        config.write_text(CONFIG.format(endpoint=host.endpoint(4, PORT), root=root, case=self.case.name, torrent=torrent))
        server = Program(host, "nginx", ["nginx", "-p", home, "-c", config, "-e", "stderr"], self.folder)
        self.programs.append(server)
        probe = host.command(["python3", "-c", f"import socket; socket.create_connection(('{host.v4}', {PORT}), 2)"])

        def listens():
            return subprocess.run(probe, capture_output=True, timeout=10).returncode == 0

        wait_until("answer of nginx", listens, START_SECONDS, server)

    def _judge(self, figures, total):
        web = figures["downloaded_web_bytes"]
        least, most = (MIB, total - MIB) if self.case.has_peer else (total, total)
        if not least <= web <= most:
            raise Failed(f"{web} bytes came from nginx, of {total}")
        return f"{web / total:.0%} from nginx"
