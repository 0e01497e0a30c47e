// Ramps of colour that people with any colour vision can read: one hue by lightness, and blue against orange.

const RAMPS = {
  light: {
    sequential: ["#f2f6fa", "#c5d9ec", "#7fb2d9", "#2f7fbc", "#0b4a8a", "#04244d"],
    diverging: ["#0b4f94", "#6ba6d6", "#eef1f4", "#f0a35a", "#a34700"],
  },
  dark: {
    sequential: ["#161c25", "#173a5c", "#1b6294", "#4396c6", "#93cdec", "#f1faff"],
    diverging: ["#7cc0ff", "#2c6296", "#1d232c", "#9a5618", "#ffb25c"],
  },
};

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// 256 colours as [red, green, blue] from the first stop of a ramp to its last.
function colourTable(name) {
  const stops = RAMPS[isDark() ? "dark" : "light"][name].map(channels);
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1);
    const left = Math.min(Math.floor(at), stops.length - 2);
    return stops[left].map((value, k) => Math.round(value + (stops[left + 1][k] - value) * (at - left)));
  });
}
