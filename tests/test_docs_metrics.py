"""``docs/metrics.md`` and the dashboard name what the router exports: no more, no less, no other labels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from neuron_server.config import RouterConfig
from neuron_server.router.metrics import Metrics

DOCS = Path(__file__).parents[1] / "docs"
DASHBOARD = json.loads((DOCS / "grafana" / "dashboard.json").read_text())

FAMILIES = {
    family.name: family
    for family in Metrics(
        RouterConfig(
            model_id="M",
            tokenizer_path="/nowhere",
            shard_uds_paths=("/nowhere.sock",),
            batch_size=4,
            max_input_tokens=8,
            max_total_tokens=16,
        )
    ).registry.families
}

#: Labels that Prometheus adds to what it scrapes.
TARGET_LABELS = {"job", "instance"}

#: What TGI's own board queries, less ``tgi_batch_concat_duration`` (see docs/metrics.md).
TGI_BOARD = {
    *("tgi_request_count", "tgi_request_success", "tgi_request_failure", "tgi_request_duration"),
    *("tgi_request_queue_duration", "tgi_request_mean_time_per_token_duration", "tgi_request_input_length"),
    *("tgi_request_generated_tokens", "tgi_request_skipped_tokens", "tgi_queue_size"),
    *("tgi_batch_current_size", "tgi_batch_current_max_tokens", "tgi_batch_concat"),
    *("tgi_batch_decode_duration", "tgi_batch_filter_duration", "tgi_batch_forward_duration"),
    "tgi_batch_inference_duration",
}


def rows() -> list[tuple[str, str, tuple[str, ...], str]]:
    """(name, type, labels, from) of every line of the tables of metrics."""
    cells = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in (DOCS / "metrics.md").read_text().splitlines()
        if re.match(r"\| `\w*tgi_", line)
    ]
    return [(c[0].strip("`"), c[1], tuple(re.findall(r"\w+", c[2])), c[3]) for c in cells]


def panels() -> list[dict]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """(series, labels it is selected by) of each metric in a PromQL expression."""
    found = re.findall(r"\b((?:neuronx_)?tgi_\w+)(?:\{([^}]*)\})?", expression)
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers))) for name, matchers in found]


def family_of(series: str):
    """The family that exports ``series``; a histogram's own name is no series."""
    for family in FAMILIES.values():
        suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        if series in {family.name + suffix for suffix in suffixes}:
            return family
    return None


def test_the_document_lists_exactly_what_is_exported():
    listed = {name: (kind, labels) for name, kind, labels, _ in rows()}
    assert len(listed) == len(rows())
    assert listed == {family.name: (family.kind, family.label_names) for family in FAMILIES.values()}


def test_every_metric_stands_under_whose_it_is():
    for name, _, _, whose in rows():
        assert whose == ("TGI" if name.startswith("tgi_") else "ours"), name


@pytest.mark.parametrize(("title", "expression"), queries())
def test_every_series_of_the_dashboard_is_exported_with_the_labels_it_is_selected_by(title, expression):
    assert selectors(expression), title
    exported = set()
    for series, labels in selectors(expression):
        family = family_of(series)
        assert family is not None, f"{title}: nothing exports {series}"
        exported |= set(family.label_names)
        assert labels <= {*family.label_names, *TARGET_LABELS, "le"}, f"{title}: {series}{labels}"
        assert labels >= TARGET_LABELS, f"{title}: {series} is not limited to the chosen instances"
    for group in re.findall(r"by \(([^)]*)\)", expression):
        names = set(re.split(r",\s*", group))
        assert names <= exported | TARGET_LABELS | {"le"}, f"{title}: by ({group})"
        assert ("le" in names) == ("histogram_quantile" in expression), f"{title}: by ({group})"


def test_the_dashboard_covers_tgis_board_and_every_metric_of_ours():
    shown = {family_of(series).name for _, expression in queries() for series, _ in selectors(expression)}
    assert shown >= TGI_BOARD
    assert shown >= {name for name in FAMILIES if name.startswith("neuronx_tgi_")}


def test_legends_name_labels_that_their_query_keeps():
    for panel in panels():
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                kept = ",".join(re.findall(r"by \(([^)]*)\)", target["expr"]))
                assert label in kept, f"{panel['title']}: {target['legendFormat']}"


def test_the_dashboard_can_be_imported_anywhere():
    """A data source of its own choice, panels that do not overlap, ids that are unique."""
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", *TARGET_LABELS}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert "id" not in DASHBOARD  # Grafana gives its own
    cells = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        covered = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not covered & cells, panel["title"]
        cells |= covered
    for panel in panels():
        used = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in used)


def test_the_dashboard_has_a_row_for_the_static_batch():
    assert "Static batch" in [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
