"""The `gyre` command under test."""

from process import END_SECONDS, Failed, JsonProgram, wait_until

PORT = 6881
STOPPED = 143


class Gyre(JsonProgram):
    """`gyre download` or `gyre seed`, reporting in JSON."""

    def __init__(self, binary, host, folder, verb, torrent, where, *options, name="gyre", pex=False, lsd=False):
        argv = [binary, verb, torrent, "--output" if verb == "download" else "--data", where]
        argv += ["--state", folder / f"{name}.state", "--port", str(PORT), "--json", "-vv"]
        # Peers come from where the case says and from nowhere else.
        argv += ["--no-dht", "--no-port-map", *([] if pex else ["--no-pex"]), *([] if lsd else ["--no-lsd"]), *options]
        self.host = host
        super().__init__(host, name, argv, folder)

    def is_seeding(self):
        return self.last("progress").get("state") == "seeding"

    def wait_listening(self, family, seconds):
        is_v6 = family == 6

        def is_it(event):
            return event["event"] == "listening" and event["addr"].startswith("[") == is_v6

        self.wait_event(f"IPv{family} listener of {self.name}", is_it, seconds)

    def wait_seeding(self, seconds):
        wait_until(f"seeding {self.name}", self.is_seeding, seconds, self)

    def wait_complete(self, seconds):
        self.wait_event(f"complete download by {self.name}", lambda event: event["event"] == "complete", seconds)

    def expect_done(self):
        """After a download without seeding: it ends by itself, with success."""
        code = self.wait_exit(END_SECONDS)
        self._expect(code, 0)

    def expect_stopped(self):
        """Ends it with SIGTERM, which must be clean."""
        self._expect(self.stop(), STOPPED)

    def _expect(self, code, wanted):
        said = self.err.read_text(errors="replace")
        if "panicked" in said:
            raise Failed(f"{self.name} panicked: {said[said.index('panicked') - 40 :][:400]}")
        if code != wanted:
            raise Failed(f"{self.name} ended with exit code {code} instead of {wanted}")
