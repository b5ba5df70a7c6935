"""The live page: KPI cards, flows, tables, health, business applications. Each viewer gets only what changed."""

from __future__ import annotations

import time
from html import escape
from pathlib import Path
from typing import Literal

from nicegui import ui

from serving.collect import Collector
from serving.kpis import Kpi
from serving.render import (
    captures_table,
    chart_options,
    clock,
    flows_table,
    health_table,
    human,
    number,
    syncs_table,
    tables_table,
)

CSS = (Path(__file__).parent / "theme.css").read_text()
SYNC = "sync:"
Theme = Literal["light", "dark", "auto"]


class KpiCard:
    """One KPI: headline, chart, as of when and at which revision."""

    def __init__(self, kpi: Kpi) -> None:
        self._shown: tuple[object, ...] = ()
        with ui.element("section").classes("card").props(f'data-kpi="{kpi.name}"'):
            ui.html(f"<h2>{escape(kpi.title or human(kpi.name))}</h2>", sanitize=False).tooltip(kpi.doc or kpi.title)
            self._headline = ui.html("", sanitize=False)
            self._as_of = ui.label().classes("asof")
            self._chart = ui.echart(chart_options(kpi)).classes("chart")
        self.show(kpi)

    def show(self, kpi: Kpi) -> None:
        state = (kpi.revision, kpi.as_of, len(kpi.points))
        if state == self._shown:
            return
        self._shown = state
        self._headline.set_content(
            f'<div class="headline">{number(kpi.headline)}<small>{escape(kpi.unit)}</small></div>'
        )
        what = "newest window" if kpi.windowed else "since the beginning"
        self._as_of.set_text(f"{what} · as of {clock(kpi.as_of)} UTC")
        self._chart.options.clear()
        self._chart.options.update(chart_options(kpi))
        self._chart.update()


class Panel:
    """A titled table that is sent again only when it changed."""

    def __init__(self, title: str) -> None:
        self._content = ""
        with ui.element("section").classes("card"):
            ui.html(f"<h2>{escape(title)}</h2>", sanitize=False)
            self._body = ui.html("", sanitize=False).style("width: 100%")

    def show(self, content: str) -> None:
        if content != self._content:
            self._content = content
            self._body.set_content(content)


def build(collector: Collector, theme: Theme = "auto") -> None:
    """Lay the page out and keep it fresh for one viewer."""
    ui.add_css(CSS)
    dark = ui.dark_mode({"light": False, "dark": True, "auto": None}[theme])
    cards: dict[str, KpiCard] = {}
    with ui.element("main").classes("page"):
        with ui.element("header").classes("top"):
            ui.html('<div class="brand">Headrace<small>live</small></div>', sanitize=False)
            state = ui.label("starting").classes("pill")
            ui.element("div").classes("spacer")
            as_of = ui.label().classes("asof")
            ui.button(icon="contrast", on_click=lambda: dark.set_value(not dark.value)).props(
                'flat round dense aria-label="Switch between light and dark"'
            )
        troubles = ui.label().classes("troubles")
        kpis = ui.element("div").classes("kpis")
        with kpis:
            waiting = ui.html('<p class="empty">Waiting for the first KPI value …</p>', sanitize=False)
        with ui.element("div").classes("panels"):
            with ui.element("div").classes("stackup"):
                flows = Panel("Flows: rows proved in their target, lag, quarantine")
                syncs = Panel("Business applications (reverse ETL)")
            with ui.element("div").classes("stackup"):
                tables = Panel("Iceberg tables")
                captures = Panel("Change data capture")
                health = Panel("Processes")

    def refresh() -> None:
        snapshot, now = collector.snapshot, time.time()
        for kpi in sorted(snapshot.kpis, key=lambda k: (not k.windowed, k.name)):
            if kpi.name in cards:
                cards[kpi.name].show(kpi)
            elif kpi.points:
                waiting.set_visibility(False)
                with kpis:
                    cards[kpi.name] = KpiCard(kpi)
        found = snapshot.troubles()
        state.set_text(f"{len(found)} to look at" if found else "all flowing")
        state.classes(replace=f"pill {'bad' if found else 'ok'}")
        troubles.set_text("\n".join(found[:6]))
        troubles.set_visibility(bool(found))
        as_of.set_text(time.strftime("%H:%M:%S UTC", time.gmtime(now)))
        flows.show(flows_table([f for f in snapshot.flows if not f.name.startswith(SYNC)], now))
        syncs.show(syncs_table([f for f in snapshot.flows if f.name.startswith(SYNC)], now))
        tables.show(tables_table(snapshot.tables, now))
        captures.show(captures_table(snapshot.connectors, now))
        health.show(health_table(snapshot))

    refresh()
    ui.timer(1.0, refresh)
