"""What some of PEFT's types ask of training beside the answer's loss.

ADALORA (Zhang et al. 2023, arXiv:2303.10512): a penalty that keeps its factors orthogonal (section 3.1, equation 4),
and after each step the ranks that matter least are masked, down to a budget (section 3.3, equation 12).
SHADOW: its shadow network learns to answer by itself.
"""

from typing import Any

import torch
from torch import Tensor, nn

from graft.models.objective import NextTokenLoss


class RankBudgetLoss(NextTokenLoss):
    """The loss of a network with ADALORA in it."""

    def penalty(self, wanted_BT: Tensor, labels_M: Tensor) -> Tensor | float:
        """How far the factors are from orthogonal (Frobenius norm), the mean over all of them."""
        norms = []
        for name, factor in self.network.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                gram = factor @ factor.T if ".lora_A." in name else factor.T @ factor
                norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
        return self._config.orth_reg_weight * torch.stack(norms).mean()

    def after_step(self, step: int) -> None:
        """Judge every rank by its gradients, and mask those that are over the budget of this step (from 0)."""
        self.network.base_model.update_and_allocate(step + 1)

    def training_state(self) -> dict[str, Tensor]:
        """How important every weight was so far, and which ranks are masked."""
        masks = self._config.rank_pattern or {}
        return {
            **{f"importance/{name}": value for name, value in self._ranks.exp_avg_ipt.items()},
            **{f"uncertainty/{name}": value for name, value in self._ranks.exp_avg_unc.items()},
            **{f"kept/{name}": torch.tensor(mask) for name, mask in masks.items()},
        }

    def load_training_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `training_state` gave."""
        places = {name: parameter.device for name, parameter in self.network.base_model.model.named_parameters()}
        found: dict[str, dict[str, Tensor]] = {"importance": {}, "uncertainty": {}, "kept": {}}
        for path, value in tensors.items():
            kind, _, name = path.partition("/")
            found[kind][name] = value.to(places[name])
        # The importance at the last step alone is computed anew at each.
        self._ranks.ipt = dict(found["importance"])
        self._ranks.exp_avg_ipt = found["importance"]
        self._ranks.exp_avg_unc = found["uncertainty"]
        self._config.rank_pattern = {name: mask.tolist() for name, mask in found["kept"].items()} or None

    @property
    def _config(self) -> Any:
        return self.network.peft_config[self.network.active_adapter]

    @property
    def _ranks(self) -> Any:
        return self.network.base_model.rankallocator


class ShadowLoss(NextTokenLoss):
    """The loss of a network with a SHADOW beside it."""

    def penalty(self, wanted_BT: Tensor, labels_M: Tensor) -> Tensor | float:
        """The loss of the answer that the shadow gives by itself, weighted by `auxiliary_loss_weight`."""
        tuner = self.network.base_model
        weight = tuner.peft_config[self.network.active_adapter].auxiliary_loss_weight
        if not weight:
            return 0.0
        logits_MV = self.called.get_output_embeddings()(tuner._seed_shadow_state[wanted_BT])
        return weight * nn.functional.cross_entropy(logits_MV.float(), labels_M, reduction="none")


LOSSES: dict[str, type[NextTokenLoss]] = {"ADALORA": RankBudgetLoss, "SHADOW": ShadowLoss}
"""Type to the loss it is trained with, where that is not the plain one."""
