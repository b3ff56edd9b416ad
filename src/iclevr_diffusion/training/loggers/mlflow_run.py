"""MLflow: one run per run folder, in a folder of runs or on a tracking server."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from iclevr_diffusion.training.loggers.logs_once import LogsOnce, name_of_run, reason_of, survives
from iclevr_diffusion.training.loggers.packages import check_installed
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import expand_home, write_text
from iclevr_diffusion.utils.nested import flatten

RUN_ID = "mlflow_run_id"  # a file in the run folder
IMAGE = re.compile(r"images/(?P<key>.+?)[+%]step[+%](?P<step>\d+)[+%]")  # as mlflow names its files


def mlflow_logger(
    folder: Path,
    tracking_uri: str,
    experiment: str,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> "MLflowRun":
    """Start or continue the MLflow run of a run folder.

    Args:
        folder: Folder of the run; the file ``mlflow_run_id`` there names the MLflow run.
        tracking_uri: A folder that holds the runs, or the address of a tracking server.
        experiment: Name of the MLflow experiment.
        run_name: Name of the run; None for the last two parts of the path of its folder.
        tags: Tags of the run.

    Raises:
        UserError: mlflow is not installed, or the run cannot start.
    """
    check_installed("mlflow")
    # A store of files needs no server and no database; MLflow 3 asks for this before it uses one.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if "://" not in tracking_uri and not tracking_uri.startswith("databricks"):
        tracking_uri = Path(expand_home(tracking_uri)).absolute().as_uri()
    name = run_name or name_of_run(folder)
    try:
        run = MLflowRun(folder, experiment, tracking_uri, name, dict(tags or {}))
        run.start()
    except Exception as error:
        raise UserError(f"MLflow: {reason_of(error)}; logger=csv trains without it") from error
    return run


class MLflowRun(LogsOnce, MLFlowLogger):
    """The MLflow run of a run folder."""

    service = "MLflow"

    def __init__(
        self, folder: Path, experiment: str, tracking_uri: str, name: str, tags: dict[str, str]
    ) -> None:
        from mlflow.tracking import MlflowClient

        self._id_file = folder / RUN_ID
        self._known = self._id_file.read_text("utf-8").strip() if self._id_file.is_file() else None
        super().__init__(experiment, name, tracking_uri, tags, run_id=self._known)
        self._wanted_experiment = experiment
        self._client = MlflowClient(tracking_uri)

    @rank_zero_only
    def start(self) -> None:
        """Start the run, or continue the one that the run folder names."""
        if self._known is not None:
            self.last = self._logged(self._client, self._known)
            self._client.update_run(self._known, status="RUNNING")
            return
        if self._client.get_experiment_by_name(self._wanted_experiment) is None:
            self._client.create_experiment(self._wanted_experiment)  # Lightning would warn
        run_id = self.run_id
        assert run_id is not None
        write_text(self._id_file, run_id + "\n")

    @staticmethod
    def _logged(client: Any, run_id: str) -> dict[str, int]:
        """Return the last step of each metric and image that an earlier process has logged."""
        last = {
            key: max(point.step for point in client.get_metric_history(run_id, key))
            for key in client.get_run(run_id).data.metrics
        }
        for file in client.list_artifacts(run_id, "images"):
            if match := IMAGE.match(file.path):
                key = re.sub("[~#]", "/", match["key"])
                last[key] = max(int(match["step"]), last.get(key, -1))
        return last

    @survives()
    def log_hyperparams(self, params: Any) -> None:
        """Log settings by their dotted names; MLflow never changes one that it has."""
        known = self._client.get_run(self.run_id).data.params
        new = {name: value for name, value in flatten(params).items() if name not in known}
        super().log_hyperparams(new)

    @survives()
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log images under a name."""
        if self.unlogged({key: images}, step):
            for image in images:
                self._client.log_image(self.run_id, image, key=key, step=step)

    @survives()
    def finalize(self, status: str = "success") -> None:
        """Leave the end to :meth:`finish`: images are logged after the training."""

    @survives()
    def finish(self, exit_code: int) -> None:
        """End the run, which has failed unless the exit code is 0."""
        self._client.set_terminated(self.run_id, "FAILED" if exit_code else "FINISHED")
