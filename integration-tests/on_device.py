"""Run on an Inferentia2 machine: export a tiny model, serve it, and compare its greedy tokens with the CPU's.

It needs nothing but this file and an installed neuronx-tgi, as in the image; ``on_device.md`` tells how. It
prints a report in Markdown that is fit for an issue, and ends with status 0 when every token was equal.
``--device-backend cpu`` runs the whole procedure on any machine, against itself.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

#: Uneven on purpose, one token among them, and more than there are slots: requests join while others run.
PROMPTS = (
    "A",
    "What is Deep Learning?",
    "Hello! How are you today?",
    "A static batch has as many slots as it was compiled for, and each of them",
    "The KV cache of a slot holds the keys and values of every token before this one. " * 4,
    "def prefill(rows):",
    "Requests that join while others run must not change what the others say. " * 8,
    "One",
    "Tokens, tokens, tokens and",
    "When the longest text ends, the next one takes its slot, which still holds",
)
SLOTS, LENGTH = 4, 512
START_S, EXPORT_S = 1800.0, 3600.0


@dataclass
class Answer:
    """Greedy ids, log-probabilities (``None``: not computed), and after how many seconds each token came."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    error: str = ""


class Server:
    """A launcher and its log; ``with`` stops it."""

    def __init__(self, launcher: str, *flags: str, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.log = log
        argv = [launcher, "--hostname=127.0.0.1", f"--port={self.port}", *flags]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                argv, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self) -> Server:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with status {self.process.returncode}:\n{self.tail()}")
            if self.healthy():
                return self
            time.sleep(0.25)
        self.__exit__()
        raise SystemExit(f"the server was not ready after {START_S:.0f} s:\n{self.tail()}")

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def healthy(self) -> bool:
        try:
            return self.get("/health")[0] == 200
        except OSError:
            return False

    def generate(self, prompt: str, new_tokens: int, begun: threading.Event | None = None) -> Answer:
        """Stream a greedy answer; ``begun`` is set with its second token."""
        answer, connection = Answer(), http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_S)
        body = {"inputs": prompt, "parameters": {"max_new_tokens": new_tokens, "details": True}}
        began = time.monotonic()
        try:
            connection.request(
                "POST", "/generate_stream", json.dumps(body), {"content-type": "application/json"}
            )
            reply = connection.getresponse()
            if reply.status != 200:
                answer.error = f"status {reply.status}: {reply.read(500)!r}"
                return answer
            for line in reply:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    if "token" not in event:
                        answer.error = f"an error event: {event}"
                        break
                    answer.ids.append(event["token"]["id"])
                    answer.logprobs.append(event["token"]["logprob"])
                    answer.at_s.append(time.monotonic() - began)
                    if begun is not None and len(answer.ids) == 2:
                        begun.set()
        except (OSError, http.client.HTTPException, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        return answer


def all_at_once(server: Server, new_tokens: int) -> list[Answer]:
    """Every prompt at the same time, so that they wait for slots and join each other's company."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: server.generate(prompt, new_tokens), PROMPTS))


def one_by_one(server: Server, new_tokens: int) -> list[Answer]:
    """Every prompt alone."""
    return [server.generate(prompt, new_tokens) for prompt in PROMPTS]


def killed_meanwhile(server: Server, new_tokens: int) -> list[Answer]:
    """Every prompt at the same time, and a ``kill -9`` of the generator as soon as one has begun."""
    begun = threading.Event()
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = [pool.submit(server.generate, prompt, new_tokens, begun) for prompt in PROMPTS]
        begun.wait(START_S)
        killed = kill_generator(server.process.pid)
        found = [answer.result() for answer in answers]
    if not killed:
        found[0].error = found[0].error or "no generator was found that could be killed"
    return found


def kill_generator(launcher: int) -> bool:
    """SIGKILL for the child of ``launcher`` that is a generator; whether there was one."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        if parent == launcher and b"serve_generator" in command:
            os.kill(int(entry.name), signal.SIGKILL)
            return True
    return False


# -- report --------------------------------------------------------------------------------------------------


def comparison(name: str, answers: list[Answer], reference: list[Answer]) -> tuple[str, bool]:
    """A table that says where the answers leave the reference, and whether all of them are equal."""
    rows, equal = [], True
    for number, (answer, wanted) in enumerate(zip(answers, reference, strict=True)):
        same = next((i for i, (a, b) in enumerate(zip(answer.ids, wanted.ids, strict=False)) if a != b), None)
        if same is None and len(answer.ids) != len(wanted.ids):
            same = min(len(answer.ids), len(wanted.ids))
        pairs = [
            (a, b)
            for a, b in zip(answer.logprobs, wanted.logprobs, strict=False)
            if a is not None and b is not None
        ]
        worst = f"{max(abs(a - b) for a, b in pairs[:same]):.2g}" if pairs[:same] else "-"
        verdict = "equal" if same is None else f"**differs from token {same} on**"
        if answer.error:
            verdict = f"**{answer.error}**"
        equal &= verdict == "equal"
        rows.append(f"| {number} | {len(answer.ids)} | {verdict} | {worst} |")
    columns = ("prompt", "tokens", "against the CPU, alone", "largest difference of log-probabilities")
    head = f"### {name}\n\n| {' | '.join(columns)} |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n", equal


def timings(answers: list[Answer]) -> str:
    """Medians over the answers, as this machine's clients saw them."""
    firsts = sorted(a.at_s[0] for a in answers if a.at_s)
    gaps = sorted(b - a for x in answers for a, b in zip(x.at_s, x.at_s[1:], strict=False))
    if not firsts or not gaps:
        return "no timings"
    return (
        f"TTFT median {1000 * firsts[len(firsts) // 2]:.0f} ms, inter-token latency median "
        f"{1000 * gaps[len(gaps) // 2]:.1f} ms, longest pause {1000 * gaps[-1]:.0f} ms"
    )


def run(argv: list[str]) -> tuple[int, str]:
    """Status and both streams, as one text."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=EXPORT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr


def demo_model(python: str) -> Path:
    """The demo model of the installed package: a Llama of 1.9M parameters that has learnt something."""
    found = "import neuron_server, pathlib; print(pathlib.Path(neuron_server.__file__).parent / 'demo_model')"
    status, text = run([python, "-c", found])
    if status:
        raise SystemExit(f"neuronx-tgi is not installed for {python}:\n{text}")
    return Path(text.strip())


SHAPE = (f"--max-batch-size={SLOTS}", f"--max-total-tokens={LENGTH}", "--max-input-tokens=256")
WAYS = (("alone", one_by_one), ("in company", all_at_once), ("kill -9 meanwhile", killed_meanwhile))


def reference(options: argparse.Namespace, model: Path, work: Path) -> list[Answer]:
    """The answers of the CPU backend to each prompt alone, made here or read from a file."""
    if options.reference:
        return [Answer(**answer) for answer in json.loads(options.reference.read_text())]
    print("serving the reference on the CPU ...", file=sys.stderr)
    flags = (f"--model-id={model}", "--backend=cpu", *SHAPE)
    with Server(options.launcher, *flags, log=work / "cpu.log") as server:
        answers = one_by_one(server, options.new_tokens)
    if options.save_reference:
        options.save_reference.write_text(json.dumps([vars(answer) for answer in answers]))
    return answers


def exported(options: argparse.Namespace, model: Path, sampling: str, output: Path) -> tuple[str, bool]:
    """Compile the model with or without sampling on the device; what to report, and whether it worked."""
    print(f"exporting with --{sampling} ...", file=sys.stderr)
    began = time.monotonic()
    status, text = run([
        options.exporter, "export", str(model), f"--output={output}", f"--{sampling}", "--dtype=float32",
        f"--batch-size={SLOTS}", f"--sequence-length={LENGTH}", f"--tensor-parallel-size={options.num_shard}",
    ])  # fmt: skip
    if status:
        return f"The export ended with status {status}:\n\n```\n{text[-4000:]}\n```\n", False
    return f"Exported in {time.monotonic() - began:.0f} s.\n", True


def served(
    options: argparse.Namespace, flags: list[str], wanted: list[Answer], log: Path
) -> tuple[str, bool]:
    """Ask a server in every way; the tables, and whether all of it was equal to the reference."""
    print(f"serving with {' '.join(flags)} ...", file=sys.stderr)
    fine = True
    with Server(options.launcher, *flags, log=log) as server:
        report = ["```json\n" + server.get("/info")[1].decode() + "\n```\n"]
        for name, ask in WAYS:
            answers = ask(server, options.new_tokens)
            table, equal = comparison(name, answers, wanted)
            report.append(f"{table}\n{timings(answers)}\n")
            fine &= equal
        report.append(f"<details><summary>log</summary>\n\n```\n{server.tail(60)}\n```\n</details>\n")
    return "\n".join(report), fine


def check(options: argparse.Namespace, work: Path) -> tuple[str, bool]:
    """The whole procedure; the report, and whether everything was equal."""
    model = demo_model(str(Path(options.bin) / "python"))
    on_device = options.device_backend != "cpu"
    report = [f"# neuronx-tgi {'on a Neuron device' if on_device else 'on a CPU, against itself'}\n"]
    report.append("## The machine\n\n```\n" + run([options.launcher, "doctor"])[1].strip() + "\n```\n")
    wanted, fine = reference(options, model, work), True
    for sampling in ("on-device-sampling", "no-on-device-sampling") if on_device else ("cpu",):
        flags, usable = [f"--model-id={model}", "--backend=cpu", *SHAPE], True
        report.append(f"## {sampling}\n")
        if on_device:
            text, usable = exported(options, model, sampling, work / sampling)
            report.append(text)
            flags = [f"--model-id={work / sampling}", "--backend=neuron"]
        if usable:
            text, usable = served(options, flags, wanted, work / f"{sampling}.log")
            report.append(text)
        fine &= usable
    report.append(
        f"## Result\n\n{'Every token was equal.' if fine else '**Something differed or failed.**'}\n"
    )
    return "\n".join(report), fine


def main() -> int:
    """Parse, run, print; 0 when every token was equal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bin", default=str(Path(sys.executable).parent), help="where text-generation-launcher is"
    )
    parser.add_argument("--device-backend", default="neuron", choices=("neuron", "cpu"))
    parser.add_argument("--num-shard", type=int, default=2, help="NeuronCores, default 2")
    parser.add_argument("--new-tokens", type=int, default=40, help="for each prompt, default 40")
    parser.add_argument("--output", type=Path, help="write the report here instead of to stdout")
    parser.add_argument("--save-reference", type=Path, help="write the CPU's answers to this file")
    parser.add_argument("--reference", type=Path, help="the CPU's answers, from such a file of another run")
    options = parser.parse_args()
    options.launcher = str(Path(options.bin) / "text-generation-launcher")
    options.exporter = str(Path(options.bin) / "text-generation-server")
    work = Path(tempfile.mkdtemp(prefix="neuronx-tgi-on-device-"))
    try:
        report, fine = check(options, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if options.output:
        options.output.write_text(report)
    else:
        print(report)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
