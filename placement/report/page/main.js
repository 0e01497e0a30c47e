// Draw every figure from the numbers that the page carries.

const report = JSON.parse(document.getElementById("numbers").textContent);
const STEPS = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"];
const PLAIN = { linear: "b0", round_robin: "b1", eplb: "b2" };

// Plans have colours, baselines greys by name.
const kindOf = (placement, place) =>
  placement.baseline ? (PLAIN[placement.short.split(" ")[0]] ?? "b0") : STEPS[place % STEPS.length];

const hostOf = (name) => document.querySelector(`[data-plot="${name}"]`);
const layerMarks = () => report.layerIds.map((id, row) => ({ at: row + 0.5, text: `layer ${id}` }));

// The chosen setting's placements, each with its place among all; without a choice there is one setting.
function chosenPlacements(selectName) {
  const setting = Number(document.getElementById(selectName)?.value ?? 0);
  return report.placements.map((placement, place) => ({ placement, place })).filter(({ placement }) => placement.setting === setting);
}

// Show the form that holds `select`, and call `show` now and whenever something in it changes.
function onChoice(select, show) {
  select.form.addEventListener("change", show);
  select.form.hidden = false;
  show();
}

function drawLayers() {
  const host = hostOf("layers");
  const choice = document.getElementById("metric-choice");
  const chart = new LineChart(host, host.dataset.label);
  onChoice(choice, () => {
    const metric = Number(choice.value);
    chart.show({
      xs: report.layerIds,
      names: report.layerIds.map(String),
      xTitle: "decoder layer",
      digits: report.metrics[metric].digits,
      series: chosenPlacements("layers-setting").map(({ placement, place }) => ({
        label: placement.short,
        kind: kindOf(placement, place),
        values: placement.metrics[metric],
      })),
    });
    document.getElementById("metric-unit").textContent = report.metrics[metric].unit;
  });
}

// Pictures of a plan and of what it replaces have one scale: the largest of their `values`.
function mostOfPair(hosts, values, placement) {
  return Math.max(...values.filter((_, i) => report.placements[hosts[i].dataset.placement].before === placement.before));
}

function drawLoads() {
  const hosts = [...document.querySelectorAll('[data-plot="load"]')];
  const loads = hosts.map((host) => floatsOf(report.placements[host.dataset.placement].load));
  const farthest = loads.map((load) => load.reduce((most, value) => Math.max(most, Math.abs(value - 1)), 0.05));
  hosts.forEach((host, i) => {
    const placement = report.placements[host.dataset.placement];
    const reach = mostOfPair(hosts, farthest, placement);
    const ranks = placement.nodeOfRank.length;
    const nodes = placement.nodeOfRank.flatMap((node, rank, all) => (rank > 0 && node !== all[rank - 1] ? [rank] : []));
    new HeatMap(host, { label: host.dataset.label }).show({
      columns: ranks,
      rows: report.layerIds.length,
      shade: (x, y) => 0.5 + (loads[i][y * ranks + x] - 1) / (2 * reach),
      ramp: "diverging",
      cuts: nodes,
      marks: placement.nodeOfRank.map((_, rank) => ({ at: rank + 0.5, text: ranks <= 8 ? `rank ${rank}` : String(rank) })),
      rowMarks: layerMarks(),
      legend: [`${Math.max(0, 1 - reach).toFixed(2)} of the mean`, `${(1 + reach).toFixed(2)}`],
      describe: (x, y) => `layer ${report.layerIds[y]}, rank ${x}: ${loads[i][y * ranks + x].toFixed(3)} of the mean load`,
    });
  });
}

function drawReplicas() {
  document.querySelectorAll('[data-plot="replicas"]').forEach((host) => {
    const placement = report.placements[host.dataset.placement];
    const slots = wordsOf(placement.detail.slots);
    const perLayer = placement.detail.rankOfSlot.length;
    const copies = new Uint16Array(report.layerIds.length * report.numExperts);
    slots.forEach((expert, at) => {
      copies[Math.floor(at / perLayer) * report.numExperts + expert] += 1;
    });
    const most = copies.reduce((left, right) => Math.max(left, right), 2);
    new HeatMap(host, { label: host.dataset.label }).show({
      columns: report.numExperts,
      rows: report.layerIds.length,
      shade: (x, y) => (copies[y * report.numExperts + x] - 1) / (most - 1),
      ramp: "sequential",
      marks: Array.from({ length: report.numExperts }, (_, expert) => ({ at: expert + 0.5, text: String(expert) })),
      rowMarks: layerMarks(),
      legend: ["1 copy", `${most} copies`],
      describe: (x, y) => {
        const count = copies[y * report.numExperts + x];
        return `layer ${report.layerIds[y]}, expert ${x}: ${count} ${count === 1 ? "copy" : "copies"}`;
      },
    });
  });
}

function drawTraffic() {
  const hosts = [...document.querySelectorAll('[data-plot="traffic"]')];
  const matrices = hosts.map((host) => floatsOf(report.placements[host.dataset.placement].detail.rows));
  const largest = matrices.map((rows) => rows.reduce((left, right) => Math.max(left, right), 1e-9));
  hosts.forEach((host, i) => {
    const placement = report.placements[host.dataset.placement];
    const { nodeOfRank } = placement;
    const most = mostOfPair(hosts, largest, placement);
    const ranks = nodeOfRank.length;
    const cuts = nodeOfRank.flatMap((node, rank, all) => (rank > 0 && node !== all[rank - 1] ? [rank] : []));
    const marks = nodeOfRank.map((_, rank) => ({ at: rank + 0.5, text: ranks <= 8 ? `rank ${rank}` : String(rank) }));
    new HeatMap(host, { label: host.dataset.label, square: true }).show({
      columns: ranks,
      rows: ranks,
      shade: (x, y) => (x === y ? -1 : matrices[i][y * ranks + x] / most),
      ramp: "sequential",
      cuts,
      rowCuts: cuts,
      marks,
      rowMarks: marks,
      legend: ["0", `${(1000 * most).toFixed(1)} per 1,000 tokens`],
      describe: (x, y) =>
        x === y
          ? `rank ${y}: served at home, nothing is sent`
          : `from rank ${y} to rank ${x}: ${(1000 * matrices[i][y * ranks + x]).toFixed(1)} hidden states per 1,000 tokens`,
    });
  });
}

function drawCapacity() {
  const host = hostOf("capacity");
  const choice = document.getElementById("bound-choice");
  const chart = new LineChart(host, host.dataset.label);
  onChoice(choice, () => {
    const [level, overflow] = choice.value.split(" ");
    const isChosen = (bound) => bound.level === level && bound.overflow === overflow;
    const series = chosenPlacements("capacity-setting").map(({ placement, place }) => ({
      label: placement.short,
      kind: kindOf(placement, place),
      values: placement.capacity.filter(isChosen).map(({ lost }) => 100 * lost),
    }));
    const factors = report.placements[0].capacity.filter(isChosen).map(({ factor }) => factor);
    chart.show({ xs: factors, names: factors.map(String), xTitle: "capacity factor", digits: 2, series });
  });
}

function drawDrift() {
  const host = hostOf("drift");
  new LineChart(host, host.dataset.label).show({
    xs: report.layerIds,
    names: report.layerIds.map(String),
    xTitle: "decoder layer",
    digits: 1,
    series: [{ label: "moved", kind: "s0", values: report.drift }],
  });
}

drawLayers();
drawLoads();
new LayerView(report, document.getElementById("one-layer"));
drawReplicas();
drawTraffic();
if (hostOf("capacity")) drawCapacity();
if (hostOf("drift")) drawDrift();
