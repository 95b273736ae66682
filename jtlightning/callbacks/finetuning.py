"""Train a new head on a frozen backbone first, then both."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jittor as jt

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_log = logging.getLogger(__name__)


class BackboneFinetuning(Callback):
    """Freeze a part of the task, and train it from an epoch or a step on at a rate of its own.

    While it is frozen, its parameters get neither gradients nor weight decay. From the unfreezing
    on its rate is `backbone_initial_ratio_lr` of what the schedule gives, times `multiplier` for
    each further epoch, until it is the schedule's own. Its parameters are in the optimizer from
    the start, in groups of their own named `<group>/<backbone>`, so checkpoints hold their moments
    and a run may be resumed at any point of both phases.

    `configure_optimizers` is to return one optimizer that has all parameters, the frozen ones too;
    the callback divides its groups.

    Args:
        backbone: Name of the part in the task, such as `model.backbone`.
        unfreeze_backbone_at_epoch: First epoch in which it is trained, counted from 0.
        unfreeze_backbone_at_step: First step in which it is trained, in place of an epoch.
        multiplier: Factor of the rate from one epoch to the next after the unfreezing.
        lambda_func: The factor as a function of the epoch (from 0), in place of `multiplier`.
        backbone_initial_ratio_lr: The rate at the unfreezing, as a share of the schedule's.
        backbone_initial_lr: The rate at the unfreezing itself, in place of a share.
        should_align: Never let the rate exceed what the schedule gives.
        train_bn: Whether batch norm layers of the part train on while it is frozen, weights and
            statistics; otherwise they are in evaluation mode until the unfreezing.
    """

    def __init__(
        self,
        backbone: str,
        unfreeze_backbone_at_epoch: int = 10,
        *,
        unfreeze_backbone_at_step: int | None = None,
        multiplier: float = 2.0,
        lambda_func: Callable[[int], float] | None = None,
        backbone_initial_ratio_lr: float = 0.1,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        train_bn: bool = True,
    ) -> None:
        at_least = {
            "unfreeze_backbone_at_epoch": unfreeze_backbone_at_epoch,
            "unfreeze_backbone_at_step": unfreeze_backbone_at_step,
        }
        above = {
            "multiplier": multiplier,
            "backbone_initial_ratio_lr": backbone_initial_ratio_lr,
            "backbone_initial_lr": backbone_initial_lr,
        }
        for name, value in at_least.items():
            if value is not None and value < 0:
                raise ValueError(f"BackboneFinetuning.{name} must be 0 or more, got {value}")
        for name, rate in above.items():
            if rate is not None and rate <= 0:
                raise ValueError(f"BackboneFinetuning.{name} must be above 0, got {rate}")
        self.backbone, self.train_bn = backbone, train_bn
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.unfreeze_backbone_at_step = unfreeze_backbone_at_step
        self.multiplier, self.lambda_func = multiplier, lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr, self.should_align = backbone_initial_lr, should_align
        self.unfrozen_epoch: int | None = None  # in which it was unfrozen
        self._unfrozen_step = 0  # steps done then
        self._groups: list[dict[str, Any]] = []
        self._norms: list[Any] = []  # kept in evaluation mode
        self._configure: Any = None  # the task's own configure_optimizers while ours is there

    @property
    def state_key(self) -> str:
        return f"BackboneFinetuning({self.backbone})"

    @property
    def frozen(self) -> bool:
        """Whether the part is not trained at present."""
        return self.unfrozen_epoch is None

    def setup(self, trainer: Trainer, task: Task, stage: str) -> None:
        if stage != "fit":
            return
        part = _part(task, self.backbone)
        norms = [module for module in part.modules() if hasattr(module, "running_mean")]
        left_out = {id(p) for norm in norms for p in norm.parameters()} if self.train_bn else set()
        wanted = {id(p) for p in part.parameters()} - left_out
        self._norms = [] if self.train_bn else norms
        self.unfrozen_epoch, self._unfrozen_step, self._groups = None, 0, []
        configure = self._configure = task.configure_optimizers

        def configure_and_divide() -> Any:
            made = configure()
            self._divide(made[0] if isinstance(made, tuple) else made, wanted)
            return made

        # Groups are divided here, before a checkpoint fills the moments of each.
        task.configure_optimizers = configure_and_divide  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        if self._configure is not None:
            del task.configure_optimizers
            self._configure = None

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        self._set_trained(not self.frozen or self._is_due(trainer))

    def on_train_epoch_start(self, trainer: Trainer, task: Task) -> None:
        self._unfreeze_if_due(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.at_step_boundary and self.unfreeze_backbone_at_step is not None:
            self._unfreeze_if_due(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, task: Task, optimizer: Any) -> None:
        for group in self._groups:  # the trainer has just set the schedule's rate
            group["lr"] = self._rate(group["lr"], trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"unfrozen_epoch": self.unfrozen_epoch, "unfrozen_step": self._unfrozen_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.unfrozen_epoch, self._unfrozen_step = state["unfrozen_epoch"], state["unfrozen_step"]

    def _is_due(self, trainer: Trainer) -> bool:
        if self.unfreeze_backbone_at_step is not None:
            return trainer.global_step >= self.unfreeze_backbone_at_step
        return trainer.current_epoch >= self.unfreeze_backbone_at_epoch

    def _unfreeze_if_due(self, trainer: Trainer) -> None:
        if not self.frozen or not self._is_due(trainer):
            return
        self.unfrozen_epoch, self._unfrozen_step = trainer.current_epoch, trainer.global_step
        self._set_trained(True)
        _log.info("%s is trained from step %d on", self.backbone, trainer.global_step + 1)

    def _set_trained(self, trained: bool) -> None:
        for group in self._groups:
            group["first_update"] = self._unfrozen_step
        for parameter in self._parameters():
            parameter.requires_grad = trained
        for norm in self._norms:
            norm.is_train = trained

    def _rate(self, scheduled: float, epoch: int) -> float:
        """The part's rate where the schedule gives `scheduled`."""
        if self.unfrozen_epoch is None:
            return 0.0
        rate = self.backbone_initial_lr
        if rate is None:
            rate = scheduled * self.backbone_initial_ratio_lr
        for passed in range(self.unfrozen_epoch + 1, epoch + 1):
            rate *= self.multiplier if self.lambda_func is None else self.lambda_func(passed)
        return min(rate, scheduled) if self.should_align else rate

    def _parameters(self) -> list[jt.Var]:
        return [parameter for group in self._groups for parameter in group["params"]]

    def _divide(self, optimizer: Any, wanted: set[int]) -> None:
        """Move the parameters with the ids `wanted` into groups of their own."""
        if not isinstance(optimizer, jt.optim.Optimizer):
            raise ValueError(
                "BackboneFinetuning needs configure_optimizers to return one optimizer, or a pair "
                f"of it and a schedule, got {type(optimizer).__name__}"
            )
        groups: list[dict[str, Any]] = []
        for index, group in enumerate(optimizer.param_groups):
            inside = [id(parameter) in wanted for parameter in group["params"]]
            if not all(inside):
                groups.append(_pick(group, [not i for i in inside]))
            if any(inside):
                part = _pick(group, inside)
                part["name"] = f"{group.get('name', index)}/{self.backbone}"
                groups.append(part)
                self._groups.append(part)
        found = {id(parameter) for parameter in self._parameters()}
        if not found:
            raise ValueError(
                f"BackboneFinetuning: no parameter of {self.backbone!r} is in the optimizer; "
                "configure_optimizers must take them in, and nothing else may freeze them before"
            )
        optimizer.param_groups = groups


def _pick(group: dict[str, Any], chosen: list[bool]) -> dict[str, Any]:
    """The group with the chosen parameters, and what the optimizer keeps for each of them."""
    return {
        key: [item for item, wanted in zip(value, chosen, strict=True) if wanted]
        if _is_per_parameter(value, len(chosen))
        else value
        for key, value in group.items()
    }


def _is_per_parameter(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(item, jt.Var) for item in value)
    )


def _part(task: Task, name: str) -> Any:
    modules = dict(task.named_modules())
    if name in modules and name:
        return modules[name]
    near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
    raise ValueError(
        f"BackboneFinetuning.backbone is {name!r}, which is no part of {type(task).__name__}; "
        f"nearest: {', '.join(near) or 'none'}"
    )
