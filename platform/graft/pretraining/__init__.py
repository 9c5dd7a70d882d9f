"""Models from scratch: what a recipe says is trained once, by the one loop, and kept as a folder of transformers'.

    recipe ─► documents or a little world ─► tokenizer ─► batches ─► loop ─► weights ─┬─► folder, manifest, card
                                                                                     └─► instructions ─► instruct/

A recipe is known by its contents: the same one is never trained twice, and of two processes that want it at once one
trains while the other waits. A killed training goes on from its last checkpoint.
"""

import contextlib
import dataclasses
import fcntl
import functools
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyarrow import parquet

from graft import hashing, models
from graft.execution import Progress, no_progress
from graft.methods.instruct import PLACES, Instructed, described
from graft.models import recipes
from graft.pretraining import card, corpus, evaluation, generated, language, packing
from graft.pretraining.recipe import (
    Hybrid,
    Instruction,
    KeyValue,
    LogisticTasks,
    Masked,
    MixedTasks,
    Recipe,
    Tart,
    Text,
    World,
)
from graft.pretraining.world import LittleWorld
from graft.seeds import generator
from graft.spec import ModelSource, Task
from graft.storage import clean_if_wrong, logging_to, open_storage, writing
from graft.tasks.key_value import KeyValueWorld
from graft.training import Job, Trained, carry_out
from graft.training.states import curve

log = logging.getLogger(__name__)

HELD_OUT_ROWS = 1000
"""Of a little world, evaluated on."""
VALIDATION_TOKENS = 65536
"""Of a corpus, looked at while it is learned."""
WAIT_SECONDS = 1.0
VERSION = 2
"""Raise it when the same recipe would give another model."""


@dataclasses.dataclass(frozen=True)
class Material:
    """What a recipe learns from."""

    tokenizer: Any
    batches: packing.Pieces | generated.GeneratedRows
    held_out: pa.Table | None
    """Encoded rows to validate on; none of them is evaluated on."""
    tested: Any
    """Documents or rows to evaluate on."""
    learned: bool = False
    """Whether those are learned too, because a world has no others."""


@dataclasses.dataclass(frozen=True)
class Making:
    """A model in the making: its recipe, and what that reads, read once."""

    recipe: Recipe
    documents: corpus.Corpus | None
    mixture: tuple[dict[str, Any], ...]
    """Tasks of the second stage, as `graft.methods.instruct` describes them."""
    progress: Progress = no_progress
    address: str | None = None

    @classmethod
    def of(cls, recipe: Recipe, progress: Progress = no_progress, address: str | None = None) -> Self:
        """Read what a recipe reads.

        Raises:
            DataError: it cannot be read.
            SpecError: a task of the second stage cannot be learned.
        """
        documents = corpus.read(recipe.data) if isinstance(recipe.data, Text) else None
        members = enumerate(recipe.instruct.mixture if recipe.instruct else ())
        mixture = tuple(described(f"instruct.mixture.{place}", member) for place, member in members)
        return cls(recipe, documents, mixture, progress, address)

    @functools.cached_property
    def identity(self) -> str:
        """Twelve hex characters: the recipe with the contents of what it learns from, and not where that lies."""
        outside: Any = {
            "name": True,
            "scaling": True,
            "data": {"path", "column"},
            "training": {"checkpoint_seconds"},
            "instruct": {"training": {"checkpoint_seconds"}, "mixture": {"__all__": {"task": set(PLACES)}}},
        }
        values = self.recipe.model_dump(mode="json", exclude=outside)
        read = self.documents.fingerprint if self.documents else None
        return hashing.digest(VERSION, values, read, [member["rows"] for member in self.mixture])[:12]

    @functools.cached_property
    def folder(self) -> Path:
        """Where the model lies, or will lie."""
        return recipes.folder_of(self.recipe.name, self.identity)

    @property
    def device(self) -> str:
        """`cpu` or `cuda:N`."""
        from graft.models.loading import resolve_device

        return resolve_device(self.recipe.scaling.device)

    def train(self, job: Job) -> Trained:
        """One training, with as many workers as the recipe says."""
        storage, together = self.folder.parent, None
        if self.recipe.scaling.workers > 1:
            from graft.training.workers import train_together

            together = functools.partial(
                train_together,
                storage=storage,
                address=self.address,
                scaling=self.recipe.scaling,
                name=self.recipe.name,
            )
        return carry_out(job, open_storage(storage), self.folder.name, self.progress, together)


def identity(recipe: Recipe) -> str:
    """What `Making.identity` is: a recipe's mark, with that of what it learns from.

    Raises:
        DataError: that cannot be read.
        SpecError: a task of the second stage cannot be learned.
    """
    return Making.of(recipe).identity


def pretrain(recipe: Recipe, progress: Progress = no_progress, address: str | None = None) -> Path:
    """The folder of a recipe's model, trained now unless it was trained before.

    Args:
        recipe: what to train.
        progress: watches the steps go by.
        address: of the Ray cluster on which several workers train; None starts one on this machine for them.

    Raises:
        DataError: there is too little to learn from.
        ModelError: what was trained before is damaged.
        TrainingError: training diverges.
    """
    making = Making.of(recipe, progress, address)
    folder = making.folder
    with writing(folder):
        if not recipes.is_whole(folder):
            with _alone(folder):
                if not recipes.is_whole(folder):  # another process may have trained it meanwhile
                    with clean_if_wrong(open_storage(folder.parent), folder.name):
                        folder.mkdir(parents=True, exist_ok=True)
                        with logging_to(folder / "run.log"):
                            _make(making)
        recipes.check(folder, f"recipe:{recipe.name}")
        # A finished model needs none; a process that was killed may not have come to this.
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        recipes.point_to(recipe.name, folder)
    return folder


def _make(making: Making) -> None:
    """From nothing, or the last checkpoint, to a finished folder."""
    recipe, folder, shown = making.recipe, making.folder, _without_places(making.recipe)
    log.info("%s begins: %s", recipe.name, shown.model_dump_json())
    about, curves = _head(making) if isinstance(recipe.model, Tart | Hybrid) else _language_model(making)
    parquet.write_table(pa.concat_tables(curves), folder / "training.parquet")
    about = {"name": recipe.name, "identity": folder.name, **about}
    (folder / "recipe.yaml").write_text(shown.to_yaml(), encoding="utf-8")
    (folder / "README.md").write_text(card.text(shown, about, curves[0]), encoding="utf-8")
    recipes.write_manifest(folder, about)
    log.info("%s is done: %s", recipe.name, about["evaluation"])


def _without_places(recipe: Recipe) -> Recipe:
    """A recipe as others may read it: files by their names, not by where they lie on this machine."""
    changes: dict[str, Any] = {}
    if isinstance(recipe.data, Text):
        changes["data"] = recipe.data.model_copy(update={"path": Path(recipe.data.path).name})
    if recipe.instruct is not None:
        mixture = tuple(
            member.model_copy(update={"task": member.task.model_copy(update=_names_of_files(member.task))})
            for member in recipe.instruct.mixture
        )
        changes["instruct"] = recipe.instruct.model_copy(update={"mixture": mixture})
    return recipe.model_copy(update=changes)


def _names_of_files(task: Task) -> dict[str, str]:
    return {name: Path(value).name for name in PLACES if (value := getattr(task, name, None))}


def _language_model(making: Making) -> tuple[dict[str, Any], list[pa.Table]]:
    """Train and write a language model; gives what there is to say of it, and the curves of its stages."""
    recipe, folder, material = making.recipe, making.folder, _material(making)
    assert not isinstance(recipe.model, Tart | Hybrid)
    settings = language.settings_of(recipe.model, material.tokenizer)
    node = language.LanguageNode(settings, recipe.training.seed, making.device)
    held_out = material.held_out if recipe.training.validate_every_steps else None
    trained = making.train(Job(node, recipe.training, material.batches, held_out, recipe.scaling.strategy))
    language.write(node, trained.weights, material.tokenizer, recipe.weights, folder)
    curves = [curve(trained.state, "pretrained")]
    found = _evaluated(making, node, material)
    if recipe.instruct is not None:
        instructed = _instruct(making, recipe.instruct)
        language.write(node, instructed.weights, material.tokenizer, recipe.weights, folder / recipes.INSTRUCT)
        curves.append(curve(instructed.state, "instruct"))
    data = making.documents.fingerprint if making.documents else material.batches.fingerprint()
    return _about(trained, data, found), curves


def _head(making: Making) -> tuple[dict[str, Any], list[pa.Table]]:
    """Train and write a reasoning module; gives the same."""
    from graft.pretraining import heads, logistic, mixed

    recipe, training = making.recipe, making.recipe.training
    model, data = recipe.model, recipe.data
    settings = model.model_dump()
    batches: logistic.TaskBatches | mixed.MixedBatches
    if isinstance(data, LogisticTasks):
        settings |= {"dimensions": data.dimensions, "points": data.points}
        node = heads.HeadNode(settings, training.seed, making.device, data.weight_scale)
        batches = logistic.TaskBatches(data, training.seed)
    else:
        assert isinstance(data, MixedTasks)
        node = heads.HeadNode(settings, training.seed, making.device)
        batches = mixed.MixedBatches(data, training.seed)
    held_out = batches.looked_at() if training.validate_every_steps else None
    trained = making.train(Job(node, training, batches, held_out, recipe.scaling.strategy))
    finished = node.trained(trained.weights)
    finished.save(making.folder)
    found = heads.evaluated(finished, batches)
    return _about(trained, batches.fingerprint(), found), [curve(trained.state, "pretrained")]


def _about(trained: Trained, data: str, found: dict[str, float]) -> dict[str, Any]:
    """What there is to say of a trained model."""
    return {
        "data": data,
        "parameters": sum(value.size for value in trained.weights.values()),
        "tokens": trained.state.tokens,
        "seconds": round(trained.state.seconds),
        "evaluation": found,
    }


def _material(making: Making) -> Material:
    """The tokenizer and the rows of a recipe.

    Raises:
        DataError: there is too little to learn from.
    """
    recipe, documents, training = making.recipe, making.documents, making.recipe.training
    if documents is None:
        return _generated(recipe)
    assert isinstance(recipe.data, Text)
    assert not isinstance(recipe.model, Tart | Hybrid)
    learned, looked_at = documents.learned, documents.learned[:0]
    if training.validate_every_steps:
        learned, looked_at = corpus.divided(learned, recipe.data.held_out)
    tokenizer = corpus.learn_tokenizer(learned, recipe.data.vocabulary, recipe.model.context)
    stages = packing.stages_of(recipe.blocks, recipe.model.context, training.max_steps)

    def pieces(tokens: corpus.Tokens, stages: tuple[packing.Stage, ...], tokens_per_batch: int) -> packing.Pieces:
        if isinstance(recipe.model, Masked):
            masked = (recipe.model.share, tokenizer.mask_token_id, len(tokenizer))
            return packing.Gaps(tokens, stages, tokens_per_batch, training.seed, *masked)
        return packing.Pieces(tokens, stages, tokens_per_batch, training.seed)

    def some(texts: tuple[str, ...]) -> pa.Table:
        """Pieces of texts that are not learned, as long as the last ones that are."""
        tokens = corpus.encode(tokenizer, texts)
        length = min(stages[-1].length, len(tokens) - 1)
        return pieces(tokens, (packing.Stage(0, length),), min(VALIDATION_TOKENS, len(tokens) - 1)).batch(0)

    batches = pieces(corpus.encode(tokenizer, learned)[: recipe.data.tokens], stages, training.tokens_per_batch)
    held_out = some(looked_at) if looked_at else None
    tested = some(documents.held_out) if isinstance(recipe.model, Masked) else documents.held_out
    return Material(tokenizer, batches, held_out, tested)


def _generated(recipe: Recipe) -> Material:
    """The words and rows of a little world."""
    data = recipe.data
    assert isinstance(data, KeyValue | World)
    assert not isinstance(recipe.model, Tart | Hybrid)
    world: generated.Generator = KeyValueWorld.of(data) if isinstance(data, KeyValue) else LittleWorld.of(data)
    tokenizer = generated.word_tokenizer(world.words, recipe.model.context)
    rows = generated.GeneratedRows(
        world,
        {str(part): share for part, share in data.parts.items()},
        tokenizer.get_vocab(),
        recipe.model.context,
        recipe.training.tokens_per_batch,
        recipe.training.seed,
    )
    kept = rows.held_out(2 * HELD_OUT_ROWS)
    learned = not kept
    if learned:  # what there is to know is all learned, so that alone can be asked
        random = generator(recipe.training.seed, "asked")
        kept = [rows.row(random) for _ in range(2 * HELD_OUT_ROWS)]
    tested, looked_at = kept[::2], kept[1::2] or kept
    return Material(tokenizer, rows, rows.table(looked_at), tuple(tested), learned)


def _evaluated(making: Making, node: language.LanguageNode, material: Material) -> dict[str, float]:
    """What the finished model makes of what it never saw."""
    recipe, folder = making.recipe, making.folder
    if isinstance(material.batches, generated.GeneratedRows):
        right = evaluation.exact_match(language.read(folder), material.batches, material.tested)
        return {f"{'learned.' if material.learned else ''}{part}": share for part, share in right.items()}
    if isinstance(recipe.model, Masked):
        return {"masked_nats": evaluation.masked_loss(language.read(folder), node, material.tested)}
    handle, about = models.load(_exactly(folder), recipe.scaling.device), f"evaluate {recipe.name}"
    found = evaluation.bits_per_byte(handle, material.tested, lambda done, total: making.progress(about, done, total))
    return {"bits_per_byte": found}


def _exactly(folder: Path) -> ModelSource:
    """A finished folder, read as it was trained, also on a GPU."""
    return ModelSource(source=str(folder), dtype="float32")


def _instruct(making: Making, stage: Instruction) -> Trained:
    """The second stage: the model learns to answer instructions."""
    instructed = Instructed(
        model=models.load(_exactly(making.folder), making.recipe.scaling.device),
        inputs=(),  # there is no task but those of the mixture
        kind="text",
        template="",
        max_tokens=None,
        instruction=None,
        length_normalize=False,
        max_new_tokens=1,
        generation=True,
        adapter={"full": True},
        seed=stage.training.seed,
        mixture=making.mixture,
        limit=stage.limit,
    )
    rows = [instructed.member(place, stage.limit, stage.training.seed) for place in range(len(making.mixture))]
    encoded = pa.concat_tables(rows).combine_chunks()
    return making.train(Job(instructed, stage.training, encoded, strategy=making.recipe.scaling.strategy))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process trains the same recipe; the operating system lets go when a process ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        waits = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waits:
                    log.warning("%s: another process trains it; this one waits, and reads it then", folder)
                waits = True
                time.sleep(WAIT_SECONDS)
        yield
