"""The options of an estimate: what it assumes about the line, the machine's place and prices."""

from __future__ import annotations

from collections.abc import Mapping

from .option_field import OptionField, parse_duration, parse_rate

ESTIMATE = "Estimate"

ASSUMPTIONS: Mapping[str, OptionField] = {
    "bandwidth": OptionField("Bandwidth of the line, for the time estimate.", "RATE", ESTIMATE, "1GB/s", parse_rate),
    "latency": OptionField("Latency of a request, for the time estimate.", "TIME", ESTIMATE, "20ms", parse_duration),
    "nodes": OptionField(
        "Machines like this one that would share the work, for the time estimate.", "N", ESTIMATE, "1", least=1
    ),
    "egress": OptionField(
        "Where this machine is, seen from the source: in its region, or outside.",
        "region|internet",
        ESTIMATE,
        "region",
        choices=("region", "internet"),
    ),
    "prices": OptionField("Price tables that take precedence over the built-in ones.", "URL", ESTIMATE),
    "price_table": OptionField("Price table to use for all stores.", "NAME", ESTIMATE, "each store's own"),
}
"""What an estimate assumes."""
