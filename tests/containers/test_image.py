"""The image: its content, and the sidecar in a container without privileges."""

import json
import subprocess
import unittest
from pathlib import Path

from world import LOCKED_UP, SIDECAR, Customer, document, eventually, podman, started, wait

MAX_BYTES = 16_000_000


class Image(unittest.TestCase):
    def test_holds_a_static_program_and_certificates_and_nothing_else(self) -> None:
        root = Path(podman("image", "mount", SIDECAR).stdout.strip())
        self.addCleanup(podman, "image", "umount", SIDECAR)
        files = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
        self.assertEqual(files, {"ssm-sidecar", "etc/ssl/certs/ca-certificates.crt"})
        certificates = (root / "etc/ssl/certs/ca-certificates.crt").read_text()
        self.assertGreater(certificates.count("BEGIN CERTIFICATE"), 100)
        headers = subprocess.run(["readelf", "-lW", root / "ssm-sidecar"], capture_output=True, text=True, check=True)
        self.assertNotIn("INTERP", headers.stdout)
        self.assertIn(b"c0ffee-of-the-tests", (root / "ssm-sidecar").read_bytes(), "the commit that the build was told")

    def test_is_of_16_megabytes_at_most_and_for_a_user_without_name(self) -> None:
        (image,) = json.loads(podman("image", "inspect", SIDECAR).stdout)
        self.assertLessEqual(image["Size"], MAX_BYTES)
        self.assertEqual(image["Config"]["User"], "65532:65532")
        self.assertEqual(image["Config"]["Entrypoint"], ["/ssm-sidecar"])

    def test_document_on_stdin_leads_to_a_query_and_sigterm_to_a_clean_end(self) -> None:
        customer = Customer(self)
        with started("podman", *customer.options("tunnel", "-i"), *LOCKED_UP, SIDECAR) as tunnel:
            assert tunnel.stdin and tunnel.stdout
            tunnel.stdin.write(json.dumps(document(), indent=2))
            tunnel.stdin.flush()
            self.assertEqual(tunnel.stdout.readline(), "ready 15432\n")
            self._assert_locked_up(customer.name("tunnel"))
            self.assertEqual(customer.query("SELECT count(*) FROM orders"), "1000")
            podman("kill", "--signal=TERM", customer.name("tunnel"))
            self.assertEqual(tunnel.wait(10), 0)
            self.assertEqual(tunnel.stdout.read(), "")
        customer.finish(started=1)

    def test_end_of_stdin_ends_it_as_process_1_too(self) -> None:
        customer = Customer(self)
        with started("podman", *customer.options("tunnel", "-i"), *LOCKED_UP, SIDECAR) as tunnel:
            assert tunnel.stdin and tunnel.stdout
            tunnel.stdin.write(json.dumps(document()))
            tunnel.stdin.flush()
            self.assertEqual(tunnel.stdout.readline(), "ready 15432\n")
            tunnel.stdin.close()
            self.assertEqual(tunnel.wait(10), 0)
        customer.finish(started=1)

    def test_names_are_looked_up_in_the_hosts_file_and_then_by_the_resolver(self) -> None:
        customer = Customer(self)
        resolver = Path(__file__).with_name("resolver.py")
        (infra,) = json.loads(podman("pod", "inspect", customer.pod).stdout)["Containers"][:1]
        pid = podman("inspect", "--format={{.State.Pid}}", infra["Id"]).stdout.strip()
        # Nothing listens at 127.0.0.99.
        names = ["dns.example=127.0.0.1", "both.example=127.0.0.99", "elsewhere.example=127.0.0.99"]
        with started("nsenter", f"--target={pid}", "--net", "python3", str(resolver), *names) as dns:
            assert dns.stdout
            self.assertEqual(dns.stdout.readline(), "ready\n")
            # The files as the kubelet writes them.
            files = [f"--volume={resolver.with_name(name)}:/etc/{name}:ro" for name in ("hosts", "resolv.conf")]
            with started("podman", *customer.options("tunnel", "-i", *files), *LOCKED_UP, SIDECAR) as tunnel:
                assert tunnel.stdin and tunnel.stdout
                tunnel.stdin.write(json.dumps(document()))
                tunnel.stdin.flush()
                self.assertEqual(tunnel.stdout.readline(), "ready 15432\n")
                expected = {"hosts.example": 0, "dns.example": 0, "both.example": 0}
                for host, status in (expected | {"elsewhere.example": 1, "nobody.example": 1}).items():
                    probe = ["/ssm-sidecar", "probe", f"http://{host}:9090/readyz"]
                    asked = podman("exec", customer.name("tunnel"), *probe, may_fail=True)
                    self.assertEqual(asked.returncode, status, f"{host}: {asked.stderr}")
                tunnel.stdin.close()
                self.assertEqual(tunnel.wait(10), 0)
        customer.finish(started=1)

    def _assert_locked_up(self, container: str) -> None:
        pid = podman("inspect", "--format={{.State.Pid}}", container).stdout.strip()
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        self.assertEqual(status["NSpid"].split()[-1], "1", "it is process 1")
        self.assertEqual(set(status["Uid"].split()), {"65532"})
        self.assertEqual({status[name] for name in ("CapEff", "CapPrm", "CapBnd")}, {"0" * 16})
        self.assertEqual(status["NoNewPrivs"], "1")
        root = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        (options,) = [mount[5] for mount in root if mount[4] == "/"]
        self.assertIn("ro", options.split(","))


if __name__ == "__main__":
    unittest.main()
