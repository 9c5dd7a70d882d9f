"""Two real checkpoints with tokenizers of their own: a story-teller's hears another's."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import graft
from graft import CalmForCausalLM
from graft.spec import Experiment

pytestmark = pytest.mark.slow

STORY = "Once upon a time there was a little girl named Lily. She loved to play"


@pytest.fixture(scope="module")
def spec(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """graft-nano learns what the stories' Llama would say next."""
    folder = tmp_path_factory.mktemp("real")
    asked = graft.models.load(str(stories))
    prompts = [f"Once upon a time there was a {word} who lived in a {place}." for word in WORDS for place in PLACES]
    told = [text.replace("\n", " ") for text in asked.generate(prompts, 16)]
    rows = [json.dumps({"text": prompt, "next": text}) for prompt, text in zip(prompts, told, strict=True)]
    (folder / "stories.jsonl").write_text("\n".join(rows))
    return Experiment.from_mapping(
        {
            "name": "stories",
            "models": {"anchor": {"source": "recipe:graft-nano"}, "augmenting": {"source": str(stories)}},
            "task": {
                "name": "file",
                "path": str(folder / "stories.jsonl"),
                "text": "text",
                "target": "next",
                "template": "{text} {target}",
                "test_examples": 12,
            },
            "regime": {"examples": 48},
            "method": {"name": "calm", "connections": [[5, 0], [5, 3]], "max_new_tokens": 12},
            "training": {"max_steps": 40, "learning_rate": 3e-3, "tokens_per_batch": 1024},
        }
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(spec: Experiment, storage: Path) -> Any:
    return spec.run(storage)


WORDS = ("cat", "dog", "boy", "girl", "bird", "bear", "king", "fish", "frog", "tree")
PLACES = ("big house", "red box", "small town", "forest", "garden", "castle")


@pytest.fixture(scope="module")
def composed(run: Any) -> Any:
    return CalmForCausalLM.from_pretrained(Path(run.folder, "graph", "0-composed", "calm"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return graft.models.load("recipe:graft-nano").tokenizer


def test_it_has_learned_from_the_other_model(spec: Experiment, run: Any, storage: Path) -> None:
    short = spec.model_copy(update={"training": spec.training.model_copy(update={"max_steps": 1})}).run(storage)
    assert perplexity(run.metrics) < 0.6 * perplexity(short.metrics)


def perplexity(metrics: Any) -> float:
    return next(row["value"] for row in metrics.to_pylist() if row["metric"] == "perplexity")


def test_it_writes_what_the_run_has_predicted(run: Any, composed: Any, tokenizer: Any) -> None:
    row = run.predictions.to_pylist()[0]
    ids = tokenizer(row["text"], return_tensors="pt")["input_ids"]
    written = composed.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True).split("\n")[0].strip() == row["prediction"]


def test_lm_eval_reads_it_as_any_transformers_model(composed: Any, tokenizer: Any) -> None:
    pytest.importorskip("lm_eval", reason="pip install 'graft-compose[eval]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the harness itself uses
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=composed, tokenizer=tokenizer, batch_size=2)

    def asked(kind: str, *arguments: Any) -> Any:
        requests = [Instance(kind, {}, one, place) for place, one in enumerate(arguments)]
        return getattr(model, kind)(requests, disable_tqdm=True)

    pairs = [(STORY, " outside"), (STORY, " with her toys"), ("The cat", " sat on the mat")]
    for (context, continuation), (found, _greedy) in zip(pairs, asked("loglikelihood", *pairs), strict=True):
        given, whole = (tokenizer(text)["input_ids"] for text in (context, context + continuation))
        with torch.no_grad():
            scores = composed(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        wanted = sum(float(scores[place - 1, whole[place]]) for place in range(len(given), len(whole)))
        assert found == pytest.approx(wanted, abs=1e-3)
    (rolling,) = asked("loglikelihood_rolling", (STORY,))
    assert math.isfinite(rolling)
    options = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    ids = tokenizer(STORY, return_tensors="pt")["input_ids"]
    written = composed.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    (found,) = asked("generate_until", (STORY, options))
    assert found == tokenizer.decode(written, skip_special_tokens=True).split("\n")[0]
