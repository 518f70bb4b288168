"""aria2: one process for one torrent, followed by its RPC."""

import json
import urllib.request

from process import Program, wait_until

from .client import Client

RPC_PORT = 6800


class Aria2(Client):
    name = "aria2"
    program = "aria2c"

    def seed(self, torrent, content):
        self._start(torrent, content.parent, ["--check-integrity=true", "--seed-ratio=0.0"])

    def download(self, torrent, folder):
        self._start(torrent, folder, ["--seed-ratio=0.0"])

    def download_link(self, link, folder):
        self._start(link, folder, ["--seed-ratio=0.0"])

    def _start(self, torrent, folder, options):
        argv = [
            "aria2c",
            "--no-conf=true",
            f"--bt-force-encryption={str(self.is_encrypted).lower()}",
            *options,
            f"--dir={folder}",
            f"--listen-port={self.port}",
            # It talks to UDP trackers through the socket of its DHT; without an entry point that finds nobody.
            "--enable-dht=true",
            f"--dht-listen-port={self.port}",
            f"--dht-file-path={self.folder / 'dht.dat'}",
            "--enable-dht6=false",
            "--bt-enable-lpd=false",
            "--enable-peer-exchange=false",
            "--file-allocation=none",
            "--summary-interval=1",
            "--enable-rpc=true",
            "--rpc-listen-all=true",
            f"--rpc-listen-port={RPC_PORT}",
            f"--log={self.folder / 'aria2.log'}",
            "--log-level=info",
            torrent,
        ]
        self.running = Program(self.host, self.name, argv, self.folder)

    def _call(self, method, *parameters):
        body = {"jsonrpc": "2.0", "id": 1, "method": f"aria2.{method}", "params": parameters}
        url = f"http://{self.host.v4}:{RPC_PORT}/jsonrpc"
        request = urllib.request.Request(url, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["result"]

    def _is_complete(self):
        try:
            active = self._call("tellActive", ["completedLength", "totalLength", "seeder", "verifyIntegrityPending"])
        except OSError:
            return False
        return any(one.get("seeder") == "true" and one["completedLength"] == one["totalLength"] for one in active)

    def wait_seeding(self, seconds):
        wait_until("seeding aria2", self._is_complete, seconds, self.running)

    def wait_complete(self, seconds):
        wait_until("complete download by aria2", self._is_complete, seconds, self.running)
