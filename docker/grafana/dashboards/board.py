"""A dashboard of rows of panels, with what all of ours have in common: variables, links to each other, time, numbered panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    TimePicker,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from dashboards.panels import SOURCE, AnyPanel

TAG = "grapevine"
REFRESH = "5s"


@dataclass(frozen=True, slots=True)
class Section:
    """A row of the dashboard, with its heading."""

    title: str
    panels: Sequence[AnyPanel]


@dataclass(frozen=True, slots=True)
class Choice:
    """A variable: the values of a label. several: any number of them, all at first; else one.

    Where several may be chosen the name is a plural, so that a link to another dashboard does not choose All where there is to be one.
    """

    name: str
    description: str
    query: str
    several: bool

    def build(self) -> Builder[models.VariableModel]:
        made = (
            QueryVariable(self.name)
            .label(self.name)
            .description(self.description)
            .datasource(SOURCE)
            .query(self.query)
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.NATURAL_ASC)
            .multi(self.several)
            .include_all(self.several)
        )
        if self.several:
            everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
            made = made.all_value(".*").current(everything)
        return made


def board(
    uid: str, title: str, description: str, choices: Sequence[Choice], sections: Sequence[Section]
) -> models.Dashboard:
    """The dashboard, laid out: sections from above, panels from the left, as many in a line as fit."""
    made = (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-15m", "now")
        .refresh(REFRESH)
        .timepicker(TimePicker().refresh_intervals([REFRESH, "10s", "30s", "1m", "5m"]))
        .editable()
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .link(
            DashboardLink("Grapevine")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
    )
    for choice in choices:
        made = made.with_variable(choice.build())
    for section in sections:
        made = made.with_row(Row(section.title))
        for panel in section.panels:
            made = made.with_panel(panel)
    result = made.build()
    for number, member in enumerate(result.panels or [], start=1):
        member.id_val = number
    return result
