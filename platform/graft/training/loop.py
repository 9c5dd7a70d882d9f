"""The one training loop: whatever has gradients in graft goes through it, in one process or in many.

    rows of a batch ─► micro-batches ─► loss terms ─► gradients ─► guard ─► step
         ▲                                                │
         └── go back, skip the data ◄─────────────────────┘ spike or NaN

Everything random is a function of (seed, position, process), so there is no random state to keep: a run that was
killed goes on from its checkpoint to the same weights.
"""

import copy
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from graft.errors import ModelError, PrunedError, TrainingError
from graft.execution import peak_memory_bytes
from graft.node import Trains
from graft.seeds import generator
from graft.training.batching import GlobalBatches, Rows, micro_batches
from graft.training.checkpoints import Checkpoint, Checkpoints
from graft.training.guard import MOST_ROLLBACKS
from graft.training.optimizers import learning_rate, make_optimizer
from graft.training.parallel import Parallel
from graft.training.states import Job, State, Trained, Weights, looks

log = logging.getLogger(__name__)

CURVE_POINTS = 1000
LOG_SECONDS = 10.0

Watch = Callable[[int, int], None]
"""Called with steps taken and steps in all."""


class Loop:
    """One training in this process, alone or as one of several."""

    def __init__(self, job: Job, checkpoints: Checkpoints | None = None, watch: Watch | None = None) -> None:
        """Build the module and take up the last checkpoint, if there is one.

        Args:
            job: what is trained.
            checkpoints: where states are kept; None keeps none. Only the first process uses it.
            watch: told about progress in the first process.

        Raises:
            ModelError: nothing is trained, or the model cannot be trained as asked.
        """
        self.job, self.training, self.checkpoints, self.watch = job, job.training, checkpoints, watch
        self.inner = job.node.build()
        self.device = _trained(job.node, self.inner)[0][1].device
        self.parallel = Parallel(job.strategy, self.device)
        self._check_can_shard()
        if self.training.activation_checkpointing:
            _checkpoint_activations(self.inner)
        self.module = self.parallel.wrap(self.inner)
        # Sharding puts other parameters in the place of those that were built.
        self.parameters = dict(_trained(job.node, self.inner))
        self.optimizer = make_optimizer(self.parameters.values(), self.training)
        self.weights = Weights(self.inner, self.parameters, self.optimizer)
        self.terms = torch.tensor(job.node.terms, dtype=torch.float32, device=self.device)
        self.state = State()
        self.best: dict[str, Tensor] = {}
        self.written = time.monotonic()
        self.written_best: int | None = None
        self._take_up()

    def run(self) -> Trained | None:
        """Train to the end; the first process gets the result.

        Raises:
            TrainingError: it diverges whatever data is skipped.
        """
        self.logged = (time.monotonic(), self.state.step, self.state.tokens)
        self.clock = time.monotonic()
        while self.state.step < self.training.max_steps and not self._stopped_early():
            batch = self._batch(self.state.position)
            loss, norm = self._gradients(batch)
            if reason := self.state.guard.verdict(loss, norm):
                self._go_back(loss, reason)
                continue
            rate = self._move(norm)
            self._note(batch, loss, norm, rate)
            if self.training.validate_every_steps and (
                self.state.step % self.training.validate_every_steps == 0 or self.state.step == self.training.max_steps
            ):
                self._look()
            if self.state.step % self.training.checkpoint_steps == 0:
                self._remember()
            if self.parallel.first and self.watch is not None:
                self.watch(self.state.step, self.training.max_steps)
            self._log(loss, rate)
        return self._result()

    def _batch(self, position: int) -> pa.Table:
        """The rows of a global batch, longest first."""
        encoded = self.job.encoded
        if not isinstance(encoded, pa.Table):
            return encoded.batch(position)
        return encoded.take(pa.array(self.order.rows(position)))

    @functools.cached_property
    def order(self) -> GlobalBatches:
        """Which rows of the table make up which batch."""
        training, lengths = self.training, _lengths(self.job.encoded)
        return GlobalBatches(lengths, training.tokens_per_batch, training.seed, training.batch_ramp_steps)

    def _gradients(self, batch: pa.Table) -> tuple[float, float]:
        """Loss of a global batch (per target token) and norm of its gradient, which is left in the parameters."""
        parallel, training = self.parallel, self.training
        rows = np.arange(batch.num_rows)
        shares = micro_batches(_lengths(batch), rows, parallel.world, training.tokens_per_device)[parallel.rank]
        weights = self.terms / torch.from_numpy(np.maximum(_matrix(batch["targets"]).sum(0), 1)).to(self.terms)
        self.optimizer.zero_grad(set_to_none=True)
        seed = generator(training.seed, f"step-{self.state.position}-{parallel.rank}").integers(2**63 - 1)
        torch.manual_seed(int(seed))
        total = torch.zeros(1, dtype=torch.float64)
        for place, own in enumerate(shares):
            with parallel.accumulating(more=place + 1 < len(shares)):
                # A process without rows computes some others', for nothing: gradients are a joint affair.
                sums = self._forward(batch, own if len(own) else rows[-1:])
                loss = (sums * weights).sum()
                # The processes' gradients are averaged; the loss is already one of the global batch.
                (loss * (parallel.world if len(own) else 0)).backward()
            if len(own):
                total += loss.detach().double().cpu()
        gradients = [value.grad for value in self.parameters.values() if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return float(parallel.summed(total)), float(norm)

    def _forward(self, encoded: pa.Table, rows: Rows) -> Tensor:
        """Sums of losses [K]."""
        batch = {
            name: value.to(self.device, non_blocking=True)
            for name, value in self.job.node.collate(encoded.take(pa.array(rows))).items()
        }
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            sums: Tensor = self.module(**batch)
        return sums.float()

    def _move(self, norm: float) -> float:
        """One step of the optimizer; gives its learning rate."""
        rate = learning_rate(self.training, self.state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.training.clip_norm is not None and norm > self.training.clip_norm:
            for value in self.parameters.values():
                if value.grad is not None:
                    value.grad.mul_(self.training.clip_norm / norm)
        self.optimizer.step()
        if hasattr(self.inner, "after_step"):
            self.inner.after_step(self.state.step)
        return rate

    def _note(self, batch: pa.Table, loss: float, norm: float, rate: float) -> None:
        """Count a step that was taken."""
        state = self.state
        state.guard = state.guard.after(loss)
        state.tokens += _tokens(batch)
        state.sequences += batch.num_rows * len(self.job.node.terms)
        if state.step % math.ceil(self.training.max_steps / CURVE_POINTS) == 0:
            state.curve.append({"step": state.step, "loss": loss, "learning_rate": rate, "gradient_norm": norm})
        self._count_costs()
        state.step += 1
        state.position += 1

    def _count_costs(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self.clock
        self.clock = now
        self.state.peak_memory_bytes = max(self.state.peak_memory_bytes, peak_memory_bytes())

    def _look(self) -> None:
        """Validate, and keep the weights if they are the best so far."""
        state, loss = self.state, self._held_out_loss()
        state.curve.append({"step": state.step - 1, "validation_loss": loss})
        state.looks += 1
        if state.best_loss is None or loss < state.best_loss:
            state.best_loss, state.best_step, state.looks = loss, state.step, 0
            self.best = self.parallel.gather(self.parameters)
        if loss > self.job.worst.get(state.step, math.inf):
            raise PrunedError(looks(state.curve))

    def _held_out_loss(self) -> float:
        """Loss of the held-out rows, its terms weighted and normalised as in training."""
        held_out = self.job.held_out
        assert held_out is not None
        lengths, targets = _lengths(held_out), _matrix(held_out["targets"])
        rows = np.argsort(-lengths, kind="stable")
        limit = max(1, self.training.tokens_per_batch // self.parallel.world)
        limit = min(limit, self.training.tokens_per_device or limit)
        sums = torch.zeros(len(self.job.node.terms), dtype=torch.float64)
        self.module.eval()
        with torch.no_grad():
            for own in micro_batches(lengths, rows, self.parallel.world, limit)[self.parallel.rank]:
                found = self._forward(held_out, own if len(own) else rows[-1:]).double().cpu()
                sums += found if len(own) else 0
        self.module.train()
        self.state.tokens += _tokens(held_out)
        self.state.sequences += len(lengths) * len(self.job.node.terms)
        counts = torch.from_numpy(np.maximum(targets.sum(0), 1))
        weights = torch.tensor(self.job.node.terms, dtype=torch.float64) / counts
        return float((self.parallel.summed(sums) * weights).sum())

    def _stopped_early(self) -> bool:
        patience = self.training.patience
        return patience is not None and self.state.looks >= patience

    def _remember(self) -> None:
        """Keep a state to go back to, and write it down if the last writing is long enough ago."""
        self.memory = (copy.deepcopy(self.state), self.weights.copies(self.parallel), self.best)
        now = time.monotonic()
        if self.checkpoints is None or not self.parallel.first or now - self.written < self.training.checkpoint_seconds:
            return
        if self.state.best_step not in (None, self.written_best):
            self.checkpoints.save_best(Checkpoint(self.state.best_step, self.best, {}))
            self.written_best = self.state.best_step
        self.checkpoints.save(Checkpoint(self.state.step, self.memory[1], dataclasses.asdict(self.state)))
        self.written = now

    def _go_back(self, loss: float, reason: str) -> None:
        """Return to the remembered state and skip the data up to here."""
        state, tensors, self.best = self.memory
        before, self.state = self.state, copy.deepcopy(state)
        rollbacks = 0 if before.step > before.furthest else before.rollbacks
        event = {
            "step": before.step,
            "position": before.position,
            "reason": reason,
            "back_to": state.step,
            "skipped": before.position + 1 - state.position,
        }
        if rollbacks >= MOST_ROLLBACKS:
            raise TrainingError(
                f"training diverges: at step {before.step} {reason}, for the {MOST_ROLLBACKS + 1}th time in a row; "
                "lower training.learning_rate, or look at the rows"
            )
        log.warning(
            "%s at step %d: back to step %d, %d batches are skipped", reason, before.step, state.step, event["skipped"]
        )
        self.state.position = before.position + 1
        self.state.rollbacks, self.state.furthest = rollbacks + 1, max(before.step, before.furthest)
        self.state.guard = state.guard.after_spike(loss)
        self.state.tokens, self.state.sequences, self.state.seconds = before.tokens, before.sequences, before.seconds
        self.state.events.append(event)
        self.weights.restore(tensors, self.parallel)
        self._remember()

    def _take_up(self) -> None:
        """Begin where the last checkpoint ends, in all processes alike."""
        last = best = None
        if self.checkpoints is not None and self.parallel.first:
            last, best = self.checkpoints.last(), self.checkpoints.best()
        # A later best than `last` knows is fine: a kill between two writes leaves it, and it will be found again.
        lost = last is not None and (best.step if best else -1) < (last.state["best_step"] or -1)
        values, lost = self.parallel.agreed((None if last is None else last.state, lost))
        if values is not None:
            self.state = State.from_json(values)
            self.state.events.append({"step": self.state.step, "reason": "taken up from a checkpoint"})
            self.weights.restore(last.tensors if last else {}, self.parallel)
            if lost:
                log.warning("the best weights so far are lost: the best of those to come will be kept")
                self.state.events.append({"step": self.state.step, "reason": "the best weights so far are lost"})
                self.state.best_loss, self.state.best_step, self.state.looks = None, None, 0
            self.best = best.tensors if best and self.state.best_step is not None else {}
            log.info("training goes on from step %d", self.state.step)
        elif self.parallel.world > 1:
            # Every process begins with the first one's weights.
            self.weights.restore(self.weights.copies(self.parallel), self.parallel)
        self._remember()
        self.module.train()

    def _result(self) -> Trained | None:
        weights = self.best if self.state.best_step is not None else self.parallel.gather(self.parameters)
        self._count_costs()
        if not self.parallel.first:
            return None
        return Trained({name: value.float().numpy() for name, value in weights.items()}, self.state)

    def _log(self, loss: float, rate: float) -> None:
        """A line every few seconds."""
        now, (then, step, tokens) = time.monotonic(), self.logged
        if now - then < LOG_SECONDS or not self.parallel.first:
            return
        self.logged = (now, self.state.step, self.state.tokens)
        left = (self.training.max_steps - self.state.step) * (now - then) / max(1, self.state.step - step)
        log.info(
            "step=%d/%d loss=%.4g lr=%.2g tok/s=%.0f mem=%.1fGiB eta=%.0fs",
            self.state.step,
            self.training.max_steps,
            loss,
            rate,
            (self.state.tokens - tokens) / (now - then),
            peak_memory_bytes() / 2**30,
            left,
        )

    def _check_can_shard(self) -> None:
        if self.parallel.world > 1 and self.job.strategy == "fsdp" and hasattr(self.inner, "after_step"):
            what = f"{self.job.node.describe()}: it judges whole weights between steps"
            raise ModelError(f"scaling.strategy: fsdp shards weights, which this cannot be ({what}); use ddp")


def _trained(node: Trains, module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Name and parameter of all that requires gradients."""
    found = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    if not found:
        raise ModelError(f"{node.describe()}: no parameter is trained; check method.adapter")
    return found


def _checkpoint_activations(module: nn.Module) -> None:
    able = [part for part in module.modules() if getattr(part, "supports_gradient_checkpointing", False)]
    if not able:
        raise ModelError("training.activation_checkpointing: this model cannot do it; leave it false")
    able[0].activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def _lengths(encoded: pa.Table) -> Rows:
    """Positions that each row takes, int64 [N]."""
    return np.asarray(encoded["length"], np.int64)


def _tokens(encoded: pa.Table) -> int:
    """Tokens of all rows, without what pads them."""
    return int(np.asarray(encoded["tokens" if "tokens" in encoded.column_names else "length"], np.int64).sum())


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Lists of one length as an int64 matrix [N, K]."""
    flat = column.combine_chunks()
    return np.asarray(flat.flatten(), np.int64).reshape(len(flat), -1)
