"""The manifests in use: the containers of each form are run as by a kubelet, one form also by `podman kube play`."""

import json
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from world import (
    KEYS,
    SERVERS,
    Customer,
    Kubelet,
    Object,
    assert_clean,
    document,
    eventually,
    fails_job,
    image,
    logs,
    manifest,
    one,
    podman,
    wait,
    with_document,
)


def kubelet(customer: Customer, name: str, found: Object | None = None) -> Kubelet:
    """A kubelet for the Job of a manifest, with this config in its Secret."""
    secret = with_document(one(manifest("secret.yaml"), "Secret"), found or document())
    return Kubelet(customer, one(manifest(name), "Job"), secret)


def stranger() -> Object:
    """The config with a key that is not in the bastion's `authorized_keys`."""
    return document(bastion={"ssh_private_key": (KEYS / "stranger").read_text()})


class NativeSidecar(unittest.TestCase):
    def test_is_up_before_the_transfer_and_ends_after_it(self) -> None:
        customer = Customer(self)
        node = kubelet(customer, "native-sidecar.yaml")
        check = node.run("check")
        self.assertEqual((check.status, check.message), (0, ""), check.output)
        node.start("tunnel")
        transfer = node.run("transfer")
        self.assertEqual(transfer.status, 0, transfer.output)
        self.assertIn("1000", transfer.output)
        self.assertEqual(customer.sessions(), (2, 1), "the tunnel's is open, the check's is not")
        tunnel = node.stop("tunnel")
        self.assertEqual((tunnel.status, tunnel.message), (0, ""), tunnel.output)
        customer.finish(started=2)

    def test_is_not_ready_while_its_tunnel_is_not(self) -> None:
        customer = Customer(self)
        podman("kill", "--signal=TERM", customer.name("database"))
        wait(customer.name("database"))
        node = kubelet(customer, "native-sidecar.yaml")
        node.container("tunnel").pop("startupProbe")
        node.start("tunnel")
        tunnel = node.ended("tunnel")
        self.assertEqual(tunnel.status, 69, tunnel.output)
        self.assertEqual(json.loads(tunnel.message)["code"], "target.unreachable")
        self.assertNotIn("ready ", tunnel.output)
        customer.finish(started=1)


class WrongKeys(unittest.TestCase):
    def assert_ends_the_job(self, name: str, container: str, found: Object, code: str, hint: str, started: int) -> None:
        customer = Customer(self)
        ended = kubelet(customer, name, found).run(container)
        self.assertEqual(ended.status, 77, ended.output)
        message = json.loads(ended.message)
        self.assertEqual(message["code"], code)
        self.assertIn(hint, message["hint"])
        self.assertLess(len(ended.message.encode()), 4096, "the kubelet takes no more")
        self.assertNotIn(found["aws"]["secret_access_key"], ended.message + ended.output)
        self.assertTrue(fails_job(one(manifest(name), "Job"), container, 77))
        self.assertFalse(fails_job(one(manifest(name), "Job"), container, 75), "passing trouble is tried again")
        customer.finish(started)

    def test_of_ssh_ends_the_job_of_the_native_sidecar_with_the_hint(self) -> None:
        self.assert_ends_the_job(
            "native-sidecar.yaml", "check", stranger(), "ssh.auth_rejected", "authorized_keys", started=1
        )

    def test_of_ssh_ends_the_job_of_two_containers_with_the_hint(self) -> None:
        self.assert_ends_the_job(
            "two-containers.yaml", "check", stranger(), "ssh.auth_rejected", "authorized_keys", started=1
        )

    def test_of_ssh_ends_the_job_of_exec_with_the_hint(self) -> None:
        self.assert_ends_the_job(
            "exec.yaml", "transfer", stranger(), "ssh.auth_rejected", "authorized_keys", started=1
        )

    def test_of_aws_ends_the_job_with_the_hint(self) -> None:
        wrong = document(aws={"secret_access_key": "wrongSecretWrongSecretWrongSecretWrongSe"})
        self.assert_ends_the_job(
            "native-sidecar.yaml", "check", wrong, "aws.credentials", "aws.secret_access_key", started=0
        )


class Exec(unittest.TestCase):
    def test_runs_the_transfer_and_ends_with_it(self) -> None:
        customer = Customer(self)
        transfer = kubelet(customer, "exec.yaml").run("transfer")
        self.assertEqual((transfer.status, transfer.message), (0, ""), transfer.output)
        self.assertIn("1000", transfer.output)
        customer.finish(started=1)


class TwoContainers(unittest.TestCase):
    def test_played_by_podman_answer_the_query_and_the_pod_ends(self) -> None:
        pod = played(one(manifest("two-containers.yaml"), "Job"))
        name = pod["metadata"]["name"]
        with TemporaryDirectory() as directory:
            self.play(pod, Path(directory))
        tunnel, transfer, aws = (f"{name}-{container}" for container in ("tunnel", "transfer", "aws"))
        self.assertEqual(wait(transfer), 0, logs(transfer) + logs(tunnel))
        self.assertIn("1000", logs(transfer))
        self.assertEqual(wait(tunnel), 0, logs(tunnel))
        self.assertIn("ready 15432", logs(tunnel))
        state = ["pod", "inspect", "--format={{.State}}", name]
        eventually("the pod has ended", lambda: podman(*state).stdout.strip() == "Exited")
        assert_clean(self, logs(aws), started=1)

    def play(self, pod: Object, directory: Path) -> None:
        """Runs the pod by `podman kube play`."""
        (directory / "pod.yaml").write_text(yaml.safe_dump(pod))
        # podman 4.3 mounts the values of a Secret's `data` without decoding them: they are written as plain text.
        secret = one(manifest("secret.yaml"), "Secret")
        secret["data"] = with_document(secret, document()).pop("stringData")
        (directory / "secret.yaml").write_text(yaml.safe_dump(secret))
        name = secret["metadata"]["name"]
        podman("secret", "create", name, str(directory / "secret.yaml"))
        self.addCleanup(podman, "volume", "rm", "--force", name)
        self.addCleanup(podman, "secret", "rm", name)
        self.addCleanup(podman, "pod", "rm", "--force", "--time=0", pod["metadata"]["name"])
        podman("kube", "play", "--network=none", "--start=false", str(directory / "pod.yaml"))
        # Servers first: a real customer's run already. The others in the kubelet's order.
        name = pod["metadata"]["name"]
        for server, ready in Customer.READY.items():
            podman("start", f"{name}-{server}")
            eventually(f"{server} is ready", lambda: ready in logs(f"{name}-{server}"))
        podman("start", f"{name}-tunnel", f"{name}-transfer")


def played(job: Object) -> Object:
    """The Job's pod with the customer's servers added, in a form that podman 4.3 can play."""
    spec = job["spec"]["template"]["spec"]
    # The init containers would need the servers, which are containers of this pod and start after them.
    del spec["initContainers"]
    for volume in spec["volumes"]:
        # podman 4.3 reads this field without checking that it is there.
        volume["secret"]["optional"] = False
    containers = spec["containers"]
    for container in containers:
        container["image"] = image(container["image"])
    for server in Customer.READY:
        containers.insert(
            0,
            {
                "name": server,
                "image": SERVERS,
                "command": ["until-transferred", server],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            },
        )
    for container in containers:
        container["imagePullPolicy"] = "Never"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "played"}, "spec": spec}


if __name__ == "__main__":
    unittest.main()
