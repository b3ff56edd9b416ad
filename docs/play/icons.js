// Icons of objects, as SVG.

const COLORS = {
  gray: "#575757",
  red: "#ad2323",
  blue: "#2a4bd7",
  green: "#1d6914",
  brown: "#814a19",
  purple: "#8126c0",
  cyan: "#29d0d0",
  yellow: "#ffee33",
};
const SHAPES = {
  cube: [
    ["M4 11 16 5 28 11 16 17Z", 0.35],
    ["M4 11 16 17V29L4 23Z", 0],
    ["M28 11 16 17V29L28 23Z", -0.25],
  ],
  sphere: [
    ["M16 4a12 12 0 1 0 .01 0Z", 0],
    ["M11 8a4 4 0 1 0 .01 0Z", 0.35],
  ],
  cylinder: [
    ["M5 9V23A11 5 0 0 0 27 23V9Z", 0],
    ["M5 9A11 5 0 1 0 27 9 11 5 0 1 0 5 9Z", 0.35],
  ],
};
const SVG = "http://www.w3.org/2000/svg";

/** Split a label such as "red cube"; null if the color or shape has no icon. */
export function parts(label) {
  const [color, shape, ...rest] = label.split(" ");
  return color in COLORS && shape in SHAPES && !rest.length ? { color, shape } : null;
}

/** Create the icon of a label; null if it has none. */
export function icon(label) {
  const found = parts(label);
  if (!found) return null;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 32 32");
  svg.setAttribute("aria-hidden", "true");
  for (const [d, light] of SHAPES[found.shape]) {
    for (const [fill, opacity] of [
      [COLORS[found.color], 1],
      [light > 0 ? "#fff" : "#000", Math.abs(light)],
    ]) {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", d);
      path.setAttribute("fill", fill);
      path.setAttribute("fill-opacity", opacity);
      svg.append(path);
    }
  }
  return svg;
}
