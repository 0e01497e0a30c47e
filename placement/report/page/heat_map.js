// A heat map on a canvas, with a legend and a cursor that mouse and arrow keys move.
//
// A picture is { columns, rows, shade(x, y): 0 to 1 or -1 for none, ramp, cuts: [columns before which a line stands],
// rowCuts, marks: [{ at: column, text }], rowMarks, describe(x, y): string, legend: [low, high] }.

const MARGIN = { left: 58, top: 20 };

// Marks in equal steps so large that they lie at least `room` cells apart.
function everyFew(marks, room) {
  if (marks.length < 2) return marks;
  const gap = (marks.at(-1).at - marks[0].at) / (marks.length - 1);
  const step = Math.max(1, Math.ceil(room / gap));
  return marks.filter((_, i) => i % step === 0);
}

class HeatMap {
  constructor(host, { label, square = false }) {
    this.square = square;
    this.canvas = make("canvas", { role: "img", tabindex: "0", "aria-label": `${label} Arrow keys read single cells.` });
    this.readout = make("p", { class: "readout", "aria-live": "polite" });
    this.legend = make("div", { class: "ramp", "aria-hidden": "true" });
    host.append(this.canvas, this.legend, this.readout);
    this.cursor = null;
    this.redraw = drawOnChange(host, (width) => this.draw(width));
    for (const name of ["pointermove", "pointerdown"]) this.canvas.addEventListener(name, (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.moveTo(null));
    this.canvas.addEventListener("blur", () => this.moveTo(null));
    onArrowKeys(this.canvas, (dx, dy) => {
      const [x, y] = this.cursor ?? [-Math.sign(dx), 0];
      this.moveTo([clamp(x + dx, 0, this.picture.columns - 1), clamp(y + dy, 0, this.picture.rows - 1)]);
    });
  }

  show(picture) {
    this.picture = picture;
    this.cursor = null;
    this.redraw();
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left - MARGIN.left) / this.cell[0]);
    const y = Math.floor((event.clientY - box.top - MARGIN.top) / this.cell[1]);
    const inside = x >= 0 && y >= 0 && x < this.picture.columns && y < this.picture.rows;
    this.moveTo(inside ? [x, y] : null);
  }

  moveTo(cursor) {
    this.cursor = cursor;
    this.paint();
    this.readout.textContent = cursor === null ? this.hint() : this.picture.describe(...cursor);
  }

  hint() {
    return "Point at a cell, or use the arrow keys, to read it.";
  }

  draw(width) {
    if (!this.picture) return;
    const { columns, rows } = this.picture;
    const cellWidth = (width - MARGIN.left - 1) / columns;
    const cellHeight = this.square ? cellWidth : clamp(420 / rows, 5, 22);
    this.cell = [cellWidth, cellHeight];
    this.size = [width, Math.ceil(MARGIN.top + cellHeight * rows) + 1];
    this.table = colourTable(this.picture.ramp);
    this.image = this.paintCells();
    this.drawLegend();
    this.moveTo(this.cursor);
  }

  paintCells() {
    const { columns, rows, shade } = this.picture;
    const image = new ImageData(columns, rows);
    const none = channels(themed("--none"));
    for (let y = 0, at = 0; y < rows; y += 1) {
      for (let x = 0; x < columns; x += 1, at += 4) {
        const value = shade(x, y);
        const colour = value < 0 ? none : this.table[Math.round(clamp(value, 0, 1) * 255)];
        image.data.set(colour, at);
        image.data[at + 3] = 255;
      }
    }
    const canvas = make("canvas", { width: columns, height: rows });
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  paint() {
    if (!this.image) return;
    const [width, height] = this.size;
    const scale = devicePixelRatio || 1;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    context.imageSmoothingEnabled = false;
    const { columns, rows } = this.picture;
    const [cellWidth, cellHeight] = this.cell;
    context.drawImage(this.image, MARGIN.left, MARGIN.top, cellWidth * columns, cellHeight * rows);
    this.paintCuts(context);
    this.paintMarks(context);
    if (this.cursor === null) return;
    const [x, y] = this.cursor;
    context.lineWidth = 2;
    context.strokeStyle = themed("--accent");
    context.strokeRect(MARGIN.left + x * cellWidth - 1, MARGIN.top + y * cellHeight - 1, cellWidth + 2, cellHeight + 2);
  }

  paintCuts(context) {
    const { columns, rows, cuts = [], rowCuts = [] } = this.picture;
    const [cellWidth, cellHeight] = this.cell;
    context.fillStyle = themed("--cut");
    // Many lines close together would hide the cells.
    context.globalAlpha = clamp((columns * cellWidth) / (cuts.length + 1) / 50, 0.3, 1);
    for (const x of cuts) context.fillRect(MARGIN.left + x * cellWidth - 0.5, MARGIN.top, 1, rows * cellHeight);
    for (const y of rowCuts) context.fillRect(MARGIN.left, MARGIN.top + y * cellHeight - 0.5, columns * cellWidth, 1);
    context.globalAlpha = 1;
  }

  paintMarks(context) {
    const { marks = [], rowMarks = [] } = this.picture;
    const [cellWidth, cellHeight] = this.cell;
    context.fillStyle = themed("--muted");
    context.font = `11px ${themed("--font")}`;
    const widest = Math.max(0, ...marks.map(({ text }) => context.measureText(text).width));
    context.textAlign = "center";
    context.textBaseline = "alphabetic";
    for (const { at, text } of everyFew(marks, (widest + 8) / cellWidth)) {
      const half = context.measureText(text).width / 2;
      context.fillText(text, clamp(MARGIN.left + at * cellWidth, half, this.size[0] - half), MARGIN.top - 6);
    }
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const { at, text } of everyFew(rowMarks, 13 / cellHeight)) {
      context.fillText(text, MARGIN.left - 6, MARGIN.top + at * cellHeight);
    }
  }

  drawLegend() {
    const bar = make("canvas", { width: 256, height: 1 });
    const image = new ImageData(256, 1);
    this.table.forEach((colour, i) => image.data.set([...colour, 255], 4 * i));
    bar.getContext("2d").putImageData(image, 0, 0);
    const [low, high] = this.picture.legend;
    this.legend.replaceChildren(make("span", {}, low), bar, make("span", {}, high));
  }
}
