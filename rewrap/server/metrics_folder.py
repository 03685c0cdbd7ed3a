"""The folder in which the workers share their metrics. Does not import prometheus-client."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewrap.server.signals import hold_stop_signals

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client reads it when it is imported


@contextmanager
def metrics_folder() -> Iterator[None]:
    """A block in which the folder exists and the variable names it. Exits with one line if there can be none.

    Begins before prometheus-client is imported.
    """
    hold_stop_signals()  # a signal would end the process and leave the folder behind
    try:
        folder = tempfile.mkdtemp(prefix="rewrap-metrics-")
    except OSError as error:
        sys.exit(f"rewrap: METRICS: no temporary folder for the workers: {error.strerror}")
    os.environ[VARIABLE] = folder
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        shutil.rmtree(folder, ignore_errors=True)


def forget_gauges(pid: int | None) -> None:
    """Remove the gauges of a worker that died: they are of living ones. Its counts stay."""
    folder = os.environ.get(VARIABLE)
    if folder:
        for file in Path(folder).glob(f"gauge_live*_{pid}.db"):
            file.unlink(missing_ok=True)
