// Unpack what the page carries: base64 of little-endian arrays, and shades of 0 to 15, two to a byte.

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return bytes;
}

const floatsOf = (base64) => new Float32Array(bytesOf(base64).buffer);
const wordsOf = (base64) => new Uint16Array(bytesOf(base64).buffer);

// The shade of experts i and j of the layer at `place` among those carried; -1 for an expert and itself.
function shadeReader(levels, numExperts, place) {
  const pairs = (numExperts * (numExperts - 1)) / 2;
  const start = place * Math.ceil(pairs / 2);
  return (i, j) => {
    if (i === j) return -1;
    const low = Math.min(i, j);
    const high = Math.max(i, j);
    const pair = low * numExperts - (low * (low + 1)) / 2 + (high - low - 1);
    const byte = levels[start + (pair >> 1)];
    return pair % 2 === 0 ? byte >> 4 : byte & 15;
  };
}

// Round steps for an axis from 0 or `low` to `high`: 1, 2 or 5 times a power of ten, about `count` of them.
function niceTicks(low, high, count) {
  const span = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => span / size <= count);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}
