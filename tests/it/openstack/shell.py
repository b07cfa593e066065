"""Runs the `openstack` command again and again from one process that has loaded it: a fork per command.

A line of JSON with the words comes in, one with exit code, output and errors goes out. The word `tty` before all others
gives the command a terminal as its input. The argument is how many seconds one command may take.
"""

import contextlib
import importlib
import io
import json
import logging
import os
import pkgutil
import pty
import signal
import sys
import tempfile

import openstackclient
from openstackclient import shell

SECONDS_MAX = int(sys.argv[1])
# The name that commands have for themselves.
sys.argv[0] = "openstack"

for area in ["common", "identity.v3", "image.v2", "network.v2", "volume.v3", "compute.v2"]:
    package = importlib.import_module(f"openstackclient.{area}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"openstackclient.{area}.{module.name}")

# A command that asks nobody, for what every command loads, reads of its packages and remembers.
with contextlib.redirect_stdout(io.StringIO()):
    shell.main(["command", "list", "--help"])
# Where it said what went wrong, each command says it by itself.
logging.getLogger().handlers.clear()


def run(words, out, err):
    """In the child: never returns."""
    code = 70
    try:
        os.setsid()
        signal.alarm(SECONDS_MAX)
        if words[0] == "tty":
            words = words[1:]
            os.dup2(pty.openpty()[1], 0)
        else:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
        try:
            code = shell.main(words) or 0
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else int(bool(exit.code))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            run(json.loads(line), out, err)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in [out, err]:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        print(json.dumps([os.waitstatus_to_exitcode(status), *texts]), flush=True)
