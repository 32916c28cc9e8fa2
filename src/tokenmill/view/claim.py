"""A claim's record as lines of text; nothing here needs more than Python."""

from __future__ import annotations

import textwrap
from typing import Any

INDENT = "  "


def check_line(check: dict[str, Any]) -> str:
    """One check in one sentence."""
    if check["outcome"] == "not testable here":
        return f"{check['what']}: not testable here, {check['lacking']}"
    return f"{check['what']}: {pair(check)}, {claimed(check)}: {check['outcome']} ({precision(check)})"


def pair(check: dict[str, Any]) -> str:
    """The two figures and their difference with its interval."""
    if check["difference"] is None or check["value"] is None:
        return f"{check['method']} gave a number that is not finite"
    text = f"{check['method']} {check['value']:.4g}, {check['rival']} {check['rival_value']:.4g}"
    return f"{text}, difference {interval(check)}"


def interval(check: dict[str, Any]) -> str:
    """Such as "+0.42 [+0.27, +0.57]"; no brackets where one sample has no interval."""
    d = check["difference"]
    if d is None:
        return "not a number"
    return f"{d['mean']:+.3g}" + ("" if d["low"] is None else f" [{d['low']:+.3g}, {d['high']:+.3g}]")


def claimed(check: dict[str, Any]) -> str:
    """The side of the margin that the paper claims."""
    if check["identity"]:
        return "claimed equal"
    bound = check["margin"] if check["better"] == "lower" else 0.0 - check["margin"]
    return f"claimed {'above' if check['better'] == 'higher' else 'below'} {bound:g}"


def precision(check: dict[str, Any]) -> str:
    """The number of samples, the kind of interval, and what it would have found."""
    d = check["difference"]
    text = f"n = {check['samples']}" + (f", {d['method']}" if d else "")
    if check["detectable"] is None:
        return text
    if check["identity"]:
        return f"{text}; 80 % power from {check['detectable']:.0%} unequal on"
    return f"{text}; 80 % power from {check['detectable']:.2g} beyond the margin on"


def lines(record: dict[str, Any], width: int = 100) -> list[str]:
    """The record of one claim, for a terminal. Raises KeyError or TypeError for what is no record."""
    out = _wrapped(f"{record['verdict']}: {record['claim']}", width)
    out += _wrapped(f"the paper: {record['paper_figure']}", width)
    for key, head in (("stale", "stale"), ("missing", "absent here"), ("rerun", "to run it again")):
        if record[key]:
            out += _wrapped(f"{head}: {record[key]}", width)
    for check in record["measured"]["checks"]:
        beside = "" if check["decides"] else " (beyond the paper, does not decide)"
        outcome = "with earlier code" if record["stale"] else check["outcome"]
        out += ["", *_wrapped(f"{outcome}{beside}: {check['what']}", width)]
        told = f"{pair(check)}, {claimed(check)}; {precision(check)}" if not check["lacking"] else check["lacking"]
        out += _wrapped(told, width, INDENT)
    if record["measured"]["reasons"]:
        out += ["", *_wrapped(f"found in the numbers: {'; '.join(record['measured']['reasons'])}", width)]
    if record["beyond"]:
        out += ["", *_wrapped(f"left out: {record['beyond']}", width)]
    at, code = record["environment"], record["code"]
    made = [at["name"], at["weights"], at["device"], f"{at['threads']} threads", f"{len(record['seeds'])} seeds"]
    made += [at["date"], f"version {code['version']}", *([f"commit {code['commit']}"] if code["commit"] else [])]
    return [*out, "", *_wrapped(", ".join(made), width)]


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent + INDENT)
