"""The manifests are valid by the published schemas and comply with the Pod Security Standard *restricted*."""

import copy
import json
import re
import unittest
from collections.abc import Iterator

import kubernetes_validate
from world import IMAGES, MANIFESTS, REPOSITORY, SIDECAR, Object, manifest, podman

NATIVE = {"native-sidecar.yaml", "irsa.yaml"}
OLDEST, OLDEST_WITH_NATIVE_SIDECARS, NEWEST = 27, 29, 37

# Kinds of volumes that `restricted` allows.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def names() -> list[str]:
    """The names of the files."""
    found = sorted(path.name for path in MANIFESTS.glob("*.yaml"))
    assert len(found) >= 7, found
    return found


def jobs() -> Iterator[tuple[str, Object]]:
    """Every Job, with the name of its file."""
    for name in names():
        yield from ((name, item) for item in manifest(name) if item["kind"] == "Job")


def complaints(pod: Object) -> list[str]:
    """What in a pod violates `restricted`."""
    found = [f"spec.{field}" for field in ("hostNetwork", "hostPID", "hostIPC") if pod.get(field)]
    found += [f"volume {v['name']}" for v in pod.get("volumes", []) if not (set(v) - {"name"}) <= VOLUMES]
    of_pod = pod.get("securityContext", {})
    for container in pod.get("initContainers", []) + pod["containers"]:
        own = container.get("securityContext", {})
        name = container["name"]
        if own.get("privileged") or any("hostPort" in port for port in container.get("ports", [])):
            found.append(f"{name}: of the host")
        if own.get("allowPrivilegeEscalation") is not False:
            found.append(f"{name}: allowPrivilegeEscalation")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            found.append(f"{name}: capabilities")
        if own.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
            found.append(f"{name}: runAsNonRoot")
        if own.get("runAsUser", of_pod.get("runAsUser")) == 0:
            found.append(f"{name}: runAsUser")
        profile = own.get("seccompProfile", of_pod.get("seccompProfile", {}))
        if profile.get("type") not in ("RuntimeDefault", "Localhost"):
            found.append(f"{name}: seccompProfile")
    return found


class Manifests(unittest.TestCase):
    def test_are_valid_by_the_schemas_of_every_version_they_are_for(self) -> None:
        for name in names():
            oldest = OLDEST_WITH_NATIVE_SIDECARS if name in NATIVE else OLDEST
            for version in range(oldest, NEWEST + 1):
                for item in manifest(name):
                    if item["kind"] == "Job" and version < OLDEST_WITH_NATIVE_SIDECARS:
                        # These schemas require `onPodConditions` in every rule, although it excludes
                        # `onExitCodes` by their own text.
                        del item["spec"]["podFailurePolicy"]
                    kubernetes_validate.validate(item, f"1.{version}", strict=True)

    def test_with_a_native_sidecar_are_refused_by_a_version_that_knows_none(self) -> None:
        for name, job in jobs():
            del job["spec"]["podFailurePolicy"]
            if name in NATIVE:
                with self.assertRaises(kubernetes_validate.ValidationError):
                    kubernetes_validate.validate(job, f"1.{OLDEST}", strict=True)

    def test_are_restricted(self) -> None:
        for name, job in jobs():
            self.assertEqual(complaints(job["spec"]["template"]["spec"]), [], name)

    def test_would_not_be_restricted_with_any_of_these_changes(self) -> None:
        pod = dict(jobs())["native-sidecar.yaml"]["spec"]["template"]["spec"]
        changes = {
            "hostNetwork": lambda pod: pod.update(hostNetwork=True),
            "hostPath": lambda pod: pod["volumes"].append({"name": "v", "hostPath": {"path": "/"}}),
            "root": lambda pod: pod["securityContext"].update(runAsUser=0),
            "anybody": lambda pod: pod["securityContext"].pop("runAsNonRoot"),
            "calls": lambda pod: pod["securityContext"].pop("seccompProfile"),
            "capability": lambda pod: pod["initContainers"][1]["securityContext"]["capabilities"].pop("drop"),
            "escalation": lambda pod: pod["containers"][0].pop("securityContext"),
        }
        for name, change in changes.items():
            changed = copy.deepcopy(pod)
            change(changed)
            self.assertNotEqual(complaints(changed), [], name)

    def test_write_to_no_root_and_need_no_account(self) -> None:
        for name, job in jobs():
            pod = job["spec"]["template"]["spec"]
            for container in pod.get("initContainers", []) + pod["containers"]:
                self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"], name)
                self.assertIn("memory", container["resources"]["limits"], name)
            self.assertTrue("serviceAccountName" in pod or pod["automountServiceAccountToken"] is False, name)

    def test_end_a_job_that_hangs(self) -> None:
        for name, job in jobs():
            self.assertGreater(job["spec"]["activeDeadlineSeconds"], 0, name)
            self.assertEqual(job["spec"]["template"]["spec"]["restartPolicy"], "Never", name)

    def test_wait_longer_for_the_tunnel_than_the_tunnel_itself_does(self) -> None:
        for name, job in jobs():
            for container in job["spec"]["template"]["spec"].get("initContainers", []):
                if probe := container.get("startupProbe"):
                    self.assertGreater(probe["failureThreshold"] * probe["periodSeconds"], 60, name)

    def test_hold_documents_that_the_sidecar_takes(self) -> None:
        secrets = [(name, item) for name in names() for item in manifest(name) if item["kind"] == "Secret"]
        self.assertEqual(len(secrets), 2)
        for name, secret in secrets:
            text = secret["stringData"]["document.json"]
            policy = podman("run", "--rm", "-i", "--pull=never", "--network=none", SIDECAR, "policy", stdin=text)
            self.assertIn("instance/i-0123456789abcdef0", policy.stdout, name)
            wrong = json.dumps(json.loads(text) | {"unknown": 1})
            refused = podman(
                "run", "--rm", "-i", "--pull=never", "--network=none", SIDECAR, "policy", stdin=wrong, may_fail=True
            )
            self.assertEqual(refused.returncode, 65, name)

    def test_name_the_image_of_this_version(self) -> None:
        manifest_of_crates = (REPOSITORY / "Cargo.toml").read_text()
        (version,) = re.findall(r'^version = "(.*)"$', manifest_of_crates, re.MULTILINE)
        text = "".join((MANIFESTS / name).read_text() for name in names())
        self.assertEqual(set(re.findall(r"registry\.example/ssm-sidecar:([\w.]+)", text)), {version})
        self.assertEqual({image.rpartition(":")[0] for image in re.findall(r"registry\.example/\S+:\S+", text)}, set(IMAGES))


if __name__ == "__main__":
    unittest.main()
