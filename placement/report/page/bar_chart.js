// Load per rank in one layer, before and after, as pairs of bars beside a line at the mean.

const BARS = { height: 190, left: 40, right: 8, top: 10, bottom: 36 };

class BarChart {
  constructor(host, label) {
    this.svg = makeSvg("svg", { role: "img", "aria-label": label });
    host.append(this.svg);
    this.redraw = drawOnChange(host, (width) => this.draw(width));
  }

  // groups: [[before, after] of each rank].
  show(groups) {
    this.groups = groups;
    this.redraw();
  }

  draw(width) {
    if (!this.groups) return;
    const bottom = BARS.height - BARS.bottom;
    const top = 1.08 * Math.max(1, ...this.groups.flat());
    const y = (value) => bottom - (value / top) * (bottom - BARS.top);
    const room = (width - BARS.left - BARS.right) / this.groups.length;
    const bar = Math.max(1, Math.min(44, room * 0.38));
    const parts = niceTicks(0, top, 4).flatMap((value) => [
      makeSvg("line", { class: "grid", x1: BARS.left, x2: width - BARS.right, y1: y(value), y2: y(value) }),
      makeSvg("text", { x: BARS.left - 7, y: y(value) + 4, "text-anchor": "end" }, String(value)),
    ]);
    const step = Math.ceil(26 / room);
    this.groups.forEach((group, rank) => {
      const middle = BARS.left + (rank + 0.5) * room;
      group.forEach((value, i) => {
        const x = middle + (i - 1) * bar;
        parts.push(makeSvg("rect", { class: i === 0 ? "before" : "after", x, y: y(value), width: bar, height: bottom - y(value) }));
      });
      if (rank % step === 0) parts.push(makeSvg("text", { x: middle, y: bottom + 16, "text-anchor": "middle" }, String(rank)));
    });
    parts.push(makeSvg("line", { class: "mean", x1: BARS.left, x2: width - BARS.right, y1: y(1), y2: y(1) }));
    parts.push(makeSvg("text", { x: (BARS.left + width) / 2, y: BARS.height - 4, "text-anchor": "middle" }, "rank"));
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", BARS.height);
    this.svg.replaceChildren(...parts);
  }
}
