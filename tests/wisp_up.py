"""A cloud for tests that are programs of others': `wisp up` on a directory of its own, and virtual environments for them."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
import venv

BUILD = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).resolve().parent.parent / "target")).resolve()
PASSWORD = "correct horse battery staple"
# The variable that names the network namespace which a program has left.
OUTSIDE = "WISP_TESTS_OUTSIDE"
# Of a disk for a cloud: sparse, and more than the tests write.
DISK_BYTES = 64 << 30
# Seconds for the cloud to answer, in a debug build on a busy machine.
READY_SECONDS_MAX = 120


def make_environment(package, name=None):
    """Makes the virtual environment of a package where it is not there; its path."""
    environment = BUILD / "tmp" / (name or package.replace("==", "-"))
    python = environment / "bin/python"
    if not (environment / "complete").exists():
        print(f"installing {package} from PyPI (once) …", file=sys.stderr)
        shutil.rmtree(environment, ignore_errors=True)
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-input", package], check=True, timeout=600)
        (environment / "complete").touch()
    return environment


def enter_environment(package):
    """As `make_environment`, and becomes its Python."""
    environment = make_environment(package)
    python = environment / "bin/python"
    if pathlib.Path(sys.prefix) != environment:
        os.execv(python, [python, *sys.argv])
    return environment


def leave_host():
    """Becomes the same program in namespaces of its own for links, rules, addresses and mounts, so that nobody else sees
    those of a cloud with guests. Nothing can be installed from there."""
    namespace = os.readlink("/proc/self/ns/net")
    if OUTSIDE not in os.environ:
        os.environ[OUTSIDE] = namespace
        os.execvp("unshare", ["unshare", "--net", "--mount", sys.executable, *sys.argv])
    if os.environ[OUTSIDE] == namespace:
        raise SystemExit("this is no network namespace of its own")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)


@contextlib.contextmanager
def sharing_blocks(work):
    """A directory below `work` on a file system that shares blocks between files: only there disks are copied that a guest
    writes to. Needs a mount namespace of one's own and mkfs.xfs."""
    image, directory = work / "disk.img", work / "disk"
    with open(image, "wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.xfs", "-q", image], check=True, timeout=60)
    directory.mkdir()
    subprocess.run(["mount", "-o", "loop", image, directory], check=True, timeout=60)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], timeout=60)


def add_arguments(parser, output):
    parser.add_argument("--driver", choices=["fake", "kvm"], default="fake", help="what runs the instances")
    parser.add_argument("--wisp", type=pathlib.Path, default=BUILD / "debug/wisp", help="the program under test")
    parser.add_argument("--up", action="append", default=[], metavar="OPTION", help="a further option of `wisp up`")
    parser.add_argument("--output", type=pathlib.Path, default=BUILD / output, help="where the results go")


class Cloud:
    """`wisp up`; gone, with all it made, at the end."""

    def __init__(self, options, work):
        self.options, self.state = options, work / "state"
        # Told to end, the program ends its cloud first.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        command = [options.wisp, "up", "--listen", "127.0.0.1:0", "--driver", options.driver, "--state", self.state]
        # Where tempest's images to import are served.
        command += ["--image-source", "127.0.0.1"]
        log = open(options.output / "wisp.log", "wb")
        environment = os.environ | {"WISP_ADMIN_PASSWORD": PASSWORD}
        self.up = subprocess.Popen(
            [*command, *options.up], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment
        )
        timer = threading.Timer(READY_SECONDS_MAX, self.up.kill)
        timer.start()
        words = self.up.stdout.readline().decode().split()
        timer.cancel()
        if words[:1] != ["ready"]:
            raise SystemExit(f"`wisp up` did not start; see {options.output}/wisp.log")
        self.url = words[1]
        self.token = None
        self.token = self.log_in()

    def call(self, path, body=None):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode() if body else None)
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("X-Auth-Token", self.token)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.headers, json.load(response)

    def log_in(self):
        domain = {"id": "default"}
        user = {"name": "admin", "domain": domain, "password": PASSWORD}
        auth = {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": "admin", "domain": domain}},
        }
        return self.call("/identity/v3/auth/tokens", {"auth": auth})[0]["X-Subject-Token"]

    def end(self):
        self.up.send_signal(signal.SIGTERM)
        try:
            self.up.wait(30)
        except subprocess.TimeoutExpired:
            self.up.kill()
        if self.options.driver == "kvm":
            subprocess.run([self.options.wisp, "down", "--state", self.state], stdout=subprocess.DEVNULL)
