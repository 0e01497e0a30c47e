// Lines over layers or factors, with a cursor that mouse and arrow keys move.
//
// A chart is { xs: [position], names: [text under a position], xTitle, yTitle, digits,
// series: [{ label, kind: class of its stroke, values }] }; all begin at 0.

const CHART = { height: 300, left: 46, right: 12, top: 12, bottom: 40 };

class LineChart {
  constructor(host, label) {
    this.svg = makeSvg("svg", { role: "img", tabindex: "0", "aria-label": `${label} Arrow keys read single values.` });
    this.legend = make("ul", { class: "legend" });
    this.readout = make("p", { class: "readout", "aria-live": "polite" });
    host.append(this.svg, this.legend, this.readout);
    this.cursor = null;
    this.redraw = drawOnChange(host, (width) => this.draw(width));
    for (const name of ["pointermove", "pointerdown"]) this.svg.addEventListener(name, (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.moveTo(null));
    this.svg.addEventListener("blur", () => this.moveTo(null));
    onArrowKeys(this.svg, (dx) => {
      if (dx !== 0) this.moveTo(clamp((this.cursor ?? -1) + dx, 0, this.chart.xs.length - 1));
    });
  }

  show(chart) {
    this.chart = chart;
    this.cursor = null;
    this.legend.replaceChildren(
      ...chart.series.map(({ label, kind }) => {
        const line = makeSvg("line", { x1: 0, x2: 26, y1: 6, y2: 6, class: `series ${kind}` });
        return make("li", {}, makeSvg("svg", { width: 26, height: 12, "aria-hidden": "true" }, line), label);
      }),
    );
    this.redraw();
  }

  point(event) {
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    const distances = this.chart.xs.map((value) => Math.abs(this.x(value) - x));
    this.moveTo(distances.indexOf(Math.min(...distances)));
  }

  moveTo(cursor) {
    this.cursor = cursor;
    if (!this.guide) return;
    const { xs, names, xTitle, digits, series } = this.chart;
    this.guide.setAttribute("visibility", cursor === null ? "hidden" : "visible");
    if (cursor === null) {
      this.readout.textContent = "Point at the chart, or use the arrow keys, to read values.";
      return;
    }
    this.guide.setAttribute("x1", this.x(xs[cursor]));
    this.guide.setAttribute("x2", this.x(xs[cursor]));
    const values = series.map(({ label, values }) => `${label} ${values[cursor].toFixed(digits)}`);
    this.readout.textContent = `${xTitle} ${names[cursor]}: ${values.join(", ")}`;
  }

  x(value) {
    const { xs } = this.chart;
    const span = xs[xs.length - 1] - xs[0] || 1;
    return CHART.left + ((value - xs[0]) / span) * (this.width - CHART.left - CHART.right);
  }

  y(value) {
    return CHART.height - CHART.bottom - (value / this.top) * (CHART.height - CHART.top - CHART.bottom);
  }

  draw(width) {
    if (!this.chart) return;
    this.width = width;
    const { series } = this.chart;
    this.top = 1.06 * (Math.max(...series.flatMap(({ values }) => values)) || 1);
    this.guide = makeSvg("line", { class: "guide", y1: CHART.top, y2: CHART.height - CHART.bottom });
    const lines = series.map(({ values, kind }) => makeSvg("path", { class: `series ${kind}`, d: this.path(values) }));
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", CHART.height);
    this.svg.replaceChildren(...this.axes(), this.guide, ...lines.reverse());
    this.moveTo(this.cursor);
  }

  path(values) {
    if (values.length === 1) return `M${this.x(this.chart.xs[0])} ${this.y(values[0])}h16`;
    const points = values.map((value, i) => `${this.x(this.chart.xs[i]).toFixed(1)} ${this.y(value).toFixed(1)}`);
    return `M${points.join("L")}`;
  }

  axes() {
    const { xs, names, xTitle } = this.chart;
    const bottom = CHART.height - CHART.bottom;
    const parts = niceTicks(0, this.top, 5).flatMap((value) => [
      makeSvg("line", { class: "grid", x1: CHART.left, x2: this.width - CHART.right, y1: this.y(value), y2: this.y(value) }),
      makeSvg("text", { x: CHART.left - 7, y: this.y(value) + 4, "text-anchor": "end" }, String(value)),
    ]);
    const room = Math.max(1, Math.floor((this.width - CHART.left - CHART.right) / 34));
    const step = Math.ceil(xs.length / room);
    xs.forEach((value, i) => {
      if (i % step !== 0) return;
      parts.push(makeSvg("text", { x: this.x(value), y: bottom + 17, "text-anchor": "middle" }, names[i]));
    });
    const middle = (CHART.left + this.width - CHART.right) / 2;
    parts.push(makeSvg("text", { x: middle, y: CHART.height - 5, "text-anchor": "middle" }, xTitle));
    return parts;
  }
}
