"""lm-evaluation-harness on an exported model: public task names, or a task file of one's own. No hub is asked.

    model, tokenizer = load_answering(base, adapter)
    figures = run_tasks(model, tokenizer, ["triage.yaml"])      # {"triage": {"acc": 0.75, "acc_stderr": 0.25}}

A task file is the harness's YAML with two restrictions: it carries no code (`!function`), and its data are local files,
found relative to it (`dataset_path: json`, `dataset_kwargs: {data_files: {test: questions.jsonl}}`). The data are not
copied into a shared cache.
"""

import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from confide.errors import DataError, StateError

_READERS = ("json", "csv", "parquet", "text")
_REFUSED = ("include", "custom_dataset", "class")
"""Keys by which a task file would name other files or code."""


def require() -> None:
    """Raises StateError when the harness is not installed. Call it before anything that imports the hub's client."""
    # Read once at import: from then on the hub's client answers from its cache or not at all.
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"})
    if importlib.util.find_spec("lm_eval") is None:
        raise StateError("lm-evaluation-harness is not installed; install it with `pip install 'confide[evaluation]'`")


def read_task(path: Path, cache: Path) -> dict[str, Any]:
    """A task file, its data files made absolute. Raises DataError naming what is wrong with it.

    cache: where the datasets library may put its copy.
    """
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except yaml.constructor.ConstructorError as error:
        raise DataError(
            f"{path} holds {error.problem or 'a tag'}: code in task files is not run. Write the task with templates "
            '(doc_to_text: "{{question}}")'
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} is no task file in YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(document, dict) or not isinstance(document.get("task"), str):
        raise DataError(f"{path} has no field `task` with the task's name")
    refused = sorted(set(document) & set(_REFUSED))
    if refused:
        raise DataError(f"{path} has the field {refused[0]!r}, which is not taken; write the whole task in one file")
    if document.get("dataset_path") not in _READERS:
        raise DataError(
            f"{path}: dataset_path is {document.get('dataset_path')!r}; a task of one's own reads local files: one of "
            f"{', '.join(_READERS)}, with dataset_kwargs: {{data_files: {{test: FILE}}}}"
        )
    for metric in document.get("metric_list") or []:
        if isinstance(metric, dict) and metric.get("hf_evaluate"):
            raise DataError(f"{path}: hf_evaluate would fetch a metric's code from a hub; use a built-in metric")
    options = document.get("dataset_kwargs")
    files = options.get("data_files") if isinstance(options, dict) else None
    return {**document, "dataset_kwargs": {"data_files": _absolute(path, files), "cache_dir": str(cache)}}


def _absolute(task: Path, files: Any) -> dict[str, str]:
    if not isinstance(files, Mapping) or not all(isinstance(name, str) for name in files.values()) or not files:
        raise DataError(f"{task}: dataset_kwargs.data_files must name a local file for each split, such as test: FILE")
    found = {str(split): (task.parent / name).resolve() for split, name in files.items()}
    for split, file in found.items():
        if not file.is_file():
            raise DataError(f"{task}: the file of split {split!r}, {file}, is not there")
    return {split: str(file) for split, file in found.items()}


def run_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[str], *, limit: int | None = None, batch_size: int = 4
) -> dict[str, dict[str, float]]:
    """Metric to value by task. tasks: names that the harness knows, or paths of task files (*.yaml).

    limit: examples of a task at most. Raises DataError for an unknown task, or data that are not on this machine.
    """
    require()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = _known_tasks(shipped=not all(map(_is_file, tasks)))
    with tempfile.TemporaryDirectory(prefix="confide-evaluation-") as cache:
        wanted = [_task(name, manager, Path(cache)) for name in tasks]
        try:
            found = simple_evaluate(
                model=HFLM(
                    pretrained=model,
                    tokenizer=tokenizer,
                    batch_size=batch_size,
                    # As training and chat have it: the tokenizer's own way of beginning a text.
                    add_bos_token=len(tokenizer("a")["input_ids"]) > len(tokenizer.tokenize("a")),
                ),
                tasks=wanted,
                task_manager=manager,
                limit=limit,
                bootstrap_iters=1000,
                log_samples=False,
            )
        except Exception as error:  # the harness and the datasets library raise many kinds
            raise DataError(
                f"the harness could not run {', '.join(tasks)} ({type(error).__name__}: {_first_line(error)}). "
                "Public tasks need their data in this machine's Hugging Face cache: nothing is fetched"
            ) from error
    return {name: _figures(values) for name, values in found["results"].items()}


def check_files(tasks: Sequence[str]) -> None:
    """Raises DataError for a task file that is not there, before anything slow is loaded."""
    for name in tasks:
        if _is_file(name) and not Path(name).is_file():
            raise DataError(f"there is no task file {name}; name a file, or one of the harness's own tasks")


@cache
def _known_tasks(*, shipped: bool) -> Any:
    """The harness's index of tasks. To index the thousands that it ships takes many seconds: only if one is named."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=shipped)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _task(name: str, manager: Any, cache: Path) -> str | dict[str, Any]:
    if _is_file(name):
        return read_task(Path(name), cache)
    if name not in manager.task_index:
        raise DataError(f"the harness knows no task {name!r}; name one of its tasks, or a file that ends in .yaml")
    return name


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    """The harness writes "acc,none": a metric and the filter of answers; the usual filter has no name here."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "," in key
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
