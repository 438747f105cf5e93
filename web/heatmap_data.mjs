// A heatmap figure as the server wrote it (training/inspection/heatmaps.py), decoded: maps by word, timestep, block, head.

/** Undo base64 and the number format of one packed array. */
function unpack({ dtype, shape, data, unit = 1 }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const values = dtype === "<u2" ? new Uint16Array(bytes.buffer) : new Float32Array(bytes.buffer);
  return { shape, values, unit };
}

export const ALL = -1; // of a slider: the mean over its axis

export class HeatmapData {
  constructor(figure) {
    this.words = figure.words;
    this.figure = figure;
    this.maps = unpack(figure.maps); // [words, rows, columns]
    this.detail = figure.detail && unpack(figure.detail); // [times, blocks, heads, words, rows, columns]
    this.colours = Object.fromEntries(Object.entries(figure.colours).map(([name, hex]) => [name, table(hex)]));
  }

  /** How many positions each slider has. */
  get sizes() {
    const [times, blocks, heads] = this.detail?.shape ?? [1, 1, 1];
    return { time: times, block: blocks, head: heads };
  }

  /** Rows and columns of the maps for these slider positions. */
  grid(at) {
    return (this.#whole(at) ? this.maps : this.detail).shape.slice(-2);
  }

  /** One word's map, row by row, averaged over every axis whose slider stands at ALL. */
  map(word, at) {
    const [rows, columns] = this.grid(at);
    const cells = rows * columns;
    if (this.#whole(at)) return this.maps.values.slice(word * cells, (word + 1) * cells);
    const { values, shape, unit } = this.detail;
    const [times, blocks, heads, words] = shape;
    const out = new Float32Array(cells);
    let count = 0;
    for (const t of chosen(at.time, times))
      for (const b of chosen(at.block, blocks))
        for (const h of chosen(at.head, heads)) {
          const start = (((t * blocks + b) * heads + h) * words + word) * cells;
          for (let i = 0; i < cells; i++) out[i] += values[start + i];
          count++;
        }
    return out.map((value) => (value * unit) / count);
  }

  #whole(at) {
    return !this.detail || (at.time === ALL && at.block === ALL && at.head === ALL);
  }
}

const chosen = (position, size) => (position === ALL ? Array.from({ length: size }, (_, i) => i) : [position]);

/** "rrggbb…" → red, green, blue bytes of all steps. */
function table(hex) {
  return Uint8Array.from({ length: hex.length / 2 }, (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16));
}

/** Paint values / ceiling (0 to 1) into a canvas of columns × rows pixels. */
export function paint(canvas, values, [rows, columns], colours, ceiling) {
  canvas.width = columns;
  canvas.height = rows;
  const picture = new ImageData(columns, rows);
  const last = colours.length / 3 - 1;
  values.forEach((value, i) => {
    const step = Math.round(Math.min(Math.max(value / ceiling, 0), 1) * last);
    picture.data.set([colours[3 * step], colours[3 * step + 1], colours[3 * step + 2], 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
}
