"""The served graphs as one SVG: a row per run, a box per node, and a colour per deployment.

    run A   text ─► [ embed ]─►[ classify ]─► prediction        the same colour and the same number: the same process,
    run B   text ─► [ embed ]─►[ retrieve ]─►[ complete ]─► …    whichever run it answers for

It holds no script and refers to nothing outside itself; colours follow the reader's light or dark theme. The same
graphs always give the same bytes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

MARGIN, TITLE, BOX, GAP, LEGEND = 24, 30, 56, 34, 22
"""Pixels: around everything; a run's heading; a box's height; between boxes; a line of the legend."""
LETTER = 7.2
"""assumption: a letter of 12 px monospace is no wider."""
LONGEST = 28
"""Characters of a name before its middle is cut; the tooltip has it whole."""
COLOURS = 8
"""Then they come again; the number in the box still tells deployments apart."""

_STYLE = """
svg {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1c2430; --soft: #5a6675; --line: #8a95a3; --run: #f4f6f9; --strength: 22%;
}
@media (prefers-color-scheme: dark) {
  svg { --page: #12161c; --ink: #e8edf3; --soft: #a3afbd; --line: #6d7988; --run: #1b212a; --strength: 34%; }
}
text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: var(--ink); }
.soft { fill: var(--soft); }
.run { fill: var(--run); }
.page { fill: var(--page); }
.name { font-weight: 600; }
.box { stroke-width: 1.5; fill-opacity: var(--strength); }
.arrow { stroke: var(--line); stroke-width: 1.5; fill: none; }
.tip { fill: var(--line); }
"""

_HUES = ("#2f6fde", "#d9730d", "#1a936f", "#a23bb5", "#c43d4b", "#0f8ba0", "#8a7300", "#6a5acd")


def picture(runs: Sequence[Mapping[str, Any]]) -> str:
    """Draw the graphs.

    Args:
        runs: as `graft.serving.routes.graphs` lists them.
    """
    deployments = list(dict.fromkeys(node["deployment"] for run in runs for node in run["nodes"]))
    numbers = {name: place for place, name in enumerate(deployments)}
    rows = [_Row(run, numbers) for run in runs]
    users = {name: sum(any(n["deployment"] == name for n in run["nodes"]) for run in runs) for name in deployments}
    legend = [f"{name}{f', shared by {users[name]} runs' if users[name] > 1 else ''}" for name in deployments]
    width = max([row.width for row in rows] + [_width(line) + 3 * MARGIN for line in legend] + [320])
    height: float = MARGIN
    body: list[str] = []
    for row in rows:
        body += row.draw(height, width)
        height += row.height + MARGIN / 2
    height += MARGIN / 2
    for number, line in enumerate(legend):
        body += _legend(number, line, height)
        height += LEGEND
    style = _STYLE + "".join(f".d{i} {{ fill: {hue}; stroke: {hue}; }}\n" for i, hue in enumerate(_HUES))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height + MARGIN:g}" '
            f'viewBox="0 0 {width:g} {height + MARGIN:g}" role="img" aria-label="served graphs">',
            f"<title>{len(runs)} served {'run' if len(runs) == 1 else 'runs'}</title>",
            f"<style>{style}</style>",
            '<rect class="page" width="100%" height="100%"/>',
            *body,
            "</svg>\n",
        ]
    )


class _Row:
    """One run: its inputs, its nodes, its answer, from left to right."""

    def __init__(self, run: Mapping[str, Any], numbers: Mapping[str, int]) -> None:
        self.run, self.numbers = run, numbers
        self.inputs = _cut(", ".join(run["inputs"]))
        self.labels = [_labels(node) for node in run["nodes"]]
        self.answer = ", ".join(name for name in run["nodes"][-1]["writes"] if name in ("prediction", "scores"))
        self.answer = self.answer or "prediction"
        self.boxes = [max(map(_width, labels)) + 44 for labels in self.labels]
        called = "".join(f"  also {alias}" for alias in run["aliases"])
        self.heading = f"{run['model']}{called}"
        # A box inside the margin, with an arrow before each node and one to the answer.
        inside = _width(self.inputs) + sum(self.boxes) + GAP * (len(self.boxes) + 1) + _width(self.answer)
        self.width = max(inside, _width(self.heading) + _width(run["kind"]) + 2 * GAP) + 4 * MARGIN
        self.height = TITLE + BOX + MARGIN

    def draw(self, top: float, width: float) -> list[str]:
        """The row with its upper edge at `top`, in a picture of this width."""
        left, middle = 2 * MARGIN, top + TITLE + BOX / 2 + 4
        drawn = [
            _rect(MARGIN, top, width - 2 * MARGIN, self.height, "run"),
            _text(left, top + 22, self.heading, "name"),
            _text(width - 2 * MARGIN - _width(self.run["kind"]), top + 22, self.run["kind"], "soft"),
            _text(left, middle + 4, self.inputs, "soft", ", ".join(self.run["inputs"])),
        ]
        at = left + _width(self.inputs) + 4
        for node, labels, box in zip(self.run["nodes"], self.labels, self.boxes, strict=True):
            drawn += [_arrow(at, middle), *self._box(node, labels, at + GAP, middle, box)]
            at += GAP + box
        return [*drawn, _arrow(at, middle), _text(at + GAP + 4, middle + 4, self.answer, "soft")]

    def _box(
        self, node: Mapping[str, Any], labels: Sequence[str], left: float, middle: float, width: float
    ) -> list[str]:
        number = self.numbers[node["deployment"]]
        lines = [
            "<g>",
            f"<title>{escape(_clean(_tooltip(node)))}</title>",
            _rect(left, middle - BOX / 2, width, BOX, f"box d{number % COLOURS}"),
            _text(left + 12, middle - (4 if len(labels) > 1 else -4), labels[0], "name"),
        ]
        lines += [_text(left + 12, middle + 14, label, "soft") for label in labels[1:2]]
        return [
            *lines,
            _text(left + width - 10 - _width(str(number + 1)), middle - 12, str(number + 1), "soft"),
            "</g>",
        ]


def _labels(node: Mapping[str, Any]) -> list[str]:
    """What is written in a box: the class, and its models."""
    kind = str(node["class"]).rpartition(":")[2].rpartition(".")[2].lower()
    models = [str(model["source"]).rstrip("/").rpartition("/")[2] for model in node["models"].values()]
    return [_cut(kind), *([_cut(" + ".join(models))] if models else [])]


def _tooltip(node: Mapping[str, Any]) -> str:
    """Everything that is known of a node, line by line."""
    models = [
        f"{field}: {model['source']} ({str(model['fingerprint'])[:12]})" for field, model in node["models"].items()
    ]
    return "\n".join(
        [
            str(node["class"]),
            f"reads {', '.join(node['reads']) or 'nothing'}",
            f"writes {', '.join(node['writes'])}",
            *models,
            f"deployment {node['deployment']}",
        ]
    )


def _legend(number: int, line: str, top: float) -> list[str]:
    return [
        _rect(MARGIN, top, 14, 14, f"box d{number % COLOURS}"),
        _text(MARGIN + 24, top + 11, f"{number + 1}  {line}", "soft"),
    ]


def _rect(left: float, top: float, width: float, height: float, name: str) -> str:
    radius = min(8, height / 5)
    return f'<rect class="{name}" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"/>'


def _arrow(left: float, middle: float) -> str:
    right = left + GAP - 4
    return (
        f'<path class="arrow" d="M{left + 4:g} {middle:g}H{right - 6:g}"/>'
        f'<path class="tip" d="M{right:g} {middle:g}l-8 -4v8z"/>'
    )


def _text(left: float, base: float, text: str, name: str, tooltip: str | None = None) -> str:
    title = f"<title>{escape(_clean(tooltip))}</title>" if tooltip and tooltip != text else ""
    words = escape(_clean(text))
    return f'<text class="{name}" x="{left:g}" y="{base:g}" xml:space="preserve">{title}{words}</text>'


def _clean(text: str) -> str:
    """Without the characters that XML cannot hold, however they are written."""
    return re.sub(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]", "\N{REPLACEMENT CHARACTER}", text)


def _cut(text: str) -> str:
    """A name that fits into a box: the beginning and the end tell more than the middle."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 11]}…{text[-10:]}"


def _width(text: str) -> float:
    # Letters of East Asian scripts are twice as wide.
    return sum(LETTER * (1 + (letter > "\u2e7f")) for letter in text)
