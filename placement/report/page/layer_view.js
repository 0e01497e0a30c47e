// One layer of one plan: co-activation, load and slots, before (experts in the usual order) and after.

class LayerView {
  constructor(report, root) {
    this.report = report;
    const host = (name) => root.querySelector(`[data-plot="${name}"]`);
    const label = (name) => host(name).dataset.label;
    this.select = document.getElementById("plan-choice");
    this.slider = document.getElementById("layer-choice");
    this.shownLayer = document.getElementById("layer-shown");
    this.together = document.getElementById("together");
    this.slots = document.getElementById("slots");
    this.levels = report.coactivation && bytesOf(report.coactivation.levels);
    if (this.levels) {
      this.maps = ["before", "after"].map((name) => new HeatMap(host(name), { label: label(name), square: true }));
    }
    this.bars = new BarChart(host("layer-load"), label("layer-load"));
    this.slider.max = report.layerIds.length - 1;
    this.select.addEventListener("change", () => this.show());
    this.slider.addEventListener("input", () => this.show());
    root.querySelector("form").hidden = false;
    this.show();
  }

  show() {
    const row = Number(this.slider.value);
    const layerId = this.report.layerIds[row];
    const after = this.report.placements[Number(this.select.value)];
    const before = this.report.placements[after.before];
    this.slider.setAttribute("aria-valuetext", `decoder layer ${layerId}`);
    this.shownLayer.textContent = layerId;
    if (this.levels) this.showCoactivation(row, [before, after]);
    const loads = [before, after].map((placement) => floatsOf(placement.load));
    const ranks = after.nodeOfRank.length;
    this.bars.show(Array.from({ length: ranks }, (_, rank) => loads.map((load) => load[row * ranks + rank])));
    this.showSlots(row, after);
  }

  showCoactivation(row, pair) {
    const { rows, tops } = this.report.coactivation;
    const nearest = rows.reduce((best, other) => (Math.abs(other - row) < Math.abs(best - row) ? other : best));
    const place = rows.indexOf(nearest);
    const shade = shadeReader(this.levels, this.report.numExperts, place);
    pair.forEach((placement, i) => this.maps[i].show(this.picture(placement, nearest, shade, tops[place])));
    const shares = pair.map(({ detail }) => `${(100 * detail.together[row]).toFixed(1)} %`);
    const stand_in = nearest === row ? "" : ` To keep the page small the maps show layer ${this.report.layerIds[nearest]}.`;
    this.together.textContent =
      `Layer ${this.report.layerIds[row]}: of the pairs of experts that a token uses at once, ${shares[0]} share a rank ` +
      `in the usual order and ${shares[1]} under ${pair[1].label}.${stand_in}`;
  }

  picture(placement, row, shade, top) {
    const { rankOfSlot } = placement.detail;
    const slots = this.slotsOf(placement, row);
    const cuts = rankOfSlot.flatMap((rank, slot) => (slot > 0 && rank !== rankOfSlot[slot - 1] ? [slot] : []));
    const bounds = [0, ...cuts, slots.length];
    const middles = bounds.slice(1).map((end, rank) => ({ at: (bounds[rank] + end) / 2, text: `rank ${rank}` }));
    return {
      columns: slots.length,
      rows: slots.length,
      shade: (x, y) => shade(slots[x], slots[y]) / 15,
      ramp: "sequential",
      cuts,
      rowCuts: cuts,
      marks: middles,
      rowMarks: middles,
      legend: ["0, never together", `${top.toFixed(2)} or more`],
      describe: (x, y) => {
        const level = shade(slots[x], slots[y]);
        const where = `expert ${slots[y]} (rank ${rankOfSlot[y]}) and expert ${slots[x]} (rank ${rankOfSlot[x]})`;
        return level < 0 ? `${where}: the same expert` : `${where}: about ${((level / 15) * top).toFixed(3)}`;
      },
    };
  }

  slotsOf(placement, row) {
    const all = wordsOf(placement.detail.slots);
    const count = placement.detail.rankOfSlot.length;
    return all.subarray(row * count, (row + 1) * count);
  }

  showSlots(row, placement) {
    const { rankOfSlot } = placement.detail;
    const copies = new Map();
    const slots = this.slotsOf(placement, row);
    slots.forEach((expert) => copies.set(expert, (copies.get(expert) ?? 0) + 1));
    const byRank = placement.nodeOfRank.map(() => []);
    slots.forEach((expert, slot) => byRank[rankOfSlot[slot]].push(expert));
    const severalNodes = placement.nodeOfRank.at(-1) > 0;
    const body = byRank.map((experts, rank) => {
      const cell = make("td", { class: "experts" });
      [...experts].sort((a, b) => a - b).forEach((expert) => {
        const count = copies.get(expert);
        cell.append(count > 1 ? make("b", {}, `${expert} (×${count})`) : String(expert), " ");
      });
      const node = severalNodes ? `, node ${placement.nodeOfRank[rank]}` : "";
      return make("tr", {}, make("th", { scope: "row" }, `rank ${rank}${node}`), cell);
    });
    this.slots.querySelector("tbody").replaceChildren(...body);
    this.slots.querySelector("caption").textContent =
      `${placement.label}, layer ${this.report.layerIds[row]}: experts on each rank; (×n) marks an expert with n copies`;
  }
}
