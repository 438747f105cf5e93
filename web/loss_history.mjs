// The losses of every step of a job, out of its events; and curves, thinned so that ten thousand steps draw at once.
// Pure: tested without a browser.

export class LossHistory {
  points = []; // {step, losses}, in order of steps
  rates = []; // {step, rate}: the share of pictures in which a classifier saw the concept
  last = 0; // number of the last event taken

  /** Take one event in order. An event of a number already seen changes nothing. */
  take(event) {
    if (event.n <= this.last) return;
    this.last = event.n;
    if (event.type === "step" && event.losses) {
      // A resumed job goes on from its last checkpoint: what lay beyond is trained again.
      while (this.points.length && this.points.at(-1).step >= event.step) this.points.pop();
      this.points.push({ step: event.step, losses: event.losses });
    }
    if (Number.isFinite(event.concept_rate)) {
      const step = event.step ?? this.points.at(-1)?.step ?? 0;
      this.rates = [...this.rates.filter((known) => known.step < step), { step, rate: event.concept_rate }];
    }
  }

  /** Whether events are missing between the last one taken and this one. */
  misses(event) {
    return event.n > this.last + 1;
  }

  /** The index of the point nearest to a step. */
  nearest(step) {
    let [low, high] = [0, this.points.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.points[middle].step < step) low = middle + 1;
      else high = middle;
    }
    const before = this.points[low - 1];
    return before && step - before.step <= this.points[low].step - step ? low - 1 : low;
  }

  /**
   * One loss in at most `count` bins of equal width: [{step, low, mean, high}], `step` being the middle of those in the bin.
   * Steps without that loss, or with one that is no number, are left out.
   */
  bins(name, count) {
    if (!this.points.length) return [];
    const first = this.points[0].step;
    const width = (this.points.at(-1).step - first + 1) / count;
    const bins = new Map();
    for (const { step, losses } of this.points) {
      const value = losses[name];
      if (!Number.isFinite(value)) continue;
      const number = Math.floor((step - first) / width);
      const bin = bins.get(number);
      if (!bin) bins.set(number, { first: step, last: step, low: value, high: value, sum: value, size: 1 });
      else {
        bin.last = step;
        bin.low = Math.min(bin.low, value);
        bin.high = Math.max(bin.high, value);
        bin.sum += value;
        bin.size += 1;
      }
    }
    return [...bins.values()].map(({ first, last, low, high, sum, size }) => ({
      step: (first + last) / 2,
      low,
      mean: sum / size,
      high,
    }));
  }
}

/** SVG paths of binned values in a box of `width` × `height`: the mean as a line, lowest to highest as an area. */
export function paths(bins, width, height) {
  const [first, last] = [bins[0].step, bins.at(-1).step];
  const low = Math.min(...bins.map((bin) => bin.low));
  const high = Math.max(...bins.map((bin) => bin.high));
  const x = (step) => round(last > first ? ((step - first) / (last - first)) * width : width / 2);
  const y = (value) => round(high > low ? ((high - value) / (high - low)) * height : height / 2);
  const line = (values) => values.map(({ at, value }) => `${x(at)} ${y(value)}`).join("L");
  const along = (name, values = bins) => line(values.map((bin) => ({ at: bin.step, value: bin[name] })));
  return { low, high, mean: `M${along("mean")}`, spread: `M${along("high")}L${along("low", [...bins].reverse())}Z` };
}

const round = (number) => Math.round(number * 100) / 100;
