"""The other side of `serve.py`: FastAPI and transformers, one request at a time, nothing of graft.

    python benchmarks/plain_server.py '{"port": 8001, "kind": "completions", "folder": "MODEL"}'

What one writes in an afternoon, written well: the model is loaded once, no gradients, a request's prompt goes through
the model once and its candidates continue from the cache. Requests wait for each other at a lock. The answers have
the shape of graft's. Kinds and what they need: `completions` (folder); `shots` (folder, prefix, suffix, labels,
candidates; whole): the most probable label after a prompt of demonstrations, where `whole` reads the prompt again for
each candidate, in one batch; `probe` (folder, head): a linear classifier on
the mean of a sentence encoder's states.
"""

import json
import sys
import threading
from typing import Any, Protocol

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

Body = dict[str, Any]


class Model(Protocol):
    """Answers a request."""

    path: str

    def answer(self, body: Body) -> Body:
        """The response to one request's body."""


class Completions:
    """Greedy text after a prompt."""

    path = "/v1/completions"

    def __init__(self, asked: Body) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(asked["folder"])
        self.network = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=torch.float32).eval()

    def answer(self, body: Body) -> Body:
        """One choice, and how many tokens it has."""
        given = self.tokenizer(body["prompt"], return_tensors="pt")
        prompt = given["input_ids"].shape[1]
        output = self.network.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=body["max_tokens"],
            do_sample=False,
        )
        new = output[0, prompt:]
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        return {"choices": [{"text": text}], "usage": {"prompt_tokens": prompt, "completion_tokens": len(new)}}


class Shots:
    """The label whose words are the most probable ones after demonstrations and the text."""

    path = "/v1/classify"

    def __init__(self, asked: Body) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(asked["folder"])
        self.network = AutoModelForCausalLM.from_pretrained(asked["folder"], dtype=torch.float32).eval()
        self.prefix, self.suffix = asked["prefix"], asked["suffix"]
        self.labels, self.whole = asked["labels"], asked.get("whole", False)
        self.candidates = [
            self.tokenizer(words, add_special_tokens=False)["input_ids"] for words in asked["candidates"]
        ]

    def answer(self, body: Body) -> Body:
        """A label for each text."""
        scores = self._scores_of_whole if self.whole else self._scores
        return labelled([scores(f"{self.prefix}{text}{self.suffix}") for text in body["input"]], self.labels)

    def _scores_of_whole(self, prompt: str) -> np.ndarray:
        """Log-probability of each label, all candidates together, each after the whole prompt."""
        ids = self.tokenizer(prompt)["input_ids"]
        width = max(map(len, self.candidates))
        rows = torch.tensor([ids + (candidate + [0] * width)[:width] for candidate in self.candidates])
        logits = self.network(rows, logits_to_keep=width + 1).logits.log_softmax(-1)
        found = [
            sum(float(logits[place, step, token]) for step, token in enumerate(candidate))
            for place, candidate in enumerate(self.candidates)
        ]
        return np.array(found)

    def _scores(self, prompt: str) -> np.ndarray:
        """Log-probability of each label: the prompt is read once, then all candidates from its cache together."""
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        before = self.network(ids, use_cache=True, logits_to_keep=1)
        first = before.logits[0, -1].log_softmax(-1)
        scores = torch.stack([first[candidate[0]] for candidate in self.candidates])
        width = max(map(len, self.candidates)) - 1
        if width:
            before.past_key_values.batch_repeat_interleave(len(self.candidates))
            rows = torch.tensor([(candidate + [0] * width)[:width] for candidate in self.candidates])
            logits = self.network(rows, past_key_values=before.past_key_values, use_cache=True).logits.log_softmax(-1)
            for place, candidate in enumerate(self.candidates):
                for step, token in enumerate(candidate[1:]):
                    scores[place] += logits[place, step, token]
        return scores.double().numpy()


class Probe:
    """A linear classifier on sentence embeddings."""

    path = "/v1/classify"

    def __init__(self, asked: Body) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(asked["folder"])
        self.network = AutoModel.from_pretrained(asked["folder"], dtype=torch.float32).eval()
        head = np.load(asked["head"])
        self.centre, self.scale, self.coef, self.intercept = (
            head[name] for name in ("centre", "scale", "coef", "intercept")
        )
        self.labels = asked["labels"]

    def answer(self, body: Body) -> Body:
        """A label for each text."""
        given = self.tokenizer(body["input"], padding=True, truncation=True, return_tensors="pt")
        states = self.network(**given).last_hidden_state
        mask = given["attention_mask"].unsqueeze(-1)
        vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).double().numpy()
        return labelled((vectors - self.centre) / self.scale @ self.coef + self.intercept, self.labels)


def labelled(scores: Any, labels: list[str]) -> Body:
    """Labels and probabilities [N, C] in the shape of an answer."""
    data = []
    for index, row in enumerate(scores):
        shares = np.exp(row - np.logaddexp.reduce(row))
        found = {label: float(share) for label, share in zip(labels, shares, strict=True)}
        data.append({"index": index, "label": labels[int(np.argmax(shares))], "scores": found})
    return {"data": data}


KINDS: dict[str, Any] = {"completions": Completions, "shots": Shots, "probe": Probe}


def build(model: Model) -> FastAPI:
    """The application: one request at a time."""
    app, lock = FastAPI(), threading.Lock()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post(model.path)
    def answer(body: Body) -> Body:
        with lock, torch.inference_mode():
            return model.answer(body)

    return app


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    app = build(KINDS[wanted["kind"]](wanted))
    uvicorn.run(app, host="127.0.0.1", port=wanted["port"], log_level="warning")
