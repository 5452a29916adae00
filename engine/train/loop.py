"""The only training loop.

It owns everything that does not depend on the paper: devices, autocast, backward, clipping, the learning rate
of each step, finite checks, logging, checkpoints, exact resume and the clock. Log steps, measurements and
checkpoints wait for the device; other steps do so to skip bad steps (`on_non_finite`, float16's scaler).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from engine.evaluate.collapse import describe_collapse
from engine.evaluate.online_probe import OnlineProbe, ProbeRecorder
from engine.train import autocast, checkpoint, rng
from engine.train.accumulation import Accumulator, Shell
from engine.train.agreement import check_agreement, check_same_data, check_same_rules, data_facts, run_facts
from engine.train.bad_rows import BadRowRecorder
from engine.train.batchnorm import synchronise_batchnorm
from engine.train.clock import TrainingClock
from engine.train.distributed import on_main, rank, world_size
from engine.train.finite import StepGuard, check_weights, draw_again, gradient_norm, save_bad_batch
from engine.train.growth import Growth
from engine.train.loop_config import LoopConfig
from engine.train.metrics import MetricsWriter, MetricWindow, NonFiniteLossError
from engine.train.optimizers import choose_optimizer, choose_schedule, fused_on
from engine.train.progress import TrainingProgress
from engine.train.recipe import Recipe
from engine.train.run_folder import opened_run, save_backbone
from engine.train.samples import save_samples
from engine.train.schedule import Schedule
from engine.train.stop import StopSignal
from engine.train.trackers import begin_trackers, log_views, log_weights
from engine.train.validation import Validation, ValidationState, Validator
from engine.train.whiten import whiten_stems
from loaders.batch import Batch, Loader, PairedBatch
from loaders.common.errors import UserError

LAST_FOLDER = "last"
"""Subfolder of a run for the last weights, if the run folder itself holds the best."""


@dataclass(frozen=True)
class TrainSummary:
    """The results of a run.

    Attributes:
        step: optimizer steps done, including those before a resume.
        total_steps: steps of the full schedule.
        loss: mean loss of the last log window; NaN if there was none.
        metrics: means of the other metrics in that window; empty if there was none.
        img_per_s: images per second over all ranks, since the process started or resumed the run, without
            the first log window if there are others.
        wait_share: share of the time measured for `img_per_s` that was spent waiting for data.
        seconds: wall-clock time of training in this process.
        backbone: file with the backbone's weights.
        validation: state of the validation; None without validation images.
    """

    step: int
    total_steps: int
    loss: float
    metrics: Mapping[str, float]
    img_per_s: float
    wait_share: float
    seconds: float
    backbone: Path
    validation: ValidationState | None = None


def train(
    recipe: Recipe,
    loader: Loader[Any],
    accelerator: Accelerator,
    config: LoopConfig,
    probe: OnlineProbe | None = None,
    validation: Validation | None = None,
) -> TrainSummary:
    """Train a recipe on the batches of a loader; every rank makes the same call.

    Args:
        recipe: built after `seed_everything`, so that all ranks hold the same weights.
        loader: gives this rank's part of each batch on the accelerator's device; is not `prepare`d.
        accelerator: from `make_accelerator`.
        probe: measurements on frozen features during training.
        validation: plan for measuring the recipe's `network` on validation images during training.

    Returns:
        The summary. The run folder then holds the checkpoints and the backbone's weights; the recipe holds
        the last weights, or the best by validation if these are kept.

    Raises:
        UserError: the run cannot start or go on, for example because the folder holds another run, ranks
            disagree, or a loss is not finite (the message names the step and its rows).
        LoaderError: a batch cannot be made, or another rank is gone.
        RunStopped: SIGTERM was received; a checkpoint was written, and the exit code is 75.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint was written, unless a second Ctrl-C ended the
            process at once. `run_command` exits with code 130.
    """
    decisive = {name: config.config[name] for name in config.config.keys() - set(config.runtime_fields)}
    taken = autocast.chosen(accelerator, loader)
    check_agreement(run_facts(recipe.name, decisive | taken, loader))
    described, runtime = dict(config.config) | taken, autocast.CHOSEN.union(config.runtime_fields)
    opened = opened_run(config.out, recipe.name, described, runtime, config.resume)
    with StopSignal() as stop, opened:
        run = _Run(recipe, loader, accelerator, config, probe, validation)
        run.restore()
        return run.train(stop)


class _Run:
    """One process's part of a run: the wrapped model and the position in the run."""

    def __init__(
        self,
        recipe: Recipe,
        loader: Loader[Any],
        accelerator: Accelerator,
        config: LoopConfig,
        probe: OnlineProbe | None,
        validation: Validation | None,
    ) -> None:
        self.loader, self.accelerator, self.config, self.probe = loader, accelerator, config, probe
        self.device: torch.device = accelerator.device
        synchronise_batchnorm(recipe, self.device)
        self.recipe, rules = recipe, config.optimizing
        if config.compile:  # compiles in place, so that the weights keep their names
            recipe.backbone.compile()
        try:
            self.optimizer: Optimizer = fused_on(
                self.device, choose_optimizer(recipe, rules), accelerator.scaler is not None
            )
        except ValueError as error:
            raise UserError(f"optimizer: {error}; change its options") from None
        self.peak_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        # DDP's static graph must be the same in every pass; of micro-batches, only the last one reduces.
        accelerator.ddp_handler.static_graph = rules.micro_batch is None
        self.model, self.stepper = accelerator.prepare(Shell(recipe), self.optimizer)
        self.accumulate = Accumulator(recipe, self.model, accelerator, loader, rules.micro_batch)
        self.steps_per_epoch = loader.steps_per_epoch
        self.data = data_facts(loader)
        self.total_steps = config.steps or config.epochs * self.steps_per_epoch
        most = self.total_steps if config.max_steps is None else config.max_steps  # 0: no step at all
        self.last_step = min(self.total_steps, most)
        self.schedule: Schedule = choose_schedule(recipe, rules, self.steps_per_epoch, self.total_steps)
        self.growth = Growth(rules, self.total_steps, recipe)
        self.validator = None if validation is None else Validator(validation, config.out, self.total_steps)
        self.guard = StepGuard(recipe, config.on_non_finite)
        self.window = MetricWindow(self.device)
        self.step, self.saved_step = 0, -1
        self.loss = float("nan")
        self.metrics: dict[str, float] = {}
        self.lr = 0.0

    @property
    def checkpoints(self) -> Path:
        return self.config.out / "checkpoints"

    @property
    def rules(self) -> Mapping[str, str]:
        """The rules of the recipe and of the validation."""
        return {**self.recipe.rules, **({} if self.validator is None else self.validator.rules)}

    def restore(self) -> None:
        """Load the newest undamaged checkpoint; without one, set the initial weights and seed the rank."""
        found, self.notes = on_main(lambda: checkpoint.newest_valid(self.checkpoints))
        if found is None:
            whiten_stems(self.recipe, self.loader)
            with torch.no_grad():
                self.recipe.begin_training(self.config.out, self.device)
            rng.seed_rank(self.config.seed, rank(), 0)
            return
        meta = checkpoint.read_meta(found)
        self._check_meta(found, meta)
        checkpoint.load_weights(found, self.recipe)
        checkpoint.load_optimizer(found, self.optimizer)
        if self.accelerator.scaler is not None and meta.scaler:
            self.accelerator.scaler.load_state_dict(dict(meta.scaler))
        if meta.num_ranks == world_size():
            states = checkpoint.load_rng(found)
            self.notes += rng.restore_rank(states, rank(), self.device, self.config.seed, meta.step)
        else:
            rng.seed_rank(self.config.seed, rank(), meta.step)
            self.notes.append(f"{meta.num_ranks} ranks before, {world_size()} now: dropout draws new numbers")
        if meta.window:
            self.window.restore(meta.window)
        if self.validator is not None:
            self.validator.restore(meta.validation, checkpoint.load_best(found))
            if self.validator.is_over:
                self.last_step = min(self.last_step, meta.step)
        self.guard.num_skipped = meta.num_skipped
        self.step = self.saved_step = meta.step
        self.notes.append(f"resumed {found.name} (epoch {meta.epoch})")

    def _check_meta(self, found: Path, meta: checkpoint.CheckpointMeta) -> None:
        if meta.recipe != self.recipe.name:
            raise UserError(
                f"checkpoint {found}: expected one of recipe {self.recipe.name!r}, found {meta.recipe!r}; "
                "give another --out"
            )
        check_same_data(found, meta.data, self.data)
        check_same_rules(found, meta.rules, self.rules)

    def train(self, stop: StopSignal) -> TrainSummary:
        clock = TrainingClock()
        is_main = self.accelerator.is_main_process
        if self.accelerator.log_with:
            begin_trackers(self.accelerator, self.recipe.name, self.config.out)
        self.model.train()
        self.writer = MetricsWriter(self.config.out / "metrics.jsonl", self.step) if is_main else None
        if self.writer is not None and self.writer.num_damaged:
            self.notes.append(f"metrics.jsonl: left out {self.writer.num_damaged} damaged lines")
        self.bad_rows = BadRowRecorder(self.config.out, self.loader, self.device)
        probes = self._open_probes()
        if self.validator is not None:
            self.validator.keep_labels()
        shown = TrainingProgress(
            self.recipe.name, self.total_steps, self.step, is_main and self.config.progress
        )
        try:
            with shown:
                for note in [f"precision: {autocast.SAID[self.accelerator.mixed_precision]}", *self.notes]:
                    shown.say(note)
                if self.step == 0 and self.validator is not None and self.validator.plan.from_start:
                    self._validate(self.validator, clock, shown)
                for batch in clock.timed(self._batches(clock, stop)):
                    if self.step == 0 and is_main:
                        view = self.config.backbone_metadata.get("view")
                        save_samples(self.config.out, batch, view=view)
                        if self.accelerator.trackers:
                            log_views(self.accelerator, batch, 0, view)
                    if not self._train_step(batch):
                        note = save_bad_batch(self.config.out, self.step, batch)
                        shown.say(f"step {self.step} skipped: its loss or gradients are not finite; {note}")
                    clock.images += _num_images(batch) * world_size()
                    shown.advance(self.step)
                    if self.validator is not None:
                        self._validate(self.validator, clock, shown)
                    if self.step % self.config.log_every == 0 or self.step == self.last_step:
                        self._log(clock, shown)
                    with clock.paused():
                        log_weights(self.accelerator, self.recipe, self.step, self.total_steps)
                    if probes is not None:
                        self._measure(probes, clock, shown)
                    if self.step % self.config.checkpoint_every_steps == 0 or self.step == self.last_step:
                        self._checkpoint()
                if self.step < self.last_step:
                    self._checkpoint()
                    raise stop.end(f"saved step {self.step}")
        except NonFiniteLossError as error:
            notes = [str(error), self._place_before()]
            if error.step is not None:
                bad_batch = draw_again(self.loader, error.step)
                notes.append(save_bad_batch(self.config.out, error.step, bad_batch))
            raise NonFiniteLossError("; ".join(notes), error.step) from None
        finally:
            if self.writer is not None:
                self.writer.close()
            if probes is not None:
                probes.close()
        return self._finish(clock)

    def _open_probes(self) -> ProbeRecorder | None:
        if self.probe is None:
            return None
        return ProbeRecorder(self.probe, self.config.out, self.step, self.steps_per_epoch, self.total_steps)

    def _measure(self, probes: ProbeRecorder, clock: TrainingClock, shown: TrainingProgress) -> None:
        """Run the online probe if it is due; its time does not count in the logged speed."""
        with clock.paused():
            record = probes.after_step(self.step, self.recipe.measured_backbone, self.device)
        if record:
            shown.say(", ".join(f"{name} {value:.4g}" for name, value in record.items()))
            std, effective = record["feature_std"], record["effective_rank"]
            warning = describe_collapse(std, effective, int(record["num_features"]))
            if warning and rank() == 0:
                print(warning, file=sys.stderr)
            if self.accelerator.trackers:
                shares = {f"probe_{name}": value for name, value in record.items() if name != "step"}
                self.accelerator.log(shares, step=self.step)

    def _validate(self, validator: Validator, clock: TrainingClock, shown: TrainingProgress) -> None:
        """Measure on the validation images if that is due; the result may end training."""
        with clock.paused():
            measured = validator.after_step(self.step, self.recipe, self.device)
        if measured.record:
            epoch = max(0, self.step - 1) // self.steps_per_epoch
            if self.writer is not None:
                self.writer.write({"step": self.step, "epoch": epoch, **measured.record})
            if self.accelerator.trackers:
                self.accelerator.log(dict(measured.record), step=self.step)
            shown.say(f"step {self.step}: {measured.said}")
        if measured.stop:
            self.last_step = self.step

    def _batches(self, clock: TrainingClock, stop: StopSignal) -> Iterator[Any]:
        """Yield the batches from the current position to the end of the run, or until a stop signal."""
        while self.step < self.last_step:
            epoch, start = divmod(self.step, self.steps_per_epoch)
            if start == 0:
                with clock.working(), torch.no_grad():
                    self.recipe.begin_epoch(epoch)
            batches = self.loader.epoch(epoch, start_step=start)
            batch: Any = True
            while batch is not None:
                batch = stop.wait_for(lambda: next(batches, None))  # noqa: B023 - called at once
                with clock.working():
                    stopping = stop.agree()
                if stopping:
                    return
                if batch is not None:
                    yield batch
                if self.step >= self.last_step:
                    return
            got = self.step - epoch * self.steps_per_epoch
            if got != self.steps_per_epoch:
                raise RuntimeError(
                    f"loader: expected {self.steps_per_epoch} steps in epoch {epoch}, got {got}"
                )

    def _train_step(self, batch: Any) -> bool:
        """Train on one batch; return False if `StepGuard`, not the gradient scaler, skipped the update."""
        factor = self.schedule(self.step)
        for group, peak_lr in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak_lr * factor
        self.lr = self.peak_lrs[0] * factor
        self.guard.begin()
        output = self.accumulate(self.growth(batch, self.step), self.step)
        metrics, clip_norm = dict(output.metrics), self.config.optimizing.clip_norm
        if clip_norm is not None:
            metrics["grad_norm"] = self._clip(clip_norm)
        norm = self._judged_norm(metrics.get("grad_norm"))
        taken = self.guard.allows(output.loss, norm)
        if taken:
            self.stepper.step()
        elif clip_norm is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # else the scaler refuses to unscale the next gradients
        self.stepper.zero_grad(set_to_none=True)
        if taken:
            with torch.no_grad():
                self.recipe.after_step(self.step)
            self.window.add(self.step + 1, output.loss, metrics, norm)
        self.step += 1
        return taken

    def _judged_norm(self, clipped: Tensor | None) -> Tensor | None:
        """Return the norm of the gradients; None with a scaler, whose search for a factor may overflow."""
        if self.accelerator.scaler is not None:
            return None
        return gradient_norm(self.recipe.parameters()) if clipped is None else clipped

    def _clip(self, clip_norm: float) -> Tensor:
        return torch.as_tensor(self.accelerator.clip_grad_norm_(self.model.parameters(), clip_norm))

    def _log(self, clock: TrainingClock, shown: TrainingProgress) -> None:
        means = self.window.read()
        self.loss, self.metrics = means.pop("loss"), means
        img_per_s, wait_share = clock.close_window()
        epoch = (self.step - 1) // self.steps_per_epoch
        record = {"step": self.step, "epoch": epoch, "loss": self.loss, **means, "lr": self.lr}
        record |= {"img_per_s": img_per_s, "wait_share": wait_share}
        if self.guard.num_skipped:
            record["num_skipped"] = self.guard.num_skipped
        if self.bad_rows.update():
            record["num_bad_rows"] = self.bad_rows.count
        if self.writer is not None:
            self.writer.write(record)
        if self.accelerator.trackers:
            self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=self.step)
        shown.report(self.step, epoch, self.loss, img_per_s, wait_share)

    def _place_before(self) -> str:
        """Return a phrase that names the checkpoint, if any, from which a run that fails now can resume."""
        if self.saved_step < 0:
            return "there is no earlier checkpoint, so give another --out"
        return f"the last earlier checkpoint is step-{self.saved_step:08d}"

    def _checkpoint(self) -> None:
        self.window.check()
        self.bad_rows.update()
        if self.writer is not None:
            self.writer.sync()  # so that no checkpoint is on the disk without its log lines
        self._save()

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        check_weights(self.recipe, self.step)
        states = rng.gather_rng_states(self.device)
        meta = checkpoint.CheckpointMeta(
            recipe=self.recipe.name,
            config={**self.config.config, **autocast.chosen(self.accelerator, self.loader)},
            step=self.step,
            epoch=self.step // self.steps_per_epoch,
            data=self.data,
            num_ranks=world_size(),
            scaler=self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {},
            window=self.window.state(),
            num_skipped=self.guard.num_skipped,
            rules=self.rules,
            backbone=self.config.backbone_metadata,
            validation={} if self.validator is None else self.validator.described(),
        )
        keep, best = self.config.keep_checkpoints, None if self.validator is None else self.validator.best
        on_main(
            lambda: checkpoint.save_checkpoint(
                self.checkpoints, meta, self.recipe, self.optimizer, states, keep, best
            )
        )
        self.saved_step = self.step

    def _finish(self, clock: TrainingClock) -> TrainSummary:
        """Keep the last or the best weights, write the results, and return the summary."""
        metadata = {"recipe": self.recipe.name, "backbone": self.recipe.backbone_name}
        metadata |= dict(self.config.backbone_metadata)
        if self.validator is not None:
            self.validator.after_stop(self.step, self.recipe, self.device)
        if self.validator is not None and self.validator.best:
            on_main(lambda: self.recipe.leave_last(self.config.out / LAST_FOLDER))
            self.recipe.load_state_dict(self.validator.best)
        backbone = on_main(lambda: save_backbone(self.config.out, self.recipe.backbone, metadata))
        with torch.no_grad():
            on_main(lambda: self.recipe.write_results(self.config.out))
        img_per_s, wait_share = clock.overall()
        return TrainSummary(
            step=self.step,
            total_steps=self.total_steps,
            loss=self.loss,
            metrics=self.metrics,
            img_per_s=img_per_s,
            wait_share=wait_share,
            seconds=time.perf_counter() - clock.start,
            backbone=backbone,
            validation=None if self.validator is None else self.validator.state,
        )


def _num_images(batch: Batch | PairedBatch) -> int:
    if isinstance(batch, PairedBatch):
        return _num_images(batch.labeled) + _num_images(batch.unlabeled)
    return int(batch.index.shape[0])
