"""How panels look: a function for each kind that is used, made of the builders of Grafana's own SDK.

A panel says in its description what to read from it. Its queries say in their legend which labels a series has: the tests hold that every
series of the answer really has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    nodegraph,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as values
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Panel,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

#: Of all panels: which Prometheus is asked is a variable, so that a dashboard can be imported elsewhere.
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
#: Widths are of 24.
FULL, HALF, THIRD, QUARTER, EIGHTH = 24, 12, 8, 6, 3
#: Heights are of 30 pixels.
LOW, HIGH, TALL = 4, 8, 10

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"

AnyPanel: TypeAlias = Builder[Panel]


@dataclass(frozen=True, slots=True)
class Query:
    """legend: of a series, with {{label}}; in a table the heading of the value's column. The rest is of a table's column."""

    expr: str
    legend: str = ""
    unit: str = ""
    decimals: int | None = None
    thresholds: Sequence[Threshold] = ()


def steps(base: str, *further: tuple[float, str]) -> tuple[Threshold, ...]:
    """Colours by value: `base` from below, then each from its value on."""
    return (Threshold(value=None, color=base), *(Threshold(value=value, color=color) for value, color in further))


def series(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    width: int = HALF,
    stacked: bool = False,
    most: float | None = None,
    logarithmic: bool = False,
    limit: float | None = None,
    table_legend: bool = False,
) -> AnyPanel:
    """Curves in time. limit: where a dashed line warns. Stacked curves are filled."""
    legend = common.VizLegendOptions().show_legend(True).placement(values.LegendPlacement.BOTTOM)
    if table_legend:
        legend = legend.display_mode(values.LegendDisplayMode.TABLE).calcs(["mean", "max", "lastNotNull"])
    else:
        legend = legend.display_mode(values.LegendDisplayMode.LIST)
    tooltip = common.VizTooltipOptions().mode(values.TooltipDisplayMode.MULTI).sort(values.SortOrder.DESCENDING)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(width)
        .height(HIGH)
        .unit(unit)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .line_width(1)
        .fill_opacity(60 if stacked else 5)
        .show_points(values.VisibilityMode.NEVER)
        .legend(legend)
        .tooltip(tooltip)
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(values.StackingMode.NORMAL))
    if most is not None:
        panel = panel.max(most)
    if logarithmic:
        panel = panel.scale_distribution(common.ScaleDistributionConfig().type(values.ScaleDistribution.LOG).log(10))
    else:
        panel = panel.min(0)
    if limit is not None:
        dashed = common.GraphThresholdsStyleConfig().mode(values.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_absolute(steps("transparent", (limit, RED)))).thresholds_style(dashed)
    return panel.targets([_range(query, at) for at, query in enumerate(queries)])


def number(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str,
    thresholds: Sequence[Threshold] = (),
    decimals: int | None = None,
    trend: bool = True,
) -> AnyPanel:
    """One value now, with its curve behind it; without a trend, its name."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(EIGHTH)
        .height(LOW)
        .unit(unit)
        .graph_mode(values.BigValueGraphMode.AREA if trend else values.BigValueGraphMode.NONE)
        .color_mode(values.BigValueColorMode.VALUE)
        .text_mode(values.BigValueTextMode.VALUE if trend else values.BigValueTextMode.NAME)
        .thresholds(_absolute(thresholds or steps(BLUE)))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    return panel.targets([_range(query, 0) if trend else _instant(query, 0, PromQueryFormat.TIME_SERIES)])


def bars(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str,
    thresholds: Sequence[Threshold],
) -> AnyPanel:
    """A horizontal bar for each series, now."""
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(HALF)
        .height(HIGH)
        .unit(unit)
        .min(0)
        .orientation(values.VizOrientation.HORIZONTAL)
        .display_mode(values.BarGaugeDisplayMode.GRADIENT)
        .thresholds(_absolute(thresholds))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .targets([_instant(query, 0, PromQueryFormat.TIME_SERIES)])
    )


def histogram(title: str, description: str, bucket_expr: str, *, unit: str, width: int = HALF) -> AnyPanel:
    """A Prometheus histogram in time; `bucket_expr` is summed by le."""
    query = Query(bucket_expr, "{{le}}")
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(width)
        .height(HIGH)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(values.AxisPlacement.LEFT))
        .cell_values(heatmap.CellValues().unit("cps"))
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64).exponent(0.5))
        .cell_gap(1)
        .show_legend()
        .mode(values.TooltipDisplayMode.SINGLE)
        .targets([_range(query, 0).format(PromQueryFormat.HEATMAP)])
    )


def states(
    title: str,
    description: str,
    query: Query,
    words: Mapping[str, tuple[str, str]],
    *,
    width: int = HALF,
) -> AnyPanel:
    """A strip in time for each series; words: value -> (word, colour)."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(width)
        .height(HIGH)
        .mappings([_words(words)])
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .show_value(values.VisibilityMode.NEVER)
        .merge_values(True)
        .row_height(0.8)
        .fill_opacity(80)
        .legend(common.VizLegendOptions().show_legend(True).display_mode(values.LegendDisplayMode.LIST))
        .targets([_range(query, 0)])
    )


def rows(
    title: str,
    description: str,
    key: Sequence[str],
    *columns: Query,
    width: int = FULL,
    height: int = HIGH,
    links: Mapping[str, tuple[str, str]] | None = None,
) -> AnyPanel:
    """A table with a row for each combination of the labels `key`, now, and a column for each query. links: label -> (tooltip, URL)."""
    renamed = {_value(at, len(columns)): query.legend for at, query in enumerate(columns)}
    order = {name: at for at, name in enumerate([*key, *renamed])}
    panel = (
        _table(title, description, width, height)
        .with_transformation(_transformation("merge", {}))
        .with_transformation(
            _transformation(
                "organize", {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": renamed}
            )
        )
        .targets([_instant(query, at, PromQueryFormat.TABLE) for at, query in enumerate(columns)])
    )
    for query in columns:
        looks = [DynamicConfigValue(id_val="unit", value=query.unit or "short")]
        if query.decimals is not None:
            looks.append(DynamicConfigValue(id_val="decimals", value=query.decimals))
        if query.thresholds:
            looks.append(DynamicConfigValue(id_val="thresholds", value=_absolute(query.thresholds).build()))
            looks.append(DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}))
        panel = panel.override_by_name(query.legend, looks)
    for label, (tooltip, url) in (links or {}).items():
        panel = panel.override_by_name(
            label, [DynamicConfigValue(id_val="links", value=[{"title": tooltip, "url": url}])]
        )
    return panel


def facts(title: str, description: str, query: Query, *labels: str, width: int = FULL, height: int = LOW) -> AnyPanel:
    """A table of the labels of an info metric, one row for each series."""
    order = {name: at for at, name in enumerate(labels)}
    include = {
        "includeByName": dict.fromkeys(labels, True),
        "excludeByName": {},
        "indexByName": order,
        "renameByName": {},
    }
    return (
        _table(title, description, width, height)
        .with_transformation(_transformation("organize", include))
        .targets([_instant(query, 0, PromQueryFormat.TABLE)])
    )


def matrix(
    title: str,
    description: str,
    query: Query,
    *,
    down: str,
    across: str,
    unit: str,
    thresholds: Sequence[Threshold],
) -> AnyPanel:
    """A table with a row for each value of one label and a column for each of another, now, coloured by value."""
    cells = {"type": "color-background", "mode": "gradient"}
    grouped = {"rowField": down, "columnField": across, "valueField": "Value", "emptyValue": "zero"}
    return (
        _table(title, description, HALF, TALL)
        .unit(unit)
        .thresholds(_absolute(thresholds))
        .with_transformation(_transformation("groupingToMatrix", grouped))
        .override_by_field_type("number", [DynamicConfigValue(id_val="custom.cellOptions", value=cells)])
        .targets([_instant(query, 0, PromQueryFormat.TABLE)])
    )


def graph(
    title: str,
    description: str,
    *,
    nodes: Query,
    edges: Query,
) -> AnyPanel:
    """A graph, now: nodes with the labels id and title, edges with id, source and target; each with its value, and its unit as a word."""
    renamed = {"Value #nodes": "mainstat", "Value #edges": "mainstat"}
    looks_of_nodes = nodegraph.NodeOptions().main_stat_unit(nodes.unit)
    looks_of_edges = nodegraph.EdgeOptions().main_stat_unit(edges.unit)
    return (
        nodegraph.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(HALF)
        .height(TALL)
        .nodes(looks_of_nodes)
        .edges(looks_of_edges)
        .with_transformation(
            _transformation("organize", {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": renamed})
        )
        .targets(
            [
                _instant(nodes, 0, PromQueryFormat.TABLE).ref_id("nodes"),
                _instant(edges, 1, PromQueryFormat.TABLE).ref_id("edges"),
            ]
        )
    )


def _table(title: str, description: str, width: int, height: int) -> table.Panel:
    made = table.Panel().title(title).description(description).datasource(SOURCE).span(width).height(height)
    return made.align(values.FieldTextAlignment.AUTO)


def _range(query: Query, at: int) -> Dataquery:
    made = _query(query, at).range().format(PromQueryFormat.TIME_SERIES)
    return made.legend_format(query.legend) if query.legend else made


def _instant(query: Query, at: int, shape: PromQueryFormat) -> Dataquery:
    made = _query(query, at).instant().format(shape)
    return made.legend_format(query.legend) if query.legend and shape is not PromQueryFormat.TABLE else made


def _query(query: Query, at: int) -> Dataquery:
    return Dataquery().expr(query.expr).ref_id(_letter(at)).datasource(SOURCE)


def _letter(at: int) -> str:
    return chr(ord("A") + at)


def _value(at: int, of: int) -> str:
    """How Grafana calls the column of a query's value."""
    return f"Value #{_letter(at)}" if of > 1 else "Value"


def _absolute(thresholds: Sequence[Threshold]) -> dashboard.ThresholdsConfig:
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(list(thresholds))


def _words(words: Mapping[str, tuple[str, str]]) -> ValueMapping:
    options = {
        value: ValueMappingResult(text=word, color=color, index=at)
        for at, (value, (word, color)) in enumerate(words.items())
    }
    return ValueMap(options=options)


def _transformation(name: str, options: Mapping[str, object]) -> DataTransformerConfig:
    return DataTransformerConfig(id_val=name, options=options)
