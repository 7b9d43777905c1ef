#!/usr/bin/env python3
"""Runs several jobs at once, each through a sidecar of its own, as an orchestrator does.

    runner.py SIDECAR JOBS

JOBS is a JSON file: a list of {"document": {...}, "command": ["psql", "-p", "{port}", ...]};
"document" is the sidecar's config. For each job: start a sidecar, write the config to its stdin,
wait for its port, run the command, end the lease, wait for the end. Prints one JSON line per job,
in the order in which the jobs end, and exits with 0 when every job was done.
"""

import asyncio
import json
import sys

# What to do after these exit statuses of a sidecar; the contract lists all of them.
TELL_THE_CUSTOMER = {65, 69, 76, 77}
RETRY = {75}

# Limit for a sidecar that hangs; otherwise it ends by itself after `timeouts.ready_s`.
READY_LIMIT_S = 90
STOP_LIMIT_S = 10


async def run_job(sidecar, job):
    """Runs one job to its end and returns its result."""
    document = job["document"]
    # Pipes are close-on-exec in Python, so no other child inherits the write end of the lease.
    process = await asyncio.create_subprocess_exec(
        sidecar,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        process.stdin.write(json.dumps(document).encode())
        await process.stdin.drain()
        word, rest = await asyncio.wait_for(first_news(process), READY_LIMIT_S)
        outcome = {"name": document["name"]}
        if word == "ready":
            outcome |= await run_command(job["command"], rest.split(" ")[0])
        elif word == "failed":
            failure = json.loads(rest)
            outcome |= {key: failure[key] for key in ("code", "message", "hint")}
        # Ends the lease. After `failed` the sidecar ends in any case.
        process.stdin.close()
        status = await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
        return outcome | {"status": status, "advice": advice(status)}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def first_news(process):
    """Reads lines up to `ready` or `failed`; lines with other words are ignored, as the contract requires."""
    while line := (await process.stdout.readline()).decode():
        word, _, rest = line.rstrip("\n").partition(" ")
        if word in ("ready", "failed"):
            return word, rest
    return "gone", ""


async def run_command(command, port):
    """Runs the transfer, which connects to the local port."""
    arguments = [argument.replace("{port}", port) for argument in command]
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return {"command_status": process.returncode, "output": output.decode().strip()}


def advice(status):
    """What the runner does next, by the exit status alone."""
    if status == 0:
        return "done"
    if status in RETRY:
        return "retry"
    return "tell the customer" if status in TELL_THE_CUSTOMER else "page the operator"


async def main(sidecar, jobs_file):
    with open(jobs_file, encoding="utf-8") as file:
        jobs = json.load(file)
    done = True
    for job in asyncio.as_completed([run_job(sidecar, job) for job in jobs]):
        outcome = await job
        print(json.dumps(outcome), flush=True)
        done = done and outcome["advice"] == "done" and outcome["command_status"] == 0
    return 0 if done else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(asyncio.run(main(*sys.argv[1:])))
