"""A short run of everything: ``trainer.fast_dev_run``."""

from omegaconf import DictConfig

from iclevr_diffusion.cli.overrides import overrides
from iclevr_diffusion.utils.errors import UserError


def shorten(cfg: DictConfig) -> None:
    """Let a run with ``trainer.fast_dev_run=n`` do n of everything: batches, samples, steps.

    Unlike Lightning, which leaves checkpoints out, such a run does all that a long one does. Only
    the loggers that the command line asks for are enabled.

    Raises:
        UserError: n is negative.
    """
    n = int(cfg.trainer.fast_dev_run)
    if n < 0:
        raise UserError(f"trainer.fast_dev_run must be true, false or at least 0, got {n}")
    if n == 0:
        return
    cfg.trainer.update(
        max_epochs=1,
        max_steps=-1,
        max_time=None,
        min_epochs=None,
        min_steps=None,
        limit_train_batches=n,
        limit_val_batches=n,
        check_val_every_n_epoch=1,
        val_check_interval=1.0,
        log_every_n_steps=1,
    )
    cfg.name = "debug"
    if not any(word.lstrip("+").startswith("logger") for word in overrides()):
        cfg.logger = {}
    if "published" in cfg:
        cfg.published = None
    scoring = cfg.callbacks.get("scoring")
    if scoring is not None and "max_conditions" in scoring:
        scoring.max_conditions = n
        if "steps" in (scoring.get("sampler") or {}):
            scoring.sampler.steps = min(scoring.sampler.steps, max(2, n))
