"""Method fiat: what the teacher is shown and asked, once; what the student reads in every mode; wrong input."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from graft import models
from graft.costs import so_far
from graft.errors import DataError, GraftError, ModelError, SpecError
from graft.graph import Graph
from graft.methods.exemplars import exemplars
from graft.models.model import Written
from graft.node import Context
from graft.planning import plan
from graft.runner import predictions
from graft.spec import Experiment
from graft.storage import open_storage
from graft.store import ColumnStore
from graft.tasks.dataset import Dataset
from graft.tasks.file import FileTask
from graft.tasks.vectors import Digits

sys.path.insert(0, str(Path(__file__).parent))

from trainings import LABELS, REASON, TEST, TRAIN, experiment, fit, rows, scores

GROUPS = ("north", "south")


def grouped(table: pa.Table) -> pa.Table:
    return table.append_column("group", pa.array([GROUPS[place % 2] for place in range(table.num_rows)]))


DATA = Dataset(grouped(TRAIN), grouped(rows(6, "b")), ("text",), "text", LABELS, pool=grouped(rows(10, "pool")))
TASK = FileTask(name="file", path="x.csv", text="text", label="label", group="group")


def spec(folder: Path, **method: Any) -> Experiment:
    settings = method.pop("training", {})
    fields = {"exemplars": 2, "max_rationale_tokens": 6, "adapter": {"peft_type": "LORA", "r": 4}}
    return experiment(folder, {"name": "fiat", **fields, **method}, **settings)


def graph(folder: Path, data: Dataset = DATA, **method: Any) -> Graph:
    wanted = spec(folder, **method)
    handle = models.load(str(folder))
    assert wanted.method is not None
    return wanted.method.graph(TASK, data, {"teacher": handle, "student": handle})


class TestExemplars:
    def test_their_seed_alone_draws_them_from_the_pool(self, tiny_llama: Path) -> None:
        shown = graph(tiny_llama).nodes[0].exemplars
        assert len(shown) == 2
        assert {one["id"] for one in shown} <= set(DATA.pool["id"].to_pylist())
        assert shown == graph(tiny_llama, training={"regime_seed": 3, "seed": 5}).nodes[0].exemplars
        assert shown != graph(tiny_llama, exemplar_seed=1).nodes[0].exemplars
        more = graph(tiny_llama, exemplars=4).nodes[0].exemplars
        assert more[:2] == shown

    def test_the_teacher_is_told_and_shown_them(self, tiny_llama: Path) -> None:
        explain = graph(tiny_llama, exemplars=1, reasoning_instruction="Say why.").nodes[0]
        (one,) = explain.exemplars
        assert explain._prompts(explain._template(), TEST.slice(0, 1)) == [
            f"Say why.\n\nInput: {one['text']}\nExplanation: {one['rationale']} The answer is {one['target']}.\n\n"
            f"Input: {TEST['text'][0].as_py()}\nExplanation:"
        ]

    def test_every_group_may_have_its_own(self, tiny_llama: Path) -> None:
        made = graph(tiny_llama, exemplars=1, exemplars_per_group=True)
        explain = made.nodes[0]
        assert sorted(one["group"] for one in explain.exemplars) == list(GROUPS)
        assert made.inputs == ("text", "group")
        for row, prompt in zip(DATA.test.to_pylist(), explain._prompts(explain._template(), DATA.test), strict=True):
            own, other = (
                [one for one in explain.exemplars if (one["group"] == row["group"]) is same] for same in (True, False)
            )
            assert f"{own[0]['text']}\nExplanation" in prompt
            assert prompt.count("Explanation:") == 2
            assert own != other

    def test_a_file_of_them(self, tiny_llama: Path, tmp_path: Path) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text(json.dumps({"text": "lava", "label": "warm", "rationale": "It glows.\n\nIt burns."}) + "\n")
        (one,) = graph(tiny_llama, exemplars=str(path)).nodes[0].exemplars
        assert (one["text"], one["target"], one["rationale"]) == ("lava", "warm", "It glows.\nIt burns.")

    @pytest.mark.parametrize(
        ("row", "named"),
        [
            ({"text": "lava", "label": "warm"}, "rationale"),
            ({"text": "lava", "label": "warm", "rationale": ""}, "nothing in 'rationale'"),
            ({"text": TEST["text"][0].as_py(), "label": "warm", "rationale": "x"}, "row 1 is a row of the test set"),
            (
                {"text": TRAIN["text"][0].as_py(), "label": "warm", "rationale": "x"},
                "row 1 is a row of the training set",
            ),
        ],
    )
    def test_wrong_files(self, tiny_llama: Path, tmp_path: Path, row: dict[str, str], named: str) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match=named):
            graph(tiny_llama, exemplars=str(path))

    def test_an_exemplar_asks_in_no_language_what_the_task_asks(self, tmp_path: Path) -> None:
        rows = [
            {"id": id, "lang": lang, "text": f"{lang} {id}", "label": ("cold", "warm")[id % 2]}
            for id in range(30)
            for lang in ("de", "en")
        ]
        path, mine = tmp_path / "rows.jsonl", tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        task = FileTask(name="file", path=str(path), text="text", label="label", group="lang", item="id")
        data = task.read()

        def shown(**row: str) -> list[str]:
            told = {"text": f"asked anew in {row['lang']}", "label": "warm", "rationale": "so"}
            own = {**told, "id": "900", "lang": "en"}
            mine.write_text("".join(json.dumps(one) + "\n" for one in (own, {**told, **row})))
            return [one["id"] for one in exemplars(str(mine), False, 0, task, data)]

        assert shown(id="900", lang="sw") == ["en/900", "sw/900"]
        for name, table in (("test", data.test), ("training", data.train)):
            item = table["id"][0].as_py().partition("/")[2]
            with pytest.raises(DataError, match=f"row 2 is about item '{item}', as is a row of the {name} set"):
                shown(id=item, lang="sw")
        with pytest.raises(DataError, match="'id', the first is row 2"):
            shown(lang="sw")

    def test_an_item_of_another_task(self, tmp_path: Path) -> None:
        data = dataclasses.replace(DATA, items=dict.fromkeys(DATA.test["id"].to_pylist(), "seven"))
        task, path = Digits(name="digits"), tmp_path / "mine.csv"
        for item in ("six", "seven"):
            path.write_text(f"text,target,rationale,item\nlava,warm,it glows,{item}\n")
            if item == "six":
                assert len(exemplars(str(path), False, 0, task, data)) == 1
        with pytest.raises(DataError, match="about item 'seven', as is a row of the test set"):
            exemplars(str(path), False, 0, task, data)

    def test_wrong_wishes(self, tiny_llama: Path) -> None:
        bare = dataclasses.replace(DATA, pool=None)
        with pytest.raises(SpecError, match=r"set method\.exemplars to 0"):
            graph(tiny_llama, bare)
        assert graph(tiny_llama, bare, exemplars=0).nodes[0].exemplars == ()
        with pytest.raises(SpecError, match="got 99; the pool has 10 rows"):
            graph(tiny_llama, exemplars=99)
        alone = dataclasses.replace(DATA, train=TRAIN, test=TEST, pool=rows(8, "pool"))
        with pytest.raises(SpecError, match="no groups"):
            graph(tiny_llama, alone, exemplars_per_group=True)
        south = DATA.pool.filter(pa.array([group == "south" for group in DATA.pool["group"].to_pylist()]))
        with pytest.raises(DataError, match="1 groups have no exemplar, the first is 'north'"):
            graph(tiny_llama, dataclasses.replace(DATA, pool=south), exemplars=1, exemplars_per_group=True)
        with pytest.raises(SpecError, match=r"task\.rationale"):
            graph(tiny_llama, dataclasses.replace(DATA, test=grouped(TEST)), rationale="oracle")
        with pytest.raises(SpecError, match="give how many"):
            spec(tiny_llama, exemplars=-1)

    def test_a_missing_file_is_noticed_before_rows_are_read(self, tiny_llama: Path, tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("no row is read from here")
        values = spec(tiny_llama, exemplars="absent.jsonl").to_mapping()
        values["task"] = {**TASK.model_dump(), "path": str(tmp_path / "rows.csv")}
        with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):
            plan(Experiment.from_mapping(values))
        values["method"]["rationale"] = "none"  # shows no exemplars
        with pytest.raises(DataError, match=r"rows\.csv: "):
            plan(Experiment.from_mapping(values))

    def test_other_tasks_name_their_columns_plainly(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.csv"
        path.write_text("text,target,rationale\nlava,warm,it glows\n")
        task = Experiment.from_mapping(
            {
                "name": "x",
                "task": {"name": "python-docs"},
                "method": {"name": "tart"},
                "models": {"encoder": {"source": "x"}},
            }
        ).task
        (one,) = exemplars(str(path), False, 0, task, DATA)
        assert one["rationale"] == "it glows"


class TestTeacher:
    def test_each_rationale_is_written_once(self, tiny_llama: Path, tmp_path: Path) -> None:
        store = ColumnStore(open_storage(tmp_path))
        handle = models.load(str(tiny_llama))
        for place, expected in enumerate([(24, 0), (0, 24)]):
            wanted = spec(tiny_llama, training={"seed": place, "max_steps": 1})
            made = wanted.method.graph(TASK, DATA, {"teacher": handle, "student": handle})
            before = so_far({}, store)
            first = Graph(made.nodes[:1], made.inputs)
            first.run(DATA.train.select(["id", "text"]), store)
            after = so_far({}, store)
            distinct = len(set(DATA.train["text"].to_pylist()))
            found = tuple(after[name] - before[name] for name in ("teacher_calls", "teacher_reads"))
            assert found == tuple(distinct if count else 0 for count in expected)

    def test_no_switch_has_it_written_again(self, tiny_llama: Path, tmp_path: Path) -> None:
        class Asked(FileTask):
            """Answers are read, and end where others do not: neither is anything to a rationale."""

            @property
            def stops(self) -> tuple[str, ...]:
                return ("\n\n\n",)

        class Trained(Exception):
            pass

        def train(*_: Any) -> Any:
            raise Trained

        task = Asked(name="file", path="x.csv", text="text", target="label", parser="yes_no")
        data = dataclasses.replace(DATA, labels=None)
        examples, asked = data.train.slice(0, 6), data.test.select(["id", "text"])
        handle, store = models.load(str(tiny_llama)), ColumnStore(open_storage(tmp_path))
        needed, written = set(examples["text"].to_pylist()) | set(asked["text"].to_pylist()), []
        for mode in ("teacher", "answer_only", "shuffled", "corrupted", "distilled", "self"):
            wanted = spec(tiny_llama, rationale=mode, reasoning_instruction="")
            made = wanted.method.graph(task, data, {"teacher": handle, "student": handle})
            with pytest.raises(Trained):
                made.fit(examples, Context(wanted, None, store, train=train))
            if begun := made.frozen():
                Graph(begun, made.inputs).run(asked, store)
            if mode == "shuffled":
                for table in (examples, asked):
                    needed |= set(begun[0].run(table.select(["text"]))["donor/text"].to_pylist())
            written.append(store.tallies["teacher_calls"])
        assert written[0] == written[1] == 12
        assert written[2:] == [len(needed)] * 4
        assert len(needed) > 12

    def test_its_weights_are_not_the_students(self, tiny_llama: Path) -> None:
        done = fit(spec(tiny_llama, training={"max_steps": 12}), DATA)
        assert done.unchanged
        assert done.before.nodes[0].fingerprint() == done.after.nodes[0].fingerprint()

    def test_what_the_limit_cuts_is_said(self, tiny_llama: Path) -> None:
        explain = graph(tiny_llama).nodes[0]
        found = explain.run(TEST.select(["text"]))
        long = dataclasses.replace(explain, max_new_tokens=60).run(TEST.select(["text"]))
        assert found["rationale_whole"].to_pylist().count(False) >= long["rationale_whole"].to_pylist().count(False)
        assert False in found["rationale_whole"].to_pylist()

    def test_a_prompt_that_does_not_fit_says_what_does(self, tiny_llama: Path) -> None:
        explain = graph(tiny_llama, exemplars=10, max_rationale_tokens=20).nodes[0]
        with pytest.raises(ModelError, match=r"with 10 exemplars .* tokens too long; .* with \d exemplars it fits"):
            explain.check(TEST)
        bare = graph(tiny_llama, exemplars=0, max_rationale_tokens=20).nodes[0]
        with pytest.raises(ModelError, match=r"with 0 exemplars .*; without any, the longest text that fits has \d+"):
            bare.check(pa.table({"text": ["ice " * 400]}))
        several = graph(tiny_llama, exemplars=3, exemplars_per_group=True, max_rationale_tokens=20).nodes[0]
        with pytest.raises(ModelError, match=r"without any, the longest text that fits has \d+ tokens"):
            several.check(pa.table({"text": ["ice " * 400], "group": ["north"]}))
        told = graph(tiny_llama, exemplars=0, max_rationale_tokens=240, reasoning_instruction="why " * 20).nodes[0]
        with pytest.raises(ModelError, match=r"even without any text: lower method\.max_rationale_tokens"):
            told.check(TEST)
        long = pa.table({"text": ["ice " * 400]})
        with pytest.raises(ModelError, match=r"longest text that fits has \d+ tokens: set task.max_tokens"):
            explain.check(long)

    def test_a_server_that_fails_leaves_no_wrong_row(self, tiny_llama: Path, tmp_path: Path) -> None:
        class Failing:
            """A server that stops answering after some rows."""

            remote, chat, tokenizer, fingerprint, dtype = True, None, None, "failing", ""

            def __init__(self) -> None:
                self.asked = 0
                self.source = models.load(str(tiny_llama)).source
                self.left = 8

            def write(self, prompts: Any, *_: Any) -> list[Written]:
                self.asked += len(prompts)
                if self.asked > self.left:
                    raise ModelError("the server is gone")
                return [Written(f"because {prompt[-30:]}", True) for prompt in prompts]

            def tokens_over(self, texts: Any, _limit: Any) -> Any:
                return np.zeros(len(texts), np.int32)

            def excess(self, prompts: Any, **_: Any) -> Any:
                return np.zeros(len(prompts), np.int32)

        model = Failing()
        explain = dataclasses.replace(graph(tiny_llama).nodes[0], model=model)
        table = pa.table({"id": [str(i) for i in range(20)], "text": [f"text {i}" for i in range(20)]})
        store = ColumnStore(open_storage(tmp_path))
        with pytest.raises(ModelError, match="gone"):
            Graph([explain], ("text",)).run(table, store)
        model.left = 100
        found = Graph([explain], ("text",)).run(table, store)["rationale"].to_pylist()
        assert found == [f"because {prompt[-30:]}" for prompt in explain._prompts(explain._template(), table)]
        assert model.asked == 16 + 12  # the first eight rows were kept


def shown(made: Graph, table: pa.Table = DATA.test) -> list[str | None]:
    """What the student reads of a rationale."""
    rows_of = made.nodes[:-1]
    answered = Graph(rows_of, made.inputs).run(table.select(["id", *made.inputs])) if rows_of else table
    return [made.nodes[-1]._shown(row) for row in answered.to_pylist()]


class TestWhatTheStudentReads:
    def test_the_teachers_words_before_what_the_answer_follows(self, tiny_llama: Path) -> None:
        made = graph(tiny_llama)
        written = made.nodes[0].run(DATA.test.select(["text"]))["rationale"].to_pylist()
        assert shown(made) == [text or None for text in written]
        table = TEST.append_column("rationale", pa.array(["it melts"] * TEST.num_rows))
        prompts = made.nodes[-1]._prompts(made.nodes[-1]._template(), table)
        assert prompts[0].endswith(f"\n\nInput: {TEST['text'][0].as_py()}\nExplanation: it melts\nLabel:")

    def test_nothing(self, tiny_llama: Path) -> None:
        made = graph(tiny_llama, rationale="none", instruction=False)
        assert len(made.nodes) == 1
        prompts = made.nodes[0]._prompts(made.nodes[0]._template(), DATA.test)
        assert prompts[0] == f"Input: {DATA.test['text'][0].as_py()}\nLabel:"

    def test_the_tasks_own(self, tiny_llama: Path) -> None:
        made = graph(tiny_llama, rationale="oracle")
        assert made.inputs == ("text", "rationale")
        assert shown(made) == DATA.test["rationale"].to_pylist()

    def test_the_answer_alone(self, tiny_llama: Path) -> None:
        student = graph(tiny_llama, rationale="answer_only").nodes[-1]
        assert student._shown({"rationale": "It is snow. The answer is cold."}) == "cold"
        assert student._shown({"rationale": "It is snow, and"}) is None

    def test_other_words(self, tiny_llama: Path) -> None:
        text = "one two three four five six seven eight nine ten " * 20
        found = {}
        for rate in (0.0, 0.3, 1.0):
            student = graph(tiny_llama, rationale="corrupted", corruption_rate=rate).nodes[-1]
            words = student._shown({"rationale": text}).split()
            found[rate] = np.mean([one != other for one, other in zip(words, text.split(), strict=True)])
            assert student._shown({"rationale": text}).split() == words
        assert found[0.0] == 0
        assert 0.2 < found[0.3] < 0.4
        assert found[1.0] == 1
        assert set(student._shown({"rationale": text}).split()) <= {
            word for one in REASON.values() for word in one.split()
        }

    @pytest.mark.parametrize("mode", ["teacher", "oracle", "answer_only", "corrupted"])
    def test_predictions_keep_what_was_read(self, tiny_llama: Path, mode: str) -> None:
        student = graph(tiny_llama, rationale=mode, corruption_rate=1.0).nodes[-1]
        student = dataclasses.replace(student, labels=LABELS)
        texts = ["It is snow. The answer is cold.", "", "It is snow, and"]
        asked = pa.table({"id": ["a", "b", "c"], "text": ["snow", "ice", "sun"], "rationale": texts})
        kept = predictions(Graph([student], student.reads).run(asked), ("text",))
        assert kept.column_names == ["id", "split", "text", "prediction", "scores", "rationale"]
        read = kept["rationale"].to_pylist()
        for one, prompt in zip(read, student._prompts(student._template(), asked), strict=True):
            assert f"\nExplanation: {one}\n" in prompt if one else "Explanation" not in prompt
        if mode == "corrupted":
            assert read[1] is None
            assert all(one != other for one, other in zip(read, texts, strict=True))
        else:
            assert read == (["cold", None, None] if mode == "answer_only" else [texts[0], None, texts[2]])

    def test_another_rows(self, tiny_llama: Path) -> None:
        made = graph(tiny_llama, rationale="shuffled")
        donate, explain = made.nodes[:2]
        texts = DATA.train["text"].to_pylist()
        donated = donate.run(DATA.train.select(["text"]))
        given = donated["donor/text"].to_pylist()
        assert set(given) <= set(texts)
        assert all(one != text for one, text in zip(given, texts, strict=True))
        assert len(set(given)) > 5
        direct = Graph([dataclasses.replace(explain, donated=False)], ("text",)).run(pa.table({"text": given}))
        assert made.nodes[1].writes[0] == "rationale"
        found = Graph(made.nodes[:2], made.inputs).run(DATA.train.select(["text"]))
        assert found["rationale"] == direct["rationale"]

    def test_another_conversations(self, tiny_llama: Path) -> None:
        talks = {"text": [[{"role": "user", "content": text}] for text in TRAIN["text"].to_pylist()]}
        train = pa.table({**talks, **{name: TRAIN[name] for name in ("id", "target", "rationale")}})
        data = Dataset(train, train, ("text",), "messages", LABELS, pool=train.slice(0, 4))
        donate = graph(tiny_llama, data, rationale="shuffled").nodes[0]
        given = donate.run(train.select(["text"]))["donor/text"].to_pylist()
        assert all(one in talks["text"] and one != own for one, own in zip(given, talks["text"], strict=True))

    def test_rows_that_all_say_the_same_have_no_other(self, tiny_llama: Path) -> None:
        place = DATA.train.column_names.index("text")
        same = DATA.train.set_column(place, "text", pa.array(["ice"] * DATA.train.num_rows))
        with pytest.raises(DataError, match=r"method\.rationale: shuffled .* all 24 training rows .* say the same"):
            graph(tiny_llama, dataclasses.replace(DATA, train=same), rationale="shuffled")

    def test_its_own(self, tiny_llama: Path, tiny_gpt2: Path) -> None:
        wanted = spec(tiny_llama, rationale="self")
        handles = {"teacher": models.load(str(tiny_gpt2)), "student": models.load(str(tiny_llama))}
        explain = wanted.method.graph(TASK, DATA, handles).nodes[0]
        assert explain.model is handles["student"]
        assert explain.tally == ""
        assert wanted.method.roles(TASK) == ("student",)

    def test_distilled_it_learns_them_and_answers_alone(self, tiny_llama: Path) -> None:
        made = graph(tiny_llama, rationale="distilled")
        (student,) = made.nodes
        (explain,) = student.asks()
        assert len(explain.exemplars) == 2
        done = fit(spec(tiny_llama, rationale="distilled", training={"max_steps": 2}), DATA)
        assert done.node.teacher is None
        assert done.node.exemplars == ()
        assert done.before.nodes[0].teacher is not None
        assert done.node.asks() == ()


class TestStudent:
    def test_merged_it_answers_as_it_was_trained(self, tiny_llama: Path, tmp_path: Path) -> None:
        done = fit(spec(tiny_llama, training={"max_steps": 12}), DATA)
        network = done.node.speaker.network
        assert not any("lora" in name for name, _ in network.named_parameters())
        table = done.after.nodes[0].run(DATA.test.select(["text"]))
        asked = DATA.test.select(["id", "text"]).append_column("rationale", table["rationale"])
        unmerged = super(type(done.node), done.node)._open()
        prompts = done.node._prompts(done.node._template(), asked)
        ids = [done.node.model.tokenizer(prompt)["input_ids"] for prompt in prompts]
        for row in ids:
            with torch.no_grad():
                one, other = (net(input_ids=torch.tensor([row])).logits for net in (network, unmerged))
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
        done.after.save(tmp_path)
        again = Graph.load(tmp_path, models.load)
        assert np.allclose(scores(again, DATA.test), scores(done.after, DATA.test), atol=1e-6)

    def test_biases_that_its_layers_have_no_place_for_stay_beside_them(self, tiny_llama: Path) -> None:
        adapter = {"peft_type": "LORA", "r": 4, "lora_bias": True}
        done = fit(spec(tiny_llama, rationale="none", adapter=adapter, training={"max_steps": 2}), DATA)
        assert np.abs(scores(done.after, DATA.test) - scores(done.graph_with(done.begun), DATA.test)).max() > 1e-4

    def test_it_uses_what_it_is_given(self, tiny_llama: Path) -> None:
        """The label is in the rationale and nowhere else."""

        def secret(count: int, prefix: str) -> pa.Table:
            reasons = [REASON[LABELS[(place * 7 + place // 3) % 2]] for place in range(count)]
            targets = [next(label for label in LABELS if REASON[label] == why) for why in reasons]
            texts = [f"row {prefix}{place}" for place in range(count)]
            return pa.table({"id": texts, "text": texts, "target": targets, "rationale": reasons})

        data = Dataset(secret(24, "a"), secret(20, "b"), ("text",), "text", LABELS, pool=secret(8, "p"))
        found = {}
        for mode in ("oracle", "none"):
            wanted = spec(tiny_llama, rationale=mode, adapter="full", training={"max_steps": 60})
            after = fit(wanted, data).after
            answered = after.run(data.test)["prediction"].to_pylist()
            found[mode] = np.mean(
                [one == other for one, other in zip(answered, data.test["target"].to_pylist(), strict=True)]
            )
        assert found["oracle"] > 0.9
        assert found["none"] < 0.75


def test_the_path_of_exemplars_is_no_part_of_a_runs_id(tmp_path: Path, tiny_llama: Path) -> None:
    from graft.planning import plan

    lines = [
        f"{text},{label},because {text}"
        for text, label in [(f"ice {i}", "cold") for i in range(20)] + [(f"sun {i}", "warm") for i in range(20)]
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label,rationale", *lines]))
    found = set()
    for name in ("a", "b"):
        place = tmp_path / name
        place.mkdir()
        (place / "shown.csv").write_text("text,label,rationale\nlava,warm,it glows\n")
        wanted = Experiment.from_mapping(
            {
                "name": "x",
                "models": {role: {"source": str(tiny_llama)} for role in ("teacher", "student")},
                "task": {
                    "name": "file",
                    "path": str(tmp_path / "rows.csv"),
                    "text": "text",
                    "label": "label",
                    "rationale": "rationale",
                },
                "regime": {"examples": 8},
                "method": {"name": "fiat", "exemplars": str(place / "shown.csv")},
            }
        )
        found.add(plan(wanted).run_id)
    assert len(found) == 1


def test_a_missing_role_is_named(tiny_llama: Path) -> None:
    with pytest.raises(GraftError, match=r"models\.teacher is missing"):
        Experiment.from_mapping(
            {
                "name": "x",
                "models": {"student": {"source": str(tiny_llama)}},
                "task": {"name": "python-docs"},
                "method": {"name": "fiat"},
            }
        )
