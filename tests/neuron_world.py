"""A machine with Neuron devices and an optimum-neuron that only looks like one, as directories.

The stand-in has the signatures of optimum-neuron 0.4.5 (``tests/hosts/export`` compares them with the real
one, with torch and transformers as they are; here these two are a few lines, because importing them takes
seconds in each of many processes) and "compiles" by writing files; what it was asked for stands in ``ASKED``,
one JSON object per line. Its behaviour is scripted by the environment: ``FAKE_ENTRIES`` (JSON),
``FAKE_CACHE`` (``offline``), and ``FAKE_EXPORT`` (``fail``, ``hang``, ``killed``).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPILER = "2.21.33363.0+82129205"

_CACHE_UTILS = """
import os
def get_hf_hub_cache_repo(log_warnings=False):
    return os.environ.get("CUSTOM_CACHE_REPO", "aws-neuron/optimum-neuron-cache")
"""
_HUB_CACHE = """
import json, os
def get_hub_cached_entries(model_id, task=None, cache_repo_id=None):
    with open(os.environ["ASKED"], "a") as f:
        f.write(json.dumps({"entries_of": model_id, "task": task}) + "\\n")
    if os.environ.get("FAKE_CACHE") == "offline":
        raise ConnectionError("Network is unreachable")
    if os.environ.get("FAKE_CACHE") == "other compiler":
        raise ValueError("No hub cache registry found in x for neuronx-cc-2.21.33363.0")
    return json.loads(os.environ.get("FAKE_ENTRIES", "[]"))
"""
_SINGLE = """
class SingleModelCacheEntry:
    @classmethod
    def from_local_path(cls, model_id, task):
        raise NotImplementedError
"""
_AUTO_MODEL = """
import json, os, signal, time, zipfile
from pathlib import Path
print("what a library prints to stdout")
class NxDNeuronConfig:
    def __init__(self, **values):
        self.__dict__.update(values)
class FakeForCausalLM:
    @classmethod
    def get_neuron_config(cls, model_name_or_path, config=None, token=None, revision=None, instance_type=None,
                          batch_size=None, sequence_length=None, tensor_parallel_size=None):
        return NxDNeuronConfig(
            checkpoint_id=None, checkpoint_revision=None, batch_size=batch_size, max_batch_size=batch_size,
            sequence_length=sequence_length, max_context_length=sequence_length,
            tp_degree=tensor_parallel_size,
            torch_dtype=str(config.torch_dtype).split(".")[-1], on_device_sampling=True, target="trn1",
            continuous_batching=batch_size > 1, _serialized_key="NxDNeuronConfig",
            optimum_neuron_version="0.4.5", neuronxcc_version=COMPILER)
    @classmethod
    def export(cls, model_id, neuron_config, config=None, token=None, revision=None, load_weights=False,
               **kwargs):
        assert not kwargs and not load_weights
        with open(os.environ["ASKED"], "a") as f:
            about = {"export_of": model_id, "revision": revision, "cwd": os.getcwd(),
                     "override": os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE"),
                     "work": os.environ["BASE_COMPILE_WORK_DIR"], "name_or_path": config._name_or_path}
            f.write(json.dumps({**about, **neuron_config.__dict__}) + "\\n")
        how = os.environ.get("FAKE_EXPORT")
        if how == "fail":
            Path("log-neuron-cc.txt").write_text("chatter\\n" * 50 + "ERROR: the tensorizer gave up\\n")
            raise RuntimeError("neuronx-cc failed with 70")
        if how == "hang":
            Path(os.environ["HANGING"]).write_text(str(os.getpid()))
            while True:
                time.sleep(60)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        model = cls()
        model.config, model.neuron_config = config, neuron_config
        return model
    def save_pretrained(self, save_directory):
        out = Path(save_directory)
        self.config.save_pretrained(out)
        (out / "neuron_config.json").write_text(json.dumps(self.neuron_config.__dict__))
        with zipfile.ZipFile(out / "model.pt", "w") as f:
            f.writestr("model/data.pkl", b"graphs")
def has_neuron_model_class(model_type, task, mode):
    return model_type == "llama"
def get_neuron_model_class(model_type, task, mode):
    if not has_neuron_model_class(model_type, task, mode):
        raise ValueError(f"Model type {model_type} is not supported for task {task}")
    return FakeForCausalLM
""".replace("COMPILER", repr(COMPILER))

_TORCH = """
class dtype(str):
    pass
float32, float16, bfloat16 = (dtype("torch." + name) for name in ("float32", "float16", "bfloat16"))
"""
_TRANSFORMERS = """
import json
from pathlib import Path
class AutoConfig:
    @classmethod
    def from_pretrained(cls, path, trust_remote_code=False):
        config = cls()
        config.__dict__.update(json.loads((Path(path) / "config.json").read_text()), _name_or_path=path)
        return config
    def get_text_config(self):
        return self
    def save_pretrained(self, path):
        values = {k: v for k, v in self.__dict__.items() if not k.startswith("_")}
        values["torch_dtype"] = str(values["torch_dtype"]).partition(".")[2]
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "config.json").write_text(json.dumps(values))
"""

_MODULES = {
    "torch.py": _TORCH,
    "transformers.py": _TRANSFORMERS,
    "optimum/neuron/__init__.py": "",
    "optimum/neuron/utils/__init__.py": "",
    "optimum/neuron/utils/cache_utils.py": _CACHE_UTILS,
    "optimum/neuron/cache/__init__.py": "",
    "optimum/neuron/cache/hub_cache.py": _HUB_CACHE,
    "optimum/neuron/cache/entries/__init__.py": "",
    "optimum/neuron/cache/entries/single_model.py": _SINGLE,
    "optimum/neuron/models/__init__.py": "",
    "optimum/neuron/models/auto_model.py": _AUTO_MODEL,
}

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class NeuronWorld:
    """``root``: of the machine, an inf2.8xlarge. ``packages``: where its Python packages are."""

    root: Path
    packages: Path
    hub: Path
    asked_file: Path

    @property
    def env(self) -> dict[str, str]:
        """What programs need to see this machine and nothing else."""
        return {
            "NEURON_TGI_ROOT": str(self.root),
            "PYTHONPATH": str(self.packages),
            "HF_HUB_CACHE": str(self.hub),
            "HF_HUB_OFFLINE": "1",
            "ASKED": str(self.asked_file),
        }

    @property
    def asked(self) -> list[dict[str, Any]]:
        """What the stand-in was asked for."""
        return [json.loads(line) for line in self.asked_file.read_text().splitlines()]


def neuron_world(path: Path, *, devices: int = 1, version: str = "0.4.5") -> NeuronWorld:
    """The machine beneath ``path``."""
    root = path / "machine"
    for name, text in {
        "proc/devices": "Character devices:\n  1 mem\n245 neuron\n"
        if devices
        else "Character devices:\n  1 mem\n",
        "proc/meminfo": "MemAvailable: 100000000 kB\n",
        "sys/devices/virtual/dmi/id/product_name": "inf2.8xlarge\n",
        **({"sys/module/neuron/version": "2.24.7.0\n"} if devices else {}),
        **{f"dev/neuron{i}": "" for i in range(devices)},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    packages = root / "opt/neuron/lib/python3.11/site-packages"
    for name, text in _MODULES.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(text)
    for name, installed in (("optimum_neuron", version), ("neuronx_cc", COMPILER)):
        information = packages / f"{name}-{installed}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {installed}\n"
        )
    (path / "asked").write_text("")
    return NeuronWorld(root, packages, path / "hub", path / "asked")


def plain_model(path: Path, **config: Any) -> Path:
    """A model directory that is whole for everybody who does not compute with it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**LLAMA, **config}))
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    (path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return path


def entry(batch: int, length: int = 2048, cores: int = 2, **values: Any) -> dict[str, Any]:
    """An entry of the compile cache, as optimum-neuron 0.4.5 writes it."""
    return {
        "_serialized_key": "NxDNeuronConfig", "batch_size": batch, "max_batch_size": batch,
        "sequence_length": length, "max_context_length": length, "tp_degree": cores, "pp_degree": 1,
        "torch_dtype": "bfloat16", "on_device_sampling": True, "continuous_batching": batch > 1,
        "target": "trn1", "checkpoint_id": "org/base", "checkpoint_revision": "abc",
        "optimum_neuron_version": "0.4.5", "neuronxcc_version": COMPILER, **values,
    }  # fmt: skip
