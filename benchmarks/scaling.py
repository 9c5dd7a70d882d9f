"""How the loss of a small language model falls with its size and its data, and what two laws make of it.

    python benchmarks/scaling.py [--data FILE] [--models scaling] [--out docs/scaling.md]

Five sizes and three amounts of data. Each model is trained from scratch, once through its data; tokenizer, held-out
documents, batches and learning rate are the same for all. The laws are fitted to held-out nats per token; what they are
worth shows in the error for each run under a fit to all the others. A killed command goes on where it stopped: every
model is a recipe.
"""

import argparse
import math
import os
from pathlib import Path

from graft import models
from graft.models import recipes
from graft.pretraining import corpus, pretrain
from graft.pretraining.recipe import Recipe, Text
from graft.results.scaling import FORMS, fit
from machine import machine

SHARED = Path(__file__).resolve().parents[2] / "shared"
LAYERS = {32: 2, 48: 2, 64: 3, 96: 4, 128: 5}
"""By width."""
TOKENS = (500_000, 1_500_000, 4_500_000)
BATCH, CONTEXT = 4096, 256
DATA = {"kind": "text", "join_lines": True, "vocabulary": 1024, "held_out": 0.01}


def main() -> None:
    """Train what is not trained yet, fit, and write the page."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, default=SHARED / "data" / "gutenberg_children.parquet")
    words.add_argument("--models", type=Path, default=Path("scaling"))
    words.add_argument("--out", type=Path, default=Path("docs/scaling.md"))
    given = words.parse_args()
    os.environ["GRAFT_MODELS"] = str(given.models.absolute())
    held_out = corpus.read(Text(**DATA, path=str(given.data))).held_out
    runs = [run(given.data, width, tokens, held_out) for width in LAYERS for tokens in TOKENS]
    given.out.write_text(page(runs), encoding="utf-8")


def run(data: Path, width: int, tokens: int, held_out: tuple[str, ...]) -> dict[str, float]:
    """A model's size without its embedding, its data, and what it makes of the held-out documents."""
    recipe = Recipe.from_mapping(
        {
            "name": f"scaling-{width}-{tokens}",
            "model": {
                "kind": "causal",
                "width": width,
                "layers": LAYERS[width],
                "heads": width // 16,
                "context": CONTEXT,
            },
            "data": {**DATA, "path": str(data), "tokens": tokens},
            "training": {"max_steps": tokens // BATCH, "tokens_per_batch": BATCH, "learning_rate": 4e-3},
        }
    )
    folder = pretrain(recipe)
    handle = models.load(str(folder))
    bits = recipes.read_manifest(folder)["evaluation"]["bits_per_byte"]
    count = sum(len(handle.tokenizer(text, verbose=False)["input_ids"]) - 1 for text in held_out)
    nats = bits * math.log(2) * sum(len(text.encode()) for text in held_out) / count
    size = handle.parameters - handle.config.vocab_size * width
    print(
        f"width {width}: {size:,} parameters, {tokens:,} tokens: {bits:.3f} bits per byte, {nats:.3f} nats", flush=True
    )
    return {"size": size, "data": tokens, "bits": bits, "nats": nats}


def page(runs: list[dict[str, float]]) -> str:
    """The table and the fits, as Markdown."""
    about = (__doc__ or "").strip().partition("\n\n")
    lines = [f"# {about[0].rstrip('.')}", about[2].partition("\n\n")[2], table(runs)]
    sizes, data, nats = ([one[name] for one in runs] for name in ("size", "data", "nats"))
    for form in FORMS:
        found = fit(form, sizes, data, nats)
        values = ", ".join(f"{name} = {value:.3g}" for name, value in found.parameters.items())
        lines.append(
            f"**{form}**: {values}. Error of the loss: {found.error:.2%} where it is fitted, {found.left_out:.2%} for "
            "a run that is left out."
        )
    lines.append(
        f"Made by `python benchmarks/scaling.py` on {machine()}. One seed: differences of a hundredth are chance."
    )
    return "\n\n".join(lines) + "\n"


def table(runs: list[dict[str, float]]) -> str:
    """Held-out nats per token, a row per size."""
    rows = [
        "| parameters | " + " | ".join(f"{tokens:,} tokens" for tokens in TOKENS) + " |",
        "|---:|" + "---:|" * len(TOKENS),
    ]
    for size in dict.fromkeys(one["size"] for one in runs):
        cells = " | ".join(f"{one['nats']:.3f}" for one in runs if one["size"] == size)
        rows.append(f"| {int(size):,} | {cells} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
