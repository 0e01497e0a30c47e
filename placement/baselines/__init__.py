"""The placements that engines use today, to measure plans against: `linear`, `round_robin` and `eplb`."""
