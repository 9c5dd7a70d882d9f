"""How well a small language model predicts text that it never saw, beside a strong simple baseline and another model.

    python benchmarks/pretraining.py [--model recipe:graft-nano] [--data ../shared/data/gutenberg_children.parquet]
        [--beside ../shared/models/stories260K] [--documents 100]

Bits per byte of the documents that the recipe holds out. The baseline is an interpolated Kneser-Ney 5-gram over the
same tokens, from the same documents that the model learned.
"""

import argparse
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from graft import models
from graft.models import recipes
from graft.pretraining import corpus
from graft.pretraining.evaluation import bits_per_byte
from graft.pretraining.recipe import Recipe, Text
from machine import machine

ORDER = 5
SHARED = Path(__file__).resolve().parents[2] / "shared"


def main() -> None:
    """Measure and print."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="recipe:graft-nano")
    words.add_argument("--data", type=Path, default=SHARED / "data" / "gutenberg_children.parquet")
    words.add_argument("--beside", type=Path, default=SHARED / "models" / "stories260K")
    words.add_argument("--documents", type=int, default=100, help="of the held-out ones, at most")
    given = words.parse_args()
    handle = models.load(given.model)
    folder = recipes.find(given.model.removeprefix("recipe:"), "pretrained")
    recipe = Recipe.from_yaml(folder / "recipe.yaml", f"data.path={given.data}")
    assert isinstance(recipe.data, Text)
    documents = corpus.read(recipe.data)
    if documents.fingerprint != recipes.read_manifest(folder)["data"]:
        raise SystemExit(f"{given.data}: other documents than {given.model} was trained on")
    held_out = documents.held_out[: given.documents]
    print(f"{len(held_out)} documents, {sum(len(text.encode()) for text in held_out):,} bytes, {machine()}")
    print(f"{'':<44}{'parameters':>12}{'bits per byte':>15}")
    row(given.model, handle.parameters, bits_per_byte(handle, held_out))
    learned = corpus.encode(handle.tokenizer, documents.learned)
    counts = KneserNey(learned, ORDER)
    row(
        f"{ORDER}-gram over the same tokens (Kneser-Ney)", counts.size, counts.bits_per_byte(handle.tokenizer, held_out)
    )
    if given.beside.is_dir():
        other = models.load(str(given.beside))
        row(given.beside.name, other.parameters, bits_per_byte(other, held_out))


def row(name: str, parameters: int, bits: float) -> None:
    """Print a line."""
    print(f"{name:<44}{parameters:>12,}{bits:>15.3f}")


class KneserNey:
    """Interpolated Kneser-Ney with one discount per order (Chen and Goodman 1999, section 4.1.6).

    Args:
        tokens: the text that is learned.
        order: longest n-gram.
    """

    def __init__(self, tokens: np.ndarray, order: int) -> None:
        self.order = order
        self.vocabulary = int(tokens.max()) + 1
        text = tokens.tolist()
        grams = [Counter(zip(*(text[at:] for at in range(n)), strict=False)) for n in range(1, order + 1)]
        self.size = sum(map(len, grams))
        # Below the highest order an n-gram counts as often as there are different tokens before it.
        counts = [Counter(gram[1:] for gram in grams[n]) for n in range(1, order)] + [grams[-1]]
        self.counts = counts
        self.totals: list[dict[tuple[int, ...], int]] = []
        self.kinds: list[dict[tuple[int, ...], int]] = []
        self.discounts = []
        for several in counts:
            totals: dict[tuple[int, ...], int] = defaultdict(int)
            kinds: dict[tuple[int, ...], int] = defaultdict(int)
            for gram, count in several.items():
                totals[gram[:-1]] += count
                kinds[gram[:-1]] += 1
            self.totals.append(totals)
            self.kinds.append(kinds)
            once, twice = (sum(count == n for count in several.values()) for n in (1, 2))
            self.discounts.append(once / (once + 2 * twice))

    def probability(self, before: tuple[int, ...], token: int) -> float:
        """Of a token after others."""
        found = 1 / self.vocabulary
        for n in range(min(self.order, len(before) + 1)):
            context = before[len(before) - n :]
            total = self.totals[n].get(context, 0)
            if total:
                count = self.counts[n].get((*context, token), 0)
                left = self.discounts[n] * self.kinds[n][context] / total
                found = max(count - self.discounts[n], 0) / total + left * found
        return found

    def bits_per_byte(self, tokenizer: object, texts: tuple[str, ...]) -> float:
        """Bits for a byte of texts, each read from its beginning."""
        bits, size = 0.0, 0
        for text in texts:
            ids = tokenizer(text)["input_ids"]  # type: ignore[operator]
            for at in range(1, len(ids)):
                bits -= math.log2(self.probability(tuple(ids[max(0, at - self.order + 1) : at]), ids[at]))
            size += len(text.encode())
        return bits / size


if __name__ == "__main__":
    main()
