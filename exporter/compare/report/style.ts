/** The page's style. Charts take their colours from the variables. */
export const STYLE = `
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1d2126; --soft: #59616b; --faint: #b9bec5; --line: #e3e5e8;
  --heat: #1f66b0; --on-heat: #ffffff; --warn: #8a4b00; --warn-paper: #fff4e2;
  --row-0: #1d2126; --row-1: #7b8794; --row-2: #a3685b; --row-3: #9a7400; --row-4: #b0448a;
  --row-5: #1f66b0; --row-6: #17803d; --row-7: #7a4fc4; --row-8: #c2501a; --row-9: #0f7f86; --row-10: #b3263a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1c2024; --ink: #e7e9ec; --soft: #a7afb8; --faint: #59616b; --line: #30363d;
    --heat: #6cb0f5; --on-heat: #0d1116; --warn: #ffce85; --warn-paper: #33270f;
    --row-0: #e7e9ec; --row-1: #8d99a6; --row-2: #d39a8d; --row-3: #d8b13f; --row-4: #e68cc5;
    --row-5: #6cb0f5; --row-6: #5cc57f; --row-7: #b394f0; --row-8: #f0935f; --row-9: #4fc0c7; --row-10: #f08091;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line); padding-top: 14px; padding-bottom: 10px; max-width: none; }
header > * { max-width: 1132px; margin-left: auto; margin-right: auto; }
h1 { font-size: 20px; margin-top: 0; margin-bottom: 6px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 8px; }
h3 { font-size: 15px; margin: 20px 0 2px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 18px 20px 20px; margin: 20px 0; }
article + article { border-top: 1px solid var(--line); margin-top: 22px; }
.note { color: var(--soft); margin: 4px 0 12px; max-width: 100ch; }
.notices { background: var(--warn-paper); color: var(--warn); border-radius: 6px; margin: 0; padding: 10px 14px 10px 30px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; padding: 0; margin-top: 0; margin-bottom: 0; font-size: 13px; color: var(--soft); }
.legend li::before { content: ""; display: inline-block; width: 22px; margin-right: 6px; border-top: 3px solid var(--row); vertical-align: middle; }
.legend li.dashed::before { border-top-style: dashed; }
.table { overflow-x: auto; margin: 8px 0 14px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 400; }
tr.model th { font-weight: 650; }
tr.control { color: var(--soft); }
figure { margin: 14px 0 6px; min-width: 0; }
figcaption { font-weight: 600; font-size: 13.5px; }
.chart { overflow-x: auto; }
.chart svg { color: var(--soft); max-width: 100%; height: auto; overflow: visible; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 4px 28px; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 4px 28px; align-items: start; }
dl { margin: 0; display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; font-size: 13.5px; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); }
@media (max-width: 640px) {
  header { position: static; } header, main { padding-left: 12px; padding-right: 12px; } section { padding: 14px 12px; }
  dl { grid-template-columns: 1fr; }
}
@media print { header { position: static; } section { break-inside: avoid; } }
`;
