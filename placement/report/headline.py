"""What is gained, in one sentence, and how far to trust it, in another."""

from specmoe.placement.evaluate import Evaluation
from specmoe.placement.report.findings import Findings, Placement


def headline(findings: Findings) -> str:
    """The plan that saves most of the remote copies that `linear` of its setting needs, and what that costs in load."""
    plan = min(findings.plans, key=lambda placement: _ratio(placement, findings.before(placement)))
    before, trace = findings.before(plan), findings.evaluation.trace
    new, old = plan.result.mean, before.result.mean
    several = f", the one of {len(findings.plans)} plans that saves most," if len(findings.plans) > 1 else ""
    change = "" if old.remote_copies_per_token == 0 else f" ({_change_of_copies(plan, before)})"
    return (
        f"On {trace.num_tokens:,} {_kind_of_trace(plan, findings.evaluation)} {plan.label}{several} sends "
        f"{new.remote_copies_per_token:.2f} hidden states per token and layer to other ranks in place of "
        f"{old.remote_copies_per_token:.2f} under linear, the usual order of experts{change}, and its heaviest rank "
        f"carries {new.load_imbalance:.2f} times the mean load in place of {old.load_imbalance:.2f}."
    )


def cautions(findings: Findings) -> list[str]:
    """What a reader must know before believing the table."""
    evaluation, plans = findings.evaluation, findings.plans
    notes = ["eplb, which evens out the load alone, is fitted to the counts of this very trace: its best case."]
    fitted = [plan.label for plan in plans if evaluation.is_in_sample(plan.result)]
    if fitted:
        notes.append(f"Solved from this very trace, expect less on other text: {', '.join(fitted)}.")
    unread = [plan.label for plan in plans if plan.result.has_table and not evaluation.trace.has_token_ids]
    if unread:
        notes.append(f"The trace has no token ids, so these plans' token tables went unread: {', '.join(unread)}.")
    if findings.profile.seen_share is not None:
        share = f"{100 * findings.profile.seen_share:.0f} %"
        notes.append(f"The run that recorded this trace was stopped after {share} of its corpus.")
    worst, best = _extreme_imbalances(plans)
    if worst > best + 0.05:
        notes.append("Plans compare only at about equal load imbalance: crowding hot experts on one rank saves copies.")
    return notes


def percent_change(new: float, old: float) -> str:
    """ "−40 %", its parts kept on one line."""
    return f"{100 * (new / old - 1):+.0f}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")


def _ratio(plan: Placement, before: Placement) -> float:
    old = before.result.mean.remote_copies_per_token
    return plan.result.mean.remote_copies_per_token / old if old else 1.0


def _change_of_copies(plan: Placement, before: Placement) -> str:
    return percent_change(plan.result.mean.remote_copies_per_token, before.result.mean.remote_copies_per_token)


def _kind_of_trace(plan: Placement, evaluation: Evaluation) -> str:
    if plan.plan.profile_fingerprint is None:
        return "tokens"
    return "tokens that it was solved from," if evaluation.is_in_sample(plan.result) else "held-out tokens"


def _extreme_imbalances(plans: list[Placement]) -> tuple[float, float]:
    imbalances = [plan.result.mean.load_imbalance for plan in plans]
    return max(imbalances), min(imbalances)
