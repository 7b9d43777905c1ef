"""The environment of the image in these tests: podman, a customer's servers, and the work of a kubelet.

A customer's network is that of one pod and has no interface but loopback.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import TestCase

import yaml

Object = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parents[2]
MANIFESTS = REPOSITORY / "sidecar/kubernetes"
KEYS = Path(os.environ["CONTAINERS_WORK"]) / "keys"

SIDECAR = "localhost/ssm-sidecar"
SERVERS = "localhost/servers"
TRANSFER = "localhost/transfer"

# The images that replace those named in the manifests.
IMAGES = {
    "registry.example/ssm-sidecar": SIDECAR,
    "registry.example/transfer": SERVERS,
    "registry.example/transfer-with-tunnel": TRANSFER,
}

# Only what the image needs: also without the tmpfs that podman mounts at /tmp and /run by default.
LOCKED_UP = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"]

# Time limit for a step, on a loaded machine.
LIMIT_S = 60


class Ended(NamedTuple):
    """A container that has ended: its status, what it wrote to stdout and stderr, its termination message."""

    status: int
    output: str
    message: str


def podman(*arguments: str, stdin: str | None = None, may_fail: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs podman to its end."""
    done = subprocess.run(
        ["podman", *arguments], input=stdin, text=True, capture_output=True, timeout=LIMIT_S, check=False
    )
    if done.returncode != 0 and not may_fail:
        raise AssertionError(f"podman {' '.join(arguments)}: {done.returncode}: {done.stderr}{done.stdout}")
    return done


def logs(container: str) -> str:
    """What a container has written so far."""
    done = podman("logs", container)
    return done.stdout + done.stderr


def wait(container: str) -> int:
    """A container's status, once it has ended."""
    return int(podman("wait", container).stdout)


def eventually(what: str, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Waits until `condition` is true, and fails after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s} s: {what}")
        time.sleep(0.05)


def manifest(name: str) -> list[Object]:
    """The objects of a manifest."""
    with (MANIFESTS / name).open() as file:
        return [item for item in yaml.safe_load_all(file) if item]


def one(objects: list[Object], kind: str) -> Object:
    """The only object of this kind."""
    (found,) = [item for item in objects if item["kind"] == kind]
    return found


def image(named: str) -> str:
    """The image that replaces one named in a manifest."""
    return IMAGES[named.rpartition(":")[0]]


def document(**changes: Object) -> Object:
    """The config of secret.yaml for `Customer`, with changes: `bastion={"ssh_port": 22}`."""
    secret = one(manifest("secret.yaml"), "Secret")
    found: Object = json.loads(secret["stringData"]["document.json"])
    _, host_key = (KEYS / "host.fingerprint").read_text().split()[:2]
    bastion = {"ssh_port": 2222, "ssh_private_key": (KEYS / "customer").read_text(), "ssh_host_key": host_key}
    here = {"aws": {"endpoint_url": "http://127.0.0.1:4566"}, "bastion": bastion, "target": {"host": "127.0.0.1"}}
    for name, change in [*here.items(), *changes.items()]:
        found[name] = found[name] | change
    return found


class Customer:
    """AWS, a bastion and a database, each in a container, in the network of one pod."""

    READY = {
        "aws": "data channels",
        "bastion": "Server listening on 127.0.0.1 port 2222",
        "database": "database system is ready to accept connections",
    }

    def __init__(self, test: TestCase) -> None:
        self.test = test
        self.pod = f"customer-{uuid.uuid4().hex[:8]}"
        podman("pod", "create", "--network=none", self.pod)
        test.addCleanup(podman, "pod", "rm", "--force", "--time=0", self.pod)
        for server in self.READY:
            self.start(server, SERVERS, server)
        for server, ready in self.READY.items():
            eventually(f"{server} is ready", lambda: ready in logs(self.name(server)))

    def name(self, container: str) -> str:
        """A container's name for podman."""
        return f"{self.pod}-{container}"

    def options(self, container: str, *options: str) -> list[str]:
        """podman's arguments for one more container in this network."""
        return ["run", "--pull=never", f"--pod={self.pod}", f"--name={self.name(container)}", *options]

    def start(self, container: str, *arguments: str) -> None:
        """Starts a container without waiting for its end."""
        podman(*self.options(container, "--detach"), *arguments)

    def query(self, statement: str, port: int = 15432) -> str:
        """What the database answers through the tunnel."""
        psql = ["psql", "--host=127.0.0.1", f"--port={port}", "--username=reader", "--dbname=orders"]
        query = ["--tuples-only", "--no-align", f"--command={statement}"]
        return podman(*self.options("psql", "--rm"), *LOCKED_UP, SERVERS, *psql, *query).stdout.strip()

    def sessions(self) -> tuple[int, int]:
        """How many sessions AWS has started, and how many have been terminated by the sidecar."""
        return sessions(logs(self.name("aws")))

    def finish(self, started: int) -> None:
        """Asserts what holds at the end of every test: no session is left, and the protocol was not violated."""
        aws = self.name("aws")
        eventually("the sessions are terminated", lambda: self.sessions() == (started, started), 10)
        podman("kill", "--signal=INT", aws)
        self.test.assertEqual(wait(aws), 0)
        assert_clean(self.test, logs(aws), started)


def sessions(journal: str) -> tuple[int, int]:
    """Sessions started and terminated, in the journal of the emulator."""
    ended = [line for line in journal.splitlines() if "SessionTerminated" in line]
    by_us = [line for line in ended if "by: Flag" in line or "by: Api" in line]
    return journal.count("SessionStarted"), len(by_us)


def assert_clean(test: TestCase, journal: str, started: int) -> None:
    """Asserts the same of the whole journal of an emulator that has ended."""
    test.assertEqual(sessions(journal), (started, started), journal)
    test.assertNotIn("Violation", journal)
    test.assertNotIn("sessions left open", journal)


class Kubelet:
    """Runs the containers of a pod one by one, as the kubelet does, in a customer's network."""

    def __init__(self, customer: Customer, job: Object, secret: Object) -> None:
        self.customer = customer
        self.spec: Object = job["spec"]["template"]["spec"]
        directory = TemporaryDirectory()
        customer.test.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.directory.chmod(0o755)
        self.volumes = {volume["name"]: self._mount(volume, secret) for volume in self.spec["volumes"]}

    def run(self, name: str) -> Ended:
        """Runs a container to its end."""
        self.start(name)
        return self.ended(name)

    def start(self, name: str) -> None:
        """Starts a container, and waits until its startup probe succeeds if it has one."""
        container = self.container(name)
        command = container.get("command", [])
        options = [f"--entrypoint={json.dumps(command)}"] if command else []
        run = self.customer.options(name, "--detach", *self._options(container), *options)
        podman(*run, image(container["image"]), *container.get("args", []))
        if probe := container.get("startupProbe"):
            limit_s = probe["periodSeconds"] * probe["failureThreshold"]
            exec_ = ["exec", self.customer.name(name), *probe["exec"]["command"]]
            eventually(f"{name} has started", lambda: podman(*exec_, may_fail=True).returncode == 0, limit_s)

    def stop(self, name: str) -> Ended:
        """Ends a container by SIGTERM, as a kubelet does at the end of the pod."""
        podman("kill", "--signal=TERM", self.customer.name(name))
        return self.ended(name)

    def ended(self, name: str) -> Ended:
        """Waits for the end of a container and returns its results."""
        full = self.customer.name(name)
        return Ended(wait(full), logs(full), (self.directory / f"{name}.message").read_text())

    def container(self, name: str) -> Object:
        """The container or init container of this name."""
        (found,) = [c for c in self.spec.get("initContainers", []) + self.spec["containers"] if c["name"] == name]
        return found

    def _options(self, container: Object) -> Iterator[str]:
        of_pod, own = self.spec["securityContext"], container["securityContext"]
        yield f"--user={of_pod['runAsUser']}:{of_pod['runAsGroup']}"
        yield f"--group-add={of_pod['fsGroup']}"
        if own["readOnlyRootFilesystem"]:
            yield from ["--read-only", "--read-only-tmpfs=false"]
        if not own["allowPrivilegeEscalation"]:
            yield "--security-opt=no-new-privileges"
        yield from (f"--cap-drop={capability}" for capability in own["capabilities"]["drop"])
        yield f"--memory={container['resources']['limits']['memory'].replace('Mi', 'm')}"
        for mount in container.get("volumeMounts", []):
            access = "ro" if mount.get("readOnly") else "rw"
            yield f"--volume={self.volumes[mount['name']]}:{mount['mountPath']}:{access}"
        message = self.directory / f"{container['name']}.message"
        message.touch()
        message.chmod(0o666)
        yield f"--volume={message}:{container.get('terminationMessagePath', '/dev/termination-log')}"

    def _mount(self, volume: Object, secret: Object) -> Path:
        """A directory with the keys of the secret as files, owned by root and readable for the pod's group."""
        assert volume["secret"]["secretName"] == secret["metadata"]["name"]
        directory = self.directory / volume["name"]
        directory.mkdir()
        for name, text in secret["stringData"].items():
            file = directory / name
            file.write_text(text)
            os.chown(file, 0, self.spec["securityContext"]["fsGroup"])
            file.chmod(volume["secret"]["defaultMode"])
        return directory


def with_document(secret: Object, found: Object) -> Object:
    """The Secret with this config in it."""
    return secret | {"stringData": {"document.json": json.dumps(found, indent=2)}}


def fails_job(job: Object, container: str, status: int) -> bool:
    """Whether the Job's failure policy ends it at once when this container ends with this status."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and codes.get("containerName", container) == container and codes["operator"] == "In":
            if status in codes["values"]:
                return bool(rule["action"] == "FailJob")
    return False


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A program that runs beside the test and is killed at the end of the block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
