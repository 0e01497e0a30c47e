"""What a report measures beside the metrics: traffic, load, who sits together, and how far token tables reach."""

from dataclasses import replace

import numpy as np
import pytest

from specmoe.errors import UsageError
from specmoe.placement.homes import homes_of
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.report.detail import placement_detail, share_together
from specmoe.placement.report.domain_section import domain_section
from specmoe.placement.report.findings import gather
from specmoe.placement.report.table_use import table_use
from specmoe.placement.serving import serve_layer
from specmoe.profiler.routing_profile import RoutingProfile


@pytest.fixture(scope="module")
def trace(folder) -> RoutingProfile:
    return RoutingProfile.load(folder / "trace")


def test_traffic_adds_up_to_the_metrics(findings) -> None:
    for placement in findings.placements:
        mean, detail = placement.result.mean, placement.detail
        assert detail.rows.sum() == pytest.approx(mean.remote_copies_per_token)
        assert detail.node_rows.sum() == pytest.approx(mean.internode_copies_per_token)
        assert np.diagonal(detail.rows).sum() == np.diagonal(detail.node_rows).sum() == 0
        layers = [layer.load_imbalance for layer in placement.result.layers]
        assert detail.load.max(axis=1) == pytest.approx(layers)


def test_traffic_is_counted_from_the_home_to_the_serving_rank(folder, trace) -> None:
    plan = PlacementPlan.load(folder / "nodes.plan")
    assert trace.sample is not None
    homes = homes_of(plan, trace.sample)
    rows, node_rows = np.zeros((4, 4)), np.zeros((2, 2))
    for layer in range(plan.num_layers):
        served = serve_layer(plan, layer, trace.sample.expert_ids[:, layer], homes[layer])
        for home, ranks in zip(homes[layer].tolist(), served.tolist(), strict=True):
            for rank in set(ranks) - {home}:
                rows[home, rank] += 1
            for node in {rank // 2 for rank in ranks} - {home // 2}:
                node_rows[home // 2, node] += 1
    detail = placement_detail(plan, trace.sample)
    scale = plan.num_layers * trace.sample.num_tokens
    assert detail.rows == pytest.approx(rows / scale)
    assert detail.node_rows == pytest.approx(node_rows / scale)


def test_pairs_are_together_where_some_rank_holds_both(folder, trace) -> None:
    plan = PlacementPlan.load(folder / "dp.plan")
    assert trace.sample is not None
    shares = share_together(plan, trace.coactivation_counts)
    for layer in range(plan.num_layers):
        held = [set(plan.physical_to_logical[layer, plan.rank_of_physical == rank].tolist()) for rank in range(2)]
        pairs = [set(pair) for pair in trace.sample.expert_ids[:, layer].tolist()]
        together = [any(pair <= experts for experts in held) for pair in pairs]
        assert shares[layer] == pytest.approx(np.mean(together))


def test_a_dp_table_is_known_where_it_pulls_and_followed_where_it_wins(folder, trace) -> None:
    plan = PlacementPlan.load(folder / "dp.plan")
    assert trace.sample is not None
    assert plan.token_affinity is not None
    use = table_use(plan, trace.sample, 1.25)
    assert use is not None
    assert (use.num_ids, use.known_ids, use.copies_with) == (40, pytest.approx(30 / 40), 1.25)
    ids = trace.sample.token_ids
    assert use.known_tokens == pytest.approx(np.mean((ids >= 10) & (ids < 40)))
    homes = homes_of(plan, trace.sample)[0][::30]
    table = np.concatenate([plan.token_affinity.astype(float), np.zeros((10, 2))])
    pulls = np.stack([table[ids[start : start + 15]].sum(axis=0) for start in range(0, 300, 30)])
    assert use.followed == pytest.approx(np.mean(pulls[np.arange(10), homes] == pulls.max(axis=1)))


def test_a_tp_table_is_known_and_followed_by_layer(folder, trace) -> None:
    plan = PlacementPlan.load(folder / "tp.plan")
    assert trace.sample is not None
    assert plan.token_to_rank is not None
    use = table_use(plan, trace.sample, 1.25)
    assert use is not None
    wanted = plan.token_to_rank[:, trace.sample.token_ids]
    assert use.known_ids == pytest.approx(np.mean(plan.token_to_rank >= 0))
    assert use.known_tokens == pytest.approx(np.mean(wanted >= 0))
    followed = (homes_of(plan, trace.sample) == wanted)[wanted >= 0]
    assert 0.5 < use.followed == pytest.approx(followed.mean())


def test_without_token_ids_or_entries_there_is_no_use_of_a_table(folder, trace) -> None:
    plan = PlacementPlan.load(folder / "dp.plan")
    assert trace.sample is not None
    assert table_use(plan, replace(trace.sample, token_ids=None), 1.0) is None
    assert table_use(replace(plan, token_affinity=None), trace.sample, 1.0) is None
    assert table_use(replace(plan, token_affinity=np.zeros((0, 2), dtype=np.float16)), trace.sample, 1.0) is None


def test_every_plan_stands_beside_the_linear_of_its_setting(findings) -> None:
    for plan in findings.plans:
        before = findings.before(plan)
        assert before.result.plan.method == "linear"
        assert before.plan.attention == plan.plan.attention
        assert before.plan.topology.ranks_per_node == plan.plan.topology.ranks_per_node
    assert list(findings.settings) == [
        "2 ranks, attention dp",
        "2 ranks, attention tp",
        "4 ranks on 2 nodes (2 + 2), attention dp",
    ]
    for group in findings.settings.values():
        assert [placement.short for placement in group[1:]] == ["linear", "round_robin", "eplb"]


def test_plans_of_one_name_are_told_apart_by_their_folders(folder, tmp_path) -> None:
    other = tmp_path / "dp.plan"
    other.write_bytes((folder / "dp.plan").read_bytes())
    found = gather([folder / "dp.plan", other, folder / "tp.plan"], folder / "trace")
    assert [plan.label for plan in found.plans] == [str(folder / "dp.plan"), str(other), "tp.plan"]


def test_a_plan_given_twice_is_refused(folder) -> None:
    with pytest.raises(UsageError, match="was given twice"):
        gather([folder / "dp.plan", folder / "dp.plan"], folder / "trace")


def test_a_domain_is_as_far_as_its_own_counts_are_from_all(findings, trace) -> None:
    assert trace.sample is not None
    shares = [
        np.stack([np.bincount(ids[:, layer].ravel(), minlength=8) for layer in range(3)]) / (2 * len(ids))
        for ids in (trace.sample.expert_ids, *(trace.sample.expert_ids[trace.sample.domain_ids == d] for d in (0, 1)))
    ]
    expected = [np.abs(own - shares[0]).sum(axis=1).mean() / 2 for own in shares[1:]]
    assert findings.distances == pytest.approx(expected)
    assert min(expected) > 0


def test_domains_are_shown_the_largest_first_with_what_they_cost(findings) -> None:
    section = domain_section(findings)
    [table, *_] = section.tables
    assert [(row.heading, row.cells[0].text) for row in table.rows] == [("0", "180"), ("1", "120")]
    plan = findings.plans[0]
    first = plan.result.domains[0].mean
    assert f"{first.remote_copies_per_token:.3f} ({first.load_imbalance:.3f})" == table.rows[0].cells[2].text
    copies = [domain.mean.remote_copies_per_token for domain in plan.result.domains]
    assert f"sends most for {int(np.argmax(copies))} ({max(copies):.2f} " in section.text[1]


def test_a_trace_of_one_domain_has_nothing_to_compare(folder, trace, tmp_path) -> None:
    one = np.zeros(trace.sample.num_tokens, dtype=np.int16)
    replace(trace, sample=replace(trace.sample, domain_ids=one)).save(tmp_path / "one")
    found = gather([folder / "dp.plan"], tmp_path / "one")
    assert found.distances == ()
    assert domain_section(found).tables == ()
    assert "domains" not in found.evaluation.to_json()["results"][0]
