"""The page that lies beside a trained model: what it is, what it learned from, and how well."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from graft.pretraining.recipe import Recipe

POINTS = 12
"""Of the curve, shown."""


def text(recipe: Recipe, about: Mapping[str, Any], curve: pa.Table) -> str:
    """A model card in Markdown."""
    found = "\n".join(f"| {name} | {value:.4f} |" for name, value in about["evaluation"].items())
    return f"""---
library_name: transformers
tags: [graft]
---
# {recipe.name}

Trained from scratch by graft, from the recipe below. {about["parameters"]:,} parameters, {about["tokens"]:,} tokens in
{about["seconds"]:,} seconds; everything random comes from seed {recipe.training.seed}.

| on what was held out | |
|---|---|
{found}

Data (hash of its contents): `{about["data"]}`. Recipe: `{about["identity"]}`. The whole curve is in
`training.parquet`:

| step | loss (nats per target token) |
|---|---|
{_curve(curve)}

```yaml
{recipe.to_yaml().rstrip()}
```
"""


def _curve(curve: pa.Table) -> str:
    points = [point for point in curve.select(["step", "loss"]).to_pylist() if point["loss"] is not None]
    shown = sorted({round(place * (len(points) - 1) / (POINTS - 1)) for place in range(POINTS)}) if points else []
    return "\n".join(f"| {points[place]['step']} | {points[place]['loss']:.3f} |" for place in shown)
