"""What the clients have in common."""

from process import Failed

PEER_PORT = 51413


class Client:
    """A program that downloads or seeds one torrent."""

    name = "?"
    # What must be on the PATH.
    program = None
    # Whether it leaves out files of zero length when it downloads.
    skips_empty_files = False
    # Whether it insists on encrypted connections.
    is_encrypted = False
    # Whether it is to be reached over uTP.
    is_utp = False

    def __init__(self, host, folder):
        self.host = host
        self.folder = folder
        self.port = PEER_PORT
        self.running = None

    @classmethod
    def missing(cls):
        """Why it cannot be run although its program is there, or `None`."""
        return None

    def endpoint(self, family):
        return self.host.endpoint(family, self.port)

    def stop(self):
        """Ends it; how it ends is no concern of these tests."""
        if self.running:
            try:
                self.running.stop()
            except Failed:
                pass
            self.kill()

    def kill(self):
        if self.running:
            self.running.kill()
