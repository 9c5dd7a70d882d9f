"""A language model from scratch, as the one loop trains it.

Shapes: B rows, T positions.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graft import hashing
from graft.models.objective import NO_TARGET
from graft.pretraining.recipe import Causal, Masked
from graft.pretraining.scratch import Scratch

if TYPE_CHECKING:
    from torch import Tensor, nn

Lists = Sequence[Sequence[int]] | NDArray[np.int32]
"""Of several rows, each with a number per token."""


@dataclasses.dataclass(frozen=True)
class LanguageNode(Scratch):
    """A network of transformers, which learns from rows of `ids` and `labels`.

    Its settings are those of transformers' configuration, `model_type` among them.
    """

    def network(self) -> Any:
        """The network with its first weights: the same for the same seed.

        Normal with deviation 0.02, and 0.02 / sqrt(2 layers) where a block adds to the residual stream (Radford et al.
        2019, section 2.3): its sum then begins equally large whatever the depth.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

        kind = AutoModelForMaskedLM if self.settings["model_type"] == "bert" else AutoModelForCausalLM
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            network = kind.from_config(self.config())
            depth = network.config.num_hidden_layers
            with torch.no_grad():
                for name, weight in network.named_parameters():
                    if name.endswith(("o_proj.weight", "down_proj.weight")):
                        weight.normal_(0, network.config.initializer_range / (2 * depth) ** 0.5)
        return network

    def config(self) -> Any:
        """Transformers' configuration."""
        from transformers import AutoConfig

        settings = dict(self.settings)
        return AutoConfig.for_model(settings.pop("model_type"), **settings)

    def build(self) -> "nn.Module":
        """The network and its loss, all of it trained."""
        from graft.models.objective import NextTokenLoss

        return NextTokenLoss(self.network().train().requires_grad_(True)).to(self.device)

    def collate(self, encoded: pa.Table) -> dict[str, "Tensor"]:
        """Rows of one length as they are, others padded on the right."""
        import torch

        ids, labels = (_matrix(encoded[name], filler) for name, filler in (("ids", 0), ("labels", NO_TARGET)))
        lengths = np.asarray(encoded["length"], np.int64)
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        return {
            "ids_BT": torch.from_numpy(ids),
            "mask_BT": torch.from_numpy(mask.astype(np.int64)),
            "labels_BT": torch.from_numpy(labels),
            "terms_B": torch.zeros(len(lengths), dtype=torch.int64),
        }

    def describe(self) -> str:
        """The architecture."""
        width, depth = self.settings["hidden_size"], self.settings["num_hidden_layers"]
        return f"{self.settings['model_type']}({depth} layers, width {width})"

    def fingerprint(self) -> str:
        """Identity by content."""
        return hashing.digest("scratch", dict(self.settings), self.seed)


def table(ids: Lists, labels: Lists) -> pa.Table:
    """Rows as `graft.node.Trains.encode` gives them, from a row's tokens and what is to be said at each of them."""
    lists = pa.list_(pa.int32())
    targets = [[int(np.count_nonzero(np.asarray(row) != NO_TARGET))] for row in labels]
    return pa.table(
        {
            "ids": pa.array(list(ids), lists),
            "labels": pa.array(list(labels), lists),
            "length": pa.array([len(row) for row in ids], pa.int32()),
            "targets": pa.array(targets, lists),
        }
    )


def _matrix(column: pa.ChunkedArray, filler: int) -> np.ndarray:
    """Lists as int64 [B, T], padded on the right."""
    flat = column.combine_chunks()
    lengths = np.diff(np.asarray(flat.offsets))
    values = np.asarray(flat.flatten(), np.int64)
    if (lengths == lengths[0]).all():
        return values.reshape(len(lengths), -1)
    found = np.full((len(lengths), lengths.max()), filler, np.int64)
    found[np.arange(lengths.max()) < lengths[:, None]] = values
    return found


def settings_of(model: Causal | Masked, tokenizer: Any) -> dict[str, Any]:
    """What transformers' configuration is given."""
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "max_position_embeddings": model.context,
        "tie_word_embeddings": isinstance(model, Masked) or model.tied,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if isinstance(model, Masked):
        return {
            **shared,
            "model_type": "bert",
            "intermediate_size": model.feed_forward or 4 * model.width,
            "type_vocab_size": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    return {
        **shared,
        "model_type": "llama",
        "intermediate_size": model.feed_forward or -(-8 * model.width // 48) * 16,
        "num_key_value_heads": model.kv_heads or model.heads,
    }


def read(folder: Path) -> Any:
    """The network of a finished folder, float32 on the CPU."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    from graft.models.loading import quiet

    masked = AutoConfig.from_pretrained(folder, local_files_only=True).model_type == "bert"
    with quiet():
        kind = AutoModelForMaskedLM if masked else AutoModelForCausalLM
        return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def write(node: LanguageNode, weights: Mapping[str, np.ndarray], tokenizer: Any, dtype: str, folder: Path) -> None:
    """A folder as transformers writes it: configuration, safetensors, tokenizer."""
    import torch

    from graft.models.loading import quiet

    with quiet():
        network = node.network()
        own = {name.removeprefix("network."): torch.from_numpy(value) for name, value in weights.items()}
        network.load_state_dict(own, strict=False)
        network.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # The file may hold few digits; who reads it computes in float32.
    config = folder / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n", encoding="utf-8"
    )
