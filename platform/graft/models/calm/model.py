"""Two or more frozen language models as one: what the augmenting ones know is added to the anchor's states.

    text ─► augmenting model (frozen) ─► states of some layers
                                             └─► bridges (trained) ─┐
    text ─► anchor (frozen) ─► block ─► block ─► (+) ─► block ─► (+) ─► next token

Bansal et al. 2024 (CALM, arXiv:2401.02412), section 3. Any transformers causal model is an anchor, of any size and with
any tokenizer: nothing of it is rewritten, its blocks are met by hooks that exist as long as a call.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from graft.errors import ModelError
from graft.models.blocks import blocks_of
from graft.models.calm import folder
from graft.models.calm.bridge import Bridge, heads_for
from graft.models.calm.cache import CalmCache
from graft.models.calm.connections import resolved
from graft.models.calm.listening import Listening, Mode, Reading, context_tokens, is_causal
from graft.models.calm.opening import Network, beside, configuration, interpreter, opened, tokenizer_pairs
from graft.models.calm.reading import same_tokenizer
from graft.models.calm.session import Session
from graft.models.calm.settings import Settings


class CalmForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A causal language model made of an anchor and augmenting models; only its bridges are trained.

    Before the bridges are trained it gives exactly what the anchor gives.

    Args:
        anchor: the model that writes: live, a handle, or a source; frozen in place where it is live.
        augmenting: the model that it hears, or several of them; the anchor itself, too.
        connections: `paper`, or pairs [augmenting layer, anchor layer] for every augmenting model, or a list of such
            lists, one for each; 0 is the embeddings, i what block i gives. Several bridges into one layer are added.
        mode: mirror (it hears what reads the same text), prompt (the prompt alone), context (a text of its own).
        tokenizer: the anchor's. None, for both: all models read the same tokens (a source brings its own).
        augmenting_tokenizer: the augmenting model's, or one for each.
        heads: of every bridge; None for as many as the anchor has, lowered to what divides its width.
        rank: inner width of each projection from the augmenting model's states; None for a full one.
        prenorm: normalise both models' states before they meet; the paper does not.
        distance_bias: each head learns how much it looks back; it begins by looking at the newest token.

    Raises:
        ModelError: the models cannot be composed like this.
    """

    base_model_prefix = "anchor"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self,
        anchor: Network,
        augmenting: Network | Sequence[Network],
        connections: Any = "paper",
        mode: Mode = "mirror",
        tokenizer: Any = None,
        augmenting_tokenizer: Any = None,
        *,
        heads: int | None = None,
        rank: int | None = None,
        prenorm: bool = True,
        distance_bias: bool = False,
    ) -> None:
        anchor, own = opened(anchor)
        several = list(augmenting) if isinstance(augmenting, list | tuple) else [augmenting]
        if not several:
            raise ModelError("augmenting: got none; give at least one model")
        networks = [opened(one) for one in several]
        super().__init__(configuration(anchor))
        self.generation_config = anchor.generation_config
        self.anchor = anchor.eval().requires_grad_(False)
        self.augmenting = nn.ModuleList(beside(anchor, network).eval().requires_grad_(False) for network, _ in networks)
        tokenizers = tokenizer_pairs(tokenizer or own, augmenting_tokenizer, [known for _, known in networks])
        # Not a second submodule: every parameter has one name.
        object.__setattr__(self, "anchor_blocks", blocks_of(anchor, "the anchor"))
        if anchor.get_output_embeddings() is None or not is_causal(anchor.base_model):
            raise ModelError(f"{type(anchor).__name__} cannot be an anchor: it does not write from left to right")
        self.context_tokens = context_tokens(anchor)
        depths = [folder.depth(network) for network in self.augmenting]
        self.connections = resolved(connections, depths, folder.depth(anchor))
        width = int(anchor.config.get_text_config().hidden_size)
        own_heads = getattr(anchor.config.get_text_config(), "num_attention_heads", None)  # Mamba has none
        count = heads_for(heads, int(own_heads or 8), width)
        self.settings = Settings(mode, count, rank, prenorm, distance_bias)
        self.listening = [
            Listening(
                network,
                folder.name_of(network),
                mode,
                interpreter(anchor, network, *pair),
                same_tokenizer(*pair),
                {connection.source for connection in self.connections if connection.model == number},
            )
            for number, (network, pair) in enumerate(zip(self.augmenting, tokenizers, strict=True))
        ]
        self.tokenizers = tokenizers
        blocks = self.anchor_blocks
        self.bridges = nn.ModuleList(
            Bridge(self.listening[one.model].width, width, count, rank, prenorm, distance_bias).to(
                next(blocks[max(0, one.target - 1)].parameters()).device
            )
            for one in self.connections
        )

    def train(self, mode: bool = True) -> Self:
        """Bridges train; the frozen models stay as they answer, without dropout."""
        super().train(mode)
        self.anchor.eval()
        self.augmenting.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The anchor's."""
        return self.anchor.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The anchor's language-model head."""
        return self.anchor.get_output_embeddings()

    def tie_weights(self, *_args: Any, **_options: Any) -> None:
        """Nothing: the frozen models are tied already."""

    def new_cache(self) -> CalmCache:
        """An empty cache for `past_key_values`."""
        configs = [one.body.config if one.resumes else None for one in self.listening]
        return CalmCache(self.anchor.config, configs, len(self.bridges))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: CalmCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        prompt_tokens: Tensor | None = None,
        context: Sequence[str] | None = None,
        readings: Sequence[Reading] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """What the anchor gives, having heard the augmenting models.

        Args:
            input_ids: [B, T] tokens of the anchor.
            attention_mask: [B, T] (those in the cache included), 1 on tokens; None for no padding.
            position_ids: [B, T]; None follows the mask.
            past_key_values: what was read before, as `new_cache` and this method give it.
            labels: [B, T], as the anchor takes them.
            use_cache: give a cache; None as the anchor's configuration says.
            prompt_tokens: [B] how many tokens of each row are its prompt. There its last word is over, as it is where
                `generate` begins; needed in mode prompt.
            context: a text per row, in mode context.
            readings: what each augmenting model reads, where it was worked out before (`read`).
            kwargs: what else the anchor takes.

        Raises:
            ModelError: the text is empty or longer than a context, or the cache is not a composed model's.
        """
        if use_cache is None:
            use_cache = bool(self.anchor.config.use_cache) and not self.training and not self._stateful
        if past_key_values is None and use_cache:
            past_key_values = self.new_cache()
        if past_key_values is not None and not isinstance(past_key_values, CalmCache):
            raise ModelError(
                f"past_key_values: got {type(past_key_values).__name__}, which remembers the anchor alone; begin with "
                "new_cache()"
            )
        given = {"past_key_values": past_key_values, "position_ids": position_ids, "labels": labels, **kwargs}
        given = {name: value for name, value in given.items() if value is not None}
        with Session(self, prompt_tokens, context, readings).open():
            return self.anchor(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, **given)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def generate(
        self, inputs: Tensor | None = None, *args: Any, context: Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        """What the anchor's own `generate` writes, hearing the augmenting models.

        Args:
            inputs: [B, T] tokens of the prompts, padded on the left.
            args: as `transformers.GenerationMixin.generate` takes them.
            context: a text per prompt, in mode context.
            kwargs: likewise.

        Raises:
            ModelError: the prompt is empty or too long, or what is asked for is not supported: assisted decoding,
                guidance by a negative prompt, static and other special caches.
        """
        inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
        if inputs is None or not inputs.shape[-1]:
            raise ModelError("the prompt is empty; give at least one token, such as the tokenizer's bos_token")
        config = args[0] if args else kwargs.get("generation_config")
        _refuse_unsupported(kwargs, config or self.generation_config)
        cached = kwargs.get("use_cache", getattr(config or self.generation_config, "use_cache", None))
        if cached is False or self._stateful:
            kwargs["use_cache"] = False
        else:
            kwargs["past_key_values"] = self.new_cache()
        with Session(self, "first", context).open():
            return self.anchor.generate(inputs, *args, **kwargs)

    @property
    def _stateful(self) -> bool:
        """Whether the anchor has states instead of a cache of keys and values."""
        return bool(getattr(self.anchor, "_is_stateful", False))

    def save_pretrained(self, save_directory: str | Path, **_options: Any) -> None:
        """Write `calm_config.json` (which models, by name, revision and contents) and `bridges.safetensors`.

        The frozen models are not copied.

        Args:
            save_directory: made where it is missing.
        """
        folder.write(self, Path(save_directory))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        anchor: Network = None,
        augmenting: Network | Sequence[Network] = None,
        tokenizer: Any = None,
        augmenting_tokenizer: Any = None,
    ) -> Self:
        """The model that `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: its folder.
            anchor: the anchor; None for the one that the folder names.
            augmenting: the augmenting model or models; None for those that the folder names.
            tokenizer: the anchor's, where it was not trained on the same tokens as the augmenting model and is live.
            augmenting_tokenizer: likewise.

        Raises:
            ModelError: the folder is damaged, or a model or tokenizer is not the one that they were trained with.
        """
        return folder.read(
            cls, Path(pretrained_model_name_or_path), anchor, augmenting, tokenizer, augmenting_tokenizer
        )


def _refuse_unsupported(kwargs: dict[str, Any], config: Any) -> None:
    """Raise where `generate` is asked for what would not hear the augmenting models rightly."""

    def asked(name: str) -> Any:
        return kwargs.get(name, getattr(config, name, None))

    special = asked("cache_implementation")
    if special not in (None, "dynamic") or "past_key_values" in kwargs:
        what = special or type(kwargs["past_key_values"]).__name__
        raise ModelError(
            f"cache {what}: a composed model has a cache of its own kind, no static, quantised or offloaded one; "
            "leave cache_implementation and past_key_values out"
        )
    if asked("assistant_model") is not None or asked("prompt_lookup_num_tokens") or asked("assistant_early_exit"):
        raise ModelError("assisted decoding takes tokens back, which a composed model does not; leave it out")
    if asked("guidance_scale") not in (None, 1, 1.0):
        raise ModelError("guidance_scale runs the anchor a second time, alone; leave it out")
    if asked("prefill_chunk_size"):
        raise ModelError("prefill_chunk_size: a composed model reads a prompt at once; leave it out")
