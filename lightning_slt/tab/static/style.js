// The look of the page, set as one style element, so that tab and report need no further file.

export const STYLE = `
:root { color-scheme: light; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --faint: #f3f5f7; --paper: #ffffff;
  --accent: #0b62a8; --bad: #b3261e; --hover: #e7ecf1; }
:root.dark { color-scheme: dark; --ink: #e6edf3; --soft: #9aa4af; --line: #3d444d; --faint: #14171b; --paper: #1b1f24;
  --accent: #6cb6ff; --bad: #ff8a80; --hover: #2a3038; }
body { margin: 0; background: var(--faint); }
.slt { box-sizing: border-box; min-height: 100vh; padding: 12px; background: var(--faint); color: var(--ink);
  font: 13px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; display: grid; gap: 12px;
  grid-template-columns: 230px minmax(0, 1fr); align-items: start; }
.slt *, .slt *::before { box-sizing: border-box; }
.slt [hidden] { display: none !important; }
.slt aside { position: sticky; top: 12px; max-height: calc(100vh - 24px); overflow: auto; display: grid; gap: 12px; }
.slt .views { display: grid; gap: 12px; min-width: 0; }
.slt .card, .slt aside > section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.slt .card > header { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: center; }
.slt h1 { font-size: 15px; margin: 0; } .slt h2 { font-size: 14px; margin: 0; flex: 1 1 auto; }
.slt h3 { font-size: 12px; margin: 12px 0 4px; } .slt aside h2 { margin-bottom: 6px; }
.slt .hint, .slt .status, .slt .where { color: var(--soft); margin: 4px 0 8px; max-width: 95ch; font-size: 12px; }
.slt .where { margin: 0 0 6px; color: var(--ink); }
.slt .message { margin: 8px 0; padding: 10px 12px; border-left: 3px solid var(--line); background: var(--faint); max-width: 95ch;
  overflow-wrap: anywhere; }
.slt .message.error { border-color: var(--bad); }
.slt .controls, .slt .exports { display: flex; flex-wrap: wrap; gap: 6px 10px; align-items: center; }
.slt button, .slt select, .slt input[type=search] { font: inherit; color: var(--ink); background: var(--paper);
  border: 1px solid var(--line); border-radius: 6px; padding: 2px 8px; max-width: 100%; }
.slt button { cursor: pointer; } .slt button:hover { background: var(--hover); }
.slt button.quiet { color: var(--soft); font-size: 11.5px; padding: 1px 7px; }
.slt .card, .slt .card * { scroll-margin-top: 64px; }
.slt :focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.slt label { display: inline-flex; gap: 5px; align-items: center; min-width: 0; }
.slt .choice > span { color: var(--soft); white-space: nowrap; } .slt .choice select { max-width: 240px; }
.slt aside .choice { display: block; margin: 2px 0 4px; } .slt aside .choice select { max-width: 100%; width: 100%; }
.slt .check { display: flex; cursor: pointer; } .slt .check span { overflow-wrap: anywhere; }
.slt .check input { flex: none; margin: 2px 0; accent-color: var(--accent); }
.slt .row { display: flex; gap: 6px; align-items: center; border-radius: 4px; padding: 0 3px; }
.slt .row:hover, .slt .row.lit { background: var(--hover); }
.slt i { flex: none; display: inline-block; width: 10px; height: 10px; border-radius: 50%; }
.slt .group { margin: 6px 0 2px; } .slt .group > label { font-weight: 600; } .slt .members { padding-left: 14px; }
.slt aside input[type=search] { width: 100%; margin-bottom: 6px; }
.slt .figure { position: relative; min-width: 0; } .slt .figure canvas { position: absolute; left: 0; top: 0; }
.slt .overlay { touch-action: pan-y; border-radius: 4px; cursor: crosshair; }
.slt .tip { position: absolute; z-index: 3; pointer-events: none; background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: 5px 8px; font-size: 12px; max-width: 340px; box-shadow: 0 2px 8px rgb(0 0 0 / .2);
  overflow-wrap: anywhere; }
.slt .pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 10px 16px; }
.slt .legend { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: 4px 12px; color: var(--soft); font-size: 12px; }
.slt .key { display: inline-flex; gap: 5px; align-items: center; }
.slt .scrub { position: sticky; top: 0; z-index: 4; display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; }
.slt .scrub input[type=range] { flex: 1 1 200px; accent-color: var(--accent); }
.slt .scrub output { min-width: 17ch; font-variant-numeric: tabular-nums; }
.slt .scroll { max-height: 320px; overflow: auto; margin-top: 8px; }
.slt table { border-collapse: collapse; width: 100%; font-size: 12px; font-variant-numeric: tabular-nums; }
.slt th { text-align: left; white-space: nowrap; position: sticky; top: 0; background: var(--paper); color: var(--soft); font-weight: 600; }
.slt th, .slt td { padding: 3px 10px 3px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
.slt tr.bad td { color: var(--bad); } .slt summary { cursor: pointer; color: var(--soft); margin-top: 8px; }
.slt .warnings ul { margin: 4px 0; padding-left: 18px; overflow-wrap: anywhere; }
.slt kbd { border: 1px solid var(--line); border-radius: 4px; padding: 0 4px; font-size: 11px; }
@media (max-width: 800px) { .slt { grid-template-columns: minmax(0, 1fr); } .slt aside { position: static; max-height: none; } }
`;
