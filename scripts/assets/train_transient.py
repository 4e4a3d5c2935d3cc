"""Train the paper's attribute regressor from the Transient Attributes data (Laffont et al., 2014).

    python scripts/assets/train_transient.py --annotations annotations.tsv --images imageAlignedLD \\
        --training training.txt --test test.txt --output transient_resnet50

A line of `annotations.tsv` is an image's path and forty `score,confidence` fields, separated by tabs; a line of the
split files is an image's path or a folder of images. Mean squared error on the scores, of pictures as the scorer sees
them, flipped at random. Interrupted, the same command goes on from the last checkpoint. The output is `scorer.folder`.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sysdpo.errors import SettingError, one_line
from sysdpo.progress import bar
from sysdpo.tasks.progression.scorers.transient import ATTRIBUTES, new_resnet50, prepare


@dataclass(frozen=True)
class Annotation:
    path: str
    scores: tuple[float, ...]


def read_annotations(path: Path) -> list[Annotation]:
    """The rows of `annotations.tsv`; the first that is not a path and forty `score,confidence` fields is refused."""
    rows = []
    for number, line in enumerate(_lines(path), 1):
        name, *fields = line.split("\t")
        try:
            scores = tuple(float(field.split(",")[0]) for field in fields)
        except ValueError:
            scores = ()
        if len(scores) != len(ATTRIBUTES) or not all(0 <= s <= 1 for s in scores):
            raise SettingError(
                f"{path}, line {number}: needs a path and forty fields `score,confidence`, scores in [0, 1]."
            )
        rows.append(Annotation(name, scores))
    return rows


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({type(error).__name__}).") from error


def select(rows: Sequence[Annotation], split: Path) -> list[Annotation]:
    """The annotated images that a split file names, by path or by folder."""
    names = {line.strip().rstrip("/") for line in _lines(split)}
    chosen = [row for row in rows if row.path in names or any(str(p) in names for p in Path(row.path).parents)]
    if not chosen:
        raise SettingError(f"{split}: names none of the annotated images.")
    return chosen


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """(pixels [3, 256, 256] in [-1, 1], scores [40]) of each row; pictures are flipped where `flip` says so."""

    def __init__(self, rows: Sequence[Annotation], folder: Path) -> None:
        self.rows, self.folder = rows, folder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index]
        try:
            picture = np.asarray(Image.open(self.folder / row.path).convert("RGB"))
        except OSError as error:
            raise SettingError(f"{self.folder / row.path}: cannot be read as an image.") from error
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
        return prepare(pixels), torch.tensor(row.scores)


def batches(data: Pictures, size: int, seed: int, first: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless; the batch of a step is a function of the seed and the step, so that a resumed run sees the same."""
    step = 0
    while True:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed + step)).tolist()
        chunks = [order[i : i + size] for i in range(0, len(order), size)]
        wanted = chunks[max(0, first - step) :]
        step += len(chunks)
        if wanted:
            yield from DataLoader(data, batch_sampler=wanted, num_workers=workers)


def train(args: argparse.Namespace, data: Pictures, device: torch.device) -> Any:
    torch.manual_seed(args.seed)
    model: Any = new_resnet50(args.architecture)
    if args.initial:
        _load_body(model, args.initial)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * s / args.steps)))
    checkpoint, done = args.output / "checkpoint.pt", 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for part, state in ((model, "model"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(saved[state])
        done = saved["step"]
    stream = batches(data, args.batch_size, args.seed, done, args.workers)
    with bar("train", total=args.steps, initial=done) as progress:
        for step in range(done, args.steps):
            pixels, scores = next(stream)
            flip = torch.rand(len(pixels), generator=torch.Generator().manual_seed(args.seed * 1_000_003 + step)) < 0.5
            pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
            loss = F.mse_loss(model(pixels.to(device)).logits, scores.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.set_postfix_str(f"loss {float(loss.detach()):.4f}")
            progress.update()
            if (step + 1) % args.checkpoint_every == 0:
                parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
                saved = {name: part.state_dict() for name, part in parts.items()}
                torch.save({"step": step + 1, **saved}, f"{checkpoint}.partial")
                os.replace(f"{checkpoint}.partial", checkpoint)
    return model.eval()


def _load_body(model: Any, source: str) -> None:
    """Everything but the last layer from a ResNet-50 classifier, such as one trained on ImageNet."""
    from transformers import ResNetForImageClassification

    try:
        body: Any = ResNetForImageClassification.from_pretrained(source)
        model.resnet.load_state_dict(body.resnet.state_dict())
    except (OSError, RuntimeError) as error:
        raise SettingError(f"--initial {source}: {one_line(error)[:200]}") from error


@torch.no_grad()
def evaluate(model: Any, data: Pictures, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Mean squared error and correlation of each attribute on held-out images, levels held in [0, 1]."""
    loader = DataLoader(data, batch_size=batch_size)
    pairs = [(model(pixels.to(device)).logits.float().clamp(0, 1).cpu(), scores) for pixels, scores in loader]
    levels, scores = (torch.cat(part).double() for part in zip(*pairs, strict=True))
    errors = ((levels - scores) ** 2).mean(0)
    centred = [part - part.mean(0) for part in (levels, scores)]
    correlation = (centred[0] * centred[1]).sum(0) / (centred[0].norm(dim=0) * centred[1].norm(dim=0)).clamp(min=1e-12)
    table = zip(ATTRIBUTES, errors.tolist(), correlation.tolist(), strict=True)
    return {
        "images": len(data),
        "mean_squared_error": float(errors.mean()),
        "attributes": {n: {"mean_squared_error": round(e, 5), "correlation": round(c, 4)} for n, e, c in table},
    }


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="annotations.tsv")
    parser.add_argument("--images", type=Path, required=True, help="the folder that the annotations' paths start from")
    parser.add_argument("--training", type=Path, required=True, help="split file of the images to train on")
    parser.add_argument("--test", type=Path, required=True, help="split file of the images to measure on")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model, the metrics, the checkpoint")
    parser.add_argument("--initial", help="folder or hub id of a ResNet-50 to start from (microsoft/resnet-50)")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer updates (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of AdamW, cosine (default %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=1e-2, help="(default %(default)s)")
    parser.add_argument("--checkpoint-every", type=int, default=500, help="steps (default %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--architecture", type=json.loads, help="JSON: keys of ResNetConfig, for a smaller network")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        rows = read_annotations(args.annotations)
        training, test = (Pictures(select(rows, split), args.images) for split in (args.training, args.test))
        shared = {row.path for row in training.rows} & {row.path for row in test.rows}
        if shared:
            raise SettingError(f"{args.test}: {len(shared)} of its images are trained on, first {min(shared)}.")
        args.output.mkdir(parents=True, exist_ok=True)
        device = torch.device(args.device)
        model = train(args, training, device)
        metrics = evaluate(model, test, args.batch_size, device)
        model.save_pretrained(args.output)
        (args.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        (args.output / "checkpoint.pt").unlink(missing_ok=True)
        print(f"mean squared error {metrics['mean_squared_error']:.4f} on {metrics['images']} images: {args.output}")
    except SettingError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
