"""qbittorrent-nox, driven by its web API."""

import json
import urllib.request
import uuid

from process import Failed, Program, wait_until

from .client import Client

WEB_PORT = 8080
START_SECONDS = 30
COMPLETE_STATES = ("uploading", "stalledUP", "forcedUP")
BROKEN_STATES = ("error", "missingFiles")

# Keys of one section belong together, whatever their order: QSettings reads the file.
CONFIG = """\
[LegalNotice]
Accepted=true

[BitTorrent]
Session\\DHTEnabled=false
Session\\LSDEnabled=false
Session\\PeXEnabled=false
Session\\Encryption={encryption}
Session\\Port={port}
Session\\QueueingSystemEnabled=false
Session\\AnonymousModeEnabled=false

[Network]
PortForwardingEnabled=false

[Preferences]
WebUI\\Address=*
WebUI\\Port={web_port}
WebUI\\UseUPnP=false
WebUI\\LocalHostAuth=false
WebUI\\AuthSubnetWhitelistEnabled=true
WebUI\\AuthSubnetWhitelist=0.0.0.0/0
WebUI\\CSRFProtection=false
WebUI\\HostHeaderValidation=false
General\\ProgramNotification=false
"""


class Qbittorrent(Client):
    name = "qbittorrent"
    program = "qbittorrent-nox"

    def seed(self, torrent, content):
        self._add(torrent, content.parent)

    def download(self, torrent, folder):
        self._add(torrent, folder)

    def _add(self, torrent, folder):
        config = self.folder / "profile" / "qBittorrent" / "config"
        config.mkdir(parents=True)
        # Required, or allowed.
        encryption = 1 if self.is_encrypted else 0
        text = CONFIG.format(port=self.port, web_port=WEB_PORT, encryption=encryption)
        (config / "qBittorrent.conf").write_text(text)
        argv = ["qbittorrent-nox", f"--profile={self.folder / 'profile'}"]
        self.running = Program(self.host, self.name, argv, self.folder)
        wait_until("answer of qBittorrent", self._answers, START_SECONDS, self.running)
        fields = {"savepath": str(folder), "contentLayout": "Original", "autoTMM": "false", "root_folder": "true"}
        self._post("torrents/add", fields, torrent.read_bytes())

    def _url(self, method):
        return f"http://{self.host.v4}:{WEB_PORT}/api/v2/{method}"

    def _get(self, method):
        with urllib.request.urlopen(self._url(method), timeout=10) as answer:
            return answer.read()

    def _post(self, method, fields, torrent):
        border = uuid.uuid4().hex
        parts = [
            f'--{border}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ]
        parts.append(
            f'--{border}\r\nContent-Disposition: form-data; name="torrents"; filename="case.torrent"\r\n'
            "Content-Type: application/x-bittorrent\r\n\r\n".encode()
        )
        body = b"".join(parts) + torrent + f"\r\n--{border}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={border}"}
        with urllib.request.urlopen(urllib.request.Request(self._url(method), body, headers), timeout=30) as answer:
            said = answer.read()
        if said.strip() != b"Ok.":
            raise Failed(f"qBittorrent did not take the torrent: {said[:200]!r}")

    def _answers(self):
        try:
            return self._get("app/version")
        except OSError:
            return None

    def _is_complete(self):
        found = json.loads(self._get("torrents/info"))
        if found and found[0]["state"] in BROKEN_STATES:
            raise Failed(f"qBittorrent: {found[0]['state']}")
        return found and found[0]["progress"] == 1 and found[0]["state"] in COMPLETE_STATES

    def wait_seeding(self, seconds):
        wait_until("seeding qBittorrent", self._is_complete, seconds, self.running)

    def wait_complete(self, seconds):
        wait_until("complete download by qBittorrent", self._is_complete, seconds, self.running)
