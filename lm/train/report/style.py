"""The report's style sheet: one column on a phone, two on a desk, light or dark as the reader's system says."""

from lm.train.report.ramp import gradient

DARK_COLOURS = ("#6ba3ff", "#ff9a5c", "#56c793", "#c191f2")
"""Of series on a dark ground, which a terminal's is taken for, too."""

STYLE = (
    """
:root {
  color-scheme: light dark;
  --page: #f7f8fa; --card: #ffffff; --ink: #1c2430; --soft: #5d6878; --rule: #dfe3e9; --code: #f2f4f7;
  --c0: #2563c9; --c1: #d2571a; --c2: #1f8a5b; --c3: #8a4fc0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2029; --ink: #e4e8ee; --soft: #98a3b3; --rule: #2d3542; --code: #141920;
"""
    + "".join(f"--c{number}: {colour}; " for number, colour in enumerate(DARK_COLOURS))
    + """
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 32px 20px 56px; }
h1 { margin: 0; font-size: 27px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 36px 0 12px; font-size: 18px; }
p { margin: 6px 0; max-width: 75ch; }
.soft, .empty { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 12px; margin: 22px 0 16px; }
.cards div, figure, .panel {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px;
}
.cards b { display: block; font-size: 23px; font-weight: 650; font-variant-numeric: tabular-nums; }
.cards span { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(460px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; overflow-x: auto; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 18px; margin-bottom: 8px;
  font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-weight: 400; font-size: 13px; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: 16px; height: 0; margin-right: 6px; vertical-align: middle;
  border-top: 3px solid var(--colour); border-radius: 2px; }
.key.faint::before { opacity: 0.35; }
.c0 { --colour: var(--c0); } .c1 { --colour: var(--c1); } .c2 { --colour: var(--c2); } .c3 { --colour: var(--c3); }
svg { display: block; width: 100%; min-width: 400px; height: auto; overflow: visible; font-size: 14px; }
svg path { fill: none; stroke: var(--colour); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg circle { fill: var(--card); stroke: var(--colour); stroke-width: 2; }
svg .faint path { stroke-width: 1.1; opacity: 0.35; }
svg .grid { stroke: var(--rule); }
svg .axis { stroke: var(--soft); }
svg text { fill: var(--ink); }
svg .tick, svg .label { fill: var(--soft); font-variant-numeric: tabular-nums; }
svg.bars { font-size: 16px; }
svg .plain rect { fill: var(--soft); opacity: 0.45; }
svg .strong rect { fill: var(--c0); }
svg .spread { stroke: var(--ink); stroke-width: 1.4; }
svg .strong text { font-weight: 650; }
svg.heat rect { fill: var(--c0); }
svg.heat .none rect { fill: none; stroke: var(--rule); }
svg.heat .none text { fill: var(--soft); }
svg.heat .high text { fill: var(--card); }
.ramp { width: 64px; height: 12px; align-self: center; border-radius: 2px; border: 1px solid var(--rule);
  background: linear-gradient(to right, transparent, var(--c0)); }
svg.map path { stroke: none; shape-rendering: crispEdges; }
svg.map .last { font-size: 12px; font-variant-numeric: tabular-nums; }
svg.map .tick { font-size: 12px; }
svg.map + p { font-size: 13px; margin: 10px 0 0; }
.viridis { width: 72px; height: 12px; align-self: center; border-radius: 2px; background: """
    + gradient()
    + """; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 13px; white-space: normal; }
th.word, td.word { text-align: left; white-space: normal; }
tbody tr:last-child td { border-bottom: 0; }
dl { margin: 0; display: grid; gap: 4px 28px; grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr)); }
dl div { display: flex; gap: 12px; justify-content: space-between; border-bottom: 1px solid var(--rule);
  padding: 4px 0; }
dt { color: var(--soft); white-space: nowrap; } dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
pre { margin: 0; padding: 14px 16px; overflow-x: auto; border-radius: 8px; background: var(--code);
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
pre .prompt { color: var(--c0); font-weight: 650; }
.panel > * + * { margin-top: 12px; }
section > * + .panel { margin-top: 14px; }
summary { cursor: pointer; font-weight: 600; }
details pre { margin-top: 10px; }
"""
)
