"""What a person sees while a stack starts or stops: a live list on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.spinner import Spinner
from rich.text import Text

from stack.state import Child

MARKS = {
    "running": ("✓", "green"),
    "failed": ("✗", "red"),
    "restarting": ("!", "yellow"),
    "unhealthy": ("!", "yellow"),
    "stopped": ("·", "dim"),
}
TOLD = ("running", "unhealthy", "restarting", "failed", "stopped")


class Show:
    """A context manager; hand its `child` and `download` to `stack.control.up` or `stop`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.begun = time.monotonic()
        self.children: dict[str, tuple[Child, float]] = {}
        self.bar = Progress(
            TextColumn("fetching servers"), BarColumn(), MofNCompleteColumn(), TextColumn("files"), console=console
        )
        self.task = self.bar.add_task("", total=None, visible=False)
        self.live = Live(get_renderable=self._render, console=console, transient=False) if console.is_terminal else None

    def __enter__(self) -> Show:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def child(self, child: Child) -> None:
        """One server or process has changed."""
        before = self.children.get(child.name)
        self.children[child.name] = (child, time.monotonic() - self.begun)
        if self.live is None and child.state in TOLD and (before is None or before[0].state != child.state):
            self.console.print(self._line(child.name), soft_wrap=True)

    def download(self, done: int, missing: int) -> None:
        """`done` of `missing` files have arrived."""
        self.bar.update(self.task, completed=done, total=missing, visible=True)
        step = max(1, missing // 4)
        if self.live is None and (done % step == 0 or done == missing):
            self.console.print(f"fetching servers: {done} of {missing} files")

    def _line(self, name: str) -> Text:
        child, seconds = self.children[name]
        mark, style = MARKS.get(child.state, ("", ""))
        port = f" :{child.port}" if child.port and child.state == "running" else ""
        reason = f" {child.problem}" if child.problem else ""
        return Text.assemble((mark, style), f" {name:<12} {child.state}{port}{reason} ", (f"{seconds:.1f} s", "dim"))

    def _render(self) -> Group:
        rows: list[Text | Spinner | Progress] = [self.bar] if self.bar.tasks[0].visible else []
        for name, (child, _) in self.children.items():
            settled = child.state in TOLD or child.state == "waiting"
            rows.append(self._line(name) if settled else Spinner("dots", Text(f" {name:<11} {child.state}")))
        return Group(*rows)
