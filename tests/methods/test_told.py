"""What tuned and composed models write for many at once, told token by token."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from graft import models
from graft.methods.calm import Prompt
from graft.models.continuous import Continuous
from graft.models.decoding import Asked, Piece, check, writer_for
from graft.models.together import Together

sys.path.insert(0, str(Path(__file__).parent))

from trainings import dataset, experiment, fit

METHODS: dict[str, tuple[dict[str, Any], type]] = {
    "lora": ({"name": "peft", "adapter": {"peft_type": "LORA", "r": 4}}, Continuous),
    "prompt-tuning": ({"name": "peft", "adapter": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}}, Together),
    "prefix-tuning": ({"name": "peft", "adapter": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}}, Together),
    "calm": ({"name": "calm", "connections": [[2, 0], [1, 1]]}, Together),
    "calm-context": ({"name": "calm", "connections": [[2, 1]], "mode": "context"}, Together),
}
TEXTS = ["ice snow", "summer", "a long and hot day at the beach, and then", "frost winter ice", "snow"]


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning:peft")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_each_text_is_what_the_trained_model_writes_alone(
    request: pytest.FixtureRequest, name: str, method: str
) -> None:
    fields, way = METHODS[method]
    folder: Path = request.getfixturevalue(name)
    speaker = fit(experiment(folder, fields, max_steps=2), dataset(generation=True)).node.speaker
    writer = writer_for(speaker, 3)
    assert type(writer) is way
    prompts = [Prompt.beside(text, f"{text} and more") for text in TEXTS]
    asked = [Asked(prompt, 4 + 3 * place, stop=("e ",)) for place, prompt in enumerate(prompts)]
    told: dict[Asked, list[Piece]] = {one: [] for one in asked}
    coming = list(asked)

    def more(room: int) -> Sequence[Asked]:
        now, coming[:] = coming[:room], coming[room:]
        return now

    def emit(one: Asked, piece: Piece | Exception) -> None:
        assert isinstance(piece, Piece)
        told[one].append(piece)

    heard: list[str] = []
    beside = speaker.beside
    speaker.beside = lambda batch: heard.extend(one.heard for one in batch) or beside(batch)
    for one in asked:
        check(speaker, one)
    writer.write([], more, emit)
    if way is Together:
        assert sorted(heard) == sorted(one.heard for one in prompts)
    for one, pieces in told.items():
        (written,) = speaker.write([one.prompt], one.max_new_tokens, one.stop)
        assert ("".join(piece.text for piece in pieces), pieces[-1].finish == "stop") == (written.text, written.whole)
    assert max(map(len, told.values())) > 3
    assert models.load(str(folder)).generate(TEXTS, 16) != speaker.generate(prompts, 16)
