"""The image and the unit: linted where their tools are installed, and what they say must fit the command line."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from vitalk.cli import app
from vitalk.deploy.server.run import GRACE

ROOT = Path(__file__).parents[2]
DOCKERFILE, UNIT = ROOT / "deploy" / "Dockerfile", ROOT / "deploy" / "vitalk.service"


def stages():
    """The instructions of each stage: a list of (name, arguments)."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()))
    found = []
    for name, _, rest in (line.partition(" ") for line in text.splitlines() if line):
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    return found


def unit():
    """The unit's settings; each may be given again."""
    found = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def served(words):
    """What ``vitalk serve`` makes of the words of a command line; raises click's UsageError for unknown options."""
    assert Path(words[0]).name == "vitalk" and words[1] == "serve"
    verb = typer.main.get_command(app).commands["serve"]
    return verb.make_context("serve", list(words[2:])).params


def tool(name):
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")
    return found or pytest.skip(f"{name} is not installed")


def test_the_dockerfile_is_clean():
    done = subprocess.run([tool("hadolint"), DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_image_serves_as_nobody_in_particular():
    build, last = stages()
    said = dict(last)
    assert {base.split()[0] for name, base in build + last if name == "FROM"} == {"python:3.11-slim"}
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", said["USER"])
    assert not {"RUN", "ADD"} & set(said), "nothing is installed in the image that runs"
    told = served(eval(said["ENTRYPOINT"]))
    assert told["host"] == "0.0.0.0" and str(told["port"]) == said["EXPOSE"]
    assert said["VOLUME"] == said["WORKDIR"] == "/tmp" and "HOME=/tmp" in said["ENV"]
    assert f"http://127.0.0.1:{told['port']}/healthz" in said["HEALTHCHECK"]


def test_the_image_holds_no_secret_and_is_built_from_what_is_there():
    assert "VITALK_TOKEN" not in str(stages())
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = {word for name, rest in stages()[0] if name == "COPY" for word in rest.split()[:-1]}
    assert copied == set(kept) and all((ROOT / name).exists() for name in copied)


def test_the_health_check_tells_a_server_that_fails():
    code = eval(re.search(r"CMD (\[.*\])", dict(stages()[1])["HEALTHCHECK"])[1])[2]
    free = code.replace(":8000", ":9")  # discard: nobody answers there
    assert subprocess.run([sys.executable, "-c", free], capture_output=True, timeout=30).returncode != 0


def test_the_unit_is_valid(tmp_path):
    command = tmp_path / "vitalk"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    here = tmp_path / "vitalk.service"
    here.write_text(UNIT.read_text().replace("/opt/vitalk/bin/vitalk", str(command)))
    analyze = tool("systemd-analyze")
    done = subprocess.run([analyze, "verify", here], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and str(here) not in done.stderr, done.stderr
    done = subprocess.run(
        [analyze, "security", "--offline=yes", "--threshold=25", "--no-pager", here],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f"exposed: {done.stdout[-300:]}"


def test_the_unit_is_confined():
    said = unit()
    for name, value in {
        "DynamicUser": "yes", "ProtectSystem": "strict", "NoNewPrivileges": "yes", "PrivateTmp": "yes",
        "Restart": "on-failure", "CapabilityBoundingSet": "",
    }.items():  # fmt: skip
        assert said[name] == [value]
    assert "MemoryMax" in said and not {"User", "Group"} & set(said)
    assert not said["EnvironmentFile"][0].startswith("-"), "it must not start without its token"
    assert "TOKEN" not in " ".join(said["ExecStart"] + said["Environment"])


def test_the_unit_stops_after_its_last_answer():
    said = unit()
    told = served(shlex.split(said["ExecStart"][0]))
    assert told["host"] == "127.0.0.1"
    assert float(said["TimeoutStopSec"][0]) > told["seconds"] + GRACE
    assert said["KillMode"] == ["mixed"], "else the workers are ended before the answers are"
