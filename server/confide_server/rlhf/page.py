"""The gate's evidence as one page: no script, nothing from elsewhere, fit for printing."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jinja2

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Gate: {{ "passed" if passed else "not passed" }}</title>
<style>body{font:16px/1.5 sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}td{padding:.1rem 1rem .1rem 0;
vertical-align:top}.no{color:#a00}.yes{color:#060}code{word-break:break-all}</style></head><body>
<h1>The candidate <span class="{{ 'yes' if passed else 'no' }}">{{ "passed" if passed else "did NOT pass" }}</span></h1>
<p>Made {{ made }}{% if signer %}, signed by {{ signer }}{% else %}; NOT SIGNED{% endif %}.</p>
{% if failed %}<h2>What did not hold</h2><ul>{% for one in failed %}<li>{{ one }}</li>{% endfor %}</ul>{% endif %}
<h2>Measured</h2>
<table>{% for name, value in figures %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Not known</h2><ul>{% for one in not_known %}<li>{{ one }}</li>{% else %}<li>nothing of what the gate asks</li>
{% endfor %}</ul>
<h2>Where it comes from</h2><table>{% for name, value in lineage %}<tr><td>{{ name }}</td><td><code>{{ value }}</code>
</td></tr>{% endfor %}</table></body></html>
"""


def render(evidence: Mapping[str, Any], *, signer: str = "") -> str:
    """HTML of `gate.evidence_of`'s document; everything in it is escaped."""
    made = datetime.fromtimestamp(float(evidence["made_at"]), UTC).strftime("%Y-%m-%d %H:%M UTC")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_PAGE)
    return template.render(
        passed=evidence["passed"], made=made, signer=signer, failed=evidence["failed"], not_known=evidence["not_known"],
        figures=sorted(evidence["figures"].items()), lineage=sorted(evidence["lineage"].items()),
    )  # fmt: skip
