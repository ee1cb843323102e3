"""The lineage as one page: no script, nothing from elsewhere, fit for printing. Everything in it is escaped."""

import jinja2

from confide_simulations.whole.lineage import Lineage

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Where this answer comes from</title>
<style>
:root{--ink:#1d2733;--soft:#5b6b7b;--line:#c9d3dd;--paper:#f6f8fa;--mark:#0b6e4f;--bad:#a4262c}
*{box-sizing:border-box}body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0}
main{max-width:68rem;margin:0 auto;padding:1.6rem 1.2rem}h1{font-size:1.5rem;margin:0 0 .2rem}
.lead{color:var(--soft);margin:0 0 1.1rem}.row{display:flex;gap:.8rem}
.step{flex:1;min-width:0;background:#fff;border:1px solid var(--line);border-top:4px solid var(--mark);
border-radius:6px;padding:.55rem .8rem .6rem}.step.bad{border-top-color:var(--bad)}
.kind{font-size:.72rem;letter-spacing:.07em;text-transform:uppercase;color:var(--soft)}
.step h2{font-size:1rem;margin:.05rem 0 .25rem}dl{margin:0;display:grid;grid-template-columns:auto 1fr;gap:.05rem .7rem;
font-size:.82rem}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.from{font-size:.74rem;color:var(--soft);margin:.3rem 0 0}.arrow{text-align:center;color:var(--mark);line-height:1;
margin:.25rem 0}table{border-collapse:collapse;width:100%;background:#fff;font-size:.85rem;margin-top:.3rem}
th,td{text-align:left;border:1px solid var(--line);padding:.25rem .6rem}th{color:var(--soft);font-weight:600}
.said{background:#fff;border:1px solid var(--line);border-left:4px solid var(--mark);padding:.6rem .9rem;margin:.4rem 0}
h3{font-size:1.05rem;margin:1.2rem 0 .2rem}.note{color:var(--soft);font-size:.83rem}
.wide{overflow-x:auto}@media(max-width:44rem){.row{flex-direction:column}}
</style></head><body><main>
<h1>Where this answer comes from</h1>
<p class="lead">From the base models to the words: what was made of what, who signed it, and what it cost whom.</p>
{% for row in rows %}{% if not loop.first %}<div class="arrow" aria-hidden="true">&#9660;</div>{% endif %}
<div class="row">{% for step in row %}<section class="step{{ '' if step.good else ' bad' }}">
<div class="kind">{{ step.kind }}</div><h2>{{ step.title }}</h2>
<dl>{% for name, value in step.facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% if step.made_from %}<p class="from">made from {{ step.made_from | join(", ") }}</p>{% endif %}
</section>{% endfor %}</div>{% endfor %}
<h3>Asked</h3><div class="said"><b>{{ question }}</b></div>
<h3>The model says</h3><div class="said">{{ answer or "(nothing)" }}</div>
<p class="note">Its base, untrained: {{ base or "(nothing)" }}</p>
<h3>The organization's documents say</h3><div class="said">{{ quoted }}</div>
<h3>What each organization spent, by its own ledger</h3>
<div class="wide"><table><tr>{% for name in ledgers[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in ledgers %}<tr>{% for value in row.values() %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}
</table></div>
{% for note in notes %}<p class="note">{{ note }}</p>{% endfor %}
</main></body></html>
"""


def render(lineage: Lineage) -> str:
    """HTML. Raises ValueError where a step does not follow from what is above it."""
    lineage.check()
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_PAGE)
    return template.render(**vars(lineage))
