// Make elements; text is always set as text, never as markup.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  return fill(element, attributes, children);
}

function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  return fill(element, attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
const themed = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Call `draw` with the width of `host` now, whenever that changes, and when the theme does.
function drawOnChange(host, draw) {
  let width = 0;
  const redraw = () => {
    if (width > 0) draw(width);
  };
  new ResizeObserver(() => {
    const now = Math.floor(host.clientWidth);
    if (now !== width) {
      width = now;
      redraw();
    }
  }).observe(host);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  return redraw;
}

// Arrow keys, Home and End move a cursor; `move(dx, dy)` takes steps, infinite ones for Home and End.
function onArrowKeys(element, move) {
  const steps = {
    ArrowLeft: [-1, 0],
    ArrowRight: [1, 0],
    ArrowUp: [0, -1],
    ArrowDown: [0, 1],
    Home: [-Infinity, 0],
    End: [Infinity, 0],
  };
  element.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (step === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    move(...step);
  });
}

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
