"""`make fetch` from a small hub on this machine, then the model without a network."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from sysdpo.components.hub import needed_files
from tests.integration.commands import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves one repository in the hub's protocol; `asked` are the files that were sent."""

    def __init__(self, repository: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repository, self.folder = repository, folder
        self.asked: list[str] = []

    def info(self) -> dict[str, Any]:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        siblings = [{"rfilename": str(f.relative_to(self.folder)), "size": f.stat().st_size} for f in files]
        return {"id": self.repository, "sha": COMMIT, "siblings": siblings}


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        hub = self.server
        files = f"/{hub.repository}/resolve/{COMMIT}/"
        if path.startswith(f"/api/models/{hub.repository}/tree/"):
            tree = [
                {"type": "file", "path": f["rfilename"], "size": f["size"], "oid": ""} for f in hub.info()["siblings"]
            ]
            self._send(json.dumps(tree).encode(), "application/json", with_body)
        elif path.startswith(f"/api/models/{hub.repository}"):
            self._send(json.dumps(hub.info()).encode(), "application/json", with_body)
        elif path.startswith(files) and (file := hub.folder / path.removeprefix(files)).is_file():
            if with_body:
                hub.asked.append(str(file.relative_to(hub.folder)))
            self._send(file.read_bytes(), "application/octet-stream", with_body)
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, content: bytes, kind: str, with_body: bool) -> None:
        self.send_response(200)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "X-Repo-Commit": COMMIT}
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()[:40]}"'
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"a second copy")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"a third")
    with Hub("owner/tiny", folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def python(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1", **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=settings, capture_output=True, text=True, timeout=200, check=False
    )


def test_what_was_fetched_is_there_without_a_network(hub: Hub, tmp_path: Path) -> None:
    cache = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
    arguments = ["experiment=table2", "scale=paper", "llm.pretrained=owner/tiny", "dataset.path=pairs.jsonl"]
    done = python("-m", "sysdpo", "fetch", *arguments, **cache)
    assert done.returncode == 0, done.stderr
    assert sorted(hub.asked) == ["config.json", "generation_config.json", "model.safetensors"]
    sizes = sum((hub.folder / name).stat().st_size for name in hub.asked)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("HTTP Request: ")]
    assert lines[0] == f"model owner/tiny: 3 files, {sizes / 1e9:.1f} GB"
    assert "HF_HUB_OFFLINE=1" in lines[-1]
    load = (
        "from transformers import AutoModelForCausalLM as A; print(A.from_pretrained('owner/tiny').config.hidden_size)"
    )
    offline = python("-c", load, **{**cache, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert offline.stdout.strip() == "8", offline.stderr


LLAMA3 = [
    "config.json", "generation_config.json", "LICENSE", "tokenizer.json", "tokenizer_config.json",
    "model-00001-of-00004.safetensors", "model.safetensors.index.json", "original/consolidated.00.pth",
    "original/tokenizer.model",
]  # fmt: skip
SD15 = [
    "model_index.json", "v1-5-pruned.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors", "text_encoder/model.safetensors", "tokenizer/merges.txt",
    "safety_checker/model.safetensors", "vae/diffusion_pytorch_model.bin",
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "left_out"),
    [
        (LLAMA3, {"LICENSE", "original/consolidated.00.pth", "original/tokenizer.model"}),
        (
            SD15,
            {
                "v1-5-pruned.safetensors",
                "unet/diffusion_pytorch_model.bin",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "unet/diffusion_pytorch_model.non_ema.safetensors",
                "safety_checker/model.safetensors",
            },
        ),
    ],
)
def test_of_a_repository_only_what_is_loaded_is_fetched(files: list[str], left_out: set[str]) -> None:
    """`vae/…bin` is kept: there it is the only copy."""
    assert needed_files(files) == sorted(set(files) - left_out)
