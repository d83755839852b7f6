// The timeline's numbers as a table, every reading in it.

export function timelineTable(timelines) {
  const head = ["run", "source", "component", "estimate", "number", "step", "reading", "value", "stderr", "lower", "upper", "ok", "reason"];
  const rows = timelines.flatMap(({run, monitors, scalars}) => [
    ...scalars.flatMap(({tag, steps, values}) => steps.map((step, i) => [run, "training", "", tag, "", step, null, values[i]])),
    ...monitors.flatMap(({name, steps, index, loss, series}) => [
      ...steps.map((step, i) => [run, name, "", "anchor_loss", "", step, index[i], loss[i]]),
      ...series.flatMap(({component, key, field, value, stderr, lower, upper, ok, reasons}) => steps.map((step, i) => [
        run, name, component, key, field, step, index[i], value[i], stderr?.[i], lower?.[i], upper?.[i], ok[i], reasons?.[i] ?? null,
      ])),
    ]),
  ]);
  return [head, ...rows];
}
