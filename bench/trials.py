"""Many runs side by side in processes, each kept as it ends, so that a long series can be resumed."""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from hashlib import sha256
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from bench.bound import bound
from bench.runs import PROFILES, Setting, profile, run_in_detail

FORMAT = 2
"""What records tell; raised when figures come or go, so that older ones are not taken for new."""
BOUND = "bound"
"""What takes a policy's place where the clairvoyant bound is wanted."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One policy (or BOUND) in one setting with one seed; `cell` names the setting."""

    cell: str
    policy: str
    seed: int
    setting: Setting
    bound_limit_s: float = 20.0

    @property
    def key(self) -> str:
        """Changes with anything that a record depends on but the rest of the code."""
        path = PROFILES / f"{self.setting.profile}.csv"
        path = path if path.exists() else Path(self.setting.profile)
        described = json.dumps([FORMAT, asdict(self)], sort_keys=True, default=str)
        return sha256(described.encode() + path.read_bytes()).hexdigest()[:16]


Record = dict[str, Any]


def perform(trial: Trial) -> Record:
    """Run a trial; the record has its figures, and what they belong to."""
    setting = trial.setting.seeded(trial.seed)
    if trial.policy == BOUND:
        found = bound(setting.arrivals(), profile(setting.profile), setting.gpus, trial.bound_limit_s)
        figures: Record = {**asdict(found), "sar": found.sar, "sar_weighted": found.sar}
        del figures["chosen"]  # long, and of no use in tables
    else:
        figures = run_in_detail(trial.policy, setting)
    return {"key": trial.key, "cell": trial.cell, "policy": trial.policy, "seed": trial.seed, **figures}


def perform_all(
    trials: Sequence[Trial],
    jobs: int,
    file: Path | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[Record]:
    """Records of all trials, in their order; those that `file` has already are not run again.

    `progress` is told how many are done, of how many. An interrupted series keeps what has ended.
    """
    known = {record["key"]: record for record in _read(file)}
    missing = [trial for trial in trials if trial.key not in known]
    progress(len(trials) - len(missing), len(trials))
    for done, record in enumerate(_in_processes(missing, jobs), len(trials) - len(missing) + 1):
        known[record["key"]] = record
        if file is not None:
            torn = file.exists() and not file.read_bytes().endswith(b"\n")
            with file.open("a") as out:
                out.write("\n" * torn + json.dumps(record) + "\n")
        progress(done, len(trials))
    return [known[trial.key] for trial in trials]


def _in_processes(trials: Sequence[Trial], jobs: int) -> Iterator[Record]:
    if jobs == 1 or len(trials) < 2:
        yield from map(perform, trials)
        return
    # Solvers and linear algebra would each take all cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    spawn = get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_end_with_parent) as pool:
        futures: list[Future[Record]] = [pool.submit(perform, trial) for trial in trials]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Do not stay behind when the command is killed."""
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _read(file: Path | None) -> Iterable[Record]:
    if file is None or not file.exists():
        return
    for line in file.read_text(errors="replace").splitlines():
        # Half a line is what a run leaves that is killed while it writes, and who knows what a machine that
        # fails: those trials are run again.
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict) and "key" in record:
                yield record
