"""CalmForCausalLM: tokenizers, modes, several models, writing, saving, and what it refuses."""

import copy
import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import VOCABULARY, lively, network

from graft import CalmForCausalLM
from graft.errors import ModelError
from graft.models.blocks import blocks_of

PAIRS = [[2, 1], [4, 3]]
TEXTS = ["Once upon a time there was a cat", "naïve 东京 café 👍🏽 isn't", "the"]


def ids_of(seed: int = 0, rows: int = 2, tokens: int = 7) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.randint(3, VOCABULARY, (rows, tokens))


def logits(model: Any, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, **more).logits
    return found


@pytest.fixture(scope="module")
def same() -> Any:
    """An anchor and an augmenting model that read the same tokens."""
    return lively(CalmForCausalLM(network("llama"), network("gpt2", 1), PAIRS)).eval()


@pytest.fixture(scope="module", params=["mirror", "prompt"])
def crossed(request: pytest.FixtureRequest, tiny: Any, other_tokenizer: Any) -> Any:
    """With two tokenizers, in the mode of its name."""
    anchor = network("llama", vocabulary=len(tiny), max_position_embeddings=128)
    augmenting = network("gpt2", 1, vocabulary=len(other_tokenizer), n_positions=128)
    return lively(
        CalmForCausalLM(anchor, augmenting, PAIRS, request.param, tokenizer=tiny, augmenting_tokenizer=other_tokenizer)
    ).eval()


class TestTwoTokenizers:
    def test_what_follows_does_not_reach_what_comes_before(self, crossed: Any, tiny: Any) -> None:
        tokens = tiny(TEXTS[1])["input_ids"]
        more = {"prompt_tokens": torch.tensor([3])}
        whole = logits(crossed, torch.tensor([tokens]), **more)
        for place in range(3, len(tokens)):
            other = tiny("ing " * 30)["input_ids"][: len(tokens) - place]
            found = logits(crossed, torch.tensor([tokens[:place] + other]), **more)
            torch.testing.assert_close(found[:, :place], whole[:, :place], rtol=0, atol=1e-5)

    def test_padding_changes_nothing(self, crossed: Any, tiny: Any) -> None:
        tiny.padding_side = "left"
        batch = tiny(TEXTS, return_tensors="pt", padding=True)
        prompts = batch["attention_mask"].sum(1)
        together = logits(crossed, batch["input_ids"], attention_mask=batch["attention_mask"], prompt_tokens=prompts)
        for row, text in enumerate(TEXTS):
            alone = tiny(text, return_tensors="pt")["input_ids"]
            found = logits(crossed, alone, prompt_tokens=torch.tensor([alone.shape[1]]))
            torch.testing.assert_close(together[row, -alone.shape[1] :], found[0], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("beams", [1, 3])
    def test_written_with_caches_it_is_what_is_written_without(self, crossed: Any, tiny: Any, beams: int) -> None:
        tiny.padding_side = "left"
        batch = tiny(TEXTS, return_tensors="pt", padding=True)
        options = {**batch, "max_new_tokens": 12, "do_sample": False, "num_beams": beams}
        assert torch.equal(crossed.generate(**options), crossed.generate(**options, use_cache=False))

    def test_scored_it_is_as_probable_as_when_it_was_written(self, crossed: Any, tiny: Any) -> None:
        prompt = tiny(TEXTS[0], return_tensors="pt")["input_ids"]
        options = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        written = crossed.generate(prompt, **options)
        scored = logits(crossed, written.sequences, prompt_tokens=torch.tensor([prompt.shape[1]]), use_cache=False)
        stepwise = torch.stack(written.logits, 1)
        torch.testing.assert_close(scored[:, prompt.shape[1] - 1 : -1], stepwise, rtol=0, atol=1e-4)

    def test_the_augmenting_model_is_heard(self, crossed: Any, tiny: Any, other_tokenizer: Any) -> None:
        ids = tiny(TEXTS[0], return_tensors="pt")["input_ids"]
        given = {"prompt_tokens": torch.tensor([ids.shape[1]])}
        deaf = CalmForCausalLM(
            crossed.anchor,
            network("gpt2", 7, vocabulary=len(other_tokenizer), n_positions=128),
            PAIRS,
            crossed.settings.mode,
            tokenizer=tiny,
            augmenting_tokenizer=other_tokenizer,
        )
        deaf.bridges.load_state_dict(crossed.bridges.state_dict())
        assert (logits(deaf.eval(), ids, **given) - logits(crossed, ids, **given)).abs().max() > 0.05

    def test_a_window_is_read_again_and_not_counted_in_gaps(self, tiny: Any, other_tokenizer: Any) -> None:
        anchor = network("llama", vocabulary=len(tiny), max_position_embeddings=128)
        augmenting = network("mistral", 1, vocabulary=len(other_tokenizer), max_position_embeddings=128)
        model = CalmForCausalLM(anchor, augmenting, PAIRS, tokenizer=tiny, augmenting_tokenizer=other_tokenizer)
        assert not lively(model).eval().listening[0].resumes
        tiny.padding_side = "left"
        options = {**tiny(TEXTS, return_tensors="pt", padding=True), "max_new_tokens": 8, "do_sample": False}
        assert torch.equal(model.generate(**options), model.generate(**options, use_cache=False))

    def test_a_step_may_add_no_word_once_the_longest_row_is_gone(self, tiny: Any, other_tokenizer: Any) -> None:
        """As when beams were put in another order."""
        anchor = network("llama", vocabulary=len(tiny), max_position_embeddings=128)
        augmenting = network("mistral", 1, vocabulary=len(other_tokenizer), max_position_embeddings=128)
        pair = {"tokenizer": tiny, "augmenting_tokenizer": other_tokenizer}
        model = lively(CalmForCausalLM(anchor, augmenting, PAIRS, **pair)).eval()
        assert not model.listening[0].resumes
        tiny.padding_side = "left"
        batch = tiny(["the dog ran", *TEXTS[:1]], return_tensors="pt", padding=True)
        cache = model.new_cache()
        logits(model, batch["input_ids"], attention_mask=batch["attention_mask"], past_key_values=cache)
        cache.reorder_cache(torch.tensor([0, 0]))
        mask = batch["attention_mask"][[0, 0]]
        text = batch["input_ids"][0][mask[0].bool()]
        for more in tiny("ning fast", add_special_tokens=False)["input_ids"]:
            mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
            text = torch.cat([text, torch.tensor([more])])
            step = torch.tensor([[more], [more]])
            found = logits(model, step, attention_mask=mask, past_key_values=cache)[:, -1]
            wanted = logits(model, text[None], use_cache=False)[:, -1]
            torch.testing.assert_close(found, wanted.expand(2, -1), rtol=0, atol=1e-4)


class TestModes:
    @pytest.mark.parametrize("family", ["bert", "t5"])
    def test_an_encoder_reads_the_prompt(self, family: str, tiny: Any, other_tokenizer: Any) -> None:
        anchor = network("llama", vocabulary=len(tiny), max_position_embeddings=128)
        encoder = network(family, 1, vocabulary=len(other_tokenizer))
        pair = {"tokenizer": tiny, "augmenting_tokenizer": other_tokenizer}
        with pytest.raises(ModelError, match=r"both directions.*prompt or context"):
            CalmForCausalLM(anchor, encoder, PAIRS, **pair)
        model = lively(CalmForCausalLM(anchor, encoder, PAIRS, "prompt", **pair)).eval()
        tokens = tiny(TEXTS[0])["input_ids"]
        ids, prompt = torch.tensor([tokens]), torch.tensor([4])
        whole = logits(model, ids, prompt_tokens=prompt)
        # Before the prompt's end nothing of it is heard, since the encoder knows all of it at once.
        torch.testing.assert_close(whole[:, :3], logits(anchor, ids)[:, :3], rtol=0, atol=1e-5)
        assert (whole[:, 3:] - logits(anchor, ids)[:, 3:]).abs().max() > 0.05
        other = torch.tensor([tokens[:5] + tokens[:0:-1][: len(tokens) - 5]])
        torch.testing.assert_close(logits(model, other, prompt_tokens=prompt)[:, :5], whole[:, :5], rtol=0, atol=1e-5)
        with pytest.raises(ModelError, match="give prompt_tokens"):
            logits(model, ids)
        options = {"max_new_tokens": 6, "do_sample": False}
        assert torch.equal(model.generate(ids, **options), model.generate(ids, **options, use_cache=False))

    @pytest.mark.parametrize("family", ["gpt2", "bert"])
    def test_a_context_is_known_from_the_first_token(self, family: str, tiny: Any, other_tokenizer: Any) -> None:
        anchor = network("llama", vocabulary=len(tiny), max_position_embeddings=128)
        model = CalmForCausalLM(
            anchor,
            network(family, 1, vocabulary=len(other_tokenizer)),
            PAIRS,
            "context",
            tokenizer=tiny,
            augmenting_tokenizer=other_tokenizer,
        )
        ids = tiny("the cat", return_tensors="pt")["input_ids"]
        one, other = (logits(lively(model).eval(), ids, context=[text]) for text in ("a red ball", "rates fell"))
        assert (one - other)[:, 0].abs().max() > 0.02
        both = logits(model, ids.repeat(2, 1), context=["a red ball", "rates fell"])
        torch.testing.assert_close(both, torch.cat([one, other]), rtol=0, atol=1e-4)
        options = {"context": ["a red ball"], "max_new_tokens": 6, "do_sample": False, "num_beams": 2}
        assert torch.equal(model.generate(ids, **options), model.generate(ids, **options, use_cache=False))
        with pytest.raises(ModelError, match=r"got none texts for 1 rows"):
            logits(model, ids)

    def test_in_mode_prompt_what_is_written_is_not_heard(self) -> None:
        model = lively(CalmForCausalLM(network("llama"), network("gpt2", 1), PAIRS, "prompt")).eval()
        ids, prompt = ids_of(), torch.tensor([4, 4])
        heard = []
        hook = model.augmenting[0].base_model.register_forward_pre_hook(
            lambda _m, _a, kwargs: heard.append(kwargs["input_ids"]), with_kwargs=True
        )
        logits(model, ids, prompt_tokens=prompt)
        hook.remove()
        assert torch.equal(heard[0], ids[:, :4])


class TestSeveral:
    def test_their_order_does_not_matter(self) -> None:
        anchor, one, other = network("llama"), network("gpt2", 1), network("opt", 2)
        both = lively(CalmForCausalLM(anchor, [one, other], [[[4, 1]], [[2, 1], [4, 3]]])).eval()
        turned = CalmForCausalLM(anchor, [other, one], [[[2, 1], [4, 3]], [[4, 1]]]).eval()
        for mine, theirs in ((0, 1), (1, 2), (2, 0)):
            turned.bridges[mine].load_state_dict(both.bridges[theirs].state_dict())
        torch.testing.assert_close(logits(both, ids_of()), logits(turned, ids_of()), rtol=0, atol=1e-5)
        options = {"max_new_tokens": 6, "do_sample": False}
        written = both.generate(ids_of(), **options)
        assert torch.equal(written, both.generate(ids_of(), **options, use_cache=False))

    def test_what_each_adds_is_added(self) -> None:
        anchor, one, other = network("llama"), network("gpt2", 1), network("opt", 2)
        model = lively(CalmForCausalLM(anchor, [one, other], [[4, 4]])).eval()
        states: list[torch.Tensor] = []
        hook = anchor.model.norm.register_forward_pre_hook(lambda _m, args: states.append(args[0]))
        whole = logits(model, ids_of()) * 0 + 1
        parts = []
        for silent in (0, 1, None):
            twin = copy.deepcopy(model)
            for place in (0, 1) if silent is None else (silent,):
                torch.nn.init.zeros_(twin.bridges[place].output.weight)
            seen = twin.anchor.model.norm.register_forward_pre_hook(lambda _m, args: parts.append(args[0]))
            logits(twin, ids_of())
            seen.remove()
        hook.remove()
        assert whole.shape[0] == 2
        torch.testing.assert_close(states[0] - parts[-1], parts[-3] + parts[-2] - 2 * parts[-1], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("pairs", [[[1, 1]], [[2, 0]], [[2, 4], [4, 1]]])
    @pytest.mark.parametrize("part", ["", "model"], ids=["whole", "body"])
    def test_a_live_anchor_may_hear_itself(self, part: str, pairs: list[list[int]]) -> None:
        anchor = network("llama")
        model = lively(CalmForCausalLM(anchor, anchor.get_submodule(part), pairs)).eval()
        apart = lively(CalmForCausalLM(network("llama"), network("llama"), pairs)).eval()
        assert torch.equal(logits(model, ids_of()), logits(apart, ids_of()))
        assert (logits(model, ids_of()) - logits(anchor, ids_of())).abs().max() > 0.05
        options = {"max_new_tokens": 6, "do_sample": False}
        assert torch.equal(model.generate(ids_of(), **options), apart.generate(ids_of(), **options))
        places = {value.data_ptr() for value in anchor.parameters()}
        assert {value.data_ptr() for value in model.augmenting.parameters()} <= places
        assert {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad} == {"bridges"}


class TestWriting:
    def test_sampling_and_streaming(self, same: Any, tiny: Any) -> None:
        shown: list[torch.Tensor] = []

        class Streamer(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
            def put(self, value: torch.Tensor) -> None:
                shown.append(value.reshape(-1))

            def end(self) -> None:
                shown.append(torch.tensor([]))

        torch.manual_seed(3)
        one = same.generate(ids_of(rows=1), do_sample=True, max_new_tokens=9, streamer=Streamer())
        torch.manual_seed(3)
        assert torch.equal(one, same.generate(ids_of(rows=1), do_sample=True, max_new_tokens=9, use_cache=False))
        assert torch.equal(torch.cat(shown).long(), one[0])

    def test_a_pipeline(self, tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
        anchor = network("llama", vocabulary=len(tiny))
        model = lively(CalmForCausalLM(anchor, network("gpt2", 1, vocabulary=len(tiny)), PAIRS)).eval()
        write = transformers.pipeline("text-generation", model=model, tokenizer=tiny, device="cpu")
        (found,) = write("the cat", max_new_tokens=5, do_sample=False)
        ids = tiny("the cat", return_tensors="pt")["input_ids"]
        wanted = model.generate(ids, max_new_tokens=5, do_sample=False)[0]
        assert found["generated_text"] == tiny.decode(wanted, skip_special_tokens=True)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"assistant_model": "anchor"}, "assisted decoding"),
            ({"prompt_lookup_num_tokens": 3}, "assisted decoding"),
            ({"cache_implementation": "static"}, "cache static"),
            ({"cache_implementation": "quantized"}, "cache quantized"),
            ({"past_key_values": "cache"}, "cache DynamicCache"),
            ({"guidance_scale": 2.0}, "guidance_scale"),
            ({"generation_config": transformers.GenerationConfig(prompt_lookup_num_tokens=2)}, "assisted decoding"),
        ],
    )
    def test_what_would_not_hear_rightly_is_refused(self, same: Any, options: dict[str, Any], named: str) -> None:
        made = {"anchor": same.anchor, "cache": transformers.DynamicCache()}
        options = {name: made.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
        with pytest.raises(ModelError, match=named):
            same.generate(ids_of(), max_new_tokens=3, **options)

    def test_wrong_prompts_are_refused(self, same: Any) -> None:
        with pytest.raises(ModelError, match="prompt is empty"):
            same.generate(torch.zeros(1, 0, dtype=torch.long))
        with pytest.raises(ModelError, match="prompt is empty"):
            same.generate()
        with pytest.raises(ModelError, match="prompt is empty"):
            same(input_ids=torch.zeros(1, 0, dtype=torch.long))
        with pytest.raises(ModelError, match="not inputs_embeds"):
            same(inputs_embeds=torch.zeros(1, 2, 32))
        with pytest.raises(ModelError, match=r"65 tokens.*holds 64"):
            same.generate(ids_of(tokens=65), max_new_tokens=2)
        with pytest.raises(ModelError, match="anchor alone"):
            same(input_ids=ids_of(), past_key_values=transformers.DynamicCache())

    def test_a_text_that_outgrows_the_augmenting_model_is_refused(self) -> None:
        anchor, augmenting = network("llama"), network("gpt2", 1, n_positions=9)
        model = CalmForCausalLM(anchor, augmenting, PAIRS).eval()
        with pytest.raises(ModelError, match=r"10 tokens for augmenting model.*holds 9"):
            model.generate(ids_of(), max_new_tokens=8)


class TestHooks:
    def test_none_is_left_behind(self, same: Any) -> None:
        def hooks() -> int:
            return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in same.modules())

        assert not hooks()
        logits(same, ids_of())
        same.generate(ids_of(), max_new_tokens=3)
        broken = same.anchor_blocks[2].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits(same, ids_of())
        broken.remove()
        assert not hooks()

    def test_nothing_of_a_call_stays_in_memory(self, same: Any) -> None:
        def living() -> int:
            gc.collect()
            return sum(type(one) is torch.Tensor for one in gc.get_objects())

        logits(same, ids_of())
        same.generate(ids_of(), max_new_tokens=3)
        before = living()
        for _ in range(20):
            logits(same, ids_of())
            same.generate(ids_of(), max_new_tokens=3)
        assert living() <= before

    def test_no_graph_below_the_first_bridge(self, same: Any) -> None:
        needed: list[bool] = []
        blocks = blocks_of(same.anchor, "anchor")
        hooks = [
            block.register_forward_hook(
                lambda _m, _i, o: needed.append((o[0] if isinstance(o, tuple) else o).requires_grad)
            )
            for block in blocks
        ]
        heard = [
            block.register_forward_hook(lambda _m, _i, o: needed.append(o[0].requires_grad or "augmenting"))
            for block in blocks_of(same.augmenting[0].base_model, "augmenting")
        ]
        same.train()(input_ids=ids_of(), use_cache=False)
        same.eval()
        for hook in hooks + heard:
            hook.remove()
        # Four augmenting blocks without a graph; the anchor's first ends before the bridge behind it is met.
        assert needed[:4] == ["augmenting"] * 4
        assert needed[4:] == [False, True, True, True]

    def test_dropout_stays_off_and_parameters_have_one_name(self) -> None:
        anchor = network("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
        model = CalmForCausalLM(anchor, network("gpt2", 1, resid_pdrop=0.5), PAIRS).train()
        assert model.bridges.training
        assert torch.equal(logits(model, ids_of(), use_cache=False), logits(model, ids_of(), use_cache=False))
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        assert {name.split(".")[0] for name in names} == {"anchor", "augmenting", "bridges"}
        assert set(dict(model.named_parameters())) == set(model.state_dict()) - {
            "anchor.lm_head.weight",
            "augmenting.0.lm_head.weight",
        }

    def test_blocks_above_the_last_layer_that_is_read_are_not_computed(self) -> None:
        model = CalmForCausalLM(network("llama"), network("gpt2", 1), [[2, 1]]).eval()
        for block in model.augmenting[0].transformer.h[2:]:
            block.register_forward_pre_hook(lambda *_: 1 / 0)
        model.augmenting[0].lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
        logits(model, ids_of())


class TestFolder:
    def test_saved_and_loaded_it_answers_the_same(self, same: Any, tmp_path: Path) -> None:
        same.save_pretrained(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bridges.safetensors", "calm_config.json"]
        bridges = sum(value.numel() for value in same.bridges.parameters())
        assert (tmp_path / "bridges.safetensors").stat().st_size < 4 * bridges + 4096
        again = CalmForCausalLM.from_pretrained(tmp_path, anchor=same.anchor, augmenting=same.augmenting[0])
        assert torch.equal(logits(again, ids_of()), logits(same, ids_of()))

    def test_by_source_it_finds_its_models(self, tiny_llama: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
        model = lively(CalmForCausalLM(str(tiny_llama), str(tiny_gpt2), [[2, 1]], rank=3, distance_bias=True)).eval()
        model.save_pretrained(tmp_path)
        again = CalmForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(logits(again, ids_of()), logits(model, ids_of()))
        named = json.loads((tmp_path / "calm_config.json").read_text())
        assert named["anchor"]["source"] == str(tiny_llama)
        assert again.settings.rank == 3

    def test_other_weights_and_tokenizers_are_refused(
        self, tiny_llama: Path, tiny_gpt2: Path, other_tokenizer: Any, tmp_path: Path
    ) -> None:
        CalmForCausalLM(str(tiny_llama), str(tiny_gpt2), [[2, 1]]).save_pretrained(tmp_path)
        anchor = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
        with torch.no_grad():
            anchor.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
        with pytest.raises(ModelError, match="the anchor has other weights"):
            CalmForCausalLM.from_pretrained(tmp_path, anchor=anchor, tokenizer=tokenizer)
        augmenting = transformers.AutoModelForCausalLM.from_pretrained(tiny_gpt2)
        with pytest.raises(ModelError, match="augmenting model 0 has another tokenizer"):
            CalmForCausalLM.from_pretrained(tmp_path, augmenting=augmenting, augmenting_tokenizer=other_tokenizer)

    def test_damage_is_one_line(self, same: Any, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"calm_config.json is not here"):
            CalmForCausalLM.from_pretrained(tmp_path)
        same.save_pretrained(tmp_path)
        models = {"anchor": same.anchor, "augmenting": same.augmenting[0]}
        content = json.loads((tmp_path / "calm_config.json").read_text())
        (tmp_path / "calm_config.json").write_text(json.dumps({**content, "heads": 2, "rank": 5}))
        with pytest.raises(ModelError, match="do not fit"):
            CalmForCausalLM.from_pretrained(tmp_path, **models)
        (tmp_path / "calm_config.json").write_text(json.dumps(content))
        (tmp_path / "bridges.safetensors").write_bytes(b"torn")
        with pytest.raises(ModelError, match="is damaged"):
            CalmForCausalLM.from_pretrained(tmp_path, **models)
        (tmp_path / "bridges.safetensors").unlink()
        with pytest.raises(ModelError, match=r"bridges\.safetensors is not here"):
            CalmForCausalLM.from_pretrained(tmp_path, **models)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"connections": [[5, 1]]}, r"layer 5 of the augmenting model; it has 4 blocks"),
            ({"connections": [[1, -1]]}, r"layer -1 of the anchor model"),
            ({"connections": []}, "got none"),
            ({"connections": [[1, 1], [1, 1]]}, "twice"),
            ({"connections": [[1, 1, 1]]}, r"give paper, or pairs"),
            ({"connections": "papers"}, r"give paper, or pairs"),
            ({"connections": [[[1, 1]], [[1, 1]]]}, "2 lists of pairs for 1 augmenting"),
            ({"heads": 5}, "does not divide the anchor's width 32"),
            ({"augmenting_tokenizer": "tiny"}, "tokenizer: none for what"),
            ({"augmenting_tokenizer": ["tiny", "tiny"]}, "got 2 for 1"),
        ],
    )
    def test_wrong_settings(self, changes: dict[str, Any], named: str) -> None:
        with pytest.raises(ModelError, match=named):
            CalmForCausalLM(network("llama"), network("gpt2", 1), **changes)

    def test_wrong_models(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="at least one"):
            CalmForCausalLM(network("llama"), [])
        with pytest.raises(ModelError, match=r"60 tokens.*knows 70.*give tokenizer="):
            CalmForCausalLM(network("llama"), network("gpt2", 1, vocabulary=70))
        with pytest.raises(ModelError, match="no such model"):
            CalmForCausalLM(str(tmp_path / "absent"), network("gpt2", 1))
        backwards = transformers.BertLMHeadModel(network("bert").config)
        with pytest.raises(ModelError, match=r"BertLMHeadModel cannot be an anchor"):
            CalmForCausalLM(backwards, network("gpt2", 1))
        with pytest.raises(ModelError, match="writes no text"):
            CalmForCausalLM(network("bert"), network("gpt2", 1))

    def test_the_papers_connections(self) -> None:
        from graft.models.calm.connections import paper

        assert paper(12, 24) == [(4, 8), (8, 16), (12, 24)]
        assert paper(4, 24) == [(4, 24)]
        assert paper(2, 6) == [(2, 6)]
        assert paper(32, 4) == [(8, 1), (16, 2), (24, 3), (32, 4)]
