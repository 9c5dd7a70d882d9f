"""The served graphs as a picture: whole, harmless, and the same every time."""

import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import pytest

from graft import runs
from graft.serving import routes
from graft.serving.layout import lay_out
from graft.serving.picture import COLOURS, picture

SVG = "{http://www.w3.org/2000/svg}"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
HOSTILE = "</text><script>alert(1)</script>\"'&\x00\ud800\x1b ]]> <image href='http://x/'/>"


def node(kind: str, deployment: str, **models: str) -> dict[str, Any]:
    return {
        "node": {},
        "class": f"graft.methods.some:{kind}",
        "reads": ["text"],
        "writes": ["scores", "prediction"],
        "deployment": deployment,
        "models": {field: {"source": source, "fingerprint": "ab" * 32} for field, source in models.items()},
    }


def run(model: str, *nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": model, "aliases": [], "inputs": ["text"], "kind": "text", "nodes": list(nodes), **more}


SHARED = [
    run("first", node("Embed", "embed-x", encoder="org/tiny"), node("Classify", "embed-x"), aliases=["best"]),
    run("second", node("Embed", "embed-x", encoder="org/tiny"), node("Reason", "reason-y", head="recipe:z")),
]


def boxes(drawn: ElementTree.Element) -> list[tuple[str, str]]:
    """Class of each box and what its tooltip says."""
    groups = drawn.findall(f"{SVG}g")
    return [(g.find(f"{SVG}rect").get("class"), g.findtext(f"{SVG}title")) for g in groups]  # type: ignore[union-attr]


def words(drawn: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in drawn.iter(f"{SVG}text")]


def test_every_node_and_deployment_appears_and_shared_ones_look_the_same() -> None:
    drawn = ElementTree.fromstring(picture(SHARED))
    classes = [name for name, _ in boxes(drawn)]
    assert classes == ["box d0", "box d0", "box d0", "box d1"]
    assert "org/tiny" in boxes(drawn)[0][1]
    assert "deployment reason-y" in boxes(drawn)[3][1]
    said = words(drawn)
    for word in ("embed", "classify", "reason", "first  also best", "second", "tiny", "scores, prediction"):
        assert word in said
    assert "1  embed-x, shared by 2 runs" in said
    assert "2  reason-y" in said
    assert said.count("1") == 3  # the number of its deployment, in each box


def test_what_a_real_layout_gives_is_drawn(storage: Path, run_ids: dict[str, str]) -> None:
    layout = lay_out([runs.open_run(run_ids[name], storage) for name in ("centroid", "tart", "vectors", "words")])
    listed = routes.graphs(layout.runs)
    drawn = ElementTree.fromstring(picture(listed))
    assert len(boxes(drawn)) == sum(len(r.nodes) for r in layout.runs)
    said = "\n".join(words(drawn))
    assert all(name in said for name in [*layout.deployments, *(r.run_id for r in layout.runs)])
    assert picture(listed) == picture(listed)


def test_hostile_names_are_text() -> None:
    hostile = node(HOSTILE, HOSTILE, **{"encoder": HOSTILE})
    text = picture([run(HOSTILE, hostile, inputs=[HOSTILE], kind=HOSTILE, aliases=[HOSTILE])])
    drawn = ElementTree.fromstring(text.encode())  # what a browser reads: bytes
    assert {element.tag.removeprefix(SVG) for element in drawn.iter()} <= {
        *("svg", "title", "style", "rect", "text", "path", "g")
    }
    assert not [name for element in drawn.iter() for name in element.attrib if "href" in name or name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert "alert(1)" in "".join(words(drawn))


@pytest.mark.parametrize("count", [0, 1, COLOURS + 3])
def test_any_number_of_deployments(count: int) -> None:
    listed = [run(f"run-{i}", node("Classify", f"deployment-{i}")) for i in range(count)]
    drawn = ElementTree.fromstring(picture(listed))
    assert len(boxes(drawn)) == count
    assert [word for word in words(drawn) if word.endswith(f"deployment-{count - 1}")] == [
        f"{count}  deployment-{count - 1}"
    ] * bool(count)


def test_nothing_reaches_over_the_edge() -> None:
    long = run("r" * 300, *(node("Embed", "d" * 200, encoder="m" * 200) for _ in range(9)), inputs=["字" * 60] * 3)
    drawn = ElementTree.fromstring(picture([long]))
    width, height = float(drawn.get("width", 0)), float(drawn.get("height", 0))
    for rect in drawn.iter(f"{SVG}rect"):
        if rect.get("class") != "page":
            assert float(rect.get("x", 0)) + float(rect.get("width", 0)) <= width
            assert float(rect.get("y", 0)) + float(rect.get("height", 0)) <= height
    for text in drawn.iter(f"{SVG}text"):
        assert float(text.get("x", 0)) + 7.2 * len(text.text or "") <= width


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no {CHROMIUM}; apt-get install chromium")
@pytest.mark.parametrize("scheme", [1, 0])
def test_a_browser_shows_it_in_light_and_in_dark(tmp_path: Path, scheme: int) -> None:
    (tmp_path / "graph.svg").write_text(picture(SHARED))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=700,320")
    look = (f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={tmp_path / 'graph.png'}")
    where = (f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "graph.svg").as_uri())
    subprocess.run([CHROMIUM, *options, *look, *where], check=True, capture_output=True, timeout=240)
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
    pixels = matplotlib.image.imread(tmp_path / "graph.png")[..., :3]
    assert (pixels[:8, :8].mean() > 0.9) == (scheme == 1)
    assert pixels[40:200, 40:400].std() > 0.02
