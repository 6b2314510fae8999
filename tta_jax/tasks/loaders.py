"""Several tasks by name: given, or loaded when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tta_jax._internal.text import one_line
from tta_jax.tasks.task import Task

Loader = Callable[[], Task]


def named_tasks(tasks: Any, argument: str) -> list[tuple[str, Task | Loader]]:
    """Names and tasks from a mapping, or a sequence of tasks or of names and tasks.

    Raises:
      ValueError: names the argument, what was found and what to do.
    """
    if (
        isinstance(tasks, Task)
        or callable(tasks)
        or not isinstance(tasks, (Mapping, Iterable))
    ):
        raise ValueError(
            f"{argument}: found {type(tasks).__name__}; give a list of tasks, or a "
            "dictionary of tasks by name"
        )
    found = []
    for item in tasks.items() if isinstance(tasks, Mapping) else tasks:
        name, task = (
            item
            if isinstance(item, tuple) and len(item) == 2
            else (getattr(item, "name", ""), item)
        )
        if not isinstance(task, Task) and not callable(task):
            raise ValueError(
                f"{argument}: {name!r} is {type(task).__name__}; give a Task, or a "
                "function that loads one"
            )
        if not name:
            raise ValueError(
                f"{argument}: a function that loads a task needs a name; give a "
                "dictionary of them by name"
            )
        found.append((str(name), task))
    if not found:
        raise ValueError(f"{argument}: there is no task; give at least one")
    return found


def load_task(given: Any) -> Task:
    """The task, whatever is given for it.

    Raises:
      ValueError: if it cannot be had, whatever its function raises.
    """
    try:
        task = given if isinstance(given, Task) else given()
    except (ValueError, OSError) as error:
        raise ValueError(one_line(error)) from None
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {one_line(error)}") from None
    if not isinstance(task, Task):
        raise ValueError(f"its function gave {type(task).__name__}, not a Task")
    return task
