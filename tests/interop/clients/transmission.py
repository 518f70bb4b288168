"""transmission-daemon, driven by its RPC."""

import base64
import json
import urllib.error
import urllib.request

from process import Failed, Program, wait_until

from .client import Client

RPC_PORT = 9091
START_SECONDS = 20
SEEDING = 6


class Transmission(Client):
    name = "transmission"
    program = "transmission-daemon"
    skips_empty_files = True

    def __init__(self, host, folder):
        super().__init__(host, folder)
        self._session = ""

    def seed(self, torrent, content):
        self._add(torrent, content.parent)

    def download(self, torrent, folder):
        self._add(torrent, folder)

    def download_link(self, link, folder):
        self._add(None, folder, link)

    def _add(self, torrent, folder, link=None):
        config = self.folder / "transmission"
        config.mkdir()
        (config / "settings.json").write_text(json.dumps(self._settings(folder)))
        argv = ["transmission-daemon", "--foreground", "--config-dir", config, "--log-debug"]
        self.running = Program(self.host, self.name, argv, self.folder)
        wait_until("answer of Transmission", self._answers, START_SECONDS, self.running)
        if link:
            what = {"filename": link}
        else:
            what = {"metainfo": base64.b64encode(torrent.read_bytes()).decode()}
        added = self._call("torrent-add", paused=False, **what)
        if "torrent-added" not in added:
            raise Failed(f"Transmission did not take the torrent: {added}")

    def _settings(self, folder):
        return {
            "download-dir": str(folder),
            "peer-port": self.port,
            "rpc-bind-address": "0.0.0.0",
            "rpc-port": RPC_PORT,
            "rpc-whitelist-enabled": False,
            "rpc-host-whitelist-enabled": False,
            "dht-enabled": False,
            "lpd-enabled": False,
            "pex-enabled": False,
            # Transmission 3 tries uTP first and, when that is refused or not answered, drops the TCP connection that it
            # opens instead; it comes back only much later.
            "utp-enabled": self.is_utp,
            "port-forwarding-enabled": False,
            "blocklist-enabled": False,
            # Required, or preferred.
            "encryption": 2 if self.is_encrypted else 1,
        }

    def _call(self, method, **arguments):
        body = json.dumps({"method": method, "arguments": arguments}).encode()
        for _ in range(2):
            headers = {"X-Transmission-Session-Id": self._session}
            request = urllib.request.Request(f"http://{self.host.v4}:{RPC_PORT}/transmission/rpc", body, headers)
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    result = json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 409:
                    raise
                self._session = error.headers["X-Transmission-Session-Id"]
                continue
            if result["result"] != "success":
                raise Failed(f"Transmission's answer to {method}: {result['result']}")
            return result["arguments"]
        raise Failed("Transmission gives no session")

    def _answers(self):
        try:
            return self._call("session-get")
        except OSError:
            return None

    def _is_complete(self):
        fields = ["status", "percentDone", "error", "errorString"]
        found = self._call("torrent-get", fields=fields)["torrents"]
        if found and found[0]["error"] == 3:
            raise Failed(f"Transmission: {found[0]['errorString']}")
        return found and found[0]["status"] == SEEDING and found[0]["percentDone"] == 1

    def wait_seeding(self, seconds):
        wait_until("seeding Transmission", self._is_complete, seconds, self.running)

    def wait_complete(self, seconds):
        wait_until("complete download by Transmission", self._is_complete, seconds, self.running)
