"""The page in a real browser, and what a large report costs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from graft.results.report import write_report

CHROMIUM = "/usr/bin/chromium"
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)

MEASURE = """
import json, sys, time
from graft.execution import peak_memory_bytes
from graft.results.report import write_report
begin = time.monotonic()
write_report([sys.argv[1]])
print(json.dumps({"seconds": time.monotonic() - begin, "peak_gib": peak_memory_bytes() / 2**30}))
"""


def opened(page: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The page in a browser that has never run before."""
    profile = folder / "profile"
    done = subprocess.run(
        [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", *words, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    shutil.rmtree(profile, ignore_errors=True)
    return done


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no {CHROMIUM}; apt-get install chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (1280, 0), (500, 1)])
def test_a_browser_shows_the_page_and_has_nothing_to_complain_of(whole_sweep, tmp_path, width, scheme) -> None:
    page = Path(write_report([str(whole_sweep)], str(tmp_path))[0])
    picture = tmp_path / "page.png"
    look = (f"--window-size={width},2400", f"--blink-settings=preferredColorScheme={scheme}")
    done = opened(page, tmp_path, *look, f"--screenshot={picture}")
    assert "CONSOLE" not in done.stderr
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert pixels.shape[1] == width
    assert (pixels[:4].mean() > 0.9) == (scheme == 1), "the page follows the reader's light or dark"
    bands = np.array_split(pixels, 6)
    assert min(band.std() for band in bands) > 0.01, "no part of the page is blank"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no {CHROMIUM}; apt-get install chromium")
def test_a_browser_reads_every_picture_and_table(whole_sweep, tmp_path) -> None:
    page = Path(write_report([str(whole_sweep)], str(tmp_path))[0])
    done = opened(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    written = page.read_text(encoding="utf-8")
    for tag in ("<svg", "<table", "<details", "<h3"):
        assert done.stdout.count(tag) == written.count(tag) > 0


@pytest.mark.slow
def test_a_report_over_100_000_predictions_takes_less_than_a_gibibyte(tmp_path, answers, sweep_folder) -> None:
    metrics, predictions = answers(sizes=(16, 256), seeds=5, items=1450)
    assert predictions.num_rows > 100_000
    sweep_folder(tmp_path / "s", metrics, predictions)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "s")], capture_output=True, text=True, check=True, timeout=600
    )
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{predictions.num_rows:,} predictions: {found['seconds']:.1f} s, {found['peak_gib']:.2f} GiB")
    assert found["peak_gib"] < 1
